//! A chart of bands: one row for each thing compared, a mark for each series in it, values along a horizontal axis.
//!
//! Things are rows and not columns because their names are long and the reader should not turn the head.

use super::palette;
use super::scale::ValueAxis;
use super::sheet::{DASH, DROP, MARGIN, RADIUS, STROKE, Sample, Sheet, TEXT, WIDTH};
use super::{Anchor, Colour, Dash, Drawing, elide, text_width};
use crate::report::metric;

/// Vertical room of one series within a band, of its outlines below it, and the air that a band has besides.
const LANE: f64 = 11.0;
const OUTLINE: f64 = 10.0;
const AIR: f64 = 15.0;
/// Most room that the names of bands may take.
const NAMES: f64 = 0.42 * WIDTH;

/// A value of a series in a band.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Index of the band.
    pub band: usize,
    /// Index of the series.
    pub series: usize,
    /// The value and the ends of its 95 % interval.
    pub interval: (f64, f64, f64),
    /// Whether it is drawn as an outline.
    pub hollow: bool,
}

/// What is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Bands {
    /// Above everything.
    pub title: String,
    /// One below the other.
    pub bands: Vec<String>,
    /// What a colour and form stand for.
    pub series: Vec<String>,
    /// Values.
    pub points: Vec<Point>,
    /// A dashed line each: whose it is, by index of the series, and where; grey if it is of all.
    pub lines: Vec<(Option<usize>, f64)>,
    /// What an outline stands for, if there is one.
    pub hollow: Option<String>,
    /// What a dashed line stands for.
    pub dashed: String,
    /// Full id of the metric along the axis.
    pub metric: String,
}

/// `perplexity (lower is better)`: how a metric is called along an axis, and how the axis is divided.
pub fn axis_name(id: &str, axis: &ValueAxis) -> String {
    let direction = metric::direction(id).words().map_or(String::new(), |words| format!(" ({words})"));
    format!("{}{}{direction}", metric::split(id).0, axis.words())
}

impl Bands {
    /// The chart.
    pub fn draw(&self, stem: String, caption: String) -> Drawing {
        let mut sheet = Sheet::default();
        let names: Vec<String> = self.bands.iter().map(|name| elide(name, TEXT, NAMES)).collect();
        let widest = names.iter().map(|name| text_width(name, TEXT)).fold(0.0, f64::max);
        let (left, right) = (MARGIN + widest + 10.0, WIDTH - MARGIN - 8.0);
        let ends =
            self.points.iter().flat_map(|point| [point.interval.0, point.interval.1, point.interval.2]);
        let values: Vec<f64> = ends.chain(self.lines.iter().map(|line| line.1)).collect();
        let axis = ValueAxis::around(&values, left, right);
        // An interval that its mark would hide is not drawn.
        let visible = |(_, value, high): (f64, f64, f64)| axis.place(high) - axis.place(value) > RADIUS + 1.0;
        let top = sheet.head(&self.title, &self.legend(visible)) + 8.0;
        let lane = if self.points.iter().any(|point| point.hollow) { LANE + OUTLINE } else { LANE };
        let height = lane * self.series.len() as f64 + AIR;
        let bottom = top + height * self.bands.len() as f64;

        for i in (0..self.bands.len()).step_by(2) {
            let (from, to) = (top + height * i as f64, top + height * (i + 1) as f64);
            sheet.shapes.push(super::Shape::Fill {
                from: (left, from),
                to: (right, to),
                colour: Colour::BAND,
            });
        }
        for tick in axis.ticks(TEXT) {
            let x = tick.position;
            match tick.label {
                Some(label) => {
                    sheet.line((x, top), (x, bottom + 5.0), Colour::GRID, 1.0, None);
                    sheet.text((x, bottom + 8.0 + TEXT), &label, TEXT, Anchor::Middle, Colour::INK);
                }
                None => sheet.line((x, top), (x, bottom), Colour::MINOR_GRID, 1.0, None),
            }
        }
        sheet.line((left, bottom), (right, bottom), Colour::GREY, 1.0, None);
        for (i, name) in names.iter().enumerate() {
            let middle = top + height * (i as f64 + 0.5);
            sheet.text((left - 10.0, middle + DROP), name, TEXT, Anchor::End, Colour::INK);
        }
        for (i, (series, value)) in self.lines.iter().enumerate() {
            let colour = series.map_or(Colour::GREY, |series| palette::series(series).0);
            let x = axis.place(*value);
            // Phases differ, so that lines at one place show all their colours.
            let phase = (DASH.on + DASH.off) * i as f64 / self.lines.len() as f64;
            sheet.line((x, top), (x, bottom), colour, STROKE, Some(Dash { phase, ..DASH }));
        }
        for point in &self.points {
            let first = top + height * point.band as f64 + AIR / 2.0 + lane * point.series as f64;
            let y = if point.hollow { first + LANE + OUTLINE / 2.0 - 1.0 } else { first + LANE / 2.0 };
            let (colour, form) = palette::series(point.series);
            let (low, value, high) = point.interval;
            if visible(point.interval) {
                sheet.bar(axis.place(low), axis.place(high), y, colour);
            }
            if point.hollow {
                sheet.hollow((axis.place(value), y), form, colour);
            } else {
                sheet.mark((axis.place(value), y), form, colour);
            }
        }
        let (first, second) = (bottom + 28.0 + TEXT, bottom + 33.0 + 2.0 * TEXT);
        sheet.centred(left, right, first, &axis_name(&self.metric, &axis), Colour::INK);
        sheet.centred(left, right, second, &self.metric, Colour::GREY);
        let height = (second + 0.24 * TEXT + MARGIN).ceil();
        Drawing { stem, caption, width: WIDTH, height, shapes: sheet.shapes }
    }

    fn legend(&self, visible: impl Fn((f64, f64, f64)) -> bool) -> Vec<(Sample, Colour, String)> {
        let series = self.series.iter().enumerate().map(|(i, name)| {
            let (colour, form) = palette::series(i);
            (Sample::Mark(form), colour, name.clone())
        });
        let mut entries: Vec<_> = series.collect();
        if let Some(hollow) = self.hollow.as_ref().filter(|_| self.points.iter().any(|point| point.hollow)) {
            entries.push((Sample::Hollow(super::Mark::Circle), Colour::GREY, hollow.clone()));
        }
        if !self.lines.is_empty() {
            entries.push((Sample::Dashes, Colour::GREY, self.dashed.clone()));
        }
        if self.points.iter().any(|point| visible(point.interval)) {
            entries.push((Sample::Bar, Colour::GREY, "95 % interval".to_owned()));
        }
        entries
    }
}
