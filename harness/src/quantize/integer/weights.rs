//! Weights as codes: packed once, in the order in which the kernel reads them.

use rayon::prelude::*;

use crate::quantize::integer::codes::{code, delta, encode};
use crate::quantize::integer::kernel::{COLUMNS, Line, STEP};
use crate::quantize::integer::segments::{Segment, width};
use crate::quantize::rounding::range;
use crate::quantize::solve::layout::Share;

/// A weight `[out, in]` as codes: w = Δ · (c + z) with c an i8, and one Δ and z for each row and segment.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    /// Output channels.
    pub out: usize,
    /// Lines of a panel.
    lines: usize,
    panels: Vec<Line>,
    /// Δ by segment and padded output channel.
    deltas: Vec<f32>,
    /// Σ c by segment and padded output channel.
    sums: Vec<i32>,
    /// z by segment and padded output channel, where any is not 0.
    zeros: Option<Vec<i32>>,
    /// The greatest |c + z|.
    pub greatest: i32,
}

/// What a panel's columns have besides their codes, in one segment.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Δ
    pub deltas: &'a [f32; COLUMNS],
    /// Σ c
    pub sums: &'a [i32; COLUMNS],
    /// z, where any is not 0.
    pub zeros: Option<&'a [i32; COLUMNS]>,
}

/// One row's codes, padded, and its Δ and z by segment.
#[derive(Clone, Debug)]
pub struct Row {
    /// c
    pub codes: Vec<i8>,
    /// Δ
    pub deltas: Vec<f32>,
    /// z
    pub zeros: Vec<i32>,
    /// The greatest |c + z|.
    pub greatest: i32,
}

/// Reads the codes of rounded weights, rows of `order.len()` channels; `None` where some values are not whole multiples of one
/// scale.
///
/// `shares` says which places of `order` share a scale in each row, `segments` how rows are cut; places behind the last segment
/// are left out.
pub fn rows(
    values: &[f32],
    order: &[usize],
    shares: &[Share],
    segments: &[Segment],
    bits: u8,
) -> Option<Vec<Row>> {
    let is_natural = order.iter().enumerate().all(|(place, &c)| place == c);
    let read = |row: &[f32], likely: Option<f32>| match is_natural {
        true => Row::read(row, shares, segments, bits, likely),
        false => {
            let ordered: Vec<f32> = order.iter().map(|&c| row[c]).collect();
            Row::read(&ordered, shares, segments, bits, likely)
        }
    };
    // Where all rows share one scale, the largest values of most of them say nothing of it.
    let likely = (shares.len() == 1).then(|| scale_of_all(values, order.len(), bits)).flatten();
    values.par_chunks(order.len()).map(|row| read(row, likely)).collect()
}

/// Δ of the row with the largest value, if the first row has it too.
fn scale_of_all(values: &[f32], width: usize, bits: u8) -> Option<f32> {
    let ranges: Vec<(f32, f32)> = values.par_chunks(width).map(range).collect();
    let largest = |row: &usize| ranges[*row].1.max(-ranges[*row].0);
    let row = (0..ranges.len()).max_by(|a, b| largest(a).total_cmp(&largest(b)))?;
    let of = |row: usize, likely| delta(&values[row * width..][..width], ranges[row], bits, likely);
    let found = of(row, None)?;
    (of(0, Some(found)) == Some(found)).then_some(found)
}

impl PackedWeight {
    /// Reads and packs rounded weights; what is asked for is what [`rows`] is.
    pub fn read(
        values: &[f32],
        order: &[usize],
        shares: &[Share],
        segments: &[Segment],
        bits: u8,
    ) -> Option<Self> {
        rows(values, order, shares, segments, bits).map(|rows| Self::pack(&rows, segments))
    }

