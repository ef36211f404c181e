//! Scales that move from activations into weights leave the logits.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use models::architecture::{Activation, MlpForm, Norm};
use models::families::FAMILIES;
use models::{Decoder, Mlp, Off, Port, RescaleError, Site, token_tensor};

use crate::dumps::{ORACLES, load, oracle};

/// Every group's site, but for the experts' `mlp_in`, which follow the router's.
fn sites(decoder: &Decoder) -> Vec<Site> {
    let sites = decoder.groups().into_iter().map(|(site, _)| site);
    sites.filter(|site| site.expert.is_none() || site.port == Port::DownIn).collect()
}

/// Between 0.2 and 5, even in the logarithm, equal where the site's channels share.
fn scales(decoder: &Decoder, site: Site, seed: usize) -> Vec<f64> {
    let of = |c: usize| 0.2 * 25f64.powf(((c * 37 + seed * 11) % 101) as f64 / 100.0);
    decoder.sharing(site).unwrap().into_iter().map(of).collect()
}

fn logits(decoder: &mut Decoder, tokens: &[Vec<u32>]) -> Vec<f32> {
    let input = token_tensor(tokens, &decoder.device());
    let hidden = decoder.hidden(input, &mut Off);
    decoder.logits(hidden, &mut Off).to_data().try_to_vec().unwrap()
}

/// The largest difference over the largest logit.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest = |x: &mut dyn Iterator<Item = f32>| x.fold(0.0f32, |m, x| m.max(x.abs()));
    assert!(found.iter().all(|x| x.is_finite()));
    largest(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / largest(&mut expected.iter().copied())
}

/// The bits of every weight of the decoder.
fn weights(decoder: &Decoder) -> BTreeMap<String, Vec<u32>> {
    fn bits<const D: usize>(x: &Tensor<D>) -> Vec<u32> {
        x.to_data().try_to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }
    let mut found = BTreeMap::new();
    for (_, group) in decoder.groups() {
        for linear in &group.linears {
            found.insert(linear.name.clone(), bits(&linear.weight));
            found.insert(format!("{} bias", linear.name), linear.bias.iter().flat_map(bits).collect());
        }
    }
    let norms = decoder.blocks.iter().flat_map(|block| [Some(&block.attn_norm), block.mlp.norm()]);
    for (i, norm) in norms.flatten().chain([&decoder.final_norm]).enumerate() {
        found.insert(format!("norm {i}"), bits(&norm.weight));
        found.insert(format!("norm {i} bias"), norm.bias.iter().flat_map(bits).collect());
    }
    found.insert("embedding".into(), bits(&decoder.embedding));
    found
}

#[test]
fn logits_stay_at_every_site_with_and_without_a_prefix() {
    for name in ORACLES {
        let tokens = oracle(name).tokens;
        for prefix in [&[] as &[u32], &[7, 3, 11]] {
            let mut plain = load(name, &Device::flex());
            plain.set_prefix(prefix);
            let expected = logits(&mut plain, &tokens);
            let before = weights(&plain);
            let mut all = plain.clone();
            for (seed, site) in sites(&plain).into_iter().enumerate() {
                let mut one = plain.clone();
                let scales = scales(&one, site, seed);
                one.rescale(site, &scales).unwrap();
                let error = difference(&logits(&mut one, &tokens), &expected);
                assert!(error < 1e-4, "{name} {site}, prefix {prefix:?}: {error:e}");
                let changed = weights(&one).into_iter().filter(|(key, bits)| before[key] != *bits).count();
                assert!(changed >= 2, "{name} {site}: a scale leaves one weight and enters another");
                all.rescale(site, &scales).unwrap();
            }
            let error = difference(&logits(&mut all, &tokens), &expected);
            assert!(error < 1e-4, "{name} everywhere, prefix {prefix:?}: {error:e}");
            assert_eq!(weights(&all)["embedding"], before["embedding"]);
            if let Some(kept) = all.prefix.clone() {
                all.refresh_prefix();
                let fresh = all.prefix.as_ref().unwrap();
                let values = |x: &Tensor<4>| x.to_data().try_to_vec::<f32>().unwrap();
                for (kept, fresh) in kept.cache.blocks().iter().zip(fresh.cache.blocks()) {
                    assert!(difference(&values(&kept.values), &values(&fresh.values)) < 1e-5, "{name}");
                    assert!(difference(&values(&kept.keys), &values(&fresh.keys)) < 1e-5, "{name}");
                }
                let last = |x: &Tensor<3>| x.to_data().try_to_vec::<f32>().unwrap();
                assert!(difference(&last(&kept.last), &last(&fresh.last)) < 1e-4, "{name}");
            }
        }
    }
}

