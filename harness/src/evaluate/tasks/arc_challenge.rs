//! `arc_challenge`: science questions for pupils that retrieval and co-occurrence answer wrongly (arXiv 1803.05457).

use super::{Draw, Examples, Source, Task, arc_easy};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::scoring::Metric;

/// As [`arc_easy::ArcEasy`], on other questions.
pub struct ArcChallenge;

impl Task for ArcChallenge {
    fn name(&self) -> &'static str {
        "arc_challenge"
    }

    fn version(&self) -> &'static str {
        "1.0"
    }

    fn source(&self) -> Source {
        Source { repository: "allenai/ai2_arc", configuration: Some("ARC-Challenge"), split: "test" }
    }

    fn items(&self) -> usize {
        1172
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc, Metric::AccNorm]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        arc_easy::FORMS
    }

    fn read(&self, fields: &Fields, form: Form) -> Result<Prompt, Fault> {
        arc_easy::read(fields, form)
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "train", draw: Draw::Random, without_item: false })
    }
}
