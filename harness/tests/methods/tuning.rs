//! `tune` by `bisup-style`: what must hold whatever it learns.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use burn::tensor::{Device, Tensor, TensorData};
use harness::calibrate::statistics::Statistics;
use harness::quantize::direct::Direct;
use harness::quantize::fake_quant::FakeQuant;
use harness::quantize::grid::{Convention, Granularity, Grid};
use harness::quantize::steps::Step;
use harness::quantize::tuning::block::PlainBlock;
use harness::quantize::tuning::clipping::{Clips, Host};
use harness::quantize::tuning::learned::{Factors, Learned};
use harness::quantize::tuning::objective::Loss;
use harness::quantize::tuning::smoothing::SmoothingOptions;
use harness::quantize::tuning::train::{Objective, Rates, Trainer, gradients};
use harness::quantize::tuning::{LowRankOptions, LowRankStart, Options};
use harness::quantize::{Calibrator, StepError, apply};
use models::{Decoder, Off, Site, token_tensor};
use serde_json::Value;

use crate::recipes::{
    ORACLES, builtin, difference, logits, make, mse, oracle, scrambled, steps, try_make, values, weights,
};

pub const HOST: &str = r#"{ step = "weights", bits = 4, granularity = "group(4)" },
    { step = "activations", bits = 4, granularity = "group(4)" }"#;

pub const MSE: Objective = Objective { loss: Loss::Mse, unit: 1.0 };

