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
