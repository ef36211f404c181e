//! Figures and tables of arXiv:2405.14428 from hand-built records: families are found by steps, rows are golden, texts
//! are readable.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use harness::record::{
    CellResult, Contents, Envelope, Execution, Failure, Manifest, ManifestCell, MeasurementResult,
    ModelIdentity, Reading, SCHEMA,
};
use harness::report::drawing::{Drawing, Shape};
use harness::report::figures::FIGURES;
use harness::report::tables::find;
use harness::report::{self, sections};
use serde_json::{Value, json};

const ID: &str = "perplexity/gptq/wikitext2-test/2048/bos=every";

/// Ratios of the toy's six groups, largest first.
const RATIOS: [(&str, f64); 6] = [
    ("layers.1.down_in", 500.0),
    ("layers.0.down_in", 40.0),
    ("layers.0.o_in", 6.0),
    ("layers.1.mlp_in", 3.0),
    ("layers.0.mlp_in", 2.0),
    ("layers.0.attn_in", 1.5),
];

fn weights() -> Value {
    json!({ "step": "weights", "bits": 8, "granularity": "channel", "symmetric": true })
}

fn tensor() -> Value {
    json!({ "step": "activations", "bits": 8, "granularity": "tensor", "symmetric": true })
}

fn with(mut step: Value, key: &str, value: Value) -> Value {
    step[key] = value;
    step
}

fn qfem(key: &str, value: Value) -> Value {
    with(json!({ "step": "keep", "method": "qfem", "ratio": "sequences", "of": "original" }), key, value)
}

fn qfep() -> Value {
    json!({ "step": "prefix", "method": "qfep", "candidates": 3, "contexts": 200, "bos": true })
}

fn smoothquant() -> Value {
    json!({ "step": "smooth", "method": "smoothquant", "alpha": 0.8, "sites": ["attn_in", "mlp_in"] })
}

/// Builds contents cell by cell.
struct Records(Contents);

impl Records {
    fn new(reference: &str) -> Self {
        let manifest = Manifest {
            schema: SCHEMA,
            experiment: "spikes".into(),
            reference: reference.into(),
            ..Manifest::default()
        };
        Records(Contents { manifest, ..Contents::default() })
    }

    /// A cell whose fitted values follow from its steps and [`RATIOS`].
    fn cell(&mut self, model: &str, recipe: &str, steps: &[Value], value: Option<f64>) {
        self.cell_of(model, recipe, steps, value, ID, "c4");
    }

    fn cell_of(
        &mut self,
        model: &str,
        recipe: &str,
        steps: &[Value],
        value: Option<f64>,
        metric: &str,
        set: &str,
    ) {
        let fits = |step: &Value| {
            step["step"] == "keep"
                || step["step"] == "smooth"
                || step["method"] == "qfep"
                || !step["observer"].is_null()
        };
        let calibration = steps.iter().any(fits).then(|| set.to_owned());
        let id = format!("{model}-{recipe}-{}", calibration.as_deref().unwrap_or("none"));
        let mut fitted = serde_json::Map::new();
        for (place, step) in steps.iter().enumerate() {
            let key = format!("{place}.{}", step["step"].as_str().unwrap());
            fitted.insert(key, fit(step));
        }
        if !self.0.manifest.cells.iter().any(|cell| cell.id == id) {
            self.0.manifest.cells.push(ManifestCell {
                id: id.clone(),
                model: model.into(),
                recipe: recipe.into(),
                calibration: calibration.clone(),
                seed: calibration.as_ref().map(|_| 0),
                metrics: vec![metric.into()],
            });
            let identity = ModelIdentity {
                name: model.into(),
                origin: "builtin".into(),
                family: "llama".into(),
                parameters: 1_500_000,
                weights: "w".into(),
                tokenizer: "t".into(),
            };
            self.0.cells.push(envelope(CellResult {
                id: id.clone(),
                model: identity,
                steps: steps.to_vec(),
                calibration: calibration.map(|text| json!({ "text": text, "samples": 32, "length": 512 })),
                seed: None,
                fitted,
                statistics: Vec::new(),
                effective_bits: None,
            }));
        }
        let reading = match steps {
            [] => Reading::Original,
            [step] if step["step"] == "prefix" => Reading::Transformed,
            _ => Reading::Quantized,
        };
        match value {
            Some(value) => self.0.measurements.push(envelope(MeasurementResult {
                cell: id,
                reading,
                metric: metric.into(),
                version: 1,
                value,
                stderr: Some(0.01 * value),
                n: 100,
                detail: Default::default(),
            })),
            None => self.0.failures.push(Failure {
                schema: SCHEMA,
                cell: id,
                metric: Some(metric.into()),
                stage: "evaluate".into(),
                message: "it is full of NaN".into(),
                cure: String::new(),
                execution: Execution::default(),
            }),
        }
    }
}

