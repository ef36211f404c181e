//! OPT: LayerNorm with bias, learned positions, biases everywhere, ReLU without a gate.
//!
//! OPT-350M, which norms behind its parts and embeds in fewer channels, is refused. Source: arXiv 2205.01068, the hub's
//! `OPTConfig` and the checkpoints' own `config.json`.

use super::{Config, ConfigError, Family, USUAL, WeightNames};
use crate::architecture::{
    Activation, Architecture, Attention, AttentionBias, Bias, EmbeddingScale, Logits, Mlp, MlpForm, Norm,
    Positions, PostNorms, Table,
};

pub const FAMILY: Family = Family {
    name: "opt",
    covers: "OPT from 125M to 66B but 350M, and others with OPTForCausalLM",
    architectures: &["OPTForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = WeightNames {
    embedding: "model.decoder.embed_tokens.weight",
    positions: "model.decoder.embed_positions.weight",
    block: "model.decoder.layers.{}",
    attn_norm: "self_attn_layer_norm",
    o: "self_attn.out_proj",
    mlp_norm: "final_layer_norm",
    up: "fc1",
    down: "fc2",
    final_norm: "model.decoder.final_layer_norm",
    ..USUAL
};

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    let hidden = config.required_size("hidden_size")?;
    config.only("do_layer_norm_before", true)?;
    config.only("word_embed_proj_dim", hidden)?;
    config.only("_remove_final_layer_norm", false)?;
    config.only("layer_norm_elementwise_affine", true)?;
    let (attention_bias, bias) = match config.flag("enable_bias")?.unwrap_or(true) {
        true => (AttentionBias::All, Bias::Present),
        false => (AttentionBias::Absent, Bias::Absent),
    };
    let activation = config.activation("activation_function", &[("relu", Activation::Relu)])?;
    Ok(Architecture {
        vocabulary: config.required_size("vocab_size")?,
        hidden,
        layers: config.layers()?,
        context: config.required_size("max_position_embeddings")?,
        attention: Attention { bias: attention_bias, ..config.attention(None)? },
        mlp: Mlp { intermediate: config.required_size("ffn_dim")?, bias, form: MlpForm::Plain(activation) },
        norm: Norm::Layer { eps: 1e-5 },
        positions: Positions::Learned(Table { offset: 2 }),
        head: config.head(true)?,
        embedding: EmbeddingScale::Absent,
        post_norms: PostNorms::Absent,
        logits: Logits::Plain,
    })
}
