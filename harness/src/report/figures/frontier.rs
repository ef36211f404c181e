//! `frontier`: perplexity against speed, bytes of weights and memory, one mark for each recipe.
//!
//! One drawing for each model, protocol of perplexity and protocol of speed; a panel each for decoding, prefill, weights as
//! stored and, where it was measured of every recipe's rounds alone, the program's memory. All axes are logarithmic. Up and to
//! the left is worse in the panels of speed, up and to the right in the others. Times are a machine's; the caption names it.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::clocked::{self, Clocked};
use crate::report::drawing::canvas::{Canvas, RADIUS, Sample};
use crate::report::drawing::panel::panels;
use crate::report::drawing::{Drawing, palette};
use crate::report::observed::is_positive;
use crate::report::pivot::distinct;
use crate::report::recipes::{self, Draw, Entry};
use crate::report::{metric, rows};

/// See the module.
pub struct Frontier;

/// Height of a panel in points.
const HEIGHT: f64 = 230.0;

/// A panel: its heading, the name of its level axis, and the value there.
type Panel = (&'static str, &'static str, fn(&Clocked<'_>) -> f64);

const PANELS: [Panel; 3] = [
    ("decoding", "tokens per second", |c| 1.0 / c.speed.decode_seconds_per_token.median),
    ("prefill", "tokens per second", |c| c.speed.prefill_tokens_per_second.median),
    ("weights as stored", "MB", |c| c.stored / 1e6),
];

const MEMORY: Panel =
    ("peak memory of the program", "MiB", |c| c.speed.peak_memory as f64 / f64::from(1 << 20));

impl Figure for Frontier {
    fn name(&self) -> &'static str {
        "frontier"
    }

    fn about(&self) -> &'static str {
        "perplexity against speed, bytes of weights and memory"
    }

    fn applies(&self, contents: &Contents) -> bool {
        !all(contents).is_empty()
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        Ok(all(contents).iter().map(Shown::drawing).collect())
    }
}

/// What one drawing shows.
struct Shown<'a> {
    model: &'a str,
    perplexity: &'a str,
    speed: &'a str,
    /// Recipes on the clock, with their perplexity.
    points: Vec<(Clocked<'a>, f64)>,
}

fn all(contents: &Contents) -> Vec<Shown<'_>> {
    let perplexities = rows::metrics(contents).into_iter().filter(|id| metric::split(id).0 == "perplexity");
    let mut shown = Vec::new();
    for perplexity in perplexities {
        let entries = recipes::entries(contents, perplexity);
        for speed in clocked::metrics(contents) {
            let times = clocked::clocked(contents, speed);
            for model in clocked::models(&times) {
                let value = |clocked: &Clocked<'_>| {
                    let same = |entry: &&Entry<'_>| entry.row.cell.id == clocked.cell.id;
                    entries.iter().find(same).and_then(Entry::value).filter(|value| is_positive(*value))
                };
                let here = times.iter().filter(|clocked| clocked.cell.model == model);
                let points: Vec<_> = here.filter_map(|c| Some((*c, value(c)?))).collect();
                let positive = |c: &Clocked<'_>| PANELS.iter().all(|(_, _, of)| is_positive(of(c)));
                if points.len() > 1 && points.iter().all(|(c, _)| positive(c)) {
                    shown.push(Shown { model, perplexity, speed, points });
                }
            }
        }
    }
    shown
}

fn draw_of<'a>(clocked: &Clocked<'a>) -> Draw<'a> {
    (clocked.cell.calibration.as_deref(), clocked.cell.seed)
}

impl Shown<'_> {
    /// [`PANELS`], and [`MEMORY`] where no recipe's peak is that of others before it.
    fn panels(&self) -> Vec<Panel> {
        let measured = |c: &Clocked<'_>| c.speed.peak_is_of_rounds && c.speed.peak_memory > 0;
        let memory = self.points.iter().all(|(c, _)| measured(c)).then_some(MEMORY);
        PANELS.into_iter().chain(memory).collect()
    }

    fn drawing(&self) -> Drawing {
        let mut canvas = Canvas::default();
        let below = format!("{}; {}", metric::split(self.perplexity).1, metric::split(self.speed).1);
        let y = canvas.title(&format!("Perplexity against speed, bytes and memory: {}", self.model), &below);
        let draws =
            distinct(self.points.iter().map(|(c, _)| draw_of(c)).filter(|draw| *draw != (None, None)));
        let entry = |(i, (c, _)): (usize, &(Clocked<'_>, f64))| {
            let (colour, mark) = palette::series(i);
            (Sample::Mark(mark), colour, recipes::with_draw(&c.cell.recipe, draw_of(c), &draws))
        };
        let entries: Vec<_> = self.points.iter().enumerate().map(entry).collect();
        let y = canvas.legend(&entries, y + 8.0);
        let shown = self.panels();
        let (panels, end) = panels(shown.len(), 2, y, HEIGHT);
        for ((heading, axis, of), panel) in shown.iter().zip(&panels) {
            let level = panel.level(self.points.iter().map(|(c, _)| of(c)));
            let upright = panel.upright(self.points.iter().map(|(_, value)| *value));
            panel.heading(&mut canvas, heading);
            panel.upright_grid(&mut canvas, &upright, "perplexity");
            panel.level_grid(&mut canvas, &level, axis);
            for (i, (c, value)) in self.points.iter().enumerate() {
                let (colour, mark) = palette::series(i);
                canvas.mark((level.place(of(c)), upright.place(*value)), mark, RADIUS + 1.0, colour);
            }
            panel.edges(&mut canvas);
        }
        let memory = match shown.len() > PANELS.len() {
            true => ", and the memory of the program while it was timed",
            false => "",
        };
        let clocked: Vec<Clocked<'_>> = self.points.iter().map(|(c, _)| *c).collect();
        let caption = format!(
            "Perplexity of every recipe of {} against tokens per second in decoding and in prefill, and against the bytes \
             of its linear layers' weights at effective bits{memory}. All axes logarithmic. Speed measured on {}.",
            self.model,
            clocked::machines(&clocked)
        );
        let stem = file_stem(&format!("frontier/{}/{}/{}", self.model, self.perplexity, self.speed));
        canvas.finish(stem, caption, end)
    }
}
