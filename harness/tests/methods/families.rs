//! What methods see of families whose groups are not Llama's: one group for a whole parallel block, ReLU without a gate,
//! norms behind the parts, experts that read some tokens.

use std::collections::BTreeSet;

use harness::calibrate::observe::{Options, collect};
use harness::quantize::direct::Direct;
use harness::quantize::effective_bits;
use harness::quantize::fake_quant::FakeQuant;
use models::{Group, Off, Port, Routed, Site, Tap, token_tensor};

use crate::recipes::{ORACLES, PER_TOKEN, difference, logits, make, oracle, scrambled, steps, try_make};

pub const FAMILIES: [&str; 10] =
    ["cohere", "cohere-plus", "gemma", "gemma2", "gemma3", "mistral", "mixtral", "opt", "qwen2", "qwen3"];

#[test]
fn smoothing_keeps_the_function_of_every_family() {
    for name in FAMILIES {
        let original = oracle(name);
        let samples = scrambled(4, 32, 64, 1);
        let ports = match name {
            "cohere" | "cohere-plus" => r#"["attn_in", "o_in", "down_in"]"#,
            _ => r#"["attn_in", "o_in", "mlp_in", "down_in"]"#,
        };
        let recipe = format!(r#"{{ step = "smooth", method = "smoothquant", sites = {ports} }}"#);
        let mut made = make(&recipe, &original, &mut Direct::new(samples.clone(), Some(1)));
        let scales = made.fitted["0.smooth"]["scales"].as_object().unwrap().len();
        // Experts follow the router at mlp_in, and have a down each.
        let expected = match name {
            "cohere" | "cohere-plus" => 6,
            "mixtral" => 2 * (3 + 4),
            _ => 8,
        };
        assert_eq!(scales, expected, "{name}");
        let off = difference(&made.logits(&samples), &logits(&mut original.clone(), &mut Off, &samples));
        assert!(off < 1e-4, "{name}: {off:e}");
    }
}

#[test]
fn outlier_suppression_searches_what_follows_in_every_family() {
    for name in FAMILIES {
        let original = oracle(name);
        let samples = scrambled(2, 24, 64, 1);
        let mut direct = Direct::new(samples.clone(), Some(1));
        let every = r#"{ step = "smooth", method = "osplus", bits = 4, samples = 2, steps = 6 }"#;
        if name == "mixtral" {
            let Err((_, error)) = try_make(every, &original, &mut direct) else {
                panic!("experts are searched")
            };
            let message = error.to_string();
            assert!(message.contains("layers.0.experts.0.mlp_in") && message.contains("sites"), "{message}");
            continue;
        }
        let mut made = make(every, &original, &mut direct);
        let scales = made.fitted["0.smooth"]["scales"].as_object().unwrap().len();
        assert!(scales >= if name.starts_with("cohere") { 2 } else { 4 }, "{name}: {scales}");
        let off = difference(&made.logits(&samples), &logits(&mut original.clone(), &mut Off, &samples));
        assert!(off < 1e-4, "{name}: {off:e}");
    }
}

#[test]
fn the_shapes_of_every_family_are_known_before_its_weights() {
    for name in FAMILIES.into_iter().chain(ORACLES) {
        let decoder = oracle(name);
        let shapes = decoder.groups().into_iter().map(|(site, group)| {
            (site, group.linears.iter().map(|linear| linear.weight.dims()).collect::<Vec<_>>())
        });
        assert_eq!(decoder.architecture.groups(), shapes.collect::<Vec<_>>(), "{name}");
    }
}

/// Counts what experts are given.
#[derive(Default)]
struct Sent(Vec<(Site, usize, Vec<usize>)>);

impl Tap for Sent {
    fn routed(
        &mut self,
        site: Site,
        x: burn::tensor::Tensor<3>,
        group: &Group,
        routed: &Routed,
    ) -> Vec<burn::tensor::Tensor<3>> {
        assert_eq!(x.dims()[..2], [1, routed.tokens.len()]);
        self.0.push((site, routed.sequence, routed.tokens.to_vec()));
        group.forward(x)
    }
}

#[test]
fn experts_are_seen_with_the_tokens_that_reach_them() {
    let mut decoder = oracle("mixtral");
    let samples = scrambled(5, 12, 64, 1);
    let options = Options::default();
    let found = collect(&mut decoder, &samples, false, &options, &mut |_, _| true).unwrap();
    let mut sent = Sent::default();
    decoder.hidden(token_tensor(&samples, &decoder.device()), &mut sent);
    for layer in 0..2 {
        let mut total = 0;
        for expert in 0..4 {
            for port in [Port::MlpIn, Port::DownIn] {
                let site = Site::expert(layer, expert, port);
                let given: Vec<_> = sent.0.iter().filter(|(at, ..)| *at == site).collect();
                let tokens: usize = given.iter().map(|(.., tokens)| tokens.len()).sum();
                let Some(seen) = found.sites.get(&site) else {
                    assert_eq!(tokens, 0);
                    continue;
                };
                assert_eq!(seen.tokens as usize, tokens, "{site}");
                let sequences: BTreeSet<usize> = given.iter().map(|(_, sequence, _)| *sequence).collect();
                assert!(seen.sequences.keys().eq(&sequences), "a sequence without tokens is not in the mean");
                for (_, sequence, tokens) in given {
                    for at in &seen.sequences[sequence].top {
                        assert!(tokens.contains(&(at.position as usize)), "{site}");
                        assert_eq!(at.token, samples[*sequence][at.position as usize], "{site}");
                    }
                }
                total += tokens * usize::from(port == Port::MlpIn);
            }
        }
        assert_eq!(total, 2 * 5 * 12, "every token goes to two experts");
        assert_eq!(found.sites[&Site::block(layer, Port::MlpIn)].tokens, 60, "the router reads them all");
    }
}

#[test]
fn a_batch_gives_what_its_sequences_give_alone_in_every_family() {
    for name in FAMILIES {
        let original = oracle(name);
        let samples = scrambled(3, 20, 64, 1);
        for recipe in [PER_TOKEN, crate::recipes::NAIVE] {
            let mut made = make(recipe, &original, &mut Direct::default());
            let together = made.logits(&samples);
            let alone: Vec<f32> = samples.iter().flat_map(|s| made.logits(std::slice::from_ref(s))).collect();
            let off = difference(&together, &alone);
            assert!(off < 1e-3, "{name}, {recipe}: {off:e}");
            let plain = logits(&mut original.clone(), &mut Off, &samples);
            let rounded = difference(&together, &plain);
            assert!((1e-5..0.5).contains(&rounded), "{name}, {recipe}: rounding moves logits by {rounded:e}");
        }
    }
}

/// What a plan says of a recipe knows the shapes from config.json; what a cell says has the decoder.
#[test]
fn effective_bits_of_a_plan_are_those_of_the_decoder() {
    // Groups of 8 in some linears only, so that the mean depends on every width.
    let weights = r#"{ step = "weights", bits = 3, granularity = "tensor", sites = ["o_in"] }, { step = "weights", bits = 4, granularity = "group(8)", symmetric = false, sites = ["down_in"] }"#;
    let read = r#"{ step = "activations", bits = 8, granularity = "token", sites = ["attn_in", "mlp_in"] }"#;
    let mut seen = BTreeSet::new();
    for name in FAMILIES {
        let decoder = oracle(name);
        let recipe = steps(&format!("{weights}, {read}"));
        let planned = effective_bits::planned(&recipe, &decoder.architecture);
        assert_eq!(planned, effective_bits::of(&recipe, &decoder, &FakeQuant::default()), "{name}");
        seen.insert(planned.weights.to_string());
    }
    assert!(seen.len() >= 4, "the recipe must tell the families' shapes apart: {seen:?}");
}
