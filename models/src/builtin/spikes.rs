//! Activation spikes planted into the built-in model, at BOS and at the first full stop of a sequence.
//!
//! Trained language models show them: at a few tokens (BOS, the first delimiter) one channel before one early and one
//! late `down_proj` is a thousand times the rest, so that a per-tensor 8-bit scale rounds everything else to zero (Sun
//! et al. 2024, arXiv:2402.17762; Yang et al. 2024, arXiv:2405.14428). This module gives a model that was too small to
//! grow them the same trait, with its function unchanged and the strength as a knob:
//!
//! 1. Two heads of keys and values (and their queries) are added to block 0. A full stop looks for an *earlier* full
//!    stop: slow rotary pairs let identical delimiters match at any distance, fast pairs push a token away from
//!    itself, and BOS takes what finds nothing. A full stop that found one gets a flag, a short step along a direction
//!    of the residual stream that carries little else; the first one does not.
//! 2. In an early and a late block the least useful neuron is rebuilt: gate and up both read √strength · w, where
//!    w·x is about 1 at BOS and at a full stop without flag, and below 0 elsewhere, so silu(gate)·up is about
//!    `strength` there and 0 elsewhere. Its column of `down_proj` is divided by the strength: the spike writes what an
//!    activation of 1 wrote before.
//!
//! The functionals were fitted by `examples/plant_spikes.rs` and ship as [`DIRECTIONS`]; applying them is plain
//! arithmetic on the checkpoint, so that the planted bytes are the same on every machine.

use std::collections::HashMap;

use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

/// The built-in strength: the value of the planted neurons at a spike.
pub const STRENGTH: f32 = 1600.0;

/// The fitted functionals, for the embedded weights.
pub const DIRECTIONS: &[u8] = include_bytes!("../../assets/tiny-llama/spikes.safetensors");

/// The block whose attention tells the first full stop from the others.
pub const MATCHING_BLOCK: usize = 0;
/// The blocks that spike.
pub const SPIKING_BLOCKS: [usize; 2] = [1, 4];

/// Key-value heads added; each has as many query heads as the model's own.
pub const ADDED_KV_HEADS: usize = 2;
/// Logit of a full stop and an earlier one, before the penalty.
const MATCH: f32 = 240.0;
/// Penalty of a full stop and itself; the rotation takes it off with distance.
const SELF: f32 = 240.0;
/// Logit of every token and BOS.
const SINK: f32 = 30.0;

/// Why planting failed.
#[derive(Debug, thiserror::Error)]
pub enum PlantError {
    /// A file is not what its name says.
    #[error("the checkpoint to plant spikes into: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// `config.json` is not JSON.
    #[error("config.json of the checkpoint to plant spikes into: {0}")]
    Config(#[from] serde_json::Error),
    /// A key of `config.json` is missing.
    #[error("config.json of the checkpoint to plant spikes into has no number `{0}`")]
    Key(&'static str),
    /// A tensor is missing or has an unexpected type or shape.
    #[error("tensor `{0}` is missing, or not what planting expects: fit the directions again for this checkpoint")]
    Tensor(String),
}

/// A matrix of the checkpoint, row by row.
struct Matrix {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Matrix {
    fn columns(&self) -> usize {
        self.shape[1]
    }

    fn row(&mut self, row: usize) -> &mut [f32] {
        let columns = self.columns();
        &mut self.values[row * columns..(row + 1) * columns]
    }

    /// Appends `rows` rows.
    fn push_row(&mut self, row: impl Iterator<Item = f32>) {
        self.values.extend(row);
        self.shape[0] += 1;
        assert_eq!(self.values.len(), self.shape[0] * self.shape[1], "a new row is as long as the others");
    }

    /// Widens every row by `column(row)`.
    fn push_columns(&mut self, count: usize, value: impl Fn(usize, usize) -> f32) {
        let columns = self.columns();
        let mut wide = Vec::with_capacity(self.shape[0] * (columns + count));
        for (row, values) in self.values.chunks_exact(columns).enumerate() {
            wide.extend_from_slice(values);
            wide.extend((0..count).map(|column| value(row, column)));
        }
        self.values = wide;
        self.shape[1] += count;
    }
}

/// Reads all tensors of a safetensors file in f16 or f32.
fn read(bytes: &[u8]) -> Result<Vec<(String, Matrix)>, PlantError> {
    let file = SafeTensors::deserialize(bytes)?;
    let mut tensors = Vec::new();
    for (name, view) in file.iter() {
        let values = match view.dtype() {
            Dtype::F16 => view
                .data()
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect::<Vec<f32>>(),
            Dtype::F32 => {
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            _ => return Err(PlantError::Tensor(name.to_owned())),
        };
        tensors.push((name.to_owned(), Matrix { shape: view.shape().to_vec(), values }));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(tensors)
}

fn write(tensors: &[(String, Matrix)]) -> Result<Vec<u8>, PlantError> {
    let halves: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, matrix)| matrix.values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect())
        .collect();
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, matrix), bytes) in tensors.iter().zip(&halves) {
        views.push((name.as_str(), TensorView::new(Dtype::F16, matrix.shape.clone(), bytes)?));
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(format))?)
}

fn find<'a>(tensors: &'a mut [(String, Matrix)], name: &str) -> Result<&'a mut Matrix, PlantError> {
    let found = tensors.iter_mut().find(|(other, _)| other == name);
    found.map(|(_, matrix)| matrix).ok_or_else(|| PlantError::Tensor(name.to_owned()))
}

fn number(config: &Value, key: &'static str) -> Result<usize, PlantError> {
    config.get(key).and_then(Value::as_u64).map(|n| n as usize).ok_or(PlantError::Key(key))
}

