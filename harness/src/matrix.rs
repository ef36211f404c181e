//! Dense f64 matrices on the host: products through the multiplication kernel that the CPU back end uses, and what is
//! needed of a positive definite matrix.

use gemm::Parallelism;
use models::per_processor;
use rayon::prelude::*;

/// Columns that are factored or inverted together.
const PANEL: usize = 64;

/// Rows that one product of a triangle's update takes.
const STRIPE: usize = 256;

/// A matrix inside a slice. Element (r, c) lies at `r · row_stride + c · column_stride`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    values: &'a [f64],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `stride` values, of which the first `columns` belong to the matrix.
    ///
    /// # Panics
    /// If the slice is shorter.
    pub fn new(values: &'a [f64], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(holds(values.len(), rows, columns, stride), "a matrix lies inside its slice");
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The columns `from..to`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn columns(self, from: usize, to: usize) -> Self {
        assert!(self.column_stride == 1 && from <= to && to <= self.columns, "columns of the matrix");
        Self { values: &self.values[from.min(self.values.len())..], columns: to - from, ..self }
    }

    /// The same values with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

fn holds(len: usize, rows: usize, columns: usize, stride: usize) -> bool {
    rows == 0 || columns == 0 || (columns <= stride && (rows - 1) * stride + columns <= len)
}

/// `target` ← `target` + `factor` · `left` · `right`, in all threads or in this one.
///
/// # Shapes
/// `left` is `[m, k]`, `right` `[k, n]`; `target` holds m rows of `stride` values, the first n of each are changed.
///
/// # Panics
/// If the shapes do not fit, or `target` is too short.
pub fn add_product(
    target: &mut [f64],
    stride: usize,
    factor: f64,
    left: View,
    right: View,
    in_parallel: bool,
) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "inner sides agree");
    assert!(holds(target.len(), m, n, stride), "the product lies inside its target");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let parallelism = if in_parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the three matrices lie inside their slices (checked here and when the views were made), and the target is
    // borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.as_mut_ptr(),
            1,
            stride as isize,
            true,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

per_processor! {
    /// Σ a·b
    pub fn dot(a: &[f64], b: &[f64]) -> f64 {
        const LANES: usize = 8;
        let mut sums = [0.0f64; LANES];
        let (left, left_rest) = a.as_chunks::<LANES>();
        let (right, right_rest) = b.as_chunks::<LANES>();
        for (a, b) in left.iter().zip(right) {
            for i in 0..LANES {
                sums[i] += a[i] * b[i];
            }
        }
        let rest: f64 = left_rest.iter().zip(right_rest).map(|(a, b)| a * b).sum();
        rest + sums.iter().sum::<f64>()
    }
}

per_processor! {
    /// values ← values − factor · row
    pub fn subtract(values: &mut [f64], factor: f64, row: &[f64]) {
        for (value, &r) in values.iter_mut().zip(row) {
            *value -= factor * r;
        }
    }
}

/// A matrix that is not positive definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPositiveDefinite;

