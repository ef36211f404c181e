//! By how much a reading differs from the original on the same items.

use super::clustered::{self, singles};
use super::mcnemar::Changes;
use super::{Estimate, Interval, PairedError, finite, proportion, same_items};

/// Reading − original, item by item.
///
/// # Errors
/// No items, not equally many, or a difference that is not finite.
pub fn differences(original: &[f64], reading: &[f64]) -> Result<Vec<f64>, PairedError> {
    same_items("items", original.len(), reading.len())?;
    let differences: Vec<f64> = original.iter().zip(reading).map(|(a, b)| b - a).collect();
    finite("difference", &differences)?;
    Ok(differences)
}

/// Mean of one column, with the standard error of lm-evaluation-harness: sample standard deviation over √n.
///
/// # Errors
/// No items, or a value that is not finite.
pub fn mean(values: &[f64]) -> Result<Estimate, PairedError> {
    finite("value", values)?;
    clustered::mean(&singles(values))
}

/// Mean of reading − original over independent items, se = sd(d) / √n with the sample standard deviation (n − 1).
///
/// # Errors
/// No items, not equally many, or a difference that is not finite.
pub fn means(original: &[f64], reading: &[f64]) -> Result<Estimate, PairedError> {
    clustered::mean(&singles(&differences(original, reading)?))
}

/// Difference of two accuracies from the counts of paired items:
///
/// ```text
/// Δ = (c − b) / n,   se = √(b + c − (b − c)²/n) / n
/// ```
///
/// (Wald; Agresti, *Categorical Data Analysis*, section 11.1.) It is [`means`] of zeros and ones with n where that has n − 1. The
/// standard error is 0 where no item flips, which says nothing about other items: [`newcombe`] does.
///
/// # Errors
/// No items.
pub fn accuracies(changes: &Changes) -> Result<Estimate, PairedError> {
    let n = changes.items();
    if n == 0 {
        return Err(PairedError::Empty { what: "items" });
    }
    let (b, c, count) = (changes.lost as f64, changes.gained as f64, n as f64);
    let stderr = (b + c - (b - c).powi(2) / count).max(0.0).sqrt() / count;
    Ok(Estimate { value: (c - b) / count, stderr: Some(stderr), n, units: n })
}

/// Newcombe's interval of the difference of two paired accuracies (method 10 of R. G. Newcombe 1998, Statistics in
/// Medicine 17:2635–2650): Wilson's intervals of both, joined with their correlation.
///
/// With accuracies p₀ and p₁ of the original and the reading, their Wilson intervals [l₀, u₀] and [l₁, u₁], and
/// the fields a (both correct), b, c, d (both wrong),
///
/// ```text
/// low  = Δ − √((p₁ − l₁)² − 2φ (p₁ − l₁)(u₀ − p₀) + (u₀ − p₀)²)
/// high = Δ + √((u₁ − p₁)² − 2φ (u₁ − p₁)(p₀ − l₀) + (p₀ − l₀)²)
/// φ    = (ad − bc) / √((a+b)(c+d)(a+c)(b+d)),  ad − bc > 0 lessened by n/2, at least to 0;  0 where a factor is 0
/// ```
///
/// For few items or few flips, where the normal interval is too short: it keeps an extent where nothing flips.
///
/// # Errors
/// No items.
///
/// # Panics
/// If `confidence` is not between 0 and 1.
pub fn newcombe(changes: &Changes, confidence: f64) -> Result<Interval, PairedError> {
    let n = changes.items();
    let (before, after) = (changes.both_correct + changes.lost, changes.both_correct + changes.gained);
    let original = proportion::wilson(before, n, confidence)?;
    let reading = proportion::wilson(after, n, confidence)?;
    let (p0, p1) = (before as f64 / n as f64, after as f64 / n as f64);

    let [a, b, c, d] =
        [changes.both_correct, changes.lost, changes.gained, changes.both_wrong].map(|count| count as f64);
    let product = a * d - b * c;
    let corrected = if product > 0.0 { (product - n as f64 / 2.0).max(0.0) } else { product };
    let margins = (a + b) * (c + d) * (a + c) * (b + d);
    let phi = if margins == 0.0 { 0.0 } else { corrected / margins.sqrt() };

    let reach = |x: f64, y: f64| (x * x - 2.0 * phi * x * y + y * y).max(0.0).sqrt();
    let delta = p1 - p0;
    Ok(Interval {
        low: delta - reach(p1 - reading.low, original.high - p0),
        high: delta + reach(reading.high - p1, p0 - original.low),
    })
}

/// Mean over tasks, all of the same weight, as the average column of a table: se = √(Σ se²) / k. Without a standard
/// error where one task has none. Tasks must have no items in common.
///
/// # Errors
/// No tasks.
pub fn suite(tasks: &[Estimate]) -> Result<Estimate, PairedError> {
    if tasks.is_empty() {
        return Err(PairedError::Empty { what: "tasks" });
    }
    let k = tasks.len() as f64;
    let squares: Option<f64> = tasks.iter().map(|task| task.stderr.map(|stderr| stderr * stderr)).sum();
    Ok(Estimate {
        value: tasks.iter().map(|task| task.value).sum::<f64>() / k,
        stderr: squares.map(|squares| squares.sqrt() / k),
        n: tasks.iter().map(|task| task.n).sum(),
        units: tasks.iter().map(|task| task.units).sum(),
    })
}
