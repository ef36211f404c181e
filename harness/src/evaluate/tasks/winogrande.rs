//! `winogrande`: what a blank in a sentence stands for (arXiv 1907.10641), by partial evaluation (arXiv 1806.02847).

use super::{Draw, Examples, Source, Task, UNIFORM, uniform};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::python::text::strip;
use crate::evaluate::scoring::Metric;

/// The sentence up to its blank with each option put in; only what follows the blank is scored, and it is the same for
/// both. What follows is stripped and then put after a space, so `_'s` is scored as ` 's`.
pub struct WinoGrande;

impl Task for WinoGrande {
    fn name(&self) -> &'static str {
        "winogrande"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "allenai/winogrande", configuration: Some("winogrande_xl"), split: "validation" }
    }

    fn items(&self) -> usize {
        1267
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        &[(Form::Hub, &["sentence", "option1", "option2", "answer"]), UNIFORM]
    }

    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault> {
        let (field, sentence, options, gold) = match form {
            Form::Uniform => {
                let (query, choices, gold) = uniform(fields)?;
                ("query", query, choices, gold)
            }
            _ => {
                let options = vec![fields.text("option1")?.to_owned(), fields.text("option2")?.to_owned()];
                let gold = match fields.text("answer")? {
                    "1" => 0,
                    "2" => 1,
                    other => return Err(Fault::Gold { gold: format!("`{other}`"), choices: 2 }),
                };
                ("sentence", fields.text("sentence")?, options, gold)
            }
        };
        let (before, after) = sentence.split_once('_').ok_or_else(|| Fault::Value {
            field: field.to_owned(),
            reason: "it has no blank `_`".to_owned(),
        })?;
        Ok(Prompt::Contexts {
            texts: options.iter().map(|option| format!("{before}{option}")).collect(),
            target: strip(after).to_owned(),
            gold,
        })
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "train", draw: Draw::Random, without_item: true })
    }
}
