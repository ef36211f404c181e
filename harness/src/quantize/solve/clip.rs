//! Where a range ends before a scale is chosen: a factor, or a search.
//!
//! | clip | candidates | loss of one scale's share of the weights | found in |
//! |---|---|---|---|
//! | a factor c | c·lo, c·hi | none | |
//! | `mse` | factors 1, 0.99, …, 0.21 on both ends | Σ abs(ŵ − w)^2.4 | GPTQ's and QuaRot's codes |
//! | `output` | max(lo, −m), min(hi, m) with m = M·(1 − i/20), i = 0…9 | δ·H·δᵀ, δ = ŵ − w, H of the share's channels | AWQ's code |
//!
//! The first smallest loss wins, so that a search that finds nothing better clips nothing. AWQ's code takes the loss over
//! at most 512 sampled tokens; here it is over all of them, through H. It is the loss of the share alone: errors of other
//! groups of the same row are not seen, there as here.

use models::per_processor;
use rayon::prelude::*;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use crate::matrix::{View, quadratic_forms};
use crate::quantize::grid::{Grid, Scale};
use crate::quantize::rounding::{range, round_with};

/// How the range of a scale's share is narrowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// By a factor.
    Factor(f32),
    /// Searched for the least error of the weights.
    Mse,
    /// Searched for the least error of what the share adds to the output.
    Output,
}

/// Scales of runs of `width` weights.
///
/// # Shapes
/// `values` holds whole runs; `h` is `[width, width]`, and is read by [`Clip::Output`] only.
///
/// # Panics
/// If [`Clip::Output`] is asked for without `h`.
pub fn scales(values: &[f32], width: usize, grid: Grid, clip: Clip, h: Option<View>) -> Vec<Scale> {
    match clip {
        Clip::Factor(factor) => values.par_chunks(width).map(|run| fitted(run, grid, factor)).collect(),
        Clip::Mse => values.par_chunks(width).map(|run| least_weight_error(run, grid)).collect(),
        Clip::Output => {
            least_output_error(values, width, grid, h.expect("a search by output error has its inputs"))
        }
    }
}

/// |d|^2.4 of a squared difference, without a branch, so that loops over it become vector code: d²·⁵√d², the root by
/// Newton's method from a guess in the exponent's bits, which four steps bring to the last place.
#[inline(always)]
fn power(square: f64) -> f64 {
    // Below, the guess in f32 would be of another magnitude; such errors are nothing beside any other.
    let square = if square < 1e-36 { 0.0 } else { square };
    let bits = (square as f32).to_bits() as i32 as f32;
    let guess = f32::from_bits((bits * 0.2 + 0.8 * 1_065_353_216.0) as i32 as u32);
    let mut root = f64::from(guess);
    for _ in 0..4 {
        let fourth = (root * root) * (root * root);
        root = 0.8 * root + 0.2 * square / fourth;
    }
    square * root
}

per_processor! {
    /// Σ |ŵ − w|^2.4
    fn weight_error(run: &[f32], grid: Grid, scale: Scale) -> f64 {
        const LANES: usize = 8;
        let (lo, hi) = grid.codes();
        let Scale { delta, zero } = scale;
        let error = |w: f32| {
            let code = ((w / delta).round_ties_even() + zero).clamp(lo, hi);
            let d = f64::from((code - zero) * delta - w);
            power(d * d)
        };
        let mut sums = [0.0f64; LANES];
        let (chunks, rest) = run.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                sums[i] += error(chunk[i]);
            }
        }
        rest.iter().map(|&w| error(w)).sum::<f64>() + sums.iter().sum::<f64>()
    }
}

fn fitted(run: &[f32], grid: Grid, factor: f32) -> Scale {
    let (lo, hi) = range(run);
    grid.fit(lo, hi, factor)
}

fn least_weight_error(run: &[f32], grid: Grid) -> Scale {
    let (lo, hi) = range(run);
    let mut best: Option<(f64, Scale)> = None;
    for i in 0..80 {
        let scale = grid.fit(lo, hi, 1.0 - i as f32 / 100.0);
        let loss = weight_error(run, grid, scale);
        if best.is_none_or(|(least, _)| loss < least) {
            best = Some((loss, scale));
        }
    }
    best.expect("there are candidates").1
}

fn least_output_error(values: &[f32], width: usize, grid: Grid, h: View) -> Vec<Scale> {
    let ranges: Vec<(f32, f32)> = values.par_chunks(width).map(range).collect();
    let mut best: Vec<(f64, Scale)> =
        ranges.iter().map(|&(lo, hi)| (f64::INFINITY, grid.fit(lo, hi, 1.0))).collect();
    for i in 0..10 {
        let shrink = 1.0 - i as f32 / 20.0;
        let candidates: Vec<Scale> = ranges
            .iter()
            .map(|&(lo, hi)| {
                let m = lo.abs().max(hi.abs()) * shrink;
                grid.fit(lo.max(-m), hi.min(m), 1.0)
            })
            .collect();
        let mut change = vec![0.0f64; values.len()];
        change.par_chunks_mut(width).zip(values.par_chunks(width)).zip(&candidates).for_each(
            |((change, run), &scale)| {
                let mut rounded = run.to_vec();
                round_with(&mut rounded, grid, scale);
                for ((d, &w), &q) in change.iter_mut().zip(run).zip(&rounded) {
                    *d = f64::from(q) - f64::from(w);
                }
            },
        );
        let losses = quadratic_forms(&change, h);
        for ((best, loss), scale) in best.iter_mut().zip(losses).zip(candidates) {
            if loss < best.0 {
                *best = (loss, scale);
            }
        }
    }
    best.into_iter().map(|(_, scale)| scale).collect()
}

