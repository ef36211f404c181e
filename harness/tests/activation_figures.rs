//! Figures of activation statistics: observed values with planted spikes, published into a store, read back and drawn.
//!
//! With `QUANTSCOPE_FIGURES` set to a folder the figures are also written there, to be looked at.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use harness::calibrate::recorded::recorded;
use harness::calibrate::statistics::{Batch, Depth, SiteStatistics, Statistics};
use harness::record::statistics::{
    PrefixTokens, RESIDUAL, SequenceRow, StatisticsResult, StatisticsRows, statistics_id,
};
use harness::record::store::Store;
use harness::record::{CellResult, Contents, Envelope, Execution, ManifestCell, ModelIdentity, SCHEMA};
use harness::report::drawing::{Drawing, Shape};
use harness::report::figures::outlier_histograms::{maxima, pooled};
use harness::report::figures::token_scales::{STRETCH, Stretch};
use harness::report::figures::{self, spike_ratios};
use harness::report::observed::observed;
use models::{Port, Site};
use proptest::prelude::*;
use serde_json::{Value, json};

const PORTS: [Port; 4] = [Port::AttnIn, Port::OIn, Port::MlpIn, Port::DownIn];
const CHANNELS: usize = 6;

/// A text for every token, unusual ones among them.
fn text(token: u32) -> String {
    const TEXTS: [&str; 12] = [
        "<s>",
        " the",
        "\n",
        "中",
        "😀",
        "\u{0}",
        "\t",
        "",
        "слово",
        "a rather long token of many words",
        "\r\n",
        ".",
    ];
    TEXTS[token as usize % TEXTS.len()].to_owned()
}

/// What is observed, and of what.
#[derive(Clone, Copy)]
struct Setting {
    blocks: usize,
    samples: usize,
    length: usize,
    /// Magnitude of the first token at `down_in` of block 1.
    spike: f32,
    /// Whether the first token stands in a prefix.
    prefixed: bool,
}

const SMALL: Setting = Setting { blocks: 3, samples: 4, length: 90, spike: 900.0, prefixed: false };

fn statistics(setting: Setting, seed: u64) -> Statistics {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let first = usize::from(setting.prefixed);
    let tokens: Vec<Vec<u32>> = (0..setting.samples)
        .map(|sample| {
            (first..setting.length).map(|t| if t == 0 { 0 } else { (sample * 7 + t) as u32 }).collect()
        })
        .collect();
    let mut site = |spikes: bool, scale: f32| {
        let mut site = SiteStatistics::new(CHANNELS, Depth { histogram: true, second_moment: false });
        for (sample, tokens) in tokens.iter().enumerate() {
            let mut values: Vec<f32> = (0..tokens.len() * CHANNELS)
                .map(|_| scale * (uniform() + 0.01) * if uniform() < 0.5 { -1.0 } else { 1.0 })
                .collect();
            if spikes && !setting.prefixed {
                values[0] = setting.spike;
            }
            let batch = Batch { samples: &[sample], tokens: &[tokens], first_position: first };
            site.observe(&values, &batch, 2).unwrap();
        }
        site
    };
    let mut statistics = Statistics {
        samples: setting.samples,
        tokens: tokens.iter().map(|tokens| tokens.len() as u64).sum(),
        first_position: first,
        kept: tokens.iter().take(2).cloned().enumerate().collect(),
        ..Statistics::default()
    };
    for block in 0..setting.blocks {
        for port in PORTS {
            let spikes = port == Port::DownIn && (block == 1 || block + 1 == setting.blocks);
            statistics.sites.insert(Site::block(block, port), site(spikes, 1.0 + block as f32));
        }
        statistics.residual.insert(block, site(block > 0, 4.0));
    }
    statistics
}

/// Records in a store of their own.
struct Records {
    folder: tempfile::TempDir,
    store: Store,
    contents: Contents,
}

