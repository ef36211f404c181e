//! The transform inside a forward pass: in place where tensors lie in host memory, else products with small matrices.

use burn::tensor::{Device, Tensor, TensorData};

#[cfg(feature = "cube")]
use super::cube;
use super::{Hadamard, Matrix};
use crate::kernel::{change_in_place, on_host};

/// Sylvester's matrix is multiplied in factors of at most this order where a device has no butterflies.
const LARGEST_SYLVESTER: usize = 32;

/// A [`Hadamard`] whose matrices lie on a device.
#[derive(Clone, Debug)]
pub struct OnDevice {
    hadamard: Hadamard,
    /// Whether it was made for values in host memory, which need no matrices.
    on_host: bool,
    /// Of the Kronecker product, from left to right; a number stands for the identity of that order.
    factors: Vec<Factor>,
    /// `[width]`
    signs: Option<Tensor<1>>,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a handful exist in a decoder")]
enum Factor {
    Matrix(Tensor<2>),
    Identity(usize),
}

impl OnDevice {
    /// Puts what the transform needs on a device.
    pub fn new(hadamard: Hadamard, device: &Device) -> Self {
        if on_host(device) {
            return Self { hadamard, on_host: true, factors: Vec::new(), signs: None };
        }
        let square = |values: Vec<f64>, order: usize| {
            let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
            Factor::Matrix(Tensor::from_data(TensorData::new(values, [order, order]), device))
        };
        let mut factors = Vec::new();
        match &hadamard.matrix {
            Matrix::Dense(matrix) => factors.push(square(matrix.to_vec(), hadamard.order)),
            Matrix::Kronecker(m, factor, sylvester) => {
                if *m > 1 {
                    let scale = 1.0 / (*m as f64).sqrt();
                    factors.push(square(factor.iter().map(|&f| f64::from(f) * scale).collect(), *m));
                }
                let mut rest = *sylvester;
                while rest > 1 {
                    let order = rest.min(LARGEST_SYLVESTER);
                    let scale = 1.0 / (order as f64).sqrt();
                    let entry = |at: usize| {
                        if ((at / order) & (at % order)).count_ones().is_multiple_of(2) {
                            scale
                        } else {
                            -scale
                        }
                    };
                    factors.push(square((0..order * order).map(entry).collect(), order));
                    rest /= order;
                }
            }
        }
        if hadamard.inner > 1 {
            factors.push(Factor::Identity(hadamard.inner));
        }
        let signs = hadamard.signs.as_ref().map(|signs| {
            let signs = signs.iter().flat_map(|&s| vec![f32::from(s); hadamard.inner]);
            Tensor::from_data(TensorData::new(signs.collect(), [hadamard.width()]), device)
        });
        Self { hadamard, on_host: false, factors, signs }
    }

    /// The transform.
    pub fn hadamard(&self) -> &Hadamard {
        &self.hadamard
    }

    /// x·R along the last dimension.
    ///
    /// # Panics
    /// If the last dimension is no multiple of [`Hadamard::width`].
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dims = x.dims();
        let width = self.hadamard.width();
        assert!(dims[D - 1].is_multiple_of(width), "{} channels are not runs of {width}", dims[D - 1]);
        if on_host(&x.device()) {
            return change_in_place(x, |values| self.hadamard.apply_f32(values));
        }
        if self.on_host {
            // Made for values in host memory, and now somebody wants their gradient.
            return Self::new(self.hadamard.clone(), &x.device()).forward(x);
        }
        let values: usize = dims.iter().product();
        #[cfg(feature = "cube")]
        if let Some(y) = self.by_kernel(&x) {
            return y;
        }
        let mut x = x.reshape([values / width, width]);
        if let Some(signs) = &self.signs {
            x = x * signs.clone().unsqueeze();
        }
        let block = match &self.hadamard.matrix {
            Matrix::Dense(_) => width,
            Matrix::Kronecker(m, _, sylvester) => m * sylvester * self.hadamard.inner,
        };
        let rows = values / block;
        // Each factor multiplies the last axis, which then goes to the front: after all of them the axes are in order.
        for factor in self.factors.iter().rev() {
            let (order, product) = match factor {
                Factor::Matrix(matrix) => {
                    let order = matrix.dims()[0];
                    (order, x.reshape([values / order, order]).matmul(matrix.clone()))
                }
                Factor::Identity(order) => (*order, x.reshape([values / order, *order])),
            };
            x = product.reshape([rows, block / order, order]).swap_dims(1, 2).reshape([rows, block]);
        }
        x.reshape(dims)
    }

    /// In one launch, where one knows the matrix and the device, and a run fits into what units share.
    #[cfg(feature = "cube")]
    fn by_kernel<const D: usize>(&self, x: &Tensor<D>) -> Option<Tensor<D>> {
        let Matrix::Kronecker(m, _, sylvester) = &self.hadamard.matrix else { return None };
        let factor = match self.factors.first() {
            Some(Factor::Matrix(factor)) if *m > 1 => Some(factor),
            _ => None,
        };
        let shape = cube::Shape { factor: *m, sylvester: *sylvester, inner: self.hadamard.inner };
        cube::transform(x, shape, factor, self.signs.as_ref())
    }
}
