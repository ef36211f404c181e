//! Items side by side and out of the program: `quantscope compare` on accuracies, `quantscope export` against a results
//! file that lm-evaluation-harness 0.4.13 wrote, and the task on the built-in model.
//!
//! `fixtures/lm_eval_results.json` is what `lm_eval run --model dummy` wrote for 30 items of a local task with PIQA's
//! prompt; machine, time and paths were taken out, and the task was renamed to `piqa`.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::Place;

/// Two tasks on the built-in model: its own, and PIQA's prompt over invented items.
fn place() -> Place {
    let place = Place::new(10);
    let items: Vec<String> = (0..12)
        .map(|i| {
            let choices = json!([format!("Open the door {i}."), format!("He has a red {i} hat.")]);
            json!({ "id": i, "query": "How does one go in?", "choices": choices, "gold": i % 2 }).to_string()
                + "\n"
        })
        .collect();
    place.write("piqa.jsonl", items.concat());
    place.write(
        "experiment.toml",
        r#"question = "?"
reference = "own"
[sweep]
models = ["builtin/tiny-llama-spiky"]
recipes = ["tensor", "w8"]
[recipe.w8]
steps = [{ step = "weights", bits = 8, granularity = "channel" }]
[recipe.tensor]
steps = [
  { step = "weights", bits = 8, granularity = "channel" },
  { step = "activations", bits = 8, granularity = "tensor" },
]
[[evaluate]]
task = "story_ending"
limit = 40
[[evaluate]]
task = "piqa"
form = "uniform"
items = "piqa.jsonl"
"#,
    );
    place
}

/// The measurements of the store; beside them lie tables of items, which are no JSON.
fn measurements(place: &Place) -> Vec<Value> {
    let files = place.files("results/experiment/cells");
    let measured = files.iter().filter(|(name, _)| name.contains("/measurements/"));
    measured.map(|(_, bytes)| serde_json::from_slice::<Value>(bytes).unwrap()["result"].take()).collect()
}

