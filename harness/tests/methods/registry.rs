//! A loop over the registry of steps: a new one is tested on the day it is added.

use std::collections::BTreeMap;

use harness::experiment;
use harness::quantize::direct::Direct;
use harness::quantize::steps::{STEPS, Stage, Step};
use models::{Decoder, Off};
use serde_json::{Map, Value};

use crate::recipes::{
    Made, NAIVE, ORACLES, builtin, difference, logits, make, oracle, reference, scrambled, steps,
    without_first,
};

/// What the loop needs to know of a step and method.
pub struct Case {
    pub step: &'static str,
    pub method: Option<&'static str>,
    /// Keys with which it is tried, the least that it needs first. Small searches: every test runs all of them.
    pub settings: &'static [&'static str],
    /// The keys with which it does nothing, if there are such.
    pub mildest: Option<&'static str>,
    /// Which settings may give another model when the samples of the calibration set come in another order, and why.
    order: &'static [(&'static str, &'static str)],
}

/// One line for each line of the registry.
pub const CASES: &[Case] = &[
    Case {
        step: "activations",
        method: None,
        settings: &[
            "bits = 8",
            "bits = 4, granularity = \"group(8)\", symmetric = false, clip = 0.9",
            "bits = 4, convention = \"mxfp4\", granularity = \"group(32)\", sites = [\"attn_in\"]",
            "bits = 8, granularity = \"tensor\", observer = \"max\"",
            "bits = 8, granularity = \"tensor\", observer = \"percentile\", percentile = 99.0",
            "bits = 8, granularity = \"tensor\", observer = \"ema\", momentum = 0.5",
        ],
        mildest: Some("bits = 16"),
        order: &[("ema", "a moving average weighs the last samples most")],
    },
    Case {
        step: "keep",
        method: Some("channels"),
        settings: &["count = 2", "fraction = 0.1, by = \"mean\", bits = 16, sites = [\"down_in\"]"],
        mildest: None,
        order: &[("count", "sums of squares in another order may exchange neighbours")],
    },
    Case {
        step: "keep",
        method: Some("qfem"),
        settings: &[
            "top = 2",
            "alpha = 1.5",
            "alpha = \"auto\"",
            "top = 3, ratio = \"pooled\", of = \"present\"",
        ],
        mildest: Some("alpha = inf"),
        order: &[("auto", "it measures the last eighth of the samples")],
    },
    Case {
        step: "keep",
        method: Some("ranked"),
        settings: &["quantize = \"top\", groups = 2", "quantize = \"middle\", groups = 3"],
        mildest: Some("quantize = \"bottom\", groups = 1000"),
        order: &[],
    },
    Case {
        step: "kv",
        method: None,
        settings: &[
            "bits = 4",
            "bits = 3, granularity = \"token\", symmetric = true, prompt = 2",
            "key-bits = 2, value-bits = 16, granularity = \"group(4)\", keys = \"before-rope\"",
            "bits = 4, granularity = \"channel\", clip = 0.95, prompt = 1",
        ],
        mildest: Some("bits = 16"),
        order: &[],
    },
    Case { step: "prefix", method: Some("bos"), settings: &[""], mildest: None, order: &[] },
    Case {
        step: "prefix",
        method: Some("prefixquant"),
        settings: &["", "eta = 8.0"],
        mildest: None,
        order: &[],
    },
    Case {
        step: "prefix",
        method: Some("qfep"),
        settings: &["", "candidates = 2, contexts = 5, bos = false"],
        mildest: None,
        order: &[],
    },
    Case { step: "prefix", method: Some("random"), settings: &["", "length = 5"], mildest: None, order: &[] },
    Case {
        step: "prefix",
        method: Some("tokens"),
        settings: &["tokens = [3, 5]"],
        mildest: None,
        order: &[],
    },
    Case {
        step: "rotate",
        method: Some("best-of"),
        settings: &[
            "candidates = 2, samples = 2",
            "candidates = 2, samples = 2, matrix = \"random-orthogonal\", sites = [\"residual\", \"v\"]",
        ],
        mildest: None,
        order: &[("samples", "it measures the first so many")],
    },
    Case {
        step: "rotate",
        method: Some("cayley"),
        settings: &["samples = 3, steps = 8", "samples = 2, steps = 4, sites = [\"v\", \"qk\"], rows = 99"],
        mildest: None,
        order: &[("samples", "it reads the first so many")],
    },
    Case {
        step: "rotate",
        method: Some("hadamard"),
        settings: &[
            "",
            "sites = [\"residual\", \"v\", \"down_in\", \"qk\"], random-signs = false",
            "fallback = \"random-orthogonal\", draw = 1",
        ],
        mildest: None,
        order: &[],
    },
    Case {
        step: "rotate",
        method: Some("random-orthogonal"),
        settings: &["", "sites = [\"v\", \"qk\"], draw = 3"],
        mildest: None,
        order: &[],
    },
    Case {
        step: "smooth",
        method: Some("awq"),
        settings: &[
            "bits = 4, samples = 8, points = 4",
            "bits = 3, samples = 8, points = 3, granularity = \"group(8)\", symmetric = false, sites = [\"down_in\"]",
        ],
        mildest: None,
        order: &[("bits", "a mean over tokens in f32 depends on their order in its last bits")],
    },
    Case {
        step: "smooth",
        method: Some("osplus"),
        settings: &["samples = 8, steps = 6", "samples = 8, steps = 4, bits = 4, sites = [\"down_in\"]"],
        mildest: None,
        order: &[],
    },
    Case {
        step: "smooth",
        method: Some("smoothquant"),
        settings: &["", "alpha = 0.8, sites = [\"attn_in\", \"o_in\", \"mlp_in\", \"down_in\"]"],
        mildest: None,
        order: &[],
    },
    Case {
        step: "tune",
        method: Some("bisup-style"),
        settings: &[
            "samples = 2, held-out = 1, length = 16, epochs = 1, components = [\"low-rank\"], rank = 16, start = \"svd\"",
            "samples = 3, held-out = 2, length = 16, epochs = 1",
        ],
        mildest: Some("samples = 2, held-out = 1, epochs = 0, components = [\"low-rank\"]"),
        order: &[("samples", "the last of them decide, and each moves what the next one meets")],
    },
    Case {
        step: "weights",
        method: None,
        settings: &[
            "bits = 8",
            "bits = 3, granularity = \"group(8)\", symmetric = false, embeddings = true",
            "bits = 4, granularity = \"group(24)\", ragged = true, clip = \"mse\"",
            "bits = 4, solver = \"gptq\"",
            "bits = 4, solver = \"gptq\", granularity = \"group(8)\", act-order = true, groups = \"static\", \
             hessian-inputs = \"fp\"",
            "bits = 4, clip = \"output\"",
            "bits = 8, convention = \"fp8-e4m3\", clip = \"mse\"",
            "bits = 4, convention = \"nvfp4\", granularity = \"group(16)\", ragged = true, solver = \"gptq\"",
        ],
        mildest: Some("bits = 16"),
        order: &[
            ("gptq", "sums in another order may put a weight on the other side of a boundary"),
            ("output", "as gptq"),
        ],
    },
];