fn group(&(site, ratio): &(&str, f64)) -> Value {
    json!({ "site": site, "ratio": ratio })
}

fn fit(step: &Value) -> Value {
    match step["method"].as_str() {
        Some("qfem") => {
            let n = match (&step["alpha"], step["top"].as_u64()) {
                (_, Some(top)) => top as usize,
                (Value::String(word), _) if word == "inf" => 0,
                (Value::String(_), _) => 2,
                (alpha, _) => RATIOS.iter().filter(|(_, ratio)| *ratio >= alpha.as_f64().unwrap()).count(),
            };
            let excepted: Vec<Value> = RATIOS[..n].iter().map(group).collect();
            let alpha = n.checked_sub(1).map(|last| RATIOS[last].1);
            json!({ "groups": 6, "alpha": alpha, "excepted": excepted, "next": RATIOS.get(n).map(group) })
        }
        Some("ranked") => {
            let n = step["groups"].as_u64().unwrap() as usize;
            let from = match step["quantize"].as_str().unwrap() {
                "top" => 0,
                "middle" => (6 - n) / 2,
                _ => 6 - n,
            };
            json!({ "groups": 6, "quantized": RATIOS[from..from + n].iter().map(group).collect::<Vec<_>>() })
        }
        Some("qfep") => json!({ "tokens": [0, 5, 9], "text": ["<s>", " but", "\n"], "rate": 100.0 }),
        Some("bos") => json!({ "tokens": [0], "text": ["<s>"] }),
        _ => json!({}),
    }
}

fn envelope<T>(result: T) -> Envelope<T> {
    Envelope { schema: SCHEMA, result, result_hash: String::new(), execution: Execution::default() }
}

/// Everything the paper shows, for one model.
fn example(reference: &str) -> Contents {
    let mut records = Records::new(reference);
    let m = "tiny";
    let bos = json!({ "step": "prefix", "method": "bos" });
    let no_bos = with(qfep(), "bos", json!(false));
    let ranked = |part: &str| json!({ "step": "keep", "method": "ranked", "quantize": part, "groups": 2 });
    let token = with(tensor(), "granularity", json!("token"));
    let fixed = with(tensor(), "observer", json!("max"));
    let plain = [weights(), tensor()];
    let on = |steps: &[Value]| -> Vec<Value> { steps.iter().chain(&plain).cloned().collect() };
    records.cell(m, "original", &[], Some(2.0));
    records.cell(m, "a", &plain, Some(160.0));
    records.cell(m, "b", &[weights()], Some(2.01));
    for (name, alpha, value) in [
        ("c", json!("inf"), 160.0),
        ("d", json!(50.0), 80.0),
        ("e", json!(5.0), 2.25),
        ("f", json!("auto"), 2.5),
    ] {
        records.cell(m, name, &on(&[qfem("alpha", alpha)]), Some(value));
    }
    records.cell(m, "g", &on(&[qfem("top", json!(2))]), Some(2.5));
    records.cell(m, "original+qfep", &[qfep()], Some(2.125));
    records.cell(m, "h", &on(&[qfep()]), Some(3.0));
    records.cell(m, "i", &on(&[qfep(), qfem("top", json!(2))]), Some(2.25));
    records.cell(m, "original+bos", std::slice::from_ref(&bos), Some(2.0));
    records.cell(m, "j", &on(&[bos]), Some(140.0));
    records.cell(m, "k", &on(&[no_bos]), Some(4.0));
    records.cell(m, "l", &[weights(), token.clone()], Some(2.0625));
    records.cell(m, "m", &[qfem("top", json!(2)), weights(), token], Some(2.03125));
    records.cell(m, "n", &[weights(), fixed], Some(250.0));
    for (name, part, value) in [("o", "top", 150.0), ("p", "middle", 2.0), ("q", "bottom", 2.5)] {
        records.cell(m, name, &on(&[ranked(part)]), Some(value));
    }
    records.cell(m, "r", &on(&[smoothquant()]), Some(164.0));
    records.cell(m, "s", &on(&[smoothquant(), qfem("top", json!(2))]), Some(2.5));
    records.0
}

