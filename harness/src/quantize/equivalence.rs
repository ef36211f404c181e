//! The equivalence gate: a function-preserving step must leave the unquantized model's logits as they were.
//!
//! After every such step the transformed, unquantized model reads a probe, and the largest difference of its logits
//! from the original's, relative to the largest logit, is written to the record. Above [`TOLERANCE`] the cell fails and
//! names the step: a transform that is not what it claims would otherwise look like a poor method. The probe is the
//! token that begins a sequence followed by ids drawn from a stream of its own: equivalence holds for any input, and a
//! random one leaves no channel untouched.

use burn::tensor::Tensor;
use models::{Decoder, Off, token_tensor};
use rand_chacha::rand_core::Rng;
use serde_json::{Value, json};

use crate::calibrate::set;
use crate::quantize::StepError;

/// Largest allowed difference of a logit, as a share of the largest logit of the original: f32 through a whole model.
pub const TOLERANCE: f64 = 1e-4;

/// Tokens of the probe.
const PROBE: usize = 96;

/// Logits of the probe before any transform.
pub struct Reference {
    probe: Vec<u32>,
    logits: Vec<f32>,
}

impl Reference {
    /// Runs the probe through the decoder as it is, behind its prefix.
    pub fn of(decoder: &mut Decoder, start: Option<u32>) -> Self {
        let vocabulary = decoder.architecture.vocabulary as u64;
        let mut random = set::stream("equivalence probe", 0);
        let length = PROBE.min(decoder.architecture.context.saturating_sub(prefix_length(decoder)).max(1));
        let start = start.filter(|_| decoder.prefix.is_none());
        // The high half of a 64-bit product: uniform to within 2⁻³² of a vocabulary's share.
        let drawn = std::iter::repeat_with(|| ((u64::from(random.next_u32()) * vocabulary) >> 32) as u32);
        let probe: Vec<u32> = start.into_iter().chain(drawn).take(length).collect();
        let logits = logits(decoder, &probe);
        Self { probe, logits }
    }

    /// Compares the decoder as it is now; what goes to the record.
    ///
    /// # Errors
    /// [`StepError::NotEquivalent`] above the tolerance, or where a logit is no number.
    pub fn compare(&self, decoder: &mut Decoder) -> Result<Value, StepError> {
        let now = logits(decoder, &self.probe);
        let largest = self.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let mut difference = 0f64;
        for (a, b) in self.logits.iter().zip(&now) {
            let d = f64::from((a - b).abs());
            // NaN must not vanish in a maximum.
            difference = if d.is_nan() || d > difference { d } else { difference };
            if difference.is_nan() {
                break;
            }
        }
        let relative = difference / f64::from(largest.max(f32::MIN_POSITIVE));
        if relative <= TOLERANCE {
            return Ok(json!({
                "max-logit-difference": difference,
                "relative": relative,
                "tolerance": TOLERANCE,
                "tokens": self.probe.len(),
            }));
        }
        Err(StepError::NotEquivalent { difference, relative, tolerance: TOLERANCE })
    }
}

fn prefix_length(decoder: &Decoder) -> usize {
    decoder.prefix.as_ref().map_or(0, |prefix| prefix.tokens.len())
}

fn logits(decoder: &mut Decoder, tokens: &[u32]) -> Vec<f32> {
    let device = decoder.device();
    let hidden = decoder.hidden(token_tensor(&[tokens], &device), &mut Off);
    let logits: Tensor<3> = decoder.logits(hidden, &mut Off);
    let data = logits.try_into_data().expect("logits can be read from their device");
    data.try_into_vec::<f32>().expect("logits are f32")
}
