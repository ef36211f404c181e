//! Products of matrices in host memory.
//!
//! Burn's own, through the crate `gemm`, reach half the speed of `rten-gemm` at the widths of small models
//! (`cargo bench --bench integers`). No sum is divided among threads, so that outputs do not depend on their number.

use std::mem::MaybeUninit;

use burn::backend::{BackendTypes, Flex};
use burn::tensor::{Tensor, TensorData};
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions};
use rten_tensor::NdTensorView;

/// x·Wᵀ + b on the host, without a copy of the weight.
///
/// # Shapes
/// `x` is `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`; the result is `[rows, out]`.
///
/// # Panics
/// If a tensor is not in host memory, not f32, or of another shape.
pub(crate) fn times_transposed(x: Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Tensor<2> {
    let ([rows, channels], [out, width], device) = (x.dims(), weight.dims(), x.device());
    assert_eq!(channels, width, "a row holds what the linear reads");
    let x = on_host(x);
    let weight = on_host(weight.clone());
    let bias = bias.map(|bias| on_host(bias.clone()));
    let [x, weight] = [&x, &weight].map(|tensor| tensor.storage::<f32>());
    let a = NdTensorView::from_data([rows, channels], &x[..rows * channels]);
    let b = NdTensorView::from_data([out, channels], &weight[..out * channels]);
    let bias = bias.as_ref().map(|bias| BiasVector::Row(&bias.storage::<f32>()[..out]));
    let mut y: Vec<f32> = Vec::with_capacity(rows * out);
    let room: &mut [MaybeUninit<f32>] = &mut y.spare_capacity_mut()[..rows * out];
    let inputs = (GemmInputA::Unpacked(a), GemmInputB::Unpacked(b.transposed()));
    let options = GemmUninitOptions { bias, ..GemmUninitOptions::default() };
    let made = GemmExecutor::<f32>::new().gemm_uninit(room, inputs.0, inputs.1, options);
    assert_eq!(made.expect("shapes fit").len(), rows * out, "every output is written");
    // SAFETY: the product has written all of them.
    unsafe {
        y.set_len(rows * out);
    }
    Tensor::from_data(TensorData::new(y, [rows, out]), &device)
}

/// A tensor's values, in rows from the first place on; no copy where they lie so.
fn on_host<const D: usize>(x: Tensor<D>) -> <Flex as BackendTypes>::FloatTensorPrimitive {
    let x = x.try_into_primitive::<Flex>().expect("a host tensor");
    match x.is_contiguous() && x.layout().start_offset() == 0 {
        true => x,
        false => x.to_contiguous(),
    }
}
