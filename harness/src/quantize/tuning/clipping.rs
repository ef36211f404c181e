//! Rounding a weight whose runs have learned ranges, and the gradient of it.
//!
//! A run is what shares a scale: a row, a group of a row, or the whole weight. With lo and hi the smallest and largest
//! value of a run, its scale is fitted to σ(β)·lo … σ(γ)·hi. Rounding counts as the identity in the gradient (straight
//! through), zero points as constants: with u = w/Δ and a code c = clamp(round(u) + z) − z,
//!
//! ∂ŵ/∂w = 1 and ∂ŵ/∂Δ = c − u within the range, ∂ŵ/∂w = 0 and ∂ŵ/∂Δ = c beyond it.
//!
//! Δ depends on γ and β, and on the two values at the ends of the run.

use std::sync::Arc;

use models::per_processor;
use rayon::prelude::*;

use crate::quantize::StepError;
use crate::quantize::grid::{Convention, Granularity, Grid, Scale};
use crate::quantize::rounding::{range, round_with};
use crate::quantize::solve::gptq;
use crate::quantize::solve::layout::{Layout, Share};

/// How the recipe's `weights` step rounds a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Host {
    /// The grid, of whole codes.
    pub grid: Grid,
    /// Who shares a scale.
    pub granularity: Granularity,
    /// Whether the last group may be short.
    pub ragged: bool,
    /// The step's own factor on the range, beside what is learned.
    pub clip: f32,
}

/// The runs of a weight `[out, in]`, and the grid of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Runs {
    host: Host,
    /// Values that are looked at together: a row, or the whole weight where one scale is for all of it.
    width: usize,
    /// Of the values of a row, in the order of the layout; what is kept apart is last.
    shares: Vec<Share>,
    /// The order of channels, where it is not their own.
    layout: Option<Arc<Layout>>,
}

impl Host {
    /// The runs of a linear's weight.
    ///
    /// # Errors
    /// A group width that does not divide the channels; one scale for a weight some of whose channels are kept apart.
    pub fn runs(
        &self,
        place: &str,
        [out, input]: [usize; 2],
        layout: Option<&Arc<Layout>>,
    ) -> Result<Runs, StepError> {
        let rest = layout.map_or(input, |layout| layout.rest());
        gptq::check_width(place, self.granularity, self.ragged, rest)?;
        let (width, shares) = match (self.granularity, layout) {
            (Granularity::Tensor, None) => {
                (out * input, vec![Share { from: 0, to: out * input, is_kept: false }])
            }
            (Granularity::Tensor, Some(_)) => {
                return Err(StepError::Host(format!(
                    "{place}: one scale for the whole weight beside channels that are kept apart cannot be trained: give \
                     `weights` granularity = \"channel\" or \"group(n)\""
                )));
            }
            (granularity, None) => (input, Layout::natural(input).shares(granularity)),
            (granularity, Some(layout)) => (input, layout.shares(granularity)),
        };
        Ok(Runs { host: *self, width, shares, layout: layout.cloned() })
    }
}

impl Runs {
    /// How many of a weight's runs have ends to learn, of so many values: all but what is kept apart.
    pub fn count(&self, values: usize) -> usize {
        values / self.width * self.learned()
    }

    /// The same of one row.
    fn learned(&self) -> usize {
        self.shares.iter().filter(|share| !share.is_kept).count()
    }

    /// The grid of a run and the factor on its range; none where it stays as it is.
    fn grid(&self, share: &Share) -> Option<(Grid, f32)> {
        match share.is_kept {
            false => Some((self.host.grid, self.host.clip)),
            true => self.layout.as_ref().and_then(|layout| layout.grid).map(|grid| (grid, 1.0)),
        }
    }

    /// A row's values in the layout's order, changed, and put back.
    fn in_order(&self, row: &mut [f32], change: impl FnOnce(&mut [f32])) {
        let Some(layout) = &self.layout else { return change(row) };
        let mut ordered: Vec<f32> = layout.order.iter().map(|&c| row[c]).collect();
        change(&mut ordered);
        layout.order.iter().zip(ordered).for_each(|(&c, x)| row[c] = x);
    }
}

