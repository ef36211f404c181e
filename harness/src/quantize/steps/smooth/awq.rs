//! `smooth` by `awq`: channel scales that protect the weights of channels with large activations, searched by exponent.
//!
//! # Equation
//! For a group that reads X, a_c the mean of |X_c| over all tokens, and an exponent r:
//!
//! s_c(r) = max(a_c^r, 10⁻⁴) / √(max s · min s),  loss(r) = mean( ( f(X; Q(W·s)/s) − f(X; W) )² )
//!
//! r runs over i/`points`, i = 0 … `points` − 1; the first smallest loss wins. r = 0 is rounding to nearest, so that the loss
//! that is chosen is never above its. Q rounds weights to the step's grid. f is the module that the scales can hurt: for
//! `attn_in` the attention up to and with `o`, for `mlp_in` the feed-forward part up to and with `down`, for `o_in` and
//! `down_in` the product itself. The other linears of the block are as they were in every search; X is what the
//! floating-point model computes: no error of earlier blocks is seen.
//!
//! Scales are folded as in SmoothQuant and change no function; what rounds is the `weights` step that follows, which should
//! have the same grid, and, for AWQ's second search, clip = "output". Where several query heads read one value head, `o_in`
//! is left out, as in the released code; the record says so.
//!
//! # Parameters
//! `bits` 2–8, `granularity` tensor, channel or group(n), `ragged`, `symmetric`, `convention`: the grid of Q, as in
//! `weights` · `points` of the exponent, default 20 · `samples` of the calibration set that are read, default 16 · `sites`
//! of attn_in, o_in, mlp_in, down_in; default all four.
//!
//! # Reference
//! AWQ, arXiv:2306.00978, equations 4 and 5; the grid of exponents, the mean of |X| without a term of the weights, the
//! normalisation, the modules of the losses and the rule for `o_in` as in its released code, which reads 128 × 512 tokens.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use models::architecture::Architecture;
use models::{Decoder, Group, Port, Site, Tap, kernel};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::quantize::grid::{Convention, Granularity, Grid};
use crate::quantize::solve::gptq::check_width;
use crate::quantize::steps::{Stage, smooth};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StepError, admissible, rounding};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Awq {
    /// Of the grid, 2 to 8.
    pub bits: u8,
    /// Who shares a scale of the grid. Default: `channel`.
    #[serde(default = "channel")]
    pub granularity: Granularity,
    /// Whether the last group may be short. Default: false.
    #[serde(default)]
    pub ragged: bool,
    /// Without a zero point. Default: true.
    #[serde(default = "yes")]
    pub symmetric: bool,
    /// Default: `absmax` where symmetric, `zero-in-range` where not.
    #[serde(default)]
    pub convention: Option<Convention>,
    /// Exponents to try. Default: 20.
    #[serde(default = "twenty")]
    pub points: usize,
    /// Calibration samples that the search reads. Default: 16.
    #[serde(default = "sixteen")]
    pub samples: usize,
    /// Sites to scale. Default: `attn_in`, `o_in`, `mlp_in` and `down_in`.
    #[serde(default = "all")]
    pub sites: Vec<String>,
}

fn channel() -> Granularity {
    Granularity::Channel
}
fn yes() -> bool {
    true
}
fn twenty() -> usize {
    20
}
fn sixteen() -> usize {
    16
}
fn all() -> Vec<String> {
    ALLOWED.map(|port| port.as_str().to_string()).to_vec()
}

const ALLOWED: [Port; 4] = [Port::AttnIn, Port::OIn, Port::MlpIn, Port::DownIn];

/// The smallest scale before normalisation.
const LEAST: f64 = 1e-4;

impl Awq {
    /// The same step with its convention written out.
    pub fn resolved(mut self) -> Self {
        self.convention = Some(self.convention.unwrap_or(admissible::default_convention(self.symmetric)));
        self
    }

    fn grid(&self) -> Grid {
        Grid::new(self.bits, self.convention.unwrap_or(admissible::default_convention(self.symmetric)))
    }
}

/// s(r) of channels with mean magnitudes `means`.
pub fn scales(means: &[f64], exponent: f64) -> Vec<f64> {
    let raw: Vec<f64> = means.iter().map(|a| a.powf(exponent).max(LEAST)).collect();
    let least = raw.iter().copied().fold(f64::INFINITY, f64::min);
    let most = raw.iter().copied().fold(0.0, f64::max);
    let middle = (least * most).sqrt();
    raw.into_iter().map(|s| s / middle).collect()
}

/// An exponent and its loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// r
    pub exponent: f64,
    /// Mean squared error of the module's output.
    pub loss: f64,
    /// The loss of rounding to nearest, r = 0.
    pub unscaled: f64,
}

