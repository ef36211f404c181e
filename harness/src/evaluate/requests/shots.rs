//! Few shots: the examples before an item, drawn as lm-evaluation-harness 0.4.13 draws them.
//!
//! One generator serves all items of a task (of a part, for MMLU) in their order. So the examples of an item depend on
//! the items before it, and on nothing else.

use std::collections::BTreeMap;

use super::{Request, requests};
use crate::evaluate::items::{Item, Prompt};
use crate::evaluate::python::random::Random;
use crate::evaluate::tasks::{Draw, EXAMPLE_DELIMITER, Examples, TARGET_DELIMITER, Task};

/// The reference's seed where none is given.
pub const SEED: u64 = 1234;

/// Why there are no examples.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShotsError {
    /// A task that scores whole texts.
    #[error("`{task}` scores whole texts and has no place for examples: use 0 shots")]
    NoExamples {
        /// The task.
        task: String,
    },
    /// Too few to draw from.
    #[error(
        "{shots} examples need {needed} items of the split `{split}`, and there are {there}: use fewer shots, or the \
         whole split"
    )]
    TooFew {
        /// Asked for.
        shots: usize,
        /// Drawn, with one to spare where the item itself may be among them.
        needed: usize,
        /// The split.
        split: &'static str,
        /// Items in it.
        there: usize,
    },
}

/// The requests of every item, in order, each after `shots` examples out of `pool`, the items of the split that
/// [`Task::examples`] names.
///
/// # Errors
/// See [`ShotsError`].
pub fn few_shot(
    task: &dyn Task,
    items: &[Item],
    pool: &[Item],
    shots: usize,
    seed: u64,
) -> Result<Vec<Vec<Request>>, ShotsError> {
    if shots == 0 {
        return Ok(super::zero_shot(task, items));
    }
    let examples = task.examples().ok_or_else(|| ShotsError::NoExamples { task: task.name().to_owned() })?;
    let mut samplers: BTreeMap<Option<&str>, Sampler> = BTreeMap::new();
    items
        .iter()
        .map(|item| {
            let part = item.part.as_deref();
            let sampler = samplers.entry(part).or_insert_with(|| Sampler {
                pool: pool.iter().filter(|example| example.part.as_deref() == part).collect(),
                random: Random::new(seed),
                examples,
            });
            let mut before = task.description(part);
            for example in sampler.draw(item, shots)? {
                show(&example.prompt, &mut before);
            }
            Ok(requests(&item.prompt, &before))
        })
        .collect()
}

struct Sampler<'a> {
    pool: Vec<&'a Item>,
    random: Random,
    examples: Examples,
}

impl<'a> Sampler<'a> {
    fn draw(&mut self, item: &Item, shots: usize) -> Result<Vec<&'a Item>, ShotsError> {
        let there = self.pool.len();
        let too_few = |needed, there| ShotsError::TooFew { shots, needed, split: self.examples.split, there };
        let other = |example: &&&'a Item| example.document != item.document;
        match (self.examples.draw, self.examples.without_item) {
            (Draw::First, without) => {
                let pool = self.pool.iter().filter(|example| !without || other(example));
                let first: Vec<&Item> = pool.copied().take(shots).collect();
                if first.len() < shots { Err(too_few(shots, first.len())) } else { Ok(first) }
            }
            (Draw::Random, false) => {
                let drawn = self.random.sample(there, shots).ok_or_else(|| too_few(shots, there))?;
                Ok(drawn.into_iter().map(|i| self.pool[i]).collect())
            }
            (Draw::Random, true) => {
                // One more than wanted, so that enough are left without the item itself.
                let drawn = self.random.sample(there, shots + 1).ok_or_else(|| too_few(shots + 1, there))?;
                let pool = &self.pool;
                let mut left: Vec<&Item> =
                    drawn.into_iter().map(|i| pool[i]).filter(|example| other(&example)).collect();
                left.truncate(shots);
                if left.len() == shots {
                    return Ok(left);
                }
                // The item was drawn more than once: the reference draws again from all others.
                let others: Vec<&Item> = self.pool.iter().filter(other).copied().collect();
                let there = others.len();
                let drawn = self.random.sample(there, shots).ok_or(ShotsError::TooFew {
                    shots,
                    needed: shots,
                    split: self.examples.split,
                    there,
                })?;
                Ok(drawn.into_iter().map(|i| others[i]).collect())
            }
        }
    }
}

/// Writes an example: the question, the delimiter, the right answer, and a blank line. An empty answer that is a text of
/// its own, and no choice, leaves the question alone: the reference takes it for none.
fn show(prompt: &Prompt, before: &mut String) {
    let (text, answer, given) = match prompt {
        Prompt::Choices { text, choices, gold } => (text, &choices[*gold], true),
        Prompt::Contexts { texts, target, gold } => (&texts[*gold], target, !target.is_empty()),
        Prompt::Target { text, target } => (text, target, !target.is_empty()),
        Prompt::Text { .. } => unreachable!("tasks that score whole texts have no examples"),
    };
    before.push_str(text);
    if given {
        before.push_str(TARGET_DELIMITER);
        before.push_str(answer);
        before.push_str(EXAMPLE_DELIMITER);
    }
}
