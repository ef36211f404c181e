//! `spike-ratios`: the spike ratio of every group, with the α of each recipe that keeps groups by it.
//!
//! One drawing for each model and calibration set, a panel for the model as it is and for each prefix that it was
//! observed behind. A mark is a group: linear layers that read one input. A dashed line is the smallest ratio that a
//! recipe excepted from quantization, the α it amounts to; it stands in the panel of the state whose ratios the recipe
//! compared, and groups on or above it kept their activation in floating point.
//!
//! # Equation
//! r = mean over sequences of max_t s_t / median_t s_t, s_t = max over channels of |x_t|, the median being the lower one
//! (arXiv:2405.14428, "QFeM").

use super::{Figure, file_stem};
use crate::record::statistics::SiteSummary;
use crate::record::{CellResult, Contents};
use crate::report::ReportError;
use crate::report::drawing::canvas::{Canvas, DASH, DROP, RADIUS, SMALL, Sample};
use crate::report::drawing::panel::{Panel, panels};
use crate::report::drawing::{Anchor, Colour, Drawing, elide, text_width};
use crate::report::observed::{Observed, State, is_positive, of_references, ports};

/// See the module.
pub struct SpikeRatios;

/// Height of a panel in points.
const HEIGHT: f64 = 220.0;
/// Most room that the names of recipes may take beside a panel.
const NAMES: f64 = 190.0;
/// From one name to the next below it.
const LINE: f64 = 13.0;

/// An α and the recipes that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// The smallest ratio that was excepted.
    pub alpha: f64,
    /// Labels of recipes.
    pub recipes: Vec<String>,
}

impl Figure for SpikeRatios {
    fn name(&self) -> &'static str {
        "spike-ratios"
    }

    fn about(&self) -> &'static str {
        "spike ratio of every group, with the α of recipes that keep groups"
    }

    fn applies(&self, contents: &Contents) -> bool {
        of_references(contents).iter().any(|observed| observed.states.iter().any(has_ratios))
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        Ok(of_references(contents).iter().filter_map(drawing).collect())
    }
}

/// Groups of one port with a ratio that can be shown, by block.
fn ratios<'a>(state: &State<'a>, port: &str) -> Vec<(u32, f64, &'a SiteSummary)> {
    let sites = state.sites_of(port).into_iter();
    sites
        .filter_map(|(block, site)| Some((block, site.ratio.filter(|ratio| is_positive(*ratio))?, site)))
        .collect()
}

fn has_ratios(state: &State<'_>) -> bool {
    ports().iter().filter(|port| port.is_group()).any(|port| !ratios(state, port.port).is_empty())
}

/// The α of recipes that compared the ratios of this state, descending; recipes of one α together.
pub fn thresholds(observed: &Observed<'_>, state: &State<'_>) -> Vec<Threshold> {
    let mut found: Vec<Threshold> = Vec::new();
    for (planned, cell) in &observed.cells {
        for alpha in alphas(cell, state) {
            match found.iter_mut().find(|threshold| threshold.alpha == alpha) {
                Some(known) if known.recipes.contains(&planned.recipe) => {}
                Some(known) => known.recipes.push(planned.recipe.clone()),
                None => found.push(Threshold { alpha, recipes: vec![planned.recipe.clone()] }),
            }
        }
    }
    found.sort_by(|a, b| b.alpha.total_cmp(&a.alpha));
    found
}

/// What the cell's steps `keep` by `qfem` found by this state's ratios.
fn alphas(cell: &CellResult, state: &State<'_>) -> Vec<f64> {
    let result = state.result();
    if !cell.statistics.contains(&result.id) {
        return Vec::new();
    }
    let found = cell.steps.iter().enumerate().filter_map(|(place, step)| {
        // A pooled ratio is another number than the one shown.
        let of_qfem = step["step"] == "keep" && step["method"] == "qfem" && step["ratio"] != "pooled";
        let seen = if step["of"] == "present" { &cell.steps[..place] } else { &[][..] };
        let alpha = cell.fitted.get(&format!("{place}.keep"))?["alpha"].as_f64()?;
        (of_qfem && seen == result.steps.as_slice() && is_positive(alpha)).then_some(alpha)
    });
    found.collect()
}

