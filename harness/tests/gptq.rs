//! GPTQ against an implementation that shares nothing with it, and what must hold of it whatever the weights.

#![allow(clippy::unwrap_used)]

use std::fs;

use harness::calibrate::moment::SecondMoment;
use harness::calibrate::observe::{Options, collect, collect_through};
use harness::quantize::Calibrator;
use harness::quantize::direct::Direct;
use harness::quantize::fake_quant::FakeQuant;
use harness::quantize::grid::{Convention, Granularity, Grid};
use harness::quantize::solve::blockwise::Stream;
use harness::quantize::solve::clip::Clip;
use harness::quantize::solve::gptq::{Drift, Fit, Prepared, Settings, loss, nearest, round};
use harness::quantize::solve::layout::Layout;
use harness::quantize::steps::Step;
use models::{Hadamard, Off, Port, Site};
use proptest::prelude::*;
use serde::Deserialize;

#[path = "support/recipes.rs"]
mod recipes;

use recipes::{builtin, fixture, make, oracle, scrambled, try_make, values};

#[derive(Deserialize)]
struct Golden {
    channels: usize,
    weight: Vec<f32>,
    inputs: Vec<f32>,
    original_inputs: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize, Debug)]
struct Case {
    bits: u8,
    convention: Convention,
    group: usize,
    groups: String,
    act_order: bool,
    damping: f64,
    damping_used: f64,
    clip: Clip,
    dead: Vec<usize>,
    tokens: usize,
    alpha: f64,
    kept: usize,
    rounded: Vec<f32>,
}

impl Case {
    fn settings(&self, block: usize) -> Settings {
        let granularity = if self.group == 0 { Granularity::Channel } else { Granularity::Group(self.group) };
        let fit = Fit { grid: Grid::new(self.bits, self.convention), granularity, clip: self.clip };
        Settings { fit, static_groups: self.groups == "static", block }
    }
}

fn moment(rows: &[f32], channels: usize) -> SecondMoment {
    let mut moment = SecondMoment::new(channels);
    moment.add(rows);
    moment
}

/// (X − X̃)ᵀX̃, written out.
fn cross(original: &[f32], present: &[f32], channels: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels * channels];
    for (meant, x) in original.chunks(channels).zip(present.chunks(channels)) {
        for a in 0..channels {
            for b in 0..channels {
                sums[a * channels + b] += (f64::from(meant[a]) - f64::from(x[a])) * f64::from(x[b]);
            }
        }
    }
    sums
}

#[test]
fn every_option_gives_the_weights_of_an_independent_implementation() {
    let text = fs::read_to_string(fixture("gptq.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let channels = golden.channels;
    assert!(golden.cases.len() >= 20);
    for case in &golden.cases {
        let mut x = golden.inputs[..case.tokens * channels].to_vec();
        for row in x.chunks_mut(channels) {
            case.dead.iter().for_each(|&c| row[c] = 0.0);
        }
        let moment = moment(&x, channels);
        let cross = cross(&golden.original_inputs[..case.tokens * channels], &x, channels);
        let drift = (case.alpha > 0.0).then_some(Drift { cross: &cross, alpha: case.alpha });
        let layout = (case.kept > 0).then(|| Layout::by_importance(&moment.squares(), case.kept, 8));
        let prepared = Prepared::new(&moment, case.damping, case.act_order, drift, layout.as_ref());
        assert_eq!((prepared.damping, prepared.floor), (case.damping_used, None), "{case:?}");
        assert_eq!(prepared.dead, case.dead);
        // The width of a block is no option: it changes the order of sums alone.
        for block in [128, 16, 7, 1] {
            let found = round(&golden.weight, &prepared, &case.settings(block), layout.as_ref());
            assert!(!found.is_nearest, "{case:?}");
            let worst =
                found.weight.iter().zip(&case.rounded).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst <= 1e-5, "block {block}: off by {worst} in {case:?}");
            assert!(found.loss < found.nearest_loss || case.alpha > 0.0, "{case:?}");
        }
    }
}

/// Correlated inputs `[tokens, channels]` and weights `[rows, channels]`.
fn matrices(seed: u64, tokens: usize, channels: usize, rows: usize) -> (Vec<f32>, Vec<f32>) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut x = Vec::new();
    for _ in 0..tokens {
        let shared = next();
        x.extend((0..channels).map(|c| (next() + 1.5 * shared) * if c % 7 == 3 { 4.0 } else { 1.0 }));
    }
    (x, (0..rows * channels).map(|_| next()).collect())
}

