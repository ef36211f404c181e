//! The store as processes see it: crashes between any two file operations, full disks, bad files, and races.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use harness::record::store::{ClaimOutcome, Store, StoreError};
use harness::record::{
    CellResult, Execution, Failure, Manifest, MeasurementResult, Reading, SCHEMA, measurement_key,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

#[path = "store/faults.rs"]
mod faults;
#[path = "store/processes.rs"]
mod processes;

use faults::{Fault, Faulty};

fn cell(id: &str) -> CellResult {
    let model = serde_json::from_value(json!({
        "name": "builtin/tiny-llama", "origin": "builtin", "family": "llama", "parameters": 1_000_000,
        "weights": "aa", "tokenizer": "bb",
    }));
    CellResult {
        id: id.into(),
        model: model.unwrap(),
        steps: vec![json!({ "step": "weights", "bits": 8, "granularity": "channel" })],
        calibration: None,
        seed: Some(3),
        fitted: Map::from_iter([("0.weights".to_string(), json!({ "mse": 0.1f32, "n": 12 }))]),
        statistics: Vec::new(),
        effective_bits: None,
    }
}

fn measured(cell: &str, metric: &str, value: f64) -> MeasurementResult {
    MeasurementResult {
        cell: cell.into(),
        reading: Reading::Quantized,
        metric: metric.into(),
        version: 1,
        value,
        stderr: Some(0.1),
        n: 1000,
        detail: Map::from_iter([("windows".to_string(), json!([1.5, 2.25]))]),
    }
}

fn failure(cell: &str, metric: Option<&str>) -> Failure {
    Failure {
        schema: SCHEMA,
        cell: cell.into(),
        metric: metric.map(Into::into),
        stage: "evaluate".into(),
        message: "the perplexity is NaN".into(),
        cure: "use more bits".into(),
        execution: execution(),
    }
}

/// The same every time, so that whole files can be compared.
fn execution() -> Execution {
    Execution { version: "0".into(), seconds: 1.5, ..Execution::default() }
}

fn manifest() -> Manifest {
    Manifest { schema: SCHEMA, experiment: "test".into(), ..Manifest::default() }
}

/// Every file of a folder with its bytes, but for what is left of claims and unfinished work.
fn tree(dir: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(dir: &Path, root: &Path, out: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, out);
            } else {
                let bytes = fs::read(&path).unwrap();
                out.insert(
                    path.strip_prefix(root).unwrap().into(),
                    String::from_utf8_lossy(&bytes).into_owned(),
                );
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    out
}

/// A sweep in small: computes what is missing, as the real one does.
fn sweep(dir: &Path, files: Faulty) -> Result<(), StoreError> {
    let store = Store::open_with(dir, Arc::new(files))?;
    store.sweep_tmp()?;
    store.write_manifest(&manifest())?;
    for id in ["one", "two"] {
        if store.cell(id)?.is_none() {
            let _claim = store.claim(id, None)?;
            if id == "two" {
                store.record_failure(failure(id, None))?;
            }
            store.publish_cell(cell(id), execution())?;
        }
        for (metric, value) in [("perplexity/a", 10.5), ("perplexity/b", 1.0 / 3.0)] {
            if store.measurement(id, metric, 1)?.is_none() {
                let _claim = store.claim(id, Some(metric))?;
                store.publish_measurement(measured(id, metric, value), execution())?;
            }
        }
    }
    store.record_failure(failure("three", Some("perplexity/a")))
}

#[test]
fn after_a_crash_at_any_operation_the_store_is_valid_and_a_rerun_completes_it() {
    let undisturbed = tempfile::tempdir().unwrap();
    let counter = Faulty::new(Fault::None);
    sweep(undisturbed.path(), counter.clone()).unwrap();
    let expected = tree(undisturbed.path());
    assert_eq!(expected.len(), 1 + 1 + 2 + 4 + 1, "{:?}", expected.keys());
    let operations = counter.count();
    assert!(operations > 50, "only {operations} operations: the faults are not where the work is");

    for fault in [Fault::Crash, Fault::PowerCut, Fault::DiskFull] {
        for at in 0..operations {
            let dir = tempfile::tempdir().unwrap();
            let faulty = Faulty::new(fault.clone()).at(at);
            let result = sweep(dir.path(), faulty.clone());
            assert!(faulty.struck(), "{fault:?} at {at}");
            // A fault while tidying up is no error: a later sweep of `tmp/` tidies up.
            if let Err(error) = result
                && matches!(fault, Fault::DiskFull)
            {
                let message = error.to_string();
                assert!(message.contains("the disk is full. Free some space"), "{message}");
                assert!(message.contains(&*dir.path().to_string_lossy()), "{message}");
            }

            let reader = Store::open_read_only(dir.path());
            let found = reader.and_then(|store| store.contents());
            match found {
                Err(StoreError::Missing { .. }) => assert!(!dir.path().join("store.json").exists()),
                found => drop(found.unwrap_or_else(|e| panic!("{fault:?} at {at} of {operations}: {e}"))),
            }
            for (path, text) in tree(dir.path()) {
                let published = !path.starts_with("tmp") && !path.starts_with("claims");
                assert!(
                    !published || expected.get(&path) == Some(&text) || path.starts_with("failures"),
                    "{path:?}"
                );
            }

            sweep(dir.path(), Faulty::new(Fault::None)).unwrap_or_else(|e| panic!("{fault:?} at {at}: {e}"));
            let mut after = tree(dir.path());
            // An abandoned claim of a cell that was finished is nobody's business any more.
            after.retain(|path, _| !path.starts_with("claims"));
            assert_eq!(after, expected, "{fault:?} at {at} of {operations}");
        }
    }
}

#[test]
fn bytes_are_pretty_deterministic_and_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.publish_cell(cell("one"), execution()).unwrap();
    store.publish_measurement(measured("one", "perplexity/a", 0.1 + 0.2), execution()).unwrap();
    let path = dir.path().join(format!("cells/one/measurements/{}.json", measurement_key("perplexity/a", 1)));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("{\n  \"schema\": 1,\n  \"result\": {\n    \"cell\": \"one\",\n"), "{text}");
    assert!(text.contains("\"value\": 0.30000000000000004,") && text.ends_with("}\n"), "{text}");

    // The hash, by other means: compact JSON with keys sorted by a BTreeMap.
    let value: Value = serde_json::from_str(&text).unwrap();
    let sorted: BTreeMap<String, Value> = serde_json::from_value(value["result"].clone()).unwrap();
    let hash = blake3::hash(serde_json::to_string(&sorted).unwrap().as_bytes()).to_hex();
    assert_eq!(value["result_hash"], json!(hash.as_str()));
}