/// The lower triangular L with A = L·Lᵀ, in place; what stands above the diagonal means nothing afterwards.
///
/// # Shapes
/// `a` is `[side, side]`, symmetric; only its lower triangle is read.
///
/// # Errors
/// If a pivot is not above zero by more than rounding explains: `side`·2⁻⁵² of its element of the diagonal.
pub fn cholesky(a: &mut [f64], side: usize) -> Result<(), NotPositiveDefinite> {
    assert_eq!(a.len(), side * side, "a square matrix");
    let least: Vec<f64> = a.iter().step_by(side + 1).map(|x| x * side as f64 * f64::EPSILON).collect();
    for from in (0..side).step_by(PANEL) {
        let to = (from + PANEL).min(side);
        let width = to - from;
        // The panel's rows above are finished and already taken out of it.
        for i in from..to {
            let (above, rest) = a.split_at_mut(i * side);
            let row = &mut rest[from..from + width];
            for j in from..i {
                let other = &above[j * side + from..j * side + j];
                let x = (row[j - from] - dot(&row[..j - from], other)) / above[j * side + j];
                row[j - from] = x;
            }
            let pivot = row[i - from] - dot(&row[..i - from], &row[..i - from]);
            // What rounding leaves of a zero is no pivot.
            if !(pivot > least[i] && pivot.is_finite()) {
                return Err(NotPositiveDefinite);
            }
            row[i - from] = pivot.sqrt();
        }
        let (done, below) = a.split_at_mut(to * side);
        let top = &done[from * side..];
        below.par_chunks_mut(side).for_each(|row| {
            let row = &mut row[from..to];
            for j in 0..width {
                let other = &top[j * side + from..];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
        });
        // A copy, because the panel and what it changes lie in the same rows.
        let panel: Vec<f64> = below.chunks(side).flat_map(|row| row[from..to].iter().copied()).collect();
        let rows = side - to;
        for start in (0..rows).step_by(STRIPE) {
            let end = (start + STRIPE).min(rows);
            let left = View::new(&panel[start * width..], end - start, width, width);
            let right = View::new(&panel, end, width, width).transposed();
            add_product(&mut below[start * side + to..], side, -1.0, left, right, true);
        }
    }
    Ok(())
}

/// The inverse of a lower triangular matrix, with zeros above the diagonal.
///
/// # Shapes
/// `[side, side]`; what stands above the diagonal of `l` is not read.
pub fn invert_lower(l: &[f64], side: usize) -> Vec<f64> {
    assert_eq!(l.len(), side * side, "a square matrix");
    let mut inverse = vec![0.0; side * side];
    for from in (0..side).step_by(PANEL) {
        let to = (from + PANEL).min(side);
        let width = to - from;
        // The diagonal block, by forward substitution.
        let mut block = vec![0.0; width * width];
        for c in 0..width {
            for r in c..width {
                let row = &l[(from + r) * side + from..];
                let sum: f64 = (c..r).map(|t| row[t] * block[t * width + c]).sum();
                let unit = if r == c { 1.0 } else { 0.0 };
                block[r * width + c] = (unit - sum) / row[r];
            }
        }
        // X_i = −X_ii · (L_i · X_above).
        let mut product = vec![0.0; width * from];
        let (above, rest) = inverse.split_at_mut(from * side);
        if from > 0 {
            let left = View::new(&l[from * side..], width, from, side);
            add_product(&mut product, from, 1.0, left, View::new(above, from, from, side), true);
            let (block, product) =
                (View::new(&block, width, width, width), View::new(&product, width, from, from));
            add_product(rest, side, -1.0, block, product, true);
        }
        for (r, row) in block.chunks(width).enumerate() {
            rest[r * side + from..r * side + to].copy_from_slice(row);
        }
    }
    inverse
}

/// The upper triangular U with H⁻¹ = Uᵀ·U, the factor that GPTQ reads its corrections from.
///
/// With J the exchange matrix and J·H·J = L·Lᵀ, U = J·L⁻¹·J: one factorisation and one triangular inverse, without
/// forming H⁻¹.
///
/// # Shapes
/// `[side, side]` in and out.
///
/// # Errors
/// If H is not positive definite.
pub fn inverse_factor(h: &[f64], side: usize) -> Result<Vec<f64>, NotPositiveDefinite> {
    let mut flipped: Vec<f64> = h.iter().rev().copied().collect();
    cholesky(&mut flipped, side)?;
    let mut factor = invert_lower(&flipped, side);
    factor.reverse();
    Ok(factor)
}

/// tr(Δ·H·Δᵀ) row by row: the squared error of each output over the calibration set.
///
/// # Shapes
/// `change` is `[rows, side]`, `h` `[side, side]`; the result has one value per row.
pub fn quadratic_forms(change: &[f64], h: View) -> Vec<f64> {
    let side = h.rows;
    let rows = change.len() / side;
    let mut product = vec![0.0; change.len()];
    add_product(&mut product, side, 1.0, View::new(change, rows, side, side), h, true);
    change.par_chunks(side).zip(product.par_chunks(side)).map(|(d, hd)| dot(d, hd)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A well-conditioned symmetric positive definite matrix without symmetry of any other kind.
    fn definite(side: usize) -> Vec<f64> {
        let x: Vec<f64> = (0..2 * side * side).map(|i| ((i * 7919 % 1013) as f64 - 506.0) / 500.0).collect();
        let mut h = vec![0.0; side * side];
        let x = View::new(&x, 2 * side, side, side);
        add_product(&mut h, side, 1.0, x.transposed(), x, false);
        (0..side).for_each(|i| h[i * side + i] += 1.0);
        h
    }

    #[test]
    fn factor_and_inverse_multiply_to_what_they_came_from() {
        for side in [1, 5, 64, 65, 200, 301] {
            let h = definite(side);
            let u = inverse_factor(&h, side).unwrap();
            for r in 0..side {
                assert!(u[r * side..r * side + r].iter().all(|&x| x == 0.0), "below the diagonal");
                assert!(u[r * side + r] > 0.0);
            }
            // U·H·Uᵀ = 1 because H⁻¹ = Uᵀ·U.
            let (mut uh, mut one) = (vec![0.0; side * side], vec![0.0; side * side]);
            let view = View::new(&u, side, side, side);
            add_product(&mut uh, side, 1.0, view, View::new(&h, side, side, side), false);
            add_product(&mut one, side, 1.0, View::new(&uh, side, side, side), view.transposed(), false);
            for r in 0..side {
                for c in 0..side {
                    let expected = if r == c { 1.0 } else { 0.0 };
                    assert!((one[r * side + c] - expected).abs() < 1e-9, "{side}: ({r}, {c})");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        for h in [vec![0.0], vec![-1.0], vec![f64::NAN], vec![f64::INFINITY], vec![1.0, 2.0, 2.0, 1.0]] {
            let side = h.len().isqrt();
            assert_eq!(inverse_factor(&h, side), Err(NotPositiveDefinite), "{h:?}");
        }
        // Rank one, 130 channels: the failure is behind the first panel.
        let side = 130;
        let mut h = definite(side);
        for c in 0..side {
            // The first channel equals the last, exactly.
            h[c] = h[(side - 1) * side + c];
        }
        for r in 0..side {
            h[r * side] = h[r * side + side - 1];
        }
        h[0] = h[side * side - 1] * (1.0 - 1e-9);
        assert_eq!(inverse_factor(&h, side), Err(NotPositiveDefinite));
    }

    #[test]
    fn quadratic_forms_are_sums_over_pairs() {
        let (side, rows) = (9, 4);
        let h = definite(side);
        let change: Vec<f64> = (0..rows * side).map(|i| ((i * 31 % 17) as f64 - 8.0) / 8.0).collect();
        let found = quadratic_forms(&change, View::new(&h, side, side, side));
        for (row, found) in change.chunks(side).zip(found) {
            let pairs = (0..side * side).map(|i| row[i / side] * h[i] * row[i % side]);
            assert!((found - pairs.sum::<f64>()).abs() < 1e-9);
        }
    }
}
