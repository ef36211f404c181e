//! Rotations on whole models: the gate, what is recorded, what a calibration sees, and orders of steps.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use harness::experiment::Experiment;
use harness::quantize::Calibrator;
use harness::quantize::StepError;
use harness::quantize::direct::Direct;
use harness::quantize::equivalence::Reference;
use models::{Decoder, Fallback, Group, Hadamard, Off, Port, Site, Tap};

use crate::recipes::{
    ORACLES, builtin, difference, logits, make, oracle, reference, scrambled, steps, values, without_first,
};

const EVERYTHING: &str =
    r#"{ step = "rotate", method = "hadamard", sites = ["residual", "o_in", "down_in", "qk"] }"#;
const SMOOTH: &str =
    r#"{ step = "smooth", method = "smoothquant", sites = ["attn_in", "o_in", "mlp_in", "down_in"] }"#;
const W4A4: &str = r#"{ step = "weights", bits = 4 }, { step = "activations", bits = 4 }"#;

/// Name, model, token that begins a sequence.
fn subjects() -> Vec<(&'static str, Decoder, u32)> {
    let oracles = ORACLES.into_iter().map(|name| (name, oracle(name), 1));
    let builtins = ["builtin/tiny-llama", "builtin/tiny-llama-spiky"];
    oracles.chain(builtins.map(|name| (name, builtin(name).1, 0))).collect()
}

fn calibrator(decoder: &Decoder, start: u32) -> Direct {
    Direct::new(scrambled(6, 32, decoder.architecture.vocabulary, start), Some(start))
}

fn probes(decoder: &Decoder, start: u32) -> Vec<Vec<u32>> {
    scrambled(12, 40, decoder.architecture.vocabulary, start).split_off(9)
}

#[test]
fn the_gate_refuses_norms_that_are_not_folded_and_a_mean_that_is_subtracted() {
    for (name, original, start) in subjects() {
        let reference = Reference::of(&mut original.clone(), Some(start));
        let rotation = Hadamard::new(original.architecture.hidden, Fallback::BlockDiagonal, 0);
        let refused = |mut decoder: Decoder, what: &str| match reference.compare(&mut decoder) {
            Err(StepError::NotEquivalent { relative, .. }) => relative,
            other => panic!("{name}: {what} passes the gate: {other:?}"),
        };

        let mut unfolded = original.clone();
        let norms = |decoder: &Decoder| {
            let blocks = decoder.blocks.iter();
            let of_mlp = |block: &models::decoder::Block| block.mlp.norm().expect("Llama's").clone();
            blocks.map(|block| (block.attn_norm.clone(), of_mlp(block))).collect::<Vec<_>>()
        };
        for block in &mut unfolded.blocks {
            for (norm, _) in block.readers_mut() {
                norm.weight = norm.weight.ones_like();
            }
        }
        unfolded.final_norm.weight = unfolded.final_norm.weight.ones_like();
        unfolded.rotate_residual(&rotation).unwrap();
        for (block, (attn_norm, mlp_norm)) in unfolded.blocks.iter_mut().zip(norms(&original)) {
            block.attn_norm = attn_norm;
            *block.mlp.norm_mut().unwrap() = mlp_norm;
        }
        unfolded.final_norm = original.final_norm.clone();
        assert!(refused(unfolded, "a rotation without folding") > 1e-3, "{name}");

        let mut centred = original.clone();
        centred.embedding = centred.embedding.clone() - centred.embedding.clone().mean_dim(1);
        centred.rotate_residual(&rotation).unwrap();
        refused(centred, "a subtracted mean");

        // An online part that is not there, and the part that is.
        let mut decoder = original.clone();
        let wide = Hadamard::new(original.architecture.mlp.intermediate, Fallback::RandomOrthogonal, 0);
        decoder.rotate_online(Site::block(0, Port::DownIn), &wide).unwrap();
        assert!(reference.compare(&mut decoder).is_ok(), "{name}");
        decoder.online = Default::default();
        refused(decoder, "weights without their online part");
    }
}