#[test]
fn a_result_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.publish_cell(cell("one"), execution()).unwrap();
    store.publish_measurement(measured("one", "m", 1.0), execution()).unwrap();
    let before = tree(dir.path());

    let later = Execution { seconds: 99.0, ..execution() };
    store.publish_cell(cell("one"), later.clone()).unwrap();
    store.publish_measurement(measured("one", "m", 1.0), later.clone()).unwrap();
    assert_eq!(tree(dir.path()), before);

    let error = store.publish_measurement(measured("one", "m", 2.0), later.clone()).unwrap_err();
    let StoreError::Conflict { stored, computed, .. } = &error else { panic!("{error}") };
    assert!(error.to_string().contains(stored.as_str()) && error.to_string().contains(computed.as_str()));
    let other = CellResult { seed: Some(4), ..cell("one") };
    assert!(matches!(store.publish_cell(other, later), Err(StoreError::Conflict { .. })));
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn what_json_cannot_hold_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.publish_cell(cell("one"), execution()).unwrap();
    let before = tree(dir.path());
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let error = store.publish_measurement(measured("one", "m", bad), execution()).unwrap_err();
        assert!(error.to_string().contains(&format!("the value of `m` is {bad}")), "{error}");
        let in_error = MeasurementResult { stderr: Some(bad), ..measured("one", "m", 1.0) };
        let error = store.publish_measurement(in_error, execution()).unwrap_err();
        assert!(error.to_string().contains("the standard error of `m`"), "{error}");
        let in_time = Execution { seconds: bad, ..execution() };
        let error = store.publish_measurement(measured("one", "m", 1.0), in_time.clone()).unwrap_err();
        assert!(matches!(error, StoreError::NotFinite { .. }), "{error}");
        assert!(matches!(store.publish_cell(cell("two"), in_time), Err(StoreError::NotFinite { .. })));
    }
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn a_measurement_needs_its_cell_and_an_id_is_a_file_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let early = store.publish_measurement(measured("one", "m", 1.0), execution());
    assert!(matches!(early, Err(StoreError::NoSuchCell { .. })));
    for id in ["", "..", "a/b", "a.b", &"x".repeat(65)] {
        assert!(matches!(store.publish_cell(cell(id), execution()), Err(StoreError::BadId { .. })), "{id}");
        assert!(matches!(store.claim(id, None), Err(StoreError::BadId { .. })), "{id}");
    }
}

