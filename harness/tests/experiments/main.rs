//! The experiment file: what parses, what is refused with which words ([`refused`]), and that the docs and the shipped
//! experiments keep up.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use harness::experiment::{self, Experiment, ModelSource, Warning};
use harness::plan::{Globs, Plan, Selection, SelectionError};

mod papers;
mod refused;

const SMALL: &str = include_str!("../fixtures/small.toml");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the repository").to_path_buf()
}

fn parse(text: &str) -> Result<Experiment, String> {
    Experiment::parse(text, Path::new("x.toml")).map_err(|fault| fault.to_string())
}

/// The small experiment with one piece of text replaced.
fn with(from: &str, to: &str) -> Result<Experiment, String> {
    assert_eq!(SMALL.matches(from).count(), 1, "`{from}` must stand once in the fixture");
    parse(&SMALL.replace(from, to))
}

#[test]
fn defaults_are_written_out() {
    let experiment = with("bits = 8", "bits = 8, symmetric = false").unwrap();
    let step = serde_json::to_value(&experiment.recipes[0].steps[0]).unwrap();
    assert_eq!(
        step,
        serde_json::json!({
            "step": "weights", "bits": 8, "granularity": "channel", "symmetric": false, "convention": "zero-in-range",
            "solver": "rtn", "clip": 1.0, "sites": ["attn_in", "o_in", "mlp_in", "down_in"], "embeddings": false,
        })
    );
    assert_eq!(experiment.seeds, [0]);
    assert_eq!(
        (experiment.name.as_str(), experiment.evaluations[0].id().as_str()),
        ("x", "perplexity/gptq/builtin-stories-held-out/256/bos=every/windows=24")
    );
}

#[test]
fn what_is_allowed_and_not_meant_is_a_warning() {
    let warnings =
        |experiment: Experiment| experiment.warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
    let unused =
        "recipe `unused` (line 15) is defined but not swept: name it in [sweep] recipes, or delete it";
    assert_eq!(warnings(parse(SMALL).unwrap()), [unused]);
    let same = warnings(with("bits = 4", "bits = 8, granularity = \"channel\"").unwrap());
    assert!(
        same.contains(
            &"recipes `w8` and `w4` say the same: they are measured once and shown twice".to_string()
        ),
        "{same:?}"
    );
}

#[test]
fn models_come_from_three_places() {
    let source = |block: &str, name: &str| {
        let text = SMALL.replace("\"builtin/tiny-llama\"", &format!("\"{name}\""));
        parse(&format!("{text}\n{block}")).map(|experiment| experiment.models[0].source.clone())
    };
    let hub = |id: &str, revision: Option<&str>| ModelSource::Hub {
        id: id.into(),
        revision: revision.map(Into::into),
    };
    assert_eq!(source("", "builtin/tiny-llama"), Ok(ModelSource::Builtin("builtin/tiny-llama".into())));
    assert_eq!(source("", "a/b"), Ok(hub("a/b", None)));
    assert_eq!(source("[model.\"a/b\"]\nrevision = \"main\"", "a/b"), Ok(hub("a/b", Some("main"))));
    assert_eq!(source("[model.old]\nid = \"a/b\"\nrevision = \"v1\"", "old"), Ok(hub("a/b", Some("v1"))));
    assert_eq!(source("[model.here]\npath = \"f\"", "here"), Ok(ModelSource::Local { path: "f".into() }));
    for (block, name, complaint) in [
        (
            "[model.\"a/b\"]\npath = \"f\"",
            "a/b",
            "`path` makes `a/b` a local folder, whose name may not look like a hub id",
        ),
        (
            "[model.here]\npath = \"f\"\nrevision = \"v1\"",
            "here",
            "`revision` belongs to a hub id, not to a local folder",
        ),
        ("[model.here]\npath = \"f\"\nid = \"a/b\"", "here", "a model has `path` or `id`, not both"),
        ("[model.here]\nrevision = \"v1\"", "here", "`here` is no hub id, which reads organisation/name"),
        ("[model.\"builtin/x\"]\npath = \"f\"", "builtin/x", "`builtin/x`: the names builtin/… are taken"),
    ] {
        let message = source(block, name).unwrap_err();
        assert!(message.lines().next().unwrap().ends_with(complaint), "{message}");
    }
}

