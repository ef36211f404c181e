//! GPTQ: column-wise rounding, each column's error carried to the columns that follow.
//!
//! With H = XᵀX + λ·mean(diag XᵀX)·1 and H⁻¹ = Uᵀ·U (U upper triangular), for every input channel i in order:
//!
//! q_i = round(w_i),  e = (w_i − q_i) / U_ii,  w_j ← w_j − e·U_ij for j > i
//!
//! Updates inside a block of columns are made at once, those of later columns by one product per block; the block's width
//! changes nothing but the order of sums. Everything is f64 but the grid, which is f32 as everywhere.
//!
//! GPTAQ (arXiv:2504.02692) minimizes the error against what the original computes, not against the same weights on the
//! present input: with X the original's input, X̃ the present one and H of X̃, each column also carries
//! w_j ← w_j + w_i·P_ij, P = α·triu((X − X̃)ᵀX̃·Uᵀ, 1)·U.

use rayon::prelude::*;

use crate::calibrate::moment::SecondMoment;
use crate::matrix::{View, add_product, inverse_factor, quadratic_forms, subtract};
use crate::quantize::StepError;
use crate::quantize::grid::{Granularity, Grid, Scale};
use crate::quantize::rounding;
use crate::quantize::solve::clip::{self, Clip};
use crate::quantize::solve::layout::{Layout, Share};

/// Columns of a block.
pub const BLOCK: usize = 128;

/// Who shares a scale and how it is chosen: what every solver of weights needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// The grid.
    pub grid: Grid,
    /// `Tensor`, `Channel` or `Group`.
    pub granularity: Granularity,
    /// How ranges are narrowed.
    pub clip: Clip,
}

/// What GPTQ needs besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Scales.
    pub fit: Fit,
    /// Scales of groups are chosen before anything is rounded; else when their first column's turn comes, from the
    /// weights as they are then.
    pub static_groups: bool,
    /// Most columns of a block.
    pub block: usize,
}

/// The second moment of a site, made ready for every linear that reads it.
#[derive(Clone, Debug)]
pub struct Prepared {
    channels: usize,
    /// XᵀX in the channels' own order.
    moment: Vec<f64>,
    /// Channels in the order in which they are rounded.
    order: Vec<usize>,
    /// U in that order; none where no damping makes H positive definite, or no channel was ever active.
    factor: Option<Vec<f64>>,
    /// P in that order.
    correction: Option<Vec<f64>>,
    /// Channels that were zero in every token.
    pub dead: Vec<usize>,
    /// λ with which the factorisation succeeded.
    pub damping: f64,
    /// What was added to the diagonal besides, where λ was not enough.
    pub floor: Option<f64>,
}

/// The original's inputs where they differ from the present ones.
#[derive(Clone, Copy, Debug)]
pub struct Drift<'a> {
    /// (X − X̃)ᵀX̃, `[channels, channels]`.
    pub cross: &'a [f64],
    /// α.
    pub alpha: f64,
}

/// Values of λ, and of the floor relative to the largest diagonal element, in the order in which they are tried.
fn ladder(damping: f64) -> Vec<(f64, Option<f64>)> {
    let mut rungs = vec![(damping, None)];
    rungs.extend([0.01, 0.1, 1.0].into_iter().filter(|&rung| rung > damping).map(|rung| (rung, None)));
    rungs.extend((0..6).map(|k| (1.0, Some(1e-6 * 10f64.powi(k)))));
    rungs
}

