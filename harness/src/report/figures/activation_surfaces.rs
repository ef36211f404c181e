//! `activation-surfaces`: one group's activation by token and channel, under every transform.
//!
//! The group with the largest error before any transform, one drawing for each model and protocol. A field is the greatest
//! magnitude of a patch of neighbouring tokens and channels; one logarithmic scale serves all panels, so that one sees
//! what a transform does to the level of the whole and to its outliers. arXiv:2506.01967 draws such surfaces in three
//! dimensions, where peaks hide what stands behind them.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::record::layers::SurfaceRow;
use crate::report::ReportError;
use crate::report::drawing::canvas::{Canvas, SMALL};
use crate::report::drawing::panel::{Panel, panels};
use crate::report::drawing::{Anchor, Colour, Drawing, palette};
use crate::report::layers::{Analysis, TRANSFORMS, analyses, applies, short};

/// See the module.
pub struct ActivationSurfaces;

/// Height of a panel in points.
const HEIGHT: f64 = 150.0;
/// Tones: as many as an eye tells apart, and few enough that neighbours share one.
const TONES: usize = 12;
/// Rows of fields at most.
const ROWS: usize = 32;
/// The scale reaches this far below the greatest magnitude.
const DEPTH: f64 = 1e-4;

impl Figure for ActivationSurfaces {
    fn name(&self) -> &'static str {
        "activation-surfaces"
    }

    fn about(&self) -> &'static str {
        "magnitudes of one group's activation by token and channel, under smoothing and rotation"
    }

    fn applies(&self, contents: &Contents) -> bool {
        applies(contents)
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        Ok(analyses(contents)?.iter().filter_map(drawing).collect())
    }
}

/// Fields of one transform: by row, by column.
struct Surface {
    fields: Vec<Vec<f64>>,
}

impl Surface {
    /// Rows of patches are joined until at most [`ROWS`] are left.
    fn of(rows: &[&SurfaceRow]) -> Self {
        let mut fields: Vec<Vec<f64>> = Vec::new();
        for patches in rows.chunk_by(|a, b| a.token == b.token) {
            fields.push(patches.iter().map(|patch| f64::from(patch.magnitude)).collect());
        }
        let join = fields.len().div_ceil(ROWS).max(1);
        let joined = fields.chunks(join).map(|rows| {
            let columns = rows.iter().map(Vec::len).min().unwrap_or(0);
            (0..columns).map(|j| rows.iter().fold(0.0f64, |most, row| most.max(row[j]))).collect()
        });
        Self { fields: joined.collect() }
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.fields.iter().flatten().copied()
    }
}

fn drawing(analysis: &Analysis<'_>) -> Option<Drawing> {
    let surfaces: Vec<(&str, Surface)> = TRANSFORMS
        .iter()
        .map(|(transform, name)| {
            let rows = analysis.tables.surface.iter().filter(|row| row.transform == *transform);
            (*name, Surface::of(&rows.collect::<Vec<_>>()))
        })
        .filter(|(_, surface)| surface.values().any(|value| value > 0.0))
        .collect();
    let most = surfaces.iter().flat_map(|(_, surface)| surface.values()).fold(0.0, f64::max);
    let least = surfaces.iter().flat_map(|(_, surface)| surface.values()).filter(|value| *value > 0.0);
    let least = least.fold(most, f64::min).max(most * DEPTH);
    surfaces.first()?;
    let tone = |value: f64| -> usize {
        let share = (value.max(least) / least).ln() / (most / least).ln().max(1e-9);
        ((share * TONES as f64) as usize).min(TONES - 1)
    };

    let shown = analysis.detail.get("shown")?;
    let number = |key: &str| shown[key].as_u64().unwrap_or_default();
    let place = format!(
        "layers.{}.{} ({})",
        number("layer"),
        shown["port"].as_str().unwrap_or_default(),
        shown["module"].as_str().unwrap_or_default()
    );
    let mut canvas = Canvas::default();
    let y = canvas.title(&format!("Activation at {place}: {}", analysis.model), &analysis.about());
    let (panels, end) = panels(surfaces.len() + 1, 2, y + 4.0, HEIGHT);
    for ((name, surface), panel) in surfaces.iter().zip(&panels) {
        let largest = surface.values().fold(0.0, f64::max);
        panel.heading(&mut canvas, &format!("{name}; greatest {}", short(largest)));
        fields(&mut canvas, panel, surface, &tone);
        ends(&mut canvas, panel, number("tokens"), number("channels"));
        panel.edges(&mut canvas);
    }
    scale(&mut canvas, &panels[surfaces.len()], least, most);
    let caption = format!(
        "Magnitudes of the activation at {place} of {} by token and channel, under each transform: the group with the \
         largest error before any. Fields are the greatest magnitude among {} tokens × {} channels; one logarithmic scale \
         for all panels. {}",
        analysis.model,
        number("tokens").div_ceil(surfaces[0].1.fields.len() as u64),
        number("channels-of-a-patch"),
        analysis.provenance()
    );
    let stem = file_stem(&format!("activation-surfaces/{}/{}", analysis.model, analysis.protocol));
    Some(canvas.finish(stem, caption, end))
}

