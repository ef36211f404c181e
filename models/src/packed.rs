//! Sequences of several lengths in one row, none of them padded: what a forward pass reads when many short texts are
//! asked for, of which some begin alike.
//!
//! A row is a list of segments. A segment begins a sequence, or goes on behind another segment; it sees itself and what
//! it goes on behind, and nothing else. So a context stands in the row once, and its continuations after it, each as if
//! it were alone.

use std::ops::Range;

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cache::KeyValues;
use crate::kernel;

/// Segments of a row, and their tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    tokens: Vec<u32>,
    /// Of each token in its own sequence, from 0 on.
    positions: Vec<usize>,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    places: Range<usize>,
    behind: Option<usize>,
}

impl Packed {
    /// Adds a segment that begins a sequence, or goes on behind an earlier segment; its number.
    ///
    /// # Panics
    /// Without tokens, or behind a segment that is not there.
    pub fn push(&mut self, tokens: &[u32], behind: Option<usize>) -> usize {
        assert!(!tokens.is_empty(), "a segment holds tokens");
        let first = behind.map_or(0, |segment| self.positions[self.segments[segment].places.end - 1] + 1);
        let start = self.tokens.len();
        self.tokens.extend(tokens);
        self.positions.extend(first..first + tokens.len());
        self.segments.push(Segment { places: start..start + tokens.len(), behind });
        self.segments.len() - 1
    }

    /// All tokens, in the order of the row.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Where the tokens of a segment stand in the row.
    pub fn places(&self, segment: usize) -> Range<usize> {
        self.segments[segment].places.clone()
    }

    /// Position of every token in its own sequence.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.positions.iter().max().map_or(0, |last| last + 1)
    }

    /// Attention segment by segment: `attend` is given the queries of one, and keys and values of all that it sees, of
    /// which its own are the last.
    ///
    /// # Shapes
    /// `q` is `[1, heads, tokens, head_dim]`, `own` holds keys and values of the row, `past` what stands before every
    /// sequence; `attend` returns `[1, queries, channels]`, and the result has one row for every token.
    pub(crate) fn attend(
        &self,
        q: &Tensor<4>,
        own: &KeyValues,
        past: Option<&KeyValues>,
        attend: &(dyn Fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<3> + Sync),
    ) -> Tensor<3> {
        let of = |segment: &Segment| {
            let mut seen = vec![segment.places.clone()];
            let mut behind = segment.behind;
            while let Some(earlier) = behind {
                seen.push(self.segments[earlier].places.clone());
                behind = self.segments[earlier].behind;
            }
            let gather = |past: Option<&Tensor<4>>, own: &Tensor<4>| {
                let parts = seen.iter().rev().map(|places| own.clone().narrow(2, places.start, places.len()));
                Tensor::cat(past.cloned().into_iter().chain(parts).collect(), 2)
            };
            let queries = q.clone().narrow(2, segment.places.start, segment.places.len());
            let keys = gather(past.map(|past| &past.keys), &own.keys);
            attend(queries, keys, gather(past.map(|past| &past.values), &own.values))
        };
        let parts: Vec<Tensor<3>> = match kernel::on_host(&q.device()) {
            // One small segment cannot keep all cores busy.
            true => self.segments.par_iter().map(of).collect(),
            false => self.segments.iter().map(of).collect(),
        };
        Tensor::cat(parts, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_on_behind_what_a_segment_follows() {
        let mut packed = Packed::default();
        let context = packed.push(&[5, 6, 7], None);
        let one = packed.push(&[8], Some(context));
        packed.push(&[9, 10], Some(context));
        packed.push(&[11], Some(one));
        packed.push(&[12], None);
        assert_eq!(packed.positions(), [0, 1, 2, 3, 3, 4, 4, 0]);
        assert_eq!(packed.places(2), 4..6);
        assert_eq!(packed.longest(), 5);
    }
}
