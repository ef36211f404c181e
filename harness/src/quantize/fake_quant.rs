//! The tap that rounds activations to a grid before the linears read them, in floating point.

use std::collections::{HashMap, HashSet};

use burn::tensor::Tensor;
use models::{Group, Site, Tap};

use crate::quantize::grid::{Granularity, Grid, Scale};
use crate::quantize::low_rank::LowRank;
use crate::quantize::rounding;

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

/// Rounds what linears read. Weights were rounded in place before.
#[derive(Clone, Debug, Default)]
pub struct FakeQuant {
    /// By site; none leaves the activation as it is.
    pub rules: HashMap<Site, ActivationRule>,
    /// What `keep` steps have exempted.
    pub kept: HashMap<Site, Kept>,
    /// Branches beside the linears of a site, in their order, which read the activation before it is rounded.
    pub low_rank: HashMap<Site, Vec<LowRank>>,
    /// Sites whose linears a step of the stage `tune` has rounded; `weights` leaves them as they are.
    pub rounded: HashSet<Site>,
}

impl FakeQuant {
    /// Whether what happens to a token depends on the other tokens of its sequence: with one dynamic scale for all.
    pub fn looks_at_whole_sequences(&self) -> bool {
        let whole = |rule: &ActivationRule| {
            rule.granularity == Granularity::Tensor && rule.scale == ScaleSource::Dynamic
        };
        self.rules.values().any(whole)
    }

    /// What the linears of a site read: the activation after everything that happens to it on the way.
    pub fn read(&self, site: Site, x: Tensor<3>) -> Tensor<3> {
        match self.rules.get(&site) {
            Some(rule) => rounding::round_activation(x, rule),
            None => x,
        }
    }
}

impl Tap for FakeQuant {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let Some(branches) = self.low_rank.get(&site) else {
            return group.forward(self.read(site, x));
        };
        let outputs = group.forward(self.read(site, x.clone()));
        outputs.into_iter().zip(branches).map(|(y, branch)| y + branch.forward(x.clone())).collect()
    }
}
