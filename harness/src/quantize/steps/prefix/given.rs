//! `prefix` by `tokens`, `bos` or `random`: not searched: given tokens, BOS alone, or BOS and random ones.
//!
//! # Equation
//! The keys and values of the prefix, at positions 0 … |P| − 1, come from one pass of the floating-point model over
//! the prefix alone; every sequence starts at position |P| and attends to them.
//!
//! # Parameters
//! `tokens`: `tokens` ids, or texts that are exactly one token each, such as `[1, "the", "."]` · `bos`: none; the prefix
//! is BOS alone (EOS where a tokenizer has only that) · `random`: `length` tokens, BOS and then ids drawn by the cell's
//! seed, uniform over the vocabulary without special tokens.
//!
//! # Reference
//! arXiv:2405.14428, prefix ablation: "random" and "BOS only". How its random prefixes were drawn is not known; BOS and
//! two random tokens is our reading.

use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::calibrate::set;
use crate::quantize::steps::{Stage, prefix};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StepError};

/// The keys of `method = "tokens"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tokens {
    /// In order; BOS is one of them only if it is named.
    pub tokens: Vec<Word>,
}

/// A token of a prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a token's id, or a text that is one token")]
pub enum Word {
    /// By id.
    Id(u32),
    /// By a text that is exactly one token.
    Text(String),
}

/// The keys of `method = "bos"`: none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bos {}

/// The keys of `method = "random"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Random {
    /// Tokens of the prefix, BOS included. Default: 3.
    #[serde(default = "three")]
    pub length: usize,
}

fn three() -> usize {
    3
}

impl Word {
    fn id(&self, token: impl Fn(&str) -> Option<u32>) -> Result<u32, StepError> {
        match self {
            Word::Id(id) => Ok(*id),
            Word::Text(word) => token(word).ok_or_else(|| StepError::Word { word: word.clone() }),
        }
    }
}

impl Tokens {
    /// Nothing is left to a default.
    pub fn resolved(self) -> Self {
        self
    }

    fn ids(&self, token: impl Fn(&str) -> Option<u32>) -> Result<Vec<u32>, StepError> {
        self.tokens.iter().map(|word| word.id(&token)).collect()
    }
}

impl Bos {
    /// Nothing is left to a default.
    pub fn resolved(self) -> Self {
        self
    }
}

impl Random {
    /// Defaults are written out as they are read.
    pub fn resolved(self) -> Self {
        self
    }
}

impl Method for Tokens {
    fn stage(&self) -> Stage {
        Stage::Prefix
    }

    fn check(&self) -> Result<(), String> {
        match self.tokens.is_empty() {
            true => Err("`tokens` is empty: leave the step out for no prefix".into()),
            false => Ok(()),
        }
    }

    fn claims(&self) -> Vec<String> {
        prefix::claims()
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        prefix::check_vocabulary(&self.ids(facts.token)?, facts.architecture.vocabulary)?;
        prefix::check_room(self.tokens.len(), facts)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let ids = self.ids(|text| model.calibrator.token(text))?;
        prefix::set(model, &ids)
    }
}

impl Method for Bos {
    fn stage(&self) -> Stage {
        Stage::Prefix
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn claims(&self) -> Vec<String> {
        prefix::claims()
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        facts.start.ok_or(StepError::NoStart)?;
        prefix::check_room(1, facts)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let start = model.calibrator.start().ok_or(StepError::NoStart)?;
        prefix::set(model, &[start])
    }
}

impl Method for Random {
    fn stage(&self) -> Stage {
        Stage::Prefix
    }

    fn check(&self) -> Result<(), String> {
        match self.length {
            0 => Err("`length` must be at least 1; leave the step out for no prefix".into()),
            _ => Ok(()),
        }
    }

    fn claims(&self) -> Vec<String> {
        prefix::claims()
    }

    fn uses_randomness(&self) -> bool {
        true
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        facts.start.ok_or(StepError::NoStart)?;
        prefix::check_room(self.length, facts)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let start = model.calibrator.start().ok_or(StepError::NoStart)?;
        let mut random = set::stream("random prefix", model.calibrator.seed());
        let ordinary = model.calibrator.ordinary();
        if ordinary.is_empty() {
            return Err(StepError::TooLittle("the vocabulary has no token that stands for text".into()));
        }
        let drawn = std::iter::repeat_with(|| {
            let index = (u64::from(random.next_u32()) * ordinary.len() as u64) >> 32;
            ordinary[index as usize]
        });
        let tokens: Vec<u32> = std::iter::once(start).chain(drawn).take(self.length).collect();
        prefix::set(model, &tokens)
    }
}
