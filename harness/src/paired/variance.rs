//! How much of a spread is between groups and how much within them: one-way random effects.
//!
//! y_ij = μ + a_i + e_ij, with a_i of variance σ²_between (calibration sets) and e_ij of variance σ²_within (seeds of one
//! set). With k groups of n_i values, N in all,
//!
//! ```text
//! MS_within  = Σ_ij (y_ij − ȳ_i)² / (N − k)            estimates σ²_within
//! MS_between = Σ_i n_i (ȳ_i − ȳ)² / (k − 1)            estimates σ²_within + n₀ σ²_between
//! n₀         = (N − Σ n_i² / N) / (k − 1)              = J where every group has J values
//! ```
//!
//! σ²_between is estimated by (MS_between − MS_within) / n₀, and floored at 0. Intervals: of σ²_within by χ² with N − k
//! degrees of freedom; of σ²_between after Williams (1962) and Tukey, exact in neither but at least nearly of its level where
//! groups are equally large, approximate where they are not.
//!
//! S. R. Searle, G. Casella, C. E. McCulloch, "Variance Components" (1992), chapter 3; J. S. Williams, "A confidence
//! interval for variance components", Biometrika 49 (1962).

use serde::{Deserialize, Serialize};

use super::{Interval, PairedError, finite, quantile};

/// A variance with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// The estimate.
    pub variance: f64,
    /// Its interval.
    pub interval: Interval,
    /// Whether the estimate was below 0 and stands at 0.
    pub floored: bool,
}

impl Component {
    /// The standard deviation and the ends of its interval.
    pub fn deviation(&self) -> (f64, Interval) {
        let Interval { low, high } = self.interval;
        (self.variance.sqrt(), Interval { low: low.sqrt(), high: high.sqrt() })
    }
}

/// The parts of a spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Components {
    /// Groups.
    pub groups: usize,
    /// Values in all.
    pub values: usize,
    /// Values of a group, on the average that counts here: n₀.
    pub per_group: f64,
    /// Whether every group has equally many values.
    pub balanced: bool,
    /// Within groups.
    pub within: Component,
    /// Between groups.
    pub between: Component,
}

/// Takes a spread apart. Groups are calibration sets, their values the draws of one set.
///
/// # Errors
/// Fewer than two groups, no group with two values, or a value that is not finite.
///
/// # Panics
/// If `confidence` is not strictly between 0 and 1.
pub fn components(groups: &[Vec<f64>], confidence: f64) -> Result<Components, PairedError> {
    let groups: Vec<&Vec<f64>> = groups.iter().filter(|group| !group.is_empty()).collect();
    for group in &groups {
        finite("value", group)?;
    }
    let (k, n) = (groups.len(), groups.iter().map(|group| group.len()).sum::<usize>());
    if k < 2 {
        return Err(PairedError::TooFew { what: "groups", n: k });
    }
    if n == k {
        return Err(PairedError::TooFew { what: "values in any group", n: 1 });
    }
    // From the first value on, so that equal values have themselves as their mean, and no spread.
    let mean =
        |values: &[f64]| values[0] + values.iter().map(|y| y - values[0]).sum::<f64>() / values.len() as f64;
    let means: Vec<f64> = groups.iter().map(|group| mean(group)).collect();
    let sizes: Vec<f64> = groups.iter().map(|group| group.len() as f64).collect();
    let all =
        groups.iter().zip(&means).map(|(group, mean)| group.len() as f64 * mean).sum::<f64>() / n as f64;
    let squares = |group: &[f64], mean: f64| group.iter().map(|y| (y - mean).powi(2)).sum::<f64>();
    let within: f64 = groups.iter().zip(&means).map(|(group, mean)| squares(group, *mean)).sum();
    let between: f64 = sizes.iter().zip(&means).map(|(size, mean)| size * (mean - all).powi(2)).sum();
    let (df_between, df_within) = ((k - 1) as f64, (n - k) as f64);
    let (ms_between, ms_within) = (between / df_between, within / df_within);
    let per_group = (n as f64 - sizes.iter().map(|size| size * size).sum::<f64>() / n as f64) / df_between;

    let tail = 0.5 * (1.0 - confidence);
    let chi = |p: f64, freedom: f64| quantile::chi_squared(p, freedom);
    let estimate = (ms_between - ms_within) / per_group;
    // (SS_between − df_between · MS_within · F) / (n₀ χ²), with both quantiles at one end.
    let end = |p: f64| {
        let f = quantile::f(p, df_between, df_within);
        ((between - df_between * ms_within * f) / (per_group * chi(p, df_between))).max(0.0)
    };
    Ok(Components {
        groups: k,
        values: n,
        per_group,
        balanced: sizes.windows(2).all(|pair| pair[0] == pair[1]),
        within: Component {
            variance: ms_within,
            interval: Interval {
                low: within / chi(1.0 - tail, df_within),
                high: within / chi(tail, df_within),
            },
            floored: false,
        },
        between: Component {
            variance: estimate.max(0.0),
            interval: Interval { low: end(1.0 - tail), high: end(tail) },
            floored: estimate < 0.0,
        },
    })
}

/// The share of pairs in which the first is better than the second; ties count half. `lower` says which way is better.
/// Nothing without pairs.
pub fn better(pairs: &[(f64, f64)], lower: bool) -> Option<f64> {
    let won = |(a, b): &(f64, f64)| match a.partial_cmp(b) {
        Some(std::cmp::Ordering::Equal) => 0.5,
        Some(std::cmp::Ordering::Less) => f64::from(u8::from(lower)),
        Some(std::cmp::Ordering::Greater) => f64::from(u8::from(!lower)),
        // What is no number is not better.
        None => f64::from(u8::from(a.is_finite())),
    };
    (!pairs.is_empty()).then(|| pairs.iter().map(won).sum::<f64>() / pairs.len() as f64)
}