#[test]
fn a_damaged_file_is_reported_and_deleting_it_is_the_cure() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    sweep(dir.path(), Faulty::new(Fault::None)).unwrap();
    let whole = tree(dir.path());
    let published = |path: &&PathBuf| path.starts_with("cells") || path.ends_with("manifest.json");
    let mut cases = 0;
    for path in whole.keys().filter(published) {
        let text = &whole[path];
        let damages = [
            ("it is empty", String::new()),
            ("no valid JSON", text[..text.len() / 2].to_string()),
            ("result_hash", text.replacen("\"perplexity/", "\"perplexity-edited/", 1)),
            ("result_hash", text.replacen("1000", "1001", 1)),
            ("newer version", text.replacen("\"schema\": 1", "\"schema\": 2", 1)),
            ("has no `schema`", text.replacen("\"schema\"", "\"scheme\"", 1)),
        ];
        for (expected, damaged) in damages.iter().filter(|(_, damaged)| damaged != text) {
            fs::write(dir.path().join(path), damaged).unwrap();
            let message = store.contents().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(message.contains(&*dir.path().join(path).to_string_lossy()), "{message}");
            let cure =
                if *expected == "newer version" { "Update this program" } else { "Delete it and run again" };
            assert!(message.contains(cure), "{message}");
            cases += 1;
        }
        fs::remove_file(dir.path().join(path)).unwrap();
        sweep(dir.path(), Faulty::new(Fault::None)).unwrap();
        assert_eq!(tree(dir.path()), whole, "after deleting {path:?}");
    }
    assert!(cases > 25, "{cases}");
}

#[test]
fn a_record_in_the_place_of_another_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for id in ["one", "two"] {
        store.publish_cell(cell(id), execution()).unwrap();
    }
    store.publish_measurement(measured("one", "m", 1.0), execution()).unwrap();
    let file = format!("measurements/{}.json", measurement_key("m", 1));
    fs::copy(dir.path().join("cells/one").join(&file), dir.path().join("cells/two").join(&file)).unwrap();
    let message = store.measurement("two", "m", 1).unwrap_err().to_string();
    assert!(message.contains("of cell one"), "{message}");
    fs::copy(dir.path().join("cells/one/cell.json"), dir.path().join("cells/two/cell.json")).unwrap();
    let message = store.cell("two").unwrap_err().to_string();
    assert!(message.contains("it is the cell one"), "{message}");
}

#[test]
fn opening_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let message = Store::open(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("`{}` is a file", file.display())), "{message}");
        assert!(message.contains("another results folder"), "{message}");
    }
    let message = Store::open_read_only(&dir.path().join("none")).unwrap_err().to_string();
    assert!(message.contains("none`. Run the sweep first"), "{message}");

    let store = dir.path().join("store");
    Store::open(&store).unwrap();
    Store::open(&store).unwrap();
    let reader = Store::open_read_only(&store).unwrap();
    assert!(matches!(reader.publish_cell(cell("one"), execution()), Err(StoreError::ReadOnly { .. })));
    assert!(matches!(reader.claim("one", None), Err(StoreError::ReadOnly { .. })));

    fs::write(store.join("store.json"), "{ \"schema\": 99 }").unwrap();
    for message in
        [Store::open(&store).unwrap_err(), Store::open_read_only(&store).unwrap_err()].map(|e| e.to_string())
    {
        assert!(message.contains("store.json` was written by a newer version"), "{message}");
        assert!(message.contains("schema 99") && message.contains("Update this program"), "{message}");
    }

    for at in 0..3 {
        let denied = Faulty::new(Fault::Denied).at(at);
        let message = Store::open_with(&dir.path().join("denied"), Arc::new(denied)).unwrap_err().to_string();
        assert!(message.contains("denied") && message.contains("Make it writable"), "{message}");
    }
}

