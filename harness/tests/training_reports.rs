//! What a report shows of training: the ablation lattice, and how errors grow.

#![allow(clippy::unwrap_used)]

use harness::record::{
    CellResult, Contents, Envelope, Execution, ManifestCell, MeasurementResult, ModelIdentity, Reading,
    SCHEMA,
};
use harness::report::ablation::{self, lattices};
use harness::report::drawing::{Drawing, Shape};
use harness::report::figures::FIGURES;
use harness::report::sections::SECTIONS;
use harness::report::table::{Cell, Table};
use serde_json::{Map, Value, json};

const PPL: &str = "perplexity/gptq/text/512/bos=every";
const KL: &str = "kl-divergence/gptq/text/512/bos=every";

fn envelope<T>(result: T) -> Envelope<T> {
    Envelope { schema: SCHEMA, result, result_hash: String::new(), execution: Execution::default() }
}

/// A store of one model; recipes by name, steps, perplexity and the detail of their divergence.
fn store(recipes: &[(&str, Value, f64, Value)]) -> Contents {
    let mut contents = Contents::default();
    for (name, steps, perplexity, detail) in recipes {
        let original = *name == "original";
        let kl = if original { format!("{KL}/noise-floor") } else { KL.to_owned() };
        contents.manifest.cells.push(ManifestCell {
            id: (*name).into(),
            model: "tiny".into(),
            recipe: (*name).into(),
            calibration: None,
            seed: None,
            metrics: vec![PPL.into(), kl.clone()],
        });
        let word = String::new;
        let (origin, family, weights, tokenizer) = (word(), word(), word(), word());
        let model = ModelIdentity { name: "tiny".into(), origin, family, parameters: 1, weights, tokenizer };
        contents.cells.push(envelope(CellResult {
            id: (*name).into(),
            model,
            steps: steps.as_array().unwrap().clone(),
            calibration: None,
            seed: None,
            fitted: Map::new(),
            statistics: Vec::new(),
            effective_bits: None,
        }));
        let reading = if original { Reading::Original } else { Reading::Quantized };
        for (metric, value, detail) in [(PPL, *perplexity, json!({})), (kl.as_str(), 0.5, detail.clone())] {
            contents.measurements.push(envelope(MeasurementResult {
                cell: (*name).into(),
                reading,
                metric: metric.into(),
                version: 1,
                value,
                stderr: None,
                n: 100,
                detail: detail.as_object().unwrap().clone(),
            }));
        }
    }
    contents
}

fn steps(bits: u64, components: &[&str], prompt: u64) -> Value {
    let mut steps = vec![
        json!({ "step": "weights", "bits": bits, "granularity": "group(64)" }),
        json!({ "step": "activations", "bits": bits, "granularity": "group(64)" }),
        json!({ "step": "kv", "key-bits": bits, "value-bits": bits, "granularity": "head", "prompt": prompt }),
    ];
    if !components.is_empty() {
        steps.push(json!({ "step": "tune", "method": "bisup-style", "components": components }));
    }
    steps.into()
}

fn growing(blocks: &[f64]) -> Value {
    let spans = json!([
        { "from": 0, "to": 1, "tokens": 2, "mean": 0.1 },
        { "from": 1, "to": 2, "tokens": 2, "mean": 0.2 },
        { "from": 2, "to": 4, "tokens": 4, "mean": 0.4 },
    ]);
    json!({ "queries-by-block": blocks, "queries-by-position": spans, "by-position": spans })
}

fn example() -> Contents {
    let grown = growing(&[0.01, 0.02, 0.05]);
    store(&[
        ("original", json!([]), 10.0, growing(&[1e-3, 1e-3, 2e-3])),
        ("full", steps(4, &["clipping", "smoothing", "low-rank"], 0), 14.0, grown.clone()),
        ("host", steps(4, &[], 0), 20.0, grown.clone()),
        ("c", steps(4, &["clipping"], 0), 16.0, grown.clone()),
        ("all", steps(4, &["clipping", "smoothing", "low-rank"], 32), 12.0, grown.clone()),
        ("cs", steps(4, &["clipping", "smoothing"], 0), 15.0, grown.clone()),
        ("prompt", steps(4, &[], 32), 18.0, grown.clone()),
        ("other", steps(3, &[], 0), 90.0, grown.clone()),
        ("weights", json!([{ "step": "weights", "bits": 4 }]), 11.0, grown),
    ])
}