impl Prepared {
    /// Factors the moment, with more damping where `damping` is not enough.
    ///
    /// `by_activity` rounds the channels with the largest second moments first; a layout says the order itself.
    pub fn new(
        moment: &SecondMoment,
        damping: f64,
        by_activity: bool,
        drift: Option<Drift>,
        layout: Option<&Layout>,
    ) -> Self {
        let side = moment.channels;
        let squares = moment.squares();
        let dead: Vec<usize> = (0..side).filter(|&c| squares[c] == 0.0).collect();
        let mut order = layout.map_or_else(|| (0..side).collect(), |layout| layout.order.clone());
        if by_activity && layout.is_none() {
            // Stable: equal channels keep their order.
            order.sort_by(|&a, &b| squares[b].total_cmp(&squares[a]));
        }
        let live = side - dead.len();
        let mean = squares.iter().sum::<f64>() / live.max(1) as f64;
        let largest = squares.iter().copied().fold(0.0, f64::max);
        let mut h = sub_block(&moment.sums, side, &order);
        for (i, &c) in order.iter().enumerate() {
            if squares[c] == 0.0 {
                h[i * side + i] = mean;
            }
        }
        let mut found = None;
        for (lambda, floor) in ladder(damping).into_iter().filter(|_| live > 0) {
            let mut damped = h.clone();
            let more = lambda * mean + floor.map_or(0.0, |floor| floor * largest);
            damped.iter_mut().step_by(side + 1).for_each(|x| *x += more);
            if let Ok(factor) = inverse_factor(&damped, side) {
                found = Some((factor, lambda, floor.map(|floor| floor * largest)));
                break;
            }
        }
        let (factor, damping, floor) = match found {
            Some((factor, damping, floor)) => (Some(factor), damping, floor),
            None => (None, damping, None),
        };
        let correction = match (&factor, drift) {
            (Some(factor), Some(drift)) => {
                let cross = sub_block(drift.cross, side, &order);
                let u = View::new(factor, side, side, side);
                let mut product = vec![0.0; side * side];
                add_product(
                    &mut product,
                    side,
                    drift.alpha,
                    View::new(&cross, side, side, side),
                    u.transposed(),
                    true,
                );
                for (r, row) in product.chunks_mut(side).enumerate() {
                    row[..=r].fill(0.0);
                }
                let mut correction = vec![0.0; side * side];
                add_product(&mut correction, side, 1.0, View::new(&product, side, side, side), u, true);
                Some(correction)
            }
            _ => None,
        };
        Self { channels: side, moment: moment.sums.clone(), order, factor, correction, dead, damping, floor }
    }

    /// Whether there is a factor to solve with; without one every weight goes to its nearest grid value.
    pub fn is_solvable(&self) -> bool {
        self.factor.is_some()
    }

    fn loss(&self, a: &[f32], b: &[f32]) -> f64 {
        squared_error(&self.moment, self.channels, a, b)
    }
}

/// tr(Δ·XᵀX·Δᵀ) of two weights: the squared error of the output over the calibration set.
///
/// # Shapes
/// Both weights are `[out, channels]`.
pub fn loss(moment: &SecondMoment, a: &[f32], b: &[f32]) -> f64 {
    squared_error(&moment.sums, moment.channels, a, b)
}

fn squared_error(moment: &[f64], side: usize, a: &[f32], b: &[f32]) -> f64 {
    let change: Vec<f64> = a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)).collect();
    quadratic_forms(&change, View::new(moment, side, side, side)).iter().sum()
}

/// Rows and columns `of` a square matrix.
fn sub_block(matrix: &[f64], side: usize, of: &[usize]) -> Vec<f64> {
    of.iter().flat_map(|&r| of.iter().map(move |&c| matrix[r * side + c])).collect()
}

/// One scale per row for the channels `of`, from the weights `[rows, channels]`; the same for all rows with `Tensor`.
fn fit_share(weight: &[f32], channels: usize, of: &[usize], fit: &Fit, h: Option<&[f64]>) -> Vec<Scale> {
    let values: Vec<f32> =
        weight.par_chunks(channels).flat_map_iter(|row| of.iter().map(move |&c| row[c])).collect();
    let block = h.filter(|_| fit.clip == Clip::Output).map(|h| sub_block(h, channels, of));
    fit_values(&values, of.len(), fit, block.as_deref())
}

/// As [`fit_share`], of values that stand together.
fn fit_values(values: &[f32], width: usize, fit: &Fit, h: Option<&[f64]>) -> Vec<Scale> {
    if fit.granularity == Granularity::Tensor {
        let one = clip::scales(values, values.len(), fit.grid, fit.clip, None);
        return vec![one[0]; values.len() / width];
    }
    clip::scales(values, width, fit.grid, fit.clip, h.map(|h| View::new(h, width, width, width)))
}

/// How the channels that are kept apart are rounded: a scale per row, from the largest magnitude.
fn fit_kept(grid: Grid) -> Fit {
    Fit { grid, granularity: Granularity::Channel, clip: Clip::Factor(1.0) }
}

/// The same with the grid of this weight.
fn of_weight(fit: &Fit, weight: &[f32]) -> Fit {
    Fit { grid: rounding::of_tensor(fit.grid, weight), ..*fit }
}

