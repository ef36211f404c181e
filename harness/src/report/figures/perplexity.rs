//! `perplexity`: the perplexity of every recipe and model, one drawing for each protocol.
//!
//! A row is a recipe (and its calibration set, where there are several), a mark is a model and seed, the axis is
//! logarithmic. A dashed line is the model's original, a thin bar the 95 % interval of the value. Recipes are rows and
//! not columns because their names are long and the reader should not turn the head.
//!
//! # Equation
//! interval = ppl · exp(±1.96 · stderr / ppl): the interval of the mean loss, which is what is nearly normal.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::drawing::axis::LogAxis;
use crate::report::drawing::{Anchor, Colour, Drawing, Mark, Point, Shape, elide, palette, text_width};
use crate::report::metric;
use crate::report::pivot::{distinct, is_final, row_key, row_keys};
use crate::report::rows::{self, ORIGINAL, Outcome, Row};

/// See the module.
pub struct Perplexity;

/// Two-sided 95 % quantile of the normal distribution.
const Z95: f64 = 1.96;

const WIDTH: f64 = 800.0;
const MARGIN: f64 = 16.0;
const TITLE: f64 = 15.0;
const TEXT: f64 = 12.0;
/// Vertical room of one model within a row, and the air that a row has besides.
const LANE: f64 = 11.0;
const ROW_AIR: f64 = 15.0;
/// Largest share of the width that names of recipes may take.
const NAMES: f64 = 0.36;
const RADIUS: f64 = 4.0;

impl Figure for Perplexity {
    fn name(&self) -> &'static str {
        "perplexity"
    }

    fn applies(&self, contents: &Contents) -> bool {
        !metrics(contents).is_empty()
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let rows = rows::rows(contents);
        let drawings = metrics(contents).into_iter().map(|metric| {
            let rows: Vec<Row<'_>> = rows
                .iter()
                .filter(|row| row.metric == metric && is_final(row))
                .copied()
                .collect();
            draw(metric, &rows)
        });
        Ok(drawings.collect())
    }
}

/// The metric ids of the plan that this figure shows.
fn metrics(contents: &Contents) -> Vec<&str> {
    rows::metrics(contents)
        .into_iter()
        .filter(|id| metric::split(id).0 == "perplexity")
        .collect()
}

/// A row's value and the ends of its interval, where it can stand on a logarithmic axis.
fn interval(row: &Row<'_>) -> Option<(f64, f64, f64)> {
    let Outcome::Measured(m) = row.outcome else {
        return None;
    };
    if !(m.value.is_finite() && m.value > 0.0) {
        return None;
    }
    let factor = m
        .stderr
        .filter(|stderr| stderr.is_finite())
        .map_or(1.0, |stderr| (Z95 * stderr / m.value).exp());
    Some((m.value / factor, m.value, m.value * factor))
}

