//! What is known of the activation of one site after looking at it once, and of all sites together.
//!
//! The token scale of token t is s_t = max over channels of |x_t|, and the spike ratio of a site is the mean over
//! sequences of max_t s_t / median_t s_t, the median being the lower one (QFeM: arXiv 2405.14428, and its code, which
//! takes `torch.median`). What is kept per sequence is small and does not grow with its length; what is kept per site
//! does not grow with the number of sequences.

use std::collections::BTreeMap;

use models::{Port, Site, per_processor};
use rayon::prelude::*;

use super::histogram::{Histogram, TALLY_BITS, Tally};
use super::moment::SecondMoment;

/// Tokens with the greatest scales that every sequence keeps.
pub const TOP_TOKENS: usize = 8;

/// Tokens whose scale is more than this many medians are kept beyond [`TOP_TOKENS`], up to [`MOST_TOKENS`]. The η of
/// PrefixQuant (64 in its code), which a recipe sets, cannot be lower than this.
pub const OUTLIER_RATIO: f32 = 8.0;

/// Tokens that a sequence keeps at most.
pub const MOST_TOKENS: usize = 32;

/// Bits by which token scales are sorted into bins: 128 per octave, so that a pooled median is within 0.8 %.
const SCALE_BITS: u32 = 7;

/// Rows that one task looks at. Fixed and counted from a sequence's start, so that sums in f32 inside a block come out
/// the same whatever else is in the batch.
const BLOCK: usize = 64;

/// Unit of the sums of magnitudes: 2^−64. Sums of integers are exact in any order; 2^63 is the most they hold.
const UNITS_PER_ONE: f64 = 18_446_744_073_709_551_616.0;

/// A token and its scale at one site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScale {
    /// max over channels of |x|
    pub scale: f32,
    /// Position in its sample.
    pub position: u32,
    /// Token id.
    pub token: u32,
}

/// A token among those of all sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Index of its sample.
    pub sample: usize,
    /// Where in it, and how great.
    pub at: TokenScale,
}

/// What is kept of one sequence at one site: 150 to 450 bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceScales {
    /// Tokens looked at.
    pub tokens: u32,
    /// Smallest value.
    pub low: f32,
    /// Greatest value.
    pub high: f32,
    /// Greatest token scale.
    pub max: f32,
    /// Lower median of the token scales: of an even number, the lower of the two in the middle.
    pub median: f32,
    /// Tokens whose scale is more than [`OUTLIER_RATIO`] medians, all of them counted.
    pub outliers: u32,
    /// The tokens with the greatest scales, descending, of equal ones the earlier first: at least [`TOP_TOKENS`] (or
    /// all), and all outliers up to [`MOST_TOKENS`].
    pub top: Box<[TokenScale]>,
}

/// A median of zero, over which nothing can be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroMedian {
    /// The first sample that has it.
    pub sample: usize,
}

/// Tokens above a threshold in one sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outliers<'a> {
    /// The tokens, greatest scale first.
    pub tokens: &'a [TokenScale],
    /// Whether there may be more than were kept.
    pub capped: bool,
}

impl SequenceScales {
    /// Of token scales and the tokens they belong to.
    ///
    /// # Panics
    /// Without a token, or with unequal lengths.
    fn new(scales: &[f32], tokens: &[u32], first_position: usize, (low, high): (f32, f32)) -> Self {
        assert!(!scales.is_empty() && scales.len() == tokens.len(), "one scale per token, and at least one");
        let mut order = scales.to_vec();
        let middle = (order.len() - 1) / 2;
        let median = *order.select_nth_unstable_by(middle, f32::total_cmp).1;
        let threshold = OUTLIER_RATIO * median;
        let outliers = scales.iter().filter(|&&s| s > threshold).count();
        let kept = outliers.clamp(TOP_TOKENS, MOST_TOKENS).min(scales.len());
        // The kept-th greatest scale; nothing below it can be among the kept.
        let least = *order.select_nth_unstable_by(scales.len() - kept, f32::total_cmp).1;
        let candidates = scales.iter().zip(tokens).enumerate().filter(|(_, (scale, _))| **scale >= least);
        let mut top: Vec<TokenScale> = candidates
            .map(|(i, (&scale, &token))| TokenScale { scale, position: (first_position + i) as u32, token })
            .collect();
        top.sort_by(|a, b| b.scale.total_cmp(&a.scale).then(a.position.cmp(&b.position)));
        top.truncate(kept);
        Self {
            tokens: scales.len() as u32,
            low,
            high,
            max: top[0].scale,
            median,
            outliers: outliers as u32,
            top: top.into(),
        }
    }

