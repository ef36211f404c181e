//! Cohere's Command-R: attention and feed-forward part beside each other behind one LayerNorm without bias, neighbouring
//! channels as rotary pairs, logits times a factor, and in Command-R+ norms of queries and keys with a weight for every
//! head.
//!
//! Source: the hub's `CohereConfig` and the checkpoints' own `config.json`. Command-R7B and later (`Cohere2ForCausalLM`)
//! are another architecture.

use super::{Config, ConfigError, Family, USUAL, WeightNames};
use crate::architecture::{
    Activation, Architecture, Bias, EmbeddingScale, Logits, Mlp, MlpForm, Norm, Pairs, Positions, PostNorms,
    QkNorm, Rope,
};

pub const FAMILY: Family = Family {
    name: "cohere",
    covers: "Command-R, Command-R+, Aya 23 and others with CohereForCausalLM",
    architectures: &["CohereForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = USUAL;

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    let activation = config.activation("hidden_act", &[("silu", Activation::Silu)])?;
    // Versions of the reference disagree on what a missing θ means.
    if config.get("rope_theta").is_none() && config.get("rope_parameters").is_none() {
        return Err(ConfigError::Missing("rope_theta"));
    }
    let rope = Rope { pairs: Pairs::Neighbours, ..config.rope(500_000.0)? };
    let mut attention = config.attention(None)?;
    if config.flag("use_qk_norm")?.unwrap_or(false) {
        attention.qk_norm = QkNorm::PerHead;
    }
    let scale =
        if config.0.get("logit_scale").is_none() { Some(0.0625) } else { config.number("logit_scale")? };
    Ok(Architecture {
        vocabulary: config.required_size("vocab_size")?,
        hidden: config.required_size("hidden_size")?,
        layers: config.layers()?,
        context: config.size("max_position_embeddings")?.unwrap_or(8192),
        attention,
        mlp: Mlp {
            intermediate: config.required_size("intermediate_size")?,
            bias: Bias::Absent,
            form: MlpForm::Parallel(activation),
        },
        norm: Norm::LayerUnbiased { eps: config.number("layer_norm_eps")?.unwrap_or(1e-5) },
        positions: Positions::Rotary(rope),
        head: config.head(true)?,
        embedding: EmbeddingScale::Absent,
        post_norms: PostNorms::Absent,
        logits: scale.map_or(Logits::Plain, Logits::Scaled),
    })
}