/// A host's recipe with the step behind it.
pub fn tuned(host: &str, keys: &str) -> String {
    format!(r#"{host}, {{ step = "tune", method = "bisup-style", {keys} }}"#)
}

pub fn calibrator(decoder: &Decoder, start: u32) -> Direct {
    Direct::new(scrambled(8, 24, decoder.architecture.vocabulary, start), Some(start))
}

/// Round to nearest at every site of every block.
pub fn hosts(decoder: &Decoder, bits: u8, granularity: Granularity) -> HashMap<Site, Host> {
    let host = Host { grid: Grid::new(bits, Convention::Absmax), granularity, ragged: false, clip: 1.0 };
    decoder
        .groups()
        .into_iter()
        .filter(|(site, _)| site.layer.is_some())
        .map(|(site, _)| (site, host))
        .collect()
}

pub fn everything() -> Options {
    Options {
        clipping: true,
        smoothing: Some(SmoothingOptions { alpha: 0.5, bound: 2.0 }),
        low_rank: Some(LowRankOptions { rank: 4, start: LowRankStart::Zero }),
        loss: Loss::Mse,
        epochs: 0,
        rates: Rates::default(),
        seed: 0,
    }
}

/// Numbers within ±1 in no order.
fn numbers(count: usize, step: usize) -> Vec<f32> {
    (0..count).map(|i| ((i + 1) * step % 997) as f32 / 498.5 - 1.0).collect()
}

/// What is learned, far from where it begins.
pub fn learned(block: &PlainBlock, decoder: &Decoder) -> Learned {
    let mut learned = Learned::start(block, decoder, &everything(), None);
    for (s, site) in learned.sites.iter_mut().enumerate() {
        if let Some(smoothing) = &mut site.smoothing {
            smoothing.u = numbers(smoothing.u.len(), 131 + s);
        }
        for (l, linear) in site.linears.iter_mut().enumerate() {
            if let Some(Factors { b, .. }) = &mut linear.factors {
                *b = numbers(b.len(), 379 + 10 * s + l).iter().map(|x| 0.3 * x).collect();
            }
        }
    }
    learned
}

/// The same where nothing is rounded.
fn unrounded(mut block: PlainBlock) -> PlainBlock {
    block.sites.iter_mut().flat_map(|site| &mut site.linears).for_each(|linear| linear.runs = None);
    block
}

/// The residual stream before block `layer`.
pub fn stream(decoder: &mut Decoder, layer: usize, start: u32) -> Tensor<3> {
    let tokens = scrambled(1, 20, decoder.architecture.vocabulary, start);
    let mut x = decoder.embed(token_tensor(&tokens, &decoder.device()));
    for layer in 0..layer {
        x = decoder.through_block(layer, x, &mut Off);
    }
    x
}

pub fn random_like(x: &Tensor<3>) -> Tensor<3> {
    let dims = x.dims();
    Tensor::from_data(TensorData::new(numbers(dims.iter().product(), 617), dims), &Device::flex())
}

#[test]
fn before_it_is_trained_it_is_the_host_bit_by_bit() {
    for name in ORACLES {
        let original = oracle(name);
        let probes = scrambled(3, 30, original.architecture.vocabulary, 1);
        let mut host = make(HOST, &original, &mut calibrator(&original, 1));
        let (mut decoder, mut tap) = (original.clone(), FakeQuant::default());
        tap.rules = host.tap.rules.clone();
        for layer in 0..original.blocks.len() {
            let block =
                PlainBlock::of(&decoder, layer, &hosts(&original, 4, Granularity::Group(4)), &tap).unwrap();
            let mut learned = Learned::start(&block, &decoder, &everything(), None);
            for linear in learned.sites.iter_mut().flat_map(|site| &mut site.linears) {
                let clips = linear.clips.as_mut().unwrap();
                *clips = Clips::all(clips.high.len(), f32::INFINITY);
            }
            (decoder, tap) = learned.ship(&block, &decoder, &tap).unwrap();
        }
        assert_eq!(tap.low_rank.len(), 4 * original.blocks.len(), "every branch is there, and gives nothing");
        assert!(weights(&decoder) == weights(&host.decoder), "{name}");
        assert_eq!(logits(&mut decoder, &mut tap, &probes), host.logits(&probes), "{name}");
    }
}

#[test]
fn where_nothing_is_rounded_nothing_changes() {
    let sixteen = r#"{ step = "weights", bits = 16 }, { step = "activations", bits = 16 }"#;
    for name in ORACLES {
        let original = oracle(name);
        let probes = scrambled(3, 30, original.architecture.vocabulary, 1);
        let keys = "samples = 3, held-out = 2, epochs = 1";
        let made = make(&tuned(sixteen, keys), &original, &mut calibrator(&original, 1));
        assert!(weights(&made.decoder) == weights(&original), "{name}");
        assert!(made.tap.low_rank.is_empty());
        // Scales alone, far from one, without rounding.
        let (mut decoder, mut tap) = (original.clone(), FakeQuant::default());
        let before = logits(&mut original.clone(), &mut Off, &probes);
        for layer in 0..original.blocks.len() {
            let rounded = hosts(&original, 4, Granularity::Channel);
            let block = PlainBlock::of(&decoder, layer, &rounded, &FakeQuant::default()).unwrap();
            let learned = learned(&block, &decoder);
            assert!(learned.sites.iter().all(|site| site.smoothing.is_some()), "{name}");
            (decoder, tap) = learned.ship(&unrounded(block), &decoder, &tap).unwrap();
        }
        let after = logits(&mut decoder, &mut tap, &probes);
        let error = difference(&after, &before);
        assert!(error < 1e-4 && after != before, "{name}: {error:e}");
    }
}

/// The graph of training computes what ships, behind a prefix, too.
#[test]
fn what_is_trained_is_what_ships() {
    for name in ORACLES {
        for prefix in [&[][..], &[3, 5]] {
            let mut decoder = oracle(name);
            decoder.set_prefix(prefix);
            let tap = FakeQuant::default();
            for (bits, tolerance) in [(Some(4), 0.01), (None, 1e-4)] {
                let mut block = PlainBlock::of(
                    &decoder,
                    1,
                    &hosts(&decoder, bits.unwrap_or(4), Granularity::Group(4)),
                    &tap,
                )
                .unwrap();
                let mut learned = learned(&block, &decoder);
                if bits.is_none() {
                    block = unrounded(block);
                    learned.sites.iter_mut().flat_map(|s| &mut s.linears).for_each(|l| l.clips = None);
                }
                if bits.is_none() {
                    learned.sites.iter_mut().flat_map(|s| &mut s.linears).for_each(|l| l.factors = None);
                }
                let x = stream(&mut decoder.clone(), 1, 1);
                let (mut shipped, mut ships) = learned.ship(&block, &decoder, &tap).unwrap();
                let y = shipped.through_block(1, x.clone(), &mut ships);
                let target = random_like(&y);
                let expected = mse(&values(&y), &values(&target));
                let before = decoder.clone();
                let (found, _) =
                    gradients(&block, &learned, &mut decoder, &mut tap.clone(), [x, target], MSE);
                assert!(
                    (found / expected - 1.0).abs() < tolerance,
                    "{name} {prefix:?} {bits:?}: {found} {expected}"
                );
                assert!(
                    crate::recipes::prefix(&before) == crate::recipes::prefix(&decoder),
                    "{name}: restored"
                );
            }
        }
    }
}

fn loss(
    block: &PlainBlock,
    learned: &Learned,
    decoder: &Decoder,
    data: [&Tensor<3>; 2],
    tap: &FakeQuant,
) -> f64 {
    let data = data.map(Clone::clone);
    gradients(block, learned, &mut decoder.clone(), &mut tap.clone(), data, MSE).0
}

/// Without rounding the loss is smooth: scales reach it through branches alone, since all else is as it was.
#[test]
fn gradients_of_scales_are_finite_differences_where_nothing_is_rounded() {
    for (name, prefix) in [("llama2", &[][..]), ("llama3", &[3, 5]), ("llama-bias", &[4])] {
        let mut decoder = oracle(name);
        decoder.set_prefix(prefix);
        let tap = FakeQuant::default();
        let block = PlainBlock::of(&decoder, 1, &hosts(&decoder, 4, Granularity::Channel), &tap).unwrap();
        let mut learned = learned(&block, &decoder);
        learned.sites.iter_mut().flat_map(|site| &mut site.linears).for_each(|linear| linear.clips = None);
        let block = unrounded(block);
        let x = stream(&mut decoder.clone(), 1, 1);
        let target = random_like(&x);
        let data = [x.clone(), target.clone()];
        let (_, found) = gradients(&block, &learned, &mut decoder.clone(), &mut tap.clone(), data, MSE);
        for (s, site) in found.iter().enumerate() {
            let gradient = site.smoothing.as_ref().unwrap();
            let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
            let mut order: Vec<usize> = (0..gradient.len()).collect();
            order.sort_by(|&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()));
            for &c in order.iter().take(4).chain(order.last()) {
                let mut moved = learned.clone();
                let mut at = |u: f32| {
                    moved.sites[s].smoothing.as_mut().unwrap().u[c] = u;
                    loss(&block, &moved, &decoder, [&x, &target], &tap)
                };
                let u = learned.sites[s].smoothing.as_ref().unwrap().u[c];
                let h = 0.02;
                let expected = (at(u + h) - at(u - h)) / (2.0 * f64::from(h));
                let error = (f64::from(gradient[c]) - expected).abs();
                assert!(
                    error < 0.03 * f64::from(largest),
                    "{name} site {s} channel {c}: {} {expected}",
                    gradient[c]
                );
            }
        }
    }
}

