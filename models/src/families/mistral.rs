//! Mistral 7B and Nemo: Llama's form with a sliding window, which later versions switch off with null.
//!
//! Source: arXiv 2310.06825, the hub's `MistralConfig` (which has a window of 4096 where the file does not name one) and
//! the checkpoints' own `config.json`.

use super::llama::{Defaults, swiglu};
use super::{Config, ConfigError, Family, USUAL, WeightNames};
use crate::architecture::{Architecture, Bias, Window};

pub const FAMILY: Family = Family {
    name: "mistral",
    covers: "Mistral 7B, Mistral Nemo and others with MistralForCausalLM",
    architectures: &["MistralForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = USUAL;

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    config.only("attention_bias", false)?;
    config.required_size("num_key_value_heads")?;
    // The reference warns of it and gives every block the window; another architecture's name belongs to such a file.
    if let Some(types) = config.get("layer_types") {
        return Err(super::config::unsupported("layer_types", types, "null: every block has the window"));
    }
    let defaults = Defaults { context: 131_072, theta: 10000.0, eps: 1e-6, head_dim: None };
    let mut architecture = swiglu(config, defaults, Bias::Absent)?;
    if let Some(tokens) = config.size_or("sliding_window", 4096)? {
        architecture.attention.window = Window::Everywhere { tokens };
    }
    Ok(architecture)
}