    /// max / lower median, in f64; `None` where the median is zero.
    pub fn ratio(&self) -> Option<f64> {
        (self.median > 0.0).then(|| f64::from(self.max) / f64::from(self.median))
    }

    /// Tokens whose scale is more than `eta` medians: PrefixQuant's outlier tokens (arXiv 2410.05265).
    ///
    /// # Panics
    /// If `eta` is below [`OUTLIER_RATIO`], for which not enough is kept.
    pub fn outliers(&self, eta: f32) -> Outliers<'_> {
        assert!(eta >= OUTLIER_RATIO, "tokens below {OUTLIER_RATIO} medians are not kept");
        let threshold = eta * self.median;
        let count = self.top.iter().take_while(|t| t.scale > threshold).count();
        let capped = count == self.top.len() && self.outliers as usize > count;
        Outliers { tokens: &self.top[..count], capped }
    }
}

/// Which sequences a batch of activations belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Index of every sequence's sample in the calibration set.
    pub samples: &'a [usize],
    /// Their tokens, as many as the activation has.
    pub tokens: &'a [&'a [u32]],
    /// Position of the first of these tokens in its sample: 1 where the samples' BOS was left out.
    pub first_position: usize,
}

/// What to collect at a site besides extremes, means and sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// A histogram of |x|.
    pub histogram: bool,
    /// XᵀX.
    pub second_moment: bool,
}

/// An activation with NaN, an infinity, or magnitudes that cannot be summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// The sample.
    pub sample: usize,
}

/// The activation of one site over all sequences seen so far.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteStatistics {
    /// Tokens seen.
    pub tokens: u64,
    /// Smallest value by channel.
    pub min: Vec<f32>,
    /// Greatest value by channel.
    pub max: Vec<f32>,
    /// Σ|x| by channel, in units of 2^−64.
    magnitude: Vec<i128>,
    /// By index of the sample.
    pub sequences: BTreeMap<usize, SequenceScales>,
    /// All token scales of the first samples, by index of the sample.
    pub token_scales: BTreeMap<usize, Vec<f32>>,
    /// Token scales of all sequences: one count per token.
    pub scales: Histogram,
    /// |x|: one count per value.
    pub histogram: Option<Histogram>,
    /// XᵀX.
    pub second_moment: Option<SecondMoment>,
}

/// What one task finds in its rows.
struct Block {
    min: Vec<f32>,
    max: Vec<f32>,
    magnitude: Vec<f32>,
    scales: Vec<f32>,
    tally: Option<Tally>,
}

impl Block {
    fn of(rows: &[f32], channels: usize, histogram: bool) -> Self {
        let mut block = Self {
            min: vec![f32::INFINITY; channels],
            max: vec![f32::NEG_INFINITY; channels],
            magnitude: vec![0.0; channels],
            scales: vec![0.0; rows.len() / channels],
            tally: histogram.then(Tally::default),
        };
        for (row, scale) in rows.chunks_exact(channels).zip(&mut block.scales) {
            *scale = look(row, &mut block.min, &mut block.max, &mut block.magnitude);
            // Now, while the row is in the cache.
            if let Some(tally) = &mut block.tally {
                tally.add(row);
            }
        }
        block
    }
}

