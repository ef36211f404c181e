//! Answering requests with a decoder: a context that several continuations share is encoded once, sequences of any length
//! go through the blocks together, packed in one row without padding, and vocabulary logits are computed only where a
//! token is scored.
//!
//! What a sequence shares must not depend on what it is shared with. A recipe with one dynamic activation scale per
//! sequence breaks that: the scale of a context alone is not that of the context with its continuation. Such a recipe is
//! scored sequence by sequence, each in a row of its own.

use burn::tensor::{Int, Tensor, TensorData};
use models::kernel::{on_host, with_values};
use models::{Decoder, Group, Off, Packed, Tap, simd, token_tensor};
use rayon::prelude::*;

use crate::evaluate::decoder_model::{TOKENS_PER_BATCH, rows_of_logits};
use crate::evaluate::requests::sharing::{self, Place, Shared};
use crate::evaluate::scoring::Answer;
use crate::evaluate::windows::Sequence;
use crate::evaluate::{EvaluateError, Progress};

/// Whether work may be shared between the sequences of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Contexts are encoded once, and sequences are packed in one row.
    Shared,
    /// Every sequence goes through the model alone in its row.
    Alone,
}

/// How sequences are scored.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// BOS, where a prefix takes its place.
    pub start: Option<u32>,
    /// Whether they share work.
    pub sharing: Sharing,
    /// Rows of logits that are made at once at most.
    pub rows: usize,
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
/// Where the decoder has a prefix, a sequence that begins with BOS is fed without it: the prefix stands in its place.
///
/// # Errors
/// [`EvaluateError::Interrupted`].
pub fn score(
    decoder: &mut Decoder,
    tap: &mut dyn Tap,
    items: &[&[Sequence]],
    how: How,
    progress: &mut Progress,
) -> Result<Scored, EvaluateError> {
    let How { start, sharing, rows } = how;
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
        head: decoder.head.packed(),
        tap,
        sharing,
        rows: rows.min(rows_of_logits(&decoder.architecture)),
        decoder,
        answers: vec![Answer { log_likelihood: 0.0, greedy: true, tokens: 0 }; sequences],
        tokens: 0,
    };
    let mut done = 0;
    for batch in sharing::batches(&plan, TOKENS_PER_BATCH, sharing == Sharing::Alone) {
        if !progress(done, plan.len()) {
            return Err(EvaluateError::Interrupted);
        }
        let entries: Vec<&Shared> = batch.iter().map(|&index| &plan[index]).collect();
        match sharing {
            Sharing::Shared => run.batch(&entries),
            // Where a prefix takes BOS's place, sequences that begin with BOS are fed one token less than others.
            Sharing::Alone => {
                for dropped in [0, 1] {
                    let begins = |entry: &Shared| {
                        run.dropped(entry.branches.first().map_or(&[], |branch| &branch.tokens[..]))
                    };
                    let alike: Vec<&Shared> =
                        entries.iter().copied().filter(|entry| begins(entry) == dropped).collect();
                    run.batch(&alike);
                }
            }
        }
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
    /// The decoder's, in the form that many slices are multiplied by.
    head: Group,
    tap: &'a mut dyn Tap,
    /// BOS, where a prefix takes its place.
    start: Option<u32>,
    sharing: Sharing,
    /// Rows of logits that are made at once.
    rows: usize,
    answers: Vec<Answer>,
    tokens: u64,
}