/// Behind `down` nothing is rounded any more: its branch is differentiable whatever the host rounds.
#[test]
fn gradients_of_a_branch_are_finite_differences() {
    let decoder = oracle("llama3");
    let mut tap = FakeQuant::default();
    tap.rules = make(HOST, &decoder, &mut calibrator(&decoder, 1)).tap.rules;
    let block = PlainBlock::of(&decoder, 1, &hosts(&decoder, 4, Granularity::Group(4)), &tap).unwrap();
    let learned = learned(&block, &decoder);
    let x = stream(&mut decoder.clone(), 1, 1);
    let target = random_like(&x);
    let data = [x.clone(), target.clone()];
    let (_, found) = gradients(&block, &learned, &mut decoder.clone(), &mut tap.clone(), data, MSE);
    let (by_a, by_b) = found[3].linears[0].factors.as_ref().unwrap();
    for (which, gradient) in [("a", by_a), ("b", by_b)] {
        let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
        for i in (0..gradient.len()).step_by(gradient.len() / 7) {
            let mut moved = learned.clone();
            let mut at = |by: f32| {
                let factors = moved.sites[3].linears[0].factors.as_mut().unwrap();
                let of = |f: &mut Factors, i: usize, by: f32| {
                    let values = if which == "a" { &mut f.a } else { &mut f.b };
                    values[i] += by;
                };
                of(factors, i, by);
                let found = loss(&block, &moved, &decoder, [&x, &target], &tap);
                of(moved.sites[3].linears[0].factors.as_mut().unwrap(), i, -by);
                found
            };
            let h = 0.1;
            let expected = (at(h) - at(-h)) / (2.0 * f64::from(h));
            let error = (f64::from(gradient[i]) - expected).abs();
            assert!(error < 0.02 * f64::from(largest), "{which} {i}: {} {expected}", gradient[i]);
        }
    }
}

