//! The inner product of integer execution: unsigned codes of activations times signed codes of weights, summed in i32.
//!
//! One tile is some rows by [`COLUMNS`] output channels. Which instructions multiply is chosen at run time; every kernel
//! gives the same sums, because none saturates:
//!
//! | kernel | needs | how |
//! |---|---|---|
//! | `avx512-vnni` | AVX-512 with VNNI | `vpdpbusd`: four products u8·i8 into an i32, nothing narrower in between |
//! | `avx2` | AVX2 | both widened to i16, `vpmaddwd`: two products into an i32 (`vpmaddubsw`, which saturates, is not used) |
//! | `portable` | nothing | i32 arithmetic |

use std::sync::OnceLock;

/// Output channels of a panel of weights.
pub const COLUMNS: usize = 32;

/// Input channels that are multiplied together; rows are padded to a multiple of it.
pub const STEP: usize = 4;

/// Half of what a step needs of a panel: 16 output channels by [`STEP`] input channels, the channels of one output beside
/// each other.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [i8; 64]);

/// The kernel of AVX-512 with VNNI.
const VNNI: &str = "avx512-vnni";

/// Sums of one row of a tile.
pub type Sums = [i32; COLUMNS];

/// The codes that a tile reads of an activation.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Rows of `stride` codes.
    pub codes: &'a [u8],
    /// Codes of a row.
    pub stride: usize,
    /// First code of a row that takes part.
    pub at: usize,
}

/// A way to multiply tiles.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// As records name it.
    pub name: &'static str,
    /// Most rows of a tile.
    pub rows: usize,
    /// Adds the products of so many rows to their sums. The processor must have what the kernel needs; the slices are
    /// those that [`Kernel::add`] has checked.
    tile: unsafe fn(Rows, &[Line], &mut [Sums]),
}

impl Kernel {
    /// Adds to every row's sums its products with a panel: sums[r][c] += Σ codes[r][k] · weights[k][c], wrapping.
    ///
    /// # Panics
    /// If the panel is not whole steps, the rows do not reach that far, or there are no rows or more than the kernel takes.
    pub fn add(&self, x: Rows, panel: &[Line], sums: &mut [Sums]) {
        assert!(panel.len().is_multiple_of(2), "a panel holds whole steps");
        assert!((1..=self.rows).contains(&sums.len()), "a tile has 1 to {} rows", self.rows);
        let width = panel.len() / 2 * STEP;
        assert!(
            x.at + width <= x.stride && x.codes.len() >= sums.len() * x.stride,
            "rows reach the panel's end"
        );
        // SAFETY: a kernel is only given out where the processor has what it needs, and the lengths were checked.
        unsafe { (self.tile)(x, panel, sums) }
    }

    /// Whether the processor multiplies with AVX-512 and VNNI.
    pub fn is_vnni(&self) -> bool {
        self.name == VNNI
    }

    /// The fastest kernel of this processor.
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| Self::all()[0])
    }

    /// Every kernel that this processor can run, the fastest first.
    pub fn all() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512vnni")
            {
                found.push(Self { name: VNNI, rows: x86::VNNI_ROWS, tile: x86::vnni });
            }
            if std::is_x86_feature_detected!("avx2") {
                found.push(Self { name: "avx2", rows: x86::AVX2_ROWS, tile: x86::avx2 });
            }
        }
        found.push(Self { name: "portable", rows: 4, tile: portable });
        found
    }
}

