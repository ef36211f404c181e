//! An activation and the weights that read it, as plain matrices: transforms that leave their product alone, and what is
//! measured of a matrix.

use models::hadamard::Hadamard;
use rayon::prelude::*;

use crate::quantize::steps::smooth::smoothquant::{scales, shared_maxima};

/// Below it a maximum of weights, or a scale, counts as this.
const CLAMP: f64 = 1e-5;

/// Rows that one task rotates.
const ROWS: usize = 16;

/// Rows × columns, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows after one another.
    pub values: Vec<f64>,
    /// Values of a row: channels.
    pub columns: usize,
}

/// What is done to a pair before it is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transform {
    /// Nothing.
    None,
    /// Channel scales move from activation to weights.
    Smooth,
    /// Both are multiplied by one orthogonal matrix.
    Rotate,
    /// Smooth, then rotate.
    Hybrid,
    /// Rotate, then smooth.
    Reverse,
}

impl Transform {
    /// Every transform, in the order of tables.
    pub const ALL: [Transform; 5] =
        [Transform::None, Transform::Smooth, Transform::Rotate, Transform::Hybrid, Transform::Reverse];

    /// The word used in metric ids and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Transform::None => "none",
            Transform::Smooth => "smooth",
            Transform::Rotate => "rotate",
            Transform::Hybrid => "hybrid",
            Transform::Reverse => "reverse",
        }
    }
}

/// Where smoothing scales come from.
#[derive(Clone, Copy, Debug)]
pub enum Maxima<'a> {
    /// The largest activations are those of the pair itself: the released code.
    Own,
    /// They were seen on other samples, before and after rotation; `producers` are the channels that share a scale (see
    /// [`shared_maxima`]). After a rotation channels have no producers.
    Seen {
        /// Greatest magnitude by channel.
        plain: &'a [f64],
        /// The same of rotated tokens.
        rotated: &'a [f64],
        /// For every channel the channel that it comes from.
        producers: Option<&'a [usize]>,
    },
}

/// An activation and the weights that read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Tokens × channels.
    pub x: Matrix,
    /// Outputs × channels.
    pub w: Matrix,
}

/// What is measured of one matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Quantization difficulty: standard deviation of the channels' norms.
    pub difficulty: f64,
    /// D·√d/‖X‖, in 0 … 1: the difficulty without the scale.
    pub scale_free: f64,
    /// Fourth central moment over the squared variance, of all values; 3 for a normal distribution.
    pub kurtosis: f64,
    /// Greatest magnitude.
    pub largest: f64,
    /// ‖X‖, Frobenius.
    pub norm: f64,
}

