//! Properties of every grid under every convention, on the host and by tensor operations.

#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use harness::quantize::fake_quant::{ActivationRule, ScaleSource};
use harness::quantize::grid::{CONVENTIONS, Convention, Granularity, Grid};
use harness::quantize::rounding::{
    host_rows, range, round_activation, round_on_device, round_slice, round_weight, round_with,
};
use harness::quantize::steps::Step;
use proptest::prelude::*;

const BITS: [u8; 7] = [2, 3, 4, 5, 6, 7, 8];

fn grids() -> impl Iterator<Item = Grid> {
    CONVENTIONS
        .into_iter()
        .flat_map(|convention| BITS.into_iter().map(move |bits| Grid::new(bits, convention)))
}

fn values() -> impl Strategy<Value = Vec<f32>> {
    let magnitude = prop_oneof![Just(1e-3f32), Just(1.0), Just(100.0)];
    (prop::collection::vec(-1.0f32..1.0, 1..200), magnitude)
        .prop_map(|(values, magnitude)| values.into_iter().map(|x| x * magnitude).collect())
}

/// Deterministic values that look Gaussian: sums of four uniform draws of a small generator.
fn gaussian(rows: usize, width: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..rows * width).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rounding_with_a_given_scale_is_idempotent(values in values()) {
        for grid in grids() {
            let (lo, hi) = range(&values);
            let scale = grid.fit(lo, hi, 1.0);
            let mut once = values.clone();
            round_with(&mut once, grid, scale);
            let mut twice = once.clone();
            round_with(&mut twice, grid, scale);
            prop_assert_eq!(&once, &twice, "{:?}", grid);
        }
    }

    #[test]
    fn a_second_absmax_rounding_changes_nothing_but_the_last_bit(values in values()) {
        for bits in BITS {
            let grid = Grid::new(bits, Convention::Absmax);
            let mut once = values.clone();
            round_slice(&mut once, grid, 1.0);
            let mut twice = once.clone();
            round_slice(&mut twice, grid, 1.0);
            for (a, b) in once.iter().zip(&twice) {
                prop_assert!((a - b).abs() <= a.abs() * f32::EPSILON, "{grid:?}: {a} became {b}");
            }
        }
    }

    #[test]
    fn codes_stay_in_range_and_errors_within_half_a_step(values in values()) {
        for grid in grids() {
            let (lo, hi) = range(&values);
            let scale = grid.fit(lo, hi, 1.0);
            let (lowest, highest) = grid.codes();
            // AWQ and OmniQuant bound the zero point, which misrepresents narrow ranges far from zero; full-range clips
            // the largest value.
            let clips =
                matches!(grid.convention(), Convention::Awq | Convention::Omniquant | Convention::FullRange);
            // Half a step, and half more where the zero point was rounded.
            let steps = if grid.convention().is_symmetric() { 0.5 } else { 1.0 };
            for &x in &values {
                let code = grid.code(x, scale);
                prop_assert!(code >= lowest && code <= highest && code == code.trunc());
                let error = (x - grid.round(x, scale)).abs();
                // A guarded step may be smaller than the distance of neighbouring numbers at x: code, zero point and
                // product are then each rounded by as much.
                let allowed = scale.delta * (steps + 1e-3) + 2.0 * f32::EPSILON * x.abs();
                prop_assert!(clips || error <= allowed, "{grid:?}: {x} is off by {error}, step {}", scale.delta);
            }
        }
    }

    #[test]
    fn powers_of_two_scale_through(values in values(), exponent in -6i32..6) {
        let factor = 2f32.powi(exponent);
        for grid in grids() {
            // The other conventions' guards are absolute numbers.
            if matches!(grid.convention(), Convention::Absmax | Convention::AbsmaxFull | Convention::FullRange
                | Convention::ZeroInRange) {
                let mut plain = values.clone();
                round_slice(&mut plain, grid, 1.0);
                let mut scaled: Vec<f32> = values.iter().map(|x| x * factor).collect();
                round_slice(&mut scaled, grid, 1.0);
                for (plain, scaled) in plain.iter().zip(&scaled) {
                    prop_assert_eq!(plain * factor, *scaled);
                }
            }
        }
    }

    #[test]
    fn symmetric_codes_mirror(values in values()) {
        for bits in BITS {
            let grid = Grid::new(bits, Convention::Absmax);
            let mut plain = values.clone();
            round_slice(&mut plain, grid, 1.0);
            let mut mirrored: Vec<f32> = values.iter().map(|x| -x).collect();
            round_slice(&mut mirrored, grid, 1.0);
            for (plain, mirrored) in plain.iter().zip(&mirrored) {
                prop_assert_eq!(-plain, *mirrored);
            }
        }
    }

    #[test]
    fn tensor_operations_give_the_bits_of_the_host_loop(values in prop::collection::vec(-3.0f32..3.0, 8 * 24)) {
        for grid in grids() {
            for clip in [1.0, 0.9] {
                let by_operations = round_on_device(host_rows(values.clone(), 24), grid, clip);
                let by_operations: Vec<f32> = by_operations.to_data().try_to_vec().unwrap();
                let mut by_loop = values.clone();
                by_loop.chunks_mut(24).for_each(|row| { round_slice(row, grid, clip); });
                prop_assert_eq!(&by_operations, &by_loop, "{:?}", grid);
            }
        }
    }
}

