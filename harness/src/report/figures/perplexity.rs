//! `perplexity`: the perplexity of every recipe and model, one drawing for each protocol.
//!
//! A row is a recipe (and its calibration set, where there are several), a mark is a model and seed, the axis is
//! logarithmic. Recipes and models of which nothing was run yet are left out. A dashed line is the model's original, a thin
//! bar the 95 % interval of the value. Recipes are rows and not columns because their names are long and the reader should not
//! turn the head.
//!
//! # Equation
//! interval = ppl · exp(±1.96 · stderr / ppl): the interval of the mean loss, which is what is nearly normal. One that
//! its mark would hide is not drawn.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::drawing::axis::LogAxis;
use crate::report::drawing::{Anchor, Colour, Dash, Drawing, Mark, Point, Shape, elide, palette, text_width};
use crate::report::metric;
use crate::report::pivot::{distinct, is_final, row_key, row_keys};
use crate::report::rows::{self, ORIGINAL, Outcome, Row};

/// See the module.
pub struct Perplexity;

impl Figure for Perplexity {
    fn name(&self) -> &'static str {
        "perplexity"
    }

    fn about(&self) -> &'static str {
        "perplexity of every recipe and model"
    }

    fn applies(&self, contents: &Contents) -> bool {
        !metrics(contents).is_empty()
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let rows = rows::rows(contents);
        let drawings = metrics(contents).into_iter().map(|metric| {
            let rows = rows.iter().filter(|row| row.metric == metric && is_final(row));
            Chart::of(rows.copied().collect()).draw(metric)
        });
        Ok(drawings.collect())
    }
}

/// The metric ids of the plan that this figure shows.
fn metrics(contents: &Contents) -> Vec<&str> {
    rows::metrics(contents).into_iter().filter(|id| metric::split(id).0 == "perplexity").collect()
}

/// Two-sided 95 % quantile of the normal distribution.
const Z95: f64 = 1.96;

// Lengths in points.
const WIDTH: f64 = 800.0;
const MARGIN: f64 = 16.0;
const TITLE: f64 = 15.0;
const TEXT: f64 = 12.0;
/// From the middle of a line of text down to its baseline: half of the height of a capital.
const DROP: f64 = 0.36 * TEXT;
/// Vertical room of one model within a band, and the air that a band has besides.
const LANE: f64 = 11.0;
const AIR: f64 = 15.0;
/// Most room that the names of bands may take.
const NAMES: f64 = 0.36 * WIDTH;
const RADIUS: f64 = 4.0;
const STROKE: f64 = 1.5;
const DASH: Dash = Dash { on: 5.0, off: 3.0, phase: 0.0 };

/// What is shown, and where.
struct Chart<'a> {
    rows: Vec<Row<'a>>,
    models: Vec<&'a str>,
    /// One below the other: recipe and calibration.
    bands: Vec<(&'a str, Option<&'a str>)>,
    /// Whether some interval is longer than its mark.
    bars: bool,
    shapes: Vec<Shape>,
}

/// Where the plot itself stands.
struct Plot {
    left: f64,
    right: f64,
    /// Middle and end of the strip to the right of the plot where failed cells stand, if there are any.
    strip: Option<(f64, f64)>,
    top: f64,
    band: f64,
    bottom: f64,
    axis: LogAxis,
}

impl<'a> Chart<'a> {
    fn of(rows: Vec<Row<'a>>) -> Self {
        // What was not run yet is told of in the tables; where nothing was, the figure shows what will be.
        let run: Vec<Row> =
            rows.iter().filter(|row| !matches!(row.outcome, Outcome::Missing)).copied().collect();
        let shown = if run.is_empty() { &rows } else { &run };
        let models = distinct(shown.iter().map(|row| row.cell.model.as_str()));
        let mut bands = distinct(row_keys(shown).into_iter().map(|key| (key.0, key.1)));
        // The original is a line across all bands; alone, it is a band.
        if bands.iter().any(|band| band.0 != ORIGINAL) {
            bands.retain(|band| band.0 != ORIGINAL);
        }
        let mut chart = Chart { rows, models, bands, bars: false, shapes: Vec::new() };
        // How long an interval is does not depend on how far down the plot begins.
        let axis = chart.place(0.0).axis;
        chart.bars = chart.rows.iter().filter_map(interval).any(|interval| is_visible(interval, &axis));
        chart
    }

    fn draw(mut self, metric: &str) -> Drawing {
        self.text((MARGIN, MARGIN + TITLE), "Perplexity by recipe", TITLE, Anchor::Start, Colour::INK);
        let legend_end = self.legend(MARGIN + TITLE + 10.0);
        let plot = self.place(legend_end + 8.0);
        self.grid(&plot);
        self.originals(&plot);
        self.marks(&plot);
        let end = self.name_axis(metric, &plot);
        Drawing {
            stem: file_stem(metric),
            caption: self.caption(metric),
            width: WIDTH,
            height: (end + MARGIN).ceil(),
            shapes: self.shapes,
        }
    }