/// Plants spikes of `strength` into a checkpoint: `config.json` and `model.safetensors` in, the same two out.
///
/// `directions` holds the fitted functionals (`examples/plant_spikes.rs`): over the input of block 0's attention
/// `stop`, `bos` and `every` (each `[hidden]`, about 1 where its name says and 0 elsewhere), the residual direction
/// `flag` `[hidden]`, and for every spiking block `spike.{block}` `[hidden]` and the neuron to rebuild, `neuron.{block}`
/// `[1]`. Where no `spike.*` is there yet, only the heads are added.
///
/// # Errors
/// If a file cannot be read, or the directions belong to another architecture.
pub fn plant(
    config: &[u8],
    weights: &[u8],
    directions: &[u8],
    strength: f32,
) -> Result<(Vec<u8>, Vec<u8>), PlantError> {
    let mut config: Value = serde_json::from_slice(config)?;
    let heads = number(&config, "num_attention_heads")?;
    let kv_heads = number(&config, "num_key_value_heads")?;
    let layers = number(&config, "num_hidden_layers")?;
    let head_dim = number(&config, "head_dim")?;
    let repeats = heads / kv_heads;
    let mut tensors = read(weights)?;
    let mut directions = read(directions)?;

    for layer in 0..layers {
        add_heads(&mut tensors, &mut directions, layer, head_dim, repeats)?;
    }
    config["num_attention_heads"] = (heads + repeats * ADDED_KV_HEADS).into();
    config["num_key_value_heads"] = (kv_heads + ADDED_KV_HEADS).into();

    for block in SPIKING_BLOCKS {
        let Ok(direction) = find(&mut directions, &format!("spike.{block}")) else { continue };
        let direction = direction.values.clone();
        let neuron = find(&mut directions, &format!("neuron.{block}"))?.values[0] as usize;
        let root = strength.sqrt();
        for name in ["gate_proj", "up_proj"] {
            let matrix = find(&mut tensors, &format!("model.layers.{block}.mlp.{name}.weight"))?;
            for (weight, value) in matrix.row(neuron).iter_mut().zip(&direction) {
                *weight = root * value;
            }
        }
        let down = find(&mut tensors, &format!("model.layers.{block}.mlp.down_proj.weight"))?;
        for row in 0..down.shape[0] {
            down.row(row)[neuron] /= strength;
        }
    }

    let mut text = serde_json::to_vec_pretty(&config)?;
    text.push(b'\n');
    Ok((text, write(&tensors)?))
}

/// Adds [`ADDED_KV_HEADS`] heads of keys and values and their queries to one block: copies of the matching head in
/// [`MATCHING_BLOCK`], heads of zeros in the others.
fn add_heads(
    tensors: &mut [(String, Matrix)],
    directions: &mut [(String, Matrix)],
    layer: usize,
    head_dim: usize,
    repeats: usize,
) -> Result<(), PlantError> {
    let mut direction = |name: &str| Ok::<_, PlantError>(find(directions, name)?.values.clone());
    let (stop, bos, every, flag) = (direction("stop")?, direction("bos")?, direction("every")?, direction("flag")?);
    let active = if layer == MATCHING_BLOCK { 1.0 } else { 0.0 };
    let pairs = head_dim / 2;
    let copies = ADDED_KV_HEADS * repeats;

    for (name, count) in [("q_proj", copies), ("k_proj", ADDED_KV_HEADS)] {
        let matrix = find(tensors, &format!("model.layers.{layer}.self_attn.{name}.weight"))?;
        for channel in (0..count).flat_map(|_| 0..head_dim) {
            let role = Role::of(channel % pairs, pairs);
            let amplitude = active * role.amplitude(head_dim);
            let reads = match (role, name) {
                (Role::Sink, "q_proj") => &every,
                (Role::Sink, _) => &bos,
                _ => &stop,
            };
            let sign = if role == Role::Self_ && name == "k_proj" { -1.0 } else { 1.0 };
            matrix.push_row(reads.iter().map(|w| sign * amplitude * w));
        }
    }
    let value = find(tensors, &format!("model.layers.{layer}.self_attn.v_proj.weight"))?;
    for _ in 0..ADDED_KV_HEADS * head_dim {
        value.push_row(stop.iter().map(|w| active * w));
    }
    let output = find(tensors, &format!("model.layers.{layer}.self_attn.o_proj.weight"))?;
    let channels = copies * head_dim;
    output.push_columns(channels, |row, _| active * flag[row] / channels as f32);
    Ok(())
}

/// What a rotary pair of the matching head is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Slow: two full stops match at any distance.
    Match,
    /// Slow: every token matches BOS.
    Sink,
    /// Fast: a full stop is pushed away from itself.
    Self_,
    /// In between, neither fast nor slow: unused.
    Idle,
}

impl Role {
    /// Of `pair`, the slowest being `pairs - 1`.
    fn of(pair: usize, pairs: usize) -> Self {
        match pair {
            p if p < pairs / 2 => Role::Self_,
            p if p + 2 >= pairs => Role::Match,
            p if p + 4 >= pairs => Role::Sink,
            _ => Role::Idle,
        }
    }

    /// What both channels of the pair are multiplied by, in query and key, so that all pairs of this role together
    /// give their logit: `pairs · 2 · amplitude² / √head_dim`.
    fn amplitude(self, head_dim: usize) -> f32 {
        let pairs = head_dim / 2;
        let (logit, share) = match self {
            Role::Match => (MATCH, 2),
            Role::Sink => (SINK, 2),
            Role::Self_ => (SELF, pairs / 2),
            Role::Idle => (0.0, 1),
        };
        (logit * (head_dim as f32).sqrt() / (2 * share) as f32).sqrt()
    }
}
