//! Moving a scale from a channel of an activation into the weights around it, which leaves the function as it is.
//!
//! | site | divided by the scales | why it is exact |
//! |---|---|---|
//! | `attn_in`, `mlp_in`, `head_in` | the norm's weight and bias | a norm ends with a product and a sum per channel |
//! | `down_in` behind a gate | rows and bias of `up` | the gate multiplies: act(g) · (u/s) = act(g) · u / s |
//! | `down_in` behind ReLU | rows and bias of `up` | max(u/s, 0) = max(u, 0) / s for s above zero |
//! | `o_in` | rows and bias of `v` | attention averages values with weights that sum to one |
//!
//! Behind a rotation in the forward pass ([`crate::rotate`]), which nothing can be folded through, any site's scales
//! become a part of it.
//!
//! Windows, caps and norms of queries and keys do not touch this: they decide the weights of that average. In a parallel
//! block gate and up read `attn_in` beside q, k and v and follow it. What `mlp_in` gives to a router it gives to every
//! expert: all of them follow `layers.N.mlp_in`, and an expert's own `mlp_in` is refused.
//!
//! The linears that read the site have their columns multiplied. Under grouped-query attention several channels of
//! `o_in` come from one channel of `v` and must share a scale: [`Decoder::sharing`] says which.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::architecture::{Architecture, MlpForm};
use crate::decoder::{Block, Decoder};
use crate::linear::{Group, Linear};
use crate::mlp::Mlp;
use crate::norm::Normalisation;
use crate::site::{Port, Site};

/// Why a site cannot be rescaled so. The decoder is then as it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RescaleError {
    /// No such place in this decoder.
    #[error("{site} is not in this model, which has {layers} layers, numbered from 0")]
    NoSuchSite {
        /// The site.
        site: Site,
        /// Blocks of the decoder.
        layers: usize,
    },
    /// Nothing before the site can take the division, or nothing behind it the product.
    #[error("{site} cannot be rescaled; attn_in, o_in, mlp_in, down_in and head_in can")]
    NotFoldable {
        /// The site.
        site: Site,
    },
    /// The site is there and takes no scale by itself, or a part like it is elsewhere.
    #[error("{site} cannot be rescaled: {why}")]
    Refused {
        /// The site.
        site: Site,
        /// The reason, and what to do instead.
        why: &'static str,
    },
    /// Not one scale per channel.
    #[error("{site} has {channels} channels and was given {found} scales; give one per channel")]
    Count {
        /// The site.
        site: Site,
        /// Its channels.
        channels: usize,
        /// The scales given.
        found: usize,
    },
    /// A scale that is zero, negative or not finite.
    #[error("{site}: the scale of channel {channel} is {scale}; scales are finite and above zero")]
    Scale {
        /// The site.
        site: Site,
        /// Zero-based.
        channel: usize,
        /// The scale.
        scale: f64,
    },
    /// Channels that come from one channel, with different scales.
    #[error(
        "{site}: channels {first} and {channel} come from channel {producer} of v and have scales {first_scale} and \
         {scale}; query heads that share a key/value head must share their scales"
    )]
    Shared {
        /// The site.
        site: Site,
        /// The first channel of the producer's channel.
        first: usize,
        /// Its scale.
        first_scale: f64,
        /// The channel that contradicts it.
        channel: usize,
        /// Its scale.
        scale: f64,
        /// The producer's channel.
        producer: usize,
    },
    /// A weight left the range of f32.
    #[error("{site}: the scales make a weight of {of} infinite or not a number; give scales nearer to one")]
    Range {
        /// The site.
        site: Site,
        /// The linear's name, or `the norm`.
        of: String,
    },
}

impl Decoder {
    /// For every channel of the site's activation, the channel of the operator before it that it comes from: of the
    /// norm, of `up`, of `v`, of the rotation in the forward pass. Channels that come from one must share a scale in
    /// [`Decoder::rescale`]. `None` where nothing can be rescaled.
    pub fn sharing(&self, site: Site) -> Option<Vec<usize>> {
        if self.online.at(site).is_some() && site.port.has_linears() {
            let groups = self.groups();
            let group = groups.into_iter().find(|(at, _)| *at == site)?.1;
            return Some((0..group.linears[0].weight.dims()[1]).collect());
        }
        if let Some(layer) = site.layer {
            // A part has some of the blocks.
            self.blocks.get(layer)?;
        }
        self.architecture.sharing(site)
    }

