//! The step `kv`: what it must leave alone, and that one pass over a text computes what decoding it does.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use harness::evaluate::LanguageModel;
use harness::evaluate::decode::Mode;
use harness::evaluate::decoder_model::DecoderModel;
use harness::quantize::direct::Direct;
use models::{Checkpoint, Decoder, Group, Off, Port, Prefix, Site, Tap, token_tensor};

use crate::recipes::{Made, NAIVE, builtin, make, oracle, prefix, scrambled, values};

const BOS: u32 = 0;

/// Every granularity, keys on both sides of rotary embedding, several widths.
const CACHES: [&str; 6] = [
    r#"{ step = "kv", bits = 8 }"#,
    r#"{ step = "kv", bits = 4, granularity = "token", keys = "before-rope" }"#,
    r#"{ step = "kv", bits = 3, keys = "before-rope", convention = "atom-asymmetric" }"#,
    r#"{ step = "kv", key-bits = 2, value-bits = 4, granularity = "group(4)", prompt = 3 }"#,
    r#"{ step = "kv", bits = 4, granularity = "channel", keys = "before-rope" }"#,
    r#"{ step = "kv", bits = 2, symmetric = true, clip = 0.9, prompt = 5 }"#,
];

const PREFIX: &str = r#"{ step = "prefix", method = "tokens", tokens = [0, 7, 5] }, "#;

fn log_likelihoods(decoder: &mut Decoder, tap: &mut dyn Tap, mode: Mode, sequences: &[Vec<u32>]) -> Vec<f32> {
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let mut model = DecoderModel::new(decoder, tap, Some(BOS)).mode(mode);
    model.log_likelihoods(&sequences).unwrap().concat()
}

/// Notes what a tap makes of keys and values.
struct Noting<'a> {
    inner: &'a mut dyn Tap,
    found: BTreeMap<Site, Tensor<4>>,
}

impl Tap for Noting<'_> {
    fn begin(&mut self, past: usize) {
        self.inner.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        self.inner.linears(site, x, group)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        let x = self.inner.tensor(site, x);
        self.found.insert(site, x.clone());
        x
    }
}

/// Decodes with a tap and holds what it makes of every key and value against what a pass made of it. The two see values
/// that differ in their last bits, and a value in the middle between two codes may go either way: such a tie is counted,
/// and goes on as in the pass, so that all the others can be compared at full precision.
struct Retracing<'a> {
    inner: &'a mut dyn Tap,
    pass: BTreeMap<Site, Tensor<4>>,
    prefix: usize,
    position: usize,
    ties: usize,
    values: usize,
}

impl Tap for Retracing<'_> {
    fn begin(&mut self, past: usize) {
        self.position = past;
        self.inner.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        self.inner.linears(site, x, group)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        let before = values(&x);
        let x = self.inner.tensor(site, x);
        let pass = self.pass[&site].clone().narrow(2, self.position - self.prefix, 1);
        let (mut own, theirs) = (values(&x), values(&pass));
        self.values += own.len();
        let largest = before.iter().fold(0f32, |m, x| m.max(x.abs()));
        for ((before, own), theirs) in before.iter().zip(&mut own).zip(&theirs) {
            let apart = (*own - theirs).abs();
            if apart <= 1e-4 * largest {
                continue;
            }
            let off_middle = (before - (*own + theirs) / 2.0).abs();
            assert!(
                off_middle <= 1e-2 * apart,
                "{site} at {}: {before} became {own} here and {theirs} there",
                self.position
            );
            self.ties += 1;
            *own = *theirs;
        }
        Tensor::from_data(TensorData::new(own, x.dims()), &x.device())
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()))
}

