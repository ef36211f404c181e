//! Scales: what an axis does with values that a logarithm cannot show.

use super::axis::{LogAxis, Tick};
use super::text_width;

/// An evenly divided axis between two positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearAxis {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl LinearAxis {
    /// An axis from `start` to `end` (points) that holds all `values`, which must be finite, with some air at both ends.
    pub fn around(values: impl IntoIterator<Item = f64>, start: f64, end: f64) -> Self {
        let (low, high) = values.into_iter().fold((f64::MAX, f64::MIN), |(l, h), v| (v.min(l), v.max(h)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        // Values that are all alike must not look far apart.
        let least = 0.05 * low.abs().max(high.abs()).max(1e-9);
        let (middle, half) = ((low + high) / 2.0, ((high - low) * 1.08).max(least) / 2.0);
        LinearAxis { low: middle - half, high: middle + half, start, end }
    }

    /// Where a value stands.
    pub fn place(&self, value: f64) -> f64 {
        self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
    }

    /// The grid: the densest of the steps 1, 2, 5 · 10ⁿ whose numbers, written at this font size, keep apart by one em.
    pub fn ticks(&self, size: f64) -> Vec<Tick> {
        let mut exponent = (self.high - self.low).log10().floor() as i32 - 2;
        loop {
            for step in [1.0, 2.0, 5.0] {
                let (first, last) = (
                    (self.low / scaled(step, exponent)).ceil() as i64,
                    (self.high / scaled(step, exponent)).floor() as i64,
                );
                let ticks: Vec<Tick> = (first..=last)
                    .map(|i| scaled(i as f64 * step, exponent))
                    .map(|value| Tick { position: self.place(value), label: Some(number(value)) })
                    .collect();
                if ticks.windows(2).all(|pair| {
                    let widths =
                        pair.iter().flat_map(|tick| &tick.label).map(|label| text_width(label, size));
                    pair[1].position - pair[0].position >= widths.sum::<f64>() / 2.0 + size
                }) {
                    return ticks;
                }
            }
            exponent += 1;
        }
    }
}

/// `step · 10^exponent`, rounded as the decimal would be.
fn scaled(step: f64, exponent: i32) -> f64 {
    if exponent < 0 { step / 10f64.powi(-exponent) } else { step * 10f64.powi(exponent) }
}

fn number(value: f64) -> String {
    let text = format!("{value:.9}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// An axis for measured values: logarithmic where they span more than a factor of ten, else evenly divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueAxis {
    /// Logarithmic.
    Log(LogAxis),
    /// Evenly divided.
    Linear(LinearAxis),
}

impl ValueAxis {
    /// An axis from `start` to `end` (points) around finite values.
    pub fn around(values: &[f64], start: f64, end: f64) -> Self {
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (v.min(l), v.max(h)));
        if low > 0.0 && high > 10.0 * low {
            ValueAxis::Log(LogAxis::around(values.iter().copied(), start, end))
        } else {
            ValueAxis::Linear(LinearAxis::around(values.iter().copied(), start, end))
        }
    }

    /// Where a value stands.
    pub fn place(&self, value: f64) -> f64 {
        match self {
            ValueAxis::Log(axis) => axis.place(value),
            ValueAxis::Linear(axis) => axis.place(value),
        }
    }

    /// Lines of the grid.
    pub fn ticks(&self, size: f64) -> Vec<Tick> {
        match self {
            ValueAxis::Log(axis) => axis.ticks(size),
            ValueAxis::Linear(axis) => axis.ticks(size),
        }
    }

    /// `, logarithmic` or nothing: what the axis' name must say.
    pub fn words(&self) -> &'static str {
        match self {
            ValueAxis::Log(_) => ", logarithmic",
            ValueAxis::Linear(_) => "",
        }
    }
}

/// A logarithmic axis with a place of its own for 0 and one for ∞, each beyond a gap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EndedAxis {
    zero: Option<f64>,
    log: LogAxis,
    /// Both ends of the logarithmic part.
    span: (f64, f64),
    infinity: Option<f64>,
}

/// Between the place of an end and the logarithmic part.
const GAP: f64 = 26.0;
/// Between the place of an end and the end of the axis.
const EDGE: f64 = 14.0;

impl EndedAxis {
    /// An axis from `start` to `end` (points) around values of 0 … ∞.
    pub fn around(values: &[f64], start: f64, end: f64) -> Self {
        let zero = values.contains(&0.0).then_some(start + EDGE);
        let infinity = values.iter().any(|value| value.is_infinite()).then_some(end - EDGE);
        let span = (zero.map_or(start, |at| at + GAP), infinity.map_or(end, |at| at - GAP));
        let inner = values.iter().copied().filter(|value| *value > 0.0 && value.is_finite());
        EndedAxis { zero, log: LogAxis::around(inner, span.0, span.1), span, infinity }
    }

    /// Where a value stands; ends have their places only if some value is there.
    pub fn place(&self, value: f64) -> f64 {
        if value.is_infinite() {
            self.infinity.unwrap_or(self.span.1)
        } else if value <= 0.0 {
            self.zero.unwrap_or(self.span.0)
        } else {
            self.log.place(value)
        }
    }

    /// Lines of the grid, those of the ends first.
    pub fn ticks(&self, size: f64) -> Vec<Tick> {
        let end = |at: Option<f64>, label: &str| {
            at.map(|position| Tick { position, label: Some(label.to_owned()) })
        };
        let mut ticks: Vec<Tick> = end(self.zero, "0").into_iter().chain(end(self.infinity, "∞")).collect();
        ticks.extend(self.log.ticks(size));
        ticks
    }

    /// Both ends of the logarithmic part.
    pub fn span(&self) -> (f64, f64) {
        self.span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Vec<Tick>) -> Vec<String> {
        ticks.into_iter().filter_map(|tick| tick.label).collect()
    }

    #[test]
    fn an_even_axis_has_round_numbers() {
        let axis = LinearAxis::around([0.0, 1.0], 0.0, 300.0);
        assert_eq!(labels(axis.ticks(12.0)), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        let axis = LinearAxis::around([-3.0, 20.0], 0.0, 200.0);
        assert_eq!(labels(axis.ticks(12.0)), ["0", "5", "10", "15", "20"]);
        assert!((axis.place(20.0) - axis.place(10.0) - (axis.place(10.0) - axis.place(0.0))).abs() < 1e-9);
    }

    #[test]
    fn values_choose_their_axis() {
        assert_eq!(ValueAxis::around(&[2.0, 19.0], 0.0, 1.0).words(), "");
        assert_eq!(ValueAxis::around(&[2.0, 21.0], 0.0, 1.0).words(), ", logarithmic");
        assert_eq!(ValueAxis::around(&[0.0, 21.0], 0.0, 1.0).words(), "");
    }

    #[test]
    fn ends_stand_outside_of_the_logarithm() {
        let axis = EndedAxis::around(&[0.0, 2.0, 200.0, f64::INFINITY], 100.0, 500.0);
        let places = [0.0, 2.0, 200.0, f64::INFINITY].map(|value| axis.place(value));
        assert!(places.is_sorted() && places[0] > 100.0 && places[3] < 500.0);
        assert!(places[1] - places[0] >= GAP && places[3] - places[2] >= GAP);
        assert_eq!(labels(axis.ticks(12.0))[..2], ["0", "∞"]);
        let bounded = EndedAxis::around(&[2.0, 200.0], 100.0, 500.0);
        assert_eq!(bounded.span(), (100.0, 500.0));
    }
}