/// Learned shares of the ranges of a weight: a logit per run and end.
#[derive(Clone, Debug, PartialEq)]
pub struct Clips {
    /// γ, of the largest value.
    pub high: Vec<f32>,
    /// β, of the smallest value.
    pub low: Vec<f32>,
}

/// Where a logit begins: σ(4) ≈ 0.982.
pub const START: f32 = 4.0;

impl Clips {
    /// Every logit at `logit`.
    pub fn all(runs: usize, logit: f32) -> Self {
        Self { high: vec![logit; runs], low: vec![logit; runs] }
    }

    /// σ(β) and σ(γ) of a run.
    fn shares(&self, run: usize) -> (f32, f32) {
        (sigmoid(self.low[run]), sigmoid(self.high[run]))
    }
}

/// 1 / (1 + e^−x)
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Values per parallel task.
const GRAIN: usize = 1 << 14;

/// Rounds every run in place. Without clips, or with shares of one, bit by bit what the `weights` step gives.
///
/// # Panics
/// If there are clips, and not one per run.
pub fn round(values: &mut [f32], runs: &Runs, clips: Option<&Clips>) {
    let learned = runs.learned();
    let rows = values.par_chunks_mut(runs.width).enumerate().with_min_len(GRAIN / runs.width + 1);
    rows.for_each(|(r, row)| {
        runs.in_order(row, |row| {
            for (k, share) in runs.shares.iter().enumerate() {
                let Some((grid, clip)) = runs.grid(share) else { continue };
                let run = &mut row[share.from..share.to];
                let (lo, hi) = range(run);
                let (low, high) = runs.ends(clips, share, r * learned + k);
                round_with(run, grid, grid.fit(lo * low, hi * high, clip));
            }
        });
    });
}

impl Runs {
    /// The shares of a run's ends.
    fn ends(&self, clips: Option<&Clips>, share: &Share, run: usize) -> (f32, f32) {
        clips.filter(|_| !share.is_kept).map_or((1.0, 1.0), |clips| clips.shares(run))
    }
}

/// The gradient of [`round`]: `upstream` holds that by the rounded values, and afterwards that by `values`; the gradient by
/// the logits is returned where there are clips.
///
/// # Panics
/// If the lengths differ, or there are clips, and not one per run.
pub fn backward(values: &[f32], upstream: &mut [f32], runs: &Runs, clips: Option<&Clips>) -> Option<Clips> {
    assert_eq!(values.len(), upstream.len(), "one gradient per value");
    let learned = runs.learned();
    let rows = values.par_chunks(runs.width).zip(upstream.par_chunks_mut(runs.width)).enumerate();
    let gradients: Vec<Vec<(f32, f32)>> = rows
        .with_min_len(GRAIN / runs.width + 1)
        .map(|(r, (values, upstream))| {
            let mut values = values.to_vec();
            let mut found = Vec::with_capacity(learned);
            runs.in_order(&mut values, |values| {
                runs.in_order(upstream, |upstream| {
                    for (k, share) in runs.shares.iter().enumerate() {
                        let Some((grid, clip)) = runs.grid(share) else { continue };
                        let (low, high) = runs.ends(clips, share, r * learned + k);
                        let at = share.from..share.to;
                        let (by_low, by_high) =
                            backward_run(&values[at.clone()], &mut upstream[at], (grid, clip), (low, high));
                        if !share.is_kept {
                            found.push((by_low * low * (1.0 - low), by_high * high * (1.0 - high)));
                        }
                    }
                });
            });
            found
        })
        .collect();
    clips.map(|_| {
        let (low, high) = gradients.into_iter().flatten().unzip();
        Clips { high, low }
    })
}