fn draw(contents: &Contents, name: &str) -> Vec<Drawing> {
    let figure = FIGURES.iter().find(|figure| figure.name() == name).unwrap();
    if figure.applies(contents) { figure.draw(contents).unwrap() } else { Vec::new() }
}

fn texts(drawing: &Drawing) -> Vec<&str> {
    let text = |shape: &'_ Shape| matches!(shape, Shape::Text { .. });
    let shapes = drawing.shapes.iter().filter(|shape| text(shape));
    shapes
        .map(|shape| match shape {
            Shape::Text { text, .. } => text.as_str(),
            _ => "",
        })
        .collect()
}

#[test]
fn a_lattice_holds_what_differs_in_parts_alone_from_few_to_many() {
    let contents = example();
    let found = lattices(&contents, PPL);
    assert_eq!(found.len(), 1, "three bits have no trained recipe");
    let names: Vec<(String, &str)> =
        found[0].members.iter().map(|(parts, entry)| (ablation::name(parts), entry.recipe())).collect();
    let expected = [
        ("host", "host"),
        ("clipping", "c"),
        ("prompt", "prompt"),
        ("clipping + smoothing", "cs"),
        ("clipping + smoothing + low-rank", "full"),
        ("clipping + smoothing + low-rank + prompt", "all"),
    ];
    assert_eq!(names, expected.map(|(parts, recipe)| (parts.to_owned(), recipe)));
    assert_eq!(found[0].host, "W4A4KV4 per group(64), weights per group(64)");
    let before = |place: usize| -> Vec<&str> {
        let before = found[0].before(&found[0].members[place].0);
        before.iter().map(|(_, entry)| entry.recipe()).collect()
    };
    assert_eq!((before(0), before(3), before(5)), (vec![], vec!["c"], vec!["full"]));
}

#[test]
fn the_table_tells_gains_against_the_host_and_against_one_part_less() {
    let contents = example();
    let section = SECTIONS.iter().find(|section| section.name() == "ablation").unwrap();
    let tables: Vec<Table> = section.tables(&contents);
    assert_eq!(tables.len(), 1);
    let numbers = |recipe: &str| -> Vec<Option<f64>> {
        let row = tables[0].rows.iter().find(|row| row[0] == Cell::text(recipe)).unwrap();
        let value = |cell: &Cell| match cell {
            Cell::Number { value, .. } => Some(*value),
            _ => None,
        };
        row[5..].iter().map(value).collect()
    };
    assert_eq!(numbers("host"), [Some(20.0), None, None]);
    assert_eq!(numbers("c"), [Some(16.0), Some(0.8), Some(0.8)]);
    assert_eq!(numbers("all"), [Some(12.0), Some(0.6), Some(12.0 / 14.0)]);
    let none =
        store(&[("original", json!([]), 10.0, json!({})), ("host", steps(4, &[], 0), 20.0, json!({}))]);
    assert!(section.tables(&none).is_empty() && draw(&none, "ablation").is_empty());
}

#[test]
fn figures_name_what_they_show() {
    let contents = example();
    let drawings = draw(&contents, "ablation");
    assert_eq!(drawings.len(), 1);
    assert!(texts(&drawings[0]).contains(&"clipping + smoothing"), "{:?}", texts(&drawings[0]));

    // Six recipes of four bits, one of three, one of weights alone, each with the noise floor, which is near.
    let drawings = draw(&contents, "error-growth");
    assert_eq!(drawings.len(), 3);
    for drawing in &drawings {
        let texts = texts(drawing);
        for said in ["noise floor", "queries of every block", "queries of the last block", "next token"] {
            assert!(texts.contains(&said), "{said}: {texts:?}");
        }
    }
    for (drawing, recipe) in drawings.iter().zip(["host", "other", "weights"]) {
        assert!(texts(drawing).contains(&recipe), "{recipe}: {:?}", texts(drawing));
    }
    let mut far = contents.clone();
    let of_floor = |m: &&mut Envelope<MeasurementResult>| m.result.metric.ends_with("noise-floor");
    let Value::Object(detail) = growing(&[1e-6]) else { unreachable!() };
    far.measurements.iter_mut().find(of_floor).unwrap().result.detail = detail;
    assert!(draw(&far, "error-growth").iter().all(|drawing| !texts(drawing).contains(&"noise floor")));
    // Records from before growth was measured.
    let old = store(&[("original", json!([]), 10.0, json!({})), ("host", steps(4, &[], 0), 20.0, json!({}))]);
    assert!(draw(&old, "error-growth").is_empty());
}
