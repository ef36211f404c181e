//! The fast transform: rows of values times F ⊗ S ⊗ I, F a small dense matrix and S Sylvester's.
//!
//! A row is read as a matrix `[m, s·i]`. S costs log₂ s additions a value, F costs m, the identity nothing.

use std::ops::{Add, AddAssign, Mul, Sub};

use rayon::prelude::*;

use crate::kernel::GRAIN;
use crate::per_processor;

/// f32 and f64.
pub trait Real:
    Copy + Send + Sync + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + AddAssign + 'static
{
    /// 0
    const ZERO: Self;
    /// The nearest value.
    fn of(x: f64) -> Self;
    /// Transforms whole rows.
    fn rows(values: &mut [Self], plan: &Plan<Self>, transposed: bool);
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    fn of(x: f64) -> Self {
        x as f32
    }
    fn rows(values: &mut [Self], plan: &Plan<Self>, transposed: bool) {
        rows_f32(values, plan, transposed);
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    fn of(x: f64) -> Self {
        x
    }
    fn rows(values: &mut [Self], plan: &Plan<Self>, transposed: bool) {
        rows_f64(values, plan, transposed);
    }
}

per_processor! {
    fn rows_f32(values: &mut [f32], plan: &Plan<f32>, transposed: bool) {
        transform(values, plan, transposed);
    }
}

per_processor! {
    fn rows_f64(values: &mut [f64], plan: &Plan<f64>, transposed: bool) {
        transform(values, plan, transposed);
    }
}

/// What is done to every row.
pub struct Plan<T> {
    /// Values of a row.
    pub width: usize,
    /// By channel, before the product.
    pub signs: Option<Vec<T>>,
    pub product: Product<T>,
}

/// The matrix that multiplies a row.
pub enum Product<T> {
    /// ⊕ (F ⊗ S ⊗ I)·scale: `count` equal blocks, F symmetric, S Sylvester's.
    Kronecker {
        /// Order of F.
        m: usize,
        /// F, row by row.
        factor: Vec<T>,
        /// Order of S.
        sylvester: usize,
        /// Order of I.
        inner: usize,
        /// One over the square root of m · sylvester.
        scale: T,
    },
    /// M ⊗ I.
    Dense {
        /// M, row by row.
        matrix: Vec<T>,
        /// Its transpose.
        transposed: Vec<T>,
        /// Order of M.
        order: usize,
        /// Order of I.
        inner: usize,
    },
}

/// Rows of a dense product that one task takes.
const DENSE_ROWS: usize = 32;

/// Every row times the plan's matrix, or its transpose, in parallel.
///
/// # Panics
/// If the values are not whole rows.
pub fn apply<T: Real>(values: &mut [T], plan: &Plan<T>, transposed: bool) {
    let (length, width) = (values.len(), plan.width);
    assert!(length.is_multiple_of(width), "{length} values are not rows of {width}");
    let rows = match plan.product {
        Product::Kronecker { .. } => GRAIN / width + 1,
        Product::Dense { .. } => DENSE_ROWS,
    };
    values.par_chunks_mut(rows * width).for_each(|rows| T::rows(rows, plan, transposed));
}

#[inline(always)]
fn transform<T: Real>(values: &mut [T], plan: &Plan<T>, transposed: bool) {
    let times_signs = |values: &mut [T]| {
        if let Some(signs) = &plan.signs {
            for row in values.chunks_exact_mut(plan.width) {
                row.iter_mut().zip(signs).for_each(|(x, &s)| *x = *x * s);
            }
        }
    };
    if !transposed {
        times_signs(values);
    }
    match &plan.product {
        Product::Kronecker { m, factor, sylvester, inner, scale } => {
            let run = sylvester * inner;
            let mut scratch = vec![T::ZERO; if *m > 1 { m * run } else { 0 }];
            for block in values.chunks_exact_mut(m * run) {
                for part in block.chunks_exact_mut(run) {
                    walsh(part, *inner);
                }
                if *m > 1 {
                    multiply(factor, block, &mut scratch, *m, run);
                    block.iter_mut().zip(&scratch).for_each(|(x, &y)| *x = y * *scale);
                } else {
                    block.iter_mut().for_each(|x| *x = *x * *scale);
                }
            }
        }
        Product::Dense { matrix, transposed: other, order, inner } => {
            let mut scratch = vec![T::ZERO; values.len()];
            // A row vector times M, and M's transpose times a column, are the same numbers.
            let (from_right, from_left) = if transposed { (other, matrix) } else { (matrix, other) };
            if *inner == 1 {
                multiply(values, from_right, &mut scratch, *order, *order);
            } else {
                let rows = values.chunks_exact(plan.width).zip(scratch.chunks_exact_mut(plan.width));
                rows.for_each(|(row, out)| multiply(from_left, row, out, *order, *inner));
            }
            values.copy_from_slice(&scratch);
        }
    }
    if transposed {
        times_signs(values);
    }
}

/// Values that fit into a few registers of every processor.
const LANES: usize = 16;

/// Sylvester's matrix times runs of `from` values, in place.
#[inline(always)]
fn walsh<T: Real>(x: &mut [T], from: usize) {
    let mut half = from;
    if from == 1 && x.len().is_multiple_of(LANES) {
        for chunk in x.as_chunks_mut::<LANES>().0 {
            *chunk = butterfly::<T, 1>(*chunk);
            *chunk = butterfly::<T, 2>(*chunk);
            *chunk = butterfly::<T, 4>(*chunk);
            *chunk = butterfly::<T, 8>(*chunk);
        }
        half = LANES;
    }
    // Two levels at once, for half the ways through memory.
    while 4 * half <= x.len() {
        for four in x.chunks_exact_mut(4 * half) {
            let (ab, cd) = four.split_at_mut(2 * half);
            let ((a, b), (c, d)) = (ab.split_at_mut(half), cd.split_at_mut(half));
            for i in 0..half {
                let (p, q, r, s) = (a[i] + b[i], a[i] - b[i], c[i] + d[i], c[i] - d[i]);
                (a[i], b[i], c[i], d[i]) = (p + r, q + s, p - r, q - s);
            }
        }
        half *= 4;
    }
    while 2 * half <= x.len() {
        for two in x.chunks_exact_mut(2 * half) {
            let (a, b) = two.split_at_mut(half);
            for i in 0..half {
                (a[i], b[i]) = (a[i] + b[i], a[i] - b[i]);
            }
        }
        half *= 2;
    }
}

/// One level within a few registers: a shuffle, a sign, a sum.
#[inline(always)]
fn butterfly<T: Real, const HALF: usize>(x: [T; LANES]) -> [T; LANES] {
    let mut y = [T::ZERO; LANES];
    for i in 0..LANES {
        y[i] = if i & HALF == 0 { x[i] + x[i ^ HALF] } else { x[i ^ HALF] - x[i] };
    }
    y
}

/// A·B for `[rows, depth]` and `[depth, width]`, in tiles whose sums stay in registers.
#[inline(always)]
fn multiply<T: Real>(a: &[T], b: &[T], out: &mut [T], depth: usize, width: usize) {
    let fours = a.len() / depth / 4 * 4;
    let (a_fours, a_rest) = a.split_at(fours * depth);
    let (out_fours, out_rest) = out.split_at_mut(fours * width);
    for (a, out) in a_fours.chunks_exact(4 * depth).zip(out_fours.chunks_exact_mut(4 * width)) {
        rows_by::<T, 4>(a, b, out, depth, width);
    }
    for (a, out) in a_rest.chunks_exact(depth).zip(out_rest.chunks_exact_mut(width)) {
        rows_by::<T, 1>(a, b, out, depth, width);
    }
}

#[inline(always)]
fn rows_by<T: Real, const ROWS: usize>(a: &[T], b: &[T], out: &mut [T], depth: usize, width: usize) {
    let mut column = 0;
    while column + LANES <= width {
        tile::<T, ROWS, LANES>(a, b, out, depth, width, column);
        column += LANES;
    }
    while column + 4 <= width {
        tile::<T, ROWS, 4>(a, b, out, depth, width, column);
        column += 4;
    }
    while column < width {
        tile::<T, ROWS, 1>(a, b, out, depth, width, column);
        column += 1;
    }
}

#[inline(always)]
fn tile<T: Real, const ROWS: usize, const COLUMNS: usize>(
    a: &[T],
    b: &[T],
    out: &mut [T],
    depth: usize,
    width: usize,
    column: usize,
) {
    let mut sums = [[T::ZERO; COLUMNS]; ROWS];
    for k in 0..depth {
        let b = &b[k * width + column..][..COLUMNS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let a = a[row * depth + k];
            for i in 0..COLUMNS {
                sums[i] += a * b[i];
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        out[row * width + column..][..COLUMNS].copy_from_slice(sums);
    }
}
