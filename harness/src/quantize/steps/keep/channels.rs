//! `keep` by `channels`: the input channels with the largest activations get a finer grid of their own, as in Atom.
//!
//! # Equation
//! For every site, with m_c = Σ x_c² (`second-moment`) or Σ |x_c| (`mean`) of channel c over the calibration set: channels
//! are put in ascending order of m; the last k, the outliers, form one share per token (activations) and per row (weights)
//! on a symmetric grid of `bits`; the others follow the `activations` and `weights` steps, with groups of neighbours in
//! that order. k is `count`, or `fraction` of the channels, rounded.
//!
//! Kernels permute columns of weights and gather activations for this; the function does not depend on where a channel
//! stands, so here values are rounded in the order and stay in their places.
//!
//! GPTQ goes through the channels in this order: errors of the others reach the outliers, which are rounded last and give
//! none to each other. Behind them lies no group, so that a group size has to divide the channels that are not kept, unless
//! the step says `ragged = true`. An expert that no token of the set reached keeps its channels as they are.
//!
//! # Parameters
//! `count` or `fraction` of channels, one of them · `bits` of their grid, 2–8, or 16 for floating point; default 8 ·
//! `by` second-moment or mean · `sites` whose channels are ordered; default all but head_in.
//!
//! # Reference
//! Atom, arXiv:2310.19102, sections 4.1 and 4.2: 128 channels of 4096 or more, which is a fraction of 0.03; order by second
//! moments (its code's default), 8 bits with a scale per token and row, and GPTQ in that order as in its released code. The
//! code lets two neighbouring rows of a weight share a scale; that is not here.

use std::collections::BTreeMap;
use std::sync::Arc;

use models::architecture::Architecture;
use models::{Port, Site};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::quantize::effective_bits::{Outliers, Tally};
use crate::quantize::fake_quant::Kept;
use crate::quantize::solve::blockwise::Stream;
use crate::quantize::solve::layout::{self, Layout};
use crate::quantize::steps::Stage;
use crate::quantize::steps::activations::PORTS;
use crate::quantize::{Method, ModelFacts, ModelInFlight, StatisticsNeed, StepError, acts_at, admissible};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Channels {
    /// Outliers of a site. Default: none, `fraction` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Outliers as a share of the site's channels. Default: none, `count` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Of the outliers' grid, 2 to 8, or 16 for floating point. Default: 8.
    #[serde(default = "eight")]
    pub bits: u8,
    /// What channels are ordered by. Default: `second-moment`.
    #[serde(default)]
    pub by: By,
    /// Sites whose channels are ordered. Default: every site but `head_in`.
    #[serde(default)]
    pub sites: Option<Vec<String>>,
}

/// What channels are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Σ x².
    #[default]
    SecondMoment,
    /// The mean of |x|.
    Mean,
}

fn eight() -> u8 {
    8
}

impl Channels {
    /// The same step with its sites written out.
    pub fn resolved(mut self) -> Self {
        self.sites = Some(admissible::resolve_linear_sites(self.sites.as_deref()));
        self
    }

    /// Outliers of a site.
    fn outliers(&self, channels: usize) -> usize {
        let of_fraction = |fraction: f64| (fraction * channels as f64).round() as usize;
        self.count.unwrap_or_else(|| of_fraction(self.fraction.unwrap_or_default()))
    }

    /// Outliers of a site at a port where it acts.
    pub(crate) fn apart(&self, port: Port, channels: usize) -> Option<usize> {
        (PORTS.contains(&port) && acts_at(self.sites.as_deref(), port)).then(|| self.outliers(channels))
    }

    /// Refuses a model that has none of its sites, or too few channels at one.
    fn check_shapes(&self, architecture: &Architecture) -> Result<(), StepError> {
        admissible::sites_of_model(self.sites.as_deref(), architecture)?;
        for (site, shapes) in architecture.first_groups() {
            let channels = shapes[0][1];
            if let Some(kept) = self.apart(site.port, channels).filter(|kept| *kept >= channels) {
                return Err(StepError::TooLittle(format!(
                    "{site} has {channels} channels, and {kept} of them were to be kept apart: give a smaller `count`"
                )));
            }
        }
        Ok(())
    }

