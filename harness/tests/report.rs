//! Reports from hand-built records: golden tables, files on disk, staleness, comparison of summaries, readable figures.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use harness::record::store::Store;
use harness::record::{
    CellResult, Contents, Envelope, Execution, Failure, Manifest, ManifestCell, ManifestExpectation,
    MeasurementResult, ModelIdentity, Reading, SCHEMA,
};
use harness::report::compare::DifferenceKind;
use harness::report::drawing::{Drawing, Shape};
use harness::report::figures::{self, FIGURES};
use harness::report::tables::find;
use harness::report::{self, StaleReason, Tolerances};

const GPTQ: &str = "perplexity/gptq/wikitext2-test/2048/bos=tokenizer";
const EVERY: &str = "perplexity/gptq/wikitext2-test/2048/bos=every";

/// Builds contents cell by cell.
struct Records(Contents);

impl Records {
    fn new() -> Self {
        Records(Contents {
            manifest: Manifest {
                schema: SCHEMA,
                experiment: "quickstart".into(),
                file: "experiments/quickstart.toml".into(),
                question: "Do spikes break W8A8?".into(),
                reference: "own".into(),
                ..Manifest::default()
            },
            ..Contents::default()
        })
    }

    fn cell(&mut self, model: &str, recipe: &str, metrics: &[&str]) -> String {
        let id = format!("{model}-{recipe}").replace('/', "-");
        self.0.manifest.cells.push(ManifestCell {
            id: id.clone(),
            model: model.into(),
            recipe: recipe.into(),
            calibration: None,
            seed: None,
            metrics: metrics.iter().map(|metric| (*metric).into()).collect(),
        });
        let identity = ModelIdentity {
            name: model.into(),
            origin: "builtin".into(),
            family: "llama".into(),
            parameters: 1,
            weights: "w".into(),
            tokenizer: "t".into(),
        };
        let result = CellResult {
            id: id.clone(),
            model: identity,
            steps: vec![],
            calibration: None,
            seed: None,
            fitted: Default::default(),
            statistics: Vec::new(),
            effective_bits: None,
        };
        self.0.cells.push(envelope(result));
        id
    }

    fn measured(&mut self, model: &str, recipe: &str, metric: &str, value: f64, stderr: Option<f64>) {
        let id = format!("{model}-{recipe}").replace('/', "-");
        if !self.0.manifest.cells.iter().any(|cell| cell.id == id) {
            self.cell(model, recipe, &[metric]);
        }
        let reading = if recipe == "original" { Reading::Original } else { Reading::Quantized };
        let result = MeasurementResult {
            cell: id,
            reading,
            metric: metric.into(),
            version: 1,
            value,
            stderr,
            n: 10220,
            detail: Default::default(),
        };
        self.0.measurements.push(envelope(result));
    }

    fn failed(&mut self, model: &str, recipe: &str, metric: &str) {
        let cell = self.cell(model, recipe, &[metric]);
        self.0.failures.push(Failure {
            schema: SCHEMA,
            cell,
            metric: None,
            stage: "quantize".into(),
            message: "the weights of `down_proj` hold a NaN".into(),
            cure: "Fetch the checkpoint again.".into(),
            execution: Execution::default(),
        });
    }
}

fn envelope<T>(result: T) -> Envelope<T> {
    let execution =
        Execution { version: "0.1.0".into(), device: "CPU (flex)".into(), ..Execution::default() };
    Envelope { schema: SCHEMA, result, result_hash: String::new(), execution }
}