#[test]
fn expectations_must_meet_a_measurement() {
    let expect = |model: &str, recipe: &str, metric: &str, more: &str| {
        parse(&format!(
            "{SMALL}\n[[expect]]\nmodel = \"{model}\"\nrecipe = \"{recipe}\"\nmetric = \"{metric}\"\nvalue = 5.0\ntolerance = 0.1\nsource = \"own\"\n{more}"
        ))
    };
    let (model, metric) =
        ("builtin/tiny-llama", "perplexity/gptq/builtin-stories-held-out/256/bos=every/windows=24");
    assert_eq!(expect(model, "original", metric, "").unwrap().expectations.len(), 1);
    for (result, complaint) in [
        (
            expect("builtin/tiny-lama", "w8", metric, ""),
            "no planned measurement has the model `builtin/tiny-lama` (did you mean `builtin/tiny-llama`?)",
        ),
        (expect(model, "unused", metric, ""), "no planned measurement has the recipe `unused`"),
        (
            expect(model, "w8", &metric.replace("/windows=24", ""), ""),
            "no planned measurement has the metric `perplexity/gptq/builtin-stories-held-out/256/bos=every` (did you mean `perplexity/gptq/builtin-stories-held-out/256/bos=every/windows=24`?)",
        ),
        (
            expect(model, "w8", metric, "calibration = \"c4\""),
            "no planned measurement has the calibration `c4`",
        ),
        (
            expect("meta-llama/Llama-2-7b-hf", "w4", metric, ""),
            "`exclude` takes away what is expected of meta-llama/Llama-2-7b-hf, w4",
        ),
    ] {
        let message = result.unwrap_err();
        assert!(message.lines().next().unwrap().ends_with(complaint), "{message}");
    }
    let negative = expect(model, "w8", metric, "").unwrap();
    assert_eq!(negative.expectations[0].tolerance, 0.1);
    let text = format!(
        "{SMALL}\n[[expect]]\nmodel = \"{model}\"\nrecipe = \"w8\"\nmetric = \"{metric}\"\nvalue = nan\ntolerance = 0.1\nsource = \"own\""
    );
    assert!(parse(&text).unwrap_err().contains("`value` must be a finite number, not NaN"));
}

#[test]
fn one_measurement_is_asked_for_once() {
    let again = SMALL.split("[[evaluate]]").nth(1).unwrap();
    let message = parse(&format!("{SMALL}\n[[evaluate]]{again}")).unwrap_err();
    assert!(
        message.contains(
            "`perplexity/gptq/builtin-stories-held-out/256/bos=every/windows=24` is measured twice"
        ),
        "{message}"
    );
    let file = |path: &str| {
        format!(
            "\n[[evaluate]]\nmetric = \"perplexity\"\nprotocol = \"gptq\"\ncorpus = {{ path = \"{path}\" }}\nlength = 8\n"
        )
    };
    let message = parse(&format!("{SMALL}{}{}", file("a/text.utf8"), file("b/text.utf8"))).unwrap_err();
    assert!(message.contains("rename one of them"), "{message}");
}

#[test]
fn text_that_is_no_toml_names_the_place() {
    let message = parse("question = \"x\nreference = 3").unwrap_err();
    assert!(message.starts_with("x.toml:1:"), "{message}");
    let message = parse("").unwrap_err();
    assert!(message.starts_with("x.toml:1:1: the key `question` is missing"), "{message}");
}

