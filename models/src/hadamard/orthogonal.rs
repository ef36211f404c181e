//! Random orthogonal matrices.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;

/// An orthogonal matrix drawn uniformly (Haar): the rows of a Gaussian matrix made orthonormal one after another, which
/// is its QR decomposition with the signs of R's diagonal fixed to be positive.
///
/// Rows are orthogonalised twice, so that they are orthogonal to the last bits of f64 whatever was drawn.
///
/// # Shapes
/// `[order, order]`, row by row.
pub fn random_orthogonal(order: usize, random: &mut ChaCha8Rng) -> Vec<f64> {
    let mut matrix: Vec<f64> = (0..order * order).map(|_| gaussian(random)).collect();
    for _ in 0..2 {
        orthonormalise(&mut matrix, order);
    }
    matrix
}

/// Makes the rows orthonormal, each within the span of itself and those before it (modified Gram–Schmidt).
///
/// # Panics
/// If a row is a combination of those before it.
pub fn orthonormalise(matrix: &mut [f64], order: usize) {
    for i in 0..order {
        let (done, rest) = matrix.split_at_mut((i + 1) * order);
        let row = &mut done[i * order..];
        let norm = dot(row, row).sqrt();
        assert!(norm > 0.0, "the rows are linearly dependent");
        row.iter_mut().for_each(|x| *x /= norm);
        let row = &*row;
        rest.par_chunks_mut(order).with_min_len(16).for_each(|other| {
            let along = dot(other, row);
            other.iter_mut().zip(row).for_each(|(o, r)| *o -= along * r);
        });
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
}

/// A draw from the standard normal distribution (Box and Muller).
fn gaussian(random: &mut ChaCha8Rng) -> f64 {
    // In (0, 1]: its logarithm is finite.
    let uniform = |random: &mut ChaCha8Rng| ((random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let radius = (-2.0 * uniform(random).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(random)).cos()
}
