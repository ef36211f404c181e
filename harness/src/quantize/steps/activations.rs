//! `activations`: round what linear layers read to a grid.
//!
//! # Equation
//! X̂ = Δ·(clamp(round(X/Δ) + z) − z), one (Δ, z) per sequence (`tensor`), per token, or per group of channels of a
//! token. Dynamic: chosen from the values themselves. Static (`observer`): one (Δ, z) per site, from a calibration set:
//!
//! | observer | range |
//! |---|---|
//! | `max` | smallest and largest value over all tokens |
//! | `percentile` | ±p, where `percentile` per cent of all |x| are at most p (from a histogram of 16 bins per octave: within 5 %) |
//! | `ema` | ±m of the last sequence, m ← `momentum`·m + (1 − `momentum`)·max|X| over the sequences in their order |
//!
//! Statistics are of the floating-point model after its transforms. Behind a prefix they hold no prefix position, and
//! no prefix position is ever rounded. Linears that read one site share one rounding: q/k/v, gate/up.
//!
//! # Parameters
//! `bits` 2–8, or 16 for none · `granularity` tensor, token or group(n); static is per tensor · `ragged` lets the last group be short ·
//! `symmetric` ·
//! `convention` · `clip` shrinks the range before the scale is chosen · `sites` whose activations are rounded ·
//! `observer` max, percentile or ema; none for dynamic · `percentile` of |x|, default 99.99 · `momentum` default 0.99.
//!
//! # Reference
//! own: round to nearest; SmoothQuant's O1 is `token`, O2 is `tensor`, O3 is `tensor` with `max` (arXiv:2211.10438,
//! Table 2); the moving average is PrefixQuant's (factor 0.99, read in its code).

use models::{Port, Site};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::calibrate::statistics::SiteStatistics;
use crate::quantize::admissible;
use crate::quantize::effective_bits::Tally;
use crate::quantize::fake_quant::{ActivationRule, Kept, ScaleSource};
use crate::quantize::grid::{Convention, Granularity, Grid, Scale};
use crate::quantize::solve::gptq::check_width;
use crate::quantize::solve::layout::Layout;
use crate::quantize::steps::{Stage, keep};
use crate::quantize::{
    GroupInFlight, Method, ModelFacts, ModelInFlight, StatisticsNeed, StepError, acts_at, each_group,
};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Activations {
    /// 2 to 8, or 16 for no rounding.
    pub bits: u8,
    /// Who shares a scale. Default: `token`.
    #[serde(default = "token")]
    pub granularity: Granularity,
    /// Whether the last group may be short. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ragged: bool,
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
    /// How a calibration set's values become one static scale. Default: none, the scale is dynamic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observer: Option<Observer>,
    /// Of `observer = "percentile"`. Default: 99.99.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentile: Option<f64>,
    /// Of `observer = "ema"`. Default: 0.99.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
}

/// How a calibration set's values become one static scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observer {
    /// The range of all values.
    Max,
    /// A percentile of their magnitudes.
    Percentile,
    /// A moving average of each sequence's largest magnitude.
    Ema,
}

/// Where the percentile stands when the recipe does not say.
const PERCENTILE: f64 = 99.99;

/// The share of the past in the moving average when the recipe does not say.
const MOMENTUM: f64 = 0.99;

impl Activations {
    /// The same step with its convention and its sites written out.
    pub fn resolved(mut self) -> Self {
        self.convention = Some(self.convention.unwrap_or(admissible::default_convention(self.symmetric)));
        self.sites = Some(admissible::resolve_linear_sites(self.sites.as_deref()));
        match self.observer {
            Some(Observer::Percentile) => self.percentile = Some(self.percentile.unwrap_or(PERCENTILE)),
            Some(Observer::Ema) => self.momentum = Some(self.momentum.unwrap_or(MOMENTUM)),
            Some(Observer::Max) | None => {}
        }
        self
    }

    fn static_scale(
        &self,
        grid: Grid,
        observer: Observer,
        site: Site,
        seen: &SiteStatistics,
    ) -> Result<Scale, StepError> {
        let (lo, hi) = match observer {
            Observer::Max => {
                let lo = seen.min.iter().copied().fold(f32::INFINITY, f32::min);
                (lo, seen.max.iter().copied().fold(f32::NEG_INFINITY, f32::max))
            }
            Observer::Percentile => {
                let share = self.percentile.unwrap_or(PERCENTILE) / 100.0;
                let values = seen.tokens * seen.channels() as u64;
                let rank = ((share * values as f64).ceil() as u64).clamp(1, values.max(1)) - 1;
                let ranked = seen.histogram.as_ref().and_then(|histogram| histogram.ranked(rank));
                let p = ranked.ok_or_else(|| {
                    StepError::Statistics(format!("{site}: there are no values to take a percentile of"))
                })?;
                (-p as f32, p as f32)
            }
            Observer::Ema => {
                let momentum = self.momentum.unwrap_or(MOMENTUM);
                let blend = |m: f64, max: f64| momentum * m + (1.0 - momentum) * max;
                let m = seen.sequences.values().map(|s| f64::from(s.max)).reduce(blend).unwrap_or(0.0) as f32;
                (-m, m)
            }
        };
        Ok(grid.fit(lo, hi, self.clip))
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
        admissible::format(self.convention, self.bits, self.granularity)?;
        admissible::clip(self.clip)?;
        admissible::linear_sites(self.sites.as_deref())?;
        self.check_observer()
    }

