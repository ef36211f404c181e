//! `quantized-token`: what grids of few bits make of the token with the greatest value, under every transform.
//!
//! Of the group with the largest error before any transform. Channels stand in the order of their magnitudes; the grey line
//! is the token as it is, the others are what it is rounded to. Where a line lies on the zero at the bottom, the grid has
//! nothing left for the channel: one outlier takes the whole range. The figure "quantized bins" of arXiv:2506.01967 with a
//! logarithmic axis.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::record::layers::{TOKEN_BITS, TokenRow};
use crate::report::ReportError;
use crate::report::drawing::canvas::{Canvas, DROP, SMALL, STROKE, Sample};
use crate::report::drawing::panel::panels;
use crate::report::drawing::scale::LinearAxis;
use crate::report::drawing::{Anchor, Colour, Drawing, palette};
use crate::report::layers::{Analysis, TRANSFORMS, analyses, applies, short};
use crate::report::observed::is_positive;

/// See the module.
pub struct QuantizedToken;

/// Height of a panel in points, and of the part below the axis where zeros stand.
const HEIGHT: f64 = 180.0;
const ZERO: f64 = 14.0;
/// The axis reaches this far below the greatest magnitude.
const DEPTH: f64 = 1e-5;

impl Figure for QuantizedToken {
    fn name(&self) -> &'static str {
        "quantized-token"
    }

    fn about(&self) -> &'static str {
        "the token with the greatest value, rounded to 3, 4, 6 and 8 bits under every transform"
    }

    fn applies(&self, contents: &Contents) -> bool {
        applies(contents)
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        Ok(analyses(contents)?.iter().filter_map(drawing).collect())
    }
}

fn drawing(analysis: &Analysis<'_>) -> Option<Drawing> {
    let tokens: Vec<(&str, Vec<&TokenRow>)> = TRANSFORMS
        .iter()
        .map(|(transform, name)| {
            (
                *name,
                analysis.tables.token.iter().filter(|row| row.transform == *transform).collect::<Vec<_>>(),
            )
        })
        .filter(|(_, rows)| rows.iter().any(|row| is_positive(f64::from(row.magnitude))))
        .collect();
    tokens.first()?;
    let shown = analysis.detail.get("shown")?;
    let channels = shown["channels"].as_u64().unwrap_or_default();
    let place = format!(
        "layers.{}.{}",
        shown["layer"].as_u64().unwrap_or_default(),
        shown["port"].as_str().unwrap_or_default()
    );
    let mut canvas = Canvas::default();
    let title = format!("Token with the greatest value at {place}: {}", analysis.model);
    let y = canvas.title(&title, &analysis.about());
    let colour = |i: usize| palette::series(i).0;
    let mut entries = vec![(Sample::Line, Colour::GREY, "as it is".to_owned())];
    let names = TOKEN_BITS.iter().enumerate();
    entries.extend(names.map(|(i, bits)| (Sample::Line, colour(i), format!("{bits} bits"))));
    let y = canvas.legend(&entries, y + 8.0);
    let (mut panels, end) = panels(tokens.len(), 2, y, HEIGHT);
    let magnitudes = || tokens.iter().flat_map(|(_, rows)| rows).map(|row| f64::from(row.magnitude));
    let most = magnitudes().fold(0.0, f64::max);
    let all: Vec<f64> = magnitudes().filter(|value| *value > most * DEPTH).collect();
    for ((name, rows), panel) in tokens.iter().zip(&mut panels) {
        let floor = panel.bottom;
        panel.bottom -= ZERO;
        let upright = panel.upright(all.iter().copied());
        let level = LinearAxis::around([0.0, channels as f64], panel.left, panel.right);
        let transform = name.split(':').next().unwrap_or(name);
        panel.heading(&mut canvas, &format!("{transform}; {}", left_over(rows)));
        panel.upright_grid(&mut canvas, &upright, "|x|");
        panel.bottom = floor;
        canvas.line((panel.left, floor - 4.0), (panel.right, floor - 4.0), Colour::GRID, 1.0, None);
        let zero = (panel.left - 5.0, floor - 4.0 + DROP * SMALL);
        canvas.text(zero, "0", SMALL, Anchor::End, Colour::INK);
        let height = |value: f32| match f64::from(value) {
            value if value > most * DEPTH => upright.place(value),
            _ => floor - 4.0,
        };
        let mut line = |of: &dyn Fn(&TokenRow) -> f32, colour, width| {
            // Equal neighbours are one piece of the line: only its corners are kept.
            let mut points: Vec<(f64, f64)> = Vec::new();
            for (i, row) in rows.iter().enumerate() {
                let at = (level.place(f64::from(row.rank)), height(of(row)));
                let inner = i > 0
                    && i + 1 < rows.len()
                    && height(of(rows[i - 1])) == at.1
                    && height(of(rows[i + 1])) == at.1;
                if !inner {
                    points.push(at);
                }
            }
            canvas.path(points, colour, width);
        };
        for i in (0..TOKEN_BITS.len()).rev() {
            line(&|row| row.rounded[i], colour(i), STROKE);
        }
        line(&|row| row.magnitude, Colour::GREY, 1.0);
        for tick in level.ticks(SMALL) {
            let Some(label) = tick.label.filter(|_| tick.position >= panel.left) else { continue };
            canvas.text((tick.position, floor + 6.0 + SMALL), &label, SMALL, Anchor::Middle, Colour::INK);
        }
        let at = ((panel.left + panel.right) / 2.0, floor + 22.0 + SMALL);
        canvas.text(at, "channels, greatest first", SMALL, Anchor::Middle, Colour::INK);
        panel.edges(&mut canvas);
    }
    let caption = format!(
        "The token with the greatest value at {place} of {} under each transform, its channels in the order of their \
         magnitudes, and what symmetric grids with the token's own scale make of it. Magnitudes, logarithmic, with zero \
         at the bottom. {}",
        analysis.model,
        analysis.provenance()
    );
    let stem = file_stem(&format!("quantized-token/{}/{}", analysis.model, analysis.protocol));
    Some(canvas.finish(stem, caption, end))
}

/// `greatest 1490; 4 bits leave 3 % of channels`.
fn left_over(rows: &[&TokenRow]) -> String {
    let most = rows.iter().fold(0.0f32, |most, row| most.max(row.magnitude));
    let four = TOKEN_BITS.iter().position(|bits| *bits == 4).unwrap_or_default();
    // Ranks are in order and zeros stand last: the first zero's rank counts those before it.
    let last = rows.last().map_or(1, |row| row.rank + 1);
    let kept = rows.iter().find(|row| row.rounded[four] == 0.0).map_or(last, |row| row.rank);
    let share = 100.0 * f64::from(kept) / f64::from(last);
    format!("greatest {}; 4 bits leave {} %", short(f64::from(most)), short(share))
}
