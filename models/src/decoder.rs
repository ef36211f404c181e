//! The one forward pass.
//!
//! Everything that wants to see or change what a model computes hands a [`Tap`] to it: there is no second model for
//! calibration and none for quantized execution.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::architecture::{
    Architecture, AttentionBias, Bias, EmbeddingScale, Head, Logits, MlpForm, Positions, PostNorms, QkNorm,
    Table,
};
use crate::attention::{self, HeadNorm, QkNorms, Ropes};
use crate::cache::{Cache, KeyValues, Prefix};
use crate::checkpoint::CheckpointError;
use crate::families::WeightNames;
use crate::kernel;
use crate::linear::{Group, Linear};
use crate::mlp::{Expert, Mlp};
use crate::norm::Normalisation;
use crate::packed::Packed;
use crate::rotate::Online;
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
    /// What happens to activations before a tap sees them; see [`crate::rotate`].
    pub online: Online,
    /// `[context + offset, hidden]`; of learned positions.
    pub positions: Option<Tensor<2>>,
    ropes: Option<Ropes>,
}

/// One block: attention and feed-forward part, each after its norm and added to the residual stream; or both after one
/// norm and added together.
#[derive(Clone, Debug)]
pub struct Block {
    /// Before attention; in a parallel block, before both parts.
    pub attn_norm: Normalisation,
    /// q, k and v; in a parallel block, gate and up behind them.
    pub qkv: Group,
    /// Of queries and keys.
    pub qk_norms: Option<QkNorms>,
    /// o.
    pub o: Group,
    /// The feed-forward part and the norm before it.
    pub mlp: Mlp,
    /// On what attention and the feed-forward part give.
    pub post_norms: Option<[Normalisation; 2]>,
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
        let h = a.hidden;
        let embedding = weights(names.embedding, &[a.vocabulary, h])?.reshape([a.vocabulary, h]);
        let (positions, ropes) = match &a.positions {
            Positions::Rotary(rope) => (None, Some(Ropes::new(rope, a.attention.head_dim, device))),
            Positions::Learned(Table { offset }) => {
                let rows = a.context + offset;
                (Some(weights(names.positions, &[rows, h])?.reshape([rows, h])), None)
            }
        };
        let mut blocks = Vec::with_capacity(a.layers);
        for layer in 0..a.layers {
            blocks.push(block(a, names, layer, weights)?);
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
        Ok(Self {
            architecture: a.clone(),
            embedding,
            blocks,
            final_norm,
            head,
            prefix: None,
            online: Online::default(),
            positions,
            ropes,
        })
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
        self.reach(self.prefix.as_ref().map_or(0, |prefix| prefix.cache.tokens()) + tokens.dims()[1]);
        let past = self.prefix.as_ref().map(|prefix| &prefix.cache);
        self.run(past, None, tokens, tap, None)
    }

    /// As [`Decoder::hidden`], of sequences that stand packed in one row.
    ///
    /// # Shapes
    /// `[1, tokens, hidden]`
    ///
    /// # Panics
    /// Without tokens.
    pub fn packed(&mut self, packed: &Packed, tap: &mut dyn Tap) -> Tensor<3> {
        self.reach(self.prefix.as_ref().map_or(0, |prefix| prefix.cache.tokens()) + packed.longest());
        let past = self.prefix.as_ref().map(|prefix| &prefix.cache);
        let tokens = token_tensor(&[packed.tokens()], &self.device());
        self.run(past, Some(packed), tokens, tap, None)
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
        self.reach(past.map_or(0, Cache::tokens) + tokens.dims()[1]);
        let mut kept = Vec::with_capacity(self.blocks.len());
        let hidden = self.run(past, None, tokens, tap, Some(&mut kept));
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
        self.reach(self.prefix.as_ref().map_or(0, |prefix| prefix.cache.tokens()) + q.dims()[1]);
        let past = self.prefix.as_ref().map(|prefix| &prefix.cache.blocks()[layer]);
        let (shape, norms) = (&self.architecture.attention, self.blocks[layer].qk_norms.as_ref());
        let tap = &mut Off;
        let tap = &mut self.online.before(tap);
        attention::forward(layer, [q, k, v], shape, norms, self.ropes.as_ref(), (past, None), tap).0
    }

