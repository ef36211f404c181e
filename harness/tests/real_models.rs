//! Trained models against numbers that other programs computed, where the models are at hand.
//!
//! Small trained models and texts are looked for in `../shared` beside the repository, SmolLM2 and Gemma 3
//! in the folder that `scripts/fetch_model` fills (`QUANTSCOPE_MODELS`, else the user's cache). What is not there is skipped, loudly.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use harness::data::BosPolicy;
use harness::data::window::windows;
use harness::evaluate::decoder_model::DecoderModel;
use harness::evaluate::metrics::perplexity;
use harness::quantize::{self, direct::Direct, steps::Step};
use models::{Checkpoint, Decoder, Off, token_tensor};

fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared")
}

/// The path if it is there; else a line that the test runner does not hold back.
fn there(path: PathBuf, test: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {} is not there", path.display());
    None
}

/// Whole-model logits of a rotated model against the original's: the largest difference over the largest logit.
fn rotated(folder: &Path, tokens: usize, sites: &str, recorded: &[(&str, &str)]) -> f64 {
    let original = Checkpoint::open(folder).unwrap().load(&Device::flex()).unwrap();
    let vocabulary = original.architecture.vocabulary;
    let input: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocabulary) as u32).collect();
    let logits = |decoder: &mut Decoder| -> Vec<f32> {
        let hidden = decoder.hidden(token_tensor(&[&input], &Device::flex()), &mut Off);
        decoder.logits(hidden, &mut Off).to_data().try_to_vec().unwrap()
    };
    let expected = logits(&mut original.clone());
    let table: toml::Table = sites.parse().unwrap();
    let step = Step::read("rotate", Some("hadamard"), toml::Value::Table(table)).unwrap().unwrap();
    let mut decoder = original;
    let (_, fitted) =
        quantize::apply(&[step.resolved()], &mut decoder, &mut Direct::new(Vec::new(), Some(1))).unwrap();
    for (site, kind) in recorded {
        let construction = &fitted["0.rotate"]["rotations"][site]["construction"];
        assert_eq!(construction["kind"], *kind, "{site}: {construction}");
    }
    let largest = |x: &mut dyn Iterator<Item = f32>| f64::from(x.fold(0.0f32, |m, x| m.max(x.abs())));
    let found = logits(&mut decoder);
    assert!(found.iter().all(|x| x.is_finite()));
    let most = largest(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
    most / largest(&mut expected.iter().copied())
}

const EVERYTHING: &str = "sites = [\"residual\", \"o_in\", \"down_in\", \"qk\"]";

#[test]
fn rotated_stories260k_computes_the_same() {
    let test = "rotated_stories260k_computes_the_same";
    let Some(folder) = there(shared().join("models/stories260K"), test) else { return };
    // 172 = 4 · 43 has no matrix of Paley's.
    let recorded = [("residual", "sylvester"), ("down_in", "block-diagonal"), ("heads", "sylvester")];
    let error = rotated(&folder, 256, EVERYTHING, &recorded);
    assert!(error < 1e-4, "{error:e}");
    let random = format!("{EVERYTHING}\nfallback = \"random-orthogonal\"");
    let error = rotated(&folder, 256, &random, &[("down_in", "random-orthogonal")]);
    assert!(error < 1e-4, "{error:e}");
}

#[test]
fn rotated_smollm2_computes_the_same() {
    let Some(folder) = smollm2("rotated_smollm2_computes_the_same") else { return };
    // 576 = 36 · 16 and 1536 = 12 · 128 channels, 9 heads.
    let recorded = [("residual", "paley-2"), ("down_in", "paley-1"), ("heads", "block-diagonal")];
    let error = rotated(&folder, 96, EVERYTHING, &recorded);
    assert!(error < 1e-4, "{error:e}");
}

fn smollm2(test: &str) -> Option<PathBuf> {
    let models = std::env::var_os("QUANTSCOPE_MODELS")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/quantscope/models")));
    there(models.unwrap_or_default().join("smollm2-135m-instruct-dequantized"), test)
}

fn step(name: &str, keys: &str) -> Step {
    let table: toml::Table = keys.parse().unwrap();
    Step::read(name, None, toml::Value::Table(table)).unwrap().unwrap().resolved()
}

fn perplexity(
    checkpoint: &Checkpoint,
    text: &str,
    length: usize,
    limit: usize,
    bos: BosPolicy,
    steps: &[Step],
) -> f64 {
    let tokenizer = checkpoint.tokenizer();
    let ids = match bos {
        BosPolicy::Tokenizer => tokenizer.encode_special(text).unwrap(),
        BosPolicy::Every | BosPolicy::None => tokenizer.encode(text).unwrap(),
    };
    let windows = windows(&ids, tokenizer.bos(), bos, length, Some(limit)).unwrap();
    let mut decoder = checkpoint.load(&Device::flex()).unwrap();
    let (mut tap, _) = quantize::apply(steps, &mut decoder, &mut Direct::default()).unwrap();
    let mut model = DecoderModel::new(&mut decoder, &mut tap, tokenizer.bos());
    perplexity::measure(&mut model, &windows, &mut |_, _| true).unwrap().value
}

