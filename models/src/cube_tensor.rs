//! Tensors as kernels of our own read them, on devices of CubeCL.

use burn::backend::Cube;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

/// In rows from the first place on; `None` where the device is not CubeCL's, a gradient is wanted, or it is not f32.
pub fn on_cube<const D: usize>(x: &Tensor<D>) -> Option<CubeTensor> {
    let x = x.clone().try_into_primitive::<Cube>().ok()?;
    (x.dtype == DType::F32).then(|| into_contiguous(x))
}

/// Room for as many values beside `x`.
pub fn like(x: &CubeTensor) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), x.meta.shape().clone(), x.dtype)
}