    /// What the outputs of a site's group become before the next group reads them, as the forward pass computes it
    /// without a tap and behind [`Decoder::prefix`]: attention of q, k and v, the gated unit of gate and up, the
    /// activation of up. Of a parallel block's `attn_in` both, one behind the other in the channels; of other groups what
    /// they give.
    ///
    /// # Shapes
    /// The group's outputs, `[sequences, tokens, out]` each, to `[sequences, tokens, channels]`.
    ///
    /// # Panics
    /// If there are not as many outputs as the group has linears.
    pub fn between(&mut self, site: Site, mut outputs: Vec<Tensor<3>>) -> Tensor<3> {
        match (site.layer, site.port) {
            (Some(layer), Port::AttnIn) => {
                let beside = outputs.split_off(3);
                let attended = self.attend(layer, three(outputs));
                if beside.is_empty() {
                    return attended;
                }
                Tensor::cat(vec![attended, self.blocks[layer].mlp.between(None, beside)], 2)
            }
            (Some(layer), Port::MlpIn) => self.blocks[layer].mlp.between(site.expert, outputs),
            _ => one(outputs),
        }
    }

    /// Makes the rotary tables hold `length` positions.
    ///
    /// # Panics
    /// If positions are learned and fewer.
    fn reach(&mut self, length: usize) {
        if let Some(ropes) = &mut self.ropes {
            ropes.reach(length);
        }
        if self.positions.is_some() {
            let context = self.architecture.context;
            assert!(
                length <= context,
                "{length} tokens are more than the {context} positions that were learned"
            );
        }
    }

