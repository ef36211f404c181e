//! Smoothing on whole models: what is even afterwards, measured by a second calibration pass.

use harness::calibrate::observe::{self, Options};
use harness::calibrate::statistics::Statistics;
use harness::quantize::direct::Direct;
use harness::quantize::steps::smooth::smoothquant::{largest_weights, shared_maxima};
use models::{Decoder, Port, Site};

use crate::recipes::{ORACLES, builtin, make, oracle, scrambled};

const EVERYWHERE: &str = "[\"attn_in\", \"o_in\", \"mlp_in\", \"down_in\"]";

fn samples(decoder: &Decoder, start: u32) -> Vec<Vec<u32>> {
    scrambled(6, 32, decoder.architecture.vocabulary, start)
}

fn statistics(decoder: &Decoder, samples: &[Vec<u32>]) -> Statistics {
    observe::collect(&mut decoder.clone(), samples, false, &Options::default(), &mut |_, _| true).unwrap()
}

fn subjects() -> Vec<(&'static str, Decoder, u32)> {
    let oracles = ORACLES.into_iter().map(|name| (name, oracle(name), 1));
    oracles.chain([("builtin/tiny-llama", builtin("builtin/tiny-llama").1, 0)]).collect()
}

/// The largest activations and weights of every channel of a site; channels of one producer share them.
fn maxima(decoder: &Decoder, seen: &Statistics, site: Site) -> (Vec<f64>, Vec<f64>) {
    let mut activations: Vec<f64> =
        seen.sites[&site].absmax_by_channel().into_iter().map(f64::from).collect();
    let (_, group) = decoder.groups().into_iter().find(|(other, _)| *other == site).unwrap();
    let mut weights = largest_weights(&[group]);
    let producers = decoder.sharing(site).unwrap();
    shared_maxima(&mut activations, &producers);
    shared_maxima(&mut weights, &producers);
    (activations, weights)
}

#[test]
fn one_evens_activations_zero_evens_weights_and_a_half_makes_them_equal() {
    for (name, original, start) in subjects() {
        let samples = samples(&original, start);
        let before = statistics(&original, &samples);
        for alpha in [1.0, 0.0, 0.5] {
            let recipe = format!(
                r#"{{ step = "smooth", method = "smoothquant", alpha = {alpha:?}, sites = {EVERYWHERE} }}"#
            );
            let made = make(&recipe, &original, &mut Direct::new(samples.clone(), Some(start)));
            let after = statistics(&made.decoder, &samples);
            let (mut looked, mut uneven) = (0, 0.0f64);
            for (site, _) in original.groups().into_iter().filter(|(site, _)| site.port != Port::HeadIn) {
                let (was, _) = maxima(&original, &before, site);
                let (activations, weights) = maxima(&made.decoder, &after, site);
                for (channel, ((a, w), was)) in activations.iter().zip(&weights).zip(&was).enumerate() {
                    // A channel that is never used keeps its scale; the clamp is for weights below 1e-5.
                    if *was == 0.0 || *w < 1e-4 {
                        continue;
                    }
                    let (found, expected) = match alpha {
                        1.0 => (*a, 1.0),
                        0.0 => (*w, 1.0),
                        _ => (*a, *w),
                    };
                    let error = (found / expected - 1.0).abs();
                    assert!(error < 1e-3, "{name} {site} channel {channel}, alpha {alpha}: {a} {w}");
                    looked += 1;
                    uneven = uneven.max((was - 1.0).abs());
                }
            }
            assert!(looked > 100 && uneven > 0.1, "{name}: {looked} channels, {uneven}");
        }
    }
}

#[test]
fn scales_in_norms_leave_what_down_reads() {
    for (name, original, start) in subjects() {
        let samples = samples(&original, start);
        let recipe = r#"{ step = "smooth", method = "smoothquant", alpha = 0.8 }"#;
        let made = make(recipe, &original, &mut Direct::new(samples.clone(), Some(start)));
        let (before, after) = (statistics(&original, &samples), statistics(&made.decoder, &samples));
        for (site, seen) in &before.sites {
            let (a, b) = (seen.absmax_by_channel(), after.sites[site].absmax_by_channel());
            let largest = a.iter().fold(0f32, |m, x| m.max(*x));
            let off = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
            match site.port {
                Port::AttnIn | Port::MlpIn => assert!(off > 0.01, "{name} {site}: not smoothed"),
                _ => assert!(off < 1e-4, "{name} {site}: off by {off:e}"),
            }
        }
    }
}

#[test]
fn more_data_never_lowers_a_scale() {
    let original = oracle("llama3");
    let all = scrambled(12, 32, 64, 1);
    let report = |samples: &[Vec<u32>]| {
        let recipe = format!(r#"{{ step = "smooth", method = "smoothquant", sites = {EVERYWHERE} }}"#);
        let made = make(&recipe, &original, &mut Direct::new(samples.to_vec(), Some(1)));
        made.fitted["0.smooth"]["scales"].as_object().unwrap().clone()
    };
    let (few, many) = (report(&all[..3]), report(&all));
    assert_eq!(few.len(), 8);
    for (site, scales) in few {
        // `attn_in` and `mlp_in` read weights that the scales behind them have changed: only the others are monotone.
        if site.ends_with("down_in") || site.ends_with("o_in") {
            for bound in ["smallest", "largest"] {
                let of = |scales: &serde_json::Value| scales[bound].as_f64().unwrap();
                assert!(of(&many[&site]) >= of(&scales), "{site} {bound}");
            }
        }
    }
}