/// Any processor.
fn portable(x: Rows, panel: &[Line], sums: &mut [Sums]) {
    for (row, sums) in x.codes.chunks_exact(x.stride).zip(sums) {
        let codes = row[x.at..].as_chunks::<STEP>().0;
        for (lines, codes) in panel.as_chunks::<2>().0.iter().zip(codes) {
            let weights = lines.iter().flat_map(|line| line.0.as_chunks::<STEP>().0);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                for (&w, &c) in weights.iter().zip(codes) {
                    *sum = sum.wrapping_add(i32::from(w) * i32::from(c));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Line, Rows, STEP, Sums};

    /// 12 rows by two registers of sums leave room for two of weights and one of codes among 32.
    pub const VNNI_ROWS: usize = 12;

    /// 3 rows by four registers of sums, with what they need, fill the 16 of AVX2; a tile is done in two halves.
    pub const AVX2_ROWS: usize = 3;

    /// Calls a function with the number of rows as a constant.
    macro_rules! by_rows {
        ($call:ident, $rows:expr, $args:tt, $($n:literal)+) => {
            match $rows {
                $($n => $call::<$n> $args,)+
                rows => unreachable!("{rows} rows are more than a tile has"),
            }
        };
    }
    pub(in crate::quantize::integer) use by_rows;

    /// # Safety
    /// The processor has AVX-512 F, BW and VNNI.
    pub unsafe fn vnni(x: Rows, panel: &[Line], sums: &mut [Sums]) {
        let rows = sums.len();
        let mut codes = Vec::new();
        interleave(x, rows, panel.len() / 2, &mut codes);
        // SAFETY: as this function's.
        unsafe { by_rows!(vnni_rows, rows, (&codes, panel, sums), 1 2 3 4 5 6 7 8 9 10 11 12) }
    }

    /// The codes of some steps, step by step and in each row by row.
    pub fn interleave(x: Rows, rows: usize, steps: usize, to: &mut Vec<[u8; STEP]>) {
        let begin = to.len();
        to.resize(begin + rows * steps, [0; STEP]);
        for (r, row) in x.codes.chunks_exact(x.stride).take(rows).enumerate() {
            let codes = &row[x.at..].as_chunks::<STEP>().0[..steps];
            let places = to[begin + r..].iter_mut().step_by(rows);
            places.zip(codes).for_each(|(place, four)| *place = *four);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn vnni_rows<const ROWS: usize>(codes: &[[u8; STEP]], panel: &[Line], sums: &mut [Sums]) {
        let mut held = [[_mm512_setzero_si512(); 2]; ROWS];
        for (held, sums) in held.iter_mut().zip(&*sums) {
            *held = whole(*sums);
        }
        products(&mut held, codes.as_chunks().0, panel.as_chunks().0);
        for (sums, held) in sums.iter_mut().zip(held) {
            // SAFETY: two registers hold 32 sums.
            *sums = unsafe { std::mem::transmute::<[__m512i; 2], Sums>(held) };
        }
    }

    /// 32 values as two registers.
    #[inline]
    pub fn whole(values: Sums) -> [__m512i; 2] {
        // SAFETY: two registers hold 32 values.
        unsafe { std::mem::transmute::<Sums, [__m512i; 2]>(values) }
    }

    /// Adds to every row's sums its products with some lines, step by step.
    ///
    /// References and patterns and no pointers: a pointer's checks, where debug assertions are on, have every sum written to
    /// memory at every step.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn products<const ROWS: usize>(
        held: &mut [[__m512i; 2]; ROWS],
        mut codes: &[[[u8; STEP]; ROWS]],
        mut lines: &[[Line; 2]],
    ) {
        let mut sums = *held;
        while let ([step, later @ ..], [[w0, w1], behind @ ..]) = (codes, lines) {
            // SAFETY: a line is a register's 64 bytes.
            let [w0, w1] = [w0, w1].map(|line| unsafe { std::mem::transmute::<[i8; 64], __m512i>(line.0) });
            for r in 0..ROWS {
                let four = _mm512_set1_epi32(i32::from_le_bytes(step[r]));
                sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], four, w0);
                sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], four, w1);
            }
            (codes, lines) = (later, behind);
        }
        *held = sums;
    }

    /// # Safety
    /// The processor has AVX2; lengths are those that [`super::Kernel::add`] checks.
    pub unsafe fn avx2(x: Rows, panel: &[Line], sums: &mut [Sums]) {
        for half in 0..2 {
            // SAFETY: as this function's.
            unsafe { by_rows!(avx2_rows, sums.len(), (x, panel, half, sums), 1 2 3) }
        }
    }

    /// # Safety
    /// As [`avx2`]'s, with `sums` of `ROWS` rows and `half` 0 or 1.
    #[target_feature(enable = "avx2")]
    unsafe fn avx2_rows<const ROWS: usize>(x: Rows, panel: &[Line], half: usize, sums: &mut [Sums]) {
        // Two partial sums for each of 16 outputs.
        let mut held = [[_mm256_setzero_si256(); 4]; ROWS];
        // SAFETY: the codes of every row reach the panel's end; a line is 64 aligned bytes.
        unsafe {
            let codes = x.codes.as_ptr().wrapping_add(x.at);
            for step in 0..panel.len() / 2 {
                let line = panel.as_ptr().wrapping_add(2 * step + half).cast::<__m128i>();
                let mut fours = [_mm256_setzero_si256(); ROWS];
                for (r, four) in fours.iter_mut().enumerate() {
                    let place = codes.wrapping_add(r * x.stride + step * STEP).cast::<i32>();
                    *four = _mm256_cvtepu8_epi16(_mm_set1_epi32(place.read_unaligned()));
                }
                let quarters: [__m256i; 4] = std::array::from_fn(|quarter| {
                    _mm256_cvtepi8_epi16(_mm_load_si128(line.wrapping_add(quarter)))
                });
                for (held, four) in held.iter_mut().zip(&fours) {
                    for (held, weights) in held.iter_mut().zip(&quarters) {
                        *held = _mm256_add_epi32(*held, _mm256_madd_epi16(*four, *weights));
                    }
                }
            }
        }
        for (row, held) in sums.iter_mut().zip(held) {
            for (quarter, pairs) in held.into_iter().enumerate() {
                let mut out = [0i32; 8];
                // SAFETY: 8 values of i32 are 32 bytes.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), pairs) };
                for (i, pair) in out.as_chunks::<2>().0.iter().enumerate() {
                    let sum = &mut row[half * 16 + quarter * 4 + i];
                    *sum = sum.wrapping_add(pair[0]).wrapping_add(pair[1]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_sums_exactly_also_at_the_ends_of_its_codes() {
        let (stride, at) = (72, 8);
        for steps in [1, 2, 16] {
            for extremes in [false, true] {
                let byte = |i: usize| (i * 167 + i / 7 * 31 + 13) as u8;
                let panel: Vec<Line> = (0..2 * steps)
                    .map(|l| {
                        Line(std::array::from_fn(|i| if extremes { -128 } else { byte(l * 64 + i) as i8 }))
                    })
                    .collect();
                for kernel in Kernel::all() {
                    for rows in 1..=kernel.rows {
                        let codes: Vec<u8> = (0..rows * stride)
                            .map(|i| if extremes { 255 } else { byte(i * 5 + 1) })
                            .collect();
                        let begun = |r: usize, c: usize| r as i32 * 1000 - c as i32;
                        let mut sums: Vec<Sums> =
                            (0..rows).map(|r| std::array::from_fn(|c| begun(r, c))).collect();
                        kernel.add(Rows { codes: &codes, stride, at }, &panel, &mut sums);
                        for (r, row) in sums.iter().enumerate() {
                            for (c, &found) in row.iter().enumerate() {
                                let product = |k: usize| {
                                    let line = &panel[k / STEP * 2 + c / 16];
                                    i64::from(line.0[c % 16 * STEP + k % STEP])
                                        * i64::from(codes[r * stride + at + k])
                                };
                                let exact: i64 = (0..steps * STEP).map(product).sum();
                                assert_eq!(
                                    i64::from(found),
                                    exact + i64::from(begun(r, c)),
                                    "{}: {rows} rows, {steps} steps",
                                    kernel.name
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
