//! Integer execution against its oracles: sums against i64, layers against products in f64 of the values that fake
//! quantization multiplies, and whole models against fake quantization.

#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use harness::quantize::direct::Direct;
use harness::quantize::fake_quant::{ActivationRule, FakeQuant, ScaleSource};
use harness::quantize::grid::{Convention, Granularity, Grid};
use harness::quantize::integer::activation::Plan;
use harness::quantize::integer::kernel::Kernel;
use harness::quantize::integer::segments::{between, shares};
use harness::quantize::integer::weights::PackedWeight;
use harness::quantize::integer::{Arithmetic, IntegerTap, product};
use harness::quantize::rounding::{round_activation, round_rows};
use harness::record::execution::Executed;
use models::{Decoder, Group, Off, Port, Site, Tap};

#[path = "support/recipes.rs"]
mod recipes;

use recipes::{builtin, logits, make, mse, oracle, reference, scrambled, steps, values};

/// Values with a few that are far out, so that clamping and zero points matter.
fn uneven(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count)
        .map(|_| {
            let far = if next() > 0.98 { 9.0 } else { 1.0 };
            (next() - 0.37) * next() * far
        })
        .collect()
}

const WEIGHTS: [Granularity; 4] =
    [Granularity::Tensor, Granularity::Channel, Granularity::Group(16), Granularity::Group(29)];
const ACTIVATIONS: [Granularity; 4] =
    [Granularity::Tensor, Granularity::Token, Granularity::Group(16), Granularity::Group(22)];
const SYMMETRIC: [Convention; 5] = [
    Convention::Absmax,
    Convention::AbsmaxFull,
    Convention::Smoothquant,
    Convention::Atom,
    Convention::FullRange,
];

const CHANNELS: usize = 87;
const OUT: usize = 45;
const TOKENS: usize = 19;

/// Two sequences of activations and a weight, rounded, as values and as codes.
struct Case {
    /// `[OUT, CHANNELS]`
    weight: Vec<f32>,
    /// `[2 · TOKENS, CHANNELS]`
    activation: Vec<f32>,
    plan: Plan,
    packed: PackedWeight,
    codes: harness::quantize::integer::activation::Codes,
}

impl Case {
    fn new(weights: (Grid, Granularity), rule: ActivationRule) -> Self {
        let (grid, granularity) = weights;
        let mut weight = uneven(OUT * CHANNELS, u64::from(grid.bits()));
        round_rows(&mut weight, CHANNELS, grid, granularity, 1.0);
        let raw = uneven(2 * TOKENS * CHANNELS, 77);
        let x = TensorData::new(raw.clone(), [2, TOKENS, CHANNELS]);
        let activation = values(&round_activation(Tensor::<3>::from_data(x, &Device::flex()), &rule));
        let of_weights = shares(granularity, CHANNELS, None);
        let of_tokens = shares(rule.granularity, CHANNELS, None);
        let segments = between(&of_weights, &of_tokens, 0);
        let order: Vec<usize> = (0..CHANNELS).collect();
        let packed = PackedWeight::read(&weight, &order, &of_weights, &segments, grid.bits());
        let packed = packed.unwrap_or_else(|| panic!("{grid:?} {granularity}: no codes"));
        let with_sums = packed.has_zeros();
        let plan = Plan { rule, layout: None, shares: of_tokens, segments, with_sums };
        let codes = plan.encode(&raw, TOKENS, CHANNELS);
        Self { weight, activation, plan, packed, codes }
    }

