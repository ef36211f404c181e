//! A decoder with a tap, as a language model.

use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};
use models::kernel::on_host;
use models::{Decoder, Off, Tap, simd, token_tensor};
use rayon::prelude::*;

use crate::evaluate::decode::{self, Mode};
use crate::evaluate::scoring::Answer;
use crate::evaluate::shared_scoring::{self, Sharing};
use crate::evaluate::windows::Sequence;
use crate::evaluate::{EvaluateError, LanguageModel, Progress};

/// Tokens that go through the blocks together.
pub(super) const TOKENS_PER_BATCH: usize = 1024;

/// Logits held at once, in values: 128 MiB of f32, the largest binding that every Vulkan driver allows.
pub(super) const LOGITS_AT_ONCE: usize = 32 << 20;

/// A decoder and what happens at its sites.
pub struct DecoderModel<'a> {
    decoder: &'a mut Decoder,
    tap: &'a mut dyn Tap,
    /// BOS, whose place a prefix takes.
    start: Option<u32>,
    /// Whether the recipe allows sequences to share work.
    sharing: Sharing,
    /// How the tokens of a window go through the decoder.
    mode: Mode,
    /// Time in forward passes, scoring included.
    pub forward: Duration,
    /// Tokens that went through them.
    pub tokens: u64,
}

impl<'a> DecoderModel<'a> {
    /// A model from its parts. Where the decoder has a prefix, a sequence that begins with `start`, BOS, is fed without
    /// it: the token behind it is predicted from the prefix, so that the same tokens are scored with and without one.
    pub fn new(decoder: &'a mut Decoder, tap: &'a mut dyn Tap, start: Option<u32>) -> Self {
        Self {
            decoder,
            tap,
            start,
            sharing: Sharing::Shared,
            mode: Mode::Dense,
            forward: Duration::ZERO,
            tokens: 0,
        }
    }

    /// The same model, whose sequences share work or do not.
    pub fn sharing(mut self, sharing: Sharing) -> Self {
        self.sharing = sharing;
        self
    }

    /// The same model, whose [log-likelihoods](LanguageModel::log_likelihoods) come of a pass over the window or of
    /// decoding it. Tasks are scored in passes either way.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// ln p of a token right behind the prefix. No position of a prefix is ever rounded.
    fn behind_prefix(&mut self, token: u32) -> f32 {
        let last = self.decoder.prefix.as_ref().expect("only asked for behind a prefix").last.clone();
        let logits = self.decoder.logits(last, &mut Off);
        let vocabulary = logits.dims()[2];
        target_log_likelihoods(logits.reshape([1, vocabulary]), &[token])[0]
    }

    /// As [`LanguageModel::log_likelihoods`], of sequences as they are fed.
    fn score(&mut self, sequences: &[&[u32]]) -> Vec<Vec<f32>> {
        let device = self.decoder.device();
        let length = sequences.first().map_or(0, |s| s.len());
        if self.mode == Mode::Decode {
            self.tokens += (length.saturating_sub(1) * sequences.len()) as u64;
            return decode::log_likelihoods(self.decoder, self.tap, sequences);
        }
        let hidden = self.decoder.hidden(token_tensor(sequences, &device), self.tap);
        let width = hidden.dims()[2];
        let scored = length.saturating_sub(1);
        let mut result = Vec::with_capacity(sequences.len());
        let rows = (LOGITS_AT_ONCE / self.decoder.architecture.vocabulary).max(1);
        for (index, sequence) in sequences.iter().enumerate() {
            let mut scores = Vec::with_capacity(scored);
            for from in (0..scored).step_by(rows) {
                let count = rows.min(scored - from);
                let slice = hidden.clone().slice([index..index + 1, from..from + count, 0..width]);
                let logits = self.decoder.logits(slice, self.tap);
                let vocabulary = logits.dims()[2];
                let logits = logits.reshape([count, vocabulary]);
                scores.extend(target_log_likelihoods(logits, &sequence[from + 1..from + 1 + count]));
            }
            result.push(scores);
        }
        self.tokens += (length * sequences.len()) as u64;
        result
    }

