//! Calibration sets through the whole program: what may not depend on them, what is drawn, what is refused before any work,
//! and what a report makes of them.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use harness::data::corpus::DataOptions;
use harness::device::{self, Choice};
use harness::experiment::Experiment;
use harness::plan::Plan;
use harness::quantize::integer::Arithmetic;
use harness::record::store::Store;
use harness::report::calibrated::studies;
use harness::report::figures;
use harness::report::sections::Section;
use harness::report::sections::robustness::Robustness;
use harness::report::table::Cell;
use harness::run::interrupt::Interrupt;
use harness::run::{self, Event, ModelOptions, Observer, Summary};
use serde_json::Value;
use support::{Place, perplexity};

const STATIC: &str = r#"{ step = "weights", bits = 8 },
    { step = "activations", bits = 4, granularity = "tensor", observer = "max" }"#;
const SMOOTH: &str = r#"{ step = "smooth", method = "smoothquant" }, { step = "weights", bits = 4 },
    { step = "activations", bits = 8 }"#;
const DYNAMIC: &str =
    r#"{ step = "weights", bits = 8 }, { step = "activations", bits = 8, granularity = "token" }"#;
const RTN: &str = r#"{ step = "weights", bits = 4 }"#;

/// An experiment with these recipes, calibration blocks by name, and evaluations.
fn experiment(recipes: &[(&str, &str)], sets: &[(&str, &str)], evaluations: &[String]) -> String {
    let names = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    let mut text = format!(
        "question = \"What do calibration sets change?\"\nreference = \"own\"\n\n[sweep]\nmodels = [\"tiny\"]\n\
         recipes = {:?}\ncalibrations = {:?}\nseeds = [0, 1]\n\n[model.tiny]\npath = \"tiny\"\n",
        names(recipes),
        names(sets)
    );
    for (name, keys) in sets {
        text += &format!("\n[calibration.{name}]\nsamples = 4\nlength = 16\nbos = \"every\"\n{keys}\n");
    }
    for (name, steps) in recipes {
        text += &format!("\n[recipe.{name}]\nsteps = [{steps}]\n");
    }
    text + "\n" + &evaluations.join("\n")
}

const NONE: &str = r#"corpus = "random-tokens""#;
const TEXT: &str = r#"corpus = { path = "other.txt" }"#;

/// A folder with a second text, in another order of words.
fn place() -> Place {
    let place = Place::new(400);
    let words = support::text(900);
    let other: Vec<&str> = words.split(' ').rev().collect();
    place.write("other.txt", other.join(" "));
    place
}

struct Silent;

impl Observer for Silent {
    fn event(&mut self, event: Event) {
        if let Event::Failed { failure, .. } = event {
            panic!("{}", failure.message);
        }
    }
}

/// Sweeps into `store`.
fn sweep(place: &Place, experiment: &Experiment, plan: &Plan, observer: &mut dyn Observer) -> Summary {
    let device = device::select(Choice::Cpu).unwrap();
    let options = run::Options {
        device: &device,
        models: ModelOptions { folder: Some(place.path(".")), offline: true },
        data: DataOptions::new(None, place.path("."), true),
        results: place.path("store"),
        retry_failed: false,
        arithmetic: Arithmetic::default(),
        execution: Default::default(),
    };
    run::sweep(experiment, plan, &options, &Interrupt::default(), observer).unwrap()
}

/// Says under which set and seed each cell is begun, and waits for a word behind the first.
struct Begun {
    tell: Sender<(String, Option<u64>)>,
    wait: Option<Receiver<()>>,
}

impl Observer for Begun {
    fn event(&mut self, event: Event) {
        let Event::CellStarted { cell, .. } = event else { return Silent.event(event) };
        let Some(set) = &cell.calibration else { return };
        self.tell.send((set.name.clone(), cell.seed)).unwrap();
        if let Some(wait) = self.wait.take() {
            wait.recv().unwrap();
        }
    }
}

