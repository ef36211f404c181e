//! Every method on every family: the properties of the registry on tiny models of the other families ([`crate::registry`]
//! has the Llama-likes), and that a plan refuses what acting would refuse, with the same error, and nothing else.
//!
//! Grids know no families: that rounding twice is rounding once is tested in `grids.rs`, on values alone.

use std::collections::{BTreeMap, BTreeSet};

use harness::quantize::steps::{STEPS, Step};
use harness::quantize::{ModelFacts, StepError};
use models::Decoder;
use serde_json::Value;

use crate::families::FAMILIES;
use crate::recipes::{ORACLES, oracle, steps, try_make};
use crate::registry::{
    CASES, Subject, changes_no_bit_at_its_mildest, is_made_again, is_made_of_samples_in_any_order,
    preserves_the_function_if_it_claims_so, settings,
};

/// What a plan says of a recipe, from what is known before weights are read.
pub fn planned(recipe: &str, decoder: &Decoder) -> Result<(), StepError> {
    let steps = steps(recipe);
    steps.iter().enumerate().try_for_each(|(place, step)| {
        let facts = ModelFacts {
            architecture: &decoder.architecture,
            earlier: &steps[..place],
            longest: 40,
            start: Some(1),
            token: &|text| text.parse().ok(),
        };
        step.method().check_model(&facts)
    })
}

fn families() -> impl Iterator<Item = Subject> {
    FAMILIES.into_iter().map(Subject::oracle)
}

/// Which settings of the cases are refused.
fn is_refused(family: &str, step: &Step) -> bool {
    let rotates_the_stream = serde_json::to_value(step).unwrap()["sites"]
        .as_array()
        .is_some_and(|sites| sites.contains(&Value::from("residual")));
    match family {
        "gemma2" | "gemma3" => step.name() == "rotate" && rotates_the_stream,
        "mixtral" => matches!(step, Step::SmoothOsplus(_) | Step::PrefixPrefixquant(_)),
        _ => false,
    }
}

/// How often a report has what a method makes small beside what it began with; it is never above.
fn objectives(report: &Value, what: &str) -> usize {
    let Value::Object(map) = report else { return 0 };
    let number = |key: &str| map.get(key).and_then(Value::as_f64);
    let mut seen = 0;
    for (key, than) in [
        ("loss", "nearest-loss"),
        ("loss", "unclipped-loss"),
        ("loss", "unscaled-loss"),
        ("shipped", "host"),
        ("after", "before"),
    ] {
        if let (Some(found), Some(plain)) = (number(key), number(than)) {
            assert!(found <= plain, "{what}: {key} {found} above {than} {plain}");
            seen += 1;
        }
    }
    if let (Some(losses), Some(chosen)) = (map.get("losses").and_then(Value::as_array), number("chosen")) {
        let losses: Vec<f64> = losses.iter().map(|loss| loss.as_f64().unwrap()).collect();
        assert!(losses.iter().all(|loss| losses[chosen as usize] <= *loss), "{what}: {losses:?}");
        seen += 1;
    }
    seen + map.values().map(|value| objectives(value, what)).sum::<usize>()
}