/// Two models, one recipe measured on one, failed on the other; another not run yet; a second protocol.
fn example() -> Contents {
    let mut records = Records::new();
    records.cell("tiny", "original", &[GPTQ, EVERY]);
    records.measured("tiny", "original", GPTQ, 4.0, Some(0.125));
    records.measured("tiny", "original", EVERY, 5.0, None);
    records.cell("tiny", "w8a8_tensor", &[GPTQ, EVERY]);
    records.measured("tiny", "w8a8_tensor", GPTQ, 5.0, Some(0.25));
    records.measured("tiny", "w8a8_tensor", EVERY, 512.0, None);
    records.cell("tiny", "w4a8", &[GPTQ]);
    records.measured("org/big", "original", GPTQ, 17.5412, Some(0.3149));
    records.failed("org/big", "w8a8_tensor", GPTQ);
    let mut contents = records.0;
    contents.manifest.notes = vec!["`w4a8` of `org/big` is excluded".into()];
    contents.manifest.analysis = Some("The spikes do it.\n\nSee **Table 1**.".into());
    for (value, tolerance, metric) in [(4.1, 0.2, GPTQ), (4.5, 0.2, EVERY)] {
        contents.manifest.expectations.push(ManifestExpectation {
            model: "tiny".into(),
            recipe: "original".into(),
            calibration: None,
            metric: metric.into(),
            value,
            tolerance,
            source: "a paper".into(),
        });
    }
    contents
}

fn printed(format: &str) -> String {
    report::print_contents(&example(), find(format).unwrap())
}

#[test]
fn markdown_has_a_table_for_each_protocol_and_names_every_failure() {
    let expected = "\
**perplexity (gptq/wikitext2-test/2048/bos=tokenizer)**

| recipe      |         tiny | tiny ÷ original |          org/big | org/big ÷ original |
|:------------|-------------:|----------------:|-----------------:|-------------------:|
| original    | 4.000 ± 0.125 |               – |     17.54 ± 0.31 |                  – |
| w8a8_tensor | 5.000 ± 0.250 |           1.250 | failed: quantize |                  – |

- lower is better; ± one standard error
- `w8a8_tensor` of `org/big` failed at quantize: the weights of `down_proj` hold a NaN. Cure: Fetch the checkpoint again.
- rows of which nothing was run yet: `w4a8`

**perplexity (gptq/wikitext2-test/2048/bos=every)**

| recipe      |  tiny | tiny ÷ original |
|:------------|------:|----------------:|
| original    | 5.000 |               – |
| w8a8_tensor | 512.0 |             102 |

- lower is better
";
    let written = printed("markdown");
    // Padding depends on the widest cell; what matters is the rest.
    let squeeze = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("|:"));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("\n")
    };
    assert!(squeeze(&written).starts_with(&squeeze(expected)), "{written}");
    assert!(written.contains("|    4.000 |     -0.100 | met     | a paper |"), "{written}");
    assert!(written.contains("| missed "), "{written}");
}

#[test]
fn the_long_form_has_a_row_for_every_planned_measurement() {
    let expected = "\
model,recipe,calibration,seed,reading,metric,protocol,value,stderr,n,status
tiny,original,,,original,perplexity,gptq/wikitext2-test/2048/bos=tokenizer,4.0,0.125,10220,ok
tiny,original,,,original,perplexity,gptq/wikitext2-test/2048/bos=every,5.0,,10220,ok
tiny,w8a8_tensor,,,quantized,perplexity,gptq/wikitext2-test/2048/bos=tokenizer,5.0,0.25,10220,ok
tiny,w8a8_tensor,,,quantized,perplexity,gptq/wikitext2-test/2048/bos=every,512.0,,10220,ok
tiny,w4a8,,,quantized,perplexity,gptq/wikitext2-test/2048/bos=tokenizer,,,,missing
org/big,original,,,original,perplexity,gptq/wikitext2-test/2048/bos=tokenizer,17.5412,0.3149,10220,ok
org/big,w8a8_tensor,,,quantized,perplexity,gptq/wikitext2-test/2048/bos=tokenizer,,,,failed: quantize
";
    assert_eq!(printed("csv"), expected);
    let json: serde_json::Value = serde_json::from_str(&printed("json")).unwrap();
    assert_eq!(json[0]["stderr"], 0.125);
    assert_eq!(json[6]["status"], "failed: quantize");
    assert_eq!(json[6]["value"], serde_json::Value::Null);
}

