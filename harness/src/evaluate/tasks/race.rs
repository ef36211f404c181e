//! `race`: the last question about an article of an English exam, after the others with their answers (arXiv 1704.04683).

use serde_json::Value;

use super::{Draw, Examples, Source, Task};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::python::literal;
use crate::evaluate::scoring::Metric;

/// `Article: {article}\n\n`, all problems but the last with their answers, and the last question, continued by each of
/// its four options.
///
/// The hub's field `problems` is a Python literal in a text; a JSON list is read as well.
pub struct Race;

impl Task for Race {
    fn name(&self) -> &'static str {
        "race"
    }

    fn version(&self) -> &'static str {
        "3.0"
    }

    fn source(&self) -> Source {
        Source { repository: "EleutherAI/race", configuration: Some("high"), split: "test" }
    }

    fn items(&self) -> usize {
        1045
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        &[(Form::Hub, &["article", "problems"])]
    }

    fn read(&self, fields: &Fields, _form: Form) -> Result<Prompt, Fault> {
        let problems = match fields.value("problems")? {
            Value::String(text) => literal::parse(text)
                .map_err(|reason| Fault::Value { field: "problems".to_owned(), reason })?,
            other => other.clone(),
        };
        let wrong = || Fault::Type { field: "problems".to_owned(), expected: "a list of problems" };
        let problems: Vec<Problem> =
            problems.as_array().ok_or_else(wrong)?.iter().map(Problem::read).collect::<Result<_, _>>()?;
        let (last, answered) = problems.split_last().ok_or_else(wrong)?;
        let mut text = format!("Article: {}\n\n", fields.text("article")?);
        for problem in answered {
            let answer = &problem.options[problem.gold];
            // A blank at the end is filled, any other question is asked. One space stays before what fills it.
            match problem.question.strip_suffix(" _  .") {
                Some(start) if start.ends_with(' ') => text += &format!("{start}{answer}\n"),
                _ => text += &format!("Question: {}\nAnswer: {answer}\n", problem.question),
            }
        }
        text += &last.question;
        Ok(Prompt::Choices { text, choices: last.options.clone(), gold: last.gold })
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "test", draw: Draw::Random, without_item: false })
    }
}

struct Problem {
    question: String,
    options: Vec<String>,
    gold: usize,
}

impl Problem {
    fn read(value: &Value) -> Result<Self, Fault> {
        let map = value
            .as_object()
            .ok_or_else(|| Fault::Type { field: "problems".to_owned(), expected: "a list of objects" })?;
        let fields = Fields::new(map);
        let mut options = fields.texts("options")?;
        // The reference asks the first four.
        if options.len() < 4 {
            let reason = format!("{} options, not 4", options.len());
            return Err(Fault::Value { field: "options".to_owned(), reason });
        }
        options.truncate(4);
        let answer = fields.text("answer")?;
        let gold = ["A", "B", "C", "D"].iter().position(|letter| *letter == answer);
        let gold = gold.ok_or_else(|| Fault::Gold { gold: format!("`{answer}`"), choices: 4 })?;
        Ok(Self { question: fields.text("question")?.to_owned(), options, gold })
    }
}
