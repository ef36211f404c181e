//! Stories from a seeded grammar: the text the built-in models are trained, calibrated and judged on.
//!
//! A story draws a cast (people, places, objects, colours …), tells one of a few plots about it, and knows what it
//! told: its [`Fact`]s, and multiple-choice [`Question`]s whose right answers follow from the text alone. The same
//! seed gives the same bytes on every machine: draws come from ChaCha8, whose stream is stable across versions.

mod cast;
mod endings;
mod plots;
mod template;
mod words;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use cast::Cast;
pub use endings::{ENDING_SEED, Ending, endings};
use plots::PLOTS;

/// The seed of the text the built-in model is trained on.
pub const TRAINING_SEED: u64 = 1;
/// The seed of the built-in calibration text.
pub const CALIBRATION_SEED: u64 = 2;
/// The seed of the built-in held-out text.
pub const HELD_OUT_SEED: u64 = 3;
/// The seed of stories for question answering, apart from all texts above.
pub const QUESTION_SEED: u64 = 4;

/// How many answers a question offers.
pub const CHOICES: usize = 4;

/// Something a story states: `relation` of `about` is `value`, and `value` stands in the text word for word (but a
/// sentence may begin with it, and so with a capital).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Whom or what the fact is about.
    pub about: String,
    /// What is stated, such as `colour` or `found`.
    pub relation: &'static str,
    /// The stated value.
    pub value: String,
}

/// A question about one fact of its story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The question, with its question mark.
    pub text: String,
    /// [`CHOICES`] different answers of one kind.
    pub choices: Vec<String>,
    /// The index of the right answer in `choices`.
    pub answer: usize,
    /// The index in [`Story::facts`] of the fact that answers it.
    pub fact: usize,
}

/// A story, what it states, and what can be asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// The story alone: two paragraphs of one line each, no newline at the end.
    pub text: String,
    /// What the text states.
    pub facts: Vec<Fact>,
    /// One question per fact, in random order. [`Story::document`] asks the first [`Story::ASKED`].
    pub questions: Vec<Question>,
}

impl Story {
    /// How many of its questions a document asks and answers.
    pub const ASKED: usize = 2;

    /// The context of `question`: the story and the question, up to and with `Answer:`. A choice follows as
    /// `" " + choice + "."`.
    pub fn prompt(&self, question: &Question) -> String {
        format!("{}\nQuestion: {}\nAnswer:", self.text, question.text)
    }

    /// The story as it stands in a corpus: the text, then [`Story::ASKED`] answered questions, then an empty line.
    pub fn document(&self) -> String {
        let mut document = format!("{}\n", self.text);
        for question in self.questions.iter().take(Self::ASKED) {
            let answer = &question.choices[question.answer];
            document.push_str(&format!("Question: {}\nAnswer: {answer}.\n", question.text));
        }
        document.push('\n');
        document
    }
}

/// The endless sequence of stories of one seed.
#[derive(Debug, Clone)]
pub struct Stories {
    rng: ChaCha8Rng,
}

/// The stories of `seed`, one after the other, without end.
pub fn stories(seed: u64) -> Stories {
    Stories { rng: ChaCha8Rng::seed_from_u64(seed) }
}

impl Iterator for Stories {
    type Item = Story;

    fn next(&mut self) -> Option<Story> {
        Some(tell(&mut self.rng))
    }
}

/// Documents of `seed` until they are at least `bytes` long: a corpus that ends with a whole document.
pub fn corpus(seed: u64, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 2048);
    let mut stories = stories(seed);
    while text.len() < bytes {
        text.extend(stories.next().map(|story| story.document()));
    }
    text
}

/// An index below `n`, by one 32-bit draw: written out here so that no version of `rand` can change the text.
fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u64::from(rng.next_u32()) * n as u64) >> 32) as usize
}

fn pick<'a, T>(rng: &mut ChaCha8Rng, items: &'a [T]) -> &'a T {
    &items[below(rng, items.len())]
}

fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i + 1));
    }
}

fn tell(rng: &mut ChaCha8Rng) -> Story {
    let plot = pick(rng, PLOTS);
    let cast = Cast::draw(rng);
    let mut text = String::new();
    for beat in plot.beats {
        if below(rng, 100) >= beat.percent as usize {
            continue;
        }
        let line = beat.lines[below(rng, beat.lines.len())];
        let line = template::expand(line, &cast, rng);
        let starts_line = text.is_empty() || text.ends_with('\n');
        if !starts_line && line != "\n" {
            text.push(' ');
        }
        text.push_str(&line);
    }

    let mut facts = Vec::with_capacity(plot.asks.len());
    let mut questions = Vec::with_capacity(plot.asks.len());
    for (index, ask) in plot.asks.iter().enumerate() {
        let value = cast.value(ask.slot).to_owned();
        let mut choices = cast.distractors(ask.slot, CHOICES - 1, rng);
        choices.push(value.clone());
        shuffle(rng, &mut choices);
        let answer = choices.iter().position(|choice| *choice == value).expect("the value was just added");
        facts.push(Fact { about: template::expand_plain(ask.about, &cast), relation: ask.relation, value });
        let text = template::sentence(template::expand_plain(ask.question, &cast));
        questions.push(Question { text, choices, answer, fact: index });
    }
    shuffle(rng, &mut questions);
    Story { text, facts, questions }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_tells_the_same_stories_again() {
        let first: Vec<Story> = stories(9).take(50).collect();
        assert_eq!(first, stories(9).take(50).collect::<Vec<_>>());
        assert_ne!(first, stories(10).take(50).collect::<Vec<_>>());
    }

    #[test]
    fn every_fact_stands_in_the_text_and_every_question_has_one_right_answer() {
        for story in stories(5).take(2000) {
            let told = story.text.to_lowercase();
            for fact in &story.facts {
                assert!(
                    told.contains(&fact.value.to_lowercase()),
                    "{fact:?} is not stated in: {}",
                    story.text
                );
            }
            for question in &story.questions {
                assert_eq!(question.choices.len(), CHOICES);
                assert_eq!(question.choices.iter().collect::<HashSet<_>>().len(), CHOICES, "{question:?}");
                assert_eq!(question.choices[question.answer], story.facts[question.fact].value);
            }
            assert!(story.questions.len() >= Story::ASKED);
        }
    }

    #[test]
    fn no_markup_is_left_and_sentences_are_well_formed() {
        for story in stories(6).take(2000) {
            let document = story.document();
            assert!(!document.contains(['{', '}', '[', ']', '|', '@', '^']), "{document}");
            for flaw in ["  ", " .", " ,", " \n", "\n ", "..", " a a", " a e", " a o", " an b", "the the"] {
                assert!(!document.contains(flaw), "{flaw:?} in: {document}");
            }
            for line in document.lines().filter(|line| !line.is_empty()) {
                let first = line.trim_start_matches('"').chars().next();
                assert!(first.is_some_and(char::is_uppercase), "{line}");
            }
        }
    }

    #[test]
    fn stories_have_the_length_of_a_short_story() {
        let words: Vec<usize> = stories(7).take(1000).map(|s| s.text.split_whitespace().count()).collect();
        let mean = words.iter().sum::<usize>() as f64 / words.len() as f64;
        assert!((60.0..150.0).contains(&mean), "{mean} words on average");
        assert!(words.iter().all(|n| (35..=200).contains(n)));
    }

    #[test]
    fn right_answers_are_spread_over_the_positions() {
        let mut counts = [0usize; CHOICES];
        for question in stories(8).take(1000).flat_map(|story| story.questions) {
            counts[question.answer] += 1;
        }
        let total: usize = counts.iter().sum();
        for count in counts {
            let share = count as f64 / total as f64;
            assert!((share - 0.25).abs() < 0.03, "{counts:?}");
        }
    }
}