#[test]
fn latex_escapes_names_and_sets_numbers_as_mathematics() {
    let written = printed("latex");
    assert!(
        written.contains("w8a8\\_tensor & $5.000 \\pm 0.250$ & $1.250$ & failed: quantize & -- \\\\"),
        "{written}"
    );
    assert_eq!(written.matches("\\begin{table}").count(), written.matches("\\bottomrule").count());
}

#[test]
fn calibrations_and_seeds_get_columns_where_there_are_several() {
    let mut records = Records::new();
    records.measured("tiny", "original", GPTQ, 4.0, None);
    for (i, (calibration, seed)) in [("c4", 0), ("c4", 1), ("pile", 0)].into_iter().enumerate() {
        let recipe = format!("gptq{i}");
        records.measured("tiny", &recipe, GPTQ, 5.0 + i as f64, None);
        let cell = records.0.manifest.cells.last_mut().unwrap();
        (cell.recipe, cell.calibration, cell.seed) = ("gptq".into(), Some(calibration.into()), Some(seed));
    }
    let written = report::print_contents(&records.0, find("markdown").unwrap());
    for line in [
        "| recipe   | calibration | seed |  tiny | tiny ÷ original |",
        "| original | –           |    – | 4.000 |               – |",
        "| gptq     | c4          |    1 | 6.000 |           1.500 |",
        "| gptq     | pile        |    0 | 7.000 |           1.750 |",
    ] {
        assert!(written.contains(line), "{line}\nnot in\n{written}");
    }
}

#[test]
fn measurements_of_an_older_version_are_left_out_and_named() {
    let mut contents = example();
    contents.measurements[0].result.version = 2;
    let written = report::print_contents(&contents, find("csv").unwrap());
    assert!(written.contains(
        "tiny,w8a8_tensor,,,quantized,perplexity,gptq/wikitext2-test/2048/bos=tokenizer,,,,missing"
    ));
    let folder = tempfile::tempdir().unwrap();
    report::write_contents(folder.path(), &contents).unwrap();
    let readme = fs::read_to_string(folder.path().join("README.md")).unwrap();
    assert!(readme.contains("version 1 and are left out: version 2"), "{readme}");
}

#[test]
fn a_report_is_whole_repeats_its_bytes_and_is_fresh_until_a_record_changes() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("quickstart");
    fs::create_dir(&dir).unwrap();
    let contents = example();
    let written = report::write_contents(&dir, &contents).unwrap();
    assert_eq!((written.gaps, written.missed), (2, 1));
    let read = || written.files.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    let bytes = read();
    report::write_contents(&dir, &contents).unwrap();
    assert_eq!(bytes, read());
    assert_eq!(report::check_contents(&dir, &contents).unwrap(), []);

    let readme = fs::read_to_string(dir.join("README.md")).unwrap();
    assert!(readme.starts_with("# quickstart\n\n<!-- quantscope:begin -->\n"), "{readme}");
    let order = [
        "cargo run --release -- report results/quickstart\n",
        "**Question.** Do spikes break W8A8?",
        "The spikes do it.\n\nSee **Table 1**.",
        "| recipe ",
        "(figures/perplexity-gptq-wikitext2-test-2048-bos-tokenizer.svg)",
        "- `w4a8` of `org/big` is excluded",
        "*3 of 5 cells measured, 1 failed, from experiments/quickstart.toml; quantscope 0.1.0; on CPU (flex).*",
        "<!-- quantscope:end -->",
    ];
    let places: Vec<_> =
        order.iter().map(|part| readme.find(part).unwrap_or_else(|| panic!("{part}\n{readme}"))).collect();
    assert!(places.is_sorted(), "{places:?}\n{readme}");
    for (_, rest) in readme.match_indices("](figures/").map(|(at, start)| readme.split_at(at + start.len())) {
        let name = rest.split(')').next().unwrap();
        assert!(dir.join("figures").join(name).is_file(), "{name}");
    }

    let mut changed = contents.clone();
    changed.measurements[0].result.value = 4.4;
    fs::remove_file(dir.join("summary.parquet")).unwrap();
    let stale = report::check_contents(&dir, &changed).unwrap();
    let reason = |name: &str| stale.iter().find(|stale| stale.path.ends_with(name)).map(|stale| stale.reason);
    assert_eq!(reason("README.md"), Some(StaleReason::Differs));
    assert_eq!(reason("summary.csv"), Some(StaleReason::Differs));
    assert_eq!(reason("summary.parquet"), Some(StaleReason::Missing));
    assert!(reason("perplexity-gptq-wikitext2-test-2048-bos-tokenizer.svg").is_some());
    assert_eq!(reason("perplexity-gptq-wikitext2-test-2048-bos-every.svg"), None);
}

