//! The tap that rounds activations to a grid before the linears read them, in floating point.

use std::collections::HashMap;

use burn::tensor::Tensor;
use models::{Group, Site, Tap};

use crate::quantize::grid::{Granularity, Grid};
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
}

/// Rounds what linears read. Weights were rounded in place before.
#[derive(Clone, Debug, Default)]
pub struct FakeQuant {
    /// By site; `None` leaves the activation as it is.
    pub rules: HashMap<Site, Option<ActivationRule>>,
}

impl Tap for FakeQuant {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        match self.rules.get(&site) {
            Some(Some(rule)) => group.forward(rounding::round_activation(x, rule)),
            _ => group.forward(x),
        }
    }
}
