//! Answering requests with a decoder: a context that several continuations share is encoded once, inputs of one length go
//! through the blocks together, and vocabulary logits are computed only where a token is scored.
//!
//! What a sequence shares must not depend on what it is shared with. A recipe with one dynamic activation scale per
//! sequence breaks that: the scale of a context alone is not that of the context with its continuation, and a padding
//! token would enter it. Such a recipe is scored sequence by sequence, each as it is.

use burn::tensor::{Int, Tensor, TensorData};
use models::kernel::on_host;
use models::{Cache, Decoder, KeyValues, Off, Tap, simd, token_tensor};
use rayon::prelude::*;

use crate::evaluate::decoder_model::{LOGITS_AT_ONCE, TOKENS_PER_BATCH};
use crate::evaluate::requests::sharing::{self, Place, Shared};
use crate::evaluate::scoring::Answer;
use crate::evaluate::windows::Sequence;
use crate::evaluate::{EvaluateError, Progress};

/// Fills rows up to the longest of a batch: it stands behind every scored position, where causal attention hides it.
const PADDING: u32 = 0;

/// Whether work may be shared between the sequences of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Contexts are encoded once, rows are padded.
    Shared,
    /// Every sequence goes through the model alone in its row, unpadded.
    Alone,
}

/// What was computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// One per sequence, in order.
    pub answers: Vec<Answer>,
    /// Tokens that went through the blocks.
    pub tokens: u64,
}

/// Scores the sequences of several items, in their order.
///
/// Where the decoder has a prefix, a sequence that begins with `start`, BOS, is fed without it: the prefix stands in its
/// place.
///
/// # Errors
/// [`EvaluateError::Interrupted`].
pub fn score(
    decoder: &mut Decoder,
    tap: &mut dyn Tap,
    start: Option<u32>,
    items: &[&[Sequence]],
    sharing: Sharing,
    progress: &mut Progress,
) -> Result<Scored, EvaluateError> {
    let plan = match sharing {
        Sharing::Shared => sharing::plan(items.iter().copied()),
        Sharing::Alone => {
            let alone = items.iter().flat_map(|item| item.iter());
            sharing::plan(alone.map(std::slice::from_ref))
        }
    };
    let sequences: usize = items.iter().map(|item| item.len()).sum();
    let mut run = Run {
        start,
        decoder,
        tap,
        sharing,
        answers: vec![Answer { log_likelihood: 0.0, greedy: true, tokens: 0 }; sequences],
        tokens: 0,
    };
    let mut done = 0;
    for batch in sharing::batches(&plan, TOKENS_PER_BATCH, 0) {
        if !progress(done, plan.len()) {
            return Err(EvaluateError::Interrupted);
        }
        let entries: Vec<&Shared> = batch.iter().map(|&index| &plan[index]).collect();
        run.batch(&entries);
        done += batch.len();
    }
    Ok(Scored { answers: run.answers, tokens: run.tokens })
}

/// A score to be read off: which row of hidden states predicts which token of which sequence.
struct Wanted {
    row: usize,
    sequence: usize,
    target: u32,
}

struct Run<'a> {
    decoder: &'a mut Decoder,
    tap: &'a mut dyn Tap,
    /// BOS, where a prefix takes its place.
    start: Option<u32>,
    sharing: Sharing,
    answers: Vec<Answer>,
    tokens: u64,
}

/// Inputs behind a context, and where they are read.
struct Row<'a> {
    /// Which context of the batch they follow; `None` where they begin a sequence.
    context: Option<usize>,
    tokens: &'a [u32],
    /// Place in `tokens`, sequence, target.
    reads: Vec<(usize, usize, u32)>,
}

