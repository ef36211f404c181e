//! What one look at a model's activations shows: its groups by spike ratio, outlying channels, tokens that spike, and
//! what that means for one scale per tensor.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::calibrate::statistics::{OUTLIER_RATIO, SiteStatistics};
use crate::record::statistics::{RESIDUAL, SiteSummary, StatisticsResult, StatisticsRows};

/// The ratio from which on a group is said to spike. A scale that serves the greatest token leaves the median token
/// log2 r bits fewer: at 16, four of eight.
pub const SPIKING: f64 = 16.0;

/// Channels whose greatest magnitude is more than so many times that of the median channel are outliers: the magnitude
/// from which on LLM.int8() (arXiv 2208.07339) counts outlier features, taken relative to the site.
pub const CHANNEL_OUTLIER: f32 = 6.0;

/// Steps on one side of a symmetric 8-bit grid.
const STEPS: f64 = 127.0;

/// The channels of one site.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Channels {
    /// Channels whose greatest magnitude is more than [`CHANNEL_OUTLIER`] times the median one.
    pub outliers: u32,
    /// Lower median over channels of the greatest magnitude.
    pub median: f64,
    /// The channel with the greatest magnitude of all, of equal ones the first.
    pub largest: u32,
    /// Its magnitude.
    pub absmax: f64,
}

impl Channels {
    /// Of everything seen at a site.
    pub fn of(site: &SiteStatistics) -> Self {
        let magnitudes = site.absmax_by_channel();
        let mut order = magnitudes.clone();
        order.sort_by(f32::total_cmp);
        let median = order.get(order.len().saturating_sub(1) / 2).copied().unwrap_or_default();
        let absmax = order.last().copied().unwrap_or_default();
        let threshold = CHANNEL_OUTLIER * median;
        Self {
            outliers: magnitudes.iter().filter(|&&m| m > threshold).count() as u32,
            median: f64::from(median),
            largest: magnitudes.iter().position(|&m| m == absmax).unwrap_or_default() as u32,
            absmax: f64::from(absmax),
        }
    }
}

/// How often a token spikes among the places where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Places where its scale is more than [`OUTLIER_RATIO`] medians of the sample.
    pub spikes: u32,
    /// All places.
    pub places: u32,
}

/// A token that is among the greatest of a site.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenSpikes {
    /// Token id.
    pub token: u32,
    /// Its text.
    pub text: String,
    /// Its greatest scale.
    pub scale: f64,
    /// That scale over the lower median of its sample; `None` where the median is zero.
    pub ratio: Option<f64>,
    /// Where no token before it in its sample is the same.
    pub first: Share,
    /// Everywhere else.
    pub later: Share,
    /// Positions at which it spikes, ascending, each once.
    pub positions: Vec<u32>,
}

/// The tokens with the greatest scales at one site, greatest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tokens {
    /// The site.
    pub site: String,
    /// The tokens.
    pub tokens: Vec<TokenSpikes>,
    /// Whether a sample has more spikes than statistics keep, so that shares may be too small.
    pub capped: bool,
}

