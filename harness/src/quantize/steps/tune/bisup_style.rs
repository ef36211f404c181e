//! `tune` by `bisup-style`: learned clipping, smoothing and low-rank branches, trained block by block against the
//! floating-point model on a few samples.
//!
//! **A reconstruction.** Of BiSup (arXiv:2405.15346) this project has read the abstract and digests, no equation, no
//! hyper-parameter and no code. Known: it fine-tunes fine-grained weight clipping, soft-constrained activation smoothing and
//! stabilized low-rank error compensation together, quantization aware, on a few samples, on the shoulders of OmniQuant
//! and QLoRA, and keeps the system prompt's keys and values in full precision (here: a prefix, or the cache step's own
//! key). What the constraint, the stabilization, the rank, the rates, the data and the loss are is not known: everything
//! below is put together from the parents it names. Results are `bisup-style`, never the paper's.
//!
//! # Equation
//! The host is the recipe without this step. Of a linear Y = X·Wᵀ + b whose weights the host rounds, with its grid, its
//! granularity and its sites:
//!
//! Y = Q(X/s)·Q'(W·s)ᵀ + b + (X/s)·Aᵀ·Bᵀ/√r
//!
//! - `clipping`: Q' fits the scale of every run of W·s to σ(β)·min … σ(γ)·max; γ and β begin at 4, σ(4) ≈ 0.982.
//! - `smoothing`: s = s₀·exp(τ·tanh u) per channel, u from 0, so that s stays within s₀·e^±τ; at `attn_in`, `mlp_in`, `o_in`
//!   (channels of one value head's channel share s) and `down_in`. s₀ is SmoothQuant's or one, whichever loses less on the
//!   held-out samples, block by block. s is folded before anything is rounded.
//! - `low-rank`: B = 0 and A uniform within ±1/√in, or both from the truncated singular value decomposition of W·s − Q'(W·s);
//!   scale 1/√r, a rate of its own, the gradient of all of a block's A and B together at most 1 long, with the loss in
//!   units of the host's. The branch reads the activation before it is rounded and stays in floating point.
//!
//! Block by block: the loss is the mean squared difference of the block's output, on what the quantized blocks before it
//! give, from the floating-point block's on floating-point input (with `loss = "relative"` of each token as a share of its
//! own square, so that spikes do not outweigh the rest). Adam (AdamW without decay), one sample a step.
//! Rounding passes gradients straight through: x + (Q(x) − x) with the second part a constant; weights that are clipped
//! pass none, and Δ passes its own to γ, β, s; a zero point passes none, and so does the Δ of an activation. Of
//! {host, start, every epoch} the state with the smallest held-out loss ships, measured as it ships: no block is worse
//! there than the host's.
//!
//! # Parameters
//! `components` of clipping, smoothing, low-rank; default all · `samples` that are trained on, default 24 · `held-out`
//! samples behind them that decide, default 8 · `length` in tokens to which samples are cut, default 256 · `epochs` default
//! 5 · `loss` mse or relative, default mse · `clipping-rate` default 0.01 · `smoothing-rate` default 0.005 ·
//! `low-rank-rate` default 0.001 · `alpha` of s₀, default 0.5 · `bound` e^τ, default 2 · `rank` default 8 · `start` of the
//! branches, zero or svd, default zero.
//!
//! # Reference
//! BiSup, arXiv:2405.15346 (abstract). Clipping, loss, loop, γ's start and the rates of clipping and smoothing: OmniQuant,
//! arXiv:2308.13137, and its code; it takes 20 epochs of 128 × 2048 tokens. B = 0: QLoRA, arXiv:2305.14314. 1/√r: rsLoRA,
//! arXiv:2312.03732. The bounds of s, the choice of s₀, what is held out, the numbers of samples and epochs: own.

use std::collections::HashMap;

use models::Site;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::quantize::effective_bits::{FULL, Tally};
use crate::quantize::grid::Grid;
use crate::quantize::solve::clip::Clip;
use crate::quantize::steps::weights::{Solver, Weights};
use crate::quantize::steps::{Stage, Step};
use crate::quantize::tuning::clipping::Host;
use crate::quantize::tuning::objective::Loss;
use crate::quantize::tuning::pass::{self, Samples};
use crate::quantize::tuning::smoothing::SmoothingOptions;
use crate::quantize::tuning::train::Rates;
use crate::quantize::tuning::{LowRankOptions, LowRankStart, Options};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StepError};

