//! `perplexity`: exp of the mean negative log-likelihood per token, under a named protocol.

use serde::{Deserialize, Serialize};

use crate::data::{BosPolicy, CorpusRef};

/// An `[[evaluate]]` block with `metric = "perplexity"`.
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    /// How text becomes windows and windows a number.
    pub protocol: Protocol,
    /// The text.
    pub corpus: CorpusRef,
    /// Tokens per window, BOS included where the policy adds one.
    pub length: usize,
    /// Where BOS stands.
    pub bos: BosPolicy,
    /// At most this many windows.
    pub limit: Option<usize>,
}

/// Perplexity protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Disjoint windows of one stream, mean over windows of the mean loss (GPTQ, SmoothQuant, QuaRot, …).
    Gptq,
}

/// Raised whenever a number could move.
pub const VERSION: u32 = 1;

impl Perplexity {
    /// The full metric id, e.g. `perplexity/gptq/wikitext2-test/2048/bos=tokenizer/windows=20`.
    pub fn id(&self) -> String {
        let protocol = match self.protocol {
            Protocol::Gptq => "gptq",
        };
        let limit = self.limit.map(|n| format!("/windows={n}")).unwrap_or_default();
        format!("perplexity/{protocol}/{}/{}/bos={}{limit}", self.corpus.label(), self.length, self.bos.as_str())
    }
}
