//! The equivalence gate: a function-preserving step must leave the unquantized model's logits as they were.
//!
//! After every such step the transformed, unquantized model reads a probe, and the largest difference of its logits
//! from the original's, relative to the largest logit, is written to the record. Above [`TOLERANCE`] the cell fails and
//! names the step: a transform that is not what it claims would otherwise look like a poor method. The probe is the
//! token that begins a sequence followed by ids drawn from a stream of its own: equivalence holds for any input, and a
//! random one leaves no channel untouched.

use std::collections::BTreeMap;

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

/// A probe on its way through a model, whole or part by part.
#[derive(Clone)]
struct Probe {
    tokens: Vec<u32>,
    /// The stream behind the last part.
    stream: Option<Tensor<3>>,
    /// Once it is behind the head.
    logits: Vec<f32>,
}

impl Probe {
    fn of(decoder: &Decoder, start: Option<u32>) -> Self {
        let vocabulary = decoder.architecture.vocabulary as u64;
        let mut random = set::stream("equivalence probe", 0);
        let length = PROBE.min(decoder.architecture.context.saturating_sub(prefix_length(decoder)).max(1));
        let start = start.filter(|_| decoder.prefix.is_none());
        // The high half of a 64-bit product: uniform to within 2⁻³² of a vocabulary's share.
        let drawn = std::iter::repeat_with(|| ((u64::from(random.next_u32()) * vocabulary) >> 32) as u32);
        let tokens: Vec<u32> = start.into_iter().chain(drawn).take(length).collect();
        Self { tokens, stream: None, logits: Vec::new() }
    }

    /// Through all that the decoder holds, as it is now, behind its prefix.
    fn lead(&mut self, decoder: &mut Decoder) {
        let device = decoder.device();
        let mut x = match decoder.has_table() {
            true => decoder.embed(token_tensor(&[&self.tokens], &device)),
            false => self.stream.take().expect("a part behind the table goes on from a stream"),
        };
        for layer in decoder.blocks.layers() {
            x = decoder.through_block(layer, x, &mut Off);
        }
        if decoder.has_head() {
            let logits: Tensor<3> = decoder.logits(decoder.final_norm.forward(x), &mut Off);
            let data = logits.try_into_data().expect("logits can be read from their device");
            self.logits = data.try_into_vec::<f32>().expect("logits are f32");
        } else {
            self.stream = Some(x);
        }
    }
}

/// Logits of the probe before any transform.
pub struct Reference {
    probe: Probe,
}

impl Reference {
    /// Runs the probe through the decoder as it is, behind its prefix.
    pub fn of(decoder: &mut Decoder, start: Option<u32>) -> Self {
        let mut probe = Probe::of(decoder, start);
        probe.lead(decoder);
        Self { probe }
    }

    /// Compares the decoder as it is now; what goes to the record.
    ///
    /// # Errors
    /// [`StepError::NotEquivalent`] above the tolerance, or where a logit is no number.
    pub fn compare(&self, decoder: &mut Decoder) -> Result<Value, StepError> {
        let mut probe = Probe { stream: None, logits: Vec::new(), ..self.probe.clone() };
        probe.lead(decoder);
        self.judge(&probe)
    }

    fn judge(&self, now: &Probe) -> Result<Value, StepError> {
        let largest = self.probe.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let mut difference = 0f64;
        for (a, b) in self.probe.logits.iter().zip(&now.logits) {
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
                "tokens": self.probe.tokens.len(),
            }));
        }
        Err(StepError::NotEquivalent { difference, relative, tolerance: TOLERANCE })
    }
}

/// The gate of a recipe that is carried out on a model whole or part by part: the probe goes through every part before the
/// first function-preserving step acts on it, and after each of them.
#[derive(Default)]
pub struct Gate {
    before: Option<Reference>,
    /// By place of the step.
    after: BTreeMap<usize, Probe>,
}

impl Gate {
    /// Before a function-preserving step acts on a part; only the first of a part counts.
    pub fn before(&mut self, decoder: &mut Decoder, start: Option<u32>) {
        match &mut self.before {
            None => self.before = Some(Reference::of(decoder, start)),
            Some(reference) => reference.probe.lead(decoder),
        }
    }

    /// After the step at this place has acted on a part: what goes to the record, once the part is the one with the head.
    ///
    /// # Errors
    /// As [`Reference::compare`].
    pub fn after(&mut self, place: usize, decoder: &mut Decoder) -> Result<Option<Value>, StepError> {
        let reference = self.before.as_ref().expect("the probe went through before the step");
        let begun = || Probe { stream: None, logits: Vec::new(), ..reference.probe.clone() };
        let probe = self.after.entry(place).or_insert_with(begun);
        probe.lead(decoder);
        if decoder.has_head() { reference.judge(probe).map(Some) } else { Ok(None) }
    }
}

fn prefix_length(decoder: &Decoder) -> usize {
    decoder.prefix.as_ref().map_or(0, |prefix| prefix.tokens.len())
}
