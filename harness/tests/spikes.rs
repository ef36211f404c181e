//! Activation spikes from a built-in model that has them to a store that records what was seen and done: what the cures
//! are worth, what a sweep of them keeps, and what it refuses with which words.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use harness::calibrate::observe::{self, Options};
use harness::calibrate::set::draw;
use harness::data::corpus::{DataOptions, load};
use harness::data::window::windows;
use harness::data::{BosPolicy, CorpusRef};
use harness::evaluate::decoder_model::DecoderModel;
use harness::evaluate::metrics::perplexity;
use harness::experiment::{Calibration, Sampler};
use harness::quantize::direct::Direct;
use harness::quantize::steps;
use models::builtin::SPIKING_TOKENS;
use models::{Decoder, Off, Port, Tap};
use recipes::{Made, NAIVE, PER_TOKEN, W8A16, builtin, make, reference};
use serde_json::Value;
use support::{Ended, Place};

#[path = "support/recipes.rs"]
mod recipes;
mod support;

const QFEM: &str = r#"{ step = "keep", method = "qfem", top = 2 }"#;
const QFEP: &str = r#"{ step = "prefix", method = "qfep" }"#;

/// A built-in model, a calibration set, and windows to measure on.
struct Subject {
    original: Decoder,
    samples: Vec<Vec<u32>>,
    windows: Vec<Vec<u32>>,
    calibrator: Direct,
}

fn subject(name: &str) -> Subject {
    let (checkpoint, original) = builtin(name);
    let tokenizer = checkpoint.tokenizer();
    let options = DataOptions::new(None, PathBuf::new(), true);
    let text = |name: &str| load(&CorpusRef::Named(name.into()), &options).unwrap();
    let calibration = Calibration {
        name: "c".into(),
        corpus: CorpusRef::Named("builtin/stories-calibration".into()),
        samples: 16,
        length: 128,
        sampler: Sampler::Windows,
        bos: BosPolicy::Every,
        repeat: true,
        allow_overlap: false,
        seeds: None,
        reference: None,
    };
    let set = draw(&calibration, Some(&text("builtin/stories-calibration")), tokenizer, 0).unwrap();
    let ids = tokenizer.encode(&text("builtin/stories-held-out").text).unwrap();
    let windows = windows(&ids, tokenizer.bos(), BosPolicy::Every, 128, Some(16)).unwrap();
    let mut calibrator = Direct::new(set.samples.clone(), tokenizer.bos());
    calibrator.ordinary = tokenizer.ordinary();
    Subject { original, samples: set.samples, windows, calibrator }
}

impl Subject {
    #[track_caller]
    fn make(&mut self, recipe: &str) -> Made {
        make(recipe, &self.original, &mut self.calibrator)
    }

    fn perplexity(&self, decoder: &mut Decoder, tap: &mut dyn Tap) -> f64 {
        let mut model = DecoderModel::new(decoder, tap, Some(SPIKING_TOKENS.bos));
        perplexity::measure(&mut model, &self.windows, &mut |_, _| true).unwrap().value
    }

    /// Perplexity of a recipe, and how many times that of the original behind the same prefix it is.
    fn measure(&mut self, recipe: &str) -> (f64, f64) {
        let mut made = self.make(recipe);
        let exact = self.perplexity(&mut reference(&self.original, &made), &mut Off);
        let found = self.perplexity(&mut made.decoder, &mut made.tap);
        (found, found / exact)
    }

    /// The ratio of every site, behind a prefix.
    fn ratios(&self, prefix: &[u32]) -> BTreeMap<String, f64> {
        let mut decoder = self.original.clone();
        decoder.set_prefix(prefix);
        let drop = !prefix.is_empty();
        let seen = observe::collect(&mut decoder, &self.samples, drop, &Options::default(), &mut |_, _| true);
        seen.unwrap().ratios().unwrap().into_iter().map(|(site, ratio)| (site.to_string(), ratio)).collect()
    }
}