/// Searches the exponent of one group.
///
/// # Shapes
/// `x` is `[sequences, tokens, channels]`; `output` makes the module's output of the linears' outputs.
pub fn search(
    x: &Tensor<3>,
    group: &Group,
    (grid, granularity): (Grid, Granularity),
    points: usize,
    output: &mut dyn FnMut(Vec<Tensor<3>>) -> Tensor<3>,
) -> (Best, Vec<f64>) {
    let [sequences, tokens, channels] = x.dims();
    let means = x.clone().reshape([sequences * tokens, channels]).abs().mean_dim(0).try_into_data();
    let means = means.expect("activations can be read").try_into_vec::<f32>().expect("activations are f32");
    let means: Vec<f64> = means.into_iter().map(f64::from).collect();
    let truth = output(group.forward(x.clone()));
    let values = truth.dims().iter().product::<usize>() as f64;
    let device = x.device();
    let mut best = Best { exponent: 0.0, loss: f64::MAX, unscaled: f64::MAX };
    for point in 0..points {
        let exponent = point as f64 / points as f64;
        let s: Vec<f32> = scales(&means, exponent).into_iter().map(|s| s as f32).collect();
        let s = Tensor::<1>::from_floats(s.as_slice(), &device).unsqueeze::<2>();
        let mut scaled = group.clone();
        for linear in &mut scaled.linears {
            let weight = linear.weight.clone() * s.clone();
            let rounded = kernel::change_in_place(weight, |values| {
                rounding::round_rows(values, channels, grid, granularity, 1.0);
            });
            linear.weight = rounded / s.clone();
        }
        let error = output(scaled.forward(x.clone())) - truth.clone();
        let loss = f64::from(error.square().sum().into_scalar::<f32>()) / values;
        if point == 0 && loss.is_finite() {
            best.unscaled = loss;
        }
        if loss < best.loss {
            (best.exponent, best.loss) = (exponent, loss);
        }
    }
    (best, scales(&means, best.exponent))
}

/// Searches at every site that the forward pass comes to.
struct Search<'a> {
    step: &'a Awq,
    /// The same decoder, for what comes behind a group.
    decoder: Decoder,
    found: BTreeMap<Site, (Best, Vec<f64>)>,
}

impl Search<'_> {
    /// Whether every channel of the site has a producer of its own.
    fn is_free(&self, site: Site) -> bool {
        let producers = self.decoder.sharing(site);
        producers.is_some_and(|producers| producers.iter().enumerate().all(|(c, &producer)| c == producer))
    }
}