/// Clips move in steps; over a wide step the straight-through gradient has the sign of what happens.
#[test]
fn gradients_of_clips_have_the_right_sign() {
    let decoder = oracle("llama2");
    let tap = FakeQuant::default();
    let block = PlainBlock::of(&decoder, 1, &hosts(&decoder, 3, Granularity::Channel), &tap).unwrap();
    let options = Options { smoothing: None, low_rank: None, ..everything() };
    let mut learned = Learned::start(&block, &decoder, &options, None);
    for linear in learned.sites.iter_mut().flat_map(|site| &mut site.linears) {
        let clips = linear.clips.as_mut().unwrap();
        // Far too narrow: the ends matter.
        *clips = Clips::all(clips.high.len(), 0.0);
    }
    let x = stream(&mut decoder.clone(), 1, 1);
    let target = decoder.clone().through_block(1, x.clone(), &mut Off);
    let data = [x.clone(), target.clone()];
    let (_, found) = gradients(&block, &learned, &mut decoder.clone(), &mut tap.clone(), data, MSE);
    let gradient = &found[3].linears[0].clips.as_ref().unwrap().high;
    let mut order: Vec<usize> = (0..gradient.len()).filter(|&i| gradient[i] != 0.0).collect();
    order.sort_by(|&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()));
    let mut agree = 0;
    for &i in order.iter().take(10) {
        let mut moved = learned.clone();
        let mut at = |logit: f32| {
            moved.sites[3].linears[0].clips.as_mut().unwrap().high[i] = logit;
            loss(&block, &moved, &decoder, [&x, &target], &tap)
        };
        agree += u32::from((at(0.5) - at(-0.5)) * f64::from(gradient[i]) > 0.0);
    }
    assert!(order.len() >= 10 && agree >= 9, "{agree} of 10");
}

pub fn blocks(fitted: &serde_json::Map<String, Value>) -> Vec<&Value> {
    fitted["2.tune"]["blocks"].as_object().unwrap().values().collect()
}

pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// What was held out is measured again, apart from the step: the first block ships no worse than the host's.
#[test]
fn no_block_ships_worse_than_the_hosts() {
    let oracles = ORACLES.map(|name| (name, oracle(name), 1));
    let subjects = oracles.into_iter().chain([("builtin/tiny-llama", builtin("builtin/tiny-llama").1, 0)]);
    let mut trained = 0;
    for (name, original, start) in subjects {
        // A rate that breaks blocks must not be shipped either.
        for keys in ["", "clipping-rate = 1.0, smoothing-rate = 1.0, low-rank-rate = 1.0, "] {
            let mut calibrator = calibrator(&original, start);
            let recipe = tuned(HOST, &format!("{keys}samples = 5, held-out = 3, epochs = 2"));
            let mut made = make(&recipe, &original, &mut calibrator);
            let mut host = make(HOST, &original, &mut calibrator);
            for block in blocks(&made.fitted) {
                let losses = block["held-out"].as_array().unwrap().iter().filter_map(Value::as_f64);
                let all = losses.chain([number(&block["host"]), number(&block["start"])]);
                assert_eq!(number(&block["shipped"]), all.fold(f64::INFINITY, f64::min), "{name}: {block}");
                trained += u32::from(block["kept"] != "host" && block["kept"] != "start");
            }
            let error = |decoder: &mut Decoder, tap: &mut FakeQuant| -> f64 {
                let held_out = &calibrator.samples[5..];
                let mut pairs = held_out.iter().map(|tokens| {
                    let x = original.embed(token_tensor(&[tokens], &original.device()));
                    let exact = original.clone().through_block(0, x.clone(), &mut Off);
                    mse(&values(&decoder.through_block(0, x, tap)), &values(&exact))
                });
                pairs.by_ref().sum::<f64>() / 3.0
            };
            let tuned = error(&mut made.decoder, &mut made.tap);
            let untuned = error(&mut host.decoder, &mut host.tap);
            assert!(tuned <= untuned, "{name}: {tuned} {untuned}");
            let first = blocks(&made.fitted)[0];
            assert!((tuned / number(&first["shipped"]) - 1.0).abs() < 1e-4, "{name}: {tuned} {first}");
            assert!((untuned / number(&first["host"]) - 1.0).abs() < 1e-4, "{name}: {untuned} {first}");
        }
    }
    assert!(trained > 0, "training helps somewhere");
}