#[test]
fn two_processes_work_on_sets_of_their_own() {
    let place = place();
    let recipes = [("static", STATIC), ("smooth", SMOOTH)];
    let text = experiment(&recipes, &[("random", NONE), ("text", TEXT)], &[perplexity(16, Some(2))]);
    place.write("experiment.toml", &text);
    let parsed = || Experiment::parse(&text, &place.path("experiment.toml")).unwrap();
    let (of_first, begun) = channel();
    let (go_on, wait) = channel();
    std::thread::scope(|scope| {
        // Gone with this block, so that a failing test does not wait for ever.
        let go_on = go_on;
        let first = scope.spawn(|| {
            let experiment = parsed();
            let mut observer = Begun { tell: of_first, wait: Some(wait) };
            sweep(&place, &experiment, &Plan::new(&experiment), &mut observer)
        });
        let occupied = begun.recv().unwrap();
        let (of_second, begun_by_second) = channel();
        let second = scope.spawn(|| {
            let experiment = parsed();
            let mut observer = Begun { tell: of_second, wait: None };
            sweep(&place, &experiment, &Plan::new(&experiment), &mut observer)
        });
        let of_second: Vec<_> = (0..6).map(|_| begun_by_second.recv().unwrap()).collect();
        assert!(!of_second.contains(&occupied), "it begins with what nobody works on: {of_second:?}");
        // Nothing else is left: now it helps.
        assert_eq!(begun_by_second.recv().unwrap(), occupied);
        go_on.send(()).unwrap();
        let measured = first.join().unwrap().measured + second.join().unwrap().measured;
        assert_eq!(measured, Plan::new(&parsed()).cells.len(), "each is measured exactly once");
    });
}

#[test]
fn what_reads_no_calibration_set_is_the_same_under_each_of_them() {
    let place = place();
    let text = experiment(
        &[("static", STATIC), ("dynamic", DYNAMIC), ("rtn", RTN)],
        &[("random", NONE), ("text", TEXT)],
        &[perplexity(16, Some(6))],
    );
    place.write("experiment.toml", &text);
    let file = place.path("experiment.toml");
    let experiment = Experiment::parse(&text, &file).unwrap();
    // Not the planner's plan, which gives a recipe that needs no set none: every recipe under every set and seed.
    let mut plan = Plan::new(&experiment);
    let patterns: Vec<_> = plan.cells.iter().filter(|cell| cell.calibration.is_some()).cloned().collect();
    assert_eq!(patterns.len(), 4);
    for recipe in experiment.recipes.iter().filter(|recipe| !recipe.needs_calibration) {
        let under =
            patterns.iter().map(|cell| harness::plan::Cell { recipe: recipe.clone(), ..cell.clone() });
        plan.cells.extend(under);
    }
    assert_eq!(sweep(&place, &experiment, &plan, &mut Silent).failed, 0);

    let contents = Store::open_read_only(&place.path("store")).unwrap().contents().unwrap();
    let mut ids = BTreeSet::new();
    for recipe in ["static", "dynamic", "rtn"] {
        let steps = experiment.recipes.iter().find(|known| known.name == recipe).unwrap().steps.clone();
        let steps: Vec<Value> = steps.iter().map(|step| serde_json::to_value(step).unwrap()).collect();
        let cells: Vec<_> = contents
            .cells
            .iter()
            .map(|cell| &cell.result)
            .filter(|cell| cell.steps == steps && cell.calibration.is_some())
            .collect();
        assert_eq!(cells.len(), 4, "two sets with two seeds each");
        ids.extend(cells.iter().map(|cell| cell.calibration.as_ref().unwrap()["token-hash"].to_string()));
        let measured = |id: &str| {
            let of_cell = contents.measurements.iter().find(|m| m.result.cell == id).unwrap();
            (of_cell.result.value.to_bits(), of_cell.result.detail["window-losses"].clone())
        };
        let values: Vec<_> = cells.iter().map(|cell| measured(&cell.id)).collect();
        let fitted: Vec<_> = cells.iter().map(|cell| &cell.fitted).collect();
        if recipe == "static" {
            assert!(values.iter().any(|value| *value != values[0]), "the sets are not told apart at all");
            assert!(cells.iter().all(|cell| cell.statistics.len() == 1));
        } else {
            assert!(values.iter().all(|value| *value == values[0]), "{recipe} has seen its calibration set");
            assert!(fitted.windows(2).all(|pair| pair[0] == pair[1]));
            assert!(cells.iter().all(|cell| cell.statistics.is_empty()));
        }
    }
    assert_eq!(ids.len(), 4, "every set and seed has token ids of its own");
}

