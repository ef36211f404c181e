//! The standard normal distribution: its function and its quantiles, to about 10⁻¹⁵.

use std::f64::consts::TAU;

/// Φ(x), the probability below x. Relative precision is kept in the lower tail, where p-values live.
///
/// Near 0 the series of Marsaglia, "Evaluating the Normal Distribution" (2004); in the tails the continued fraction of
/// the Mills ratio (Laplace), 1 − Φ(x) = φ(x) / (x + 1/(x + 2/(x + 3/(x + …)))).
pub fn cdf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let density = (-0.5 * x * x).exp() / TAU.sqrt();
    if x.abs() < 2.0 {
        let (mut sum, mut term, mut i) = (x, x, 1.0);
        while term.abs() > f64::EPSILON * 1e-2 * sum.abs() {
            i += 2.0;
            term *= x * x / i;
            sum += term;
        }
        return 0.5 + density * sum;
    }
    // 200 terms are more than needed at 2, where it converges slowest.
    let fraction = (1..=200).rev().fold(x.abs(), |below, k| x.abs() + f64::from(k) / below);
    let tail = if density == 0.0 { 0.0 } else { density / fraction };
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// The quantile Φ⁻¹(p): −∞ at 0, ∞ at 1.
///
/// By halving: Φ is monotone, and this is called a few times per table.
///
/// # Panics
/// If `p` is not in [0, 1].
pub fn quantile(p: f64) -> f64 {
    assert!((0.0..=1.0).contains(&p), "a probability lies between 0 and 1, not {p}");
    if p > 0.5 {
        return -quantile(1.0 - p);
    }
    if p == 0.0 {
        return f64::NEG_INFINITY;
    }
    let (mut low, mut high) = (-40.0, 0.0);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return middle;
        }
        if cdf(middle) < p { low = middle } else { high = middle }
    }
}

/// z of a two-sided interval: Φ⁻¹((1 + confidence) / 2); 1.96 at 0.95.
///
/// # Panics
/// If `confidence` is not strictly between 0 and 1.
pub fn two_sided(confidence: f64) -> f64 {
    assert!(confidence > 0.0 && confidence < 1.0, "a confidence lies between 0 and 1, not {confidence}");
    -quantile((1.0 - confidence) / 2.0)
}
