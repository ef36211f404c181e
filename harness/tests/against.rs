//! Readings against the original on the same tokens: against PyTorch, against themselves, in any batches, behind a prefix,
//! through a sweep, in a report, and side by side by `quantscope compare`.
//!
//! The golden numbers are made by `scripts/oracle/protocol_golden.py`.

#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Device;
use harness::evaluate::EvaluateError;
use harness::evaluate::against::{self, Compared, Original};
use harness::evaluate::decoder_model::DecoderModel;
use harness::evaluate::metrics::perplexity::{self, Protocol};
use harness::evaluate::noise::RoundingNoise;
use harness::evaluate::windows::Window;
use models::{Checkpoint, Decoder, Off, Tap};
use serde_json::Value;
use support::{Place, experiment, perplexity};

const BOS: u32 = 0;

fn golden() -> Value {
    serde_json::from_str(include_str!("fixtures/protocols.json")).unwrap()
}

/// A relative difference, of f32 arithmetic in two orders.
#[track_caller]
fn close(found: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance * expected.abs(), "{found} where PyTorch has {expected}");
}

fn decoder() -> Decoder {
    Checkpoint::builtin("builtin/tiny-llama").unwrap().unwrap().load(&Device::flex()).unwrap()
}

/// Windows of several lengths, in two units; some scored from the middle.
fn windows() -> Vec<Window> {
    let tokens = |seed: u32, n: u32| -> Vec<u32> {
        std::iter::once(BOS).chain((0..n).map(|i| 1 + (seed * 977 + i * i * 31 + i * 7) % 1000)).collect()
    };
    let mut windows: Vec<Window> = (0..5).map(|i| Window::whole(&tokens(i, 40), i as usize / 2)).collect();
    windows.push(Window { from: 12, targets: tokens(9, 24)[13..].to_vec(), fed: tokens(9, 24), unit: 3 });
    windows.push(Window::whole(&tokens(10, 17), 3));
    windows
}

fn keep(decoder: &mut Decoder, windows: &[Window], bound: u64) -> Original {
    let mut tap = Off;
    let mut model = DecoderModel::new(decoder, &mut tap, Some(BOS));
    Original::keep(&mut model, windows, bound, &mut |_, _| true).unwrap()
}

fn compare(
    decoder: &mut Decoder,
    tap: &mut dyn Tap,
    windows: &[Window],
    original: &mut Original,
) -> Compared {
    let mut model = DecoderModel::new(decoder, tap, Some(BOS));
    against::compare(&mut model, windows, original, &mut |_, _| true).unwrap()
}

/// The same model with its last feed-forward part off by a little.
fn changed() -> Decoder {
    let mut decoder = decoder();
    let down = &mut decoder.groups_mut();
    let (_, group) = down.iter_mut().rev().nth(1).unwrap();
    let weight = group.linears[0].weight.clone();
    group.linears[0].weight = weight.clone() * 0.9 + weight.sin() * 0.05;
    decoder
}

#[test]
fn the_original_against_itself_is_exactly_nothing() {
    let (mut decoder, windows) = (decoder(), windows());
    let mut original = keep(&mut decoder, &windows, u64::MAX);
    let compared = compare(&mut decoder, &mut Off, &windows, &mut original);
    assert_eq!(compared.scores, compared.original);
    assert!(compared.divergences.iter().flatten().all(|token| token.kl == 0.0 && token.same_top));
    let [kl, top, delta] = against::measured(&windows, &compared).unwrap();
    assert_eq!((kl.value, top.value, delta.value), (0.0, 1.0, 0.0));
    assert_eq!((kl.stderr, top.stderr, delta.stderr), (Some(0.0), Some(0.0), Some(0.0)));
    let targets: usize = windows.iter().map(|window| window.targets.len()).sum();
    assert_eq!((kl.n, top.n, delta.n), (targets as u64, targets as u64, targets as u64));
}

#[test]
fn states_in_a_file_give_what_states_in_memory_give() {
    let (mut decoder, mut changed, windows) = (decoder(), changed(), windows());
    let mut memory = keep(&mut decoder, &windows, u64::MAX);
    let mut file = keep(&mut decoder, &windows, 0);
    assert!(memory.held() > 0 && file.held() == 0);
    let held = compare(&mut changed, &mut Off, &windows, &mut memory);
    assert_eq!(compare(&mut changed, &mut Off, &windows, &mut file), held);
    assert!(held.divergences.iter().flatten().any(|token| token.kl > 1e-4), "nothing was changed");
}

