//! The experiments on the papers' models plan from nothing but the published `config.json`, and their anchors say where
//! they come from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::experiment::{Experiment, ModelSource};
use serde::Deserialize;

use crate::repository;

/// The size that the hub states for every model named in `experiments/`.
const SIZES: [(&str, &str); 11] = [
    ("CohereForAI/c4ai-command-r-v01", "34980.8 M"),
    ("Qwen/Qwen1.5-7B", "7721.3 M"),
    ("Qwen/Qwen2.5-1.5B", "1543.7 M"),
    ("facebook/opt-6.7b", "6658.5 M"),
    ("google/gemma-7b", "8537.7 M"),
    ("meta-llama/Llama-2-13b-hf", "13015.9 M"),
    ("meta-llama/Llama-2-7b-hf", "6738.4 M"),
    ("meta-llama/Meta-Llama-3-8B", "8030.3 M"),
    ("mistralai/Mistral-7B-v0.1", "7241.7 M"),
    ("mistralai/Mixtral-8x7B-v0.1", "46702.8 M"),
    ("upstage/SOLAR-10.7B-v1.0", "10731.5 M"),
];

/// The files that name a model of the hub, with their text.
fn of_hub_models() -> Vec<(PathBuf, String, Experiment)> {
    let entries = fs::read_dir(repository().join("experiments")).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    let read = files.into_iter().map(|path| {
        let experiment = Experiment::read(&path).unwrap_or_else(|error| panic!("{error}"));
        (path.clone(), fs::read_to_string(path).unwrap(), experiment)
    });
    read.filter(|(_, _, experiment)| !hub_ids(experiment).is_empty()).collect()
}

fn hub_ids(experiment: &Experiment) -> Vec<String> {
    let id = |source: &ModelSource| match source {
        ModelSource::Hub { id, .. } => Some(id.clone()),
        _ => None,
    };
    experiment.models.iter().filter_map(|model| id(&model.source)).collect()
}

/// The hub's cache with the config.json of a checkpoint, as a download that has just begun leaves it.
fn put_config(cache: &Path, id: &str) {
    let name = id.rsplit('/').next().unwrap();
    let published = repository().join("models/tests/configs").join(format!("{name}.json"));
    let folder = cache.join("hub").join(format!("models--{}", id.replace('/', "--")));
    let commit = "0".repeat(40);
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::write(folder.join("refs/main"), &commit).unwrap();
    let snapshot = folder.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::copy(&published, snapshot.join("config.json"))
        .unwrap_or_else(|e| panic!("{}: {e}", published.display()));
}

#[test]
fn experiments_on_hub_models_plan_from_the_published_config() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("data/calibration")).unwrap();
    fs::write(place.path().join("data/calibration/c4.utf8"), "A page.\n").unwrap();
    let mut sizes: BTreeMap<&str, &str> = SIZES.into();
    let mut files = Vec::new();
    for (path, _, experiment) in of_hub_models() {
        let ids = hub_ids(&experiment);
        ids.iter().for_each(|id| put_config(place.path(), id));
        let output = Command::new(env!("CARGO_BIN_EXE_quantscope"))
            .args(["plan", path.to_str().unwrap(), "--offline", "--data", "data", "--results", "none"])
            .current_dir(place.path())
            .env("HF_HOME", place.path())
            .env_remove("HF_HUB_CACHE")
            .env_remove("QUANTSCOPE_DATA")
            .env_remove("QUANTSCOPE_MODELS")
            .output()
            .unwrap();
        let (stdout, stderr) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(0), "{}: {stderr}", path.display());
        for id in ids {
            let size =
                SIZES.iter().find(|(known, _)| *known == id).unwrap_or_else(|| panic!("the size of {id}")).1;
            let state = format!("config.json is here; {size} parameters: about ");
            let row = stdout.lines().find(|line| line.starts_with(&id) && line.contains(&state));
            assert!(row.is_some(), "{id}: {stdout}");
            for execution in ["resident", "streamed"] {
                let of =
                    |line: &&str| line.starts_with(&id) && line.contains(execution) && line.contains("iB");
                assert!(stdout.lines().any(|line| of(&line)), "{id}: {stdout}");
            }
            // Effective bits need the widths, which the name of a model does not say.
            assert!(stdout.contains("bits of") && stdout.contains(" activations"), "{stdout}");
            sizes.remove(id.as_str());
        }
        files.push(experiment.name);
    }
    assert_eq!(sizes, BTreeMap::new(), "no experiment names these");
    for name in ["llama2", "llama3", "mistral", "mixtral", "solar", "gemma", "qwen", "opt", "command-r"] {
        assert!(files.iter().any(|file| file == name), "experiments/{name}.toml: {files:?}");
    }
}

