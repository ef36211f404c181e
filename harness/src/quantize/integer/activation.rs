//! Activations as codes: rounded as [`FakeQuant`](crate::quantize::fake_quant::FakeQuant) rounds them, to the bit, and left
//! as the whole numbers that they are.

use std::sync::Arc;

use models::per_processor;
use rayon::prelude::*;

use crate::quantize::fake_quant::{ActivationRule, ScaleSource};
use crate::quantize::grid::{Granularity, Grid, Scale};
use crate::quantize::integer::segments::{Segment, width};
use crate::quantize::rounding::range;
use crate::quantize::solve::layout::{Layout, Share};

/// How the activations of a site become codes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The rule.
    pub rule: ActivationRule,
    /// The order of the channels, where they have one.
    pub layout: Option<Arc<Layout>>,
    /// What shares a scale in a row.
    pub shares: Vec<Share>,
    /// How rows are cut.
    pub segments: Vec<Segment>,
    /// Whether Σ u is wanted.
    pub with_sums: bool,
}

/// Activations as codes: x = Δ · (u − z) with u a u8, and one Δ and z for each row and segment.
#[derive(Clone, Debug)]
pub struct Codes {
    /// How many rows: tokens.
    pub rows: usize,
    /// Codes of a padded row.
    pub stride: usize,
    /// Rows of `stride` codes; those behind a segment's places are 0.
    pub codes: Vec<u8>,
    /// By row and segment.
    pub scales: Vec<TokenScale>,
}

/// What a row has besides its codes, in one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenScale {
    /// Δ; NaN where a value of the row is.
    pub delta: f32,
    /// z
    pub zero: i32,
    /// Σ u, where it is wanted.
    pub sum: i32,
}

impl Plan {
    /// Rounds activations.
    ///
    /// # Shapes
    /// `values` is `[sequences, tokens, channels]`, `tokens` to a sequence.
    pub fn encode(&self, values: &[f32], tokens: usize, channels: usize) -> Codes {
        let (rows, stride, segments) = (values.len() / channels, width(&self.segments), self.segments.len());
        let given = self.given_scales(values, tokens * channels, channels);
        let mut codes = vec![0u8; rows * stride];
        let mut scales = vec![TokenScale::default(); rows * segments];
        codes
            .par_chunks_mut(stride)
            .zip(scales.par_chunks_mut(segments))
            .zip(values.par_chunks(channels))
            .enumerate()
            .with_min_len(8)
            .for_each_init(Vec::new, |ordered, (index, ((codes, scales), row))| {
                let row = match &self.layout {
                    None => row,
                    Some(layout) => {
                        ordered.clear();
                        ordered.extend(layout.order.iter().map(|&c| row[c]));
                        &ordered[..]
                    }
                };
                let given =
                    given.as_ref().map(|given| given[if given.len() > 1 { index / tokens } else { 0 }]);
                self.encode_row(row, given, codes, scales);
            });
        Codes { rows, stride, codes, scales }
    }

    /// Scales that are not a token's own: one for all, or one for each sequence.
    fn given_scales(&self, values: &[f32], sequence: usize, channels: usize) -> Option<Vec<Scale>> {
        let rule = &self.rule;
        if let ScaleSource::Static(scale) = rule.scale {
            return Some(vec![scale]);
        }
        if rule.granularity != Granularity::Tensor {
            return None;
        }
        let of = |row: &[f32]| match &self.layout {
            None => range(row),
            Some(layout) => {
                let rest: Vec<f32> = layout.order[..layout.rest()].iter().map(|&c| row[c]).collect();
                range(&rest)
            }
        };
        let whole = |sequence: &[f32]| {
            let (lo, hi) = sequence
                .par_chunks(channels)
                .map(of)
                .reduce(|| (f32::INFINITY, f32::NEG_INFINITY), |a, b| (a.0.min(b.0), a.1.max(b.1)));
            rule.grid.fit(lo, hi, rule.clip)
        };
        Some(values.chunks(sequence).map(whole).collect())
    }

    fn encode_row(&self, row: &[f32], given: Option<Scale>, codes: &mut [u8], scales: &mut [TokenScale]) {
        let mut broken = false;
        let mut segments = self.segments.iter().zip(scales.iter_mut()).peekable();
        for share in &self.shares {
            let kept = self.layout.as_ref().filter(|_| share.is_kept);
            let (grid, clip) = match kept {
                None => (self.rule.grid, self.rule.clip),
                Some(layout) => match layout.grid {
                    Some(grid) => (grid, 1.0),
                    None => continue,
                },
            };
            let scale = given.filter(|_| kept.is_none()).unwrap_or_else(|| {
                let (lo, hi) = range(&row[share.from..share.to]);
                grid.fit(lo, hi, clip)
            });
            let (lowest, _) = grid.codes();
            while let Some((segment, token)) = segments.next_if(|(segment, _)| segment.to <= share.to) {
                let run = &mut codes[segment.at..][..segment.to - segment.from];
                broken |= encode(&row[segment.from..segment.to], grid, scale, run);
                token.delta = scale.delta;
                token.zero = (scale.zero - lowest) as i32;
                if self.with_sums {
                    token.sum = run.iter().map(|&u| i32::from(u)).sum();
                }
            }
        }
        if broken {
            // A broken model must show: the row's outputs are NaN, as they are in floating point.
            scales.iter_mut().for_each(|token| token.delta = f32::NAN);
        }
    }
}

per_processor! {
    /// The codes of values less the grid's lowest one; whether a value has none, being NaN.
    pub fn encode(values: &[f32], grid: Grid, scale: Scale, codes: &mut [u8]) -> bool {
        let (lo, hi) = grid.codes();
        let Scale { delta, zero } = scale;
        let mut broken = 0u32;
        for (code, &x) in codes.iter_mut().zip(values) {
            let place = x / delta;
            broken |= u32::from(place.is_nan());
            let rounded = place.round_ties_even() + zero;
            // Written so that NaN becomes the lowest code, as a conversion without checks needs.
            let rounded = if rounded > lo { rounded } else { lo };
            let rounded = if rounded < hi { rounded } else { hi };
            // SAFETY: between the lowest and the highest code, which are 255 apart at most.
            *code = unsafe { (rounded - lo).to_int_unchecked::<i32>() } as u8;
        }
        broken != 0
    }
}
