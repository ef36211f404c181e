//! Tables of accuracy from hand-made items in a store: intervals, paired differences, adjusted p-values, and what is said
//! where readings are not of the same items. Expected numbers were computed by hand from the published formulas.

#![allow(clippy::unwrap_used)]

use std::fs;

use harness::record::items::ItemRow;
use harness::record::store::Store;
use harness::record::{
    CellResult, Contents, Execution, Manifest, ManifestCell, MeasurementResult, ModelIdentity, Reading,
    SCHEMA, measurement_key,
};
use harness::report;
use harness::report::sections::accuracy::Accuracy;
use harness::report::sections::{self, Section};
use harness::report::table::{Cell, Table};
use serde_json::{Value, json};

const ACC: &str = "piqa/lm-eval-0.4.13/v1.0/acc/shots=0/bos=tokenizer/items=uniform";
const NORM: &str = "piqa/lm-eval-0.4.13/v1.0/acc_norm/shots=0/bos=tokenizer/items=uniform";
const BYTES: &str = "piqa/lm-eval-0.4.13/v1.0/acc_bytes/shots=0/bos=tokenizer/items=uniform";
const TARGET: &str = "lambada_openai/lm-eval-0.4.13/v1.0/acc/shots=0/bos=tokenizer/items=uniform";
const PERPLEXITY: &str = "lambada_openai/lm-eval-0.4.13/v1.0/perplexity/shots=0/bos=tokenizer/items=uniform";

/// A store in a folder of its own.
struct Records {
    folder: tempfile::TempDir,
    store: Store,
    manifest: Manifest,
}

impl Records {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let manifest = Manifest { schema: SCHEMA, experiment: "tasks".into(), ..Manifest::default() };
        Records { folder, store, manifest }
    }

    /// A cell with its items and one measurement for each metric, all of the same value.
    fn measured(&mut self, recipe: &str, steps: Vec<Value>, metrics: &[&str], rows: &[ItemRow], value: f64) {
        let id = format!("tiny-{}", recipe.replace('+', "-"));
        let model = ModelIdentity {
            name: "tiny".into(),
            origin: "builtin".into(),
            family: "llama".into(),
            parameters: 1,
            weights: "w".into(),
            tokenizer: "t".into(),
        };
        let cell = CellResult {
            id: id.clone(),
            model,
            steps,
            calibration: None,
            seed: None,
            fitted: Default::default(),
            statistics: Vec::new(),
            effective_bits: None,
        };
        self.store.publish_cell(cell, Execution::default()).unwrap();
        let hash = self.store.publish_items(&id, metrics[0], 1, rows).unwrap();
        for metric in metrics {
            let detail = json!({ "items-file": measurement_key(metrics[0], 1), "items-file-hash": hash });
            let result = MeasurementResult {
                cell: id.clone(),
                reading: if recipe == "original" { Reading::Original } else { Reading::Quantized },
                metric: (*metric).into(),
                version: 1,
                value,
                stderr: None,
                n: rows.len() as u64,
                detail: detail.as_object().unwrap().clone(),
            };
            self.store.publish_measurement(result, Execution::default()).unwrap();
        }
        self.manifest.cells.push(ManifestCell {
            id,
            model: "tiny".into(),
            recipe: recipe.into(),
            calibration: None,
            seed: None,
            metrics: metrics.iter().map(|metric| (*metric).into()).collect(),
        });
        self.store.write_manifest(&self.manifest).unwrap();
    }

    fn contents(&self) -> Contents {
        self.store.contents().unwrap()
    }

    fn tables(&self) -> Vec<Table> {
        Accuracy.tables(&self.contents())
    }
}

fn row(item: usize, request: u32) -> ItemRow {
    ItemRow {
        item: item.to_string(),
        part: None,
        document: format!("document {item}"),
        request,
        request_hash: format!("request {item} {request}"),
        log_likelihood: -1.0,
        greedy: false,
        tokens: 1,
        characters: 1,
        bytes: 1,
        words: None,
        gold: None,
        chosen: None,
        chosen_per_character: None,
        chosen_per_byte: None,
        truncated: 0,
        merged: false,
    }
}

/// Items of three choices whose right one is 0. `choices` has the choice per character of each; the plain one is always 0.
fn choices(choices: &[u32]) -> Vec<ItemRow> {
    let of = |(item, chosen): (usize, &u32)| {
        let chosen = *chosen;
        (0..3).map(move |request| ItemRow {
            gold: Some(0),
            chosen: Some(0),
            chosen_per_character: Some(chosen),
            chosen_per_byte: Some(chosen),
            ..row(item, request)
        })
    };
    choices.iter().enumerate().flat_map(of).collect()
}

/// `right` zeros, then `first` ones, then `second` twos.
fn decided(right: usize, first: usize, second: usize) -> Vec<u32> {
    [vec![0; right], vec![1; first], vec![2; second]].concat()
}

