//! What is measured: the registry of metrics as `[[evaluate]]` blocks name them.

use std::ops::Range;
use std::path::PathBuf;

use super::source::{Block, Fault};
use super::wire;
use crate::data::generated::Generated;
use crate::data::{BosPolicy, CorpusRef, corpus};
use crate::evaluate::against;
use crate::evaluate::items::Form;
use crate::evaluate::metrics::perplexity::{self, Perplexity};
use crate::evaluate::metrics::speed::{self, SpeedOf};
use crate::evaluate::requests::shots;
use crate::evaluate::tasks::{self, Protocol, Task};
use crate::evaluate::{questions, scoring};
use crate::layerwise::pair::Transform;
use crate::layerwise::{self, LayerError, Mode, Separate};
use crate::names;

/// The names of all metrics, in alphabetical order.
pub const METRICS: &[&str] = &["layer-error", "perplexity", "speed"];

/// An `[[evaluate]]` block.
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluation {
    /// `metric = "layer-error"`
    LayerError(LayerError),
    /// `metric = "perplexity"`
    Perplexity(Perplexity),
    /// `metric = "speed"`
    Speed(SpeedOf),
    /// `task = "…"`
    Task(TaskEvaluation),
}

/// An `[[evaluate]]` block with a task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskEvaluation {
    /// The task's name in the registry.
    pub name: &'static str,
    /// What decides its numbers besides the task and the model.
    pub protocol: Protocol,
    /// The file of its items, where the block names one.
    pub items: Option<PathBuf>,
    /// The file of its examples, for few shots.
    pub examples: Option<PathBuf>,
}

/// A measurement that an evaluation makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Full metric id.
    pub metric: String,
    /// Version of the metric's code.
    pub version: u32,
}

impl TaskEvaluation {
    /// The task.
    pub fn task(&self) -> &'static dyn Task {
        tasks::find(self.name).expect("a task of the registry")
    }

    /// The full metric id of one of its metrics.
    pub fn metric_id(&self, metric: scoring::Metric) -> String {
        self.protocol.id(self.task(), metric)
    }
}

/// Tokens of a task's longest item, for estimates: items are not read when a plan is made.
const LONGEST_ITEM: usize = 512;

impl Evaluation {
    /// Every measurement that it makes of a recipe, in order.
    pub fn planned(&self) -> Vec<Planned> {
        self.planned_of(false)
    }

    /// Every measurement that it makes of the original, or of a recipe, in order. Where recipes are compared with the
    /// original, the original has the noise floor in place of a comparison with itself.
    pub fn planned_of(&self, original: bool) -> Vec<Planned> {
        match self {
            Evaluation::LayerError(block) => Transform::ALL
                .into_iter()
                .map(|transform| Planned { metric: block.id(transform), version: layerwise::VERSION })
                .collect(),
            Evaluation::Perplexity(perplexity) => {
                let mut planned = vec![Planned { metric: perplexity.id(), version: perplexity::VERSION }];
                if perplexity.against_original {
                    let compared = against::ids(&perplexity.id(), original).into_iter();
                    planned.extend(compared.map(|metric| Planned { metric, version: against::VERSION }));
                }
                planned
            }
            Evaluation::Speed(speed) => vec![Planned { metric: speed.id(), version: speed::VERSION }],
            Evaluation::Task(task) => questions::metrics(task.task())
                .into_iter()
                .map(|metric| Planned { metric: task.metric_id(metric), version: questions::VERSION })
                .collect(),
        }
    }

    /// The full ids of its metrics.
    pub fn ids(&self) -> Vec<String> {
        self.planned().into_iter().map(|planned| planned.metric).collect()
    }

    /// What it is called where one name has to do: the id of its first metric.
    pub fn id(&self) -> String {
        self.ids().swap_remove(0)
    }