#[test]
fn a_report_is_made_from_a_store_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("quickstart");
    let contents = example();
    let store = Store::open(&dir).unwrap();
    for cell in &contents.cells {
        store.publish_cell(cell.result.clone(), cell.execution.clone()).unwrap();
    }
    for measured in &contents.measurements {
        store.publish_measurement(measured.result.clone(), measured.execution.clone()).unwrap();
    }
    for failure in &contents.failures {
        store.record_failure(failure.clone()).unwrap();
    }
    store.write_manifest(&contents.manifest).unwrap();

    let written = report::write(&dir).unwrap();
    assert!(written.files.len() == 7 && written.files.iter().all(|path| path.is_file()), "{written:?}");
    assert_eq!(report::check(&dir).unwrap(), []);
    assert_eq!(report::print(&dir, "csv").unwrap(), printed("csv"));
    assert_eq!(fs::read_to_string(dir.join("summary.csv")).unwrap(), printed("csv"));

    let error = report::write(&folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("there are no results at") && error.contains("Run the sweep first"), "{error}");
}

#[test]
fn figures_that_are_gone_are_removed_and_foreign_files_are_not() {
    let folder = tempfile::tempdir().unwrap();
    report::write_contents(folder.path(), &example()).unwrap();
    let own = folder.path().join("figures/mine.svg");
    fs::write(&own, "mine").unwrap();
    let mut contents = example();
    for cell in &mut contents.manifest.cells {
        cell.metrics.retain(|metric| metric != EVERY);
    }
    let written = report::write_contents(folder.path(), &contents).unwrap();
    assert_eq!(written.removed.len(), 2, "{written:?}");
    assert!(own.is_file());
    assert!(!folder.path().join("figures/perplexity-gptq-wikitext2-test-2048-bos-every.svg").exists());
}

