//! Mixtral: Mistral's attention, and a router that sends every token to two of eight gated experts.
//!
//! A token's weights for its experts are the softmax over their scores alone. Source: arXiv 2401.04088, the hub's
//! `MixtralConfig` and the checkpoints' own `config.json`.

use super::llama::{Defaults, swiglu};
use super::{Config, ConfigError, Family, USUAL, WeightNames};
use crate::architecture::{Activation, Architecture, Bias, MlpForm, Window};

pub const FAMILY: Family = Family {
    name: "mixtral",
    covers: "Mixtral 8x7B and 8x22B, and others with MixtralForCausalLM",
    architectures: &["MixtralForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = USUAL;

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    config.only("attention_bias", false)?;
    config.required_size("num_key_value_heads")?;
    let defaults = Defaults { context: 131_072, theta: 1_000_000.0, eps: 1e-5, head_dim: None };
    let mut architecture = swiglu(config, defaults, Bias::Absent)?;
    if let Some(tokens) = config.size("sliding_window")? {
        architecture.attention.window = Window::Everywhere { tokens };
    }
    let count = config.parts("num_local_experts")?.unwrap_or(8);
    let chosen = config.size("num_experts_per_tok")?.unwrap_or(2);
    if chosen > count {
        return Err(ConfigError::Contradiction(format!(
            "`num_experts_per_tok` = {chosen} is more than `num_local_experts` = {count}"
        )));
    }
    architecture.mlp.form = MlpForm::Experts { count, chosen, activation: Activation::Silu };
    Ok(architecture)
}
