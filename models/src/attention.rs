//! Causal grouped-query attention: norms of queries and keys, rotary embedding, windows, capped scores.

use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::architecture::{Attention, Cap, Pairs, Rope, ScoreScale};
use crate::cache::{KeyValues, Past};
use crate::kernel;
use crate::norm::Normalisation;
use crate::packed::Packed;
use crate::site::{Port, Site, Tap};

mod host;

/// Cosines and sines of every position, made once and extended when a longer sequence comes.
#[derive(Clone, Debug)]
pub struct RopeTable {
    frequencies: Vec<f64>,
    pairs: Pairs,
    device: Device,
    /// `[positions, head_dim / 2]`
    cos: Tensor<2>,
    /// `[positions, head_dim / 2]`
    sin: Tensor<2>,
}

impl RopeTable {
    /// An empty table.
    pub fn new(rope: &Rope, head_dim: usize, device: &Device) -> Self {
        let frequencies = rope.frequencies(head_dim);
        let (cos, sin) = tables(&frequencies, 1, device);
        Self { frequencies, pairs: rope.pairs, device: device.clone(), cos, sin }
    }

    /// Makes the table hold at least `length` positions.
    pub fn reach(&mut self, length: usize) {
        if self.cos.dims()[0] < length {
            (self.cos, self.sin) = tables(&self.frequencies, length.next_power_of_two(), &self.device);
        }
    }

    /// Cosines and sines of positions `start..start + length`, each `[length, head_dim / 2]`.
    pub fn positions(&self, start: usize, length: usize) -> (Tensor<2>, Tensor<2>) {
        let range = start..start + length;
        (self.cos.clone().slice([range.clone()]), self.sin.clone().slice([range]))
    }

    /// Cosines and sines of these positions behind `start`, each `[positions, head_dim / 2]`.
    pub fn at(&self, start: usize, positions: &[usize]) -> (Tensor<2>, Tensor<2>) {
        let rows: Vec<i64> = positions.iter().map(|&position| (start + position) as i64).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [positions.len()]), &self.device);
        (self.cos.clone().select(0, rows.clone()), self.sin.clone().select(0, rows))
    }
}

/// The reference multiplies position and frequency in f32; so do we, because at positions in the thousands the product
/// in f64 differs from it by more than the logits' tolerance.
fn tables(frequencies: &[f64], length: usize, device: &Device) -> (Tensor<2>, Tensor<2>) {
    let pairs = frequencies.len();
    let angles = (0..length).flat_map(|p| frequencies.iter().map(move |&f| p as f32 * f as f32));
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos(), a.sin())).unzip();
    let tensor = |values| Tensor::from_data(TensorData::new(values, [length, pairs]), device);
    (tensor(cos), tensor(sin))
}

/// The rotary tables of a decoder.
#[derive(Clone, Debug)]
pub struct Ropes {
    full: RopeTable,
    /// Of blocks with a window, where they turn otherwise.
    local: Option<RopeTable>,
}

impl Ropes {
    /// Empty tables.
    pub fn new(rope: &Rope, head_dim: usize, device: &Device) -> Self {
        let local = rope.in_windows().map(|rope| RopeTable::new(&rope, head_dim, device));
        Self { full: RopeTable::new(rope, head_dim, device), local }
    }

    /// Makes the tables hold at least `length` positions.
    pub fn reach(&mut self, length: usize) {
        self.full.reach(length);
        if let Some(local) = &mut self.local {
            local.reach(length);
        }
    }

    /// The table of a block with this window.
    pub fn of(&self, window: Option<usize>) -> &RopeTable {
        match (&self.local, window) {
            (Some(local), Some(_)) => local,
            _ => &self.full,
        }
    }
}

/// Norms of queries and keys, over the channels of each head.
#[derive(Clone, Debug)]
pub struct QkNorms {
    /// Of queries.
    pub q: HeadNorm,
    /// Of keys.
    pub k: HeadNorm,
}

/// A norm over the channels of each head.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "two exist in a block")]
pub enum HeadNorm {
    /// All heads share one weight, `[head_dim]`.
    Shared(Normalisation),
    /// Every head has its own.
    PerHead {
        /// With a weight of ones, `[head_dim]`.
        plain: Normalisation,
        /// `[heads · head_dim]`
        weight: Tensor<1>,
    },
}

impl HeadNorm {
    /// # Shapes
    /// `[sequences, tokens, heads · head_dim]` in and out.
    fn forward(&self, x: Tensor<3>, head_dim: usize) -> Tensor<3> {
        let dims = x.dims();
        let rows = x.reshape([dims[0], dims[1] * dims[2] / head_dim, head_dim]);
        match self {
            HeadNorm::Shared(norm) => norm.forward(rows).reshape(dims),
            HeadNorm::PerHead { plain, weight } => {
                plain.forward(rows).reshape(dims) * weight.clone().unsqueeze()
            }
        }
    }
}

