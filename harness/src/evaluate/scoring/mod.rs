//! From log-likelihoods to decisions and metrics, as lm-evaluation-harness 0.4.13 computes them.

pub mod aggregate;

use crate::evaluate::items::Prompt;

/// What a task reports. Names are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Share of items whose likeliest continuation is the right one; for one continuation, of those that greedy
    /// decoding would give.
    Acc,
    /// As `Acc`, the log-likelihood divided by the choice's length in characters (code points), delimiter excluded.
    AccNorm,
    /// As `AccNorm`, in UTF-8 bytes. No task of the reference reports it; it is computed beside the others.
    AccBytes,
    /// exp of the mean loss per continuation.
    Perplexity,
    /// exp of the loss per word of the original text.
    WordPerplexity,
    /// exp of the loss per byte of the original text.
    BytePerplexity,
    /// The loss per byte of the original text, in bits.
    BitsPerByte,
    /// exp of the loss per scored token.
    TokenPerplexity,
}

impl Metric {
    /// The reference's name.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Acc => "acc",
            Metric::AccNorm => "acc_norm",
            Metric::AccBytes => "acc_bytes",
            Metric::Perplexity => "perplexity",
            Metric::WordPerplexity => "word_perplexity",
            Metric::BytePerplexity => "byte_perplexity",
            Metric::BitsPerByte => "bits_per_byte",
            Metric::TokenPerplexity => "token_perplexity",
        }
    }

    /// Whether more is better.
    pub fn higher_is_better(self) -> bool {
        matches!(self, Metric::Acc | Metric::AccNorm | Metric::AccBytes)
    }
}

/// What a model says to one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// ln p of the whole continuation, or of the whole text.
    pub log_likelihood: f64,
    /// Whether each of its tokens is the likeliest at its place; of equals the first in the vocabulary counts.
    pub greedy: bool,
    /// Tokens scored.
    pub tokens: usize,
}

/// Which choice has the highest score, by each normalization. Of equal scores the first wins, as numpy's `argmax` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decisions {
    /// By log-likelihood.
    pub plain: usize,
    /// By log-likelihood per character.
    pub per_char: usize,
    /// By log-likelihood per byte.
    pub per_byte: usize,
}

/// What came out for one item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Judgement {
    /// Of several answers.
    Choice {
        /// What was chosen.
        decisions: Decisions,
        /// What is right.
        gold: usize,
        /// Best minus second best log-likelihood: how far from another decision.
        margin: f64,
    },
    /// Of one continuation.
    Target {
        /// Its log-likelihood.
        log_likelihood: f64,
        /// Whether greedy decoding gives it.
        greedy: bool,
    },
    /// Of a whole text.
    Text {
        /// Its log-likelihood.
        log_likelihood: f64,
        /// Words of the original.
        words: usize,
        /// Bytes of the original.
        bytes: usize,
        /// Tokens scored.
        tokens: usize,
    },
}

/// Answers that cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScoringError {
    /// Another number of answers than requests.
    #[error("an item with {expected} requests has {found} answers")]
    Answers {
        /// Of the item.
        expected: usize,
        /// Handed over.
        found: usize,
    },
    /// A log-likelihood that is no number.
    #[error("the log-likelihood of answer {index} (from 0) is not finite")]
    NotFinite {
        /// Which of the item's.
        index: usize,
    },
}

impl Prompt {
    /// Requests it makes: one for each choice or text, else one.
    pub fn requests(&self) -> usize {
        match self {
            Prompt::Choices { choices, .. } => choices.len(),
            Prompt::Contexts { texts, .. } => texts.len(),
            Prompt::Target { .. } | Prompt::Text { .. } => 1,
        }
    }

    /// The length in characters and in bytes that each request's log-likelihood is divided by. For several texts it is
    /// the text's own, as the reference divides, though no task reports that.
    pub fn lengths(&self) -> Vec<(usize, usize)> {
        let length = |text: &String| (text.chars().count(), text.len());
        match self {
            Prompt::Choices { choices, .. } => choices.iter().map(length).collect(),
            Prompt::Contexts { texts, .. } => texts.iter().map(length).collect(),
            Prompt::Target { target, .. } => vec![length(target)],
            Prompt::Text { text, .. } => vec![length(text)],
        }
    }

