//! Behind a prefix, and token by token: the same numbers as in one pass over everything.

use burn::tensor::{Device, Tensor};
use models::{Cache, Checkpoint, Decoder, Group, Growing, Off, Port, Site, Tap, token_tensor};

use crate::dumps::{ORACLES, assert_close, devices, load, oracle};

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.to_data().try_to_vec().unwrap()
}

/// Logits as the decoder is, prefix included.
fn logits(decoder: &mut Decoder, tokens: &[Vec<u32>]) -> Tensor<3> {
    let input = token_tensor(tokens, &decoder.device());
    let hidden = decoder.hidden(input, &mut Off);
    decoder.logits(hidden, &mut Off)
}

#[test]
fn logits_behind_a_prefix_are_the_last_rows_of_transformers() {
    for name in ORACLES {
        let oracle = oracle(name);
        let (dims, expected) = &oracle.tensors["logits"];
        let (length, vocabulary) = (dims[1], dims[2]);
        for device in devices() {
            let mut decoder = load(name, &device);
            for (index, tokens) in oracle.tokens.iter().enumerate() {
                for prefix in [1, 3, length - 1] {
                    let expected = &expected[index * length * vocabulary..][..length * vocabulary];
                    decoder.set_prefix(&tokens[..prefix]);
                    let found = logits(&mut decoder, &[tokens[prefix..].to_vec()]);
                    let what = format!("{name} behind {prefix} tokens on {device:?}");
                    assert_close(&what, &values(found), &expected[prefix * vocabulary..]);
                    let last = decoder.prefix.as_ref().unwrap().last.clone();
                    let last = decoder.logits(last, &mut Off);
                    assert_close(&what, &values(last), &expected[(prefix - 1) * vocabulary..][..vocabulary]);
                }
            }
        }
    }
}

/// Token ids in no order.
fn scrambled(count: usize, seed: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 31 + i * 17 + seed * 101) % vocabulary) as u32).collect()
}

#[test]
fn a_prefix_stands_before_every_sequence_of_a_batch_across_blocks_of_queries() {
    let checkpoint = Checkpoint::builtin("builtin/tiny-llama").unwrap().unwrap();
    let vocabulary = checkpoint.architecture().vocabulary;
    for device in devices() {
        let mut decoder = checkpoint.load(&device).unwrap();
        for (behind, length) in [(3, 300), (130, 127), (130, 129), (256, 1)] {
            let prefix = scrambled(behind, 1, vocabulary);
            let own: Vec<Vec<u32>> = (2..5).map(|seed| scrambled(length, seed, vocabulary)).collect();
            let whole: Vec<Vec<u32>> = own.iter().map(|x| [prefix.clone(), x.clone()].concat()).collect();
            decoder.set_prefix(&[]);
            let expected = logits(&mut decoder, &whole).narrow(1, behind, length);
            decoder.set_prefix(&prefix);
            let found = logits(&mut decoder, &own);
            assert_close(
                &format!("{length} behind {behind} on {device:?}"),
                &values(found),
                &values(expected),
            );
        }
    }
}

#[test]
fn no_prefix_changes_no_bit_and_refreshing_follows_the_weights() {
    let oracle = oracle("llama-bias");
    let mut decoder = load("llama-bias", &Device::flex());
    let plain = values(logits(&mut decoder, &oracle.tokens));
    decoder.set_prefix(&[5, 9]);
    assert_ne!(values(logits(&mut decoder, &oracle.tokens)), plain);
    decoder.refresh_prefix();
    let (_, cache) = decoder.encode(None, token_tensor(&oracle.tokens, &Device::flex()), &mut Off);
    assert_eq!(cache.tokens(), oracle.tokens[0].len(), "an explicit past knows nothing of the prefix");

    let v = &mut decoder.blocks[0].qkv.linears[2];
    v.weight = v.weight.clone() * 2.0;
    v.bias = v.bias.take().map(|bias| bias * 2.0);
    let first = |decoder: &Decoder| values(decoder.prefix.as_ref().unwrap().cache.blocks()[0].values.clone());
    let before = first(&decoder);
    decoder.refresh_prefix();
    assert_eq!(first(&decoder), before.iter().map(|v| v * 2.0).collect::<Vec<_>>());
    assert_eq!(decoder.prefix.as_ref().unwrap().tokens, [5, 9]);

    let mut decoder = load("llama-bias", &Device::flex());
    decoder.set_prefix(&[5, 9]);
    decoder.set_prefix(&[]);
    assert!(decoder.prefix.is_none());
    assert_eq!(values(logits(&mut decoder, &oracle.tokens)), plain);
}