#[test]
fn every_pair_is_carried_out_twice_alike_or_refused_by_the_plan() {
    let (mut tried, mut refused) = (0, 0);
    let mut better: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for subject in families() {
        for (case, keys) in settings() {
            let recipe = case.with_rest(keys);
            let what = format!("{} {{ {keys} }} on {}", case.name(), subject.name);
            tried += 1;
            let acted = try_make(&recipe, &subject.decoder, &mut subject.calibrator(subject.samples()));
            let acted = acted.map_err(|(_, error)| error);
            assert_eq!(planned(&recipe, &subject.decoder).err().as_ref(), acted.as_ref().err(), "{what}");
            assert_eq!(acted.is_err(), is_refused(subject.name, &case.read(keys)), "{what}");
            let Ok(first) = acted else {
                refused += 1;
                continue;
            };
            if objectives(&Value::Object(first.fitted.clone()), &what) > 0 {
                better.entry(case.name()).or_default().insert(subject.name);
            }
            is_made_again(&subject, case, keys, &first);
            if !case.depends_on_order(keys) {
                is_made_of_samples_in_any_order(&subject, case, keys, first);
            }
        }
    }
    assert_eq!(tried, FAMILIES.len() * settings().count());
    assert!(settings().count() >= 51, "settings are gone");
    // Seven settings rotate the stream; OS+ and PrefixQuant have two each.
    assert_eq!(refused, 2 * 7 + 2 + 2);
    for (method, but) in [
        ("rotate best-of", &["gemma2", "gemma3"][..]),
        ("rotate cayley", &[]),
        ("smooth awq", &[]),
        ("smooth osplus", &["mixtral"]),
        ("tune bisup-style", &[]),
        ("weights ", &[]),
    ] {
        let expected: BTreeSet<&str> = FAMILIES.into_iter().filter(|name| !but.contains(name)).collect();
        assert_eq!(
            better.get(method),
            Some(&expected),
            "{method} has an objective, and says it in every family"
        );
    }
}

#[test]
fn at_its_mildest_a_step_changes_no_bit_of_any_family() {
    let mut tried = 0;
    for subject in families() {
        for case in CASES {
            tried += usize::from(changes_no_bit_at_its_mildest(&subject, case));
        }
    }
    assert_eq!(tried, FAMILIES.len() * CASES.iter().filter(|case| case.mildest.is_some()).count());
}

#[test]
fn what_claims_to_preserve_the_function_does_in_every_family() {
    let (mut tried, mut changed) = (0, BTreeMap::<String, usize>::new());
    for subject in families() {
        for (case, keys) in settings() {
            if is_refused(subject.name, &case.read(keys)) {
                continue;
            }
            let Some(is_changed) = preserves_the_function_if_it_claims_so(&subject, case, keys) else {
                continue;
            };
            *changed.entry(case.alone(keys)).or_default() += usize::from(is_changed);
            tried += 1;
        }
    }
    assert_eq!(tried, 10 * 15 - 2 * 7 - 2, "fifteen settings on ten families but for what is refused");
    // A search may find that a model is best as it is.
    assert!(changed.values().all(|families| *families >= 7), "{changed:?}");
}