/// The fields, neighbours of one tone as one rectangle on a ground of the commonest tone.
fn fields(canvas: &mut Canvas, panel: &Panel, surface: &Surface, tone: &dyn Fn(f64) -> usize) {
    let mut counts = [0usize; TONES];
    surface.values().for_each(|value| counts[tone(value)] += 1);
    let ground = (0..TONES).max_by_key(|&i| (counts[i], TONES - i)).unwrap_or(0);
    let colour = |tone: usize| palette::tone(tone as f64 / (TONES - 1) as f64);
    canvas.fill((panel.left, panel.top), (panel.right, panel.bottom), colour(ground));
    let height = (panel.bottom - panel.top) / surface.fields.len() as f64;
    for (i, row) in surface.fields.iter().enumerate() {
        let width = (panel.right - panel.left) / row.len() as f64;
        let (top, bottom) = (panel.top + height * i as f64, panel.top + height * (i + 1) as f64);
        let mut column = 0;
        for run in row.chunk_by(|a, b| tone(*a) == tone(*b)) {
            let (from, to) = (column, column + run.len());
            column = to;
            if tone(run[0]) != ground {
                let (left, right) = (panel.left + width * from as f64, panel.left + width * to as f64);
                canvas.fill((left, top), (right, bottom), colour(tone(run[0])));
            }
        }
    }
}

/// The first and last number of each axis.
fn ends(canvas: &mut Canvas, panel: &Panel, tokens: u64, channels: u64) {
    let last = |count: u64| count.saturating_sub(1).to_string();
    let y = panel.bottom + 6.0 + SMALL;
    canvas.text((panel.left, y), "0", SMALL, Anchor::Start, Colour::INK);
    canvas.text(((panel.left + panel.right) / 2.0, y), "channel", SMALL, Anchor::Middle, Colour::INK);
    canvas.text((panel.right, y), &last(channels), SMALL, Anchor::End, Colour::INK);
    let x = panel.left - 5.0;
    canvas.text((x, panel.top + SMALL), "0", SMALL, Anchor::End, Colour::INK);
    canvas.text((x, (panel.top + panel.bottom) / 2.0), "token", SMALL, Anchor::End, Colour::INK);
    canvas.text((x, panel.bottom), &last(tokens), SMALL, Anchor::End, Colour::INK);
}

/// What the tones stand for.
fn scale(canvas: &mut Canvas, panel: &Panel, least: f64, most: f64) {
    panel.heading(canvas, "greatest magnitude of a field, logarithmic");
    let width = (panel.right - panel.left) / TONES as f64;
    let (top, bottom) = (panel.top + 8.0, panel.top + 30.0);
    for i in 0..TONES {
        let left = panel.left + width * i as f64;
        let colour = palette::tone(i as f64 / (TONES - 1) as f64);
        canvas.fill((left, top), (left + width, bottom), colour);
    }
    for i in (0..=TONES).step_by(4) {
        let value = least * (most / least).powf(i as f64 / TONES as f64);
        let anchor = match i {
            0 => Anchor::Start,
            TONES => Anchor::End,
            _ => Anchor::Middle,
        };
        let at = (panel.left + width * i as f64, bottom + 5.0 + SMALL);
        canvas.text(at, &short(value), SMALL, anchor, Colour::INK);
    }
}