impl Matrix {
    /// Of values, row after row.
    ///
    /// # Panics
    /// If the values fill no whole number of rows.
    pub fn new(values: Vec<f64>, columns: usize) -> Self {
        assert!(columns > 0 && values.len().is_multiple_of(columns), "a matrix has whole rows");
        Self { values, columns }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.columns..(i + 1) * self.columns]
    }

    /// Greatest magnitude of every channel.
    pub fn channel_maxima(&self) -> Vec<f64> {
        let mut largest = vec![0.0f64; self.columns];
        for row in self.values.chunks_exact(self.columns) {
            for (most, x) in largest.iter_mut().zip(row) {
                *most = most.max(x.abs());
            }
        }
        largest
    }

    /// Greatest magnitude of every row: the scales of tokens.
    pub fn row_maxima(&self) -> Vec<f64> {
        let largest = |row: &[f64]| row.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        self.values.chunks_exact(self.columns).map(largest).collect()
    }

    /// Channel j times `factors[j]`.
    pub fn scaled(&self, factors: &[f64]) -> Matrix {
        let mut values = self.values.clone();
        for row in values.chunks_exact_mut(self.columns) {
            row.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        }
        Matrix { values, columns: self.columns }
    }

    /// Every row times the orthogonal matrix.
    pub fn rotated(&self, rotation: &Hadamard) -> Matrix {
        let mut values = self.values.clone();
        values.par_chunks_mut(ROWS * self.columns).for_each(|rows| rotation.apply(rows));
        Matrix { values, columns: self.columns }
    }

    /// ‖X_·j‖₂ of every channel j.
    pub fn channel_norms(&self) -> Vec<f64> {
        let mut squares = vec![0.0; self.columns];
        for row in self.values.chunks_exact(self.columns) {
            squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
        }
        squares.into_iter().map(f64::sqrt).collect()
    }

    /// ‖X‖².
    pub fn energy(&self) -> f64 {
        self.values.iter().map(|x| x * x).sum()
    }

    /// What is measured of it.
    pub fn shape(&self) -> Shape {
        let n = self.values.len() as f64;
        let mean = self.values.iter().sum::<f64>() / n;
        let (mut second, mut fourth) = (0.0, 0.0);
        for x in &self.values {
            let square = (x - mean) * (x - mean);
            second += square;
            fourth += square * square;
        }
        let norm = self.energy().sqrt();
        let difficulty = deviation(&self.channel_norms());
        let scale_free = if norm > 0.0 { difficulty * (self.columns as f64).sqrt() / norm } else { 0.0 };
        let kurtosis = if second > 0.0 { n * fourth / (second * second) } else { 0.0 };
        let largest = self.row_maxima().into_iter().fold(0.0, f64::max);
        Shape { difficulty, scale_free, kurtosis, largest, norm }
    }

    /// The greatest token scale over the lower median of all; `None` where that is zero.
    pub fn token_ratio(&self) -> Option<f64> {
        let mut scales = self.row_maxima();
        scales.sort_by(f64::total_cmp);
        let (median, most) = (scales[(scales.len() - 1) / 2], scales[scales.len() - 1]);
        (median > 0.0).then(|| most / median)
    }
}

/// The unbiased standard deviation (denominator n − 1); 0 of a single value.
pub fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if values.len() < 2 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

impl Pair {
    /// The pair under a transform; X·Wᵀ stays.
    pub fn transformed(&self, transform: Transform, alpha: f64, maxima: Maxima, rotation: &Hadamard) -> Pair {
        match transform {
            Transform::None => self.clone(),
            Transform::Smooth => self.smoothed(alpha, maxima, false),
            Transform::Rotate => self.rotated(rotation),
            Transform::Hybrid => self.smoothed(alpha, maxima, false).rotated(rotation),
            Transform::Reverse => self.rotated(rotation).smoothed(alpha, maxima, true),
        }
    }

    fn rotated(&self, rotation: &Hadamard) -> Pair {
        Pair { x: self.x.rotated(rotation), w: self.w.rotated(rotation) }
    }

    /// `rotated` says whether the pair has been rotated, which decides what was seen of it.
    fn smoothed(&self, alpha: f64, maxima: Maxima, rotated: bool) -> Pair {
        let s = self.scales(alpha, maxima, rotated);
        let inverse: Vec<f64> = s.iter().map(|s| 1.0 / s).collect();
        Pair { x: self.x.scaled(&inverse), w: self.w.scaled(&s) }
    }

    fn scales(&self, alpha: f64, maxima: Maxima, was_rotated: bool) -> Vec<f64> {
        let mut weights = self.w.channel_maxima();
        match maxima {
            Maxima::Own => own_scales(&self.x.channel_maxima(), &weights, alpha),
            Maxima::Seen { rotated, .. } if was_rotated => scales(rotated, &weights, alpha),
            Maxima::Seen { plain, producers, .. } => {
                let mut activations = plain.to_vec();
                if let Some(producers) = producers {
                    shared_maxima(&mut activations, producers);
                    shared_maxima(&mut weights, producers);
                }
                scales(&activations, &weights, alpha)
            }
        }
    }
}

/// The released code's scales. Other than the step `smooth`, it gives a channel that is zero the scale 10⁻⁵.
pub fn own_scales(activations: &[f64], weights: &[f64], alpha: f64) -> Vec<f64> {
    let scale = |(&a, &w): (&f64, &f64)| (a.powf(alpha) / w.max(CLAMP).powf(1.0 - alpha)).max(CLAMP);
    activations.iter().zip(weights).map(scale).collect()
}
