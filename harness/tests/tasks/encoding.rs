//! Requests as tokens: with real tokenizers against the reference, and with a toy for what they do not show.

use harness::data::BosPolicy;
use harness::evaluate::requests::encode::{Encode, EncodeError, Encoded, Encoder};
use harness::evaluate::requests::sharing::{plan, saved};
use harness::evaluate::requests::zero_shot;
use harness::evaluate::tasks::Windows;
use harness::evaluate::windows::Sequence;
use models::tokenizer::{Tokenizer, TokenizerError};

use super::*;

fn builtin() -> Tokenizer {
    let files = models::builtin::files("builtin/tiny-llama").unwrap();
    let config = serde_json::from_slice(&files.config).unwrap();
    Tokenizer::new(&files.tokenizer, Some(&files.tokenizer_config), &config).unwrap()
}

fn stories260k(test: &str) -> Option<Tokenizer> {
    let folder = shared("models/stories260K", test)?;
    let file = |name: &str| fs::read(folder.join(name)).unwrap();
    let config = serde_json::from_slice(&file("config.json")).unwrap();
    Some(Tokenizer::new(&file("tokenizer.json"), Some(&file("tokenizer_config.json")), &config).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A context and a continuation as one sequence.
fn sequence(context: &Value, continuation: &Value) -> Sequence {
    let (context, continuation) = (ids(context), ids(continuation));
    let tokens = [context.clone(), continuation].concat();
    Sequence { scored: context.len()..tokens.len(), tokens }
}

fn compare(tokenizer: &Tokenizer, golden: &Value) {
    for (policy, name) in [(BosPolicy::Tokenizer, "tokenizer"), (BosPolicy::None, "none")] {
        let mut encoder = Encoder::new(tokenizer, policy, 512).unwrap();
        for case in golden[name]["pairs"].as_array().unwrap() {
            let (context, continuation) = (case[0].as_str().unwrap(), case[1].as_str().unwrap());
            let found = encoder.pair(context, continuation);
            if ids(&case[3]).is_empty() {
                // The reference would stop here; the last token of both together is scored, if one stands before it.
                let both = format!("{context}{continuation}");
                let whole = match policy {
                    BosPolicy::None => tokenizer.encode(&both).unwrap(),
                    _ => tokenizer.encode_special(&both).unwrap(),
                };
                let merged = found.ok().map(|found| {
                    assert!(found.merged && found.scored() == 1, "{case}");
                    found.sequences[0].tokens.clone()
                });
                assert_eq!(merged, (whole.len() > 1).then_some(whole), "{case}");
                continue;
            }
            let found = found.unwrap();
            let expected = vec![sequence(&case[2], &case[3])];
            assert_eq!(found, Encoded { sequences: expected, truncated: 0, merged: false }, "{name}: {case}");
        }
        for case in golden[name]["rolling"].as_array().unwrap() {
            let length = case[1].as_u64().unwrap() as usize;
            let mut encoder = Encoder::new(tokenizer, policy, length).unwrap();
            let found = encoder.whole(case[0].as_str().unwrap(), Windows::Rolling).unwrap();
            for (found, window) in found.sequences.iter().zip(case[2].as_array().unwrap()) {
                assert_eq!(found, &sequence(&window[0], &window[1]), "{name}: {case}");
                assert!(found.inputs().len() <= length);
            }
            assert_eq!(found.sequences.len(), case[2].as_array().unwrap().len());
        }
    }
}

#[test]
fn the_built_in_tokenizer_cuts_as_the_reference() {
    compare(&builtin(), &fixture("encoding.json")["builtin"]);
}

#[test]
fn the_tokenizer_of_stories260k_cuts_as_the_reference() {
    let Some(tokenizer) = stories260k("the_tokenizer_of_stories260k_cuts_as_the_reference") else { return };
    compare(&tokenizer, &fixture("encoding.json")["stories260k"]);
}

/// Every two characters are one token, from the start of the text; one left over is its own.
struct Pairs {
    prefix: Option<(u32, String)>,
}

impl Encode for Pairs {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let chars: Vec<char> = text.chars().collect();
        let ids = chars.chunks(2).map(|pair| pair.iter().fold(0, |id, c| id * 1000 + *c as u32));
        Ok(self.prefix.iter().filter(|_| special).map(|(id, _)| *id).chain(ids).collect())
    }

    fn prefix(&self) -> Result<Option<(u32, String)>, TokenizerError> {
        Ok(self.prefix.clone())
    }
}

fn toy() -> Pairs {
    Pairs { prefix: Some((1, "^".into())) }
}

#[test]
fn a_swallowed_continuation_is_scored_by_the_merged_token_and_says_so() {
    let toy = toy();
    let mut encoder = Encoder::new(&toy, BosPolicy::Tokenizer, 9).unwrap();
    let found = encoder.pair("abc", "d").unwrap();
    assert!(found.merged);
    assert_eq!(found.sequences[0].tokens, toy.encode("abcd", true).unwrap());
    assert_eq!(found.sequences[0].scored, 2..3);
    // Nothing stands before the one merged token: nothing predicts it.
    let alone = Encoder::new(&toy, BosPolicy::None, 9).unwrap().pair("a", "b");
    assert!(matches!(alone, Err(EncodeError::Empty { .. })), "{alone:?}");
}

#[test]
fn what_is_longer_than_the_context_is_cut_on_the_left_and_counted() {
    let toy = toy();
    for (length, truncated) in [(8, 0), (7, 0), (6, 1), (3, 4)] {
        let mut encoder = Encoder::new(&toy, BosPolicy::Tokenizer, length).unwrap();
        // BOS, five tokens of context, two of continuation: seven inputs.
        let found = encoder.pair("aabbccddee", "ffgg").unwrap();
        assert_eq!(found.truncated, truncated);
        assert_eq!(found.sequences[0].targets(), toy.encode("ffgg", false).unwrap());
        assert!(found.sequences[0].inputs().len() <= length);
        assert_eq!(found.sequences[0].tokens.first() == Some(&1), truncated == 0);
    }
    let error = Encoder::new(&toy, BosPolicy::Tokenizer, 1).unwrap().pair("aa", "ffgg").unwrap_err();
    assert!(error.to_string().contains("has 2 tokens, more than the model's context of 1"), "{error}");
}

#[test]
fn every_text_begins_with_bos_once_under_every() {
    let tokenizer = builtin();
    let mut encoder = Encoder::new(&tokenizer, BosPolicy::Every, 512).unwrap();
    for context in ["Tom", "<s>Tom"] {
        let found = encoder.pair(context, " ran").unwrap();
        let bos = tokenizer.bos().unwrap();
        assert_eq!(found.sequences[0].tokens.iter().filter(|id| **id == bos).count(), 1, "{context}");
        assert_eq!(found.sequences[0].tokens[0], bos);
    }
    // A whole text: BOS is context once and never predicted; the reference's rule predicts the tokenizer's own.
    let rolling = encoder.whole("Tom ran", Windows::Rolling).unwrap();
    assert!(!rolling.sequences[0].targets().contains(&tokenizer.bos().unwrap()));
    let reference =
        Encoder::new(&tokenizer, BosPolicy::Tokenizer, 512).unwrap().whole("Tom ran", Windows::Rolling);
    assert_eq!(reference.unwrap().scored(), rolling.scored() + 1);
    let document = encoder.whole("Tom ran", Windows::Document).unwrap();
    assert_eq!(document.scored(), rolling.scored() - 1);

    let none = Pairs { prefix: None };
    assert!(matches!(Encoder::new(&none, BosPolicy::Every, 9), Err(EncodeError::NoPrefix { .. })));
    let mut encoder = Encoder::new(&none, BosPolicy::Tokenizer, 9).unwrap();
    assert!(matches!(encoder.pair("", "ab"), Err(EncodeError::NoPrefix { .. })));
    assert!(encoder.pair("ab", "cd").is_ok());
}

#[test]
fn contexts_are_encoded_once_and_shared() {
    let tokenizer = builtin();
    let golden = fixture("tasks.json");
    let mut encoder = Encoder::new(&tokenizer, BosPolicy::Tokenizer, 512).unwrap();
    let arc = task("arc_easy");
    let items = read(arc, &golden["tasks"]["arc_easy"]["docs"], Amount::Subset);
    let requests = zero_shot(arc, &items);
    let sequences: Vec<Vec<Sequence>> = requests
        .iter()
        .map(|requests| {
            let encoded = requests.iter().map(|request| encoder.encode(request, arc.windows()).unwrap());
            encoded.flat_map(|encoded| encoded.sequences).collect()
        })
        .collect();
    let asked: usize = requests.iter().map(Vec::len).sum();
    assert_eq!(encoder.reused(), asked - items.len());
    let plan = plan(sequences.iter().map(Vec::as_slice));
    assert_eq!(plan.len(), items.len());
    for (shared, sequences) in plan.iter().zip(&sequences) {
        // At least the context is shared, which the scored tokens follow.
        assert!(
            sequences
                .iter()
                .all(|s| shared.prefix.len() >= s.scored.start && s.tokens.starts_with(&shared.prefix))
        );
    }
    let (with, without) = saved(&plan, &sequences.concat());
    assert!(with * 3 < without * 2, "{with} of {without} tokens");
}
