//! The factors nearest to what rounding takes from a weight.
//!
//! Of all E' of rank r, the truncated singular value decomposition of E is nearest to E (Eckart and Young, 1936): E' = U·Uᵀ·E
//! with the first r left singular vectors U. They are found by subspace iteration, U ← orthonormal(E·Eᵀ·U), whose column j
//! depends on the columns before it alone: a higher rank keeps the subspace of a lower one, so its error is never larger.

use burn::tensor::Tensor;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use crate::quantize::rounding::host_rows;

/// Rounds of the iteration. The spectrum of a rounding error is flat, so the last digits of U mean nothing.
const ITERATIONS: usize = 12;

/// A column shorter than this share of what it was before the others were taken out of it is none of its own.
const DEPENDENT: f64 = 1e-6;

/// Factors A `[rank, in]` and B `[out, rank]` with B·A nearest to E.
///
/// # Shapes
/// `residual` is E, `[out, in]` in rows of `input`; the rank is at most the smaller of the two.
pub fn factors(
    residual: Vec<f32>,
    input: usize,
    rank: usize,
    random: &mut ChaCha8Rng,
) -> (Vec<f32>, Vec<f32>) {
    let out = residual.len() / input;
    let e = host_rows(residual, input);
    // Drawn column by column, so that a higher rank begins with the columns of a lower one.
    let columns: Vec<f32> = (0..rank * out).map(|_| uniform(random)).collect();
    let mut u = orthonormal(columns, out);
    for _ in 0..ITERATIONS {
        let next = u.matmul(e.clone()).matmul(e.clone().transpose());
        u = orthonormal(values(next), out);
    }
    let a = values(u.clone().matmul(e));
    (a, values(u.transpose()))
}

/// Uniform within ±1.
pub(super) fn uniform(random: &mut ChaCha8Rng) -> f32 {
    (f64::from(random.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32
}

/// Vectors as rows of `length`, made orthonormal in their order in f64; what depends on those before it becomes zero.
fn orthonormal(vectors: Vec<f32>, length: usize) -> Tensor<2> {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(vectors.len() / length);
    for vector in vectors.chunks_exact(length) {
        let mut row: Vec<f64> = vector.iter().map(|&x| f64::from(x)).collect();
        let before = norm(&row);
        // Twice is enough: the second pass takes out what rounding left of the first.
        for _ in 0..2 {
            for earlier in &rows {
                let along: f64 = row.iter().zip(earlier).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(earlier).for_each(|(a, b)| *a -= along * b);
            }
        }
        let left = norm(&row);
        let factor = if left > DEPENDENT * before { 1.0 / left } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= factor);
        rows.push(row);
    }
    host_rows(rows.into_iter().flatten().map(|x| x as f32).collect(), length)
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn values(x: Tensor<2>) -> Vec<f32> {
    x.try_into_data().expect("a host tensor can be read").try_into_vec().expect("weights are f32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::set::stream;

    const OUT: usize = 40;
    const IN: usize = 24;

    /// U·diag(σ)·Vᵀ with known σ.
    fn with_spectrum(sigma: &[f64]) -> Vec<f32> {
        let mut random = stream("residual test", 1);
        let mut basis = |length: usize| {
            let drawn = (0..sigma.len() * length).map(|_| uniform(&mut random)).collect();
            values(orthonormal(drawn, length))
        };
        let (u, v) = (basis(OUT), basis(IN));
        let mut e = vec![0f32; OUT * IN];
        for (k, s) in sigma.iter().enumerate() {
            for r in 0..OUT {
                for c in 0..IN {
                    e[r * IN + c] += (s * f64::from(u[k * OUT + r]) * f64::from(v[k * IN + c])) as f32;
                }
            }
        }
        e
    }

    fn squared_error(e: &[f32], rank: usize) -> f64 {
        let (a, b) = factors(e.to_vec(), IN, rank, &mut stream("residual test", 2));
        let product = values(host_rows(b, rank).matmul(host_rows(a, IN)));
        e.iter().zip(&product).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    }

    #[test]
    fn the_error_is_what_eckart_and_young_allow() {
        let sigma: Vec<f64> = (0..IN).map(|k| 0.6f64.powi(k as i32)).collect();
        let e = with_spectrum(&sigma);
        for rank in [1, 2, 4, 8] {
            let least: f64 = sigma[rank..].iter().map(|s| s * s).sum();
            let found = squared_error(&e, rank);
            assert!(found >= least * (1.0 - 1e-3) && found <= least * 1.001, "rank {rank}: {found} {least}");
        }
    }

    #[test]
    fn a_higher_rank_never_errs_more_and_the_full_rank_not_at_all() {
        // A flat spectrum, as of rounding errors, and one with gaps.
        for sigma in [vec![1.0; IN], (0..IN).map(|k| 1.0 / (1.0 + k as f64)).collect::<Vec<_>>()] {
            let e = with_spectrum(&sigma);
            let total: f64 = e.iter().map(|x| f64::from(*x).powi(2)).sum();
            let errors: Vec<f64> = (1..=IN).map(|rank| squared_error(&e, rank)).collect();
            for pair in errors.windows(2) {
                assert!(pair[1] <= pair[0] + 1e-9 * total, "{pair:?}");
            }
            assert!(errors[IN - 1] < 1e-9 * total, "{} of {total}", errors[IN - 1]);
            assert!(errors[0] < total);
        }
    }

    #[test]
    fn nothing_has_no_factors() {
        let (a, b) = factors(vec![0.0; OUT * IN], IN, 3, &mut stream("residual test", 3));
        assert!(a.iter().chain(&b).all(|x| *x == 0.0));
    }
}