fn table(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn the_built_in_task_is_easy_for_the_original_and_tells_what_spikes_do() {
    let place = place();
    place.sweep(&["-t", "story_ending"]).exits_with(0);
    let compare = |arguments: &[&str]| {
        let first = ["compare", "results/experiment", "--format", "json", "-t", "story_ending/own/v1/acc/*"];
        table(&place.run(&[&first[..], arguments].concat()).exits_with(0).stdout)
    };
    let rows = compare(&[]);
    let row = |recipe: &str| rows.iter().find(|row| row["second"] == recipe).unwrap();
    let accuracy = |row: &Value, side: &str| row[format!("acc {side}")]["value"].as_f64().unwrap();
    // Chance is 0.25.
    assert!(accuracy(row("w8"), "first") > 0.8, "{rows:?}");
    assert!(accuracy(row("w8"), "second") > 0.8, "{rows:?}");
    assert!(accuracy(row("tensor"), "second") < 0.7, "{rows:?}");
    let broken = row("tensor");
    assert!(broken["p Holm"].as_f64().unwrap() < 0.01, "{broken}");
    let (lost, gained) = (broken["lost"].as_u64().unwrap(), broken["gained"].as_u64().unwrap());
    let difference = broken["diff points"]["value"].as_f64().unwrap();
    assert!((difference - 100.0 * (gained as f64 - lost as f64) / 40.0).abs() < 1e-9);
    // The bootstrap's ends stand around the difference and are multiples of an item.
    let ends: Vec<f64> =
        broken["bootstrap 95 %"].as_str().unwrap().split(" to ").map(|n| n.parse().unwrap()).collect();
    assert!(ends[0] < difference && difference < ends[1] && ends[1] < 0.0, "{broken}");

    let itself = &compare(&["--first", "w8", "--second", "w8"])[0];
    assert_eq!(
        (itself["lost"].as_u64(), itself["gained"].as_u64(), itself["all flips"].as_u64()),
        (Some(0), Some(0), Some(0))
    );
    assert_eq!((itself["p"].as_f64(), itself["diff points"]["value"].as_f64()), (Some(1.0), Some(0.0)));
    assert_eq!(itself["MDE points"], Value::Null);
}

/// The type of a value, numbers as one.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[test]
fn an_export_has_the_shape_of_lm_eval_s_results() {
    let place = place();
    place.sweep(&["-R", "tensor"]).exits_with(0);
    let several = place.run(&["export", "results/experiment"]).exits_with(1);
    assert!(several.stderr.contains("2 cells have scores"), "{}", several.stderr);
    let text = place.run(&["export", "results/experiment", "-r", "w8"]).exits_with(0).stdout;
    let ours: Value = serde_json::from_str(&text).unwrap();
    let theirs: Value = serde_json::from_str(include_str!("fixtures/lm_eval_results.json")).unwrap();

    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&ours), keys(&theirs));
    for (key, expected) in theirs.as_object().unwrap() {
        assert!(ours[key].is_null() || kind(&ours[key]) == kind(expected), "{key}: {}", ours[key]);
    }
    for key in keys(&theirs["config"]) {
        assert!(ours["config"].get(&key).is_some(), "config has no {key}");
    }
    // acc_bytes stands beside what lm-eval reports for the task, with its error.
    let mut expected = keys(&theirs["results"]["piqa"]);
    expected.extend(["acc_bytes,none".to_owned(), "acc_bytes_stderr,none".to_owned()]);
    let mut found = keys(&ours["results"]["piqa"]);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    for key in ["versions", "n-shot", "n-samples"] {
        let (a, b) = (&ours[key]["piqa"], &theirs[key]["piqa"]);
        assert_eq!(kind(a), kind(b), "{key}: {a}");
    }
    assert_eq!(ours["versions"]["piqa"], theirs["versions"]["piqa"]);
    assert_eq!(ours["n-samples"]["piqa"], json!({ "original": 12, "effective": 12 }));
    assert_eq!(ours["higher_is_better"]["piqa"]["acc"], true);
    // The task of this project's own is no task of lm-eval's.
    assert!(ours["results"].get("story_ending").is_none());

    // The numbers are those of the record.
    let results = measurements(&place);
    let acc = results.iter().find(|result| {
        result["metric"].as_str().is_some_and(|id| id.starts_with("piqa/") && id.contains("/acc/"))
            && result["reading"] == "quantized"
    });
    assert_eq!(ours["results"]["piqa"]["acc,none"], acc.unwrap()["value"]);
    assert_eq!(ours["results"]["piqa"]["acc_stderr,none"], acc.unwrap()["stderr"]);

    let files = place.run(&["export", "results/experiment", "--output", "exported"]).exits_with(0).stdout;
    assert_eq!(files.lines().count(), 2, "{files}");
    let file = "exported/results_builtin-tiny-llama-spiky_w8.json";
    assert_eq!(std::fs::read_to_string(place.path(file)).unwrap(), text);
}

#[test]
fn bad_items_stop_the_sweep_and_long_ones_are_counted() {
    let place = place();
    let good = std::fs::read_to_string(place.path("piqa.jsonl")).unwrap();
    let with = |line: &str| place.write("piqa.jsonl", format!("{good}{line}\n"));
    for (line, says) in [
        (r#"{"id": 12, "query": "a""#, "piqa.jsonl line 13"),
        (r#"{"id": 12, "query": "a", "gold": 0}"#, "`choices`"),
        (r#"{"id": 12, "query": "a", "choices": ["b", "c"], "gold": 2}"#, "piqa.jsonl line 13"),
        (r#"{"id": 12, "query": "a", "choices": ["b", ""], "gold": 0}"#, "piqa.jsonl line 13"),
    ] {
        with(line);
        place.sweep(&["-t", "piqa"]).exits_with(2).says(&["task `piqa`", says]);
        assert!(!place.path("results").exists(), "something was measured of {line}");
    }
    // Cut on the left, and counted in every measurement.
    place.write("piqa.jsonl", &good);
    let text = std::fs::read_to_string(place.path("experiment.toml")).unwrap();
    place.write("experiment.toml", text.replace("form = \"uniform\"", "form = \"uniform\"\nlength = 12"));
    place.sweep(&["-t", "piqa", "-r", "w8"]).exits_with(0);
    for result in measurements(&place) {
        assert_eq!(result["detail"]["truncated-requests"], 24, "{result}");
        assert!(result["metric"].as_str().unwrap().contains("/length=12/"), "{result}");
    }
}
