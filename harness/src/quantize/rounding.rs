//! Rounding weights and activations to a grid.
//!
//! Weights are rounded on the host, so that a recipe gives the same weights on every device. Activations are rounded
//! where they live: in one pass over host memory, or with tensor operations elsewhere; a test holds the two together.

use burn::tensor::{Device, Tensor, TensorData};
use models::kernel::{change_in_place, on_host};
use models::per_processor;
use rayon::prelude::*;

use crate::quantize::StepError;
use crate::quantize::fake_quant::{ActivationRule, ScaleSource};
use crate::quantize::grid::{Convention, Granularity, Grid, Scale};
#[cfg(feature = "cube")]
use crate::quantize::kernels;

/// Values per parallel task.
const GRAIN: usize = 1 << 14;

per_processor! {
    /// Smallest and largest value; (0, 0) for an empty slice. NaN is skipped here and comes out of the rounding.
    pub fn range(values: &[f32]) -> (f32, f32) {
        const LANES: usize = 16;
        let mut lo = [f32::INFINITY; LANES];
        let mut hi = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lo[i] = if chunk[i] < lo[i] { chunk[i] } else { lo[i] };
                hi[i] = if chunk[i] > hi[i] { chunk[i] } else { hi[i] };
            }
        }
        for (i, &x) in rest.iter().enumerate() {
            lo[i] = if x < lo[i] { x } else { lo[i] };
            hi[i] = if x > hi[i] { x } else { hi[i] };
        }
        let lo = lo.into_iter().fold(f32::INFINITY, f32::min);
        let hi = hi.into_iter().fold(f32::NEG_INFINITY, f32::max);
        if lo > hi { (0.0, 0.0) } else { (lo, hi) }
    }
}

per_processor! {
    /// Rounds values in place with a given scale: x̂ = Δ · (clamp(round(x/Δ) + z, lo, hi) − z).
    pub fn round_with(values: &mut [f32], grid: Grid, scale: Scale) {
        let (lo, hi) = grid.codes();
        let Scale { delta, zero } = scale;
        if let Some((float, _)) = grid.convention().float() {
            for x in values {
                *x = float.round(*x / delta) * delta;
            }
            return;
        }
        for x in values {
            let code = (*x / delta).round_ties_even() + zero;
            // Written so that NaN survives: a broken model must show, not be clamped away.
            let code = if code < lo { lo } else { code };
            let code = if code > hi { hi } else { code };
            *x = (code - zero) * delta;
        }
    }
}

/// Fits one scale to values and rounds them in place.
pub fn round_slice(values: &mut [f32], grid: Grid, clip: f32) -> Scale {
    let (lo, hi) = range(values);
    let scale = grid.fit(lo, hi, clip);
    round_with(values, grid, scale);
    scale
}

/// As [`round_slice`], in parallel.
fn round_slice_parallel(values: &mut [f32], grid: Grid, clip: f32) {
    let (lo, hi) = values
        .par_chunks(GRAIN)
        .map(range)
        .reduce(|| (f32::INFINITY, f32::NEG_INFINITY), |a, b| (a.0.min(b.0), a.1.max(b.1)));
    let scale = grid.fit(lo, hi, clip);
    values.par_chunks_mut(GRAIN).for_each(|chunk| round_with(chunk, grid, scale));
}

/// Rounds every run of `width` values with its own scale, in parallel.
fn round_runs(values: &mut [f32], width: usize, grid: Grid, clip: f32) {
    values.par_chunks_mut(width).with_min_len(GRAIN / width + 1).for_each(|run| {
        round_slice(run, grid, clip);
    });
}

/// Rounds a weight `[out, in]` and returns it.
///
/// # Errors
/// A group width that does not divide `in`.
pub fn round_weight(
    name: &str,
    weight: Tensor<2>,
    grid: Grid,
    granularity: Granularity,
    clip: f32,
) -> Result<Tensor<2>, StepError> {
    let [_, input] = weight.dims();
    if let Granularity::Group(n) = granularity {
        StepError::check_group(name, n, input)?;
    }
    Ok(change_in_place(weight, |values| round_rows(values, input, grid, granularity, clip)))
}

/// Rounds rows of `width` values in place. Where groups do not divide the width, the last of each row is short.
pub fn round_rows(values: &mut [f32], width: usize, grid: Grid, granularity: Granularity, clip: f32) {
    let grid = of_tensor(grid, values);
    match granularity {
        Granularity::Tensor => round_slice_parallel(values, grid, clip),
        Granularity::Channel | Granularity::Token => round_runs(values, width, grid, clip),
        Granularity::Group(n) if width.is_multiple_of(n) => round_runs(values, n, grid, clip),
        Granularity::Group(n) => {
            values.par_chunks_mut(width).for_each(|row| {
                row.chunks_mut(n).for_each(|group| {
                    round_slice(group, grid, clip);
                });
            });
        }
    }
}

/// The grid for a tensor of these values.
pub fn of_tensor(grid: Grid, values: &[f32]) -> Grid {
    if !grid.looks_at_tensor() {
        return grid;
    }
    let largest = |chunk: &[f32]| {
        let (lo, hi) = range(chunk);
        hi.max(-lo)
    };
    grid.within(values.par_chunks(GRAIN).map(largest).reduce(|| 0.0, f32::max))
}

