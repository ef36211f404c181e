//! A block as it came: weights, and how the host's steps round them.

use std::collections::HashMap;

use burn::tensor::Tensor;
use models::{Decoder, Group, Site};

use crate::quantize::StepError;
use crate::quantize::fake_quant::FakeQuant;
use crate::quantize::tuning::clipping::{Host, Runs};

/// A linear as it came.
#[derive(Clone, Debug)]
pub struct PlainLinear {
    /// Rows of `dims[1]`.
    pub weight: Vec<f32>,
    /// `[out, in]`
    pub dims: [usize; 2],
    /// By output channel.
    pub bias: Option<Vec<f32>>,
    /// How it is rounded; `None` for not at all.
    pub runs: Option<Runs>,
}

/// A site of the block, and the linears that read it.
#[derive(Clone, Debug)]
pub struct PlainSite {
    /// Where.
    pub site: Site,
    /// For every channel the channel of its producer, where a scale can be folded that no other group follows, and something
    /// is rounded.
    pub producers: Option<Vec<usize>>,
    /// The linear whose rows such a scale divides: indices of a site and of a linear. `None` for a norm, or a rotation in the
    /// forward pass.
    pub producer: Option<(usize, usize)>,
    /// In their order.
    pub linears: Vec<PlainLinear>,
}

impl PlainSite {
    /// Whether its weights are rounded.
    pub fn is_rounded(&self) -> bool {
        self.linears.iter().any(|linear| linear.runs.is_some())
    }
}

/// A block of the model.
#[derive(Clone, Debug)]
pub struct PlainBlock {
    /// Zero-based.
    pub layer: usize,
    /// In the order of the forward pass.
    pub sites: Vec<PlainSite>,
}

impl PlainBlock {
    /// Reads a block's weights. `hosts` says how the weights of a site are rounded, `tap` which activations are and which
    /// channels are kept apart.
    ///
    /// # Errors
    /// As [`Host::runs`].
    pub fn of(
        decoder: &Decoder,
        layer: usize,
        hosts: &HashMap<Site, Host>,
        tap: &FakeQuant,
    ) -> Result<Self, StepError> {
        let groups: Vec<(Site, &Group)> =
            decoder.groups().into_iter().filter(|(site, _)| site.layer == Some(layer)).collect();
        let place = |site: Site| groups.iter().position(|(other, _)| *other == site);
        let mut sites = Vec::with_capacity(groups.len());
        for (site, group) in &groups {
            let host = hosts.get(site);
            let rounded = host.is_some() || tap.rules.contains_key(site);
            let mut linears = Vec::with_capacity(group.linears.len());
            for linear in &group.linears {
                let dims = linear.weight.dims();
                let layout = tap.layouts.get(site);
                let runs = host.map(|host| host.runs(&site.to_string(), dims, layout)).transpose()?;
                let bias = linear.bias.as_ref().map(values);
                linears.push(PlainLinear { weight: values(&linear.weight), dims, bias, runs });
            }
            let producer = decoder.producer(*site).and_then(|(at, linear)| Some((place(at)?, linear)));
            // Experts follow their router: a scale there would be all of theirs.
            let is_own = decoder.followers(*site).len() == 1;
            let producers = decoder.sharing(*site).filter(|_| rounded && is_own);
            sites.push(PlainSite { site: *site, producers, producer, linears });
        }
        Ok(Self { layer, sites })
    }

    /// Whether any of its weights or activations is rounded: otherwise there is nothing to train.
    pub fn is_rounded(&self, tap: &FakeQuant) -> bool {
        self.sites.iter().any(|site| site.is_rounded() || tap.rules.contains_key(&site.site))
    }
}

/// The values of a tensor, on the host.
pub fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    let data = x.clone().try_into_data().expect("a tensor can be read from its device");
    data.try_into_vec().expect("weights and activations are f32")
}
