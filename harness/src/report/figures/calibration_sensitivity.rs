//! `calibration-sensitivity`: how much a recipe's perplexity changes with the calibration set, over the largest spike ratio
//! of the model, one drawing for each perplexity.
//!
//! # Reference
//! own. arXiv:2405.20835 claims that models with outliers are the ones that depend on their calibration set; here both are
//! axes. A mark is a recipe on a model, and models stand at their largest ratio, so the claim can be seen only across
//! models.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::calibrated::{self, Study, studies};
use crate::report::drawing::canvas::{Canvas, RADIUS, Sample, TEXT};
use crate::report::drawing::panel::panels;
use crate::report::drawing::{Anchor, Colour, Drawing, palette};
use crate::report::observed::is_positive;
use crate::report::pivot::distinct;
use crate::report::sections::robustness::largest_ratio;

/// See the module.
pub struct CalibrationSensitivity;

const HEIGHT: f64 = 260.0;
/// The smallest range that has a place of its own on the axis.
const LEAST: f64 = 1e-5;

impl Figure for CalibrationSensitivity {
    fn name(&self) -> &'static str {
        "calibration-sensitivity"
    }

    fn about(&self) -> &'static str {
        "what calibration sets change, over the spikes of the model"
    }

    fn applies(&self, contents: &Contents) -> bool {
        studies(contents).iter().any(|study| largest_ratio(contents, study.model).is_some())
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let studies = studies(contents);
        let is_perplexity = |id: &&str| id.split('/').any(|segment| segment == "perplexity");
        let metrics = distinct(studies.iter().map(|study| study.metric)).into_iter().filter(is_perplexity);
        Ok(metrics.filter_map(|metric| drawing(contents, metric, &studies)).collect())
    }
}

fn drawing(contents: &Contents, metric: &str, studies: &[Study<'_>]) -> Option<Drawing> {
    let of_metric: Vec<&Study<'_>> = studies.iter().filter(|study| study.metric == metric).collect();
    let models = distinct(of_metric.iter().map(|study| study.model));
    let places: Vec<(&str, f64)> = models
        .iter()
        .filter_map(|model| Some((*model, largest_ratio(contents, model)?.1)))
        .filter(|(_, ratio)| is_positive(*ratio))
        .collect();
    let recipes = distinct(of_metric.iter().map(|study| study.recipe));
    let mut points = Vec::new();
    for study in &of_metric {
        let Some((_, ratio)) = places.iter().find(|(model, _)| *model == study.model) else { continue };
        // The first axis is that of the first set, which is the reference of the sweep.
        let range = study.axes().into_iter().find_map(|(_, sets)| study.range(&sets));
        let series = recipes.iter().position(|recipe| *recipe == study.recipe)?;
        points.extend(range.map(|range| (*ratio, range.max(LEAST), series)));
    }
    if points.is_empty() {
        return None;
    }
    let mut canvas = Canvas::default();
    let name = calibrated::short_name(metric);
    let y = canvas.title(&format!("Spikes, and what calibration sets change: {name}"), metric);
    let entries: Vec<_> = recipes
        .iter()
        .enumerate()
        .map(|(i, recipe)| {
            let (colour, mark) = palette::series(i);
            (Sample::Mark(mark), colour, (*recipe).to_owned())
        })
        .collect();
    let y = canvas.legend(&entries, y + 8.0);
    let (panels, end) = panels(1, 1, y + TEXT, HEIGHT);
    let panel = panels[0];
    let upright = panel.upright(points.iter().map(|(_, range, _)| *range));
    // Room for marks that are moved apart.
    let level = panel.level(places.iter().flat_map(|(_, ratio)| [ratio / 1.25, ratio * 1.25]));
    panel.upright_grid(&mut canvas, &upright, "range of score ÷ reference");
    panel.level_grid(&mut canvas, &level, "largest spike ratio");
    for (i, (model, ratio)) in places.iter().enumerate() {
        let x = level.place(*ratio);
        canvas.line(
            (x, panel.top),
            (x, panel.bottom),
            Colour::GREY,
            1.0,
            Some(crate::report::drawing::canvas::DASH),
        );
        // Neighbours stand on two lines, so that long names do not cover one another.
        let anchor = if x > (panel.left + panel.right) / 2.0 { Anchor::End } else { Anchor::Start };
        let y = panel.top - 4.0 - (TEXT + 2.0) * (i % 2) as f64;
        canvas.text((x, y), model, TEXT, anchor, Colour::INK);
    }
    for (ratio, range, series) in &points {
        let (colour, mark) = palette::series(*series);
        // Marks of one model stand side by side where they would cover one another.
        let shift = 2.2 * RADIUS * (*series as f64 - (recipes.len() as f64 - 1.0) / 2.0);
        canvas.mark((level.place(*ratio) + shift, upright.place(*range)), mark, RADIUS, colour);
    }
    panel.edges(&mut canvas);
    let caption = format!(
        "Largest less smallest {name} over calibration sets of one reference, divided by that of the reference, over the \
         largest spike ratio of the model (dashed). Both logarithmic; marks of one model are moved apart; ranges below \
         {LEAST:e} stand there. As many points as there are models say something about the claim of arXiv:2405.20835."
    );
    Some(canvas.finish(format!("calibration-sensitivity-{}", file_stem(metric)), caption, end))
}