impl Serialize for Clip {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Clip::Factor(factor) => serializer.serialize_f32(*factor),
            Clip::Mse => serializer.serialize_str("mse"),
            Clip::Output => serializer.serialize_str("output"),
        }
    }
}

impl<'de> Deserialize<'de> for Clip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrWord;
        impl de::Visitor<'_> for NumberOrWord {
            type Value = Clip;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, \"mse\" or \"output\"")
            }
            fn visit_f64<E: de::Error>(self, factor: f64) -> Result<Clip, E> {
                Ok(Clip::Factor(factor as f32))
            }
            fn visit_i64<E: de::Error>(self, factor: i64) -> Result<Clip, E> {
                Ok(Clip::Factor(factor as f32))
            }
            fn visit_u64<E: de::Error>(self, factor: u64) -> Result<Clip, E> {
                Ok(Clip::Factor(factor as f32))
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Clip, E> {
                match word {
                    "mse" => Ok(Clip::Mse),
                    "output" => Ok(Clip::Output),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(NumberOrWord)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::grid::Convention;

    fn weights(n: usize) -> Vec<f32> {
        let mut values: Vec<f32> = (0..n).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 500.0).collect();
        values.iter_mut().step_by(61).for_each(|w| *w *= 3.0);
        values
    }

    fn loss(run: &[f32], grid: Grid, scale: Scale, power: f64) -> f64 {
        run.iter().map(|&w| f64::from((grid.round(w, scale) - w).abs()).powf(power)).sum()
    }

    #[test]
    fn a_search_is_never_worse_than_no_clipping_and_better_where_a_weight_stands_out() {
        let (values, width) = (weights(8 * 64), 64);
        let identity: Vec<f64> =
            (0..width * width).map(|i| f64::from(u8::from(i % (width + 1) == 0))).collect();
        let h = View::new(&identity, width, width, width);
        for convention in
            [Convention::Absmax, Convention::FullRange, Convention::ZeroInRange, Convention::Awq]
        {
            for bits in [2, 3, 4, 8] {
                let grid = Grid::new(bits, convention);
                let plain = scales(&values, width, grid, Clip::Factor(1.0), None);
                let mse = scales(&values, width, grid, Clip::Mse, None);
                let output = scales(&values, width, grid, Clip::Output, Some(h));
                let (mut before, mut after) = (0.0, 0.0);
                for (i, run) in values.chunks(width).enumerate() {
                    assert!(loss(run, grid, mse[i], 2.4) <= loss(run, grid, plain[i], 2.4));
                    // With H = 1 the output error is the squared error of the weights.
                    assert!(loss(run, grid, output[i], 2.0) <= loss(run, grid, plain[i], 2.0) * (1.0 + 1e-9));
                    before += loss(run, grid, plain[i], 2.0);
                    after += loss(run, grid, output[i], 2.0);
                }
                assert!(bits > 4 || after < before, "{grid:?}");
            }
        }
    }

    #[test]
    fn what_the_inputs_never_see_may_be_clipped() {
        // The large weight's channel is dead: halving the range costs nothing and halves the step of the others.
        let mut run = vec![0.11f32, -0.23, 0.31, -0.47, 0.5, 0.05, -0.4, 1.0];
        let mut h = vec![0.0; 64];
        (0..7).for_each(|i| h[i * 9] = 1.0);
        let grid = Grid::new(4, Convention::Absmax);
        let found = scales(&run, 8, grid, Clip::Output, Some(View::new(&h, 8, 8, 8)))[0];
        assert!(found.delta < 0.6 / 7.0, "{found:?}");
        run[7] = 0.5;
        let found = scales(&run, 8, grid, Clip::Factor(1.0), None)[0];
        assert_eq!(found, grid.fit(-0.47, 0.5, 1.0));
    }

    #[test]
    fn the_power_agrees_with_the_standard_library() {
        for exponent in -60..30 {
            for mantissa in 0..50 {
                let d = (1.0 + f64::from(mantissa) / 50.0) * 2f64.powi(exponent);
                let expected = if d * d < 1e-36 { 0.0 } else { d.powf(2.4) };
                assert!(
                    (power(d * d) - expected).abs() <= 1e-12 * expected,
                    "{d}: {} {expected}",
                    power(d * d)
                );
            }
        }
        assert_eq!(power(0.0), 0.0);
    }

    #[test]
    fn numbers_and_words_are_read_and_written() {
        for (text, clip) in [("0.5", Clip::Factor(0.5)), ("\"mse\"", Clip::Mse), ("\"output\"", Clip::Output)]
        {
            assert_eq!(serde_json::from_str::<Clip>(text).unwrap(), clip);
            assert_eq!(serde_json::to_string(&clip).unwrap(), text);
        }
        assert_eq!(serde_json::from_str::<Clip>("1").unwrap(), Clip::Factor(1.0));
        assert!(serde_json::from_str::<Clip>("\"most\"").is_err());
    }
}