fn assert_within(what: &str, found: f64, expected: f64, relative: f64) {
    let off = (found / expected - 1.0).abs();
    assert!(off <= relative, "{what}: {found}, expected {expected} within {relative}, off by {off:.5}");
}

/// PyTorch, `scripts/oracle/naive_perplexity.py`: 8 windows of 256 tokens of the last 40 000 characters.
#[test]
fn two_tiny_trained_models_have_their_perplexities() {
    let test = "two_tiny_trained_models_have_their_perplexities";
    let Some(text) = there(shared().join("data/calibration/tiny.utf8"), test) else { return };
    let text = std::fs::read_to_string(text).unwrap();
    let characters: Vec<char> = text.chars().collect();
    let text: String = characters[characters.len() - 40_000..].iter().collect();
    for (name, tokenizer_bos, every) in
        [("stories260K", 7.58622, 8.14963), ("babyllama-105", 3.43836, 3.69226)]
    {
        let Some(folder) = there(shared().join("models").join(name), test) else { return };
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let found = perplexity(&checkpoint, &text, 256, 8, BosPolicy::Tokenizer, &[]);
        assert_within(name, found, tokenizer_bos, 1e-5);
        let found = perplexity(&checkpoint, &text, 256, 8, BosPolicy::Every, &[]);
        assert_within(name, found, every, 1e-5);
    }
}

/// A folder that `scripts/fetch_model` makes, and WikiText-2's test split, where both are there.
fn real(name: &str, test: &str) -> Option<(Checkpoint, String)> {
    let models = std::env::var_os("QUANTSCOPE_MODELS")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/quantscope/models")));
    let folder = there(models.unwrap_or_default().join(name), test)?;
    let data = there(shared().join("data"), test)?;
    let options = harness::data::corpus::DataOptions::new(Some(data), PathBuf::new(), true);
    let corpus = harness::data::CorpusRef::Named("wikitext2/test".into());
    let text = harness::data::corpus::load(&corpus, &options).unwrap().text;
    Some((Checkpoint::open(&folder).unwrap(), text))
}

/// `transformers`, `scripts/oracle/reference_perplexity.py`: WikiText-2 test, first 4 windows of 512. Each window is as
/// long as the windows of attention in 15 of its 18 blocks; the sequences of the tiny oracle are longer than its.
#[test]
fn gemma_3_has_its_perplexities_under_every_bos_policy() {
    let test = "gemma_3_has_its_perplexities_under_every_bos_policy";
    let Some((checkpoint, text)) = real("gemma-3-270m-dequantized", test) else { return };
    let tokenizer = checkpoint.tokenizer();
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (Some(2), true));
    assert_eq!(tokenizer.encode("The").unwrap(), [818]);
    for (bos, expected) in
        [(BosPolicy::Tokenizer, 50.383382), (BosPolicy::None, 64.345857), (BosPolicy::Every, 23.292495)]
    {
        let begun = std::time::Instant::now();
        let found = perplexity(&checkpoint, &text, 512, 4, bos, &[]);
        let seconds = begun.elapsed().as_secs_f64();
        let _ = writeln!(
            std::io::stderr(),
            "Gemma-3-270M, BOS {bos:?}: {found:.6} in {seconds:.1} s with loading"
        );
        assert_within(&format!("Gemma-3-270M, BOS {bos:?}"), found, expected, 1e-5);
    }
}

/// PyTorch, as above: WikiText-2 test, first 4 windows of 512.
#[test]
fn smollm2_has_its_perplexities() {
    let test = "smollm2_has_its_perplexities";
    let Some((checkpoint, text)) = real("smollm2-135m-instruct-dequantized", test) else { return };
    let measure = |steps: &[Step]| perplexity(&checkpoint, &text, 512, 4, BosPolicy::Tokenizer, steps);
    let weights = step("weights", "bits = 8\ngranularity = \"channel\"");
    let activations =
        |granularity: &str| step("activations", &format!("bits = 8\ngranularity = \"{granularity}\""));

    assert_within("original", measure(&[]), 29.919, 1e-3);
    assert_within("W8A16", measure(std::slice::from_ref(&weights)), 29.849, 1e-3);
    assert_within("W8A8 per token", measure(&[weights.clone(), activations("token")]), 30.851, 0.01);
    assert_within("W8A8 per tensor", measure(&[weights.clone(), activations("tensor")]), 57.290, 0.03);
}