impl Run<'_> {
    /// 1 where a sequence's first token is not fed.
    fn dropped(&self, tokens: &[u32]) -> usize {
        usize::from(self.decoder.stands_for_first(self.start, tokens))
    }

    /// Entries whose prefixes have one length.
    fn batch(&mut self, entries: &[&Shared]) {
        // Whether BOS is dropped may differ between entries, and then so do the lengths that are fed.
        for dropped in [0, 1] {
            let first = |entry: &Shared| match entry.prefix.is_empty() {
                true => entry.branches.first().map_or(Vec::new(), |branch| branch.tokens.clone()),
                false => entry.prefix.clone(),
            };
            let chosen: Vec<&Shared> =
                entries.iter().copied().filter(|entry| self.dropped(&first(entry)) == dropped).collect();
            if !chosen.is_empty() {
                self.equal(&chosen, dropped);
            }
        }
    }

    fn equal(&mut self, entries: &[&Shared], dropped: usize) {
        let prefix = entries[0].prefix.len();
        let fed = prefix.saturating_sub(dropped);
        let mut contexts = None;
        let mut behind_prefix = Vec::new();
        if fed > 0 {
            let tokens: Vec<&[u32]> = entries.iter().map(|entry| &entry.prefix[dropped..]).collect();
            let past = self.decoder.prefix.as_ref().map(|prefix| prefix.cache.clone());
            let input = token_tensor(&tokens, &self.decoder.device());
            self.tokens += (tokens.len() * fed) as u64;
            let (hidden, cache) = self.decoder.encode(past.as_ref(), input, self.tap);
            contexts = Some(cache);
            let mut wanted = Vec::new();
            for (index, entry) in entries.iter().enumerate() {
                for (at, sequence, target) in reads_of_prefix(entry) {
                    match at.checked_sub(dropped) {
                        Some(at) => wanted.push(Wanted { row: index * fed + at, sequence, target }),
                        None => behind_prefix.push((sequence, target)),
                    }
                }
            }
            self.read(hidden, &wanted);
        } else if prefix > 0 {
            behind_prefix
                .extend(entries.iter().flat_map(|entry| reads_of_prefix(entry)).map(|(_, s, t)| (s, t)));
        }

        let mut rows = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            for branch in &entry.branches {
                // Where nothing is shared the branch begins the sequence, BOS included.
                let skipped = if prefix == 0 { dropped } else { 0 };
                let mut reads = Vec::new();
                for reading in &branch.readings {
                    for &(place, target) in &reading.scores {
                        let Place::Branch(at) = place else { continue };
                        match at.checked_sub(skipped) {
                            Some(at) => reads.push((at, reading.sequence, target)),
                            None => behind_prefix.push((reading.sequence, target)),
                        }
                    }
                }
                let tokens = &branch.tokens[skipped.min(branch.tokens.len())..];
                if !tokens.is_empty() && !reads.is_empty() {
                    rows.push(Row { context: contexts.as_ref().map(|_| index), tokens, reads });
                }
            }
        }
        // Longest first, so that a batch pads little; equal lengths keep their order.
        rows.sort_by_key(|row| std::cmp::Reverse(row.tokens.len()));
        let mut from = 0;
        while from < rows.len() {
            let longest = rows[from].tokens.len();
            let most = (TOKENS_PER_BATCH / longest).max(1);
            let fits = |row: &&Row| self.sharing == Sharing::Shared || row.tokens.len() == longest;
            let count = rows[from..].iter().take(most).take_while(fits).count();
            self.branches(&rows[from..from + count], longest, contexts.as_ref());
            from += count;
        }
        for (sequence, target) in behind_prefix {
            let last =
                self.decoder.prefix.as_ref().expect("BOS is only dropped behind a prefix").last.clone();
            let logits = self.decoder.logits(last, &mut Off);
            let vocabulary = logits.dims()[2];
            let found = targets(logits.reshape([1, vocabulary]), &[target]);
            self.add(sequence, found[0]);
        }
    }

    fn branches(&mut self, rows: &[Row], longest: usize, contexts: Option<&Cache>) {
        let padded: Vec<Vec<u32>> = rows
            .iter()
            .map(|row| {
                let padding = std::iter::repeat_n(PADDING, longest - row.tokens.len());
                row.tokens.iter().copied().chain(padding).collect()
            })
            .collect();
        let input: Tensor<2, Int> = token_tensor(&padded, &self.decoder.device());
        self.tokens += (rows.len() * longest) as u64;
        let hidden = match contexts {
            Some(contexts) => {
                let chosen: Vec<usize> = rows.iter().filter_map(|row| row.context).collect();
                let past = rows_of(contexts, &chosen);
                self.decoder.encode(Some(&past), input, self.tap).0
            }
            None => self.decoder.hidden(input, self.tap),
        };
        let mut wanted = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            for &(at, sequence, target) in &row.reads {
                wanted.push(Wanted { row: index * longest + at, sequence, target });
            }
        }
        self.read(hidden, &wanted);
    }

    /// Logits at the wanted rows of `[sequences, tokens, hidden]`, each once, and what they say of the targets.
    fn read(&mut self, hidden: Tensor<3>, wanted: &[Wanted]) {
        if wanted.is_empty() {
            return;
        }
        let [sequences, tokens, width] = hidden.dims();
        let flat = hidden.reshape([sequences * tokens, width]);
        let mut rows: Vec<usize> = wanted.iter().map(|w| w.row).collect();
        rows.sort_unstable();
        rows.dedup();
        let at_once = (LOGITS_AT_ONCE / self.decoder.architecture.vocabulary).max(1);
        for chunk in rows.chunks(at_once) {
            let indices: Vec<i64> = chunk.iter().map(|&row| row as i64).collect();
            let indices =
                Tensor::<1, Int>::from_data(TensorData::new(indices, [chunk.len()]), &flat.device());
            let picked = flat.clone().select(0, indices).reshape([1, chunk.len(), width]);
            let logits = self.decoder.logits(picked, self.tap);
            let vocabulary = logits.dims()[2];
            let logits = logits.reshape([chunk.len(), vocabulary]);
            let here = wanted.iter().filter(|w| chunk.binary_search(&w.row).is_ok());
            let asked: Vec<(usize, &Wanted)> =
                here.map(|w| (chunk.binary_search(&w.row).unwrap_or_default(), w)).collect();
            let pairs: Vec<(usize, u32)> = asked.iter().map(|(row, w)| (*row, w.target)).collect();
            for ((_, w), found) in asked.iter().zip(targets_of(logits, &pairs)) {
                self.add(w.sequence, found);
            }
        }
    }

    fn add(&mut self, sequence: usize, (log_likelihood, greedy): (f64, bool)) {
        let answer = &mut self.answers[sequence];
        answer.log_likelihood += log_likelihood;
        answer.greedy &= greedy;
        answer.tokens += 1;
    }
}