    /// Every sum against i64, from codes that are read off the rounded values independently; every output against f64.
    fn check(&self, name: &str) {
        let segments = &self.plan.segments;
        let mut scales_of_weights = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            let place = |row: usize| row * segments.len() + number;
            for row in 0..self.codes.rows {
                let scale = self.codes.scales[place(row)];
                for k in segment.from..segment.to {
                    let u =
                        i32::from(self.codes.codes[row * self.codes.stride + segment.at + k - segment.from]);
                    let found = (u - scale.zero) as f32 * scale.delta;
                    assert_eq!(
                        found,
                        self.activation[row * CHANNELS + k],
                        "{name}: the activation's rounding"
                    );
                }
            }
            let mut deltas = vec![0.0; OUT];
            for (c, delta) in deltas.iter_mut().enumerate() {
                *delta = self.packed.columns(c / 32, number).deltas[c % 32];
            }
            let whole = |value: f32, delta: f32| {
                let k = f64::from(value) / f64::from(delta);
                assert!((k - k.round()).abs() < 1e-3, "{name}: {value} is not whole steps of {delta}");
                k.round() as i64
            };
            let sums_of =
                |kernel: &Kernel| product::accumulations(kernel, &self.codes, &self.packed, segments, number);
            let expected: Vec<i64> = (0..self.codes.rows)
                .flat_map(|row| {
                    let delta = self.codes.scales[place(row)].delta;
                    let x: Vec<i64> = (segment.from..segment.to)
                        .map(|k| whole(self.activation[row * CHANNELS + k], delta))
                        .collect();
                    let deltas = &deltas;
                    (0..OUT).map(move |c| {
                        let w = &self.weight[c * CHANNELS + segment.from..c * CHANNELS + segment.to];
                        x.iter().zip(w).map(|(x, w)| x * whole(*w, deltas[c])).sum()
                    })
                })
                .collect();
            for kernel in Kernel::all() {
                let found: Vec<i64> = sums_of(&kernel).into_iter().map(i64::from).collect();
                assert_eq!(found, expected, "{name}, {}, segment {number}", kernel.name);
            }
            scales_of_weights.push(deltas);
        }
        let bias: Vec<f32> = uneven(OUT, 5);
        // Through memory on the plainest kernel, in registers on the fastest.
        let bits = |kernel: &Kernel| -> Vec<u32> {
            let y = product::multiply(kernel, &self.codes, &self.packed, segments, None);
            y.into_iter().map(f32::to_bits).collect()
        };
        let kernels = Kernel::all();
        let plainest = bits(&kernels[kernels.len() - 1]);
        for kernel in kernels {
            assert!(bits(&kernel) == plainest, "{name}, {}: outputs of another kernel", kernel.name);
            let y = product::multiply(&kernel, &self.codes, &self.packed, segments, Some(&bias));
            within_rounding(
                &self.activation,
                &self.weight,
                (CHANNELS, segments.len()),
                Some(&bias),
                &y,
                name,
            );
        }
    }
}

/// Outputs against f64, within what rounding the factors, the scale and the sum over segments can do: a few units of
/// 2⁻²⁴ of Σ|x·w|.
#[track_caller]
fn within_rounding(
    x: &[f32],
    w: &[f32],
    (channels, segments): (usize, usize),
    bias: Option<&[f32]>,
    y: &[f32],
    name: &str,
) {
    let out = w.len() / channels;
    let unit = 0.5f64.powi(24);
    for (row, y) in x.chunks(channels).zip(y.chunks(out)) {
        for (c, (w, found)) in w.chunks(channels).zip(y).enumerate() {
            let products = || row.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let bias = bias.map_or(0.0, |bias| f64::from(bias[c]));
            let (exact, size) = (products().sum::<f64>() + bias, products().map(f64::abs).sum::<f64>());
            let allowed = (6.0 + segments as f64) * unit * (size + bias.abs());
            let off = (f64::from(*found) - exact).abs();
            assert!(off <= allowed, "{name}: {found} {exact}, off by {off:e} where {allowed:e} is allowed");
        }
    }
}

fn rule(grid: Grid, granularity: Granularity) -> ActivationRule {
    ActivationRule { grid, granularity, clip: 1.0, scale: ScaleSource::Dynamic }
}

#[test]
fn sums_are_exact_for_every_granularity_and_width() {
    for bits in 2..=8 {
        for weights in WEIGHTS {
            for activations in ACTIVATIONS {
                for [of_weights, of_tokens] in [
                    [Convention::Absmax, Convention::Absmax],
                    [Convention::ZeroInRange, Convention::ZeroInRange],
                ] {
                    let grid = Grid::new(bits, of_tokens);
                    let case = Case::new((Grid::new(bits, of_weights), weights), rule(grid, activations));
                    case.check(&format!(
                        "{bits} bits, {of_weights:?} {weights}, {of_tokens:?} {activations}"
                    ));
                }
            }
        }
    }
}

