//! Rounding an activation.

use burn::backend::Cube;
use burn::tensor::Tensor;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use models::cube_tensor::{like, on_cube};

use super::{Codes, codes, on_grid, range_of, scale_of, unit_a_value, units};
use crate::quantize::grid::{Convention, Grid, Scale};

/// Rounds every row of `[runs, width]` with its own scale.
pub fn runs(x: &Tensor<2>, grid: Grid, clip: f32) -> Option<Tensor<2>> {
    let [runs, width] = x.dims();
    let (codes, x) = (codes(grid, clip)?, on_cube(x)?);
    let (out, client, units) = (like(&x), x.client.clone(), units(width));
    round_runs::launch(
        &client,
        CubeCount::new_1d(runs as u32),
        CubeDim::new_1d(units as u32),
        x.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        codes,
        width,
        units,
        grid.convention(),
    );
    Some(Tensor::from_primitive::<Cube>(out))
}

/// Rounds every value with one given scale.
pub fn with_one_scale<const D: usize>(x: &Tensor<D>, grid: Grid, scale: Scale) -> Option<Tensor<D>> {
    let (codes, x) = (codes(grid, 1.0)?, on_cube(x)?);
    let (out, client) = (like(&x), x.client.clone());
    let (cubes, units) = unit_a_value(x.meta.num_elements());
    round_values::launch(
        &client,
        cubes,
        units,
        x.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        codes,
        scale.delta,
        scale.zero,
    );
    Some(Tensor::from_primitive::<Cube>(out))
}

/// One cube a run.
#[cube(launch)]
fn round_runs(
    x: &[f32],
    out: &mut [f32],
    codes: &Codes,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] convention: Convention,
) {
    let from = CUBE_POS * width;
    let (low, high, _) = range_of(x, from, width, units);
    let mut lows = Shared::new_slice(units);
    let mut highs = Shared::new_slice(units);
    let (delta, zero) = scale_of(low, high, &mut lows, &mut highs, codes, units, convention);
    let mut i = UNIT_POS as usize;
    while i < width {
        out[from + i] = on_grid(x[from + i], delta, zero, codes);
        i += units;
    }
}

/// One unit a value.
#[cube(launch)]
fn round_values(x: &[f32], out: &mut [f32], codes: &Codes, delta: f32, zero: f32) {
    let at = ABSOLUTE_POS;
    if at < x.len() {
        out[at] = on_grid(x[at], delta, zero, codes);
    }
}
