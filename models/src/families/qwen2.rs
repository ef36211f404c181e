//! Qwen1.5, Qwen2 and Qwen2.5: Llama's form with biases on q, k and v, and a window that released checkpoints leave off.
//!
//! With `use_sliding_window`, blocks from `max_window_layers` on have the window, unless `layer_types` says which. Source:
//! arXiv 2309.16609, 2407.10671, the hub's `Qwen2Config` and the checkpoints' own `config.json`.

use super::llama::{Defaults, swiglu};
use super::{Config, ConfigError, Family, USUAL, WeightNames};
use crate::architecture::{Architecture, AttentionBias, Bias, Window};

pub const FAMILY: Family = Family {
    name: "qwen2",
    covers: "Qwen1.5, Qwen2, Qwen2.5 and others with Qwen2ForCausalLM",
    architectures: &["Qwen2ForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = USUAL;

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    config.only("use_mrope", false)?;
    let defaults = Defaults { context: 32768, theta: 10000.0, eps: 1e-6, head_dim: None };
    let mut architecture = swiglu(config, defaults, Bias::Absent)?;
    architecture.attention.bias = AttentionBias::Qkv;
    architecture.attention.window = window(config, architecture.layers)?;
    Ok(architecture)
}

/// The window of Qwen2 and Qwen3.
pub(super) fn window(config: &Config, layers: usize) -> Result<Window, ConfigError> {
    let used = config.flag("use_sliding_window")?.unwrap_or(false);
    let tokens = if used { config.size_or("sliding_window", 4096)? } else { None };
    let first = config.count("max_window_layers")?.unwrap_or(28);
    config.window(tokens, layers, |layer| layer >= first)
}