#[test]
fn every_key_stands_in_the_docs() {
    let page = std::fs::read_to_string(repository().join("docs/format.md")).unwrap();
    let blocks = experiment::keys();
    assert!(blocks.len() >= 11 && blocks.iter().all(|(_, keys)| !keys.is_empty()), "{blocks:?}");
    for (block, keys) in blocks {
        for key in keys {
            assert!(
                page.contains(&format!("| `{key}` |")),
                "docs/format.md has no row for `{key}` of {block}"
            );
        }
    }
}

#[test]
fn the_example_of_the_docs_parses_and_plans() {
    let page = std::fs::read_to_string(repository().join("docs/format.md")).unwrap();
    let example =
        page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let experiment =
        Experiment::parse(example, Path::new("docs/format.md")).unwrap_or_else(|fault| panic!("{fault}"));
    // 3 models × (original + 2 recipes), less one exclusion; the calibration set and the seed multiply nothing.
    assert_eq!(Plan::new(&experiment).cells.len(), 8);
    assert_eq!(experiment.warnings, []);
}

#[test]
fn shipped_experiments_parse_and_plan_without_warnings() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(repository().join("experiments")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let mut experiment = Experiment::read(&path).unwrap_or_else(|error| panic!("{error}"));
            // A recipe that is called so asks what the wrong order costs, and is told that it is wrong.
            let meant = |warning: &Warning| matches!(warning, Warning::Order { recipe, .. } if recipe.ends_with("-reverse"));
            experiment.warnings.retain(|warning| !meant(warning));
            let mut plan = Plan::new(&experiment);
            // That an exclusion takes something away is what it is for.
            plan.notes.retain(|note| note.contains("takes no cell away"));
            assert!(plan.cells.len() > experiment.models.len(), "{}", path.display());
            assert_eq!((experiment.warnings, plan.notes), (vec![], vec![]), "{}", path.display());
            names.push(experiment.name);
        }
    }
    let page = std::fs::read_to_string(repository().join("experiments/README.md")).unwrap();
    assert!(names.len() >= 3, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("`{name}.toml`")), "experiments/README.md does not name {name}.toml");
    }
}

#[test]
fn filters_keep_and_drop_by_glob() {
    let plan = || Plan::new(&parse(SMALL).unwrap());
    let names = |plan: Plan| {
        plan.cells.iter().map(|cell| format!("{} {}", cell.model.label, cell.recipe.name)).collect::<Vec<_>>()
    };
    let globs = |keep: &[&str], drop: &[&str]| Globs {
        keep: keep.iter().map(ToString::to_string).collect(),
        drop: drop.iter().map(ToString::to_string).collect(),
    };
    let all = Selection::default();
    assert_eq!(
        names(all.apply(plan()).unwrap()),
        [
            "builtin/tiny-llama original",
            "builtin/tiny-llama w8",
            "builtin/tiny-llama w4",
            "meta-llama/Llama-2-7b-hf original",
            "meta-llama/Llama-2-7b-hf w8",
        ]
    );
    let one = Selection { models: globs(&["builtin/*"], &[]), recipes: globs(&["w4"], &[]), ..all.clone() };
    assert_eq!(names(one.apply(plan()).unwrap()), ["builtin/tiny-llama original", "builtin/tiny-llama w4"]);
    let bare = Selection { recipes: globs(&[], &["original", "w4"]), ..all.clone() };
    assert_eq!(names(bare.apply(plan()).unwrap()), ["builtin/tiny-llama w8", "meta-llama/Llama-2-7b-hf w8"]);
    let metric = Selection { tasks: globs(&["perplexity"], &[]), ..all.clone() };
    assert_eq!(names(metric.apply(plan()).unwrap()).len(), 5);

    let missing = Selection { recipes: globs(&["w88"], &[]), ..all.clone() };
    assert_eq!(
        missing.apply(plan()).unwrap_err().to_string(),
        "-r w88: no recipe of this experiment matches (did you mean `w8`?); there are: original, w8, w4"
    );
    let nothing = Selection { tasks: globs(&[], &["*"]), ..all };
    assert_eq!(nothing.apply(plan()).unwrap_err(), SelectionError::Nothing);
}
