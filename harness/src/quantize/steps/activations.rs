//! `activations`: round what linear layers read to a grid.
//!
//! # Equation
//! X̂ = Δ·(clamp(round(X/Δ) + z) − z), one (Δ, z) per sequence (`tensor`), per token, or per group of channels of a
//! token; chosen from the values themselves (dynamic). Linears that read one site share one rounding: q/k/v, gate/up.
//!
//! # Parameters
//! `bits` 2–8, or 16 for none · `granularity` tensor, token or group(n) · `symmetric` · `convention` · `clip` shrinks
//! the range before the scale is chosen · `sites` whose activations are rounded.
//!
//! # Reference
//! own: round to nearest; SmoothQuant's O1 is `token`, O2 is `tensor` (arXiv:2211.10438, Table 2).

use serde::{Deserialize, Serialize};

use crate::quantize::grid::{Convention, Granularity};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Activations {
    /// 2 to 8, or 16 for no rounding.
    pub bits: u8,
    /// Who shares a scale. Default: `token`.
    #[serde(default = "token")]
    pub granularity: Granularity,
    /// Without a zero point. Default: true.
    #[serde(default = "yes")]
    pub symmetric: bool,
    /// Default: `absmax` where symmetric, `zero-in-range` where not.
    #[serde(default)]
    pub convention: Option<Convention>,
    /// Factor on the range, 0 < clip ≤ 1. Default: 1.
    #[serde(default = "one")]
    pub clip: f32,
    /// Sites whose activations are rounded. Default: every site but `head_in`.
    #[serde(default)]
    pub sites: Option<Vec<String>>,
}

fn token() -> Granularity {
    Granularity::Token
}
fn yes() -> bool {
    true
}
fn one() -> f32 {
    1.0
}