#[test]
fn sums_are_exact_for_every_convention_and_for_static_and_clipped_scales() {
    let of_weights = [&SYMMETRIC[..], &[Convention::ZeroInRange, Convention::Awq]].concat();
    for bits in [4, 8] {
        for &convention in &of_weights {
            let (weights, activation) = (Grid::new(bits, convention), Grid::new(8, convention));
            let case = Case::new((weights, Granularity::Channel), rule(activation, Granularity::Token));
            case.check(&format!("{bits} bits, {convention:?}"));
            // A range that values leave: codes are clamped.
            let scale = ScaleSource::Static(activation.fit(-0.2, 0.3, 1.0));
            let fixed = ActivationRule { scale, ..rule(activation, Granularity::Tensor) };
            Case::new((weights, Granularity::Group(16)), fixed).check(&format!("static, {convention:?}"));
            let clipped = ActivationRule { clip: 0.7, ..rule(activation, Granularity::Token) };
            Case::new((weights, Granularity::Channel), clipped).check(&format!("clipped, {convention:?}"));
        }
        // Weights whose zero points have no bound of their own, so far as their codes have one.
        for convention in [Convention::AtomAsymmetric, Convention::Omniquant] {
            let grid = Grid::new(bits, convention);
            let case = Case::new(
                (grid, Granularity::Channel),
                rule(Grid::new(8, Convention::Absmax), Granularity::Token),
            );
            case.check(&format!("{bits} bits, {convention:?}"));
        }
    }
}

#[test]
fn a_broken_activation_shows() {
    let case = Case::new(
        (Grid::new(8, Convention::Absmax), Granularity::Channel),
        rule(Grid::new(8, Convention::Absmax), Granularity::Token),
    );
    let mut raw = uneven(2 * TOKENS * CHANNELS, 77);
    raw[3 * CHANNELS + 5] = f32::NAN;
    raw[7 * CHANNELS + 80] = f32::INFINITY;
    let codes = case.plan.encode(&raw, TOKENS, CHANNELS);
    let y = product::multiply(&Kernel::best(), &codes, &case.packed, &case.plan.segments, None);
    for (row, y) in y.chunks(OUT).enumerate() {
        let broken = row == 3 || row == 7;
        assert!(y.iter().all(|y| y.is_nan() == broken), "row {row}: {y:?}");
    }
}

/// Leads fake quantization through a model, and beside it compares what integers make of the same activations.
struct Beside<'a> {
    integers: &'a mut IntegerTap,
    fake: FakeQuant,
    compared: usize,
    name: &'a str,
}

impl Tap for Beside<'_> {
    fn begin(&mut self, past: usize) {
        self.fake.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        if self.integers.is_integer(site) {
            let read = values(&self.fake.read(site, x.clone()));
            let channels = x.dims()[2];
            for (linear, y) in group.linears.iter().zip(self.integers.linears(site, x.clone(), group)) {
                let bias = linear.bias.as_ref().map(values);
                let name = format!("{}: {site}, {}", self.name, linear.name);
                let segments = channels.div_ceil(16) + 1;
                within_rounding(
                    &read,
                    &values(&linear.weight),
                    (channels, segments),
                    bias.as_deref(),
                    &values(&y),
                    &name,
                );
                self.compared += 1;
            }
        }
        self.fake.linears(site, x, group)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.fake.tensor(site, x)
    }
}

/// Carries a recipe out; all layers agree on equal activations, and logits are nearer to fake quantization than that is to the original.
#[track_caller]
fn agrees(name: &str, recipe: &str, original: &Decoder, integer: usize) {
    let samples = scrambled(3, 24, original.architecture.vocabulary, 1);
    let mut made = make(recipe, original, &mut Direct::new(samples.clone(), Some(1)));
    let steps = steps(recipe);
    let mut integers = IntegerTap::new(Arithmetic::Integer, &steps, &made.decoder, made.tap.clone());
    let report = integers.report();
    assert_eq!(integers.groups(), integer, "{name}, {recipe}: {report:?}");
    let linears: usize = made
        .decoder
        .groups()
        .iter()
        .filter(|(site, _)| integers.is_integer(*site) && site.expert.is_none())
        .map(|(_, group)| group.linears.len())
        .sum();
    let mut beside = Beside { integers: &mut integers, fake: made.tap.clone(), compared: 0, name: recipe };
    let expected = logits(&mut made.decoder, &mut beside, &samples);
    assert!(beside.compared >= linears && (linears > 0) == (integer > 0));
    let fake = made.logits(&samples);
    assert_eq!(fake, expected, "the oracle is fake quantization itself");
    let found = logits(&mut made.decoder, &mut integers, &samples);
    // A code near the middle goes the other way with the last bit of a sum, and what follows with it: fake quantization that
    // adds in another order is as far from itself. How far that may lead is measured by what rounding does to the logits.
    let rounding = distance(&fake, &logits(&mut reference(original, &made), &mut Off, &samples));
    let order = |cut: usize| {
        let mut other = OtherOrder { tap: made.tap.clone(), cut };
        distance(&logits(&mut made.decoder.clone(), &mut other, &samples), &fake)
    };
    // Which codes flip is chance: the farthest of several.
    let other_order = [2, 3, 5, 7].map(order).into_iter().fold(0.0, f64::max);
    let off = distance(&found, &fake);
    let allowed = (SHARE * rounding).max(FLIPS * other_order);
    assert!(
        off <= allowed,
        "{name}, {recipe}: logits differ by {off:e}, {allowed:e} is allowed, {other_order:e} is order"
    );
    // What a sequence becomes does not depend on its company: integers have one sum, whatever the order.
    let alone: Vec<f32> = samples
        .iter()
        .flat_map(|s| logits(&mut made.decoder, &mut integers, std::slice::from_ref(s)))
        .collect();
    let off = distance(&alone, &found);
    assert!(off <= allowed, "{name}, {recipe}: alone, logits differ by {off:e}");
}

