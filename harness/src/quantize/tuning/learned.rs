//! What is learned of a block, and the block that ships with it.

use std::collections::HashMap;

use burn::tensor::{Tensor, TensorData};
use models::kernel::change_in_place;
use models::{Decoder, Site};
use rayon::prelude::*;

use crate::calibrate::set::stream;
use crate::quantize::StepError;
use crate::quantize::fake_quant::FakeQuant;
use crate::quantize::low_rank::LowRank;
use crate::quantize::tuning::block::{PlainBlock, PlainLinear};
use crate::quantize::tuning::clipping::{self, Clips};
use crate::quantize::tuning::smoothing::Smoothing;
use crate::quantize::tuning::{LowRankOptions, LowRankStart, Options, residual};

/// The factors of a branch: (x·Aᵀ·Bᵀ)/√r.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// r
    pub rank: usize,
    /// A, `[rank, in]`
    pub a: Vec<f32>,
    /// B, `[out, rank]`
    pub b: Vec<f32>,
}

impl Factors {
    /// 1/√r: what the branch adds keeps its size when the rank grows (rsLoRA, arXiv:2312.03732).
    pub fn scale(&self) -> f32 {
        1.0 / (self.rank as f32).sqrt()
    }
}

/// What is learned of one linear.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnedLinear {
    /// Ends of the ranges.
    pub clips: Option<Clips>,
    /// A branch beside it.
    pub factors: Option<Factors>,
}

/// What is learned at one site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnedSite {
    /// Channel scales.
    pub smoothing: Option<Smoothing>,
    /// In the order of the site's linears.
    pub linears: Vec<LearnedLinear>,
}

/// What is learned of one block, site by site. The default of every part is the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// In the order of the forward pass.
    pub sites: Vec<LearnedSite>,
}

impl Learned {
    /// The host: nothing is learned.
    pub fn host(block: &PlainBlock) -> Self {
        let site = |linears: usize| LearnedSite {
            smoothing: None,
            linears: vec![LearnedLinear::default(); linears],
        };
        Self { sites: block.sites.iter().map(|plain| site(plain.linears.len())).collect() }
    }

    /// Where training begins. With `largest`, the largest activation of every channel, scales begin as SmoothQuant's, without
    /// it, or where it lacks a site, at one.
    ///
    /// # Panics
    /// If the decoder is not the block's.
    pub fn start(
        block: &PlainBlock,
        decoder: &Decoder,
        options: &Options,
        largest: Option<&HashMap<Site, Vec<f32>>>,
    ) -> Self {
        let mut learned = Self::host(block);
        for (plain, site) in block.sites.iter().zip(&mut learned.sites) {
            site.smoothing = options.smoothing.zip(plain.producers.as_ref()).map(|(smoothing, producers)| {
                let Some(largest) = largest.and_then(|largest| largest.get(&plain.site)) else {
                    return Smoothing::one(producers, smoothing.bound);
                };
                let groups = decoder.groups();
                let (_, group) =
                    groups.iter().find(|(at, _)| *at == plain.site).expect("the block's own site");
                Smoothing::smoothquant(producers, largest, group, smoothing)
            });
        }
        for (s, plain) in block.sites.iter().enumerate() {
            for (l, linear) in plain.linears.iter().enumerate() {
                let Some(runs) = &linear.runs else { continue };
                let count = runs.count(linear.weight.len());
                let clips = options.clipping.then(|| Clips::all(count, clipping::START));
                let factors = options.low_rank.map(|low_rank| {
                    let name = format!("low-rank {} {l}", plain.site);
                    let mut random = stream(&name, options.seed);
                    begin(low_rank, linear, &mut random, || {
                        let weight = learned.effective(block, s, l);
                        let mut rounded = weight.clone();
                        clipping::round(&mut rounded, runs, clips.as_ref());
                        weight.iter().zip(&rounded).map(|(w, q)| w - q).collect()
                    })
                });
                learned.sites[s].linears[l] = LearnedLinear { clips, factors };
            }
        }
        learned
    }

    /// The scales that divide the rows of a linear, because its outputs become the channels of a smoothed site.
    pub fn row_scales(&self, block: &PlainBlock, site: usize, linear: usize) -> Option<Vec<f64>> {
        self.divided_for(block, site, linear)
            .and_then(|s| self.sites[s].smoothing.as_ref())
            .map(Smoothing::scales)
    }

