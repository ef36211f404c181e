//! Tiles of a product: some rows by one panel, over all segments, in the units of the outputs.
//!
//! With AVX-512 and VNNI a tile's sums never leave the registers between zero points, products and scales: with a scale for
//! every 64 channels that is a third of the time. Elsewhere they go through memory. Both give the same bits.

use std::ops::Range;

use models::per_processor;

use crate::quantize::integer::activation::{Codes, TokenScale};
use crate::quantize::integer::kernel::{COLUMNS, Kernel, Rows, STEP, Sums};
use crate::quantize::integer::segments::Segment;
use crate::quantize::integer::weights::{Columns, PackedWeight};

/// Outputs of a tile's row.
pub type Outputs = [f32; COLUMNS];

/// Some rows and a panel.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// The activation.
    pub x: &'a Codes,
    /// Its first row.
    pub first: usize,
    /// The codes of these rows as [`Interleaved`] gives them.
    pub codes: &'a [[u8; STEP]],
    /// The weight.
    pub w: &'a PackedWeight,
    /// Its panel.
    pub panel: usize,
    /// How rows are cut.
    pub segments: &'a [Segment],
}

/// Codes in the order in which a kernel reads them, where that is not row by row.
#[derive(Clone, Debug, Default)]
pub struct Interleaved(Vec<[u8; STEP]>);

impl Interleaved {
    /// The codes of some rows, tile by tile of a kernel's rows.
    pub fn new(kernel: &Kernel, x: &Codes, rows: Range<usize>) -> Self {
        let mut codes = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if kernel.is_vnni() {
            for first in rows.clone().step_by(kernel.rows) {
                let count = kernel.rows.min(rows.end - first);
                let all = Rows { codes: &x.codes[first * x.stride..], stride: x.stride, at: 0 };
                crate::quantize::integer::kernel::x86::interleave(all, count, x.stride / STEP, &mut codes);
            }
        }
        Self(codes)
    }

    /// Those of a tile of so many rows, `before` rows behind the first.
    pub fn of(&self, x: &Codes, before: usize, rows: usize) -> &[[u8; STEP]] {
        let steps = x.stride / STEP;
        self.0.get(before * steps..(before + rows) * steps).unwrap_or_default()
    }
}

impl Tile<'_> {
    fn rows(&self, rows: usize) -> Rows<'_> {
        let codes = &self.x.codes[self.first * self.x.stride..(self.first + rows) * self.x.stride];
        Rows { codes, stride: self.x.stride, at: 0 }
    }

    fn tokens(&self, rows: usize) -> &[TokenScale] {
        let segments = self.segments.len();
        &self.x.scales[self.first * segments..(self.first + rows) * segments]
    }

    /// The sums of one segment, Σ (u − z)·(c + z'), in wrapping arithmetic, of which the result is exact because it is below
    /// 2³¹ ([`fits`](super::product::fits)).
    pub fn sums(&self, kernel: &Kernel, segment: usize, sums: &mut [Sums]) {
        let place = &self.segments[segment];
        let width = (place.to - place.from) as i32;
        let columns = self.w.columns(self.panel, segment);
        begin(self.tokens(sums.len()), (self.segments.len(), segment), columns, width, sums);
        let rows = Rows { at: place.at, ..self.rows(sums.len()) };
        kernel.add(rows, self.w.lines(self.panel, place), sums);
    }

    /// Σ over segments of Δ·Δ'·sum, `[rows, COLUMNS]`; `sums` is room for as many rows.
    pub fn outputs(&self, kernel: &Kernel, sums: &mut [Sums], outputs: &mut [Outputs]) {
        assert_eq!(sums.len(), outputs.len(), "a row of sums for each row of outputs");
        #[cfg(target_arch = "x86_64")]
        if kernel.is_vnni() {
            x86::outputs(self, outputs);
            return;
        }
        self.outputs_through_memory(kernel, sums, outputs);
    }

    /// As [`Tile::outputs`], by any kernel.
    pub fn outputs_through_memory(&self, kernel: &Kernel, sums: &mut [Sums], outputs: &mut [Outputs]) {
        for segment in 0..self.segments.len() {
            self.sums(kernel, segment, sums);
            let deltas = self.w.columns(self.panel, segment).deltas;
            scale(sums, deltas, self.tokens(sums.len()), (self.segments.len(), segment), outputs);
        }
    }
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
                    for (sum, weights) in sums.iter_mut().zip(columns.sums) {
                        *sum = less.wrapping_mul(*weights);
                    }
                }
                Some(zeros) => {
                    let shifted = token.sum.wrapping_add(less.wrapping_mul(width));
                    for ((sum, zero), weights) in sums.iter_mut().zip(zeros).zip(columns.sums) {
                        *sum = zero.wrapping_mul(shifted).wrapping_add(less.wrapping_mul(*weights));
                    }
                }
            }
        }
    }
}

