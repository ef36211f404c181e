//! Rotations leave the logits, whatever is rotated, by whatever matrix, behind a prefix and with every norm.

use burn::tensor::{Device, Tensor, TensorData};
use models::architecture::{Norm, PostNorms};
use models::families::FAMILIES;
use models::{Decoder, Fallback, Group, Hadamard, Off, Port, RotateError, Site, Tap, token_tensor};

use crate::dumps::{ORACLES, devices, load, oracle};

fn logits(decoder: &mut Decoder, tokens: &[Vec<u32>]) -> Vec<f32> {
    let input = token_tensor(tokens, &decoder.device());
    let hidden = decoder.hidden(input, &mut Off);
    decoder.logits(hidden, &mut Off).to_data().try_to_vec().unwrap()
}

/// The largest difference over the largest value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = |x: &mut dyn Iterator<Item = f32>| x.fold(0.0f32, |m, x| m.max(x.abs()));
    assert!(found.iter().all(|x| x.is_finite()));
    largest(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / largest(&mut expected.iter().copied())
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.to_data().try_to_vec().unwrap()
}

/// One rotation of everything that can be rotated, under its name.
type Change = (&'static str, fn(&mut Decoder, &dyn Fn(usize) -> Hadamard));

const CHANGES: [Change; 5] = [
    ("residual", |decoder, matrix| {
        let rotated = decoder.rotate_residual(&matrix(decoder.architecture.hidden));
        assert_eq!(rotated, decoder.architecture.check_residual_rotation(), "it is known before");
        match decoder.architecture.post_norms {
            PostNorms::Absent => rotated.unwrap(),
            PostNorms::Present => assert_eq!(rotated, Err(RotateError::PostNorms)),
        }
    }),
    ("values", |decoder, matrix| {
        for layer in 0..decoder.blocks.len() {
            let head_dim = decoder.architecture.attention.head_dim;
            decoder.rotate_values(layer, &matrix(head_dim)).unwrap();
        }
    }),
    ("queries and keys", |decoder, matrix| {
        for layer in 0..decoder.blocks.len() {
            let head_dim = decoder.architecture.attention.head_dim;
            decoder.rotate_queries_and_keys(layer, &matrix(head_dim)).unwrap();
        }
    }),
    ("heads", |decoder, matrix| {
        let (heads, head_dim) =
            (decoder.architecture.attention.heads, decoder.architecture.attention.head_dim);
        for layer in 0..decoder.blocks.len() {
            decoder.rotate_online(Site::block(layer, Port::OIn), &matrix(heads).over(head_dim)).unwrap();
        }
    }),
    ("down_in", |decoder, matrix| {
        let intermediate = decoder.architecture.mlp.intermediate;
        for site in sites(decoder, &[Port::DownIn]) {
            decoder.rotate_online(site, &matrix(intermediate)).unwrap();
        }
    }),
];

/// Every site with linears at these ports.
fn sites(decoder: &Decoder, ports: &[Port]) -> Vec<Site> {
    decoder.groups().into_iter().map(|(site, _)| site).filter(|site| ports.contains(&site.port)).collect()
}

type Matrix = (&'static str, fn(usize) -> Hadamard);

const MATRICES: [Matrix; 4] = [
    ("Hadamard", |order| Hadamard::new(order, Fallback::BlockDiagonal, 0)),
    ("with signs", |order| Hadamard::new(order, Fallback::BlockDiagonal, 0).with_random_signs(order as u64)),
    ("random", |order| Hadamard::random(order, 5)),
    ("given", |order| Hadamard::given(order, Hadamard::random(order, 6).dense())),
];

#[test]
fn logits_stay_under_every_rotation_with_and_without_a_prefix() {
    for name in ORACLES {
        let tokens = oracle(name).tokens;
        for prefix in [&[] as &[u32], &[7, 3, 11]] {
            let mut plain = load(name, &Device::flex());
            plain.set_prefix(prefix);
            let expected = logits(&mut plain, &tokens);
            for (kind, matrix) in MATRICES {
                let mut all = plain.clone();
                for (what, change) in CHANGES {
                    let mut one = plain.clone();
                    change(&mut one, &matrix);
                    let error = difference(&logits(&mut one, &tokens), &expected);
                    assert!(error < 1e-4, "{name}, {what} by {kind}, prefix {prefix:?}: {error:e}");
                    change(&mut all, &matrix);
                }
                let error = difference(&logits(&mut all, &tokens), &expected);
                assert!(error < 1e-4, "{name}, everything by {kind}, prefix {prefix:?}: {error:e}");
                let Some(kept) = all.prefix.clone() else { continue };
                // What was kept of the prefix is what the rotated model computes.
                all.refresh_prefix();
                let fresh = all.prefix.as_ref().unwrap();
                for (kept, fresh) in kept.cache.blocks().iter().zip(fresh.cache.blocks()) {
                    assert!(difference(&values(&kept.values), &values(&fresh.values)) < 1e-5, "{name}");
                    assert!(difference(&values(&kept.keys), &values(&fresh.keys)) < 1e-5, "{name}");
                }
                assert!(difference(&values(&kept.last), &values(&fresh.last)) < 1e-4, "{name}");
                // And a prefix that is set afterwards is the same.
                let mut later = load(name, &Device::flex());
                CHANGES.into_iter().for_each(|(_, change)| change(&mut later, &matrix));
                later.set_prefix(prefix);
                assert!(difference(&logits(&mut later, &tokens), &expected) < 1e-4, "{name}, prefix behind");
            }
        }
    }
}

#[test]
fn tensor_operations_give_the_same_rotated_model() {
    for device in devices() {
        let tokens = oracle("llama3").tokens;
        let mut decoder = load("llama3", &device);
        let expected = logits(&mut decoder, &tokens);
        CHANGES.into_iter().for_each(|(_, change)| change(&mut decoder, &MATRICES[1].1));
        assert!(difference(&logits(&mut decoder, &tokens), &expected) < 1e-4, "{device:?}");
    }
}

/// A model with another norm, whose weights, biases and embedding are far from trivial.
fn with_norm(norm: Norm) -> Decoder {
    let mut architecture = load("llama-bias", &Device::flex()).architecture;
    architecture.norm = norm;
    let mut seed = 0;
    Decoder::from_tensors(&architecture, FAMILIES[0].names, &Device::flex(), &mut |_, shape| {
        seed += 1;
        let count: usize = shape.iter().product();
        let value = |i: usize| ((i * i * 13 + i * 29 + seed * 71) % 1009) as f32 / 1009.0 - 0.4;
        let values: Vec<f32> = (0..count).map(value).collect();
        Ok(Tensor::from_data(TensorData::new(values, [count]), &Device::flex()))
    })
    .unwrap()
}

#[test]
fn every_norm_is_folded() {
    let tokens = oracle("llama-bias").tokens;
    for norm in [Norm::Rms { eps: 1e-5 }, Norm::RmsOffset { eps: 1e-6 }, Norm::Layer { eps: 1e-5 }] {
        for prefix in [&[] as &[u32], &[7, 3, 11]] {
            let mut decoder = with_norm(norm);
            decoder.set_prefix(prefix);
            let expected = logits(&mut decoder, &tokens);
            CHANGES.into_iter().for_each(|(_, change)| change(&mut decoder, &MATRICES[1].1));
            let error = difference(&logits(&mut decoder, &tokens), &expected);
            assert!(error < 1e-4, "{norm:?}: {error:e}");
            let again = logits(&mut decoder, &tokens);
            // Norms have no weights left, so that the next rotation folds nothing.
            decoder.rotate_residual(&MATRICES[2].1(decoder.architecture.hidden)).unwrap();
            assert!(difference(&logits(&mut decoder, &tokens), &again) < 1e-4, "{norm:?} twice");
            if let Some(kept) = decoder.prefix.clone() {
                decoder.refresh_prefix();
                let fresh = decoder.prefix.as_ref().unwrap();
                assert!(difference(&values(&kept.last), &values(&fresh.last)) < 1e-4, "{norm:?}");
            }
        }
    }
}

#[test]
fn without_folding_or_with_a_mean_subtracted_the_logits_change() {
    let mut controls = 0;
    for name in ORACLES {
        let tokens = oracle(name).tokens;
        let plain = load(name, &Device::flex());
        // LayerNorm subtracts means itself; what post-norms refuse has no control.
        if !matches!(plain.architecture.norm, Norm::Rms { .. })
            || plain.architecture.post_norms == PostNorms::Present
        {
            continue;
        }
        controls += 1;
        let expected = logits(&mut plain.clone(), &tokens);
        let matrix = MATRICES[0].1(plain.architecture.hidden);

        // The weights of the norms stay where they are: as if they were ones when the stream was rotated.
        let mut unfolded = plain.clone();
        for block in &mut unfolded.blocks {
            for (norm, _) in block.readers_mut() {
                norm.weight = norm.weight.ones_like();
            }
        }
        unfolded.final_norm.weight = unfolded.final_norm.weight.ones_like();
        unfolded.rotate_residual(&matrix).unwrap();
        for (block, original) in unfolded.blocks.iter_mut().zip(&plain.blocks) {
            block.attn_norm = original.attn_norm.clone();
            *block.mlp.norm_mut().unwrap() = original.mlp.norm().unwrap().clone();
        }
        unfolded.final_norm = plain.final_norm.clone();
        let error = difference(&logits(&mut unfolded, &tokens), &expected);
        assert!(error > 1e-2, "{name}: norms that are not folded change nothing? {error:e}");

        // The mean of a row of the embedding is no part that a root mean square ignores.
        let mut centred = plain.clone();
        let head = centred.head.clone();
        centred.embedding = centred.embedding.clone() - centred.embedding.clone().mean_dim(1);
        centred.head = head;
        centred.rotate_residual(&matrix).unwrap();
        let error = difference(&logits(&mut centred, &tokens), &expected);
        assert!(error > 1e-3, "{name}: a subtracted mean changes nothing? {error:e}");
    }
    assert!(controls >= 8, "{controls}");
}

/// Keeps what the linears of `down_in` read in block 0.
#[derive(Default)]
struct Seen(Vec<f32>);

impl Tap for Seen {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        if site == Site::block(0, Port::DownIn) {
            self.0 = values(&x);
        }
        group.forward(x)
    }
}

#[test]
fn a_tap_meets_what_the_linears_read() {
    let oracle = oracle("smollm2");
    let mut decoder = load("smollm2", &Device::flex());
    let see = |decoder: &mut Decoder| {
        let mut seen = Seen::default();
        decoder.hidden(token_tensor(&oracle.tokens, &Device::flex()), &mut seen);
        seen.0
    };
    let mut expected = see(&mut decoder);
    let matrix = MATRICES[1].1(decoder.architecture.mlp.intermediate);
    matrix.apply_f32(&mut expected);
    decoder.rotate_online(Site::block(0, Port::DownIn), &matrix).unwrap();
    assert!(difference(&see(&mut decoder), &expected) < 1e-5);
}

#[test]
fn scales_before_and_behind_a_rotation_leave_the_logits() {
    let ports = [Port::AttnIn, Port::OIn, Port::MlpIn, Port::DownIn];
    for name in ORACLES {
        let tokens = oracle(name).tokens;
        for prefix in [&[] as &[u32], &[7, 3, 11]] {
            let mut decoder = load(name, &Device::flex());
            decoder.set_prefix(prefix);
            let expected = logits(&mut decoder, &tokens);
            // Experts follow their block's mlp_in, which is at the router.
            let sites = sites(&decoder, &ports).into_iter().chain([Site::HEAD]);
            let sites: Vec<Site> = sites.filter(|site| decoder.sharing(*site).is_some()).collect();
            let rescale = |decoder: &mut Decoder| {
                for (seed, &site) in sites.iter().enumerate() {
                    let of = |c: usize| 0.2 * 25f64.powf(((c * 37 + seed * 11) % 101) as f64 / 100.0);
                    let scales: Vec<f64> = decoder.sharing(site).unwrap().into_iter().map(of).collect();
                    decoder.rescale(site, &scales).unwrap();
                }
            };
            rescale(&mut decoder);
            CHANGES.into_iter().for_each(|(_, change)| change(&mut decoder, &MATRICES[1].1));
            let error = difference(&logits(&mut decoder, &tokens), &expected);
            assert!(error < 1e-4, "{name}, scales first, prefix {prefix:?}: {error:e}");
            rescale(&mut decoder);
            rescale(&mut decoder);
            let error = difference(&logits(&mut decoder, &tokens), &expected);
            assert!(error < 1e-4, "{name}, scales behind, prefix {prefix:?}: {error:e}");
            let down = sites.iter().find(|site| site.port == Port::DownIn).unwrap();
            let turn = decoder.online.at(*down).unwrap();
            assert_eq!(turn.factors().unwrap().len(), decoder.architecture.mlp.intermediate);
            // Another rotation of the stream takes the scales out of the norms again.
            CHANGES[0].1(&mut decoder, &MATRICES[2].1);
            let error = difference(&logits(&mut decoder, &tokens), &expected);
            assert!(error < 1e-4, "{name}, rotated again, prefix {prefix:?}: {error:e}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mut decoder = load("llama-bias", &Device::flex());
    let matrix = |order| Hadamard::new(order, Fallback::BlockDiagonal, 0);
    let text = |error: RotateError| error.to_string();
    let residual = text(decoder.rotate_residual(&matrix(16)).unwrap_err());
    assert!(residual.contains("residual stream") && residual.contains("32 channels"), "{residual}");
    let values = text(decoder.rotate_values(0, &matrix(24)).unwrap_err());
    assert!(values.contains("layers.0.v") && values.contains("12 channels"), "{values}");
    assert!(text(decoder.rotate_values(2, &matrix(12)).unwrap_err()).contains("2 layers"));
    assert!(text(decoder.rotate_queries_and_keys(5, &matrix(12)).unwrap_err()).contains("layers.5.q"));
    let down = Site::block(0, Port::DownIn);
    let wide = text(decoder.rotate_online(down, &matrix(32)).unwrap_err());
    assert!(wide.contains("layers.0.down_in") && wide.contains("48"), "{wide}");
    assert!(matches!(
        decoder.rotate_online(Site::block(0, Port::V), &matrix(12)),
        Err(RotateError::NoSuchSite { .. })
    ));
    decoder.rotate_online(down, &matrix(48)).unwrap();
    assert_eq!(decoder.rotate_online(down, &matrix(48)), Err(RotateError::Twice { site: down }));
    decoder.rotate_queries_and_keys(0, &matrix(12)).unwrap();
    assert!(matches!(decoder.rotate_queries_and_keys(0, &matrix(12)), Err(RotateError::Twice { .. })));
    let huge = decoder.embedding.ones_like() * 3e38;
    decoder.embedding = huge;
    let range = text(decoder.rotate_residual(&matrix(32)).unwrap_err());
    assert!(range.contains("the embedding"), "{range}");
}
