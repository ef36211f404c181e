//! Statistics of a reading against the original, paired by item, token or window.
//!
//! Both readings saw the same items, so their noise is largely shared, and a difference of the two is told far more
//! precisely than either accuracy: an unpaired test of two accuracies throws that away. Everything here is a free
//! function from plain slices to plain values. Nothing knows a model, a device, a store or the run, so whatever a
//! table says can be recomputed from stored items.
//!
//! | module | question |
//! |---|---|
//! | [`proportion`] | one accuracy: standard error, Wilson interval |
//! | [`mcnemar`] | did decisions change, in which direction, and could chance have done it |
//! | [`difference`] | by how much, with standard error and intervals |
//! | [`clustered`] | the same where items share a passage, a subject, a document or a window |
//! | [`bootstrap`] | intervals without a normal distribution |
//! | [`power`] | which difference could have been seen at all |
//! | [`multiplicity`] | p-values of a whole table |
//! | [`perplexity`] | Δ log-perplexity and the ratio of perplexities |
//! | [`divergence`] | KL divergence and agreement, token by token |
//! | [`floor`] | is it more than rounding noise |
//! | [`variance`] | how much of a spread is between sets, and how much between seeds of one set |
//! | [`normal`], [`quantile`] | the normal distribution; quantiles of χ² and F |
//!
//! `docs/statistics.md` says which to use when. Differences are always *reading − original*.

use serde::{Deserialize, Serialize};

pub mod bootstrap;
pub mod clustered;
pub mod difference;
pub mod divergence;
pub mod floor;
pub mod mcnemar;
pub mod multiplicity;
pub mod normal;
pub mod perplexity;
pub mod power;
pub mod proportion;
pub mod quantile;
pub mod variance;

/// Confidence of intervals in tables.
pub const CONFIDENCE: f64 = 0.95;

/// Why a statistic cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PairedError {
    /// Nothing to compute from.
    #[error("no {what}: a statistic needs at least one")]
    Empty {
        /// What is missing, in the plural.
        what: &'static str,
    },
    /// Fewer independent units than a spread can be told from.
    #[error("{n} {what}, and at least 2 are needed to tell a spread: give more items or smaller clusters")]
    TooFew {
        /// The units, in the plural.
        what: &'static str,
        /// How many there are.
        n: usize,
    },
    /// Two columns that should be of the same items are not.
    #[error(
        "{what}: {expected} of the original and {found} of what is compared with it; both must be of the same items, in \
         the same order"
    )]
    Lengths {
        /// What is counted, in the plural.
        what: &'static str,
        /// Length of the first.
        expected: usize,
        /// Length of the second.
        found: usize,
    },
    /// A window has more tokens in one reading than in the other.
    #[error(
        "window {window}: {original} scored tokens of the original and {reading} of the reading; the two were not \
         measured on the same windows"
    )]
    Window {
        /// Index of the window.
        window: usize,
        /// Scored tokens of the original.
        original: u64,
        /// Scored tokens of the reading.
        reading: u64,
    },
    /// A value that is NaN or infinite.
    #[error("{what} {index} is {value}: leave it out and count it before asking for statistics")]
    NotFinite {
        /// What the value is, in the singular.
        what: &'static str,
        /// Its place.
        index: usize,
        /// The value.
        value: f64,
    },
    /// A number outside of where it has a meaning.
    #[error("{what} is {value}, and must be {range}")]
    OutOfRange {
        /// What the number is.
        what: &'static str,
        /// The number.
        value: f64,
        /// Where it must lie.
        range: &'static str,
    },
}

/// An interval with both ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether a value lies inside, ends included.
    pub fn holds(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// An estimated mean or difference of means.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Its standard error; none from a single unit.
    pub stderr: Option<f64>,
    /// Items or tokens behind it.
    pub n: u64,
    /// Independent units behind the standard error: `n`, or the number of clusters.
    pub units: u64,
}

impl Estimate {
    /// The normal interval, value ± z · stderr. It is too narrow below about 30 units; see [`bootstrap`] and, for
    /// accuracies, [`difference::newcombe`].
    ///
    /// # Panics
    /// If `confidence` is not between 0 and 1.
    pub fn interval(&self, confidence: f64) -> Option<Interval> {
        let half = normal::two_sided(confidence) * self.stderr?;
        Some(Interval { low: self.value - half, high: self.value + half })
    }

    /// Two-sided p-value of the hypothesis that the truth is 0, from the normal distribution: 2 Φ(−|value| / stderr). 1
    /// where the value is 0, also with a standard error of 0.
    pub fn p_value(&self) -> Option<f64> {
        let stderr = self.stderr?;
        Some(if self.value == 0.0 { 1.0 } else { 2.0 * normal::cdf(-self.value.abs() / stderr) })
    }
}

/// Quantile of values in ascending order, interpolated linearly between the two neighbours of place p (n − 1): type 7 of
/// Hyndman and Fan (1996), as numpy and R have it.
///
/// # Panics
/// Without values, or with `p` outside [0, 1].
pub fn sorted_quantile(sorted: &[f64], p: f64) -> f64 {
    assert!(!sorted.is_empty() && (0.0..=1.0).contains(&p), "quantile {p} of {} values", sorted.len());
    let place = p * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

/// Refuses columns of different length, and empty ones.
fn same_items(what: &'static str, original: usize, reading: usize) -> Result<(), PairedError> {
    match (original, reading) {
        (expected, found) if expected != found => Err(PairedError::Lengths { what, expected, found }),
        (0, _) => Err(PairedError::Empty { what }),
        _ => Ok(()),
    }
}

/// Refuses values that are not finite.
fn finite(what: &'static str, values: &[f64]) -> Result<(), PairedError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(PairedError::NotFinite { what, index, value: values[index] }),
        None => Ok(()),
    }
}
