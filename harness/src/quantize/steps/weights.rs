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

use serde::{Deserialize, Serialize};

use super::Stage;
use crate::quantize::admissible;
use crate::quantize::grid::{Convention, Granularity};

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

impl Weights {
    /// Grids stand after every transform.
    pub const STAGE: Stage = Stage::Quantize;

    /// Complains of a value that the step cannot have.
    pub fn check(&self) -> Result<(), String> {
        admissible::bits(self.bits)?;
        admissible::granularity(self.granularity, "tensor, channel or group(n)", |g| g != Granularity::Token)?;
        admissible::convention(self.convention, self.symmetric)?;
        admissible::clip(self.clip)?;
        admissible::linear_sites(self.sites.as_deref())
    }

    /// The same step with its convention and its sites written out.
    pub fn resolved(mut self) -> Self {
        self.convention = Some(self.convention.unwrap_or(admissible::default_convention(self.symmetric)));
        self.sites = Some(admissible::resolve_linear_sites(self.sites.as_deref()));
        self
    }

    /// What this step has for itself.
    pub fn claims(&self) -> Vec<String> {
        let mut claims: Vec<_> = admissible::resolve_linear_sites(self.sites.as_deref())
            .into_iter()
            .map(|site| format!("the weights that read `{site}`"))
            .collect();
        claims.extend(self.embeddings.then(|| "the embedding table".to_string()));
        claims
    }

    /// No: round to nearest looks at the weight alone.
    pub fn needs_calibration(&self) -> bool {
        false
    }

    /// No.
    pub fn uses_randomness(&self) -> bool {
        false
    }
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Round to nearest.
    #[default]
    Rtn,
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
