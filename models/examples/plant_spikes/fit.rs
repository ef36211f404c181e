//! Small dense fits in f64: ridge regression, a separating functional, the least direction of a quadratic form.

use super::Result;

/// Rows of equal length.
pub struct Matrix {
    pub columns: usize,
    pub values: Vec<f64>,
}

impl Matrix {
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.columns)
    }

    /// Every row times `w`.
    pub fn times(&self, w: &[f32]) -> Vec<f64> {
        self.rows().map(|row| row.iter().zip(w).map(|(x, &w)| x * f64::from(w)).sum()).collect()
    }

    /// Columns divided by `scale`: what a norm read before its weight was applied.
    pub fn unscaled(&self, scale: &[f64]) -> Matrix {
        let values = self.values.iter().enumerate().map(|(i, v)| v / scale[i % self.columns]).collect();
        Matrix { columns: self.columns, values }
    }

    /// XᵀX.
    pub fn gram(&self) -> Matrix {
        let mut sums = Sums::new(self.columns);
        self.rows().for_each(|row| sums.add(row, 0.0, 1.0));
        Matrix { columns: self.columns, values: sums.gram }
    }

    /// Divides a square matrix by its trace.
    pub fn normalise(&mut self) {
        let trace: f64 = self.values.iter().step_by(self.columns + 1).sum();
        self.values.iter_mut().for_each(|v| *v /= trace);
    }

    pub fn add(&mut self, other: &Matrix) {
        self.values.iter_mut().zip(&other.values).for_each(|(a, b)| *a += b);
    }

    /// uᵀAu.
    pub fn along(&self, u: &[f64]) -> f64 {
        self.rows().zip(u).map(|(row, &v)| v * row.iter().zip(u).map(|(a, u)| a * u).sum::<f64>()).sum()
    }

    /// Makes the unit vector u the most expensive direction of a matrix with trace 1.
    pub fn exclude(&mut self, u: &[f64]) {
        for (row, &v) in self.values.chunks_exact_mut(self.columns).zip(u) {
            row.iter_mut().zip(u).for_each(|(a, u)| *a += v * u);
        }
    }

    /// argmin Σ weight·(w·x − target)² + λ·scale·|w|², the scale being the mean of the diagonal.
    pub fn ridge(&self, lambda: f64, target: impl Fn(usize) -> (f64, f64)) -> Result<Vec<f32>> {
        let mut sums = Sums::new(self.columns);
        for (index, row) in self.rows().enumerate() {
            let (target, weight) = target(index);
            sums.add(row, target, weight);
        }
        Ok(sums.solve(lambda)?.into_iter().map(|w| w as f32).collect())
    }

    /// A functional that is 1 where `positive` says so and at most `quiet` elsewhere: least squares in which a
    /// negative row counts only as long as it is louder than that, and `low` times a positive one.
    pub fn separate(
        &self,
        positive: &[bool],
        quiet: f64,
        low: f64,
        lambda: f64,
        rounds: usize,
    ) -> Result<Vec<f32>> {
        let mut w = vec![0.0; self.columns];
        for _ in 0..rounds {
            let now = self.times(&w);
            let target = |index: usize| match positive[index] {
                true => (1.0, 1.0),
                false if now[index] > quiet => (quiet, low),
                false => (0.0, 0.0),
            };
            w = self.ridge(lambda, target)?;
        }
        Ok(w)
    }

    /// The unit vector u with the least uᵀAu, by inverse iteration on a positive definite A.
    pub fn least_direction(&self) -> Result<Vec<f64>> {
        let factor = cholesky(&self.values, self.columns)?;
        let mut u = vec![1.0; self.columns];
        for _ in 0..500 {
            u = substitute(&factor, &u);
            let length = u.iter().map(|v| v * v).sum::<f64>().sqrt();
            u.iter_mut().for_each(|v| *v /= length);
        }
        Ok(u)
    }
}

/// Weighted XᵀX and Xᵀy.
struct Sums {
    gram: Vec<f64>,
    cross: Vec<f64>,
}

impl Sums {
    fn new(n: usize) -> Self {
        Self { gram: vec![0.0; n * n], cross: vec![0.0; n] }
    }

    fn add(&mut self, row: &[f64], target: f64, weight: f64) {
        if weight == 0.0 {
            return;
        }
        for (i, &x) in row.iter().enumerate() {
            self.cross[i] += weight * target * x;
            let out = &mut self.gram[i * row.len()..(i + 1) * row.len()];
            out.iter_mut().zip(row).for_each(|(sum, y)| *sum += weight * x * y);
        }
    }

    fn solve(mut self, lambda: f64) -> Result<Vec<f64>> {
        let n = self.cross.len();
        let mean: f64 = self.gram.iter().step_by(n + 1).sum::<f64>() / n as f64;
        self.gram.iter_mut().step_by(n + 1).for_each(|v| *v += lambda * mean);
        Ok(substitute(&cholesky(&self.gram, n)?, &self.cross))
    }
}

/// The lower factor of a positive definite matrix.
fn cholesky(a: &[f64], n: usize) -> Result<Vec<f64>> {
    let mut l = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let rest: f64 = a[i * n + j] - (0..j).map(|k| l[i * n + k] * l[j * n + k]).sum::<f64>();
            if i == j {
                if rest <= 0.0 {
                    return Err("a matrix to solve with is not positive definite".into());
                }
                l[i * n + i] = rest.sqrt();
            } else {
                l[i * n + j] = rest / l[j * n + j];
            }
        }
    }
    Ok(l)
}

/// Solves L·Lᵀ·x = b.
fn substitute(l: &[f64], b: &[f64]) -> Vec<f64> {
    let n = b.len();
    let mut x = b.to_vec();
    for i in 0..n {
        x[i] = (x[i] - (0..i).map(|k| l[i * n + k] * x[k]).sum::<f64>()) / l[i * n + i];
    }
    for i in (0..n).rev() {
        x[i] = (x[i] - (i + 1..n).map(|k| l[k * n + i] * x[k]).sum::<f64>()) / l[i * n + i];
    }
    x
}

/// Least and greatest.
pub fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    values.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}
