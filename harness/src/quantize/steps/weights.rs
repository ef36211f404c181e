//! `weights`: round the weights of linear layers to a grid.
//!
//! # Equation
//! Ŵ = Δ·(clamp(round(W/Δ) + z) − z), one (Δ, z) per tensor, per output channel or per group of input channels.
//!
//! # Parameters
//! `bits` 2–8, or 16 for none · `granularity` tensor, channel or group(n) · `symmetric` · `convention` of the grid ·
//! `solver` how codes are chosen · `clip` shrinks the range before the scale is chosen · `sites` whose linears are
//! rounded · `embeddings` also the embedding table, a scale per row.
//!
//! # Reference
//! own: round to nearest; the grids' sources stand in [`crate::quantize::grid`].

use burn::tensor::Tensor;
use models::Linear;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::quantize::fake_quant::Kept;
use crate::quantize::grid::{Convention, Granularity, Grid};
use crate::quantize::steps::Stage;
use crate::quantize::{
    GroupInFlight, Method, ModelInFlight, StepError, acts_at, admissible, each_group, rounding,
};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Weights {
    /// 2 to 8, or 16 for no rounding.
    pub bits: u8,
    /// Who shares a scale. Default: `channel`.
    #[serde(default = "channel")]
    pub granularity: Granularity,
    /// Without a zero point. Default: true.
    #[serde(default = "yes")]
    pub symmetric: bool,
    /// Default: `absmax` where symmetric, `zero-in-range` where not.
    #[serde(default)]
    pub convention: Option<Convention>,
    /// Default: `rtn`, round to nearest.
    #[serde(default)]
    pub solver: Solver,
    /// Factor on the range, 0 < clip ≤ 1. Default: 1.
    #[serde(default = "one")]
    pub clip: f32,
    /// Sites whose linears are rounded. Default: every site but `head_in`.
    #[serde(default)]
    pub sites: Option<Vec<String>>,
    /// Round the embedding table too. Default: false.
    #[serde(default)]
    pub embeddings: bool,
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Round to nearest.
    #[default]
    Rtn,
}

impl Weights {
    /// The same step with its convention and its sites written out.
    pub fn resolved(mut self) -> Self {
        self.convention = Some(self.convention.unwrap_or(admissible::default_convention(self.symmetric)));
        self.sites = Some(admissible::resolve_linear_sites(self.sites.as_deref()));
        self
    }

    /// The grid, or `None` at 16 bits.
    pub fn grid(&self) -> Option<Grid> {
        admissible::grid(self.bits, self.symmetric, self.convention)
    }
}

impl Method for Weights {
    fn stage(&self) -> Stage {
        Stage::Quantize
    }

    fn check(&self) -> Result<(), String> {
        admissible::bits(self.bits)?;
        admissible::granularity(self.granularity, "tensor, channel or group(n)", |g| {
            g != Granularity::Token
        })?;
        admissible::convention(self.convention, self.symmetric)?;
        admissible::clip(self.clip)?;
        admissible::linear_sites(self.sites.as_deref())
    }

    fn claims(&self) -> Vec<String> {
        let sites = admissible::resolve_linear_sites(self.sites.as_deref());
        let weights = sites.iter().map(|site| format!("the weights that read `{site}`"));
        weights.chain(self.embeddings.then(|| "the embedding table".to_string())).collect()
    }

    fn rounds_weights(&self) -> bool {
        true
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        if let Some(grid) = self.grid().filter(|_| self.embeddings) {
            // A tied head keeps the table in floating point: it holds its own reference, and rounding copies.
            let table = model.decoder.embedding.clone();
            model.decoder.embedding =
                rounding::round_weight("embeddings", table, grid, self.granularity, self.clip)?;
        }
        each_group(model, |flight| self.apply(flight))
    }

    fn apply(&self, flight: &mut GroupInFlight) -> Result<bool, StepError> {
        let Some(grid) = self.grid() else { return Ok(false) };
        if !acts_at(self.sites.as_deref(), flight.site.port) {
            return Ok(false);
        }
        if flight.rounded || flight.kept == Some(Kept::ActivationAndWeights) {
            return Ok(false);
        }
        for linear in &mut flight.group.linears {
            let weight = take(linear);
            linear.weight = rounding::round_weight(&linear.name, weight, grid, self.granularity, self.clip)?;
        }
        Ok(true)
    }
}

/// Takes a weight out of its linear, so that it can be changed without a copy.
fn take(linear: &mut Linear) -> Tensor<2> {
    let device = linear.weight.device();
    std::mem::replace(&mut linear.weight, Tensor::zeros([1, 1], &device))
}

fn channel() -> Granularity {
    Granularity::Channel
}
fn yes() -> bool {
    true
}
fn one() -> f32 {
    1.0
}
