//! Second moments of activations, XᵀX in f64: what methods that weigh errors by the input stand on.

use rayon::prelude::*;

use crate::matrix::{View, add_product};

/// Rows of the upper triangle that one task sums.
const STRIPE: usize = 96;

/// Σ x·xᵀ over the tokens seen, on the host.
///
/// Sums of f64: another order of samples gives the same to about 1e-12, relative to the diagonal.
#[derive(Clone, Debug, PartialEq)]
pub struct SecondMoment {
    /// Side of the matrix.
    pub channels: usize,
    /// Tokens summed over.
    pub tokens: u64,
    /// `[channels, channels]`, row by row; symmetric.
    pub sums: Vec<f64>,
}

impl SecondMoment {
    /// Of no tokens.
    pub fn new(channels: usize) -> Self {
        Self { channels, tokens: 0, sums: vec![0.0; channels * channels] }
    }

    /// Adds rows `[tokens, channels]`.
    ///
    /// # Panics
    /// If the values are no whole rows.
    pub fn add(&mut self, rows: &[f32]) {
        assert!(rows.len().is_multiple_of(self.channels), "rows of {} channels", self.channels);
        let tokens = rows.len() / self.channels;
        let side = self.channels;
        let wide: Vec<f64> = rows.par_iter().map(|&x| f64::from(x)).collect();
        let x = View::new(&wide, tokens, side, side);
        // Only what lies on and right of the diagonal is summed, a stripe of rows in each task.
        self.sums.par_chunks_mut(STRIPE * side).enumerate().for_each(|(stripe, sums)| {
            let from = stripe * STRIPE;
            let rows = sums.len() / side;
            let right = x.columns(from, side);
            add_product(
                &mut sums[from..],
                side,
                1.0,
                x.columns(from, from + rows).transposed(),
                right,
                false,
            );
        });
        self.mirror();
        self.tokens += tokens as u64;
    }

    /// Copies the upper triangle below the diagonal, in tiles that stay in the cache.
    fn mirror(&mut self) {
        const TILE: usize = 32;
        let side = self.channels;
        for top in (0..side).step_by(TILE) {
            for left in (top..side).step_by(TILE) {
                for r in left..(left + TILE).min(side) {
                    for c in top..(top + TILE).min(r) {
                        self.sums[r * side + c] = self.sums[c * side + r];
                    }
                }
            }
        }
    }

    /// The diagonal: Σ x² by channel.
    pub fn squares(&self) -> Vec<f64> {
        self.sums.iter().step_by(self.channels + 1).copied().collect()
    }

    /// Adds another moment.
    ///
    /// # Panics
    /// If the two have different channels.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.channels, other.channels, "second moments of different sites");
        self.tokens += other.tokens;
        for (sum, &more) in self.sums.iter_mut().zip(&other.sums) {
            *sum += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_sum_of_outer_products_in_double_precision() {
        let channels = 5;
        let rows: Vec<f32> = (0..35).map(|i| ((i * 29 % 31) as f32 - 15.0) / 7.0).collect();
        let mut whole = SecondMoment::new(channels);
        whole.add(&rows);
        for a in 0..channels {
            for b in 0..channels {
                let expected: f64 = rows.chunks(channels).map(|r| f64::from(r[a]) * f64::from(r[b])).sum();
                assert!((whole.sums[a * channels + b] - expected).abs() < 1e-12);
            }
        }
        let mut parts = SecondMoment::new(channels);
        let mut last = SecondMoment::new(channels);
        last.add(&rows[20..]);
        parts.merge(&last);
        parts.add(&rows[..20]);
        assert_eq!(parts.tokens, 7);
        for (found, expected) in parts.sums.iter().zip(&whole.sums) {
            assert!((found - expected).abs() <= 1e-12 * whole.sums[0].abs().max(1.0));
        }
    }
}
