//! `error-growth`: how errors grow through the blocks of a model and along its sequences, one line for each recipe.
//!
//! One drawing for each perplexity protocol that compares with the original, model, and at most six recipes: the error of
//! the queries of every block, that of the last block by position, and the KL divergence by position. Grey is the noise floor. Records from
//! before these were measured have no drawing.
//!
//! # Reference
//! The vertical and the horizontal growth of errors are what BiSup (arXiv:2405.15346) speaks of in its abstract; its figures
//! are not known to this project.

use serde_json::Value;

use super::{Figure, file_stem};
use crate::record::{AGAINST_ORIGINAL, Contents, MeasurementResult, NOISE_FLOOR};
use crate::report::ReportError;
use crate::report::drawing::canvas::{Canvas, RADIUS, STROKE, Sample};
use crate::report::drawing::panel::{Panel, panels};
use crate::report::drawing::{Colour, Drawing, Mark, palette};
use crate::report::observed::is_positive;
use crate::report::pivot::{distinct, row_key};
use crate::report::rows::{self, ORIGINAL, Outcome, Row};

/// See the module.
pub struct ErrorGrowth;

/// Recipes of one drawing: as many as the palette has colours.
const MOST: usize = 6;

/// Height of a panel in points.
const HEIGHT: f64 = 210.0;

/// Blocks from which on marks would touch one another.
const MANY: usize = 40;

impl Figure for ErrorGrowth {
    fn name(&self) -> &'static str {
        "error-growth"
    }

    fn about(&self) -> &'static str {
        "how errors grow through blocks and along sequences"
    }

    fn applies(&self, contents: &Contents) -> bool {
        rows::rows(contents).iter().filter_map(Line::of).any(|line| !line.floor)
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let rows = rows::rows(contents);
        let lines: Vec<(&str, &str, Line)> = rows
            .iter()
            .filter_map(|row| Some((protocol(row.metric)?, row.cell.model.as_str(), Line::of(row)?)))
            .collect();
        let mut drawings = Vec::new();
        for (protocol, model) in distinct(lines.iter().map(|(protocol, model, _)| (*protocol, *model))) {
            let here =
                || lines.iter().filter(move |line| (line.0, line.1) == (protocol, model)).map(|line| &line.2);
            let floor: Vec<&Line> = here().filter(|line| line.floor).take(1).collect();
            let recipes: Vec<&Line> = here().filter(|line| !line.floor).collect();
            for recipes in recipes.chunks(MOST) {
                let shown: Vec<&Line> = recipes.iter().chain(&floor).copied().collect();
                drawings.push(draw(protocol, model, &shown));
            }
        }
        Ok(drawings)
    }
}

/// The protocol of a KL divergence, or of its noise floor.
fn protocol(metric: &str) -> Option<&str> {
    let protocol = metric.strip_prefix(AGAINST_ORIGINAL[0])?.strip_prefix('/')?;
    Some(protocol.strip_suffix(NOISE_FLOOR).and_then(|rest| rest.strip_suffix('/')).unwrap_or(protocol))
}

/// What is drawn of one recipe.
struct Line {
    name: String,
    floor: bool,
    /// By block.
    blocks: Vec<(u32, f64)>,
    /// Position, counted from 1, and error of the last block's queries.
    queries: Vec<(f64, f64)>,
    /// Position, counted from 1, and KL divergence.
    divergences: Vec<(f64, f64)>,
}

impl Line {
    fn of(row: &Row<'_>) -> Option<Self> {
        protocol(row.metric)?;
        let Outcome::Measured(found) = row.outcome else { return None };
        if !row.last {
            return None;
        }
        let blocks = numbers(found, "queries-by-block")?;
        let (recipe, calibration, seed) = row_key(row);
        let floor = recipe == ORIGINAL;
        let calibration = calibration.map(|name| format!(" · {name}")).unwrap_or_default();
        let seed = seed.map(|seed| format!(" · seed {seed}")).unwrap_or_default();
        let name = if floor { "noise floor".to_owned() } else { format!("{recipe}{calibration}{seed}") };
        let line = Self {
            name,
            floor,
            blocks: blocks.into_iter().filter(|(_, error)| is_positive(*error)).collect(),
            queries: spans(found, "queries-by-position"),
            divergences: spans(found, "by-position"),
        };
        (!line.blocks.is_empty()).then_some(line)
    }
}