fn draw(metric: &str, rows: &[Row<'_>]) -> Drawing {
    let models = distinct(rows.iter().map(|row| row.cell.model.as_str()));
    // The original is a line across all rows; alone, it is a row.
    let mut bands: Vec<(&str, Option<&str>)> = row_keys(rows).into_iter().map(|key| (key.0, key.1)).collect();
    bands.dedup();
    if bands.iter().any(|band| band.0 != ORIGINAL) {
        bands.retain(|band| band.0 != ORIGINAL);
    }
    let original_is_a_row = bands.iter().any(|band| band.0 == ORIGINAL);
    let by_calibration = distinct(bands.iter().filter_map(|band| band.1)).len() > 1;
    let names: Vec<String> = bands
        .iter()
        .map(|(recipe, calibration)| match calibration {
            Some(calibration) if by_calibration => format!("{recipe} · {calibration}"),
            _ => (*recipe).to_owned(),
        })
        .map(|name| elide(&name, TEXT, NAMES * WIDTH))
        .collect();

    let bars = rows
        .iter()
        .any(|row| interval(row).is_some_and(|(low, _, high)| low < high));
    let failed = |row: &Row<'_>| {
        matches!(row.outcome, Outcome::Failed(_)) || (row.value().is_some() && interval(row).is_none())
    };
    let any_failed = rows.iter().any(failed);

    // From top to bottom: title, legend, rows, numbers, name of the axis.
    let mut shapes = Vec::new();
    let mut y = MARGIN + TITLE;
    text(
        &mut shapes,
        (MARGIN, y),
        "Perplexity by recipe",
        TITLE,
        Anchor::Start,
        Colour::INK,
    );
    y += 10.0;
    let entries = legend(&models, !original_is_a_row, bars, any_failed);
    y = draw_legend(&mut shapes, &entries, y);

    let left = MARGIN
        + names
            .iter()
            .map(|name| text_width(name, TEXT))
            .fold(0.0, f64::max)
        + 10.0;
    let strip = if any_failed {
        text_width("failed", TEXT) + 20.0
    } else {
        0.0
    };
    let right = WIDTH - MARGIN - 8.0 - strip;
    let top = y + 8.0;
    let row_height = LANE * models.len() as f64 + ROW_AIR;
    let bottom = top + row_height * bands.len() as f64;

    let axis = LogAxis::around(
        rows.iter()
            .filter_map(interval)
            .flat_map(|(low, _, high)| [low, high]),
        left,
        right,
    );
    for i in (0..bands.len()).step_by(2) {
        let y = top + row_height * i as f64;
        let to = (right + strip, y + row_height);
        shapes.push(Shape::Fill {
            from: (left, y),
            to,
            colour: Colour::BAND,
        });
    }
    for tick in axis.ticks(TEXT) {
        let colour = if tick.label.is_some() {
            Colour::GRID
        } else {
            Colour::MINOR_GRID
        };
        let end = if tick.label.is_some() {
            bottom + 5.0
        } else {
            bottom
        };
        line(
            &mut shapes,
            (tick.position, top),
            (tick.position, end),
            colour,
            1.0,
            None,
        );
        if let Some(label) = tick.label {
            text(
                &mut shapes,
                (tick.position, bottom + 8.0 + TEXT),
                &label,
                TEXT,
                Anchor::Middle,
                Colour::INK,
            );
        }
    }
    line(
        &mut shapes,
        (left, bottom),
        (right, bottom),
        Colour::GREY,
        1.0,
        None,
    );
    for (i, name) in names.iter().enumerate() {
        let middle = top + row_height * (i as f64 + 0.5);
        text(
            &mut shapes,
            (left - 10.0, middle + 0.36 * TEXT),
            name,
            TEXT,
            Anchor::End,
            Colour::INK,
        );
    }
    let strip_middle = right + strip / 2.0 + 4.0;
    if any_failed {
        text(
            &mut shapes,
            (strip_middle, bottom + 8.0 + TEXT),
            "failed",
            TEXT,
            Anchor::Middle,
            Colour::INK,
        );
    }

    if !original_is_a_row {
        for (i, model) in models.iter().enumerate() {
            let original = rows
                .iter()
                .find(|row| row.cell.model == *model && row.cell.recipe == ORIGINAL);
            if let Some((_, value, _)) = original.and_then(interval) {
                let (colour, x) = (palette::series(i).0, axis.place(value));
                // Phases differ, so that lines of equal originals show both colours.
                let phase = 8.0 * i as f64 / models.len() as f64;
                line(
                    &mut shapes,
                    (x, top - phase),
                    (x, bottom),
                    colour,
                    1.5,
                    Some((5.0, 3.0)),
                );
            }
        }
    }
    for row in rows {
        let band = bands
            .iter()
            .position(|band| *band == (row_key(row).0, row_key(row).1));
        let model = models.iter().position(|model| *model == row.cell.model);
        let (Some(band), Some(model)) = (band, model) else {
            continue;
        };
        let y = top + row_height * band as f64 + ROW_AIR / 2.0 + LANE * (model as f64 + 0.5);
        let (colour, form) = palette::series(model);
        if let Some((low, value, high)) = interval(row) {
            if low < high {
                let (x0, x1) = (axis.place(low), axis.place(high));
                line(&mut shapes, (x0, y), (x1, y), colour, 1.5, None);
                for x in [x0, x1] {
                    line(&mut shapes, (x, y - 2.5), (x, y + 2.5), colour, 1.5, None);
                }
            }
            shapes.push(Shape::Mark {
                at: (axis.place(value), y),
                form,
                radius: RADIUS,
                colour,
            });
        } else if failed(row) {
            shapes.push(Shape::Mark {
                at: (strip_middle, y),
                form: Mark::Cross,
                radius: RADIUS,
                colour,
            });
        }
    }

    // Two lines: a protocol's name is long and belongs to the axis.
    let mut y = bottom + 8.0 + TEXT + 20.0;
    let middle = (left + right) / 2.0;
    let name = "perplexity, logarithmic (lower is better)";
    text(&mut shapes, (middle, y), name, TEXT, Anchor::Middle, Colour::INK);
    y += TEXT + 5.0;
    let protocol = elide(metric, TEXT, WIDTH - 2.0 * MARGIN);
    let half = text_width(&protocol, TEXT) / 2.0;
    let middle = middle.clamp(MARGIN + half, WIDTH - MARGIN - half);
    text(
        &mut shapes,
        (middle, y),
        &protocol,
        TEXT,
        Anchor::Middle,
        Colour::GREY,
    );

    Drawing {
        stem: file_stem(metric),
        caption: caption(metric, bars, any_failed, original_is_a_row),
        width: WIDTH,
        height: (y + 0.3 * TEXT + MARGIN).ceil(),
        shapes,
    }
}

