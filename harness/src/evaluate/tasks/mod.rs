//! The registry of tasks: one file and one line each. A task's name, version, prompt and metrics are those of
//! lm-evaluation-harness 0.4.13, except where its page says that it is another protocol.
//!
//! A task only says how an item reads. Items come from [`super::items`]; few shots, tokens and shared work stand in
//! [`super::requests`], decisions and metrics in [`super::scoring`]. All of it is pure: no model, no device.

pub mod arc_challenge;
pub mod arc_easy;
pub mod boolq;
pub mod copa;
pub mod hellaswag;
pub mod lambada_openai;
pub mod lambada_standard;
pub mod mmlu;
pub mod openbookqa;
pub mod piqa;
pub mod race;
pub mod sciq;
pub mod story_ending;
pub mod wikitext;
pub mod wikitext_tokens;
pub mod winogrande;

use serde_json::{Map, Value};

use crate::data::BosPolicy;
use crate::data::half::Half;
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::scoring::Metric;

/// The version whose requests and metrics the tasks equal.
pub const REFERENCE: &str = "lm-eval-0.4.13";

/// Between a text and its continuation, in every task of the registry (`target_delimiter`).
pub const TARGET_DELIMITER: &str = " ";

/// Between examples (`fewshot_delimiter`).
pub const EXAMPLE_DELIMITER: &str = "\n\n";

/// How items become questions, and what is measured.
pub trait Task: Sync {
    /// The reference's name.
    fn name(&self) -> &'static str;

    /// The version in the reference's task file.
    fn version(&self) -> &'static str;

    /// What it equals, the second part of its metric ids.
    fn protocol(&self) -> &'static str {
        REFERENCE
    }

    /// Where its items come from.
    fn source(&self) -> Source;

    /// How many items it has in full.
    fn items(&self) -> usize;

    /// What the reference reports, in its order.
    fn metrics(&self) -> &'static [Metric];

    /// The forms of items that it reads and the fields each needs, in the order in which they are tried.
    fn forms(&self) -> &'static [(Form, &'static [&'static str])];

    /// An item's question.
    ///
    /// # Errors
    /// Fields that are missing or cannot be meant.
    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault>;

    /// Where examples come from and how they are drawn; `None` where the reference allows none.
    fn examples(&self) -> Option<Examples>;

    /// The part an item belongs to, which is a task of its own in the reference: MMLU's subject.
    ///
    /// # Errors
    /// A part that the task does not have.
    fn part(&self, _fields: &Fields) -> Result<Option<String>, Fault> {
        Ok(None)
    }

    /// What stands before the examples of a part.
    fn description(&self, _part: Option<&str>) -> String {
        String::new()
    }

    /// Groups of parts with an average of their own, the whole task last; empty for a task without parts. Names are the
    /// reference's.
    fn groups(&self) -> Vec<Group> {
        Vec::new()
    }

    /// The items of a task that ships with the program, in one of its forms.
    fn builtin(&self) -> Option<Vec<Map<String, Value>>> {
        None
    }

    /// How a text is cut into windows, for tasks that score whole texts.
    fn windows(&self) -> Windows {
        Windows::Rolling
    }
}

/// A data set on the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// `owner/name`
    pub repository: &'static str,
    /// The configuration, where the data set has several.
    pub configuration: Option<&'static str>,
    /// The split that is evaluated.
    pub split: &'static str,
}

/// Where the examples of few shots come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Examples {
    /// The split on the hub.
    pub split: &'static str,
    /// How they are drawn.
    pub draw: Draw,
    /// Whether the item itself is taken out of what was drawn. The reference does so where it names neither the split
    /// of the examples nor a test split, and only there; elsewhere an item can be its own example.
    pub without_item: bool,
}

/// How examples are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// `random.Random(seed).sample`, with one generator for all items of a task in their order.
    Random,
    /// The first of the split.
    First,
}

/// Parts with an average of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The reference's name, e.g. `mmlu_stem`.
    pub name: &'static str,
    /// The reference's version.
    pub version: &'static str,
    /// Its parts, in the reference's order.
    pub parts: Vec<&'static str>,
}

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// [`crate::evaluate::windows::rolling`]
    Rolling,
    /// [`crate::evaluate::windows::document`]
    Document,
}

/// What besides the task decides a metric's number, without the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Examples before each item.
    pub shots: usize,
    /// Of the generator that draws them; 1234 is the reference's default.
    pub seed: u64,
    /// Where BOS stands.
    pub bos: BosPolicy,
    /// How the items are written.
    pub form: Form,
    /// One half of the items; all of them where there is none.
    pub half: Option<Half>,
    /// The first so many items of each part.
    pub limit: Option<usize>,
    /// The most inputs of a window, for tasks that score whole texts, whose number it moves.
    pub length: Option<usize>,
}