#[test]
fn ties_go_to_even() {
    let grid = Grid::new(4, Convention::Absmax);
    // absmax 7 at 4 bits gives a step of exactly 1.
    let mut values = vec![0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 7.0];
    round_slice(&mut values, grid, 1.0);
    assert_eq!(values, [0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 7.0]);
}

#[test]
fn hand_computed_scales() {
    let fit = |bits, convention, lo, hi| Grid::new(bits, convention).fit(lo, hi, 1.0);
    assert_eq!(fit(8, Convention::Absmax, -1.0, 127.0).delta, 1.0);
    assert_eq!(fit(4, Convention::FullRange, -7.5, 3.0).delta, 1.0);
    let asymmetric = fit(4, Convention::ZeroInRange, -5.0, 10.0);
    assert_eq!((asymmetric.delta, asymmetric.zero), (1.0, 5.0));
    let positive = fit(4, Convention::ZeroInRange, 3.0, 15.0);
    assert_eq!((positive.delta, positive.zero), (1.0, 0.0), "zero is forced into the range");
    let awq = fit(4, Convention::Awq, 15.0, 30.0);
    assert_eq!(
        (awq.delta, awq.zero),
        (1.0, 0.0),
        "AWQ clamps the zero point: one-signed values are misrepresented"
    );
    let omniquant = fit(4, Convention::Omniquant, 15.0, 30.0);
    assert_eq!((omniquant.delta, omniquant.zero), (1.0, -15.0));
    assert_eq!(fit(8, Convention::Smoothquant, 0.0, 0.0).delta, 1e-5 / 127.0);
    assert_eq!(fit(8, Convention::Absmax, 0.0, 0.0).delta, 1.0);
    assert_eq!(Grid::new(8, Convention::Absmax).fit(-127.0, 0.0, 0.5).delta, 0.5, "clip shrinks the range");
}

#[test]
fn rows_of_zeros_stay_zeros() {
    for grid in grids() {
        let mut values = vec![0.0f32; 40];
        round_slice(&mut values, grid, 1.0);
        assert!(values.iter().all(|&x| x == 0.0), "{grid:?}: {values:?}");
        let rows = round_on_device(host_rows(vec![0.0; 40], 20), grid, 1.0);
        let rows: Vec<f32> = rows.to_data().try_to_vec().unwrap();
        assert!(rows.iter().all(|&x| x == 0.0), "{grid:?}");
    }
}

#[test]
fn values_that_are_no_numbers_are_not_hidden() {
    for grid in grids() {
        let mut values = vec![1.0, f32::NAN, -1.0];
        round_slice(&mut values, grid, 1.0);
        assert!(values[1].is_nan(), "{grid:?}");
    }
}