impl Tokens {
    /// Of one site; `samples` are those that went through the model, whole.
    pub fn of(name: &str, site: &SiteStatistics, samples: &[Vec<u32>], text: &dyn Fn(u32) -> String) -> Self {
        let mut found: BTreeMap<u32, TokenSpikes> = BTreeMap::new();
        let mut positions: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut capped = false;
        for (&sample, sequence) in &site.sequences {
            let ids = &samples[sample];
            let threshold = OUTLIER_RATIO * sequence.median;
            capped |= sequence.outliers(OUTLIER_RATIO).capped;
            for top in &sequence.top {
                let token = found.entry(top.token).or_insert_with(|| TokenSpikes {
                    token: top.token,
                    text: text(top.token),
                    scale: -1.0,
                    ratio: None,
                    first: Share::default(),
                    later: Share::default(),
                    positions: Vec::new(),
                });
                if f64::from(top.scale) > token.scale {
                    token.scale = f64::from(top.scale);
                    token.ratio = (sequence.median > 0.0).then(|| token.scale / f64::from(sequence.median));
                }
                if top.scale > threshold {
                    let first = !ids[..top.position as usize].contains(&top.token);
                    let share = if first { &mut token.first } else { &mut token.later };
                    share.spikes += 1;
                    positions.entry(top.token).or_default().insert(top.position);
                }
            }
        }
        for ids in samples {
            let mut seen = BTreeSet::new();
            for id in ids {
                if let Some(token) = found.get_mut(id) {
                    let share = if seen.insert(*id) { &mut token.first } else { &mut token.later };
                    share.places += 1;
                }
            }
        }
        for (token, places) in positions {
            if let Some(found) = found.get_mut(&token) {
                found.positions = places.into_iter().collect();
            }
        }
        let mut tokens: Vec<TokenSpikes> = found.into_values().collect();
        tokens.sort_by(|a, b| b.scale.total_cmp(&a.scale).then(a.token.cmp(&b.token)));
        Self { site: name.into(), tokens, capped }
    }

    /// Those that spike, greatest first.
    pub fn spiking(&self) -> impl Iterator<Item = &TokenSpikes> {
        self.tokens.iter().filter(|token| token.first.spikes + token.later.spikes > 0)
    }
}

/// Statistics of the model in one state: as it came, or behind a prefix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Look {
    /// As a store keeps them; `tables` is empty until they are published.
    pub statistics: StatisticsResult,
    /// Channels by site.
    pub channels: BTreeMap<String, Channels>,
    /// The tables.
    #[serde(skip)]
    pub rows: StatisticsRows,
}

impl Look {
    /// The groups of all blocks, largest ratio first; one whose ratio is undefined, because its median is zero, before
    /// all others; equal ones in the order of the forward pass.
    pub fn groups(&self) -> Vec<&SiteSummary> {
        let in_block = |site: &&SiteSummary| site.layer.is_some() && site.port != RESIDUAL;
        let mut groups: Vec<&SiteSummary> = self.statistics.sites.iter().filter(in_block).collect();
        let key = |site: &SiteSummary| site.ratio.unwrap_or(f64::INFINITY);
        groups.sort_by(|a, b| key(b).total_cmp(&key(a)));
        groups
    }

    /// The summary of a site.
    pub fn site(&self, name: &str) -> Option<&SiteSummary> {
        self.statistics.sites.iter().find(|site| site.site == name)
    }
}

/// What the ratios mean for a scale per tensor, in plain words, one sentence an item.
pub fn verdict(
    original: &Look,
    tokens: Option<&Tokens>,
    behind: Option<&Look>,
    named: &dyn Fn(u32, &str) -> String,
) -> Vec<String> {
    let mut said = Vec::new();
    let groups = original.groups();
    let Some(largest) = groups.first() else { return said };
    let Some(ratio) = largest.ratio else {
        said.push(format!(
            "the ratio of {} is undefined: its median token scale is zero in {} of {} samples; use longer samples",
            largest.site, largest.zero_medians, original.statistics.samples
        ));
        return said;
    };
    if ratio < SPIKING {
        said.push(format!("no spikes: the largest ratio is {} ({})", digits(ratio, 3), largest.site));
    } else {
        let others = groups.iter().skip(1).filter(|group| group.ratio.is_none_or(|r| r >= SPIKING)).count();
        let token = largest.top.first().map(|top| named(top.token, &top.text)).unwrap_or_default();
        said.push(format!(
            "per-tensor activation scales will be dominated by {} (r = {}, {token})",
            largest.site,
            digits(ratio, 3)
        ));
        said.push(format!(
            "an 8-bit scale per tensor there leaves its median token {} of {STEPS} steps",
            digits(STEPS / ratio, 2)
        ));
        match others {
            0 => {}
            1 => said.push(format!("1 more group has a ratio of {SPIKING} or more")),
            n => said.push(format!("{n} more groups have a ratio of {SPIKING} or more")),
        }
        if let Some(trigger) = tokens.and_then(|tokens| only_at_first(tokens)) {
            said.push(format!(
                "{} spikes only at its first place in a sample: a prefix that holds it may take the spikes away",
                named(trigger.token, &trigger.text)
            ));
        }
    }
    if let Some(behind) = behind {
        let groups = behind.groups();
        let Some((largest, after)) = groups.first().and_then(|group| Some((group, group.ratio?))) else {
            return said;
        };
        let how = match (ratio >= SPIKING, after >= SPIKING) {
            (true, false) => "the prefix takes the spikes away",
            (true, true) if after < ratio / 2.0 => "the prefix takes a part of the spikes away",
            (true, true) => "the prefix does not take the spikes away",
            (false, true) => "the prefix makes spikes",
            (false, false) => "there are no spikes behind the prefix either",
        };
        said.push(format!("{how}: behind it the largest ratio is {} ({})", digits(after, 3), largest.site));
    }
    said
}