#[test]
fn the_same_set_and_seed_give_the_same_artefacts_and_reuse_is_written_down() {
    let place = place();
    let text = experiment(
        &[
            ("static", STATIC),
            ("again", &format!("{STATIC}, {{ step = \"keep\", method = \"qfem\", top = 1 }}")),
        ],
        &[("text", TEXT)],
        &[perplexity(16, Some(2))],
    );
    // `keep` stands before what it keeps from being rounded.
    let kept = format!("{{ step = \"keep\", method = \"qfem\", top = 1 }}, {STATIC}");
    let text = text.replace(&format!("{STATIC}, {{ step = \"keep\", method = \"qfem\", top = 1 }}"), &kept);
    place.write("experiment.toml", &text);
    place.sweep(&[]).exits_with(0);
    place.sweep(&["--results", "second"]).exits_with(0);
    let (first, second) = (place.results("results/experiment"), place.results("second"));
    assert_eq!(first, second);
    assert!(first.len() >= 5, "{}", first.len());
    let files = |store: &str| -> Vec<(String, Vec<u8>)> {
        let statistics = place.files(&format!("{store}/statistics")).into_iter();
        statistics.filter(|(name, _)| name.ends_with(".parquet")).collect()
    };
    assert_eq!(files("results/experiment"), files("second"));

    // Two recipes read one set of statistics: the second did not collect it again, and says so.
    let cells = place.files("results/experiment/cells");
    let reused: Vec<usize> = cells
        .iter()
        .filter(|(name, _)| name.ends_with("cell.json"))
        .map(|(_, bytes)| serde_json::from_slice::<Value>(bytes).unwrap())
        .filter(|cell| !cell["result"]["calibration"].is_null())
        .map(|cell| {
            let names = cell["execution"]["reused-statistics"]
                .as_array()
                .or(cell["execution"]["reused_statistics"].as_array());
            names.map_or(0, Vec::len)
        })
        .collect();
    assert_eq!(reused.iter().sum::<usize>(), 2, "once a seed: {reused:?}");
    let plan = place.run(&["plan", "experiment.toml"]).exits_with(0);
    assert!(
        plan.stdout.contains("2 for statistics that steps read; without sharing 4, so that 2 are saved"),
        "{}",
        plan.stdout
    );
}

/// What `plan` and `sweep` say of a calibration block, both before anything is done.
#[track_caller]
fn refused(place: &Place, keys: &str, expected: &[&str]) {
    let text = experiment(&[("static", STATIC)], &[("c", keys)], &[perplexity(16, Some(2))]);
    place.write("experiment.toml", text);
    place.run(&["plan", "experiment.toml", "--data", "data"]).exits_with(2).says(expected);
    place.sweep(&["--data", "data"]).exits_with(2).says(expected);
    assert!(!place.path("results").join("experiment/cells").exists(), "nothing was measured");
}

