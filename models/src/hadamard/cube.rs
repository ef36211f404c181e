//! The transform as one kernel on every device that CubeCL knows: a run lies in memory that units share, where butterflies
//! turn it level by level, n·log n instead of the n·(32 + 32 + …) of products with small matrices.

use burn::backend::Cube;
use burn::tensor::Tensor;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube_tensor::{like, on_cube};

/// Units that share a run.
const UNITS: usize = 256;

/// Of the Kronecker product, from left to right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Order of the dense factor; 1 for none.
    pub factor: usize,
    /// Order of Sylvester's matrix, a power of two.
    pub sylvester: usize,
    /// Order of the identity.
    pub inner: usize,
}

impl Shape {
    fn width(self) -> usize {
        self.factor * self.sylvester * self.inner
    }
}

/// The signed x times R = F ⊗ S ⊗ I, run by run along the last dimension; `None` where it cannot be had.
///
/// # Shapes
/// The last dimension of `x` is a multiple of R's order and of the signs; `factor` is `[m, m]`, scaled by 1/√m.
pub fn transform<const D: usize>(
    x: &Tensor<D>,
    shape: Shape,
    factor: Option<&Tensor<2>>,
    signs: Option<&Tensor<1>>,
) -> Option<Tensor<D>> {
    let x = on_cube(x)?;
    let width = shape.width();
    if width * size_of::<f32>() > x.client.properties().hardware.max_shared_memory_size {
        return None;
    }
    // What is not there is not read; a kernel wants something in its place.
    let or_x = |given: Option<CubeTensor>| given.unwrap_or_else(|| x.clone());
    let factors = or_x(match factor {
        Some(factor) => Some(on_cube(factor)?),
        None => None,
    });
    let has_signs = signs.is_some();
    let signs = or_x(match signs {
        Some(signs) => Some(on_cube(signs)?),
        None => None,
    });
    let (out, client) = (like(&x), x.client.clone());
    let runs = x.meta.num_elements() / width;
    butterflies::launch(
        &client,
        CubeCount::new_1d(runs as u32),
        CubeDim::new_1d(UNITS as u32),
        x.into_buffer_arg(),
        factors.into_buffer_arg(),
        signs.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        1.0 / (shape.sylvester as f32).sqrt(),
        shape.factor,
        shape.sylvester,
        shape.inner,
        has_signs,
    );
    Some(Tensor::from_primitive::<Cube>(out))
}

/// One cube a run.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a launch has no structure around its buffers")]
fn butterflies(
    x: &[f32],
    factors: &[f32],
    signs: &[f32],
    out: &mut [f32],
    scale: f32,
    #[comptime] factor: usize,
    #[comptime] sylvester: usize,
    #[comptime] inner: usize,
    #[comptime] has_signs: bool,
) {
    let width = comptime!(factor * sylvester * inner);
    let pairs = comptime!(factor * sylvester * inner / 2);
    let from = CUBE_POS * width;
    let unit = UNIT_POS as usize;
    let mut run = Shared::new_slice(width);
    let mut i = unit;
    while i < width {
        if comptime!(has_signs) {
            run[i] = x[from + i] * signs[(from + i) % signs.len()];
        } else {
            run[i] = x[from + i];
        }
        i += UNITS;
    }
    sync_cube();
    let mut half = comptime!(1usize).runtime();
    while half < sylvester {
        let mut pair = unit;
        while pair < pairs {
            let among = pair / inner;
            let low = ((among / half) * 2 * half + among % half) * inner + pair % inner;
            let high = low + half * inner;
            let a = run[low];
            let b = run[high];
            run[low] = a + b;
            run[high] = a - b;
            pair += UNITS;
        }
        sync_cube();
        half *= 2;
    }
    let mut i = unit;
    while i < width {
        if comptime!(factor > 1) {
            let rest = comptime!(sylvester * inner);
            let column = i / rest;
            let mut sum = f32::new(0.0);
            for row in 0..factor {
                sum += run[row * rest + i % rest] * factors[row * factor + column];
            }
            out[from + i] = sum * scale;
        } else {
            out[from + i] = run[i] * scale;
        }
        i += UNITS;
    }
}