/// Rounds every weight to its nearest grid value.
///
/// # Shapes
/// `weight` is `[rows, channels]`, `h` `[channels, channels]`, read by [`Clip::Output`] only. The last group is short
/// where groups do not divide the channels.
pub fn nearest(
    weight: &[f32],
    channels: usize,
    fit: &Fit,
    h: Option<&[f64]>,
    layout: Option<&Layout>,
) -> Vec<f32> {
    let fit = &of_weight(fit, weight);
    let natural = Layout::natural(channels);
    let layout = layout.unwrap_or(&natural);
    let mut rounded = weight.to_vec();
    for Share { from, to, is_kept } in layout.shares(fit.granularity) {
        let fit = match (is_kept, layout.grid) {
            (false, _) => *fit,
            (true, Some(grid)) => fit_kept(grid),
            (true, None) => continue,
        };
        let of = &layout.order[from..to];
        let scales = fit_share(weight, channels, of, &fit, h);
        rounded.par_chunks_mut(channels).zip(&scales).for_each(|(row, &scale)| {
            of.iter().for_each(|&c| row[c] = fit.grid.round(row[c], scale));
        });
    }
    rounded
}

/// A rounded weight and its errors over the calibration set.
#[derive(Clone, Debug)]
pub struct Rounded {
    /// `[rows, channels]`
    pub weight: Vec<f32>,
    /// tr(ΔW·H·ΔWᵀ)
    pub loss: f64,
    /// The same of rounding to nearest.
    pub nearest_loss: f64,
    /// Rounding to nearest was taken, because it was the better or because there was no factor.
    pub is_nearest: bool,
}

/// Rounds a weight `[rows, channels]`; where rounding to nearest has the smaller loss, takes that.
///
/// # Panics
/// If the weight has other channels than the moment.
///
/// The channels that a layout keeps apart take errors in and, rounded last, give none to each other, as in Atom.
pub fn round(weight: &[f32], prepared: &Prepared, settings: &Settings, layout: Option<&Layout>) -> Rounded {
    let side = prepared.channels;
    assert!(weight.len().is_multiple_of(side), "rows of {side} channels");
    let plain = nearest(weight, side, &settings.fit, Some(&prepared.moment), layout);
    let nearest_loss = prepared.loss(weight, &plain);
    let Some(factor) = &prepared.factor else {
        return Rounded { weight: plain, loss: nearest_loss, nearest_loss, is_nearest: true };
    };
    let solved = solve(weight, prepared, factor, settings, layout);
    let loss = prepared.loss(weight, &solved);
    // With a correction the goal is another one, and this loss does not judge it.
    if loss > nearest_loss && prepared.correction.is_none() {
        return Rounded { weight: plain, loss: nearest_loss, nearest_loss, is_nearest: true };
    }
    Rounded { weight: solved, loss, nearest_loss, is_nearest: false }
}

