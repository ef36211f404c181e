//! Gemma 2: Gemma with norms behind attention and feed-forward part, caps on scores and logits, a scale of its own on
//! the scores, and a window in every other block.
//!
//! Source: arXiv 2408.00118, the hub's `Gemma2Config` and the checkpoints' own `config.json`.

use super::{Config, ConfigError, Family, WITH_POST_NORMS, WeightNames, gemma};
use crate::architecture::{Activation, Architecture, Cap, Logits, PostNorms, ScoreScale};

pub const FAMILY: Family = Family {
    name: "gemma2",
    covers: "Gemma 2 2B, 9B, 27B and others with Gemma2ForCausalLM",
    architectures: &["Gemma2ForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = WITH_POST_NORMS;

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    config.activation("hidden_activation", &[("gelu_pytorch_tanh", Activation::GeluTanh)])?;
    let mut architecture = gemma::geglu(config, 10000.0)?;
    architecture.post_norms = PostNorms::Present;
    if let Some(cap) = config.cap("final_logit_softcapping", Some(30.0))? {
        architecture.logits = Logits::Capped(cap);
    }
    let attention = &mut architecture.attention;
    attention.scale = scale(config)?;
    if let Some(cap) = config.cap("attn_logit_softcapping", Some(50.0))? {
        attention.cap = Cap::Tanh(cap);
    }
    let tokens = config.size_or("sliding_window", 4096)?;
    attention.window = config.window(tokens, architecture.layers, |layer| layer % 2 == 0)?;
    Ok(architecture)
}

/// `query_pre_attn_scalar` of Gemma 2 and 3.
pub(super) fn scale(config: &Config) -> Result<ScoreScale, ConfigError> {
    let scalar = config.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    if scalar.is_nan() || scalar <= 0.0 {
        let found = serde_json::Value::from(scalar);
        return Err(super::config::unsupported("query_pre_attn_scalar", &found, "numbers above 0"));
    }
    Ok(ScoreScale::Of(scalar))
}