    /// Packs rows that are cut into these segments.
    pub fn pack(rows: &[Row], segments: &[Segment]) -> Self {
        let (out, padded) = (rows.len(), width(segments));
        let lines = padded / STEP * 2;
        let panels: Vec<Line> = rows
            .par_chunks(COLUMNS)
            .flat_map_iter(|rows| (0..lines).map(|line| line_of(rows, line)))
            .collect();
        let columns = out.next_multiple_of(COLUMNS);
        let by_segment = |of: &dyn Fn(&Row, usize) -> i32| -> Vec<i32> {
            let all = (0..segments.len()).flat_map(|s| (0..columns).map(move |c| (s, c)));
            all.map(|(s, c)| rows.get(c).map_or(0, |row| of(row, s))).collect()
        };
        let sum = |row: &Row, s: usize| {
            let Segment { at, .. } = segments[s];
            row.codes[at..at + segments[s].padded()].iter().map(|&c| i32::from(c)).sum()
        };
        let sums = by_segment(&sum);
        let zeros = by_segment(&|row, s| row.zeros[s]);
        let deltas = (0..segments.len())
            .flat_map(|s| (0..columns).map(move |c| (s, c)))
            .map(|(s, c)| rows.get(c).map_or(0.0, |row| row.deltas[s]))
            .collect();
        Self {
            out,
            lines,
            panels,
            deltas,
            sums,
            zeros: zeros.iter().any(|&z| z != 0).then_some(zeros),
            greatest: rows.iter().map(|row| row.greatest).max().unwrap_or(0),
        }
    }

    /// How many panels there are.
    pub fn panels(&self) -> usize {
        self.out.div_ceil(COLUMNS)
    }

    /// The lines of a panel that a segment reads.
    pub fn lines(&self, panel: usize, segment: &Segment) -> &[Line] {
        &self.panels[panel * self.lines..][segment.at / STEP * 2..][..segment.padded() / STEP * 2]
    }

    /// Scales, sums and zero points of a panel in the segment of this number.
    pub fn columns(&self, panel: usize, segment: usize) -> Columns<'_> {
        let from = segment * self.panels() * COLUMNS + panel * COLUMNS;
        Columns {
            deltas: self.deltas[from..].first_chunk().expect("a panel is whole"),
            sums: self.sums[from..].first_chunk().expect("a panel is whole"),
            zeros: self.zeros.as_ref().map(|zeros| zeros[from..].first_chunk().expect("a panel is whole")),
        }
    }

    /// Whether some z is not 0, for which Σ x of every token is wanted.
    pub fn has_zeros(&self) -> bool {
        self.zeros.is_some()
    }

    /// Bytes that a product reads: codes, scales, zero points.
    pub fn bytes(&self) -> usize {
        let zeros = self.zeros.as_ref().map_or(0, Vec::len);
        self.panels.len() * size_of::<Line>() + 4 * (self.deltas.len() + self.sums.len() + zeros)
    }
}

impl Row {
    /// Of values in the order of places.
    fn read(
        row: &[f32],
        shares: &[Share],
        segments: &[Segment],
        bits: u8,
        likely: Option<f32>,
    ) -> Option<Self> {
        let mut read = Self {
            codes: vec![0; width(segments)],
            deltas: vec![0.0; segments.len()],
            zeros: vec![0; segments.len()],
            greatest: 0,
        };
        for share in shares {
            let inside: Vec<usize> =
                (0..segments.len()).filter(|&s| (share.from..share.to).contains(&segments[s].from)).collect();
            if inside.is_empty() {
                continue;
            }
            let values = &row[share.from..share.to];
            let (lo, hi) = range(values);
            let delta = delta(values, (lo, hi), bits, likely)?;
            let (least, most) = (code(lo, delta).min(0), code(hi, delta).max(0));
            read.greatest = read.greatest.max(most).max(-least);
            // Codes of fewer than 8 bits, and symmetric ones, are within i8 as they are.
            let zero = if least >= -128 && most <= 127 { 0 } else { most - 127 };
            if least - zero < -128 {
                return None;
            }
            for s in inside {
                let Segment { from, to, at } = segments[s];
                (read.deltas[s], read.zeros[s]) = (delta, zero);
                encode(&row[from..to], delta, zero, &mut read.codes[at..at + to - from]);
            }
        }
        Some(read)
    }
}

/// A line of a panel of up to [`COLUMNS`] rows.
fn line_of(rows: &[Row], line: usize) -> Line {
    let (step, half) = (line / 2, line % 2);
    let mut codes = [0; _];
    let rows = rows.iter().skip(half * COLUMNS / 2);
    for (row, codes) in rows.zip(codes.as_chunks_mut::<STEP>().0) {
        codes.copy_from_slice(&row.codes[step * STEP..][..STEP]);
    }
    Line(codes)
}