#[test]
fn hybrids_and_their_reverse_compute_the_same_behind_prefixes_too() {
    let prefix = r#"{ step = "prefix", method = "tokens", tokens = [3, 5] }, "#;
    for (name, original, start) in subjects() {
        let probes = probes(&original, start);
        for before in ["", prefix] {
            for recipe in [
                format!("{before}{SMOOTH}, {EVERYTHING}"),
                format!("{before}{EVERYTHING}, {SMOOTH}"),
                format!("{before}{SMOOTH}, {EVERYTHING}, {SMOOTH}"),
                // SmoothRot: scales at down_in only.
                format!(
                    r#"{before}{{ step = "smooth", method = "smoothquant", sites = ["down_in"] }}, {EVERYTHING}"#
                ),
            ] {
                let mut made = make(&recipe, &original, &mut calibrator(&original, start));
                let fed = if before.is_empty() { probes.clone() } else { without_first(&probes) };
                let expected = logits(&mut reference(&original, &made), &mut Off, &fed);
                let error = difference(&made.logits(&fed), &expected);
                assert!(error < 1e-4, "{name}: {recipe}: {error:e}");
                let smoothed = made.fitted.iter().filter(|(key, _)| key.ends_with(".smooth"));
                assert!(smoothed.clone().count() > 0);
                for (key, report) in smoothed {
                    let relative = report["equivalence"]["relative"].as_f64().unwrap();
                    assert!(relative <= 1e-4, "{name}: {key}: {relative:e}");
                }
            }
        }
    }
}

#[test]
fn scales_behind_a_rotation_are_a_warning_and_a_second_rotation_is_a_mistake() {
    let parse = |recipe: &str| {
        let text = format!(
            "question = \"?\"\nreference = \"own\"\n[sweep]\nmodels = [\"builtin/tiny-llama\"]\nrecipes = [\"r\"]\n\
             calibrations = [\"c\"]\n[calibration.c]\ncorpus = \"random-tokens\"\nsamples = 1\nlength = 8\n\
             [recipe.r]\nsteps = [{recipe}]\n[[evaluate]]\nmetric = \"perplexity\"\nprotocol = \"gptq\"\n\
             corpus = \"builtin/stories-held-out\"\nlength = 64\nbos = \"every\"\n"
        );
        Experiment::parse(&text, Path::new("x.toml"))
    };
    let warnings = |recipe: &str| {
        let found = parse(recipe).unwrap_or_else(|fault| panic!("{fault}")).warnings;
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(warnings(&format!("{SMOOTH}, {EVERYTHING}, {W4A4}")), [""; 0]);
    let reverse = warnings(&format!("{EVERYTHING}, {SMOOTH}, {W4A4}"));
    assert!(reverse.len() == 1 && reverse[0].contains("smooth first, then rotate"), "{reverse:?}");
    for (second, site) in [
        (r#"{ step = "rotate", method = "random-orthogonal" }"#, "`residual`"),
        (r#"{ step = "rotate", method = "random-orthogonal", sites = ["v"] }"#, "the values"),
        (r#"{ step = "rotate", method = "hadamard", sites = ["down_in"] }"#, "`down_in`"),
    ] {
        let fault = parse(&format!("{EVERYTHING}, {second}, {W4A4}")).unwrap_err().to_string();
        assert!(fault.contains("both set the rotation") && fault.contains(site), "{fault}");
    }
    for (keys, complaint) in [
        ("sites = []", "empty"),
        ("sites = [\"mlp_in\"]", "nothing can be rotated at `mlp_in`"),
        ("sites = [\"residul\"]", "residual"),
        ("sites = [\"v\", \"v\"]", "twice"),
        ("sites = [\"v\", \"o_in\"]", "begins with what `v` does"),
    ] {
        let recipe = format!(r#"{{ step = "rotate", method = "hadamard", {keys} }}"#);
        let fault = parse(&recipe).unwrap_err().to_string();
        assert!(fault.contains(complaint), "{fault}");
    }
}

/// The largest magnitude of every channel of `down_in` behind a matrix, by layer.
struct Turned<'a>(&'a Hadamard, BTreeMap<usize, Vec<f32>>);

impl Tap for Turned<'_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        if let (Port::DownIn, Some(layer)) = (site.port, site.layer) {
            let mut values = values(&x);
            self.0.apply_f32(&mut values);
            let largest = self.1.entry(layer).or_insert_with(|| vec![0.0; self.0.order()]);
            for row in values.chunks(self.0.order()) {
                largest.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(x.abs()));
            }
        }
        group.forward(x)
    }
}

