//! The evaluation texts of a plan: read before any model is loaded, cut into windows once per tokenizer.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use models::Checkpoint;
use models::tokenizer::TokenizerError;
use serde_json::{Map, Value};

use crate::data::corpus::{self, DataOptions, Text};
use crate::data::window::{WindowError, window_start, windows};
use crate::data::{BosPolicy, CorpusRef};
use crate::evaluate::metrics::perplexity::Perplexity;
use crate::plan::Plan;
use crate::run::RunError;

/// Keys of a measurement's detail.
pub(super) const TEXT_HASH: &str = "text-hash";
const TOKEN_HASH: &str = "token-hash";

/// Texts by label, and windows by tokenizer and metric.
pub struct Texts {
    texts: BTreeMap<String, Text>,
    windows: BTreeMap<(String, String), Windows>,
}

/// Windows of token ids, and what they were cut from.
#[derive(Clone)]
pub struct Windows {
    /// Of one length.
    pub windows: Vec<Vec<u32>>,
    /// Origin and hash of the text, hash of the token ids.
    pub detail: Map<String, Value>,
}

/// Why a text has no windows.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Too short, or no BOS.
    #[error(transparent)]
    Window(#[from] WindowError),
}

impl Texts {
    /// Reads every text that the plan's evaluations name.
    pub fn load(plan: &Plan, options: &DataOptions) -> Result<Self, RunError> {
        let mut texts = BTreeMap::new();
        for evaluation in plan.cells.iter().flat_map(|cell| &cell.evaluations) {
            for corpus in evaluation.corpora() {
                if let Entry::Vacant(vacant) = texts.entry(format!("{corpus:?}")) {
                    let text = corpus::load(corpus, options)
                        .map_err(|source| RunError::Corpus { metric: evaluation.id(), source })?;
                    vacant.insert(text);
                }
            }
        }
        Ok(Self { texts, windows: BTreeMap::new() })
    }

    /// The text of a corpus that an evaluation of the plan names.
    pub fn text(&self, corpus: &CorpusRef) -> &Text {
        &self.texts[&format!("{corpus:?}")]
    }

    /// The windows of an evaluation under a checkpoint's tokenizer.
    pub fn windows(
        &mut self,
        perplexity: &Perplexity,
        checkpoint: &Checkpoint,
    ) -> Result<Windows, TextError> {
        let key = (checkpoint.tokenizer().hash().to_string(), perplexity.id());
        if let Some(known) = self.windows.get(&key) {
            return Ok(known.clone());
        }
        let text = &self.texts[&format!("{:?}", perplexity.corpus)];
        let cut = cut(text, perplexity, checkpoint)?;
        self.windows.insert(key, cut.clone());
        Ok(cut)
    }

    /// blake3 of an evaluation's text.
    pub fn hash(&self, perplexity: &Perplexity) -> &str {
        &self.texts[&format!("{:?}", perplexity.corpus)].hash
    }

    /// The hash of the text that a measurement was made on, where its windows are not those of this evaluation.
    pub fn other(
        &mut self,
        perplexity: &Perplexity,
        checkpoint: &Checkpoint,
        measured: &Map<String, Value>,
    ) -> Option<String> {
        let stored = measured.get(TEXT_HASH)?.as_str()?.to_string();
        if stored == self.hash(perplexity) {
            return None;
        }
        // Texts may differ behind the last window. To find out takes encoding, hence only now.
        let same = |now: Windows| now.detail.get(TOKEN_HASH) == measured.get(TOKEN_HASH);
        (!self.windows(perplexity, checkpoint).is_ok_and(same)).then_some(stored)
    }
}

fn cut(text: &Text, perplexity: &Perplexity, checkpoint: &Checkpoint) -> Result<Windows, TextError> {
    let tokenizer = checkpoint.tokenizer();
    let ids = match perplexity.bos {
        BosPolicy::Tokenizer => tokenizer.encode_special(&text.text)?,
        BosPolicy::Every | BosPolicy::None => tokenizer.encode(&text.text)?,
    };
    let bos = window_start(tokenizer.bos(), tokenizer.eos());
    let windows = windows(&ids, bos, perplexity.bos, perplexity.length, perplexity.limit)?;
    let mut hasher = blake3::Hasher::new();
    for id in windows.iter().flatten() {
        hasher.update(&id.to_le_bytes());
    }
    let mut detail = Map::new();
    detail.insert("text".into(), text.label().into());
    detail.insert("text-origin".into(), text.origin.clone().into());
    detail.insert(TEXT_HASH.into(), text.hash.clone().into());
    detail.insert(TOKEN_HASH.into(), hasher.finalize().to_hex().to_string().into());
    detail.insert("stream-tokens".into(), ids.len().into());
    Ok(Windows { windows, detail })
}
