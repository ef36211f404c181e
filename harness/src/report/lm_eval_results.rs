//! A cell's task scores as lm-evaluation-harness 0.4.13 writes its results: the JSON that its users' tables, trackers and
//! leaderboards read.
//!
//! Only metrics that are computed as lm-eval computes them are exported: those whose id says so. What a run of lm-eval
//! knows and a record does not (its git hash, hashes of its task files, a chat template) is `null`. Of parts of a task
//! (MMLU's subjects) the values are there and the standard errors are not: `"N/A"`, as lm-eval writes it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::record::{Contents, ManifestCell, MeasurementResult};
use crate::report::rows::{self, Outcome};

/// The program whose protocol and file format these are.
pub const LM_EVAL: &str = "lm-eval-0.4.13";

/// One cell's file.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// A file name without extension: model, recipe, calibration set and seed.
    pub name: String,
    /// The document.
    pub document: Value,
}

/// What a metric id of lm-eval's protocol says.
struct Id<'a> {
    task: &'a str,
    version: &'a str,
    metric: &'a str,
    shots: u64,
    rest: BTreeMap<&'a str, &'a str>,
}

impl<'a> Id<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let segments: Vec<&str> = id.split('/').collect();
        let [task, protocol, version, metric, rest @ ..] = &segments[..] else { return None };
        let rest: BTreeMap<&str, &str> = rest.iter().filter_map(|segment| segment.split_once('=')).collect();
        let shots = rest.get("shots").and_then(|shots| shots.parse().ok())?;
        (*protocol == LM_EVAL).then_some(Self {
            task,
            version: version.trim_start_matches('v'),
            metric,
            shots,
            rest,
        })
    }

    /// What decides the number besides task, version, metric and model.
    fn protocol(&self) -> Vec<(&'a str, &'a str)> {
        self.rest.iter().map(|(key, value)| (*key, *value)).collect()
    }
}