per_processor! {
    /// Takes a row into minima, maxima and sums of magnitudes by channel, and returns its greatest magnitude. NaN is
    /// skipped by the extremes and shows in the sums.
    fn look(row: &[f32], min: &mut [f32], max: &mut [f32], magnitude: &mut [f32]) -> f32 {
        const LANES: usize = 16;
        let mut highest = [0.0f32; LANES];
        let (rows, row_rest) = row.as_chunks::<LANES>();
        let (mins, min_rest) = min.as_chunks_mut::<LANES>();
        let (maxs, max_rest) = max.as_chunks_mut::<LANES>();
        let (sums, sum_rest) = magnitude.as_chunks_mut::<LANES>();
        for (((x, lo), hi), sum) in rows.iter().zip(mins).zip(maxs).zip(sums) {
            for i in 0..LANES {
                let a = x[i].abs();
                lo[i] = if x[i] < lo[i] { x[i] } else { lo[i] };
                hi[i] = if x[i] > hi[i] { x[i] } else { hi[i] };
                sum[i] += a;
                highest[i] = if a > highest[i] { a } else { highest[i] };
            }
        }
        for (i, &x) in row_rest.iter().enumerate() {
            let a = x.abs();
            min_rest[i] = if x < min_rest[i] { x } else { min_rest[i] };
            max_rest[i] = if x > max_rest[i] { x } else { max_rest[i] };
            sum_rest[i] += a;
            highest[i] = if a > highest[i] { a } else { highest[i] };
        }
        highest.into_iter().fold(0.0, f32::max)
    }
}

impl SiteStatistics {
    /// Of nothing yet.
    pub fn new(channels: usize, depth: Depth) -> Self {
        Self {
            tokens: 0,
            min: vec![f32::INFINITY; channels],
            max: vec![f32::NEG_INFINITY; channels],
            magnitude: vec![0; channels],
            sequences: BTreeMap::new(),
            token_scales: BTreeMap::new(),
            scales: Histogram::new(SCALE_BITS),
            histogram: depth.histogram.then(|| Histogram::new(TALLY_BITS)),
            second_moment: depth.second_moment.then(|| SecondMoment::new(channels)),
        }
    }

    /// Channels of the activation.
    pub fn channels(&self) -> usize {
        self.min.len()
    }

    /// Takes in a batch, in one pass over the values. Samples with an index below `token_scales` keep the scales of all
    /// their tokens.
    ///
    /// # Shapes
    /// `values` is `[sequences, tokens, channels]`, row by row.
    ///
    /// # Errors
    /// If the magnitudes of a sequence have no finite sum; the statistics are then of no further use.
    ///
    /// # Panics
    /// If the batch does not fit the values, or a sample is seen twice.
    pub fn observe(&mut self, values: &[f32], batch: &Batch, token_scales: usize) -> Result<(), NotFinite> {
        let channels = self.channels();
        let tokens = batch.tokens.first().map_or(0, |t| t.len());
        assert_eq!(batch.samples.len(), batch.tokens.len(), "one list of tokens per sequence");
        assert_eq!(
            values.len(),
            batch.samples.len() * tokens * channels,
            "a batch has the activation's shape"
        );
        if tokens == 0 {
            return Ok(());
        }
        let per_sequence = tokens.div_ceil(BLOCK);
        let histogram = self.histogram.is_some();
        let blocks: Vec<Block> = (0..batch.samples.len() * per_sequence)
            .into_par_iter()
            .map(|i| {
                let sequence = &values[i / per_sequence * tokens * channels..][..tokens * channels];
                let from = i % per_sequence * BLOCK;
                let to = (from + BLOCK).min(tokens);
                Block::of(&sequence[from * channels..to * channels], channels, histogram)
            })
            .collect();
        for ((blocks, &sample), ids) in blocks.chunks(per_sequence).zip(batch.samples).zip(batch.tokens) {
            self.add_sequence(blocks, sample, ids, batch.first_position, token_scales)?;
        }
        if let Some(moment) = &mut self.second_moment {
            moment.add(values);
        }
        Ok(())
    }

    /// Takes in those tokens of one sample that a router sent to an expert, `values` of `[tokens, channels]`; `positions` are
    /// theirs in the sample. Scales of single tokens are not kept.
    ///
    /// # Errors
    /// As [`SiteStatistics::observe`].
    ///
    /// # Panics
    /// As [`SiteStatistics::observe`].
    pub fn observe_routed(
        &mut self,
        values: &[f32],
        sample: usize,
        tokens: &[u32],
        positions: &[u32],
    ) -> Result<(), NotFinite> {
        assert_eq!(tokens.len(), positions.len(), "one position per token");
        self.observe(values, &Batch { samples: &[sample], tokens: &[tokens], first_position: 0 }, 0)?;
        if let Some(seen) = self.sequences.get_mut(&sample) {
            seen.top.iter_mut().for_each(|at| at.position = positions[at.position as usize]);
        }
        Ok(())
    }

