//! AWQ's scales on whole models: what is recorded is what the modules compute.

#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use harness::quantize::direct::Direct;
use harness::quantize::grid::{Convention, Granularity, Grid};
use harness::quantize::rounding::{host_rows, round_weight};
use harness::quantize::steps::smooth::awq::scales;
use models::{Decoder, Group, Off, Port, Site, Tap, token_tensor};

#[path = "support/recipes.rs"]
mod recipes;

use recipes::{make, mse, oracle, scrambled, values, weights};

const SAMPLES: usize = 8;

fn calibrator(decoder: &Decoder) -> Direct {
    Direct::new(scrambled(SAMPLES, 24, decoder.architecture.vocabulary, 1), Some(1))
}

fn awq(keys: &str) -> String {
    format!(
        "{{ step = \"smooth\", method = \"awq\", bits = 3, symmetric = false, samples = {SAMPLES}{keys} }}"
    )
}

const ROUNDING: &str = r#"{ step = "weights", bits = 3, symmetric = false }"#;

#[test]
fn exponent_zero_is_rounding_to_nearest() {
    for name in recipes::ORACLES {
        let original = oracle(name);
        let plain = make(ROUNDING, &original, &mut calibrator(&original));
        let recipe = format!("{}, {ROUNDING}", awq(", points = 1"));
        let zero = make(&recipe, &original, &mut calibrator(&original));
        assert_eq!(weights(&plain.decoder), weights(&zero.decoder), "{name}");
    }
}

#[test]
fn the_chosen_loss_is_never_above_that_of_rounding_to_nearest() {
    for name in recipes::ORACLES {
        let original = oracle(name);
        let made = make(&awq(""), &original, &mut calibrator(&original));
        let sites = made.fitted["0.smooth"]["scales"].as_object().unwrap();
        let attention = &original.architecture.attention;
        let is_shared = attention.heads != attention.kv_heads;
        assert_eq!(sites.len(), original.architecture.layers * if is_shared { 3 } else { 4 }, "{name}");
        assert_eq!(sites.keys().any(|site| site.ends_with("o_in")), !is_shared);
        assert_eq!(made.fitted["0.smooth"].get("left-out").is_some(), is_shared);
        let mut better = 0;
        for (site, found) in sites {
            let (loss, unscaled) =
                (found["loss"].as_f64().unwrap(), found["unscaled-loss"].as_f64().unwrap());
            assert!(loss <= unscaled, "{name} {site}: {loss} {unscaled}");
            better += usize::from(loss < unscaled);
        }
        assert!(better > sites.len() / 2, "{name}: {better} of {}", sites.len());
    }
}

/// Means of |x| by channel at a site.
fn means(decoder: &mut Decoder, samples: &[Vec<u32>], at: Site) -> Vec<f64> {
    struct Catch(Site, Vec<f32>);
    impl Tap for Catch {
        fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
            if site == self.0 {
                self.1 = values(&x);
            }
            group.forward(x)
        }
    }
    let mut catch = Catch(at, Vec::new());
    decoder.hidden(token_tensor(samples, &Device::flex()), &mut catch);
    let channels = decoder.architecture.hidden;
    let rows = catch.1.len() / channels;
    let sum = |c| catch.1.chunks(channels).map(|row| f64::from(row[c]).abs()).sum::<f64>();
    (0..channels).map(|c| sum(c) / rows as f64).collect()
}