    fn claims(&self) -> Vec<String> {
        let sites = admissible::resolve_linear_sites(self.sites.as_deref());
        sites.iter().map(|site| format!("the activations at `{site}`")).collect()
    }

    fn statistics(&self) -> StatisticsNeed {
        match self.observer {
            Some(_) if self.bits != 16 => StatisticsNeed::Present,
            _ => StatisticsNeed::Nothing,
        }
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        if self.bits == 16 {
            return Ok(());
        }
        admissible::sites_of_model(self.sites.as_deref(), facts.architecture)?;
        if keep::may_except(facts.earlier, &[Kept::Activation, Kept::ActivationAndWeights]) {
            return Ok(());
        }
        let groups = facts.architecture.first_groups().into_iter();
        let mut groups = groups.filter(|(site, _)| acts_at(self.sites.as_deref(), site.port));
        groups.try_for_each(|(site, shapes)| match keep::left(facts.earlier, site, shapes[0][1]) {
            Some(channels) => check_width(&site.to_string(), self.granularity, self.ragged, channels),
            None => Ok(()),
        })
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn store(&self, tally: &mut Tally) {
        let Some(grid) = admissible::grid(self.bits, self.symmetric, self.convention) else { return };
        for group in &mut tally.groups {
            if group.kept.is_none() && acts_at(self.sites.as_deref(), group.site.port) {
                group.set_activation(grid, self.granularity);
            }
        }
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let grid = admissible::grid(self.bits, self.symmetric, self.convention);
        if grid.is_some() {
            admissible::sites_of_model(self.sites.as_deref(), &model.decoder.architecture)?;
        }
        let (Some(observer), Some(grid)) = (self.observer, grid) else {
            return each_group(model, |flight| self.apply(flight));
        };
        let statistics = model.present.clone().expect("a static scale asks for statistics");
        let mut scales = Map::new();
        let mut report = each_group(model, |flight| {
            if !self.acts(flight) {
                return Ok(false);
            }
            if flight.layout.is_some() {
                return Err(StepError::Statistics(format!(
                    "{}: a static scale knows no channels that are kept apart: leave `observer` out, or `keep`",
                    flight.site
                )));
            }
            let seen = statistics.sites.get(&flight.site).ok_or_else(|| {
                StepError::Statistics(format!("{}: the calibration pass did not look here", flight.site))
            })?;
            let scale = self.static_scale(grid, observer, flight.site, seen)?;
            scales.insert(flight.site.to_string(), json!({ "delta": scale.delta, "zero": scale.zero }));
            *flight.activation = Some(self.rule(grid, ScaleSource::Static(scale)));
            Ok(true)
        })?;
        report.insert("scales".into(), scales.into());
        Ok(report)
    }

    fn apply(&self, flight: &mut GroupInFlight) -> Result<bool, StepError> {
        let grid = admissible::grid(self.bits, self.symmetric, self.convention);
        let Some(grid) = grid.filter(|_| self.acts(flight)) else { return Ok(false) };
        if let Some(linear) = flight.group.linears.first() {
            let channels = flight.layout.as_deref().map_or(linear.weight.dims()[1], Layout::rest);
            check_width(&flight.site.to_string(), self.granularity, self.ragged, channels)?;
        }
        *flight.activation = Some(self.rule(grid, ScaleSource::Dynamic));
        Ok(true)
    }
}

impl Activations {
    fn acts(&self, flight: &GroupInFlight) -> bool {
        acts_at(self.sites.as_deref(), flight.site.port) && flight.kept.is_none()
    }

    fn rule(&self, grid: Grid, scale: ScaleSource) -> ActivationRule {
        ActivationRule { grid, granularity: self.granularity, clip: self.clip, scale }
    }

    fn check_observer(&self) -> Result<(), String> {
        let belongs =
            |key: &str, given: bool, to: Observer, word: &str| match given && self.observer != Some(to) {
                true => Err(format!("`{key}` belongs to observer = \"{word}\"")),
                false => Ok(()),
            };
        belongs("percentile", self.percentile.is_some(), Observer::Percentile, "percentile")?;
        belongs("momentum", self.momentum.is_some(), Observer::Ema, "ema")?;
        if let Some(p) = self.percentile.filter(|p| !(*p > 0.0 && *p <= 100.0)) {
            return Err(format!("`percentile` must be above 0 and at most 100, not {p}"));
        }
        if let Some(m) = self.momentum.filter(|m| !(0.0..1.0).contains(m)) {
            return Err(format!("`momentum` must be at least 0 and below 1, not {m}"));
        }
        match self.observer {
            Some(_) if self.granularity != Granularity::Tensor => Err(format!(
                "`observer` gives one scale per site: granularity = \"tensor\", not {}",
                self.granularity
            )),
            Some(Observer::Percentile | Observer::Ema) if !self.symmetric => Err(
                "`observer` percentile and ema know magnitudes only: symmetric = true, or observer = \"max\""
                    .into(),
            ),
            _ => Ok(()),
        }
    }
}

/// The ports whose groups a recipe's activation steps may round.
pub const PORTS: [Port; 4] = [Port::AttnIn, Port::OIn, Port::MlpIn, Port::DownIn];

fn token() -> Granularity {
    Granularity::Token
}
fn yes() -> bool {
    true
}
fn one() -> f32 {
    1.0
}
fn is_false(value: &bool) -> bool {
    !value
}
