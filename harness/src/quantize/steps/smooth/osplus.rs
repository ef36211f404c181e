//! `smooth` by `osplus`: Outlier Suppression+, scaling only: one searched threshold per group, channels above it shrink.
//!
//! # Equation
//! For a group that reads X (some calibration samples in one batch), with the channels' largest and smallest values
//! cmax_c and cmin_c, and a threshold t:
//!
//! s_c(t) = max( 1, cmax_c / t, cmin_c / (−t) ),  loss(t) = mean over tokens of ‖ f(Q_t(X/s), Q(W·s)) − f(X, W) ‖²
//!
//! t runs from max|X| down to 0.1 in equal steps; the first smallest loss wins. Q_t rounds to a symmetric grid over
//! (−t, t), one scale; Q rounds weights to a symmetric grid per output channel. f is what the group's module computes:
//! for `attn_in` the attention before `o`, for `mlp_in` silu(gate)·up, for `down_in` the product itself.
//!
//! Scales are folded as in SmoothQuant. Every block is searched on the floating-point activations that reach it;
//! migrated predecessors compute the same, so this is the sequential search of the released code for this paper.
//!
//! # Parameters
//! `sites` of attn_in, mlp_in, down_in; default all three · `bits` of both grids, default 8 · `samples` of the
//! calibration set, default 16 · `steps` of the search; default max(100, ⌊max|X| / 0.5⌋), which is long at a spike.
//!
//! # Reference
//! Outlier Suppression+, arXiv:2304.09145, scaling part; grid of t, losses and folding as used by arXiv:2405.14428 for
//! Llama (its "OSP": per-tensor activations, per-channel weights, 16 × 1024 samples). The shift of channels needs biases,
//! which Llama's linears do not have.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use models::architecture::Architecture;
use models::{Decoder, Group, Port, RescaleError, Site, Tap};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::quantize::grid::{Convention, Granularity, Grid};
use crate::quantize::steps::{Stage, smooth};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StepError, admissible, rounding};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Osplus {
    /// Sites to smooth. Default: `attn_in`, `mlp_in` and `down_in`.
    #[serde(default = "all")]
    pub sites: Vec<String>,
    /// Bits of both grids of the loss. Default: 8.
    #[serde(default = "eight")]
    pub bits: u8,
    /// Calibration samples that the search reads. Default: 16.
    #[serde(default = "sixteen")]
    pub samples: usize,
    /// Steps of the search. Default: the published rule, from the largest activation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
}

fn all() -> Vec<String> {
    ALLOWED.map(|port| port.as_str().to_string()).to_vec()
}
fn eight() -> u8 {
    8
}
fn sixteen() -> usize {
    16
}

const ALLOWED: [Port; 3] = [Port::AttnIn, Port::MlpIn, Port::DownIn];

/// Where the search for t ends, in units of the activation.
const LOWEST: f64 = 0.1;

impl Osplus {
    /// Defaults are written out as they are read.
    pub fn resolved(self) -> Self {
        self
    }
}

/// The published number of steps for a largest activation.
pub fn published_steps(largest: f64) -> usize {
    100.max((largest / 0.5) as usize)
}

/// s_c(t).
pub fn scales(low: &[f32], high: &[f32], t: f64) -> Vec<f64> {
    let scale = |(&lo, &hi): (&f32, &f32)| 1f64.max(f64::from(hi) / t).max(f64::from(lo) / -t);
    low.iter().zip(high).map(scale).collect()
}

/// The thresholds of the search, largest first. Empty where the largest activation is below [`LOWEST`].
pub fn thresholds(largest: f64, steps: usize) -> Vec<f64> {
    let step = (largest - LOWEST) / steps as f64;
    (0..steps).map(|i| largest - i as f64 * step).filter(|t| *t >= LOWEST).collect()
}

/// A threshold and its loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// t, in units of the activation.
    pub threshold: f64,
    /// Mean over tokens of the squared error.
    pub loss: f64,
    /// The loss without scaling, at the first threshold.
    pub unscaled: f64,
}