    fn add_sequence(
        &mut self,
        blocks: &[Block],
        sample: usize,
        tokens: &[u32],
        first_position: usize,
        token_scales: usize,
    ) -> Result<(), NotFinite> {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        let mut sums = vec![0.0f64; self.channels()];
        let mut scales = Vec::with_capacity(tokens.len());
        for block in blocks {
            for (sum, &part) in sums.iter_mut().zip(&block.magnitude) {
                *sum += f64::from(part);
            }
            low = block.min.iter().copied().fold(low, f32::min);
            high = block.max.iter().copied().fold(high, f32::max);
            lower(&mut self.min, &block.min);
            raise(&mut self.max, &block.max);
            scales.extend_from_slice(&block.scales);
            if let (Some(histogram), Some(tally)) = (&mut self.histogram, &block.tally) {
                histogram.add_tally(tally);
            }
        }
        if sums.iter().any(|sum| !sum.is_finite()) {
            return Err(NotFinite { sample });
        }
        for (total, sum) in self.magnitude.iter_mut().zip(sums) {
            *total = total.saturating_add((sum * UNITS_PER_ONE) as i128);
        }
        for &scale in &scales {
            self.scales.add(scale);
        }
        let summary = SequenceScales::new(&scales, tokens, first_position, (low, high));
        assert!(self.sequences.insert(sample, summary).is_none(), "sample {sample} is seen twice");
        if sample < token_scales {
            self.token_scales.insert(sample, scales);
        }
        self.tokens += tokens.len() as u64;
        Ok(())
    }

    /// Adds what was seen elsewhere, of other samples. Which of the two is merged into which does not matter.
    ///
    /// # Panics
    /// If the two are of different sites or depths, or have a sample in both.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.channels(), other.channels(), "statistics of different sites");
        self.tokens += other.tokens;
        lower(&mut self.min, &other.min);
        raise(&mut self.max, &other.max);
        for (total, more) in self.magnitude.iter_mut().zip(&other.magnitude) {
            *total = total.saturating_add(*more);
        }
        for (&sample, scales) in &other.sequences {
            let before = self.sequences.insert(sample, scales.clone());
            assert!(before.is_none(), "sample {sample} is in both statistics");
        }
        self.token_scales.extend(other.token_scales.iter().map(|(&sample, scales)| (sample, scales.clone())));
        self.scales.merge(&other.scales);
        match (&mut self.histogram, &other.histogram) {
            (Some(ours), Some(theirs)) => ours.merge(theirs),
            (None, None) => {}
            _ => panic!("one of two statistics has no histogram"),
        }
        match (&mut self.second_moment, &other.second_moment) {
            (Some(ours), Some(theirs)) => ours.merge(theirs),
            (None, None) => {}
            _ => panic!("one of two statistics has no second moment"),
        }
    }

    /// Greatest magnitude by channel.
    pub fn absmax_by_channel(&self) -> Vec<f32> {
        self.min.iter().zip(&self.max).map(|(lo, hi)| lo.abs().max(hi.abs())).collect()
    }

    /// Mean magnitude by channel.
    pub fn mean_magnitude(&self) -> Vec<f64> {
        let tokens = self.tokens as f64;
        self.magnitude.iter().map(|&sum| sum as f64 / UNITS_PER_ONE / tokens).collect()
    }

    /// Greatest magnitude of all; 0 where nothing was seen.
    pub fn absmax(&self) -> f32 {
        self.sequences.values().map(|s| s.max).fold(0.0, f32::max)
    }

    /// The tokens with the greatest scales of all sequences, descending; of equal ones the earlier sample's first. At
    /// most [`TOP_TOKENS`] are known to be complete.
    pub fn top(&self, count: usize) -> Vec<Peak> {
        let all =
            self.sequences.iter().flat_map(|(&sample, s)| s.top.iter().map(move |&at| Peak { sample, at }));
        let mut peaks: Vec<Peak> = all.collect();
        // Stable, and the input goes by sample and rank.
        peaks.sort_by(|a, b| b.at.scale.total_cmp(&a.at.scale));
        peaks.truncate(count);
        peaks
    }

    /// The spike ratio r: mean over sequences of max / lower median of the token scales.
    ///
    /// # Errors
    /// If the median of a sequence is zero.
    pub fn ratio(&self) -> Result<f64, ZeroMedian> {
        let mut sum = 0.0;
        for (&sample, scales) in &self.sequences {
            sum += scales.ratio().ok_or(ZeroMedian { sample })?;
        }
        Ok(sum / self.sequences.len() as f64)
    }

    /// Greatest token scale over the lower median of all sequences' token scales together, which is another number than
    /// [`SiteStatistics::ratio`]. The median comes from the histogram of scales, so this is within 0.8 %. `None` where
    /// the median is zero or nothing was seen.
    pub fn ratio_pooled(&self) -> Option<f64> {
        let median = self.scales.ranked(self.tokens.checked_sub(1)? / 2)?;
        (median > 0.0).then(|| f64::from(self.absmax()) / median)
    }

    /// Lower median of the sequences' medians; `None` where nothing was seen.
    pub fn median(&self) -> Option<f32> {
        let mut medians: Vec<f32> = self.sequences.values().map(|s| s.median).collect();
        medians.sort_by(f32::total_cmp);
        medians.get(medians.len().checked_sub(1)? / 2).copied()
    }

    /// Sequences whose median is zero, and which have no ratio.
    pub fn zero_medians(&self) -> usize {
        self.sequences.values().filter(|s| s.ratio().is_none()).count()
    }
}

