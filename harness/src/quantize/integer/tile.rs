//! Tiles of a product: some rows by one panel, over all segments, in the units of the outputs.
//!
//! With AVX-512 and VNNI a tile's sums never leave the registers between zero points, products and scales: with a scale for
//! every 64 channels that is a third of the time. Elsewhere they go through memory. Both give the same bits.

use models::per_processor;

use crate::quantize::integer::activation::{Codes, TokenScale};
use crate::quantize::integer::kernel::{COLUMNS, Kernel, Rows, Sums};
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
    /// The weight.
    pub w: &'a PackedWeight,
    /// Its panel.
    pub panel: usize,
    /// How rows are cut.
    pub segments: &'a [Segment],
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
    use crate::quantize::integer::kernel::x86::by_rows;
    use crate::quantize::integer::kernel::{Line, STEP};

    /// The outputs of a tile, on a processor with AVX-512 F, BW and VNNI.
    pub fn outputs(tile: &Tile, outputs: &mut [Outputs]) {
        let rows = outputs.len();
        let x = tile.rows(rows);
        let tokens = tile.tokens(rows);
        assert_eq!(x.codes.len(), rows * x.stride, "whole rows");
        for (number, segment) in tile.segments.iter().enumerate() {
            let lines = tile.w.lines(tile.panel, segment);
            assert!(segment.at + lines.len() / 2 * STEP <= x.stride, "rows reach the panel's end");
            let part = Part {
                codes: x.codes[segment.at..].as_ptr(),
                stride: x.stride,
                lines,
                columns: tile.w.columns(tile.panel, number),
                width: (segment.to - segment.from) as i32,
                tokens: &tokens[number..],
                segments: tile.segments.len(),
                is_first: number == 0,
            };
            // SAFETY: the kernel of this name is only given out where the processor has what it needs; the lengths were
            // checked.
            unsafe { by_rows!(part, rows, (&part, outputs), 1 2 3 4 5 6 7 8 9 10 11 12) }
        }
    }

    /// One segment of a tile.
    struct Part<'a> {
        /// Where the first row begins.
        codes: *const u8,
        stride: usize,
        lines: &'a [Line],
        columns: Columns<'a>,
        width: i32,
        /// Of the first row; those of the next are `segments` on.
        tokens: &'a [TokenScale],
        segments: usize,
        is_first: bool,
    }

    /// # Safety
    /// The processor has AVX-512 F, BW and VNNI; `outputs` has `ROWS` rows, and there are as many of codes that reach the end
    /// of the lines.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn part<const ROWS: usize>(p: &Part, outputs: &mut [Outputs]) {
        let token = |r: usize| &p.tokens[r * p.segments];
        let mut held = [[_mm512_setzero_si512(); 2]; ROWS];
        // SAFETY: sums, zeros and deltas have 32 values; a line is 64 aligned bytes; the codes of every row reach the end of
        // the lines; `outputs` has `ROWS` rows of 32.
        unsafe {
            let two = |values: *const i32| [_mm512_loadu_si512(values.cast()), _mm512_loadu_si512(values.add(16).cast())];
            let sums = two(p.columns.sums.as_ptr());
            let zeros = p.columns.zeros.map(|zeros| two(zeros.as_ptr()));
            for r in 0..ROWS {
                let less = token(r).zero.wrapping_neg();
                if r > 0 && zeros.is_none() && token(r).zero == token(r - 1).zero {
                    held[r] = held[r - 1];
                    continue;
                }
                for half in 0..2 {
                    held[r][half] = _mm512_mullo_epi32(_mm512_set1_epi32(less), sums[half]);
                    if let Some(zeros) = zeros {
                        let shifted = token(r).sum.wrapping_add(less.wrapping_mul(p.width));
                        let product = _mm512_mullo_epi32(_mm512_set1_epi32(shifted), zeros[half]);
                        held[r][half] = _mm512_add_epi32(held[r][half], product);
                    }
                }
            }
            // Places are found by `wrapping_add`, which is not checked where debug assertions are on.
            for step in 0..p.lines.len() / 2 {
                let line = p.lines.as_ptr().wrapping_add(2 * step).cast::<__m512i>();
                let (w0, w1) = (_mm512_load_si512(line), _mm512_load_si512(line.wrapping_add(1)));
                for r in 0..ROWS {
                    let four = p.codes.wrapping_add(r * p.stride + step * STEP).cast::<i32>().read_unaligned();
                    let four = _mm512_set1_epi32(four);
                    held[r][0] = _mm512_dpbusd_epi32(held[r][0], four, w0);
                    held[r][1] = _mm512_dpbusd_epi32(held[r][1], four, w1);
                }
            }
            let deltas = p.columns.deltas.as_ptr();
            let deltas = [_mm512_loadu_ps(deltas), _mm512_loadu_ps(deltas.add(16))];
            for r in 0..ROWS {
                let delta = _mm512_set1_ps(token(r).delta);
                for half in 0..2 {
                    let place = outputs[r].as_mut_ptr().wrapping_add(16 * half);
                    let mut y = _mm512_mul_ps(_mm512_cvtepi32_ps(held[r][half]), _mm512_mul_ps(deltas[half], delta));
                    if !p.is_first {
                        y = _mm512_add_ps(_mm512_loadu_ps(place), y);
                    }
                    _mm512_storeu_ps(place, y);
                }
            }
        }
    }
}
