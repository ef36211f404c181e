//! Channels of a site in an order of their own, the last of which have a grid of their own.
//!
//! A kernel that executes such a layer permutes the columns of weights and gathers activations, so that the channels that
//! are kept stand together behind the others (Atom, arXiv:2310.19102). The function is the same wherever a channel stands;
//! here, in floating point, values are rounded in that order and stay where they are.

use rayon::prelude::*;

use crate::quantize::fake_quant::ActivationRule;
use crate::quantize::grid::{Convention, Granularity, Grid};
use crate::quantize::rounding::{of_tensor, range, round_with};

/// An order of channels and what is kept of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Channels, the least important first.
    pub order: Vec<usize>,
    /// How many at the end are kept apart.
    pub kept: usize,
    /// Their grid; none for floating point.
    pub grid: Option<Grid>,
}

/// A run of places in the order that shares a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// First place.
    pub from: usize,
    /// Behind the last place.
    pub to: usize,
    /// Whether its channels are kept apart.
    pub is_kept: bool,
}

/// The grid of `bits` of channels that are kept apart; none at 16.
pub fn kept_grid(bits: u8) -> Option<Grid> {
    (bits < 16).then(|| Grid::new(bits, Convention::Atom))
}

impl Layout {
    /// Every channel in its place, none kept.
    pub fn natural(channels: usize) -> Self {
        Self { order: (0..channels).collect(), kept: 0, grid: None }
    }

    /// Channels by ascending importance, the `kept` last apart, on a symmetric grid of `bits` (16 for none).
    ///
    /// # Panics
    /// If there are fewer channels than are kept.
    pub fn by_importance(importance: &[f64], kept: usize, bits: u8) -> Self {
        assert!(kept <= importance.len(), "no more channels are kept than there are");
        let mut order: Vec<usize> = (0..importance.len()).collect();
        order.sort_by(|&a, &b| importance[a].total_cmp(&importance[b]));
        Self { order, kept, grid: kept_grid(bits) }
    }

    /// Channels that are not kept apart.
    pub fn rest(&self) -> usize {
        self.order.len() - self.kept
    }

    /// The runs of one row that have a scale each: groups of the rest, the last of which may be short, then what is kept.
    pub fn shares(&self, granularity: Granularity) -> Vec<Share> {
        let rest = self.rest();
        let width = match granularity {
            Granularity::Group(n) => n,
            Granularity::Tensor | Granularity::Channel | Granularity::Token => rest.max(1),
        };
        let share = |from: usize| Share { from, to: (from + width).min(rest), is_kept: false };
        let kept = Share { from: rest, to: self.order.len(), is_kept: true };
        (0..rest).step_by(width).map(share).chain((self.kept > 0).then_some(kept)).collect()
    }

    /// Rounds an activation's rows in this order: the rest by the rule, what is kept with one scale per token.
    ///
    /// # Shapes
    /// `values` is `[sequences, tokens, channels]`, `tokens` to a sequence.
    pub fn round_activation(&self, values: &mut [f32], tokens: usize, rule: &ActivationRule) {
        let channels = self.order.len();
        let shares = self.shares(rule.granularity);
        for sequence in values.chunks_mut(tokens * channels) {
            let mut rows: Vec<f32> = sequence
                .par_chunks(channels)
                .flat_map_iter(|row| self.order.iter().map(|&c| row[c]))
                .collect();
            let rest = self.rest();
            let of_rest = |rows: &[f32]| -> Vec<f32> {
                rows.chunks(channels).flat_map(|row| row[..rest].iter().copied()).collect()
            };
            let grid =
                if rule.grid.looks_at_tensor() { of_tensor(rule.grid, &of_rest(&rows)) } else { rule.grid };
            let whole = (rule.granularity == Granularity::Tensor).then(|| {
                let (lo, hi) = range(&of_rest(&rows));
                grid.fit(lo, hi, rule.clip)
            });
            rows.par_chunks_mut(channels).for_each(|row| {
                for share in &shares {
                    let run = &mut row[share.from..share.to];
                    let (lo, hi) = range(run);
                    match (share.is_kept, self.grid) {
                        (false, _) => {
                            round_with(run, grid, whole.unwrap_or_else(|| grid.fit(lo, hi, rule.clip)));
                        }
                        (true, Some(kept)) => round_with(run, kept, kept.fit(lo, hi, 1.0)),
                        (true, None) => {}
                    }
                }
            });
            sequence.par_chunks_mut(channels).zip(rows.par_chunks(channels)).for_each(|(row, rounded)| {
                for (&c, &x) in self.order.iter().zip(rounded) {
                    row[c] = x;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::fake_quant::ScaleSource;

    #[test]
    fn shares_cover_every_place_once() {
        for (channels, kept, group) in [(10, 0, 4), (10, 3, 4), (12, 4, 4), (5, 5, 2), (6, 1, 100)] {
            let importance: Vec<f64> = (0..channels).map(|c| (c * 7 % 5) as f64).collect();
            let layout = Layout::by_importance(&importance, kept, 8);
            for granularity in [Granularity::Group(group), Granularity::Channel] {
                let shares = layout.shares(granularity);
                let places: Vec<usize> = shares.iter().flat_map(|s| s.from..s.to).collect();
                assert_eq!(places, (0..channels).collect::<Vec<_>>());
                assert_eq!(shares.iter().filter(|s| s.is_kept).map(|s| s.to - s.from).sum::<usize>(), kept);
            }
            let sorted: Vec<f64> = layout.order.iter().map(|&c| importance[c]).collect();
            assert!(sorted.is_sorted());
        }
    }

    #[test]
    fn an_outlier_channel_has_its_own_scale_and_leaves_the_others_alone() {
        let (tokens, channels) = (3, 8);
        let values: Vec<f32> = (0..2 * tokens * channels)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0 * if i % channels == 2 { 500.0 } else { 1.0 })
            .collect();
        let importance: Vec<f64> =
            (0..channels).map(|c| if c == 2 { 9.0 } else { 1.0 + c as f64 / 10.0 }).collect();
        let grid = Grid::new(4, Convention::Absmax);
        for granularity in [Granularity::Group(4), Granularity::Token, Granularity::Tensor] {
            let rule = ActivationRule { grid, granularity, clip: 1.0, scale: ScaleSource::Dynamic };
            let mut found = values.clone();
            Layout::by_importance(&importance, 1, 8).round_activation(&mut found, tokens, &rule);
            let mut floating = values.clone();
            Layout::by_importance(&importance, 1, 16).round_activation(&mut floating, tokens, &rule);
            for (i, ((&x, &q), &f)) in values.iter().zip(&found).zip(&floating).enumerate() {
                if i % channels == 2 {
                    // Alone with its scale a value is the end of the range.
                    assert!((q - x).abs() <= 1e-6 * x.abs() && f == x, "{x} {q} {f}");
                } else {
                    assert!((q - x).abs() <= 0.5 / 7.0 + 1e-6 && f == q, "{granularity}: {x} {q}");
                }
            }
        }
    }
}
