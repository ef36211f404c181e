//! Log-likelihoods as a decoder gives them while it writes: token by token, each behind the cache that the earlier ones
//! have left.
//!
//! Whatever a tap does to keys and values is done once, to each token as it enters, and the cache holds what it made of
//! them; one pass over the whole sequence is what [`decoder_model`](super::decoder_model) does. Where rounding looks at
//! nothing but a token the two agree up to the order of sums; with one dynamic activation scale per sequence they do not,
//! since here a sequence is one token long.

use models::{Cache, Decoder, Tap, token_tensor};
use serde::{Deserialize, Serialize};

use crate::evaluate::decoder_model::target_log_likelihoods;

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

/// Sequences that are decoded beside each other. Every step copies their caches (`Decoder::encode`), so a window costs the
/// square of its length in copies.
pub(super) const TOGETHER: usize = 8;

/// ln p(tokens\[i\] | tokens\[..i\]) for i in 1..tokens.len(), for each of several sequences of one length, behind the
/// decoder's prefix where it has one. Every token but the last goes through the model.
pub(super) fn log_likelihoods(
    decoder: &mut Decoder,
    tap: &mut dyn Tap,
    sequences: &[&[u32]],
) -> Vec<Vec<f32>> {
    let device = decoder.device();
    let length = sequences.first().map_or(0, |sequence| sequence.len());
    let mut past: Option<Cache> = decoder.prefix.as_ref().map(|prefix| prefix.cache.clone());
    let mut result = vec![Vec::with_capacity(length); sequences.len()];
    for at in 1..length {
        let fed: Vec<&[u32]> = sequences.iter().map(|sequence| &sequence[at - 1..at]).collect();
        let (hidden, cache) = decoder.encode(past.as_ref(), token_tensor(&fed, &device), tap);
        past = Some(cache);
        let logits = decoder.logits(hidden, tap);
        let [rows, _, vocabulary] = logits.dims();
        let targets: Vec<u32> = sequences.iter().map(|sequence| sequence[at]).collect();
        let found = target_log_likelihoods(logits.reshape([rows, vocabulary]), &targets);
        result.iter_mut().zip(found).for_each(|(scores, found)| scores.push(found));
    }
    result
}
