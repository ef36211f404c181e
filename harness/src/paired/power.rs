//! What a paired comparison can see: minimum detectable effect, power, items needed.
//!
//! Before a difference is believed or dismissed: could this task have shown it at all? With m paired items of which a
//! share ρ is discordant (only one reading has them right), the difference of accuracies has variance (ρ − Δ²) / m. See
//! "Paired-MDE budget for 4-bit quantization benchmarks", arXiv:2605.28873, and R. J. Connor (1987), doi:10.2307/2531961.

use super::{PairedError, normal};

/// Level of tests in tables.
pub const ALPHA: f64 = 0.05;
/// Power that a minimum detectable effect is stated for.
pub const POWER: f64 = 0.8;

/// Minimum detectable effect: the difference of accuracies, as a share, that a two-sided test at level `alpha` finds with
/// probability `power`,
///
/// ```text
/// MDE = (z_{1−α/2} + z_power) √(ρ / m)
/// ```
///
/// An upper bound, since it puts the variance under no difference, ρ, for ρ − Δ². It may exceed the discordance rate,
/// which no difference can: then no difference is detectable at this rate. 0 at rate 0.
///
/// # Errors
/// No items, or a rate, level or power out of range.
pub fn minimum_detectable_effect(
    items: u64,
    discordance: f64,
    alpha: f64,
    power: f64,
) -> Result<f64, PairedError> {
    let m = checked(items, discordance)?;
    Ok(z_sum(alpha, power)? * (discordance / m).sqrt())
}

/// The same for two independent samples of `items` items each and accuracy p: (z_{1−α/2} + z_power) √(2 p (1 − p) / m).
/// Only to show what pairing gains.
///
/// # Errors
/// No items, or an accuracy, level or power out of range.
pub fn minimum_detectable_effect_unpaired(
    items: u64,
    accuracy: f64,
    alpha: f64,
    power: f64,
) -> Result<f64, PairedError> {
    let m = checked(items, accuracy)?;
    Ok(z_sum(alpha, power)? * (2.0 * accuracy * (1.0 - accuracy) / m).sqrt())
}

/// Probability that a difference Δ is found by McNemar's test at level `alpha`, by the normal approximation
///
/// ```text
/// Φ((|Δ| √m − z_{1−α/2} √ρ) / √(ρ − Δ²))
/// ```
///
/// (Connor 1987). The exact test finds somewhat less where few items are discordant; `docs/statistics.md` has numbers.
///
/// # Errors
/// No items, a rate or level out of range, or a difference that the rate does not allow.
pub fn power(items: u64, discordance: f64, difference: f64, alpha: f64) -> Result<f64, PairedError> {
    let m = checked(items, discordance)?;
    let z = upper("the level of a test", alpha, 0.5)?;
    let size = difference.abs();
    // NaN is in no range, and so refused, too.
    if !(0.0..=discordance).contains(&size) {
        let range = "at most the discordance rate, in size";
        return Err(PairedError::OutOfRange { what: "the difference", value: difference, range });
    }
    let spread = (discordance - size * size).sqrt();
    let reach = size * m.sqrt() - z * discordance.sqrt();
    Ok(if spread > 0.0 {
        normal::cdf(reach / spread)
    } else {
        // No spread: nothing discordant, or everything in one direction.
        f64::from(u8::from(discordance > 0.0 && reach > 0.0))
    })
}

/// Items needed to detect a difference: the least m with MDE ≤ |Δ|.
///
/// # Errors
/// A difference of 0, or a rate, level or power out of range.
pub fn items_needed(difference: f64, discordance: f64, alpha: f64, power: f64) -> Result<u64, PairedError> {
    checked(1, discordance)?;
    if !(difference.abs() > 0.0 && difference.abs() <= 1.0) {
        let range = "between −1 and 1, and not 0";
        return Err(PairedError::OutOfRange { what: "the difference", value: difference, range });
    }
    Ok((z_sum(alpha, power)?.powi(2) * discordance / (difference * difference)).ceil().max(1.0) as u64)
}

fn checked(items: u64, rate: f64) -> Result<f64, PairedError> {
    if items == 0 {
        return Err(PairedError::Empty { what: "items" });
    }
    if !(0.0..=1.0).contains(&rate) {
        return Err(PairedError::OutOfRange { what: "the rate", value: rate, range: "between 0 and 1" });
    }
    Ok(items as f64)
}

fn z_sum(alpha: f64, power: f64) -> Result<f64, PairedError> {
    Ok(upper("the level of a test", alpha, 0.5)? + upper("the complement of the power", 1.0 - power, 1.0)?)
}

/// The normal quantile above which `share · p` lies.
fn upper(what: &'static str, p: f64, share: f64) -> Result<f64, PairedError> {
    if !(p > 0.0 && p < 1.0) {
        return Err(PairedError::OutOfRange { what, value: p, range: "strictly between 0 and 1" });
    }
    Ok(-normal::quantile(share * p))
}
