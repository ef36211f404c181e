//! Channel scales that training can move, but not far: s = s₀·exp(τ·tanh(u)).

use models::Group;

use crate::quantize::steps::smooth::smoothquant::{largest_weights, scales, shared_maxima};

/// How scales begin, and how far they go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmoothingOptions {
    /// SmoothQuant's migration strength of s₀.
    pub alpha: f64,
    /// e^τ: the largest factor between s and s₀.
    pub bound: f64,
}

/// The scales of one site.
#[derive(Clone, Debug, PartialEq)]
pub struct Smoothing {
    /// s₀ by channel of the producer.
    pub start: Vec<f64>,
    /// u by channel of the producer; 0 is s₀.
    pub u: Vec<f32>,
    /// τ
    pub tau: f64,
    /// For every channel of the site the channel of its producer; see [`models::Decoder::sharing`].
    pub producers: Vec<usize>,
}

impl Smoothing {
    /// Scales of one everywhere.
    ///
    /// # Panics
    /// Never where `producers` comes from [`models::Decoder::sharing`].
    pub fn one(producers: &[usize], bound: f64) -> Self {
        let channels = producers.iter().max().map_or(0, |last| last + 1);
        Self {
            start: vec![1.0; channels],
            u: vec![0.0; channels],
            tau: bound.ln(),
            producers: producers.to_vec(),
        }
    }

    /// SmoothQuant's scales as s₀: from the largest activation of every channel of the site and the group that reads it.
    pub fn smoothquant(
        producers: &[usize],
        largest: &[f32],
        group: &Group,
        options: SmoothingOptions,
    ) -> Self {
        let mut activations: Vec<f64> = largest.iter().map(|&x| f64::from(x)).collect();
        let mut weights = largest_weights(&[group]);
        shared_maxima(&mut activations, producers);
        shared_maxima(&mut weights, producers);
        let mut smoothing = Self::one(producers, options.bound);
        for (scale, &producer) in scales(&activations, &weights, options.alpha).iter().zip(producers) {
            smoothing.start[producer] = *scale;
        }
        smoothing
    }

    /// s by channel of the producer.
    pub fn scales(&self) -> Vec<f64> {
        let scale = |(s, &u): (&f64, &f32)| s * (self.tau * f64::from(u).tanh()).exp();
        self.start.iter().zip(&self.u).map(scale).collect()
    }

    /// s by channel of the site.
    pub fn by_channel(&self) -> Vec<f64> {
        let scales = self.scales();
        self.producers.iter().map(|&producer| scales[producer]).collect()
    }

    /// The gradient by u, from that by ln s: τ·(1 − tanh² u).
    pub fn gradient(&self, by_log: &[f64]) -> Vec<f32> {
        let slope = |u: f32| self.tau * (1.0 - f64::from(u).tanh().powi(2));
        by_log.iter().zip(&self.u).map(|(g, &u)| (g * slope(u)) as f32).collect()
    }
}
