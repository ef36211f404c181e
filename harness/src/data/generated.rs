//! Corpora that no one wrote: token ids made from random numbers, for calibration only.
//!
//! `nonsense` is the poorest text that is still text (after arXiv:2405.20835, which draws ASCII punctuation and white
//! space at random); `random-tokens` is none at all.

use models::tokenizer::{Tokenizer, TokenizerError};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// A generated corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generated {
    /// Characters drawn uniformly from ASCII punctuation and white space, encoded.
    Nonsense,
    /// Token ids drawn uniformly from the vocabulary, without special and added tokens.
    RandomTokens,
}

/// Why nothing can be generated for a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Every character becomes an unknown token, or none.
    #[error(
        "the model's tokenizer has no token for any ASCII punctuation or white space: use `random-tokens`"
    )]
    NoCharacters,
    /// All tokens are special.
    #[error("the model's tokenizer has no tokens but special and added ones: use a corpus that is a text")]
    NoVocabulary,
}

impl Generated {
    /// Every generated corpus, in the order in which they are listed.
    pub const ALL: [Generated; 2] = [Generated::Nonsense, Generated::RandomTokens];

    /// The name in experiment files.
    pub fn name(self) -> &'static str {
        match self {
            Generated::Nonsense => "nonsense",
            Generated::RandomTokens => "random-tokens",
        }
    }

    /// What it is, in a line.
    pub fn summary(self) -> &'static str {
        match self {
            Generated::Nonsense => "generated: uniform ASCII punctuation and white space (calibration only)",
            Generated::RandomTokens => "generated: uniform token ids of the vocabulary (calibration only)",
        }
    }

    /// The generated corpus of a name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|generated| generated.name() == name)
    }

    /// Exactly `count` token ids.
    ///
    /// # Errors
    /// Where the tokenizer fails, or has no token that may be drawn.
    pub fn tokens(
        self,
        count: usize,
        tokenizer: &Tokenizer,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<u32>, GenerateError> {
        match self {
            Generated::Nonsense => nonsense(count, tokenizer, rng),
            Generated::RandomTokens => {
                let vocabulary = tokenizer.ordinary();
                if vocabulary.is_empty() {
                    return Err(GenerateError::NoVocabulary);
                }
                Ok((0..count).map(|_| vocabulary[below(rng, vocabulary.len())]).collect())
            }
        }
    }
}

fn nonsense(count: usize, tokenizer: &Tokenizer, rng: &mut ChaCha8Rng) -> Result<Vec<u32>, GenerateError> {
    let alphabet = alphabet(tokenizer)?;
    if alphabet.is_empty() {
        return Err(GenerateError::NoCharacters);
    }
    let mut text = String::new();
    let mut wanted = count + 16;
    loop {
        // ASCII: a byte is a character.
        while text.len() < wanted {
            text.push(alphabet[below(rng, alphabet.len())]);
        }
        let mut ids = tokenizer.encode(&text)?;
        if ids.len() >= count {
            ids.truncate(count);
            return Ok(ids);
        }
        // Characters merge into tokens at about the same rate throughout: two rounds are the rule.
        wanted = wanted.saturating_mul(count) / ids.len().max(1) / 50 * 51 + 16;
    }
}

/// The characters of `nonsense` that a tokenizer can tell: of Python's `string.punctuation + string.whitespace` those that
/// it gives back when it decodes them. A small vocabulary without byte tokens makes some unknown.
///
/// # Errors
/// If the tokenizer fails.
pub fn alphabet(tokenizer: &Tokenizer) -> Result<Vec<char>, TokenizerError> {
    let mut known = Vec::new();
    for c in (0..=127u8).map(char::from).filter(|c| is_nonsense(*c)) {
        let ids = tokenizer.encode(c.encode_utf8(&mut [0; 4]))?;
        if ids.is_empty() {
            continue;
        }
        let back = tokenizer.decode(&ids)?;
        if back.contains(c) && back.chars().all(is_nonsense) {
            known.push(c);
        }
    }
    Ok(known)
}

/// Whether a character is ASCII punctuation or white space. Vertical tab is white space in Python, and not in Rust.
fn is_nonsense(c: char) -> bool {
    c.is_ascii_punctuation() || c.is_ascii_whitespace() || c == '\u{b}'
}

/// An index below `n`, which must be above 0, by one 64-bit draw: written out here so that no version of `rand` can change
/// what was recorded. The bias is below n / 2⁶⁴.
pub fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// Puts items in random order.
pub fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i + 1));
    }
}
