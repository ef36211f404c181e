//! `rotate` by `random-orthogonal`: random orthogonal matrices in place of Hadamard ones, where they cost nothing at run time.
//!
//! # Equation
//! As `rotate` by `hadamard`, with Q of the residual stream and one R per block for the values drawn uniformly from the
//! orthogonal matrices: QR of a Gaussian matrix, the signs of R's diagonal made positive. What runs online (`down_in`,
//! `qk`, and `o_in` across heads) stays a Hadamard transform: a dense product of that order would cost as much as a linear
//! layer.
//!
//! # Parameters
//! `sites` default residual, o_in, down_in · `fallback` of the online parts where no construction fits: block-diagonal
//! (default) or random-orthogonal · `draw` which matrices of the cell's seed, default 0.
//!
//! # Reference
//! QuaRot, arXiv:2404.00456 (its `random` mode), and SpinQuant, arXiv:2405.16406, figure 4, where random rotations differ
//! by several points of accuracy and Hadamard ones by less.

use models::{Fallback, Hadamard};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::quantize::steps::{Stage, rotate};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StepError};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RandomOrthogonal {
    /// What to rotate. Default: `residual`, `o_in` and `down_in`.
    #[serde(default = "rotate::default_sites")]
    pub sites: Vec<String>,
    /// What stands in online where there is no Hadamard matrix. Default: `block-diagonal`.
    #[serde(default)]
    pub fallback: Fallback,
    /// Which of the seed's draws. Default: 0.
    #[serde(default)]
    pub draw: usize,
}

impl RandomOrthogonal {
    /// The same step with its sites in order.
    pub fn resolved(mut self) -> Self {
        self.sites = rotate::ordered(&self.sites);
        self
    }
}

impl Method for RandomOrthogonal {
    fn stage(&self) -> Stage {
        Stage::Rotate
    }

    fn check(&self) -> Result<(), String> {
        rotate::check_sites(&self.sites)?;
        let drawn = ["residual", "v", "o_in"];
        match drawn.iter().any(|site| rotate::has(&self.sites, site)) {
            true => Ok(()),
            false => {
                Err("`sites` names nothing that is drawn: what runs online is a Hadamard transform, so use \
                          method = \"hadamard\""
                    .into())
            }
        }
    }

    fn claims(&self) -> Vec<String> {
        rotate::claims(&self.sites)
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
        None
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let seeds = rotate::Seeds { cell: model.calibrator.seed(), draw: self.draw };
        let drawn = |order| Hadamard::random(order, seeds.of("residual"));
        // Drawn once: the larger part of the work on a part.
        let residual = rotate::has(&self.sites, "residual").then(|| {
            let carried = model.carried.take();
            carried.unwrap_or_else(|| drawn(model.decoder.architecture.hidden))
        });
        let matrices = rotate::Matrices {
            residual: &|order| residual.clone().unwrap_or_else(|| drawn(order)),
            values: &|layer, order| Hadamard::random(order, seeds.of(&format!("v of block {layer}"))),
        };
        let report = rotate::rotate(model.decoder, &self.sites, &matrices, self.fallback, seeds)?;
        if let Some(residual) = residual {
            model.carried.put(residual);
        }
        Ok(report)
    }
}
