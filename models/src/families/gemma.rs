//! Gemma: GeGLU, norms that multiply by 1 + w, embeddings times sqrt(hidden), heads of their own size, a tied head.
//!
//! Source: arXiv 2403.08295, the hub's `GemmaConfig` and the checkpoints' own `config.json`; their `hidden_act` of "gelu"
//! means the tanh form, as the reference says too.

use super::{Config, ConfigError, Family, USUAL, WeightNames};
use crate::architecture::{
    Activation, Architecture, Bias, EmbeddingScale, Logits, Mlp, MlpForm, Positions, PostNorms,
};

pub const FAMILY: Family = Family {
    name: "gemma",
    covers: "Gemma 2B, 7B and others with GemmaForCausalLM",
    architectures: &["GemmaForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = USUAL;

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    let names = [
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("gelu", Activation::GeluTanh),
        ("gelu_new", Activation::GeluTanh),
    ];
    config.activation("hidden_act", &names)?;
    config.activation("hidden_activation", &names)?;
    geglu(config, 10000.0)
}

/// A decoder of Gemma's form, to which its successors add.
pub(super) fn geglu(config: &Config, default_theta: f64) -> Result<Architecture, ConfigError> {
    config.only("use_bidirectional_attention", false)?;
    config.required_size("num_key_value_heads")?;
    Ok(Architecture {
        vocabulary: config.required_size("vocab_size")?,
        hidden: config.required_size("hidden_size")?,
        layers: config.layers()?,
        context: config.size("max_position_embeddings")?.unwrap_or(8192),
        attention: config.attention(Some(256))?,
        mlp: Mlp {
            intermediate: config.required_size("intermediate_size")?,
            bias: Bias::Absent,
            form: MlpForm::Gated(Activation::GeluTanh),
        },
        norm: config.rms_norm_offset()?,
        positions: Positions::Rotary(config.rope(default_theta)?),
        head: config.head(true)?,
        embedding: EmbeddingScale::RootHidden,
        post_norms: PostNorms::Absent,
        logits: Logits::Plain,
    })
}
