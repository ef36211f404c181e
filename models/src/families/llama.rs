//! Llama 1, 2, 3, 3.1, 3.2, and what uses their code: SOLAR, SmolLM2, TinyLlama, Yi.
//!
//! RMSNorm, rotary embedding (plain, linear or Llama-3 scaling), grouped-query attention, SwiGLU, optional biases,
//! explicit head size, tied or untied head. Source: the hub's `LlamaConfig` and the checkpoints' own `config.json`.

use super::{Config, ConfigError, Family, WeightNames};
use crate::architecture::{Architecture, Attention, AttentionBias, Bias, Head, Mlp, Norm, Rope, RopeScaling};

pub const FAMILY: Family = Family {
    name: "llama",
    covers: "Llama 1, 2, 3, 3.1, 3.2, SOLAR, SmolLM2 and others with LlamaForCausalLM",
    architectures: &["LlamaForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = WeightNames {
    embedding: "model.embed_tokens.weight",
    block: "model.layers.{}",
    attn_norm: "input_layernorm",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    final_norm: "model.norm",
    head: "lm_head",
    ignored: &["rotary_emb.inv_freq"],
};

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    let hidden = config.required_size("hidden_size")?;
    let heads = config.required_size("num_attention_heads")?;
    let kv_heads = config.size("num_key_value_heads")?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(ConfigError::Contradiction(format!(
            "`num_key_value_heads` = {kv_heads} does not divide `num_attention_heads` = {heads}"
        )));
    }
    let head_dim = match config.size("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(ConfigError::Contradiction(format!(
                "`head_dim` is absent and `num_attention_heads` = {heads} does not divide `hidden_size` = {hidden}"
            )));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(ConfigError::Contradiction(format!(
            "`head_dim` = {head_dim} is odd: rotary embedding needs pairs"
        )));
    }
    if let Some(activation) = config.get("hidden_act")
        && activation != "silu"
    {
        return Err(unsupported("hidden_act", activation, "silu"));
    }
    if let Some(tp) = config.get("pretraining_tp")
        && tp != 1
    {
        return Err(unsupported("pretraining_tp", tp, "1"));
    }
    let attention_bias = config.flag("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.flag("mlp_bias")?.unwrap_or(false);
    Ok(Architecture {
        vocabulary: config.required_size("vocab_size")?,
        hidden,
        layers: config.required_size("num_hidden_layers")?,
        context: config.size("max_position_embeddings")?.unwrap_or(2048),
        attention: Attention {
            heads,
            kv_heads,
            head_dim,
            bias: if attention_bias { AttentionBias::All } else { AttentionBias::Absent },
        },
        mlp: Mlp {
            intermediate: config.required_size("intermediate_size")?,
            bias: if mlp_bias { Bias::Present } else { Bias::Absent },
        },
        norm: Norm::Rms { eps: config.number("rms_norm_eps")?.unwrap_or(1e-6) },
        rope: rope(config)?,
        head: if config.flag("tie_word_embeddings")?.unwrap_or(false) { Head::Tied } else { Head::Untied },
    })
}

/// Older files say `rope_theta` and `rope_scaling`, newer ones put both into `rope_parameters`.
fn rope(config: &Config) -> Result<Rope, ConfigError> {
    let newer = config.get("rope_parameters");
    let scaling = newer.or_else(|| config.get("rope_scaling"));
    let theta = match newer.and_then(|parameters| parameters.get("rope_theta")) {
        Some(theta) => theta.as_f64(),
        None => config.number("rope_theta")?,
    }
    .unwrap_or(10000.0);
    let Some(scaling) = scaling else {
        return Ok(Rope { theta, scaling: RopeScaling::Plain });
    };
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
    let number = |field: &'static str| {
        scaling.get(field).and_then(serde_json::Value::as_f64).ok_or(ConfigError::Missing(field))
    };
    let scaling = match kind.and_then(serde_json::Value::as_str) {
        Some("default") => RopeScaling::Plain,
        Some("linear") => RopeScaling::Linear { factor: number("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")? as usize,
        },
        _ => return Err(unsupported("rope_scaling", scaling, "default, linear, llama3")),
    };
    Ok(Rope { theta, scaling })
}

fn unsupported(field: &str, found: &serde_json::Value, supported: &str) -> ConfigError {
    ConfigError::UnsupportedValue {
        field: field.into(),
        found: found.to_string(),
        supported: format!("supported: {supported}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(older.rope, newer.rope);
        assert_eq!(older.rope.theta, 500000.0);
        assert!(matches!(older.rope.scaling, RopeScaling::Llama3 { original_context: 8192, .. }));
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