    /// Bytes of activations and logits that scoring sequences of `length` tokens needs besides the weights.
    pub fn workspace_bytes(architecture: &models::architecture::Architecture, length: usize) -> u64 {
        let a = architecture;
        let tokens = length * batch_of(length);
        let heads = a.attention.heads * a.attention.head_dim;
        let live = 4 * a.hidden + 4 * heads + 3 * a.mlp.intermediate;
        let scores = a.attention.heads * length.min(512) * length.min(512);
        let logits = (length * a.vocabulary).min(LOGITS_AT_ONCE.max(a.vocabulary));
        4 * (tokens * live + scores + logits) as u64
    }
}

fn batch_of(length: usize) -> usize {
    (TOKENS_PER_BATCH / length.max(1)).max(1)
}

impl LanguageModel for DecoderModel<'_> {
    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvaluateError> {
        let begun = Instant::now();
        let dropped =
            sequences.iter().filter(|sequence| self.decoder.stands_for_first(self.start, sequence)).count();
        let result = if dropped == 0 {
            self.score(sequences)
        } else if dropped < sequences.len() {
            // Only the first window of a stream begins with the tokenizer's own BOS.
            let mut result = Vec::with_capacity(sequences.len());
            for sequence in sequences {
                result.extend(self.log_likelihoods(&[sequence])?);
            }
            return Ok(result);
        } else {
            let fed: Vec<&[u32]> = sequences.iter().map(|sequence| &sequence[1..]).collect();
            let mut result = self.score(&fed);
            for (scores, fed) in result.iter_mut().zip(&fed) {
                if let Some(&first) = fed.first() {
                    scores.insert(0, self.behind_prefix(first));
                }
            }
            result
        };
        self.forward += begun.elapsed();
        Ok(result)
    }

    fn batch(&self, length: usize) -> usize {
        match self.mode {
            Mode::Dense => batch_of(length),
            Mode::Decode => decode::TOGETHER,
        }
    }

    fn answers(
        &mut self,
        items: &[&[Sequence]],
        progress: &mut Progress,
    ) -> Result<Vec<Answer>, EvaluateError> {
        let begun = Instant::now();
        let scored =
            shared_scoring::score(self.decoder, self.tap, self.start, items, self.sharing, progress)?;
        self.forward += begun.elapsed();
        self.tokens += scored.tokens;
        Ok(scored.answers)
    }
}

/// ln softmax(logits)[target] per row.
///
/// # Shapes
/// `logits` is `[rows, vocabulary]`; one target per row.
pub fn target_log_likelihoods(logits: Tensor<2>, targets: &[u32]) -> Vec<f32> {
    let [rows, vocabulary] = logits.dims();
    assert_eq!(rows, targets.len(), "one target per row");
    let device = logits.device();
    if on_host(&device) {
        let data = logits.try_into_data().expect("a host tensor can be read");
        let values = data.as_slice::<f32>().expect("logits are f32");
        return values
            .par_chunks(vocabulary)
            .zip(targets)
            .map(|(row, &target)| {
                let highest = simd::maximum(row);
                let sum = simd::sum_of_exps(row, highest);
                (f64::from(row[target as usize]) - f64::from(highest) - f64::from(sum).ln()) as f32
            })
            .collect();
    }
    let targets: Vec<i64> = targets.iter().map(|&t| i64::from(t)).collect();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [rows, 1]), &device);
    let highest = logits.clone().max_dim(1);
    let shifted = logits - highest;
    let chosen = shifted.clone().gather(1, targets);
    let log_sum = shifted.exp().sum_dim(1).log();
    (chosen - log_sum)
        .try_into_data()
        .expect("the device answers")
        .try_into_vec::<f32>()
        .expect("log-likelihoods are f32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn log_likelihoods_of_targets_are_log_softmax() {
        let values: Vec<f32> = (0..3 * 37).map(|i| ((i * 29 % 41) as f32 - 20.0) / 3.0).collect();
        let logits = Tensor::<2>::from_data(TensorData::new(values.clone(), [3, 37]), &Device::flex());
        let found = target_log_likelihoods(logits, &[0, 36, 5]);
        for (row, (&target, found)) in [0usize, 36, 5].iter().zip(found).enumerate() {
            let row = &values[row * 37..][..37];
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            let expected = f64::from(row[target]) - sum.ln();
            assert!((f64::from(found) - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
}