/// Fake quantization whose sums begin behind the first of `cut` equal parts of the channels.
struct OtherOrder {
    tap: FakeQuant,
    cut: usize,
}

impl Tap for OtherOrder {
    fn begin(&mut self, past: usize) {
        self.tap.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let (mut group, cut) = (group.clone(), self.cut);
        for linear in &mut group.linears {
            let [_, channels] = linear.weight.dims();
            let part = |from, until| linear.weight.clone().narrow(1, from, until - from);
            linear.weight = Tensor::cat(vec![part(channels / cut, channels), part(0, channels / cut)], 1);
        }
        let x = self.tap.read(site, x);
        let channels = x.dims()[2];
        let part = |from, until| x.clone().narrow(2, from, until - from);
        group.forward(Tensor::cat(vec![part(channels / cut, channels), part(0, channels / cut)], 2))
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.tap.tensor(site, x)
    }
}

/// Root of the mean squared difference.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    mse(a, b).sqrt()
}

/// The most that integers may move logits away from fake quantization, as a share of what rounding moves them away from the
/// original.
const SHARE: f64 = 0.02;

/// Or by so many times what another order of sums does to fake quantization. Found: at most once. Few codes flip in so few
/// tokens, and a flip counts more in one place than in another.
const FLIPS: f64 = 2.0;

const GROUPS: usize = 4;

