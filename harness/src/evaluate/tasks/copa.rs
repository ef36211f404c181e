//! `copa`: the more plausible cause or effect (Roemmele, Bejan, Gordon, 2011; as in SuperGLUE, arXiv 1905.00537).

use super::{Draw, Examples, Source, Task};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::python::text::{lower_first, strip};
use crate::evaluate::scoring::Metric;

/// The premise without its last character, then `because` or `therefore`, continued by each choice with its first
/// letter small. A choice begins with a space of its own, so two spaces stand before it.
pub struct Copa;

impl Task for Copa {
    fn name(&self) -> &'static str {
        "copa"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "aps/super_glue", configuration: Some("copa"), split: "validation" }
    }

    fn items(&self) -> usize {
        100
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        &[(Form::Hub, &["premise", "choice1", "choice2", "question", "label"])]
    }

    fn read(&self, fields: &Fields, _form: Form) -> Result<Prompt, Fault> {
        let connector = match fields.text("question")? {
            "cause" => "because",
            "effect" => "therefore",
            other => {
                let reason = format!("`{other}` is neither `cause` nor `effect`");
                return Err(Fault::Value { field: "question".to_owned(), reason });
            }
        };
        let mut premise = strip(fields.text("premise")?).chars();
        premise.next_back();
        let choice = |(index, field)| -> Result<String, Fault> {
            let lowered = lower_first(fields.text(field)?).ok_or(Fault::Empty { index })?;
            Ok(format!(" {lowered}"))
        };
        Ok(Prompt::Choices {
            text: format!("{} {connector}", premise.as_str()),
            choices: vec![choice((0, "choice1"))?, choice((1, "choice2"))?],
            gold: fields.place("label", 2)?,
        })
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "train", draw: Draw::Random, without_item: true })
    }
}