fn drawings(contents: &Contents, name: &str) -> Vec<Drawing> {
    let figure = FIGURES.iter().find(|figure| figure.name() == name).unwrap();
    if figure.applies(contents) { figure.draw(contents).unwrap() } else { Vec::new() }
}

fn texts(drawing: &Drawing) -> Vec<&str> {
    let text = |shape: &'_ Shape| matches!(shape, Shape::Text { .. });
    let shapes = drawing.shapes.iter().filter(|shape| text(shape));
    shapes.map(|shape| if let Shape::Text { text, .. } = shape { text.as_str() } else { "" }).collect()
}

/// The table whose caption begins so, as Markdown with single blanks.
fn printed(contents: &Contents, caption: &str) -> Vec<String> {
    let table =
        sections::tables(contents).into_iter().find(|table| table.caption.starts_with(caption)).unwrap();
    let written = find("markdown").unwrap().write(&table);
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    written.lines().filter(|line| !line.starts_with("|:")).map(squeezed).collect()
}

#[test]
fn cures_stand_below_their_hosts_with_differences_to_both_originals() {
    let lines = printed(&example("own"), "Cures of activation spikes, tiny");
    let rows: Vec<&str> = lines.iter().map(String::as_str).filter(|line| line.starts_with('|')).collect();
    assert_eq!(
        rows,
        [
            "| what | recipe | excepted | perplexity | − original | − original with its prefix |",
            "| original | original | – | 2.000 ± 0.020 | – | – |",
            "| original +QFeP | original+qfep | – | 2.125 ± 0.021 | 0.125 | – |",
            "| W8A8 per-tensor dynamic | a | – | 160.0 ± 1.6 | 158.0 | – |",
            "| +QFeM (top 2) | g | 2 of 6 | 2.500 ± 0.025 | 0.500 | – |",
            "| +QFeP | h | – | 3.000 ± 0.030 | 1.000 | 0.875 |",
            "| +QFeM (top 2) +QFeP | i | 2 of 6 | 2.250 ± 0.022 | 0.250 | 0.125 |",
            "| W8A8 per-token | l | – | 2.062 ± 0.021 | 0.062 | – |",
            "| +QFeM (top 2) | m | 2 of 6 | 2.031 ± 0.020 | 0.031 | – |",
            "| SmoothQuant (α 0.8), W8A8 per-tensor dynamic | r | – | 164.0 ± 1.6 | 162.0 | – |",
            "| +QFeM (top 2) | s | 2 of 6 | 2.500 ± 0.025 | 0.500 | – |",
        ],
        "{lines:#?}"
    );
    assert!(lines.iter().any(|line| line.contains("the rest of a sweep")), "{lines:#?}");
}

#[test]
fn partial_quantization_has_a_column_for_each_part_of_the_ranking() {
    let lines = printed(&example("own"), "Partial quantization, W8A8 per-tensor dynamic of 2 groups");
    assert_eq!(lines[2], "| model | original | top 2 | middle 2 | bottom 2 |");
    assert_eq!(lines[3], "| tiny | 2.000 ± 0.020 | 150.0 ± 1.5 | 2.000 ± 0.020 | 2.500 ± 0.025 |");
    let ranges = "ratios of the quantized groups of tiny: top 500–40.0, middle 6.00–3.00, bottom 2.00–1.50";
    assert!(lines.iter().any(|line| line.contains(ranges)), "{lines:#?}");
}