/// As [`backward`], of one run; the gradient by the two shares.
fn backward_run(
    values: &[f32],
    upstream: &mut [f32],
    (grid, clip): (Grid, f32),
    (low, high): (f32, f32),
) -> (f32, f32) {
    let (lo, hi) = range(values);
    let scale = grid.fit(lo * low, hi * high, clip);
    let by_delta = by_delta(values, upstream, scale, grid.codes());
    let (by_low, by_high) = slopes(grid, lo * low * clip, hi * high * clip, scale.delta);
    let (by_low, by_high) = (by_delta as f32 * by_low * clip, by_delta as f32 * by_high * clip);
    if let Some(at) = values.iter().position(|&w| w == lo) {
        upstream[at] += by_low * low;
    }
    if let Some(at) = values.iter().position(|&w| w == hi) {
        upstream[at] += by_high * high;
    }
    (by_low * lo, by_high * hi)
}

per_processor! {
    /// The gradient by Δ, and of `upstream` what passes: none beyond the range. Products are added one after another, so
    /// that the sum is the same on every processor.
    fn by_delta(values: &[f32], upstream: &mut [f32], scale: Scale, codes: (f32, f32)) -> f64 {
        const TOGETHER: usize = 64;
        let (least, most) = codes;
        let mut sum = 0f64;
        let mut products = [0f64; TOGETHER];
        for (values, upstream) in values.chunks(TOGETHER).zip(upstream.chunks_mut(TOGETHER)) {
            for ((&w, g), product) in values.iter().zip(upstream.iter_mut()).zip(&mut products) {
                let u = w / scale.delta;
                let code = u.round_ties_even() + scale.zero;
                let inside = code >= least && code <= most;
                let nearest = if code < least { least } else { code };
                let nearest = if nearest > most { most } else { nearest };
                let slope = nearest - scale.zero - if inside { u } else { 0.0 };
                *product = f64::from(*g) * f64::from(slope);
                *g = if inside { *g } else { 0.0 };
            }
            sum = products[..values.len()].iter().fold(sum, |sum, product| sum + product);
        }
        sum
    }
}

