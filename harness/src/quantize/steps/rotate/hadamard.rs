//! `rotate` by `hadamard`: Hadamard matrices turn the residual stream, values, queries and keys, and what down reads.
//!
//! # Equation
//! H of order n has entries ±1 and H·Hᵀ = n·I; the rotation is x ↦ x·R with R = H/√n, or diag(±1)·H/√n with random
//! signs. A token's large value o is spread to ±o/√n over all n channels. With γ the weights of the norm before:
//!
//! | site | activation | weights |
//! |---|---|---|
//! | `residual` | x ↦ x·Q | E·Q; q, k, v, gate, up, head W·diag(γ)·Q; o, down Qᵀ·W |
//! | `v` | values of each head v ↦ v·R | v Rᵀ·W, o W·R per head |
//! | `o_in` | as `v`, then across heads x ↦ x·(H ⊗ I)/√heads, while the model runs | o W·(H ⊗ I)/√heads |
//! | `down_in` | x ↦ x·R, while the model runs | down W·R |
//! | `qk` | q ↦ q·R, k ↦ k·R behind rotary embedding, while the model runs | none: q·R·Rᵀ·kᵀ = q·kᵀ |
//!
//! Weights change in f64 and are rounded once. Norms are folded first; a tied head gets weights of its own. LayerNorm's
//! mean is subtracted in everything that enters the stream; without LayerNorm no mean is subtracted anywhere.
//!
//! H is Sylvester's matrix of a power of two times the smallest matrix of Paley's, over a field of prime-power size, that
//! the order allows. Where none does (9 heads), `fallback` stands in, and the cell's record says so.
//!
//! # Parameters
//! `sites` default residual, o_in, down_in · `random-signs` of the residual stream's matrix, default true; the others
//! have none · `fallback` where no construction fits: block-diagonal (default; the largest power of two that divides the
//! order; for an odd order the part is left out) or random-orthogonal · `draw` which signs of the cell's seed, default 0.
//!
//! # Reference
//! QuaRot, arXiv:2404.00456: sites, folding, and which parts run online, as read in notes on its code; its matrices come
//! from tables and are other Hadamard matrices of the same orders. Its code also subtracts the embedding's mean, which is
//! no identity under RMSNorm and is left out. Without signs and online everywhere: arXiv:2506.01967.

use models::{Fallback, Hadamard as Matrix};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::quantize::steps::{Stage, rotate};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StepError};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hadamard {
    /// What to rotate. Default: `residual`, `o_in` and `down_in`.
    #[serde(default = "rotate::default_sites")]
    pub sites: Vec<String>,
    /// Whether the residual stream's matrix has random signs. Default: true.
    #[serde(default = "yes")]
    pub random_signs: bool,
    /// What stands in where there is no Hadamard matrix. Default: `block-diagonal`.
    #[serde(default)]
    pub fallback: Fallback,
    /// Which of the seed's draws. Default: 0.
    #[serde(default)]
    pub draw: usize,
}

fn yes() -> bool {
    true
}

impl Hadamard {
    /// The same step with its sites in order.
    pub fn resolved(mut self) -> Self {
        self.sites = rotate::ordered(&self.sites);
        self
    }
}

impl Method for Hadamard {
    fn stage(&self) -> Stage {
        Stage::Rotate
    }

    fn check(&self) -> Result<(), String> {
        rotate::check_sites(&self.sites)
    }

    fn claims(&self) -> Vec<String> {
        rotate::claims(&self.sites)
    }

    fn uses_randomness(&self) -> bool {
        self.random_signs && rotate::has(&self.sites, "residual")
            || self.fallback == Fallback::RandomOrthogonal
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
        let plain = |what: &str, order| Matrix::new(order, self.fallback, seeds.of(what));
        let residual = |order| match self.random_signs {
            true => plain("residual", order).with_random_signs(seeds.of("signs")),
            false => plain("residual", order),
        };
        let matrices = rotate::Matrices { residual: &residual, values: &|_, order| plain("v", order) };
        rotate::rotate(model.decoder, &self.sites, &matrices, self.fallback, seeds)
    }
}