impl Case {
    pub fn name(&self) -> String {
        [self.step, self.method.unwrap_or_default()].join(" ")
    }

    /// The step alone.
    pub fn alone(&self, keys: &str) -> String {
        let method = self.method.map(|method| format!("method = {method:?}"));
        let parts = [Some(format!("step = {:?}", self.step)), method, Some(keys.to_string())];
        let parts: Vec<String> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
        format!("{{ {} }}", parts.join(", "))
    }

    /// What completes it to W8A8.
    fn rest(&self) -> String {
        let halves: Vec<&str> = NAIVE.split("}, {").collect();
        match self.step {
            "weights" => format!("{{{}", halves[1]),
            "activations" => format!("{}}}", halves[0]),
            _ => NAIVE.to_string(),
        }
    }

    /// The step with its rest: in front of it, but for what comes last.
    pub fn with_rest(&self, keys: &str) -> String {
        match self.step {
            "tune" => format!("{}, {}", self.rest(), self.alone(keys)),
            _ => format!("{}, {}", self.alone(keys), self.rest()),
        }
    }

    /// The step's key in what was fitted, with its rest.
    fn key(&self) -> String {
        format!("{}.{}", if self.step == "tune" { 2 } else { 0 }, self.step)
    }

    /// Whether it may give another model when the samples come in another order.
    pub fn depends_on_order(&self, keys: &str) -> bool {
        self.order.iter().any(|(word, _)| keys.contains(word))
    }

    pub fn read(&self, keys: &str) -> Step {
        let steps = steps(&self.with_rest(keys));
        steps.into_iter().find(|step| step.name() == self.step).expect("the case's own step is among them")
    }
}

/// A model, its BOS and its vocabulary.
pub struct Subject {
    pub name: &'static str,
    pub decoder: Decoder,
    start: u32,
}