impl Tap for Search<'_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let named = self.step.sites.iter().any(|name| name == site.port.as_str());
        if let (true, Some(layer)) = (named && site.expert.is_none() && self.is_free(site), site.layer) {
            let grid = (self.step.grid(), self.step.granularity);
            let decoder = &mut self.decoder;
            let mut output = |outputs: Vec<Tensor<3>>| {
                let between = decoder.between(site, outputs);
                let next = match site.port {
                    // Of a parallel block, attention and what down reads stand behind each other.
                    Port::AttnIn if decoder.blocks[layer].qkv.linears.len() == 3 => Port::OIn,
                    Port::MlpIn => Port::DownIn,
                    _ => return between,
                };
                let next = Site { port: next, ..site };
                match decoder.groups().iter().any(|(at, _)| *at == next) {
                    true => decoder.linears(next, between).swap_remove(0),
                    false => between,
                }
            };
            let best = search(&x, group, grid, self.step.points, &mut output);
            self.found.insert(site, best);
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

impl Awq {
    /// What the search reads.
    fn read(&self, model: &ModelInFlight) -> Result<Vec<Vec<u32>>, StepError> {
        smooth::first_samples(model, self.samples, "AWQ")
    }

    /// Refuses a model of whose sites it cannot round one.
    fn check_shapes(&self, architecture: &Architecture) -> Result<(), StepError> {
        admissible::sites_of_model(Some(&self.sites), architecture)?;
        let named = |site: &Site| self.sites.iter().any(|name| name == site.port.as_str());
        let groups = architecture.first_groups().into_iter().filter(|(site, _)| named(site));
        groups.into_iter().try_for_each(|(site, shapes)| {
            check_width(&site.to_string(), self.granularity, self.ragged, shapes[0][1])
        })
    }

    /// The search at every site, by the site's name.
    fn search_all(&self, model: &mut ModelInFlight) -> Result<Vec<(String, Found)>, StepError> {
        let mut search = Search { step: self, decoder: model.decoder.clone(), found: BTreeMap::new() };
        smooth::lead(model, &mut search, |model| self.read(model))?;
        let found = search.found.into_iter();
        Ok(found.map(|(site, (best, scales))| (site.to_string(), Found { best, scales })).collect())
    }
}

impl Method for Awq {
    fn stage(&self) -> Stage {
        Stage::Smooth
    }

    fn check(&self) -> Result<(), String> {
        smooth::check_sites(&self.sites, &ALLOWED)?;
        if !(2..=8).contains(&self.bits) {
            return Err(format!("`bits` must be 2 to 8, not {}", self.bits));
        }
        admissible::granularity(self.granularity, "tensor, channel or group(n)", |g| {
            g != Granularity::Token
        })?;
        admissible::convention(self.convention, self.symmetric)?;
        admissible::format(self.convention, self.bits, self.granularity)?;
        match (self.points, self.samples) {
            (0, _) => Err("`points` must be at least 1".into()),
            (_, 0) => Err("`samples` must be at least 1".into()),
            _ => Ok(()),
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
        self.check_shapes(facts.architecture)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        self.check_shapes(&model.decoder.architecture)?;
        let key = smooth::search_key(model, json!({ "awq": self }));
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
            entry["exponent"] = json!(best.exponent);
            entry["loss"] = json!(best.loss);
            entry["unscaled-loss"] = json!(best.unscaled);
            found.insert(site.to_string(), entry);
        }
        let attention = &model.decoder.architecture.attention;
        let is_shared = attention.heads != attention.kv_heads;
        let mut report = smooth::report(found);
        if is_shared && self.sites.iter().any(|site| site == Port::OIn.as_str()) {
            let why = "query heads share value heads: o_in is left out, as in AWQ's code";
            report.insert("left-out".into(), why.into());
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use models::Linear;
    use proptest::prelude::*;

    fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    proptest! {
        #[test]
        fn exponent_zero_is_one_and_scales_are_centred(means in prop::collection::vec(0.0f64..100.0, 1..30), r in 0.0f64..1.0) {
            prop_assert!(scales(&means, 0.0).iter().all(|&s| s == 1.0));
            let s = scales(&means, r);
            let (least, most) = s.iter().fold((f64::INFINITY, 0f64), |(l, m), &s| (l.min(s), m.max(s)));
            prop_assert!((least * most - 1.0).abs() < 1e-9);
            for (a, b) in means.iter().zip(&s).zip(means.iter().zip(&s).skip(1)) {
                prop_assert!((a.0 <= b.0) == (a.1 <= b.1) || a.1 == b.1, "scales follow activations");
            }
        }
    }

    #[test]
    fn the_search_protects_a_large_channel_and_its_losses_are_those_written_out() {
        let (tokens, channels, rows) = (40, 8, 6);
        let mut values: Vec<f32> =
            (0..tokens * channels).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        for row in values.chunks_mut(channels) {
            row[3] *= 30.0;
        }
        let weight: Vec<f32> = (0..rows * channels).map(|i| ((i * 53 % 97) as f32 - 48.0) / 200.0).collect();
        let group =
            Group { linears: vec![Linear::new("w".into(), tensor(weight.clone(), [rows, channels]), None)] };
        let grid = Grid::new(3, Convention::ZeroInRange);
        let x = tensor(values.clone(), [1, tokens, channels]);
        let first = |mut outputs: Vec<Tensor<3>>| outputs.swap_remove(0);
        let (best, s) = search(&x, &group, (grid, Granularity::Channel), 20, &mut { first });
        assert!(best.exponent > 0.0 && best.loss < 0.7 * best.unscaled, "{best:?}");
        assert!(s.iter().enumerate().all(|(c, &other)| c == 3 || other < s[3]), "{s:?}");

        // The same, written out in f64.
        let means: Vec<f64> = (0..channels)
            .map(|c| values.chunks(channels).map(|row| f64::from(row[c].abs())).sum::<f64>() / tokens as f64)
            .collect();
        let loss = |r: f64| {
            let s = scales(&means, r);
            let mut scaled: Vec<f32> =
                weight.iter().enumerate().map(|(i, &w)| w * s[i % channels] as f32).collect();
            rounding::round_rows(&mut scaled, channels, grid, Granularity::Channel, 1.0);
            let mut sum = 0.0;
            for token in values.chunks(channels) {
                for (row, original) in scaled.chunks(channels).zip(weight.chunks(channels)) {
                    let error: f64 = (0..channels)
                        .map(|c| f64::from(token[c]) * (f64::from(row[c]) / s[c] - f64::from(original[c])))
                        .sum();
                    sum += error * error;
                }
            }
            sum / (tokens * rows) as f64
        };
        assert!((loss(0.0) / best.unscaled - 1.0).abs() < 1e-3);
        assert!((loss(best.exponent) / best.loss - 1.0).abs() < 1e-3);
        for point in 0..20 {
            assert!(loss(f64::from(point) / 20.0) >= best.loss * (1.0 - 1e-3), "{point}");
        }
    }
}
