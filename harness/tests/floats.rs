//! Floating-point grids against the formats' own values and against another implementation.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use harness::experiment::Experiment;
use harness::quantize::fake_quant::{ActivationRule, FakeQuant, ScaleSource};
use harness::quantize::grid::{Convention, E2M1, E4M3, FLOATS, Granularity, Grid};
use harness::quantize::rounding::{host_rows, round_activation, round_weight};
use models::{Port, Site};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    every_e4m3: Vec<f32>,
    e4m3: Pairs,
    e2m1: Pairs,
    blocks: BTreeMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
struct Pairs {
    x: Vec<f32>,
    rounded: Vec<f32>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/floats.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn share(convention: Convention) -> usize {
    convention.float().unwrap().1.unwrap_or(32)
}

fn grid(convention: Convention) -> Grid {
    Grid::new(if convention == Convention::Fp8E4m3 { 8 } else { 4 }, convention)
}

#[test]
fn the_values_of_the_formats_are_what_they_round_to() {
    let golden = golden();
    // 256 codes without two NaNs; zero stands twice.
    assert_eq!(golden.every_e4m3.len(), 254);
    for &value in &golden.every_e4m3 {
        assert_eq!(E4M3.round(value), value);
    }
    let largest = golden.every_e4m3.iter().copied().fold(0.0, f32::max);
    assert_eq!((E4M3.largest(), largest), (448.0, 448.0));
    for value in [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0] {
        assert_eq!((E2M1.round(value), E2M1.round(-value)), (value, -value));
    }
    assert_eq!(E2M1.largest(), 6.0);
    for float in [E4M3, E2M1] {
        assert_eq!(float.round(f32::INFINITY), float.largest());
        assert_eq!(float.round(f32::NEG_INFINITY), -float.largest());
        assert!(float.round(f32::NAN).is_nan());
    }
    // Nothing between two neighbours but themselves.
    let mut values = golden.every_e4m3;
    values.dedup();
    for pair in values.windows(2) {
        for i in 0..=8 {
            let x = pair[0] + (pair[1] - pair[0]) * i as f32 / 8.0;
            let rounded = E4M3.round(x);
            assert!(rounded == pair[0] || rounded == pair[1], "{x} became {rounded}");
            assert!((rounded - x).abs() <= (pair[1] - pair[0]) / 2.0);
        }
    }
}

#[test]
fn rounding_agrees_with_pytorch_and_with_a_search_through_the_values() {
    let golden = golden();
    for (float, pairs) in [(E4M3, golden.e4m3), (E2M1, golden.e2m1)] {
        assert!(pairs.x.len() > 200);
        for (&x, &expected) in pairs.x.iter().zip(&pairs.rounded) {
            assert_eq!(float.round(x), expected, "{float:?} of {x}");
        }
    }
}

#[test]
fn blocks_agree_with_their_definitions_written_out() {
    let blocks = golden().blocks;
    for convention in FLOATS {
        let expected = &blocks[convention.name()];
        let n = share(convention);
        // As rows of a weight and as groups of one row: the same shares.
        for width in [64, 256] {
            let weight = host_rows(blocks["x"].clone(), width);
            let rounded = round_weight("w", weight, grid(convention), Granularity::Group(n), 1.0).unwrap();
            let rounded: Vec<f32> = rounded.to_data().try_to_vec().unwrap();
            assert_eq!(&rounded, expected, "{} {width}", convention.name());
        }
        let rule = rule(convention);
        let x = Tensor::<3>::from_data(TensorData::new(blocks["x"].clone(), [1, 4, 64]), &Device::flex());
        let rounded: Vec<f32> = round_activation(x, &rule).to_data().try_to_vec().unwrap();
        assert_eq!(&rounded, expected, "{} of activations", convention.name());
    }
}

fn rule(convention: Convention) -> ActivationRule {
    ActivationRule {
        grid: grid(convention),
        granularity: Granularity::Group(share(convention)),
        clip: 1.0,
        scale: ScaleSource::Dynamic,
    }
}

#[test]
fn zeros_stay_zeros_and_a_sequence_does_not_see_its_neighbour() {
    for convention in FLOATS {
        let rule = rule(convention);
        let mut values: Vec<f32> = (0..2 * 3 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        values[..64].fill(0.0);
        values[5 * 64] = 900.0;
        let round = |values: &[f32], sequences| -> Vec<f32> {
            let x = TensorData::new(values.to_vec(), [sequences, 3, 64]);
            round_activation(Tensor::<3>::from_data(x, &Device::flex()), &rule)
                .to_data()
                .try_to_vec()
                .unwrap()
        };
        let together = round(&values, 2);
        assert!(together[..64].iter().all(|&x| x == 0.0));
        assert_eq!(together[..192], round(&values[..192], 1), "{}", convention.name());
        assert_eq!(together[192..], round(&values[192..], 1), "{}", convention.name());
        let mut tap = FakeQuant::default();
        tap.rules.insert(Site::block(0, Port::AttnIn), rule);
        assert_eq!(tap.looks_at_whole_sequences(), convention == Convention::Nvfp4);
    }
}

#[test]
fn heavy_tails_favour_nvfp4_over_mxfp4() {
    // Relative squared errors of Student-t values with three degrees of freedom; in the literature .0076 and .0188.
    let blocks = golden().blocks;
    let error = |name: &str| {
        let pairs = blocks["x"].iter().zip(&blocks[name]);
        let squares: f64 = blocks["x"].iter().map(|&x| f64::from(x).powi(2)).sum();
        pairs.map(|(x, q)| f64::from(x - q).powi(2)).sum::<f64>() / squares
    };
    let (nv, mx, fp8) = (error("nvfp4"), error("mxfp4"), error("fp8-e4m3"));
    assert!(fp8 < nv && nv < mx && mx < 0.03, "{fp8} {nv} {mx}");
}

#[test]
fn a_format_names_the_bits_and_groups_that_it_needs() {
    let fault = |keys: &str| {
        let text = format!(
            "question = \"?\"\nreference = \"own\"\n[sweep]\nmodels = [\"builtin/tiny-llama\"]\nrecipes = [\"r\"]\n\
             [recipe.r]\nsteps = [{{ step = \"weights\", {keys} }}]\n[[evaluate]]\nmetric = \"perplexity\"\n\
             protocol = \"gptq\"\ncorpus = \"builtin/stories-held-out\"\nlength = 64\nbos = \"every\"\n"
        );
        Experiment::parse(&text, Path::new("x.toml")).err().map(|fault| fault.to_string())
    };
    let needs = |keys: &str, what: &str| {
        let fault = fault(keys).unwrap_or_else(|| panic!("{keys} is accepted"));
        assert!(fault.contains(what), "{fault}");
    };
    needs("bits = 8, convention = \"mxfp4\", granularity = \"group(32)\"", "`bits` must be 4");
    needs("bits = 4, convention = \"fp8-e4m3\"", "`bits` must be 8");
    needs("bits = 4, convention = \"mxfp4\"", "`granularity` must be group(32)");
    needs("bits = 4, convention = \"nvfp4\", granularity = \"group(32)\"", "`granularity` must be group(16)");
    assert_eq!(fault("bits = 4, convention = \"nvfp4\", granularity = \"group(16)\""), None);
    assert_eq!(fault("bits = 8, convention = \"fp8-e4m3\", granularity = \"tensor\""), None);
}
