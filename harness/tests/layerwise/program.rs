//! The evaluation in the program: what it looks at, what it records, what it refuses, what a report makes of it.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use harness::data::{BosPolicy, CorpusRef};
use harness::layerwise::collect::{LayerFault, measure};
use harness::layerwise::{LayerError, Mode};
use harness::quantize::grid::{Convention, Grid};
use harness::quantize::rounding::range;
use harness::record::store::Store;
use harness::report::drawing::Drawing;
use harness::report::figures;
use models::{Decoder, Group, Port, Site, Tap, token_tensor};

use crate::support::{Place, experiment};

const SAMPLES: &str = "[[evaluate]]\nmetric = \"layer-error\"\nmode = \"released\"\n\
                       corpus = { path = \"text.txt\" }\nlength = 24\nsamples = 2\n";
const HONEST: &str = "[[evaluate]]\nmetric = \"layer-error\"\nmode = \"honest\"\n\
                      corpus = { path = \"text.txt\" }\nlength = 24\nsamples = 2\n\
                      calibration = { corpus = { path = \"other.txt\" }, samples = 3, length = 16 }\n";
const W8: (&str, &str) = ("w8a16", "{ step = \"weights\", bits = 8, granularity = \"channel\" }");

/// Words in another order than `text.txt` has them.
fn other() -> String {
    (0..400).map(|i| format!("w{}", 3 + (i * i + i / 7) % 61)).collect::<Vec<_>>().join(" ")
}

fn block(mode: Mode) -> LayerError {
    LayerError {
        mode,
        corpus: CorpusRef::Named("none".into()),
        length: 12,
        samples: 2,
        bos: BosPolicy::None,
        seed: 0,
        bits: 4,
        alpha: 0.5,
        calibration: None,
    }
}

/// A tap that keeps what groups read.
#[derive(Default)]
struct Keep(BTreeMap<Site, Vec<f32>>);

impl Tap for Keep {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        self.0.insert(site, x.to_data().try_to_vec().unwrap());
        group.forward(x)
    }
}

fn tiny() -> Decoder {
    let place = Place::new(1);
    models::Checkpoint::open(&place.path("tiny")).unwrap().load(&Device::flex()).unwrap()
}

fn rounded(values: &[f32], width: usize) -> Vec<f32> {
    let grid = Grid::new(4, Convention::AbsmaxFull);
    let mut values = values.to_vec();
    for row in values.chunks_mut(width) {
        let (lo, hi) = range(row);
        let scale = grid.fit(lo, hi, 1.0);
        row.iter_mut().for_each(|x| *x = grid.round(*x, scale));
    }
    values
}

/// ‖XWᵀ − Q(X)Q(W)ᵀ‖² from its definition.
fn by_definition(x: &[f32], w: &[f32], width: usize) -> f64 {
    let (qx, qw) = (rounded(x, width), rounded(w, width));
    let product =
        |x: &[f32], w: &[f32]| -> f64 { x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum() };
    let mut sum = 0.0;
    for (x, qx) in x.chunks(width).zip(qx.chunks(width)) {
        for (w, qw) in w.chunks(width).zip(qw.chunks(width)) {
            sum += (product(x, w) - product(qx, qw)).powi(2);
        }
    }
    sum
}