    fn has_lines(&self) -> bool {
        self.bands.iter().all(|band| band.0 != ORIGINAL)
    }

    fn has_failures(&self) -> bool {
        self.rows.iter().any(is_failed)
    }

    /// Lays the legend out in lines from `y` down and returns where the last one ends.
    fn legend(&mut self, mut y: f64) -> f64 {
        const SAMPLE: f64 = 24.0;
        const GAP: f64 = 20.0;
        const LINE: f64 = 18.0;
        enum Sample {
            Mark(Mark),
            Dashes,
            Bar,
        }
        let models = self.models.iter().enumerate().map(|(i, model)| {
            let (colour, form) = palette::series(i);
            (Sample::Mark(form), colour, *model)
        });
        let mut entries: Vec<(Sample, Colour, &str)> = models.collect();
        if self.has_lines() {
            entries.push((Sample::Dashes, Colour::GREY, "original"));
        }
        if self.bars {
            entries.push((Sample::Bar, Colour::GREY, "95 % interval"));
        }
        let mut x = MARGIN;
        for (sample, colour, name) in entries {
            let name = elide(name, TEXT, WIDTH - 2.0 * MARGIN - SAMPLE);
            let width = SAMPLE + text_width(&name, TEXT);
            if x > MARGIN && x + width > WIDTH - MARGIN {
                x = MARGIN;
                y += LINE;
            }
            let middle = y + LINE / 2.0;
            match sample {
                Sample::Mark(form) => self.mark((x + 9.0, middle), form, colour),
                Sample::Dashes => self.line((x, middle), (x + 18.0, middle), colour, STROKE, Some(DASH)),
                Sample::Bar => self.bar(x, x + 18.0, middle, colour),
            }
            self.text((x + SAMPLE, middle + DROP), &name, TEXT, Anchor::Start, Colour::INK);
            x += width + GAP;
        }
        y + LINE
    }

    /// Where the plot stands if it begins at `top`, so that all names fit beside it.
    fn place(&self, top: f64) -> Plot {
        let names = self.names().iter().map(|name| text_width(name, TEXT)).fold(0.0, f64::max);
        let left = MARGIN + names + 10.0;
        let strip = self.has_failures().then(|| text_width("failed", TEXT) + 12.0);
        let end = WIDTH - MARGIN;
        // Without a strip, half a number at the end of the axis needs room.
        let right = end - strip.map_or(8.0, |strip| strip + 8.0);
        let values = self.rows.iter().filter_map(interval).flat_map(|(low, _, high)| [low, high]);
        let band = LANE * self.models.len() as f64 + AIR;
        Plot {
            left,
            right,
            strip: strip.map(|strip| (end - strip / 2.0, end)),
            top,
            band,
            bottom: top + band * self.bands.len() as f64,
            axis: LogAxis::around(values, left, right),
        }
    }

    fn names(&self) -> Vec<String> {
        let by_calibration = distinct(self.bands.iter().filter_map(|band| band.1)).len() > 1;
        let name = |(recipe, calibration): &(&str, Option<&str>)| match calibration {
            Some(calibration) if by_calibration => format!("{recipe} · {calibration}"),
            _ => (*recipe).to_owned(),
        };
        self.bands.iter().map(|band| elide(&name(band), TEXT, NAMES)).collect()
    }

    /// Bands with their names, grid lines with their numbers.
    fn grid(&mut self, plot: &Plot) {
        let below = plot.bottom + 8.0 + TEXT;
        for i in (0..self.bands.len()).step_by(2) {
            let (from, to) = (plot.top + plot.band * i as f64, plot.top + plot.band * (i + 1) as f64);
            let colour = Colour::BAND;
            self.shapes.push(Shape::Fill { from: (plot.left, from), to: (plot.right, to), colour });
            if let Some((_, end)) = plot.strip {
                self.shapes.push(Shape::Fill { from: (plot.right + 8.0, from), to: (end, to), colour });
            }
        }
        for tick in plot.axis.ticks(TEXT) {
            let x = tick.position;
            match tick.label {
                Some(label) => {
                    self.line((x, plot.top), (x, plot.bottom + 5.0), Colour::GRID, 1.0, None);
                    self.text((x, below), &label, TEXT, Anchor::Middle, Colour::INK);
                }
                None => self.line((x, plot.top), (x, plot.bottom), Colour::MINOR_GRID, 1.0, None),
            }
        }
        self.line((plot.left, plot.bottom), (plot.right, plot.bottom), Colour::GREY, 1.0, None);
        if let Some((middle, _)) = plot.strip {
            self.text((middle, below), "failed", TEXT, Anchor::Middle, Colour::INK);
        }
        for (i, name) in self.names().iter().enumerate() {
            let middle = plot.top + plot.band * (i as f64 + 0.5);
            self.text((plot.left - 10.0, middle + DROP), name, TEXT, Anchor::End, Colour::INK);
        }
    }

