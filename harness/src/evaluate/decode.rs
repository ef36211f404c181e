//! Hidden states as a decoder has them while it writes: token by token, each behind the cache that the earlier ones
//! have left.
//!
//! Whatever a tap does to keys and values is done once, to each token as it enters, and the cache holds what it made of
//! them; one pass over the whole sequence is what [`decoder_model`](super::decoder_model) does. Where rounding looks at
//! nothing but a token the two agree up to the order of sums; with one dynamic activation scale per sequence they do not,
//! since here a sequence is one token long.

use burn::tensor::Tensor;
use models::{Decoder, Growing, Tap, token_tensor};
use serde::{Deserialize, Serialize};

/// How the tokens of a window go through the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All at once.
    #[default]
    Dense,
    /// One after another, with a cache.
    Decode,
}

/// Sequences that are decoded beside each other.
pub(super) const TOGETHER: usize = 8;

/// Hidden states after the final norm of several sequences of one length, at least one token each, behind the decoder's
/// prefix where it has one.
///
/// # Shapes
/// `[sequences, tokens, hidden]`
pub(super) fn hidden(decoder: &mut Decoder, tap: &mut dyn Tap, sequences: &[&[u32]]) -> Tensor<3> {
    let device = decoder.device();
    let length = sequences.first().map_or(0, |sequence| sequence.len());
    let mut past = Growing::behind(decoder.prefix.as_ref().map(|prefix| &prefix.cache));
    let mut states = Vec::with_capacity(length);
    for at in 0..length {
        let fed: Vec<&[u32]> = sequences.iter().map(|sequence| &sequence[at..=at]).collect();
        states.push(decoder.append(&mut past, token_tensor(&fed, &device), tap));
    }
    Tensor::cat(states, 1)
}