impl Subject {
    pub fn samples(&self) -> Vec<Vec<u32>> {
        scrambled(8, 24, self.decoder.architecture.vocabulary, self.start)
    }

    pub fn calibrator(&self, samples: Vec<Vec<u32>>) -> Direct {
        let mut calibrator = Direct::new(samples, Some(self.start));
        calibrator.ordinary = (3..self.decoder.architecture.vocabulary as u32).collect();
        calibrator
    }

    #[track_caller]
    pub fn make(&self, recipe: &str) -> Made {
        make(recipe, &self.decoder, &mut self.calibrator(self.samples()))
    }

    /// Sequences that no calibration has seen.
    pub fn probes(&self) -> Vec<Vec<u32>> {
        scrambled(12, 40, self.decoder.architecture.vocabulary, self.start).split_off(9)
    }
}

impl Subject {
    /// A checkpoint of the `models` crate's oracle.
    pub fn oracle(name: &'static str) -> Self {
        Self { name, decoder: oracle(name), start: 1 }
    }
}

pub fn oracles() -> Vec<Subject> {
    ORACLES.map(Subject::oracle).into()
}

fn builtins() -> Vec<Subject> {
    let names = ["builtin/tiny-llama", "builtin/tiny-llama-spiky"];
    names.map(|name| Subject { name, decoder: builtin(name).1, start: 0 }).into()
}

/// Every case with every setting.
pub fn settings() -> impl Iterator<Item = (&'static Case, &'static str)> {
    CASES.iter().flat_map(|case| case.settings.iter().map(move |keys| (case, *keys)))
}

#[test]
fn every_line_of_the_registry_has_a_case() {
    let cases: Vec<_> = CASES.iter().map(|case| (case.step, case.method)).collect();
    for entry in STEPS {
        assert!(
            cases.contains(entry),
            "{entry:?} is new: add a line to CASES in harness/tests/methods/registry.rs, with the keys it needs"
        );
    }
    assert_eq!(cases, STEPS, "CASES follows the registry, line by line; a step that is gone leaves both");
}

#[test]
fn at_its_mildest_a_step_changes_no_bit() {
    for subject in oracles() {
        for case in CASES {
            changes_no_bit_at_its_mildest(&subject, case);
        }
    }
}

/// Whether the case has a mildest setting; that it changes nothing.
pub fn changes_no_bit_at_its_mildest(subject: &Subject, case: &Case) -> bool {
    let Some(mildest) = case.mildest else { return false };
    let probes = subject.probes();
    let (mut with, mut without) = (subject.make(&case.with_rest(mildest)), subject.make(&case.rest()));
    let what = format!("{} on {}", case.name(), subject.name);
    let (with_bits, with_rules, _) = with.state();
    let (bits, rules, _) = without.state();
    assert!(with_bits == bits && with_rules == rules, "{what}");
    assert_eq!(with.logits(&probes), without.logits(&probes), "{what}");
    // And what is not mild shows, or the comparison would see nothing.
    let strong = subject.make(&case.with_rest(case.settings[0]));
    let (strong_bits, strong_rules, _) = strong.state();
    assert!(strong_bits != bits || strong_rules != rules, "{what} does nothing at all");
    true
}

#[test]
fn what_claims_to_preserve_the_function_does() {
    let mut tried = 0;
    for subject in oracles().into_iter().chain(builtins()) {
        for (case, keys) in settings() {
            let Some(is_changed) = preserves_the_function_if_it_claims_so(&subject, case, keys) else {
                continue;
            };
            assert!(is_changed, "{} {{ {keys} }} on {} changes nothing", case.name(), subject.name);
            tried += 1;
        }
    }
    assert_eq!(tried, 6 * 15, "fifteen settings of seven methods on six models; more methods, more");
}

