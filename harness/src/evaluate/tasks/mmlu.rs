//! `mmlu`: multiple-choice questions in 57 subjects (arXiv 2009.03300).

use super::{Draw, Examples, Group, Source, Task};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::python::text::strip;
use crate::evaluate::scoring::Metric;

/// A line that names the subject, the question and its four lettered choices, continued by each letter.
///
/// Each subject is a task of the reference (`mmlu_anatomy`, version 1.0), with examples from the split `dev` of its own;
/// four groups and the whole (version 2) are averages weighted by their subjects' items.
pub struct Mmlu;

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Subjects of `mmlu_stem`.
pub const STEM: [&str; 19] = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "electrical_engineering",
    "elementary_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "machine_learning",
];

/// Subjects of `mmlu_other`.
pub const OTHER: [&str; 13] = [
    "business_ethics",
    "clinical_knowledge",
    "college_medicine",
    "global_facts",
    "human_aging",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "nutrition",
    "professional_accounting",
    "professional_medicine",
    "virology",
];

/// Subjects of `mmlu_social_sciences`.
pub const SOCIAL_SCIENCES: [&str; 12] = [
    "econometrics",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_microeconomics",
    "high_school_psychology",
    "human_sexuality",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
];

/// Subjects of `mmlu_humanities`.
pub const HUMANITIES: [&str; 13] = [
    "formal_logic",
    "high_school_european_history",
    "high_school_us_history",
    "high_school_world_history",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "moral_disputes",
    "moral_scenarios",
    "philosophy",
    "prehistory",
    "professional_law",
    "world_religions",
];

impl Task for Mmlu {
    fn name(&self) -> &'static str {
        "mmlu"
    }

    fn version(&self) -> &'static str {
        "2"
    }

    fn source(&self) -> Source {
        Source { repository: "cais/mmlu", configuration: Some("all"), split: "test" }
    }

    fn items(&self) -> usize {
        14042
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        &[(Form::Hub, &["question", "subject", "choices", "answer"])]
    }

    fn read(&self, fields: &Fields, _form: Form) -> Result<Prompt, Fault> {
        let choices = fields.texts("choices")?;
        if choices.len() != LETTERS.len() {
            let reason = format!("{} choices, not 4", choices.len());
            return Err(Fault::Value { field: "choices".to_owned(), reason });
        }
        let mut text = strip(fields.text("question")?).to_owned();
        for (letter, choice) in LETTERS.iter().zip(&choices) {
            text += &format!("\n{letter}. {choice}");
        }
        text += "\nAnswer:";
        let gold = fields.place("answer", LETTERS.len())?;
        Ok(Prompt::Choices { text, choices: LETTERS.map(str::to_owned).to_vec(), gold })
    }

    fn examples(&self) -> Option<Examples> {
        Some(Examples { split: "dev", draw: Draw::First, without_item: false })
    }

    fn part(&self, fields: &Fields) -> Result<Option<String>, Fault> {
        let subject = fields.text("subject")?;
        let known = [&STEM[..], &OTHER, &SOCIAL_SCIENCES, &HUMANITIES];
        if known.iter().any(|group| group.contains(&subject)) {
            return Ok(Some(subject.to_owned()));
        }
        let reason = format!("there is no subject `{subject}`");
        Err(Fault::Value { field: "subject".to_owned(), reason })
    }

    fn description(&self, part: Option<&str>) -> String {
        let subject = part.unwrap_or_default().replace('_', " ");
        format!("The following are multiple choice questions (with answers) about {subject}.\n\n")
    }

    fn groups(&self) -> Vec<Group> {
        let group = |name, parts: &[&'static str]| Group { name, version: "2", parts: parts.to_vec() };
        vec![
            group("mmlu_stem", &STEM),
            group("mmlu_other", &OTHER),
            group("mmlu_social_sciences", &SOCIAL_SCIENCES),
            group("mmlu_humanities", &HUMANITIES),
            group("mmlu", &[&STEM[..], &OTHER, &SOCIAL_SCIENCES, &HUMANITIES].concat()),
        ]
    }
}