#[test]
fn texts_that_cannot_calibrate_are_refused_before_the_work() {
    let place = place();
    place.write("latin1.txt", b"w3 w4 \xe4 w5");
    place.write("empty.txt", " \n\n");
    place.write("short.txt", support::text(40));
    std::fs::create_dir_all(place.path("data/udhr")).unwrap();
    place.write("data/udhr/eng.txt", support::text(100));
    let file = |name: &str| format!("corpus = {{ path = \"{name}\" }}");
    refused(&place, &file("latin1.txt"), &["calibration `c`", "latin1.txt: not UTF-8 at byte 6", "iconv"]);
    refused(&place, &file("empty.txt"), &["calibration `c`", "the text is empty"]);
    refused(&place, &file("absent.txt"), &["there is no file `absent.txt`"]);
    // 40 words: enough for two samples side by side, for any number with repetition, for none of 64 tokens.
    refused(&place, &format!("{}\nrepeat = false", file("short.txt")), &["holds 2 that do not overlap"]);
    let long = file("short.txt").replace("corpus", "corpus ");
    let text = experiment(&[("static", STATIC)], &[("c", &long)], &[perplexity(16, Some(2))]);
    place.write(
        "experiment.toml",
        text.replace("length = 16\nbos = \"every\"\ncorpus ", "length = 64\nbos = \"every\"\ncorpus "),
    );
    let expected = ["has 40 tokens, and a sample of length 64", "or a length of at most 41"];
    place.run(&["plan", "experiment.toml"]).exits_with(2).says(&expected);
    refused(
        &place,
        "corpus = \"udhr/tlh\"",
        &["the corpus `udhr/tlh` was not found", "languages there: eng"],
    );
    // The same with a text that is there.
    let text =
        experiment(&[("static", STATIC)], &[("c", "corpus = \"udhr/eng\"")], &[perplexity(16, Some(2))]);
    place.write("experiment.toml", text);
    let plan = place.run(&["plan", "experiment.toml", "--data", "data"]).exits_with(0);
    assert!(plan.stdout.contains("udhr/eng"), "{}", plan.stdout);
}

/// Items of two choices, in the checkpoint's words.
fn items(count: usize) -> String {
    let words = support::text(12 * count);
    let words: Vec<&str> = words.split(' ').collect();
    let item = |(i, w): (usize, &[&str])| {
        serde_json::json!({
            "id": format!("i{i}"), "query": w[..8].join(" "), "choices": [w[8..10].join(" "), w[10..].join(" ")],
            "gold": i % 2,
        })
        .to_string()
    };
    words.chunks(12).enumerate().map(item).collect::<Vec<_>>().join("\n")
}

#[test]
fn one_half_of_a_task_calibrates_and_the_other_is_asked() {
    let place = place();
    place.write("items.jsonl", items(60));
    let task = |half: &str| {
        format!("[[evaluate]]\ntask = \"piqa\"\nform = \"uniform\"\nitems = \"items.jsonl\"\n{half}\n")
    };
    let set = |half: &str| format!("corpus = {{ task = \"piqa\", items = \"items.jsonl\"{half} }}");
    let with = |set: &str, task: &str| {
        experiment(&[("static", STATIC)], &[("content", set)], &[task.to_owned(), perplexity(16, Some(2))])
    };
    // Refused as long as the two could share an item.
    for (set, task) in [
        (set(", half = \"first\""), task("half = \"first\"")),
        (set(", half = \"first\""), task("")),
        (set(""), task("half = \"second\"")),
    ] {
        let message = Experiment::parse(&with(&set, &task), Path::new("x.toml")).unwrap_err().to_string();
        assert!(message.contains("the set `content` is made of items of `piqa`"), "{message}");
        let allowed = with(&format!("{set}\nallow-overlap = true"), &task);
        assert!(Experiment::parse(&allowed, Path::new("x.toml")).is_ok());
    }
    place.write("experiment.toml", with(&set(", half = \"first\""), &task("half = \"second\"")));
    place.sweep(&[]).exits_with(0);
    let contents = Store::open_read_only(&place.path("results/experiment")).unwrap().contents().unwrap();
    let calibration = contents.cells.iter().find_map(|cell| cell.result.calibration.clone()).unwrap();
    assert_eq!(
        calibration["text"].as_str().unwrap().split(" (").next(),
        Some("questions and answers of piqa, first half")
    );
    assert_eq!(calibration["text-origin"], "file:items.jsonl");
    let measured = contents.measurements.iter().map(|m| &m.result).find(|m| m.metric.starts_with("piqa"));
    let measured = measured.unwrap();
    assert!(measured.metric.ends_with("/items=uniform/half=second"), "{}", measured.metric);
    // About half of 60: within four standard deviations of a coin.
    assert!((15..=45).contains(&measured.n), "{}", measured.n);
    assert_eq!(measured.detail["full"], false);
}