#[test]
fn a_calibration_sees_what_the_linears_read() {
    for (name, original, start) in subjects() {
        let matrix = Hadamard::new(original.architecture.mlp.intermediate, Fallback::BlockDiagonal, 0);
        let mut expected = Turned(&matrix, BTreeMap::new());
        let mut calibrator = calibrator(&original, start);
        logits(&mut original.clone(), &mut expected, &calibrator.samples.clone());
        let mut made = make(EVERYTHING, &original, &mut calibrator);
        let seen = calibrator.statistics(&mut made.decoder, &steps(EVERYTHING)).unwrap();
        for (layer, expected) in expected.1 {
            let found = seen.sites[&Site::block(layer, Port::DownIn)].absmax_by_channel();
            assert!(difference(&found, &expected) < 1e-4, "{name}, block {layer}");
        }
    }
}

#[test]
fn what_was_done_is_in_the_record() {
    // 9 heads have no Hadamard matrix, hidden 36 has one of Paley's.
    let original = oracle("smollm2");
    let record = |recipe: &str| {
        let made = make(recipe, &original, &mut calibrator(&original, 1));
        made.fitted["0.rotate"].clone()
    };
    let found = record(EVERYTHING);
    let rotations = &found["rotations"];
    assert_eq!(rotations["residual"]["construction"]["kind"], "paley-2");
    assert_eq!(rotations["residual"]["construction"]["prime"], 17);
    assert_eq!(rotations["residual"]["random-signs"], true);
    assert_eq!(rotations["down_in"]["construction"]["kind"], "sylvester");
    assert_eq!(rotations["v"]["order"], 4);
    assert!(rotations["heads"]["skipped"].as_str().unwrap().contains("order 9"));
    let random = EVERYTHING.replace(" }", r#", fallback = "random-orthogonal" }"#);
    let heads = record(&random)["rotations"]["heads"].clone();
    assert_eq!(heads["construction"]["kind"], "random-orthogonal");
    assert!(heads.get("skipped").is_none());
}

#[test]
fn seeds_and_draws_decide_and_the_best_draw_is_taken() {
    let (_, original) = builtin("builtin/tiny-llama-spiky");
    let with = |recipe: &str, seed: u64| {
        let mut calibrator = calibrator(&original, 0);
        calibrator.seed = seed;
        make(recipe, &original, &mut calibrator)
    };
    for method in ["hadamard", "random-orthogonal"] {
        let of =
            |draw: usize| format!(r#"{{ step = "rotate", method = "{method}", draw = {draw} }}, {W4A4}"#);
        let (same, again) = (with(&of(0), 3), with(&of(0), 3));
        assert!(same.state() == again.state());
        assert!(
            same.state() != with(&of(0), 4).state() && same.state() != with(&of(1), 3).state(),
            "{method}"
        );
        let best = format!(
            r#"{{ step = "rotate", method = "best-of", matrix = "{method}", candidates = 4, samples = 3 }}, {W4A4}"#
        );
        let best = with(&best, 3);
        let report = &best.fitted["0.rotate"];
        let losses: Vec<f64> = serde_json::from_value(report["losses"].clone()).unwrap();
        let chosen = report["chosen"].as_u64().unwrap() as usize;
        assert!(losses.len() == 4 && losses.iter().all(|loss| *loss >= losses[chosen]), "{losses:?}");
        assert!(losses.iter().any(|loss| *loss > losses[chosen]), "all draws are alike: {losses:?}");
        assert!(best.state() == with(&of(chosen), 3).state(), "{method}");
    }
}

#[test]
fn other_steps_behind_another_best_draw_do_not_share_its_statistics() {
    let (_, original) = builtin("builtin/tiny-llama-spiky");
    let rotate =
        r#"{ step = "rotate", method = "best-of", candidates = 5, samples = 2, sites = ["residual"] }"#;
    let mut shared = calibrator(&original, 0);
    for bits in [2, 3, 4, 8] {
        let rest = format!(
            r#"{{ step = "weights", bits = {bits} }}, {{ step = "activations", bits = {bits}, granularity = "tensor", observer = "max" }}"#
        );
        let recipe = format!("{rotate}, {rest}");
        let remembered = make(&recipe, &original, &mut shared);
        let alone = make(&recipe, &original, &mut calibrator(&original, 0));
        assert!(remembered.state() == alone.state(), "{bits} bits");
    }
}