fn settings(bits: u8, convention: Convention, granularity: Granularity, static_groups: bool) -> Settings {
    let fit = Fit { grid: Grid::new(bits, convention), granularity, clip: Clip::Factor(1.0) };
    Settings { fit, static_groups, block: 128 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_loss_is_never_above_that_of_rounding_to_nearest(
        seed in 0u64..1000, tokens in 1usize..60, channels in 1usize..40, bits in 2u8..=8, act_order: bool,
        damping in prop_oneof![Just(0.0), Just(0.01), Just(1.0)], group in prop_oneof![Just(0usize), 1usize..20],
        static_groups: bool, asymmetric: bool,
    ) {
        let (x, w) = matrices(seed, tokens, channels, 5);
        let moment = moment(&x, channels);
        let convention = if asymmetric { Convention::ZeroInRange } else { Convention::Absmax };
        let granularity = if group == 0 { Granularity::Channel } else { Granularity::Group(group) };
        let settings = settings(bits, convention, granularity, static_groups);
        let found = round(&w, &Prepared::new(&moment, damping, act_order, None, None), &settings, None);
        let plain = nearest(&w, channels, &settings.fit, None, None);
        prop_assert!(found.loss <= found.nearest_loss);
        prop_assert!((found.nearest_loss - loss(&moment, &w, &plain)).abs() <= 1e-9 * found.nearest_loss);
        prop_assert!((found.loss - loss(&moment, &w, &found.weight)).abs() <= 1e-9 * found.loss.max(1e-12));
    }

    #[test]
    fn without_correlation_it_rounds_to_nearest(
        seed in 0u64..1000, channels in 1usize..40, bits in 2u8..=8, act_order: bool, group in 0usize..10,
        damping in 0.0f64..=1.0,
    ) {
        // One token per channel: XᵀX is diagonal, and 1 but for the channels' scales.
        let x: Vec<f32> = (0..channels * channels)
            .map(|i| if i % (channels + 1) == 0 { 1.0 + (i % 3) as f32 } else { 0.0 })
            .collect();
        let (_, w) = matrices(seed, 1, channels, 6);
        let granularity = if group == 0 { Granularity::Channel } else { Granularity::Group(group) };
        // With static groups, since dynamic ones follow the order of activity.
        let settings = settings(bits, Convention::Absmax, granularity, true);
        let found = round(&w, &Prepared::new(&moment(&x, channels), damping, act_order, None, None), &settings, None);
        prop_assert_eq!(&found.weight, &nearest(&w, channels, &settings.fit, None, None));
        let mut identity = SecondMoment::new(channels);
        identity.add(&(0..channels * channels).map(|i| f32::from(u8::from(i % (channels + 1) == 0))).collect::<Vec<_>>());
        let found = round(&w, &Prepared::new(&identity, damping, act_order, None, None), &settings, None);
        prop_assert_eq!(found.weight, nearest(&w, channels, &settings.fit, None, None));
    }
}

#[test]
fn on_correlated_inputs_it_is_better_by_far() {
    for act_order in [false, true] {
        for granularity in
            [Granularity::Tensor, Granularity::Channel, Granularity::Group(16), Granularity::Group(48)]
        {
            for static_groups in [false, true] {
                let (x, w) = matrices(5, 400, 96, 32);
                let settings = settings(3, Convention::Absmax, granularity, static_groups);
                let found =
                    round(&w, &Prepared::new(&moment(&x, 96), 0.01, act_order, None, None), &settings, None);
                assert!(
                    found.loss < 0.7 * found.nearest_loss,
                    "{granularity} {act_order} {static_groups}: {} {}",
                    found.loss,
                    found.nearest_loss
                );
            }
        }
    }
}

/// ‖X·Wᵀ − X̃·Ŵᵀ‖², written out.
fn output_error(x: &[f32], w: &[f32], other_x: &[f32], other_w: &[f32], channels: usize) -> f64 {
    let product = |x: &[f32], w: &[f32]| -> Vec<f64> {
        let rows = x.chunks(channels).flat_map(|t| {
            w.chunks(channels).map(|r| t.iter().zip(r).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
        });
        rows.collect()
    };
    product(x, w).iter().zip(product(other_x, other_w)).map(|(a, b)| (a - b).powi(2)).sum()
}

#[test]
fn asymmetric_calibration_comes_nearer_to_what_the_original_computes() {
    let channels = 64;
    let (original, w) = matrices(11, 500, channels, 24);
    let (noise, _) = matrices(12, 500, channels, 1);
    let present: Vec<f32> = original.iter().zip(&noise).map(|(x, n)| x * 0.93 + 0.05 * n).collect();
    let (moment, cross) = (moment(&present, channels), cross(&original, &present, channels));
    let settings = settings(4, Convention::ZeroInRange, Granularity::Channel, false);
    let error = |drift| {
        let found = round(&w, &Prepared::new(&moment, 0.01, false, drift, None), &settings, None).weight;
        output_error(&original, &w, &present, &found, channels)
    };
    let (plain, corrected) = (error(None), error(Some(Drift { cross: &cross, alpha: 1.0 })));
    assert!(corrected < 0.7 * plain, "{corrected} {plain}");
    // Nothing differs: nothing is corrected.
    let zero = vec![0.0; channels * channels];
    assert_eq!(plain, error(Some(Drift { cross: &zero, alpha: 1.0 })));
}

#[test]
fn what_cannot_be_factored_takes_more_damping_and_what_was_never_seen_is_rounded_to_nearest() {
    let (mut x, w) = matrices(3, 4, 12, 5);
    let prepared = Prepared::new(&moment(&x, 12), 0.0, false, None, None);
    assert_eq!((prepared.damping, prepared.floor), (0.01, None), "four tokens, twelve channels");
    x.fill(0.0);
    let prepared = Prepared::new(&moment(&x, 12), 0.01, false, None, None);
    let settings = settings(4, Convention::Absmax, Granularity::Channel, false);
    let found = round(&w, &prepared, &settings, None);
    assert_eq!(prepared.dead.len(), 12);
    assert!(found.is_nearest && !prepared.is_solvable());
    assert_eq!(found.weight, nearest(&w, 12, &settings.fit, None, None));
    // No damping helps a moment that is no number; the weights stay numbers.
    let mut broken = moment(&matrices(3, 30, 12, 1).0, 12);
    broken.sums[5] = f64::NAN;
    broken.sums[5 * 12] = f64::NAN;
    let found = round(&w, &Prepared::new(&broken, 0.01, false, None, None), &settings, None);
    assert!(found.is_nearest && found.weight.iter().all(|w| w.is_finite()));
}

const PORTS: [Port; 4] = [Port::AttnIn, Port::OIn, Port::MlpIn, Port::DownIn];

fn agree(a: &SecondMoment, b: &SecondMoment) {
    assert_eq!((a.channels, a.tokens), (b.channels, b.tokens));
    let largest = b.squares().into_iter().fold(0.0, f64::max);
    for (a, b) in a.sums.iter().zip(&b.sums) {
        assert!((a - b).abs() <= 1e-6 * largest, "{a} {b}");
    }
}

#[test]
fn a_pass_by_blocks_sees_what_the_whole_pass_sees() {
    let subjects = [
        ("llama3", false, false),
        ("llama3", true, false),
        ("llama3", true, true),
        ("mixtral", false, false),
    ];
    for (name, prefix, online) in subjects {
        let mut decoder = oracle(name);
        if online {
            // What happens to an activation inside the forward pass belongs to what is read.
            let turn = Hadamard::random(decoder.architecture.mlp.intermediate, 3);
            (0..2).for_each(|layer| decoder.rotate_online(Site::block(layer, Port::DownIn), &turn).unwrap());
        }
        if prefix {
            decoder.set_prefix(&[1, 9]);
        }
        let samples = scrambled(6, 20, decoder.architecture.vocabulary, 1);
        let all: Vec<Site> = decoder.groups().into_iter().map(|(site, _)| site).collect();
        let options = Options {
            second_moments: all.iter().filter(|site| site.layer.is_some()).copied().collect(),
            ..Options::default()
        };
        let whole = collect(&mut decoder, &samples, prefix, &options, &mut |_, _| true).unwrap();
        let mut stream = Stream::begin(&decoder, &samples, Some(1)).unwrap();
        for layer in 0..2 {
            let mut tap = FakeQuant::default();
            let sites: Vec<Site> = all.iter().filter(|site| site.layer == Some(layer)).copied().collect();
            // Stopping early hides nothing that was asked for: experts read what their router sends them.
            let first: Vec<Site> = sites.iter().filter(|site| site.port < Port::DownIn).copied().collect();
            let early = stream.pass(&mut decoder, layer, &mut tap, &first, false).unwrap();
            let seen = stream.pass(&mut decoder, layer, &mut tap, &sites, true).unwrap();
            for site in sites {
                let Some(found) = seen.moments.get(&site) else {
                    assert!(site.expert.is_some() && !whole.sites.contains_key(&site), "{site}");
                    continue;
                };
                agree(found, whole.sites[&site].second_moment.as_ref().unwrap());
                assert!(!first.contains(&site) || early.moments[&site].sums == found.sums, "{site}");
            }
        }
    }
}

/// Second moments of a site, of the model behind a tap.
fn moment_of(made: &mut recipes::Made, samples: &[Vec<u32>], site: Site, read: bool) -> SecondMoment {
    let options = Options { second_moments: [site].into(), ..Options::default() };
    let mut tap: Box<dyn models::Tap> = if read { Box::new(made.tap.clone()) } else { Box::new(Off) };
    let found = collect_through(&mut made.decoder, tap.as_mut(), samples, false, &options, &mut |_, _| true);
    found.unwrap().sites.remove(&site).unwrap().second_moment.unwrap()
}

/// What the recipe's record says of a site.
fn noted(made: &recipes::Made, site: Site, key: &str) -> f64 {
    made.fitted["0.weights"]["sites"][site.to_string()][key].as_f64().unwrap()
}

#[test]
fn hessian_inputs_are_those_of_the_model_they_name() {
    let original = oracle("llama3");
    let samples = scrambled(8, 24, original.architecture.vocabulary, 1);
    let site = Site::block(1, Port::MlpIn);
    let gptq = |rest: &str| {
        format!(
            "{{ step = \"weights\", bits = 3, solver = \"gptq\"{rest} }}, {{ step = \"activations\", bits = 4 }}"
        )
    };
    let weight = |decoder: &models::Decoder, name: &str| {
        let groups = decoder.groups().into_iter().flat_map(|(_, group)| &group.linears);
        values(&groups.into_iter().find(|linear| linear.name == name).unwrap().weight)
    };
    let names: Vec<String> = original
        .groups()
        .into_iter()
        .find(|(at, _)| *at == site)
        .unwrap()
        .1
        .linears
        .iter()
        .map(|l| l.name.clone())
        .collect();
    for (inputs, sequential) in
        [("fp", ""), ("wq", "layer"), ("wq", "group"), ("waq", "layer"), ("waq", "group")]
    {
        let mut rest = format!(", hessian-inputs = {inputs:?}");
        if !sequential.is_empty() {
            rest += &format!(", sequential = {sequential:?}");
        }
        let made = make(&gptq(&rest), &original, &mut Direct::new(samples.clone(), Some(1)));
        // The model that it should have read: blocks before rounded, and in this one what `sequential` says.
        let mut read =
            recipes::Made { decoder: original.clone(), tap: made.tap.clone(), fitted: made.fitted.clone() };
        if inputs != "fp" {
            read.decoder.blocks[0] = made.decoder.blocks[0].clone();
        }
        if sequential == "group" {
            read.decoder.blocks[1].qkv = made.decoder.blocks[1].qkv.clone();
            read.decoder.blocks[1].o = made.decoder.blocks[1].o.clone();
        }
        let mut moment = moment_of(&mut read, &samples, site, inputs == "waq");
        if inputs == "waq" {
            // The observer sees what comes in; the linears read it rounded.
            moment = rounded_moment(&mut read, &samples, site);
        }
        let expected: f64 =
            names.iter().map(|n| loss(&moment, &weight(&original, n), &weight(&made.decoder, n))).sum();
        let found = noted(&made, site, "loss");
        assert!((found - expected).abs() <= 1e-4 * expected, "{inputs} {sequential}: {found} {expected}");
    }
}

/// Second moment of a site's activation after its rule.
fn rounded_moment(made: &mut recipes::Made, samples: &[Vec<u32>], site: Site) -> SecondMoment {
    struct Catch<'a>(&'a mut FakeQuant, Site, SecondMoment);
    impl models::Tap for Catch<'_> {
        fn linears(
            &mut self,
            site: Site,
            x: burn::tensor::Tensor<3>,
            group: &models::Group,
        ) -> Vec<burn::tensor::Tensor<3>> {
            if site == self.1 {
                let rule = &self.0.rules[&site];
                let rounded = harness::quantize::rounding::round_activation(x.clone(), rule);
                self.2.add(&values(&rounded));
            }
            self.0.linears(site, x, group)
        }
    }
    let mut catch = Catch(&mut made.tap, site, SecondMoment::new(made.decoder.architecture.hidden));
    let device = made.decoder.device();
    made.decoder.hidden(models::token_tensor(samples, &device), &mut catch);
    catch.2
}

