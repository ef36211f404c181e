//! A quantity of every block's groups: one panel for each port, one line for each transform.

use super::{Analysis, TRANSFORMS, style};
use crate::record::layers::LayerRow;
use crate::report::drawing::Drawing;
use crate::report::drawing::canvas::{Canvas, RADIUS, STROKE, Sample};
use crate::report::drawing::panel::panels;
use crate::report::figures::file_stem;
use crate::report::observed::is_positive;

/// Height of a panel in points.
const HEIGHT: f64 = 210.0;
/// Blocks from which on marks would touch one another.
const MANY: u32 = 40;

/// What a chart shows.
pub struct Quantity {
    /// The file's name.
    pub stem: &'static str,
    /// Of the drawing.
    pub title: &'static str,
    /// Along the upright axis.
    pub axis: &'static str,
    /// A sentence that says what it is.
    pub about: &'static str,
    /// Of a row.
    pub of: fn(&LayerRow) -> f64,
}

/// The chart; nothing where no value can be shown.
pub fn chart(analysis: &Analysis<'_>, quantity: &Quantity) -> Option<Drawing> {
    let ports = analysis.ports();
    let values = |port: &str, transform: &str| -> Vec<(u32, f64)> {
        let rows = analysis.rows(port, transform).into_iter();
        rows.map(|row| (row.layer, (quantity.of)(row))).filter(|(_, value)| is_positive(*value)).collect()
    };
    let shown = |port: &str| TRANSFORMS.iter().flat_map(|(transform, _)| values(port, transform)).count();
    if ports.iter().all(|port| shown(port.port) == 0) {
        return None;
    }
    let mut canvas = Canvas::default();
    let y = canvas.title(&format!("{}: {}", quantity.title, analysis.model), &analysis.about());
    let entries: Vec<_> = TRANSFORMS
        .iter()
        .enumerate()
        .map(|(i, (_, name))| {
            let (colour, mark) = style(i);
            (Sample::Marked(mark), colour, (*name).to_owned())
        })
        .collect();
    let y = canvas.legend(&entries, y + 8.0);
    let (panels, end) = panels(ports.len(), 2, y, HEIGHT);
    let blocks = analysis.blocks();
    for (port, panel) in ports.iter().zip(&panels) {
        let all = TRANSFORMS.iter().flat_map(|(transform, _)| values(port.port, transform));
        let (upright, level) = (panel.upright(all.map(|(_, value)| value)), panel.blocks(blocks));
        panel.heading(&mut canvas, &analysis.module(port.port));
        panel.upright_grid(&mut canvas, &upright, quantity.axis);
        panel.block_grid(&mut canvas, &level, "block, from 0");
        for (i, (transform, _)) in TRANSFORMS.iter().enumerate() {
            let (colour, mark) = style(i);
            let place = |(block, value): (u32, f64)| (level.place(block), upright.place(value));
            let points: Vec<_> = values(port.port, transform).into_iter().map(place).collect();
            canvas.path(points.clone(), colour, STROKE);
            if blocks < MANY || points.len() == 1 {
                points.into_iter().for_each(|at| canvas.mark(at, mark, RADIUS - 1.0, colour));
            }
        }
        panel.edges(&mut canvas);
    }
    let caption = format!(
        "{} of every block's linear groups of {}, before and under each transform. {} Logarithmic; every panel has its own \
         axis. {}",
        quantity.title,
        analysis.model,
        quantity.about,
        analysis.provenance()
    );
    let stem = file_stem(&format!("{}/{}/{}", quantity.stem, analysis.model, analysis.protocol));
    Some(canvas.finish(stem, caption, end))
}
