//! `piqa`: which of two ways reaches a goal in the physical world (arXiv 1911.11641).

use super::{Draw, Examples, Source, Task, UNIFORM, uniform};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::scoring::Metric;

/// `Question: {goal}\nAnswer:`, continued by each solution.
pub struct Piqa;

impl Task for Piqa {
    fn name(&self) -> &'static str {
        "piqa"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "baber/piqa", configuration: None, split: "validation" }
    }

    fn items(&self) -> usize {
        1838
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc, Metric::AccNorm]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        &[(Form::Hub, &["goal", "sol1", "sol2", "label"]), UNIFORM]
    }

    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault> {
        let (goal, choices, gold) = match form {
            Form::Uniform => uniform(fields)?,
            _ => {
                let choices = vec![fields.text("sol1")?.to_owned(), fields.text("sol2")?.to_owned()];
                (fields.text("goal")?, choices, fields.place("label", 2)?)
            }
        };
        Ok(Prompt::Choices { text: format!("Question: {goal}\nAnswer:"), choices, gold })
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "train", draw: Draw::Random, without_item: true })
    }
}