fn cell<'a>(table: &'a Table, recipe: &str, column: &str) -> &'a Cell {
    let row = table.rows.iter().find(|row| row[0] == Cell::text(recipe)).unwrap();
    let place = table.columns.iter().position(|c| c.name == column);
    &row[place.unwrap_or_else(|| panic!("no column {column}: {:?}", table.columns))]
}

fn number(table: &Table, recipe: &str, column: &str) -> f64 {
    match cell(table, recipe, column) {
        Cell::Number { value, .. } => *value,
        Cell::Count(count) => *count as f64,
        other => panic!("{recipe}, {column}: {other:?}"),
    }
}

#[track_caller]
fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

/// 20 items. The original has the first 10 right; `worse` loses 7 of them and gains 1; `other` changes one wrong answer
/// for another; `same` is the original once more.
fn example() -> Records {
    let mut records = Records::new();
    let metrics = [NORM, BYTES];
    let original = decided(10, 10, 0);
    let mut worse = original.clone();
    worse[..7].fill(2);
    worse[19] = 0;
    let mut other = original.clone();
    other[10] = 2;
    records.measured("original", vec![], &metrics, &choices(&original), 0.5);
    for (recipe, decisions, value) in
        [("worse", &worse, 0.2), ("other", &other, 0.5), ("same", &original, 0.5)]
    {
        let steps = vec![json!({ "step": "weights", "name": recipe })];
        records.measured(recipe, steps, &metrics, &choices(decisions), value);
    }
    records
}

#[test]
fn intervals_differences_and_adjusted_p_values_are_those_computed_by_hand() {
    let tables = example().tables();
    assert_eq!(tables.len(), 1);
    let table = &tables[0];
    assert!(table.caption.contains("20 items, differences of acc_norm"), "{}", table.caption);

    // √(½ · ½ / 19); Wilson of 10 of 20 with z = 1.959964: z² = 3.841459, half = z √(1/80 + z²/1600) / (1 + z²/20).
    assert_eq!(cell(table, "original", "acc_norm 95 %"), &Cell::text("0.2993 to 0.7007"));
    let Cell::Number { value, stderr, .. } = cell(table, "original", "acc_norm") else { panic!() };
    close(*value, 0.5);
    close(stderr.unwrap(), 0.114_707_866_935_281_1);
    assert_eq!(cell(table, "original", "p"), &Cell::Missing);

    // 7 lost, 1 gained: 2 (1 + 8) / 2⁸.
    let of = |column: &str| number(table, "worse", column);
    assert_eq!((of("lost"), of("gained"), of("all flips")), (7.0, 1.0, 8.0));
    close(of("diff points"), -30.0);
    close(of("p"), 0.070_312_5);
    // The other two comparisons have p = 1: three times the smallest by both ways.
    close(of("p Holm"), 0.210_937_5);
    close(of("p BH"), 0.210_937_5);
    // (1.959964 + 0.841621) √(0.4 / 20)
    assert!((of("MDE points") - 39.62).abs() < 0.005, "{}", of("MDE points"));

    // One wrong answer for another: no flip, but a change.
    let of = |column: &str| number(table, "other", column);
    assert_eq!((of("lost"), of("gained"), of("all flips"), of("p")), (0.0, 0.0, 1.0, 1.0));
}

#[test]
fn a_model_compared_with_itself_has_no_flips_and_p_one() {
    let tables = example().tables();
    for column in ["lost", "gained", "all flips", "diff points"] {
        assert_eq!(number(&tables[0], "same", column), 0.0, "{column}");
    }
    for column in ["p", "p Holm", "p BH"] {
        assert_eq!(number(&tables[0], "same", column), 1.0, "{column}");
    }
    assert_eq!(cell(&tables[0], "same", "MDE points"), &Cell::Missing);
    assert!(!tables[0].notes.iter().any(|note| note.contains("`same`")), "{:?}", tables[0].notes);
}

#[test]
fn both_accuracies_have_columns_and_targets_count_by_greedy_decoding() {
    let mut records = Records::new();
    records.measured("original", vec![], &[ACC], &choices(&[0, 1, 2, 0]), 1.0);
    let table = &records.tables()[0];
    close(number(table, "original", "acc"), 1.0);
    assert!(table.caption.contains("differences of acc to"), "{}", table.caption);
    assert!(table.columns.iter().all(|column| !column.name.starts_with("acc_norm")));

    let mut records = Records::new();
    let targets = |greedy: [bool; 4]| -> Vec<ItemRow> {
        greedy.iter().enumerate().map(|(i, greedy)| ItemRow { greedy: *greedy, ..row(i, 0) }).collect()
    };
    let metrics = [PERPLEXITY, TARGET];
    records.measured("original", vec![], &metrics, &targets([true, true, false, false]), 0.5);
    let steps = vec![json!({ "step": "weights" })];
    records.measured("w4", steps, &metrics, &targets([false, true, true, true]), 0.75);
    let table = &records.tables()[0];
    close(number(table, "w4", "acc"), 0.75);
    assert_eq!((number(table, "w4", "lost"), number(table, "w4", "gained")), (1.0, 2.0));

    // Accuracies have this one table in a report, perplexity keeps its own.
    let captions: Vec<String> =
        sections::tables(&records.contents()).into_iter().map(|t| t.caption).collect();
    assert_eq!(captions.len(), 2, "{captions:?}");
    assert!(captions[1].contains("perplexity"), "{captions:?}");
}

