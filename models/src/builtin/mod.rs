//! What ships inside the binary: two small models and two texts, so that everything can be tried without a download.
//!
//! `builtin/tiny-llama` was trained by this project on [`crate::stories`] (`examples/train_tiny_llama.rs`);
//! `builtin/tiny-llama-spiky` is the same model with activation spikes planted when it is asked for ([`spikes`]). How
//! they were made, and what they measure, stands in `docs/builtin-model.md`.

pub mod spikes;

use std::borrow::Cow;

/// The texts are at least this long, and end with a whole document.
pub const TEXT_BYTES: usize = 160_000;

const CONFIG: &[u8] = include_bytes!("../../assets/tiny-llama/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../assets/tiny-llama/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../../assets/tiny-llama/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../assets/tiny-llama/tokenizer_config.json");
const HELD_OUT: &str = include_str!("../../assets/stories/held-out.txt");
const CALIBRATION: &str = include_str!("../../assets/stories/calibration.txt");

/// `<s>` and `.` of the embedded tokenizer; a test looks them up.
pub const SPIKING_TOKENS: spikes::Tokens = spikes::Tokens { bos: 0, stop: 14 };

/// A checkpoint folder in memory, in the hub's layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `config.json`
    pub config: Cow<'static, [u8]>,
    /// `model.safetensors`, in f16
    pub weights: Cow<'static, [u8]>,
    /// `tokenizer.json`
    pub tokenizer: Cow<'static, [u8]>,
    /// `tokenizer_config.json`
    pub tokenizer_config: Cow<'static, [u8]>,
}

/// The names of the built-in models.
pub fn names() -> &'static [&'static str] {
    &["builtin/tiny-llama", "builtin/tiny-llama-spiky"]
}

/// The files of a built-in model; `None` for any other name.
pub fn files(name: &str) -> Option<Files> {
    match name {
        "builtin/tiny-llama" => Some(Files {
            config: Cow::Borrowed(CONFIG),
            weights: Cow::Borrowed(WEIGHTS),
            tokenizer: Cow::Borrowed(TOKENIZER),
            tokenizer_config: Cow::Borrowed(TOKENIZER_CONFIG),
        }),
        "builtin/tiny-llama-spiky" => Some(spiky(spikes::STRENGTH)),
        _ => None,
    }
}

/// `builtin/tiny-llama` with spikes of another strength than the built-in one.
///
/// `strength` is the value of the planted neurons at a spike, in the units of `down_in`.
pub fn spiky(strength: f32) -> Files {
    let planted = spikes::plant(CONFIG, WEIGHTS, spikes::DIRECTIONS, SPIKING_TOKENS, strength);
    let (config, weights) = planted.expect("the embedded checkpoint and its directions fit each other");
    Files {
        config: Cow::Owned(config),
        weights: Cow::Owned(weights),
        tokenizer: Cow::Borrowed(TOKENIZER),
        tokenizer_config: Cow::Borrowed(TOKENIZER_CONFIG),
    }
}

/// A built-in text: `builtin/stories-held-out` (for evaluation) or `builtin/stories-calibration`. They share no story
/// with each other or with the training text.
pub fn text(name: &str) -> Option<&'static str> {
    match name {
        "builtin/stories-held-out" => Some(HELD_OUT),
        "builtin/stories-calibration" => Some(CALIBRATION),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::stories;

    #[test]
    fn the_texts_are_what_the_grammar_tells() {
        assert_eq!(
            text("builtin/stories-held-out"),
            Some(&*stories::corpus(stories::HELD_OUT_SEED, TEXT_BYTES))
        );
        assert_eq!(
            text("builtin/stories-calibration"),
            Some(&*stories::corpus(stories::CALIBRATION_SEED, TEXT_BYTES))
        );
    }

    #[test]
    fn the_texts_share_no_story() {
        let documents =
            |text: &'static str| text.split("\n\n").filter(|d| !d.is_empty()).collect::<HashSet<_>>();
        let (held_out, calibration) = (documents(HELD_OUT), documents(CALIBRATION));
        assert!(held_out.len() > 200 && calibration.len() > 200);
        assert!(held_out.is_disjoint(&calibration));
        let unseen =
            |story: String| !held_out.contains(story.trim_end()) && !calibration.contains(story.trim_end());
        assert!(stories::stories(stories::TRAINING_SEED).take(24_000).map(|s| s.document()).all(unseen));
    }

    #[test]
    fn every_name_has_files_that_fit_its_config() {
        for name in names() {
            let files = files(name).expect("a listed name has files");
            let config: serde_json::Value =
                serde_json::from_slice(&files.config).expect("config.json is JSON");
            let tensors = safetensors::SafeTensors::deserialize(&files.weights).expect("safetensors");
            let query = tensors.tensor("model.layers.0.self_attn.q_proj.weight").expect("q_proj");
            let rows =
                config["num_attention_heads"].as_u64().zip(config["head_dim"].as_u64()).map(|(a, b)| a * b);
            assert_eq!(Some(query.shape()[0] as u64), rows);
            assert!(files.weights.len() < 4 << 20);
        }
        assert_eq!(files("builtin/other"), None);
    }

    #[test]
    fn the_spiking_tokens_are_bos_and_the_full_stop() {
        let tokenizer = tokenizers::Tokenizer::from_bytes(TOKENIZER).expect("tokenizer.json");
        assert_eq!(tokenizer.token_to_id("<s>"), Some(SPIKING_TOKENS.bos));
        assert_eq!(tokenizer.token_to_id("."), Some(SPIKING_TOKENS.stop));
    }

    #[test]
    fn planting_gives_the_same_bytes_again() {
        assert_eq!(files("builtin/tiny-llama-spiky"), Some(spiky(spikes::STRENGTH)));
        assert_ne!(spiky(100.0).weights, spiky(200.0).weights);
    }
}
