//! `lambada_standard`: LAMBADA (arXiv 1606.06031) in the text of its authors, tokenized and in lower case.

use super::{Draw, Examples, Source, Task, lambada_openai};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::scoring::Metric;

/// As [`lambada_openai::LambadaOpenai`], on the other text.
pub struct LambadaStandard;

impl Task for LambadaStandard {
    fn name(&self) -> &'static str {
        "lambada_standard"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "cimec/lambada", configuration: None, split: "test" }
    }

    fn items(&self) -> usize {
        5153
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Perplexity, Metric::Acc]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        lambada_openai::FORMS
    }

    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault> {
        lambada_openai::read(fields, form)
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "validation", draw: Draw::Random, without_item: false })
    }
}
