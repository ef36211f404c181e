//! Kernels for devices of CubeCL beside what they stand for, on a Vulkan driver without a GPU (lavapipe). Where there is none,
//! skipped, loudly: mesa-vulkan-drivers has one.

#![cfg(feature = "cube")]

use burn::tensor::{Device, Tensor, TensorData};
use harness::quantize::cache_rounding::{self, CacheGranularity, CacheRule};
use harness::quantize::fake_quant::{ActivationRule, ScaleSource};
use harness::quantize::grid::{CONVENTIONS, Granularity, Grid};
use harness::quantize::{kernels, rounding};
use models::architecture::{Norm, Pairs};
use models::hadamard::OnDevice;
use models::{Fallback, Hadamard, Normalisation, kernel};

#[path = "support/vulkan.rs"]
mod vulkan;

use vulkan::software;

/// Values about as activations are: most near zero, one channel in 19 far from it; the row `zeros` of nothing.
fn values(rows: usize, width: usize, zeros: Option<usize>) -> Vec<f32> {
    let mut state = 5u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let value = |at: usize, x: f32| match at % width % 19 {
        _ if zeros == Some(at / width) => 0.0,
        7 => x * 40.0,
        _ => x,
    };
    (0..rows * width).map(|at| value(at, next() + next() * next())).collect()
}

fn tensor<const D: usize>(values: &[f32], dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

fn read<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().expect("f32 that can be read")
}

/// A sum in another order may carry a value over a boundary of its grid: no value moves by more than a step, and of a
/// thousand no more than one does. `step` is of the value's run.
fn assert_rounded_alike(found: &[f32], expected: &[f32], step: impl Fn(usize) -> f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let mut moved = 0;
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let off = (a - b).abs();
        assert!(off <= step(i) * 1.001, "{what}: {a} instead of {b} at {i}");
        moved += usize::from(off > 1e-4 * step(i).max(b.abs()));
    }
    assert!(moved * 1000 <= found.len(), "{what}: {moved} of {} values moved", found.len());
}

#[test]
fn runs_are_rounded_as_on_the_host() {
    let Some(device) = software("runs_are_rounded_as_on_the_host") else { return };
    for convention in CONVENTIONS {
        for (bits, width, clip) in [(2, 64, 1.0), (4, 100, 0.9), (8, 576, 1.0)] {
            let (rows, grid) = (9, Grid::new(bits, convention));
            let x = values(rows, width, Some(4));
            let mut expected = x.clone();
            rounding::round_rows(&mut expected, width, grid, Granularity::Token, clip);
            let x = tensor(&x, [rows, width], &device);
            let found = kernels::round::runs(&x, grid, clip).expect("a grid of whole numbers on a device");
            assert_eq!(read(found), expected, "{} {bits} {width}", convention.name());
        }
    }
}

#[test]
fn one_scale_rounds_as_on_the_host() {
    let Some(device) = software("one_scale_rounds_as_on_the_host") else { return };
    for convention in CONVENTIONS {
        let grid = Grid::new(8, convention);
        let scale = grid.fit(-3.0, 5.0, 1.0);
        let x = values(7, 50, None);
        let expected = rounding::round_with_static(tensor(&x, [1, 7, 50], &Device::flex()), grid, scale);
        let found = kernels::round::with_one_scale(&tensor(&x, [1, 7, 50], &device), grid, scale);
        assert_eq!(read(found.expect("a device")), read(expected), "{}", convention.name());
    }
}

#[test]
fn a_norm_and_its_rounding_are_both() {
    let Some(device) = software("a_norm_and_its_rounding_are_both") else { return };
    let (tokens, hidden) = (11, 576);
    for kind in [Norm::Rms { eps: 1e-5 }, Norm::RmsOffset { eps: 1e-6 }] {
        for granularity in [Granularity::Token, Granularity::Group(64)] {
            for convention in CONVENTIONS {
                let grid = Grid::new(4, convention);
                let rule = ActivationRule { grid, granularity, clip: 0.9, scale: ScaleSource::Dynamic };
                let x = values(tokens, hidden, Some(3));
                let on = |device: &Device| {
                    let weight = tensor(&values(1, hidden, None), [hidden], device);
                    (tensor(&x, [1, tokens, hidden], device), Normalisation { kind, weight, bias: None })
                };
                let (host, norm) = on(&Device::flex());
                let normed = norm.forward(host);
                let expected = read(rounding::round_activation(normed.clone(), &rule));
                let (x, norm) = on(&device);
                let found = read(kernels::norm::and_round(&x, &norm, &rule).expect("a norm that it knows"));
                let width = if granularity == Granularity::Token { hidden } else { 64 };
                let steps: Vec<f32> = read(normed).chunks(width).map(|run| step(grid, run)).collect();
                let what = format!("{kind:?} {granularity:?} {}", convention.name());
                assert_rounded_alike(&found, &expected, |i| steps[i / width], &what);
            }
        }
    }
}

