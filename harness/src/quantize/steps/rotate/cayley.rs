//! `rotate` by `cayley`: rotations fitted to calibration activations, by gradient descent on the orthogonal matrices.
//!
//! # Equation
//! `rotate` by `hadamard` comes first; then R of the residual stream, and one R per block for the values, descend on the
//! mean kurtosis of what the linears read. With unit rows x_t of n calibration tokens in d channels, Y = X·R:
//!
//! L(R) = (d / n)·Σ_{t,c} Y_{t,c}⁴,  G = ∂L/∂R = Xᵀ·(4d/n · Y³)
//!
//! A = G·Rᵀ − R·Gᵀ,  R ← (I + τ/2·A)⁻¹·(I − τ/2·A)·R,  τ = min( rate·½(1 + cos(π·k/steps)), 1/‖A‖₁ )
//!
//! in step k of `steps`; the inverse is solved by five fixed-point iterations Z ← R − τ/2·A·(R + Z), and R made orthonormal
//! again in f64 every tenth step. L is 1 where all of a token's channels are equally large and d where one channel has
//! everything: a token whose largest value is small has a fine grid. X are the inputs of q/k/v and of gate/up in all
//! blocks, their norms folded, for R of the residual stream, and the inputs of o, head by head, for the values. The best R
//! seen is kept. What runs online stays a Hadamard transform.
//!
//! # Parameters
//! `sites` of residual, v, down_in, qk; default residual, v, down_in · `steps` default 100 · `rate` default 1.5 ·
//! `samples` of the calibration set, its first so many, default 4 · `rows` tokens taken of them for each R, evenly over
//! sites, default 4096 · `fallback` as in the other methods.
//!
//! # Reference
//! Cayley descent as in SpinQuant (arXiv:2405.16406; retraction of arXiv:2002.01113; rate, cosine and fixed-point
//! iterations as read in notes on its code), which descends on the quantized model's cross-entropy through the whole
//! model. The kurtosis in its place, layer by layer and with a gradient in closed form, is a surrogate as in KurTail
//! (arXiv:2503.01483, from memory); the exact form and its settings are own.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use models::{Fallback, Group, Hadamard as Matrix, Port, Site, Tap, hadamard, token_tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::quantize::steps::rotate::hadamard::Hadamard;
use crate::quantize::steps::{Stage, rotate};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StepError};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cayley {
    /// What to rotate. Default: `residual`, `v` and `down_in`.
    #[serde(default = "default_sites")]
    pub sites: Vec<String>,
    /// Steps of the descent. Default: 100.
    #[serde(default = "hundred")]
    pub steps: usize,
    /// Largest step. Default: 1.5.
    #[serde(default = "published_rate")]
    pub rate: f64,
    /// Calibration samples that are read. Default: 4.
    #[serde(default = "four")]
    pub samples: usize,
    /// Tokens of them, over all sites of one matrix. Default: 4096.
    #[serde(default = "four_thousand")]
    pub rows: usize,
    /// What stands in where there is no Hadamard matrix. Default: `block-diagonal`.
    #[serde(default)]
    pub fallback: Fallback,
}

fn default_sites() -> Vec<String> {
    ["residual", "v", "down_in"].map(String::from).to_vec()
}
fn hundred() -> usize {
    100
}
fn published_rate() -> f64 {
    1.5
}
fn four() -> usize {
    4
}
fn four_thousand() -> usize {
    4096
}

/// Steps after which the matrix is made orthonormal again.
const REFRESH: usize = 10;

impl Cayley {
    /// The same step with its sites in order.
    pub fn resolved(mut self) -> Self {
        self.sites = rotate::ordered(&self.sites);
        self
    }

    fn begin(&self) -> Hadamard {
        Hadamard { sites: self.sites.clone(), random_signs: true, fallback: self.fallback, draw: 0 }
    }
}

/// A descent's matrix, `[d, d]` row by row, and its objective before and after.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// Orthogonal.
    pub matrix: Vec<f64>,
    /// Mean kurtosis under the identity.
    pub before: f64,
    /// Under the matrix.
    pub after: f64,
}