fn solve(
    weight: &[f32],
    prepared: &Prepared,
    factor: &[f64],
    settings: &Settings,
    layout: Option<&Layout>,
) -> Vec<f32> {
    let side = prepared.channels;
    let rows = weight.len() / side;
    let (fit, order) = (&of_weight(&settings.fit, weight), &prepared.order);
    let moment = Some(prepared.moment.as_slice());
    // A dead channel's weights do nothing over the calibration set, and are not known to do good elsewhere.
    let mut alive = weight.to_vec();
    for row in alive.chunks_mut(side) {
        prepared.dead.iter().for_each(|&c| row[c] = 0.0);
    }
    let natural = Layout::natural(side);
    let shares = layout.unwrap_or(&natural).shares(fit.granularity);
    let grouped = matches!(fit.granularity, Granularity::Group(_));
    let dynamic = grouped && !settings.static_groups;
    // Where shares are of places in the order; static groups without a layout are of neighbouring channels.
    let by_place = dynamic || layout.is_some();
    let mut share_at = vec![0; side];
    for (place, share_at) in share_at.iter_mut().enumerate() {
        let position = if by_place { place } else { order[place] };
        let found = shares.iter().position(|share| (share.from..share.to).contains(&position));
        *share_at = found.expect("shares cover every place");
    }
    let kept = layout.and_then(|layout| layout.grid);
    let fit_of = |share: &Share| if share.is_kept { kept.map(fit_kept) } else { Some(*fit) };
    // Scales by share, one per row; dynamic ones, and those of what is kept, are filled in as they come.
    let mut scales: Vec<Vec<Scale>> = vec![Vec::new(); shares.len()];
    for (scales, share) in scales.iter_mut().zip(&shares).filter(|(_, share)| !dynamic && !share.is_kept) {
        let source = if grouped { &alive } else { weight };
        let channels: Vec<usize> = (share.from..share.to).collect();
        let of = if by_place { &order[share.from..share.to] } else { &channels };
        *scales = fit_share(source, side, of, fit, moment);
    }

    let mut w: Vec<f64> =
        alive.par_chunks(side).flat_map_iter(|row| order.iter().map(move |&c| f64::from(row[c]))).collect();
    for (from, to) in segments(&shares, dynamic, settings.block, side) {
        let share = share_at[from];
        let Share { from: first, to: last, is_kept } = shares[share];
        if (dynamic || is_kept) && first == from {
            let Some(fit) = fit_of(&shares[share]) else { break };
            let now: Vec<f32> =
                w.par_chunks(side).flat_map_iter(|row| row[first..last].iter().map(|&x| x as f32)).collect();
            let h =
                (fit.clip == Clip::Output).then(|| sub_block(&prepared.moment, side, &order[first..last]));
            scales[share] = fit_values(&now, last - first, &fit, h.as_deref());
        }
        if is_kept {
            let grid = kept.expect("what is kept in floating point ended the loop");
            w.par_chunks_mut(side).zip(&scales[share]).for_each(|(row, &scale)| {
                row[from..to].iter_mut().for_each(|x| *x = f64::from(grid.round(*x as f32, scale)));
            });
            continue;
        }
        let width = to - from;
        let mut errors = vec![0.0; rows * width];
        let mut carried = vec![0.0; if prepared.correction.is_some() { rows * width } else { 0 }];
        let columns = |row: &mut [f64], errors: &mut [f64], mut carried: Option<&mut [f64]>, r: usize| {
            for i in from..to {
                let x = row[i];
                let q = f64::from(fit.grid.round(x as f32, scales[share_at[i]][r]));
                let e = (x - q) / factor[i * side + i];
                row[i] = q;
                errors[i - from] = e;
                subtract(&mut row[i + 1..to], e, &factor[i * side + i + 1..i * side + to]);
                if let (Some(p), Some(carried)) = (&prepared.correction, carried.as_deref_mut()) {
                    carried[i - from] = x;
                    subtract(&mut row[i + 1..to], -x, &p[i * side + i + 1..i * side + to]);
                }
            }
        };
        let by_row = w.par_chunks_mut(side).zip(errors.par_chunks_mut(width)).enumerate();
        match &prepared.correction {
            None => by_row.for_each(|(r, (row, errors))| columns(row, errors, None, r)),
            Some(_) => by_row
                .zip(carried.par_chunks_mut(width))
                .for_each(|((r, (row, errors)), carried)| columns(row, errors, Some(carried), r)),
        }
        if to == side {
            break;
        }
        let later = |matrix| View::new(matrix, width, side - to, side);
        let (begin, end) = (from * side + to, to * side);
        let errors = View::new(&errors, rows, width, width);
        add_product(&mut w[to..], side, -1.0, errors, later(&factor[begin..end]), true);
        if let Some(p) = &prepared.correction {
            let carried = View::new(&carried, rows, width, width);
            add_product(&mut w[to..], side, 1.0, carried, later(&p[begin..end]), true);
        }
    }

    let mut rounded = vec![0.0f32; weight.len()];
    rounded.par_chunks_mut(side).zip(w.par_chunks(side)).for_each(|(out, row)| {
        for (&c, &x) in order.iter().zip(row) {
            out[c] = x as f32;
        }
    });
    rounded
}

/// Blocks of columns, none of which holds the beginning of a dynamic group, or of what is kept, after its own: a scale is
/// chosen when all that comes before it is done.
fn segments(shares: &[Share], dynamic: bool, block: usize, side: usize) -> Vec<(usize, usize)> {
    let rest = shares.iter().filter(|share| !share.is_kept).map(|share| share.to).max().unwrap_or(0);
    let mut spans: Vec<(usize, usize)> = match dynamic {
        true => shares.iter().filter(|share| !share.is_kept).map(|share| (share.from, share.to)).collect(),
        false => vec![(0, rest)],
    };
    spans = spans
        .iter()
        .flat_map(|&(from, to)| {
            (from..to).step_by(block.max(1)).map(move |at| (at, (at + block.max(1)).min(to)))
        })
        .collect();
    if rest < side {
        spans.push((rest, side));
    }
    spans
}

/// Refuses groups that do not divide the channels, unless a short last one is meant.
///
/// # Errors
/// [`StepError::GroupWidth`].
pub fn check_width(
    place: &str,
    granularity: Granularity,
    ragged: bool,
    channels: usize,
) -> Result<(), StepError> {
    match granularity {
        Granularity::Group(n) if !ragged => StepError::check_group(place, n, channels),
        _ => Ok(()),
    }
}