/// The step of a run's grid.
fn step(grid: Grid, run: &[f32]) -> f32 {
    let (lo, hi) = rounding::range(run);
    grid.fit(lo, hi, 1.0).delta
}

#[test]
fn turned_keys_are_rounded_as_one_after_the_other() {
    let Some(device) = software("turned_keys_are_rounded_as_one_after_the_other") else { return };
    let (heads, tokens, head_dim) = (3, 13, 64);
    let x = values(heads * tokens, head_dim, None);
    let angle: Vec<f32> = (0..tokens * head_dim / 2).map(|i| i as f32 * 0.13).collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) = angle.iter().map(|a| (a.cos(), a.sin())).unzip();
    for pairs in [Pairs::Halves, Pairs::Neighbours] {
        for granularity in [CacheGranularity::Head, CacheGranularity::Group(16)] {
            for convention in CONVENTIONS {
                let grid = Grid::new(4, convention);
                let rule = CacheRule { grid, granularity, clip: 1.0, exact: 7, scales: Vec::new() };
                let on = |device: &Device| {
                    let angles = [&cos, &sin].map(|values| tensor(values, [tokens, head_dim / 2], device));
                    (tensor(&x, [1, heads, tokens, head_dim], device), angles)
                };
                let (host, [cos, sin]) = on(&Device::flex());
                let turned = kernel::rotate(host, pairs, &cos, &sin);
                let expected = read(cache_rounding::round(turned.clone(), &rule, 2));
                let (x, [cos, sin]) = on(&device);
                let found = kernels::rotary::and_round(&x, pairs, [&cos, &sin], &rule, 2);
                let found = read(found.expect("a rule that looks at one head"));
                let width = if granularity == CacheGranularity::Head { head_dim } else { 16 };
                let steps: Vec<f32> = read(turned).chunks(width).map(|run| step(grid, run)).collect();
                let what = format!("{pairs:?} {granularity} {}", convention.name());
                assert_rounded_alike(&found, &expected, |i| steps[i / width], &what);
            }
        }
    }
}

#[test]
fn butterflies_are_the_transform() {
    let Some(device) = software("butterflies_are_the_transform") else { return };
    // A power of two; with a dense factor; of blocks of 2; over heads; too wide for what units share.
    let transforms = [
        Hadamard::new(64, Fallback::BlockDiagonal, 1),
        Hadamard::new(576, Fallback::BlockDiagonal, 2).with_random_signs(3),
        Hadamard::new(1536, Fallback::BlockDiagonal, 4),
        Hadamard::new(46, Fallback::BlockDiagonal, 8).with_random_signs(9),
        Hadamard::new(8, Fallback::BlockDiagonal, 5).over(16).with_random_signs(6),
        Hadamard::new(1 << 15, Fallback::BlockDiagonal, 7),
    ];
    for hadamard in transforms {
        let (rows, width) = (5, hadamard.width());
        let x = values(rows, width, None);
        let mut expected = x.clone();
        hadamard.apply_f32(&mut expected);
        let found = OnDevice::new(hadamard, &device).forward(tensor(&x, [1, rows, width], &device));
        let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (a, b) in read(found).iter().zip(&expected) {
            assert!((a - b).abs() < 1e-5 * largest, "{width}: {a} instead of {b}");
        }
    }
}

#[test]
fn what_kernels_do_not_know_they_leave() {
    let Some(device) = software("what_kernels_do_not_know_they_leave") else { return };
    let x = values(4, 32, None);
    let floats = Grid::new(8, harness::quantize::grid::Convention::Fp8E4m3);
    assert!(kernels::round::runs(&tensor(&x, [4, 32], &device), floats, 1.0).is_none());
    let whole = Grid::new(8, CONVENTIONS[0]);
    assert!(kernels::round::runs(&tensor(&x, [4, 32], &Device::flex()), whole, 1.0).is_none());
    let wanted = tensor(&x, [4, 32], &device).autodiff().require_grad();
    assert!(kernels::round::runs(&wanted, whole, 1.0).is_none());
}
