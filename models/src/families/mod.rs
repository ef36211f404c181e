//! The registry of families: one file and one line each.
//!
//! A family is data: how its `config.json` becomes an [`Architecture`], and what its tensors are called. What several
//! read alike stands in [`config`].

use crate::architecture::Architecture;

mod cohere;
pub mod config;
mod gemma;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod mixtral;
mod opt;
mod qwen2;
mod qwen3;

pub use config::{Config, ConfigError};

/// A family of checkpoints.
pub struct Family {
    /// Its name in records and lists.
    pub name: &'static str,
    /// What it covers.
    pub covers: &'static str,
    /// Values of `architectures` in `config.json` that it reads.
    pub architectures: &'static [&'static str],
    /// Names of its tensors.
    pub names: &'static WeightNames,
    /// Reads `config.json`.
    pub read: fn(&Config) -> Result<Architecture, ConfigError>,
}

/// Every family, in alphabetical order.
pub const FAMILIES: &[Family] = &[
    cohere::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    opt::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
];

/// Names of a family's tensors, without `.weight`; those of the two tables with it. What an architecture does not have
/// is not looked for.
#[derive(Debug)]
pub struct WeightNames {
    /// Embedding table.
    pub embedding: &'static str,
    /// Table of learned positions.
    pub positions: &'static str,
    /// Prefix of a block, `{}` standing for its index.
    pub block: &'static str,
    /// Norm before attention; in a parallel block, the only one.
    pub attn_norm: &'static str,
    /// Query projection.
    pub q: &'static str,
    /// Key projection.
    pub k: &'static str,
    /// Value projection.
    pub v: &'static str,
    /// Norm of queries.
    pub q_norm: &'static str,
    /// Norm of keys.
    pub k_norm: &'static str,
    /// Output projection of attention.
    pub o: &'static str,
    /// Norm of what attention gives.
    pub attn_post_norm: &'static str,
    /// Norm before the feed-forward part.
    pub mlp_norm: &'static str,
    /// Gate projection.
    pub gate: &'static str,
    /// Up projection.
    pub up: &'static str,
    /// Down projection.
    pub down: &'static str,
    /// The router of experts.
    pub router: &'static str,
    /// Prefix of an expert, `{}` standing for its index.
    pub expert: &'static str,
    /// An expert's gate, up and down projections.
    pub of_expert: [&'static str; 3],
    /// Norm of what the feed-forward part gives.
    pub mlp_post_norm: &'static str,
    /// Final norm.
    pub final_norm: &'static str,
    /// Output head.
    pub head: &'static str,
    /// Endings of tensors that checkpoints carry and no forward pass reads.
    pub ignored: &'static [&'static str],
}

/// The names that most families have, from Llama on.
const USUAL: WeightNames = WeightNames {
    embedding: "model.embed_tokens.weight",
    positions: "model.embed_positions.weight",
    block: "model.layers.{}",
    attn_norm: "input_layernorm",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    o: "self_attn.o_proj",
    attn_post_norm: "post_attention_layernorm",
    mlp_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    router: "block_sparse_moe.gate",
    expert: "block_sparse_moe.experts.{}",
    of_expert: ["w1", "w3", "w2"],
    mlp_post_norm: "post_feedforward_layernorm",
    final_norm: "model.norm",
    head: "lm_head",
    ignored: &["rotary_emb.inv_freq"],
};

/// Those of families with norms on what attention and the feed-forward part give.
const WITH_POST_NORMS: WeightNames = WeightNames { mlp_norm: "pre_feedforward_layernorm", ..USUAL };

impl WeightNames {
    /// The full name of a part of block `layer`.
    pub fn block(&self, layer: usize, part: &str) -> String {
        format!("{}.{part}", self.block.replace("{}", &layer.to_string()))
    }

    /// The full names of gate, up and down of an expert of block `layer`.
    pub fn expert(&self, layer: usize, expert: usize) -> [String; 3] {
        let prefix = self.expert.replace("{}", &expert.to_string());
        self.of_expert.map(|part| self.block(layer, &format!("{prefix}.{part}")))
    }
}
