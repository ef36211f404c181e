//! Turning activations by orthogonal matrices, which leaves the function as it is.
//!
//! | what | activation | weights |
//! |---|---|---|
//! | [`Decoder::rotate_residual`] | the stream x ↦ x·Q, and so `attn_in`, `mlp_in`, `head_in` | embedding and learned positions E·Q; q, k, v, gate, up, router, head W·diag(γ)·Q; o, down Qᵀ·W; norms keep no weight |
//! | [`Decoder::rotate_values`] | values of a head v ↦ v·R, and so `o_in` | v Rᵀ·W, o W·R, head by head |
//! | [`Decoder::rotate_queries_and_keys`] | q and k behind rotary embedding, [online] | none: (q·R)·(k·R) = q·k |
//! | [`Decoder::rotate_online`] | what a group reads, [online] | the group's W·R |
//!
//! A root mean square is that of the turned vector, so a norm without weights commutes with a rotation; its weights γ do
//! not and move into the linears behind it. LayerNorm subtracts a mean first: the mean is subtracted from everything that
//! enters the stream instead, its bias moves into the linears behind it, and what is left is a root mean square. The mean
//! of an embedding is subtracted nowhere else: without LayerNorm that is no identity.
//!
//! Weights change in f64 and are rounded once by each rotation. Rotations as in arXiv 2404.00456; R1 to R4 of
//! arXiv 2405.16406 are the rows of the table, the last at `down_in`.

use burn::tensor::{Tensor, TensorData};

use crate::architecture::{Architecture, Norm, PostNorms};
use crate::decoder::Decoder;
use crate::hadamard::{Hadamard, OnDevice};
use crate::linear::{Group, Linear};
use crate::norm::Normalisation;
use crate::site::{Port, Site};

mod online;
mod weights;

pub use online::{Online, Turn};
use weights::{First, bias_with, gives_rotated, reads_rotated, rows_rotated, values_of};

/// Why something cannot be rotated so. The decoder is then as it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RotateError {
    /// A matrix of another order.
    #[error(
        "{place} has {channels} channels, and the rotation turns {width} together; give one of {channels}"
    )]
    Width {
        /// The site, or what is rotated.
        place: String,
        /// Channels there.
        channels: usize,
        /// Channels that the rotation turns.
        width: usize,
    },
    /// No such place in this decoder.
    #[error("{site} is not in this model, which has {layers} layers, numbered from 0")]
    NoSuchSite {
        /// The site.
        site: Site,
        /// Blocks of the decoder.
        layers: usize,
    },
    /// Norms with weights between a block's outputs and the stream: Gemma 2's and 3's.
    #[error(
        "the residual stream of this model cannot be rotated: what a block adds to it passes a norm with weights of its own, \
         and weights do not commute with a rotation; rotate the other sites"
    )]
    PostNorms,
    /// A second rotation inside the forward pass.
    #[error("{site} is rotated in the forward pass already; one rotation can do what two would")]
    Twice {
        /// The site.
        site: Site,
    },
    /// A weight left the range of f32.
    #[error("{of}: rotated, a weight is infinite or not a number; measure the model without recipe first")]
    Range {
        /// The linear's name, or `the embedding`.
        of: String,
    },
}

impl Architecture {
    /// Whether [`Decoder::rotate_residual`] can rotate it, whatever the weights.
    ///
    /// # Errors
    /// [`RotateError::PostNorms`].
    pub fn check_residual_rotation(&self) -> Result<(), RotateError> {
        match self.post_norms {
            PostNorms::Absent => Ok(()),
            PostNorms::Present => Err(RotateError::PostNorms),
        }
    }
}