impl Records {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        Records { folder, store, contents: Contents::default() }
    }

    /// Publishes what was observed; returns the id.
    fn publish(
        &self,
        model: &str,
        setting: Setting,
        change: &dyn Fn(&mut StatisticsResult, &mut StatisticsRows),
    ) -> String {
        let seed = model.bytes().map(u64::from).sum();
        let statistics = statistics(setting, seed);
        let (sites, mut rows) = recorded(&statistics, &text);
        let prefix = [0, 3, 11];
        let steps =
            if setting.prefixed { vec![json!({ "step": "prefix", "method": "qfep" })] } else { vec![] };
        let set = format!("{} of {}", setting.samples, setting.length);
        let mut result = StatisticsResult {
            id: statistics_id(model, "t", &set, if setting.prefixed { &prefix } else { &[] }, &steps),
            model: identity(model),
            calibration: json!({ "text": "a text", "samples": setting.samples, "length": setting.length }),
            prefix: setting.prefixed.then(|| PrefixTokens {
                tokens: prefix.to_vec(),
                texts: prefix.iter().map(|token| text(*token)).collect(),
            }),
            steps,
            samples: statistics.samples as u64,
            tokens: statistics.tokens,
            sites,
            tables: BTreeMap::new(),
        };
        change(&mut result, &mut rows);
        let id = result.id.clone();
        self.store.publish_statistics(result, &rows, Execution::default()).unwrap();
        id
    }

    /// A cell of the manifest that read these statistics.
    fn cell(
        &mut self,
        model: &str,
        recipe: &str,
        calibration: &str,
        seed: u64,
        read: &[&str],
        steps: &[(Value, Value)],
    ) {
        let id = format!("{model} {recipe} {calibration} {seed}");
        self.contents.manifest.cells.push(ManifestCell {
            id: id.clone(),
            model: model.into(),
            recipe: recipe.into(),
            calibration: Some(calibration.into()),
            seed: Some(seed),
            metrics: vec![],
        });
        let name =
            |(i, (step, _)): (usize, &(Value, Value))| format!("{i}.{}", step["step"].as_str().unwrap());
        let names: Vec<String> = steps.iter().enumerate().map(name).collect();
        let result = CellResult {
            id,
            model: identity(model),
            steps: steps.iter().map(|(step, _)| step.clone()).collect(),
            calibration: None,
            seed: Some(seed),
            fitted: names.into_iter().zip(steps.iter().map(|(_, fitted)| fitted.clone())).collect(),
            statistics: read.iter().map(|id| (*id).to_owned()).collect(),
            effective_bits: None,
        };
        let execution = Execution::default();
        self.contents.cells.push(Envelope { schema: SCHEMA, result, result_hash: String::new(), execution });
    }

    fn contents(&self) -> Contents {
        Contents { statistics: self.store.statistics().unwrap(), ..self.contents.clone() }
    }
}

fn identity(model: &str) -> ModelIdentity {
    ModelIdentity {
        name: model.into(),
        origin: "local".into(),
        family: "llama".into(),
        parameters: 1,
        weights: model.into(),
        tokenizer: "t".into(),
    }
}

fn as_it_is(_: &mut StatisticsResult, _: &mut StatisticsRows) {}

fn keep(of: &str, alpha: Value) -> (Value, Value) {
    let step = json!({ "step": "keep", "method": "qfem", "top": 1, "ratio": "sequences", "of": of });
    (step, json!({ "groups": 12, "alpha": alpha }))
}

/// Two models, one of them also behind a prefix, with recipes that keep groups.
fn example(setting: Setting) -> Records {
    let mut records = Records::new();
    let a = records.publish("org/spiky", setting, &as_it_is);
    let b = records.publish("org/calm", Setting { spike: 3.0, ..setting }, &as_it_is);
    let behind = records.publish("org/spiky", Setting { prefixed: true, ..setting }, &as_it_is);
    let prefix = (json!({ "step": "prefix", "method": "qfep" }), json!({ "tokens": [0, 3, 11] }));
    records.cell("org/spiky", "qfem-top-8", "c4", 0, &[&a], &[keep("original", json!(400.0))]);
    records.cell(
        "org/spiky",
        "qfem-auto-with-a-name-of-some-length",
        "c4",
        0,
        &[&a],
        &[keep("original", json!(395.0))],
    );
    records.cell("org/spiky", "inf", "c4", 0, &[&a], &[keep("original", Value::Null)]);
    records.cell(
        "org/spiky",
        "both",
        "c4",
        0,
        &[&a, &behind],
        &[prefix.clone(), keep("original", json!(400.0))],
    );
    records.cell(
        "org/spiky",
        "both-present",
        "c4",
        0,
        &[&a, &behind],
        &[prefix, keep("present", json!(1.25))],
    );
    records.cell("org/calm", "qfem-top-8", "c4", 0, &[&b], &[keep("original", json!(1.3))]);
    records
}

fn stems(drawings: &[Drawing]) -> Vec<&str> {
    drawings.iter().map(|drawing| drawing.stem.as_str()).collect()
}

fn texts(drawing: &Drawing) -> Vec<&str> {
    let mut texts = Vec::new();
    for shape in &drawing.shapes {
        if let Shape::Text { text, .. } | Shape::Upward { text, .. } = shape {
            texts.push(text.as_str());
        }
    }
    texts
}

