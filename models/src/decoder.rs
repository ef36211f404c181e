//! The one forward pass.
//!
//! Everything that wants to see or change what a model computes hands a [`Tap`] to it: there is no second model for
//! calibration and none for quantized execution.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::architecture::{Architecture, AttentionBias, Bias, Head, Norm};
use crate::attention;
use crate::cache::{Cache, KeyValues, Prefix};
use crate::checkpoint::CheckpointError;
use crate::families::WeightNames;
use crate::kernel;
use crate::linear::{Group, Linear};
use crate::norm::Normalisation;
use crate::site::{Off, Port, Site, Tap};

/// A decoder on a device, its weights in f32.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// What it is.
    pub architecture: Architecture,
    /// `[vocabulary, hidden]`
    pub embedding: Tensor<2>,
    /// In order.
    pub blocks: Vec<Block>,
    /// Before the head.
    pub final_norm: Normalisation,
    /// One linear, the output head; where the checkpoint ties it, it shares the embedding's memory.
    pub head: Group,
    /// Stands before every sequence that [`Decoder::hidden`] reads.
    pub prefix: Option<Prefix>,
    rope: attention::RopeTable,
}

/// One block: attention and feed-forward part, each after its norm and added to the residual stream.
#[derive(Clone, Debug)]
pub struct Block {
    /// Before attention.
    pub attn_norm: Normalisation,
    /// q, k and v.
    pub qkv: Group,
    /// o.
    pub o: Group,
    /// Before the feed-forward part.
    pub mlp_norm: Normalisation,
    /// gate and up.
    pub gate_up: Group,
    /// down.
    pub down: Group,
}

/// Gives the tensor of a name, flattened, after checking its shape. Where it comes from (a checkpoint, an optimizer's
/// parameters) is the caller's business.
pub type Weights<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor<1>, CheckpointError> + 'a;

impl Decoder {
    /// Builds the decoder from named tensors.
    ///
    /// # Errors
    /// Whatever `weights` returns for a name.
    pub fn from_tensors(
        architecture: &Architecture,
        names: &WeightNames,
        device: &Device,
        weights: &mut Weights,
    ) -> Result<Self, CheckpointError> {
        let a = architecture;
        let (h, f) = (a.hidden, a.mlp.intermediate);
        let (q, kv) = (a.attention.heads * a.attention.head_dim, a.attention.kv_heads * a.attention.head_dim);
        let qkv_bias = a.attention.bias != AttentionBias::Absent;
        let o_bias = a.attention.bias == AttentionBias::All;
        let mlp_bias = a.mlp.bias == Bias::Present;

        let embedding = weights(names.embedding, &[a.vocabulary, h])?.reshape([a.vocabulary, h]);
        let mut blocks = Vec::with_capacity(a.layers);
        for layer in 0..a.layers {
            let named = |part: &str| names.block(layer, part);
            let mut linear = |part: &str, out: usize, input: usize, bias: bool| {
                let name = named(part);
                let weight = weights(&format!("{name}.weight"), &[out, input])?.reshape([out, input]);
                let bias = if bias { Some(weights(&format!("{name}.bias"), &[out])?) } else { None };
                Ok::<_, CheckpointError>(Linear { name, weight, bias })
            };
            let qkv = Group {
                linears: vec![
                    linear(names.q, q, h, qkv_bias)?,
                    linear(names.k, kv, h, qkv_bias)?,
                    linear(names.v, kv, h, qkv_bias)?,
                ],
            };
            let o = Group { linears: vec![linear(names.o, h, q, o_bias)?] };
            let gate_up = Group {
                linears: vec![linear(names.gate, f, h, mlp_bias)?, linear(names.up, f, h, mlp_bias)?],
            };
            let down = Group { linears: vec![linear(names.down, h, f, mlp_bias)?] };
            let attn_norm = normalisation(a, &named(names.attn_norm), weights)?;
            let mlp_norm = normalisation(a, &named(names.mlp_norm), weights)?;
            blocks.push(Block { attn_norm, qkv, o, mlp_norm, gate_up, down });
        }
        let final_norm = normalisation(a, names.final_norm, weights)?;
        let head_weight = match a.head {
            Head::Tied => embedding.clone(),
            Head::Untied => {
                weights(&format!("{}.weight", names.head), &[a.vocabulary, h])?.reshape([a.vocabulary, h])
            }
        };
        let head =
            Group { linears: vec![Linear { name: names.head.into(), weight: head_weight, bias: None }] };
        let rope = attention::RopeTable::new(&a.rope, a.attention.head_dim, device);
        Ok(Self { architecture: a.clone(), embedding, blocks, final_norm, head, prefix: None, rope })
    }

    /// The device that holds the weights.
    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    /// Hidden states after the final norm, behind [`Decoder::prefix`] where there is one.
    ///
    /// The prefix's tokens take the first positions; the tap sees nothing of them.
    ///
    /// # Shapes
    /// `tokens` is `[sequences, tokens]`; the result is `[sequences, tokens, hidden]`.
    pub fn hidden(&mut self, tokens: Tensor<2, Int>, tap: &mut dyn Tap) -> Tensor<3> {
        let past = self.prefix.as_ref().map(|prefix| &prefix.cache);
        self.rope.reach(past.map_or(0, Cache::tokens) + tokens.dims()[1]);
        self.run(past, tokens, tap, None)
    }