fn caption(metric: &str, bars: bool, failed: bool, original_is_a_row: bool) -> String {
    let mut caption = format!(
        "Perplexity of every recipe and model, protocol {}.",
        metric::split(metric).1
    );
    if !original_is_a_row {
        caption.push_str(" Dashed lines are the originals.");
    }
    if bars {
        caption.push_str(
            " Bars are 95 % intervals of the single values; a difference on the same text is known better.",
        );
    }
    if failed {
        caption.push_str(" Crosses are failed cells.");
    }
    caption
}

/// An entry of the legend: what is drawn, in which colour, and what it means.
enum Sample {
    Mark(Mark),
    Dashes,
    Bar,
}

fn legend<'a>(models: &[&'a str], lines: bool, bars: bool, failed: bool) -> Vec<(Sample, Colour, &'a str)> {
    let mut entries: Vec<(Sample, Colour, &str)> = Vec::new();
    for (i, model) in models.iter().enumerate() {
        let (colour, form) = palette::series(i);
        entries.push((Sample::Mark(form), colour, model));
    }
    if lines {
        entries.push((Sample::Dashes, Colour::GREY, "original"));
    }
    if bars {
        entries.push((Sample::Bar, Colour::GREY, "95 % interval"));
    }
    if failed {
        entries.push((Sample::Mark(Mark::Cross), Colour::GREY, "failed"));
    }
    entries
}

/// Lays the entries out in lines from `y` down and returns where the last one ends.
fn draw_legend(shapes: &mut Vec<Shape>, entries: &[(Sample, Colour, &str)], mut y: f64) -> f64 {
    const SAMPLE: f64 = 24.0;
    const GAP: f64 = 20.0;
    const LINE: f64 = 18.0;
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
            Sample::Mark(form) => {
                shapes.push(Shape::Mark {
                    at: (x + 9.0, middle),
                    form: *form,
                    radius: RADIUS,
                    colour: *colour,
                });
            }
            Sample::Dashes => line(
                shapes,
                (x, middle),
                (x + 18.0, middle),
                *colour,
                1.5,
                Some((5.0, 3.0)),
            ),
            Sample::Bar => {
                line(shapes, (x, middle), (x + 18.0, middle), *colour, 1.5, None);
                for end in [x, x + 18.0] {
                    line(
                        shapes,
                        (end, middle - 2.5),
                        (end, middle + 2.5),
                        *colour,
                        1.5,
                        None,
                    );
                }
            }
        }
        text(
            shapes,
            (x + SAMPLE, middle + 0.36 * TEXT),
            &name,
            TEXT,
            Anchor::Start,
            Colour::INK,
        );
        x += width + GAP;
    }
    y + LINE
}

fn text(shapes: &mut Vec<Shape>, at: Point, text: &str, size: f64, anchor: Anchor, colour: Colour) {
    shapes.push(Shape::Text {
        at,
        text: text.to_owned(),
        size,
        anchor,
        colour,
    });
}

fn line(
    shapes: &mut Vec<Shape>,
    from: Point,
    to: Point,
    colour: Colour,
    width: f64,
    dash: Option<(f64, f64)>,
) {
    shapes.push(Shape::Line {
        points: vec![from, to],
        colour,
        width,
        dash,
    });
}
