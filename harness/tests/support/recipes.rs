//! Recipes as a user writes them, carried out without a run around them, and what is compared of the models they make.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use harness::experiment::Experiment;
use harness::quantize::direct::Direct;
use harness::quantize::fake_quant::FakeQuant;
use harness::quantize::low_rank::LowRank;
use harness::quantize::steps::Step;
use harness::quantize::{StepError, apply};
use models::{Checkpoint, Decoder, Group, Off, Site, Tap, token_tensor};
use serde_json::{Map, Value};

/// W8A8, activations with one scale per sequence.
pub const NAIVE: &str =
    r#"{ step = "weights", bits = 8 }, { step = "activations", bits = 8, granularity = "tensor" }"#;
/// W8A8, activations with a scale per token.
pub const PER_TOKEN: &str =
    r#"{ step = "weights", bits = 8 }, { step = "activations", bits = 8, granularity = "token" }"#;
/// Weights only.
pub const W8A16: &str = r#"{ step = "weights", bits = 8 }"#;

/// The steps of a recipe, checked and with their defaults, as a sweep would carry them out.
#[track_caller]
pub fn steps(recipe: &str) -> Vec<Step> {
    if recipe.is_empty() {
        // A file says `original`.
        return Vec::new();
    }
    let text = format!(
        "question = \"?\"\nreference = \"own\"\n[sweep]\nmodels = [\"builtin/tiny-llama\"]\nrecipes = [\"r\"]\n\
         calibrations = [\"c\"]\n[calibration.c]\ncorpus = \"random-tokens\"\nsamples = 1\nlength = 8\n\
         [recipe.r]\nsteps = [{recipe}]\n[[evaluate]]\nmetric = \"perplexity\"\nprotocol = \"gptq\"\n\
         corpus = \"builtin/stories-held-out\"\nlength = 64\nbos = \"every\"\n"
    );
    let experiment = Experiment::parse(&text, Path::new("x.toml")).unwrap_or_else(|fault| panic!("{fault}"));
    experiment.recipes.into_iter().find(|recipe| recipe.name == "r").expect("it is swept").steps
}

/// Bits by name, rules and exemptions by site.
pub type State = (BTreeMap<String, Vec<u32>>, BTreeMap<Site, String>, BTreeMap<Site, String>);

/// A model with a recipe carried out on it.
pub struct Made {
    pub decoder: Decoder,
    pub tap: FakeQuant,
    pub fitted: Map<String, Value>,
}

/// Carries a recipe out on a copy of the original.
#[track_caller]
pub fn make(recipe: &str, original: &Decoder, calibrator: &mut Direct) -> Made {
    try_make(recipe, original, calibrator).unwrap_or_else(|(step, error)| panic!("{recipe}: {step}: {error}"))
}

/// As [`make`], where the recipe may fail.
#[track_caller]
pub fn try_make(
    recipe: &str,
    original: &Decoder,
    calibrator: &mut Direct,
) -> Result<Made, (String, StepError)> {
    let mut decoder = original.clone();
    let (tap, fitted) = apply(&steps(recipe), &mut decoder, calibrator)?;
    Ok(Made { decoder, tap, fitted })
}

impl Made {
    /// Logits of sequences as they are, one after another.
    pub fn logits(&mut self, sequences: &[Vec<u32>]) -> Vec<f32> {
        logits(&mut self.decoder, &mut self.tap, sequences)
    }

    /// All that decides what the model computes: bits of its weights and of its prefix, rules and exemptions.
    pub fn state(&self) -> State {
        let mut bits = weights(&self.decoder);
        bits.extend(prefix(&self.decoder));
        bits.extend(online(&self.decoder));
        bits.extend(branches(&self.tap));
        let rules = self.tap.rules.iter().map(|(site, rule)| (*site, format!("{rule:?}")));
        let cache = self.tap.cache.iter().map(|(site, rule)| (*site, format!("{rule:?}")));
        let rules = rules.chain(cache);
        let kept = self.tap.kept.iter().map(|(site, kept)| (*site, format!("{kept:?}")));
        let layouts = self.tap.layouts.iter().map(|(site, layout)| (*site, format!("{layout:?}")));
        (bits, rules.collect(), kept.chain(layouts).collect())
    }
}

/// Logits of sequences of one length, all positions, behind the decoder's prefix.
pub fn logits(decoder: &mut Decoder, tap: &mut dyn Tap, sequences: &[Vec<u32>]) -> Vec<f32> {
    let input = token_tensor(sequences, &decoder.device());
    let hidden = decoder.hidden(input, tap);
    values(&decoder.logits(hidden, tap))
}

pub fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.to_data().try_to_vec().unwrap()
}

fn bits<const D: usize>(x: &Tensor<D>) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

/// The bits of every weight.
pub fn weights(decoder: &Decoder) -> BTreeMap<String, Vec<u32>> {
    let mut found = BTreeMap::new();
    for (_, group) in decoder.groups() {
        for linear in &group.linears {
            found.insert(linear.name.clone(), bits(&linear.weight));
            found.insert(format!("{} bias", linear.name), linear.bias.iter().flat_map(bits).collect());
        }
    }
    let norms = decoder.blocks.iter().flat_map(|block| [Some(&block.attn_norm), block.mlp.norm()]);
    for (i, norm) in norms.flatten().chain([&decoder.final_norm]).enumerate() {
        found.insert(format!("norm {i}"), bits(&norm.weight));
        found.insert(format!("norm {i} bias"), norm.bias.iter().flat_map(bits).collect());
    }
    found.insert("embedding".into(), bits(&decoder.embedding));
    found
}

