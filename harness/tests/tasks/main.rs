//! Tasks against lm-evaluation-harness 0.4.13: requests as equal strings, metrics as equal numbers.
//!
//! The fixtures are made by `scripts/oracle/task_golden.py`, which runs the reference's own code on invented documents.
//! Data sets and further golden documents are looked for in `../shared` beside the repository; what is not there is
//! skipped, loudly.

#![allow(clippy::unwrap_used)]

mod encoding;
mod golden;
mod items;
mod python;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use harness::evaluate::items::{Amount, Item, from_objects};
use harness::evaluate::tasks::{self, Task};
use serde_json::{Map, Value};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn fixture(name: &str) -> Value {
    json(&fixtures().join(name))
}

/// A path of `../shared` if it is there; else a line that the test runner does not hold back.
fn shared(path: &str, test: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {} is not there", path.display());
    None
}

/// The task of a reference's name; a subject of MMLU is a part of `mmlu`.
fn task(name: &str) -> &'static dyn Task {
    let name = if name.starts_with("mmlu_") { "mmlu" } else { name };
    tasks::find(name).unwrap_or_else(|| panic!("no task {name}"))
}

fn objects(documents: &Value) -> Vec<Map<String, Value>> {
    documents.as_array().unwrap().iter().map(|document| document.as_object().unwrap().clone()).collect()
}

fn read(task: &dyn Task, documents: &Value, amount: Amount) -> Vec<Item> {
    let objects = objects(documents);
    from_objects(task, Path::new("golden"), &objects, amount).unwrap().items
}
