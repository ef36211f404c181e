//! A decoder in parts, one of which is in memory at a time: what runs a model that does not fit.
//!
//! A part is a [`Decoder`] that holds some of the weights: the table, one block, or the head. Everything that goes through
//! a decoder's groups, rescales or rotates them does so for the groups that a part holds; hidden states are led from part to
//! part by [`Decoder::embed`], [`Decoder::through_block`] and [`Decoder::final_norm`], with the same operations in the same
//! order as [`Decoder::hidden`], so that the numbers are the same bit by bit.
//!
//! Every part has the final norm and the rotary tables, which are small. What it does not hold of the table is one row of
//! zeros, which names the device; of the head, a group without linears.

use std::collections::BTreeSet;

use burn::tensor::{Device, Tensor, TensorData};

use crate::architecture::{Architecture, Head, Positions};
use crate::attention::Ropes;
use crate::blocks::Blocks;
use crate::cache::{Cache, Past, Prefix};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::decoder::{Decoder, Weights, token_tensor};
use crate::families::WeightNames;
use crate::linear::Group;
use crate::named::{block, head, normalisation, tables};
use crate::rotate::Online;
use crate::site::Off;

/// A part of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The embedding table, and that of learned positions.
    Table,
    /// One block.
    Block(usize),
    /// The output head.
    Head,
}

impl Part {
    /// All parts of a decoder with `layers` blocks, in the order of the forward pass.
    pub fn all(layers: usize) -> impl Iterator<Item = Part> {
        [Part::Table].into_iter().chain((0..layers).map(Part::Block)).chain([Part::Head])
    }

    /// Values of its weights.
    pub fn parameters(self, architecture: &Architecture) -> u64 {
        let a = architecture;
        let table = (a.vocabulary * a.hidden) as u64;
        let tables = if a.head == Head::Tied { table } else { 2 * table };
        match self {
            Part::Table | Part::Head => table,
            Part::Block(_) => (a.parameters() - tables) / a.layers as u64,
        }
    }
}

impl Decoder {
    /// Builds a part from named tensors, of which only its own are asked for.
    ///
    /// # Errors
    /// Whatever `weights` returns for a name.
    pub fn part_from_tensors(
        architecture: &Architecture,
        names: &WeightNames,
        part: Part,
        device: &Device,
        weights: &mut Weights,
    ) -> Result<Self, CheckpointError> {
        let a = architecture;
        let nothing = || Tensor::zeros([1, a.hidden], device);
        let (embedding, positions) = match part {
            Part::Table => tables(a, names, weights)?,
            Part::Block(_) | Part::Head => (nothing(), None),
        };
        let blocks = match part {
            Part::Block(layer) => Blocks::new(layer, vec![block(a, names, layer, weights)?]),
            Part::Table | Part::Head => Blocks::default(),
        };
        let head = match (part, a.head) {
            (Part::Head, Head::Tied) => {
                let (table, _) = tables(a, names, weights)?;
                head(a, names, Some(table), weights)?
            }
            (Part::Head, Head::Untied) => head(a, names, None, weights)?,
            _ => Group { linears: Vec::new() },
        };
        let ropes = match &a.positions {
            Positions::Rotary(rope) => Some(Ropes::new(rope, a.attention.head_dim, device)),
            Positions::Learned(_) => None,
        };
        let final_norm = normalisation(a, names.final_norm, weights)?;
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

    /// As [`Decoder::set_prefix`], of a part: `stream` is what the parts before this one have made of the tokens, and the
    /// result what the next one goes on from. The first part has none.
    ///
    /// # Shapes
    /// `[1, tokens, hidden]` in and out.
    ///
    /// # Panics
    /// Without `stream` on a part that does not hold the table, or without tokens.
    pub fn lead_prefix(&mut self, tokens: &[u32], stream: Option<Tensor<3>>) -> Tensor<3> {
        self.reach(tokens.len());
        let mut x = match self.has_table() {
            true => self.embed_behind(token_tensor(&[tokens], &self.device()), 0, None),
            false => stream.expect("a part behind the table goes on from a stream"),
        };
        let mut kept = Vec::with_capacity(self.blocks.len());
        let mut tap = Off;
        let tap = &mut self.online.before(&mut tap);
        for (layer, block) in self.blocks.layers().zip(&self.blocks) {
            let ropes = self.ropes.as_ref();
            let read;
            (x, read) = block.forward(layer, x, &self.architecture, ropes, (Past::Nothing, None), tap);
            kept.push(read);
        }
        let last = x.clone().narrow(1, tokens.len() - 1, 1);
        // Only with the head is it the state that the head reads.
        let last = if self.has_head() { self.final_norm.forward(last) } else { last };
        let cache = Cache::part(self.blocks.layers().start, kept);
        self.prefix = Some(Prefix { tokens: tokens.to_vec(), cache, last });
        x
    }

    /// Whether it holds the embedding table: it is whole, or the first part.
    pub fn has_table(&self) -> bool {
        self.embedding.dims()[0] == self.architecture.vocabulary
    }

    /// Whether it holds the output head: it is whole, or the last part.
    pub fn has_head(&self) -> bool {
        !self.head.linears.is_empty()
    }
}

impl Checkpoint {
    /// Puts a part of the decoder on a device, in f32.
    ///
    /// # Errors
    /// As [`Checkpoint::load`], of the part's tensors; surplus ones are found by [`Checkpoint::check`].
    pub fn load_part(&self, part: Part, device: &Device) -> Result<Decoder, CheckpointError> {
        let names = self.family().names;
        Decoder::part_from_tensors(self.architecture(), names, part, device, &mut |name, shape| {
            self.tensor(name, shape, device)
        })
    }

    /// Finds what [`Checkpoint::load`] would find wrong without reading a value: missing, surplus, misshapen and non-float
    /// tensors.
    ///
    /// # Errors
    /// The first of them.
    pub fn check(&self) -> Result<(), CheckpointError> {
        let mut read = BTreeSet::new();
        let device = Device::flex();
        for part in Part::all(self.architecture().layers) {
            let names = self.family().names;
            Decoder::part_from_tensors(self.architecture(), names, part, &device, &mut |name, shape| {
                read.insert(name.to_string());
                self.find(name, shape)?;
                // Zeros straight from the system, never touched, so that no page of them becomes resident.
                let zeros = vec![0f32; shape.iter().product()];
                let length = zeros.len();
                Ok(Tensor::from_data(TensorData::new(zeros, [length]), &device))
            })?;
        }
        self.refuse_surplus(&read)
    }
}