/// Descends from the identity; `None` where `progress` says to stop.
///
/// # Shapes
/// `x` is `[rows, d]`; `channels / d` neighbouring rows are one token, whose squares sum to one.
pub fn descend(
    x: &Tensor<2>,
    channels: usize,
    steps: usize,
    rate: f64,
    progress: &mut dyn FnMut() -> bool,
) -> Option<Fitted> {
    let [rows, order] = x.dims();
    let device = x.device();
    let tokens = rows * order / channels;
    let weight = channels as f64 / tokens as f64;
    let square = |values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        Tensor::<2>::from_data(TensorData::new(values, [order, order]), &device)
    };
    let mut identity = vec![0.0; order * order];
    identity.iter_mut().step_by(order + 1).for_each(|one| *one = 1.0);
    let mut r = square(&identity);
    let (mut before, mut best) = (None, None::<(f64, Vec<f64>)>);
    for step in 0..=steps {
        if !progress() {
            return None;
        }
        if step > 0 && (step % REFRESH == 0 || step == steps) {
            let mut exact = wide(&r);
            hadamard::orthonormalise(&mut exact, order);
            r = square(&exact);
        }
        let y = x.clone().matmul(r.clone());
        let cubes = y.clone().square() * y.clone();
        let loss = weight * f64::from((cubes.clone() * y).sum().into_scalar::<f32>());
        before.get_or_insert(loss);
        if best.as_ref().is_none_or(|(least, _)| loss < *least) {
            best = Some((loss, wide(&r)));
        }
        let gradient = x.clone().transpose().matmul(cubes) * (4.0 * weight);
        let half = gradient.matmul(r.clone().transpose());
        let a = half.clone() - half.transpose();
        let norm = f64::from(a.clone().abs().sum_dim(0).max().into_scalar::<f32>());
        let share = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
        let t = (rate * share).min(1.0 / (norm + 1e-8));
        let mut z = r.clone();
        for _ in 0..5 {
            z = r.clone() - a.clone().matmul(r.clone() + z) * (0.5 * t);
        }
        r = z;
    }
    let (after, mut matrix) = best.expect("a loss was computed");
    hadamard::orthonormalise(&mut matrix, order);
    Some(Fitted { matrix, before: before.expect("a loss was computed"), after })
}

fn wide(x: &Tensor<2>) -> Vec<f64> {
    let values: Vec<f32> = x.to_data().try_to_vec().expect("matrices are f32");
    values.into_iter().map(f64::from).collect()
}

/// Keeps every so many tokens of what linears read, each at unit length.
struct Rows {
    /// At the sites that the residual stream's matrix turns.
    every: usize,
    /// At a block's `o_in`, which its values' matrix turns alone.
    every_value: usize,
    seen: BTreeMap<Site, Vec<f32>>,
}

impl Tap for Rows {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        if matches!(site.port, Port::AttnIn | Port::MlpIn | Port::OIn) {
            let channels = x.dims()[2];
            let values: Vec<f32> = x.to_data().try_to_vec().expect("activations are f32");
            let kept = self.seen.entry(site).or_default();
            let every = if site.port == Port::OIn { self.every_value } else { self.every };
            for row in values.chunks_exact(channels).step_by(every) {
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                // A token of zeros has no shape.
                if norm > 0.0 {
                    kept.extend(row.iter().map(|x| x / norm));
                }
            }
        }
        group.forward(x)
    }
}

