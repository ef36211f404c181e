//! Scoring of requests: what sharing must not change, and what a prefix does to it.

#![allow(clippy::unwrap_used)]

use burn::tensor::Device;
use harness::evaluate::LanguageModel;
use harness::evaluate::decoder_model::DecoderModel;
use harness::evaluate::scoring::Answer;
use harness::evaluate::shared_scoring::Sharing;
use harness::evaluate::windows::Sequence;
use models::{Checkpoint, Decoder, Off};

const BOS: u32 = 0;

fn decoder() -> Decoder {
    Checkpoint::builtin("builtin/tiny-llama").unwrap().unwrap().load(&Device::flex()).unwrap()
}

/// Ids that look drawn: a small generator, ids 1 to 1000.
fn ids(seed: u64, n: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as u32 % 1000 + 1
    };
    (0..n).map(|_| draw()).collect()
}

/// Items of several continuations of several lengths behind one context, with and without BOS; one of them a single
/// continuation, one with one-token continuations, one whose continuations begin alike.
fn items() -> Vec<Vec<Sequence>> {
    let item = |seed: u64, context: usize, lengths: &[usize], bos: bool| -> Vec<Sequence> {
        let start = bos.then_some(BOS);
        let context: Vec<u32> = start.into_iter().chain(ids(seed, context)).collect();
        lengths
            .iter()
            .enumerate()
            .map(|(i, &n)| {
                let tokens: Vec<u32> = context.iter().copied().chain(ids(seed * 31 + i as u64, n)).collect();
                Sequence { scored: context.len()..tokens.len(), tokens }
            })
            .collect()
    };
    let mut alike = item(8, 11, &[4, 4], true);
    alike[1].tokens = [&alike[0].tokens[..14], &[7, 9][..]].concat();
    alike[1].scored = 12..16;
    vec![
        item(1, 20, &[3, 7, 1, 12], true),
        item(2, 20, &[2, 2], true),
        item(3, 35, &[1, 1, 1], true),
        item(4, 6, &[30], true),
        item(5, 17, &[5, 4], false),
        // Nothing but BOS is common.
        item(6, 0, &[4, 9], true),
        alike,
    ]
}

fn answers(decoder: &mut Decoder, items: &[Vec<Sequence>], sharing: Sharing) -> Vec<Answer> {
    let by_item: Vec<&[Sequence]> = items.iter().map(Vec::as_slice).collect();
    let mut tap = Off;
    let mut model = DecoderModel::new(decoder, &mut tap, Some(BOS)).sharing(sharing);
    model.answers(&by_item, &mut |_, _| true).unwrap()
}

/// Each sequence by itself, through the path that perplexity takes.
fn one_by_one(decoder: &mut Decoder, items: &[Vec<Sequence>]) -> Vec<f64> {
    let mut tap = Off;
    let mut model = DecoderModel::new(decoder, &mut tap, Some(BOS));
    items
        .iter()
        .flatten()
        .map(|sequence| {
            let scores = model.log_likelihoods(&[&sequence.tokens]).unwrap().swap_remove(0);
            sequence.scored.clone().map(|at| f64::from(scores[at - 1])).sum()
        })
        .collect()
}

fn assert_agree(found: &[Answer], expected: &[f64], items: &[Vec<Sequence>]) {
    let sequences: Vec<&Sequence> = items.iter().flatten().collect();
    assert_eq!((found.len(), expected.len()), (sequences.len(), sequences.len()));
    for ((answer, expected), sequence) in found.iter().zip(expected).zip(sequences) {
        assert!((answer.log_likelihood - expected).abs() < 1e-4, "{answer:?}, expected {expected}");
        assert_eq!(answer.tokens, sequence.scored.len());
    }
}

#[test]
fn sharing_changes_no_log_likelihood_and_no_decision() {
    let (mut decoder, items) = (decoder(), items());
    let expected = one_by_one(&mut decoder, &items);
    let shared = answers(&mut decoder, &items, Sharing::Shared);
    let alone = answers(&mut decoder, &items, Sharing::Alone);
    assert_agree(&shared, &expected, &items);
    assert_agree(&alone, &expected, &items);
    let mut from = 0;
    for item in &items {
        let best = |answers: &[Answer]| {
            let place =
                |a: &usize, b: &usize| answers[*a].log_likelihood.total_cmp(&answers[*b].log_likelihood);
            (from..from + item.len()).max_by(place)
        };
        assert_eq!(best(&shared), best(&alone));
        from += item.len();
    }
    assert_eq!(
        shared.iter().map(|a| a.greedy).collect::<Vec<_>>(),
        alone.iter().map(|a| a.greedy).collect::<Vec<_>>()
    );
}

#[test]
fn behind_a_prefix_the_same_tokens_are_scored_in_every_way() {
    let (mut decoder, items) = (decoder(), items());
    decoder.set_prefix(&[BOS, 17, 4]);
    let expected = one_by_one(&mut decoder, &items);
    assert_agree(&answers(&mut decoder, &items, Sharing::Shared), &expected, &items);
    assert_agree(&answers(&mut decoder, &items, Sharing::Alone), &expected, &items);
}

#[test]
fn greedy_continuations_are_recognized() {
    let mut decoder = decoder();
    let context: Vec<u32> = std::iter::once(BOS).chain(ids(9, 12)).collect();
    let ask = |decoder: &mut Decoder, tail: &[u32]| {
        let tokens = [&context[..], tail].concat();
        let item = vec![Sequence { scored: context.len()..tokens.len(), tokens }];
        answers(decoder, &[item], Sharing::Shared)[0]
    };
    let vocabulary = decoder.architecture.vocabulary as u32;
    let best = |decoder: &mut Decoder, tail: &[u32]| {
        let one_more = |token: u32| Sequence {
            scored: context.len() + tail.len()..context.len() + tail.len() + 1,
            tokens: [&context[..], tail, &[token]].concat(),
        };
        let items: Vec<Vec<Sequence>> = vec![(0..vocabulary).map(one_more).collect()];
        let answers = answers(decoder, &items, Sharing::Shared);
        let place = |a: &u32, b: &u32| {
            answers[*a as usize].log_likelihood.total_cmp(&answers[*b as usize].log_likelihood)
        };
        let best = (0..vocabulary).max_by(place).unwrap();
        assert_eq!(answers.iter().filter(|answer| answer.greedy).count(), 1);
        assert!(answers[best as usize].greedy);
        best
    };
    let first = best(&mut decoder, &[]);
    let second = best(&mut decoder, &[first]);
    assert!(ask(&mut decoder, &[first, second]).greedy);
    let other = (second + 1) % vocabulary;
    assert!(!ask(&mut decoder, &[first, other]).greedy);
}