#[test]
fn every_group_is_measured_with_its_own_weights_and_activation() {
    let mut decoder = tiny();
    let samples: Vec<Vec<u32>> = vec![(3..15).collect(), (20..32).collect()];
    let mut seen = Keep::default();
    decoder.hidden(token_tensor(&samples, &Device::flex()), &mut seen);
    let mut calls = Vec::new();
    let mut progress = |done, total| {
        calls.push((done, total));
        true
    };
    let released = measure(&mut decoder, &block(Mode::Released), &samples, &[], &mut progress).unwrap();
    let honest = measure(&mut decoder, &block(Mode::Honest), &samples, &samples, &mut |_, _| true).unwrap();
    let groups: Vec<(Site, Vec<Vec<f32>>)> = decoder
        .groups()
        .into_iter()
        .filter(|(site, _)| site.layer.is_some())
        .map(|(site, group)| {
            let weight = |linear: &models::Linear| linear.weight.to_data().try_to_vec().unwrap();
            (site, group.linears.iter().map(weight).collect())
        })
        .collect();
    assert_eq!(calls, (0..groups.len()).map(|i| (i, groups.len())).collect::<Vec<_>>());
    assert_eq!(released.tables.rows.len(), 5 * groups.len());
    for (site, weights) in &groups {
        let find = |rows: &[harness::record::layers::LayerRow]| {
            let layer = site.layer.unwrap() as u32;
            let row = rows.iter().find(|r| {
                (r.layer, r.port.as_str(), r.transform.as_str()) == (layer, site.port.as_str(), "none")
            });
            row.unwrap().clone()
        };
        let (one, all) = (find(&released.tables.rows), find(&honest.tables.rows));
        let x = &seen.0[site];
        let width = one.channels as usize;
        let errors: Vec<f64> = weights.iter().map(|w| by_definition(x, w, width)).collect();
        let (counted, name) = match site.port {
            Port::AttnIn => (1, "k_proj"),
            Port::OIn => (0, "o_proj"),
            Port::MlpIn => (0, "gate_proj"),
            _ => (0, "down_proj"),
        };
        assert_eq!((one.module.as_str(), one.tokens), (name, 24), "{site}");
        assert!(
            (one.error / errors[counted] - 1.0).abs() < 1e-6,
            "{site}: {} {}",
            one.error,
            errors[counted]
        );
        assert!((all.error / errors.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{site}");
        assert_eq!(all.module.split(", ").count(), weights.len());
        let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert_eq!(one.x_largest, f64::from(most));
    }
    // Surface and token are of the group with the largest error.
    let shown = released.shown.unwrap();
    let of_none = released.tables.rows.iter().filter(|r| r.transform == "none");
    let worst = of_none.max_by(|a, b| a.error.total_cmp(&b.error)).unwrap();
    assert_eq!((shown.layer, shown.port), (worst.layer, worst.port.as_str()));
    let highest = |transform: &str| {
        let rows = released.tables.surface.iter().filter(|r| r.transform == transform);
        rows.fold(0.0f32, |most, r| most.max(r.magnitude))
    };
    assert_eq!(f64::from(highest("none")), worst.x_largest);
    assert_eq!(released.tables.token[0].magnitude, highest("none"));
    assert!(released.rotations.values().all(|name| !name.is_empty()));

    let stopped = measure(&mut decoder, &block(Mode::Released), &samples, &[], &mut |done, _| done < 3);
    assert_eq!(stopped, Err(LayerFault::Interrupted));
}

#[test]
fn a_sweep_measures_originals_once_and_repeats_its_bytes() {
    let place = Place::new(400);
    place.write("other.txt", other());
    place.write("experiment.toml", experiment(&[W8], &[SAMPLES.into(), HONEST.into(), perplexity()]));
    // Ten measurements of the original, and the perplexities of original and recipe.
    assert_eq!(place.sweep(&["--results", "one"]).exits_with(0).counts(), [12, 0, 0, 0]);
    assert_eq!(place.sweep(&["--results", "one"]).exits_with(0).counts(), [0, 12, 0, 0]);
    assert_eq!(place.sweep(&["--results", "two"]).exits_with(0).counts(), [12, 0, 0, 0]);
    let tables = |store: &str| -> BTreeMap<String, Vec<u8>> {
        let mut files = place.files(&format!("{store}/cells"));
        files.retain(|name, _| name.contains("/layers/"));
        files
    };
    assert_eq!(tables("one").len(), 6);
    assert_eq!(tables("one"), tables("two"));

    let contents = Store::open_read_only(&place.path("one")).unwrap().contents().unwrap();
    let analyses = harness::report::layers::analyses(&contents).unwrap();
    assert_eq!(analyses.iter().map(|a| a.mode).collect::<Vec<_>>(), ["released", "honest"]);
    for measured in contents.measurements.iter().map(|m| &m.result) {
        let Some(protocol) = measured.metric.strip_prefix("layer-error/") else { continue };
        let (protocol, transform) = protocol.split_once("/transform=").unwrap();
        let analysis = analyses.iter().find(|a| a.protocol == protocol).unwrap();
        let total: f64 = analysis.all(transform).iter().map(|row| row.error).sum();
        assert_eq!((measured.value, measured.n), (total, analysis.all(transform).len() as u64));
    }
    let drawings = figures::draw_all(&contents).unwrap();
    for name in
        ["activation-surfaces", "error-difficulty", "layer-difficulties", "layer-errors", "quantized-token"]
    {
        let of_name: Vec<&Drawing> = drawings.iter().filter(|d| d.stem.starts_with(name)).collect();
        assert_eq!(of_name.len(), if name == "layer-difficulties" { 4 } else { 2 }, "{name}");
        for drawing in of_name {
            for shape in &drawing.shapes {
                let ((left, top), (right, bottom)) = shape.bounds();
                let inside = left >= 0.0 && top >= 0.0 && right <= drawing.width && bottom <= drawing.height;
                assert!(inside, "{}: {shape:?} leaves the page", drawing.stem);
            }
        }
    }
    let readme = String::from_utf8(place.files("one")["README.md"].clone()).unwrap();
    assert!(readme.contains("Honest beside released") && readme.contains("Error against difficulty"));

    // A file that is not what its measurement names is said to be so.
    let (name, _) = tables("one").into_iter().next().unwrap();
    place.write(&format!("one/cells/{name}"), "changed");
    let contents = Store::open_read_only(&place.path("one")).unwrap().contents().unwrap();
    assert!(harness::report::layers::analyses(&contents).is_err());
}

fn perplexity() -> String {
    crate::support::perplexity(16, Some(2))
}

#[test]
fn what_cannot_be_measured_is_refused_with_the_cure() {
    let place = Place::new(400);
    place.write("other.txt", other());
    let plan = |block: &str| {
        place.write("experiment.toml", experiment(&[W8], &[block.to_owned()]));
        place.run(&["plan", "experiment.toml"])
    };
    let calibration = "calibration = { corpus = { path = \"other.txt\" } }\n";
    for (block, says) in [
        (format!("{SAMPLES}{calibration}"), "`calibration` is for mode = \"honest\""),
        (SAMPLES.replace("released", "honest"), "needs `calibration"),
        (SAMPLES.replace("length = 24", "length = 20000"), "at most 16384 can be looked at"),
        (format!("{SAMPLES}bits = 16\n"), "`bits` must be 2 to 8"),
        (format!("{SAMPLES}alpha = 1.5\n"), "`alpha` must be between 0 and 1"),
        (SAMPLES.replace("\"released\"", "\"relased\""), "did you mean `released`"),
        (SAMPLES.replace("{ path = \"text.txt\" }", "\"nonsense\""), "is no text"),
        (HONEST.replace("samples = 3", "samples = 0"), "`samples` must be at least 1"),
    ] {
        plan(&block).exits_with(2).says(&[says]);
    }
    let expect = "[[expect]]\nmodel = \"tiny\"\nrecipe = \"w8a16\"\nvalue = 1\ntolerance = 1\nsource = \"own\"\n\
                  metric = \"layer-error/released/text/24/bos=none/samples=2/seed=0/bits=4/alpha=0.5/transform=none\"\n";
    plan(&format!("{SAMPLES}{expect}")).exits_with(2).says(&["is measured of originals only"]);

    // Scales from what is measured are no honest ones.
    let own = HONEST
        .replace("other.txt", "text.txt")
        .replace("samples = 3, length = 16", "samples = 20, length = 200");
    place.write("experiment.toml", experiment(&[W8], &[own]));
    place.sweep(&[]).exits_with(1);
    let failures = place.failures("results/experiment");
    assert!(failures[0]["message"].as_str().unwrap().contains("hold what is measured"), "{failures:?}");

    // A store keeps the text that its numbers are of.
    place.write("experiment.toml", experiment(&[W8], &[SAMPLES.into()]));
    place.sweep(&["--results", "kept"]).exits_with(0);
    place.write("text.txt", other());
    place.sweep(&["--results", "kept"]).exits_with(2).says(&["is not the text on which"]);
}
