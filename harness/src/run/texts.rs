//! The evaluation texts of a plan: read before any model is loaded, cut into windows once per tokenizer.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use models::Checkpoint;
use models::tokenizer::TokenizerError;
use serde_json::{Map, Value};

use crate::data::corpus::{self, DataOptions, Text};
use crate::data::window::{WindowError, window_start, windows};
use crate::data::{BosPolicy, CorpusRef};
use crate::evaluate::metrics::perplexity::{Perplexity, Protocol};
use crate::evaluate::windows::{Window, WindowsError, document, llama_cpp};
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
    /// In order.
    pub windows: Vec<Window>,
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
    /// Too short for its protocol.
    #[error(transparent)]
    Windows(#[from] WindowsError),
    /// Documents in which nothing is predicted.
    #[error("no document of the text has two tokens: use a longer text")]
    NoDocuments,
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
    let bos = window_start(tokenizer.bos(), tokenizer.eos());
    let encode = |text: &str| match perplexity.bos {
        BosPolicy::Tokenizer => tokenizer.encode_special(text),
        BosPolicy::Every | BosPolicy::None => tokenizer.encode(text),
    };
    let (windows, tokens) = match perplexity.protocol {
        Protocol::Gptq => {
            let ids = encode(&text.text)?;
            let windows = windows(&ids, bos, perplexity.bos, perplexity.length, perplexity.limit)?;
            let windows = windows.iter().zip(0..).map(|(tokens, unit)| Window::whole(tokens, unit));
            (windows.collect(), ids.len())
        }
        Protocol::LlamaCpp => {
            let ids = encode(&text.text)?;
            let first = match perplexity.bos {
                // Only a vocabulary that adds BOS has it put over the first token of a chunk.
                BosPolicy::Tokenizer => tokenizer.bos().filter(|bos| ids.first() == Some(bos)),
                BosPolicy::Every => Some(bos.ok_or(WindowError::NoBos)?),
                BosPolicy::None => None,
            };
            let chunks = llama_cpp(&ids, first, perplexity.length)?;
            let chunks = chunks.iter().zip(0..).take(perplexity.limit.unwrap_or(usize::MAX));
            (chunks.map(|(chunk, unit)| Window::all_fed(chunk, unit)).collect(), ids.len())
        }
        Protocol::Document => {
            let before = match perplexity.bos {
                BosPolicy::Every => Some(bos.ok_or(WindowError::NoBos)?),
                BosPolicy::Tokenizer | BosPolicy::None => None,
            };
            let (mut cut, mut tokens): (Vec<Window>, usize) = (Vec::new(), 0);
            let documents = text.documents().filter(|document| !document.trim().is_empty());
            for (unit, one) in documents.take(perplexity.limit.unwrap_or(usize::MAX)).enumerate() {
                let ids = encode(one)?;
                tokens += ids.len();
                let sequences = document(&ids, before, perplexity.length)?;
                cut.extend(sequences.iter().map(|sequence| Window::inputs_fed(sequence, unit)));
            }
            if cut.is_empty() {
                return Err(TextError::NoDocuments);
            }
            (cut, tokens)
        }
    };
    let mut hasher = blake3::Hasher::new();
    for window in &windows {
        let window: &Window = window;
        // The last token of a window that is not fed whole stands only among the targets.
        let last = window.targets.last().filter(|_| window.from + window.targets.len() == window.fed.len());
        for id in window.fed.iter().chain(last) {
            hasher.update(&id.to_le_bytes());
        }
    }
    let mut detail = Map::new();
    detail.insert("text".into(), text.label().into());
    detail.insert("text-origin".into(), text.origin.clone().into());
    detail.insert(TEXT_HASH.into(), text.hash.clone().into());
    detail.insert(TOKEN_HASH.into(), hasher.finalize().to_hex().to_string().into());
    detail.insert("stream-tokens".into(), tokens.into());
    Ok(Windows { windows, detail })
}