/// ∂Δ/∂lo and ∂Δ/∂hi where Δ was fitted to lo … hi: it is proportional to the largest magnitude, or to the distance of the
/// ends. Zero where a guard made Δ.
fn slopes(grid: Grid, lo: f32, hi: f32, delta: f32) -> (f32, f32) {
    const GUARD: f32 = 1e-5;
    if grid.convention().is_symmetric() {
        let most = lo.abs().max(hi.abs());
        let slope = if most > GUARD { delta / most } else { 0.0 };
        return if hi.abs() >= lo.abs() { (0.0, slope * hi.signum()) } else { (slope * lo.signum(), 0.0) };
    }
    let (lowest, highest) = match grid.convention() {
        Convention::ZeroInRange => (lo.min(0.0), hi.max(0.0)),
        _ => (lo, hi),
    };
    let distance = highest - lowest;
    let slope = if distance > GUARD { delta / distance } else { 0.0 };
    (if lowest == lo { -slope } else { 0.0 }, if highest == hi { slope } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::grid::CONVENTIONS;
    use crate::quantize::rounding::{host_rows, round_weight};
    use burn::tensor::Tensor;
    use burn::tensor::activation::sigmoid as smooth_sigmoid;

    const WIDTH: usize = 16;

    fn weights(rows: usize) -> Vec<f32> {
        let mut state = 3u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..rows * WIDTH).map(|_| next() + next() * next()).collect()
    }

    fn host(convention: Convention) -> Host {
        let granularity = Granularity::Group(WIDTH);
        Host { grid: Grid::new(3, convention), granularity, ragged: false, clip: 0.95 }
    }

    /// Rows of one run.
    fn runs(host: &Host, rows: usize) -> Runs {
        host.runs("w", [rows, WIDTH], None).unwrap()
    }

    fn vec<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
        x.to_data().try_to_vec().unwrap()
    }

    #[test]
    fn shares_of_one_round_as_the_host_does_bit_by_bit() {
        for convention in CONVENTIONS {
            let host = host(convention);
            let expected =
                round_weight("w", host_rows(weights(9), WIDTH), host.grid, host.granularity, host.clip);
            for clips in [None, Some(Clips::all(9, f32::INFINITY))] {
                let mut found = weights(9);
                round(&mut found, &runs(&host, 9), clips.as_ref());
                assert_eq!(found, vec(expected.as_ref().unwrap()), "{}", convention.name());
            }
        }
    }

    /// The same formula as tensor operations, differentiated by Burn: x + (round(x) − x) with the second part detached.
    fn by_autodiff(host: &Host, values: &[f32], upstream: &[f32], clips: &Clips) -> [Vec<f32>; 3] {
        let rows = values.len() / WIDTH;
        let leaf = |values: &[f32], width: usize| host_rows(values.to_vec(), width).autodiff().require_grad();
        let (w, beta, gamma) = (leaf(values, WIDTH), leaf(&clips.low, 1), leaf(&clips.high, 1));
        let lo = w.clone().min_dim(1) * smooth_sigmoid(beta.clone()) * host.clip;
        let hi = w.clone().max_dim(1) * smooth_sigmoid(gamma.clone()) * host.clip;
        let (q, n) = ((1 << (host.grid.bits() - 1)) as f32 - 1.0, (1 << host.grid.bits()) as f32 - 1.0);
        let m = lo.clone().abs().max_pair(hi.clone().abs());
        let (delta, zero) = match host.grid.convention() {
            Convention::FullRange => (m * 2.0 / n, None),
            c if c.is_symmetric() => (m / q, None),
            Convention::ZeroInRange => {
                let (lo, hi) = (lo.clamp_max(0.0), hi.clamp_min(0.0));
                let delta = (hi - lo.clone()) / n;
                (delta.clone(), Some((-lo / delta).detach().round()))
            }
            c => {
                let delta = (hi - lo.clone()) / n;
                let zero = (-lo / delta.clone()).detach().round();
                (delta, Some(if c == Convention::Awq { zero.clamp(0.0, n) } else { zero }))
            }
        };
        let u = w.clone() / delta.clone();
        let code = u.clone() + (u.clone().round() - u).detach();
        let (least, most) = host.grid.codes();
        let rounded = match zero {
            None => code.clamp(least, most) * delta,
            Some(zero) => ((code + zero.clone()).clamp(least, most) - zero) * delta,
        };
        let mut expected = values.to_vec();
        round(&mut expected, &runs(host, rows), Some(clips));
        let off = vec(&rounded).iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off < 1e-5, "the forward pass differs by {off}");
        let loss = (rounded * host_rows(upstream.to_vec(), WIDTH)).sum();
        let mut gradients = loss.backward();
        let mut of = |x: &Tensor<2>, count: usize| match x.grad_remove(&mut gradients) {
            Some(g) => vec(&g),
            None => vec![0.0; count],
        };
        [of(&w, rows * WIDTH), of(&beta, rows), of(&gamma, rows)]
    }

    #[test]
    fn the_gradient_is_that_of_the_same_formula_under_autodiff() {
        let values = weights(24);
        let upstream: Vec<f32> = (0..values.len()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let clips = Clips {
            high: (0..24).map(|i| 4.0 - i as f32 * 0.2).collect(),
            low: (0..24).map(|i| 1.0 + i as f32 * 0.1).collect(),
        };
        for convention in CONVENTIONS {
            let host = host(convention);
            let mut by_weights = upstream.clone();
            let found = backward(&values, &mut by_weights, &runs(&host, 24), Some(&clips)).unwrap();
            let [w, low, high] = by_autodiff(&host, &values, &upstream, &clips);
            for (what, found, expected) in
                [("weights", &by_weights, &w), ("low", &found.low, &low), ("high", &found.high, &high)]
            {
                let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
                for (i, (a, b)) in found.iter().zip(expected).enumerate() {
                    assert!((a - b).abs() <= 2e-4 * largest, "{} {what} {i}: {a} {b}", convention.name());
                }
            }
            let moved = |x: &[f32]| x.iter().filter(|g| g.abs() > 1e-3).count();
            assert!(moved(&found.high) + moved(&found.low) >= 20, "{}", convention.name());
        }
    }

    #[test]
    fn runs_of_zeros_stay_zero_and_have_no_gradient() {
        for convention in CONVENTIONS {
            let host = host(convention);
            let mut zeros = vec![0.0; WIDTH];
            let clips = Clips::all(1, START);
            round(&mut zeros, &runs(&host, 1), Some(&clips));
            assert_eq!(zeros, vec![0.0; WIDTH]);
            let mut upstream = vec![1.0; WIDTH];
            let found = backward(&zeros, &mut upstream, &runs(&host, 1), Some(&clips)).unwrap();
            assert!(found.high[0] == 0.0 && found.low[0] == 0.0 && upstream.iter().all(|g| g.is_finite()));
        }
    }

    /// Channels in an order of their own, some kept apart, groups that do not divide the rest: each run is a weight of its
    /// own.
    #[test]
    fn runs_follow_the_order_of_channels() {
        let importance: Vec<f64> = (0..WIDTH).map(|c| (c * 7 % 11) as f64).collect();
        for bits in [8, 16] {
            let layout = Arc::new(Layout::by_importance(&importance, 3, bits));
            let host = Host { granularity: Granularity::Group(5), ragged: true, ..host(Convention::Absmax) };
            let rows = 6;
            let ordered = host.runs("w", [rows, WIDTH], Some(&layout)).unwrap();
            // 13 channels in groups of 5: three runs with ends to learn.
            assert_eq!(ordered.count(rows * WIDTH), 3 * rows);
            let clips = Clips {
                high: (0..3 * rows).map(|i| 2.0 - i as f32 * 0.2).collect(),
                low: (0..3 * rows).map(|i| 1.0 + i as f32 * 0.1).collect(),
            };
            let (values, upstream) = (weights(rows), weights(rows + 1)[WIDTH..].to_vec());
            let mut found = values.clone();
            round(&mut found, &ordered, Some(&clips));
            let mut by_weights = upstream.clone();
            let gradient = backward(&values, &mut by_weights, &ordered, Some(&clips)).unwrap();
            for r in 0..rows {
                for (k, (from, to)) in [(0, 5), (5, 10), (10, 13), (13, 16)].into_iter().enumerate() {
                    let of = |x: &[f32]| -> Vec<f32> {
                        layout.order[from..to].iter().map(|&c| x[r * WIDTH + c]).collect()
                    };
                    let (mut run, mut by_run) = (of(&values), of(&upstream));
                    if k == 3 {
                        let kept = Host { granularity: Granularity::Channel, clip: 1.0, ..host };
                        let alone = layout.grid.map(|grid| Host { grid, ..kept });
                        if let Some(alone) = alone {
                            let alone = alone.runs("w", [1, 3], None).unwrap();
                            backward(&run.clone(), &mut by_run, &alone, None);
                            round(&mut run, &alone, None);
                        }
                        assert_eq!((of(&found), of(&by_weights)), (run, by_run));
                        continue;
                    }
                    let alone = Host { granularity: Granularity::Channel, ..host };
                    let alone = alone.runs("w", [1, to - from], None).unwrap();
                    let i = 3 * r + k;
                    let ends = Clips { high: vec![clips.high[i]], low: vec![clips.low[i]] };
                    let expected = backward(&run.clone(), &mut by_run, &alone, Some(&ends)).unwrap();
                    round(&mut run, &alone, Some(&ends));
                    assert_eq!((of(&found), of(&by_weights)), (run, by_run));
                    assert_eq!((gradient.high[i], gradient.low[i]), (expected.high[0], expected.low[0]));
                }
            }
        }
    }
}
