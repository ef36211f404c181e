//! Llama 1, 2, 3, 3.1, 3.2, and what uses their code: SOLAR, SmolLM2, TinyLlama, Yi.
//!
//! RMSNorm, rotary embedding (plain, linear or Llama-3 scaling), grouped-query attention, SwiGLU, optional biases,
//! explicit head size, tied or untied head. Source: the hub's `LlamaConfig` and the checkpoints' own `config.json`.

use super::{Config, ConfigError, Family, USUAL, WeightNames};
use crate::architecture::{
    Activation, Architecture, Bias, EmbeddingScale, Logits, Mlp, MlpForm, Positions, PostNorms,
};

pub const FAMILY: Family = Family {
    name: "llama",
    covers: "Llama 1, 2, 3, 3.1, 3.2, SOLAR, SmolLM2 and others with LlamaForCausalLM",
    architectures: &["LlamaForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = USUAL;

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    let bias = if config.flag("mlp_bias")?.unwrap_or(false) { Bias::Present } else { Bias::Absent };
    swiglu(config, Defaults { context: 2048, theta: 10000.0, eps: 1e-6, head_dim: None }, bias)
}

/// What a family assumes where its `config.json` is silent.
pub(super) struct Defaults {
    pub context: usize,
    pub theta: f64,
    pub eps: f64,
    pub head_dim: Option<usize>,
}

/// A decoder of Llama's form, from which Mistral, Mixtral and Qwen differ by a field or two.
pub(super) fn swiglu(config: &Config, defaults: Defaults, bias: Bias) -> Result<Architecture, ConfigError> {
    config.only("pretraining_tp", 1)?;
    let activation = config.activation("hidden_act", &[("silu", Activation::Silu)])?;
    Ok(Architecture {
        vocabulary: config.required_size("vocab_size")?,
        hidden: config.required_size("hidden_size")?,
        layers: config.layers()?,
        context: config.size("max_position_embeddings")?.unwrap_or(defaults.context),
        attention: config.attention(defaults.head_dim)?,
        mlp: Mlp {
            intermediate: config.required_size("intermediate_size")?,
            bias,
            form: MlpForm::Gated(activation),
        },
        norm: config.rms_norm(defaults.eps)?,
        positions: Positions::Rotary(config.rope(defaults.theta)?),
        head: config.head(false)?,
        embedding: EmbeddingScale::Absent,
        post_norms: PostNorms::Absent,
        logits: Logits::Plain,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Positions, RopeScaling};
    use serde_json::json;

    fn llama2() -> serde_json::Value {
        json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": false})
    }

    #[test]
    fn llama2_7b_has_the_published_number_of_parameters() {
        let architecture = read(&Config(llama2())).unwrap();
        assert_eq!(architecture.parameters(), 6_738_415_616);
        assert_eq!(architecture.attention.head_dim, 128);
    }

    #[test]
    fn llama31_scaling_is_read_from_either_form() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        let mut older = llama2();
        older["rope_theta"] = json!(500000.0);
        older["rope_scaling"] = scaling.clone();
        let mut newer = llama2();
        newer["rope_parameters"] = scaling;
        newer["rope_parameters"]["rope_theta"] = json!(500000.0);
        let (older, newer) = (read(&Config(older)).unwrap(), read(&Config(newer)).unwrap());
        assert_eq!(older.positions, newer.positions);
        let Positions::Rotary(rope) = older.positions else { panic!("Llama's positions are rotary") };
        assert_eq!(rope.theta, 500000.0);
        assert!(matches!(rope.scaling, RopeScaling::Llama3 { original_context: 8192, .. }));
    }

    #[test]
    fn what_would_change_the_result_is_refused_by_name() {
        for (field, value, names) in [
            ("hidden_act", json!("gelu"), "hidden_act"),
            ("rope_scaling", json!({"type": "yarn", "factor": 2.0}), "rope_scaling"),
            ("num_key_value_heads", json!(5), "num_key_value_heads"),
            ("hidden_size", json!("wide"), "hidden_size"),
            ("vocab_size", json!(null), "vocab_size"),
        ] {
            let mut config = llama2();
            config[field] = value;
            let message = read(&Config(config)).unwrap_err().to_string();
            assert!(message.contains(names), "{message}");
        }
        let other = Config(json!({"architectures": ["MambaForCausalLM"]}));
        let message = other.family().err().unwrap().to_string();
        assert!(message.contains("MambaForCausalLM") && message.contains("LlamaForCausalLM"), "{message}");
    }
}