#[test]
fn every_figure_is_drawn_for_every_model_and_set_and_repeats_its_bytes() {
    let records = example(SMALL);
    let contents = records.contents();
    let drawings = figures::draw_all(&contents).unwrap();
    assert_eq!(
        stems(&drawings),
        [
            "activation-maxima-org-spiky-c4",
            "activation-maxima-org-calm-c4",
            "outlier-histograms-blocks-org-spiky-c4",
            "outlier-histograms-blocks-org-calm-c4",
            "outlier-histograms-models-c4",
            "outlier-histograms-maxima-c4",
            "spike-ratios-org-spiky-c4",
            "spike-ratios-org-calm-c4",
            "token-scales-org-spiky-c4",
            "token-scales-org-calm-c4",
        ]
    );
    assert_eq!(figures::draw_all(&contents).unwrap(), drawings);
    for drawing in &drawings {
        assert_eq!(drawing.svg().unwrap(), drawing.svg().unwrap());
        assert!(
            drawing.caption.contains("4 samples × 90 tokens") && drawing.caption.contains("org/"),
            "{}: {}",
            drawing.stem,
            drawing.caption
        );
        assert!(!drawing.svg().unwrap().contains('\u{0}'));
    }
    assert_eq!(drawings[0].png().unwrap(), drawings[0].png().unwrap());
    let panels = texts(&drawings[0]);
    assert!(panels.contains(&"without prefix") && panels.contains(&"behind [<s>, U+4E2D, .]"), "{panels:?}");
    assert!(
        drawings[0].caption.contains("360 without prefix, 356 behind [<s>, U+4E2D, .]"),
        "{}",
        drawings[0].caption
    );
}

#[test]
fn figures_are_listed_with_what_they_show() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_quantscope"))
        .args(["list", "figures"])
        .output()
        .unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let mut lines = listed.lines();
    for figure in figures::FIGURES {
        let line = lines.next().unwrap();
        assert!(line.starts_with(figure.name()) && line.ends_with(figure.about()), "{line}");
    }
    assert!(listed.contains("token-scales") && lines.next().is_none(), "{listed}");
}

#[test]
fn only_what_a_planned_cell_read_is_drawn_and_of_the_first_seed() {
    let mut records = Records::new();
    let first = records.publish("m", SMALL, &as_it_is);
    let second = records.publish("m", Setting { samples: 5, ..SMALL }, &as_it_is);
    let other_set = records.publish("m", Setting { samples: 6, ..SMALL }, &as_it_is);
    records.publish("m", Setting { samples: 7, ..SMALL }, &as_it_is);
    let smoothed = records.publish("m", Setting { samples: 8, ..SMALL }, &|result, _| {
        result.steps = vec![json!({ "step": "smooth" })];
    });
    records.cell("m", "static", "c4", 3, &[&first, &smoothed], &[]);
    records.cell("m", "static", "c4", 4, &[&second], &[]);
    records.cell("m", "static", "wiki", 3, &[&other_set], &[]);
    let contents = records.contents();
    let found = observed(&contents);
    let ids: Vec<Vec<&str>> =
        found.iter().map(|o| o.states.iter().map(|state| state.result().id.as_str()).collect()).collect();
    assert_eq!(ids, [[first.as_str()], [other_set.as_str()]]);
    assert_eq!(found[0].about_calibration(), "calibration c4: 4 samples × 90 tokens, seed 3 of several");
    assert_eq!(found[1].about_calibration(), "calibration wiki: 6 samples × 90 tokens");

    // Without the plan there is nothing to show, whatever is in the store.
    let unplanned = Contents { statistics: contents.statistics.clone(), ..Contents::default() };
    assert!(figures::draw_all(&unplanned).unwrap().is_empty());
}

