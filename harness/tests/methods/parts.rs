//! Recipes carried out on one part of a model after the other come to what they come to on the whole model, bit by bit.

use burn::tensor::{Device, Tensor};
use harness::quantize::StepError;
use harness::quantize::fake_quant::FakeQuant;
use harness::quantize::parts::Application;
use harness::quantize::steps::Step;
use models::{Blocks, Decoder, Part, token_tensor};
use serde_json::{Map, Value};

use crate::recipes::{steps, try_make, values, weights, without_first};
use crate::registry::{Subject, oracles, settings};

/// What a part of the whole decoder holds.
fn part_of(whole: &Decoder, part: Part) -> Decoder {
    let mut held = whole.clone();
    held.blocks = match part {
        Part::Block(layer) => Blocks::new(layer, vec![whole.blocks[layer].clone()]),
        Part::Table | Part::Head => Blocks::default(),
    };
    if part != Part::Table {
        held.embedding = Tensor::zeros([1, whole.architecture.hidden], &Device::flex());
    }
    if part != Part::Head {
        held.head.linears.clear();
    }
    held
}

/// The parts that a recipe makes, its tap, and what it reports.
type Parts = (Vec<Decoder>, FakeQuant, Map<String, Value>);

/// A recipe carried out part by part.
fn by_parts(subject: &Subject, recipe: &[Step]) -> Result<Parts, (String, StepError)> {
    let mut calibrator = subject.calibrator(subject.samples());
    let mut application = Application::new(recipe);
    let mut parts = Vec::new();
    for part in Part::all(subject.decoder.architecture.layers) {
        let mut held = part_of(&subject.decoder, part);
        application.part(&mut held, &mut calibrator)?;
        parts.push(held);
    }
    let (tap, fitted) = application.finish();
    Ok((parts, tap, fitted))
}

/// Logits of sequences of one length, led from part to part.
fn logits(parts: &mut [Decoder], tap: &mut FakeQuant, sequences: &[Vec<u32>]) -> Vec<f32> {
    let mut x = parts[0].embed(token_tensor(sequences, &Device::flex()));
    for part in parts.iter_mut() {
        for layer in part.blocks.layers() {
            x = part.through_block(layer, x, tap);
        }
    }
    let head = parts.last().unwrap();
    values(&head.logits(head.final_norm.forward(x), tap))
}

#[test]
fn part_by_part_a_recipe_comes_to_the_same() {
    let mut tried = 0;
    for subject in oracles() {
        let probes = subject.probes();
        for (case, keys) in settings() {
            for recipe in [
                case.with_rest(keys),
                format!(r#"{{ step = "prefix", method = "tokens", tokens = [3, 5] }}, {}"#, case.alone(keys)),
            ] {
                if recipe.matches("\"prefix\"").count() > 1 {
                    continue;
                }
                let read = steps(&recipe);
                if Application::needs_whole_model(&read).is_some() {
                    continue;
                }
                let what = format!("{recipe} on {}", subject.name);
                let whole = try_make(&recipe, &subject.decoder, &mut subject.calibrator(subject.samples()));
                let (mut whole, (mut parts, mut tap, fitted)) = match (whole, by_parts(&subject, &read)) {
                    (Ok(whole), Ok(parts)) => (whole, parts),
                    // Groups that do not fit this model's width.
                    (whole, parts) => {
                        assert_eq!(whole.err(), parts.err(), "{what}");
                        continue;
                    }
                };
                assert_eq!(fitted, whole.fitted, "{what}");
                // Weights, but for norms, which every part counts anew.
                let expected = weights(&whole.decoder);
                for part in &parts {
                    for (name, bits) in weights(part).iter().filter(|(name, _)| !name.starts_with("norm")) {
                        let is_there = name != "embedding" || part.has_table();
                        assert!(!is_there || bits == &expected[name], "{what}: {name}");
                    }
                }
                let mut fed = probes.clone();
                if whole.decoder.prefix.is_some() {
                    fed = without_first(&fed);
                }
                let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                assert!(
                    bits(logits(&mut parts, &mut tap, &fed)) == bits(whole.logits(&fed)),
                    "{what}: other logits"
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 4 * 40, "only {tried} were tried");
}

#[test]
fn what_needs_the_whole_model_says_so() {
    let refused = |recipe: &str| Application::needs_whole_model(&steps(recipe)).map(|(step, _)| step);
    let weights = r#"{ step = "weights", bits = 4 }"#;
    assert_eq!(refused(weights), None);
    let kept = format!(r#"{{ step = "keep", method = "qfem", top = 2 }}, {weights}"#);
    assert_eq!(refused(&kept).as_deref(), Some("0.keep qfem"));
    let fitted = format!(r#"{{ step = "rotate", method = "cayley" }}, {weights}"#);
    assert_eq!(refused(&fitted).as_deref(), Some("0.rotate cayley"));
}