impl Cayley {
    /// What the linears of a rotated model read.
    fn rows(&self, model: &mut ModelInFlight) -> Result<BTreeMap<Site, Vec<f32>>, StepError> {
        let start = model.calibrator.start();
        let all = model.calibrator.samples();
        if all.len() < self.samples {
            return Err(StepError::TooLittle(format!(
                "rotations are fitted on {} samples and the calibration set has {} samples: lower the step's `samples`, \
                 or raise the set's",
                self.samples,
                all.len()
            )));
        }
        let fed =
            |sample: &Vec<u32>| sample[usize::from(model.decoder.stands_for_first(start, sample))..].to_vec();
        let samples: Vec<Vec<u32>> = all[..self.samples].iter().map(fed).collect();
        let tokens: usize = samples.iter().map(Vec::len).sum();
        let sites = 2 * model.decoder.architecture.layers;
        let every = |sites: usize| (tokens * sites).div_ceil(self.rows).max(1);
        let mut rows = Rows { every: every(sites), every_value: every(1), seen: BTreeMap::new() };
        let device = model.decoder.device();
        for sample in &samples {
            model.decoder.hidden(token_tensor(&[sample], &device), &mut rows);
        }
        Ok(rows.seen)
    }
}

/// Fits one matrix; what is reported of it.
fn fit(
    rows: Vec<f32>,
    order: usize,
    channels: usize,
    step: &Cayley,
    device: &Device,
    progress: &mut dyn FnMut() -> bool,
) -> Result<(Matrix, Value), StepError> {
    let count = rows.len() / order;
    let x = Tensor::from_data(TensorData::new(rows, [count, order]), device);
    let fitted = descend(&x, channels, step.steps, step.rate, progress).ok_or(StepError::Interrupted)?;
    let report =
        json!({ "before": fitted.before, "after": fitted.after, "tokens": count * order / channels });
    Ok((Matrix::given(order, fitted.matrix), report))
}

impl Method for Cayley {
    fn stage(&self) -> Stage {
        Stage::Rotate
    }

    fn check(&self) -> Result<(), String> {
        rotate::check_sites(&self.sites)?;
        if rotate::has(&self.sites, "o_in") {
            return Err(
                "`sites` names `o_in`, which turns values across heads and cannot be fitted here: use `v`"
                    .into(),
            );
        }
        if !["residual", "v"].iter().any(|site| rotate::has(&self.sites, site)) {
            return Err("`sites` names nothing that is fitted: add `residual` or `v`".into());
        }
        match (self.steps, self.samples, self.rows) {
            (0, ..) => Err("`steps` must be at least 1".into()),
            (_, 0, _) => Err("`samples` must be at least 1".into()),
            (.., 0) => Err("`rows` must be at least 1".into()),
            _ if self.rate > 0.0 && self.rate.is_finite() => Ok(()),
            _ => Err(format!("`rate` must be above 0, not {}", self.rate)),
        }
    }

    fn claims(&self) -> Vec<String> {
        rotate::claims(&self.sites)
    }

    fn needs_calibration(&self) -> bool {
        true
    }

    fn uses_randomness(&self) -> bool {
        true
    }

