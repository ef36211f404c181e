//! `wikitext_tokens`: perplexity per token of WikiText-2's test articles, as arXiv 2405.14428 reports it.

use super::{Examples, Source, Task, Windows, wikitext};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::scoring::Metric;

/// Each article, detokenized as in [`wikitext::WikiText`] and encoded without special tokens, scored by rolling windows
/// of 2000 inputs in which the article's first token is not predicted. The paper puts BOS before every window of a model
/// without a fitted prefix (`bos = "every"`) and does not count it.
///
/// Lower than the perplexity of 2048-token windows over one stream: 5.27 against 5.47 for Llama-2-7B.
pub struct WikiTextTokens;

/// The paper's window.
pub const LENGTH: usize = 2000;

impl Task for WikiTextTokens {
    fn name(&self) -> &'static str {
        "wikitext_tokens"
    }

    fn version(&self) -> &'static str {
        "1"
    }

    fn protocol(&self) -> &'static str {
        "arxiv-2405.14428"
    }

    fn source(&self) -> Source {
        wikitext::SOURCE
    }

    fn items(&self) -> usize {
        wikitext::ITEMS
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::TokenPerplexity]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        wikitext::FORMS
    }

    fn read(&self, fields: &Fields, _form: Form) -> Result<Prompt, Fault> {
        wikitext::read(fields)
    }

    fn examples(&self) -> Option<Examples> {
        None
    }

    fn windows(&self) -> Windows {
        Windows::Document
    }
}
