//! Requests as token sequences, cut apart as lm-evaluation-harness 0.4.13 does it (`_encode_pair`, `tok_encode`,
//! `_loglikelihood_tokens`).

use std::collections::HashMap;

use models::tokenizer::{Tokenizer, TokenizerError};

use super::Request;
use crate::data::BosPolicy;
use crate::evaluate::python::text::rstrip;
use crate::evaluate::tasks::Windows;
use crate::evaluate::windows::{self, Sequence, WindowsError};

/// What is needed of a tokenizer.
pub trait Encode {
    /// Token ids of a text; with `special`, with the special tokens that the tokenizer adds by itself.
    ///
    /// # Errors
    /// If the tokenizer fails on it.
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError>;

    /// The token that stands before texts without context, and how it is written: BOS, else EOS.
    ///
    /// # Errors
    /// If the tokenizer cannot write it.
    fn prefix(&self) -> Result<Option<(u32, String)>, TokenizerError>;
}

impl Encode for Tokenizer {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        if special { self.encode_special(text) } else { Tokenizer::encode(self, text) }
    }

    fn prefix(&self) -> Result<Option<(u32, String)>, TokenizerError> {
        let Some(id) = self.bos().or(self.eos()) else { return Ok(None) };
        Ok(Some((id, self.decode(&[id])?)))
    }
}

/// Why a request has no tokens.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The tokenizer's own.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A request that needs BOS or EOS, of a tokenizer without them.
    #[error(
        "the tokenizer has neither a BOS nor an EOS token, which must stand before {what}: {}",
        "use bos = \"none\" and texts with a context"
    )]
    NoPrefix {
        /// Before what.
        what: &'static str,
    },
    /// A continuation of which nothing is left to score.
    #[error("the continuation {continuation:?} has no tokens of its own")]
    Empty {
        /// The continuation.
        continuation: String,
    },
    /// A continuation that alone is longer than the model's context.
    #[error(
        "the continuation {}… has {tokens} tokens, more than the model's context of {length}: it cannot be scored",
        start
    )]
    TooLong {
        /// Its first characters.
        start: String,
        /// Of the continuation.
        tokens: usize,
        /// The context.
        length: usize,
    },
    /// Windows that cannot be cut.
    #[error(transparent)]
    Windows(#[from] WindowsError),
}

/// A request, ready for a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// One sequence of a pair; the windows of a text.
    pub sequences: Vec<Sequence>,
    /// Tokens cut off on the left, because the model's context is shorter. Counted and reported, never silent.
    pub truncated: usize,
    /// Whether the continuation was swallowed by a merge across the boundary, so that the last token of both together is
    /// scored instead. The reference stops there with a failed assertion; lighteval does the same as here.
    pub merged: bool,
}

impl Encoded {
    /// Tokens that are scored.
    pub fn scored(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.scored.len()).sum()
    }
}

/// Encodes requests under a BOS policy for a model of a given context, and remembers contexts, which the requests of an
/// item mostly share.
///
/// | policy | a text is encoded |
/// |---|---|
/// | `tokenizer` | with the special tokens that the tokenizer adds, unless it begins with the written prefix token: the reference's default since 0.4.9.2 |
/// | `none` | without special tokens: the reference's `add_bos_token=False`, and its default before 0.4.9.2 |
/// | `every` | without special tokens, after BOS (else EOS), whether or not the tokenizer would add it; once, also where the text begins with it |
///
/// Left truncation takes BOS first, as the reference's does.
pub struct Encoder<'a> {
    tokenizer: &'a dyn Encode,
    bos: BosPolicy,
    max_length: usize,
    prefix: Option<(u32, String)>,
    seen: HashMap<String, Vec<u32>>,
    reused: usize,
}

impl<'a> Encoder<'a> {
    /// For a model whose context has `max_length` tokens.
    ///
    /// # Errors
    /// A tokenizer that cannot write its prefix token, or has none and the policy needs it.
    pub fn new(tokenizer: &'a dyn Encode, bos: BosPolicy, max_length: usize) -> Result<Self, EncodeError> {
        let prefix = tokenizer.prefix()?;
        if bos == BosPolicy::Every && prefix.is_none() {
            return Err(EncodeError::NoPrefix { what: "every text under bos = \"every\"" });
        }
        Ok(Self { tokenizer, bos, max_length, prefix, seen: HashMap::new(), reused: 0 })
    }

