//! Axes: which numbers stand along them.

use super::text_width;

/// A logarithmic axis between two positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogAxis {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

/// A line of the grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where it crosses the axis, in points.
    pub position: f64,
    /// The number below it; `None` for a line of the minor grid.
    pub label: Option<String>,
}

impl LogAxis {
    /// An axis from `start` to `end` (points) that holds all `values`, which must be positive and finite, with some air
    /// at both ends. Values that are all alike still get a factor of 1.5.
    pub fn around(values: impl IntoIterator<Item = f64>, start: f64, end: f64) -> Self {
        let (low, high) = values.into_iter().fold((f64::MAX, f64::MIN), |(l, h), v| (v.min(l), v.max(h)));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low, high) };
        let (middle, least) = ((low.ln() + high.ln()) / 2.0, 1.5f64.ln());
        let half = ((high.ln() - low.ln()) * 1.08).max(least) / 2.0;
        LogAxis { low: (middle - half).exp(), high: (middle + half).exp(), start, end }
    }

    /// Where a value stands.
    pub fn place(&self, value: f64) -> f64 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.start + share * (self.end - self.start)
    }

    /// The grid: the densest of the usual steps whose numbers, written at this font size, keep apart by one em.
    ///
    /// Steps within a decade are 1 … 9, then 1, 2, 5, then 1, 3, then 1, then every second, third … decade. On an axis
    /// shorter than a factor of four these are too coarse, and evenly spaced round numbers look even.
    pub fn ticks(&self, size: f64) -> Vec<Tick> {
        self.grid(&|label| text_width(label, size), size)
    }

    /// [`LogAxis::ticks`] of an axis that stands upright: numbers stand above one another, half a line apart, and minor
    /// lines closer than 3 points are left out.
    pub fn upright_ticks(&self, size: f64) -> Vec<Tick> {
        let mut ticks = self.grid(&|_| size, 0.5 * size);
        let mut positions: Vec<f64> = ticks.iter().map(|tick| tick.position).collect();
        positions.sort_by(f64::total_cmp);
        if positions.windows(2).any(|pair| pair[1] - pair[0] < 3.0) {
            ticks.retain(|tick| tick.label.is_some());
        }
        ticks
    }

    /// The grid of numbers that are as long along the axis as `extent` says and keep `gap` apart.
    fn grid(&self, extent: &dyn Fn(&str) -> f64, gap: f64) -> Vec<Tick> {
        let fits = |values: &[f64]| self.fits(values, extent, gap);
        let (major, minor) =
            if self.high / self.low < 4.0 { self.even_grid(&fits) } else { self.decade_grid(&fits) };
        let apart = |value: &f64| !major.iter().any(|major| (value / major - 1.0).abs() < 1e-9);
        let minor =
            minor.into_iter().filter(apart).map(|value| Tick { position: self.place(value), label: None });
        let label = |&value: &f64| Tick { position: self.place(value), label: Some(self.label(value)) };
        minor.chain(major.iter().map(label)).collect()
    }

    /// Numbers and lines between them, evenly spaced.
    fn even_grid(&self, fits: &dyn Fn(&[f64]) -> bool) -> (Vec<f64>, Vec<f64>) {
        let mut exponent = (self.high - self.low).log10().floor() as i32 - 2;
        loop {
            // Half of 1 and 2, a fifth of 5: lines between the numbers fall on round numbers too.
            for (step, parts) in [(1.0, 2.0), (2.0, 2.0), (5.0, 5.0)] {
                let step = decimal(step, exponent);
                let values = self.evenly(step);
                if fits(&values) {
                    return (values, self.evenly(step / parts));
                }
            }
            exponent += 1;
        }
    }

    /// Numbers and lines between them, at equal steps of every decade.
    fn decade_grid(&self, fits: &dyn Fn(&[f64]) -> bool) -> (Vec<f64>, Vec<f64>) {
        let all = &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0][..];
        let minor = if self.high / self.low < 1e7 { self.decades(all, 1) } else { self.decades(&[1.0], 1) };
        let steps = [all, &[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
        let within = steps.iter().map(|steps| self.decades(steps, 1));
        let beyond = (2..100).map(|every| self.decades(&[1.0], every));
        let major = within.chain(beyond).find(|values| fits(values)).unwrap_or_default();
        (major, minor)
    }

    /// These steps of every decade whose exponent `every` divides.
    fn decades(&self, steps: &[f64], every: i32) -> Vec<f64> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        (first..=last)
            .filter(|exponent| exponent % every == 0)
            .flat_map(|exponent| steps.iter().map(move |step| decimal(*step, exponent)))
            .filter(|value| (self.low..=self.high).contains(value))
            .collect()
    }

    fn evenly(&self, step: f64) -> Vec<f64> {
        let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
        (first..=last).map(|i| i as f64 * step).collect()
    }

    /// A number as plain digits without noise, `0.3`, `17.5`, `20000`; on an axis that reaches a million, thousands and
    /// more as powers of ten, `10³`, `3·10⁶`; so are values below 1 on an axis that reaches down to a thousandth.
    fn label(&self, value: f64) -> String {
        if (self.high >= 1e6 && value >= 1e3) || (self.low <= 1e-3 && value < 0.999) {
            let exponent = (value.log10() + 1e-9).floor() as i32;
            let mantissa = (value / 10f64.powi(exponent)).round();
            let raised = exponent.to_string().chars().map(superscript).collect::<String>();
            return if mantissa == 1.0 { format!("10{raised}") } else { format!("{mantissa}·10{raised}") };
        }
        let text = format!("{value:.9}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }

    fn fits(&self, values: &[f64], extent: &dyn Fn(&str) -> f64, gap: f64) -> bool {
        values.windows(2).all(|pair| {
            let (one, other) = (extent(&self.label(pair[0])), extent(&self.label(pair[1])));
            (self.place(pair[1]) - self.place(pair[0])).abs() >= (one + other) / 2.0 + gap
        })
    }
}

/// An axis with a place for each of a model's blocks, numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockAxis {
    /// Blocks.
    pub count: u32,
    /// Where block 0 begins, in points.
    pub start: f64,
    /// Where the last block ends.
    pub end: f64,
}

