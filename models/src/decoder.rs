//! The one forward pass.
//!
//! Everything that wants to see or change what a model computes hands a [`Tap`] to it: there is no second model for
//! calibration and none for quantized execution.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::architecture::{Architecture, EmbeddingScale, Head, Logits, Positions, Table};
use crate::attention::{self, QkNorms, Ropes};
use crate::blocks::Blocks;
use crate::cache::{Cache, Growing, KeyValues, Past, Prefix};
use crate::checkpoint::CheckpointError;
use crate::families::WeightNames;
use crate::kernel;
use crate::linear::Group;
use crate::mlp::Mlp;
use crate::named::{block, head, normalisation, tables};
use crate::norm::Normalisation;
use crate::packed::Packed;
use crate::rotate::Online;
use crate::site::{Off, Port, Site, Tap};

/// A decoder on a device, its weights in f32; or a [part](crate::parts) of one.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// What it is.
    pub architecture: Architecture,
    /// `[vocabulary, hidden]`
    pub embedding: Tensor<2>,
    /// By layer.
    pub blocks: Blocks,
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
    pub(crate) ropes: Option<Ropes>,
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
        let (embedding, positions) = tables(a, names, weights)?;
        let ropes = match &a.positions {
            Positions::Rotary(rope) => Some(Ropes::new(rope, a.attention.head_dim, device)),
            Positions::Learned(_) => None,
        };
        let mut blocks = Vec::with_capacity(a.layers);
        for layer in 0..a.layers {
            blocks.push(block(a, names, layer, weights)?);
        }
        let blocks = Blocks::new(0, blocks);
        let final_norm = normalisation(a, names.final_norm, weights)?;
        let tied = (a.head == Head::Tied).then(|| embedding.clone());
        let head = head(a, names, tied, weights)?;
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

    /// Tokens of [`Decoder::prefix`].
    fn behind(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.tokens.len())
    }

    /// Hidden states after the final norm, behind [`Decoder::prefix`] where there is one.
    ///
    /// The prefix's tokens take the first positions; the tap sees nothing of them.
    ///
    /// # Shapes
    /// `tokens` is `[sequences, tokens]`; the result is `[sequences, tokens, hidden]`.
    pub fn hidden(&mut self, tokens: Tensor<2, Int>, tap: &mut dyn Tap) -> Tensor<3> {
        self.reach(self.behind() + tokens.dims()[1]);
        let past = self.prefix.as_ref().map(|prefix| &prefix.cache);
        self.run(Behind::Cache(past), None, tokens, tap, None)
    }

    /// As [`Decoder::hidden`], of sequences that stand packed in one row.
    ///
    /// # Shapes
    /// `[1, tokens, hidden]`
    ///
    /// # Panics
    /// Without tokens.
    pub fn packed(&mut self, packed: &Packed, tap: &mut dyn Tap) -> Tensor<3> {
        self.reach(self.behind() + packed.longest());
        let past = self.prefix.as_ref().map(|prefix| &prefix.cache);
        let tokens = token_tensor(&[packed.tokens()], &self.device());
        self.run(Behind::Cache(past), Some(packed), tokens, tap, None)
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
        let hidden = self.run(Behind::Cache(past), None, tokens, tap, Some(&mut kept));
        (hidden, Cache::new(kept))
    }

    /// As [`Decoder::encode`], of tokens that are added to a past: what is there stays where it is.
    ///
    /// # Shapes
    /// `tokens` is `[sequences, tokens]`; the result is `[sequences, tokens, hidden]`.
    ///
    /// # Panics
    /// As [`Decoder::encode`].
    pub fn append(&mut self, past: &mut Growing, tokens: Tensor<2, Int>, tap: &mut dyn Tap) -> Tensor<3> {
        let new = tokens.dims()[1];
        self.reach(past.tokens() + new);
        let hidden = self.run(Behind::Growing(past), None, tokens, tap, None);
        past.grown(new);
        hidden
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
        self.prefix = None;
        if !tokens.is_empty() {
            self.lead_prefix(tokens, None);
        }
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
        self.reach(self.behind() + q.dims()[1]);
        let past = self.prefix.as_ref().map(|prefix| prefix.cache.block(layer));
        let (shape, norms) = (&self.architecture.attention, self.blocks[layer].qk_norms.as_ref());
        let tap = &mut Off;
        let tap = &mut self.online.before(tap);
        let past = Past::of(past);
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
    pub(crate) fn reach(&mut self, length: usize) {
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
        self.embed_behind(tokens, self.behind(), None)
    }

    /// What block `layer` makes of the residual stream, behind [`Decoder::prefix`], as the forward pass computes it: for
    /// methods that go through a model one block after another.
    ///
    /// # Shapes
    /// `[sequences, tokens, hidden]` in and out.
    pub fn through_block(&mut self, layer: usize, x: Tensor<3>, tap: &mut dyn Tap) -> Tensor<3> {
        let behind = self.behind();
        self.reach(behind + x.dims()[1]);
        tap.begin(behind);
        let tap = &mut self.online.before(tap);
        let past = self.prefix.as_ref().map(|prefix| prefix.cache.block(layer));
        let ropes = self.ropes.as_ref();
        let past = Past::of(past);
        let (x, _) = self.blocks[layer].forward(layer, x, &self.architecture, ropes, (past, None), tap);
        tap.residual(layer, &x);
        x
    }

    /// The stream before the first block, of tokens, or packed ones, behind `behind` others.
    pub(crate) fn embed_behind(
        &self,
        tokens: Tensor<2, Int>,
        behind: usize,
        packed: Option<&Packed>,
    ) -> Tensor<3> {
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
        mut behind: Behind,
        packed: Option<&Packed>,
        tokens: Tensor<2, Int>,
        tap: &mut dyn Tap,
        mut kept: Option<&mut Vec<KeyValues>>,
    ) -> Tensor<3> {
        let blocks = self.blocks.len();
        if let Behind::Cache(Some(past)) = behind {
            let held = past.blocks().len();
            assert_eq!(held, blocks, "a cache of {held} blocks does not fit a decoder of {blocks}");
        }
        tap.begin(behind.tokens());
        let mut x = self.embed_behind(tokens, behind.tokens(), packed);
        let tap = &mut self.online.before(tap);
        for (layer, block) in self.blocks.layers().zip(&self.blocks) {
            let past = match &mut behind {
                Behind::Cache(past) => Past::of(past.map(|past| &past.blocks()[layer])),
                Behind::Growing(past) => Past::Growing(past.block(layer, blocks)),
            };
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
        self.logits_by(&self.head, hidden, tap)
    }

    /// As [`Decoder::logits`], by another form of the head: [`Group::packed`]'s, where it meets many slices.
    pub fn logits_by(&self, head: &Group, hidden: Tensor<3>, tap: &mut dyn Tap) -> Tensor<3> {
        let logits = one(self.online.before(tap).linears(Site::HEAD, hidden, head));
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
        for (layer, block) in self.blocks.layers().zip(&self.blocks) {
            groups.push((Site::block(layer, Port::AttnIn), &block.qkv));
            groups.push((Site::block(layer, Port::OIn), &block.o));
            let of_mlp = block.mlp.groups().into_iter();
            groups.extend(
                of_mlp.map(|(port, expert, group)| (Site { layer: Some(layer), port, expert }, group)),
            );
        }
        if self.has_head() {
            groups.push((Site::HEAD, &self.head));
        }
        groups
    }

    /// As [`Decoder::groups`], to be changed in place.
    pub fn groups_mut(&mut self) -> Vec<(Site, &mut Group)> {
        let mut groups = Vec::new();
        for (layer, block) in self.blocks.layers().zip(&mut self.blocks) {
            groups.push((Site::block(layer, Port::AttnIn), &mut block.qkv));
            groups.push((Site::block(layer, Port::OIn), &mut block.o));
            let of_mlp = block.mlp.groups_mut().into_iter();
            groups.extend(
                of_mlp.map(|(port, expert, group)| (Site { layer: Some(layer), port, expert }, group)),
            );
        }
        if !self.head.linears.is_empty() {
            groups.push((Site::HEAD, &mut self.head));
        }
        groups
    }
}

/// What stands before the tokens of a pass.
enum Behind<'a> {
    /// Tokens that stay as they are, or none.
    Cache(Option<&'a Cache>),
    /// Tokens to which those of the pass are added.
    Growing(&'a mut Growing),
}

impl Behind<'_> {
    fn tokens(&self) -> usize {
        match self {
            Self::Cache(past) => past.map_or(0, Cache::tokens),
            Self::Growing(past) => past.tokens(),
        }
    }
}

impl Block {
    pub(crate) fn forward(
        &self,
        layer: usize,
        x: Tensor<3>,
        architecture: &Architecture,
        ropes: Option<&Ropes>,
        (past, packed): (Past, Option<&Packed>),
        tap: &mut dyn Tap,
    ) -> (Tensor<3>, KeyValues) {
        let (shape, norms) = (&architecture.attention, self.qk_norms.as_ref());
        let mut outputs = tap.behind_norm(Site::block(layer, Port::AttnIn), &x, &self.attn_norm, &self.qkv);
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