#[test]
fn readings_of_other_items_are_not_compared_and_the_table_says_why() {
    let mut records = example();
    let steps = |name: &str| vec![json!({ "step": "weights", "name": name })];
    let mut rows = choices(&decided(10, 10, 0));
    records.measured("fewer", steps("fewer"), &[NORM], &rows[..57], 10.0 / 19.0);
    rows[30].document = "another".into();
    records.measured("text", steps("text"), &[NORM], &rows, 0.5);
    rows = choices(&decided(10, 10, 0));
    rows[5].request_hash = "another".into();
    records.measured("request", steps("request"), &[NORM], &rows, 0.5);
    rows = choices(&decided(10, 10, 0));
    rows.rotate_left(3);
    records.measured("order", steps("order"), &[NORM], &rows, 0.5);
    let table = &records.tables()[0];
    for (recipe, words) in [
        ("fewer", "`fewer` is not compared: it has 19 items, the original has 20"),
        ("text", "`text` is not compared: it has another text of item `10` than the original"),
        ("request", "`request` is not compared: it has other requests of item `1` than the original"),
        ("order", "`order` is not compared: it has item `1` where the original has `0`"),
    ] {
        assert!(table.notes.iter().any(|note| note == words), "{words}: {:?}", table.notes);
        assert_eq!(cell(table, recipe, "p"), &Cell::Missing);
        assert_eq!(cell(table, recipe, "diff points"), &Cell::Missing);
    }
    assert_eq!(number(table, "fewer", "items"), 19.0);
    // What is not compared does not enter the family.
    close(number(table, "worse", "p Holm"), 0.210_937_5);
}

#[test]
fn a_prefix_is_also_compared_with_the_original_behind_it() {
    let mut records = Records::new();
    let prefix = json!({ "step": "prefix", "method": "bos" });
    let weights = json!({ "step": "weights" });
    records.measured("original", vec![], &[NORM], &choices(&[0, 0, 1, 1]), 0.5);
    records.measured("original+prefix", vec![prefix.clone()], &[NORM], &choices(&[0, 0, 0, 1]), 0.75);
    records.measured("w4+prefix", vec![prefix, weights], &[NORM], &choices(&[0, 0, 2, 2]), 0.5);
    let tables = records.tables();
    assert_eq!(tables.len(), 2);
    let changes = |table: &Table| ["lost", "gained", "all flips"].map(|c| number(table, "w4+prefix", c));
    assert_eq!(changes(&tables[0]), [0.0, 0.0, 2.0]);
    assert_eq!(changes(&tables[1]), [1.0, 0.0, 2.0]);
    assert_eq!(tables[1].rows.len(), 1);
    assert_eq!(cell(&tables[1], "w4+prefix", "compared with"), &Cell::text("original+prefix"));
}

#[test]
fn a_damaged_file_is_named_and_a_measured_value_stands_alone() {
    let records = example();
    let items = records.folder.path().join("cells/tiny-worse/items");
    let path = fs::read_dir(items).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let table = &records.tables()[0];
    assert_eq!(number(table, "worse", "acc_norm"), 0.2);
    assert_eq!(cell(table, "worse", "p"), &Cell::Missing);
    let note = table.notes.iter().find(|note| note.starts_with("`worse` is not compared")).unwrap();
    assert!(
        note.contains("items/piqa_lm-eval") && !note.contains(&records.folder.path().display().to_string())
    );

    let mut wrong = Records::new();
    wrong.measured("original", vec![], &[NORM], &choices(&[0, 1]), 0.75);
    let table = &wrong.tables()[0];
    assert_eq!(number(table, "original", "acc_norm"), 0.5);
    let words = "`original` was measured as 0.75, but its items give 0.5, which is shown";
    assert!(table.notes.iter().any(|note| note == words), "{:?}", table.notes);
}

#[test]
fn the_same_records_give_the_same_report() {
    let records = example();
    assert_eq!(records.tables(), records.tables());
    let written = report::write(records.folder.path()).unwrap();
    let read = || written.files.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    let bytes = read();
    report::write(records.folder.path()).unwrap();
    assert_eq!(bytes, read());
    assert_eq!(report::check(records.folder.path()).unwrap(), []);
    let readme = fs::read_to_string(records.folder.path().join("README.md")).unwrap();
    assert!(readme.contains("| 0.5000 ± 0.1147 | 0.2993 to 0.7007 |"), "{readme}");
    // Every accuracy stays in the summary, acc_bytes, too.
    assert_eq!(readme.matches("**Accuracy").count(), 1);
    assert!(!readme.contains("acc_bytes"), "{readme}");
    assert!(fs::read_to_string(records.folder.path().join("summary.csv")).unwrap().contains("acc_bytes"));
}
