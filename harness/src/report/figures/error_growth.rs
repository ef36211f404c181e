//! `error-growth`: how errors grow through the blocks of a model and along its sequences, one line for each recipe.
//!
//! One drawing for each perplexity protocol that compares with the original, model, widths of the grids, and at most six
//! recipes: the error of the queries of every block, that of the last block by position, and the KL divergence by position.
//! Grey is the noise floor, where it is near. Records from before these were measured have no drawing.
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
use crate::report::pivot::distinct;
use crate::report::recipes::{self, Draw};
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
        let place =
            |row: &Row<'_>| contents.manifest.recipes.iter().position(|name| *name == row.cell.recipe);
        let mut rows = rows::rows(contents);
        // Recipes that need no calibration set stand first in a plan; here they stand where the experiment has them.
        rows.sort_by_key(place);
        let lines: Vec<Shown<'_>> = rows.iter().filter_map(|row| Shown::of(contents, row)).collect();
        let recipes = lines.iter().filter(|shown| !shown.line.floor);
        let mut draws = distinct(recipes.map(|shown| shown.line.draw));
        // A recipe that draws less than others belongs to each of their draws.
        let specified = |draw: &Draw<'_>| usize::from(draw.0.is_some()) + usize::from(draw.1.is_some());
        let most = draws.iter().map(specified).max().unwrap_or(0);
        draws.retain(|draw| specified(draw) == most);
        let mut drawings = Vec::new();
        let kinds = lines.iter().filter(|shown| !shown.line.floor);
        let kinds = kinds.map(|shown| (shown.protocol, shown.model, shown.widths.as_str()));
        for (protocol, model, widths) in distinct(kinds) {
            let here = lines.iter().filter(|shown| (shown.protocol, shown.model) == (protocol, model));
            let (floor, recipes): (Vec<&Shown<'_>>, Vec<&Shown<'_>>) =
                here.partition(|shown| shown.line.floor);
            let recipes: Vec<&Line<'_>> =
                recipes.iter().filter(|shown| shown.widths == widths).map(|shown| &shown.line).collect();
            for recipes in recipes.chunks(MOST) {
                let mut shown = recipes.to_vec();
                shown.extend(floor.iter().map(|shown| &shown.line).find(|floor| floor.is_near(recipes)));
                drawings.push(draw((protocol, model, widths), &shown, &draws));
            }
        }
        Ok(drawings)
    }
}

/// A line, and where it is shown.
struct Shown<'a> {
    protocol: &'a str,
    model: &'a str,
    /// `W4A4KV4`
    widths: String,
    line: Line<'a>,
}

impl<'a> Shown<'a> {
    fn of(contents: &Contents, row: &Row<'a>) -> Option<Self> {
        let cell = contents.cells.iter().find(|cell| cell.result.id == row.cell.id)?;
        let name = recipes::grid_name(&cell.result.steps.iter().collect::<Vec<_>>());
        let widths = name.split(',').next().unwrap_or_default().to_owned();
        let (protocol, model) = (protocol(row.metric)?, row.cell.model.as_str());
        Some(Self { protocol, model, widths, line: Line::of(row)? })
    }
}

/// The protocol of a KL divergence, or of its noise floor.
fn protocol(metric: &str) -> Option<&str> {
    let protocol = metric.strip_prefix(AGAINST_ORIGINAL[0])?.strip_prefix('/')?;
    Some(protocol.strip_suffix(NOISE_FLOOR).and_then(|rest| rest.strip_suffix('/')).unwrap_or(protocol))
}

/// What is drawn of one recipe.
struct Line<'a> {
    recipe: &'a str,
    draw: Draw<'a>,
    floor: bool,
    /// By block.
    blocks: Vec<(u32, f64)>,
    /// Position, counted from 1, and error of the last block's queries.
    queries: Vec<(f64, f64)>,
    /// Position, counted from 1, and KL divergence.
    divergences: Vec<(f64, f64)>,
}

impl<'a> Line<'a> {
    fn of(row: &Row<'a>) -> Option<Self> {
        protocol(row.metric)?;
        let Outcome::Measured(found) = row.outcome else { return None };
        if !row.last {
            return None;
        }
        let blocks = numbers(found, "queries-by-block")?;
        let recipe = row.cell.recipe.as_str();
        let line = Self {
            recipe,
            draw: (row.cell.calibration.as_deref(), row.cell.seed),
            floor: recipe == ORIGINAL,
            blocks: blocks.into_iter().filter(|(_, error)| is_positive(*error)).collect(),
            queries: spans(found, "queries-by-position"),
            divergences: spans(found, "by-position"),
        };
        (!line.blocks.is_empty()).then_some(line)
    }

    /// Whether the line of a noise floor leaves the others room.
    fn is_near(&self, others: &[&Line<'_>]) -> bool {
        const NEAR: f64 = 0.01;
        let largest = self.blocks.iter().map(|(_, error)| *error).fold(0.0, f64::max);
        let others = others.iter().flat_map(|line| &line.blocks);
        largest > NEAR * others.map(|(_, error)| *error).fold(f64::INFINITY, f64::min)
    }

    fn name(&self, draws: &[Draw<'_>]) -> String {
        if self.floor { "noise floor".to_owned() } else { recipes::with_draw(self.recipe, self.draw, draws) }
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

fn style(place: usize, line: &Line<'_>) -> (Colour, Mark) {
    if line.floor { (Colour::GREY, Mark::Circle) } else { palette::series(place) }
}

fn draw((protocol, model, widths): (&str, &str, &str), lines: &[&Line<'_>], draws: &[Draw<'_>]) -> Drawing {
    let mut canvas = Canvas::default();
    let y = canvas.title(&format!("Growth of errors at {widths}: {model}"), protocol);
    let entries: Vec<_> = lines
        .iter()
        .enumerate()
        .map(|(i, line)| {
            let (colour, mark) = style(i, line);
            (Sample::Marked(mark), colour, line.name(draws))
        })
        .collect();
    let y = canvas.legend(&entries, y + 8.0);
    let (plots, end) = panels(3, 2, y, HEIGHT);
    by_block(&mut canvas, &plots[0], lines);
    let queries = |line: &Line<'_>| line.queries.clone();
    by_position(&mut canvas, &plots[1], lines, ("queries of the last block", "relative error", &queries));
    let divergences = |line: &Line<'_>| line.divergences.clone();
    by_position(&mut canvas, &plots[2], lines, ("next token", "KL, nats", &divergences));
    let caption = format!(
        "How errors of {model} at {widths} grow beside the original: relative squared errors of every block's queries, those of the \
         last block by position, and the KL divergence of the next token by position, in spans that double. Means over \
         tokens of {protocol}; queries over the first ones. Logarithmic; every panel has its own axis."
    );
    canvas.finish(file_stem(&format!("error-growth/{model}/{widths}/{protocol}")), caption, end)
}

fn by_block(canvas: &mut Canvas, panel: &Panel, lines: &[&Line<'_>]) {
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
type ByPosition<'a> = (&'a str, &'a str, &'a dyn Fn(&Line<'_>) -> Vec<(f64, f64)>);

fn by_position(canvas: &mut Canvas, panel: &Panel, lines: &[&Line<'_>], (heading, axis, of): ByPosition<'_>) {
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