#[test]
fn batches_change_nothing() {
    let (mut decoder, mut changed, windows) = (decoder(), changed(), windows());
    let mut original = keep(&mut decoder, &windows, u64::MAX);
    let together = compare(&mut changed, &mut Off, &windows, &mut original);
    let mut off = Off;
    let mut model = DecoderModel::new(&mut changed, &mut off, Some(BOS));
    let perplexity = perplexity::measure_windows(&mut model, Protocol::Gptq, &windows, &mut |_, _| true);
    assert_eq!(
        perplexity.unwrap(),
        perplexity::measured(Protocol::Gptq, &windows, &together.scores).unwrap()
    );
    for (place, window) in windows.iter().enumerate() {
        let window = std::slice::from_ref(window);
        let mut original = keep(&mut decoder, window, u64::MAX);
        let alone = compare(&mut changed, &mut Off, window, &mut original);
        for (a, b) in alone.scores[0].iter().zip(&together.scores[place]) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
        for (a, b) in alone.divergences[0].iter().zip(&together.divergences[place]) {
            assert!((a.kl - b.kl).abs() < 1e-5 + 1e-3 * b.kl, "{a:?} {b:?}");
        }
    }
}

#[test]
fn behind_a_prefix_the_same_tokens_are_compared() {
    let (mut decoder, windows) = (decoder(), windows());
    let mut original = keep(&mut decoder, &windows, u64::MAX);
    let plain = compare(&mut decoder, &mut Off, &windows, &mut original);
    // A prefix of BOS alone is what stands at the beginning of every window anyway.
    decoder.set_prefix(&[BOS]);
    let prefixed = compare(&mut decoder, &mut Off, &windows, &mut original);
    // The first token's logits are a product of their own behind a prefix, and so may differ in the last bits.
    for (a, b) in prefixed.original.iter().flatten().zip(plain.original.iter().flatten()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    for (a, b) in prefixed.scores.iter().flatten().zip(plain.scores.iter().flatten()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    let [kl, top, _] = against::measured(&windows, &prefixed).unwrap();
    assert!(kl.value < 1e-6 && top.value > 0.99, "{} {}", kl.value, top.value);
    // Another prefix is another model.
    decoder.set_prefix(&[BOS, 17, 4]);
    let other =
        against::measured(&windows, &compare(&mut decoder, &mut Off, &windows, &mut original)).unwrap();
    assert!(other[0].value > 1e-3, "{}", other[0].value);
}

#[test]
fn noise_of_fewer_bits_moves_more() {
    let (mut decoder, windows) = (decoder(), windows());
    let mut original = keep(&mut decoder, &windows, u64::MAX);
    let mut floor = |bits| {
        let compared = compare(&mut decoder, &mut RoundingNoise::new(bits), &windows, &mut original);
        against::measured(&windows, &compared).unwrap()[0].value
    };
    let (bf16, f16, f32) = (floor(8), floor(11), floor(24));
    assert!(bf16 > 10.0 * f16 && f16 > 1000.0 * f32.max(1e-12), "{bf16} {f16} {f32}");
    assert_eq!(bf16, floor(8), "the draws repeat");
}

#[test]
fn an_interrupted_comparison_says_so() {
    let (mut decoder, windows) = (decoder(), windows());
    let mut original = keep(&mut decoder, &windows, u64::MAX);
    let mut tap = Off;
    let mut model = DecoderModel::new(&mut decoder, &mut tap, Some(BOS));
    let stopped = against::compare(&mut model, &windows, &mut original, &mut |done, _| done == 0);
    assert_eq!(stopped, Err(EvaluateError::Interrupted));
}

/// The built-in model on the golden text, under every protocol.
fn golden_place() -> (Place, Value) {
    let golden = golden();
    let place = Place::new(10);
    let documents = golden["documents"].as_array().unwrap();
    let text: Vec<&str> = documents.iter().map(|document| document.as_str().unwrap()).collect();
    place.write("stories.txt", text.join("\n\n"));
    let lines: Vec<String> =
        text.iter().map(|text| serde_json::json!({ "text": text }).to_string() + "\n").collect();
    place.write("stories.jsonl", lines.concat());
    let block = |protocol: &str, corpus: &str, bos: &str, more: &str| {
        format!(
            "[[evaluate]]\nmetric = \"perplexity\"\nprotocol = \"{protocol}\"\ncorpus = {corpus}\nlength = {}\n\
             bos = \"{bos}\"\n{more}\n",
            golden["length"][protocol]
        )
    };
    let stream = "{ path = \"stories.txt\" }";
    let documents = "{ path = \"stories.jsonl\", field = \"text\" }";
    place.write(
        "experiment.toml",
        [
            "question = \"?\"\nreference = \"own\"\n[sweep]\nmodels = [\"builtin/tiny-llama\"]\nrecipes = [\"w4\"]\n\
             [recipe.w4]\nsteps = [{ step = \"weights\", bits = 4, granularity = \"channel\" }]\n",
            &block("gptq", stream, "every", "against-original = true"),
            &block("llama.cpp", stream, "tokenizer", ""),
            &block("document", documents, "every", ""),
        ]
        .concat(),
    );
    (place, golden)
}

#[test]
fn protocols_and_comparisons_are_those_of_pytorch() {
    let (place, golden) = golden_place();
    place.sweep(&[]).exits_with(0);
    let results = place.results("results/experiment");
    let find = |metric: &str, recipe_is_original: bool| -> &Value {
        let reading = if recipe_is_original { "original" } else { "quantized" };
        let found = results.values().find(|result| {
            result["metric"].as_str().is_some_and(|id| id.starts_with(metric) && !id.ends_with("noise-floor"))
                && result["reading"] == reading
        });
        found.unwrap_or_else(|| panic!("no {metric}"))
    };
    for protocol in ["gptq", "llama.cpp", "document"] {
        let measured = find(&format!("perplexity/{protocol}/"), true);
        close(measured["value"].as_f64().unwrap(), &golden["perplexity"][protocol], 1e-5);
        assert_eq!(measured["n"], golden["scored"][protocol], "{protocol}");
        assert_eq!(measured["detail"]["windows"], golden["windows"][protocol], "{protocol}");
    }
    let llama_cpp = &find("perplexity/llama.cpp/", true)["detail"];
    close(llama_cpp["llama.cpp-uncertainty"].as_f64().unwrap(), &golden["llama.cpp-uncertainty"], 1e-4);

    let expected = &golden["against"];
    let kl = find("kl-divergence/", false);
    close(kl["value"].as_f64().unwrap(), &expected["kl"], 1e-3);
    close(kl["stderr"].as_f64().unwrap(), &expected["kl-stderr"], 1e-3);
    for (key, name) in [("median", "kl-median"), ("p99", "kl-p99"), ("max", "kl-max")] {
        close(kl["detail"][key].as_f64().unwrap(), &expected[name], 5e-3);
    }
    let top = find("top1-agreement/", false);
    close(top["value"].as_f64().unwrap(), &expected["same-top"], 1e-3);
    let delta = find("log-perplexity-difference/", false);
    close(delta["value"].as_f64().unwrap(), &expected["delta"], 5e-3);
    close(delta["stderr"].as_f64().unwrap(), &expected["delta-stderr"], 5e-3);
    // The original has a floor and no comparison with itself.
    let floors =
        results.values().filter(|r| r["metric"].as_str().is_some_and(|id| id.ends_with("/noise-floor")));
    assert_eq!(floors.map(|floor| floor["reading"].clone()).collect::<Vec<_>>(), ["original"; 3]);
}

const W3: (&str, &str) = ("w3", r#"{ step = "weights", bits = 3, granularity = "channel" }"#);
const W8: (&str, &str) = ("w8", r#"{ step = "weights", bits = 8 }"#);

/// An experiment whose readings are compared with the original, or not.
fn compared(yes: bool) -> String {
    let more = if yes { "against-original = true\n" } else { "" };
    experiment(&[W8, W3], &[perplexity(16, Some(4)) + more])
}

#[test]
fn comparisons_are_added_to_what_is_there_and_change_none_of_it() {
    let place = Place::new(100);
    place.write("experiment.toml", compared(false));
    place.sweep(&[]).exits_with(0);
    let before = place.files("results/experiment/cells");
    place.write("experiment.toml", compared(true));
    let plan = place.run(&["plan", "experiment.toml"]).exits_with(0);
    assert!(plan.stdout.contains("kl-divergence/gptq/text/16/bos=every/windows=4"), "{}", plan.stdout);
    let added = place.sweep(&[]).exits_with(0);
    assert_eq!(added.counts(), [9, 3, 0, 0], "three of every cell were added");
    for (name, bytes) in &before {
        assert_eq!(place.files("results/experiment/cells").get(name), Some(bytes), "{name} was touched");
    }
    let again = place.sweep(&[]).exits_with(0);
    assert_eq!(again.counts(), [0, 12, 0, 0]);
    place.run(&["report", "results/experiment", "--check"]).exits_with(0);

    // Made at once, they are the same.
    let fresh = Place::new(100);
    fresh.write("experiment.toml", compared(true));
    fresh.sweep(&[]).exits_with(0);
    assert_eq!(fresh.results("results/experiment"), place.results("results/experiment"));
    // A part of the sweep in another session runs the original again.
    let parts = Place::new(100);
    parts.write("experiment.toml", compared(true));
    parts.sweep(&["-r", "original"]).exits_with(0);
    parts.sweep(&["-R", "original"]).exits_with(0);
    assert_eq!(parts.results("results/experiment"), place.results("results/experiment"));
}

#[test]
fn a_report_shows_divergence_floor_and_both_intervals() {
    let place = Place::new(100);
    place.write("experiment.toml", compared(true));
    let swept = place.sweep(&[]).exits_with(0);
    for text in [
        "Against the original on the same tokens",
        "| noise floor",
        "KL p99",
        "Δ bootstrap 95 %",
        "above floor",
        "by the original's confidence in its top token",
    ] {
        assert!(swept.stdout.contains(text), "no `{text}` in\n{}", swept.stdout);
    }
    assert!(!swept.stdout.contains("| **"), "nothing in a table is bold");
    let latex = place.run(&["report", "results/experiment", "--format", "latex"]).exits_with(0).stdout;
    assert!(latex.contains("\\toprule") && latex.contains("noise floor"), "{latex}");
}

#[test]
fn recipes_and_folders_are_compared_window_by_window() {
    let place = Place::new(100);
    place.write("experiment.toml", compared(true));
    place.sweep(&[]).exits_with(0);
    let compare = |arguments: &[&str]| {
        let all = [&["compare", "results/experiment", "--format", "json"][..], arguments].concat();
        let ended = place.run(&all).exits_with(0);
        let tables = ended.stdout.replace("]\n\n[", "]\u{0}[").replace("]\n[", "]\u{0}[");
        let tables: Vec<Vec<Value>> =
            tables.split('\u{0}').map(|table| serde_json::from_str(table).unwrap()).collect();
        tables
    };
    // The original and every recipe; perplexity first.
    let all = compare(&[]);
    assert_eq!(all[0].len(), 2);
    let delta = |row: &Value| row["Δ ln ppl"]["value"].as_f64().unwrap();
    let results = place.results("results/experiment");
    for row in &all[0] {
        // The same number that was measured against the original, from the perplexities' own details.
        let measured = results.values().filter(|r| {
            r["metric"]
                .as_str()
                .is_some_and(|id| id.starts_with("log-perplexity-difference") && !id.ends_with("floor"))
        });
        let near = measured.filter(|r| (r["value"].as_f64().unwrap() - delta(row)).abs() < 1e-6);
        assert_eq!(near.count(), 1, "{row}");
    }
    let itself = &compare(&["--first", "w3", "--second", "w3"])[0][0];
    assert_eq!((delta(itself), itself["p"].as_f64()), (0.0, Some(1.0)));
    let pair = &compare(&["--first", "w8", "--second", "w3"])[0];
    assert_eq!(pair.len(), 1);
    assert_eq!(pair[0]["units"], 4);

    let ended = place.run(&["compare", "results/experiment", "-r", "w3"]).exits_with(2);
    assert!(ended.stderr.contains("--first") && ended.stdout.is_empty(), "{}", ended.stderr);

    // Another folder with the same cells differs in nothing.
    place.sweep(&["--results", "other"]).exits_with(0);
    let ended = place.run(&["compare", "results/experiment", "other", "-t", "perplexity"]).exits_with(0);
    assert_eq!(ended.stdout.matches("0.0000 to 0.0000").count(), 6, "{}", ended.stdout);
    // Other tokens are not compared, and it says so.
    let backwards: Vec<String> = support::text(100).split(' ').rev().map(String::from).collect();
    place.write("text.txt", backwards.join(" "));
    place.sweep(&["--results", "another"]).exits_with(0);
    let ended = place.run(&["compare", "results/experiment", "another", "-t", "perplexity"]).exits_with(0);
    assert!(ended.stdout.contains("not measured on the same tokens"), "{}", ended.stdout);
    place
        .run(&["compare", "results/experiment", "--second", "w9"])
        .exits_with(1)
        .says(&["nothing can be paired"]);
}

#[test]
fn a_protocol_that_cannot_be_meant_is_refused_at_its_place() {
    let place = Place::new(100);
    let text = compared(false);
    place.write(
        "experiment.toml",
        text.replace("\"gptq\"", "\"llama.cpp\"").replace("length = 16", "length = 2"),
    );
    place.sweep(&[]).exits_with(2).says(&["`length` must be at least 3 under llama.cpp's protocol"]);
    place.write(
        "experiment.toml",
        text.replace("\"gptq\"", "\"llama.cpp\"").replace("length = 16", "length = 64"),
    );
    place.sweep(&[]).exits_with(1).says(&["llama.cpp's perplexity needs twice its context"]);
    place.write("experiment.toml", text.replace("\"gptq\"", "\"documents\""));
    place.sweep(&[]).exits_with(2).says(&["document"]);
}
