//! A norm of the residual stream and the rounding of what it gives.

use burn::backend::Cube;
use burn::tensor::Tensor;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use models::Normalisation;
use models::architecture::Norm;
use models::cube_tensor::{like, on_cube};

use super::{Codes, codes, on_grid, scale_of, units};
use crate::quantize::fake_quant::{ActivationRule, ScaleSource};
use crate::quantize::grid::{Convention, Granularity};

/// The norm's rows, rounded as the rule says. `None` also of norms that subtract a mean, and of rules whose scales are
/// given or reach over tokens.
///
/// # Shapes
/// `x` and the result are `[sequences, tokens, hidden]`.
pub fn and_round(x: &Tensor<3>, norm: &Normalisation, rule: &ActivationRule) -> Option<Tensor<3>> {
    let [sequences, tokens, hidden] = x.dims();
    let width = match rule.granularity {
        Granularity::Token => hidden,
        Granularity::Group(n) if hidden.is_multiple_of(n) => n,
        _ => return None,
    };
    if rule.scale != ScaleSource::Dynamic {
        return None;
    }
    let (eps, offset) = match norm.kind {
        Norm::Rms { eps } => (eps, 0.0f32),
        Norm::RmsOffset { eps } => (eps, 1.0),
        Norm::Layer { .. } | Norm::LayerUnbiased { .. } => return None,
    };
    let (codes, x, weight) = (codes(rule.grid, rule.clip)?, on_cube(x)?, on_cube(&norm.weight)?);
    let (out, client, units) = (like(&x), x.client.clone(), units(hidden));
    norm_and_round::launch(
        &client,
        CubeCount::new_1d((sequences * tokens) as u32),
        CubeDim::new_1d(units as u32),
        x.into_buffer_arg(),
        weight.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        codes,
        eps as f32,
        offset,
        hidden,
        width,
        units,
        rule.grid.convention(),
    );
    Some(Tensor::from_primitive::<Cube>(out))
}

/// One cube a token.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a launch has no structure around its buffers")]
fn norm_and_round(
    x: &[f32],
    weight: &[f32],
    out: &mut [f32],
    codes: &Codes,
    eps: f32,
    offset: f32,
    #[comptime] hidden: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] convention: Convention,
) {
    let from = CUBE_POS * hidden;
    let unit = UNIT_POS as usize;
    let mut lows = Shared::new_slice(units);
    let mut highs = Shared::new_slice(units);

    let mut squares = f32::new(0.0);
    let mut i = unit;
    while i < hidden {
        squares += x[from + i] * x[from + i];
        i += units;
    }
    lows[unit] = squares;
    sync_cube();
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        if unit < step {
            let other = lows[unit + step];
            lows[unit] += other;
        }
        sync_cube();
        step /= 2;
    }
    let inverse = f32::new(1.0) / (lows[0] / (hidden as f32) + eps).sqrt();
    sync_cube();

    let mut run = comptime!(0usize).runtime();
    while run < hidden {
        let first = x[from + run] * inverse * (weight[run] + offset);
        let mut low = first;
        let mut high = first;
        let mut i = run + unit;
        while i < run + width {
            let y = x[from + i] * inverse * (weight[i] + offset);
            low = min(low, y);
            high = max(high, y);
            i += units;
        }
        let (delta, zero) = scale_of(low, high, &mut lows, &mut highs, codes, units, convention);
        let mut i = run + unit;
        while i < run + width {
            let y = x[from + i] * inverse * (weight[i] + offset);
            out[from + i] = on_grid(y, delta, zero, codes);
            i += units;
        }
        // The next run's ends are written where these were read.
        sync_cube();
        run += width;
    }
}