per_processor! {
    /// Adds a tile's sums, in the units of the outputs; the first segment's stand alone.
    fn scale(
        sums: &[Sums],
        deltas: &[f32; COLUMNS],
        tokens: &[TokenScale],
        segment: (usize, usize),
        outputs: &mut [Outputs],
    ) {
        let (segments, number) = segment;
        for ((sums, tokens), y) in sums.iter().zip(tokens.chunks_exact(segments)).zip(outputs) {
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Columns, Outputs, Tile, TokenScale};
    use crate::quantize::integer::kernel::x86::{by_rows, products, whole};
    use crate::quantize::integer::kernel::{COLUMNS, Line, STEP};

    /// The outputs of a tile, on a processor with AVX-512 F, BW and VNNI.
    pub fn outputs(tile: &Tile, outputs: &mut [Outputs]) {
        let rows = outputs.len();
        let tokens = tile.tokens(rows);
        assert_eq!(tile.codes.len(), rows * (tile.x.stride / STEP), "the codes of the tile's rows");
        for (number, segment) in tile.segments.iter().enumerate() {
            let lines = tile.w.lines(tile.panel, segment);
            let part = Part {
                codes: &tile.codes[segment.at / STEP * rows..][..lines.len() / 2 * rows],
                lines,
                columns: tile.w.columns(tile.panel, number),
                width: (segment.to - segment.from) as i32,
                tokens: &tokens[number..],
                segments: tile.segments.len(),
                is_first: number == 0,
            };
            // SAFETY: the kernel of this name is only given out where the processor has what it needs.
            unsafe { by_rows!(of_part, rows, (&part, outputs), 1 2 3 4 5 6 7 8 9 10 11 12) }
        }
    }

    /// One segment of a tile.
    struct Part<'a> {
        /// Step by step, in each row by row.
        codes: &'a [[u8; STEP]],
        lines: &'a [Line],
        columns: Columns<'a>,
        width: i32,
        /// Of the first row; those of the next are `segments` on.
        tokens: &'a [TokenScale],
        segments: usize,
        is_first: bool,
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn of_part<const ROWS: usize>(p: &Part, outputs: &mut [Outputs]) {
        let mut each = p.tokens.iter().step_by(p.segments);
        let tokens: [TokenScale; ROWS] =
            std::array::from_fn(|_| *each.next().expect("every row has its scale"));
        let mut held = [[_mm512_setzero_si512(); 2]; ROWS];
        let (sums, zeros) = (whole(*p.columns.sums), p.columns.zeros.map(|zeros| whole(*zeros)));
        for r in 0..ROWS {
            let less = tokens[r].zero.wrapping_neg();
            if r > 0 && zeros.is_none() && tokens[r].zero == tokens[r - 1].zero {
                held[r] = held[r - 1];
                continue;
            }
            for half in 0..2 {
                held[r][half] = _mm512_mullo_epi32(_mm512_set1_epi32(less), sums[half]);
                if let Some(zeros) = zeros {
                    let shifted = tokens[r].sum.wrapping_add(less.wrapping_mul(p.width));
                    let product = _mm512_mullo_epi32(_mm512_set1_epi32(shifted), zeros[half]);
                    held[r][half] = _mm512_add_epi32(held[r][half], product);
                }
            }
        }
        products(&mut held, p.codes.as_chunks().0, p.lines.as_chunks().0);
        let deltas = floats(*p.columns.deltas);
        for ((held, token), outputs) in held.iter().zip(&tokens).zip(outputs) {
            let delta = _mm512_set1_ps(token.delta);
            let before = floats(*outputs);
            let y: [__m512; 2] = std::array::from_fn(|half| {
                let scale = _mm512_mul_ps(deltas[half], delta);
                let y = _mm512_mul_ps(_mm512_cvtepi32_ps(held[half]), scale);
                if p.is_first { y } else { _mm512_add_ps(before[half], y) }
            });
            // SAFETY: two registers hold 32 outputs.
            *outputs = unsafe { std::mem::transmute::<[__m512; 2], [f32; COLUMNS]>(y) };
        }
    }

    /// 32 values as two registers.
    #[inline]
    fn floats(values: [f32; COLUMNS]) -> [__m512; 2] {
        // SAFETY: two registers hold 32 values.
        unsafe { std::mem::transmute::<[f32; COLUMNS], [__m512; 2]>(values) }
    }
}