#[test]
fn models_agree_with_fake_quantization() {
    let (_, original) = builtin("builtin/tiny-llama");
    let layers = original.architecture.layers;
    let all = GROUPS * layers;
    let token = |bits: u8| format!(r#"{{ step = "activations", bits = {bits}, granularity = "token" }}"#);
    let weights = |keys: &str| format!(r#"{{ step = "weights", {keys} }}"#);
    let (eight, four) = (token(8), token(4));
    let rest = |first: &str, second: &str| format!("{first}, {second}");
    for (recipe, integer) in [
        (recipes::NAIVE.to_string(), all),
        (recipes::PER_TOKEN.to_string(), all),
        (rest(&weights("bits = 8, granularity = \"tensor\""), &eight), all),
        (rest(&weights("bits = 8, symmetric = false"), &eight), all),
        (rest(&weights("bits = 4, granularity = \"group(32)\""), &eight), all),
        (rest(&weights("bits = 4, granularity = \"group(32)\", symmetric = false"), &four), all),
        (rest(&weights("bits = 2"), &token(2)), all),
        (
            rest(
                &weights("bits = 3, solver = \"gptq\""),
                r#"{ step = "activations", bits = 6, symmetric = false }"#,
            ),
            all,
        ),
        (
            rest(
                &weights("bits = 8"),
                r#"{ step = "activations", bits = 8, granularity = "group(16)", symmetric = false }"#,
            ),
            all,
        ),
        (
            rest(
                &weights("bits = 8"),
                r#"{ step = "activations", bits = 8, granularity = "tensor", observer = "max" }"#,
            ),
            all,
        ),
        // What rotates online is inside the decoder.
        (
            format!(
                r#"{{ step = "rotate", method = "hadamard", sites = ["residual", "o_in", "down_in"] }}, {}, {four}"#,
                weights("bits = 4")
            ),
            all,
        ),
        // Groups that are exempted stay in floating point.
        (
            format!(
                r#"{{ step = "keep", method = "ranked", quantize = "top", groups = 2 }}, {}, {eight}"#,
                weights("bits = 8")
            ),
            2,
        ),
        // Channels that are kept apart: on a grid, and in floating point.
        (
            format!(
                r#"{{ step = "keep", method = "channels", count = 8 }}, {}, {four}"#,
                weights("bits = 4, granularity = \"group(16)\", ragged = true")
            ),
            all,
        ),
        (
            format!(
                r#"{{ step = "keep", method = "channels", count = 8, bits = 16 }}, {}, {eight}"#,
                weights("bits = 4")
            ),
            all,
        ),
        (rest(r#"{ step = "kv", bits = 4 }"#, &rest(&weights("bits = 8, embeddings = true"), &eight)), all),
        // In floating point: no activations, floats, zero points without a bound.
        (recipes::W8A16.to_string(), 0),
        (rest(&weights("bits = 8, convention = \"fp8-e4m3\""), &eight), 0),
        (
            rest(
                &weights("bits = 8"),
                r#"{ step = "activations", bits = 8, symmetric = false, convention = "omniquant" }"#,
            ),
            0,
        ),
    ] {
        agrees("tiny-llama", &recipe, &original, integer);
    }
}

#[test]
fn every_family_agrees_with_fake_quantization() {
    for name in ["cohere", "gemma3", "mixtral", "opt", "qwen2", "llama-bias"] {
        let original = oracle(name);
        let of_blocks = original.groups().iter().filter(|(site, _)| site.port != Port::HeadIn).count();
        agrees(name, recipes::PER_TOKEN, &original, of_blocks);
    }
}

#[test]
fn fake_quantization_can_be_asked_for_and_is_said() {
    let (_, original) = builtin("builtin/tiny-llama");
    let made = make(recipes::NAIVE, &original, &mut Direct::default());
    let steps = steps(recipes::NAIVE);
    let fake = IntegerTap::new(Arithmetic::Fake, &steps, &made.decoder, made.tap.clone());
    let report = fake.report();
    let groups = (GROUPS * original.architecture.layers) as u64;
    assert_eq!((report.kernel, report.integer_groups), (None, 0));
    assert_eq!(report.floating_groups.values().sum::<u64>(), groups);
    let integers = IntegerTap::new(Arithmetic::Integer, &steps, &made.decoder, made.tap);
    let report = integers.report();
    assert_eq!((report.integer_groups, report.floating_groups.len()), (groups, 0));
    assert_eq!(report.kernel.as_deref(), Some(Kernel::best().name));
    let nothing = IntegerTap::new(Arithmetic::Integer, &[], &original, FakeQuant::default());
    assert_eq!(nothing.report(), Executed::default());
}

/// Groups that are left to floating point keep their weights, and the head does.
#[test]
fn codes_take_the_place_of_weights_and_change_nothing() {
    let (_, original) = builtin("builtin/tiny-llama");
    let samples = scrambled(3, 24, original.architecture.vocabulary, 1);
    let kept = format!(r#"{{ step = "keep", method = "qfem", top = 2 }}, {}"#, recipes::NAIVE);
    for recipe in [recipes::NAIVE, &kept] {
        let made = make(recipe, &original, &mut Direct::new(samples.clone(), Some(1)));
        let steps = steps(recipe);
        let mut beside = IntegerTap::new(Arithmetic::Integer, &steps, &made.decoder, made.tap.clone());
        let expected = logits(&mut made.decoder.clone(), &mut beside, &samples);
        for arithmetic in [Arithmetic::Integer, Arithmetic::Fake] {
            let mut decoder = made.decoder.clone();
            let mut instead =
                IntegerTap::instead_of_weights(arithmetic, &steps, &mut decoder, made.tap.clone());
            let held = |site: Site, group: &Group| {
                let linears = group.linears.iter().all(|linear| linear.weight.dims() != [1, 1]);
                assert_eq!(linears, !instead.is_integer(site) || site == Site::HEAD, "{site}");
                linears
            };
            let held = decoder.groups().into_iter().filter(|(site, group)| held(*site, group)).count();
            if arithmetic == Arithmetic::Integer {
                assert_eq!(held, decoder.groups().len() - beside.groups(), "{recipe}");
                assert!(
                    beside.groups() > 0
                        && instead.weight_bytes(&decoder) == beside.weight_bytes(&made.decoder)
                );
                assert_eq!(instead.stored(), beside.stored());
                assert_eq!(logits(&mut decoder, &mut instead, &samples), expected, "{recipe}");
            } else {
                assert_eq!(held, decoder.groups().len(), "nothing replaces them");
            }
        }
    }
}