    /// The residual stream before the first block, of tokens behind [`Decoder::prefix`].
    ///
    /// # Shapes
    /// `[sequences, tokens]` to `[sequences, tokens, hidden]`.
    pub fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.embed_behind(tokens, self.prefix.as_ref().map_or(0, |prefix| prefix.cache.tokens()), None)
    }

    /// What block `layer` makes of the residual stream, behind [`Decoder::prefix`], as the forward pass computes it: for
    /// methods that go through a model one block after another.
    ///
    /// # Shapes
    /// `[sequences, tokens, hidden]` in and out.
    pub fn through_block(&mut self, layer: usize, x: Tensor<3>, tap: &mut dyn Tap) -> Tensor<3> {
        let behind = self.prefix.as_ref().map_or(0, |prefix| prefix.cache.tokens());
        self.reach(behind + x.dims()[1]);
        tap.begin(behind);
        let tap = &mut self.online.before(tap);
        let past = self.prefix.as_ref().map(|prefix| &prefix.cache.blocks()[layer]);
        self.blocks[layer].forward(layer, x, &self.architecture, self.ropes.as_ref(), (past, None), tap).0
    }

    /// The stream before the first block, of tokens, or packed ones, behind `behind` others.
    fn embed_behind(&self, tokens: Tensor<2, Int>, behind: usize, packed: Option<&Packed>) -> Tensor<3> {
        let ([sequences, length], hidden) = (tokens.dims(), self.architecture.hidden);
        let flat = tokens.reshape([sequences * length]);
        let mut x = self.embedding.clone().select(0, flat).reshape([sequences, length, hidden]);
        if self.architecture.embedding == EmbeddingScale::RootHidden {
            x = x * (hidden as f64).sqrt() as f32;
        }
        if let (Some(table), Positions::Learned(Table { offset })) =
            (&self.positions, self.architecture.positions)
        {
            let rows = match packed {
                Some(packed) => {
                    let rows = packed.positions().iter().map(|&position| (behind + offset + position) as i64);
                    let rows = TensorData::new(rows.collect::<Vec<_>>(), [length]);
                    table.clone().select(0, Tensor::<1, Int>::from_data(rows, &self.device()))
                }
                None => table.clone().narrow(0, behind + offset, length),
            };
            x = x + rows.unsqueeze();
        }
        x
    }

    /// The pass itself; `kept` gets every block's keys and values of past and tokens.
    fn run(
        &self,
        past: Option<&Cache>,
        packed: Option<&Packed>,
        tokens: Tensor<2, Int>,
        tap: &mut dyn Tap,
        mut kept: Option<&mut Vec<KeyValues>>,
    ) -> Tensor<3> {
        if let Some(past) = past {
            let (held, blocks) = (past.blocks().len(), self.blocks.len());
            assert_eq!(held, blocks, "a cache of {held} blocks does not fit a decoder of {blocks}");
        }
        tap.begin(past.map_or(0, Cache::tokens));
        let mut x = self.embed_behind(tokens, past.map_or(0, Cache::tokens), packed);
        let tap = &mut self.online.before(tap);
        for (layer, block) in self.blocks.iter().enumerate() {
            let past = past.map(|past| &past.blocks()[layer]);
            let read;
            (x, read) = block.forward(layer, x, &self.architecture, self.ropes.as_ref(), (past, packed), tap);
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
        let logits = one(self.online.before(tap).linears(Site::HEAD, hidden, &self.head));
        match self.architecture.logits {
            Logits::Plain => logits,
            Logits::Capped(cap) => kernel::soft_cap(logits, cap),
            Logits::Scaled(factor) => logits * factor,
        }
    }

    /// What the linears of a group make of their site's activation as the operator before it gives it, without a tap.
    ///
    /// # Shapes
    /// `[sequences, tokens, in]` to one `[sequences, tokens, out]` per linear.
    ///
    /// # Panics
    /// If no linears of this decoder read the site.
    pub fn linears(&self, site: Site, x: Tensor<3>) -> Vec<Tensor<3>> {
        let groups = self.groups();
        let (_, group) = groups.into_iter().find(|(at, _)| *at == site).expect("linears read the site");
        self.online.before(&mut Off).linears(site, x, group)
    }

    /// Every group of linears with its site, in the order of the forward pass.
    pub fn groups(&self) -> Vec<(Site, &Group)> {
        let mut groups = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            groups.push((Site::block(layer, Port::AttnIn), &block.qkv));
            groups.push((Site::block(layer, Port::OIn), &block.o));
            let of_mlp = block.mlp.groups().into_iter();
            groups.extend(
                of_mlp.map(|(port, expert, group)| (Site { layer: Some(layer), port, expert }, group)),
            );
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
            let of_mlp = block.mlp.groups_mut().into_iter();
            groups.extend(
                of_mlp.map(|(port, expert, group)| (Site { layer: Some(layer), port, expert }, group)),
            );
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
        ropes: Option<&Ropes>,
        (past, packed): (Option<&KeyValues>, Option<&Packed>),
        tap: &mut dyn Tap,
    ) -> (Tensor<3>, KeyValues) {
        let (shape, norms) = (&architecture.attention, self.qk_norms.as_ref());
        let mut outputs =
            tap.linears(Site::block(layer, Port::AttnIn), self.attn_norm.forward(x.clone()), &self.qkv);
        let beside = outputs.split_off(self.qkv.linears.len().min(3));
        let (attended, read) =
            attention::forward(layer, three(outputs), shape, norms, ropes, (past, packed), tap);
        let mut o = one(tap.linears(Site::block(layer, Port::OIn), attended, &self.o));
        if let Some([norm, _]) = &self.post_norms {
            o = norm.forward(o);
        }
        let x = x + o;
        let mut down = self.mlp.forward(layer, &x, beside, tap);
        if let Some([_, norm]) = &self.post_norms {
            down = norm.forward(down);
        }
        (x + down, read)
    }

    /// The groups that add to the residual stream: o, and every down.
    pub fn writers_mut(&mut self) -> Vec<&mut Group> {
        let downs = self.mlp.groups_mut().into_iter().filter(|(port, ..)| *port == Port::DownIn);
        [&mut self.o].into_iter().chain(downs.map(|(.., group)| group)).collect()
    }

    /// Every norm on the residual stream with the groups that read what it gives.
    pub fn readers_mut(&mut self) -> Vec<(&mut Normalisation, Vec<&mut Group>)> {
        let mut readers = vec![(&mut self.attn_norm, vec![&mut self.qkv])];
        match &mut self.mlp {
            Mlp::Gated { norm, gate_up: read, .. } | Mlp::Plain { norm, up: read, .. } => {
                readers.push((norm, vec![read]));
            }
            Mlp::Parallel { .. } => {}
            Mlp::Experts { norm, router, experts, .. } => {
                let gates = experts.iter_mut().map(|expert| &mut expert.gate_up);
                readers.push((norm, [router].into_iter().chain(gates).collect()));
            }
        }
        readers
    }
}