/// A sweep of two recipes over three sets, the third normalised to the second.
fn studied() -> (Place, PathBuf) {
    let place = place();
    let text = experiment(
        &[("static", STATIC), ("smooth", SMOOTH), ("dynamic", DYNAMIC)],
        &[
            ("text", TEXT),
            ("half", "corpus = { path = \"other.txt\", half = \"second\" }"),
            ("random", &format!("{NONE}\nreference = \"half\"\nseeds = [3]")),
            ("nonsense", "corpus = \"random-tokens\""),
        ],
        &[perplexity(16, Some(6)), perplexity(12, Some(6))],
    );
    place.write("experiment.toml", text);
    place.sweep(&[]).exits_with(0);
    let store = place.path("results/experiment");
    (place, store)
}

#[test]
fn scores_of_a_reference_are_exactly_one_and_raw_values_stand_beside() {
    let (_place, store) = studied();
    let contents = Store::open_read_only(&store).unwrap().contents().unwrap();
    let studies = studies(&contents);
    // Two recipes that read sets × two metrics.
    assert_eq!(studies.len(), 4);
    for study in &studies {
        assert_eq!(study.sets.iter().map(|set| set.draws.len()).collect::<Vec<_>>(), [2, 2, 1, 2]);
        for (name, reference) in
            [("text", "text"), ("half", "text"), ("random", "half"), ("nonsense", "text")]
        {
            let set = study.set(name).unwrap();
            assert_eq!(set.reference, reference);
            let normalised = study.normalised(set, set.mean()).unwrap();
            let expected = set.mean() / study.set(reference).unwrap().mean();
            assert_eq!(normalised.to_bits(), expected.to_bits());
            if name == reference {
                assert_eq!(normalised, 1.0);
            }
        }
    }
    let tables = Robustness.tables(&contents);
    let captions: Vec<&str> = tables.iter().map(|table| table.caption.as_str()).collect();
    assert_eq!(captions.iter().filter(|caption| caption.starts_with("Calibration × evaluation")).count(), 2);
    let matrix = &tables[0];
    let value = |cell: &Cell| match cell {
        Cell::Number { value, .. } => *value,
        other => panic!("{other:?}"),
    };
    // calibration, reference, seeds, raw, ratio, raw, ratio
    assert_eq!(matrix.rows[0][0], Cell::text("text"));
    assert_eq!((value(&matrix.rows[0][4]), value(&matrix.rows[0][6])), (1.0, 1.0));
    for row in &matrix.rows {
        let of = matrix.rows.iter().find(|other| other[0] == row[1]).unwrap();
        assert_eq!(value(&row[4]).to_bits(), (value(&row[3]) / value(&of[3])).to_bits());
    }
    // The dynamic recipe has one value for all (set, seed) pairs: 7 of them.
    let ranking = tables.iter().find(|table| table.caption.starts_with("How often")).unwrap();
    let shares: Vec<(f64, &str)> = ranking
        .rows
        .iter()
        .flat_map(|row| &row[1..])
        .filter_map(|cell| match cell {
            Cell::Text(text) => text.split_once(' '),
            _ => None,
        })
        .map(|(share, n)| (share.parse().unwrap(), n))
        .collect();
    assert_eq!(shares.len(), 6);
    assert!(shares.iter().all(|(_, n)| *n == "(7)"), "{shares:?}");
    // Two recipes share what is to be won.
    assert!((shares[0].0 + shares[2].0 - 1.0).abs() < 0.011, "{shares:?}");

    let drawings = figures::draw_all(&contents).unwrap();
    for stem in
        ["calibration-matrix", "calibration-effects-nonsense", "calibration-sensitivity", "layer-profiles"]
    {
        assert!(drawings.iter().any(|drawing| drawing.stem.starts_with(stem)), "no {stem}");
    }
    assert_eq!(drawings, figures::draw_all(&contents).unwrap());
}
