//! Sweeps by the binary, from an experiment file to a report: nothing twice, nothing lost, nothing that differs.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;
use support::{Place, experiment, perplexity};

const W8: (&str, &str) = ("w8", r#"{ step = "weights", bits = 8 }"#);
const W3: (&str, &str) = ("w3", r#"{ step = "weights", bits = 3, granularity = "channel" }"#);
const W4A4: (&str, &str) =
    ("w4a4", r#"{ step = "weights", bits = 4 }, { step = "activations", bits = 4, granularity = "token" }"#);
/// Prefix and prompt together fill the context of 128 tokens, which no step knows by itself before it acts.
const FULL: (&str, &str) = (
    "full",
    r#"{ step = "prefix", method = "tokens", tokens = [3, 5] }, { step = "kv", bits = 4, prompt = 126 }"#,
);

/// The cells of `small`: two recipes and the original.
const CELLS: usize = 3;

/// Four windows of 16 tokens, two recipes: milliseconds.
fn small() -> Place {
    let place = Place::new(100);
    place.write("experiment.toml", experiment(&[W8, W3], &[perplexity(16, Some(4))]));
    place
}

const STORE: &str = "results/experiment";

/// The metric id under which a store has its first measurement.
fn metric(place: &Place) -> String {
    let results = place.results(STORE);
    let measurement = results.values().find(|result| result.get("metric").is_some());
    measurement.expect("something was measured")["metric"].as_str().unwrap().to_string()
}

#[test]
fn a_sweep_leaves_records_and_a_report_and_a_second_one_changes_no_byte() {
    let place = small();
    let first = place.sweep(&[]).exits_with(0).says(&["device: CPU", "report: results/experiment/README.md"]);
    assert_eq!(first.counts(), [CELLS, 0, 0, 0]);
    for row in ["| original", "| w8", "| w3"] {
        assert!(first.stdout.contains(row), "no `{row}` in the table:\n{}", first.stdout);
    }
    let files = place.files(STORE);
    for file in ["README.md", "summary.csv", "summary.parquet", "manifest.json", "store.json"] {
        assert!(files.contains_key(file), "no {file} among {:?}", files.keys());
    }
    let figures: Vec<_> = files.keys().filter(|name| name.starts_with("figures/")).collect();
    assert!(figures.iter().any(|name| name.ends_with(".svg")), "{figures:?}");
    assert!(figures.iter().any(|name| name.ends_with(".png")), "{figures:?}");
    for leftover in ["claims/", "tmp/", "failures/"] {
        assert!(!files.keys().any(|name| name.starts_with(leftover)), "{leftover} is not empty");
    }
    // Rounding to 3 bits must show, or equal results further down would mean nothing.
    let values: Vec<f64> =
        place.results(STORE).values().filter_map(|result| result["value"].as_f64()).collect();
    assert_eq!(values.len(), CELLS);
    assert!(values.windows(2).all(|pair| (pair[0] - pair[1]).abs() > 1e-6), "{values:?}");

    let again = place.sweep(&[]).exits_with(0).says(&["(already there)"]);
    assert_eq!(again.counts(), [0, CELLS, 0, 0]);
    assert_eq!(again.stdout, first.stdout);
    place.run(&["report", STORE, "--check"]).exits_with(0);
    assert_eq!(place.files(STORE), files);
}

#[test]
fn a_sweep_of_a_part_hides_nothing_of_the_rest() {
    let place = small();
    place.sweep(&[]).exits_with(0);
    let files = place.files(STORE);
    let part = place.sweep(&["-r", "w8"]).exits_with(0);
    assert_eq!(part.counts(), [0, 2, 0, 0], "the original and w8");
    assert!(part.stdout.contains("| w3"), "the report lost a recipe:\n{}", part.stdout);
    assert_eq!(place.files(STORE), files);
}

#[test]
fn windows_beyond_the_context_are_warned_of() {
    let place = Place::new(400);
    place.write("experiment.toml", experiment(&[W8], &[perplexity(136, Some(1))]));
    place.sweep(&[]).exits_with(0).says(&["windows of 136 tokens exceed its context of 128"]);
    let inside = small().sweep(&[]).exits_with(0);
    assert!(!inside.stderr.contains("exceed its context"), "{}", inside.stderr);
}

#[test]
fn another_evaluation_measures_only_itself() {
    let place = small();
    place.sweep(&[]).exits_with(0);
    let before = place.files(&format!("{STORE}/cells"));
    let both = experiment(&[W8, W3], &[perplexity(16, Some(4)), perplexity(24, Some(2))]);
    place.write("experiment.toml", both);
    let after = place.sweep(&[]).exits_with(0);
    assert_eq!(after.counts(), [CELLS, CELLS, 0, 0]);
    let files = place.files(&format!("{STORE}/cells"));
    assert_eq!(files.len(), before.len() + CELLS, "a measurement a cell was added");
    for (name, bytes) in &before {
        assert_eq!(files.get(name), Some(bytes), "{name} was touched");
    }
}

#[test]
fn two_runs_into_two_folders_agree() {
    let place = small();
    for folder in ["a", "b"] {
        assert_eq!(place.sweep(&["--results", folder]).exits_with(0).counts(), [CELLS, 0, 0, 0]);
    }
    assert_eq!(place.results("a"), place.results("b"));
    assert_eq!(place.results("a").len(), 2 * CELLS);
    let csv = |folder: &str| place.files(folder).remove("summary.csv");
    assert_eq!(csv("a"), csv("b"));
}

#[test]
fn a_quick_look_is_kept_apart() {
    let place = small();
    let quick = place.sweep(&["--limit", "2"]).exits_with(0);
    assert_eq!(quick.counts(), [CELLS, 0, 0, 0]);
    assert!(place.path("results/experiment/limited/README.md").is_file());
    assert!(!place.path("results/experiment/cells").exists(), "quick records among the full ones");
    assert_eq!(place.sweep(&[]).exits_with(0).counts(), [CELLS, 0, 0, 0], "the full ones were not there yet");
    let limited = place.files("results/experiment/limited");
    assert_eq!(place.sweep(&["--limit", "2"]).exits_with(0).counts(), [0, CELLS, 0, 0]);
    assert_eq!(place.files("results/experiment/limited"), limited);
}

#[test]
fn a_dry_run_computes_nothing() {
    let place = small();
    let dry = place.sweep(&["--dry-run"]).exits_with(0);
    assert!(dry.stdout.contains("3 cells, 3 measurements"), "{}", dry.stdout);
    assert!(!place.path("results").exists());
}

#[test]
fn a_failing_cell_is_recorded_and_the_others_are_measured() {
    let place = small();
    place.write("experiment.toml", experiment(&[FULL, W3], &[perplexity(16, Some(4))]));
    let first = place.sweep(&[]).exits_with(1).says(&[
        "FAILED tiny · full at quantize: step 1.kv: ",
        "a prompt of 126 tokens in full precision fills the context of 128",
        "`prompt` must be below 128, less the tokens of a prefix",
        "cure: change the recipe in the experiment file",
    ]);
    assert_eq!(first.counts(), [3, 0, 1, 0], "the original, alone and behind the prefix, and w3");
    assert!(first.stdout.contains("failed"), "the table does not say so:\n{}", first.stdout);
    let [failure] = &place.failures(STORE)[..] else { panic!("one failure") };
    assert_eq!((&failure["stage"], &failure["metric"]), (&"quantize".into(), &Value::Null));
    assert!(failure["cure"].as_str().unwrap().contains("change the recipe"), "{failure}");

    let files = place.files(STORE);
    let again =
        place.sweep(&[]).exits_with(1).says(&["failed in an earlier run, --retry-failed tries again"]);
    assert_eq!(again.counts(), [0, 3, 1, 0]);
    assert_eq!(place.files(STORE), files);

    let retried = place.sweep(&["--retry-failed"]).exits_with(1);
    assert_eq!(retried.counts(), [0, 3, 1, 0]);
    assert!(!retried.stderr.contains("earlier run"), "{}", retried.stderr);
    let [later] = &place.failures(STORE)[..] else { panic!("one failure") };
    assert_eq!(later["message"], failure["message"]);
    assert_ne!(later["execution"], failure["execution"], "it was not tried again");
}

#[test]
fn a_mended_checkpoint_leaves_no_failure_behind() {
    let place = small();
    std::fs::rename(place.path("tiny"), place.path("elsewhere")).unwrap();
    let absent = place.sweep(&[]).exits_with(1).says(&["model folder `tiny` not found", "--models DIR"]);
    assert_eq!(absent.counts(), [0, 0, CELLS, 0]);
    assert_eq!(place.failures(STORE).len(), CELLS);
    std::fs::rename(place.path("elsewhere"), place.path("tiny")).unwrap();
    assert_eq!(place.sweep(&[]).exits_with(0).counts(), [CELLS, 0, 0, 0]);
    assert_eq!(place.failures(STORE), [] as [Value; 0]);
}

#[test]
fn the_same_weights_under_another_config_are_another_model() {
    let place = small();
    place.checkpoint("other");
    place.configure("other", "rms_norm_eps", serde_json::json!(0.5));
    let both = support::experiment_on(&["tiny", "other"], &[W8], &[perplexity(16, Some(4))]);
    place.write("experiment.toml", both);
    assert_eq!(
        place.sweep(&[]).exits_with(0).counts(),
        [4, 0, 0, 0],
        "an answer was taken from the other model"
    );
}

#[test]
fn a_changed_text_is_not_answered_with_the_old_numbers() {
    let place = small();
    place.sweep(&[]).exits_with(0);
    let before = place.files(STORE);
    place.write("text.txt", support::text(101).replacen("w", "w3 w", 1));
    let changed = place.sweep(&[]).exits_with(2);
    let changed = changed.says(&["perplexity/gptq/text/16", "is not the text", "--results"]);
    assert_eq!(changed.stdout, "");
    assert_eq!(place.files(STORE), before);
    // What lies behind the last window that is used changes nothing.
    place.write("text.txt", support::text(120));
    assert_eq!(place.sweep(&[]).exits_with(0).counts(), [0, CELLS, 0, 0]);
}

#[test]
fn a_missed_expectation_is_loud() {
    let place = small();
    let plain = experiment(&[W8], &[perplexity(16, Some(4))]);
    place.write("experiment.toml", &plain);
    place.sweep(&[]).exits_with(0);
    let results = place.results(STORE);
    let original = results.values().find(|result| result["reading"] == "original").expect("it was measured");
    let value = original["value"].as_f64().unwrap();
    let expect = |value: f64| {
        format!(
            "{plain}\n[[expect]]\nmodel = \"tiny\"\nrecipe = \"original\"\nmetric = {:?}\nvalue = {value}\n\
             tolerance = 0.01\nsource = \"a paper\"\n",
            metric(&place)
        )
    };
    place.write("experiment.toml", expect(value + 0.005));
    assert_eq!(place.sweep(&[]).exits_with(0).counts(), [0, 2, 0, 0]);
    place.write("experiment.toml", expect(value + 0.1));
    let missed = place.sweep(&[]).exits_with(1).says(&["EXPECTATION MISSED tiny · original: ", "(a paper)"]);
    assert_eq!(missed.counts(), [0, 2, 0, 1]);
    assert_eq!(place.sweep(&["--limit", "2"]).exits_with(0).counts(), [2, 0, 0, 0]);
    place.write("experiment.toml", expect(value + 0.1).replace("windows=4", "windows=5"));
    place.sweep(&[]).exits_with(2).says(&["windows=5"]);
}

/// Work for long enough to be disturbed: each cell has two evaluations.
fn large() -> Place {
    let place = Place::new(10_000);
    place
        .write("experiment.toml", experiment(&[W8, W3, W4A4], &[perplexity(48, None), perplexity(64, None)]));
    place
}

const LARGE: usize = 8;

/// What `large` gives when nothing disturbs it.
static UNDISTURBED: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
    let place = large();
    assert_eq!(place.sweep(&[]).exits_with(0).counts(), [LARGE, 0, 0, 0]);
    place.results(STORE)
});

#[test]
fn two_processes_share_the_work() {
    let place = large();
    let (first, second) = (place.start_sweep(&[]), place.start_sweep(&[]));
    let (first, second) = (support::end(first).exits_with(0), support::end(second).exits_with(0));
    let (a, b) = (first.counts(), second.counts());
    assert_eq!(a[0] + b[0], LARGE, "each is measured exactly once: {a:?} {b:?}");
    assert!(a[0] > 0 && b[0] > 0, "one of them had nothing to do: {a:?} {b:?}");
    assert_eq!((a[0] + a[1], b[0] + b[1]), (LARGE, LARGE), "both end with everything");
    assert_eq!(place.results(STORE), *UNDISTURBED);
    assert_eq!(first.stdout, second.stdout);
}

#[cfg(unix)]
mod disturbed {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn ends_well(place: &Place, before: usize) {
        let rest = place.sweep(&[]).exits_with(0);
        assert_eq!(rest.counts(), [LARGE - before, before, 0, 0]);
        assert_eq!(place.results(STORE), *UNDISTURBED);
        let files = place.files(STORE);
        assert!(files.contains_key("README.md"));
        let leftover = files.keys().find(|name| name.starts_with("claims/") || name.starts_with("tmp/"));
        assert_eq!(leftover, None);
    }

    #[track_caller]
    fn interrupted_by(signal: &str) {
        let place = large();
        let mut child = place.start_sweep(&[]);
        support::wait_until(&mut child, "a measurement", || place.measured(STORE) > 0);
        support::signal(&child, signal);
        let ended = support::end(child).exits_with(130);
        let ended = ended.says(&["interrupted: everything measured is kept; run the same command to go on"]);
        let before = place.measured(STORE);
        assert_eq!(ended.counts(), [before, 0, 0, 0]);
        assert!(0 < before && before < LARGE, "{before} of {LARGE}: the signal came too late");
        ends_well(&place, before);
    }

    #[test]
    fn ctrl_c_keeps_what_is_measured() {
        interrupted_by("-INT");
    }

    #[test]
    fn sigterm_keeps_what_is_measured() {
        interrupted_by("-TERM");
    }

    #[test]
    fn killing_at_any_moment_costs_only_what_was_in_flight() {
        let place = large();
        let kill = |what: &str, moment: &dyn Fn() -> bool| {
            let mut child = place.start_sweep(&[]);
            support::wait_until(&mut child, what, moment);
            child.kill().unwrap();
            let status = child.wait().unwrap();
            assert_eq!(status.signal(), Some(9), "it ended before it was killed");
            let measured = place.measured(STORE);
            assert!(measured < LARGE, "the kill came after the work");
            measured
        };
        // Before anything is measured, within a cell, and between the first cells.
        let first = kill("a claim", &|| place.claimed(STORE));
        let second = kill("a measurement", &|| place.measured(STORE) > first);
        let third = kill("two more", &|| place.measured(STORE) > second + 1);
        assert!(
            third > second && second > first,
            "{first}, {second}, {third}: no progress between the kills"
        );
        assert!(!place.path("results/experiment/README.md").exists());
        // What a killed process leaves in the making is rarely caught by chance.
        let leftover = place.path("results/experiment/tmp/another-host-1-0");
        std::fs::create_dir(&leftover).unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        std::fs::write(leftover.join("draft.json"), "{").unwrap();
        std::fs::File::open(&leftover).unwrap().set_modified(long_ago).unwrap();
        ends_well(&place, third);
    }
}