    /// m by site.
    fn importance(&self, model: &mut ModelInFlight) -> Result<BTreeMap<Site, Vec<f64>>, StepError> {
        let ports: Vec<Port> =
            PORTS.into_iter().filter(|port| acts_at(self.sites.as_deref(), *port)).collect();
        if self.by == By::Mean {
            let statistics = model.present.clone().expect("an order by means asks for statistics");
            let sites = statistics.sites.iter().filter(|(site, _)| ports.contains(&site.port));
            return Ok(sites.map(|(&site, seen)| (site, seen.mean_magnitude())).collect());
        }
        let samples = model.calibrator.samples().to_vec();
        let mut stream = match model.carried.take() {
            Some(stream) => stream,
            None => Stream::begin(model.decoder, &samples, model.calibrator.start())?,
        };
        let layers = model.decoder.architecture.layers;
        let mut found = BTreeMap::new();
        for layer in model.decoder.blocks.layers() {
            if !model.calibrator.progress(layer, layers) {
                return Err(StepError::Interrupted);
            }
            let groups = model.decoder.groups().into_iter().map(|(site, _)| site);
            let wanted = groups.filter(|site| site.layer == Some(layer) && ports.contains(&site.port));
            let wanted: Vec<Site> = wanted.collect();
            found.extend(stream.squares(model.decoder, layer, &wanted)?);
        }
        model.carried.put(stream);
        Ok(found)
    }
}

impl Method for Channels {
    fn stage(&self) -> Stage {
        Stage::Keep
    }

    fn check(&self) -> Result<(), String> {
        match (self.count, self.fraction) {
            (None, None) => return Err("`count` or `fraction` must say how many channels are kept".into()),
            (Some(_), Some(_)) => {
                return Err("`fraction` and `count` are two ways to say it: give one".into());
            }
            (None, Some(f)) if !(0.0..1.0).contains(&f) => {
                return Err(format!("`fraction` must be at least 0 and below 1, not {f}"));
            }
            _ => {}
        }
        admissible::bits(self.bits)?;
        admissible::linear_sites(self.sites.as_deref())?;
        let head = Port::HeadIn.as_str();
        match self.sites.iter().flatten().any(|site| site == head) {
            true => Err(format!("`sites`: the channels of `{head}` cannot be kept apart")),
            false => Ok(()),
        }
    }

    fn claims(&self) -> Vec<String> {
        let sites = admissible::resolve_linear_sites(self.sites.as_deref());
        sites.iter().map(|site| format!("the order of channels of `{site}`")).collect()
    }

    fn statistics(&self) -> StatisticsNeed {
        match self.by {
            By::Mean => StatisticsNeed::Present,
            By::SecondMoment => StatisticsNeed::Nothing,
        }
    }

    fn needs_calibration(&self) -> bool {
        true
    }

    fn exempts(&self) -> Option<Kept> {
        None
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        self.check_shapes(facts.architecture)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn store(&self, tally: &mut Tally) {
        for group in tally.groups.iter_mut().filter(|group| acts_at(self.sites.as_deref(), group.site.port)) {
            let count = self.outliers(group.channels()).min(group.channels());
            group.outliers.get_or_insert(Outliers { count, grid: layout::kept_grid(self.bits) });
        }
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        self.check_shapes(&model.decoder.architecture)?;
        let mut sites = Map::new();
        for (site, importance) in self.importance(model)? {
            let (channels, kept) = (importance.len(), self.outliers(importance.len()));
            let layout = Layout::by_importance(&importance, kept, self.bits);
            let outliers = &layout.order[layout.rest()..];
            let share = |of: &mut dyn Iterator<Item = usize>| of.map(|c| importance[c]).sum::<f64>();
            let whole = share(&mut (0..channels));
            let part = if whole > 0.0 { share(&mut outliers.iter().copied()) / whole } else { 0.0 };
            sites.insert(site.to_string(), json!({ "kept": kept, "share": part, "channels": outliers }));
            model.tap.layouts.insert(site, Arc::new(layout));
        }
        let mut report = Map::new();
        report.insert("groups".into(), sites.len().into());
        report.insert("sites".into(), sites.into());
        Ok(report)
    }
}