/// The host attends in blocks of 128 queries and leaves keys before their windows out; tensor operations have one mask.
#[test]
fn windows_are_the_same_across_blocks_of_queries() {
    for name in ["gemma2", "gemma3", "mistral", "qwen2"] {
        let [mut host, mut operations] = devices().map(|device| load(name, &device));
        for (behind, length) in [(0, 300), (5, 140), (130, 129)] {
            let tokens = vec![scrambled(length, 8, 64), scrambled(length, 9, 64)];
            host.set_prefix(&scrambled(behind, 7, 64));
            operations.set_prefix(&scrambled(behind, 7, 64));
            let (found, expected) = (logits(&mut host, &tokens), logits(&mut operations, &tokens));
            assert_close(&format!("{name}: {length} behind {behind}"), &values(found), &values(expected));
        }
    }
}

/// Counts tokens at every site.
#[derive(Default)]
struct Count(Vec<(String, usize)>);

impl Tap for Count {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        self.0.push((site.to_string(), x.dims()[1]));
        group.forward(x)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.0.push((site.to_string(), x.dims()[2]));
        x
    }

    fn residual(&mut self, layer: usize, x: &Tensor<3>) {
        self.0.push((format!("residual {layer}"), x.dims()[1]));
    }
}

#[test]
fn the_tap_sees_nothing_of_a_prefix() {
    let mut decoder = load("smollm2", &Device::flex());
    decoder.set_prefix(&[1, 2, 3, 4]);
    let mut count = Count::default();
    let input = token_tensor(&[[7u32, 8, 9], [9, 8, 7]], &Device::flex());
    let hidden = decoder.hidden(input, &mut count);
    decoder.logits(hidden, &mut count);
    assert_eq!(
        count.0.len(),
        2 * 9 + 1,
        "four groups, four tensors and the stream of each block, and the head"
    );
    assert!(count.0.iter().all(|(_, tokens)| *tokens == 3), "{:?}", count.0);
}

/// Logits of every step of `tokens`, `step` tokens at a time, behind `cache`; a cache that grows in place gives the same.
fn step_by_step(
    decoder: &mut Decoder,
    mut cache: Option<Cache>,
    tokens: &[Vec<u32>],
    step: usize,
    tap: &mut dyn Tap,
) -> (Tensor<3>, Cache) {
    let mut steps = Vec::new();
    let mut growing = Growing::behind(cache.as_ref());
    for start in (0..tokens[0].len()).step_by(step) {
        let end = (start + step).min(tokens[0].len());
        let input: Vec<_> = tokens.iter().map(|sequence| &sequence[start..end]).collect();
        let input = token_tensor(&input, &decoder.device());
        let appended = decoder.append(&mut growing, input.clone(), tap);
        let (hidden, grown) = decoder.encode(cache.as_ref(), input, tap);
        assert_close("a cache that grows", &values(appended), &values(hidden.clone()));
        assert_eq!(growing.tokens(), grown.tokens());
        steps.push(decoder.logits(hidden, &mut Off));
        cache = Some(grown);
    }
    (Tensor::cat(steps, 1), cache.unwrap())
}

