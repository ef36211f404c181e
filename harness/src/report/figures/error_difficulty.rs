//! `error-difficulty`: the error of every group against the difficulty of its activation, before any transform.
//!
//! One drawing for each model and protocol, one panel for each port, both axes logarithmic. Groups with a massive token
//! (greatest token scale more than fifty lower medians) are triangles: the difficulty is blind to what they do to the other
//! tokens. Every panel says how ranks go together, with and without them. arXiv:2506.01967 reports a correlation above
//! 0.97 once a few layers are left out, without the rule for leaving out; this rule is ours.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::drawing::Drawing;
use crate::report::drawing::canvas::{Canvas, RADIUS, Sample};
use crate::report::drawing::panel::panels;
use crate::report::drawing::{Colour, Mark};
use crate::report::layers::{Analysis, Correlation, MASSIVE, analyses, applies, is_massive};
use crate::report::observed::is_positive;

/// See the module.
pub struct ErrorDifficulty;

/// Height of a panel in points.
const HEIGHT: f64 = 210.0;

impl Figure for ErrorDifficulty {
    fn name(&self) -> &'static str {
        "error-difficulty"
    }

    fn about(&self) -> &'static str {
        "error of every group against the difficulty of its activation"
    }

    fn applies(&self, contents: &Contents) -> bool {
        applies(contents)
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        Ok(analyses(contents)?.iter().filter_map(drawing).collect())
    }
}

fn drawing(analysis: &Analysis<'_>) -> Option<Drawing> {
    let shown = |port: &str| -> Vec<_> {
        let rows = analysis.rows(port, "none").into_iter();
        rows.filter(|row| is_positive(row.error) && is_positive(row.x_difficulty)).collect()
    };
    let ports: Vec<_> = analysis.ports().into_iter().filter(|port| !shown(port.port).is_empty()).collect();
    ports.first()?;
    let mut canvas = Canvas::default();
    let title = format!("Error against the activation's difficulty: {}", analysis.model);
    let y = canvas.title(&title, &analysis.about());
    let ordinary = "a block's group".to_owned();
    let massive = format!("with a massive token (scale > {MASSIVE} medians)");
    let entries = [
        (Sample::Mark(Mark::Circle), ports[0].colour, ordinary),
        (Sample::Mark(Mark::Triangle), Colour::ACCENT, massive),
    ];
    let y = canvas.legend(&entries, y + 8.0);
    let (panels, end) = panels(ports.len(), 2, y, HEIGHT);
    for (port, panel) in ports.iter().zip(&panels) {
        let rows = shown(port.port);
        let level = panel.level(rows.iter().map(|row| row.x_difficulty));
        let upright = panel.upright(rows.iter().map(|row| row.error));
        let rest: Vec<_> = rows.iter().copied().filter(|row| !is_massive(row)).collect();
        panel.heading(&mut canvas, &heading(&analysis.module(port.port), &rows, &rest));
        panel.upright_grid(&mut canvas, &upright, "E");
        panel.level_grid(&mut canvas, &level, "D(X)");
        for row in &rows {
            let at = (level.place(row.x_difficulty), upright.place(row.error));
            let (mark, colour) = match is_massive(row) {
                true => (Mark::Triangle, Colour::ACCENT),
                false => (Mark::Circle, ports[0].colour),
            };
            canvas.mark(at, mark, RADIUS, colour);
        }
        panel.edges(&mut canvas);
    }
    let caption = format!(
        "Error of the rounded product against the quantization difficulty of the activation, one mark for each block of \
         {}. Both axes logarithmic; ρ is Spearman's rank correlation. Massive are groups whose greatest token scale is \
         more than {MASSIVE} lower medians. {}",
        analysis.model,
        analysis.provenance()
    );
    let stem = file_stem(&format!("error-difficulty/{}/{}", analysis.model, analysis.protocol));
    Some(canvas.finish(stem, caption, end))
}

/// `attn_in (k_proj): ρ 0.71`, or `down_in: ρ 0.71; without 2 massive 0.93`: both do not fit with the module's name.
fn heading(
    module: &str,
    all: &[&crate::record::layers::LayerRow],
    rest: &[&crate::record::layers::LayerRow],
) -> String {
    let spelled = |rho: Option<f64>| rho.map_or("–".to_owned(), |rho| format!("{rho:.2}"));
    let every = spelled(Correlation::of(all).spearman);
    if rest.len() == all.len() {
        return format!("{module}: ρ {every}");
    }
    let (port, without) = (module.split(' ').next().unwrap_or(module), all.len() - rest.len());
    format!("{port}: ρ {every}; without {without} massive {}", spelled(Correlation::of(rest).spearman))
}
