//! What is refused, with which words and where they point.

use harness::data::CorpusRef;
use harness::experiment::Calibration;

use crate::{parse, with};

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
    first.splitn(4, ':').nth(3).expect("file:line:column: message").trim().to_string()
}

#[test]
fn a_misspelt_key_is_pointed_at() {
    let text = include_str!("../fixtures/misspelt-key.toml");
    let message = parse(text).unwrap_err();
    let expected = "\
x.toml:10:33: unknown key `granulrity` (did you mean `granularity`?)
   |
10 |   { step = \"weights\", bits = 8, granulrity = \"channel\" },
   |                                 ^^^^^^^^^^
   = in recipe.w8, step 1
   = keys here: bits, granularity, ragged, symmetric, convention, solver, clip, sites, embeddings, damping, act-order, groups, hessian-inputs, sequential, asymmetric-calibration";
    assert_eq!(message, expected);
}

#[test]
fn unknown_keys_of_every_block_are_named() {
    for (from, to, expected, block) in [
        ("question =", "qestion =", "unknown key `qestion` (did you mean `question`?)", ""),
        ("exclude = [", "exlude = [", "unknown key `exlude` (did you mean `exclude`?)", "sweep"),
        ("length = 256", "lenght = 256", "unknown key `lenght` (did you mean `length`?)", "evaluate 1"),
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
        let place =
            message.lines().find_map(|line| line.trim_start().strip_prefix("= in ")).unwrap_or_default();
        assert_eq!(place, block, "{message}");
    }
}

#[test]
fn misspelt_names_lead_to_the_nearest_one() {
    for (from, to, expected) in [
        ("\"w8\", \"w4\"", "\"w8\", \"w44\"", "unknown recipe `w44` (did you mean `w4`?)"),
        (
            "\"builtin/tiny-llama\"",
            "\"builtin/tiny-lama\"",
            "unknown model `builtin/tiny-lama` (did you mean `builtin/tiny-llama`?)",
        ),
        ("\"builtin/tiny-llama\"", "\"smollm2\"", "unknown model `smollm2`"),
        ("recipes = [\"w8\"", "calibrations = [\"c4\"]\nrecipes = [\"w8\"", "unknown calibration `c4`"),
        (
            "\"builtin/stories-held-out\"",
            "\"builtin/stories-heldout\"",
            "unknown corpus `builtin/stories-heldout` (did you mean `builtin/stories-held-out`?)",
        ),
        (
            "step = \"weights\", bits = 8",
            "step = \"wieghts\", bits = 8",
            "unknown step `wieghts` (did you mean `weights`?)",
        ),
        ("step = \"weights\", bits = 8", "bits = 8", "the key `step` is missing"),
        ("\"perplexity\"", "\"perplexty\"", "unknown metric `perplexty` (did you mean `perplexity`?)"),
        ("metric = \"perplexity\"", "task = \"pica\"", "unknown task `pica` (did you mean `piqa`?)"),
        ("metric = \"perplexity\"\n", "", "the key `metric` or `task` is missing"),
        ("\"gptq\"", "\"gtpq\"", "`protocol`: unknown word `gtpq` (did you mean `gptq`?)"),
        ("\"every\"", "\"evry\"", "`bos`: unknown word `evry` (did you mean `every`?)"),
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
        ("bits = 8", "bits = \"8\"", "`bits`: expected a whole number from 0 to 255, not the string \"8\""),
        ("bits = 8", "bits = 8.5", "`bits`: expected a whole number from 0 to 255, not the number 8.5"),
        ("bits = 8", "bits = 300", "`bits`: expected a whole number from 0 to 255, not the number 300"),
        ("bits = 8", "bits = 8, clip = true", "`clip`: expected a number, \"mse\" or \"output\", not true"),
        ("bits = 8", "bits = 8, symmetric = 1", "`symmetric`: expected true or false, not the number 1"),
        (
            "recipes = [\"w8\", \"w4\"]",
            "recipes = \"w8\"",
            "`recipes`: expected a list, not the string \"w8\"",
        ),
        ("length = 256", "length = -1", "`length`: expected a whole number, 0 or more, not the number -1"),
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
        ("step = \"weights\", bits = 8", "step = 8", "`step` must be a string, not a number"),
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
        ("bits = 8", "bits = 12", "`bits` must be 2 to 8, or 16 for no rounding, not 12"),
        ("bits = 8", "bits = 1", "`bits` must be 2 to 8, or 16 for no rounding, not 1"),
        ("bits = 8", "bits = 8, clip = 0.0", "`clip` must be above 0 and at most 1, not 0"),
        ("bits = 8", "bits = 8, clip = 1.5", "`clip` must be above 0 and at most 1, not 1.5"),
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
            "`convention` awq is asymmetric, but this step says symmetric = true; symmetric conventions are absmax, absmax-full, smoothquant, atom, full-range, fp8-e4m3, mxfp4, nvfp4",
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
        ("bits = 8", "bits = 8, sites = [\"o_in\", \"o_in\"]", "`sites` names `o_in` twice"),
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
        ("limit = 24", "limit = 0", "`limit` must be at least 1; leave it out for every window"),
        ("[\"w8\", \"w4\"]", "[]", "`recipes` is empty: only the original would be measured"),
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
        ("recipes = [\"w8\"", "seeds = [0, 1, 0]\nrecipes = [\"w8\"", "seed 0 is named twice"),
        ("recipes = [\"w8\"", "seeds = []\nrecipes = [\"w8\"", "`seeds` is empty; leave it out for [0]"),
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
    assert_eq!(complaint(one, twice), "steps 1 and 2 both round the weights that read `down_in`");
    let apart = "steps = [{ step = \"weights\", bits = 8, sites = [\"o_in\"] }, { step = \"weights\", bits = 4, sites = [\"down_in\"] }]";
    assert_eq!(with(one, apart).unwrap().recipes[0].steps.len(), 2);
}

/// The only calibration set of the small experiment with a block of these keys.
fn calibrated(keys: &str) -> Result<Calibration, String> {
    let swept = "calibrations = [\"c\"]\nrecipes = [\"w8\"";
    let text = include_str!("../fixtures/small.toml").replace("recipes = [\"w8\"", swept);
    let experiment = parse(&format!("{text}\n[calibration.c]\n{keys}\n"))?;
    Ok(experiment.calibrations.into_iter().next().unwrap())
}

#[test]
fn generated_corpora_calibrate_and_measure_nothing() {
    for name in ["nonsense", "random-tokens"] {
        let set = calibrated(&format!("corpus = \"{name}\"\nsamples = 2\nlength = 8")).unwrap();
        assert_eq!(set.corpus, CorpusRef::Named(name.into()));
        let message = refused("\"builtin/stories-held-out\"", &format!("\"{name}\""));
        assert!(
            message.contains(&format!("corpus `{name}` is no text: nothing is measured on it")),
            "{message}"
        );
    }
    let message = calibrated("corpus = \"nonsens\"\nsamples = 2\nlength = 8").unwrap_err();
    assert!(message.contains("unknown corpus `nonsens` (did you mean `nonsense`?)"), "{message}");
    assert!(message.contains("random-tokens, or { path"), "{message}");
}

#[test]
fn calibration_blocks_have_defaults_and_bounds() {
    let keys = "corpus = \"c4\"\nsamples = 2\nlength = 8";
    let set = calibrated(keys).unwrap();
    let written = r#"{"corpus":"c4","samples":2,"length":8,"sampler":"windows","bos":"tokenizer"}"#;
    assert_eq!(
        (set.description().to_string().as_str(), set.repeat, set.allow_overlap),
        (written, true, false)
    );
    // What is allowed decides no sample, so it is not part of what a cell is.
    let allowed = calibrated(&format!("{keys}\nallow-overlap = true")).unwrap();
    assert_eq!((allowed.allow_overlap, allowed.description()), (true, set.description()));
    let once = calibrated(&format!("{keys}\nrepeat = false")).unwrap();
    assert_eq!(once.description()["repeat"], false);
    for (from, to, expected) in [
        ("samples = 2", "samples = 0", "`samples` must be at least 1"),
        ("length = 8", "length = 1", "`length` must be at least 2, not 1"),
        (
            "length = 8",
            "length = 8\nallow_overlap = true",
            "unknown key `allow_overlap` (did you mean `allow-overlap`?)",
        ),
        (
            "length = 8",
            "length = 8\nsampler = \"window\"",
            "`sampler`: unknown word `window` (did you mean `windows`?)",
        ),
        ("\"c4\"", "\"c5\"", "unknown corpus `c5` (did you mean `c4`?)"),
    ] {
        let message = calibrated(&keys.replace(from, to)).unwrap_err();
        assert!(message.lines().next().unwrap().ends_with(expected), "{message}");
    }
}

#[test]
fn a_corpus_may_be_a_table_with_one_name() {
    use harness::data::half::Half;
    let keys = |corpus: &str| format!("corpus = {corpus}\nsamples = 2\nlength = 8");
    let set = calibrated(&keys("{ name = \"c4\", half = \"second\" }")).unwrap();
    let whole = Box::new(CorpusRef::Named("c4".into()));
    assert_eq!(set.corpus, CorpusRef::Half { whole, half: Half::Second });
    assert_eq!(set.corpus.label(), "c4-second");
    let task = calibrated(&keys("{ task = \"piqa\", half = \"first\" }")).unwrap().corpus;
    assert_eq!(task, CorpusRef::Task { task: "piqa".into(), half: Some(Half::First), items: None });
    assert_eq!(calibrated(&keys("{ name = \"c4\" }")).unwrap().corpus, CorpusRef::Named("c4".into()));
    for (corpus, expected) in [
        ("{ name = \"c4\", path = \"x\" }", "a corpus has one of `path`, `name` and `task`"),
        ("{ half = \"first\" }", "a corpus has one of `path`, `name` and `task`"),
        ("{ name = \"c4\", field = \"text\" }", "`field` belongs to `path`"),
        ("{ name = \"c4\", items = \"x\" }", "`items` belongs to `task`"),
        ("{ name = \"c4\", half = \"third\" }", "unknown word `third`"),
        ("{ name = \"c5\", half = \"first\" }", "unknown corpus `c5` (did you mean `c4`?)"),
        ("{ name = \"nonsense\", half = \"first\" }", "corpus `nonsense` is generated: it has no halves"),
        ("{ task = \"pika\", half = \"first\" }", "unknown task `pika` (did you mean `piqa`?)"),
    ] {
        let message = calibrated(&keys(corpus)).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
    let message = refused("\"builtin/stories-held-out\"", "{ task = \"piqa\", half = \"first\" }");
    assert!(message.contains("the questions and answers of `piqa` are no text to measure on"), "{message}");
}

#[test]
fn references_are_swept_and_their_own() {
    let keys = "corpus = \"c4\"\nsamples = 2\nlength = 8";
    let set = calibrated(&format!("{keys}\nreference = \"c\"\nseeds = [4, 2]")).unwrap();
    assert_eq!((set.reference.as_deref(), set.seeds.clone()), (Some("c"), Some(vec![4, 2])));
    // Neither decides a sample.
    assert_eq!(set.description(), calibrated(keys).unwrap().description());
    let message = calibrated(&format!("{keys}\nreference = \"d\"")).unwrap_err();
    assert!(message.contains("`reference` names the set `d`, which is not swept"), "{message}");
    let message = calibrated(&format!("{keys}\nseeds = []")).unwrap_err();
    assert!(message.contains("`seeds` is empty; leave it out for those of [sweep]"), "{message}");
}
