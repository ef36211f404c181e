//! Means and differences of items that are not independent.
//!
//! Questions about one passage (BoolQ, RACE), of one subject (MMLU), tokens of one window are right or wrong together.
//! Counting them as independent makes standard errors too small; the unit of independence is the cluster. E. Miller,
//! "Adding Error Bars to Evals", arXiv:2411.00640, section 2.2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Estimate, PairedError, finite, same_items};

/// What a cluster adds to a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Sum of its values.
    pub sum: f64,
    /// Number of its values.
    pub n: u64,
}

/// A cluster per value: items as independent units.
pub fn singles(values: &[f64]) -> Vec<Cluster> {
    values.iter().map(|&sum| Cluster { sum, n: 1 }).collect()
}

/// A cluster per label, in the order of labels. Values of a label need not stand together.
///
/// # Errors
/// No values, not as many labels, or a value that is not finite.
pub fn by_label<L: Ord>(values: &[f64], labels: &[L]) -> Result<Vec<Cluster>, PairedError> {
    same_items("values and labels", values.len(), labels.len())?;
    finite("value", values)?;
    let mut clusters: BTreeMap<&L, Cluster> = BTreeMap::new();
    for (label, value) in labels.iter().zip(values) {
        let cluster = clusters.entry(label).or_default();
        cluster.sum += value;
        cluster.n += 1;
    }
    Ok(clusters.into_values().collect())
}

/// Mean of all values, with the cluster-robust standard error. With clusters g = 1 … G of n_g values and N values in all,
///
/// ```text
/// x̄ = Σ_g sum_g / N,   se² = G/(G − 1) · Σ_g (sum_g − n_g x̄)² / N²
/// ```
///
/// which is the sandwich estimator of a regression on a constant with the usual factor for few clusters (Cameron and
/// Miller 2015, doi:10.3368/jhr.50.2.317). With one value a cluster it is the sample standard deviation over √N; with
/// clusters of equal size, the same of the clusters' means. Below about 30 clusters intervals from it are too narrow.
///
/// # Errors
/// No clusters, one without values, or a sum that is not finite.
pub fn mean(clusters: &[Cluster]) -> Result<Estimate, PairedError> {
    let (sum, n) = total(clusters)?;
    let value = sum / n as f64;
    let units = clusters.len() as f64;
    let stderr = (clusters.len() > 1).then(|| {
        let squares: f64 = clusters.iter().map(|c| (c.sum - c.n as f64 * value).powi(2)).sum();
        (units / (units - 1.0) * squares).sqrt() / n as f64
    });
    Ok(Estimate { value, stderr, n, units: clusters.len() as u64 })
}

/// Mean of reading − original over the same items, with the standard error clustered by label.
///
/// # Errors
/// No items, columns of different length, or a value that is not finite.
pub fn difference<L: Ord>(original: &[f64], reading: &[f64], labels: &[L]) -> Result<Estimate, PairedError> {
    mean(&by_label(&super::difference::differences(original, reading)?, labels)?)
}

/// Sum and number of all values.
pub(super) fn total(clusters: &[Cluster]) -> Result<(f64, u64), PairedError> {
    if clusters.is_empty() {
        return Err(PairedError::Empty { what: "clusters" });
    }
    for (index, cluster) in clusters.iter().enumerate() {
        if cluster.n == 0 {
            return Err(PairedError::Empty { what: "values in a cluster" });
        }
        if !cluster.sum.is_finite() {
            return Err(PairedError::NotFinite { what: "the sum of cluster", index, value: cluster.sum });
        }
    }
    Ok((clusters.iter().map(|c| c.sum).sum(), clusters.iter().map(|c| c.n).sum()))
}
