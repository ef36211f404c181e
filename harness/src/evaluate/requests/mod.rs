//! Items as requests: texts with examples and delimiters, byte for byte as lm-evaluation-harness 0.4.13 builds them; then
//! as token sequences, with what they share.

pub mod encode;
pub mod sharing;
pub mod shots;

use crate::evaluate::items::{Item, Prompt};
use crate::evaluate::tasks::{TARGET_DELIMITER, Task};

/// What a model is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// The log-likelihood of a continuation.
    Pair {
        /// What stands before it.
        context: String,
        /// What is scored.
        continuation: String,
    },
    /// The log-likelihood of a whole text.
    Text {
        /// The text.
        text: String,
    },
}

impl Request {
    /// blake3 of its texts, hexadecimal: what proves that two runs asked the same.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        match self {
            Request::Pair { context, continuation } => {
                // The length keeps `("a", "b")` and `("ab", "")` apart.
                hasher.update(&(context.len() as u64).to_le_bytes());
                hasher.update(context.as_bytes());
                hasher.update(continuation.as_bytes());
            }
            Request::Text { text } => {
                hasher.update(text.as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// The requests of every item, in order, without examples.
pub fn zero_shot(task: &dyn Task, items: &[Item]) -> Vec<Vec<Request>> {
    items.iter().map(|item| requests(&item.prompt, &task.description(item.part.as_deref()))).collect()
}

/// The requests of an item after `before`: a description and examples, or nothing.
pub fn requests(prompt: &Prompt, before: &str) -> Vec<Request> {
    let pair =
        |text: &str, continuation: String| Request::Pair { context: format!("{before}{text}"), continuation };
    match prompt {
        Prompt::Choices { text, choices, .. } => {
            choices.iter().map(|choice| pair(text, format!("{TARGET_DELIMITER}{choice}"))).collect()
        }
        Prompt::Contexts { texts, target, .. } => {
            texts.iter().map(|text| pair(text, format!("{TARGET_DELIMITER}{target}"))).collect()
        }
        Prompt::Target { text, target } => vec![pair(text, target.clone())],
        Prompt::Text { text, .. } => vec![Request::Text { text: text.clone() }],
    }
}
