//! What rounding costs, against arithmetic in f64 and against integers.

use burn::tensor::{Device, Tensor, TensorData};
use harness::quantize::fake_quant::{ActivationRule, ScaleSource};
use harness::quantize::grid::{Convention, Granularity, Grid};
use harness::quantize::rounding::{range, round_activation, round_slice};

/// Deterministic Gaussians: Box and Muller's transform of a small generator.
fn gaussian(count: usize, size: f64, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut draw = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..count).map(|_| (size * draw()) as f32).collect()
}

const TOKENS: usize = 64;
const CHANNELS: usize = 512;
const OUT: usize = 96;

/// Rows with their steps, rounded per row.
fn rounded(values: &[f32], bits: u8) -> (Vec<f32>, Vec<f64>) {
    let mut values = values.to_vec();
    let grid = Grid::new(bits, Convention::Absmax);
    let steps = values.chunks_mut(CHANNELS).map(|row| f64::from(round_slice(row, grid, 1.0).delta));
    let steps = steps.collect();
    (values, steps)
}

fn product(x: &[f32], w: &[f32]) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    x.chunks(CHANNELS).flat_map(|x| w.chunks(CHANNELS).map(move |w| dot(x, w))).collect()
}

#[test]
fn the_error_of_a_product_is_what_uniform_rounding_predicts() {
    let (x, w) = (gaussian(TOKENS * CHANNELS, 1.0, 3), gaussian(OUT * CHANNELS, 0.02, 5));
    for bits in [4, 8] {
        let ((qx, dx), (qw, dw)) = (rounded(&x, bits), rounded(&w, bits));
        let errors = product(&x, &w).into_iter().zip(product(&qx, &qw));
        let error: f64 = errors.map(|(a, b)| (a - b).powi(2)).sum();
        let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let squares = |steps: &[f64]| steps.iter().map(|d| d * d).sum::<f64>();
        // arXiv:2506.01967: E ≈ ( ‖W‖² Σ Δx² + ‖X‖² Σ Δw² ) / 12
        let estimate = (norm(&w) * squares(&dx) + norm(&x) * squares(&dw)) / 12.0;
        let ratio = estimate / error;
        assert!((0.9..=1.1).contains(&ratio), "{bits} bits: {ratio}");
    }
}

#[test]
fn integers_and_rounded_values_give_one_product() {
    let (x, w) = (gaussian(TOKENS * CHANNELS, 1.0, 7), gaussian(OUT * CHANNELS, 0.02, 11));
    for bits in [4, 8] {
        let grid = Grid::new(bits, Convention::Absmax);
        let codes = |values: &[f32], steps: &mut Vec<f64>| -> Vec<i32> {
            let of_row = |row: &[f32]| {
                let (lo, hi) = range(row);
                let scale = grid.fit(lo, hi, 1.0);
                steps.push(f64::from(scale.delta));
                row.iter().map(|&x| grid.code(x, scale) as i32).collect::<Vec<i32>>()
            };
            values.chunks(CHANNELS).flat_map(of_row).collect()
        };
        let (mut dx, mut dw) = (Vec::new(), Vec::new());
        let (cx, cw) = (codes(&x, &mut dx), codes(&w, &mut dw));
        let expected = product(&rounded(&x, bits).0, &rounded(&w, bits).0);
        let largest = expected.iter().fold(0f64, |m, e| m.max(e.abs()));
        for (t, row) in cx.chunks(CHANNELS).enumerate() {
            for (o, weights) in cw.chunks(CHANNELS).enumerate() {
                let sum: i32 = row.iter().zip(weights).map(|(a, b)| a * b).sum();
                let found = f64::from(sum) * dx[t] * dw[o];
                assert!((found - expected[t * OUT + o]).abs() <= 1e-6 * largest, "{bits} bits, ({t}, {o})");
            }
        }
    }
}

#[test]
fn the_largest_value_of_a_row_is_kept() {
    for bits in 2..=8u8 {
        let x = gaussian(TOKENS * CHANNELS, 3.0, u64::from(bits));
        let highest = f32::from(i16::pow(2, u32::from(bits) - 1) - 1);
        for (row, rounded) in x.chunks(CHANNELS).zip(rounded(&x, bits).0.chunks(CHANNELS)) {
            let at = (0..CHANNELS).max_by(|&a, &b| row[a].abs().total_cmp(&row[b].abs())).unwrap();
            let error = (row[at] - rounded[at]).abs();
            assert!(error <= f32::EPSILON * row[at].abs() * highest, "{bits} bits: off by {error}");
        }
    }
}

#[test]
fn a_scale_per_token_loses_less_than_one_per_sequence() {
    let mut values = gaussian(TOKENS * 1024, 1.0, 13);
    // Tokens of different sizes: what finer granularity is for.
    for (token, row) in values.chunks_mut(1024).enumerate() {
        row.iter_mut().for_each(|x| *x *= 1.0 + token as f32 / 16.0);
    }
    for convention in [Convention::Absmax, Convention::ZeroInRange] {
        let mut last = f64::INFINITY;
        for bits in [2, 3, 4, 5, 6, 8] {
            let error = |granularity| {
                let (grid, scale) = (Grid::new(bits, convention), ScaleSource::Dynamic);
                let rule = ActivationRule { grid, granularity, clip: 1.0, scale };
                let data = TensorData::new(values.clone(), [1, TOKENS, 1024]);
                let x = round_activation(Tensor::<3>::from_data(data, &Device::flex()), &rule);
                let found: Vec<f32> = x.to_data().try_to_vec().unwrap();
                found.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
            };
            let (tensor, token) = (error(Granularity::Tensor), error(Granularity::Token));
            let group = error(Granularity::Group(128));
            assert!(
                token <= tensor * 1.01 && group <= token * 1.01,
                "{convention:?} {bits}: {group} {token} {tensor}"
            );
            assert!(token < last, "{convention:?}: {bits} bits lose more than fewer");
            last = token;
        }
    }
}