#[test]
fn published_numbers_stand_beside_ours_where_the_reference_names_the_paper() {
    let contents = example("arXiv:2405.14428, section 4");
    let lines = printed(&contents, "Beside arXiv:2405.14428: perplexity as a ratio to the own original");
    let has = |line: &str| assert!(lines.iter().any(|found| found == line), "{line}\nnot in\n{lines:#?}");
    let protocol = "gptq/wikitext2-test/2048/bos=every";
    has(&format!("| tiny | ours | W8A8 | 80.0 | 1.250 | 1.500 | 1.125 | top 2 | {protocol} | measured |"));
    has(&format!("| tiny | ours | SmoothQuant | 82.0 | 1.250 | – | – | top 2 | {protocol} | measured |"));
    // 8.634 / 5.268, 5.758 / 5.268 twice, 5.573 / 5.268.
    has(
        "| Llama-2-7B | paper | W8A8 | 1.639 | 1.093 | 1.093 | 1.058 | α 6.68 | the paper's | recalled, checked |",
    );
    has(
        "| Llama-2-13B | paper | SmoothQuant | 7.281 | 1.069 | 1.368 | – | α 12.91 | the paper's | recalled |",
    );
    assert!(!lines.iter().any(|line| line.contains("OS+ |")), "a host that is not ours: {lines:#?}");
    for words in
        ["1.5 M parameters", "7 to 70 billion", "32 samples of 512 tokens of c4", "512 samples of 1024"]
    {
        assert!(lines.iter().any(|line| line.contains(words)), "{words}\nnot in\n{lines:#?}");
    }

    let lines = printed(&contents, "Beside arXiv:2405.14428: thresholds");
    assert!(
        lines.contains(
            &"| tiny (top 2) | ours | 40.00 | 2 | 6 | 500.0 | layers.1.down_in | 2 down_in | measured |"
                .into()
        ),
        "{lines:#?}"
    );
    assert!(
        lines.contains(
            &"| Llama-2-7B | paper | 6.684 | 17 | 128 | 4136 | layers.1.down | 14 down, 2 up, 1 o | read |"
                .into()
        ),
        "{lines:#?}"
    );
    let lines = printed(&contents, "Beside arXiv:2405.14428: perplexity with only a few groups");
    assert!(
        lines.iter().any(|line| line.starts_with("| tiny | ours | 75.0 | 1.000 | 1.250 |")),
        "{lines:#?}"
    );
    assert!(lines.iter().any(|line| line.starts_with("| Mistral-7B | paper | 8.317 |")), "{lines:#?}");
    let lines = printed(&contents, "Beside arXiv:2405.14428: searched prefixes");
    assert!(lines.iter().any(|line| line.contains("“ but” “↵”")), "{lines:#?}");

    let other = sections::tables(&example("own"));
    assert!(other.iter().all(|table| !table.caption.starts_with("Beside")));
    assert_eq!(other.len(), 3);
}

