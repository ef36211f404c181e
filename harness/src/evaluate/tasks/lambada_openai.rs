//! `lambada_openai`: the last word of a passage that cannot be guessed from its last sentence (arXiv 1606.06031), in the
//! text of the GPT-2 authors.

use super::{Draw, Examples, Source, Task};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::scoring::Metric;

/// All but the last of the words that single spaces separate, continued by a space and that word. No delimiter comes
/// between, so an example, which has one, shows two spaces there.
pub struct LambadaOpenai;

pub(super) const FORMS: &[(Form, &[&str])] =
    &[(Form::Hub, &["text"]), (Form::Uniform, &["context", "target"])];

/// The question of an item of either text.
pub(super) fn read(fields: &Fields, form: Form) -> Result<Prompt, Fault> {
    if form == Form::Uniform {
        let (text, target) = (fields.text("context")?.to_owned(), fields.text("target")?.to_owned());
        return Ok(Prompt::Target { text, target });
    }
    let whole = fields.text("text")?;
    let (text, word) = whole.rsplit_once(' ').unwrap_or(("", whole));
    Ok(Prompt::Target { text: text.to_owned(), target: format!(" {word}") })
}

impl Task for LambadaOpenai {
    fn name(&self) -> &'static str {
        "lambada_openai"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "EleutherAI/lambada_openai", configuration: Some("default"), split: "test" }
    }

    fn items(&self) -> usize {
        5153
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Perplexity, Metric::Acc]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        FORMS
    }

    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault> {
        read(fields, form)
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "test", draw: Draw::Random, without_item: false })
    }
}
