//! Is a difference more than rounding noise?
//!
//! The original run again with rounding noise of its own precision differs from itself, too: some near ties flip, the KL
//! divergence is not 0. That is the noise floor. It is measured as if it were a reading, by the same functions on the
//! same items or windows; a recipe whose numbers do not rise above it cannot be told from the original by that
//! measurement.

use serde::{Deserialize, Serialize};

use super::{Estimate, PairedError, clustered, difference, normal};

/// Where a difference stands to the noise floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgainstFloor {
    /// Above it, by more than the uncertainty of both.
    Above,
    /// Not told apart from it.
    Within,
    /// No standard error, from a single item or window: nothing can be said.
    Unknown,
}

/// Compares sizes when only estimates are at hand: above where |reading| − |floor| > z √(se² + se_floor²), z one-sided.
///
/// Both were measured on the same items, so their errors are positively correlated and this is conservative; with the
/// items at hand, [`excess`] is sharper.
///
/// # Panics
/// If `confidence` is not between 0.5 and 1.
pub fn against_floor(reading: &Estimate, floor: &Estimate, confidence: f64) -> AgainstFloor {
    let stderr = reading.stderr.zip(floor.stderr).map(|(a, b)| a.hypot(b));
    judge(reading.value.abs() - floor.value.abs(), stderr, confidence)
}

/// Excess over the floor, item by item or token by token: the mean of reading − floor, with the standard error clustered by
/// label. Both columns hold a size that grows with disagreement (a KL divergence, 1 for a flip and 0 for none, |Δ loss|).
///
/// # Errors
/// No items, columns of different length, or a value that is not finite.
pub fn excess<L: Ord>(reading: &[f64], floor: &[f64], labels: &[L]) -> Result<Estimate, PairedError> {
    clustered::mean(&clustered::by_label(&difference::differences(floor, reading)?, labels)?)
}

/// Judges an [`excess`]: above where it is more than z standard errors over 0, z one-sided.
///
/// # Panics
/// If `confidence` is not between 0.5 and 1.
pub fn excess_above(excess: &Estimate, confidence: f64) -> AgainstFloor {
    judge(excess.value, excess.stderr, confidence)
}

fn judge(excess: f64, stderr: Option<f64>, confidence: f64) -> AgainstFloor {
    assert!(
        (0.5..1.0).contains(&confidence),
        "a one-sided confidence lies between 0.5 and 1, not {confidence}"
    );
    match stderr {
        None => AgainstFloor::Unknown,
        Some(stderr) if excess > normal::quantile(confidence) * stderr => AgainstFloor::Above,
        Some(_) => AgainstFloor::Within,
    }
}
