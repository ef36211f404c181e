//! The part of a rotation that no weight can take: a transform of an activation inside the forward pass.
//!
//! It belongs to the decoder and not to a tap: without it the weights behind it would be wrong, and whoever looks at the
//! site, be it to see or to change, meets what the linears read.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};

use crate::architecture::Pairs;
use crate::hadamard::{Hadamard, OnDevice};
use crate::kernel;
use crate::linear::Group;
use crate::norm::Normalisation;
use crate::site::{Routed, Site, Tap};

/// What happens to the activation of one site before the tap sees it.
#[derive(Clone, Debug)]
pub struct Turn {
    rotation: OnDevice,
    /// Factors behind the rotation, by channel.
    factors: Option<Vec<f64>>,
    /// `[channels]`; the same on the device.
    on_device: Option<Tensor<1>>,
}

impl Turn {
    /// A rotation alone.
    pub(super) fn new(rotation: OnDevice) -> Self {
        Self { rotation, factors: None, on_device: None }
    }

    /// The rotation.
    pub fn rotation(&self) -> &Hadamard {
        self.rotation.hadamard()
    }

    /// The factors behind it, by channel, where it was [rescaled](crate::Decoder::rescale).
    pub fn factors(&self) -> Option<&[f64]> {
        self.factors.as_deref()
    }

    /// The same turn, whose channel c is divided by `scales[c]`; `None` where a factor leaves the range of f32.
    pub(crate) fn divided_by(&self, scales: &[f64], like: &Tensor<2>) -> Option<Self> {
        let before = self.factors.clone().unwrap_or_else(|| vec![1.0; scales.len()]);
        let factors: Vec<f64> = before.iter().zip(scales).map(|(f, s)| f / s).collect();
        let narrow: Vec<f32> = factors.iter().map(|&f| f as f32).collect();
        let usable = narrow.iter().all(|f| f.is_finite() && *f > 0.0);
        let on_device = Tensor::from_data(TensorData::new(narrow, [scales.len()]), &like.device());
        usable.then(|| Self {
            rotation: self.rotation.clone(),
            factors: Some(factors),
            on_device: Some(on_device),
        })
    }

    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let x = self.rotation.forward(x);
        match &self.on_device {
            Some(factors) => x * factors.clone().unsqueeze(),
            None => x,
        }
    }
}

/// The turns of a decoder, by site.
#[derive(Clone, Debug, Default)]
pub struct Online(BTreeMap<Site, Turn>);

impl Online {
    /// What happens at a site.
    pub fn at(&self, site: Site) -> Option<&Turn> {
        self.0.get(&site)
    }

    /// Every site where something happens.
    pub fn iter(&self) -> impl Iterator<Item = (Site, &Turn)> {
        self.0.iter().map(|(site, turn)| (*site, turn))
    }

    pub(crate) fn insert(&mut self, site: Site, turn: Turn) {
        self.0.insert(site, turn);
    }

    /// A tap that turns activations and hands them to another.
    pub(crate) fn before<'a>(&'a self, inner: &'a mut dyn Tap) -> Turning<'a> {
        Turning { online: self, inner }
    }

    fn forward<const D: usize>(&self, site: Site, x: Tensor<D>) -> Tensor<D> {
        match self.0.get(&site) {
            Some(turn) => turn.forward(x),
            None => x,
        }
    }
}

/// See [`Online::before`].
pub(crate) struct Turning<'a> {
    online: &'a Online,
    inner: &'a mut dyn Tap,
}

impl Tap for Turning<'_> {
    fn begin(&mut self, past: usize) {
        self.inner.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        self.inner.linears(site, self.online.forward(site, x), group)
    }

    fn behind_norm(
        &mut self,
        site: Site,
        x: &Tensor<3>,
        norm: &Normalisation,
        group: &Group,
    ) -> Vec<Tensor<3>> {
        match self.online.0.contains_key(&site) {
            true => self.linears(site, norm.forward(x.clone()), group),
            false => self.inner.behind_norm(site, x, norm, group),
        }
    }

    fn routed(&mut self, site: Site, x: Tensor<3>, group: &Group, routed: &Routed) -> Vec<Tensor<3>> {
        self.inner.routed(site, self.online.forward(site, x), group, routed)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.inner.tensor(site, self.online.forward(site, x))
    }

    fn turned(&mut self, site: Site, x: Tensor<4>, pairs: Pairs, angles: [&Tensor<2>; 2]) -> Tensor<4> {
        match self.online.0.contains_key(&site) {
            true => self.tensor(site, kernel::rotate(x, pairs, angles[0], angles[1])),
            false => self.inner.turned(site, x, pairs, angles),
        }
    }

    fn residual(&mut self, layer: usize, x: &Tensor<3>) {
        self.inner.residual(layer, x);
    }
}