    /// The linear whose rows [`Decoder::rescale`] divides: the site that its group reads, and its place in the group. `None`
    /// where a norm or a rotation in the forward pass is divided, or nothing can be rescaled.
    pub fn producer(&self, site: Site) -> Option<(Site, usize)> {
        if self.online.at(site).is_some() {
            return None;
        }
        let linear = self.linear_before(site)?;
        let place = |group: &Group| group.linears.iter().position(|other| std::ptr::eq(other, linear));
        self.groups().into_iter().find_map(|(at, group)| place(group).map(|place| (at, place)))
    }

    /// The linear whose output channels become those of the site's activation, where scales go through to it.
    fn linear_before(&self, site: Site) -> Option<&Linear> {
        let block = self.blocks.get(site.layer?)?;
        match site.port {
            Port::OIn => block.qkv.linears.get(2),
            Port::DownIn => block.producer(site.expert),
            _ => None,
        }
    }

    /// The groups whose columns follow the channels of a site in [`Decoder::rescale`]: all that read what one norm gives,
    /// else the site's own. Empty where nothing can be rescaled.
    pub fn followers(&self, site: Site) -> Vec<&Group> {
        let followed = |other: Site| match (site.port, site.expert) {
            (Port::MlpIn, None) => (other.layer, other.port) == (site.layer, site.port),
            _ => other == site,
        };
        if self.sharing(site).is_none() {
            return Vec::new();
        }
        self.groups().into_iter().filter(|(other, _)| followed(*other)).map(|(_, group)| group).collect()
    }

