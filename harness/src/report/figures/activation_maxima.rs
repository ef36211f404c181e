//! `activation-maxima`: the greatest magnitude of every block's activations, one line for each port.
//!
//! One drawing for each model and calibration set, one panel for the model as it is and one for each prefix that it was
//! observed behind, with one upright axis, so that one sees what a prefix removes. Blocks are numbered from 0, as in
//! records. Figure 1 of arXiv:2405.14428, which numbers them from 1 and has a linear axis; here the axis is logarithmic,
//! because the ports of one model differ a hundredfold.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::drawing::Drawing;
use crate::report::drawing::canvas::{Canvas, RADIUS, STROKE, Sample};
use crate::report::drawing::panel::panels;
use crate::report::observed::{Observed, State, is_positive, of_references, ports};

/// See the module.
pub struct ActivationMaxima;

/// Height of a panel in points.
const HEIGHT: f64 = 240.0;
/// Blocks from which on marks would touch one another in a panel of half the width.
const MANY: u32 = 48;

impl Figure for ActivationMaxima {
    fn name(&self) -> &'static str {
        "activation-maxima"
    }

    fn about(&self) -> &'static str {
        "greatest activation of every block and port, without and behind a prefix"
    }

    fn applies(&self, contents: &Contents) -> bool {
        of_references(contents).iter().any(|observed| observed.states.iter().any(has_maxima))
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        Ok(of_references(contents).iter().filter_map(drawing).collect())
    }
}

fn has_maxima(state: &State<'_>) -> bool {
    ports().iter().any(|port| state.sites_of(port.port).iter().any(|(_, site)| is_positive(site.absmax)))
}

fn drawing(observed: &Observed<'_>) -> Option<Drawing> {
    let states: Vec<State<'_>> = observed.states.iter().copied().filter(has_maxima).collect();
    let first = states.first()?;
    let maxima = |state: &State<'_>, port: &str| -> Vec<(u32, f64)> {
        let sites = state.sites_of(port).into_iter().map(|(block, site)| (block, site.absmax));
        sites.filter(|(_, absmax)| is_positive(*absmax)).collect()
    };
    let shown: Vec<_> = ports()
        .into_iter()
        .filter(|port| states.iter().any(|state| !maxima(state, port.port).is_empty()))
        .collect();

    let mut canvas = Canvas::default();
    let y = canvas.title(
        &format!("Greatest activation of every block: {}", observed.model),
        &observed.about_calibration(),
    );
    let entries: Vec<_> =
        shown.iter().map(|port| (Sample::Marked(port.mark), port.colour, port.label())).collect();
    let y = canvas.legend(&entries, y + 8.0);
    let (panels, end) = panels(states.len(), 2, y, HEIGHT);
    let blocks = states.iter().map(State::blocks).max().unwrap_or(0);
    let all: Vec<f64> = states
        .iter()
        .flat_map(|state| shown.iter().flat_map(|port| maxima(state, port.port)))
        .map(|(_, absmax)| absmax)
        .collect();
    for (state, panel) in states.iter().zip(&panels) {
        let (upright, level) = (panel.upright(all.iter().copied()), panel.blocks(blocks));
        panel.heading(&mut canvas, &state.name());
        panel.upright_grid(&mut canvas, &upright, "greatest magnitude");
        panel.block_grid(&mut canvas, &level, "block, from 0");
        for port in &shown {
            let place = |(block, absmax): (u32, f64)| (level.place(block), upright.place(absmax));
            let points: Vec<_> = maxima(state, port.port).into_iter().map(place).collect();
            canvas.path(points.clone(), port.colour, STROKE);
            if blocks < MANY || points.len() == 1 {
                points.into_iter().for_each(|at| canvas.mark(at, port.mark, RADIUS, port.colour));
            }
        }
        panel.edges(&mut canvas);
    }

    let mut caption = format!(
        "Greatest magnitude of the activations of every block of {}. Blocks are numbered from 0; logarithmic. Lines are \
         the inputs of linear layers and the hidden states behind each block. {}",
        observed.model,
        observed.provenance(&states)
    );
    if states.len() > 1 {
        caption.push_str(" Tokens of a prefix are not among those seen.");
    }
    if !first.is_original() {
        caption.push_str(" There are no statistics of the model without a prefix.");
    }
    let stem = file_stem(&format!("activation-maxima/{}/{}", observed.model, observed.calibration));
    Some(canvas.finish(stem, caption, end))
}
