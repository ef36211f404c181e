//! `tune` by `bisup-style` on hosts and families that are not round to nearest on a Llama.

use harness::quantize::StepError;
use harness::quantize::fake_quant::FakeQuant;
use harness::quantize::grid::Granularity;
use harness::quantize::tuning::block::PlainBlock;
use harness::quantize::tuning::learned::Learned;
use harness::quantize::tuning::train::gradients;
use models::{Decoder, Port, Site, Tap};

use crate::recipes::{make, mse, oracle, scrambled, try_make, values, weights};
use crate::tuning::{
    HOST, MSE, blocks, calibrator, everything, hosts, learned, number, random_like, stream, tuned,
};

const FAMILIES: [&str; 10] =
    ["cohere", "cohere-plus", "gemma", "gemma2", "gemma3", "mistral", "mixtral", "opt", "qwen2", "qwen3"];

/// Norms behind the parts cannot be rotated.
const ROTATED: [&str; 3] = ["llama3", "llama-bias", "opt"];

const QUAROT: &str =
    r#"{ step = "rotate", method = "hadamard", sites = ["residual", "o_in", "down_in", "qk"] }"#;
const GRIDS: &str = r#"{ step = "weights", bits = 4, granularity = "group(8)" },
    { step = "activations", bits = 4, granularity = "group(8)", clip = 0.9 }, { step = "kv", bits = 4, prompt = 2 }"#;
const ATOM: &str = r#"{ step = "keep", method = "channels", count = 5 },
    { step = "weights", bits = 4, granularity = "group(8)", ragged = true, convention = "atom", clip = 0.85 },
    { step = "activations", bits = 4, granularity = "group(8)", ragged = true, convention = "atom", clip = 0.9 },
    { step = "kv", bits = 4, keys = "before-rope", convention = "atom-asymmetric" }"#;

#[test]
fn every_family_is_trained_and_ships_no_block_that_is_worse() {
    let mut trained = 0;
    for name in FAMILIES {
        let original = oracle(name);
        let probes = scrambled(2, 20, original.architecture.vocabulary, 1);
        let keys = "samples = 5, held-out = 3, epochs = 2, clipping-rate = 0.1";
        let mut made = make(&tuned(HOST, keys), &original, &mut calibrator(&original, 1));
        assert_eq!(blocks(&made.fitted).len(), original.blocks.len(), "{name}");
        for block in blocks(&made.fitted) {
            assert!(number(&block["shipped"]) <= number(&block["host"]), "{name}: {block}");
            trained += u32::from(block["kept"] != "host" && block["kept"] != "start");
        }
        assert!(made.logits(&probes).iter().all(|x| x.is_finite()), "{name}");
    }
    assert!(trained >= 10, "{trained} blocks were made better");
}

/// Every block of a decoder as it is trained and as it ships.
fn agrees(what: &str, decoder: &mut Decoder, tap: &FakeQuant, tolerance: f64) {
    let rounded = hosts(decoder, 4, Granularity::Group(4));
    for layer in 0..decoder.blocks.len() {
        let block = PlainBlock::of(decoder, layer, &rounded, tap).unwrap();
        let learned = learned(&block, decoder);
        let x = stream(&mut decoder.clone(), layer, 1);
        let (mut shipped, mut ships) = learned.ship(&block, decoder, tap).unwrap();
        let y = shipped.through_block(layer, x.clone(), &mut ships);
        let target = random_like(&y);
        let expected = mse(&values(&y), &values(&target));
        let (found, _) = gradients(&block, &learned, decoder, &mut tap.clone(), [x, target], MSE);
        assert!((found / expected - 1.0).abs() < tolerance, "{what}, block {layer}: {found} {expected}");
    }
}

#[test]
fn in_every_family_what_is_trained_is_what_ships() {
    for name in FAMILIES {
        agrees(name, &mut oracle(name), &FakeQuant::default(), 0.02);
    }
}

#[test]
fn behind_rotations_in_the_forward_pass_too() {
    for name in ROTATED {
        let original = oracle(name);
        let made = make(QUAROT, &original, &mut calibrator(&original, 1));
        let mut decoder = made.decoder;
        assert!(decoder.online.at(Site::block(0, Port::DownIn)).is_some(), "{name}");
        decoder.set_prefix(&[3, 5]);
        agrees(name, &mut decoder, &FakeQuant::default(), 0.02);
    }
}

