//! The experiment file: what parses, what is refused with which words, and that the docs and the shipped experiments
//! keep up.

use std::path::{Path, PathBuf};

use harness::experiment::{self, Experiment, ModelSource};
use harness::plan::{Globs, Plan, Selection, SelectionError};

const SMALL: &str = include_str!("fixtures/small.toml");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in the repository")
        .to_path_buf()
}

fn parse(text: &str) -> Result<Experiment, String> {
    Experiment::parse(text, Path::new("x.toml")).map_err(|fault| fault.to_string())
}

/// The small experiment with one piece of text replaced.
fn with(from: &str, to: &str) -> Result<Experiment, String> {
    assert_eq!(
        SMALL.matches(from).count(),
        1,
        "`{from}` must stand once in the fixture"
    );
    parse(&SMALL.replace(from, to))
}

/// The message of the small experiment with one piece of text replaced.
#[track_caller]
fn refused(from: &str, to: &str) -> String {
    with(from, to).expect_err("this experiment must be refused")
}

/// The first line of the message, without the place.
#[track_caller]
fn complaint(from: &str, to: &str) -> String {
    let message = refused(from, to);
    let first = message.lines().next().expect("a message has a line");
    first
        .splitn(4, ':')
        .nth(3)
        .expect("file:line:column: message")
        .trim()
        .to_string()
}