impl Protocol {
    /// The full metric id, e.g. `piqa/lm-eval-0.4.13/v1.0/acc_norm/shots=0/bos=tokenizer/items=hub`.
    pub fn id(&self, task: &dyn Task, metric: Metric) -> String {
        let mut id = format!(
            "{}/{}/v{}/{}/shots={}",
            task.name(),
            task.protocol(),
            task.version(),
            metric.name(),
            self.shots
        );
        if self.shots > 0 && task.examples().is_some_and(|examples| examples.draw == Draw::Random) {
            id += &format!("/seed={}", self.seed);
        }
        id += &format!("/bos={}", self.bos.as_str());
        if let Some(length) = self.length {
            id += &format!("/length={length}");
        }
        id += &format!("/items={}", self.form.as_str());
        if let Some(half) = self.half {
            id += &format!("/half={}", half.as_str());
        }
        if let Some(limit) = self.limit {
            id += &format!("/limit={limit}");
        }
        id
    }
}

/// All tasks, in alphabetical order of their names.
pub const TASKS: &[&dyn Task] = &[
    &arc_challenge::ArcChallenge,
    &arc_easy::ArcEasy,
    &boolq::BoolQ,
    &copa::Copa,
    &hellaswag::HellaSwag,
    &lambada_openai::LambadaOpenai,
    &lambada_standard::LambadaStandard,
    &mmlu::Mmlu,
    &openbookqa::OpenBookQa,
    &piqa::Piqa,
    &race::Race,
    &sciq::SciQ,
    &story_ending::StoryEnding,
    &wikitext::WikiText,
    &wikitext_tokens::WikiTextTokens,
    &winogrande::WinoGrande,
];

/// The task of this name.
pub fn find(name: &str) -> Option<&'static dyn Task> {
    TASKS.iter().copied().find(|task| task.name() == name)
}

/// The uniform form's fields, and the question with its choices and right answer.
pub(crate) const UNIFORM: (Form, &[&str]) = (Form::Uniform, &["query", "choices", "gold"]);

/// `(query, choices, gold)` of an item in the uniform form.
pub(crate) fn uniform<'a>(fields: &Fields<'a>) -> Result<(&'a str, Vec<String>, usize), Fault> {
    let choices = fields.texts("choices")?;
    let gold = fields.place("gold", choices.len())?;
    Ok((fields.text("query")?, choices, gold))
}

/// A place in the choices of a `{text, label}` object, as ARC and OpenBookQA have them.
pub(crate) fn lettered(fields: &Fields, key: &str) -> Result<(Vec<String>, usize), Fault> {
    let choices = fields.inner("choices")?;
    let (texts, labels) = (choices.texts("text")?, choices.texts("label")?);
    if texts.len() != labels.len() {
        let reason = format!("{} texts and {} labels", texts.len(), labels.len());
        return Err(Fault::Value { field: "choices".to_owned(), reason });
    }
    let place = labels.iter().position(|label| label == key);
    let gold = place.ok_or_else(|| Fault::Gold { gold: format!("`{key}`"), choices: texts.len() })?;
    Ok((texts, gold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_registered_alphabetically_and_found_by_name() {
        assert!(TASKS.windows(2).all(|pair| pair[0].name() < pair[1].name()));
        assert!(
            TASKS.iter().all(|task| find(task.name()).is_some_and(|found| found.items() == task.items()))
        );
        assert!(find("piqa2").is_none());
    }

    #[test]
    fn what_moves_a_number_is_in_its_id() {
        let zero = Protocol {
            shots: 0,
            seed: 1234,
            bos: BosPolicy::Tokenizer,
            form: Form::Hub,
            half: None,
            limit: None,
            length: None,
        };
        let piqa = find("piqa").unwrap();
        assert_eq!(
            zero.id(piqa, Metric::AccNorm),
            "piqa/lm-eval-0.4.13/v1.0/acc_norm/shots=0/bos=tokenizer/items=hub"
        );
        let other = Protocol { shots: 2, seed: 7, limit: Some(9), form: Form::Uniform, ..zero };
        assert_eq!(
            other.id(piqa, Metric::Acc),
            "piqa/lm-eval-0.4.13/v1.0/acc/shots=2/seed=7/bos=tokenizer/items=uniform/limit=9"
        );
        let half = Protocol { half: Some(Half::Second), ..other };
        assert!(half.id(piqa, Metric::Acc).ends_with("/items=uniform/half=second/limit=9"));
        // The first examples of a split need no seed.
        assert!(!other.id(find("mmlu").unwrap(), Metric::Acc).contains("seed"));
        let windows = Protocol { length: Some(2048), ..zero };
        assert!(
            windows
                .id(find("wikitext").unwrap(), Metric::WordPerplexity)
                .ends_with("/shots=0/bos=tokenizer/length=2048/items=hub")
        );
    }
}
