//! `arc_easy`: science questions for pupils, the easier part (arXiv 1803.05457).

use super::{Draw, Examples, Source, Task, UNIFORM, lettered, uniform};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::scoring::Metric;

/// `Question: {question}\nAnswer:`, continued by each of 3 to 5 choices.
pub struct ArcEasy;

/// The question of an item of either part.
pub(super) fn read(fields: &Fields, form: Form) -> Result<Prompt, Fault> {
    let (question, choices, gold) = match form {
        Form::Uniform => uniform(fields)?,
        _ => {
            let (choices, gold) = lettered(fields, fields.text("answerKey")?)?;
            (fields.text("question")?, choices, gold)
        }
    };
    Ok(Prompt::Choices { text: format!("Question: {question}\nAnswer:"), choices, gold })
}

pub(super) const FORMS: &[(Form, &[&str])] = &[(Form::Hub, &["question", "choices", "answerKey"]), UNIFORM];

impl Task for ArcEasy {
    fn name(&self) -> &'static str {
        "arc_easy"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "allenai/ai2_arc", configuration: Some("ARC-Easy"), split: "test" }
    }

    fn items(&self) -> usize {
        2376
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc, Metric::AccNorm]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        FORMS
    }

    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault> {
        read(fields, form)
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "train", draw: Draw::Random, without_item: false })
    }
}
