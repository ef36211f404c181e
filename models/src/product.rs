//! Products of matrices in host memory.
//!
//! Burn's own, through the crate `gemm`, reach half the speed of `rten-gemm` at the widths of small models
//! (`cargo bench --bench integers`). No sum is divided among threads, so that outputs do not depend on their number.

use std::mem::MaybeUninit;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Device, Tensor, TensorData};
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions, PackedBMatrix};
use rten_tensor::{Layout, NdTensorView};

/// x·Wᵀ + b on the host, without a copy of the weight.
///
/// # Shapes
/// `x` is `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`; the result is `[rows, out]`.
///
/// # Panics
/// If a tensor is not in host memory, not f32, or of another shape.
pub(crate) fn times_transposed(x: Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Tensor<2> {
    let weight = in_rows(primitive(weight.clone()));
    by_weight(x, GemmInputB::Unpacked(view(&weight).transposed()), bias)
}

/// W as the products of this module read it, for a weight that meets many activations.
pub(crate) struct Packed(PackedBMatrix<f32>);

impl Packed {
    /// # Shapes
    /// `weight` is `[out, in]`, in host memory and f32.
    pub(crate) fn of(weight: &Tensor<2>) -> Self {
        let weight = in_rows(primitive(weight.clone()));
        Self(GemmExecutor::<f32>::new().prepack_b(view(&weight).transposed()))
    }

    /// As [`times_transposed`], and exactly the same, but for a single row, which unpacked weights meet in another order.
    pub(crate) fn times(&self, x: Tensor<2>, bias: Option<&Tensor<1>>) -> Tensor<2> {
        by_weight(x, GemmInputB::Packed(&self.0), bias)
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packed")
    }
}

/// x·Wᵀ + b, of Wᵀ in either form.
fn by_weight(x: Tensor<2>, transposed: GemmInputB<f32>, bias: Option<&Tensor<1>>) -> Tensor<2> {
    let ([rows, _], device) = (x.dims(), x.device());
    let x = in_rows(primitive(x));
    let bias = bias.map(|bias| in_rows(primitive(bias.clone())));
    let bias = bias.as_ref().map(|bias| BiasVector::Row(&bias.storage::<f32>()[..bias.layout().shape()[0]]));
    let out = transposed.cols();
    let y = product(view(&x), transposed, bias);
    Tensor::from_data(TensorData::new(y, [rows, out]), &device)
}

/// x·Wᵀ where gradients may be wanted, of either; on the host all three products are this module's.
///
/// # Shapes
/// As [`times_transposed`]'s.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let holds = |tensor: &Tensor<2>| tensor.device().inner() == Device::flex();
    if !holds(&x) || !holds(&weight) {
        return x.matmul(weight.transpose());
    }
    let y = <Dispatch as Products>::rows_by_rows(x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(y)
}

/// The products of a linear layer and of its gradients.
#[backend_extension(Flex, Autodiff)]
trait Products: Backend {
    /// x·Wᵀ, of `[rows, in]` and `[out, in]`.
    fn rows_by_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The products that make gradients, which have none themselves.
trait Gradient: Products {
    /// By x: g·W, of `[rows, out]` and `[out, in]`.
    fn by_activation(g: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    /// By W: gᵀ·x, of `[rows, out]` and `[rows, in]`.
    fn by_weight(g: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl Products for Flex {
    fn rows_by_rows(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let [x, weight] = [x, weight].map(in_rows);
        from_rows(
            product(view(&x), GemmInputB::Unpacked(view(&weight).transposed()), None),
            weight.layout().shape()[0],
        )
    }
}

impl Gradient for Flex {
    fn by_activation(g: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let [g, weight] = [g, weight].map(in_rows);
        from_rows(product(view(&g), GemmInputB::Unpacked(view(&weight)), None), weight.layout().shape()[1])
    }

    fn by_weight(g: FlexTensor, x: FlexTensor) -> FlexTensor {
        let [g, x] = [g, x].map(in_rows);
        from_rows(product(view(&g).transposed(), GemmInputB::Unpacked(view(&x)), None), x.layout().shape()[1])
    }
}

impl<B: Gradient, C: CheckpointStrategy> Products for Autodiff<B, C> {
    fn rows_by_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Linear;

        impl<B: Gradient> Backward<B, 2> for Linear {
            /// Of x and of W, where the other's gradient is wanted.
            type State = [Option<NodeId>; 2];

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let [x, weight] = ops.state.map(|node| {
                    node.map(|node| checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(node))
                });
                binary::<B, _, _>(
                    ops.parents,
                    ops.node,
                    grads,
                    |g| B::by_activation(g, weight.expect("kept where x has a gradient")),
                    |g| B::by_weight(g, x.expect("kept where the weight has a gradient")),
                );
            }
        }

        let wanted = [x.is_tracked(), weight.is_tracked()];
        match Linear.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept =
                    [wanted[1].then(|| prep.checkpoint(&x)), wanted[0].then(|| prep.checkpoint(&weight))];
                prep.finish(kept, B::rows_by_rows(x.into_primitive(), weight.into_primitive()))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::rows_by_rows(x.into_primitive(), weight.into_primitive()))
            }
        }
    }
}