impl Decoder {
    /// Rotates the residual stream: x ↦ x·Q after the embedding and in every block. Norms lose their weights, and where
    /// they are LayerNorm they become root mean squares; a tied head gets weights of its own, while `architecture` goes
    /// on saying what the checkpoint holds.
    ///
    /// A prefix's last hidden state is rotated with the model; its keys and values do not change.
    ///
    /// # Errors
    /// [`RotateError`], before anything is changed.
    pub fn rotate_residual(&mut self, rotation: &Hadamard) -> Result<(), RotateError> {
        self.architecture.check_residual_rotation()?;
        self.check_width("the residual stream", self.architecture.hidden, rotation)?;
        let centred = matches!(self.final_norm.kind, Norm::Layer { .. } | Norm::LayerUnbiased { .. });
        let first = if centred { First::Centre } else { First::Nothing };
        let embedding =
            rows_rotated(&self.embedding, first, rotation).ok_or_else(|| range("the embedding"))?;
        let positions = match &self.positions {
            Some(table) => {
                let rotated = rows_rotated(table, first, rotation);
                Some(rotated.ok_or_else(|| range("the table of positions"))?)
            }
            None => None,
        };
        let mut blocks = self.blocks.clone();
        for block in &mut blocks {
            for (norm, groups) in block.readers_mut() {
                for group in groups {
                    *group = behind(norm, group, rotation)?;
                }
                *norm = without_weights(norm);
            }
            for group in block.writers_mut() {
                *group = each(group, |linear| gives_rotated(linear, first, rotation))?;
            }
        }
        let head = behind(&self.final_norm, &self.head, rotation)?;
        if let Some(prefix) = &mut self.prefix {
            let (factors, bias) = weights_of(&self.final_norm);
            let mut last: Vec<f64> = values_of(&prefix.last).into_iter().map(f64::from).collect();
            for (c, x) in last.iter_mut().enumerate() {
                // A channel of factor zero is not in the product with the head either.
                let plain = *x - bias.as_ref().map_or(0.0, |bias| bias[c]);
                *x = if factors[c] == 0.0 { 0.0 } else { plain / factors[c] };
            }
            rotation.apply(&mut last);
            let last: Vec<f32> = last.into_iter().map(|x| x as f32).collect();
            prefix.last = Tensor::from_data(TensorData::new(last, prefix.last.dims()), &prefix.last.device());
        }
        self.final_norm = without_weights(&self.final_norm);
        (self.embedding, self.positions, self.blocks, self.head) = (embedding, positions, blocks, head);
        Ok(())
    }

    /// Rotates the values of every key/value head of a block, and what o reads of every query head: v ↦ v·R.
    ///
    /// A prefix's values are rotated with the model.
    ///
    /// # Errors
    /// [`RotateError`], before anything is changed.
    pub fn rotate_values(&mut self, layer: usize, rotation: &Hadamard) -> Result<(), RotateError> {
        let site = Site::block(layer, Port::V);
        self.check_layer(site)?;
        self.check_width(site, self.architecture.attention.head_dim, rotation)?;
        let block = &mut self.blocks[layer];
        let v = &block.qkv.linears[2];
        let v = gives_rotated(v, First::Nothing, rotation).ok_or_else(|| range(&v.name))?;
        let o = each(&block.o, |linear| reads_rotated(linear, First::Nothing, rotation))?;
        (block.qkv.linears[2], block.o) = (v, o);
        if let Some(prefix) = &mut self.prefix {
            let values = &mut prefix.cache.block_mut(layer).values;
            *values = OnDevice::new(rotation.clone(), &values.device()).forward(values.clone());
        }
        Ok(())
    }

    /// Rotates the queries and the keys of every head of a block in the forward pass, behind their rotary embedding: the
    /// taps at `q` and `k` meet them rotated.
    ///
    /// A prefix's keys are rotated with the model.
    ///
    /// # Errors
    /// [`RotateError`], before anything is changed.
    pub fn rotate_queries_and_keys(&mut self, layer: usize, rotation: &Hadamard) -> Result<(), RotateError> {
        let sites = [Port::Q, Port::K].map(|port| Site::block(layer, port));
        for site in sites {
            self.check_layer(site)?;
            self.check_width(site, self.architecture.attention.head_dim, rotation)?;
            self.check_once(site)?;
        }
        let rotation = OnDevice::new(rotation.clone(), &self.device());
        if let Some(prefix) = &mut self.prefix {
            let keys = &mut prefix.cache.block_mut(layer).keys;
            *keys = rotation.forward(keys.clone());
        }
        for site in sites {
            self.online.insert(site, Turn::new(rotation.clone()));
        }
        Ok(())
    }