/// Attention of block `layer`, behind `past` where there is one; the result, and keys and values of past and tokens.
///
/// The past does not pass the tap: it did so when it was made. Of `packed` segments each attends for itself, behind the
/// past and what it follows; there is one row, and keys and values that are returned are those of the row alone.
///
/// # Shapes
/// `q` is `[sequences, tokens, heads · head_dim]`, `k` and `v` `[sequences, tokens, kv_heads · head_dim]`; the result has
/// `q`'s shape.
pub(crate) fn forward(
    layer: usize,
    [q, k, v]: [Tensor<3>; 3],
    shape: &Attention,
    norms: Option<&QkNorms>,
    ropes: Option<&Ropes>,
    (past, packed): (Past, Option<&Packed>),
    tap: &mut dyn Tap,
) -> (Tensor<3>, KeyValues) {
    let tokens = q.dims()[1];
    let behind = past.tokens();
    let window = shape.window.of(layer);
    let (q, k) = match norms {
        Some(norms) => (norms.q.forward(q, shape.head_dim), norms.k.forward(k, shape.head_dim)),
        None => (q, k),
    };
    let turns = ropes.map(|ropes| {
        let table = ropes.of(window);
        let angles = match packed {
            Some(packed) => table.at(behind, packed.positions()),
            None => table.positions(behind, tokens),
        };
        (table.pairs, angles)
    });
    let turn = |tap: &mut dyn Tap, port: Port, x: Tensor<4>| match &turns {
        Some((pairs, (cos, sin))) => tap.turned(Site::block(layer, port), x, *pairs, [cos, sin]),
        None => tap.tensor(Site::block(layer, port), x),
    };
    let k = tap.tensor(Site::block(layer, Port::KPre), split(k, shape.kv_heads));
    let q = turn(tap, Port::Q, split(q, shape.heads));
    let k = turn(tap, Port::K, k);
    let v = tap.tensor(Site::block(layer, Port::V), split(v, shape.kv_heads));

    let read = KeyValues { keys: k, values: v };
    if let Some(packed) = packed {
        return (packed.attend(&q, &read, past.held(), &|q, k, v| attend(q, k, v, shape, window)), read);
    }
    let read = past.followed_by(read);
    (attend(q, read.keys.clone(), read.values.clone(), shape, window), read)
}

/// Causal attention of queries that are the last of the tokens whose keys and values are given.
///
/// # Shapes
/// As [`host::attend`].
fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, shape: &Attention, window: Option<usize>) -> Tensor<3> {
    let [sequences, _, tokens, _] = q.dims();
    let behind = k.dims()[2] - tokens;
    if kernel::on_host(&q.device()) {
        return host::attend(q, k, v, shape, window);
    }
    let queries_per_key = shape.heads / shape.kv_heads;
    // Whose corner `is_causal` aligns where keys outnumber queries is not promised by every back end.
    let masked = behind > 0 || window.is_some_and(|window| window < tokens);
    let mask = masked.then(|| {
        let (dims, device) = ([tokens, behind + tokens], q.device());
        let mut mask = Tensor::<2, Bool>::tril_mask(dims, behind as i64, &device);
        if let Some(window) = window {
            let before = behind as i64 - window as i64 + 1;
            mask = mask.bool_or(Tensor::<2, Bool>::triu_mask(dims, before, &device));
        }
        mask.unsqueeze::<4>().expand([sequences, shape.heads, tokens, behind + tokens])
    });
    let options = AttentionModuleOptions {
        is_causal: !masked,
        scale: match shape.scale {
            ScoreScale::HeadDim => None,
            ScoreScale::Of(_) => Some(shape.scale.factor(shape.head_dim)),
        },
        softcap: match shape.cap {
            Cap::Absent => None,
            Cap::Tanh(cap) => Some(cap),
        },
    };
    let y = attention(q, repeat(k, queries_per_key), repeat(v, queries_per_key), mask, None, options);
    y.swap_dims(1, 2).reshape([sequences, tokens, shape.heads * shape.head_dim])
}

/// `[sequences, tokens, heads · head_dim]` to `[sequences, heads, tokens, head_dim]`.
fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [sequences, tokens, channels] = x.dims();
    x.reshape([sequences, tokens, heads, channels / heads]).swap_dims(1, 2)
}

/// Every key/value head stands `times` times in a row, once per query head that reads it.
fn repeat(x: Tensor<4>, times: usize) -> Tensor<4> {
    if times == 1 {
        return x;
    }
    let [sequences, heads, tokens, head_dim] = x.dims();
    x.unsqueeze_dim::<5>(2).expand([sequences, heads, times, tokens, head_dim]).reshape([
        sequences,
        heads * times,
        tokens,
        head_dim,
    ])
}