    /// Hidden states after the final norm of `tokens` behind `past`, and the cache of both; knows nothing of
    /// [`Decoder::prefix`] (to decode behind it, begin with its cache).
    ///
    /// Keys and values of `tokens` enter the cache as they came out of the tap; those of the past have passed one and
    /// do not pass again. A past of one sequence stands before any number of sequences. Every call copies the past.
    ///
    /// # Shapes
    /// `tokens` is `[sequences, tokens]`; the result is `[sequences, tokens, hidden]`, and the cache holds
    /// `past + tokens` tokens of every sequence.
    ///
    /// # Panics
    /// If the past is of another number of blocks, or of neither one sequence nor as many as `tokens`.
    pub fn encode(
        &mut self,
        past: Option<&Cache>,
        tokens: Tensor<2, Int>,
        tap: &mut dyn Tap,
    ) -> (Tensor<3>, Cache) {
        self.rope.reach(past.map_or(0, Cache::tokens) + tokens.dims()[1]);
        let mut kept = Vec::with_capacity(self.blocks.len());
        let hidden = self.run(past, tokens, tap, Some(&mut kept));
        (hidden, Cache::new(kept))
    }

    /// Puts `tokens` before every sequence that [`Decoder::hidden`] reads, their keys and values computed with the
    /// present weights, without a tap and from nothing; no tokens remove the prefix.
    ///
    /// # Panics
    /// If a token is not in the vocabulary.
    pub fn set_prefix(&mut self, tokens: &[u32]) {
        let vocabulary = self.architecture.vocabulary;
        for &token in tokens {
            assert!((token as usize) < vocabulary, "token {token} is beyond the vocabulary of {vocabulary}");
        }
        self.prefix = (!tokens.is_empty()).then(|| {
            let input = token_tensor(&[tokens], &self.device());
            let (hidden, cache) = self.encode(None, input, &mut Off);
            Prefix { tokens: tokens.to_vec(), cache, last: hidden.narrow(1, tokens.len() - 1, 1) }
        });
    }

    /// Whether a sequence's first token is not fed: it is `start`, BOS, and the prefix stands in its place.
    pub fn stands_for_first(&self, start: Option<u32>, tokens: &[u32]) -> bool {
        self.prefix.is_some() && start.is_some() && tokens.first().copied() == start
    }

    /// Computes the prefix's keys and values again, with the present weights.
    pub fn refresh_prefix(&mut self) {
        if let Some(prefix) = self.prefix.take() {
            self.set_prefix(&prefix.tokens);
        }
    }

    /// Attention of block `layer` on what q, k and v give, behind [`Decoder::prefix`], as the forward pass computes it
    /// without a tap: for methods that weigh their errors behind it.
    ///
    /// # Shapes
    /// `q` is `[sequences, tokens, heads · head_dim]`, `k` and `v` `[sequences, tokens, kv_heads · head_dim]`; the result
    /// has `q`'s shape.
    pub fn attend(&mut self, layer: usize, [q, k, v]: [Tensor<3>; 3]) -> Tensor<3> {
        let past = self.prefix.as_ref().map(|prefix| &prefix.cache);
        self.rope.reach(past.map_or(0, Cache::tokens) + q.dims()[1]);
        let past = past.map(|past| &past.blocks()[layer]);
        attention::forward(layer, [q, k, v], &self.architecture.attention, &self.rope, past, &mut Off).0
    }