#[test]
fn a_sweep_of_thresholds_has_its_ends_and_its_stairs() {
    let drawings = drawings(&example("own"), "alpha-sweep");
    assert_eq!(drawings.len(), 1, "per-token and SmoothQuant are no sweeps");
    let drawing = &drawings[0];
    for text in ["0", "∞", "number of excepted groups", "perplexity, logarithmic (lower is better)"] {
        assert!(texts(drawing).contains(&text), "{text}: {:?}", texts(drawing));
    }
    assert!(drawing.caption.contains("W8A8 per-tensor dynamic of tiny."), "{}", drawing.caption);
    // α = 0 (W8A16), 5, 40 twice (auto, top 2), 50, ∞ (given, so the naive recipe is not drawn a second time), in both
    // panels; the legend; a ring of two discs about `auto` in both panels and in the legend.
    let marks = drawing.shapes.iter().filter(|shape| matches!(shape, Shape::Mark { .. })).count();
    assert_eq!(marks, 2 * 6 + 1 + 3 * 2);
    // Upper panel: a line through the six places whose height orders them as their values are ordered.
    let lines: Vec<&Vec<(f64, f64)>> = drawing
        .shapes
        .iter()
        .filter_map(|shape| match shape {
            Shape::Line { points, .. } if points.len() > 2 => Some(points),
            _ => None,
        })
        .collect();
    let [values, stairs] = lines[..] else { panic!("{lines:?}") };
    assert_eq!(values.len(), 6);
    assert!(values.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    assert!(values[0].1 > values[1].1 && values[4].1 > values[5].1, "upwards is larger: {values:?}");
    assert_eq!(values[2].1, values[3].1);
    // The stairs know four ratios from α = 5 (three excepted and the next): 500, 40, 6, 3. At 3 they end.
    assert_eq!(stairs.len(), 1 + 2 * 3 + 1);
}

#[test]
fn numbers_of_groups_make_a_sweep_of_their_own() {
    let mut records = Records::new("own");
    let steps = |top: u64| [qfem("top", json!(top)), weights(), tensor()];
    records.cell("tiny", "one", &steps(1), Some(3.0));
    assert!(drawings(&records.0, "alpha-sweep").is_empty(), "one member is no sweep");
    records.cell("tiny", "two", &steps(2), Some(2.5));
    records.cell("tiny", "original", &[], Some(2.0));
    let drawings = drawings(&records.0, "alpha-sweep");
    assert_eq!(drawings.len(), 1);
    assert!(texts(&drawings[0]).iter().any(|text| text.starts_with("number of excepted groups:")));
    assert!(!texts(&drawings[0]).contains(&"∞"));
}

#[test]
fn prefixes_are_compared_with_the_originals_behind_them() {
    let drawings = drawings(&example("own"), "prefix-ablation");
    assert_eq!(drawings.len(), 1);
    let bands = ["no prefix", "BOS", "QFeP without BOS", "QFeP"];
    let mut at: Vec<(f64, &str)> = Vec::new();
    for shape in &drawings[0].shapes {
        if let Shape::Text { at: (_, y), text, .. } = shape
            && bands.contains(&text.as_str())
        {
            at.push((*y, text));
        }
    }
    at.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert_eq!(at.iter().map(|(_, text)| *text).collect::<Vec<_>>(), bands);
    // Four recipes; outlines of two discs for the original and those behind BOS and QFeP, and one in the legend beside
    // the model.
    let marks = drawings[0].shapes.iter().filter(|shape| matches!(shape, Shape::Mark { .. })).count();
    assert_eq!(marks, 4 + 3 * 2 + 1 + 2);
    assert!(drawings[0].caption.contains("QFeP of tiny: “<s>” “ but” “↵”"), "{}", drawings[0].caption);
}

#[test]
fn schemes_are_compared_where_there_are_cures_or_static_scales() {
    let found = drawings(&example("own"), "schemes");
    assert_eq!(found.len(), 1);
    let texts = texts(&found[0]);
    for text in ["per-tensor dynamic", "per-tensor static, max", "per-token", "plain", "+QFeM (top 2)"] {
        assert!(texts.contains(&text), "{text}: {texts:?}");
    }
    assert!(!texts.contains(&"+QFeP"), "a cure of one scheme compares nothing");
    let mut records = Records::new("own");
    records.cell("tiny", "a", &[weights(), tensor()], Some(160.0));
    records.cell("tiny", "b", &[weights(), with(tensor(), "granularity", json!("token"))], Some(2.0));
    assert!(
        drawings(&records.0, "schemes").is_empty(),
        "plain dynamic schemes have the figure of perplexities"
    );
}

#[test]
fn names_of_recipes_decide_nothing() {
    let contents = example("arXiv:2405.14428");
    let mut renamed = contents.clone();
    for (i, cell) in renamed.manifest.cells.iter_mut().enumerate() {
        if cell.recipe != "original" {
            cell.recipe = format!("recipe-{}", 100 - i);
        }
    }
    for name in ["alpha-sweep", "prefix-ablation", "schemes"] {
        assert_eq!(drawings(&contents, name), drawings(&renamed, name), "{name}");
    }
    let beside = |contents: &Contents| {
        let tables = sections::tables(contents).into_iter();
        tables.filter(|table| table.caption.starts_with("Beside")).collect::<Vec<_>>()
    };
    assert_eq!(beside(&contents), beside(&renamed));
    assert_eq!(beside(&contents).len(), 4);
}

#[test]
fn what_failed_is_left_out_of_figures_and_said() {
    let mut contents = example("own");
    let cell = contents.manifest.cells.iter().find(|cell| cell.recipe == "d").unwrap().id.clone();
    contents.measurements.retain(|measured| measured.result.cell != cell);
    let mut records = Records(contents);
    let steps = [qfem("alpha", json!(50.0)), weights(), tensor()];
    records.cell("tiny", "d", &steps, None);
    let drawing = &drawings(&records.0, "alpha-sweep")[0];
    assert!(drawing.caption.ends_with("1 failed and are not shown."), "{}", drawing.caption);
}

#[test]
fn calibration_sets_are_series_and_recipes_without_one_belong_to_each() {
    let mut records = Records::new("own");
    records.cell("tiny", "naive", &[weights(), tensor()], Some(160.0));
    for set in ["c4", "wiki"] {
        for (name, alpha, value) in [("x", 5.0, 2.25), ("y", 50.0, 80.0)] {
            let steps = [qfem("alpha", json!(alpha)), weights(), tensor()];
            records.cell_of("tiny", name, &steps, Some(value), ID, set);
        }
    }
    let drawing = &drawings(&records.0, "alpha-sweep")[0];
    assert!(texts(drawing).contains(&"tiny · c4") && texts(drawing).contains(&"tiny · wiki"));
    let lines = drawing
        .shapes
        .iter()
        .filter(|shape| matches!(shape, Shape::Line { points, .. } if points.len() == 3));
    // The naive recipe is the end of both series.
    assert_eq!(lines.count(), 2);
}

#[test]
fn metrics_that_are_no_perplexity_are_drawn_evenly() {
    let mut records = Records::new("own");
    let metric = "acc/piqa/0-shot";
    for (name, steps, value) in [
        ("original", vec![], 0.78),
        ("naive", vec![weights(), tensor()], 0.5),
        ("x", vec![qfem("alpha", json!(5.0)), weights(), tensor()], 0.77),
        ("y", vec![qfem("alpha", json!(50.0)), weights(), tensor()], 0.6),
    ] {
        records.cell_of("tiny", name, &steps, Some(value), metric, "c4");
    }
    let drawing = &drawings(&records.0, "alpha-sweep")[0];
    assert!(texts(drawing).contains(&"acc (higher is better)"), "{:?}", texts(drawing));
}

/// With `QUANTSCOPE_FIGURES` set to a folder the figures are also written there, to be looked at.
#[test]
fn no_text_is_clipped_or_covered_and_bytes_repeat() {
    let folder = std::env::var_os("QUANTSCOPE_FIGURES");
    let contents = example("arXiv:2405.14428");
    for name in ["alpha-sweep", "prefix-ablation", "schemes"] {
        for drawing in drawings(&contents, name) {
            if let Some(folder) = &folder {
                fs::write(Path::new(folder).join(format!("{name}.png")), drawing.png().unwrap()).unwrap();
            }
            assert_eq!(drawing.svg().unwrap(), drawing.svg().unwrap());
            check_texts(name, &drawing);
        }
    }
    let write = || {
        let folder = tempfile::tempdir().unwrap();
        report::write_contents(folder.path(), &contents).unwrap();
        assert_eq!(report::check_contents(folder.path(), &contents).unwrap(), []);
    };
    write();
}

fn check_texts(case: &str, drawing: &Drawing) {
    let shapes = &drawing.shapes;
    let words: Vec<(&str, _)> = shapes
        .iter()
        .filter_map(|shape| match shape {
            Shape::Text { text, .. } => Some((text.as_str(), shape.bounds())),
            _ => None,
        })
        .collect();
    let overlap = |a: &((f64, f64), (f64, f64)), b: &((f64, f64), (f64, f64))| {
        a.0.0 < b.1.0 && b.0.0 < a.1.0 && a.0.1 < b.1.1 && b.0.1 < a.1.1
    };
    for (i, (text, bounds)) in words.iter().enumerate() {
        let others = words[..i].iter().find(|(_, other)| overlap(bounds, other));
        assert!(others.is_none(), "{case}: {text} over {others:?}");
        let drawn = |shape: &&Shape| matches!(shape, Shape::Mark { .. } | Shape::Line { .. });
        let covering = shapes.iter().filter(drawn).find(|shape| overlap(bounds, &shape.bounds()));
        assert!(covering.is_none(), "{case}: {covering:?} over {text}");
    }
    for shape in shapes {
        let ((left, top), (right, bottom)) = shape.bounds();
        let inside = left >= 0.0 && top >= 0.0 && right <= drawing.width && bottom <= drawing.height;
        assert!(inside, "{case}: {shape:?}");
    }
}
