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

use crate::quantize::admissible;
use crate::quantize::fake_quant::ActivationRule;
use crate::quantize::grid::{Convention, Granularity};
use crate::quantize::steps::Stage;
use crate::quantize::{GroupInFlight, Method, StepError, acts_at};

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

impl Activations {
    /// The same step with its convention and its sites written out.
    pub fn resolved(mut self) -> Self {
        self.convention = Some(self.convention.unwrap_or(admissible::default_convention(self.symmetric)));
        self.sites = Some(admissible::resolve_linear_sites(self.sites.as_deref()));
        self
    }
}

impl Method for Activations {
    fn stage(&self) -> Stage {
        Stage::Quantize
    }

    fn check(&self) -> Result<(), String> {
        admissible::bits(self.bits)?;
        admissible::granularity(self.granularity, "tensor, token or group(n)", |g| {
            g != Granularity::Channel
        })?;
        admissible::convention(self.convention, self.symmetric)?;
        admissible::clip(self.clip)?;
        admissible::linear_sites(self.sites.as_deref())
    }

    fn claims(&self) -> Vec<String> {
        let sites = admissible::resolve_linear_sites(self.sites.as_deref());
        sites.iter().map(|site| format!("the activations at `{site}`")).collect()
    }

    fn apply(&self, flight: &mut GroupInFlight) -> Result<(), StepError> {
        let Some(grid) = admissible::grid(self.bits, self.symmetric, self.convention) else { return Ok(()) };
        if !acts_at(self.sites.as_deref(), flight.site.port) {
            return Ok(());
        }
        if let (Granularity::Group(n), Some(linear)) = (self.granularity, flight.group.linears.first()) {
            StepError::check_group(&flight.site.to_string(), n, linear.weight.dims()[1])?;
        }
        *flight.activation = Some(ActivationRule { grid, granularity: self.granularity, clip: self.clip });
        Ok(())
    }
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