#[test]
fn counts_sum_to_blocks_times_sequences_and_maxima_are_those_of_the_tokens() {
    let records = example(SMALL);
    let contents = records.contents();
    for stored in &contents.statistics {
        let result = &stored.envelope.result;
        let (sequences, histograms) = (stored.sequences().unwrap(), stored.histograms().unwrap());
        let tokens = stored.token_scales().unwrap();
        for port in PORTS.map(Port::as_str).into_iter().chain([RESIDUAL]) {
            let of_port: Vec<&SequenceRow> = sequences.iter().filter(|row| row.port == port).collect();
            let bins = maxima(of_port.iter().copied());
            assert_eq!(bins.iter().map(|bin| bin.count).sum::<u64>(), 3 * 4, "{port}");
            let values = pooled(histograms.iter().filter(|row| row.port == port));
            assert_eq!(values.iter().map(|bin| bin.count).sum::<u64>(), 3 * result.tokens * CHANNELS as u64);
            assert!(values.windows(2).all(|pair| pair[0].upper <= pair[1].lower), "{values:?}");
            // The last bin of both histograms holds the greatest token scale.
            let greatest = result.sites.iter().filter(|site| site.port == port).map(|site| site.absmax);
            let greatest = greatest.fold(0.0, f64::max);
            for last in [bins.last().unwrap(), values.last().unwrap()] {
                assert!(
                    last.lower <= greatest * (1.0 + 1e-12) && greatest <= last.upper,
                    "{last:?} {greatest}"
                );
            }
            // Of the samples whose tokens are all kept, the greatest scale is the sequence's.
            for row in of_port.into_iter().filter(|row| row.sample < 2) {
                let scales = tokens.iter().filter(|t| t.site == row.site && t.sample == row.sample);
                assert_eq!(scales.map(|t| t.scale).fold(0.0, f32::max), row.max);
            }
        }
    }
}

#[test]
fn tokens_of_the_stretch_are_written_and_the_planted_spike_is_red() {
    let records = example(SMALL);
    let contents = records.contents();
    let found = observed(&contents);
    let mut rows = found[0].original().unwrap().stored.token_scales().unwrap();
    rows.retain(|row| row.site == "layers.1.down_in");
    let stretch = Stretch::of(rows.clone()).unwrap();
    assert_eq!((stretch.sample, stretch.tokens.len()), (0, STRETCH));
    let spiking: Vec<u32> = stretch
        .tokens
        .iter()
        .filter(|token| stretch.spikes(token.scale))
        .map(|token| token.position)
        .collect();
    assert_eq!(spiking, [0]);
    // The median is that of the whole sample, not of what is shown.
    let mut scales: Vec<f32> = rows.iter().filter(|row| row.sample == 0).map(|row| row.scale).collect();
    scales.sort_by(f32::total_cmp);
    assert_eq!(stretch.threshold, 8.0 * f64::from(scales[44]));
    assert_eq!(Stretch::of(vec![]), None);

    let drawings = figures::draw_all(&contents).unwrap();
    let drawing = drawings.iter().find(|drawing| drawing.stem == "token-scales-org-spiky-c4").unwrap();
    let shown = texts(drawing);
    for text in ["<s>", "␣the", "↵", "U+4E2D", "U+1F600", "U+0000", "⇥", "#7", "слово", "#10"] {
        assert!(shown.contains(&text), "{text} in {shown:?}");
    }
    assert!(drawing.caption.contains("1 of these tokens"), "{}", drawing.caption);
}

#[test]
fn a_threshold_stands_with_the_ratios_it_was_compared_with() {
    let records = example(SMALL);
    let contents = records.contents();
    let found = observed(&contents);
    let of = |i: usize| -> Vec<(f64, Vec<String>)> {
        let found = spike_ratios::thresholds(&found[0], &found[0].states[i]);
        found.into_iter().map(|one| (one.alpha, one.recipes)).collect()
    };
    assert_eq!(
        of(0),
        [
            (400.0, vec!["qfem-top-8".to_owned(), "both".to_owned()]),
            (395.0, vec!["qfem-auto-with-a-name-of-some-length".to_owned()]),
        ]
    );
    assert_eq!(of(1), [(1.25, vec!["both-present".to_owned()])]);
    let drawings = figures::draw_all(&contents).unwrap();
    let drawing = drawings.iter().find(|drawing| drawing.stem == "spike-ratios-org-spiky-c4").unwrap();
    let marks = drawing.shapes.iter().filter(|shape| matches!(shape, Shape::Mark { .. })).count();
    // 3 blocks × 4 groups × 2 states, and the legend.
    assert_eq!(marks, 3 * 4 * 2 + 4);
}

#[test]
fn no_text_is_clipped_or_covered() {
    let folder = std::env::var_os("QUANTSCOPE_FIGURES");
    for (name, setting) in [
        ("3-blocks", SMALL),
        ("1-block", Setting { blocks: 1, samples: 1, length: 9, ..SMALL }),
        ("32-blocks", Setting { blocks: 32, spike: 3e4, ..SMALL }),
        ("80-blocks", Setting { blocks: 80, samples: 2, spike: 3e7, ..SMALL }),
    ] {
        for drawing in figures::draw_all(&example(setting).contents()).unwrap() {
            if let Some(folder) = &folder {
                let file = Path::new(folder).join(format!("{name}-{}.png", drawing.stem));
                fs::write(file, drawing.png().unwrap()).unwrap();
            }
            check_texts(name, &drawing);
        }
    }
}