    /// A dashed line for each model's original.
    fn originals(&mut self, plot: &Plot) {
        if !self.has_lines() {
            return;
        }
        for (i, model) in self.models.clone().into_iter().enumerate() {
            let original =
                self.rows.iter().find(|row| row.cell.model == model && row.cell.recipe == ORIGINAL);
            if let Some((_, value, _)) = original.and_then(interval) {
                let x = plot.axis.place(value);
                // Phases differ, so that lines of equal originals show all their colours.
                let phase = (DASH.on + DASH.off) * i as f64 / self.models.len() as f64;
                let dash = Some(Dash { phase, ..DASH });
                self.line((x, plot.top), (x, plot.bottom), palette::series(i).0, STROKE, dash);
            }
        }
    }

    /// A mark for each value, with its interval; a cross in the strip for each failure.
    fn marks(&mut self, plot: &Plot) {
        for row in self.rows.clone() {
            let band = self.bands.iter().position(|band| *band == (row_key(&row).0, row_key(&row).1));
            let model = self.models.iter().position(|model| *model == row.cell.model);
            let (Some(band), Some(model)) = (band, model) else {
                continue;
            };
            let y = plot.top + plot.band * band as f64 + AIR / 2.0 + LANE * (model as f64 + 0.5);
            let (colour, form) = palette::series(model);
            if let Some((low, value, high)) = interval(&row) {
                let (x0, x, x1) = (plot.axis.place(low), plot.axis.place(value), plot.axis.place(high));
                if x1 - x > RADIUS + 1.0 {
                    self.bar(x0, x1, y, colour);
                }
                self.mark((x, y), form, colour);
            } else if let Some((middle, _)) = plot.strip.filter(|_| is_failed(&row)) {
                self.mark((middle, y), Mark::Cross, colour);
            }
        }
    }

    /// Two lines below the numbers: what the axis shows and under which protocol. Returns where they end.
    fn name_axis(&mut self, metric: &str, plot: &Plot) -> f64 {
        let (first, second) = (plot.bottom + 28.0 + TEXT, plot.bottom + 33.0 + 2.0 * TEXT);
        let middle = (plot.left + plot.right) / 2.0;
        let name = "perplexity, logarithmic (lower is better)";
        self.text((middle, first), name, TEXT, Anchor::Middle, Colour::INK);
        let protocol = elide(metric, TEXT, WIDTH - 2.0 * MARGIN);
        let half = text_width(&protocol, TEXT) / 2.0;
        let middle = middle.clamp(MARGIN + half, WIDTH - MARGIN - half);
        self.text((middle, second), &protocol, TEXT, Anchor::Middle, Colour::GREY);
        second + 0.24 * TEXT
    }

    fn caption(&self, metric: &str) -> String {
        let mut caption =
            format!("Perplexity of every recipe and model, protocol {}.", metric::split(metric).1);
        if self.has_lines() {
            caption.push_str(" Dashed lines are the originals.");
        }
        if self.bars {
            caption.push_str(
                " Bars are 95 % intervals of single values, left out where shorter than the mark; a difference on the \
                 same text is known better.",
            );
        }
        if self.has_failures() {
            caption.push_str(" Crosses are failed cells.");
        }
        caption
    }

    fn text(&mut self, at: Point, text: &str, size: f64, anchor: Anchor, colour: Colour) {
        self.shapes.push(Shape::Text { at, text: text.to_owned(), size, anchor, colour });
    }

    fn line(&mut self, from: Point, to: Point, colour: Colour, width: f64, dash: Option<Dash>) {
        self.shapes.push(Shape::Line { points: vec![from, to], colour, width, dash });
    }

    fn mark(&mut self, at: Point, form: Mark, colour: Colour) {
        self.shapes.push(Shape::Mark { at, form, radius: RADIUS, colour });
    }

    /// A horizontal bar with short ends.
    fn bar(&mut self, from: f64, to: f64, y: f64, colour: Colour) {
        self.line((from, y), (to, y), colour, STROKE, None);
        for x in [from, to] {
            self.line((x, y - 2.5), (x, y + 2.5), colour, STROKE, None);
        }
    }
}

/// A row's value between the ends of its interval, where it can stand on a logarithmic axis.
fn interval(row: &Row<'_>) -> Option<(f64, f64, f64)> {
    let Outcome::Measured(m) = row.outcome else {
        return None;
    };
    if !(m.value.is_finite() && m.value > 0.0) {
        return None;
    }
    let stderr = m.stderr.filter(|stderr| stderr.is_finite());
    let factor = stderr.map_or(1.0, |stderr| (Z95 * stderr / m.value).exp());
    Some((m.value / factor, m.value, m.value * factor))
}

/// True where an interval is longer than the mark of its value.
fn is_visible((_, value, high): (f64, f64, f64), axis: &LogAxis) -> bool {
    axis.place(high) - axis.place(value) > RADIUS + 1.0
}

/// True for failures, and for values that a logarithmic axis cannot show.
fn is_failed(row: &Row<'_>) -> bool {
    match row.outcome {
        Outcome::Failed(_) => true,
        Outcome::Measured(_) => interval(row).is_none(),
        Outcome::Missing => false,
    }
}
