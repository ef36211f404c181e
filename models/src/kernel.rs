//! The elementwise parts of a block besides its norms: rotary embedding, activations, the gated unit, soft caps.
//!
//! Each is written with tensor operations, which run on every device and under autodiff. Where the tensors live in host
//! memory and no gradient is asked for, the same arithmetic runs in one pass over the values instead of six; a test
//! holds the two together.

use burn::tensor::{Device, Tensor, activation as burn_activation};
use rayon::prelude::*;

use crate::architecture::{Activation, Pairs};
use crate::{product, simd};

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

/// Shows a tensor's values, which are not copied where they lie in host memory in their order.
///
/// # Panics
/// As [`change_in_place`].
pub fn with_values<const D: usize, T>(x: Tensor<D>, read: impl FnOnce(&[f32]) -> T) -> T {
    if on_host(&x.device()) {
        let values = x.dims().iter().product();
        let x = product::in_rows(product::primitive(x));
        return read(&x.storage::<f32>()[..values]);
    }
    let data = x.try_into_data().expect("a tensor can be read from its device");
    read(data.as_slice::<f32>().expect("weights and activations are f32"))
}

/// act(gate) · up.
///
/// # Shapes
/// `[sequences, tokens, intermediate]` all three.
pub fn gated(activation: Activation, gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
    let times = match activation {
        Activation::Silu => simd::silu_times,
        Activation::GeluTanh => simd::gelu_tanh_times,
        Activation::Relu => return activate(activation, gate) * up,
    };
    if !on_host(&gate.device()) {
        return activate(activation, gate) * up;
    }
    with_values(up, |up| {
        change_in_place(gate, |gate| {
            gate.par_chunks_mut(GRAIN).zip(up.par_chunks(GRAIN)).for_each(|(gate, up)| times(gate, up));
        })
    })
}

/// The activation of every value.
///
/// # Shapes
/// Any, and the same out.
pub fn activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    let all = match activation {
        Activation::Silu => simd::silu_all,
        Activation::GeluTanh => simd::gelu_tanh_all,
        Activation::Relu => return burn_activation::relu(x),
    };
    if on_host(&x.device()) {
        return change_in_place(x, |values| values.par_chunks_mut(GRAIN).for_each(all));
    }
    match activation {
        Activation::Silu => burn_activation::silu(x),
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let inner = (x.clone() + x.clone().powi_scalar(3) * 0.044715) * root;
            x * 0.5 * (inner.tanh() + 1.0)
        }
        Activation::Relu => unreachable!("taken above"),
    }
}

/// cap · tanh(x / cap).
///
/// # Shapes
/// Any, and the same out.
pub fn soft_cap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    if !on_host(&x.device()) {
        return (x / cap).tanh() * cap;
    }
    change_in_place(x, |values| {
        values.par_chunks_mut(GRAIN).for_each(|values| simd::soft_cap(values, 1.0, cap as f32));
    })
}

/// Rotary embedding: pair i of every head turns by its position's i-th angle.
///
/// # Shapes
/// `x` is `[sequences, heads, tokens, head_dim]`, `cos` and `sin` `[tokens, head_dim / 2]`.
pub fn rotate(x: Tensor<4>, pairs: Pairs, cos: &Tensor<2>, sin: &Tensor<2>) -> Tensor<4> {
    let [sequences, heads, tokens, head_dim] = x.dims();
    let half = head_dim / 2;
    if !on_host(&x.device()) {
        return match pairs {
            Pairs::Halves => {
                let cos = cos.clone().reshape([1, 1, tokens, half]);
                let sin = sin.clone().reshape([1, 1, tokens, half]);
                let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
                Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 3)
            }
            Pairs::Neighbours => {
                let cos = cos.clone().reshape([1, 1, tokens, half, 1]);
                let sin = sin.clone().reshape([1, 1, tokens, half, 1]);
                let x = x.reshape([sequences, heads, tokens, half, 2]);
                let (a, b) = (x.clone().narrow(4, 0, 1), x.narrow(4, 1, 1));
                let turned = [a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
                Tensor::cat(turned.to_vec(), 4).reshape([sequences, heads, tokens, head_dim])
            }
        };
    }
    let (cos, sin) = (cos.to_data(), sin.to_data());
    let cos = cos.as_slice::<f32>().expect("angles are f32");
    let sin = sin.as_slice::<f32>().expect("angles are f32");
    // Tokens in front of heads, as linears write them: then nothing is copied.
    let turned = change_in_place(x.swap_dims(1, 2), |values| {
        values.par_chunks_mut(heads * head_dim).enumerate().for_each(|(token, row)| {
            let position = token % tokens;
            let (cos, sin) = (&cos[position * half..][..half], &sin[position * half..][..half]);
            for row in row.chunks_exact_mut(head_dim) {
                match pairs {
                    Pairs::Halves => {
                        let (a, b) = row.split_at_mut(half);
                        for i in 0..half {
                            let (x, y) = (a[i], b[i]);
                            a[i] = x * cos[i] - y * sin[i];
                            b[i] = y * cos[i] + x * sin[i];
                        }
                    }
                    Pairs::Neighbours => {
                        for (i, pair) in row.chunks_exact_mut(2).enumerate() {
                            let (x, y) = (pair[0], pair[1]);
                            pair[0] = x * cos[i] - y * sin[i];
                            pair[1] = y * cos[i] + x * sin[i];
                        }
                    }
                }
            }
        });
    });
    turned.swap_dims(1, 2)
}