/// The bits of what stands beside rounded linears.
pub fn branches(tap: &FakeQuant) -> BTreeMap<String, Vec<u32>> {
    let of_site = |(site, branches): (&Site, &Vec<LowRank>)| {
        let held = branches.iter().flat_map(|branch| bits(&branch.down).into_iter().chain(bits(&branch.up)));
        (format!("branches {site}"), held.collect())
    };
    tap.low_rank.iter().map(of_site).collect()
}

/// What happens to activations in the forward pass.
pub fn online(decoder: &Decoder) -> BTreeMap<String, Vec<u32>> {
    let turn = |(site, turn): (Site, &models::Turn)| {
        let factors = turn.factors().unwrap_or_default().iter().map(|&f| (f as f32).to_bits());
        (format!("online {site}: {:?}", turn.rotation()), factors.collect())
    };
    decoder.online.iter().map(turn).collect()
}

/// The bits of the prefix's keys and values, and its tokens.
pub fn prefix(decoder: &Decoder) -> BTreeMap<String, Vec<u32>> {
    let Some(prefix) = &decoder.prefix else { return BTreeMap::new() };
    let mut found = BTreeMap::from([("prefix tokens".to_string(), prefix.tokens.clone())]);
    for (layer, block) in prefix.cache.blocks().iter().enumerate() {
        found.insert(format!("prefix keys {layer}"), bits(&block.keys));
        found.insert(format!("prefix values {layer}"), bits(&block.values));
    }
    found
}

/// Mean squared difference.
pub fn mse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    sum / a.len() as f64
}

/// Largest difference as a share of the largest value of `expected`.
#[track_caller]
pub fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|x| x.is_finite()));
    let largest = |x: &mut dyn Iterator<Item = f64>| x.fold(0.0f64, |m, x| m.max(x.abs()));
    let most = largest(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    most / largest(&mut expected.iter().map(|x| f64::from(*x)))
}

/// Sequences without their first token, which a prefix stands for.
pub fn without_first(sequences: &[Vec<u32>]) -> Vec<Vec<u32>> {
    sequences.iter().map(|sequence| sequence[1..].to_vec()).collect()
}

/// Token ids in no order, behind `start`.
pub fn scrambled(count: usize, length: usize, vocabulary: usize, start: u32) -> Vec<Vec<u32>> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % vocabulary as u64) as u32
    };
    (0..count).map(|_| [start].into_iter().chain((1..length).map(|_| next())).collect()).collect()
}

/// A checkpoint of the `models` crate's oracle.
pub fn oracle(name: &str) -> Decoder {
    let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/oracle").join(name);
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(oracle.join(file), folder.path().join(file)).unwrap();
    }
    std::fs::copy(fixture("planted/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    Checkpoint::open(folder.path()).unwrap().load(&Device::flex()).unwrap()
}

/// The oracle's checkpoints: multi-head, grouped-query, tied, with biases.
pub const ORACLES: [&str; 4] = ["llama2", "llama3", "smollm2", "llama-bias"];

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A built-in model.
pub fn builtin(name: &str) -> (Checkpoint, Decoder) {
    let checkpoint = Checkpoint::builtin(name).unwrap().unwrap();
    let decoder = checkpoint.load(&Device::flex()).unwrap();
    (checkpoint, decoder)
}

/// Counts the rows that go through each site, and leaves the work to another tap.
pub struct Rows<'a> {
    pub inner: &'a mut dyn Tap,
    pub seen: BTreeMap<Site, usize>,
}

impl<'a> Rows<'a> {
    pub fn of(inner: &'a mut dyn Tap) -> Self {
        Self { inner, seen: BTreeMap::new() }
    }
}

impl Tap for Rows<'_> {
    fn begin(&mut self, past: usize) {
        self.inner.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        *self.seen.entry(site).or_default() += x.dims()[0] * x.dims()[1];
        self.inner.linears(site, x, group)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        *self.seen.entry(site).or_default() += x.dims()[0] * x.dims()[2];
        self.inner.tensor(site, x)
    }
}

/// Leads the original's activations past the groups of a quantized model: by site, the mean squared error of what its
/// linears give.
pub struct GroupErrors<'a> {
    pub made: &'a mut Made,
    pub found: BTreeMap<Site, f64>,
}

impl Tap for GroupErrors<'_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let exact = group.forward(x.clone());
        let groups = self.made.decoder.groups();
        let (_, quantized) = groups.into_iter().find(|(other, _)| *other == site).expect("the same sites");
        let rounded = self.made.tap.linears(site, x, quantized);
        let errors = exact.iter().zip(&rounded).map(|(a, b)| mse(&values(a), &values(b)));
        self.found.insert(site, errors.sum());
        exact
    }
}

/// Output errors of every group, on the activations of the original.
pub fn group_errors(original: &Decoder, made: &mut Made, sequences: &[Vec<u32>]) -> BTreeMap<Site, f64> {
    let mut decoder = original.clone();
    if let Some(prefix) = &made.decoder.prefix {
        decoder.set_prefix(&prefix.tokens);
    }
    let mut errors = GroupErrors { made, found: BTreeMap::new() };
    logits(&mut decoder, &mut errors, sequences);
    errors.found
}

/// The model without recipe, behind the prefix of another.
pub fn reference(original: &Decoder, made: &Made) -> Decoder {
    let mut decoder = original.clone();
    if let Some(prefix) = &made.decoder.prefix {
        decoder.set_prefix(&prefix.tokens);
    }
    decoder
}

/// A recipe's logits against those of the original behind the same prefix.
pub fn logit_mse(original: &Decoder, made: &mut Made, sequences: &[Vec<u32>]) -> f64 {
    let expected = logits(&mut reference(original, made), &mut Off, sequences);
    mse(&made.logits(sequences), &expected)
}