fn check_texts(case: &str, drawing: &Drawing) {
    let case = format!("{case}, {}", drawing.stem);
    let of_text = |shape: &&Shape| matches!(shape, Shape::Text { .. } | Shape::Upward { .. });
    let texts: Vec<&Shape> = drawing.shapes.iter().filter(of_text).collect();
    assert!(texts.len() > 5, "{case}: a figure has numbers and names");
    let overlap = |a: &Shape, b: &Shape| {
        let ((a, b), (c, d)) = (a.bounds(), b.bounds());
        a.0 < d.0 && c.0 < b.0 && a.1 < d.1 && c.1 < b.1
    };
    for (i, text) in texts.iter().enumerate() {
        for other in &texts[..i] {
            assert!(!overlap(text, other), "{case}: {text:?} over {other:?}");
        }
        let covers =
            |shape: &&Shape| matches!(shape, Shape::Mark { .. } | Shape::Line { .. } | Shape::Fill { .. });
        for shape in drawing.shapes.iter().filter(covers) {
            assert!(!overlap(text, shape), "{case}: {shape:?} over {text:?}");
        }
    }
    for shape in &drawing.shapes {
        let ((left, top), (right, bottom)) = shape.bounds();
        assert!(
            left >= 0.0 && top >= 0.0 && right <= drawing.width && bottom <= drawing.height,
            "{case}: {shape:?} is clipped"
        );
    }
}

#[test]
fn a_missing_table_is_an_error_and_no_panic() {
    let records = example(SMALL);
    let contents = records.contents();
    let folder = records.folder.path().join("statistics");
    for entry in fs::read_dir(folder).unwrap() {
        fs::remove_file(entry.unwrap().path().join("token_scales.parquet")).unwrap();
    }
    assert!(figures::draw_all(&contents).unwrap_err().to_string().contains("token_scales.parquet"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn partial_statistics_are_drawn_as_far_as_they_go(
        seed: u64,
        share in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0],
        magnitude in prop_oneof![Just(0.0), Just(-1.0), Just(1e-300), Just(1e300), Just(1.0)],
        extreme in prop_oneof![Just(0f32), Just(f32::MAX), Just(f32::MIN_POSITIVE), Just(f32::NAN), Just(f32::INFINITY)],
        tables in 0u8..16,
        prefixed: bool,
    ) {
        let drop = move |result: &mut StatisticsResult, rows: &mut StatisticsRows| {
            let mut state = seed;
            let mut kept = move || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f64 / (1u64 << 24) as f64 <= share
            };
            result.sites.retain(|_| kept());
            for site in result.sites.iter_mut().step_by(3) {
                (site.absmax, site.ratio, site.layer) = (magnitude, Some(magnitude), site.layer.map(|l| l * 3));
            }
            for site in result.sites.iter_mut().skip(1).step_by(4) {
                (site.ratio, site.layer) = (None, None);
            }
            rows.sequences.retain(|_| kept() && tables & 1 == 0);
            rows.histograms.retain(|_| kept() && tables & 2 == 0);
            rows.token_scales.retain(|_| kept() && tables & 4 == 0);
            rows.sequences.iter_mut().step_by(2).for_each(|row| row.max = extreme);
            rows.token_scales.iter_mut().step_by(2).for_each(|row| row.scale = extreme);
            if tables & 8 == 0 {
                result.calibration = Value::Null;
                result.model.name.clear();
            }
            if let Some(prefix) = &mut result.prefix {
                prefix.texts.clear();
            }
        };
        let mut records = Records::new();
        let id = records.publish("m", Setting { prefixed, ..SMALL }, &drop);
        let other = records.publish("n", SMALL, &as_it_is);
        records.cell("m", "static", "c4", 0, &[&id], &[keep("original", json!(magnitude))]);
        records.cell("n", "static", "c4", 0, &[&other, "not there"], &[]);
        for drawing in figures::draw_all(&records.contents()).unwrap() {
            prop_assert!(drawing.height.is_finite() && drawing.height < 4000.0);
            let finite = |shape: &Shape| {
                let ((a, b), (c, d)) = shape.bounds();
                [a, b, c, d].iter().all(|value| value.is_finite())
            };
            prop_assert!(drawing.shapes.iter().all(finite), "{}", drawing.stem);
            drawing.svg().unwrap();
        }
    }
}
