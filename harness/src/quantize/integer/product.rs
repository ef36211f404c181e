//! Codes times codes: the sums in i32, and what they are in the units of the outputs.

use models::per_processor;
use rayon::prelude::*;

use crate::quantize::integer::activation::{Codes, TokenScale};
use crate::quantize::integer::kernel::{COLUMNS, Kernel, Rows, Sums};
use crate::quantize::integer::segments::Segment;
use crate::quantize::integer::weights::{Columns, PackedWeight};

/// Rows that one task multiplies with all panels: their codes stay in the second cache.
const ROWS_PER_TASK: usize = 96;

/// One tile's sums in one segment: Σ (u − z)·(c + z'), in wrapping arithmetic, of which the result is exact because it is
/// below 2³¹ ([`fits`]).
fn sums_of(
    kernel: &Kernel,
    (x, first): (&Codes, usize),
    (w, panel): (&PackedWeight, usize),
    (segments, segment): (&[Segment], usize),
    sums: &mut [Sums],
) {
    let (rows, place) = (sums.len(), &segments[segment]);
    let tokens = &x.scales[first * segments.len()..];
    let width = (place.to - place.from) as i32;
    begin(tokens, (segments.len(), segment), w.columns(panel, segment), width, sums);
    let codes = &x.codes[first * x.stride..(first + rows) * x.stride];
    kernel.add(Rows { codes, stride: x.stride, at: place.at }, w.lines(panel, place), sums);
}

per_processor! {
    /// What zero points add to every row's sums: −z·Σc + z'·(Σu − z·width).
    fn begin(
        tokens: &[TokenScale],
        segment: (usize, usize),
        columns: Columns,
        width: i32,
        sums: &mut [Sums],
    ) {
        let (segments, number) = segment;
        for (sums, tokens) in sums.iter_mut().zip(tokens.chunks_exact(segments)) {
            let token = &tokens[number];
            let less = token.zero.wrapping_neg();
            match columns.zeros {
                None => {
                    for c in 0..COLUMNS {
                        sums[c] = less.wrapping_mul(columns.sums[c]);
                    }
                }
                Some(zeros) => {
                    let shifted = token.sum.wrapping_add(less.wrapping_mul(width));
                    for c in 0..COLUMNS {
                        sums[c] = zeros[c].wrapping_mul(shifted).wrapping_add(less.wrapping_mul(columns.sums[c]));
                    }
                }
            }
        }
    }
}

/// Whether no sum can leave i32: values of |u − z| up to `activation` times values of |c + z'| up to `weight`.
pub fn fits(width: usize, activation: i32, weight: i32) -> bool {
    width as i64 * i64::from(activation) * i64::from(weight) <= i64::from(i32::MAX)
}

/// The sums of every token and output channel in one segment, `[rows, out]`.
pub fn accumulations(
    kernel: &Kernel,
    x: &Codes,
    w: &PackedWeight,
    segments: &[Segment],
    segment: usize,
) -> Vec<i32> {
    let mut all = vec![0; x.rows * w.out];
    let mut sums = vec![[0; COLUMNS]; kernel.rows];
    for panel in 0..w.panels() {
        for first in (0..x.rows).step_by(kernel.rows) {
            let sums = &mut sums[..kernel.rows.min(x.rows - first)];
            sums_of(kernel, (x, first), (w, panel), (segments, segment), sums);
            for (r, sums) in sums.iter().enumerate() {
                let from = panel * COLUMNS;
                let row = &mut all[(first + r) * w.out..][from..w.out.min(from + COLUMNS)];
                row.copy_from_slice(&sums[..row.len()]);
            }
        }
    }
    all
}

/// y = Σ over segments of Δ·Δ'·sum, and the bias.
///
/// # Shapes
/// `[rows, out]`
pub fn multiply(
    kernel: &Kernel,
    x: &Codes,
    w: &PackedWeight,
    segments: &[Segment],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let mut out: Vec<f32> = Vec::with_capacity(x.rows * w.out);
    // SAFETY: f32 has no invalid bits, and every value is written below: by the first segment, or here where there is none.
    #[allow(clippy::uninit_vec, reason = "zeroing would be a pass over memory as long as what follows")]
    unsafe {
        out.set_len(x.rows * w.out);
    }
    if segments.is_empty() {
        out.fill(0.0);
    }
    let run = |first: usize, panels: std::ops::Range<usize>, rows: &mut [f32], width: usize| {
        let mut sums = vec![[0; COLUMNS]; kernel.rows];
        let mut tile = vec![[0.0; COLUMNS]; kernel.rows];
        let (origin, count) = (panels.start * COLUMNS, rows.len() / width);
        for panel in panels {
            let column = panel * COLUMNS - origin;
            let columns = COLUMNS.min(width - column);
            for block in (0..count).step_by(kernel.rows) {
                let sums = &mut sums[..kernel.rows.min(count - block)];
                for segment in 0..segments.len() {
                    sums_of(kernel, (x, first + block), (w, panel), (segments, segment), sums);
                    let tokens = &x.scales[(first + block) * segments.len()..];
                    let of = w.columns(panel, segment).deltas;
                    scale(sums, of, tokens, (segments.len(), segment), &mut tile);
                }
                for (row, values) in rows[block * width..].chunks_mut(width).zip(&tile[..sums.len()]) {
                    row[column..column + columns].copy_from_slice(&values[..columns]);
                }
            }
        }
        if let Some(bias) = bias {
            for row in rows.chunks_mut(width) {
                row.iter_mut().zip(&bias[origin..]).for_each(|(y, b)| *y += b);
            }
        }
    };
    if x.rows < 2 * kernel.rows {
        // A few tokens: the outputs are what is divided among the cores.
        let panels = w.panels().div_ceil(2 * rayon::current_num_threads()).max(1);
        let part = |from: usize| {
            let until = w.panels().min(from + panels);
            let width = w.out.min(until * COLUMNS) - from * COLUMNS;
            let mut values = vec![0.0; x.rows * width];
            run(0, from..until, &mut values, width);
            (from * COLUMNS, width, values)
        };
        let parts: Vec<_> = (0..w.panels()).into_par_iter().step_by(panels).map(part).collect();
        for (from, width, values) in parts {
            for (row, values) in out.chunks_mut(w.out).zip(values.chunks(width)) {
                row[from..from + width].copy_from_slice(values);
            }
        }
        return out;
    }
    let tasks = x.rows.div_ceil(ROWS_PER_TASK).next_multiple_of(rayon::current_num_threads());
    let rows = x.rows.div_ceil(tasks).next_multiple_of(kernel.rows);
    out.par_chunks_mut(rows * w.out).enumerate().for_each(|(task, values)| {
        run(task * rows, 0..w.panels(), values, w.out);
    });
    out
}

per_processor! {
    /// Adds a tile's sums, in the units of the outputs; the first segment's stand alone.
    fn scale(
        sums: &[Sums],
        deltas: &[f32; COLUMNS],
        tokens: &[TokenScale],
        segment: (usize, usize),
        tile: &mut [[f32; COLUMNS]],
    ) {
        let (segments, number) = segment;
        for ((sums, tokens), y) in sums.iter().zip(tokens.chunks_exact(segments)).zip(tile) {
            let delta = tokens[number].delta;
            if number == 0 {
                for c in 0..COLUMNS {
                    y[c] = sums[c] as f32 * (deltas[c] * delta);
                }
            } else {
                for c in 0..COLUMNS {
                    y[c] += sums[c] as f32 * (deltas[c] * delta);
                }
            }
        }
    }
}