#[test]
fn powers_of_two_change_no_bit_of_the_logits() {
    for name in ORACLES {
        let tokens = oracle(name).tokens;
        let mut decoder = load(name, &Device::flex());
        let expected = logits(&mut decoder, &tokens);
        for site in sites(&decoder) {
            let normed = matches!(site.port, Port::AttnIn | Port::MlpIn | Port::HeadIn);
            if normed && matches!(decoder.architecture.norm, Norm::RmsOffset { .. }) {
                continue; // (1 + w)/s - 1 is rounded
            }
            let sharing = decoder.sharing(site).unwrap();
            let scales: Vec<f64> = sharing.iter().map(|c| 2f64.powi((c * 7 % 5) as i32 - 2)).collect();
            decoder.rescale(site, &scales).unwrap();
            assert_eq!(logits(&mut decoder, &tokens), expected, "{name} {site}");
        }
    }
}

#[test]
fn scales_of_one_change_no_bit_of_the_weights() {
    for name in ORACLES {
        let mut decoder = load(name, &Device::flex());
        let before = weights(&decoder);
        for site in sites(&decoder) {
            let ones = vec![1.0; decoder.sharing(site).unwrap().len()];
            decoder.rescale(site, &ones).unwrap();
            assert_eq!(weights(&decoder), before, "{name} {site}");
        }
    }
}

#[test]
fn other_norms_take_the_division_too() {
    let llama = FAMILIES.iter().find(|family| family.name == "llama").unwrap();
    for norm in [Norm::RmsOffset { eps: 1e-6 }, Norm::Layer { eps: 1e-5 }, Norm::LayerUnbiased { eps: 1e-5 }]
    {
        let mut architecture = load("llama-bias", &Device::flex()).architecture;
        architecture.norm = norm;
        let mut seed = 0;
        let mut plain =
            Decoder::from_tensors(&architecture, llama.names, &Device::flex(), &mut |_, shape| {
                seed += 1;
                let count: usize = shape.iter().product();
                let value = |i: usize| ((i * i * 13 + i * 29 + seed * 71) % 1009) as f32 / 1009.0 - 0.5;
                let values: Vec<f32> = (0..count).map(value).collect();
                Ok(Tensor::from_data(TensorData::new(values, [count]), &Device::flex()))
            })
            .unwrap();
        let tokens = oracle("llama-bias").tokens;
        let expected = logits(&mut plain, &tokens);
        for (seed, site) in sites(&plain).into_iter().enumerate() {
            let scales = scales(&plain, site, seed);
            plain.rescale(site, &scales).unwrap();
            let error = difference(&logits(&mut plain, &tokens), &expected);
            assert!(error < 1e-4, "{norm:?} {site}: {error:e}");
        }
    }
}

#[test]
fn channels_of_one_value_head_share() {
    let decoder = load("llama-bias", &Device::flex());
    let (a, site) = (&decoder.architecture.attention, Site::block(1, Port::OIn));
    assert_eq!((a.heads, a.kv_heads, a.head_dim), (4, 2, 12));
    let sharing = decoder.sharing(site).unwrap();
    assert_eq!(sharing.len(), 48);
    for (channel, producer) in [(0, 0), (11, 11), (12, 0), (23, 11), (24, 12), (36, 12), (47, 23)] {
        assert_eq!(sharing[channel], producer, "{channel}");
    }
    let identity = |n: usize| Some((0..n).collect::<Vec<_>>());
    assert_eq!(decoder.sharing(Site::block(0, Port::AttnIn)), identity(32));
    assert_eq!(decoder.sharing(Site::block(0, Port::DownIn)), identity(48));
    assert_eq!(decoder.sharing(Site::HEAD), identity(32));
    for port in [Port::KPre, Port::Q, Port::K, Port::V, Port::HeadIn] {
        assert_eq!(decoder.sharing(Site::block(0, port)), None);
    }
    assert_eq!(decoder.sharing(Site::block(2, Port::AttnIn)), None);
}

#[test]
fn what_cannot_be_is_refused_by_name_and_changes_nothing() {
    let mut decoder = load("llama-bias", &Device::flex());
    let before = weights(&decoder);
    let mut refused = |site: Site, scales: &[f64], parts: &[&str]| -> RescaleError {
        let error = decoder.rescale(site, scales).unwrap_err();
        let message = error.to_string();
        for part in [site.to_string().as_str()].iter().chain(parts) {
            assert!(message.contains(part), "{message}: no {part}");
        }
        assert_eq!(weights(&decoder), before, "{message}");
        error
    };
    let attn = Site::block(1, Port::AttnIn);
    refused(attn, &[1.0; 31], &["32 channels", "31 scales"]);
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut scales = [1.0; 32];
        scales[5] = scale;
        refused(attn, &scales, &["channel 5", &scale.to_string()]);
    }
    let error = refused(Site::block(2, Port::AttnIn), &[1.0; 32], &["2 layers"]);
    assert!(matches!(error, RescaleError::NoSuchSite { .. }));
    let nowhere = Site { layer: Some(0), port: Port::HeadIn, expert: None };
    assert!(matches!(refused(nowhere, &[1.0; 32], &[]), RescaleError::NoSuchSite { .. }));
    let error = refused(Site::block(0, Port::Q), &[1.0; 48], &["down_in"]);
    assert!(matches!(error, RescaleError::NotFoldable { .. }));

    let mut scales = [1.0; 48];
    scales[13] = 2.0;
    refused(Site::block(0, Port::OIn), &scales, &["channels 1 and 13", "channel 1 of v", "1 and 2"]);
    for port in [Port::AttnIn, Port::DownIn, Port::MlpIn] {
        let site = Site::block(0, port);
        let channels = if port == Port::DownIn { 48 } else { 32 };
        refused(site, &vec![1e-300; channels], &["infinite"]);
        refused(site, &vec![1e300; channels], &["infinite"]);
    }
}