#[test]
fn a_higher_rank_begins_lower_and_the_full_rank_at_nothing() {
    let original = oracle("llama3");
    let host =
        r#"{ step = "weights", bits = 3, granularity = "group(8)" }, { step = "activations", bits = 16 }"#;
    let start = |rank: usize| {
        let keys = format!(
            "components = [\"low-rank\"], start = \"svd\", rank = {rank}, samples = 3, held-out = 3, epochs = 0"
        );
        let made = make(&tuned(host, &keys), &original, &mut calibrator(&original, 1));
        let branches = &made.tap.low_rank[&Site::block(0, models::Port::DownIn)];
        let held = made.tap.low_rank.values().flatten().map(|branch| branch.parameters()).sum::<usize>();
        assert_eq!(made.fitted["2.tune"]["low-rank-parameters"], held);
        (
            branches[0].rank(),
            number(&blocks(&made.fitted)[0]["start"]),
            number(&blocks(&made.fitted)[0]["host"]),
        )
    };
    let (found, full, loss) = start(1000);
    assert!(found < 1000 && full < 1e-6 * loss, "{found} {full} {loss}");
    let (found, some, _) = start(8);
    assert!(found == 8 && some < loss, "{some} {loss}");
}

#[test]
fn scales_stay_within_their_bounds_and_three_bits_give_no_nan() {
    for name in ["llama3", "llama-bias"] {
        let decoder = oracle(name);
        let rules = r#"{ step = "activations", bits = 3, granularity = "group(8)" }"#;
        let mut tap = make(rules, &decoder, &mut calibrator(&decoder, 1)).tap;
        let block = PlainBlock::of(&decoder, 1, &hosts(&decoder, 3, Granularity::Group(4)), &tap).unwrap();
        let largest: HashMap<Site, Vec<f32>> = block
            .sites
            .iter()
            .map(|site| {
                (site.site, numbers(site.linears[0].dims[1], 57).iter().map(|x| x.abs() + 0.1).collect())
            })
            .collect();
        let start = Learned::start(&block, &decoder, &everything(), Some(&largest));
        let rates = Rates { clipping: 0.05, smoothing: 0.5, low_rank: 0.01 };
        let mut trainer = Trainer::new(&block, start.clone(), rates, MSE);
        let x = stream(&mut decoder.clone(), 1, 1);
        let target = decoder.clone().through_block(1, x.clone(), &mut Off);
        for _ in 0..40 {
            let loss = trainer.step(&mut decoder.clone(), &mut tap, x.clone(), target.clone());
            assert!(loss.is_finite(), "{name}: {loss}");
        }
        let mut far = 0;
        for (start, site) in start.sites.iter().zip(&trainer.learned.sites) {
            let (before, after) = (start.smoothing.as_ref().unwrap(), site.smoothing.as_ref().unwrap());
            assert!(after.u.iter().all(|u| u.is_finite()));
            for (s0, s) in before.scales().iter().zip(after.scales()) {
                let factor = s / s0;
                assert!((0.5 - 1e-12..=2.0 + 1e-12).contains(&factor), "{name}: {factor}");
                far += u32::from(!(0.6..1.7).contains(&factor));
            }
            let clips = site.linears.iter().flat_map(|linear| &linear.clips);
            assert!(clips.flat_map(|clips| clips.high.iter().chain(&clips.low)).all(|x| x.is_finite()));
        }
        assert!(far > 0, "{name}: the bounds were never near");
    }
}

#[test]
fn clips_of_groups_reach_what_clips_of_rows_reach() {
    let original = builtin("builtin/tiny-llama").1;
    let loss = |granularity: &str| {
        let host = format!(
            r#"{{ step = "weights", bits = 3, granularity = "{granularity}" }}, {{ step = "activations", bits = 16 }}"#
        );
        let keys = "components = [\"clipping\"], clipping-rate = 0.1, samples = 6, held-out = 2, epochs = 4";
        let made = make(&tuned(&host, keys), &original, &mut calibrator(&original, 0));
        let training = blocks(&made.fitted)[0]["training"].as_array().unwrap().clone();
        training.iter().map(number).fold(f64::INFINITY, f64::min)
    };
    let (groups, rows) = (loss("group(8)"), loss("channel"));
    assert!(groups <= rows, "{groups} {rows}");
}