/// The step's keys in a recipe. A key of a component that is switched off is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BisupStyle {
    /// What is trained. Default: all.
    #[serde(default = "all")]
    pub components: Vec<Component>,
    /// Samples of the calibration set that are trained on. Default: 24.
    #[serde(default = "samples")]
    pub samples: usize,
    /// Samples behind those, which decide what ships. Default: 8.
    #[serde(default = "held_out")]
    pub held_out: usize,
    /// Tokens to which samples are cut. Default: 256.
    #[serde(default = "length")]
    pub length: usize,
    /// Passes over the samples. Default: 5.
    #[serde(default = "epochs")]
    pub epochs: usize,
    /// How tokens count. Default: `mse`.
    #[serde(default)]
    pub loss: Loss,
    /// Of `clipping`: learning rate of γ and β. Default: 0.01.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipping_rate: Option<f64>,
    /// Of `smoothing`: learning rate of u. Default: 0.005.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smoothing_rate: Option<f64>,
    /// Of `smoothing`: SmoothQuant's migration strength of s₀. Default: 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Of `smoothing`: the largest factor between s and s₀. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// Of `low-rank`: learning rate of A and B. Default: 0.001.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_rank_rate: Option<f64>,
    /// Of `low-rank`: channels between A and B. Default: 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Of `low-rank`: where A and B begin. Default: `zero`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<LowRankStart>,
}

/// A part of the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// Learned ends of the weights' ranges.
    Clipping,
    /// Learned channel scales.
    Smoothing,
    /// Learned branches.
    LowRank,
}

fn all() -> Vec<Component> {
    vec![Component::Clipping, Component::Smoothing, Component::LowRank]
}
fn samples() -> usize {
    24
}
fn held_out() -> usize {
    8
}
fn length() -> usize {
    256
}
fn epochs() -> usize {
    5
}

const CLIPPING_RATE: f64 = 0.01;
const SMOOTHING_RATE: f64 = 0.005;
const LOW_RANK_RATE: f64 = 0.001;
const ALPHA: f64 = 0.5;
const BOUND: f64 = 2.0;
const RANK: usize = 8;

impl BisupStyle {
    /// The same step with the components in their order and their keys written out.
    pub fn resolved(mut self) -> Self {
        self.components.sort();
        if self.has(Component::Clipping) {
            self.clipping_rate.get_or_insert(CLIPPING_RATE);
        }
        if self.has(Component::Smoothing) {
            self.smoothing_rate.get_or_insert(SMOOTHING_RATE);
            self.alpha.get_or_insert(ALPHA);
            self.bound.get_or_insert(BOUND);
        }
        if self.has(Component::LowRank) {
            self.low_rank_rate.get_or_insert(LOW_RANK_RATE);
            self.rank.get_or_insert(RANK);
            self.start.get_or_insert(LowRankStart::Zero);
        }
        self
    }

    fn has(&self, component: Component) -> bool {
        self.components.contains(&component)
    }

    fn options(&self, seed: u64) -> Options {
        let smoothing =
            SmoothingOptions { alpha: self.alpha.unwrap_or(ALPHA), bound: self.bound.unwrap_or(BOUND) };
        let low_rank = LowRankOptions {
            rank: self.rank.unwrap_or(RANK),
            start: self.start.unwrap_or(LowRankStart::Zero),
        };
        Options {
            clipping: self.has(Component::Clipping),
            smoothing: self.has(Component::Smoothing).then_some(smoothing),
            low_rank: self.has(Component::LowRank).then_some(low_rank),
            loss: self.loss,
            epochs: self.epochs,
            rates: Rates {
                clipping: self.clipping_rate.unwrap_or(CLIPPING_RATE),
                smoothing: self.smoothing_rate.unwrap_or(SMOOTHING_RATE),
                low_rank: self.low_rank_rate.unwrap_or(LOW_RANK_RATE),
            },
            seed,
        }
    }

    /// The samples as they are fed: cut, and without BOS where a prefix stands for it.
    fn read(&self, model: &ModelInFlight) -> Result<Samples, StepError> {
        let start = model.calibrator.start();
        let samples = model.calibrator.samples();
        let wanted = self.samples + self.held_out;
        if samples.len() < wanted {
            return Err(StepError::TooLittle(format!(
                "training reads {} samples and holds out {}, and the calibration set has {}: lower the step's `samples` or \
                 `held-out`, or raise the set's",
                self.samples,
                self.held_out,
                samples.len()
            )));
        }
        let fed = |sample: &Vec<u32>| {
            let first = usize::from(model.decoder.stands_for_first(start, sample));
            sample[first..sample.len().min(self.length.max(first + 1))].to_vec()
        };
        let tokens = samples[..wanted].iter().map(fed).collect();
        Ok(Samples { tokens, held_out: self.held_out })
    }
}

/// The `weights` steps of the recipe, which say how weights are rounded, with their grids and factors on ranges.
fn hosts(earlier: &[Step]) -> Result<Vec<(&Weights, Grid, f32)>, StepError> {
    let mut found = Vec::new();
    for step in earlier {
        let Step::Weights(weights) = step else { continue };
        let Some(grid) = weights.grid() else { continue };
        let refused = |what: &str| Err(StepError::Host(format!("training {what}, or leave `tune` out")));
        if weights.solver != Solver::Rtn {
            return refused("rounds weights to nearest: give the step `weights` solver = \"rtn\"");
        }
        let Clip::Factor(clip) = weights.clip else {
            return refused("learns the ranges itself: give the step `weights` a number as `clip`");
        };
        if grid.convention().float().is_some() {
            return refused("knows whole codes only: give the step `weights` another `convention`");
        }
        found.push((weights, grid, clip));
    }
    Ok(found)
}