#[test]
fn token_by_token_is_transformers_in_one_pass() {
    for name in ORACLES {
        let oracle = oracle(name);
        for device in devices() {
            let mut decoder = load(name, &device);
            for step in [1, 7] {
                let (found, cache) = step_by_step(&mut decoder, None, &oracle.tokens, step, &mut Off);
                assert_eq!((cache.sequences(), cache.tokens()), (2, oracle.tokens[0].len()));
                let what = format!("{name}, {step} at a time on {device:?}");
                assert_close(&what, &values(found), &oracle.tensors["logits"].1);
            }
        }
    }
}

#[test]
fn a_past_of_one_sequence_is_shared_and_can_be_cut() {
    let mut decoder = load("llama3", &Device::flex());
    let past = scrambled(9, 3, 64);
    let (_, cache) = decoder.encode(None, token_tensor(&[&past], &Device::flex()), &mut Off);
    let own: Vec<Vec<u32>> = (4..7).map(|seed| scrambled(5, seed, 64)).collect();
    for kept in [9, 4] {
        let whole: Vec<Vec<u32>> = own.iter().map(|x| [&past[..kept], x].concat()).collect();
        let expected = logits(&mut decoder, &whole).narrow(1, kept, 5);
        let (found, grown) = step_by_step(&mut decoder, Some(cache.truncated(kept)), &own, 2, &mut Off);
        assert_close("a shared past", &values(found), &values(expected));
        assert_eq!((grown.sequences(), grown.tokens()), (3, kept + 5));
    }
    assert_eq!((cache.sequences(), cache.tokens()), (1, 9), "a past is not changed");
}

#[test]
fn a_cache_that_grows_makes_room() {
    let mut decoder = load("smollm2", &Device::flex());
    decoder.set_prefix(&[1, 2, 3]);
    let tokens: Vec<Vec<u32>> = (1..3).map(|seed| scrambled(150, seed, 64)).collect();
    let expected = decoder.hidden(token_tensor(&tokens, &Device::flex()), &mut Off);
    let mut growing = Growing::behind(decoder.prefix.as_ref().map(|prefix| &prefix.cache));
    let mut steps = Vec::new();
    for at in 0..150 {
        let fed: Vec<_> = tokens.iter().map(|sequence| &sequence[at..=at]).collect();
        steps.push(decoder.append(&mut growing, token_tensor(&fed, &Device::flex()), &mut Off));
    }
    assert_eq!(growing.tokens(), 153);
    assert_close("150 steps", &values(Tensor::cat(steps, 1)), &values(expected));
}

/// Adds one to every value.
struct AddOne;

impl Tap for AddOne {
    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        if site.port == Port::V { x + 1.0 } else { x }
    }
}

#[test]
fn a_cache_holds_what_left_the_tap_and_passes_it_once() {
    let tokens = vec![scrambled(6, 5, 64)];
    let mut decoder = load("llama-bias", &Device::flex());
    let (_, plain) = step_by_step(&mut decoder, None, &tokens, 6, &mut Off);
    let (_, changed) = step_by_step(&mut decoder, None, &tokens, 2, &mut AddOne);
    let expected = plain.blocks()[0].values.clone() + 1.0;
    assert_close("values", &values(changed.blocks()[0].values.clone()), &values(expected));
    assert_close("keys", &values(changed.blocks()[0].keys.clone()), &values(plain.blocks()[0].keys.clone()));
}

#[test]
#[should_panic(expected = "token 64 is beyond the vocabulary of 64")]
fn a_prefix_is_made_of_known_tokens() {
    load("llama2", &Device::flex()).set_prefix(&[3, 64]);
}

#[test]
#[should_panic(expected = "a cache of 2 sequences cannot stand before 3")]
fn a_past_of_several_sequences_is_not_shared() {
    let mut decoder = load("llama2", &Device::flex());
    let (_, cache) = decoder.encode(None, token_tensor(&[[1u32], [2]], &Device::flex()), &mut Off);
    decoder.encode(Some(&cache), token_tensor(&[[1u32], [2], [3]], &Device::flex()), &mut Off);
}