/// The files of every cell that `takes` a model and a recipe and has such scores. A task that was measured under several
/// protocols stands under its first: lm-eval knows one task by one name.
pub fn results(contents: &Contents, takes: &dyn Fn(&ManifestCell) -> bool) -> Vec<Results> {
    let rows = rows::rows(contents);
    let of_cell = |cell: &ManifestCell| {
        let mut scored: Vec<(Id<'_>, &MeasurementResult)> = Vec::new();
        for row in rows.iter().filter(|row| row.last && std::ptr::eq(row.cell, cell)) {
            let Outcome::Measured(measured) = row.outcome else { continue };
            let Some(id) = Id::parse(&measured.metric) else { continue };
            let first = scored.iter().find(|(known, _)| known.task == id.task);
            if first.is_none_or(|(known, _)| known.protocol() == id.protocol()) {
                scored.push((id, measured));
            }
        }
        let document = (!scored.is_empty()).then(|| document(contents, cell, &scored))?;
        Some(Results { name: name(cell), document })
    };
    contents.manifest.cells.iter().filter(|cell| takes(cell)).filter_map(of_cell).collect()
}

fn name(cell: &ManifestCell) -> String {
    let calibration = cell.calibration.as_ref().map(|name| format!("_{name}")).unwrap_or_default();
    let seed = cell.seed.map(|seed| format!("_seed-{seed}")).unwrap_or_default();
    let name = format!("results_{}_{}{calibration}{seed}", cell.model, cell.recipe);
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    name.chars().map(safe).collect()
}

fn document(contents: &Contents, cell: &ManifestCell, scored: &[(Id<'_>, &MeasurementResult)]) -> Value {
    let mut results: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut subtasks: BTreeMap<String, Value> = BTreeMap::new();
    let mut about: [BTreeMap<String, Value>; 5] = Default::default();
    let [configs, versions, shots, better, samples] = &mut about;
    for (id, measured) in scored {
        let (task, n) = (id.task.to_owned(), items(measured));
        let stderr = measured.stderr.map_or_else(|| json!("N/A"), Value::from);
        put(results.entry(task.clone()).or_default(), &task, n, id.metric, measured.value, stderr);
        if let Some(parts) = measured.detail.get("parts").and_then(Value::as_object) {
            let names: Vec<String> = parts.keys().map(|part| format!("{task}_{part}")).collect();
            for (name, value) in names.iter().zip(parts.values()) {
                let part = results.entry(name.clone()).or_default();
                put(part, name, None, id.metric, value.as_f64().unwrap_or(f64::NAN), json!("N/A"));
            }
            subtasks.insert(task.clone(), json!(names));
        }
        configs.entry(task.clone()).or_insert_with(|| config(id, measured));
        versions.insert(task.clone(), version(id.version));
        shots.insert(task.clone(), id.shots.into());
        let higher = id.metric.starts_with("acc");
        let known = better.entry(task.clone()).or_insert_with(|| json!({}));
        known[id.metric] = higher.into();
        samples.insert(task.clone(), json!({ "original": n, "effective": n }));
    }
    let record = contents.cells.iter().find(|record| record.result.id == cell.id);
    let limit =
        scored.iter().find_map(|(id, _)| id.rest.get("limit")).and_then(|limit| limit.parse::<f64>().ok());
    json!({
        "results": results,
        "group_subtasks": subtasks,
        "configs": configs,
        "versions": versions,
        "n-shot": shots,
        "higher_is_better": better,
        "n-samples": samples,
        "config": {
            "model": "quantscope",
            "model_args": {
                "pretrained": cell.model,
                "recipe": cell.recipe,
                "steps": record.map(|record| &record.result.steps),
                "calibration": cell.calibration,
                "seed": cell.seed,
                "weights": record.map(|record| &record.result.model.weights),
                "tokenizer": record.map(|record| &record.result.model.tokenizer),
                "dtype": "float32",
            },
            "batch_size": null,
            "batch_sizes": [],
            "device": null,
            "use_cache": null,
            "limit": limit,
            "bootstrap_iters": 0,
            "gen_kwargs": {},
            "random_seed": null,
            "numpy_seed": null,
            "torch_seed": null,
            "fewshot_seed": scored.iter().find_map(|(id, _)| id.rest.get("seed")).and_then(|seed| seed.parse::<u64>().ok()),
        },
        "git_hash": null,
        "date": null,
        "pretty_env_info": null,
        "transformers_version": null,
        "lm_eval_version": LM_EVAL.trim_start_matches("lm-eval-"),
        "upper_git_hash": null,
        "task_hashes": {},
        "model_source": "quantscope",
        "model_name": cell.model,
        "model_name_sanitized": cell.model.replace('/', "__"),
        "system_instruction": null,
        "system_instruction_sha": null,
        "fewshot_as_multiturn": null,
        "chat_template": null,
        "chat_template_sha": null,
        "total_evaluation_time_seconds": null,
    })
}

fn items(measured: &MeasurementResult) -> Option<u64> {
    measured.detail.get("items").and_then(Value::as_u64).or(Some(measured.n))
}

fn put(task: &mut Map<String, Value>, name: &str, n: Option<u64>, metric: &str, value: f64, stderr: Value) {
    task.insert("name".into(), name.into());
    task.insert("alias".into(), name.into());
    if let Some(n) = n {
        task.insert("sample_len".into(), n.into());
    }
    task.insert(format!("{metric},none"), value.into());
    task.insert(format!("{metric}_stderr,none"), stderr);
}

/// A number where it is one, as lm-eval has it.
fn version(text: &str) -> Value {
    text.parse::<f64>().map_or_else(|_| text.into(), Value::from)
}

fn config(id: &Id<'_>, measured: &MeasurementResult) -> Value {
    json!({
        "task": id.task,
        "num_fewshot": id.shots,
        "repeats": 1,
        "should_decontaminate": false,
        "metadata": {
            "version": version(id.version),
            "metric_id": measured.metric,
            "items_hash": measured.detail.get("items-hash"),
            "items_form": measured.detail.get("form"),
        },
    })
}
