//! Fused kernels, one source for every runtime of CubeCL (CUDA, Vulkan, Metal): in one launch what tensor operations do in a
//! dozen, each of which reads and writes the whole activation.
//!
//! | kernel | stands for |
//! |---|---|
//! | [`round::runs`] | `rounding::round_on_device` |
//! | [`round::with_one_scale`] | `rounding::round_with_static` on a device |
//! | [`norm::and_round`] | a norm, then rounding per token or group |
//! | [`rotary::and_round`] | the rotary embedding of keys, then their rounding per head or group |
//! | [`integers::encode`], [`integers::Activation::times`] | the host's `integer::product` |
//!
//! Each is asked first and answers `None` where it does not know the device, the numbers or the convention; then the tensor
//! operations do it. Tests hold the two together.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use crate::quantize::grid::{Convention, Grid};

pub mod integers;
pub mod norm;
pub mod rotary;
pub mod round;

/// Units that share a run: a power of two, and no more than every device has.
const MOST_UNITS: usize = 256;

/// So many units that none waits for a short run.
fn units(width: usize) -> usize {
    width.next_power_of_two().clamp(32, MOST_UNITS)
}

/// A launch in which every value has a unit of its own.
fn unit_a_value(values: usize) -> (CubeCount, CubeDim) {
    (CubeCount::new_1d(values.div_ceil(MOST_UNITS) as u32), CubeDim::new_1d(MOST_UNITS as u32))
}

/// What a kernel knows of a grid.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Codes {
    /// 2^(b−1) − 1
    q: f32,
    /// 2^b − 1
    n: f32,
    /// Lowest code.
    least: f32,
    /// Highest code.
    most: f32,
    /// Factor on the range.
    clip: f32,
}

/// The same from the host; `None` of floats.
fn codes(grid: Grid, clip: f32) -> Option<CodesLaunch> {
    if grid.convention().float().is_some() {
        return None;
    }
    let (least, most) = grid.codes();
    let (q, n) = (((1u32 << (grid.bits() - 1)) - 1) as f32, ((1u32 << grid.bits()) - 1) as f32);
    Some(CodesLaunch::new(q, n, least, most, clip))
}

#[cube]
fn guarded(delta: f32) -> f32 {
    select(delta >= f32::new(1.1754944e-38), delta, f32::new(1.0))
}

/// The ends of a range as a convention takes them.
#[cube]
fn ends(low: f32, high: f32, codes: &Codes, #[comptime] convention: Convention) -> (f32, f32) {
    let low = low * codes.clip;
    let high = high * codes.clip;
    if comptime!(convention == Convention::ZeroInRange) {
        let low = min(low, f32::new(0.0));
        let high = max(high, f32::new(0.0));
        let empty = low == high;
        (select(empty, f32::new(-1.0), low), select(empty, f32::new(1.0), high))
    } else {
        (low, high)
    }
}

/// Δ of a range, as `Grid::fit` finds it.
#[cube]
fn delta_of(low: f32, high: f32, codes: &Codes, #[comptime] convention: Convention) -> f32 {
    let m = max(low.abs(), high.abs());
    if comptime!(matches!(convention, Convention::Absmax | Convention::AbsmaxFull)) {
        guarded(m / codes.q)
    } else if comptime!(matches!(convention, Convention::Smoothquant | Convention::Atom)) {
        max(m, f32::new(1e-5)) / codes.q
    } else if comptime!(convention == Convention::FullRange) {
        guarded(f32::new(2.0) * m / codes.n)
    } else if comptime!(convention == Convention::ZeroInRange) {
        guarded((high - low) / codes.n)
    } else if comptime!(convention == Convention::Omniquant) {
        clamp((high - low) / codes.n, f32::new(1e-5), f32::new(1e4))
    } else {
        max(high - low, f32::new(1e-5)) / codes.n
    }
}

/// The zero point of a range, as `Grid::fit` finds it.
#[cube]
fn zero_of(low: f32, delta: f32, codes: &Codes, #[comptime] convention: Convention) -> f32 {
    if comptime!(convention.is_symmetric()) {
        f32::new(0.0)
    } else {
        let zero = (-low / delta).round();
        if comptime!(convention == Convention::Awq) {
            clamp(zero, f32::new(0.0), codes.n)
        } else if comptime!(convention == Convention::Omniquant) {
            clamp(zero, f32::new(-1e4), f32::new(1e4))
        } else {
            zero
        }
    }
}

/// A value on the grid.
#[cube]
fn on_grid(x: f32, delta: f32, zero: f32, codes: &Codes) -> f32 {
    let code = clamp((x / delta).round() + zero, codes.least, codes.most);
    (code - zero) * delta
}

/// The smallest and the largest of the values of a run that a unit looks at; and NaN where one is, or else 0: NaN has no place
/// in a range, and no literal in WGSL.
#[cube]
fn range_of(x: &[f32], from: usize, #[comptime] run: usize, #[comptime] units: usize) -> (f32, f32, f32) {
    let mut low = x[from];
    let mut high = low;
    let mut broken = f32::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < run {
        let value = x[from + i];
        low = min(low, value);
        high = max(high, value);
        broken = select(value.is_nan(), value, broken);
        i += units;
    }
    (low, high, broken)
}

/// Δ and the zero point of the run that the units of a cube share, of the smallest and the largest value that each has found.
#[cube]
fn scale_of(
    low: f32,
    high: f32,
    lows: &mut [f32],
    highs: &mut [f32],
    codes: &Codes,
    #[comptime] units: usize,
    #[comptime] convention: Convention,
) -> (f32, f32) {
    let unit = UNIT_POS as usize;
    lows[unit] = low;
    highs[unit] = high;
    sync_cube();
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        if unit < step {
            lows[unit] = min(lows[unit], lows[unit + step]);
            highs[unit] = max(highs[unit], highs[unit + step]);
        }
        sync_cube();
        step /= 2;
    }
    let (low, high) = ends(lows[0], highs[0], codes, convention);
    let delta = delta_of(low, high, codes, convention);
    (delta, zero_of(low, delta, codes, convention))
}