    /// The smoothed site that a linear's outputs become.
    pub fn divided_for(&self, block: &PlainBlock, site: usize, linear: usize) -> Option<usize> {
        let produces = |s: &usize| block.sites[*s].producer == Some((site, linear));
        (0..block.sites.len()).filter(produces).find(|&s| self.sites[s].smoothing.is_some())
    }

    /// W·diag(s) with rows divided by the scales of the site they become: the weight that is rounded.
    pub fn effective(&self, block: &PlainBlock, site: usize, linear: usize) -> Vec<f32> {
        let plain = &block.sites[site].linears[linear];
        let mut weight = plain.weight.clone();
        let columns: Option<Vec<f32>> = self.sites[site]
            .smoothing
            .as_ref()
            .map(|smoothing| smoothing.by_channel().iter().map(|&s| s as f32).collect());
        let rows = self.row_scales(block, site, linear);
        weight.par_chunks_mut(plain.dims[1]).enumerate().with_min_len(64).for_each(|(r, row)| {
            if let Some(columns) = &columns {
                row.iter_mut().zip(columns).for_each(|(w, s)| *w *= s);
            }
            if let Some(rows) = &rows {
                let factor = (1.0 / rows[r]) as f32;
                row.iter_mut().for_each(|w| *w *= factor);
            }
        });
        weight
    }

    /// The model with this block as it ships: scales folded, weights rounded, branches in the tap. The other blocks are as
    /// they were.
    ///
    /// # Errors
    /// Where a scale cannot be folded.
    pub fn ship(
        &self,
        block: &PlainBlock,
        decoder: &Decoder,
        tap: &FakeQuant,
    ) -> Result<(Decoder, FakeQuant), StepError> {
        let (mut decoder, mut tap) = (decoder.clone(), tap.clone());
        for (plain, site) in block.sites.iter().zip(&self.sites) {
            if let Some(smoothing) = &site.smoothing {
                decoder.rescale(plain.site, &smoothing.by_channel())?;
            }
        }
        let device = decoder.device();
        for (at, group) in decoder.groups_mut() {
            let Some(s) = block.sites.iter().position(|plain| plain.site == at) else { continue };
            let (plain, site) = (&block.sites[s], &self.sites[s]);
            if !plain.is_rounded() {
                continue;
            }
            tap.rounded.insert(at);
            let mut branches = Vec::new();
            for ((linear, plain), learned) in group.linears.iter_mut().zip(&plain.linears).zip(&site.linears)
            {
                if let Some(runs) = &plain.runs {
                    linear.weight = change_in_place(linear.weight.clone(), |values| {
                        clipping::round(values, runs, learned.clips.as_ref());
                    });
                }
                branches.extend(learned.factors.as_ref().map(|factors| {
                    let [out, input] = plain.dims;
                    let tensor = |values: Vec<f32>, dims: [usize; 2]| {
                        Tensor::from_data(TensorData::new(values, dims), &device)
                    };
                    let up = factors.b.iter().map(|b| b * factors.scale()).collect();
                    LowRank {
                        down: tensor(factors.a.clone(), [factors.rank, input]),
                        up: tensor(up, [out, factors.rank]),
                    }
                }));
            }
            if !branches.is_empty() {
                tap.low_rank.insert(at, branches);
            }
        }
        Ok((decoder, tap))
    }
}

/// The factors of a branch as they begin; `residual` is what rounding takes from the weight.
fn begin(
    options: LowRankOptions,
    linear: &PlainLinear,
    random: &mut rand_chacha::ChaCha8Rng,
    residual: impl FnOnce() -> Vec<f32>,
) -> Factors {
    let [out, input] = linear.dims;
    let rank = options.rank.min(out).min(input);
    match options.start {
        LowRankStart::Zero => {
            let bound = 1.0 / (input as f32).sqrt();
            let a = (0..rank * input).map(|_| bound * residual::uniform(random)).collect();
            Factors { rank, a, b: vec![0.0; out * rank] }
        }
        LowRankStart::Svd => {
            let (a, b) = residual::factors(residual(), input, rank, random);
            let root = (rank as f32).sqrt();
            Factors { rank, a, b: b.into_iter().map(|b| b * root).collect() }
        }
    }
}
