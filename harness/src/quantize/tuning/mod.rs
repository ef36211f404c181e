//! Training of what rounding a block needs: the blocks one after another, each against what it computes in floating point.
//!
//! | module | holds |
//! |---|---|
//! | [`clipping`] | rounding a weight whose runs have learned ranges, and the gradient of it |
//! | [`smoothing`] | channel scales that training can move within bounds |
//! | [`residual`] | the factors nearest to what rounding takes from a weight |
//! | [`block`] | a block as it came: weights, and how the host's steps round them |
//! | [`learned`] | what is learned of a block, and the block that ships with it |
//! | [`objective`] | what training makes small |
//! | [`adam`] | the optimizer |
//! | [`train`] | one step of training: the block under autodiff, gradients, update |
//! | [`pass`] | the way through the model, and what held-out samples decide |
//!
//! The *host* is the recipe without training: grids, granularities and sites of its `weights` steps, and the tap that its
//! other steps have made. Training starts from it, and a block that is no better than the host's ships as the host's.

pub mod adam;
pub mod block;
pub mod clipping;
pub mod learned;
pub mod objective;
pub mod pass;
pub mod residual;
pub mod smoothing;
pub mod train;

use crate::quantize::tuning::objective::Loss;
use crate::quantize::tuning::smoothing::SmoothingOptions;
use crate::quantize::tuning::train::Rates;

/// What is trained, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Learn the ends of every range of weights.
    pub clipping: bool,
    /// Learn channel scales.
    pub smoothing: Option<SmoothingOptions>,
    /// Learn branches of low rank.
    pub low_rank: Option<LowRankOptions>,
    /// What is made small.
    pub loss: Loss,
    /// Passes over the training samples.
    pub epochs: usize,
    /// Learning rates.
    pub rates: Rates,
    /// Of the cell; it draws what begins at random.
    pub seed: u64,
}

/// How branches of low rank begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowRankOptions {
    /// Channels between the factors; the widths of the linear bound it.
    pub rank: usize,
    /// Where they begin.
    pub start: LowRankStart,
}

/// Where the factors of a branch begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LowRankStart {
    /// A uniform within ±1/√in, B = 0: the branch gives nothing before it is trained.
    Zero,
    /// The factors nearest to W − Q(W).
    Svd,
}
