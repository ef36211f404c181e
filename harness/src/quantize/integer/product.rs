//! Codes times codes: the sums in i32, and what they are in the units of the outputs.

use rayon::prelude::*;

use crate::quantize::integer::activation::Codes;
use crate::quantize::integer::kernel::{COLUMNS, Kernel};
use crate::quantize::integer::segments::Segment;
use crate::quantize::integer::tile::{Interleaved, Tile};
use crate::quantize::integer::weights::PackedWeight;

/// Rows that one task multiplies with all panels: their codes stay in the second cache.
const ROWS_PER_TASK: usize = 96;

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
            Tile { x, first, codes: &[], w, panel, segments }.sums(kernel, segment, sums);
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
        let mut outputs = vec![[0.0; COLUMNS]; kernel.rows];
        let (origin, count) = (panels.start * COLUMNS, rows.len() / width);
        let interleaved = Interleaved::new(kernel, x, first..first + count);
        for panel in panels {
            let column = panel * COLUMNS - origin;
            let columns = COLUMNS.min(width - column);
            for block in (0..count).step_by(kernel.rows) {
                let sums = &mut sums[..kernel.rows.min(count - block)];
                let outputs = &mut outputs[..sums.len()];
                let codes = interleaved.of(x, block, sums.len());
                Tile { x, first: first + block, codes, w, panel, segments }.outputs(kernel, sums, outputs);
                for (row, values) in rows[block * width..].chunks_mut(width).zip(&*outputs) {
                    // Of a length that is known, a copy is no call.
                    match row[column..].first_chunk_mut() {
                        Some(whole) if columns == COLUMNS => *whole = *values,
                        _ => row[column..column + columns].copy_from_slice(&values[..columns]),
                    }
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