fn numbers(found: &MeasurementResult, key: &str) -> Option<Vec<(u32, f64)>> {
    let values = found.detail.get(key)?.as_array()?;
    Some((0..).zip(values).filter_map(|(block, value)| Some((block, value.as_f64()?))).collect())
}

/// The middle of every span, counted from 1 so that it can stand on a logarithmic axis, and its mean.
fn spans(found: &MeasurementResult, key: &str) -> Vec<(f64, f64)> {
    let spans = found.detail.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let of = |span: &Value| {
        let number = |key: &str| span.get(key).and_then(Value::as_f64);
        Some((((number("from")? + 1.0) * number("to")?).sqrt(), number("mean")?))
    };
    spans.iter().filter_map(of).filter(|(_, mean)| is_positive(*mean)).collect()
}

fn style(place: usize, line: &Line) -> (Colour, Mark) {
    if line.floor { (Colour::GREY, Mark::Circle) } else { palette::series(place) }
}

fn draw(protocol: &str, model: &str, lines: &[&Line]) -> Drawing {
    let mut canvas = Canvas::default();
    let y = canvas.title(&format!("Growth of errors: {model}"), protocol);
    let entries: Vec<_> = lines
        .iter()
        .enumerate()
        .map(|(i, line)| {
            let (colour, mark) = style(i, line);
            (Sample::Marked(mark), colour, line.name.clone())
        })
        .collect();
    let y = canvas.legend(&entries, y + 8.0);
    let (plots, end) = panels(3, 2, y, HEIGHT);
    by_block(&mut canvas, &plots[0], lines);
    let queries = |line: &Line| line.queries.clone();
    by_position(&mut canvas, &plots[1], lines, ("queries of the last block", "relative error", &queries));
    let divergences = |line: &Line| line.divergences.clone();
    by_position(&mut canvas, &plots[2], lines, ("next token", "KL, nats", &divergences));
    let caption = format!(
        "How errors of {model} grow beside the original: relative squared errors of every block's queries, those of the \
         last block by position, and the KL divergence of the next token by position, in spans that double. Means over \
         tokens of {protocol}; queries over the first ones. Logarithmic; every panel has its own axis."
    );
    canvas.finish(file_stem(&format!("error-growth/{model}/{protocol}")), caption, end)
}

fn by_block(canvas: &mut Canvas, panel: &Panel, lines: &[&Line]) {
    let all = || lines.iter().flat_map(|line| &line.blocks);
    let count = all().map(|(block, _)| block + 1).max().unwrap_or(1);
    let (upright, level) = (panel.upright(all().map(|(_, error)| *error)), panel.blocks(count));
    panel.heading(canvas, "queries of every block");
    panel.upright_grid(canvas, &upright, "relative error");
    panel.block_grid(canvas, &level, "block, from 0");
    for (i, line) in lines.iter().enumerate() {
        let place = |&(block, error): &(u32, f64)| (level.place(block), upright.place(error));
        trace(canvas, line.blocks.iter().map(place).collect(), style(i, line));
    }
    panel.edges(canvas);
}

/// A panel by position: its heading, the name of its upright axis, and what is shown of a line.
type ByPosition<'a> = (&'a str, &'a str, &'a dyn Fn(&Line) -> Vec<(f64, f64)>);

fn by_position(canvas: &mut Canvas, panel: &Panel, lines: &[&Line], (heading, axis, of): ByPosition<'_>) {
    let all: Vec<(f64, f64)> = lines.iter().flat_map(|line| of(line)).collect();
    let upright = panel.upright(all.iter().map(|(_, value)| *value));
    let level = panel.level(all.iter().map(|(position, _)| *position));
    panel.heading(canvas, heading);
    panel.upright_grid(canvas, &upright, axis);
    panel.level_grid(canvas, &level, "position, from 1");
    for (i, line) in lines.iter().enumerate() {
        let place = |(position, value): (f64, f64)| (level.place(position), upright.place(value));
        trace(canvas, of(line).into_iter().map(place).collect(), style(i, line));
    }
    panel.edges(canvas);
}

fn trace(canvas: &mut Canvas, points: Vec<(f64, f64)>, (colour, mark): (Colour, Mark)) {
    canvas.path(points.clone(), colour, STROKE);
    if points.len() < MANY {
        points.into_iter().for_each(|at| canvas.mark(at, mark, RADIUS - 1.0, colour));
    }
}
