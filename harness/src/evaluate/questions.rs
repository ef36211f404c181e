//! A task's items, from texts to judgements: requests, tokens, answers, metrics, and a row per request that keeps it all.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::evaluate::items::{Item, Items, Prompt};
use crate::evaluate::requests::encode::{Encode, EncodeError, Encoded, Encoder};
use crate::evaluate::requests::shots::{ShotsError, few_shot};
use crate::evaluate::requests::{Request, sharing};
use crate::evaluate::scoring::{Answer, Judgement, Metric, ScoringError, aggregate};
use crate::evaluate::tasks::{Protocol, Task};
use crate::evaluate::windows::Sequence;
use crate::evaluate::{EvaluateError, LanguageModel, Measured, Progress};
use crate::record::items::ItemRow;

/// Raised whenever a number could move.
pub const VERSION: u32 = 1;

/// Items as a model of one tokenizer is asked them.
pub struct Questions {
    items: Vec<Item>,
    requests: Vec<Vec<Request>>,
    encoded: Vec<Vec<Encoded>>,
    /// Hash and form of the items, truncation, what sharing saves.
    pub detail: Map<String, Value>,
}

/// Why items cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// Examples.
    #[error(transparent)]
    Shots(#[from] ShotsError),
    /// An item that has no tokens to score.
    #[error("item {item}: {source}")]
    Encode {
        /// Its id.
        item: String,
        /// Why.
        source: EncodeError,
    },
    /// A tokenizer that cannot do it.
    #[error(transparent)]
    Tokenizer(#[from] EncodeError),
}

/// What a task came to.
pub struct Answered {
    /// Each metric with its value.
    pub values: Vec<(Metric, Measured)>,
    /// One per request, in order.
    pub rows: Vec<ItemRow>,
}

/// What a task reports, `acc_bytes` beside `acc_norm`.
pub fn metrics(task: &dyn Task) -> Vec<Metric> {
    let mut metrics = task.metrics().to_vec();
    if metrics.contains(&Metric::AccNorm) && !metrics.contains(&Metric::AccBytes) {
        metrics.push(Metric::AccBytes);
    }
    metrics
}

/// Builds and encodes the requests of every item, for a model whose context has `length` tokens.
///
/// # Errors
/// See [`QuestionError`].
pub fn ask(
    task: &dyn Task,
    protocol: &Protocol,
    items: &Items,
    examples: &[Item],
    tokenizer: &dyn Encode,
    length: usize,
) -> Result<Questions, QuestionError> {
    let requests = few_shot(task, &items.items, examples, protocol.shots, protocol.seed)?;
    let mut encoder = Encoder::new(tokenizer, protocol.bos, protocol.length.unwrap_or(length).min(length))?;
    let mut encoded = Vec::with_capacity(requests.len());
    for (item, requests) in items.items.iter().zip(&requests) {
        let of_item: Result<Vec<Encoded>, EncodeError> =
            requests.iter().map(|request| encoder.encode(request, task.windows())).collect();
        encoded.push(of_item.map_err(|source| QuestionError::Encode { item: item.id.clone(), source })?);
    }
    let all = || encoded.iter().flatten();
    let sequences: Vec<Vec<Sequence>> = encoded.iter().map(|item| sequences_of(item)).collect();
    let plan = sharing::plan(sequences.iter().map(Vec::as_slice));
    let (shared, alone) = sharing::saved(&plan, &sequences.concat());
    let mut detail = Map::new();
    detail.insert("items".into(), items.items.len().into());
    detail.insert("items-hash".into(), items.hash.clone().into());
    detail.insert("form".into(), items.form.as_str().into());
    detail.insert("full".into(), items.full.into());
    detail.insert("requests".into(), all().count().into());
    detail.insert("truncated-requests".into(), all().filter(|e| e.truncated > 0).count().into());
    detail.insert("truncated-tokens".into(), all().map(|e| e.truncated).sum::<usize>().into());
    detail.insert("merged-requests".into(), all().filter(|e| e.merged).count().into());
    detail.insert("tokens-alone".into(), alone.into());
    detail.insert("tokens-shared".into(), shared.into());
    Ok(Questions { items: items.items.clone(), requests, encoded, detail })
}

impl Questions {
    /// The token ids of every request, answers included.
    pub fn token_ids(&self) -> Vec<Vec<u32>> {
        let sequences = self.encoded.iter().flatten().flat_map(|request| &request.sequences);
        sequences.map(|sequence| sequence.tokens.clone()).collect()
    }
}

fn sequences_of(encoded: &[Encoded]) -> Vec<Sequence> {
    encoded.iter().flat_map(|request| request.sequences.iter().cloned()).collect()
}

/// Asks a model.
///
/// # Errors
/// An interrupted or failing model, or log-likelihoods that are not finite.
pub fn measure(
    model: &mut dyn LanguageModel,
    task: &dyn Task,
    questions: &Questions,
    progress: &mut Progress,
) -> Result<Answered, EvaluateError> {
    let sequences: Vec<Vec<Sequence>> = questions.encoded.iter().map(|item| sequences_of(item)).collect();
    let by_item: Vec<&[Sequence]> = sequences.iter().map(Vec::as_slice).collect();
    let answers = model.answers(&by_item, progress)?;

    let mut rows = Vec::new();
    let mut judgements = Vec::with_capacity(questions.items.len());
    let mut next = 0;
    for ((item, requests), encoded) in questions.items.iter().zip(&questions.requests).zip(&questions.encoded)
    {
        let mut of_item = Vec::with_capacity(encoded.len());
        for request in encoded {
            let parts = &answers[next..next + request.sequences.len()];
            next += request.sequences.len();
            of_item.push(Answer {
                log_likelihood: parts.iter().map(|answer| answer.log_likelihood).sum(),
                greedy: parts.iter().all(|answer| answer.greedy),
                tokens: parts.iter().map(|answer| answer.tokens).sum(),
            });
        }
        let judgement = item.prompt.judge(&of_item).map_err(|error| match error {
            ScoringError::NotFinite { .. } => {
                EvaluateError::NotFinite { count: 1, total: of_item.len(), window: judgements.len() }
            }
            ScoringError::Answers { .. } => unreachable!("one answer was made per request"),
        })?;
        rows.extend(rows_of(item, requests, encoded, &of_item, &judgement));
        judgements.push(judgement);
    }

    let mut values = Vec::new();
    for metric in metrics(task) {
        let Some(score) = aggregate::score(metric, &judgements) else { continue };
        let mut detail = Map::new();
        let parts = parts(metric, &questions.items, &judgements);
        if !parts.is_empty() {
            detail.insert("parts".into(), json!(parts));
        }
        let n = score.n as u64;
        values.push((metric, Measured { value: score.value, stderr: score.stderr, n, detail }));
    }
    Ok(Answered { values, rows })
}

/// The metric of every part of a task that has parts.
fn parts(metric: Metric, items: &[Item], judgements: &[Judgement]) -> BTreeMap<String, f64> {
    let mut by_part: BTreeMap<&str, Vec<Judgement>> = BTreeMap::new();
    for (item, judgement) in items.iter().zip(judgements) {
        if let Some(part) = &item.part {
            by_part.entry(part).or_default().push(*judgement);
        }
    }
    let scored = by_part.into_iter();
    scored
        .filter_map(|(part, judged)| Some((part.to_string(), aggregate::score(metric, &judged)?.value)))
        .collect()
}

fn rows_of(
    item: &Item,
    requests: &[Request],
    encoded: &[Encoded],
    answers: &[Answer],
    judgement: &Judgement,
) -> Vec<ItemRow> {
    let lengths = item.prompt.lengths();
    let gold = match &item.prompt {
        Prompt::Choices { gold, .. } | Prompt::Contexts { gold, .. } => Some(*gold as u32),
        Prompt::Target { .. } | Prompt::Text { .. } => None,
    };
    let decisions = match judgement {
        Judgement::Choice { decisions, .. } => Some(*decisions),
        Judgement::Target { .. } | Judgement::Text { .. } => None,
    };
    let units = match judgement {
        Judgement::Text { words, bytes, .. } => Some((*words as u64, *bytes as u64)),
        _ => None,
    };
    (0..requests.len())
        .map(|i| ItemRow {
            item: item.id.clone(),
            part: item.part.clone(),
            document: item.document.clone(),
            request: i as u32,
            request_hash: requests[i].hash(),
            log_likelihood: answers[i].log_likelihood,
            greedy: answers[i].greedy,
            tokens: answers[i].tokens as u32,
            characters: lengths[i].0 as u32,
            bytes: units.map_or(lengths[i].1 as u64, |(_, bytes)| bytes) as u32,
            words: units.map(|(words, _)| words as u32),
            gold,
            chosen: decisions.map(|d| d.plain as u32),
            chosen_per_character: decisions.map(|d| d.per_char as u32),
            chosen_per_byte: decisions.map(|d| d.per_byte as u32),
            truncated: encoded[i].truncated as u32,
            merged: encoded[i].merged,
        })
        .collect()
}