impl BlockAxis {
    /// Room of one block.
    pub fn step(&self) -> f64 {
        (self.end - self.start) / f64::from(self.count.max(1))
    }

    /// The middle of a block.
    pub fn place(&self, block: u32) -> f64 {
        self.start + self.step() * (f64::from(block) + 0.5)
    }

    /// Blocks and the numbers below them: every one, or every second, fifth, tenth … so that the numbers keep apart.
    pub fn ticks(&self, size: f64) -> Vec<Tick> {
        let room = text_width(&self.count.to_string(), size) + 0.6 * size;
        let steps = (0..9).flat_map(|exponent| [1, 2, 5].map(|step| step * 10u32.pow(exponent)));
        let every =
            steps.into_iter().find(|every| f64::from(*every) * self.step() >= room).unwrap_or(u32::MAX);
        let tick = |block: u32| Tick { position: self.place(block), label: Some(block.to_string()) };
        (0..self.count).step_by(every as usize).map(tick).collect()
    }
}

/// `step · 10^exponent`, rounded as the decimal would be: 3·10⁻¹ is 0.3.
fn decimal(step: f64, exponent: i32) -> f64 {
    if exponent < 0 { step / 10f64.powi(-exponent) } else { step * 10f64.powi(exponent) }
}

fn superscript(digit: char) -> char {
    const RAISED: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    digit.to_digit(10).map_or('⁻', |digit| RAISED[digit as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, width: f64) -> Vec<String> {
        LogAxis::around([low, high], 0.0, width)
            .ticks(12.0)
            .into_iter()
            .filter_map(|tick| tick.label)
            .collect()
    }

    #[test]
    fn steps_are_one_two_five_and_coarser_when_there_is_no_room() {
        assert_eq!(labels(3.0, 900.0, 400.0), ["5", "10", "20", "50", "100", "200", "500", "1000"]);
        assert_eq!(
            labels(3.0, 9e4, 600.0),
            ["3", "10", "30", "100", "300", "1000", "3000", "10000", "30000", "100000"]
        );
        assert_eq!(labels(3.0, 9e4, 300.0), ["10", "100", "1000", "10000", "100000"]);
        assert_eq!(labels(3.0, 3e6, 400.0), ["10", "100", "10³", "10⁴", "10⁵", "10⁶"]);
        assert_eq!(labels(500.0, 2e4, 300.0), ["500", "1000", "2000", "5000", "10000", "20000"]);
        assert_eq!(labels(3.0, 3e30, 200.0), ["1", "10⁶", "10¹²", "10¹⁸", "10²⁴", "10³⁰"]);
    }

    #[test]
    fn a_short_axis_has_even_steps() {
        assert_eq!(labels(17.0, 19.5, 500.0), ["15", "16", "17", "18", "19", "20", "21", "22"]);
        assert_eq!(labels(5.47, 5.47, 200.0), ["4.5", "5", "5.5", "6", "6.5"]);
        assert!(labels(0.0101, 0.0109, 500.0).len() >= 3);
    }

    #[test]
    fn values_stand_inside_and_in_proportion() {
        let axis = LogAxis::around([3.0, 3000.0], 100.0, 400.0);
        assert!(axis.place(3.0) > 100.0 && axis.place(3000.0) < 400.0);
        let (a, b, c) = (axis.place(10.0), axis.place(100.0), axis.place(1000.0));
        assert!((b - a - (c - b)).abs() < 1e-9);
        assert!(axis.ticks(12.0).iter().all(|tick| (100.0..=400.0).contains(&tick.position)));
    }

    #[test]
    fn an_upright_axis_has_numbers_one_above_the_other() {
        let labels = |low, high, height: f64| -> Vec<String> {
            let axis = LogAxis::around([low, high], height, 0.0);
            axis.upright_ticks(12.0).into_iter().filter_map(|tick| tick.label).collect()
        };
        assert_eq!(labels(3.0, 900.0, 150.0), ["3", "10", "30", "100", "300", "1000"]);
        assert_eq!(labels(3e-8, 0.5, 150.0), ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]);
        assert!(labels(5.0, 5.0, 100.0).len() > 2);
    }

    #[test]
    fn blocks_are_numbered_from_zero_with_room_between_the_numbers() {
        let numbers = |count, width| -> Vec<String> {
            let axis = BlockAxis { count, start: 10.0, end: 10.0 + width };
            axis.ticks(12.0).into_iter().filter_map(|tick| tick.label).collect()
        };
        assert_eq!(numbers(3, 300.0), ["0", "1", "2"]);
        assert_eq!(numbers(30, 300.0), ["0", "5", "10", "15", "20", "25"]);
        assert!(numbers(0, 300.0).is_empty());
        let axis = BlockAxis { count: 4, start: 100.0, end: 180.0 };
        assert_eq!((axis.place(0), axis.place(3)), (110.0, 170.0));
    }
}