/// Searches the threshold of one group; `None` where there is nothing to scale.
///
/// # Shapes
/// `x` is `[sequences, tokens, channels]`; `output` makes the module's output of the linears' outputs.
pub fn search(
    x: &Tensor<3>,
    group: &Group,
    bits: u8,
    steps: Option<usize>,
    output: &mut dyn FnMut(Vec<Tensor<3>>) -> Tensor<3>,
) -> Option<(Best, Vec<f64>)> {
    let [sequences, tokens, channels] = x.dims();
    let rows = x.clone().reshape([sequences * tokens, channels]);
    let read = |t: Tensor<2>| t.try_into_data().expect("activations can be read").try_into_vec::<f32>();
    let high = read(rows.clone().max_dim(0)).expect("activations are f32");
    let low = read(rows.min_dim(0)).expect("activations are f32");
    let largest = low.iter().chain(&high).fold(0f32, |m, x| m.max(x.abs()));
    let steps = steps.unwrap_or_else(|| published_steps(f64::from(largest)));
    let grid = Grid::new(bits, Convention::Absmax);
    let truth = output(group.forward(x.clone()));
    let device = x.device();

    let mut best: Option<(Best, Vec<f64>)> = None;
    let mut unscaled = None;
    for t in thresholds(f64::from(largest), steps) {
        let s = scales(&low, &high, t);
        let s32: Vec<f32> = s.iter().map(|&s| s as f32).collect();
        let s32 = Tensor::<1>::from_floats(s32.as_slice(), &device);
        let rounded = rounding::round_with_static(
            x.clone() / s32.clone().unsqueeze(),
            grid,
            grid.fit(-t as f32, t as f32, 1.0),
        );
        let mut scaled = group.clone();
        for linear in &mut scaled.linears {
            let weight = linear.weight.clone() * s32.clone().unsqueeze();
            linear.weight = rounding::round_weight(&linear.name, weight, grid, Granularity::Channel, 1.0)
                .expect("a scale per channel fits every width");
        }
        let error = output(scaled.forward(rounded)) - truth.clone();
        let loss = f64::from(error.square().sum().into_scalar::<f32>()) / (sequences * tokens) as f64;
        let unscaled = *unscaled.get_or_insert(if loss.is_finite() { loss } else { f64::MAX });
        // A loss that is no number would win nothing and cannot be written down.
        if loss.is_finite() && best.as_ref().is_none_or(|(best, _)| loss < best.loss) {
            best = Some((Best { threshold: t, loss, unscaled }, s));
        }
    }
    best
}

/// Searches at every site that the forward pass comes to.
struct Search<'a> {
    step: &'a Osplus,
    /// The same decoder, for the attention of a block.
    decoder: Decoder,
    found: BTreeMap<Site, (Best, Vec<f64>)>,
}

impl Tap for Search<'_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let named = self.step.sites.iter().any(|name| name == site.port.as_str());
        if named && site.layer.is_some() {
            let (bits, steps) = (self.step.bits, self.step.steps);
            let decoder = &mut self.decoder;
            let mut output = |outputs: Vec<Tensor<3>>| decoder.between(site, outputs);
            if let Some(best) = search(&x, group, bits, steps, &mut output) {
                self.found.insert(site, best);
            }
        }
        group.forward(x)
    }
}

/// What was found for one group.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Found {
    best: Best,
    scales: Vec<f64>,
}

impl Osplus {
    /// What the search reads.
    fn read(&self, model: &ModelInFlight) -> Result<Vec<Vec<u32>>, StepError> {
        smooth::first_samples(model, self.samples, "OS+")
    }

    /// Refuses a model of whose sites it cannot search one.
    fn check_searched(&self, architecture: &Architecture) -> Result<(), StepError> {
        admissible::sites_of_model(Some(&self.sites), architecture)?;
        let named = |site: &Site| self.sites.iter().any(|name| name == site.port.as_str());
        let mut sites = architecture.first_groups().into_iter().map(|(site, _)| site);
        match sites.find(|site| site.expert.is_some() && named(site)) {
            Some(site) => {
                let why = "OS+ searches on whole sequences and an expert sees parts of them; leave its port out of `sites`";
                Err(RescaleError::Refused { site, why }.into())
            }
            None => Ok(()),
        }
    }