/// Recipes on whose every model plan and acting must agree, and the models that refuse them.
const REFUSALS: &[(&str, &[&str])] = &[
    (r#"{ step = "weights", bits = 4, granularity = "group(24)", sites = ["attn_in"] }"#, &["*"]),
    (r#"{ step = "weights", bits = 4, granularity = "group(24)", sites = ["attn_in"], ragged = true }"#, &[]),
    (r#"{ step = "weights", bits = 16, granularity = "group(24)" }"#, &[]),
    (
        r#"{ step = "weights", bits = 4, granularity = "group(24)", sites = ["down_in"] }"#,
        &["llama2", "llama3", "smollm2"],
    ),
    (
        r#"{ step = "weights", bits = 4, granularity = "group(24)", sites = ["down_in"], solver = "gptq" }"#,
        &["llama2", "llama3", "smollm2"],
    ),
    (
        r#"{ step = "weights", bits = 4, granularity = "group(32)", sites = ["o_in"], embeddings = true, clip = "output" }"#,
        &["llama-bias", "qwen3", "smollm2"],
    ),
    (r#"{ step = "weights", bits = 4, sites = ["mlp_in"] }"#, &["cohere", "cohere-plus"]),
    (r#"{ step = "weights", bits = 16, sites = ["mlp_in"] }"#, &[]),
    (r#"{ step = "weights", bits = 4, sites = ["mlp_in"], embeddings = true }"#, &[]),
    (r#"{ step = "weights", bits = 4, solver = "gptq", asymmetric-calibration = 0.25 }"#, &["mixtral"]),
    (
        r#"{ step = "weights", bits = 4, solver = "gptq", asymmetric-calibration = 0.25, sites = ["o_in"] }"#,
        &[],
    ),
    (r#"{ step = "activations", bits = 8, granularity = "group(16)", sites = ["o_in"] }"#, &["smollm2"]),
    (r#"{ step = "activations", bits = 8, granularity = "group(16)", ragged = true }"#, &[]),
    (
        r#"{ step = "activations", bits = 8, granularity = "tensor", observer = "max", sites = ["mlp_in"] }"#,
        &["cohere", "cohere-plus"],
    ),
    (r#"{ step = "kv", bits = 4, granularity = "group(8)" }"#, &["llama-bias", "qwen3", "smollm2"]),
    (r#"{ step = "kv", key-bits = 16, value-bits = 16, granularity = "group(7)" }"#, &[]),
    (r#"{ step = "kv", bits = 4, prompt = 100 }"#, &["opt"]),
    (
        r#"{ step = "smooth", method = "awq", bits = 4, samples = 2, points = 2, granularity = "group(16)" }"#,
        &["llama2", "llama3", "mixtral", "smollm2"],
    ),
    (
        r#"{ step = "smooth", method = "awq", bits = 4, samples = 2, points = 2, sites = ["mlp_in"] }"#,
        &["cohere", "cohere-plus"],
    ),
    (r#"{ step = "smooth", method = "osplus", samples = 2, steps = 2, sites = ["attn_in"] }"#, &[]),
    (
        r#"{ step = "smooth", method = "osplus", samples = 2, steps = 2, sites = ["mlp_in"] }"#,
        &["cohere", "cohere-plus", "mixtral"],
    ),
    (r#"{ step = "smooth", method = "smoothquant", sites = ["mlp_in"] }"#, &["cohere", "cohere-plus"]),
    (r#"{ step = "rotate", method = "hadamard", sites = ["v", "down_in", "qk"] }"#, &[]),
    (r#"{ step = "rotate", method = "random-orthogonal", sites = ["residual"] }"#, &["gemma2", "gemma3"]),
    (r#"{ step = "keep", method = "channels", count = 24 }, { step = "weights", bits = 4 }"#, &["mixtral"]),
    (
        r#"{ step = "keep", method = "channels", count = 33, sites = ["mlp_in"] }, { step = "weights", bits = 4 }"#,
        &["*", "!smollm2"],
    ),
    // Groups are made of what is left.
    (
        r#"{ step = "keep", method = "channels", count = 4 }, { step = "weights", bits = 4, granularity = "group(8)", sites = ["attn_in"] }"#,
        &["*", "!smollm2"],
    ),
    (
        r#"{ step = "keep", method = "channels", count = 4 }, { step = "activations", bits = 4, granularity = "group(8)", sites = ["attn_in"] }"#,
        &["*", "!smollm2"],
    ),
    // A group that keeps its activation has weights that are rounded.
    (
        r#"{ step = "keep", method = "qfem", top = 1000 }, { step = "weights", bits = 4, granularity = "group(24)", sites = ["attn_in"] }"#,
        &["*"],
    ),
    (
        r#"{ step = "keep", method = "qfem", top = 1000 }, { step = "activations", bits = 4, granularity = "group(24)" }"#,
        &[],
    ),
    (
        r#"{ step = "weights", bits = 4, solver = "gptq" }, { step = "tune", method = "bisup-style", samples = 1, held-out = 1, length = 8, epochs = 0 }"#,
        &["*"],
    ),
    (
        r#"{ step = "weights", bits = 4, granularity = "group(24)", sites = ["down_in"] }, { step = "tune", method = "bisup-style", samples = 1, held-out = 1, length = 8, epochs = 0 }"#,
        &["llama2", "llama3", "smollm2"],
    ),
    (r#"{ step = "prefix", method = "prefixquant" }"#, &["mixtral"]),
];

#[test]
fn a_plan_refuses_what_acting_would_and_nothing_else() {
    for name in FAMILIES.into_iter().chain(ORACLES) {
        let subject = Subject::oracle(name);
        for (recipe, refusing) in REFUSALS {
            let is_expected = match refusing {
                ["*", but @ ..] => !but.iter().any(|other| other.strip_prefix('!') == Some(name)),
                _ => refusing.contains(&name),
            };
            let acted = try_make(recipe, &subject.decoder, &mut subject.calibrator(subject.samples()));
            let acted = acted.err().map(|(_, error)| error);
            assert_eq!(planned(recipe, &subject.decoder).err(), acted, "{recipe} on {name}");
            assert_eq!(acted.is_some(), is_expected, "{recipe} on {name}: {acted:?}");
        }
    }
}

/// What a calibration set will decide is left to acting.
#[test]
fn a_plan_is_silent_where_calibration_decides() {
    let ranked = r#"{ step = "keep", method = "ranked", quantize = "top", groups = 1 }, { step = "weights", bits = 4, granularity = "group(24)" }"#;
    assert_eq!(planned(ranked, &oracle("mistral")), Ok(()));
    let reached = r#"{ step = "keep", method = "channels", count = 5, sites = ["down_in"] }, { step = "weights", bits = 4, granularity = "group(8)", sites = ["down_in"] }"#;
    assert_eq!(planned(reached, &oracle("mixtral")), Ok(()));
    assert!(matches!(planned(reached, &oracle("mistral")), Err(StepError::GroupWidth { width: 43, .. })));
}

/// The table of docs/families.md, "Methods": a tick where every setting of the registry's cases can be had.
#[test]
fn the_table_of_methods_and_families_is_what_a_plan_says() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/families.md");
    let page = std::fs::read_to_string(page).unwrap();
    let lines = page.lines().skip_while(|line| *line != "## Methods");
    let rows: Vec<Vec<&str>> = lines
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .take_while(|row: &Vec<&str>| row[0] != "refused")
        .collect();
    let families = &rows[0][1..];
    let oracles = |family: &str| -> Vec<&str> {
        match family {
            "llama" => ORACLES.to_vec(),
            "cohere" => vec!["cohere", "cohere-plus"],
            _ => FAMILIES.into_iter().filter(|name| *name == family).collect(),
        }
    };
    let mut columns: Vec<&str> = families.iter().flat_map(|family| oracles(family)).collect();
    columns.sort();
    let mut all: Vec<&str> = FAMILIES.into_iter().chain(ORACLES).collect();
    all.sort();
    assert_eq!(columns, all, "a column for every family");
    let named = |(step, method): &(&str, Option<&str>)| match method {
        Some(method) => format!("`{step}` `{method}`"),
        None => format!("`{step}`"),
    };
    let first: Vec<&str> = rows[2..].iter().map(|row| row[0]).collect();
    assert_eq!(first, STEPS.iter().map(named).collect::<Vec<_>>(), "a row for every line of the registry");
    let decoders: BTreeMap<&str, Decoder> = all.into_iter().map(|name| (name, oracle(name))).collect();
    for (row, case) in rows[2..].iter().zip(CASES) {
        for (family, cell) in families.iter().zip(&row[1..]) {
            // Groups that do not divide a width are no matter of the family.
            let is_refused = |error: &StepError| !matches!(error, StepError::GroupWidth { .. });
            let can = |name: &&str| {
                let mut planned =
                    case.settings.iter().map(|keys| planned(&case.with_rest(keys), &decoders[name]));
                planned.all(|said| said.err().is_none_or(|error| !is_refused(&error)))
            };
            let every = oracles(family).iter().all(can);
            assert_eq!(*cell == "✓", every, "{} on {family}: the table says `{cell}`", row[0]);
        }
    }
}