/// A config that no family reads is told by the plan, before anything is fetched.
#[test]
fn a_plan_says_that_a_described_model_cannot_be_run() {
    let place = tempfile::tempdir().unwrap();
    put_config(place.path(), "facebook/opt-350m");
    let text = crate::SMALL.replace("\"builtin/tiny-llama\"", "\"facebook/opt-350m\"");
    fs::write(place.path().join("x.toml"), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_quantscope"))
        .args(["plan", "x.toml", "--offline"])
        .current_dir(place.path())
        .env("HF_HOME", place.path())
        .env_remove("HF_HUB_CACHE")
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("config.json: `do_layer_norm_before` = false is not supported"), "{stdout}");
}

#[test]
fn anchors_say_how_they_are_known() {
    for (path, text, experiment) in of_hub_models() {
        for expectation in &experiment.expectations {
            let known = ["read: ", "read in ", "recalled, checked "];
            let source = &expectation.source;
            assert!(known.iter().any(|word| source.starts_with(word)), "{}: {source}", path.display());
        }
        let absent = experiment.expectations.is_empty();
        assert_eq!(absent, text.contains("# No anchor"), "{}: say why there is none", path.display());
    }
}

/// The parts of `results/published/2405.14428.toml` that anchors quote.
#[derive(Deserialize)]
struct Published {
    result: Vec<Row>,
    threshold: Vec<Threshold>,
}

#[derive(Deserialize)]
struct Row {
    model: String,
    host: String,
    cure: String,
    perplexity: f64,
    piqa: Option<f64>,
    lambada: Option<f64>,
    hellaswag: Option<f64>,
    winogrande: Option<f64>,
}

#[derive(Deserialize)]
struct Threshold {
    model: String,
    printed: f64,
}

fn published() -> Published {
    let path = repository().join("results/published/2405.14428.toml");
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// `meta-llama/Llama-2-7b-hf` is the table's Llama-2-7B, `meta-llama/Meta-Llama-3-8B` its Llama-3-8B.
fn named_in_table(id: &str, model: &str) -> bool {
    let name = id.rsplit('/').next().unwrap().to_lowercase();
    name.trim_start_matches("meta-").starts_with(&model.to_lowercase())
}

#[test]
fn anchors_of_the_first_paper_are_its_table() {
    let published = published();
    let mut compared = 0;
    for (path, _, experiment) in of_hub_models() {
        for e in experiment.expectations.iter().filter(|e| e.source.contains("2405.14428")) {
            let (host, cure) = match e.recipe.trim_end_matches("-7b").trim_end_matches("-13b") {
                "original" => ("original", "none"),
                "w8a8" => ("W8A8", "none"),
                "spikes-qfem" => ("W8A8", "QFeM"),
                "spikes-qfep" => ("W8A8", "QFeP"),
                "spikes-both" => ("W8A8", "both"),
                other => panic!("{}: {other}", path.display()),
            };
            let rows = published.result.iter();
            let mut rows = rows
                .filter(|row| named_in_table(&e.model, &row.model) && row.host == host && row.cure == cure);
            let row = rows.next().unwrap_or_else(|| panic!("{}, {} is not in the table", e.model, e.recipe));
            let value = match e.metric.split('/').next().unwrap() {
                "wikitext_tokens" => Some(row.perplexity),
                "piqa" => row.piqa.map(|x| x / 100.0),
                "lambada_openai" => row.lambada.map(|x| x / 100.0),
                "hellaswag" => row.hellaswag.map(|x| x / 100.0),
                "winogrande" => row.winogrande.map(|x| x / 100.0),
                other => panic!("{other} is not in the table"),
            };
            assert!((value.unwrap() - e.value).abs() < 1e-9, "{}, {}, {}", e.model, e.recipe, e.metric);
            compared += 1;
        }
        for recipe in &experiment.recipes {
            let Some(alpha) = recipe.steps.iter().find_map(|step| {
                serde_json::to_value(step)
                    .unwrap()
                    .get("alpha")
                    .filter(|_| step.method_name() == Some("qfem"))
                    .cloned()
            }) else {
                continue;
            };
            // A recipe of one size is excluded elsewhere by its ending.
            let sized = |id: &str| {
                !recipe.name.ends_with('b') || id.contains(recipe.name.rsplit('-').next().unwrap())
            };
            for id in hub_ids(&experiment).iter().filter(|id| sized(id)) {
                let printed = published.threshold.iter().find(|row| named_in_table(id, &row.model));
                let printed = printed.unwrap_or_else(|| panic!("no threshold of {id}")).printed;
                assert_eq!(alpha.as_f64(), Some(printed), "{}: {id}, {}", path.display(), recipe.name);
                compared += 1;
            }
        }
    }
    assert!(compared >= 30, "{compared}");
}
