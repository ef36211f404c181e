//! Architectures, checkpoints and tokenizers. This crate has never heard of quantization.
//!
//! | module | holds |
//! |---|---|
//! | [`architecture`] | a decoder described as data |
//! | [`families`] | from `config.json` to that description, and the names of tensors |
//! | [`checkpoint`] | safetensors, memory-mapped, to a decoder on a device |
//! | [`tokenizer`] | text to token ids |
//! | [`decoder`], [`attention`], [`mlp`], [`linear`], [`norm`], [`kernel`], [`simd`] | the one forward pass |
//! | [`blocks`], [`parts`] | the blocks that are in memory; a decoder in parts, for models that do not fit |
//! | [`cache`] | keys and values of tokens that stand before a sequence, and the prefix of a decoder |
//! | [`hadamard`] | orthogonal transforms of any order, fast |
//! | [`rescale`] | moving a scale from an activation's channel into the weights around it |
//! | [`rotate`] | turning activations by orthogonal matrices, in the weights around them or in the forward pass |
//! | [`shapes`] | the groups of linear layers of an architecture, before a weight is read |
//! | [`site`] | its observable places, and the trait through which they are seen and changed |
//! | [`hub`] | checkpoints and data files from the Hugging Face hub, through its cache |
//! | [`builtin`] | what ships with the program |
//! | [`stories`] | the seeded grammar of its texts, with questions that have right answers |

pub mod architecture;
pub mod attention;
pub mod blocks;
pub mod builtin;
pub mod cache;
pub mod checkpoint;
#[cfg(feature = "cube")]
pub mod cube_tensor;
pub mod decoder;
pub mod families;
pub mod hadamard;
pub mod hub;
pub mod kernel;
pub mod linear;
pub mod mlp;
mod named;
pub mod norm;
pub mod packed;
pub mod parts;
pub mod product;
pub mod rescale;
pub mod rotate;
pub mod shapes;
pub mod simd;
pub mod site;
pub mod stories;
pub mod tokenizer;

pub use blocks::Blocks;
pub use cache::{Cache, Growing, KeyValues, Prefix};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use decoder::{Decoder, token_tensor};
pub use hadamard::{Construction, Fallback, Hadamard};
pub use linear::{Group, Linear};
pub use mlp::Mlp;
pub use norm::Normalisation;
pub use packed::Packed;
pub use parts::Part;
pub use rescale::RescaleError;
pub use rotate::{Online, RotateError, Turn};
pub use site::{Off, Port, Routed, Site, Tap};
