//! Along a row of channels: where one scale ends and the next begins.

use crate::quantize::grid::Granularity;
use crate::quantize::integer::kernel::STEP;
use crate::quantize::solve::layout::{Layout, Share};

/// A run of places within which a row of weights and a token have one scale each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First place, in the order of the channels.
    pub from: usize,
    /// Behind the last place.
    pub to: usize,
    /// Where its codes begin in a padded row: a multiple of [`STEP`].
    pub at: usize,
}

impl Segment {
    /// Codes it takes in a padded row; those behind its places are zero.
    pub fn padded(&self) -> usize {
        (self.to - self.from).next_multiple_of(STEP)
    }
}

/// The runs of one row that share a scale.
pub fn shares(granularity: Granularity, channels: usize, layout: Option<&Layout>) -> Vec<Share> {
    match layout {
        Some(layout) => layout.shares(granularity),
        None => Layout::natural(channels).shares(granularity),
    }
}

/// The segments between all the borders of two divisions of a row. What is kept in floating point, the last
/// `floating` places, is in none.
pub fn between(weights: &[Share], activation: &[Share], floating: usize) -> Vec<Segment> {
    let end = weights.iter().map(|share| share.to).max().unwrap_or(0) - floating;
    let mut borders: Vec<usize> = weights.iter().chain(activation).map(|share| share.to).collect();
    borders.retain(|&border| border > 0 && border <= end);
    borders.sort_unstable();
    borders.dedup();
    let (mut from, mut at) = (0, 0);
    let segment = |to: usize| {
        let segment = Segment { from, to, at };
        (from, at) = (to, at + segment.padded());
        segment
    };
    borders.into_iter().map(segment).collect()
}

/// Codes of a padded row.
pub fn width(segments: &[Segment]) -> usize {
    segments.last().map_or(0, |last| last.at + last.padded())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_lie_between_all_borders_and_begin_at_whole_steps() {
        let of = |granularity| shares(granularity, 10, None);
        let found = between(&of(Granularity::Group(6)), &of(Granularity::Group(5)), 0);
        let places: Vec<[usize; 3]> = found.iter().map(|s| [s.from, s.to, s.at]).collect();
        assert_eq!(places, [[0, 5, 0], [5, 6, 8], [6, 10, 12]]);
        assert_eq!(width(&found), 16);

        let layout = Layout { kept: 2, ..Layout::natural(10) };
        let of = |granularity| shares(granularity, 10, Some(&layout));
        let found = between(&of(Granularity::Channel), &of(Granularity::Group(4)), 2);
        assert_eq!(found.iter().map(|s| s.to).collect::<Vec<_>>(), [4, 8]);
        let found = between(&of(Granularity::Channel), &of(Granularity::Group(4)), 0);
        assert_eq!(found.iter().map(|s| s.to).collect::<Vec<_>>(), [4, 8, 10]);
    }
}