#[test]
fn a_misspelt_key_is_pointed_at() {
    let text = include_str!("fixtures/misspelt-key.toml");
    let message = parse(text).unwrap_err();
    let expected = "\
x.toml:10:33: unknown key `granulrity` (did you mean `granularity`?)
   |
10 |   { step = \"weights\", bits = 8, granulrity = \"channel\" },
   |                                 ^^^^^^^^^^
   = in recipe.w8, step 1
   = keys here: bits, granularity, symmetric, convention, solver, clip, sites, embeddings";
    assert_eq!(message, expected);
}

#[test]
fn unknown_keys_of_every_block_are_named() {
    for (from, to, expected, block) in [
        (
            "question =",
            "qestion =",
            "unknown key `qestion` (did you mean `question`?)",
            "",
        ),
        (
            "exclude = [",
            "exlude = [",
            "unknown key `exlude` (did you mean `exclude`?)",
            "sweep",
        ),
        (
            "length = 256",
            "lenght = 256",
            "unknown key `lenght` (did you mean `length`?)",
            "evaluate 1",
        ),
        (
            "{ model = \"meta-llama/*\"",
            "{ modle = \"meta-llama/*\"",
            "unknown key `modle` (did you mean `model`?)",
            "sweep, exclude 1",
        ),
        (
            "[recipe.w4]\nsteps",
            "[recipe.w4]\nstep",
            "unknown key `step` (did you mean `steps`?)",
            "recipe.w4",
        ),
        ("limit = 24", "zebra = 24", "unknown key `zebra`", "evaluate 1"),
    ] {
        assert_eq!(complaint(from, to), expected);
        let message = refused(from, to);
        let place = message
            .lines()
            .find_map(|line| line.trim_start().strip_prefix("= in "))
            .unwrap_or_default();
        assert_eq!(place, block, "{message}");
    }
}

#[test]
fn misspelt_names_lead_to_the_nearest_one() {
    for (from, to, expected) in [
        (
            "\"w8\", \"w4\"",
            "\"w8\", \"w44\"",
            "unknown recipe `w44` (did you mean `w4`?)",
        ),
        (
            "\"builtin/tiny-llama\"",
            "\"builtin/tiny-lama\"",
            "unknown model `builtin/tiny-lama` (did you mean `builtin/tiny-llama`?)",
        ),
        ("\"builtin/tiny-llama\"", "\"smollm2\"", "unknown model `smollm2`"),
        (
            "recipes = [\"w8\"",
            "calibrations = [\"c4\"]\nrecipes = [\"w8\"",
            "unknown calibration `c4`",
        ),
        (
            "step = \"weights\", bits = 8",
            "step = \"wieghts\", bits = 8",
            "unknown step `wieghts` (did you mean `weights`?)",
        ),
        (
            "step = \"weights\", bits = 8",
            "bits = 8",
            "the key `step` is missing",
        ),
        (
            "\"perplexity\"",
            "\"perplexty\"",
            "unknown metric `perplexty` (did you mean `perplexity`?)",
        ),
        (
            "metric = \"perplexity\"",
            "task = \"piqa\"",
            "unknown task `piqa`: this version has no tasks yet",
        ),
        ("metric = \"perplexity\"\n", "", "the key `metric` is missing"),
        (
            "\"gptq\"",
            "\"gtpq\"",
            "`protocol`: unknown word `gtpq` (did you mean `gptq`?)",
        ),
        (
            "\"every\"",
            "\"evry\"",
            "`bos`: unknown word `evry` (did you mean `every`?)",
        ),
    ] {
        assert_eq!(complaint(from, to), expected);
    }
    let message = refused("\"w8\", \"w4\"", "\"w8\", \"w44\"");
    assert!(
        message.contains("x.toml:6:18:") && message.contains("recipes defined in this file: w8, w4, unused"),
        "{message}"
    );
}

#[test]
fn wrong_types_say_what_was_expected() {
    for (from, to, expected) in [
        (
            "bits = 8",
            "bits = \"8\"",
            "`bits`: expected a whole number from 0 to 255, not the string \"8\"",
        ),
        (
            "bits = 8",
            "bits = 8.5",
            "`bits`: expected a whole number from 0 to 255, not the number 8.5",
        ),
        (
            "bits = 8",
            "bits = 300",
            "`bits`: expected a whole number from 0 to 255, not the number 300",
        ),
        (
            "bits = 8",
            "bits = 8, clip = true",
            "`clip`: expected a number, not true",
        ),
        (
            "bits = 8",
            "bits = 8, symmetric = 1",
            "`symmetric`: expected true or false, not the number 1",
        ),
        (
            "recipes = [\"w8\", \"w4\"]",
            "recipes = \"w8\"",
            "`recipes`: expected a list, not the string \"w8\"",
        ),
        (
            "length = 256",
            "length = -1",
            "`length`: expected a whole number, 0 or more, not the number -1",
        ),
        (
            "corpus = \"builtin/stories-held-out\"",
            "corpus = 3",
            "`corpus`: expected the name of a corpus, or { path = \"…\" }, not the number 3",
        ),
        (
            "steps = [{ step = \"weights\", bits = 8 }]",
            "steps = 8",
            "`steps` must be a list of tables, not a number",
        ),
        (
            "steps = [{ step = \"weights\", bits = 8 }]",
            "steps = [8]",
            "`recipe.w8, step 1` must be a table, not a number",
        ),
        (
            "step = \"weights\", bits = 8",
            "step = 8",
            "`step` must be a string, not a number",
        ),
        (", bits = 8 }", " }", "the key `bits` is missing"),
        ("length = 256\n", "", "the key `length` is missing"),
    ] {
        assert_eq!(complaint(from, to), expected);
    }
}

#[test]
fn values_that_cannot_be_are_refused() {
    let step = "step = \"weights\", bits = 8";
    for (from, to, expected) in [
        (
            "bits = 8",
            "bits = 12",
            "`bits` must be 2 to 8, or 16 for no rounding, not 12",
        ),
        (
            "bits = 8",
            "bits = 1",
            "`bits` must be 2 to 8, or 16 for no rounding, not 1",
        ),
        (
            "bits = 8",
            "bits = 8, clip = 0.0",
            "`clip` must be above 0 and at most 1, not 0",
        ),
        (
            "bits = 8",
            "bits = 8, clip = 1.5",
            "`clip` must be above 0 and at most 1, not 1.5",
        ),
        (
            "bits = 8",
            "bits = 8, granularity = \"token\"",
            "`granularity` must be tensor, channel or group(n) in this step, not token",
        ),
        (
            step,
            "step = \"activations\", bits = 8, granularity = \"channel\"",
            "`granularity` must be tensor, token or group(n) in this step, not channel",
        ),
        (
            "bits = 8",
            "bits = 8, granularity = \"group(0)\"",
            "`granularity`: a group holds a positive number of channels, not `0`",
        ),
        (
            "bits = 8",
            "bits = 8, granularity = \"row\"",
            "`granularity`: unknown granularity `row`; expected tensor, channel, token or group(n)",
        ),
        (
            "bits = 8",
            "bits = 8, convention = \"awq\"",
            "`convention` awq is asymmetric, but this step says symmetric = true; symmetric conventions are absmax, absmax-full, smoothquant, atom, full-range",
        ),
        (
            "bits = 8",
            "bits = 8, symmetric = false, convention = \"atom\"",
            "`convention` atom is symmetric, but this step says symmetric = false; asymmetric conventions are zero-in-range, awq, atom-asymmetric, omniquant",
        ),
        (
            "bits = 8",
            "bits = 8, sites = [\"down_on\"]",
            "`sites` names the unknown site `down_on` (did you mean `down_in`?); sites here: attn_in, o_in, mlp_in, down_in, head_in",
        ),
        (
            "bits = 8",
            "bits = 8, sites = [\"q\"]",
            "`sites` names `q`, which no linear layer reads; sites here: attn_in, o_in, mlp_in, down_in, head_in",
        ),
        (
            "bits = 8",
            "bits = 8, sites = [\"o_in\", \"o_in\"]",
            "`sites` names `o_in` twice",
        ),
        (
            "bits = 8",
            "bits = 8, sites = []",
            "`sites` is empty, so the step would do nothing; leave the key out for the default",
        ),
        (
            "length = 256",
            "length = 1",
            "`length` must be at least 2, one token to see and one to predict, not 1",
        ),
        (
            "limit = 24",
            "limit = 0",
            "`limit` must be at least 1; leave it out for every window",
        ),
        (
            "[\"w8\", \"w4\"]",
            "[]",
            "`recipes` is empty: only the original would be measured",
        ),
        (
            "[\"builtin/tiny-llama\", \"meta-llama/Llama-2-7b-hf\"]",
            "[]",
            "`models` is empty: nothing would be measured",
        ),
        ("\"w8\", \"w4\"", "\"w8\", \"w8\"", "recipe `w8` is named twice"),
        (
            "\"w8\", \"w4\"",
            "\"original\", \"w4\"",
            "`original` is always measured: leave it out of `recipes`",
        ),
        (
            "[recipe.unused]",
            "[recipe.original]",
            "`original` is the model as it came, always measured, and cannot be defined",
        ),
        (
            "[recipe.unused]",
            "[recipe.\"two words\"]",
            "`two words` cannot name a recipe: letters, digits and - _ . + / only",
        ),
        (
            "{ model = \"meta-llama/*\", recipe = \"w4\" }",
            "{}",
            "an exclusion without `model`, `recipe` or `calibration` would take every cell away",
        ),
        (
            "steps = [{ step = \"weights\", bits = 8 }]",
            "steps = []",
            "`steps` is empty; the model without steps is `original`, which is always measured",
        ),
        (
            "recipes = [\"w8\"",
            "seeds = [0, 1, 0]\nrecipes = [\"w8\"",
            "seed 0 is named twice",
        ),
        (
            "recipes = [\"w8\"",
            "seeds = []\nrecipes = [\"w8\"",
            "`seeds` is empty; leave it out for [0]",
        ),
        (
            "question = \"Does the smallest experiment plan?\"",
            "question = \" \"",
            "`question` is empty: reports print it above the tables",
        ),
        ("[recipe.unused]", "[recipe.w8]", "duplicate key"),
    ] {
        assert_eq!(complaint(from, to), expected);
    }
}

#[test]
fn a_fault_points_at_the_value_it_is_about() {
    let message = refused("bits = 8", "bits = 12");
    let expected = "\
x.toml:10:37: `bits` must be 2 to 8, or 16 for no rounding, not 12
   |
10 | steps = [{ step = \"weights\", bits = 12 }]
   |                                     ^^
   = in recipe.w8, step 1
   = `quantscope explain weights` describes the step";
    assert_eq!(message, expected);
}

#[test]
fn steps_that_round_the_same_thing_are_refused() {
    let one = "steps = [{ step = \"weights\", bits = 8 }]";
    let twice =
        "steps = [{ step = \"weights\", bits = 8 }, { step = \"weights\", bits = 4, sites = [\"down_in\"] }]";
    assert_eq!(
        complaint(one, twice),
        "steps 1 and 2 both round the weights that read `down_in`"
    );
    let apart = "steps = [{ step = \"weights\", bits = 8, sites = [\"o_in\"] }, { step = \"weights\", bits = 4, sites = [\"down_in\"] }]";
    assert_eq!(with(one, apart).unwrap().recipes[0].steps.len(), 2);
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
        (
            "x",
            "perplexity/gptq/builtin-stories-held-out/256/bos=every/windows=24"
        )
    );
}

#[test]
fn what_is_allowed_and_not_meant_is_a_warning() {
    let warnings = |experiment: Experiment| {
        experiment
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
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
    assert_eq!(
        source("", "builtin/tiny-llama"),
        Ok(ModelSource::Builtin("builtin/tiny-llama".into()))
    );
    assert_eq!(source("", "a/b"), Ok(hub("a/b", None)));
    assert_eq!(
        source("[model.\"a/b\"]\nrevision = \"main\"", "a/b"),
        Ok(hub("a/b", Some("main")))
    );
    assert_eq!(
        source("[model.old]\nid = \"a/b\"\nrevision = \"v1\"", "old"),
        Ok(hub("a/b", Some("v1")))
    );
    assert_eq!(
        source("[model.here]\npath = \"f\"", "here"),
        Ok(ModelSource::Local { path: "f".into() })
    );
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
        (
            "[model.here]\npath = \"f\"\nid = \"a/b\"",
            "here",
            "a model has `path` or `id`, not both",
        ),
        (
            "[model.here]\nrevision = \"v1\"",
            "here",
            "`here` is no hub id, which reads organisation/name",
        ),
        (
            "[model.\"builtin/x\"]\npath = \"f\"",
            "builtin/x",
            "`builtin/x`: the names builtin/… are taken",
        ),
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
    let (model, metric) = (
        "builtin/tiny-llama",
        "perplexity/gptq/builtin-stories-held-out/256/bos=every/windows=24",
    );
    assert_eq!(
        expect(model, "original", metric, "").unwrap().expectations.len(),
        1
    );
    for (result, complaint) in [
        (
            expect("builtin/tiny-lama", "w8", metric, ""),
            "no planned measurement has the model `builtin/tiny-lama` (did you mean `builtin/tiny-llama`?)",
        ),
        (
            expect(model, "unused", metric, ""),
            "no planned measurement has the recipe `unused`",
        ),
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
    assert!(
        parse(&text)
            .unwrap_err()
            .contains("`value` must be a finite number, not NaN")
    );
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
    assert!(
        message.starts_with("x.toml:1:1: the key `question` is missing"),
        "{message}"
    );
}

#[test]
fn every_key_stands_in_the_docs() {
    let page = std::fs::read_to_string(repository().join("docs/format.md")).unwrap();
    let blocks = experiment::keys();
    assert!(
        blocks.len() >= 11 && blocks.iter().all(|(_, keys)| !keys.is_empty()),
        "{blocks:?}"
    );
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
    let example = page
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("an example");
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
            let experiment = Experiment::read(&path).unwrap_or_else(|error| panic!("{error}"));
            let plan = Plan::new(&experiment);
            assert!(plan.cells.len() > experiment.models.len(), "{}", path.display());
            assert_eq!(
                (experiment.warnings, plan.notes),
                (vec![], vec![]),
                "{}",
                path.display()
            );
            names.push(experiment.name);
        }
    }
    let page = std::fs::read_to_string(repository().join("experiments/README.md")).unwrap();
    assert!(names.len() >= 3, "{names:?}");
    for name in names {
        assert!(
            page.contains(&format!("`{name}.toml`")),
            "experiments/README.md does not name {name}.toml"
        );
    }
}

#[test]
fn filters_keep_and_drop_by_glob() {
    let plan = || Plan::new(&parse(SMALL).unwrap());
    let names = |plan: Plan| {
        plan.cells
            .iter()
            .map(|cell| format!("{} {}", cell.model.label, cell.recipe.name))
            .collect::<Vec<_>>()
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
    let one = Selection {
        models: globs(&["builtin/*"], &[]),
        recipes: globs(&["w4"], &[]),
        ..all.clone()
    };
    assert_eq!(
        names(one.apply(plan()).unwrap()),
        ["builtin/tiny-llama original", "builtin/tiny-llama w4"]
    );
    let bare = Selection {
        recipes: globs(&[], &["original", "w4"]),
        ..all.clone()
    };
    assert_eq!(
        names(bare.apply(plan()).unwrap()),
        ["builtin/tiny-llama w8", "meta-llama/Llama-2-7b-hf w8"]
    );
    let metric = Selection {
        tasks: globs(&["perplexity"], &[]),
        ..all.clone()
    };
    assert_eq!(names(metric.apply(plan()).unwrap()).len(), 5);

    let missing = Selection {
        recipes: globs(&["w88"], &[]),
        ..all.clone()
    };
    assert_eq!(
        missing.apply(plan()).unwrap_err().to_string(),
        "-r w88: no recipe of this experiment matches (did you mean `w8`?); there are: original, w8, w4"
    );
    let nothing = Selection {
        tasks: globs(&[], &["*"]),
        ..all
    };
    assert_eq!(nothing.apply(plan()).unwrap_err(), SelectionError::Nothing);
}