    /// The search at every site, by the site's name.
    fn search_all(&self, model: &mut ModelInFlight) -> Result<Vec<(String, Found)>, StepError> {
        let mut search = Search { step: self, decoder: model.decoder.clone(), found: BTreeMap::new() };
        smooth::lead(model, &mut search, |model| self.read(model))?;
        let found = search.found.into_iter();
        Ok(found.map(|(site, (best, scales))| (site.to_string(), Found { best, scales })).collect())
    }
}

impl Method for Osplus {
    fn stage(&self) -> Stage {
        Stage::Smooth
    }

    fn check(&self) -> Result<(), String> {
        smooth::check_sites(&self.sites, &ALLOWED)?;
        match (self.bits, self.samples, self.steps) {
            (2..=8, 1.., Some(0)) => Err("`steps` must be at least 1".into()),
            (2..=8, 0, _) => Err("`samples` must be at least 1".into()),
            (2..=8, ..) => Ok(()),
            (bits, ..) => Err(format!("`bits` must be 2 to 8, not {bits}")),
        }
    }

    fn claims(&self) -> Vec<String> {
        smooth::claims()
    }

    fn tries_on_a_copy(&self) -> bool {
        true
    }

    fn needs_calibration(&self) -> bool {
        true
    }

    fn preserves_function(&self) -> bool {
        true
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        self.check_searched(facts.architecture)?;
        smooth::check_scales(&self.sites, facts)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        self.check_searched(&model.decoder.architecture)?;
        // Recipes that go on differently after this step share its search.
        let key = smooth::search_key(model, json!({ "osplus": self }));
        let searched = match model.calibrator.recall(&key) {
            Some(known) => {
                smooth::lead_on(model, |model| self.read(model))?;
                serde_json::from_value(known).expect("what was remembered is what it was")
            }
            None => {
                let searched = self.search_all(model)?;
                model.calibrator.remember(key, json!(searched));
                searched
            }
        };
        let mut found = Map::new();
        for (site, Found { best, scales }) in searched {
            let site = model.decoder.groups().into_iter().map(|(at, _)| at).find(|at| at.to_string() == site);
            let site = site.expect("a site that was searched");
            model.decoder.rescale(site, &scales)?;
            let mut entry = smooth::extremes(&scales);
            entry["threshold"] = json!(best.threshold);
            entry["loss"] = json!(best.loss);
            entry["unscaled-loss"] = json!(best.unscaled);
            found.insert(site.to_string(), entry);
        }
        Ok(smooth::report(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use models::Linear;

    #[test]
    fn scales_shrink_only_what_exceeds_the_threshold() {
        assert_eq!(scales(&[-1.0, -8.0, 0.0], &[2.0, 1.0, 12.0], 4.0), [1.0, 2.0, 3.0]);
        assert_eq!(published_steps(10.0), 100);
        assert_eq!(published_steps(1000.0), 2000);
        let grid = thresholds(10.1, 100);
        assert_eq!(grid.len(), 100);
        assert!((grid[0] - 10.1).abs() < 1e-12 && grid.windows(2).all(|w| w[0] > w[1]) && grid[99] > LOWEST);
        assert!(thresholds(0.05, 100).is_empty());
    }

    #[test]
    fn the_search_shrinks_an_outlier_channel_and_never_loses() {
        let device = Device::flex();
        let mut values: Vec<f32> = (0..4 * 64 * 8).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        for row in values.chunks_mut(8) {
            row[3] *= 60.0;
        }
        let x = Tensor::<3>::from_data(TensorData::new(values, [4, 64, 8]), &device);
        let weight: Vec<f32> = (0..16 * 8).map(|i| ((i * 53 % 97) as f32 - 48.0) / 200.0).collect();
        let weight = Tensor::from_data(TensorData::new(weight, [16, 8]), &device);
        let group = Group { linears: vec![Linear::new("w".into(), weight, None)] };
        let (best, scales) = search(&x, &group, 8, None, &mut |mut outputs| outputs.swap_remove(0)).unwrap();
        assert!(best.loss < best.unscaled / 2.0, "{best:?}");
        assert!(scales[3] > 2.0 && scales.iter().enumerate().all(|(c, s)| c == 3 || *s == 1.0), "{scales:?}");
    }
}