/// That a step which claims to preserve the function does; `None` where it claims nothing, else whether it changed a bit.
pub fn preserves_the_function_if_it_claims_so(subject: &Subject, case: &Case, keys: &str) -> Option<bool> {
    if !case.read(keys).method().preserves_function() {
        return None;
    }
    let probes = subject.probes();
    let expected = logits(&mut subject.decoder.clone(), &mut Off, &probes);
    let what = format!("{} {{ {keys} }} on {}", case.name(), subject.name);
    let mut made = subject.make(&case.alone(keys));
    let is_changed = made.state() != subject.make("").state();
    let error = difference(&made.logits(&probes), &expected);
    assert!(error < 1e-4, "{what}: {error:e}");
    let report = &made.fitted[&format!("0.{}", case.step)]["equivalence"];
    assert!(report["relative"].as_f64().unwrap() <= report["tolerance"].as_f64().unwrap(), "{what}");
    // Behind a prefix, too, whose keys and values must follow.
    let behind =
        format!(r#"{{ step = "prefix", method = "tokens", tokens = [3, 5] }}, {}"#, case.alone(keys));
    let mut made = subject.make(&behind);
    let fed = without_first(&probes);
    let expected = logits(&mut reference(&subject.decoder, &made), &mut Off, &fed);
    let error = difference(&made.logits(&fed), &expected);
    assert!(error < 1e-4, "{what} behind a prefix: {error:e}");
    Some(is_changed)
}

#[test]
fn the_same_inputs_give_the_same_model() {
    for subject in oracles().into_iter().take(2).chain(builtins().into_iter().skip(1)) {
        for (case, keys) in settings() {
            is_made_again(&subject, case, keys, &subject.make(&case.with_rest(keys)));
        }
    }
}

/// That the case with its rest gives once more what it has made.
pub fn is_made_again(subject: &Subject, case: &Case, keys: &str, first: &Made) {
    let second = subject.make(&case.with_rest(keys));
    let what = format!("{} {{ {keys} }} on {}", case.name(), subject.name);
    assert!(first.state() == second.state(), "{what}");
    assert_eq!(first.fitted, second.fitted, "{what}");
    assert!(first.fitted.contains_key(&case.key()), "{what}: {:?}", first.fitted);
}

/// Recipes share statistics and searches: what one of them has asked for must be no other's answer.
#[test]
fn what_is_remembered_between_recipes_is_what_they_would_have_found() {
    let tokens = r#"{ step = "prefix", method = "tokens", tokens = [3, 5] }, "#;
    let searched = r#"{ step = "prefix", method = "qfep" }, "#;
    let smooth = r#"{ step = "smooth", method = "smoothquant", alpha = 0.6 }, "#;
    for subject in oracles().into_iter().take(2).chain(builtins().into_iter().skip(1)) {
        let mut shared = subject.calibrator(subject.samples());
        for before in ["", tokens, searched, smooth] {
            for (case, keys) in settings() {
                let stage = case.read(keys).method().stage();
                if (case.step == "prefix" && before.contains("prefix"))
                    || stage < Stage::Smooth && before == smooth
                {
                    continue;
                }
                let recipe = format!("{before}{}", case.with_rest(keys));
                let remembered = make(&recipe, &subject.decoder, &mut shared);
                let found = subject.make(&recipe);
                assert!(remembered.state() == found.state(), "{recipe} on {}", subject.name);
                assert_eq!(remembered.fitted, found.fitted, "{recipe} on {}", subject.name);
            }
        }
    }
}

#[test]
fn the_order_of_samples_decides_nothing() {
    for subject in oracles().into_iter().take(2).chain(builtins().into_iter().skip(1)) {
        for (case, keys) in settings() {
            if !case.depends_on_order(keys) {
                is_made_of_samples_in_any_order(&subject, case, keys, subject.make(&case.with_rest(keys)));
            }
        }
    }
}

/// That the case with its rest gives what it has made when its samples come in another order.
pub fn is_made_of_samples_in_any_order(subject: &Subject, case: &Case, keys: &str, first: Made) {
    let mut samples = subject.samples();
    samples.reverse();
    samples.swap(1, 4);
    let second = make(&case.with_rest(keys), &subject.decoder, &mut subject.calibrator(samples));
    let what = format!("{} {{ {keys} }} on {}", case.name(), subject.name);
    assert!(first.state() == second.state(), "{what}: {:?} {:?}", first.fitted, second.fitted);
    // Sums in another order may differ in their last bits.
    let (a, b) = (Value::Object(first.fitted), Value::Object(second.fitted));
    assert!(agree(&a, &b), "{what}:\n{a}\n{b}");
}

fn agree(a: &Value, b: &Value) -> bool {
    let keys = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            keys(a) == keys(b) && a.iter().all(|(key, value)| agree(value, &b[key]))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| agree(a, b)),
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-5 * a.abs().max(b.abs())
        }
        _ => a == b,
    }
}