/// Rounds an activation `[sequences, tokens, channels]`.
///
/// Where groups do not divide the channels, the last of each token is short.
pub fn round_activation(x: Tensor<3>, rule: &ActivationRule) -> Tensor<3> {
    let [sequences, tokens, channels] = x.dims();
    let width = match rule.granularity {
        Granularity::Tensor => tokens * channels,
        Granularity::Token | Granularity::Channel => channels,
        Granularity::Group(n) => n,
    };
    if let ScaleSource::Static(scale) = rule.scale {
        return round_with_static(x, rule.grid, scale);
    }
    let is_ragged = matches!(rule.granularity, Granularity::Group(n) if !channels.is_multiple_of(n));
    // The steps of a float's binades are no tensor operation.
    if on_host(&x.device()) || is_ragged || rule.grid.convention().float().is_some() {
        let by_sequence = is_ragged || rule.granularity == Granularity::Tensor || rule.grid.looks_at_tensor();
        return change_in_place(x, |values| {
            if by_sequence {
                for sequence in values.chunks_mut(tokens * channels) {
                    round_rows(sequence, channels, rule.grid, rule.granularity, rule.clip);
                }
            } else {
                round_runs(values, width, rule.grid, rule.clip);
            }
        });
    }
    let runs = sequences * tokens * channels / width;
    let x = x.reshape([runs, width]);
    #[cfg(feature = "cube")]
    if let Some(rounded) = kernels::round::runs(&x, rule.grid, rule.clip) {
        return rounded.reshape([sequences, tokens, channels]);
    }
    round_on_device(x, rule.grid, rule.clip).reshape([sequences, tokens, channels])
}

/// Rounds every value of `[sequences, tokens, channels]` with one given scale.
pub fn round_with_static(x: Tensor<3>, grid: Grid, scale: Scale) -> Tensor<3> {
    if on_host(&x.device()) || grid.convention().float().is_some() {
        return change_in_place(x, |values| {
            values.par_chunks_mut(GRAIN).for_each(|chunk| round_with(chunk, grid, scale));
        });
    }
    #[cfg(feature = "cube")]
    if let Some(rounded) = kernels::round::with_one_scale(&x, grid, scale) {
        return rounded;
    }
    with_static_on_device(x, grid, scale)
}

/// As [`round_with_static`], by tensor operations.
pub fn with_static_on_device(x: Tensor<3>, grid: Grid, scale: Scale) -> Tensor<3> {
    let (lo, hi) = grid.codes();
    let code = (x / scale.delta).round() + scale.zero;
    (code.clamp(lo, hi) - scale.zero) * scale.delta
}

/// Rounds every row of `[runs, width]` with its own scale, by tensor operations.
///
/// # Panics
/// On a grid of floats.
pub fn round_on_device(x: Tensor<2>, grid: Grid, clip: f32) -> Tensor<2> {
    let (low, high) = grid.codes();
    let (q, n) = (((1u32 << (grid.bits() - 1)) - 1) as f32, ((1u32 << grid.bits()) - 1) as f32);
    let lo = x.clone().min_dim(1) * clip;
    let hi = x.clone().max_dim(1) * clip;
    let m = lo.clone().abs().max_pair(hi.clone().abs());
    let guarded = |delta: Tensor<2>| {
        let tiny = delta.clone().lower_elem(f32::MIN_POSITIVE);
        delta.mask_fill(tiny, 1.0)
    };
    let (delta, zero) = match grid.convention() {
        Convention::Absmax | Convention::AbsmaxFull => (guarded(m / q), None),
        Convention::Smoothquant | Convention::Atom => (m.clamp_min(1e-5) / q, None),
        Convention::FullRange => (guarded(m * 2.0 / n), None),
        Convention::ZeroInRange => {
            let lo = lo.clamp_max(0.0);
            let hi = hi.clamp_min(0.0);
            let empty = (hi.clone() - lo.clone()).equal_elem(0.0);
            let lo = lo.mask_fill(empty.clone(), -1.0);
            let hi = hi.mask_fill(empty, 1.0);
            let delta = guarded((hi - lo.clone()) / n);
            (delta.clone(), Some((lo.neg() / delta).round()))
        }
        Convention::Awq => {
            let delta = (hi - lo.clone()).clamp_min(1e-5) / n;
            (delta.clone(), Some((lo.neg() / delta).round().clamp(0.0, n)))
        }
        Convention::AtomAsymmetric => {
            let delta = (hi - lo.clone()).clamp_min(1e-5) / n;
            (delta.clone(), Some((lo.neg() / delta).round()))
        }
        Convention::Omniquant => {
            let delta = ((hi - lo.clone()) / n).clamp(1e-5, 1e4);
            (delta.clone(), Some((lo.neg() / delta).round().clamp(-1e4, 1e4)))
        }
        Convention::Fp8E4m3 | Convention::Mxfp4 | Convention::Nvfp4 => {
            unreachable!("floats are rounded on the host")
        }
    };
    let code = (x / delta.clone()).round();
    match zero {
        None => code.clamp(low, high) * delta,
        Some(zero) => ((code + zero.clone()).clamp(low, high) - zero) * delta,
    }
}

/// A host tensor of given values: rows of `width`.
pub fn host_rows(values: Vec<f32>, width: usize) -> Tensor<2> {
    let rows = values.len() / width;
    Tensor::from_data(TensorData::new(values, [rows, width]), &Device::flex())
}