#[test]
fn failures_are_replaced_and_end_with_success() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let worse = Failure { message: "out of memory".into(), ..failure("one", None) };
    store.record_failure(failure("one", None)).unwrap();
    store.record_failure(worse.clone()).unwrap();
    store.record_failure(failure("one", Some("m"))).unwrap();
    store.record_failure(failure("other", None)).unwrap();
    assert_eq!(store.failure("one", None).unwrap(), Some(worse));
    assert_eq!(store.contents().unwrap().failures.len(), 3);

    store.publish_cell(cell("one"), execution()).unwrap();
    assert_eq!(store.failure("one", None).unwrap(), None);
    assert!(store.failure("one", Some("m")).unwrap().is_some());
    store.publish_measurement(measured("one", "m", 1.0), execution()).unwrap();
    assert_eq!(store.failure("one", Some("m")).unwrap(), None);
    store.clear_failure("other", None).unwrap();
    store.clear_failure("other", None).unwrap();
    assert_eq!(store.contents().unwrap().failures, []);
}

#[test]
fn contents_are_sorted_and_leave_out_what_is_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for id in ["b", "a", "c"] {
        store.publish_cell(cell(id), execution()).unwrap();
        for metric in ["z", "perplexity/10", "perplexity/9"] {
            store.publish_measurement(measured(id, metric, 1.0), execution()).unwrap();
        }
    }
    let claim = store.claim("d", None).unwrap();
    fs::create_dir_all(dir.path().join("tmp/elsewhere-1-0")).unwrap();
    fs::write(dir.path().join("tmp/elsewhere-1-0/cell.json"), "half a ce").unwrap();
    fs::write(dir.path().join("cells/.DS_Store"), "").unwrap();
    let contents = store.contents().unwrap();
    assert_eq!(contents.cells.iter().map(|c| c.result.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    let metrics: Vec<_> = contents.measurements.iter().map(|m| m.result.metric.as_str()).collect();
    assert_eq!(metrics, ["perplexity/10", "perplexity/9", "z"].repeat(3));
    assert_eq!(contents.manifest, Manifest::default());
    drop(claim);
}

#[test]
fn claims_are_held_until_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let again = Store::open(dir.path()).unwrap();
    let ClaimOutcome::Claimed(claim) = store.claim("one", Some("m")).unwrap() else { panic!("it is free") };
    let ClaimOutcome::HeldBy(holder) = again.claim("one", Some("m")).unwrap() else { panic!("it is held") };
    assert_eq!(holder.pid, std::process::id());
    assert!(holder.since.ends_with('Z'), "{}", holder.since);
    assert!(matches!(again.claim("one", None).unwrap(), ClaimOutcome::Claimed(_)));
    drop(claim);
    assert!(matches!(again.claim("one", Some("m")).unwrap(), ClaimOutcome::Claimed(_)));
    assert_eq!(fs::read_dir(dir.path().join("claims")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |x| x.is_finite())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_published_is_read_back(
        value in finite(), stderr in proptest::option::of(finite()), n in any::<u64>(), metric in ".{0,300}",
        version in any::<u32>(), seconds in finite(), detail in proptest::collection::vec((".*", finite()), 0..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.publish_cell(cell("one"), execution()).unwrap();
        let detail = detail.into_iter().map(|(key, x)| (key, json!(x))).collect();
        let measured = MeasurementResult { stderr, n, version, detail, ..measured("one", &metric, value) };
        let execution = Execution { seconds, ..execution() };
        store.publish_measurement(measured.clone(), execution.clone()).unwrap();
        let back = Store::open_read_only(dir.path()).unwrap().measurement("one", &metric, version).unwrap().unwrap();
        prop_assert_eq!(back.result.value.to_bits(), measured.value.to_bits());
        prop_assert_eq!(back.result, measured);
        prop_assert_eq!(back.execution, execution);
    }
}
