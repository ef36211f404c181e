//! `speed`: how fast a recipe's model reads and writes on this machine, what memory it takes, and what weights it moves.
//!
//! # Equation
//! A sequence of `prefill` tokens is read in one pass, and then `decode` tokens one by one, each behind the keys and values
//! of all before it; after the last token read, and after every token decoded, the logits of the next are computed. Once
//! without a clock, then `rounds` times.
//!
//! | what | is | stands in |
//! |---|---|---|
//! | prefill | `prefill` tokens over the seconds of the pass and its last logits: median, least and most of the rounds | `execution.speed` |
//! | decode | seconds per token, by round the mean over its tokens: median, least and most | `execution.speed` |
//! | peak memory | of the process, from the first round to the last, without what was freed before; that of its whole life where the system keeps no other | `execution.speed` |
//! | weights moved | bytes of the linear layers' weights as they are executed here, which a token reads | `execution.speed` |
//! | weights stored | the same at effective bits, scales and exemptions included: the value | the measurement |
//!
//! Times are a machine's and a moment's. They are recorded with the processor, its threads and the load when they were
//! taken, they enter no id and no hash, and two of them are never taken for equal.
//!
//! # Parameters
//! `prefill` 512 · `decode` 32 · `rounds` 5.
//!
//! # Reference
//! own; the quantities are those of arXiv:2405.14428, its table of costs.

use std::time::Instant;

use models::{Decoder, Growing, Tap, token_tensor};

use crate::evaluate::{EvaluateError, Progress};
use crate::record::execution::{Speed, Spread, load, peak_memory, processor, reset_peak_memory};

/// Raised whenever the value could move.
pub const VERSION: u32 = 1;

/// An `[[evaluate]]` block with `metric = "speed"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeedOf {
    /// Tokens that are read in one pass.
    pub prefill: usize,
    /// Tokens that are decoded after them.
    pub decode: usize,
    /// How often.
    pub rounds: usize,
}

impl SpeedOf {
    /// The full metric id, by what its value is.
    pub fn id(&self) -> String {
        format!("weight-bytes/speed/prefill={}/decode={}", self.prefill, self.decode)
    }

    /// Reads and decodes on the clock.
    ///
    /// # Errors
    /// Where the user stops it.
    pub fn measure(
        &self,
        decoder: &mut Decoder,
        tap: &mut dyn Tap,
        progress: &mut Progress,
    ) -> Result<Speed, EvaluateError> {
        let vocabulary = decoder.architecture.vocabulary;
        // No text: what is read decides no time, but for the experts that a router chooses.
        let tokens: Vec<u32> =
            (0..self.prefill + self.decode).map(|i| (i * 7919 % vocabulary) as u32).collect();
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        let of_rounds = reset_peak_memory();
        let before = load();
        for round in 0..=self.rounds {
            if !progress(round, self.rounds + 1) {
                return Err(EvaluateError::Interrupted);
            }
            let [read, written] = self.round(decoder, tap, &tokens);
            if round > 0 {
                prefill.push(self.prefill as f64 / read);
                decode.push(written / self.decode as f64);
            }
        }
        Ok(Speed {
            rounds: self.rounds as u64,
            prefill_tokens_per_second: Spread::of(prefill),
            decode_seconds_per_token: Spread::of(decode),
            peak_memory: peak_memory(),
            peak_is_of_rounds: of_rounds,
            weight_bytes: 0,
            processor: processor(),
            load: [before, load()],
        })
    }

    /// Seconds of reading and of decoding.
    fn round(&self, decoder: &mut Decoder, tap: &mut dyn Tap, tokens: &[u32]) -> [f64; 2] {
        let device = decoder.device();
        let begun = Instant::now();
        let mut past = Growing::behind(decoder.prefix.as_ref().map(|prefix| &prefix.cache));
        let mut seconds = [0.0; 2];
        let steps = [&tokens[..self.prefill]].into_iter().chain(tokens[self.prefill..].chunks(1));
        for (step, fed) in steps.enumerate() {
            let hidden = decoder.append(&mut past, token_tensor(&[fed], &device), tap);
            let last = hidden.narrow(1, fed.len() - 1, 1);
            // Reading the logits waits for a device that works on its own.
            decoder.logits(last, tap).try_into_data().expect("the device answers");
            seconds[usize::from(step > 0)] = begun.elapsed().as_secs_f64();
        }
        [seconds[0], seconds[1] - seconds[0]]
    }
}