/// A calibrator whose user stops after some looks.
struct Impatient {
    inner: Direct,
    left: usize,
    told: Vec<(usize, usize)>,
}

impl Calibrator for Impatient {
    fn samples(&self) -> &[Vec<u32>] {
        self.inner.samples()
    }
    fn statistics(&mut self, decoder: &mut Decoder, state: &[Step]) -> Result<Rc<Statistics>, StepError> {
        self.inner.statistics(decoder, state)
    }
    fn start(&self) -> Option<u32> {
        self.inner.start()
    }
    fn token(&self, text: &str) -> Option<u32> {
        self.inner.token(text)
    }
    fn text(&self, token: u32) -> String {
        self.inner.text(token)
    }
    fn ordinary(&self) -> Vec<u32> {
        self.inner.ordinary()
    }
    fn seed(&self) -> u64 {
        self.inner.seed()
    }
    fn recall(&self, key: &str) -> Option<Value> {
        self.inner.recall(key)
    }
    fn remember(&mut self, key: String, found: Value) {
        self.inner.remember(key, found);
    }
    fn progress(&mut self, done: usize, total: usize) -> bool {
        self.told.push((done, total));
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}

#[test]
fn it_tells_how_far_it_is_and_stops_when_asked() {
    let original = oracle("llama2");
    let recipe = steps(&tuned(HOST, "samples = 3, held-out = 1, epochs = 2"));
    let mut patient = Impatient { inner: calibrator(&original, 1), left: 100, told: Vec::new() };
    apply(&recipe, &mut original.clone(), &mut patient).unwrap();
    let total = 2 * original.blocks.len();
    assert_eq!(patient.told, (1..=total).map(|done| (done, total)).collect::<Vec<_>>());
    let mut hasty = Impatient { inner: calibrator(&original, 1), left: 3, told: Vec::new() };
    let stopped = apply(&recipe, &mut original.clone(), &mut hasty);
    assert!(matches!(stopped, Err((step, StepError::Interrupted)) if step == "2.tune"));
    assert_eq!(hasty.told.len(), 3);
}

#[test]
fn the_seed_draws_the_branches_and_nothing_else() {
    let original = oracle("llama2");
    let made = |seed: u64, components: &str| {
        let mut calibrator = calibrator(&original, 1);
        calibrator.seed = seed;
        let keys = format!("components = [{components}], samples = 3, held-out = 1, epochs = 1");
        let mut made = make(&tuned(HOST, &keys), &original, &mut calibrator);
        made.logits(&scrambled(1, 20, original.architecture.vocabulary, 1))
    };
    let without = r#""clipping", "smoothing""#;
    assert_eq!(made(0, without), made(1, without));
    assert_ne!(made(0, r#""low-rank""#), made(1, r#""low-rank""#));
}

#[test]
fn weights_beside_the_blocks_are_still_rounded_and_kept_ones_still_kept() {
    let original = oracle("llama3");
    let host =
        r#"{ step = "weights", bits = 4, embeddings = true, sites = ["attn_in", "down_in", "head_in"] }"#;
    let recipe = tuned(host, "samples = 3, held-out = 1, epochs = 1");
    let made = make(&recipe, &original, &mut calibrator(&original, 1));
    let untuned = make(host, &original, &mut calibrator(&original, 1));
    let values = |decoder: &Decoder| -> BTreeMap<String, Vec<u32>> { weights(decoder) };
    let (found, expected, before) = (values(&made.decoder), values(&untuned.decoder), values(&original));
    assert!(found["embedding"] == expected["embedding"] && found["embedding"] != before["embedding"]);
    let head = &original.head.linears[0].name;
    assert!(found[head] == expected[head] && found[head] != before[head]);
    let rounded: Vec<_> = made.tap.rounded.iter().map(|site| site.port.as_str()).collect();
    assert!(rounded.iter().all(|port| ["attn_in", "down_in"].contains(port)), "{rounded:?}");
    assert_eq!(rounded.len(), 2 * original.blocks.len());
}

#[test]
fn too_few_samples_are_refused_with_the_cure() {
    let original = oracle("llama2");
    let error = try_make(&tuned(HOST, "samples = 7, held-out = 2"), &original, &mut calibrator(&original, 1));
    let (step, error) = error.err().expect("there are eight");
    assert_eq!(step, "2.tune");
    assert!(error.to_string().contains("lower the step's `samples` or `held-out`"), "{error}");
}