    /// The metric's or the task's name, the first part of its ids.
    pub fn metric(&self) -> &'static str {
        match self {
            Evaluation::LayerError(_) => "layer-error",
            Evaluation::Perplexity(_) => "perplexity",
            Evaluation::Speed(_) => "speed",
            Evaluation::Task(task) => task.name,
        }
    }

    /// Tokens of the longest sequence it passes through a model; for a task an estimate, cut to the model's context.
    pub fn length(&self) -> usize {
        match self {
            Evaluation::LayerError(block) => block.longest(),
            Evaluation::Perplexity(perplexity) => {
                let bos = perplexity.protocol == perplexity::Protocol::Document
                    && perplexity.bos == BosPolicy::Every;
                perplexity.length + usize::from(bos)
            }
            Evaluation::Speed(speed) => speed.prefill + speed.decode,
            Evaluation::Task(task) => task.protocol.length.unwrap_or(LONGEST_ITEM),
        }
    }

    /// Tokens of the longest sequence that it passes through a model behind a prefix, which takes the place of BOS; what
    /// a task asks is cut to the room there is.
    pub fn length_behind_prefix(&self) -> usize {
        match self {
            // Originals have no prefix.
            Evaluation::LayerError(_) => 2,
            Evaluation::Perplexity(perplexity) => {
                match (perplexity.protocol, perplexity.bos) {
                    // BOS stands before the document's windows and is not counted.
                    (perplexity::Protocol::Document, _) | (_, BosPolicy::None | BosPolicy::Tokenizer) => {
                        perplexity.length
                    }
                    (perplexity::Protocol::Gptq | perplexity::Protocol::LlamaCpp, BosPolicy::Every) => {
                        perplexity.length - 1
                    }
                }
            }
            // It has no BOS, whose place a prefix could take.
            Evaluation::Speed(speed) => speed.prefill + speed.decode,
            Evaluation::Task(_) => 2,
        }
    }

    /// Whether it asks about a model and not about what a recipe makes of it, so that only originals are measured.
    pub fn only_originals(&self) -> bool {
        matches!(self, Evaluation::LayerError(_))
    }

    /// Every text that it reads: what is measured first.
    pub fn corpora(&self) -> Vec<&CorpusRef> {
        let separate = match self {
            Evaluation::LayerError(block) => block.calibration.as_ref().map(|set| &set.corpus),
            _ => None,
        };
        self.corpus().into_iter().chain(separate).collect()
    }

    /// The corpus it measures on; a task reads items.
    pub fn corpus(&self) -> Option<&CorpusRef> {
        match self {
            Evaluation::LayerError(block) => Some(&block.corpus),
            Evaluation::Perplexity(perplexity) => Some(&perplexity.corpus),
            Evaluation::Speed(_) | Evaluation::Task(_) => None,
        }
    }

    /// The most that it can pass through a model, in words, where the block says so.
    pub fn extent(&self) -> Option<String> {
        match self {
            Evaluation::LayerError(block) => Some(format!("{} tokens", block.samples * block.length)),
            Evaluation::Perplexity(perplexity) => perplexity.limit.map(|limit| match perplexity.protocol {
                perplexity::Protocol::Document => format!("{limit} documents"),
                perplexity::Protocol::Gptq | perplexity::Protocol::LlamaCpp => {
                    format!("{} tokens", limit * perplexity.length)
                }
            }),
            Evaluation::Speed(speed) => {
                Some(format!("{} tokens", (speed.rounds + 1) * (speed.prefill + speed.decode)))
            }
            Evaluation::Task(task) => Some(match task.protocol.limit {
                Some(limit) if task.task().groups().is_empty() => format!("{limit} items"),
                Some(limit) => format!("{limit} items of each part"),
                None => format!("{} items", task.task().items()),
            }),
        }
    }

    /// The same evaluation with at most `limit` windows or items.
    pub fn limited(self, limit: usize) -> Self {
        match self {
            Evaluation::LayerError(block) => {
                let samples = block.samples.min(limit);
                Evaluation::LayerError(LayerError { samples, ..block })
            }
            Evaluation::Perplexity(perplexity) => {
                let limit = Some(perplexity.limit.map_or(limit, |own| own.min(limit)));
                Evaluation::Perplexity(Perplexity { limit, ..perplexity })
            }
            Evaluation::Speed(speed) => {
                let rounds = speed.rounds.min(limit);
                Evaluation::Speed(SpeedOf { rounds, ..speed })
            }
            Evaluation::Task(task) => {
                let limit = Some(task.protocol.limit.map_or(limit, |own| own.min(limit)));
                Evaluation::Task(TaskEvaluation { protocol: Protocol { limit, ..task.protocol }, ..task })
            }
        }
    }
}

