//! `sciq`: science exam questions with a supporting paragraph (arXiv 1707.06209).

use super::{Draw, Examples, Source, Task};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::python::text::lstrip;
use crate::evaluate::scoring::Metric;

/// `{support}\nQuestion: {question}\nAnswer:`, continued by the three distractors and then the right answer, which is
/// always the last. Without support the text begins with a line break.
pub struct SciQ;

const CHOICES: [&str; 4] = ["distractor1", "distractor2", "distractor3", "correct_answer"];

impl Task for SciQ {
    fn name(&self) -> &'static str {
        "sciq"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "allenai/sciq", configuration: None, split: "test" }
    }

    fn items(&self) -> usize {
        1000
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc, Metric::AccNorm]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        const FIELDS: &[&str] =
            &["question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"];
        &[(Form::Hub, FIELDS)]
    }

    fn read(&self, fields: &Fields, _form: Form) -> Result<Prompt, Fault> {
        let support = lstrip(fields.text("support")?);
        let question = fields.text("question")?;
        let choices = CHOICES.iter().map(|field| fields.text(field).map(str::to_owned));
        Ok(Prompt::Choices {
            text: format!("{support}\nQuestion: {question}\nAnswer:"),
            choices: choices.collect::<Result<_, _>>()?,
            gold: 3,
        })
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "train", draw: Draw::Random, without_item: false })
    }
}
