//! The rotary embedding of keys and their rounding as they enter the cache.

use burn::backend::Cube;
use burn::tensor::Tensor;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use models::architecture::Pairs;
use models::cube_tensor::{like, on_cube};

use super::{Codes, codes, on_grid, scale_of, units};
use crate::quantize::cache_rounding::{CacheGranularity, CacheRule};
use crate::quantize::grid::Convention;

/// The turned keys, rounded as the rule says where the first token stands at `position`. `None` also of rules whose scales
/// reach over heads or tokens.
///
/// # Shapes
/// `x` and the result are `[sequences, heads, tokens, head_dim]`, `cos` and `sin` `[tokens, head_dim / 2]`.
pub fn and_round(
    x: &Tensor<4>,
    pairs: Pairs,
    [cos, sin]: [&Tensor<2>; 2],
    rule: &CacheRule,
    position: usize,
) -> Option<Tensor<4>> {
    let [sequences, heads, tokens, head_dim] = x.dims();
    let width = match rule.granularity {
        CacheGranularity::Head => head_dim,
        CacheGranularity::Group(n) if head_dim.is_multiple_of(n) => n,
        _ => return None,
    };
    let (codes, x) = (codes(rule.grid, rule.clip)?, on_cube(x)?);
    let (cos, sin) = (on_cube(cos)?, on_cube(sin)?);
    let (out, client, units) = (like(&x), x.client.clone(), units(head_dim));
    turn_and_round::launch(
        &client,
        CubeCount::new_1d((sequences * heads * tokens) as u32),
        CubeDim::new_1d(units as u32),
        x.into_buffer_arg(),
        cos.into_buffer_arg(),
        sin.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        codes,
        tokens,
        rule.exact.saturating_sub(position),
        head_dim,
        width,
        units,
        pairs == Pairs::Neighbours,
        rule.grid.convention(),
    );
    Some(Tensor::from_primitive::<Cube>(out))
}

/// One cube a token of a head.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a launch has no structure around its buffers")]
fn turn_and_round(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    out: &mut [f32],
    codes: &Codes,
    tokens: usize,
    exact: usize,
    #[comptime] head_dim: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] neighbours: bool,
    #[comptime] convention: Convention,
) {
    let half = comptime!(head_dim / 2);
    let from = CUBE_POS * head_dim;
    let token = CUBE_POS % tokens;
    let unit = UNIT_POS as usize;
    let mut turned = Shared::new_slice(head_dim);
    let mut lows = Shared::new_slice(units);
    let mut highs = Shared::new_slice(units);
    let mut pair = unit;
    while pair < half {
        let c = cos[token * half + pair];
        let s = sin[token * half + pair];
        let first = if comptime!(neighbours) { pair * 2 } else { pair };
        let second = if comptime!(neighbours) { pair * 2 + 1 } else { pair + half };
        let a = x[from + first];
        let b = x[from + second];
        turned[first] = a * c - b * s;
        turned[second] = b * c + a * s;
        pair += units;
    }
    sync_cube();
    if token < exact {
        let mut i = unit;
        while i < head_dim {
            out[from + i] = turned[i];
            i += units;
        }
    } else {
        let mut run = comptime!(0usize).runtime();
        while run < head_dim {
            let mut low = turned[run];
            let mut high = low;
            let mut i = run + unit;
            while i < run + width {
                low = min(low, turned[i]);
                high = max(high, turned[i]);
                i += units;
            }
            let (delta, zero) = scale_of(low, high, &mut lows, &mut highs, codes, units, convention);
            let mut i = run + unit;
            while i < run + width {
                out[from + i] = on_grid(turned[i], delta, zero, codes);
                i += units;
            }
            // The next run's ends are written where these were read.
            sync_cube();
            run += width;
        }
    }
}