#[test]
fn moments_survive_linear_transforms() {
    // X' = X·T gives TᵀHT: here T is the division by smoothing scales.
    let original = oracle("llama3");
    let samples = scrambled(8, 24, original.architecture.vocabulary, 1);
    let (mut plain, mut scaled) = (original.clone(), original);
    let channels = plain.architecture.hidden;
    let scales: Vec<f64> = (0..channels).map(|c| 0.5 + (c % 5) as f64 / 2.0).collect();
    scaled.rescale(Site::block(0, Port::MlpIn), &scales).unwrap();
    let seen = |decoder: &mut models::Decoder| {
        let mut stream = Stream::begin(decoder, &samples, Some(1)).unwrap();
        let mut seen = stream
            .pass(decoder, 0, &mut FakeQuant::default(), &[Site::block(0, Port::MlpIn)], false)
            .unwrap();
        seen.moments.remove(&Site::block(0, Port::MlpIn)).unwrap()
    };
    let mut expected = seen(&mut plain);
    for (i, sum) in expected.sums.iter_mut().enumerate() {
        *sum /= scales[i / channels] * scales[i % channels];
    }
    agree(&seen(&mut scaled), &expected);
}

#[test]
fn faults_are_named() {
    let original = oracle("llama3");
    let samples = scrambled(4, 12, original.architecture.vocabulary, 1);
    let recipe = r#"{ step = "weights", bits = 4, solver = "gptq" }"#;
    let fault = |recipe: &str, decoder: &models::Decoder, samples: &[Vec<u32>]| {
        let made = try_make(recipe, decoder, &mut Direct::new(samples.to_vec(), Some(1)));
        made.err().expect("it fails").1.to_string()
    };
    assert!(fault(recipe, &original, &[]).contains("the calibration set has no samples"));
    let mut broken = original.clone();
    broken.blocks[1].attn_norm.weight = broken.blocks[1].attn_norm.weight.clone() * f32::NAN;
    assert!(fault(recipe, &broken, &samples).contains("layers.1.attn_in is not finite"));
    let groups = r#"{ step = "weights", bits = 4, solver = "gptq", granularity = "group(24)" }"#;
    assert!(fault(groups, &original, &samples).contains("groups of 24 do not divide"));
    // With `ragged` the last group is short; few tokens are recorded.
    let ragged = groups.replace("group(24)\"", "group(24)\", ragged = true");
    let made = make(&ragged, &original, &mut Direct::new(samples[..1].to_vec(), Some(1)));
    assert_eq!(noted(&made, Site::block(0, Port::AttnIn), "fewer-tokens-than-channels"), 12.0);
}

