//! What is measured: the registry of metrics as `[[evaluate]]` blocks name them.

use std::ops::Range;

use super::source::{Block, Fault};
use super::wire;
use crate::data::generated::Generated;
use crate::data::{BosPolicy, CorpusRef, corpus};
use crate::evaluate::metrics::perplexity::{self, Perplexity};
use crate::names;

/// The names of all metrics, in alphabetical order.
pub const METRICS: &[&str] = &["perplexity"];

/// An `[[evaluate]]` block.
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluation {
    /// `metric = "perplexity"`
    Perplexity(Perplexity),
}

impl Evaluation {
    /// The full metric id: metric, protocol and all that makes two values comparable.
    pub fn id(&self) -> String {
        match self {
            Evaluation::Perplexity(perplexity) => perplexity.id(),
        }
    }

    /// The metric's name, the first part of its id.
    pub fn metric(&self) -> &'static str {
        match self {
            Evaluation::Perplexity(_) => "perplexity",
        }
    }

    /// Version of the metric's code.
    pub fn version(&self) -> u32 {
        match self {
            Evaluation::Perplexity(_) => perplexity::VERSION,
        }
    }

    /// Tokens of the longest sequence it passes through a model.
    pub fn length(&self) -> usize {
        match self {
            Evaluation::Perplexity(perplexity) => perplexity.length,
        }
    }

    /// Tokens of the longest sequence that it passes through a model behind a prefix, which takes the place of BOS.
    pub fn length_behind_prefix(&self) -> usize {
        match self {
            Evaluation::Perplexity(perplexity) => {
                perplexity.length - usize::from(perplexity.bos == BosPolicy::Every)
            }
        }
    }

    /// The text it reads.
    pub fn corpus(&self) -> &CorpusRef {
        match self {
            Evaluation::Perplexity(perplexity) => &perplexity.corpus,
        }
    }

    /// The most tokens that it can pass through a model, where the block says so.
    pub fn most_tokens(&self) -> Option<usize> {
        match self {
            Evaluation::Perplexity(perplexity) => perplexity.limit.map(|limit| limit * perplexity.length),
        }
    }

    /// The same evaluation with at most `limit` windows.
    pub fn limited(self, limit: usize) -> Self {
        match self {
            Evaluation::Perplexity(perplexity) => {
                let limit = Some(perplexity.limit.map_or(limit, |own| own.min(limit)));
                Evaluation::Perplexity(Perplexity { limit, ..perplexity })
            }
        }
    }
}

/// The page of a metric: its file's module documentation.
pub fn metric_page(name: &str) -> Option<String> {
    match name {
        "perplexity" => Some(crate::quantize::page(include_str!("../evaluate/metrics/perplexity.rs"))),
        _ => None,
    }
}

/// Reads an `[[evaluate]]` block.
pub(super) fn read(mut block: Block<'_>) -> Result<Evaluation, Box<Fault>> {
    if let Some((task, place)) = block.take_word("task")? {
        let fault = block.fault(place, format!("unknown task `{task}`: this version has no tasks yet"));
        return Err(fault.note(format!("metrics: {}", METRICS.join(", "))));
    }
    let Some((metric, place)) = block.take_word("metric")? else {
        let fault = block.fault(block.span.clone(), "the key `metric` is missing");
        return Err(fault.note(format!("metrics: {}", METRICS.join(", "))));
    };
    match metric.as_str() {
        "perplexity" => read_perplexity(&block).map(Evaluation::Perplexity),
        _ => Err(unknown_metric(&block, &metric, place)),
    }
}

fn unknown_metric(block: &Block<'_>, metric: &str, place: Range<usize>) -> Box<Fault> {
    let near = names::hint(metric, METRICS.iter().copied());
    block
        .fault(place, format!("unknown metric `{metric}`{near}"))
        .note(format!("metrics: {}", METRICS.join(", ")))
}

fn read_perplexity(block: &Block<'_>) -> Result<Perplexity, Box<Fault>> {
    let wire::Perplexity { protocol, corpus, length, bos, limit } = block.read()?;
    if length < 2 {
        let message =
            format!("`length` must be at least 2, one token to see and one to predict, not {length}");
        return Err(block.fault_of_key(message));
    }
    if limit == Some(0) {
        return Err(block.fault_of_key("`limit` must be at least 1; leave it out for every window".into()));
    }
    if let Some(generated) = corpus.0.generated() {
        let message = format!("corpus `{}` is no text: nothing is measured on it", generated.name());
        return Err(block
            .fault(block.place_of("corpus"), message)
            .note("generated corpora are for calibration"));
    }
    let corpus = known_corpus(block, corpus, &[])?;
    Ok(Perplexity { protocol, corpus, length, bos, limit })
}

/// The corpus under the block's key `corpus`, whose name must be registered; `generated` are known beside the texts.
pub(super) fn known_corpus(
    block: &Block<'_>,
    corpus: wire::Corpus,
    generated: &[Generated],
) -> Result<CorpusRef, Box<Fault>> {
    if let CorpusRef::Named(name) = &corpus.0
        && corpus::find(name).is_err()
    {
        let mut known = corpus::list();
        known.extend(generated.iter().map(|generated| generated.name().to_string()));
        let near = names::hint(name, known.iter().map(String::as_str));
        let fault = block.fault(block.place_of("corpus"), format!("unknown corpus `{name}`{near}"));
        return Err(fault.note(format!("corpora: {}, or {{ path = \"…\" }}", known.join(", "))));
    }
    Ok(corpus.0)
}