#[test]
fn what_needs_no_calibration_set_looks_at_none() {
    for subject in oracles().into_iter().take(1).chain(builtins().into_iter().skip(1)) {
        let vocabulary = subject.decoder.architecture.vocabulary;
        let probes = subject.probes();
        let mut recipes: Vec<String> = vec![NAIVE.into()];
        for (case, keys) in settings() {
            if !case.read(keys).method().needs_calibration() {
                recipes.push(case.with_rest(keys));
            }
        }
        assert!(recipes.len() >= 8);
        for recipe in recipes {
            let mut a = subject.make(&recipe);
            let other = scrambled(3, 17, vocabulary, subject.start).into_iter().map(|mut sample| {
                sample.reverse();
                sample
            });
            let mut b = make(&recipe, &subject.decoder, &mut subject.calibrator(other.collect()));
            let mut none = make(&recipe, &subject.decoder, &mut subject.calibrator(Vec::new()));
            assert!(a.state() == b.state() && a.state() == none.state(), "{recipe} on {}", subject.name);
            assert_eq!(a.fitted, b.fitted, "{recipe}");
            let found = a.logits(&probes);
            assert_eq!(found, b.logits(&probes), "{recipe}");
            assert_eq!(found, none.logits(&probes), "{recipe}");
        }
    }
}

#[test]
fn what_needs_a_calibration_set_says_so_without_one() {
    let subject = oracles().swap_remove(0);
    for (case, keys) in settings() {
        if case.read(keys).method().needs_calibration() {
            let mut none = subject.calibrator(Vec::new());
            let made = crate::recipes::try_make(&case.with_rest(keys), &subject.decoder, &mut none);
            let Err((step, error)) = made else { panic!("{}: made of nothing", case.name()) };
            assert_eq!(step, case.key());
            assert!(error.to_string().contains("samples"), "{}: {error}", case.name());
        }
    }
}

#[test]
fn defaults_are_written_out_and_read_back() {
    for (case, keys) in settings() {
        let step = case.read(keys);
        assert_eq!(step.clone().resolved(), step, "{}: resolved twice", case.name());
        let json = serde_json::to_value(&step).unwrap();
        let text = toml::to_string(&step).unwrap();
        let Value::Object(mut fields) = json.clone() else { panic!("{json}") };
        assert_eq!(fields.remove("step"), Some(case.step.into()));
        assert_eq!(fields.remove("method"), case.method.map(Value::from));
        let again = Step::read(case.step, case.method, Value::Object(fields)).unwrap().unwrap();
        assert_eq!(again, step, "{}: {json}", case.name());
        let mut table: toml::Table = toml::from_str(&text).unwrap();
        table.retain(|key, _| key != "step" && key != "method");
        let again = Step::read(case.step, case.method, toml::Value::Table(table)).unwrap().unwrap();
        assert_eq!(again, step, "{}: {text}", case.name());
        assert_eq!(serde_json::to_string(&again).unwrap(), serde_json::to_string(&step).unwrap());
    }
}

#[test]
fn stages_and_words_fit_each_other() {
    for case in CASES {
        let stage = case.read(case.settings[0]).method().stage();
        let expected = match case.step {
            "prefix" => Stage::Prefix,
            "smooth" => Stage::Smooth,
            "rotate" => Stage::Rotate,
            "keep" => Stage::Keep,
            "tune" => Stage::Tune,
            _ => Stage::Quantize,
        };
        assert_eq!(stage, expected, "{}", case.name());
    }
}

#[test]
fn every_page_has_its_sections_and_names_every_key() {
    let blocks: BTreeMap<String, Vec<&str>> = experiment::keys().into_iter().collect();
    for case in CASES {
        let page = Step::page(case.method.unwrap_or(case.step)).expect("a registered step has a page");
        let first = page.lines().next().unwrap_or_default();
        assert!(first.contains(&format!("`{}`", case.step)), "{}: {first}", case.name());
        let section = |heading: &str| {
            let from = page.lines().skip_while(|line| *line != heading).skip(1);
            let text: Vec<&str> = from.take_while(|line| !line.starts_with("# ")).collect();
            assert!(!text.concat().trim().is_empty(), "{}: its page has no `{heading}`", case.name());
            text.join(" ")
        };
        section("# Equation");
        let reference = section("# Reference");
        assert!(
            reference.contains("arXiv") || reference.contains("10.") || reference.contains("own"),
            "{}: its reference has no arXiv id or DOI and does not say `own`",
            case.name()
        );
        let parameters = section("# Parameters");
        let block = match case.method {
            Some(method) => format!("step `{}`, method `{method}`", case.step),
            None => format!("step `{}`", case.step),
        };
        for key in blocks[&block].iter().filter(|key| !["step", "method"].contains(key)) {
            let named =
                parameters.contains(&format!("`{key}`")) || parameters.contains(&format!("`{key} = "));
            assert!(named, "{}: `{key}` is not under # Parameters of its page", case.name());
        }
    }
}
