//! Causal attention over host memory: block by block of queries, so that no window's scores stand in memory together.

use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, TensorData};
use gemm::Parallelism;
use rayon::prelude::*;

use crate::architecture::{Attention, Cap};
use crate::product::primitive;
use crate::simd;

/// Queries that meet the keys together at most: keys behind the block are never multiplied.
const QUERY_BLOCK: usize = 128;

/// Fewer are never taken, however long the window.
const LEAST_QUERIES: usize = 16;

/// Scores of a block, in values: half of a usual second cache. Longer windows take fewer queries at a time.
const SCORES: usize = 1 << 17;

/// Attention of queries that are the last of the tokens whose keys and values are given; keys before all windows of a
/// block are never multiplied either. Nothing is copied: heads are read where they lie, in a wider buffer or between others,
/// and outputs are written where they belong.
///
/// # Shapes
/// `q` is `[sequences, heads, tokens, head_dim]`, `k` and `v` `[sequences, kv_heads, past + tokens, head_dim]`; the result is
/// `[sequences, tokens, heads · head_dim]`.
pub(super) fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    shape: &Attention,
    window: Option<usize>,
) -> Tensor<3> {
    let ([sequences, heads, tokens, head_dim], device) = (q.dims(), q.device());
    let [_, kv_heads, seen, _] = k.dims();
    let [q, k, v] = [q, k, v].map(Heads::of);
    let queries = (SCORES / seen.max(1)).clamp(LEAST_QUERIES, QUERY_BLOCK);
    let blocks = tokens.div_ceil(queries);
    let pass =
        Pass { past: seen - tokens, window, scale: shape.scale.factor(head_dim) as f32, cap: shape.cap };
    let mut out = vec![0.0f32; sequences * tokens * heads * head_dim];
    let target = Target(out.as_mut_ptr());
    // The last blocks see most keys, and begin first.
    (0..sequences * heads * blocks).into_par_iter().rev().for_each_init(Vec::new, |scores, task| {
        let (block, head) = (task / (sequences * heads), task % (sequences * heads));
        let (sequence, head) = (head / heads, head % heads);
        let (start, kv_head) = (block * queries, head / (heads / kv_heads));
        let rows = queries.min(tokens - start);
        let three =
            [q.rows([sequence, head, start]), k.rows([sequence, kv_head, 0]), v.rows([sequence, kv_head, 0])];
        let place = (sequence * tokens + start) * heads * head_dim + head * head_dim;
        let out = Out { first: target.at(place), stride: heads * head_dim };
        pass.block((start, rows), three, head_dim, scores, out);
    });
    Tensor::from_data(TensorData::new(out, [sequences, tokens, heads * head_dim]), &device)
}

/// A tensor `[sequences, heads, tokens, head_dim]` as it lies, the channels of a head side by side.
struct Heads {
    tensor: FlexTensor,
    /// Steps to the next sequence, head and token, in values.
    strides: [usize; 3],
}

/// Rows of one head.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// From the first row on.
    values: &'a [f32],
    /// From one row to the next.
    stride: usize,
}

impl Heads {
    fn of(x: Tensor<4>) -> Self {
        let mut tensor = primitive(x);
        let lies_well = |strides: &[isize]| strides[3] == 1 && strides.iter().all(|&step| step >= 0);
        if !lies_well(tensor.layout().strides()) {
            tensor = tensor.to_contiguous();
        }
        let strides = tensor.layout().strides();
        let strides = [0, 1, 2].map(|axis| strides[axis] as usize);
        Self { tensor, strides }
    }

    /// The rows of a sequence's head from a token on.
    fn rows(&self, place: [usize; 3]) -> Rows<'_> {
        let steps: usize = place.iter().zip(self.strides).map(|(at, step)| at * step).sum();
        let values = &self.tensor.storage::<f32>()[self.tensor.layout().start_offset() + steps..];
        Rows { values, stride: self.strides[2] }
    }
}

impl Rows<'_> {
    /// Without the first ones.
    fn behind(self, rows: usize) -> Self {
        Self { values: &self.values[rows * self.stride..], ..self }
    }

    /// Whether so many rows of so many values are there.
    fn holds(self, rows: usize, width: usize) -> bool {
        rows == 0 || (rows - 1) * self.stride + width <= self.values.len()
    }
}

/// The outputs, into which every task writes rows of its own.
struct Target(*mut f32);

// SAFETY: tasks write to places that no other task writes to or reads.
unsafe impl Sync for Target {}

impl Target {
    fn at(&self, place: usize) -> *mut f32 {
        self.0.wrapping_add(place)
    }
}

/// Rows of `head_dim` values, `stride` apart.
struct Out {
    first: *mut f32,
    stride: usize,
}

/// What all blocks have in common.
struct Pass {
    past: usize,
    window: Option<usize>,
    scale: f32,
    cap: Cap,
}

impl Pass {
    /// The first key that the query at a position sees.
    fn first(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// softmax(q·kᵀ)·v of some rows of one head, of which the first is token `start`.
    fn block(
        &self,
        (start, rows): (usize, usize),
        [q, k, v]: [Rows; 3],
        head_dim: usize,
        scores: &mut Vec<f32>,
        out: Out,
    ) {
        let from = self.first(self.past + start);
        let width = self.past + start + rows - from;
        let (k, v) = (k.behind(from), v.behind(from));
        assert!(q.holds(rows, head_dim) && k.holds(width, head_dim) && v.holds(width, head_dim));
        scores.resize(scores.len().max(rows * width), 0.0);
        let scores = &mut scores[..rows * width];
        let w = width as isize;
        let [of_q, of_k, of_v] = [q, k, v].map(|rows| rows.stride as isize);
        let [q, k, v] = [q, k, v].map(|rows| rows.values.as_ptr());
        // SAFETY: `q` holds rows × head_dim, `k` width × head_dim and `scores` rows × width values.
        unsafe {
            product([rows, width, head_dim], (scores.as_mut_ptr(), w), (q, of_q), (k, [of_k, 1]));
        }
        for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
            let position = self.past + start + row;
            let (before, scores) = scores.split_at_mut(self.first(position) - from);
            let (seen, hidden) = scores.split_at_mut(position + 1 - self.first(position));
            before.fill(0.0);
            hidden.fill(0.0);
            match self.cap {
                Cap::Absent => simd::softmax(seen, self.scale),
                Cap::Tanh(cap) => {
                    simd::soft_cap(seen, self.scale, cap as f32);
                    simd::softmax(seen, 1.0);
                }
            }
        }
        // SAFETY: `scores` holds rows × width and `v` width × head_dim values; `out` has rows of head_dim values that are
        // this task's alone.
        unsafe {
            let out = (out.first, out.stride as isize);
            product([rows, head_dim, width], out, (scores.as_ptr(), w), (v, [1, of_v]));
        }
    }
}

/// out = a·b on this thread. `a` and `out` are rows so far apart; of `b` the steps to the next column and row are given.
///
/// # Safety
/// The three matrices, m × n, m × k and k × n, can be read where they lie, and `out` is nobody else's.
unsafe fn product(
    [m, n, k]: [usize; 3],
    out: (*mut f32, isize),
    a: (*const f32, isize),
    b: (*const f32, [isize; 2]),
) {
    // SAFETY: as this function's.
    unsafe {
        let ([columns, rows], none) = (b.1, Parallelism::None);
        gemm::gemm(
            m, n, k, out.0, 1, out.1, false, a.0, 1, a.1, b.0, columns, rows, 0.0, 1.0, false, false, false,
            none,
        );
    }
}
