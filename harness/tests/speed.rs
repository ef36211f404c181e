//! `speed` by the binary: what is recorded of a machine and what is not, how recipes were executed, and the table and figure
//! made of it.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use support::{Place, experiment, perplexity};

const W8A8: (&str, &str) = ("w8a8", r#"{ step = "weights", bits = 8 }, { step = "activations", bits = 8 }"#);
const W4: (&str, &str) = ("w4", r#"{ step = "weights", bits = 4, granularity = "group(8)" }"#);

const SPEED: &str = "[[evaluate]]\nmetric = \"speed\"\nprefill = 12\ndecode = 3\nrounds = 2\n";
const METRIC: &str = "weight-bytes/speed/prefill=12/decode=3";

fn place() -> Place {
    let place = Place::new(100);
    let evaluations = [perplexity(16, Some(4)), SPEED.to_string()];
    place.write("experiment.toml", experiment(&[W8A8, W4], &evaluations));
    place
}

/// Every measurement of a store, by its cell and metric: its whole file.
fn measurements(place: &Place, store: &str) -> BTreeMap<(String, String), Value> {
    let files = place.files(&format!("{store}/cells")).into_iter();
    let files = files.filter(|(name, _)| name.contains("/measurements/"));
    let read = |(_, bytes): (String, Vec<u8>)| {
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        let word = |key: &str| value["result"][key].as_str().unwrap().to_string();
        ((word("cell"), word("metric")), value)
    };
    files.map(read).collect()
}

#[test]
fn times_stand_beside_a_result_that_is_the_same_everywhere() {
    let place = place();
    let swept = place.sweep(&[]).exits_with(0);
    assert_eq!(swept.counts(), [6, 0, 0, 0]);
    for heading in ["prefill, tokens/s", "decode, ms/token", "weights moved, MB", "in integers"] {
        assert!(swept.stdout.contains(heading), "no `{heading}` in the report:\n{}", swept.stdout);
    }
    let files = place.files("results/experiment/figures");
    assert!(
        files.keys().any(|name| name.starts_with("frontier-") && name.ends_with(".svg")),
        "{:?}",
        files.keys()
    );
    // The same records give the same report, times and all.
    place.run(&["report", "results/experiment", "--check"]).exits_with(0);

    place.sweep(&["--results", "fake", "--arithmetic", "fake"]).exits_with(0);
    let (integer, fake) = (measurements(&place, "results/experiment"), measurements(&place, "fake"));
    let speeds: Vec<_> = integer.iter().filter(|((_, metric), _)| metric == METRIC).collect();
    assert_eq!(speeds.len(), 3);
    for (key, found) in speeds {
        assert_eq!(found["result"], fake[key]["result"], "what is hashed knows no time and no arithmetic");
        let execution = &found["execution"];
        let speed = &execution["speed"];
        for quantity in ["prefill_tokens_per_second", "decode_seconds_per_token"] {
            let [least, median, most] =
                ["least", "median", "most"].map(|of| speed[quantity][of].as_f64().unwrap());
            assert!(0.0 < least && least <= median && median <= most, "{speed}");
        }
        assert_eq!(speed["rounds"], 2);
        assert!(speed["peak_memory"].as_u64().unwrap() > 1 << 20);
        let rounded = !execution["executed"].is_null();
        let moved = |found: &Value| found["execution"]["speed"]["weight_bytes"].as_u64().unwrap();
        let groups = execution["executed"]["integer_groups"].as_u64().unwrap_or_default();
        // Two blocks of four groups; the head is not rounded.
        assert!([0, 8].contains(&groups) && (groups == 0 || rounded), "{execution}");
        assert_eq!(fake[key]["execution"]["executed"]["integer_groups"].as_u64().unwrap_or_default(), 0);
        match groups {
            0 => assert_eq!(moved(found), moved(&fake[key])),
            _ => assert!(moved(found) < moved(&fake[key]), "codes take less than f32"),
        }
    }
    let kinds = |all: &BTreeMap<_, Value>| {
        let groups = |found: &Value| found["execution"]["executed"]["integer_groups"].as_u64();
        all.values().filter(|found| groups(found) == Some(8)).count()
    };
    assert_eq!((kinds(&integer), kinds(&fake)), (2, 0), "perplexity and speed of w8a8");
    // Close, and not by being the same numbers under two names.
    for (key, found) in integer.iter().filter(|((_, metric), _)| metric.starts_with("perplexity")) {
        let value = |of: &Value| of["result"]["value"].as_f64().unwrap();
        assert!((value(found) / value(&fake[key]) - 1.0).abs() < 1e-2, "{key:?}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let place = Place::new(100);
    let none = SPEED.replace("rounds = 2", "rounds = 0");
    place.write("experiment.toml", experiment(&[W8A8], &[none]));
    place.sweep(&[]).exits_with(2).says(&["`rounds` must be at least 1, not 0"]);
    let refused = place.sweep(&["--arithmetic", "exact"]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("expected integer or fake"), "{}", refused.stderr);
}
