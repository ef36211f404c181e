//! Two perplexities of the same windows.
//!
//! Losses of a window move together: a hard text is hard for both readings, and a rounding error early in a window is
//! in the context of every later token. So the unit is the window (or document), not the token; a standard error over
//! tokens is several times too small.

use serde::{Deserialize, Serialize};

use super::clustered::{self, Cluster};
use super::{Estimate, Interval, PairedError, same_items};

/// The loss of one window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowLoss {
    /// Mean negative log-likelihood of its scored tokens, nats.
    pub mean: f64,
    /// Scored tokens.
    pub tokens: u64,
}

/// A ratio of perplexities, reading over original.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The ratio.
    pub value: f64,
    /// Its standard error by the delta method; none from a single window.
    pub stderr: Option<f64>,
    /// Its interval, exp of the normal interval of Δ log-perplexity, so never below 0; none from a single window.
    pub interval: Option<Interval>,
}

/// What each window adds to Δ log-perplexity, for [`clustered::mean`] and
/// [`bootstrap::interval`](super::bootstrap::interval).
///
/// # Errors
/// No windows, other windows in one reading than in the other, or a loss that is not finite.
pub fn window_differences(
    original: &[WindowLoss],
    reading: &[WindowLoss],
) -> Result<Vec<Cluster>, PairedError> {
    same_items("windows", original.len(), reading.len())?;
    let pairs = original.iter().zip(reading).enumerate();
    pairs
        .map(|(window, (a, b))| match (b.mean - a.mean) * a.tokens as f64 {
            _ if a.tokens != b.tokens => {
                Err(PairedError::Window { window, original: a.tokens, reading: b.tokens })
            }
            sum if !sum.is_finite() => Err(PairedError::NotFinite {
                what: "the difference of losses of window",
                index: window,
                value: sum,
            }),
            sum => Ok(Cluster { sum, n: a.tokens }),
        })
        .collect()
}

/// Δ log-perplexity, ln ppl(reading) − ln ppl(original): the mean over tokens of the difference of losses, in nats, with
/// the standard error clustered by window.
///
/// # Errors
/// No windows, other windows in one reading than in the other, a window without tokens, or a loss that is not finite.
pub fn log_difference(original: &[WindowLoss], reading: &[WindowLoss]) -> Result<Estimate, PairedError> {
    clustered::mean(&window_differences(original, reading)?)
}

/// Ratio of perplexities that a Δ log-perplexity means: exp Δ, with standard error exp Δ · se(Δ) and interval
/// exp(Δ ± z · se(Δ)).
///
/// # Panics
/// If `confidence` is not between 0 and 1.
pub fn ratio(log_difference: &Estimate, confidence: f64) -> Ratio {
    let value = log_difference.value.exp();
    let interval = log_difference.interval(confidence);
    Ratio {
        value,
        stderr: log_difference.stderr.map(|stderr| value * stderr),
        interval: interval.map(|Interval { low, high }| Interval { low: low.exp(), high: high.exp() }),
    }
}