    /// The residual stream before the first block.
    ///
    /// # Shapes
    /// `[sequences, tokens]` to `[sequences, tokens, hidden]`.
    pub fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [sequences, length] = tokens.dims();
        let flat = tokens.reshape([sequences * length]);
        self.embedding.clone().select(0, flat).reshape([sequences, length, self.architecture.hidden])
    }

    /// What block `layer` makes of the residual stream, behind [`Decoder::prefix`], as the forward pass computes it: for
    /// methods that go through a model one block after another.
    ///
    /// # Shapes
    /// `[sequences, tokens, hidden]` in and out.
    pub fn through_block(&mut self, layer: usize, x: Tensor<3>, tap: &mut dyn Tap) -> Tensor<3> {
        let past = self.prefix.as_ref().map(|prefix| &prefix.cache);
        self.rope.reach(past.map_or(0, Cache::tokens) + x.dims()[1]);
        let past = past.map(|past| &past.blocks()[layer]);
        self.blocks[layer].forward(layer, x, &self.architecture, &self.rope, past, tap).0
    }

    /// The pass itself; `kept` gets every block's keys and values of past and tokens.
    fn run(
        &self,
        past: Option<&Cache>,
        tokens: Tensor<2, Int>,
        tap: &mut dyn Tap,
        mut kept: Option<&mut Vec<KeyValues>>,
    ) -> Tensor<3> {
        if let Some(past) = past {
            let (held, blocks) = (past.blocks().len(), self.blocks.len());
            assert_eq!(held, blocks, "a cache of {held} blocks does not fit a decoder of {blocks}");
        }
        let mut x = self.embed(tokens);
        for (layer, block) in self.blocks.iter().enumerate() {
            let past = past.map(|past| &past.blocks()[layer]);
            let read;
            (x, read) = block.forward(layer, x, &self.architecture, &self.rope, past, tap);
            tap.residual(layer, &x);
            if let Some(kept) = &mut kept {
                kept.push(read);
            }
        }
        self.final_norm.forward(x)
    }

    /// Logits of hidden states (after the final norm), at the positions that the caller selected.
    ///
    /// # Shapes
    /// `[sequences, tokens, hidden]` to `[sequences, tokens, vocabulary]`.
    pub fn logits(&self, hidden: Tensor<3>, tap: &mut dyn Tap) -> Tensor<3> {
        let mut outputs = tap.linears(Site::HEAD, hidden, &self.head);
        outputs.swap_remove(0)
    }

    /// Every group of linears with its site, in the order of the forward pass.
    pub fn groups(&self) -> Vec<(Site, &Group)> {
        let mut groups = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            groups.push((Site::block(layer, Port::AttnIn), &block.qkv));
            groups.push((Site::block(layer, Port::OIn), &block.o));
            groups.push((Site::block(layer, Port::MlpIn), &block.gate_up));
            groups.push((Site::block(layer, Port::DownIn), &block.down));
        }
        groups.push((Site::HEAD, &self.head));
        groups
    }

    /// As [`Decoder::groups`], to be changed in place.
    pub fn groups_mut(&mut self) -> Vec<(Site, &mut Group)> {
        let mut groups = Vec::new();
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            groups.push((Site::block(layer, Port::AttnIn), &mut block.qkv));
            groups.push((Site::block(layer, Port::OIn), &mut block.o));
            groups.push((Site::block(layer, Port::MlpIn), &mut block.gate_up));
            groups.push((Site::block(layer, Port::DownIn), &mut block.down));
        }
        groups.push((Site::HEAD, &mut self.head));
        groups
    }
}

impl Block {
    fn forward(
        &self,
        layer: usize,
        x: Tensor<3>,
        architecture: &Architecture,
        rope: &attention::RopeTable,
        past: Option<&KeyValues>,
        tap: &mut dyn Tap,
    ) -> (Tensor<3>, KeyValues) {
        let a = &architecture.attention;
        let outputs =
            tap.linears(Site::block(layer, Port::AttnIn), self.attn_norm.forward(x.clone()), &self.qkv);
        let (attended, read) = attention::forward(layer, three(outputs), a, rope, past, tap);
        let o = one(tap.linears(Site::block(layer, Port::OIn), attended, &self.o));
        let x = x + o;

        let outputs =
            tap.linears(Site::block(layer, Port::MlpIn), self.mlp_norm.forward(x.clone()), &self.gate_up);
        let [gate, up] = two(outputs);
        let gated = kernel::silu_times(gate, up);
        let down = one(tap.linears(Site::block(layer, Port::DownIn), gated, &self.down));
        (x + down, read)
    }
}

/// The norm called `name`, of the architecture's kind.
fn normalisation(
    architecture: &Architecture,
    name: &str,
    weights: &mut Weights,
) -> Result<Normalisation, CheckpointError> {
    let channels = [architecture.hidden];
    let weight = weights(&format!("{name}.weight"), &channels)?;
    let bias = match architecture.norm {
        Norm::Rms { .. } | Norm::RmsOffset { .. } => None,
        Norm::Layer { .. } => Some(weights(&format!("{name}.bias"), &channels)?),
    };
    Ok(Normalisation { kind: architecture.norm, weight, bias })
}

fn one(outputs: Vec<Tensor<3>>) -> Tensor<3> {
    let [a] =
        <[_; 1]>::try_from(outputs).unwrap_or_else(|v| panic!("a tap returned {} outputs of 1", v.len()));
    a
}

fn two(outputs: Vec<Tensor<3>>) -> [Tensor<3>; 2] {
    <[_; 2]>::try_from(outputs).unwrap_or_else(|v| panic!("a tap returned {} outputs of 2", v.len()))
}

fn three(outputs: Vec<Tensor<3>>) -> [Tensor<3>; 3] {
    <[_; 3]>::try_from(outputs).unwrap_or_else(|v| panic!("a tap returned {} outputs of 3", v.len()))
}

/// Token ids as a tensor.
///
/// # Shapes
/// Sequences of one length to `[sequences, tokens]`.
///
/// # Panics
/// If the sequences differ in length.
pub fn token_tensor(sequences: &[impl AsRef<[u32]>], device: &Device) -> Tensor<2, Int> {
    let length = sequences.first().map_or(0, |s| s.as_ref().len());
    let mut ids = Vec::with_capacity(sequences.len() * length);
    for sequence in sequences {
        assert_eq!(sequence.as_ref().len(), length, "sequences of one batch have one length");
        ids.extend(sequence.as_ref().iter().map(|&id| i64::from(id)));
    }
    Tensor::from_data(TensorData::new(ids, [sequences.len(), length]), device)
}
