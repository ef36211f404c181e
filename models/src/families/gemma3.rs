//! Gemma 3, its text models: Gemma 2 without caps, with norms of queries and keys, a window in five of six blocks, and
//! another rotary base θ in those.
//!
//! Source: arXiv 2503.19786, the hub's `Gemma3TextConfig` and the checkpoints' own `config.json`. Models that also see
//! (`Gemma3ForConditionalGeneration`) are another architecture.

use super::{Config, ConfigError, Family, WITH_POST_NORMS, WeightNames, gemma, gemma2};
use crate::architecture::{
    Activation, Architecture, LocalRope, Logits, Positions, PostNorms, QkNorm, Rope, RopeScaling,
};

pub const FAMILY: Family = Family {
    name: "gemma3",
    covers: "Gemma 3 270M, 1B and others with Gemma3ForCausalLM",
    architectures: &["Gemma3ForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = WITH_POST_NORMS;

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    config.activation("hidden_activation", &[("gelu_pytorch_tanh", Activation::GeluTanh)])?;
    if let Some(cap) = config.get("attn_logit_softcapping") {
        return Err(super::config::unsupported("attn_logit_softcapping", cap, "null"));
    }
    let rope = rope(config)?;
    let mut architecture = gemma::geglu(&without_rope(config), rope.theta)?;
    architecture.positions = Positions::Rotary(rope);
    architecture.post_norms = PostNorms::Present;
    if let Some(cap) = config.cap("final_logit_softcapping", None)? {
        architecture.logits = Logits::Capped(cap);
    }
    let attention = &mut architecture.attention;
    attention.scale = gemma2::scale(config)?;
    attention.qk_norm = QkNorm::Shared;
    let pattern = config.size("sliding_window_pattern")?.unwrap_or(6);
    let tokens = config.size_or("sliding_window", 4096)?;
    attention.window = config.window(tokens, architecture.layers, |layer| (layer + 1) % pattern != 0)?;
    Ok(architecture)
}

/// Older files say `rope_theta`, `rope_scaling` and `rope_local_base_freq`, newer ones have `rope_parameters` for each
/// type of block. Blocks with a window are never stretched.
fn rope(config: &Config) -> Result<Rope, ConfigError> {
    let parameters = config.get("rope_parameters");
    if parameters.is_some_and(|parameters| parameters.get("full_attention").is_none()) {
        return Err(ConfigError::Missing("rope_parameters.full_attention"));
    }
    let newer = |kind: &str| parameters.and_then(|parameters| parameters.get(kind));
    let local = newer("sliding_attention");
    let scaling = config.rope_of(local, 10000.0)?.scaling;
    if let (Some(local), true) = (local, scaling != RopeScaling::Plain) {
        return Err(super::config::unsupported(
            "rope_parameters.sliding_attention",
            local,
            "rope_type default",
        ));
    }
    let theta = match local.and_then(|local| local.get("rope_theta")).and_then(serde_json::Value::as_f64) {
        Some(theta) => theta,
        None => config.number("rope_local_base_freq")?.unwrap_or(10000.0),
    };
    let full = config.rope_of(newer("full_attention"), 1_000_000.0)?;
    Ok(Rope { local: LocalRope::Theta(theta), ..full })
}

/// The file without what [`rope`] has read.
fn without_rope(config: &Config) -> Config {
    let mut config = config.clone();
    if let Some(fields) = config.0.as_object_mut() {
        fields.retain(|field, _| !field.starts_with("rope_"));
    }
    config
}