#[test]
fn recorded_losses_are_what_the_block_computes() {
    // The residual stream behind a block differs by the module's error alone: for the attention once nothing behind it
    // reads the stream, which a feed-forward part of zeros takes care of.
    let original = oracle("llama3");
    let samples = scrambled(SAMPLES, 24, original.architecture.vocabulary, 1);
    let made = make(&awq(""), &original, &mut calibrator(&original));
    for (layer, port) in [(0, Port::MlpIn), (1, Port::MlpIn), (0, Port::AttnIn), (1, Port::AttnIn)] {
        let site = Site::block(layer, port);
        let found = &made.fitted["0.smooth"]["scales"][site.to_string()];
        let mut decoder = original.clone();
        let means = means(&mut decoder, &samples, site);
        let mut x = decoder.embed(token_tensor(&samples, &Device::flex()));
        for before in 0..layer {
            x = decoder.through_block(before, x, &mut Off);
        }
        if port == Port::AttnIn {
            let at = Site::block(layer, Port::DownIn);
            let groups = decoder.groups_mut().into_iter();
            let down = &mut groups.into_iter().find(|(site, _)| *site == at).unwrap().1.linears[0].weight;
            *down = down.clone() * 0.0;
        }
        let truth = values(&decoder.through_block(layer, x.clone(), &mut Off));
        for (exponent, key) in [(found["exponent"].as_f64().unwrap(), "loss"), (0.0, "unscaled-loss")] {
            let scales: Vec<f32> = scales(&means, exponent).into_iter().map(|s| s as f32).collect();
            let mut rounded = decoder.clone();
            let at = Site::block(layer, port);
            let group = rounded.groups_mut().into_iter().find(|(site, _)| *site == at).unwrap().1;
            for linear in &mut group.linears {
                let shape = linear.weight.dims();
                let times = |factor: &dyn Fn(f32, f32) -> f32, w: Vec<f32>| -> Vec<f32> {
                    w.iter().enumerate().map(|(i, &w)| factor(w, scales[i % scales.len()])).collect()
                };
                let scaled = host_rows(times(&|w, s| w * s, values(&linear.weight)), shape[1]);
                let grid = Grid::new(3, Convention::ZeroInRange);
                let q = round_weight("w", scaled, grid, Granularity::Channel, 1.0).unwrap();
                let back = times(&|w, s| w / s, values(&q));
                linear.weight = Tensor::from_data(TensorData::new(back, shape), &Device::flex());
            }
            let loss = mse(&values(&rounded.through_block(layer, x.clone(), &mut Off)), &truth);
            let recorded = found[key].as_f64().unwrap();
            assert!((loss - recorded).abs() <= 1e-3 * recorded, "{site} {key}: {loss} {recorded}");
        }
    }
}

#[test]
fn the_search_needs_the_samples_that_it_names() {
    let original = oracle("llama3");
    let recipe = awq("").replace("samples = 8", "samples = 9");
    let fault =
        recipes::try_make(&recipe, &original, &mut calibrator(&original)).err().unwrap().1.to_string();
    assert!(fault.contains("AWQ searches on 9 samples and the calibration set has 8"), "{fault}");
}

#[test]
fn gptq_and_awq_leave_less_of_the_loss_of_rounding_to_nearest() {
    let (checkpoint, original) = recipes::builtin("builtin/tiny-llama");
    let start = checkpoint.tokenizer().bos();
    let cut = |name: &str, from: usize, count: usize| -> Vec<Vec<u32>> {
        let ids = checkpoint.tokenizer().encode(models::builtin::text(name).unwrap()).unwrap();
        let windows = ids[from..].chunks_exact(63).take(count);
        windows.map(|window| start.into_iter().chain(window.iter().copied()).collect()).collect()
    };
    let samples = cut("builtin/stories-calibration", 0, 32);
    let probes = cut("builtin/stories-held-out", 0, 12);
    let truth = recipes::logits(&mut original.clone(), &mut Off, &probes);
    let error = |recipe: &str| {
        let mut made = make(recipe, &original, &mut Direct::new(samples.clone(), start));
        mse(&made.logits(&probes), &truth)
    };
    let plain = error(ROUNDING);
    let gptq = ROUNDING.replace(" }", ", solver = \"gptq\" }");
    for (what, recipe) in [
        ("gptq", gptq.clone()),
        ("gptq in the order of activity", gptq.replace(" }", ", act-order = true }")),
        ("gptq on floating-point inputs", gptq.replace(" }", ", hessian-inputs = \"fp\" }")),
        ("awq", format!("{}, {}", awq(""), ROUNDING.replace(" }", ", clip = \"output\" }"))),
    ] {
        let found = error(&recipe);
        assert!(found < 0.8 * plain, "{what}: {found} of {plain}");
    }
}
