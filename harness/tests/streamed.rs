//! Cells executed part by part, through the whole program: every record is the one of a model with all its weights in
//! memory, what needs the whole model is refused, and what does not fit is streamed.

#![allow(clippy::unwrap_used)]

#[path = "support/recipes.rs"]
mod recipes;
mod support;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use harness::data::BosPolicy;
use harness::data::window::windows;
use harness::quantize::direct::Direct;
use models::{Checkpoint, Group, Off, Site, Tap, token_tensor};
use serde_json::Value;
use support::{Place, perplexity, text};

const RECIPES: &[(&str, &str)] = &[
    ("rtn", r#"{ step = "weights", bits = 4, embeddings = true }"#),
    (
        "naive",
        r#"{ step = "weights", bits = 8 }, { step = "activations", bits = 8, granularity = "tensor" }"#,
    ),
    (
        "static",
        r#"{ step = "weights", bits = 8 }, { step = "activations", bits = 4, granularity = "tensor", observer = "max" }"#,
    ),
    (
        "smooth",
        r#"{ step = "smooth", method = "smoothquant" }, { step = "weights", bits = 4 },
           { step = "activations", bits = 8, granularity = "tensor", observer = "percentile" }"#,
    ),
    ("awq", r#"{ step = "smooth", method = "awq", bits = 4, samples = 2 }, { step = "weights", bits = 4 }"#),
    (
        "gptq",
        r#"{ step = "weights", bits = 4, solver = "gptq", asymmetric-calibration = 0.5, hessian-inputs = "waq",
             sites = ["attn_in", "o_in", "mlp_in", "down_in", "head_in"] },
           { step = "activations", bits = 8 }, { step = "kv", bits = 4, granularity = "channel" }"#,
    ),
    (
        "rotated",
        r#"{ step = "prefix", method = "bos" }, { step = "rotate", method = "hadamard" },
           { step = "weights", bits = 4 }, { step = "activations", bits = 6 }, { step = "kv", bits = 4, prompt = 3 }"#,
    ),
];

fn experiment(models: &[(&str, &str)], recipes: &[(&str, &str)], evaluations: &[String]) -> String {
    let names = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    let mut text = format!(
        "question = \"Is a streamed cell the same?\"\nreference = \"own\"\n\n[sweep]\nmodels = {:?}\nrecipes = {:?}\n\
         calibrations = [\"text\"]\nseeds = [0, 1]\n\n[calibration.text]\nsamples = 5\nlength = 16\nbos = \"every\"\n\
         corpus = {{ path = \"other.txt\" }}\nallow-overlap = true\n",
        names(models),
        names(recipes)
    );
    for (name, path) in models {
        text += &format!("\n[model.{name}]\npath = {path:?}\n");
    }
    for (name, steps) in recipes {
        text += &format!("\n[recipe.{name}]\nsteps = [{steps}]\n");
    }
    text + "\n" + &evaluations.join("\n")
}

/// Perplexity under every protocol, and against the original. With 16 windows of 512 tokens and fewer there are several
/// batches.
fn evaluations(length: usize) -> Vec<String> {
    let one = |protocol: &str, bos: &str, more: &str| {
        format!(
            "[[evaluate]]\nmetric = \"perplexity\"\nprotocol = \"{protocol}\"\ncorpus = {{ path = \"text.txt\" }}\n\
             length = {length}\nbos = \"{bos}\"\n{more}"
        )
    };
    vec![
        one("gptq", "every", "against-original = true\n"),
        one("llama.cpp", "none", ""),
        one("document", "every", "limit = 3\n"),
    ]
}

fn execution(place: &Place, store: &str) -> Vec<Value> {
    let records = place.files(&format!("{store}/cells"));
    let records = records.iter().filter(|(name, _)| name.ends_with(".json"));
    records
        .map(|(_, bytes)| serde_json::from_slice::<Value>(bytes).unwrap()["execution"]["weights"].take())
        .collect()
}

#[test]
fn every_record_is_that_of_resident_weights() {
    let place = Place::new(1500);
    let words = text(900);
    place.write("other.txt", words.split(' ').rev().collect::<Vec<_>>().join(" "));
    place.write("experiment.toml", experiment(&[("tiny", "tiny")], RECIPES, &evaluations(32)));
    let counts = place.sweep(&["--execution", "resident", "--results", "a"]).exits_with(0).counts();
    assert_eq!(place.sweep(&["--execution", "streamed", "--results", "b"]).exits_with(0).counts(), counts);

    let (resident, streamed) = (place.results("a"), place.results("b"));
    assert_eq!(resident.keys().collect::<Vec<_>>(), streamed.keys().collect::<Vec<_>>());
    for (name, result) in &resident {
        assert_eq!(result, &streamed[name], "{name}");
    }
    assert!(resident.len() > 40, "only {} records are compared", resident.len());
    assert!(execution(&place, "a").iter().all(|weights| weights == "resident"));
    assert!(execution(&place, "b").iter().all(|weights| weights == "streamed"));
    // Statistics are published under the same ids, with the same content.
    let statistics = |store: &str| {
        let files = place.files(&format!("{store}/statistics"));
        let summaries = files.into_iter().filter(|(name, _)| name.ends_with(".json"));
        summaries
            .map(|(name, bytes)| (name, serde_json::from_slice::<Value>(&bytes).unwrap()["result"].take()))
            .collect::<Vec<_>>()
    };
    assert_eq!(statistics("a"), statistics("b"));
    assert!(!statistics("a").is_empty());

    // Either goes on where the other has stopped: nothing is left to do.
    let again = place.sweep(&["--execution", "streamed", "--results", "a"]).exits_with(0).counts();
    assert_eq!((again[0], again[1]), (0, counts[0]));
}

#[test]
fn what_does_not_fit_is_streamed_and_what_cannot_be_says_why() {
    let place = Place::new(400);
    let whole = r#"{ step = "keep", method = "ranked", quantize = "top", groups = 2 }, { step = "weights", bits = 8 }"#;
    place.write("other.txt", text(900));
    let recipes = [("rtn", r#"{ step = "weights", bits = 4 }"#), ("ranked", whole)];
    place.write("experiment.toml", experiment(&[("tiny", "tiny")], &recipes, &[perplexity(16, Some(6))]));

    let refused = place.sweep(&["--execution", "streamed"]).exits_with(2);
    refused.says(&[
        "recipe `ranked` on tiny cannot be executed part by part",
        "0.keep ranked",
        "--execution resident",
    ]);

    let plan = place.run(&["plan", "experiment.toml", "--memory", "1MiB"]).exits_with(0);
    for text in ["execution of", "resident", "streamed", "2 of 4", "tiny · ranked cannot be streamed"] {
        assert!(plan.stdout.contains(text), "`{text}` is not in:\n{}", plan.stdout);
    }
    let roomy = place.run(&["plan", "experiment.toml", "--memory", "16GiB"]).exits_with(0);
    assert!(
        roomy.stdout.contains("4 of 4") && !roomy.stdout.contains("cannot be streamed"),
        "{}",
        roomy.stdout
    );

    place
        .sweep(&["--memory", "1MiB"])
        .exits_with(0)
        .says(&["warning: tiny · ranked: takes about", "block by block"]);
    let mut how: Vec<String> =
        execution(&place, "results/experiment").iter().map(|w| w.as_str().unwrap().to_string()).collect();
    how.sort();
    assert_eq!(how, ["resident"; 4].into_iter().chain(["streamed"; 4]).collect::<Vec<_>>());
    for bad in [["--memory", "4 apples"], ["--execution", "steamed"]] {
        place.sweep(&bad).exits_with(2);
    }
}

#[test]
fn a_checkpoint_that_lacks_a_block_fails_before_anything_is_computed() {
    let place = Place::new(400);
    place.configure("tiny", "num_hidden_layers", 7.into());
    place.write("experiment.toml", support::experiment(&[("rtn", RECIPES[0].1)], &[perplexity(16, Some(6))]));
    place.sweep(&["--execution", "streamed"]).exits_with(1);
    let failures = place.failures("results/experiment");
    assert!(
        failures.iter().all(|failure| failure["message"].as_str().unwrap().contains("is missing")),
        "{failures:?}"
    );
    assert_eq!(failures.len(), 2);
}

/// Takes down the residual stream behind every block, and leaves the rest to another tap.
struct Residuals<'a> {
    inner: &'a mut dyn Tap,
    seen: Vec<Vec<f32>>,
}

impl Tap for Residuals<'_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        self.inner.linears(site, x, group)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.inner.tensor(site, x)
    }

    fn residual(&mut self, layer: usize, x: &Tensor<3>) {
        assert_eq!(layer, self.seen.len());
        self.seen.push(recipes::values(x));
    }
}

