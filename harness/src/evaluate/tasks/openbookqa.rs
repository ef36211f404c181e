//! `openbookqa`: elementary science, asked by completion (arXiv 1809.02789).

use super::{Draw, Examples, Source, Task, UNIFORM, lettered, uniform};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::python::text::lstrip;
use crate::evaluate::scoring::Metric;

/// The stem as it is, with nothing before or after it, continued by each of four choices.
pub struct OpenBookQa;

impl Task for OpenBookQa {
    fn name(&self) -> &'static str {
        "openbookqa"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "allenai/openbookqa", configuration: Some("main"), split: "test" }
    }

    fn items(&self) -> usize {
        500
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc, Metric::AccNorm]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        &[(Form::Hub, &["question_stem", "choices", "answerKey"]), UNIFORM]
    }

    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault> {
        let (text, choices, gold) = match form {
            Form::Uniform => uniform(fields)?,
            _ => {
                let (choices, gold) = lettered(fields, lstrip(fields.text("answerKey")?))?;
                (fields.text("question_stem")?, choices, gold)
            }
        };
        Ok(Prompt::Choices { text: text.to_owned(), choices, gold })
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "train", draw: Draw::Random, without_item: false })
    }
}