#[test]
fn on_a_model_with_spikes_the_cures_work_in_their_order() {
    let mut spiky = subject("builtin/tiny-llama-spiky");
    let (naive, lost) = spiky.measure(NAIVE);
    let (_, qfem) = spiky.measure(&format!("{QFEM}, {NAIVE}"));
    let (_, qfep) = spiky.measure(&format!("{QFEP}, {NAIVE}"));
    let (_, both) = spiky.measure(&format!("{QFEP}, {QFEM}, {NAIVE}"));
    let text = format!("naive {lost:.3}, QFeM {qfem:.3}, QFeP {qfep:.3}, both {both:.3} times the original");
    assert!(lost > 10.0, "{text}");
    assert!(both >= 0.99 && both <= 1.02 * qfem.min(qfep), "{text}");
    assert!(qfem.min(qfep) <= 1.02 * lost && qfem < 1.05 && qfep < 2.0, "{text}");
    // Nothing excepted, everything excepted.
    let (none, _) = spiky.measure(&format!(r#"{{ step = "keep", method = "qfem", alpha = inf }}, {NAIVE}"#));
    assert_eq!(none, naive);
    let (all, _) = spiky.measure(&format!(r#"{{ step = "keep", method = "qfem", alpha = 0 }}, {NAIVE}"#));
    assert_eq!(all, spiky.measure(W8A16).0);
}

#[test]
fn on_a_model_without_spikes_they_have_no_effect() {
    let mut calm = subject("builtin/tiny-llama");
    for cure in ["", QFEM, QFEP] {
        let recipe = if cure.is_empty() { NAIVE.to_string() } else { format!("{cure}, {NAIVE}") };
        let (_, ratio) = calm.measure(&recipe);
        assert!((ratio - 1.0).abs() < 0.01, "{recipe}: {ratio}");
    }
}

#[test]
fn with_a_scale_per_token_there_is_little_to_cure() {
    let mut spiky = subject("builtin/tiny-llama-spiky");
    let (_, plain) = spiky.measure(PER_TOKEN);
    for cure in [QFEM, QFEP] {
        let (_, with) = spiky.measure(&format!("{cure}, {PER_TOKEN}"));
        assert!((with / plain - 1.0).abs() < 0.01, "{cure}: {plain} {with}");
    }
}

#[test]
fn the_searched_prefix_takes_the_spikes_away() {
    let mut spiky = subject("builtin/tiny-llama-spiky");
    let made = spiky.make(QFEP);
    let fitted = &made.fitted["0.prefix"];
    let prefix = made.decoder.prefix.as_ref().unwrap().tokens.clone();
    assert_eq!(prefix.len(), 3);
    assert_eq!((prefix[0], prefix[2]), (SPIKING_TOKENS.bos, SPIKING_TOKENS.stop), "{prefix:?}");
    let rates = fitted["candidates"].as_array().unwrap().iter().map(|c| c["rate"].as_f64().unwrap());
    assert_eq!(rates.fold(0.0, f64::max), fitted["rate"].as_f64().unwrap());
    let site = fitted["site"].as_str().unwrap().to_string();
    assert!(site.ends_with(Port::DownIn.as_str()));
    let without = spiky.ratios(&[]);
    assert!(without[&site] > 20.0 && without.values().all(|ratio| *ratio <= without[&site]));
    assert!(spiky.ratios(&prefix)[&site] < without[&site] / 5.0);
    // What is planted there does not know the stop right before a stop as one (`NEAR` of models::builtin::spikes), so a
    // sample that begins with one spikes behind a prefix that ends with one. Nothing else does.
    let all = spiky.samples.len();
    spiky.samples.retain(|sample| sample[1] != SPIKING_TOKENS.stop);
    assert!(spiky.samples.len() > all / 2);
    let (without, behind) = (spiky.ratios(&[])[&site], spiky.ratios(&prefix)[&site]);
    assert!(behind < 20.0 && behind < without / 5.0, "{without} {behind}");
}

#[test]
fn an_automatic_alpha_excepts_what_spikes_and_no_more() {
    let mut spiky = subject("builtin/tiny-llama-spiky");
    let recipe = format!(r#"{{ step = "keep", method = "qfem", alpha = "auto" }}, {NAIVE}"#);
    let made = spiky.make(&recipe);
    let kept: BTreeSet<String> = made.tap.kept.keys().map(ToString::to_string).collect();
    let spiking = ["layers.0.down_in", "layers.3.down_in"].map(String::from);
    assert_eq!(kept, BTreeSet::from(spiking), "{:?}", made.fitted["0.keep"]);
    assert!(spiky.measure(&recipe).1 < 1.05);
}

// By the binary, on the oracle's tiny Llama, whose BOS has the id 1 and whose context is 128 tokens.

const STORE: &str = "results/experiment";

/// Recipes by name, and what is measured, with one calibration set of eight samples.
struct Asked {
    recipes: Vec<(&'static str, String)>,
    calibration: &'static str,
    sweep: &'static str,
    length: usize,
}

impl Asked {
    fn one(steps: &str) -> Self {
        Self { recipes: vec![("good", W8A16.into()), ("bad", steps.into())], ..Self::default() }
    }

    fn text(&self) -> String {
        let names: Vec<&str> = self.recipes.iter().map(|(name, _)| *name).collect();
        let recipes =
            self.recipes.iter().map(|(name, steps)| format!("[recipe.{name}]\nsteps = [{steps}]\n"));
        format!(
            "question = \"What is refused?\"\nreference = \"own\"\n[sweep]\nmodels = [\"tiny\"]\n\
             recipes = {names:?}\n{}\n[model.tiny]\npath = \"tiny\"\n{}\n{}\n[[evaluate]]\nmetric = \"perplexity\"\n\
             protocol = \"gptq\"\ncorpus = {{ path = \"text.txt\" }}\nlength = {}\nbos = \"every\"\nlimit = 4\n",
            self.sweep,
            self.calibration,
            recipes.collect::<String>(),
            self.length,
        )
    }
}

const SET: &str =
    "[calibration.c]\ncorpus = { path = \"calibration.txt\" }\nsamples = 8\nlength = 24\nbos = \"every\"";

impl Default for Asked {
    fn default() -> Self {
        Self { recipes: Vec::new(), calibration: SET, sweep: "calibrations = [\"c\"]", length: 16 }
    }
}

/// A folder with a model, a text, and another text to calibrate on.
fn place() -> Place {
    let place = Place::new(700);
    place.write("calibration.txt", backwards(300));
    place
}

fn backwards(words: usize) -> String {
    support::text(words).split(' ').rev().collect::<Vec<_>>().join(" ")
}

/// What was measured before stays, nothing is measured, and the message has these parts.
#[track_caller]
fn refused(place: &Place, asked: &Asked, says: &[&str]) {
    if !place.path(STORE).exists() {
        let sound = Asked { recipes: vec![("good", W8A16.into())], ..Asked::default() };
        place.write("experiment.toml", sound.text());
        assert_eq!(place.sweep(&[]).exits_with(0).counts(), [2, 0, 0, 0]);
    }
    let before = place.files(STORE);
    place.write("experiment.toml", asked.text());
    let ended = place.sweep(&[]).exits_with(2).says(&["error: "]).says(says);
    assert_eq!(ended.stdout, "");
    assert!(place.files(STORE) == before, "the store was touched: {}", ended.stderr);
}

#[test]
fn steps_that_cannot_be_are_refused_where_they_stand() {
    let place = place();
    let keep = |keys: &str| format!(r#"{{ step = "keep"{keys} }}, {NAIVE}"#);
    let of_keep = format!("methods of `keep`: {}", steps::methods("keep").join(", "));
    for (steps, says) in [
        (keep(r#", method = "qfem", alpha = -1"#), ["`alpha`", "0 or more, not -1"]),
        (keep(r#", method = "qfem", alpha = nan"#), ["`alpha`", "not NaN"]),
        (keep(r#", method = "qfem", alpha = "automatic""#), ["recipe.bad", "a number, inf or \"auto\""]),
        (keep(r#", method = "qfem", alpha = 2, top = 3"#), ["`alpha`", "give one"]),
        (keep(r#", method = "qfem""#), ["`alpha` or `top`", "recipe.bad"]),
        (keep(", top = 3"), ["the key `method` is missing", &of_keep]),
        (
            keep(r#", method = "qfme", top = 3"#),
            ["no method `qfme` (did you mean `qfem`?)", "methods of `keep`: "],
        ),
        (
            format!(r#"{NAIVE}, {{ step = "keep", method = "qfem", top = 1 }}"#),
            ["what is kept is said before anything is rounded", "recipe"],
        ),
        (
            format!(r#"{QFEP}, {{ step = "prefix", method = "bos" }}, {NAIVE}"#),
            ["the tokens in front of every sequence", "recipe"],
        ),
        (
            format!(r#"{{ step = "prefix", method = "tokens", tokens = [] }}, {NAIVE}"#),
            ["`tokens` is empty", "leave"],
        ),
        (
            format!(r#"{{ step = "smooth", method = "smoothquant", alpha = 1.5 }}, {NAIVE}"#),
            ["`alpha` must be between 0 and 1, not 1.5", "recipe.bad"],
        ),
        (
            format!(r#"{{ step = "smooth", method = "smoothquant", sites = ["dwn_in"] }}, {NAIVE}"#),
            ["`dwn_in` (did you mean `down_in`?)", "attn_in, o_in, mlp_in, down_in"],
        ),
    ] {
        let asked = Asked::one(&steps);
        refused(&place, &asked, &[&says[..], &["experiment.toml:"]].concat());
    }
}

#[test]
fn prefixes_that_the_model_cannot_have_are_refused_before_anything_is_measured() {
    let place = place();
    let tokens =
        |tokens: &str| format!(r#"{{ step = "prefix", method = "tokens", tokens = {tokens} }}, {NAIVE}"#);
    let here = "recipe `original+tokens`, step 0.prefix, on tiny: ";
    refused(
        &place,
        &Asked::one(&tokens("[1, 64]")),
        &[here, "prefix token 64 is not in the vocabulary, whose ids are 0 to 63"],
    );
    refused(
        &place,
        &Asked::one(&tokens("[1, \"w3 w4\"]")),
        &[here, "`w3 w4` is not exactly one token of this model", "give a token's id"],
    );
    let long: Vec<u32> = (3..60).chain(3..60).collect();
    refused(
        &place,
        &Asked::one(&tokens(&format!("{long:?}"))),
        &[
            here,
            "a prefix of 114 tokens leaves no room for sequences of",
            "in a context of 128: shorten the prefix",
        ],
    );
    let asked = Asked { length: 128, ..Asked::one(&format!("{QFEP}, {NAIVE}")) };
    refused(&place, &asked, &["step 0.prefix, on tiny: ", "a prefix of 3 tokens leaves no room", "`length`"]);
}

#[test]
fn calibration_sets_that_cannot_be_are_refused_before_anything_is_measured() {
    let place = place();
    let asked = Asked::one(&format!("{QFEM}, {NAIVE}"));
    place.write("calibration.txt", backwards(20));
    refused(
        &place,
        &asked,
        &[
            "calibration `c`: the text",
            "has 20 tokens",
            "a sample of length 24",
            "needs 23",
            "use a longer text",
        ],
    );
    place.write("calibration.txt", support::text(300));
    refused(
        &place,
        &asked,
        &["calibration `c`", "of what `perplexity/gptq/text/16", "allow-overlap = true in [calibration.c]"],
    );
    let none = Asked { sweep: "", calibration: "", ..Asked::one(&format!("{QFEM}, {NAIVE}")) };
    refused(&place, &none, &["recipe `bad` needs a calibration set", "`calibrations`"]);
    fs::remove_file(place.path("calibration.txt")).unwrap();
    refused(&place, &asked, &["calibration `c`", "there is no file `calibration.txt`"]);
}

/// Sets every value of the tensors whose names end so to zero.
fn silence(place: &Place, ending: &str) {
    let path = place.path("tiny/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut silenced = 0;
    for (_, tensor) in tensors.iter().filter(|(name, _)| name.ends_with(ending)) {
        let [from, to]: [usize; 2] = serde_json::from_value(tensor["data_offsets"].clone()).unwrap();
        bytes[8 + header + from..8 + header + to].fill(0);
        silenced += 1;
    }
    assert_eq!(silenced, 2);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_site_that_is_always_zero_has_no_ratio_and_fails_its_cells_only() {
    let place = place();
    silence(&place, "gate_proj.weight");
    let steps = format!("{QFEM}, {NAIVE}");
    let asked = Asked { recipes: vec![("qfem", steps), ("naive", NAIVE.into())], ..Asked::default() };
    place.write("experiment.toml", asked.text());
    let says = [
        "FAILED tiny · qfem",
        "at calibrate: step 0.keep: the spike ratio of layers.0.down_in is undefined",
        "its median is zero",
        "cure: ",
    ];
    let ended = place.sweep(&[]).exits_with(1).says(&says);
    assert_eq!(ended.counts(), [2, 0, 1, 0]);
    let [failure] = &place.failures(STORE)[..] else { panic!("one failure") };
    assert_eq!(failure["stage"], "calibrate");
    assert_eq!(place.sweep(&[]).exits_with(1).counts(), [0, 2, 1, 0]);
    // Rounding needs no ratio.
    let naive = Asked { recipes: vec![("naive", NAIVE.into())], ..Asked::default() };
    place.write("experiment.toml", naive.text());
    assert_eq!(place.sweep(&[]).exits_with(0).counts(), [0, 2, 0, 0]);
}

fn sweep_of_cures() -> Asked {
    let with = |step: &str| format!("{step}, {NAIVE}");
    let static_scales = NAIVE.replace("\"tensor\"", "\"tensor\", observer = \"max\"");
    Asked {
        recipes: vec![
            ("naive", NAIVE.into()),
            ("qfem", with(QFEM)),
            ("qfep", with(QFEP)),
            ("both", format!("{QFEP}, {QFEM}, {NAIVE}")),
            ("static", static_scales.clone()),
            ("static-qfep", format!("{QFEP}, {static_scales}")),
            ("smooth", with(r#"{ step = "smooth", method = "smoothquant" }"#)),
        ],
        sweep: "calibrations = [\"c\"]\nseeds = [0, 1]",
        ..Asked::default()
    }
}

/// A place where the sweep has been made, with what it said.
static SWEPT: LazyLock<(Place, Ended)> = LazyLock::new(|| {
    let place = place();
    place.write("experiment.toml", sweep_of_cures().text());
    let ended = place.sweep(&[]).exits_with(0);
    (place, ended)
});

/// The results of all cells.
fn cells(place: &Place) -> Vec<Value> {
    let results = place.results(STORE);
    results.into_iter().filter(|(name, _)| name.ends_with("/cell.json")).map(|(_, result)| result).collect()
}

/// original and naive once; six recipes and the original behind the searched prefix once per seed.
const CELLS: usize = 2 + 2 * 7;

#[test]
fn a_sweep_of_cures_measures_each_cell_once_and_a_second_one_changes_no_byte() {
    let (place, first) = &*SWEPT;
    assert_eq!(first.counts(), [CELLS, 0, 0, 0]);
    assert!(first.stdout.contains("| original+qfep"), "{}", first.stdout);
    let files = place.files(STORE);
    let again = place.sweep(&[]).exits_with(0);
    assert_eq!(again.counts(), [0, CELLS, 0, 0]);
    assert_eq!(again.stdout, first.stdout);
    assert!(place.files(STORE) == files);
    let dry = place.run(&["sweep", "experiment.toml", "--dry-run"]).exits_with(0);
    assert!(dry.stdout.contains(&format!("{CELLS} cells, {CELLS} measurements")), "{}", dry.stdout);
}

#[test]
fn a_cell_says_what_it_was_calibrated_on_and_which_statistics_it_read() {
    let (place, _) = &*SWEPT;
    let cells = cells(place);
    assert_eq!(cells.len(), CELLS);
    let steps = |cell: &Value| cell["steps"].as_array().unwrap().clone();
    let (mut hashes, mut read) = (BTreeMap::new(), BTreeSet::new());
    for cell in &cells {
        let methods: Vec<_> = steps(cell).iter().map(|step| step["method"].clone()).collect();
        let statistics: Vec<String> =
            serde_json::from_value(cell.get("statistics").cloned().unwrap_or(Value::Array(vec![]))).unwrap();
        if cell["calibration"].is_null() {
            assert!(
                statistics.is_empty() && cell["seed"].is_null() && methods.iter().all(Value::is_null),
                "{cell}"
            );
            continue;
        }
        let calibration = &cell["calibration"];
        assert_eq!(
            (&calibration["seed"], calibration["samples"].as_u64()),
            (&cell["seed"], Some(8)),
            "{cell}"
        );
        let hash = calibration["token-hash"].as_str().unwrap().to_string();
        assert_eq!(hash.len(), 64);
        hashes.entry(cell["seed"].as_u64().unwrap()).or_insert_with(BTreeSet::new).insert(hash);
        // Static scales behind a searched prefix are those of a second pass.
        let expected =
            1 + usize::from(cell["steps"][0]["method"] == "qfep" && cell.to_string().contains("observer"));
        assert_eq!(statistics.len(), expected, "{cell}");
        read.extend(statistics);
    }
    assert_eq!(hashes.len(), 2);
    assert!(hashes.values().all(|of_seed| of_seed.len() == 1), "one set per seed: {hashes:?}");
    assert_ne!(hashes[&0], hashes[&1]);
    let published: BTreeSet<String> = fs::read_dir(place.path(STORE).join("statistics"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(published, read, "every pass is published, once, and nothing else");
    assert!(read.len() >= 4, "of the original and behind the prefix, for two seeds");
    for id in &published {
        let files = place.files(&format!("{STORE}/statistics/{id}"));
        let record: Value = serde_json::from_slice(&files["statistics.json"]).unwrap();
        let seed = record["result"]["calibration"]["seed"].as_u64().unwrap();
        assert!(hashes[&seed].contains(record["result"]["calibration"]["token-hash"].as_str().unwrap()));
        assert_eq!(record["result"]["id"].as_str(), Some(id.as_str()));
    }

    let references: Vec<_> = cells.iter().filter(|cell| steps(cell).len() == 1).collect();
    assert_eq!(references.len(), 2, "the original behind the prefix, once per seed, for three recipes");
    for reference in references {
        let tokens = &reference["fitted"]["0.prefix"]["tokens"];
        let same_seed = cells.iter().filter(|cell| cell["seed"] == reference["seed"]);
        let behind: Vec<_> =
            same_seed.map(|cell| &cell["fitted"]["0.prefix"]["tokens"]).filter(|t| !t.is_null()).collect();
        assert_eq!(behind.len(), 4);
        assert!(behind.iter().all(|other| *other == tokens), "{behind:?}");
    }
}

#[test]
fn what_is_lost_is_measured_again_and_nothing_else() {
    let place = place();
    place.write("experiment.toml", sweep_of_cures().text());
    place.sweep(&[]).exits_with(0);
    let (results, statistics) = (place.results(STORE), place.files(&format!("{STORE}/statistics")));
    assert_eq!(results, SWEPT.0.results(STORE), "two sweeps of one experiment differ");
    // One cell with its measurement, and another cell's measurement.
    let both = cells(&place).into_iter().find(|cell| cell["steps"].as_array().unwrap().len() == 4).unwrap();
    fs::remove_dir_all(place.path(&format!("{STORE}/cells/{}", both["id"].as_str().unwrap()))).unwrap();
    let smooth = cells(&place).into_iter().find(|cell| cell["steps"][0]["step"] == "smooth").unwrap();
    let folder = format!("{STORE}/cells/{}/measurements", smooth["id"].as_str().unwrap());
    fs::remove_dir_all(place.path(&folder)).unwrap();
    assert_eq!(place.sweep(&[]).exits_with(0).counts(), [2, CELLS - 2, 0, 0]);
    assert_eq!(place.results(STORE), results);
    assert!(place.files(&format!("{STORE}/statistics")) == statistics, "statistics were published twice");
}