/// Block `layer` of a checkpoint.
fn block(
    a: &Architecture,
    names: &WeightNames,
    layer: usize,
    weights: &mut Weights,
) -> Result<Block, CheckpointError> {
    let (h, f, d) = (a.hidden, a.mlp.intermediate, a.attention.head_dim);
    let (q, kv) = (a.attention.heads * d, a.attention.kv_heads * d);
    let qkv_bias = a.attention.bias != AttentionBias::Absent;
    let o_bias = a.attention.bias == AttentionBias::All;
    let mlp_bias = a.mlp.bias == Bias::Present;
    let named = |part: &str| names.block(layer, part);
    let mut linear = |name: String, out: usize, input: usize, bias: bool| {
        let weight = weights(&format!("{name}.weight"), &[out, input])?.reshape([out, input]);
        let bias = if bias { Some(weights(&format!("{name}.bias"), &[out])?) } else { None };
        Ok::<_, CheckpointError>(Linear { name, weight, bias })
    };
    let mut qkv = Group {
        linears: vec![
            linear(named(names.q), q, h, qkv_bias)?,
            linear(named(names.k), kv, h, qkv_bias)?,
            linear(named(names.v), kv, h, qkv_bias)?,
        ],
    };
    let o = Group { linears: vec![linear(named(names.o), h, q, o_bias)?] };
    let mut gated = |[gate, up, down]: [String; 3]| {
        let gate_up = Group { linears: vec![linear(gate, f, h, mlp_bias)?, linear(up, f, h, mlp_bias)?] };
        let down = Group { linears: vec![linear(down, h, f, mlp_bias)?] };
        Ok::<_, CheckpointError>(Expert { gate_up, down })
    };
    let whole = || [names.gate, names.up, names.down].map(named);
    let mlp = match a.mlp.form {
        MlpForm::Gated(activation) => {
            let Expert { gate_up, down } = gated(whole())?;
            let norm = normalisation(a, &named(names.mlp_norm), weights)?;
            Mlp::Gated { norm, gate_up, down, activation }
        }
        MlpForm::Parallel(activation) => {
            let Expert { gate_up, down } = gated(whole())?;
            qkv.linears.extend(gate_up.linears);
            Mlp::Parallel { down, activation }
        }
        MlpForm::Plain(activation) => {
            let up = Group { linears: vec![linear(named(names.up), f, h, mlp_bias)?] };
            let down = Group { linears: vec![linear(named(names.down), h, f, mlp_bias)?] };
            let norm = normalisation(a, &named(names.mlp_norm), weights)?;
            Mlp::Plain { norm, up, down, activation }
        }
        MlpForm::Experts { count, chosen, activation } => {
            let experts = (0..count).map(|expert| gated(names.expert(layer, expert)));
            let experts = experts.collect::<Result<Vec<_>, _>>()?;
            let router = Group { linears: vec![linear(named(names.router), count, h, false)?] };
            let norm = normalisation(a, &named(names.mlp_norm), weights)?;
            Mlp::Experts { norm, router, experts, chosen, activation }
        }
    };
    let attn_norm = normalisation(a, &named(names.attn_norm), weights)?;
    let post_norms = match a.post_norms {
        PostNorms::Absent => None,
        PostNorms::Present => Some([
            normalisation(a, &named(names.attn_post_norm), weights)?,
            normalisation(a, &named(names.mlp_post_norm), weights)?,
        ]),
    };
    let mut head_norm = |name: &str, heads: usize| {
        let name = format!("{}.weight", named(name));
        Ok::<_, CheckpointError>(match a.attention.qk_norm {
            QkNorm::Absent => None,
            QkNorm::Shared => Some(HeadNorm::Shared(Normalisation {
                kind: a.norm,
                weight: weights(&name, &[d])?,
                bias: None,
            })),
            QkNorm::PerHead => {
                let weight = weights(&name, &[heads, d])?;
                let ones = Tensor::ones([d], &weight.device());
                let plain = Normalisation { kind: a.norm, weight: ones, bias: None };
                Some(HeadNorm::PerHead { plain, weight })
            }
        })
    };
    let norms = (head_norm(names.q_norm, a.attention.heads)?, head_norm(names.k_norm, a.attention.kv_heads)?);
    let qk_norms = match norms {
        (Some(q), Some(k)) => Some(QkNorms { q, k }),
        _ => None,
    };
    Ok(Block { attn_norm, qkv, qk_norms, o, mlp, post_norms })
}

/// The norm called `name`, of the architecture's kind.
fn normalisation(
    architecture: &Architecture,
    name: &str,
    weights: &mut Weights,
) -> Result<Normalisation, CheckpointError> {
    let channels = [architecture.hidden];
    let weight = weights(&format!("{name}.weight"), &channels)?;
    let bias = match architecture.norm.has_bias() {
        true => Some(weights(&format!("{name}.bias"), &channels)?),
        false => None,
    };
    Ok(Normalisation { kind: architecture.norm, weight, bias })
}

pub(crate) fn one(outputs: Vec<Tensor<3>>) -> Tensor<3> {
    let [a] =
        <[_; 1]>::try_from(outputs).unwrap_or_else(|v| panic!("a tap returned {} outputs of 1", v.len()));
    a
}

pub(crate) fn two(outputs: Vec<Tensor<3>>) -> [Tensor<3>; 2] {
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
