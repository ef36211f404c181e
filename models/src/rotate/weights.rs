//! Weights times a rotation, in f64, rounded once.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::hadamard::Hadamard;
use crate::kernel::GRAIN;
use crate::linear::Linear;

/// What happens to a row before it is rotated.
#[derive(Clone, Copy)]
pub enum First<'a> {
    /// Nothing.
    Nothing,
    /// Its mean is subtracted.
    Centre,
    /// Value c is multiplied by factor c.
    Times(&'a [f64]),
}

impl First<'_> {
    fn act(self, rows: &mut [f64], width: usize) {
        for row in rows.chunks_exact_mut(width) {
            match self {
                First::Nothing => {}
                First::Centre => {
                    let mean = row.iter().sum::<f64>() / width as f64;
                    row.iter_mut().for_each(|x| *x -= mean);
                }
                First::Times(factors) => row.iter_mut().zip(factors).for_each(|(x, f)| *x *= f),
            }
        }
    }
}

/// Rows that one task takes: enough for a dense product to be worth while.
fn rows_per_task(width: usize) -> usize {
    (4 * GRAIN / width).max(32)
}

/// W·R: every row is rotated. `None` where a value leaves the range of f32.
pub fn rows_rotated(weight: &Tensor<2>, first: First, rotation: &Hadamard) -> Option<Tensor<2>> {
    let dims = weight.dims();
    let mut values = values_of(weight);
    values.par_chunks_mut(rows_per_task(dims[1]) * dims[1]).for_each_init(Vec::new, |wide, rows| {
        wide.clear();
        wide.extend(rows.iter().map(|&w| f64::from(w)));
        first.act(wide, dims[1]);
        rotation.apply(wide);
        rows.iter_mut().zip(wide).for_each(|(w, x)| *w = *x as f32);
    });
    tensor(values, dims, weight)
}

/// Rᵀ·W: every column is rotated. `None` where a value leaves the range of f32.
pub fn columns_rotated(weight: &Tensor<2>, first: First, rotation: &Hadamard) -> Option<Tensor<2>> {
    let [out, input] = weight.dims();
    let values = values_of(weight);
    let mut turned = vec![0.0f32; values.len()];
    let columns = rows_per_task(out);
    turned.par_chunks_mut(columns * out).enumerate().for_each_init(Vec::new, |wide, (chunk, turned)| {
        let (from, count) = (chunk * columns, turned.len() / out);
        wide.clear();
        wide.resize(turned.len(), 0.0);
        for (r, row) in values.chunks_exact(input).enumerate() {
            for (c, &w) in row[from..from + count].iter().enumerate() {
                wide[c * out + r] = f64::from(w);
            }
        }
        first.act(wide, out);
        rotation.apply(wide);
        turned.iter_mut().zip(wide).for_each(|(w, x)| *w = *x as f32);
    });
    let mut values = values;
    /// Rows written together, so that a line of cache is read once.
    const TOGETHER: usize = 16;
    values.par_chunks_mut(TOGETHER * input).enumerate().for_each(|(chunk, rows)| {
        let count = rows.len() / input;
        for (c, column) in turned.chunks_exact(out).enumerate() {
            for (r, &w) in column[chunk * TOGETHER..][..count].iter().enumerate() {
                rows[r * input + c] = w;
            }
        }
    });
    tensor(values, [out, input], weight)
}

/// A row, such as a bias, rotated. `None` where a value leaves the range of f32.
pub fn row_rotated(row: &Tensor<1>, first: First, rotation: &Hadamard) -> Option<Tensor<1>> {
    Some(rows_rotated(&row.clone().unsqueeze_dim::<2>(0), first, rotation)?.squeeze_dim(0))
}

/// A linear whose inputs are rotated.
pub fn reads_rotated(linear: &Linear, first: First, rotation: &Hadamard) -> Option<Linear> {
    let weight = rows_rotated(&linear.weight, first, rotation)?;
    Some(Linear::new(linear.name.clone(), weight, linear.bias.clone()))
}

/// A linear that gives its outputs rotated.
pub fn gives_rotated(linear: &Linear, first: First, rotation: &Hadamard) -> Option<Linear> {
    let weight = columns_rotated(&linear.weight, first, rotation)?;
    let bias = match &linear.bias {
        Some(bias) => Some(row_rotated(bias, first, rotation)?),
        None => None,
    };
    Some(Linear::new(linear.name.clone(), weight, bias))
}

/// The linear's bias and W·x, as what it adds when x is added to its input.
pub fn bias_with(linear: &Linear, x: &[f64]) -> Tensor<1> {
    let [out, input] = linear.weight.dims();
    let values = values_of(&linear.weight);
    let mut bias = match &linear.bias {
        Some(bias) => values_of(bias).into_iter().map(f64::from).collect(),
        None => vec![0.0; out],
    };
    for (b, row) in bias.iter_mut().zip(values.chunks_exact(input)) {
        *b += row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
    }
    let bias: Vec<f32> = bias.into_iter().map(|b| b as f32).collect();
    Tensor::from_data(TensorData::new(bias, [out]), &linear.weight.device())
}

/// The values of a tensor, read from its device.
pub fn values_of<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.to_data().try_to_vec().expect("weights are f32 and can be read")
}

fn tensor(values: Vec<f32>, dims: [usize; 2], like: &Tensor<2>) -> Option<Tensor<2>> {
    let finite = values.par_iter().all(|v| v.is_finite());
    finite.then(|| Tensor::from_data(TensorData::new(values, dims), &like.device()))
}
