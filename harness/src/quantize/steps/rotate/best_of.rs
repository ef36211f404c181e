//! `rotate` by `best-of`: several random rotations, of which the recipe's own loss on calibration samples chooses one.
//!
//! # Equation
//! draw = argmin over d < `candidates` of the mean over tokens of −ln p(token | those before), p being the model with
//! rotation d and everything that the recipe does after this step. Everything but the draw is as in `rotate` by
//! `hadamard` with random signs, or by `random-orthogonal`. Equal losses: the earlier draw.
//!
//! Every candidate costs what the steps behind it cost, and a forward pass over the samples. The record has every
//! candidate's loss, so that the spread of random rotations can be read off.
//!
//! # Parameters
//! `candidates` default 8 · `matrix` hadamard (default) or random-orthogonal · `samples` of the calibration set, its first so many,
//! default 4 · `sites` and `fallback` as in the other methods.
//!
//! # Reference
//! own: a cheap stand-in for learned rotations. That random rotations differ enough for a choice to pay is the
//! observation SpinQuant begins with (arXiv:2405.16406, figure 4).

use models::Fallback;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::quantize::steps::rotate::{hadamard::Hadamard, random_orthogonal::RandomOrthogonal};
use crate::quantize::steps::{Stage, Step, rotate};
use crate::quantize::{Carried, Method, ModelFacts, ModelInFlight, StepError, apply_after, likelihood};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BestOf {
    /// How many draws. Default: 8.
    #[serde(default = "eight")]
    pub candidates: usize,
    /// What is drawn. Default: `hadamard`.
    #[serde(default)]
    pub matrix: Kind,
    /// Calibration samples that decide. Default: 4.
    #[serde(default = "four")]
    pub samples: usize,
    /// What to rotate. Default: `residual`, `o_in` and `down_in`.
    #[serde(default = "rotate::default_sites")]
    pub sites: Vec<String>,
    /// What stands in where there is no Hadamard matrix. Default: `block-diagonal`.
    #[serde(default)]
    pub fallback: Fallback,
}

/// What is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The signs of a Hadamard matrix.
    #[default]
    Hadamard,
    /// An orthogonal matrix.
    RandomOrthogonal,
}

fn eight() -> usize {
    8
}
fn four() -> usize {
    4
}

impl BestOf {
    /// The same step with its sites in order.
    pub fn resolved(mut self) -> Self {
        self.sites = rotate::ordered(&self.sites);
        self
    }

    /// The step that makes one draw.
    fn candidate(&self, draw: usize) -> Step {
        let (sites, fallback) = (self.sites.clone(), self.fallback);
        match self.matrix {
            Kind::Hadamard => Step::RotateHadamard(Hadamard { sites, random_signs: true, fallback, draw }),
            Kind::RandomOrthogonal => {
                Step::RotateRandomOrthogonal(RandomOrthogonal { sites, fallback, draw })
            }
        }
    }

    /// Mean loss of every draw, in nats a token.
    fn losses(&self, model: &mut ModelInFlight) -> Result<Vec<f64>, StepError> {
        let samples = model.calibrator.samples();
        if samples.len() < self.samples {
            return Err(StepError::TooLittle(format!(
                "rotations are compared on {} samples and the calibration set has {} samples: lower the step's \
                 `samples`, or raise the set's",
                self.samples,
                samples.len()
            )));
        }
        let samples = samples[..self.samples].to_vec();
        let start = model.calibrator.start();
        let mut losses = Vec::with_capacity(self.candidates);
        for draw in 0..self.candidates {
            if !model.calibrator.progress(draw, self.candidates) {
                return Err(StepError::Interrupted);
            }
            let (mut decoder, mut tap) = (model.decoder.clone(), model.tap.clone());
            let candidate = self.candidate(draw);
            candidate.method().act(&mut ModelInFlight {
                decoder: &mut decoder,
                tap: &mut tap,
                original: None,
                present: None,
                calibrator: &mut *model.calibrator,
                state: model.state,
                earlier: &[],
                after: &[],
                becomes: None,
                carried: &mut Carried::default(),
            })?;
            let before = [model.state, &[candidate]].concat();
            let original = model.original.clone();
            apply_after(&before, original, model.after, &mut decoder, &mut tap, model.calibrator)
                .map_err(|(_, error)| error)?;
            let (mut loss, mut tokens) = (0.0, 0);
            for sample in &samples {
                let fed = &sample[usize::from(decoder.stands_for_first(start, sample))..];
                loss += likelihood::loss(&mut decoder, &mut tap, fed);
                tokens += fed.len() - 1;
            }
            losses.push(loss / tokens as f64);
        }
        Ok(losses)
    }
}

impl Method for BestOf {
    fn stage(&self) -> Stage {
        Stage::Rotate
    }

    fn check(&self) -> Result<(), String> {
        match (self.candidates, self.samples) {
            (0, _) => Err("`candidates` must be at least 1".into()),
            (_, 0) => Err("`samples` must be at least 1".into()),
            _ => self.candidate(0).method().check(),
        }?;
        match self.candidate(0).method().uses_randomness() {
            true => Ok(()),
            false => Err("`sites` names nothing that is drawn: add `residual`".into()),
        }
    }

    fn claims(&self) -> Vec<String> {
        rotate::claims(&self.sites)
    }

    fn tries_on_a_copy(&self) -> bool {
        true
    }

    fn needs_calibration(&self) -> bool {
        true
    }

    fn uses_randomness(&self) -> bool {
        true
    }

    fn preserves_function(&self) -> bool {
        true
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        rotate::check_model(&self.sites, facts)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        Some("it measures the whole model for every candidate")
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let key = json!({ "state": model.state, "best-of": self, "after": model.after }).to_string();
        let losses: Vec<f64> = match model.calibrator.recall(&key) {
            Some(known) => serde_json::from_value(known).expect("what was remembered is what it was"),
            None => {
                let losses = self.losses(model)?;
                model.calibrator.remember(key, json!(losses));
                losses
            }
        };
        // A loss that is no number is larger than every other.
        let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b]));
        let chosen = best.expect("there is at least one candidate");
        let candidate = self.candidate(chosen);
        let mut report = candidate.method().act(model)?;
        report.insert("losses".into(), json!(losses));
        report.insert("chosen".into(), chosen.into());
        // The same model as that draw alone, and another where other steps follow and choose another draw.
        model.becomes = Some(candidate);
        Ok(report)
    }
}
