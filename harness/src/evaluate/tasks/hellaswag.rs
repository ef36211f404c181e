//! `hellaswag`: how a description of an everyday act goes on (arXiv 1905.07830).

use super::{Draw, Examples, Source, Task, UNIFORM, uniform};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::python::text::{capitalize, strip};
use crate::evaluate::scoring::Metric;

/// `{activity_label}: {ctx_a} {ctx_b capitalized}`, cleaned, continued by each of four cleaned endings.
///
/// In the uniform form `query` and `choices` are already cleaned and used as they are; their second sentence is not
/// capitalized, unlike the reference's.
pub struct HellaSwag;

impl Task for HellaSwag {
    fn name(&self) -> &'static str {
        "hellaswag"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "Rowan/hellaswag", configuration: None, split: "validation" }
    }

    fn items(&self) -> usize {
        10042
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc, Metric::AccNorm]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        &[(Form::Hub, &["activity_label", "ctx_a", "ctx_b", "endings", "label"]), UNIFORM]
    }

    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault> {
        if form == Form::Uniform {
            let (query, choices, gold) = uniform(fields)?;
            return Ok(Prompt::Choices { text: query.to_owned(), choices, gold });
        }
        let second = capitalize(fields.text("ctx_b")?);
        let query = format!("{}: {} {second}", fields.text("activity_label")?, fields.text("ctx_a")?);
        let endings = fields.texts("endings")?;
        Ok(Prompt::Choices {
            text: clean(&query),
            gold: fields.place("label", endings.len())?,
            choices: endings.iter().map(|ending| clean(ending)).collect(),
        })
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "train", draw: Draw::Random, without_item: true })
    }
}

/// Takes out the marks in brackets that the WikiHow part carries. Titles end a sentence; the others go without a trace
/// within a line; then pairs of spaces become one, once.
fn clean(text: &str) -> String {
    let text = strip(text).replace(" [title]", ". ");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        kept.push_str(&rest[..open]);
        let marked = &rest[open..];
        // The reference's pattern does not cross the end of a line.
        match marked.find([']', '\n']) {
            Some(end) if marked[end..].starts_with(']') => rest = &marked[end + 1..],
            _ => {
                kept.push('[');
                rest = &marked[1..];
            }
        }
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_go_and_spaces_close_once() {
        assert_eq!(clean(" a [title] b [step] c "), "a. b c");
        assert_eq!(clean("a [x\ny] [z] b"), "a [x\ny] b");
        assert_eq!(clean("a [b [c] d] [e"), "a d] [e");
        assert_eq!(clean("a    b"), "a  b");
    }
}
