//! Rounding noise of a precision, for the noise floor: what a model says when every activation carries the error that a
//! floating-point format of so many bits would give it.
//!
//! # Equation
//! A value x with 2^e ≤ |x| < 2^(e+1) becomes x + 2^e · 2^−p · r, with p the significant bits of the format, the hidden one
//! included (bfloat16 8, float16 11, float32 24), and r uniform on [−1, 1): an error of the size and spread of
//! rounding to nearest, at every site, redrawn at every pass.
//!
//! # Reference
//! The noise floor of exllamav3's `eval/qbench.py`.

use std::cell::Cell;
use std::rc::Rc;

use burn::tensor::Tensor;
use models::kernel::change_in_place;
use models::{Group, Site, Tap};
use rayon::prelude::*;

/// Adds rounding noise at every site.
#[derive(Clone, Debug)]
pub struct RoundingNoise {
    bits: u32,
    /// Tensors seen so far: each has its own draws, which do not depend on threads or the device.
    seen: Rc<Cell<u64>>,
}

impl RoundingNoise {
    /// Noise of a format with `bits` significant bits.
    ///
    /// # Panics
    /// If no format has so many: below 1 or above 24.
    pub fn new(bits: u32) -> Self {
        assert!((1..=24).contains(&bits), "a float has 1 to 24 significant bits, not {bits}");
        Self { bits, seen: Rc::new(Cell::new(0)) }
    }

    /// The count of tensors seen so far, which decides the draws of the next one; for whoever leads batches through a model
    /// in another order. Clones share it.
    pub fn counter(&self) -> Rc<Cell<u64>> {
        self.seen.clone()
    }

    fn noisy<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D> {
        const CHUNK: usize = 1 << 14;
        self.seen.set(self.seen.get() + 1);
        let (key, bits) = (mix(self.seen.get()), self.bits);
        change_in_place(x, |values| {
            values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
                for (i, value) in values.iter_mut().enumerate() {
                    let draw = mix(key.wrapping_add((chunk * CHUNK + i) as u64));
                    *value = moved(*value, bits, draw);
                }
            });
        })
    }
}

/// A value moved by a draw of 64 bits.
fn moved(value: f32, bits: u32, draw: u64) -> f32 {
    // 2^e: the value without sign and fraction.
    let step = f64::from(f32::from_bits(value.to_bits() & 0x7f80_0000)) * 0.5f64.powi(bits as i32);
    let uniform = (draw >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    (f64::from(value) + step * uniform) as f32
}

/// splitmix64.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Tap for RoundingNoise {
    fn linears(&mut self, _: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        group.forward(self.noisy(x))
    }

    fn tensor(&mut self, _: Site, x: Tensor<4>) -> Tensor<4> {
        self.noisy(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_as_large_as_that_of_rounding_and_no_larger() {
        for (bits, value) in [(8, 1.0f32), (8, -3.9), (11, 0.3), (8, 0.0)] {
            let half = f64::from(f32::from_bits(value.to_bits() & 0x7f80_0000)) * 0.5f64.powi(bits);
            let draws = 20_000u64;
            let errors = (0..draws).map(|i| f64::from(moved(value, bits as u32, mix(i))) - f64::from(value));
            let (mut square, mut sum) = (0.0, 0.0);
            for error in errors {
                // Plus the rounding of the result to f32 itself.
                assert!(error.abs() <= half + f64::from(value.abs()) * 0.5f64.powi(24), "{value} {error}");
                (square, sum) = (square + error * error, sum + error);
            }
            // Uniform on ±half: variance half²/3, mean 0.
            let expected = half * half / 3.0;
            assert!((square / draws as f64 - expected).abs() <= 0.03 * expected, "{value}");
            assert!((sum / draws as f64).abs() <= 0.02 * half, "{value}");
        }
    }
}