/// a·b + bias
///
/// # Shapes
/// `a` is `[rows, inner]`, `b` `[inner, columns]`, in any order of memory; the result is rows of `columns`.
///
/// # Panics
/// If the shapes do not fit.
fn product(a: NdTensorView<f32, 2>, b: GemmInputB<f32>, bias: Option<BiasVector<f32>>) -> Vec<f32> {
    let (rows, columns) = (a.shape()[0], b.cols());
    assert_eq!(a.shape()[1], b.rows(), "a row holds what the linear reads");
    let mut y: Vec<f32> = Vec::with_capacity(rows * columns);
    let room: &mut [MaybeUninit<f32>] = &mut y.spare_capacity_mut()[..rows * columns];
    let options = GemmUninitOptions { bias, ..GemmUninitOptions::default() };
    let made = GemmExecutor::<f32>::new().gemm_uninit(room, GemmInputA::Unpacked(a), b, options);
    assert_eq!(made.expect("shapes fit").len(), rows * columns, "every output is written");
    // SAFETY: the product has written all of them.
    unsafe {
        y.set_len(rows * columns);
    }
    y
}

/// A matrix in rows from the first place on.
fn view(x: &FlexTensor) -> NdTensorView<'_, f32, 2> {
    let dims = x.layout().shape();
    let (rows, columns) = (dims[0], dims[1]);
    NdTensorView::from_data([rows, columns], &x.storage::<f32>()[..rows * columns])
}

/// A matrix of rows of `columns` values.
fn from_rows(values: Vec<f32>, columns: usize) -> FlexTensor {
    let rows = values.len() / columns;
    FlexTensor::from_data(TensorData::new(values, [rows, columns]))
}

/// A tensor's place in host memory.
///
/// # Panics
/// If it is not there.
pub(crate) fn primitive<const D: usize>(x: Tensor<D>) -> FlexTensor {
    x.try_into_primitive::<Flex>().expect("a host tensor")
}

/// In rows from the first place on; no copy where it lies so.
pub(crate) fn in_rows(x: FlexTensor) -> FlexTensor {
    match x.is_contiguous() && x.layout().start_offset() == 0 {
        true => x,
        false => x.to_contiguous(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a weighted sum of outputs: the outputs, and the gradients by x and by W where they are asked for.
    fn learn(by: impl Fn(Tensor<2>, Tensor<2>) -> Tensor<2>, asked: [bool; 2]) -> Vec<Option<Vec<f32>>> {
        let device = Device::flex().autodiff();
        let ramp = |rows: usize, columns: usize, step: f32| {
            let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * step).sin()).collect();
            Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &device)
        };
        let leaf = |x: Tensor<2>, asked: bool| if asked { x.require_grad() } else { x };
        let (x, weight) = (leaf(ramp(37, 24, 0.37), asked[0]), leaf(ramp(19, 24, 0.53), asked[1]));
        let y = by(x.clone(), weight.clone());
        let values = |x: Tensor<2>| x.into_data().try_to_vec::<f32>().unwrap();
        let mut found = vec![Some(values(y.clone()))];
        let grads = (y * ramp(37, 19, 0.71)).sum().backward();
        found.extend([x, weight].map(|leaf| leaf.grad(&grads).map(values)));
        found
    }

    #[test]
    fn a_packed_weight_gives_exactly_the_same() {
        let device = Device::flex();
        let ramp = |rows: usize, columns: usize, step: f32| {
            let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * step).sin()).collect();
            Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &device)
        };
        let (x, weight, bias) =
            (ramp(37, 600, 0.37), ramp(197, 600, 0.53), ramp(1, 197, 0.11).reshape([197]));
        let packed = Packed::of(&weight);
        let exact = |y: Tensor<2>| -> Vec<u32> {
            y.into_data().try_to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        for bias in [None, Some(&bias)] {
            let expected = exact(times_transposed(x.clone(), &weight, bias));
            assert_eq!(exact(packed.times(x.clone(), bias)), expected);
            // Nor does it matter how many rows are multiplied at once.
            for rows in [5..9, 7..8] {
                let some = packed.times(x.clone().slice([rows.clone(), 0..600]), bias);
                assert_eq!(exact(some), expected[rows.start * 197..rows.end * 197]);
            }
        }
    }

    #[test]
    fn gradients_are_those_of_the_product_of_tensors() {
        for asked in [[true, true], [true, false], [false, true]] {
            let expected = learn(|x, weight| x.matmul(weight.transpose()), asked);
            for (found, expected) in learn(linear, asked).iter().zip(&expected) {
                assert_eq!(found.is_some(), expected.is_some());
                let pairs = found.iter().flatten().zip(expected.iter().flatten());
                pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-4, "{a} instead of {b}"));
            }
        }
    }
}
