//! A decoder with a tap, as a language model.

use std::ops::Range;
use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};
use models::architecture::Architecture;
use models::kernel::{on_host, with_values};
use models::{Decoder, Group, Off, Tap, simd, token_tensor};
use rayon::prelude::*;

use crate::evaluate::decode::{self, Mode};
use crate::evaluate::growth::Watch;
use crate::evaluate::passage::Passage;
use crate::evaluate::scoring::Answer;
use crate::evaluate::shared_scoring::{self, How, Sharing};
use crate::evaluate::windows::{Sequence, Window};
use crate::evaluate::{EvaluateError, LanguageModel, Progress};

/// Tokens that go through the blocks together.
pub(super) const TOKENS_PER_BATCH: usize = 1024;

/// Logits held at once, in values: 128 MiB of f32, the largest binding that every Vulkan driver allows.
const LOGITS_AT_ONCE: usize = 32 << 20;

/// Rows of logits few enough to be in the cache when their likelihoods are read, and enough for the product that makes them.
const ROWS_IN_CACHE: usize = 128;

/// Told of logits: which window, which of its targets, and one row `[targets, vocabulary]` for each.
pub(super) type Visit<'a> = dyn FnMut(usize, Range<usize>, Tensor<2>) + 'a;

/// A decoder and what happens at its sites.
pub struct DecoderModel<'a> {
    decoder: &'a mut Decoder,
    tap: &'a mut dyn Tap,
    /// The head in the form that many slices are multiplied by, once there was one.
    head: Option<Group>,
    /// Rows of logits that are made at once, where memory has room for as many.
    rows_at_once: usize,
    /// BOS, whose place a prefix takes.
    start: Option<u32>,
    /// Whether the recipe allows sequences to share work.
    sharing: Sharing,
    /// How the tokens of a window go through the decoder.
    mode: Mode,
    /// Where the blocks have done their work already: the decoder then is the part with the head.
    passage: Option<&'a mut Passage>,
    watch: Watch,
    /// The first window that has not been fed since.
    next_window: usize,
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
            head: None,
            rows_at_once: usize::MAX,
            start,
            sharing: Sharing::Shared,
            mode: Mode::Dense,
            passage: None,
            watch: Watch::Off,
            next_window: 0,
            forward: Duration::ZERO,
            tokens: 0,
        }
    }

    /// The same model, whose sequences share work or do not.
    pub fn sharing(mut self, sharing: Sharing) -> Self {
        self.sharing = sharing;
        self
    }

    /// The same model, which makes fewer rows of logits at once, for speed on the host. Not for one whose head's input is
    /// rounded by one scale for all rows, nor for draws that are counted by slice.
    pub fn few_rows_at_once(mut self, few: bool) -> Self {
        let few = few && on_host(&self.decoder.device());
        self.rows_at_once = if few { ROWS_IN_CACHE } else { usize::MAX };
        self
    }

    /// The same model, whose windows go through it in one pass, or are decoded. Tasks are scored in passes either way.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The same model, of whose windows the hidden states come from a passage through its blocks: it must be of the windows
    /// that are asked for, all of them and in order.
    pub fn behind(mut self, passage: Option<&'a mut Passage>) -> Self {
        self.passage = passage;
        self
    }

    /// Shows the logits of every target, slice by slice and window by window; the windows feed equally many tokens.
    /// Where a prefix takes BOS's place, the first target is predicted from it: no position of a prefix is ever rounded.
    ///
    /// # Errors
    /// Hidden states of a passage that cannot be read.
    pub(super) fn each_logits(
        &mut self,
        windows: &[&Window],
        visit: &mut Visit,
    ) -> Result<(), EvaluateError> {
        let dropped = windows.iter().filter(|w| self.decoder.stands_for_first(self.start, &w.fed)).count();
        if dropped > 0 && dropped < windows.len() {
            // Only the first window of a stream begins with the tokenizer's own BOS.
            for (index, window) in windows.iter().enumerate() {
                self.each_logits(&[window], &mut |_, targets, logits| visit(index, targets, logits))?;
            }
            return Ok(());
        }
        let dropped = usize::from(dropped > 0);
        let fed: Vec<&[u32]> = windows.iter().map(|window| &window.fed[dropped..]).collect();
        let hidden = self.hidden(&fed, dropped)?;
        let rows = match self.mode {
            Mode::Dense => rows_of_logits(&self.decoder.architecture).min(self.rows_at_once),
            // A decoder has no other token's row at hand when the head's input is rounded.
            Mode::Decode => 1,
        };
        let head = self.head.get_or_insert_with(|| match self.mode {
            Mode::Dense => self.decoder.head.packed(),
            Mode::Decode => self.decoder.head.clone(),
        });
        for (index, window) in windows.iter().enumerate() {
            let behind = usize::from(dropped == 1 && window.from == 0).min(window.targets.len());
            if behind == 1 {
                let last = self.decoder.prefix.as_ref().expect("dropped only behind a prefix").last.clone();
                let logits = self.decoder.logits(last, &mut Off);
                let vocabulary = logits.dims()[2];
                visit(index, 0..1, logits.reshape([1, vocabulary]));
            }
            let Some(hidden) = &hidden else { continue };
            let width = hidden.dims()[2];
            for from in (behind..window.targets.len()).step_by(rows) {
                let until = window.targets.len().min(from + rows);
                let place = window.from + from - dropped;
                let slice = hidden.clone().slice([index..index + 1, place..place + until - from, 0..width]);
                let logits = self.decoder.logits_by(head, slice, self.tap);
                let vocabulary = logits.dims()[2];
                visit(index, from..until, logits.reshape([until - from, vocabulary]));
            }
        }
        Ok(())
    }

    /// Hidden states after the final norm, `[windows, tokens, hidden]`, of windows of each of which `dropped` tokens are not
    /// fed; none where nothing is.
    fn hidden(&mut self, fed: &[&[u32]], dropped: usize) -> Result<Option<Tensor<3>>, EvaluateError> {
        let length = fed.first().map_or(0, |tokens| tokens.len());
        self.tokens += (length * fed.len()) as u64;
        let first = self.next_window;
        self.next_window += fed.len();
        let device = self.decoder.device();
        if length == 0 {
            return Ok(None);
        }
        Ok(Some(match (&mut self.passage, self.mode) {
            (Some(passage), _) => {
                let x = passage.next(self.decoder)?;
                assert_eq!(x.dims()[..2], [fed.len(), length], "a passage of the windows that are asked for");
                self.decoder.final_norm.forward(x)
            }
            (None, mode) => {
                let mut look = self.watch.beside(&mut *self.tap, first, dropped);
                match mode {
                    Mode::Dense => self.decoder.hidden(token_tensor(fed, &device), &mut look),
                    Mode::Decode => decode::hidden(self.decoder, &mut look, fed),
                }
            }
        }))
    }

    /// The hidden states that predict the targets of windows that feed equally many tokens, one tensor a window.
    ///
    /// # Shapes
    /// `[targets, hidden]`
    ///
    /// # Errors
    /// Hidden states of a passage that cannot be read.
    ///
    /// # Panics
    /// Behind a prefix, whose own state predicts the first token.
    pub fn states(&mut self, windows: &[&Window]) -> Result<Vec<Tensor<2>>, EvaluateError> {
        assert!(self.decoder.prefix.is_none(), "the states of a model without a prefix are asked for");
        let begun = Instant::now();
        let fed: Vec<&[u32]> = windows.iter().map(|window| &window.fed[..]).collect();
        let Some(hidden) = self.hidden(&fed, 0)? else { return Ok(Vec::new()) };
        let width = hidden.dims()[2];
        let of = |(index, window): (usize, &&Window)| {
            let places = window.from..window.from + window.targets.len();
            let states = hidden.clone().slice([index..index + 1, places, 0..width]);
            states.reshape([window.targets.len(), width])
        };
        let states = windows.iter().enumerate().map(of).collect();
        self.forward += begun.elapsed();
        Ok(states)
    }

    /// What it is.
    pub(super) fn architecture(&self) -> &Architecture {
        &self.decoder.architecture
    }

    /// From now on, windows are looked at on their way, until [`Self::watched`].
    pub(super) fn watch(&mut self, watch: Watch) {
        (self.watch, self.next_window) = (watch, 0);
    }

    /// What has looked at the windows, on the passage where there is one.
    pub(super) fn watched(&mut self) -> Watch {
        match &mut self.passage {
            Some(passage) => passage.watched(),
            None => std::mem::take(&mut self.watch),
        }
    }

    /// A decoder that makes logits of hidden states with the weights of now, and holds no others.
    pub fn head(&self) -> Decoder {
        let mut head = self.decoder.clone();
        head.blocks.clear();
        head.prefix = None;
        // Names the device; the embedding's own values may lie in a table of their own.
        head.embedding = head.head.linears[0].weight.clone();
        head
    }

    /// Bytes of activations and logits that scoring sequences of `length` tokens needs besides the weights.
    pub fn workspace_bytes(architecture: &Architecture, length: usize) -> u64 {
        let a = architecture;
        let tokens = length * batch_of(length);
        let heads = a.attention.heads * a.attention.head_dim;
        let live = 4 * a.hidden + 4 * heads + 3 * a.mlp.intermediate;
        let scores = a.attention.heads * length.min(512) * length.min(512);
        4 * (tokens * live + scores) as u64 + Self::logits_bytes(a, length)
    }

    /// Bytes of a slice of logits.
    pub fn logits_bytes(architecture: &Architecture, length: usize) -> u64 {
        let vocabulary = architecture.vocabulary;
        4 * (length * vocabulary).min(LOGITS_AT_ONCE.max(vocabulary)) as u64
    }
}

