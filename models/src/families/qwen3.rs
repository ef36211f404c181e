//! Qwen3: Llama's form with norms of queries and keys, one weight for all heads, and a head size of its own.
//!
//! Source: arXiv 2505.09388, the hub's `Qwen3Config` and the checkpoints' own `config.json`.

use super::llama::{Defaults, swiglu};
use super::{Config, ConfigError, Family, USUAL, WeightNames, qwen2};
use crate::architecture::{Architecture, Bias, QkNorm};

pub const FAMILY: Family = Family {
    name: "qwen3",
    covers: "Qwen3 from 0.6B to 32B and others with Qwen3ForCausalLM",
    architectures: &["Qwen3ForCausalLM"],
    names: &NAMES,
    read,
};

static NAMES: WeightNames = USUAL;

fn read(config: &Config) -> Result<Architecture, ConfigError> {
    let defaults = Defaults { context: 32768, theta: 10000.0, eps: 1e-6, head_dim: Some(128) };
    let mut architecture = swiglu(config, defaults, Bias::Absent)?;
    architecture.attention.qk_norm = QkNorm::Shared;
    architecture.attention.window = qwen2::window(config, architecture.layers)?;
    Ok(architecture)
}
