//! Integer execution on devices of CubeCL beside the host's, on a Vulkan driver without a GPU (lavapipe). Where there is none,
//! skipped, loudly: mesa-vulkan-drivers has one.
//!
//! That driver multiplies no bytes, so codes are held in words: the same kernels but for the type that they hold codes in.

#![cfg(feature = "cube")]
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use harness::quantize::direct::Direct;
use harness::quantize::fake_quant::{ActivationRule, ScaleSource};
use harness::quantize::grid::{Convention, Granularity, Grid};
use harness::quantize::integer::activation::Plan;
use harness::quantize::integer::device::DeviceGroup;
use harness::quantize::integer::kernel::Kernel;
use harness::quantize::integer::segments::{between, shares};
use harness::quantize::integer::weights::{PackedWeight, rows};
use harness::quantize::integer::{Arithmetic, IntegerTap, Place, product};
use harness::quantize::kernels::integers::Storage;
use harness::quantize::rounding::round_rows;
use models::{Checkpoint, Decoder, Group, Linear, Site, Tap};

#[path = "support/recipes.rs"]
mod recipes;
#[path = "support/vulkan.rs"]
mod vulkan;

use recipes::{builtin, logits, make, scrambled, steps, values};
use vulkan::software;

const CHANNELS: usize = 96;
const OUT: usize = 40;
const TOKENS: usize = 7;

/// Values with a few that are far out, so that clamping and zero points matter.
fn uneven(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let far = |at: usize| if at % 41 == 3 { 9.0 } else { 1.0 };
    (0..count).map(|at| (next() - 0.37) * next() * far(at)).collect()
}

/// One linear on the device and on the host, on the same rounded weight and raw activation; with what `spoil` does to that.
fn both(
    device: &Device,
    (grid, granularity): (Grid, Granularity),
    rule: ActivationRule,
    spoil: impl Fn(&mut Vec<f32>),
) -> [Vec<f32>; 2] {
    let mut weight = uneven(OUT * CHANNELS, u64::from(grid.bits()));
    round_rows(&mut weight, CHANNELS, grid, granularity, 1.0);
    let mut raw = uneven(2 * TOKENS * CHANNELS, 77);
    spoil(&mut raw);
    let bias = uneven(OUT, 5);
    let of_weights = shares(granularity, CHANNELS, None);
    let of_tokens = shares(rule.granularity, CHANNELS, None);
    let segments = between(&of_weights, &of_tokens, 0);
    let order: Vec<usize> = (0..CHANNELS).collect();
    let rows = rows(&weight, &order, &of_weights, &segments, grid.bits()).expect("codes");

    let packed = PackedWeight::pack(&rows, &segments);
    let with_sums = packed.has_zeros();
    let plan = Plan { rule, layout: None, shares: of_tokens, segments: segments.clone(), with_sums };
    let codes = plan.encode(&raw, TOKENS, CHANNELS);
    let host = product::multiply(&Kernel::best(), &codes, &packed, &segments, Some(&bias));

    let linear = Linear::new(
        String::new(),
        Tensor::from_data(TensorData::new(weight, [OUT, CHANNELS]), device),
        Some(Tensor::from_data(TensorData::new(bias, [OUT]), device)),
    );
    let group = Group { linears: vec![linear] };
    let group = DeviceGroup::new(Storage::I32, &rule, &segments, &group, vec![rows]).expect("even segments");
    let x = Tensor::<3>::from_data(TensorData::new(raw, [2, TOKENS, CHANNELS]), device);
    let y = group.forward(&x);
    assert_eq!(y[0].dims(), [2, TOKENS, OUT]);
    [values(&y[0]), host]
}