#[test]
fn sixteen_bits_need_nothing_and_the_head_can_be_rounded_too() {
    let (checkpoint, original) = builtin("builtin/tiny-llama");
    let sixteen = r#"{ step = "weights", bits = 16, solver = "gptq", clip = "output" }"#;
    let made = make(sixteen, &original, &mut Direct::new(Vec::new(), checkpoint.tokenizer().bos()));
    assert_eq!(recipes::weights(&made.decoder), recipes::weights(&original));
    let step: &Step = &recipes::steps(sixteen)[0];
    assert!(!step.method().needs_calibration());

    let all = r#"{ step = "weights", bits = 3, solver = "gptq", embeddings = true,
        sites = ["attn_in", "o_in", "mlp_in", "down_in", "head_in"] }"#
        .replace('\n', " ");
    let mut calibrator = Direct::new(scrambled(8, 40, original.architecture.vocabulary, 0), Some(0));
    let made = make(&all, &original, &mut calibrator);
    assert_ne!(values(&made.decoder.head.linears[0].weight), values(&original.head.linears[0].weight));
    assert_ne!(values(&made.decoder.embedding), values(&original.embedding));
    let (found, nearest) = (noted(&made, Site::HEAD, "loss"), noted(&made, Site::HEAD, "nearest-loss"));
    assert!(found < nearest, "{found} {nearest}");
    assert_eq!(calibrator.samples().len(), 8);
}

