//! The codes of rounded weights, read off their values.
//!
//! Whatever rounds weights (to nearest, by a solver, by training) gives them back as floating-point numbers k·Δ. Here the
//! whole numbers k and Δ are found again, and taken only if k·Δ in f32 is every value exactly: what is executed is what
//! was rounded, and not something near it.

use models::per_processor;

/// The greatest magnitude of k: that of an 8-bit code less its zero point.
pub const GREATEST: i32 = 255;

/// How far from a whole number a value over Δ may lie before Δ is known to f32's last place: 255 · 2 · 2^−23, and some.
const NEAR: f64 = 1e-4;

/// Δ of values that share a scale, with v = k·Δ in f32 and |k| at most [`GREATEST`]; `None` where there is none. `range` is
/// theirs. `bits` is a hint: the largest values of a grid are tried first, and before them `likely`. The largest Δ among several
/// need not be found. Values of k are at most [`GREATEST`] apart, zero included.
pub fn delta(values: &[f32], range: (f32, f32), bits: u8, likely: Option<f32>) -> Option<f32> {
    if !is_finite(values) {
        return None;
    }
    let largest = range.1.max(-range.0);
    if largest == 0.0 {
        return Some(1.0);
    }
    let q = (1 << (bits - 1)) - 1;
    let quick = [q, q + 1].into_iter().flat_map(|top| {
        let delta = largest / top as f32;
        [delta, delta.next_up(), delta.next_down()]
    });
    let found = likely.into_iter().chain(quick).find(|delta| is_right(values, range, *delta));
    // The least k first: half of Δ gives the same values, by codes that may be too far apart.
    found.or_else(|| (1..=GREATEST).find_map(|top| delta_of_largest(values, range, top)))
}

/// Whether every value is k·Δ, and the values of k are no further apart than codes of 8 bits.
fn is_right(values: &[f32], (lo, hi): (f32, f32), delta: f32) -> bool {
    delta.is_normal()
        && delta > 0.0
        && is_exact(values, delta)
        && code(hi.max(0.0), delta) - code(lo.min(0.0), delta) <= GREATEST
}

per_processor! {
    fn is_finite(values: &[f32]) -> bool {
        values.iter().fold(true, |all, v| all & v.is_finite())
    }
}

per_processor! {
    /// Whether every value is k·Δ with a whole k of at most the greatest magnitude.
    fn is_exact(values: &[f32], delta: f32) -> bool {
        let mut wrong = 0u32;
        for &value in values {
            let k = (value / delta).round_ties_even();
            wrong |= u32::from(k * delta != value) | u32::from(k.abs() > GREATEST as f32);
        }
        wrong == 0
    }
}

per_processor! {
    /// k − z of every value, as codes.
    pub fn encode(values: &[f32], delta: f32, zero: i32, codes: &mut [i8]) {
        for (code, &value) in codes.iter_mut().zip(values) {
            // SAFETY: k is a whole number of at most the greatest magnitude.
            let k = unsafe { (value / delta).round_ties_even().to_int_unchecked::<i32>() };
            *code = k.wrapping_sub(zero) as i8;
        }
    }
}

/// k of a value.
#[inline]
pub fn code(value: f32, delta: f32) -> i32 {
    (value / delta).round_ties_even() as i32
}

/// Δ where the largest value's k is `top`.
fn delta_of_largest(values: &[f32], range: (f32, f32), top: i32) -> Option<f32> {
    let largest = range.1.max(-range.0);
    let per_value = f64::from(top) / f64::from(largest);
    // Every value says between what Δ lies: k·Δ was rounded to it.
    let (mut low, mut high) = (0.0f64, f64::INFINITY);
    for value in values {
        let place = f64::from(*value) * per_value;
        let k = place.round_ties_even();
        if (place - k).abs() > NEAR || (k == 0.0 && *value != 0.0) {
            return None;
        }
        if k != 0.0 {
            let v = value.abs();
            let middle = |next: f32| (f64::from(v) + f64::from(next)) / 2.0 / k.abs();
            low = low.max(middle(v.next_down()));
            high = high.min(middle(v.next_up()));
        }
    }
    let mut delta = (low as f32).next_down();
    while f64::from(delta) <= high {
        if is_right(values, range, delta) {
            return Some(delta);
        }
        delta = delta.next_up();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::grid::{CONVENTIONS, Convention, Grid};
    use crate::quantize::rounding::{range, round_slice};

    /// Δ of values of which nothing else is known.
    fn alone(values: &[f32], bits: u8) -> Option<f32> {
        delta(values, range(values), bits, None)
    }

    fn values(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.4
        };
        (0..count).map(|_| next() * next() * 0.37).collect()
    }

    #[test]
    fn the_values_of_every_grid_come_back_exactly() {
        for convention in CONVENTIONS {
            for bits in 2..=8 {
                for (count, seed) in [(1, 1), (3, 2), (32, 3), (129, 4), (576, 5), (576, 6)] {
                    let mut rounded = values(count, seed * 100 + u64::from(bits));
                    round_slice(&mut rounded, Grid::new(bits, convention), 1.0);
                    let found = alone(&rounded, bits);
                    // A lone value beside its unbounded zero point may be many steps from zero.
                    let unbounded = matches!(convention, Convention::AtomAsymmetric | Convention::Omniquant);
                    let Some(found) = found else {
                        assert!(unbounded && count < 32, "{convention:?} {bits} {count}");
                        continue;
                    };
                    for v in &rounded {
                        assert_eq!(code(*v, found) as f32 * found, *v, "{convention:?} {bits} {count}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_on_no_grid_has_no_codes() {
        assert_eq!(alone(&values(64, 9), 8), None);
        let mut almost = values(64, 10);
        round_slice(&mut almost, Grid::new(8, Convention::Absmax), 1.0);
        assert!(alone(&almost, 8).is_some());
        almost[17] = almost[17].next_up();
        assert_eq!(alone(&almost, 8), None);
        assert_eq!(alone(&[f32::NAN, 1.0], 8), None);
        assert_eq!(alone(&[1.0, 1.0 / 256.0], 8), None);
        assert_eq!(alone(&[0.0; 5], 4), Some(1.0));
    }

    #[test]
    fn a_share_that_is_a_part_of_a_grid_has_codes_of_8_bits() {
        // The largest magnitude is a divisor of the grid's own: Δ divided as well would give codes too far apart.
        for top in [1, 2, 16, 32, 51, 64, 85, 127] {
            let values: Vec<f32> = (-top..=top).map(|k| k as f32 * 0.013).collect();
            let found = alone(&values, 8).unwrap();
            let codes: Vec<i32> = values.iter().map(|&v| code(v, found)).collect();
            assert!(codes[codes.len() - 1] - codes[0] <= GREATEST, "{top}: {codes:?}");
        }
    }

    #[test]
    fn what_is_likely_is_taken_where_it_is_right_and_only_there() {
        let rounded: Vec<f32> = (-40..=40).map(|k| (k * 3) as f32 * 0.013).collect();
        let with = |likely| delta(&rounded, range(&rounded), 8, Some(likely));
        assert_eq!(with(0.013), Some(0.013));
        for wrong in [0.017, 0.0, -0.013, f32::NAN, f32::INFINITY, 1e-30] {
            assert_eq!(with(wrong), alone(&rounded, 8), "{wrong}");
        }
    }
}