    /// Divides channel c of the site's activation by `scales[c]`, in the weights of what produces it, and multiplies
    /// column c of the linears that read it by the same: logits stay as they are up to rounding, and exactly where
    /// every scale is a power of two. Weights change in f64 and are rounded once.
    ///
    /// A prefix is rescaled with the model: its values (`o_in`) or its last hidden state (`head_in`) are divided too,
    /// other sites do not show in it. Where the head is tied to the embedding, rescaling `head_in` gives the head
    /// weights of its own; `architecture.head` goes on saying how the checkpoint holds them.
    ///
    /// # Errors
    /// [`RescaleError`], before anything is changed.
    pub fn rescale(&mut self, site: Site, scales: &[f64]) -> Result<(), RescaleError> {
        let producers = self.sharing(site).ok_or_else(|| self.architecture.refusal(site))?;
        let producer_scales = checked(site, scales, &producers)?;
        let multiplied = |group: &Group| -> Result<Group, RescaleError> {
            let linears = group.linears.iter();
            let linears =
                linears.map(|linear| columns_times(linear, scales).ok_or_else(|| range(site, linear)));
            Ok(Group { linears: linears.collect::<Result<_, _>>()? })
        };
        let divided_norm = |norm: &Normalisation| {
            let norm = norm.divided_by(scales);
            let finite = [Some(&norm.weight), norm.bias.as_ref()].into_iter().flatten().all(is_finite);
            if finite { Ok(norm) } else { Err(RescaleError::Range { site, of: "the norm".into() }) }
        };
        let divided_rows =
            |linear: &Linear| rows_over(linear, &producer_scales).ok_or_else(|| range(site, linear));

        if let Some(turn) = self.online.at(site) {
            let divided = turn.divided_by(scales, &self.embedding);
            let divided = divided
                .ok_or_else(|| RescaleError::Range { site, of: "the rotation in the forward pass".into() })?;
            let group =
                self.groups().into_iter().find(|(at, _)| *at == site).map(|(_, group)| multiplied(group));
            let group = group.expect("a site that is rotated has linears")?;
            let place = self.groups_mut().into_iter().find(|(at, _)| *at == site);
            *place.expect("it has").1 = group;
            self.online.insert(site, divided);
            return Ok(());
        }

        let groups = self.followers(site).into_iter().map(multiplied).collect::<Result<Vec<_>, _>>()?;
        let norm = self.norm_before(site).map(divided_norm).transpose()?;
        let producer = self.linear_before(site).map(divided_rows).transpose()?;

        for (old, new) in self.followers_mut(site).into_iter().zip(groups) {
            *old = new;
        }
        if let (Some(old), Some(new)) = (self.norm_before_mut(site), norm) {
            *old = new;
        }
        if let (Some(layer), Some(new)) = (site.layer, producer) {
            let block = &mut self.blocks[layer];
            match site.port {
                Port::OIn => block.qkv.linears[2] = new,
                _ => *block.producer_mut(site.expert).expect("it was read above") = new,
            }
        }
        if let Some(prefix) = &mut self.prefix {
            match (site.layer, site.port) {
                (None, Port::HeadIn) => {
                    let scales = channels(scales, &prefix.last).reshape([1, 1, scales.len()]);
                    prefix.last = prefix.last.clone() / scales;
                }
                (Some(layer), Port::OIn) => {
                    let values = &mut prefix.cache.block_mut(layer).values;
                    let [_, kv_heads, _, head_dim] = values.dims();
                    let scales = channels(&producer_scales, values).reshape([1, kv_heads, 1, head_dim]);
                    *values = values.clone() / scales;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// As [`Decoder::followers`], of a site that can be rescaled, to be changed in place.
    fn followers_mut(&mut self, site: Site) -> Vec<&mut Group> {
        let followed = |other: Site| match (site.port, site.expert) {
            (Port::MlpIn, None) => (other.layer, other.port) == (site.layer, site.port),
            _ => other == site,
        };
        self.groups_mut().into_iter().filter(|(other, _)| followed(*other)).map(|(_, group)| group).collect()
    }

    /// The norm that gives a site's activation.
    fn norm_before(&self, site: Site) -> Option<&Normalisation> {
        match (site.layer, site.port) {
            (None, Port::HeadIn) => Some(&self.final_norm),
            (Some(layer), Port::AttnIn) => Some(&self.blocks[layer].attn_norm),
            (Some(layer), Port::MlpIn) => self.blocks[layer].mlp.norm(),
            _ => None,
        }
    }

    /// As [`Decoder::norm_before`], to be changed in place.
    fn norm_before_mut(&mut self, site: Site) -> Option<&mut Normalisation> {
        match (site.layer, site.port) {
            (None, Port::HeadIn) => Some(&mut self.final_norm),
            (Some(layer), Port::AttnIn) => Some(&mut self.blocks[layer].attn_norm),
            (Some(layer), Port::MlpIn) => self.blocks[layer].mlp.norm_mut(),
            _ => None,
        }
    }
}

impl Architecture {
    /// As [`Decoder::sharing`], of a decoder in which nothing is rotated in the forward pass.
    pub fn sharing(&self, site: Site) -> Option<Vec<usize>> {
        let all = |channels: usize| Some((0..channels).collect());
        let Some(layer) = site.layer else {
            return if site == Site::HEAD { all(self.hidden) } else { None };
        };
        let (a, form) = (&self.attention, self.mlp.form);
        match (site.port, site.expert) {
            _ if layer >= self.layers => None,
            (Port::AttnIn, None) => all(self.hidden),
            (Port::MlpIn, None) if matches!(form, MlpForm::Parallel(_)) => None,
            (Port::MlpIn, None) => all(self.hidden),
            (Port::DownIn, expert) => {
                let is_divisible = match (form, expert) {
                    (MlpForm::Gated(_) | MlpForm::Parallel(_), None) => true,
                    (MlpForm::Plain(activation), None) => activation.is_homogeneous(),
                    (MlpForm::Experts { count, .. }, Some(expert)) => expert < count,
                    _ => false,
                };
                if is_divisible { all(self.mlp.intermediate) } else { None }
            }
            (Port::OIn, None) => {
                let (d, shared) = (a.head_dim, a.heads / a.kv_heads);
                Some((0..a.heads * d).map(|c| c / d / shared * d + c % d).collect())
            }
            _ => None,
        }
    }

    /// Whether [`Decoder::rescale`] can rescale a site, whatever the weights, where nothing is rotated in the forward pass.
    ///
    /// # Errors
    /// [`RescaleError::Refused`], or why the site is none.
    pub fn check_rescale(&self, site: Site) -> Result<(), RescaleError> {
        self.sharing(site).map(|_| ()).ok_or_else(|| self.refusal(site))
    }

    /// Why a site has no [`Architecture::sharing`].
    fn refusal(&self, site: Site) -> RescaleError {
        let layers = self.layers;
        let exists = match site.layer {
            Some(layer) => layer < layers && site.port != Port::HeadIn,
            None => site.port == Port::HeadIn,
        };
        if !exists {
            return RescaleError::NoSuchSite { site, layers };
        }
        let form = self.mlp.form;
        let why = match (form, site.port, site.expert) {
            (_, _, Some(expert)) if expert >= self.experts() => "the model has no such expert",
            (_, Port::MlpIn, Some(_)) => {
                "router and experts read what one norm gives; rescale the block's mlp_in, which all of them follow"
            }
            (MlpForm::Parallel(_), Port::MlpIn, None) => {
                "in a parallel block gate and up read attn_in beside q, k and v; rescale attn_in"
            }
            (MlpForm::Experts { .. }, Port::DownIn, None) => "every expert has its own; name one",
            (MlpForm::Plain(_), Port::DownIn, None) => {
                "the activation before it is not homogeneous: act(u/s) is not act(u)/s"
            }
            _ => return RescaleError::NotFoldable { site },
        };
        RescaleError::Refused { site, why }
    }
}

impl Block {
    /// The linear whose rows can take a division of `down_in`: up, where the activation lets it through.
    fn producer(&self, expert: Option<usize>) -> Option<&Linear> {
        match (&self.mlp, expert) {
            (Mlp::Parallel { .. }, None) => Some(&self.qkv.linears[4]),
            _ => self.mlp.homogeneous_up(expert),
        }
    }

    /// As [`Block::producer`], to be changed in place.
    fn producer_mut(&mut self, expert: Option<usize>) -> Option<&mut Linear> {
        match (&self.mlp, expert) {
            (Mlp::Parallel { .. }, None) => Some(&mut self.qkv.linears[4]),
            _ => self.mlp.homogeneous_up_mut(expert),
        }
    }
}

/// The scales by the producer's channel, after every check that needs no weights.
fn checked(site: Site, scales: &[f64], producers: &[usize]) -> Result<Vec<f64>, RescaleError> {
    if scales.len() != producers.len() {
        return Err(RescaleError::Count { site, channels: producers.len(), found: scales.len() });
    }
    let channels = producers.iter().max().map_or(0, |&last| last + 1);
    let mut first: Vec<Option<usize>> = vec![None; channels];
    let mut shared = vec![1.0; channels];
    for (channel, (&scale, &producer)) in scales.iter().zip(producers).enumerate() {
        if !(scale.is_finite() && scale > 0.0) {
            return Err(RescaleError::Scale { site, channel, scale });
        }
        let first = *first[producer].get_or_insert(channel);
        if scales[first] != scale {
            let first_scale = scales[first];
            return Err(RescaleError::Shared { site, first, first_scale, channel, scale, producer });
        }
        shared[producer] = scale;
    }
    Ok(shared)
}

fn range(site: Site, linear: &Linear) -> RescaleError {
    RescaleError::Range { site, of: linear.name.clone() }
}

/// Column c of the weight times `scales[c]`; `None` where a value leaves the range of f32.
fn columns_times(linear: &Linear, scales: &[f64]) -> Option<Linear> {
    let weight = rows_changed(&linear.weight, |_, row| {
        row.iter_mut().zip(scales).for_each(|(w, &s)| *w = (f64::from(*w) * s) as f32);
    })?;
    Some(Linear::new(linear.name.clone(), weight, linear.bias.clone()))
}

/// Row r of the weight, and element r of the bias, over `scales[r]`; `None` where a value leaves the range of f32.
fn rows_over(linear: &Linear, scales: &[f64]) -> Option<Linear> {
    let divide = |r: usize, row: &mut [f32]| {
        row.iter_mut().for_each(|w| *w = (f64::from(*w) / scales[r]) as f32);
    };
    let weight = rows_changed(&linear.weight, divide)?;
    let bias = match &linear.bias {
        Some(bias) => Some(rows_changed(&bias.clone().unsqueeze_dim::<2>(1), divide)?.squeeze_dim(1)),
        None => None,
    };
    Some(Linear::new(linear.name.clone(), weight, bias))
}

fn rows_changed(weight: &Tensor<2>, change: impl Fn(usize, &mut [f32]) + Sync) -> Option<Tensor<2>> {
    let dims = weight.dims();
    let mut values = values_of(weight);
    values.par_chunks_mut(dims[1]).enumerate().for_each(|(r, row)| change(r, row));
    let finite = values.par_iter().all(|v| v.is_finite());
    finite.then(|| Tensor::from_data(TensorData::new(values, dims), &weight.device()))
}

fn values_of<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.to_data().try_to_vec().expect("weights are f32 and can be read")
}

fn is_finite(x: &Tensor<1>) -> bool {
    values_of(x).iter().all(|v| v.is_finite())
}

/// Scales as a tensor beside `like`.
fn channels<const D: usize>(scales: &[f64], like: &Tensor<D>) -> Tensor<1> {
    let values: Vec<f32> = scales.iter().map(|&s| s as f32).collect();
    Tensor::from_data(TensorData::new(values, [scales.len()]), &like.device())
}
