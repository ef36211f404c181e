//! The elementwise parts of a block besides its norms: rotary embedding, the gated unit.
//!
//! Each is written with tensor operations, which run on every device and under autodiff. Where the tensors live in host
//! memory and no gradient is asked for, the same arithmetic runs in one pass over the values instead of six; a test
//! holds the two together.

use burn::tensor::{Device, Tensor, activation};
use rayon::prelude::*;

use crate::simd;

/// Whether a tensor's values lie in host memory and nobody wants their gradient.
pub fn on_host(device: &Device) -> bool {
    !device.is_autodiff() && *device == Device::flex()
}

/// Values per parallel task: about what a core handles between two looks at the clock.
pub(crate) const GRAIN: usize = 1 << 14;

/// A tensor's values changed on the host: in place where they lie there and nothing else refers to them, else by way of a
/// copy.
///
/// # Panics
/// If the tensor is not f32 or the device fails.
pub fn change_in_place<const D: usize>(x: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let device = x.device();
    let mut data = x.try_into_data().expect("a tensor can be read from its device");
    change(data.as_mut_slice::<f32>().expect("weights and activations are f32"));
    Tensor::from_data(data, &device)
}

/// silu(gate) · up, with silu(x) = x / (1 + e^−x).
///
/// # Shapes
/// `[sequences, tokens, intermediate]` all three.
pub fn silu_times(gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
    if !on_host(&gate.device()) {
        return activation::silu(gate) * up;
    }
    let up = up.try_into_data().expect("a host tensor can be read");
    let up = up.as_slice::<f32>().expect("activations are f32");
    change_in_place(gate, |gate| {
        gate.par_chunks_mut(GRAIN)
            .zip(up.par_chunks(GRAIN))
            .for_each(|(gate, up)| simd::silu_times(gate, up));
    })
}

/// Rotary embedding: pair (i, i + d/2) of every head turns by its position's angle.
///
/// # Shapes
/// `x` is `[sequences, heads, tokens, head_dim]`, `cos` and `sin` `[tokens, head_dim / 2]`.
pub fn rotate(x: Tensor<4>, cos: &Tensor<2>, sin: &Tensor<2>) -> Tensor<4> {
    let [_, _, tokens, head_dim] = x.dims();
    let half = head_dim / 2;
    if !on_host(&x.device()) {
        let cos = cos.clone().reshape([1, 1, tokens, half]);
        let sin = sin.clone().reshape([1, 1, tokens, half]);
        let a = x.clone().narrow(3, 0, half);
        let b = x.narrow(3, half, half);
        return Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 3);
    }
    let (cos, sin) = (cos.to_data(), sin.to_data());
    let cos = cos.as_slice::<f32>().expect("angles are f32");
    let sin = sin.as_slice::<f32>().expect("angles are f32");
    change_in_place(x, |values| {
        values.par_chunks_mut(tokens * head_dim).for_each(|head| {
            for (position, row) in head.chunks_exact_mut(head_dim).enumerate() {
                let (cos, sin) = (&cos[position * half..][..half], &sin[position * half..][..half]);
                let (a, b) = row.split_at_mut(half);
                for i in 0..half {
                    let (x, y) = (a[i], b[i]);
                    a[i] = x * cos[i] - y * sin[i];
                    b[i] = y * cos[i] + x * sin[i];
                }
            }
        });
    })
}