    /// Judges an item from the answers to its requests, in their order.
    ///
    /// # Errors
    /// See [`ScoringError`].
    pub fn judge(&self, answers: &[Answer]) -> Result<Judgement, ScoringError> {
        if answers.len() != self.requests() {
            return Err(ScoringError::Answers { expected: self.requests(), found: answers.len() });
        }
        if let Some(index) = answers.iter().position(|answer| !answer.log_likelihood.is_finite()) {
            return Err(ScoringError::NotFinite { index });
        }
        let Answer { log_likelihood, greedy, tokens } = answers[0];
        Ok(match self {
            Prompt::Choices { gold, .. } | Prompt::Contexts { gold, .. } => {
                let scores: Vec<f64> = answers.iter().map(|answer| answer.log_likelihood).collect();
                let lengths = self.lengths();
                let divided = |by: &dyn Fn(&(usize, usize)) -> usize| {
                    let pairs = scores.iter().zip(&lengths);
                    argmax(pairs.map(|(score, length)| score / by(length) as f64))
                };
                let decisions = Decisions {
                    plain: argmax(scores.iter().copied()),
                    per_char: divided(&|length| length.0),
                    per_byte: divided(&|length| length.1),
                };
                let others = scores.iter().enumerate().filter(|(i, _)| *i != decisions.plain);
                let second = others.map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
                Judgement::Choice { decisions, gold: *gold, margin: scores[decisions.plain] - second }
            }
            Prompt::Target { .. } => Judgement::Target { log_likelihood, greedy },
            Prompt::Text { words, bytes, .. } => {
                Judgement::Text { log_likelihood, words: *words, bytes: *bytes, tokens }
            }
        })
    }
}

/// The place of the greatest; of equals the first.
fn argmax(scores: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, score) in scores.enumerate() {
        if score > best.1 {
            best = (i, score);
        }
    }
    best.0
}

/// What an item adds to a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Contribution {
    /// A value of which the mean is taken.
    Value(f64),
    /// A log-likelihood and the units it stands for.
    Weighted(f64, usize),
}

impl Judgement {
    /// What the item adds to a metric; `None` where the metric does not apply.
    pub fn contribution(&self, metric: Metric) -> Option<Contribution> {
        use Contribution::{Value, Weighted};
        let right = |yes: bool| Some(Value(f64::from(u8::from(yes))));
        match (*self, metric) {
            (Judgement::Choice { decisions, gold, .. }, Metric::Acc) => right(decisions.plain == gold),
            (Judgement::Choice { decisions, gold, .. }, Metric::AccNorm) => right(decisions.per_char == gold),
            (Judgement::Choice { decisions, gold, .. }, Metric::AccBytes) => {
                right(decisions.per_byte == gold)
            }
            (Judgement::Target { greedy, .. }, Metric::Acc) => right(greedy),
            (Judgement::Target { log_likelihood, .. }, Metric::Perplexity) => Some(Value(log_likelihood)),
            (Judgement::Text { log_likelihood, words, .. }, Metric::WordPerplexity) => {
                Some(Weighted(log_likelihood, words))
            }
            (Judgement::Text { log_likelihood, bytes, .. }, Metric::BytePerplexity | Metric::BitsPerByte) => {
                Some(Weighted(log_likelihood, bytes))
            }
            (Judgement::Text { log_likelihood, tokens, .. }, Metric::TokenPerplexity) => {
                Some(Weighted(log_likelihood, tokens))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(log_likelihoods: &[f64]) -> Vec<Answer> {
        let answer = |&log_likelihood| Answer { log_likelihood, greedy: false, tokens: 1 };
        log_likelihoods.iter().map(answer).collect()
    }

    fn choices(choices: &[&str], gold: usize) -> Prompt {
        let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
        Prompt::Choices { text: "?".into(), choices, gold }
    }

    #[test]
    fn characters_and_bytes_can_decide_differently() {
        // Per character −2 and −3, per byte −2 and −1.
        let judged = choices(&["ab", "日"], 1).judge(&answers(&[-4.0, -3.0])).unwrap();
        let Judgement::Choice { decisions, margin, .. } = judged else { panic!("{judged:?}") };
        assert_eq!(decisions, Decisions { plain: 1, per_char: 0, per_byte: 1 });
        assert_eq!(margin, 1.0);
        assert_eq!(judged.contribution(Metric::AccNorm), Some(Contribution::Value(0.0)));
        assert_eq!(judged.contribution(Metric::AccBytes), Some(Contribution::Value(1.0)));
        assert_eq!(judged.contribution(Metric::Perplexity), None);
    }

    #[test]
    fn of_equals_the_first_wins() {
        let judged = choices(&["a", "b", "c"], 0).judge(&answers(&[-2.0, -1.0, -1.0])).unwrap();
        assert!(
            matches!(judged, Judgement::Choice { decisions: Decisions { plain: 1, .. }, margin, .. } if margin == 0.0)
        );
    }

    #[test]
    fn what_is_no_number_is_not_judged() {
        let prompt = choices(&["a", "b"], 0);
        assert_eq!(prompt.judge(&answers(&[-1.0, f64::NAN])), Err(ScoringError::NotFinite { index: 1 }));
        assert_eq!(prompt.judge(&answers(&[-1.0])), Err(ScoringError::Answers { expected: 2, found: 1 }));
    }
}