impl Run<'_> {
    /// 1 where a sequence's first token is not fed.
    fn dropped(&self, tokens: &[u32]) -> usize {
        usize::from(self.decoder.stands_for_first(self.start, tokens))
    }

    fn batch(&mut self, entries: &[&Shared]) {
        let mut packed = Packed::default();
        let mut wanted = Vec::new();
        let mut behind_prefix = Vec::new();
        for entry in entries {
            // Where nothing is shared the branch begins the sequence, BOS included.
            let begins = entry.branches.first().filter(|_| entry.prefix.is_empty());
            let dropped = self.dropped(begins.map_or(&entry.prefix, |branch| &branch.tokens));
            let context = entry.prefix.get(dropped..).filter(|context| !context.is_empty());
            let context = context.map(|context| packed.push(context, None));
            for (at, sequence, target) in reads_of_prefix(entry) {
                match (at.checked_sub(dropped), context) {
                    (Some(at), Some(context)) => {
                        wanted.push(Wanted { row: packed.places(context).start + at, sequence, target });
                    }
                    _ => behind_prefix.push((sequence, target)),
                }
            }
            let skipped = if entry.prefix.is_empty() { dropped } else { 0 };
            for branch in &entry.branches {
                let tokens = branch.tokens.get(skipped..).unwrap_or_default();
                let reads = branch.readings.iter().flat_map(|reading| {
                    reading.scores.iter().filter_map(|&(place, target)| match place {
                        Place::Branch(at) => Some((at.checked_sub(skipped), reading.sequence, target)),
                        Place::Prefix(_) => None,
                    })
                });
                let reads: Vec<(Option<usize>, usize, u32)> = reads.collect();
                let here = !tokens.is_empty() && reads.iter().any(|(at, ..)| at.is_some());
                let start = here.then(|| {
                    let segment = packed.push(tokens, context);
                    packed.places(segment).start
                });
                for (at, sequence, target) in reads {
                    match (at, start) {
                        (Some(at), Some(start)) => wanted.push(Wanted { row: start + at, sequence, target }),
                        _ => behind_prefix.push((sequence, target)),
                    }
                }
            }
        }
        let fed = packed.tokens().len();
        if fed > 0 {
            self.tokens += fed as u64;
            let hidden = match self.sharing {
                Sharing::Shared => self.decoder.packed(&packed, self.tap),
                // Segments of one length as rows: what looks at whole sequences looks at rows.
                Sharing::Alone => {
                    let rows = packed.tokens().chunks(packed.longest());
                    let input = token_tensor(&rows.collect::<Vec<_>>(), &self.decoder.device());
                    self.decoder.hidden(input, self.tap)
                }
            };
            self.read(hidden, &wanted);
        }
        for (sequence, target) in behind_prefix {
            let last =
                self.decoder.prefix.as_ref().expect("BOS is only dropped behind a prefix").last.clone();
            let logits = self.decoder.logits(last, &mut Off);
            let vocabulary = logits.dims()[2];
            let found = targets_of(logits.reshape([1, vocabulary]), &[(0, target)]);
            self.add(sequence, found[0]);
        }
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
        // One row alone meets an unpacked weight in another order of sums: its answers stay what they were.
        let alone = rows.len() == 1;
        for chunk in rows.chunks(self.rows) {
            let indices: Vec<i64> = chunk.iter().map(|&row| row as i64).collect();
            let indices =
                Tensor::<1, Int>::from_data(TensorData::new(indices, [chunk.len()]), &flat.device());
            let picked = flat.clone().select(0, indices).reshape([1, chunk.len(), width]);
            let head = if alone { &self.decoder.head } else { &self.head };
            let logits = self.decoder.logits_by(head, picked, self.tap);
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

/// ln softmax(logits)\[target\] for pairs of row and target, and whether the target is the likeliest token, of equals the
/// first.
///
/// # Shapes
/// `logits` is `[rows, vocabulary]`.
fn targets_of(logits: Tensor<2>, pairs: &[(usize, u32)]) -> Vec<(f64, bool)> {
    let [_, vocabulary] = logits.dims();
    let device = logits.device();
    if on_host(&device) {
        return with_values(logits, |values| {
            let of = |&(row, target): &(usize, u32)| {
                let row = &values[row * vocabulary..][..vocabulary];
                let highest = simd::maximum(row);
                let sum = simd::sum_of_exps(row, highest);
                let own = row[target as usize];
                let log_likelihood = f64::from(own) - f64::from(highest) - f64::from(sum).ln();
                let greedy = own == highest && !row[..target as usize].contains(&highest);
                (log_likelihood, greedy)
            };
            pairs.par_iter().map(of).collect()
        });
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