#[test]
fn layers_are_those_of_the_host() {
    let Some(device) = software("layers_are_those_of_the_host") else { return };
    let weights = [
        (Grid::new(8, Convention::Absmax), Granularity::Channel),
        (Grid::new(8, Convention::ZeroInRange), Granularity::Channel),
        (Grid::new(4, Convention::Awq), Granularity::Group(16)),
        (Grid::new(4, Convention::Absmax), Granularity::Group(32)),
        (Grid::new(2, Convention::ZeroInRange), Granularity::Tensor),
    ];
    let activations = [
        (Grid::new(8, Convention::Absmax), Granularity::Token),
        (Grid::new(8, Convention::Absmax), Granularity::Tensor),
        (Grid::new(8, Convention::ZeroInRange), Granularity::Token),
        (Grid::new(8, Convention::AbsmaxFull), Granularity::Group(48)),
        (Grid::new(4, Convention::Awq), Granularity::Group(16)),
        (Grid::new(5, Convention::FullRange), Granularity::Tensor),
    ];
    let mut compared = 0;
    for weight in weights {
        for (grid, granularity) in activations {
            let fixed = ScaleSource::Static(grid.fit(-1.5, 2.5, 1.0));
            for scale in [ScaleSource::Dynamic, fixed] {
                let widths = [weight.1, granularity].map(|of| match of {
                    Granularity::Group(n) => n,
                    _ => CHANNELS,
                });
                // Neither divides the other.
                if widths == [32, 48] || (scale != ScaleSource::Dynamic && granularity != Granularity::Tensor)
                {
                    continue;
                }
                let rule = ActivationRule { grid, granularity, clip: 0.95, scale };
                let [found, expected] = both(&device, weight, rule, |_| ());
                let largest = expected.iter().fold(0f32, |m, y| m.max(y.abs()));
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() <= 1e-6 * largest, "{weight:?} {rule:?}: {a} instead of {b}");
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 5 * 6 - 1 + 5 * 2);
}

#[test]
fn what_is_no_number_shows() {
    let Some(device) = software("what_is_no_number_shows") else { return };
    let grid = Grid::new(8, Convention::Absmax);
    let weight = (grid, Granularity::Channel);
    for (granularity, rows) in [(Granularity::Token, 1), (Granularity::Tensor, TOKENS)] {
        let rule = ActivationRule { grid, granularity, clip: 1.0, scale: ScaleSource::Dynamic };
        let [found, _] = both(&device, weight, rule, |x| x[3] = f32::NAN);
        let broken = found.chunks(OUT).map(|row| row.iter().filter(|y| y.is_nan()).count());
        let expected = (0..2 * TOKENS).map(|row| if row < rows { OUT } else { 0 });
        assert_eq!(broken.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{granularity}");
    }
}

/// Goes through a model on the device, and asks the host for the same of every group.
struct Beside<'a> {
    there: &'a mut IntegerTap,
    host: &'a mut IntegerTap,
    /// The same model on the host.
    of: &'a Decoder,
    compared: usize,
}

impl Tap for Beside<'_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let found = self.there.linears(site, x.clone(), group);
        if self.host.is_integer(site) {
            let groups = self.of.groups();
            let (_, on_host) = groups.into_iter().find(|(other, _)| *other == site).expect("the same sites");
            let x = Tensor::from_data(x.to_data(), &Device::flex());
            for (found, expected) in found.iter().zip(self.host.linears(site, x, on_host)) {
                let (found, expected) = (values(found), values(&expected));
                let largest = expected.iter().fold(0f32, |m, y| m.max(y.abs()));
                let off = found.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(off <= 1e-6 * largest, "{site}: {off:e} where outputs reach {largest:e}");
            }
            self.compared += 1;
        }
        found
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.there.tensor(site, x)
    }
}

#[test]
fn models_are_those_of_the_host() {
    let Some(device) = software("models_are_those_of_the_host") else { return };
    assert!(Place::of(&device).is_none(), "the software driver multiplies no bytes");
    let (_, original) = builtin("builtin/tiny-llama");
    let checkpoint = Checkpoint::builtin("builtin/tiny-llama").unwrap().unwrap();
    let samples = scrambled(2, 24, original.architecture.vocabulary, 1);
    let grouped = r#"{ step = "weights", bits = 4, granularity = "group(32)", symmetric = false },
        { step = "activations", bits = 8, granularity = "token", symmetric = false }"#;
    for recipe in [recipes::PER_TOKEN, recipes::NAIVE, grouped] {
        let of = steps(recipe);
        let host = make(recipe, &original, &mut Direct::default());
        let mut integers = IntegerTap::new(Arithmetic::Integer, &of, &host.decoder, host.tap.clone());
        let mut there = make(recipe, &checkpoint.load(&device).unwrap(), &mut Direct::default());
        let place = Ok(Place::Device(Storage::I32));
        let mut on_device = IntegerTap::at(place, &of, &there.decoder, there.tap.clone());
        assert_eq!(on_device.groups(), integers.groups(), "{recipe}: {:?}", on_device.report());
        assert_eq!(on_device.report().kernel.as_deref(), Some("CubeK i32·i32"));
        let mut beside =
            Beside { there: &mut on_device, host: &mut integers, of: &host.decoder, compared: 0 };
        logits(&mut there.decoder, &mut beside, &samples);
        assert_eq!(beside.compared, integers.groups(), "{recipe}");
        let left = IntegerTap::new(Arithmetic::Integer, &of, &there.decoder, there.tap.clone()).report();
        assert_eq!(left.integer_groups, 0);
        assert!(left.floating_groups.contains_key("the device has no integer products"));
    }
}
