//! How does the story end? A multiple-choice task on the held-out stories that the built-in models can do: the last
//! sentence of a story among sentences from the bodies of the next three.
//!
//! Questions about what a story said are beyond these models, which do not look things up in what they have read. How a
//! story runs they know.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{CHOICES, HELD_OUT_SEED, below, stories};

/// The seed that draws wrong endings and the places of right ones.
pub const ENDING_SEED: u64 = 5;

/// A story without its last sentence, and that sentence among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The story up to its last sentence, in one line.
    pub story: String,
    /// [`CHOICES`] sentences.
    pub choices: Vec<String>,
    /// The index of the right one.
    pub answer: usize,
}

/// The endings of the first `n` stories of the held-out text. The same stories with the same wrong endings for every `n`.
pub fn endings(n: usize) -> Vec<Ending> {
    let told: Vec<Vec<String>> =
        stories(HELD_OUT_SEED).take(n + CHOICES - 1).map(|story| sentences(&story.text)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(ENDING_SEED);
    told.windows(CHOICES)
        .map(|stories| {
            // A wrong ending is from before the last two sentences of its story: it must not end anything.
            let wrong = stories[1..].iter().map(|other| other[below(&mut rng, other.len() - 2)].clone());
            let mut choices: Vec<String> = wrong.collect();
            let answer = below(&mut rng, CHOICES);
            let (last, before) = stories[0].split_last().expect("a story has sentences");
            choices.insert(answer, last.clone());
            Ending { story: before.join(" "), choices, answer }
        })
        .collect()
}

/// A text's sentences: one ends at `.`, `!` or `?`, a closing quotation mark included, before a capital or another
/// quotation mark. So `"Wait for me!" called Leo.` is one.
fn sentences(text: &str) -> Vec<String> {
    let text = text.replace('\n', " ");
    let mut sentences = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(' ') {
        let ends = text[start..at].trim_end_matches('"').ends_with(['.', '!', '?']);
        let begins = text[at + 1..].starts_with(|c: char| c == '"' || c.is_uppercase());
        if ends && begins {
            sentences.push(text[start..at].to_owned());
            start = at + 1;
        }
    }
    sentences.push(text[start..].to_owned());
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_speech_stays_with_its_speaker() {
        let text = "It was hot. \"Wait for me!\" called Leo.\n\"Look at that!\" They ran on.";
        let expected = ["It was hot.", "\"Wait for me!\" called Leo.", "\"Look at that!\"", "They ran on."];
        assert_eq!(sentences(text), expected);
    }

    #[test]
    fn the_right_choice_ends_the_story_and_no_other_does() {
        let endings = endings(100);
        assert_eq!(endings.len(), 100);
        assert_eq!(endings[..40], super::endings(40));
        let mut places = [0; CHOICES];
        for (ending, story) in endings.iter().zip(stories(HELD_OUT_SEED)) {
            let whole = format!("{} {}", ending.story, ending.choices[ending.answer]);
            assert_eq!(whole, story.text.replace('\n', " "));
            assert_eq!(ending.choices.len(), CHOICES);
            places[ending.answer] += 1;
            for (i, choice) in ending.choices.iter().enumerate() {
                assert!(i == ending.answer || *choice != ending.choices[ending.answer], "{ending:?}");
            }
        }
        assert!(places.iter().all(|&n| n >= 10), "{places:?}");
    }
}