#[test]
fn before_it_is_trained_it_is_its_host_bit_by_bit() {
    let quarot = format!("{QUAROT}, {GRIDS}");
    let cases: [(&str, &[&str]); 2] = [(ATOM, &["llama3", "opt", "mixtral"]), (&quarot, &["llama3", "opt"])];
    for (host, names) in cases {
        for &name in names {
            let original = oracle(name);
            let probes = scrambled(3, 30, original.architecture.vocabulary, 1);
            let mut expected = make(host, &original, &mut calibrator(&original, 1));
            // Branches begin at nothing; what is no better than the host ships as the host.
            let keys = "samples = 3, held-out = 2, epochs = 0, components = [\"low-rank\"]";
            let mut made = make(&tuned(host, keys), &original, &mut calibrator(&original, 1));
            assert!(weights(&made.decoder) == weights(&expected.decoder), "{name}, {host}");
            assert_eq!(made.logits(&probes), expected.logits(&probes), "{name}, {host}");
            assert!(made.tap.low_rank.is_empty() && !made.tap.rounded.is_empty(), "{name}");
        }
    }
}

#[test]
fn hosts_of_papers_are_improved() {
    for (host, name) in
        [(ATOM.to_string(), "llama3"), (format!("{QUAROT}, {GRIDS}"), "llama3"), (ATOM.to_string(), "opt")]
    {
        let original = oracle(name);
        let keys = "samples = 5, held-out = 3, epochs = 3, clipping-rate = 0.05, start = \"svd\"";
        let made = make(&tuned(&host, keys), &original, &mut calibrator(&original, 1));
        let found = made.fitted.iter().find(|(key, _)| key.ends_with(".tune")).unwrap().1;
        for (block, tuned) in found["blocks"].as_object().unwrap() {
            let (host, shipped) = (number(&tuned["host"]), number(&tuned["shipped"]));
            assert!(shipped < 0.99 * host, "{name} {block}: {tuned}");
        }
    }
}

#[test]
fn a_prompt_in_full_precision_is_that_of_the_host() {
    // Positions of the prompt are not rounded in training either, whatever pass came before.
    let decoder = oracle("llama3");
    let tap = make(GRIDS, &decoder, &mut calibrator(&decoder, 1)).tap;
    let block = PlainBlock::of(&decoder, 0, &Default::default(), &tap).unwrap();
    let learned = Learned::start(&block, &decoder, &everything(), None);
    let x = stream(&mut decoder.clone(), 0, 1);
    let y = decoder.clone().through_block(0, x.clone(), &mut tap.clone());
    let target = random_like(&y);
    let mut later = tap.clone();
    later.begin(7);
    let data = [x, target.clone()];
    let (found, _) = gradients(&block, &learned, &mut decoder.clone(), &mut later, data, MSE);
    let expected = mse(&values(&y), &values(&target));
    assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
}

#[test]
fn hosts_that_cannot_be_trained_are_refused_by_name() {
    let original = oracle("llama2");
    let activations = r#"{ step = "activations", bits = 4 }"#;
    for (weights, says) in [
        (r#"{ step = "weights", bits = 4, solver = "gptq" }"#, "solver = \"rtn\""),
        (r#"{ step = "weights", bits = 4, clip = "mse" }"#, "a number as `clip`"),
        (r#"{ step = "weights", bits = 8, convention = "fp8-e4m3" }"#, "another `convention`"),
    ] {
        let recipe = tuned(&format!("{weights}, {activations}"), "samples = 3, held-out = 2");
        let refused = try_make(&recipe, &original, &mut calibrator(&original, 1)).err().unwrap();
        assert!(matches!(&refused.1, StepError::Host(text) if text.contains(says)), "{refused:?}");
    }
    let tensor = ATOM.replace("group(8)\", ragged = true, convention = \"atom\", clip = 0.85", "tensor\"");
    let refused =
        try_make(&tuned(&tensor, "samples = 3, held-out = 2"), &original, &mut calibrator(&original, 1));
    assert!(matches!(refused.err(), Some((_, StepError::Host(text))) if text.contains("one scale")));
}
