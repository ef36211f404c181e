//! Two readings of a text's windows, side by side, from the details of measurements: what reports and `quantscope compare`
//! say of perplexities, KL divergences and agreements.
//!
//! The unit is the window, or the document where a protocol scores documents. Only measurements of the same tokens are
//! paired.

use serde_json::Value;

use crate::paired::bootstrap::{self, Bootstrap, Ends, RESAMPLES};
use crate::paired::clustered::{self, Cluster};
use crate::paired::perplexity::{WindowLoss, window_differences};
use crate::paired::{CONFIDENCE, Estimate, Interval};
use crate::record::MeasurementResult;
use crate::report::paired_items::SEED;
use crate::report::table::{Cell, Digits};

/// The loss of every window of a perplexity.
pub fn losses(measured: &MeasurementResult) -> Option<Vec<WindowLoss>> {
    let means = numbers(measured, "window-losses")?;
    // Windows of one length have equally many scored tokens, and then no record of them.
    let tokens = numbers(measured, "window-tokens")
        .unwrap_or_else(|| vec![measured.n as f64 / means.len().max(1) as f64; means.len()]);
    let pairs = means.into_iter().zip(tokens);
    Some(pairs.map(|(mean, tokens)| WindowLoss { mean, tokens: tokens as u64 }).collect())
}

/// What every unit adds to a measurement against the original.
pub fn units(measured: &MeasurementResult) -> Option<Vec<Cluster>> {
    let pairs = numbers(measured, "unit-sums")?.into_iter().zip(numbers(measured, "unit-tokens")?);
    Some(pairs.map(|(sum, n)| Cluster { sum, n: n as u64 }).collect())
}

/// A list of numbers in a measurement's details.
fn numbers(measured: &MeasurementResult, key: &str) -> Option<Vec<f64>> {
    measured.detail.get(key)?.as_array()?.iter().map(Value::as_f64).collect()
}

/// A number in a measurement's details.
pub fn number(measured: &MeasurementResult, key: &str) -> Option<f64> {
    measured.detail.get(key)?.as_f64()
}

/// What each unit adds to the difference of two measurements of one metric: Δ log-perplexity of perplexities, else the
/// difference of the values themselves. Or why that cannot be said.
///
/// # Errors
/// Other tokens, or no record of windows.
pub fn differences(first: &MeasurementResult, second: &MeasurementResult) -> Result<Vec<Cluster>, String> {
    let hash = |m: &MeasurementResult| m.detail.get("token-hash").cloned();
    if hash(first).is_none() || hash(first) != hash(second) {
        return Err("is not compared: the two were not measured on the same tokens".to_owned());
    }
    if let (Some(first), Some(second)) = (losses(first), losses(second)) {
        return window_differences(&first, &second).map_err(|error| format!("is not compared: {error}"));
    }
    match (units(first), units(second)) {
        (Some(first), Some(second)) => excess(&second, &first).ok_or_else(|| {
            "is not compared: other tokens of some window were left out as not finite".to_owned()
        }),
        _ => Err("is not compared: no record of its windows".to_owned()),
    }
}

/// What each unit adds to reading − floor; none where they are not of the same tokens.
pub fn excess(reading: &[Cluster], floor: &[Cluster]) -> Option<Vec<Cluster>> {
    if reading.len() != floor.len() {
        return None;
    }
    let pairs = reading.iter().zip(floor);
    pairs.map(|(a, b)| (a.n == b.n).then_some(Cluster { sum: a.sum - b.sum, n: a.n })).collect()
}

/// A mean over units with its two intervals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delta {
    /// The mean, with the standard error clustered by unit.
    pub estimate: Estimate,
    /// Normal; none from a single unit.
    pub normal: Option<Interval>,
    /// Of the bootstrap, corrected for bias and skewness; none from a single unit.
    pub bootstrap: Option<Interval>,
}

impl Delta {
    /// Of the units; none where there are none.
    pub fn of(units: &[Cluster]) -> Option<Self> {
        let estimate = clustered::mean(units).ok()?;
        let how = Bootstrap { resamples: RESAMPLES, seed: SEED, ends: Ends::Corrected };
        let bootstrap = bootstrap::interval(units, CONFIDENCE, &how).ok();
        Some(Self { estimate, normal: estimate.interval(CONFIDENCE), bootstrap })
    }

    /// The mean ± standard error, and both intervals.
    pub fn cells(&self) -> [Cell; 3] {
        let ends = |interval: Option<Interval>| {
            interval.map_or(Cell::Missing, |i| Cell::Text(format!("{} to {}", end(i.low), end(i.high))))
        };
        let Estimate { value, stderr, .. } = self.estimate;
        let mean = Cell::Number { value, stderr, digits: Digits::Scaled(3) };
        [mean, ends(self.normal), ends(self.bootstrap)]
    }
}

/// An end of an interval: four decimals, or its power of ten where they would show too little of it.
fn end(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.1e}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::record::Reading;

    fn measured(detail: Value, n: u64) -> MeasurementResult {
        MeasurementResult {
            cell: "c".into(),
            reading: Reading::Quantized,
            metric: "perplexity/x".into(),
            version: 1,
            value: 1.0,
            stderr: None,
            n,
            detail: detail.as_object().cloned().unwrap_or_default(),
        }
    }

    #[test]
    fn losses_of_windows_pair_into_the_difference_of_log_perplexities() {
        let first = measured(json!({ "token-hash": "t", "window-losses": [1.0, 2.0, 3.0] }), 30);
        let second = measured(json!({ "token-hash": "t", "window-losses": [1.5, 2.0, 3.7] }), 30);
        let delta = Delta::of(&differences(&first, &second).unwrap()).unwrap();
        assert!((delta.estimate.value - 0.4).abs() < 1e-12);
        // 0.5, 0 and 0.7 have variance 0.13; over 3 windows.
        assert!((delta.estimate.stderr.unwrap() - (0.13f64 / 3.0).sqrt()).abs() < 1e-12);
        let itself = Delta::of(&differences(&first, &first).unwrap()).unwrap();
        assert_eq!((itself.estimate.value, itself.estimate.p_value()), (0.0, Some(1.0)));
        let other = measured(json!({ "token-hash": "u", "window-losses": [1.0, 2.0, 3.0] }), 30);
        assert!(differences(&first, &other).unwrap_err().contains("same tokens"));
    }

    #[test]
    fn documents_keep_their_weight() {
        let detail =
            |losses: Value| json!({ "token-hash": "t", "window-losses": losses, "window-tokens": [10, 30] });
        let first = measured(detail(json!([1.0, 1.0])), 40);
        let second = measured(detail(json!([2.0, 1.0])), 40);
        let delta = Delta::of(&differences(&first, &second).unwrap()).unwrap();
        assert_eq!((delta.estimate.value, delta.estimate.n, delta.estimate.units), (0.25, 40, 2));
    }
}