/// Rows of logits that are made at once.
pub(super) fn rows_of_logits(architecture: &models::architecture::Architecture) -> usize {
    (LOGITS_AT_ONCE / architecture.vocabulary).max(1)
}

/// Windows of `length` tokens that go through the blocks together.
pub(super) fn batch_of(length: usize) -> usize {
    (TOKENS_PER_BATCH / length.max(1)).max(1)
}

impl LanguageModel for DecoderModel<'_> {
    fn scores(&mut self, windows: &[&Window]) -> Result<Vec<Vec<f32>>, EvaluateError> {
        let begun = Instant::now();
        let mut scores = vec![Vec::new(); windows.len()];
        self.each_logits(windows, &mut |index, targets, logits| {
            scores[index].extend(target_log_likelihoods(logits, &windows[index].targets[targets]));
        })?;
        self.forward += begun.elapsed();
        Ok(scores)
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
        let how = How { start: self.start, sharing: self.sharing, rows: self.rows_at_once };
        let scored = shared_scoring::score(self.decoder, self.tap, items, how, progress)?;
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
        return with_values(logits, |values| {
            let rows = values.par_chunks(vocabulary).zip(targets);
            rows.map(|(row, &target)| {
                let highest = simd::maximum(row);
                let sum = simd::sum_of_exps(row, highest);
                (f64::from(row[target as usize]) - f64::from(highest) - f64::from(sum).ln()) as f32
            })
            .collect()
        });
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