#[test]
fn more_bits_and_finer_granularity_lose_less() {
    let (rows, width) = (64, 1024);
    let mut weights = gaussian(rows, width);
    // Rows of different sizes and a few outliers: what finer granularity is for.
    for (index, row) in weights.chunks_mut(width).enumerate() {
        let size = 1.0 + index as f32 / 8.0;
        row.iter_mut().for_each(|x| *x *= size);
        row[index] *= 9.0;
    }
    let error = |grid, granularity| {
        let tensor = host_rows(weights.clone(), width);
        let rounded = round_weight("w", tensor, grid, granularity, 1.0).unwrap();
        squared_error(&rounded.to_data().try_to_vec::<f32>().unwrap(), &weights)
    };
    for convention in CONVENTIONS {
        let mut last = f64::INFINITY;
        for bits in BITS {
            let grid = Grid::new(bits, convention);
            let (tensor, channel) = (error(grid, Granularity::Tensor), error(grid, Granularity::Channel));
            let group = error(grid, Granularity::Group(128));
            assert!(channel < last, "{grid:?}: more bits lost more");
            last = channel;
            assert!(
                group <= channel * 1.01 && channel <= tensor * 1.01,
                "{grid:?}: {group} {channel} {tensor}"
            );
        }
    }
}

#[test]
fn a_tensor_scale_belongs_to_one_sequence_whatever_the_batch() {
    let rule = ActivationRule {
        grid: Grid::new(8, Convention::Absmax),
        granularity: Granularity::Tensor,
        clip: 1.0,
        scale: ScaleSource::Dynamic,
    };
    let (tokens, channels) = (5, 12);
    let mut values = gaussian(2 * tokens, channels);
    values[3] = 500.0;
    let tensor = |values: &[f32], sequences| {
        let shape = [sequences, tokens, channels];
        Tensor::<3>::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    };
    let together: Vec<f32> = round_activation(tensor(&values, 2), &rule).to_data().try_to_vec().unwrap();
    let (first, second) = values.split_at(tokens * channels);
    let mut alone: Vec<f32> = round_activation(tensor(first, 1), &rule).to_data().try_to_vec().unwrap();
    alone.extend(round_activation(tensor(second, 1), &rule).to_data().try_to_vec::<f32>().unwrap());
    assert_eq!(together, alone);
    let zeros = alone[..tokens * channels].iter().filter(|&&x| x == 0.0).count();
    assert_eq!(zeros, tokens * channels - 1, "one spike erases its sequence");
    assert!(alone[tokens * channels..].iter().filter(|&&x| x == 0.0).count() < 3, "and only its own");
}

#[test]
fn a_group_must_divide_the_width() {
    let grid = Grid::new(4, Convention::Absmax);
    let weight = host_rows(vec![0.0; 2 * 576], 576);
    let error =
        round_weight("layers.0.q", weight, grid, Granularity::Group(128), 1.0).unwrap_err().to_string();
    assert!(error.contains("layers.0.q") && error.contains("576") && error.contains("such as 96"), "{error}");
}

/// Every step with a `bits` key is the identity at 16 bits.
#[test]
fn sixteen_bits_are_the_identity() {
    let linear = |name: &str| models::Linear::new(name.into(), host_rows(gaussian(8, 16), 16), None);
    for name in ["weights", "activations"] {
        let mut table = toml::Table::new();
        table.insert("bits".into(), 16.into());
        let step = Step::read(name, None, toml::Value::Table(table)).unwrap().unwrap();
        let mut group = models::Group { linears: vec![linear("a"), linear("b")] };
        let mut activation = None;
        let mut flight = harness::quantize::GroupInFlight {
            site: models::Site::block(0, models::Port::AttnIn),
            group: &mut group,
            activation: &mut activation,
            kept: None,
            layout: None,
            rounded: false,
        };
        step.method().apply(&mut flight).unwrap();
        for linear in &group.linears {
            assert_eq!(linear.weight.to_data().try_to_vec::<f32>().unwrap(), gaussian(8, 16), "{name}");
        }
        assert_eq!(activation, None, "{name}");
    }
}