fn assert_modes_agree(
    what: &str,
    original: &Decoder,
    caches: &[&str],
    samples: &[Vec<u32>],
    sequences: &[Vec<u32>],
) {
    for before in ["", PREFIX] {
        for cache in caches {
            let what = format!("{what}: {before}{cache}");
            let mut calibrator = Direct::new(samples.to_vec(), Some(BOS));
            let Made { mut decoder, mut tap, .. } =
                make(&format!("{before}{cache}"), original, &mut calibrator);
            let exact = log_likelihoods(&mut decoder, &mut Off, Mode::Dense, sequences);
            let decoded = log_likelihoods(&mut decoder, &mut Off, Mode::Decode, sequences);
            let modes = largest_difference(&exact, &decoded);
            assert!(modes <= 1e-4, "{what}: nothing is rounded and the modes differ by {modes:e}");
            let mut noting = Noting { inner: &mut tap, found: BTreeMap::new() };
            let dense = log_likelihoods(&mut decoder, &mut noting, Mode::Dense, sequences);
            let pass = noting.found;
            let prefix = decoder.prefix.as_ref().map_or(0, |prefix| prefix.tokens.len());
            let mut retracing = Retracing { inner: &mut tap, pass, prefix, position: 0, ties: 0, values: 0 };
            let decoded = log_likelihoods(&mut decoder, &mut retracing, Mode::Decode, sequences);
            let (ties, all) = (retracing.ties, retracing.values);
            let (modes, rounding) =
                (largest_difference(&dense, &decoded), largest_difference(&dense, &exact));
            assert!(modes <= 1e-4, "{what}: the modes differ by {modes:e}");
            assert!(ties * 2000 <= all, "{what}: {ties} ties of {all}");
            assert!(rounding > 10.0 * modes, "{what}: rounding changes {rounding:e} only");
        }
    }
}

#[test]
fn decoding_with_a_rounded_cache_is_one_pass_with_rounded_keys_and_values() {
    for name in ["builtin/tiny-llama", "builtin/tiny-llama-spiky"] {
        let (_, decoder) = builtin(name);
        let vocabulary = decoder.architecture.vocabulary;
        let sequences = scrambled(7, 48, vocabulary, BOS);
        assert_modes_agree(name, &decoder, &CACHES, &sequences[..4], &sequences[4..]);
    }
    for name in ["llama2", "smollm2"] {
        let decoder = oracle(name);
        let sequences = scrambled(7, 24, decoder.architecture.vocabulary, BOS);
        assert_modes_agree(name, &decoder, &CACHES, &sequences[..4], &sequences[4..]);
    }
}

/// The path if it is there; else a line that the test runner does not hold back.
fn there(path: PathBuf, test: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {} is not there", path.display());
    None
}

#[test]
fn trained_models_decode_as_they_read() {
    let test = "trained_models_decode_as_they_read";
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let models = std::env::var_os("QUANTSCOPE_MODELS")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/quantscope/models")));
    let smollm2 = models.unwrap_or_default().join("smollm2-135m-instruct-dequantized");
    // Of the larger model only what is most at odds: keys on either side, and a prompt.
    let folders = [(shared.join("models/stories260K"), 64, &CACHES[..]), (smollm2, 16, &CACHES[2..4])];
    for (folder, length, caches) in folders {
        let (Some(folder), Some(text)) =
            (there(folder, test), there(shared.join("data/calibration/tiny.utf8"), test))
        else {
            continue;
        };
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let text = std::fs::read_to_string(text).unwrap();
        let text: String = text.chars().take(4000).collect();
        let ids = checkpoint.tokenizer().encode(&text).unwrap();
        let sequences: Vec<Vec<u32>> = ids.chunks_exact(length).take(4).map(<[u32]>::to_vec).collect();
        let decoder = checkpoint.load(&Device::flex()).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy();
        assert_modes_agree(&name, &decoder, caches, &sequences[..2], &sequences[2..]);
    }
}

