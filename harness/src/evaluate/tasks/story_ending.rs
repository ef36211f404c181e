//! `story_ending`: how a story of the built-in grammar ends, a task of this project's own that the built-in models can do.

use serde_json::{Map, Value, json};

use super::{Examples, Source, Task, UNIFORM, uniform};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::scoring::Metric;

/// A held-out story up to its last sentence, continued by that sentence or by one from the body of another story
/// (`models::stories::endings`). Chance is 1 in 4. The items ship with the program; nothing is fetched.
///
/// It says how well a model of these stories still knows how they run, and nothing about other models.
pub struct StoryEnding;

/// Items in full.
const ITEMS: usize = 100;

impl Task for StoryEnding {
    fn name(&self) -> &'static str {
        "story_ending"
    }

    fn version(&self) -> &'static str {
        "1"
    }

    fn protocol(&self) -> &'static str {
        "own"
    }

    fn source(&self) -> Source {
        Source { repository: "builtin", configuration: None, split: "stories-held-out" }
    }

    fn items(&self) -> usize {
        ITEMS
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc, Metric::AccNorm]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        &[UNIFORM]
    }

    fn read(&self, fields: &Fields, _form: Form) -> Result<Prompt, Fault> {
        let (text, choices, gold) = uniform(fields)?;
        Ok(Prompt::Choices { text: text.to_owned(), choices, gold })
    }

    fn examples(&self) -> Option<Examples> {
        None
    }

    fn builtin(&self) -> Option<Vec<Map<String, Value>>> {
        let objects = models::stories::endings(ITEMS).into_iter().enumerate().filter_map(|(id, ending)| {
            let item =
                json!({ "id": id, "query": ending.story, "choices": ending.choices, "gold": ending.answer });
            item.as_object().cloned()
        });
        Some(objects.collect())
    }
}