/// The page of a metric: its file's module documentation.
pub fn metric_page(name: &str) -> Option<String> {
    match name {
        "layer-error" => Some(crate::quantize::page(include_str!("../layerwise/mod.rs"))),
        "perplexity" => Some(crate::quantize::page(include_str!("../evaluate/metrics/perplexity.rs"))),
        "speed" => Some(crate::quantize::page(include_str!("../evaluate/metrics/speed.rs"))),
        _ => None,
    }
}

/// Reads an `[[evaluate]]` block.
pub(super) fn read(mut block: Block<'_>) -> Result<Evaluation, Box<Fault>> {
    if let Some((task, place)) = block.take_word("task")? {
        return read_task(&block, &task, place).map(Evaluation::Task);
    }
    let Some((metric, place)) = block.take_word("metric")? else {
        let fault = block.fault(block.span.clone(), "the key `metric` or `task` is missing");
        return Err(fault
            .note(format!("metrics: {}", METRICS.join(", ")))
            .note(format!("tasks: {}", task_names().join(", "))));
    };
    match metric.as_str() {
        "layer-error" => read_layer_error(&block).map(Evaluation::LayerError),
        "perplexity" => read_perplexity(&block).map(Evaluation::Perplexity),
        "speed" => read_speed(&block).map(Evaluation::Speed),
        _ => Err(unknown_metric(&block, &metric, place)),
    }
}

fn unknown_metric(block: &Block<'_>, metric: &str, place: Range<usize>) -> Box<Fault> {
    let near = names::hint(metric, METRICS.iter().copied());
    block
        .fault(place, format!("unknown metric `{metric}`{near}"))
        .note(format!("metrics: {}", METRICS.join(", ")))
}

/// The names of all tasks.
pub fn task_names() -> Vec<&'static str> {
    tasks::TASKS.iter().map(|task| task.name()).collect()
}

fn read_task(block: &Block<'_>, name: &str, place: Range<usize>) -> Result<TaskEvaluation, Box<Fault>> {
    let Some(task) = tasks::find(name) else {
        let names = task_names();
        let near = names::hint(name, names.iter().copied());
        let fault = block.fault(place, format!("unknown task `{name}`{near}"));
        return Err(fault.note(format!("tasks: {}", names.join(", "))));
    };
    let wire::Task { items, form, examples, shots, seed, bos, half, limit, length } = block.read()?;
    let form = match form.as_deref() {
        None => task.forms().first().map_or(Form::Hub, |(form, _)| *form),
        Some(word) => {
            let known = task.forms().iter().map(|(form, _)| *form).find(|form| form.as_str() == word);
            known.ok_or_else(|| {
                let words: Vec<&str> = task.forms().iter().map(|(form, _)| form.as_str()).collect();
                let message = format!("`form` of `{name}` must be {}, not `{word}`", words.join(" or "));
                block.fault_of_key(message)
            })?
        }
    };
    if limit == Some(0) {
        return Err(block.fault_of_key("`limit` must be at least 1; leave it out for every item".into()));
    }
    if shots > 0 && examples.is_none() {
        let message = "`shots` above 0 needs `examples`, the file of the split that examples are drawn from";
        return Err(block.fault_of_key(message.into()));
    }
    if shots > 0 && task.examples().is_none() {
        return Err(block.fault_of_key(format!("`shots`: `{name}` is measured without examples only")));
    }
    let seed = seed.unwrap_or(shots::SEED);
    let protocol = Protocol { shots, seed, bos, form, half, limit, length };
    Ok(TaskEvaluation { name: task.name(), protocol, items, examples })
}

fn read_perplexity(block: &Block<'_>) -> Result<Perplexity, Box<Fault>> {
    let wire::Perplexity { protocol, corpus, length, bos, limit, mode, against_original } = block.read()?;
    if protocol == perplexity::Protocol::LlamaCpp && length < 3 {
        let message = format!(
            "`length` must be at least 3 under llama.cpp's protocol, which scores the second half, not {length}"
        );
        return Err(block.fault_of_key(message));
    }
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
    if let CorpusRef::Task { task, .. } = &corpus.0 {
        let message = format!("the questions and answers of `{task}` are no text to measure on");
        return Err(block.fault(block.place_of("corpus"), message).note(
            "a task as a corpus is for calibration; `task` in an [[evaluate]] block asks its questions",
        ));
    }
    let corpus = known_corpus(block, corpus, &[])?;
    Ok(Perplexity { protocol, corpus, length, bos, limit, mode, against_original })
}