/// arXiv:2405.14428: whatever is rounded, the prefix is computed and kept in floating point.
#[test]
fn a_prefix_keeps_its_bits_whatever_is_rounded() {
    let (_, original) = builtin("builtin/tiny-llama-spiky");
    let probes = scrambled(2, 20, original.architecture.vocabulary, BOS);
    let mut plain = original.clone();
    plain.set_prefix(&[0, 7, 5]);
    let reference = prefix(&plain);
    for bits in [2, 3, 4, 8, 16] {
        let cache = format!(r#"{PREFIX}{NAIVE}, {{ step = "kv", bits = {bits} }}"#);
        let mut made = make(&cache, &original, &mut Direct::default());
        // Weights are rounded after the prefix was computed, and do not move it.
        assert!(prefix(&made.decoder) == reference, "{bits} bits");
        // Reading behind it leaves it as it was, and no position of it reaches the rules.
        let Prefix { cache, .. } = made.decoder.prefix.clone().unwrap();
        let input = token_tensor(&probes, &made.decoder.device());
        let (_, longer) = made.decoder.encode(Some(&cache), input, &mut made.tap);
        for (layer, block) in longer.truncated(3).blocks().iter().enumerate() {
            for (found, kept) in
                [(&block.keys, &cache.blocks()[layer].keys), (&block.values, &cache.blocks()[layer].values)]
            {
                let (found, kept) = (values(found), values(kept));
                assert!(
                    found.chunks(kept.len()).all(|sequence| sequence == kept),
                    "{bits} bits, block {layer}"
                );
            }
        }
    }
}

/// arXiv:2405.15346 (our reading): the first tokens' keys and values are those of full precision, bit by bit; no prompt is
/// the step without the key.
#[test]
fn a_prompt_stays_in_full_precision() {
    let (_, original) = builtin("builtin/tiny-llama");
    let probes = scrambled(3, 20, original.architecture.vocabulary, BOS);
    for before in ["", PREFIX] {
        let made = |prompt: usize| {
            let recipe = format!(r#"{before}{{ step = "kv", bits = 2, prompt = {prompt} }}"#);
            make(&recipe, &original, &mut Direct::default())
        };
        let bare = format!(r#"{before}{{ step = "kv", bits = 2 }}"#);
        let mut bare = make(&bare, &original, &mut Direct::default());
        assert_eq!(bare.logits(&probes), made(0).logits(&probes));
        let mut made = made(6);
        let behind = made.decoder.prefix.as_ref().map(|prefix| prefix.cache.clone());
        let input = || token_tensor(&probes, &Device::flex());
        let (_, exact) = made.decoder.encode(behind.as_ref(), input(), &mut Off);
        let (_, rounded) = made.decoder.encode(behind.as_ref(), input(), &mut made.tap);
        let first = behind.as_ref().map_or(0, |cache| cache.tokens()) + 6;
        // In the first block, whose input no rounded cache has touched.
        let keys =
            |cache: &models::Cache, from, n| values(&cache.blocks()[0].keys.clone().narrow(2, from, n));
        assert_eq!(keys(&exact, 0, first), keys(&rounded, 0, first));
        assert_ne!(keys(&exact, first, 1), keys(&rounded, first, 1));
        // In every block: nothing that the prompt reads was rounded.
        let last = made.decoder.architecture.layers - 1;
        let of = |cache: &models::Cache| values(&cache.blocks()[last].values.clone().narrow(2, 0, first));
        assert_eq!(of(&exact), of(&rounded));
    }
}

#[test]
fn rules_stand_where_the_keys_say() {
    let (_, original) = builtin("builtin/tiny-llama");
    let ports = |keys: &str| {
        let made = make(&format!("{{ step = \"kv\", {keys} }}"), &original, &mut Direct::default());
        let mut ports: Vec<Port> = made.tap.cache.keys().map(|site| site.port).collect();
        assert!(ports.len().is_multiple_of(original.blocks.len()));
        assert!(!made.tap.looks_at_whole_sequences());
        ports.sort();
        ports.dedup();
        ports
    };
    assert_eq!(ports("bits = 4"), [Port::K, Port::V]);
    assert_eq!(ports("bits = 4, keys = \"before-rope\""), [Port::KPre, Port::V]);
    assert_eq!(ports("key-bits = 4, value-bits = 16"), [Port::K]);
    assert_eq!(ports("bits = 16, value-bits = 3"), [Port::V]);
    assert_eq!(ports("bits = 16"), []);
    let site = Site::block(0, Port::K);
    let made = make(
        r#"{ step = "kv", key-bits = 2, value-bits = 16 }, { step = "kv", key-bits = 16, value-bits = 4 }"#,
        &original,
        &mut Direct::default(),
    );
    assert_eq!(made.tap.cache[&site].grid.bits(), 2);
}

#[test]
fn what_cannot_be_is_refused() {
    use crate::recipes::try_make;
    let (_, original) = builtin("builtin/tiny-llama");
    let refused = |keys: &str| {
        let recipe = format!("{{ step = \"kv\", {keys} }}");
        let Err((_, error)) = try_make(&recipe, &original, &mut Direct::default()) else { panic!("{keys}") };
        error.to_string()
    };
    let context = original.architecture.context;
    let text = refused(&format!("bits = 4, prompt = {context}"));
    assert!(text.contains("fills the context") && text.contains(&context.to_string()), "{text}");
    let text = refused("bits = 4, granularity = \"group(7)\"");
    assert!(text.contains("groups of 7") && text.contains("layers.0.k"), "{text}");
    let text = refused("bits = 4, granularity = \"channel\"");
    assert!(text.contains("calibration set"), "{text}");
}
