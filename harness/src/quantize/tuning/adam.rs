//! Adam on values in host memory.

/// Decay of the first and of the second moment.
const BETAS: (f64, f64) = (0.9, 0.999);

/// Keeps a step finite where a gradient has always been zero.
const EPSILON: f64 = 1e-8;

/// The two moments of some values, without weight decay: AdamW with a decay of zero.
#[derive(Clone, Debug, Default)]
pub struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
    steps: i32,
}

impl Adam {
    /// Moves `values` against `gradient` by about `rate` each.
    ///
    /// # Panics
    /// If there is not one gradient per value, or not as many values as at the first step.
    pub fn step(&mut self, values: &mut [f32], gradient: &[f32], rate: f64) {
        assert_eq!(values.len(), gradient.len(), "one gradient per value");
        self.mean.resize(values.len(), 0.0);
        self.square.resize(values.len(), 0.0);
        self.steps += 1;
        let bias = (1.0 - BETAS.0.powi(self.steps), 1.0 - BETAS.1.powi(self.steps));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((value, &g), (mean, square)) in values.iter_mut().zip(gradient).zip(moments) {
            let g = f64::from(g);
            *mean = (BETAS.0 * f64::from(*mean) + (1.0 - BETAS.0) * g) as f32;
            *square = (BETAS.1 * f64::from(*square) + (1.0 - BETAS.1) * g * g) as f32;
            let deviation = (f64::from(*square) / bias.1).sqrt() + EPSILON;
            *value -= (rate * f64::from(*mean) / bias.0 / deviation) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps by hand: m = 0.1·g, v = 0.001·g² and their corrections give g/|g|; then with another gradient.
    #[test]
    fn two_steps_are_those_of_the_paper() {
        let mut adam = Adam::default();
        let mut x = [1.0f32, -2.0];
        adam.step(&mut x, &[0.5, -4.0], 0.1);
        assert!((x[0] - 0.9).abs() < 1e-6 && (x[1] + 1.9).abs() < 1e-6, "{x:?}");
        adam.step(&mut x, &[-0.5, -4.0], 0.1);
        let (m, v) = (0.9 * 0.05 - 0.05, 0.999 * 0.00025 + 0.00025);
        let expected = 0.9 - 0.1 * (m / 0.19) / (v / 0.001999f64).sqrt();
        assert!((f64::from(x[0]) - expected).abs() < 1e-6, "{x:?} {expected}");
        assert!((x[1] + 1.8).abs() < 1e-6, "{x:?}");
    }
}