impl Method for BisupStyle {
    fn stage(&self) -> Stage {
        Stage::Tune
    }

    fn check(&self) -> Result<(), String> {
        if self.components.is_empty() {
            return Err("`components` is empty: leave it out for the default, or the step".into());
        }
        for (i, component) in self.components.iter().enumerate() {
            if self.components[..i].contains(component) {
                return Err(format!("`components` names {} twice", json!(component)));
            }
        }
        for (key, given, component) in [
            ("clipping-rate", self.clipping_rate.is_some(), Component::Clipping),
            ("smoothing-rate", self.smoothing_rate.is_some(), Component::Smoothing),
            ("alpha", self.alpha.is_some(), Component::Smoothing),
            ("bound", self.bound.is_some(), Component::Smoothing),
            ("low-rank-rate", self.low_rank_rate.is_some(), Component::LowRank),
            ("rank", self.rank.is_some(), Component::LowRank),
            ("start", self.start.is_some(), Component::LowRank),
        ] {
            if given && !self.has(component) {
                return Err(format!("`{key}` belongs to the component {}, which is off", json!(component)));
            }
        }
        for (key, count, least) in [
            ("samples", self.samples, 1),
            ("held-out", self.held_out, 1),
            ("length", self.length, 2),
            ("rank", self.rank.unwrap_or(RANK), 1),
        ] {
            if count < least {
                return Err(format!("`{key}` must be at least {least}, not {count}"));
            }
        }
        for (key, rate) in [
            ("clipping-rate", self.clipping_rate),
            ("smoothing-rate", self.smoothing_rate),
            ("low-rank-rate", self.low_rank_rate),
        ] {
            if let Some(rate) = rate.filter(|rate| !(*rate > 0.0 && *rate <= 1.0)) {
                return Err(format!("`{key}` must be above 0 and at most 1, not {rate}"));
            }
        }
        if let Some(alpha) = self.alpha.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return Err(format!("`alpha` must be between 0 and 1, not {alpha}"));
        }
        match self.bound {
            Some(bound) if !(1.0..=1000.0).contains(&bound) => {
                Err(format!("`bound` must be between 1 and 1000, not {bound}"))
            }
            _ => Ok(()),
        }
    }

    fn claims(&self) -> Vec<String> {
        vec!["the blocks by training".into()]
    }

    fn tries_on_a_copy(&self) -> bool {
        true
    }

    fn needs_calibration(&self) -> bool {
        true
    }

    fn uses_randomness(&self) -> bool {
        self.has(Component::LowRank)
    }

    fn rounds_weights(&self) -> bool {
        true
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        hosts(facts.earlier).map(|_| ())
    }

    fn store(&self, tally: &mut Tally) {
        let Some(rank) = self.rank.or(Some(RANK)).filter(|_| self.has(Component::LowRank)) else { return };
        for group in tally.groups.iter_mut().filter(|group| group.site.layer.is_some()) {
            let rounded = group.linears.iter().filter(|linear| linear.is_rounded());
            let held = rounded.map(|w| rank.min(w.out).min(w.input) * (w.out + w.input));
            group.branches = FULL * held.sum::<usize>() as f64;
        }
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let samples = self.read(model)?;
        let mut found: HashMap<Site, Host> = HashMap::new();
        let mut embedding = None;
        for (weights, grid, clip) in hosts(model.earlier)? {
            let (granularity, ragged) = (weights.granularity, weights.ragged);
            let host = Host { grid, granularity, ragged, clip };
            for (site, _) in model.decoder.groups() {
                if site.layer.is_some() && weights.rounds(site.port, model.tap.kept.get(&site).copied()) {
                    found.insert(site, host);
                }
            }
            if weights.embeddings {
                let mut rounded = model.decoder.clone();
                weights.round_embeddings(&mut rounded, grid)?;
                embedding = Some(rounded.embedding);
            }
        }
        let options = self.options(model.calibrator.seed());
        let (decoder, tap) = (&mut *model.decoder, &mut *model.tap);
        let tuned = pass::run(decoder, tap, &mut *model.calibrator, &found, &options, &samples, embedding)?;
        let parameters: usize = tuned.iter().map(|(_, tuned)| tuned.low_rank_parameters).sum();
        let blocks = tuned.into_iter().map(|(layer, tuned)| (format!("layers.{layer}"), json!(tuned)));
        let mut report = Map::new();
        report.insert("named".into(), "bisup-style".into());
        report.insert("low-rank-parameters".into(), parameters.into());
        report.insert("blocks".into(), Value::Object(blocks.collect()));
        Ok(report)
    }
}