#[test]
fn in_lockstep_the_distance_from_the_original_is_taken_behind_every_block() {
    let place = Place::new(700);
    let block = perplexity(32, Some(6)) + "against-original = true\n";
    let (naive, prefixed) = (RECIPES[1].1, RECIPES[6].1);
    let text = support::experiment(&[("naive", naive), ("prefixed", prefixed)], &[block]);
    place.write("experiment.toml", text);
    place.sweep(&["--execution", "streamed", "--arithmetic", "fake", "--results", "a"]).exits_with(0);

    let checkpoint = Checkpoint::open(&place.path("tiny")).unwrap();
    let original = checkpoint.load(&Device::flex()).unwrap();
    let words = std::fs::read_to_string(place.path("text.txt")).unwrap();
    let ids = checkpoint.tokenizer().encode(&words).unwrap();
    let fed = windows(&ids, Some(1), BosPolicy::Every, 32, Some(6)).unwrap();
    let input = || token_tensor(&fed, &Device::flex());
    let mut truth = Residuals { inner: &mut Off, seen: Vec::new() };
    original.clone().hidden(input(), &mut truth);
    let mut made = recipes::make(naive, &original, &mut Direct::new(Vec::new(), Some(1)));
    let mut found = Residuals { inner: &mut made.tap, seen: Vec::new() };
    made.decoder.hidden(input(), &mut found);
    let square = |x: f64| x * x;
    let expected: Vec<f64> = found
        .seen
        .iter()
        .zip(&truth.seen)
        .map(|(x, y)| {
            let error: f64 = x.iter().zip(y).map(|(&x, &y)| square(f64::from(x) - f64::from(y))).sum();
            (error / y.iter().map(|&y| square(f64::from(y))).sum::<f64>()).sqrt()
        })
        .collect();
    assert!(expected.iter().all(|e| *e > 1e-4) && expected.len() == original.blocks.len());

    let records = place.files("a/cells");
    let mut compared = 0;
    for (name, bytes) in records.iter().filter(|(name, _)| name.contains("kl-divergence")) {
        let record: Value = serde_json::from_slice(bytes).unwrap();
        let cell: Value =
            serde_json::from_slice(&records[&format!("{}/cell.json", name.split('/').next().unwrap())])
                .unwrap();
        let errors = &record["execution"]["residual_errors"];
        match cell["result"]["steps"][0]["step"].as_str() {
            Some("weights") => {
                let errors: Vec<f64> = serde_json::from_value(errors.clone()).unwrap();
                assert_eq!(errors.len(), expected.len());
                for (found, expected) in errors.iter().zip(&expected) {
                    assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
                }
                compared += 1;
            }
            // Behind a prefix other tokens are fed; of the original there is nothing to say.
            _ => assert!(errors.is_null(), "{name}: {errors}"),
        }
    }
    assert_eq!(compared, 1);
}

/// A trained model, where it is at hand.
fn smollm2() -> Option<PathBuf> {
    let models = std::env::var_os("QUANTSCOPE_MODELS").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cache/quantscope/models"))
    })?;
    let folder = models.join("smollm2-135m-instruct-dequantized");
    if folder.is_dir() {
        return Some(folder);
    }
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "SKIPPED smollm2: {} is not there", folder.display());
    None
}

#[test]
fn a_streamed_smollm2_is_the_resident_one() {
    let Some(folder) = smollm2() else { return };
    let place = Place::new(400);
    let recipes = [RECIPES[1], ("smooth", RECIPES[3].1)];
    place.write("other.txt", text(900));
    let models = [("smollm2", folder.to_str().unwrap())];
    let block = perplexity(48, Some(3)) + "against-original = true\n";
    place.write(
        "experiment.toml",
        experiment(&models, &recipes, &[block]).replace("seeds = [0, 1]", "seeds = [0]"),
    );
    place.sweep(&["--execution", "resident", "--results", "a"]).exits_with(0);
    place.sweep(&["--execution", "streamed", "--results", "b"]).exits_with(0);
    assert_eq!(place.results("a"), place.results("b"));
}