fn read_speed(block: &Block<'_>) -> Result<SpeedOf, Box<Fault>> {
    let wire::Speed { prefill, decode, rounds } = block.read()?;
    for (key, value) in [("prefill", prefill), ("decode", decode), ("rounds", rounds)] {
        if value < 1 {
            return Err(block.fault_of_key(format!("`{key}` must be at least 1, not {value}")));
        }
    }
    Ok(SpeedOf { prefill, decode, rounds })
}

fn read_layer_error(block: &Block<'_>) -> Result<LayerError, Box<Fault>> {
    let wire::LayerError { mode, corpus, length, samples, bos, seed, bits, alpha, calibration } =
        block.read()?;
    let samples = samples.unwrap_or(if mode == Mode::Released { 1 } else { 8 });
    let at_least = |key: &str, value: usize, least: usize| match value < least {
        true => Err(block.fault_of_key(format!("`{key}` must be at least {least}, not {value}"))),
        false => Ok(()),
    };
    at_least("length", length, 2)?;
    at_least("samples", samples, 1)?;
    if samples * length > layerwise::MOST_TOKENS {
        let message = format!(
            "`samples`: {samples} of {length} tokens are {}, and at most {} can be looked at together",
            samples * length,
            layerwise::MOST_TOKENS
        );
        return Err(block.fault_of_key(message));
    }
    if !(2..=8).contains(&bits) {
        return Err(block.fault_of_key(format!("`bits` must be 2 to 8, not {bits}")));
    }
    if !(0.0..=1.0).contains(&alpha) {
        return Err(block.fault_of_key(format!("`alpha` must be between 0 and 1, not {alpha}")));
    }
    let text = |block: &Block<'_>, corpus: wire::Corpus| {
        if let Some(generated) = corpus.0.generated() {
            let message = format!("corpus `{}` is no text: nothing is measured on it", generated.name());
            return Err(block.fault(block.place_of("corpus"), message));
        }
        known_corpus(block, corpus, &[])
    };
    let corpus = text(block, corpus)?;
    let calibration = match (mode, calibration, block.table("calibration")?) {
        (Mode::Released, Some(_), _) => {
            let message = "`calibration` is for mode = \"honest\": the released mode takes scales from what it measures";
            return Err(block.fault_of_key(message.into()));
        }
        (Mode::Honest, Some(wire::Separate { corpus, samples, length }), Some(inner)) => {
            for (key, value, least) in [("samples", samples, 1), ("length", length, 2)] {
                if value < least {
                    let message = format!("`{key}` must be at least {least}, not {value}");
                    return Err(inner.fault_of_key(message));
                }
            }
            Some(Separate { corpus: text(&inner, corpus)?, samples, length })
        }
        (Mode::Honest, ..) => {
            let message = "mode = \"honest\" needs `calibration = { corpus = … }`, from which smoothing takes its scales";
            return Err(block.fault(block.span.clone(), message));
        }
        (Mode::Released, ..) => None,
    };
    Ok(LayerError { mode, corpus, length, samples, bos, seed, bits, alpha, calibration })
}

/// The corpus under the block's key `corpus`, whose name must be registered; `generated` are known beside the texts.
pub(super) fn known_corpus(
    block: &Block<'_>,
    corpus: wire::Corpus,
    generated: &[Generated],
) -> Result<CorpusRef, Box<Fault>> {
    if let CorpusRef::Task { task, .. } = &corpus.0
        && tasks::find(task).is_none()
    {
        let near = names::hint(task, task_names());
        let fault = block.fault(block.place_of("corpus"), format!("unknown task `{task}`{near}"));
        return Err(fault.note(format!("tasks: {}", task_names().join(", "))));
    }
    let text = match &corpus.0 {
        CorpusRef::Half { whole, .. } => whole,
        other => other,
    };
    if let (CorpusRef::Half { .. }, Some(generated)) = (&corpus.0, text.generated()) {
        let message = format!("corpus `{}` is generated: it has no halves", generated.name());
        return Err(block.fault(block.place_of("corpus"), message));
    }
    if let CorpusRef::Named(name) = text
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