    /// Texts that were asked for again.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// The ids of a text under the policy.
    fn text(&mut self, text: &str) -> Result<Vec<u32>, EncodeError> {
        if let Some(ids) = self.seen.get(text) {
            self.reused += 1;
            return Ok(ids.clone());
        }
        let ids = self.fresh(text)?;
        self.seen.insert(text.to_owned(), ids.clone());
        Ok(ids)
    }

    fn fresh(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        Ok(match (self.bos, &self.prefix) {
            (BosPolicy::None, _) => self.tokenizer.encode(text, false)?,
            (BosPolicy::Tokenizer, prefix) => {
                let written =
                    prefix.as_ref().is_some_and(|(_, prefix)| !prefix.is_empty() && text.starts_with(prefix));
                self.tokenizer.encode(text, !written)?
            }
            (BosPolicy::Every, prefix) => {
                let mut ids = self.tokenizer.encode(text, false)?;
                if let Some((prefix, _)) = prefix
                    && ids.first() != Some(prefix)
                {
                    ids.insert(0, *prefix);
                }
                ids
            }
        })
    }

    /// Encodes a request.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn encode(&mut self, request: &Request, windows: Windows) -> Result<Encoded, EncodeError> {
        match request {
            Request::Pair { context, continuation } => self.pair(context, continuation),
            Request::Text { text } => self.whole(text, windows),
        }
    }

    /// A context and its continuation. White space at the context's end moves to the continuation; both are encoded
    /// together, and the continuation is what comes after as many tokens as the context alone has.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn pair(&mut self, context: &str, continuation: &str) -> Result<Encoded, EncodeError> {
        let stripped = rstrip(context);
        let moved = format!("{}{continuation}", &context[stripped.len()..]);
        let whole = format!("{stripped}{moved}");
        let before = if stripped.is_empty() { Vec::new() } else { self.text(stripped)? };
        let (before, scored, merged) = if before.is_empty() {
            // The reference does so for an empty context only, and stops at one of nothing but white space.
            let (prefix, _) =
                self.prefix.clone().ok_or(EncodeError::NoPrefix { what: "an empty context" })?;
            let mut ids = self.tokenizer.encode(&moved, false)?;
            if ids.first() == Some(&prefix) {
                ids.remove(0);
            }
            (vec![prefix], ids, false)
        } else {
            let ids = self.fresh(&whole)?;
            match ids.get(before.len()..) {
                Some(scored) if !scored.is_empty() => {
                    let scored = scored.to_vec();
                    (before, scored, false)
                }
                // A merge across the boundary left no token over.
                _ => match ids.split_last() {
                    Some((last, rest)) if !rest.is_empty() => (rest.to_vec(), vec![*last], true),
                    _ => (before, Vec::new(), false),
                },
            }
        };
        if scored.is_empty() {
            return Err(EncodeError::Empty { continuation: continuation.to_owned() });
        }
        if scored.len() > self.max_length {
            let start = continuation.chars().take(40).collect();
            return Err(EncodeError::TooLong { start, tokens: scored.len(), length: self.max_length });
        }
        let mut tokens = before;
        let scored_tokens = scored.len();
        tokens.extend(scored);
        // The last token is only predicted, so one more than the context fits.
        let truncated = tokens.len().saturating_sub(self.max_length + 1);
        tokens.drain(..truncated);
        let scored = tokens.len() - scored_tokens..tokens.len();
        Ok(Encoded { sequences: vec![Sequence { tokens, scored }], truncated, merged })
    }

    /// A whole text, in windows that fit the context.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn whole(&mut self, text: &str, windows: Windows) -> Result<Encoded, EncodeError> {
        let sequences = match windows {
            Windows::Rolling => {
                let (prefix, _) =
                    self.prefix.clone().ok_or(EncodeError::NoPrefix { what: "a whole text" })?;
                let mut ids = self.fresh(text)?;
                // Under `every` BOS stands before the text once, as the prefix; the reference's `tokenizer` rule has
                // the tokenizer's own as well, and predicts it.
                if self.bos == BosPolicy::Every && ids.first() == Some(&prefix) {
                    ids.remove(0);
                }
                windows::rolling(&ids, prefix, self.max_length)?
            }
            Windows::Document => {
                let ids = self.tokenizer.encode(text, false)?;
                let prefix = self.prefix.as_ref().map(|(prefix, _)| *prefix);
                let bos = prefix.filter(|_| self.bos != BosPolicy::None);
                windows::document(&ids, bos, self.max_length)?
            }
        };
        if sequences.iter().all(|sequence| sequence.scored.is_empty()) {
            let continuation = text.chars().take(40).collect();
            return Err(EncodeError::Empty { continuation });
        }
        Ok(Encoded { sequences, truncated: 0, merged: false })
    }
}
