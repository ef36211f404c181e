//! One accuracy: its standard error and its interval.

use super::{Estimate, Interval, PairedError, normal};

/// Share of correct items with the standard error of lm-evaluation-harness: the sample standard deviation over √n, for
/// zeros and ones √(p (1 − p) / (n − 1)).
///
/// It is 0 when all items are right or all wrong; [`wilson`] still has an extent there.
///
/// # Errors
/// No items, or more correct ones than items.
pub fn accuracy(correct: u64, n: u64) -> Result<Estimate, PairedError> {
    let p = share(correct, n)?;
    let stderr = (n > 1).then(|| (p * (1.0 - p) / (n - 1) as f64).sqrt());
    Ok(Estimate { value: p, stderr, n, units: n })
}

/// Wilson's score interval of a proportion, with z the normal quantile of the confidence:
///
/// ```text
/// (p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n)
/// ```
///
/// E. B. Wilson (1927), doi:10.1080/01621459.1927.10502953. Items must be independent; for items in clusters use
/// [`clustered::mean`](super::clustered::mean).
///
/// # Errors
/// No items, or more correct ones than items.
///
/// # Panics
/// If `confidence` is not between 0 and 1.
pub fn wilson(correct: u64, n: u64, confidence: f64) -> Result<Interval, PairedError> {
    let (p, count) = (share(correct, n)?, n as f64);
    let z2 = normal::two_sided(confidence).powi(2);
    let middle = p + z2 / (2.0 * count);
    let half = (z2 * (p * (1.0 - p) / count + z2 / (4.0 * count * count))).sqrt();
    let whole = 1.0 + z2 / count;
    // Exact at the ends, where both terms cancel but for rounding.
    let low = if correct == 0 { 0.0 } else { (middle - half) / whole };
    let high = if correct == n { 1.0 } else { (middle + half) / whole };
    Ok(Interval { low, high })
}

fn share(correct: u64, n: u64) -> Result<f64, PairedError> {
    if n == 0 {
        return Err(PairedError::Empty { what: "items" });
    }
    if correct > n {
        let range = "at most the number of items";
        return Err(PairedError::OutOfRange {
            what: "the number of correct items",
            value: correct as f64,
            range,
        });
    }
    Ok(correct as f64 / n as f64)
}