#[test]
fn an_empty_store_gives_an_empty_report() {
    let folder = tempfile::tempdir().unwrap();
    report::write_contents(folder.path(), &Contents::default()).unwrap();
    let csv = fs::read_to_string(folder.path().join("summary.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1);
    assert!(FIGURES.iter().all(|figure| !figure.applies(&Contents::default())));
}

#[test]
fn an_unknown_format_is_refused_with_the_known_ones() {
    let error = report::print(Path::new("nowhere"), "word").unwrap_err().to_string();
    assert_eq!(error, "there is no table format \"word\"; there are csv, json, latex, markdown");
}

#[test]
fn summaries_are_compared_by_key_and_reading() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, change: &dyn Fn(&mut Contents)| {
        let mut contents = example();
        change(&mut contents);
        let path = folder.path().join(name);
        fs::write(&path, report::print_contents(&contents, find("csv").unwrap())).unwrap();
        path
    };
    let tolerances = Tolerances { original: 1e-3, quantized: 1e-2 };
    let first = write("a.csv", &|_| {});
    let compare = |second: &Path| report::compare_summaries(&first, second, tolerances).unwrap();
    assert_eq!(compare(&first), []);

    // 0.5 % are allowed in a quantized value and not in an original.
    let moved = write("b.csv", &|contents| contents.measurements[2].result.value *= 1.005);
    assert_eq!(compare(&moved), []);
    let moved = write("b.csv", &|contents| contents.measurements[0].result.value *= 1.005);
    let differences = compare(&moved);
    assert_eq!(differences.len(), 1);
    assert!(matches!(differences[0].kind, DifferenceKind::Value { tolerance, .. } if tolerance == 1e-3));
    assert!(differences[0].to_string().contains("differ by 0.5000 %"), "{}", differences[0]);

    let fewer = write("b.csv", &|contents| drop(contents.manifest.cells.pop()));
    assert!(matches!(compare(&fewer)[..], [ref d] if d.kind == DifferenceKind::OnlyInFirst));
    let other = write("b.csv", &|contents| contents.failures.clear());
    assert!(
        matches!(compare(&other)[..], [ref d] if matches!(d.kind, DifferenceKind::Field { column: "status", .. }))
    );

    fs::write(folder.path().join("c.csv"), "model,value\nx,1\n").unwrap();
    let error = report::compare_summaries(&first, &folder.path().join("c.csv"), tolerances).unwrap_err();
    assert!(error.to_string().contains("no column `recipe`"), "{error}");
}

#[test]
fn differences_near_zero_are_held_absolutely_and_noise_as_what_is_quantized() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, values: [f64; 3]| {
        let header = "model,recipe,calibration,seed,reading,metric,protocol,value,stderr,n,status\n";
        let [quantized, floor, perplexity] = values;
        let rows = [
            format!("m,r,,,quantized,log-perplexity-difference,gptq/t,{quantized},,8,measured\n"),
            format!("m,original,,,original,kl-divergence,gptq/t/noise-floor,{floor},,8,measured\n"),
            format!("m,original,,,original,perplexity,gptq/t,{perplexity},,8,measured\n"),
        ];
        let path = folder.path().join(name);
        fs::write(&path, header.to_owned() + &rows.concat()).unwrap();
        path
    };
    let tolerances = Tolerances { original: 1e-4, quantized: 2e-2 };
    let first = write("a.csv", [1e-4, 1e-8, 30.0]);
    let compare = |values: [f64; 3]| {
        let second = write("b.csv", values);
        let found = report::compare_summaries(&first, &second, tolerances).unwrap();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(compare([-1e-4, 1.01e-8, 30.0]), <[&str; 0]>::default());
    let far = compare([0.03, 1.05e-8, 30.1]);
    assert_eq!(far.len(), 3);
    assert!(far.iter().any(|text| text.contains("differ by 0.029900, allowed is 0.020000")), "{far:?}");
    assert!(far.iter().any(|text| text.contains("allowed are 2.0000 %")), "{far:?}");
}

/// Contents with as many models and recipes, values from `low` to `high`, one cell failed.
fn grid(models: usize, recipes: usize, low: f64, high: f64, failed: bool) -> Contents {
    const NAMES: [&str; 4] = [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "meta-llama/Llama-2-7b-hf",
        "builtin/tiny-llama-spiky",
        "gemma-3-270m-it-dequantized",
    ];
    const RECIPES: [&str; 7] = [
        "w8a8-tensor",
        "w8a8-token",
        "w4a8-channel-token",
        "qfem",
        "w4a4-smooth-rotate-gptq-g128",
        "rtn",
        "w16a8",
    ];
    let mut records = Records::new();
    for m in 0..models {
        let name = NAMES[m % 4];
        let original = low * (1.0 + 0.6 * m as f64);
        records.measured(name, "original", GPTQ, original, Some(original * 0.03));
        for r in 0..recipes {
            let recipe = format!("{}{}", RECIPES[r % 7], if r < 7 { "" } else { "-second" });
            if failed && (m, r) == (models - 1, recipes / 2) {
                records.failed(name, &recipe, GPTQ);
                continue;
            }
            let share = r as f64 / (recipes.max(2) - 1) as f64;
            let value = original * (high / original).powf(share * (1.0 - 0.1 * m as f64));
            records.measured(name, &recipe, GPTQ, value, (r % 3 > 0).then_some(value * 0.04));
        }
    }
    records.0
}

fn cases() -> Vec<(&'static str, Contents)> {
    vec![
        ("2x7", grid(2, 7, 5.0, 60.0, false)),
        ("4x14-wide", grid(4, 14, 3.0, 1e5, true)),
        ("one-model", grid(1, 6, 17.0, 18.5, false)),
        ("2x3-failed", grid(2, 3, 17.0, 400.0, true)),
        ("original-only", grid(2, 0, 6.0, 7.0, false)),
        ("8-decades", grid(4, 5, 3.0, 3e8, false)),
    ]
}

/// With `QUANTSCOPE_FIGURES` set to a folder the figures are also written there, to be looked at.
#[test]
fn no_text_of_a_figure_is_clipped_or_covered() {
    let folder = std::env::var_os("QUANTSCOPE_FIGURES");
    for (name, contents) in cases() {
        for drawing in figures::draw_all(&contents).unwrap() {
            if let Some(folder) = &folder {
                fs::write(Path::new(folder).join(format!("{name}.png")), drawing.png().unwrap()).unwrap();
                fs::write(Path::new(folder).join(format!("{name}.svg")), drawing.svg().unwrap()).unwrap();
            }
            check_texts(name, &drawing);
        }
    }
}

fn check_texts(case: &str, drawing: &Drawing) {
    let texts: Vec<(&str, _)> = drawing
        .shapes
        .iter()
        .filter_map(|shape| match shape {
            Shape::Text { text, .. } => Some((text.as_str(), shape.bounds())),
            _ => None,
        })
        .collect();
    assert!(texts.len() > 5, "{case}: a figure has numbers and names");
    let overlap = |a: &((f64, f64), (f64, f64)), b: &((f64, f64), (f64, f64))| {
        a.0.0 < b.1.0 && b.0.0 < a.1.0 && a.0.1 < b.1.1 && b.0.1 < a.1.1
    };
    for (i, (text, bounds)) in texts.iter().enumerate() {
        let ((left, top), (right, bottom)) = *bounds;
        assert!(
            left >= 0.0 && top >= 0.0 && right <= drawing.width && bottom <= drawing.height,
            "{case}: {text} clipped"
        );
        for (other, others) in &texts[..i] {
            assert!(!overlap(bounds, others), "{case}: {text} over {other}");
        }
        for shape in &drawing.shapes {
            let covers =
                matches!(shape, Shape::Mark { .. } | Shape::Line { .. }) && overlap(bounds, &shape.bounds());
            assert!(!covers, "{case}: {shape:?} over {text}");
        }
    }
    for shape in &drawing.shapes {
        let ((left, top), (right, bottom)) = shape.bounds();
        assert!(
            left >= 0.0 && top >= 0.0 && right <= drawing.width && bottom <= drawing.height,
            "{case}: {shape:?}"
        );
    }
}

#[test]
fn a_figure_shows_every_measured_value_and_marks_failures() {
    let contents = grid(4, 14, 3.0, 1e5, true);
    let drawing = &figures::draw_all(&contents).unwrap()[0];
    let marks = drawing.shapes.iter().filter(|shape| matches!(shape, Shape::Mark { .. })).count();
    // 4 × 14 cells, of which one is a cross; 4 models in the legend.
    assert_eq!(marks, 4 * 14 + 4);
    assert!(drawing.caption.contains("Crosses are failed cells"));
    assert_eq!(drawing.png().unwrap(), drawing.png().unwrap());
}
