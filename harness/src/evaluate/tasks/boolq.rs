//! `boolq`: a yes or no question about a passage (arXiv 1905.10044).

use super::{Draw, Examples, Source, Task};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::scoring::Metric;

/// `{passage}\nQuestion: {question}?\nAnswer:`, continued by no and yes.
///
/// The hub's passages begin with the article's title, those of the uniform form do not.
pub struct BoolQ;

impl Task for BoolQ {
    fn name(&self) -> &'static str {
        "boolq"
    }

    fn version(&self) -> &'static str {
        "2.0"
    }

    fn source(&self) -> Source {
        Source { repository: "aps/super_glue", configuration: Some("boolq"), split: "validation" }
    }

    fn items(&self) -> usize {
        3270
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        &[(Form::Hub, &["passage", "question", "label"]), (Form::Uniform, &["passage", "query", "gold"])]
    }

    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault> {
        let passage = fields.text("passage")?;
        let (question, gold) = match form {
            Form::Uniform => (fields.text("query")?, fields.place("gold", 2)?),
            _ => (fields.text("question")?, fields.place("label", 2)?),
        };
        Ok(Prompt::Choices {
            text: format!("{passage}\nQuestion: {question}?\nAnswer:"),
            choices: vec!["no".to_owned(), "yes".to_owned()],
            gold,
        })
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "train", draw: Draw::Random, without_item: true })
    }
}
