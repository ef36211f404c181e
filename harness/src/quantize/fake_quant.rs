//! The tap that rounds activations to a grid before the linears read them, and keys and values before they enter the
//! cache, in floating point.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use burn::tensor::Tensor;
use models::architecture::Pairs;
use models::kernel::{self, change_in_place};
use models::{Group, Normalisation, Site, Tap};

use crate::quantize::cache_rounding::{self, CacheRule};
use crate::quantize::grid::{Granularity, Grid, Scale};
#[cfg(feature = "cube")]
use crate::quantize::kernels;
use crate::quantize::low_rank::LowRank;
use crate::quantize::rounding;
use crate::quantize::solve::layout::Layout;

/// How the activation of one site is rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationRule {
    /// The grid.
    pub grid: Grid,
    /// Who shares a scale: `Tensor` (of one sequence), `Token` or `Group`.
    pub granularity: Granularity,
    /// Factor on the range before the scale is chosen.
    pub clip: f32,
    /// Where the scale comes from.
    pub scale: ScaleSource,
}

/// Where an activation's scale comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScaleSource {
    /// The values themselves, at every forward pass.
    Dynamic,
    /// A calibration set, once.
    Static(Scale),
}

/// What a `keep` step leaves in floating point at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// The activation; the weights that read it are rounded.
    Activation,
    /// The activation and the weights that read it.
    ActivationAndWeights,
}

/// Rounds what linears read and what the cache holds. Weights were rounded in place before.
#[derive(Clone, Debug, Default)]
pub struct FakeQuant {
    /// By site; none leaves the activation as it is.
    pub rules: HashMap<Site, ActivationRule>,
    /// What `keep` steps have exempted.
    pub kept: HashMap<Site, Kept>,
    /// Channels that `keep` steps have put on a grid of their own.
    pub layouts: HashMap<Site, Arc<Layout>>,
    /// Branches beside the linears of a site, in their order, which read the activation before it is rounded.
    pub low_rank: HashMap<Site, Vec<LowRank>>,
    /// Sites whose linears a step of the stage `tune` has rounded; `weights` leaves them as they are.
    pub rounded: HashSet<Site>,
    /// How keys (at `k` or `k_pre`) and values (at `v`) are rounded; none leaves them as they are.
    pub cache: HashMap<Site, CacheRule>,
    /// Position of the first token of the pass under way.
    position: usize,
}

impl FakeQuant {
    /// Whether sequences may not stand beside each other in one row: where what happens to a token depends on the other
    /// tokens of its sequence, with one dynamic scale for all, or on its position, with a prompt whose keys and values stay
    /// as they are.
    pub fn looks_at_whole_sequences(&self) -> bool {
        let whole = |rule: &ActivationRule| {
            (rule.granularity == Granularity::Tensor || rule.grid.looks_at_tensor())
                && rule.scale == ScaleSource::Dynamic
        };
        self.rules.values().any(whole) || self.cache.values().any(|rule| rule.exact > 0)
    }

    /// What the linears of a site read: the activation after everything that happens to it on the way.
    pub fn read(&self, site: Site, x: Tensor<3>) -> Tensor<3> {
        let Some(rule) = self.rules.get(&site) else { return x };
        match self.layouts.get(&site) {
            None => rounding::round_activation(x, rule),
            Some(layout) => {
                let tokens = x.dims()[1];
                change_in_place(x, |values| layout.round_activation(values, tokens, rule))
            }
        }
    }
}

impl Tap for FakeQuant {
    fn begin(&mut self, past: usize) {
        self.position = past;
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let Some(branches) = self.low_rank.get(&site) else {
            return group.forward(self.read(site, x));
        };
        let outputs = group.forward(self.read(site, x.clone()));
        outputs.into_iter().zip(branches).map(|(y, branch)| y + branch.forward(x.clone())).collect()
    }

    #[cfg(feature = "cube")]
    fn behind_norm(
        &mut self,
        site: Site,
        x: &Tensor<3>,
        norm: &Normalisation,
        group: &Group,
    ) -> Vec<Tensor<3>> {
        // A branch reads the activation as it was.
        let rule = self
            .rules
            .get(&site)
            .filter(|_| !self.layouts.contains_key(&site) && !self.low_rank.contains_key(&site));
        match rule.and_then(|rule| kernels::norm::and_round(x, norm, rule)) {
            Some(rounded) => group.forward(rounded),
            None => self.linears(site, norm.forward(x.clone()), group),
        }
    }

    #[cfg(feature = "cube")]
    fn turned(&mut self, site: Site, x: Tensor<4>, pairs: Pairs, angles: [&Tensor<2>; 2]) -> Tensor<4> {
        let rule = self.cache.get(&site);
        match rule.and_then(|rule| kernels::rotary::and_round(&x, pairs, angles, rule, self.position)) {
            Some(rounded) => rounded,
            None => self.tensor(site, kernel::rotate(x, pairs, angles[0], angles[1])),
        }
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        match self.cache.get(&site) {
            Some(rule) => cache_rounding::round(x, rule, self.position),
            None => x,
        }
    }
}
