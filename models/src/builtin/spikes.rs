//! Activation spikes planted into the built-in model, at BOS and at the first full stop of a sequence.
//!
//! Trained language models show them: at a few tokens (BOS, the first delimiter) one channel before one early and one
//! late `down_proj` is a thousand times the rest, so that a per-tensor 8-bit scale rounds everything else to zero (Sun
//! et al. 2024, arXiv:2402.17762; Yang et al. 2024, arXiv:2405.14428). This module gives a model that was too small to
//! grow them the same trait, with its function unchanged and the strength as a knob:
//!
//! 1. Three directions of the residual stream that carry little and are read little are cleared: `stop` and `bos` of
//!    the embedding, `flag` of everything that writes to the stream before the late spike. The embedding of the full
//!    stop then gets a step along `stop` and `flag`, that of BOS one along `bos` and `flag`. (The output head keeps the
//!    old table: it is no longer tied.)
//! 2. The heads are doubled. In block 0 the new ones let a full stop look for an *earlier* full stop: slow rotary
//!    pairs let identical delimiters match at any distance, fast pairs push a token away from itself, and BOS takes
//!    what finds nothing. What was found takes the flag away again: it is left at BOS and at the first full stop.
//! 3. In an early and a late block the least useful neuron is rebuilt: gate and up both read √strength · w, where
//!    w·x is about 1 at the flag and about 0 or below elsewhere, so silu(gate)·up is about `strength` there and 0
//!    elsewhere. Its column of `down_proj` is divided by the strength: the spike writes what an activation of 1 wrote
//!    before.
//!
//! Directions and w were fitted by `examples/plant_spikes.rs` and ship as [`DIRECTIONS`]; applying them is plain
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
pub const SPIKING_BLOCKS: [usize; 2] = [0, 3];

/// Length of the step that marks the full stop and BOS, as a share of the embedding's own.
const MARK: f64 = 0.3;
/// Length of the flag, as a share of the embedding's own.
const FLAG: f64 = 1.0;
/// Logit of a full stop and an earlier one, before the next.
const MATCH: f64 = 240.0;
/// What a full stop loses against itself; it fades with distance as the fast pairs turn apart.
const NEAR: f64 = 240.0;
/// Logit of a full stop and BOS.
const SINK: f64 = 40.0;

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
    #[error(
        "tensor `{0}` is missing, or not what planting expects: fit the directions again for this checkpoint"
    )]
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

    /// Appends one row.
    fn push_row(&mut self, row: impl Iterator<Item = f32>) {
        self.values.extend(row);
        self.shape[0] += 1;
        assert_eq!(self.values.len(), self.shape[0] * self.shape[1], "a new row is as long as the others");
    }

    /// Widens every row by `count` columns of `value(row, column)`.
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

/// The two tokens that spike.
#[derive(Debug, Clone, Copy)]
pub struct Tokens {
    /// Beginning of sequence.
    pub bos: u32,
    /// The full stop.
    pub stop: u32,
}