/// The greatest token that spikes wherever it stands first, and hardly ever later, though it does stand later.
fn only_at_first(tokens: &Tokens) -> Option<&TokenSpikes> {
    let mostly_first = |token: &&TokenSpikes| {
        let (first, later) = (token.first, token.later);
        2 * first.spikes > first.places && later.places > 0 && 10 * later.spikes < later.places
    };
    tokens.spiking().find(mostly_first)
}

/// A number with so many significant digits, no more than it has.
pub fn digits(value: f64, significant: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let decimals = (significant - 1 - value.abs().log10().floor() as i32).max(0);
    format!("{value:.*}", decimals as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::statistics::{Batch, Depth};

    /// One channel whose magnitudes are the token scales.
    fn site(scales: &[&[f32]], samples: &[Vec<u32>]) -> SiteStatistics {
        let mut site = SiteStatistics::new(1, Depth { histogram: false, second_moment: false });
        for (index, (scales, tokens)) in scales.iter().zip(samples).enumerate() {
            let batch = Batch { samples: &[index], tokens: &[tokens], first_position: 0 };
            site.observe(scales, &batch, 0).unwrap();
        }
        site
    }

    #[test]
    fn places_of_a_token_are_counted_first_and_later() {
        // Token 7 spikes where it stands first; token 9 spikes once, at a later place.
        let samples = vec![vec![1, 7, 9, 7, 9], vec![7, 1, 1, 1, 7]];
        let seen = site(&[&[1.0, 50.0, 1.0, 2.0, 9.0], &[40.0, 1.0, 1.0, 1.0, 1.0]], &samples);
        let tokens = Tokens::of("x", &seen, &samples, &|token| token.to_string());
        let [seven, nine] = [0, 1].map(|i| &tokens.tokens[i]);
        assert_eq!((seven.token, seven.scale, seven.ratio), (7, 50.0, Some(25.0)));
        assert_eq!(seven.first, Share { spikes: 2, places: 2 });
        assert_eq!(seven.later, Share { spikes: 0, places: 2 });
        assert_eq!(seven.positions, [0, 1]);
        // 9 is 4.5 medians: not an outlier.
        assert_eq!((nine.token, nine.first.spikes + nine.later.spikes), (9, 0));
        assert_eq!(tokens.spiking().count(), 1);
        assert_eq!(only_at_first(&tokens).map(|t| t.token), Some(7));
    }

    #[test]
    fn channel_outliers_are_relative_to_the_median_channel() {
        let mut site = SiteStatistics::new(5, Depth { histogram: false, second_moment: false });
        let batch = Batch { samples: &[0], tokens: &[&[1, 2]], first_position: 0 };
        site.observe(&[1.0, -2.0, 0.5, 12.0, -13.0, 1.5, 1.0, 2.0, -1.0, 1.0], &batch, 0).unwrap();
        // By channel 1.5, 2, 2, 12, 13; six medians are 12, which the fourth does not exceed.
        let channels = Channels::of(&site);
        assert_eq!(channels, Channels { outliers: 1, median: 2.0, largest: 4, absmax: 13.0 });
    }
}