#[test]
fn a_search_by_output_error_leaves_queries_and_keys_and_never_adds_error() {
    let original = oracle("llama3");
    let samples = scrambled(8, 24, original.architecture.vocabulary, 1);
    let made = |clip: &str| {
        let recipe = format!("{{ step = \"weights\", bits = 3, granularity = \"group(8)\", clip = {clip} }}");
        make(&recipe, &original, &mut Direct::new(samples.clone(), Some(1)))
    };
    let (plain, searched) = (made("1.0"), made("\"output\""));
    for (layer, (a, b)) in plain.decoder.blocks.iter().zip(&searched.decoder.blocks).enumerate() {
        for place in 0..3 {
            let same = values(&a.qkv.linears[place].weight) == values(&b.qkv.linears[place].weight);
            assert_eq!(same, place < 2, "layer {layer}, linear {place}");
        }
        for port in PORTS {
            let site = Site::block(layer, port);
            // The search sees one group at a time: the sum over a row may come out a little above.
            assert!(
                noted(&searched, site, "loss") <= 1.1 * noted(&searched, site, "unclipped-loss"),
                "{site}"
            );
        }
    }
}

#[test]
fn channels_kept_apart_are_on_their_own_grid_and_help_where_they_spike() {
    let (checkpoint, original) = builtin("builtin/tiny-llama-spiky");
    let start = checkpoint.tokenizer().bos().unwrap();
    let samples = scrambled(8, 40, original.architecture.vocabulary, start);
    let rest = r#"{ step = "weights", bits = 4, granularity = "group(16)", ragged = true, solver = "gptq",
        hessian-inputs = "waq" }, { step = "activations", bits = 4, granularity = "group(16)", ragged = true }"#
        .replace('\n', " ");
    let made = |keep: &str| {
        make(&format!("{keep}{rest}"), &original, &mut Direct::new(samples.clone(), Some(start)))
    };
    let keep = |count: usize| format!("{{ step = \"keep\", method = \"channels\", count = {count} }}, ");
    // One scale for a whole row, which the spikes of seven channels decide; in groups of 16 they spoil but their own group.
    let whole = rest
        .replace("granularity = \"group(16)\", ragged = true, solver", "granularity = \"channel\", solver");
    let whole = whole.replace("granularity = \"group(16)\", ragged = true", "granularity = \"token\"");
    assert!(!whole.contains("group"));
    let of_rows = |keep: &str| {
        make(&format!("{keep}{whole}"), &original, &mut Direct::new(samples.clone(), Some(start)))
    };
    let (mut plain, mut none, mut apart) = (of_rows(""), of_rows(&keep(0)), of_rows(&keep(7)));
    let probes = scrambled(3, 48, original.architecture.vocabulary, start);
    let truth = recipes::logits(&mut original.clone(), &mut Off, &probes);
    let error = |made: &mut recipes::Made| recipes::mse(&made.logits(&probes), &truth);
    let (plain, none, apart) = (error(&mut plain), error(&mut none), error(&mut apart));
    assert!(apart < plain && apart < none, "{apart} {none} {plain}");
    let atom = made(&keep(7));
    let site = Site::block(0, Port::DownIn);
    let noted = &atom.fitted["0.keep"]["sites"][site.to_string()];
    assert_eq!(noted["kept"], 7);
    assert!(noted["share"].as_f64().unwrap() > 0.5, "{noted}");

    // Every kept column lies on an 8-bit grid with one scale per row, the others on a coarse one.
    let kept: Vec<usize> =
        noted["channels"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap() as usize).collect();
    let down =
        atom.decoder.groups().into_iter().find(|(at, _)| *at == Site::block(0, Port::DownIn)).unwrap().1;
    let weight = values(&down.linears[0].weight);
    let channels = original.architecture.mlp.intermediate;
    for row in weight.chunks(channels) {
        let largest = kept.iter().map(|&c| row[c].abs()).fold(0f32, f32::max);
        let delta = largest.max(1e-5) / 127.0;
        for &c in &kept {
            let code = row[c] / delta;
            assert!((code - code.round()).abs() < 1e-3, "{code}");
        }
    }
    // Too many are refused.
    let fault = try_make(&format!("{}{rest}", keep(500)), &original, &mut Direct::new(samples, Some(start)));
    assert!(fault.err().unwrap().1.to_string().contains("kept apart"));
}