    fn preserves_function(&self) -> bool {
        true
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        rotate::check_model(&self.sites, facts)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        Some("it optimises through the whole model")
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let mut report = self.begin().act(model)?;
        let mut seen = self.rows(model)?;
        let device = model.decoder.device();
        let a = model.decoder.architecture.clone();
        let (heads, head_dim) = (a.attention.heads, a.attention.head_dim);
        let values = if rotate::has(&self.sites, "v") { a.layers } else { 0 };
        let matrices = values + usize::from(rotate::has(&self.sites, "residual"));
        let (mut done, total) = (0, matrices * (self.steps + 1));
        let calibrator = &mut *model.calibrator;
        let mut progress = || {
            done += 1;
            calibrator.progress(done, total)
        };
        let mut kurtosis = Map::new();
        if rotate::has(&self.sites, "residual") {
            let of_stream = |(site, _): &(&Site, &Vec<f32>)| site.port != Port::OIn;
            let rows = seen.iter().filter(of_stream).flat_map(|(_, rows)| rows.iter().copied()).collect();
            let (matrix, found) = fit(rows, a.hidden, a.hidden, self, &device, &mut progress)?;
            model.decoder.rotate_residual(&matrix)?;
            kurtosis.insert("residual".into(), found);
        }
        for layer in 0..values {
            let rows = seen.remove(&Site::block(layer, Port::OIn)).unwrap_or_default();
            let (matrix, found) = fit(rows, head_dim, heads * head_dim, self, &device, &mut progress)?;
            model.decoder.rotate_values(layer, &matrix)?;
            kurtosis.insert(format!("layers.{layer}.v"), found);
        }
        report.insert("kurtosis".into(), kurtosis.into());
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of unit length whose energy lies along a few directions that are not axes.
    fn rows(count: usize, order: usize, turned: &Matrix) -> Vec<f32> {
        let mut values: Vec<f64> =
            (0..count * order).map(|i| ((i * i * 13 + i * 37) % 101) as f64 / 50.0 - 1.0).collect();
        for (t, row) in values.chunks_mut(order).enumerate() {
            row[t % 3] *= 40.0;
        }
        turned.apply(&mut values);
        for row in values.chunks_mut(order) {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
        values.into_iter().map(|x| x as f32).collect()
    }

    #[test]
    fn the_descent_stays_orthogonal_and_lowers_the_kurtosis() {
        let device = Device::flex();
        // Outliers in three channels, behind a rotation that has not made them flat.
        for (order, channels) in [(16, 16), (16, 32)] {
            for start in [Matrix::random(16, 3), Matrix::random(16, 4)] {
                let x = Tensor::from_data(TensorData::new(rows(96, order, &start), [96, order]), &device);
                let x = x * (order as f64 / channels as f64).sqrt();
                let fitted = descend(&x, channels, 80, 1.5, &mut || true).unwrap();
                assert!(fitted.after < 0.9 * fitted.before, "{} to {}", fitted.before, fitted.after);
                let matrix = Matrix::given(order, fitted.matrix.clone());
                let mut product = fitted.matrix.clone();
                matrix.apply_transposed(&mut product);
                for (at, x) in product.iter().enumerate() {
                    let expected = f64::from(u8::from(at / order == at % order));
                    assert!((x - expected).abs() < 1e-12, "{at}: {x}");
                }
            }
        }
        let x = Tensor::from_data(TensorData::new(vec![0.5f32; 16], [4, 4]), &device);
        assert!(descend(&x, 4, 10, 1.0, &mut || false).is_none());
    }

    #[test]
    fn the_gradient_is_that_of_the_objective() {
        // One tiny step changes the objective by −τ/2·‖A‖² to first order: dR = −τ·A·R, dL = ⟨G, dR⟩.
        let device = Device::flex();
        let order = 8;
        let start = Matrix::random(order, 1);
        let values = rows(24, order, &start);
        let objective = |r: &[f64]| -> f64 {
            let y =
                |row: &[f32], c: usize| (0..order).map(|k| f64::from(row[k]) * r[k * order + c]).sum::<f64>();
            let sum: f64 =
                values.chunks(order).flat_map(|row| (0..order).map(move |c| y(row, c).powi(4))).sum();
            order as f64 / 24.0 * sum
        };
        let identity: Vec<f64> =
            (0..order * order).map(|at| f64::from(u8::from(at / order == at % order))).collect();
        let mut gradient = vec![0.0; order * order];
        for at in 0..order * order {
            let (mut up, mut down) = (identity.clone(), identity.clone());
            (up[at], down[at]) = (up[at] + 1e-5, down[at] - 1e-5);
            gradient[at] = (objective(&up) - objective(&down)) / 2e-5;
        }
        let skew = |i: usize, j: usize| gradient[i * order + j] - gradient[j * order + i];
        let squares: f64 = (0..order * order).map(|at| skew(at / order, at % order).powi(2)).sum();
        let rate = 1e-3;
        let x = Tensor::from_data(TensorData::new(values.clone(), [24, order]), &device);
        // A single step at the full rate, then one at rate zero that changes nothing.
        let fitted = descend(&x, order, 1, rate, &mut || true).unwrap();
        let (found, expected) = (fitted.before - fitted.after, 0.5 * rate * squares);
        assert!((found / expected - 1.0).abs() < 0.05, "{found:e}, expected {expected:e}");
    }
}