/// Place, sequence and target of every score that is read in an entry's prefix.
fn reads_of_prefix(entry: &Shared) -> Vec<(usize, usize, u32)> {
    let readings = entry.branches.iter().flat_map(|branch| &branch.readings);
    readings
        .flat_map(|reading| {
            reading.scores.iter().filter_map(|&(place, target)| match place {
                Place::Prefix(at) => Some((at, reading.sequence, target)),
                Place::Branch(_) => None,
            })
        })
        .collect()
}

/// The cache of several of its sequences, one after the other.
fn rows_of(cache: &Cache, rows: &[usize]) -> Cache {
    let pick = |tensor: &Tensor<4>| {
        let indices: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [rows.len()]), &tensor.device());
        tensor.clone().select(0, indices)
    };
    let block = |block: &KeyValues| KeyValues { keys: pick(&block.keys), values: pick(&block.values) };
    Cache::new(cache.blocks().iter().map(block).collect())
}

/// ln softmax(logits)[target] of every row, and whether the target is the likeliest token, of equals the first.
fn targets(logits: Tensor<2>, targets: &[u32]) -> Vec<(f64, bool)> {
    let pairs: Vec<(usize, u32)> = targets.iter().copied().enumerate().collect();
    targets_of(logits, &pairs)
}

/// As [`targets`], for pairs of row and target.
///
/// # Shapes
/// `logits` is `[rows, vocabulary]`.
fn targets_of(logits: Tensor<2>, pairs: &[(usize, u32)]) -> Vec<(f64, bool)> {
    let [_, vocabulary] = logits.dims();
    let device = logits.device();
    if on_host(&device) {
        let data = logits.try_into_data().expect("a host tensor can be read");
        let values = data.as_slice::<f32>().expect("logits are f32");
        return pairs
            .par_iter()
            .map(|&(row, target)| {
                let row = &values[row * vocabulary..][..vocabulary];
                let highest = simd::maximum(row);
                let sum = simd::sum_of_exps(row, highest);
                let own = row[target as usize];
                let log_likelihood = f64::from(own) - f64::from(highest) - f64::from(sum).ln();
                let greedy = own == highest && !row[..target as usize].contains(&highest);
                (log_likelihood, greedy)
            })
            .collect();
    }
    let rows: Vec<i64> = pairs.iter().map(|&(row, _)| row as i64).collect();
    let chosen: Vec<i64> = pairs.iter().map(|&(_, target)| i64::from(target)).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [pairs.len()]), &device);
    let chosen = Tensor::<2, Int>::from_data(TensorData::new(chosen, [pairs.len(), 1]), &device);
    let picked = logits.select(0, rows);
    let likeliest = picked.clone().argmax(1);
    let shifted = picked.clone() - picked.max_dim(1);
    let log_sum = shifted.clone().exp().sum_dim(1).log();
    let found = (shifted.gather(1, chosen) - log_sum).try_into_data().expect("the device answers");
    let found = found.try_into_vec::<f32>().expect("log-likelihoods are f32");
    let likeliest = likeliest.try_into_data().expect("the device answers");
    let likeliest: Vec<i64> = likeliest.iter::<i64>().collect();
    pairs
        .iter()
        .zip(found)
        .zip(likeliest)
        .map(|((&(_, target), found), likeliest)| (f64::from(found), likeliest == i64::from(target)))
        .collect()
}