#[test]
fn what_a_family_has_elsewhere_is_refused_with_the_reason() {
    let refused = |name: &str, site: Site, reason: &str| {
        let mut decoder = load(name, &Device::flex());
        assert_eq!(decoder.sharing(site), None, "{name} {site}");
        assert!(decoder.followers(site).is_empty());
        let before = weights(&decoder);
        let message = decoder.rescale(site, &[2.0; 32]).unwrap_err().to_string();
        assert!(message.contains(&site.to_string()) && message.contains(reason), "{message}");
        assert_eq!(weights(&decoder), before);
    };
    refused("cohere", Site::block(1, Port::MlpIn), "rescale attn_in");
    refused("mixtral", Site::block(1, Port::DownIn), "every expert has its own");
    refused("mixtral", Site::expert(1, 0, Port::MlpIn), "rescale the block's mlp_in");
    refused("mixtral", Site::expert(1, 4, Port::DownIn), "no such expert");
    refused("llama2", Site::expert(1, 0, Port::DownIn), "no such expert");
    refused("mixtral", Site::expert(2, 0, Port::DownIn), "2 layers");
}

#[test]
fn an_architecture_knows_what_its_decoder_will_refuse() {
    let ports = Port::ALL.into_iter();
    let of_block = ports.clone().flat_map(|port| {
        (0..3).flat_map(move |layer| {
            let experts = (0..5).map(move |expert| Site::expert(layer, expert, port));
            [Site::block(layer, port)].into_iter().chain(experts)
        })
    });
    let sites: Vec<Site> =
        of_block.chain(ports.map(|port| Site { layer: None, port, expert: None })).collect();
    let agree = |mut decoder: Decoder, name: &str| {
        let mut refused = 0;
        for site in &sites {
            let planned = decoder.architecture.check_rescale(*site);
            let channels = decoder.sharing(*site).map_or(1, |sharing| sharing.len());
            assert_eq!(planned, decoder.rescale(*site, &vec![1.0; channels]), "{name} {site}");
            // And what can be rescaled are the groups' sites.
            let is_group = decoder.groups().iter().any(|(at, _)| at == site);
            assert!(is_group || planned.is_err(), "{name} {site}");
            refused += usize::from(planned.is_err() && is_group);
        }
        refused
    };
    for name in ORACLES {
        let decoder = load(name, &Device::flex());
        let followers = decoder.groups().into_iter().map(|(site, _)| site);
        let followers = followers.filter(|site| site.expert.is_some() && site.port == Port::MlpIn).count();
        assert_eq!(agree(decoder, name), followers, "{name}: experts' mlp_in and nothing else");
    }
    // No family has an activation without a gate that is not ReLU.
    let mut smooth = load("opt", &Device::flex());
    smooth.architecture.mlp.form = MlpForm::Plain(Activation::GeluTanh);
    for block in &mut smooth.blocks {
        let Mlp::Plain { activation, .. } = &mut block.mlp else { panic!("OPT's") };
        *activation = Activation::GeluTanh;
    }
    assert_eq!(agree(smooth, "opt with GELU"), 2, "down_in of two blocks");
}

#[test]
fn all_that_read_one_norm_follow_it() {
    let names = |name: &str, site: Site| -> Vec<String> {
        let decoder = load(name, &Device::flex());
        let linears = decoder.followers(site).into_iter().flat_map(|group| group.linears.clone());
        linears.map(|linear| linear.name.rsplit("layers.1.").next().unwrap().to_string()).collect()
    };
    let beside = ["q_proj", "k_proj", "v_proj"].map(|part| format!("self_attn.{part}"));
    let mlp = ["gate_proj", "up_proj"].map(|part| format!("mlp.{part}"));
    assert_eq!(names("cohere", Site::block(1, Port::AttnIn)), [beside.to_vec(), mlp.to_vec()].concat());
    let mut routed = vec!["block_sparse_moe.gate".to_string()];
    routed.extend((0..4).flat_map(|e| ["w1", "w3"].map(|w| format!("block_sparse_moe.experts.{e}.{w}"))));
    assert_eq!(names("mixtral", Site::block(1, Port::MlpIn)), routed);
    assert_eq!(names("opt", Site::block(1, Port::MlpIn)), ["fc1"]);
}