fn lower(values: &mut [f32], others: &[f32]) {
    for (value, &other) in values.iter_mut().zip(others) {
        *value = value.min(other);
    }
}

fn raise(values: &mut [f32], others: &[f32]) {
    for (value, &other) in values.iter_mut().zip(others) {
        *value = value.max(other);
    }
}

/// A spike ratio that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the spike ratio of {site} is undefined: half of the tokens of calibration sample {sample} have an activation of \
     nothing but zeros, so its median is zero. Use longer samples, or leave this site out"
)]
pub struct RatioError {
    /// The site.
    pub site: String,
    /// Index of the sample.
    pub sample: usize,
}

/// The activations of a model over a calibration set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// By site.
    pub sites: BTreeMap<Site, SiteStatistics>,
    /// The residual stream after each block.
    pub residual: BTreeMap<usize, SiteStatistics>,
    /// Samples seen.
    pub samples: usize,
    /// Tokens seen.
    pub tokens: u64,
    /// Position of the first token that was seen of every sample.
    pub first_position: usize,
    /// Token ids seen of the samples that keep all token scales, by index.
    pub kept: BTreeMap<usize, Vec<u32>>,
}

impl Statistics {
    /// Adds what was seen of other samples of the set, at the same sites. The order does not matter.
    ///
    /// # Panics
    /// As [`SiteStatistics::merge`], and if the two begin at different positions.
    pub fn merge(&mut self, other: &Self) {
        if self.samples == 0 {
            self.first_position = other.first_position;
        }
        assert!(
            other.samples == 0 || self.first_position == other.first_position,
            "samples with and without their first token"
        );
        for (&site, theirs) in &other.sites {
            self.sites.entry(site).and_modify(|ours| ours.merge(theirs)).or_insert_with(|| theirs.clone());
        }
        for (&layer, theirs) in &other.residual {
            self.residual
                .entry(layer)
                .and_modify(|ours| ours.merge(theirs))
                .or_insert_with(|| theirs.clone());
        }
        self.samples += other.samples;
        self.tokens += other.tokens;
        self.kept.extend(other.kept.iter().map(|(&sample, tokens)| (sample, tokens.clone())));
    }

    /// The spike ratio of every site of a block, in the order of sites.
    ///
    /// # Errors
    /// If one is undefined.
    pub fn ratios(&self) -> Result<Vec<(Site, f64)>, RatioError> {
        let blocks = self.sites.iter().filter(|(site, _)| site.port != Port::HeadIn);
        blocks
            .map(|(&site, statistics)| match statistics.ratio() {
                Ok(ratio) => Ok((site, ratio)),
                Err(ZeroMedian { sample }) => Err(RatioError { site: site.to_string(), sample }),
            })
            .collect()
    }
}

#[cfg(test)]
#[path = "statistics/tests.rs"]
mod tests;
