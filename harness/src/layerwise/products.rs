//! The error of a rounded product, and its estimate.
//!
//! Codes are whole numbers, so the rounded product is exact: a sum of products of codes in i32, times two steps. The
//! product before rounding is summed in f64.

use models::per_processor;
use rayon::prelude::*;

use crate::layerwise::pair::{Matrix, Pair};
use crate::quantize::grid::Grid;
use crate::quantize::rounding::range;

/// Rows of the activation that one task multiplies with all weights, so that a row of weights is read once for all.
const ROWS: usize = 8;

/// Channels up to which a sum of products of 8-bit codes stays within an i32.
pub const MOST_CHANNELS: usize = 1 << 16;

/// A matrix whose every row is rounded with a step of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// Row after row.
    pub codes: Vec<i16>,
    /// Δ of every row.
    pub steps: Vec<f64>,
}

/// Rounds every row with a scale of its own.
///
/// # Panics
/// If the grid has a zero point or a row more than [`MOST_CHANNELS`] values.
pub fn rounded(matrix: &Matrix, grid: Grid) -> Rounded {
    assert!(grid.convention().is_symmetric(), "codes without a zero point");
    assert!(matrix.columns <= MOST_CHANNELS, "sums of codes are i32");
    let mut codes = vec![0i16; matrix.values.len()];
    let rows = matrix.values.par_chunks(matrix.columns).zip(codes.par_chunks_mut(matrix.columns));
    let steps = rows.map(|(values, codes)| {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        let (lo, hi) = range(&values);
        let scale = grid.fit(lo, hi, 1.0);
        codes.iter_mut().zip(&values).for_each(|(code, &x)| *code = grid.code(x, scale) as i16);
        f64::from(scale.delta)
    });
    let steps = steps.collect();
    Rounded { codes, steps }
}

/// Independent sums of a dot product.
const LANES: usize = 16;

#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    for (i, (a, b)) in rest_a.iter().zip(rest_b).enumerate() {
        sums[i] += a * b;
    }
    sums.iter().sum()
}

#[inline(always)]
fn dot_of_codes(a: &[i16], b: &[i16]) -> i32 {
    a.iter().zip(b).fold(0, |sum, (&a, &b)| sum + i32::from(a) * i32::from(b))
}

per_processor! {
    /// Rows of x times all rows of w.
    fn multiply(x: &[f64], w: &[f64], columns: usize, products: &mut [f64]) {
        let outputs = w.len() / columns;
        for (output, w) in w.chunks_exact(columns).enumerate() {
            for (row, x) in x.chunks_exact(columns).enumerate() {
                products[row * outputs + output] = dot(x, w);
            }
        }
    }
}

per_processor! {
    /// Σ (product − Δ_x·Δ_w·Σ codes)², over rows of x and all rows of w.
    fn squared_difference(
        products: &[f64],
        x: &[i16],
        x_steps: &[f64],
        w: &[i16],
        w_steps: &[f64],
        columns: usize,
    ) -> f64 {
        let outputs = w_steps.len();
        let mut sum = 0.0;
        for (output, (w, w_step)) in w.chunks_exact(columns).zip(w_steps).enumerate() {
            for (row, (x, x_step)) in x.chunks_exact(columns).zip(x_steps).enumerate() {
                let rounded = x_step * w_step * f64::from(dot_of_codes(x, w));
                let difference = products[row * outputs + output] - rounded;
                sum += difference * difference;
            }
        }
        sum
    }
}

/// X·Wᵀ, tokens × outputs.
pub fn product(pair: &Pair) -> Vec<f64> {
    let (columns, outputs) = (pair.x.columns, pair.w.rows());
    let mut products = vec![0.0; pair.x.rows() * outputs];
    let blocks = pair.x.values.par_chunks(ROWS * columns).zip(products.par_chunks_mut(ROWS * outputs));
    blocks.for_each(|(x, products)| multiply(x, &pair.w.values, columns, products));
    products
}

/// Σ (X·Wᵀ − Q(X)·Q(W)ᵀ)²; `products` is X·Wᵀ as [`product`] gives it.
pub fn error(products: &[f64], x: &Rounded, w: &Rounded) -> f64 {
    let (outputs, columns) = (w.steps.len(), w.codes.len() / w.steps.len());
    let codes = x.codes.par_chunks(ROWS * columns).zip(x.steps.par_chunks(ROWS));
    let blocks = products.par_chunks(ROWS * outputs).zip(codes);
    let parts = blocks.map(|(products, (x, x_steps))| {
        squared_difference(products, x, x_steps, &w.codes, &w.steps, columns)
    });
    // Added up in order, so that the sum does not depend on threads.
    parts.collect::<Vec<f64>>().into_iter().sum()
}

/// (‖W‖²·Σ_t Δ_t² + ‖X‖²·Σ_i Δ_i²)/12: the error if every value were off by a uniform random part of its step.
pub fn estimate(pair: &Pair, x_steps: &[f64], w_steps: &[f64]) -> f64 {
    let squares = |steps: &[f64]| steps.iter().map(|step| step * step).sum::<f64>();
    (pair.w.energy() * squares(x_steps) + pair.x.energy() * squares(w_steps)) / 12.0
}

/// (max − min)/(2ᵇ − 1) of every row: the steps that the released code puts into its estimate, though it rounds with
/// other ones.
pub fn asymmetric_steps(matrix: &Matrix, bits: u8) -> Vec<f64> {
    let codes = f64::from((1u32 << bits) - 1);
    let step = |row: &[f64]| {
        let ends = (f64::INFINITY, f64::NEG_INFINITY);
        let (lo, hi) = row.iter().fold(ends, |(lo, hi), &x| (x.min(lo), x.max(hi)));
        (hi - lo) / codes
    };
    matrix.values.chunks_exact(matrix.columns).map(step).collect()
}