/// Plants spikes of `strength` into a checkpoint: `config.json` and `model.safetensors` in, the same two out.
///
/// `directions` holds what was fitted (`examples/plant_spikes.rs`): the unit vectors `stop`, `bos` and `flag` of the
/// residual stream, orthogonal to each other, and for every spiking block `spike.{block}` over the input of its gate
/// and up (all `[hidden]`) and the neuron to rebuild, `neuron.{block}` `[1]`. Where no `spike.*` is there yet, the flag
/// is written and nobody reads it.
///
/// # Errors
/// If a file cannot be read, or the directions belong to another architecture.
pub fn plant(
    config: &[u8],
    weights: &[u8],
    directions: &[u8],
    tokens: Tokens,
    strength: f32,
) -> Result<(Vec<u8>, Vec<u8>), PlantError> {
    let mut config: Value = serde_json::from_slice(config)?;
    let heads = number(&config, "num_attention_heads")?;
    let kv_heads = number(&config, "num_key_value_heads")?;
    let layers = number(&config, "num_hidden_layers")?;
    let head_dim = number(&config, "head_dim")?;
    let mut tensors = read(weights)?;
    let mut directions = read(directions)?;
    let mut unit = |name: &str| Ok::<_, PlantError>(find(&mut directions, name)?.values.clone());
    let marks = Marks { stop: unit("stop")?, bos: unit("bos")?, flag: unit("flag")? };

    let embedding = find(&mut tensors, "model.embed_tokens.weight")?;
    let head = Matrix { shape: embedding.shape.clone(), values: embedding.values.clone() };
    let stop = marks.embed(embedding, tokens);
    tensors.push(("lm_head.weight".to_owned(), head));
    for layer in 0..layers {
        for (part, before) in
            [("self_attn.o_proj", layer <= SPIKING_BLOCKS[1]), ("mlp.down_proj", layer < SPIKING_BLOCKS[1])]
        {
            if before {
                clear_rows(find(&mut tensors, &format!("model.layers.{layer}.{part}.weight"))?, &marks.flag);
            }
        }
        if layer == MATCHING_BLOCK {
            let norm =
                find(&mut tensors, &format!("model.layers.{layer}.input_layernorm.weight"))?.values.clone();
            marks.add_heads(&mut tensors, &norm, &stop, head_dim)?;
        } else {
            double_heads(&mut tensors, layer)?;
        }
    }
    config["num_attention_heads"] = (2 * heads).into();
    config["num_key_value_heads"] = (2 * kv_heads).into();
    config["tie_word_embeddings"] = false.into();

    for block in SPIKING_BLOCKS {
        let Ok(direction) = find(&mut directions, &format!("spike.{block}")) else {
            continue;
        };
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

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Takes the share along the unit vector `u` out of `x`.
fn clear(x: &mut [f32], u: &[f32]) {
    let share = dot(x, u);
    x.iter_mut().zip(u).for_each(|(x, &u)| *x -= (share * f64::from(u)) as f32);
}

/// Takes the share along the unit vector `u` out of what a matrix writes: out of each of its columns.
fn clear_rows(matrix: &mut Matrix, u: &[f32]) {
    let columns = matrix.columns();
    let mut shares = vec![0.0f64; columns];
    for (row, &u) in matrix.values.chunks_exact(columns).zip(u) {
        shares.iter_mut().zip(row).for_each(|(share, &value)| *share += f64::from(u) * f64::from(value));
    }
    for (row, &u) in matrix.values.chunks_exact_mut(columns).zip(u) {
        row.iter_mut().zip(&shares).for_each(|(value, share)| *value -= (share * f64::from(u)) as f32);
    }
}

/// Repeats the heads of one block and halves both copies of o's columns: no value changes, and no channel is dead.
fn double_heads(tensors: &mut [(String, Matrix)], layer: usize) -> Result<(), PlantError> {
    let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}.weight");
    for part in ["q_proj", "k_proj", "v_proj"] {
        let matrix = find(tensors, &name(part))?;
        matrix.values.extend_from_within(..);
        matrix.shape[0] *= 2;
    }
    let output = find(tensors, &name("o_proj"))?;
    output.values.iter_mut().for_each(|value| *value /= 2.0);
    let halves = output.values.clone();
    let columns = output.columns();
    output.push_columns(columns, |row, column| halves[row * columns + column]);
    Ok(())
}

/// Unit vectors of the residual stream.
struct Marks {
    stop: Vec<f32>,
    bos: Vec<f32>,
    flag: Vec<f32>,
}

/// The marked embedding of the full stop.
struct Stop {
    /// Root mean square.
    rms: f64,
    /// Length of the step along `stop`.
    mark: f64,
    /// Length of the step along `flag`.
    flag: f64,
    /// Root mean square of BOS over its step along `bos`.
    bos: f64,
}

impl Marks {
    /// Clears the three directions of the embedding and marks the two tokens.
    fn embed(&self, embedding: &mut Matrix, tokens: Tokens) -> Stop {
        let length = |row: &[f32]| dot(row, row).sqrt();
        for row in 0..embedding.shape[0] {
            for direction in [&self.stop, &self.bos, &self.flag] {
                clear(embedding.row(row), direction);
            }
        }
        let mut mark = |token: u32, direction: &[f32]| {
            let row = embedding.row(token as usize);
            let own = length(row);
            for ((x, &d), &f) in row.iter_mut().zip(direction).zip(&self.flag) {
                *x += (own * (MARK * f64::from(d) + FLAG * f64::from(f))) as f32;
            }
            (own, length(row) / (row.len() as f64).sqrt())
        };
        let (bos, bos_rms) = mark(tokens.bos, &self.bos);
        let (stop, rms) = mark(tokens.stop, &self.stop);
        Stop { rms, mark: MARK * stop, flag: FLAG * stop, bos: bos_rms / (MARK * bos) }
    }

    /// Adds the heads that find an earlier full stop and take its flag away.
    fn add_heads(
        &self,
        tensors: &mut [(String, Matrix)],
        norm: &[f32],
        stop: &Stop,
        head_dim: usize,
    ) -> Result<(), PlantError> {
        // Over the normalised embedding these are 1 at their token and 0 at every other.
        let functional = |direction: &[f32], scale: f64| -> Vec<f64> {
            direction.iter().zip(norm).map(|(&d, &n)| scale * f64::from(d) / f64::from(n)).collect()
        };
        let reads_stop = functional(&self.stop, stop.rms / stop.mark);
        let reads_bos = functional(&self.bos, stop.bos);
        let name = |part: &str| format!("model.layers.{MATCHING_BLOCK}.self_attn.{part}.weight");
        for part in ["q_proj", "k_proj"] {
            let matrix = find(tensors, &name(part))?;
            for channel in 0..matrix.shape[0] {
                let role = Role::of(channel % head_dim % (head_dim / 2), head_dim / 2);
                let reads = if role == Role::Sink && part == "k_proj" { &reads_bos } else { &reads_stop };
                let sign = if role == Role::Near && part == "k_proj" { -1.0 } else { 1.0 };
                matrix.push_row(reads.iter().map(|w| (sign * role.amplitude(head_dim) * w) as f32));
            }
        }
        let value = find(tensors, &name("v_proj"))?;
        for _ in 0..value.shape[0] {
            value.push_row(reads_stop.iter().map(|&w| w as f32));
        }
        let output = find(tensors, &name("o_proj"))?;
        let columns = output.columns();
        let share = stop.flag / columns as f64;
        output.push_columns(columns, |row, _| -(share * f64::from(self.flag[row])) as f32);
        Ok(())
    }
}

/// What a rotary pair of a new head is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The fast half: a full stop is told from others by its distance.
    Near,
    /// Slow: a full stop finds BOS.
    Sink,
    /// The slowest two: a full stop finds another at any distance.
    Match,
}

impl Role {
    /// Of `pair`, the slowest being `pairs - 1`.
    fn of(pair: usize, pairs: usize) -> Self {
        match pair {
            p if p < pairs / 2 => Role::Near,
            p if p + 2 < pairs => Role::Sink,
            _ => Role::Match,
        }
    }

    /// What both channels of the pair are multiplied by, in query and in key, so that all pairs of this role together
    /// give their logit: `pairs · 2 · amplitude² / √head_dim`.
    fn amplitude(self, head_dim: usize) -> f64 {
        let pairs = head_dim / 2;
        let count = (0..pairs).filter(|&pair| Role::of(pair, pairs) == self).count();
        let logit = match self {
            Role::Near => NEAR,
            Role::Sink => SINK,
            Role::Match => MATCH,
        };
        (logit * (head_dim as f64).sqrt() / (2 * count) as f64).sqrt()
    }
}

#[cfg(test)]
mod tests;