    /// Rotates what the linears of a site read in the forward pass, x ↦ x·R for every run of the rotation's channels, and
    /// their weights beforehand: the tap at the site meets it rotated.
    ///
    /// # Errors
    /// [`RotateError`], before anything is changed.
    pub fn rotate_online(&mut self, site: Site, rotation: &Hadamard) -> Result<(), RotateError> {
        self.check_once(site)?;
        let layers = self.architecture.layers;
        let groups = self.groups_mut();
        let group = groups.into_iter().find(|(at, _)| *at == site);
        let (_, group) = group.ok_or(RotateError::NoSuchSite { site, layers })?;
        let channels = group.linears[0].weight.dims()[1];
        if !channels.is_multiple_of(rotation.width()) {
            return Err(RotateError::Width { place: site.to_string(), channels, width: rotation.width() });
        }
        *group = each(group, |linear| reads_rotated(linear, First::Nothing, rotation))?;
        self.online.insert(site, Turn::new(OnDevice::new(rotation.clone(), &self.device())));
        Ok(())
    }

    fn check_width(
        &self,
        place: impl ToString,
        channels: usize,
        rotation: &Hadamard,
    ) -> Result<(), RotateError> {
        match rotation.width() {
            width if width == channels => Ok(()),
            width => Err(RotateError::Width { place: place.to_string(), channels, width }),
        }
    }

    fn check_layer(&self, site: Site) -> Result<(), RotateError> {
        let layers = self.architecture.layers;
        match site.layer {
            Some(layer) if layer < layers => Ok(()),
            _ => Err(RotateError::NoSuchSite { site, layers }),
        }
    }

    fn check_once(&self, site: Site) -> Result<(), RotateError> {
        match self.online.at(site) {
            Some(_) => Err(RotateError::Twice { site }),
            None => Ok(()),
        }
    }
}

fn range(of: &str) -> RotateError {
    RotateError::Range { of: of.into() }
}

fn each(group: &Group, change: impl Fn(&Linear) -> Option<Linear>) -> Result<Group, RotateError> {
    let linears = group.linears.iter().map(|linear| change(linear).ok_or_else(|| range(&linear.name)));
    Ok(Group { linears: linears.collect::<Result<_, _>>()? })
}

/// The linears behind a norm, with its weights in theirs and their inputs rotated.
fn behind(norm: &Normalisation, group: &Group, rotation: &Hadamard) -> Result<Group, RotateError> {
    let (factors, bias) = weights_of(norm);
    each(group, |linear| {
        let mut rotated = reads_rotated(linear, First::Times(&factors), rotation)?;
        if let Some(bias) = &bias {
            rotated.bias = Some(bias_with(linear, bias));
        }
        Some(rotated)
    })
}

/// What a norm multiplies its channels by, and what it adds to them.
fn weights_of(norm: &Normalisation) -> (Vec<f64>, Option<Vec<f64>>) {
    let wide = |x: &Tensor<1>| values_of(x).into_iter().map(f64::from).collect::<Vec<f64>>();
    let mut factors = wide(&norm.weight);
    if let Norm::RmsOffset { .. } = norm.kind {
        factors.iter_mut().for_each(|f| *f += 1.0);
    }
    (factors, norm.bias.as_ref().map(wide))
}

/// The norm that neither multiplies nor adds, of a stream whose mean is zero where the norm would subtract it.
fn without_weights(norm: &Normalisation) -> Normalisation {
    let (kind, weight) = match norm.kind {
        Norm::Rms { eps } | Norm::Layer { eps } | Norm::LayerUnbiased { eps } => {
            (Norm::Rms { eps }, norm.weight.ones_like())
        }
        Norm::RmsOffset { eps } => (Norm::RmsOffset { eps }, norm.weight.zeros_like()),
    };
    Normalisation { kind, weight, bias: None }
}
