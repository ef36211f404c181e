//! `calibration-matrix`: which calibration set with which evaluation, as heat maps of normalised scores, one drawing for
//! each model with a panel for each recipe.
//!
//! A colour is the logarithm of the score over that of the set's reference, turned so that orange is worse and blue is
//! better than with the reference. Overfitting to the calibration text is a blue cell where text and evaluation are of a
//! kind, with orange ones beside it.
//!
//! # Reference
//! own. The table behind it is that of calibration effects in LLMC's documentation.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::calibrated::{self, Study, studies};
use crate::report::drawing::canvas::{Canvas, DROP, MARGIN, SMALL, Sample, TEXT, WIDTH};
use crate::report::drawing::{Anchor, Colour, Drawing, elide, palette, text_width};
use crate::report::pivot::distinct;

/// See the module.
pub struct CalibrationMatrix;

/// Height of a row, and room of a panel's heading and of the names of columns.
const ROW: f64 = 17.0;
const HEADING: f64 = 22.0;
/// Most and least room of a column, and air between panels.
const WIDEST: f64 = 130.0;
const LEAST: f64 = 80.0;
const GAP: f64 = 16.0;
/// Most room that the names of sets may take.
const NAMES: f64 = 150.0;

impl Figure for CalibrationMatrix {
    fn name(&self) -> &'static str {
        "calibration-matrix"
    }

    fn about(&self) -> &'static str {
        "calibration sets × evaluations, normalised to the reference set"
    }

    fn applies(&self, contents: &Contents) -> bool {
        !studies(contents).is_empty()
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let studies = studies(contents);
        let models = distinct(studies.iter().map(|study| study.model));
        Ok(models.into_iter().filter_map(|model| drawing(model, &studies)).collect())
    }
}

fn drawing(model: &str, studies: &[Study<'_>]) -> Option<Drawing> {
    let of_model: Vec<&Study<'_>> = studies.iter().filter(|study| study.model == model).collect();
    let metrics = distinct(of_model.iter().map(|study| study.metric));
    let recipes = distinct(of_model.iter().map(|study| study.recipe));
    let sets = distinct(of_model.iter().flat_map(|study| &study.sets).map(|set| (set.name, set.reference)));
    // Positive is worse.
    let loss = |recipe: &str, set: &str, metric: &str| -> Option<(f64, f64)> {
        let study = of_model.iter().find(|s| s.recipe == recipe && s.metric == metric)?;
        let scores = study.set(set)?;
        let normalised = study.normalised(scores, scores.mean())?;
        let sign = if calibrated::lower_is_better(metric) == Some(false) { -1.0 } else { 1.0 };
        (normalised > 0.0).then(|| (normalised, sign * normalised.ln()))
    };
    let all = recipes.iter().flat_map(|recipe| {
        let loss = &loss;
        let metrics = &metrics;
        sets.iter()
            .flat_map(move |(set, _)| metrics.iter().filter_map(move |metric| loss(recipe, set, metric)))
    });
    let largest = all.map(|(_, loss)| loss.abs()).fold(0.0, f64::max);
    // Small losses keep a colour beside large ones: the root of the share.
    let tone = |loss: f64| {
        let share = if largest > 0.0 { (loss.abs() / largest).sqrt() } else { 0.0 };
        palette::signed_tone(0.9 * share.copysign(loss))
    };

    let mut canvas = Canvas::default();
    let y = canvas.title(
        &format!("Calibration × evaluation: {model}"),
        "scores divided by those with the set's reference",
    );
    let worst = format!("{:.2} times worse", largest.exp());
    let entries = [
        (Sample::Patch, tone(largest), worst),
        (Sample::Patch, tone(0.1 * largest), format!("{:.3} times worse", (0.1 * largest).exp())),
        (Sample::Patch, tone(-0.1 * largest), format!("{:.3} times better", (0.1 * largest).exp())),
    ];
    let entries: &[_] = if largest > 0.0 { &entries } else { &[] };
    let y = canvas.legend(entries, y + 8.0) + 6.0;
    let widest = sets.iter().map(|(set, _)| text_width(&elide(set, TEXT, NAMES), TEXT)).fold(0.0, f64::max);
    // As many panels side by side as there is room for.
    let names_room = widest + 8.0;
    let least = names_room + LEAST * metrics.len() as f64 + GAP;
    let across = (((WIDTH - 2.0 * MARGIN) / least) as usize).clamp(1, recipes.len().max(1));
    let width = (WIDTH - 2.0 * MARGIN) / across as f64;
    let column = ((width - names_room - GAP) / metrics.len() as f64).min(WIDEST);
    let names = calibrated::short_names(&metrics);
    // A study may not have come to every set with every recipe.
    let sets_of = |recipe: &str| {
        let here = |set: &str| metrics.iter().any(|metric| loss(recipe, set, metric).is_some());
        sets.iter().copied().filter(|(set, _)| here(set)).collect::<Vec<_>>()
    };
    let panels = recipes.iter().map(|&recipe| (recipe, sets_of(recipe)));
    let panels: Vec<_> = panels.filter(|(_, sets)| !sets.is_empty()).collect();
    let (mut top, mut end) = (y, y);
    for (place, (recipe, sets)) in panels.iter().enumerate() {
        if place % across == 0 {
            top = end;
        }
        let left = MARGIN + width * (place % across) as f64 + names_room;
        let mut y = top;
        canvas.text((left, y + HEADING - 7.0), recipe, TEXT, Anchor::Start, Colour::INK);
        y += HEADING;
        for (i, name) in names.iter().enumerate() {
            let name = elide(name.trim_start_matches("perplexity "), SMALL, column - 4.0);
            let x = left + column * (i as f64 + 0.5);
            canvas.text((x, y + SMALL), &name, SMALL, Anchor::Middle, Colour::GREY);
        }
        y += SMALL + 6.0;
        for (set, reference) in sets {
            let middle = y + ROW / 2.0;
            let name = elide(set, TEXT, NAMES);
            canvas.text((left - 8.0, middle + DROP * TEXT), &name, TEXT, Anchor::End, Colour::INK);
            for (i, metric) in metrics.iter().enumerate() {
                let x = left + column * i as f64;
                let Some((value, loss)) = loss(recipe, set, metric) else { continue };
                let colour = tone(loss);
                canvas.fill((x + 0.5, y + 0.5), (x + column - 0.5, y + ROW - 0.5), colour);
                let text = if set == reference { "1".to_owned() } else { written(value) };
                let at = (x + column / 2.0, middle + DROP * SMALL);
                canvas.text(at, &text, SMALL, Anchor::Middle, Colour::INK);
            }
            y += ROW;
        }
        end = end.max(y + 8.0);
    }
    let caption = format!(
        "Calibration sets (rows) and evaluations (columns) of {model}: scores divided by those with the set's reference, \
         means over seeds. Orange is worse than with the reference and blue is better, whichever way the metric points; \
         lightness goes by the root of the logarithm."
    );
    Some(canvas.finish(file_stem(&format!("calibration-matrix/{model}")), caption, end))
}

/// Four digits near 1, fewer far from it.
fn written(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.3}"),
        value if value < 1000.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}