fn drawing(observed: &Observed<'_>) -> Option<Drawing> {
    let states: Vec<State<'_>> = observed.states.iter().copied().filter(has_ratios).collect();
    states.first()?;
    let groups: Vec<_> = ports().into_iter().filter(|port| port.is_group()).collect();
    let thresholds: Vec<Vec<Threshold>> = states.iter().map(|state| thresholds(observed, state)).collect();

    let mut canvas = Canvas::default();
    let y = canvas
        .title(&format!("Spike ratio of every group: {}", observed.model), &observed.about_calibration());
    let mut entries: Vec<_> = groups
        .iter()
        .filter(|port| states.iter().any(|state| !ratios(state, port.port).is_empty()))
        .map(|port| (Sample::Mark(port.mark), port.colour, port.label()))
        .collect();
    let has_lines = thresholds.iter().any(|thresholds| !thresholds.is_empty());
    if has_lines {
        entries.push((Sample::Dashes, Colour::GREY, "α of a recipe".to_owned()));
    }
    let y = canvas.legend(&entries, y + 8.0);
    let (mut panels, end) = panels(states.len(), 1, y, HEIGHT);
    let names = thresholds.iter().flatten().map(|one| text_width(&name(one), SMALL)).fold(0.0, f64::max);
    let blocks = states.iter().map(State::blocks).max().unwrap_or(0);
    let every = |state: &State<'_>| -> Vec<f64> {
        groups.iter().flat_map(|port| ratios(state, port.port)).map(|(_, ratio, _)| ratio).collect()
    };
    let alphas = thresholds.iter().flatten().map(|one| one.alpha);
    let all: Vec<f64> = states.iter().flat_map(every).chain(alphas).collect();
    for ((state, panel), thresholds) in states.iter().zip(&mut panels).zip(&thresholds) {
        if has_lines {
            panel.right -= names + 16.0;
        }
        let (upright, level) = (panel.upright(all.iter().copied()), panel.blocks(blocks));
        panel.heading(&mut canvas, &state.name());
        panel.upright_grid(&mut canvas, &upright, "spike ratio");
        panel.block_grid(&mut canvas, &level, "block, from 0");
        let heights: Vec<f64> = thresholds.iter().map(|one| upright.place(one.alpha)).collect();
        for (one, (y, beside)) in thresholds.iter().zip(heights.iter().zip(apart(&heights, panel))) {
            let end = (panel.right, *y);
            canvas.line((panel.left, *y), end, Colour::GREY, 1.0, Some(DASH));
            let Some(beside) = beside else { continue };
            canvas.line(end, (panel.right + 10.0, beside), Colour::GREY, 1.0, None);
            let at = (panel.right + 14.0, beside + DROP * SMALL);
            canvas.text(at, &name(one), SMALL, Anchor::Start, Colour::INK);
        }
        for (i, port) in groups.iter().enumerate() {
            // Side by side within a block, so that equal ratios do not hide one another.
            let aside = (i as f64 + 0.5 - groups.len() as f64 / 2.0) * (level.step() / 6.0).min(9.0);
            for (block, ratio, _) in ratios(state, port.port) {
                let at = (level.place(block) + aside, upright.place(ratio));
                canvas.mark(at, port.mark, RADIUS, port.colour);
            }
        }
        panel.edges(&mut canvas);
    }

    let mut caption = format!(
        "Spike ratio of every group of linear layers of {}, by block and port. The ratio is the mean over samples of the \
         greatest token scale by the lower median; blocks are numbered from 0. {}",
        observed.model,
        observed.provenance(&states)
    );
    if has_lines {
        caption.push_str(
            " Dashed lines are the smallest ratio that each recipe excepted: groups on or above it keep their \
             activation in floating point.",
        );
    }
    let sites = |state: &State<'_>| groups.iter().map(|port| state.sites_of(port.port).len()).sum::<usize>();
    let without = states.iter().map(|state| sites(state) - every(state).len()).sum::<usize>();
    if without > 0 {
        caption.push_str(&format!(" Groups without a ratio, a median being zero: {without}."));
    }
    let stem = file_stem(&format!("spike-ratios/{}/{}", observed.model, observed.calibration));
    Some(canvas.finish(stem, caption, end))
}

/// `7.558: qfem2, both`.
fn name(threshold: &Threshold) -> String {
    let alpha = threshold.alpha;
    let decimals = (3 - alpha.log10().floor() as i32).clamp(0, 3) as usize;
    elide(&format!("{alpha:.decimals$}: {}", threshold.recipes.join(", ")), SMALL, NAMES)
}

/// Where names stand beside lines at these heights (ascending on the page): as near as they can without touching, and
/// none for those that find no room.
fn apart(heights: &[f64], panel: &Panel) -> Vec<Option<f64>> {
    let room = (((panel.bottom - panel.top) / LINE) as usize).min(heights.len());
    let mut places: Vec<f64> = Vec::with_capacity(room);
    for height in &heights[..room] {
        let least = places.last().map_or(panel.top, |last| last + LINE);
        places.push(height.max(least));
    }
    let mut most = panel.bottom;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - LINE;
    }
    (0..heights.len()).map(|i| places.get(i).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beside_lines_keep_apart_and_inside() {
        let panel = Panel { left: 0.0, right: 100.0, top: 50.0, bottom: 150.0 };
        let places = apart(&[60.0, 61.0, 62.0, 149.0, 150.0], &panel);
        let places: Vec<f64> = places.into_iter().map(|place| place.unwrap()).collect();
        assert_eq!(places, [60.0, 73.0, 86.0, 137.0, 150.0]);
        let many: Vec<f64> = (0..40).map(|i| 140.0 + f64::from(i) / 4.0).collect();
        let places = apart(&many, &panel);
        assert_eq!(places.iter().flatten().count(), 7);
        assert!(places.iter().flatten().all(|place| (50.0..=150.0).contains(place)));
        assert!(apart(&[], &panel).is_empty());
    }
}
