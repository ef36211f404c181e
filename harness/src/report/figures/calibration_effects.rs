//! `calibration-effects`: scores normalised to the reference set, as grouped bars, one drawing for each metric and kind of
//! sets:
//!
//! - `nonsense`: generated punctuation and random tokens against the reference;
//! - `task`: questions and answers of tasks against the reference;
//! - `language`: parallel texts in several languages against the one that is their reference;
//! - `naive`: all sets, for recipes that only round.
//!
//! # Reference
//! arXiv:2405.20835: its grouped bars of perplexity and accuracy with a web text against nonsense, with the content of a
//! task, with languages, and of naive W8A8, all per model. There the bars stand on 0; here they begin at the reference, so
//! that a difference of a per cent can be seen.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::calibrated::{self, Content, SetScores, Study, studies};
use crate::report::drawing::Drawing;
use crate::report::drawing::bars::{Bar, Bars, Row};
use crate::report::pivot::distinct;
use crate::report::recipes::{is_activations, is_weights};

/// See the module.
pub struct CalibrationEffects;

impl Figure for CalibrationEffects {
    fn name(&self) -> &'static str {
        "calibration-effects"
    }

    fn about(&self) -> &'static str {
        "scores by calibration set, normalised to the reference: nonsense, tasks, languages, naive recipes"
    }

    fn applies(&self, contents: &Contents) -> bool {
        let studies = studies(contents);
        studies.iter().any(|study| KINDS.iter().any(|kind| !kind.sets(study).is_empty()))
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let studies = studies(contents);
        let metrics = distinct(studies.iter().map(|study| study.metric));
        let mut drawings = Vec::new();
        for metric in metrics {
            let of_metric: Vec<&Study<'_>> = studies.iter().filter(|study| study.metric == metric).collect();
            drawings.extend(KINDS.iter().filter_map(|kind| kind.drawing(metric, &of_metric)));
        }
        Ok(drawings)
    }
}

/// A kind of sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Of(Content),
    Naive,
}

const KINDS: [Kind; 4] =
    [Kind::Of(Content::Nonsense), Kind::Of(Content::Task), Kind::Of(Content::Language), Kind::Naive];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Of(Content::Nonsense) => "nonsense",
            Kind::Of(Content::Task) => "task",
            Kind::Of(Content::Language) => "language",
            Kind::Of(Content::Text) => "text",
            Kind::Naive => "naive",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Kind::Of(Content::Nonsense) => "Calibration with nonsense",
            Kind::Of(Content::Task) => "Calibration with the content of a task",
            Kind::Of(Content::Language) => "Calibration in other languages",
            Kind::Of(Content::Text) => "Calibration with other texts",
            Kind::Naive => "Recipes that only round, by calibration set",
        }
    }

    /// The sets of this kind with their references before them; none where a reference is all there is.
    fn sets<'b, 'a>(self, study: &'b Study<'a>) -> Vec<&'b SetScores<'a>> {
        if self == Kind::Naive && !is_naive(study) {
            return Vec::new();
        }
        let is_of = |set: &SetScores<'_>| match self {
            Kind::Of(content) => set.content == content,
            Kind::Naive => true,
        };
        let mut sets: Vec<&SetScores<'a>> = Vec::new();
        for set in study.sets.iter().filter(|set| is_of(set) && set.name != set.reference) {
            let reference =
                study.set(set.reference).filter(|r| !sets.iter().any(|known| known.name == r.name));
            sets.extend(reference);
            sets.push(set);
        }
        sets
    }

    fn drawing(self, metric: &str, studies: &[&Study<'_>]) -> Option<Drawing> {
        let models = distinct(studies.iter().map(|study| study.model));
        let mut groups = Vec::new();
        for recipe in distinct(studies.iter().map(|study| study.recipe)) {
            let of_recipe: Vec<&&Study<'_>> = studies.iter().filter(|study| study.recipe == recipe).collect();
            let names = distinct(
                of_recipe.iter().flat_map(|study| self.sets(study)).map(|set| (set.name, set.reference)),
            );
            let row = |&(name, reference): &(&str, &str)| {
                let bars = of_recipe.iter().filter_map(|study| {
                    let set = study.set(name)?;
                    let normalised =
                        set.values().into_iter().filter_map(|value| study.normalised(set, value));
                    let series = models.iter().position(|model| *model == study.model)?;
                    Some(Bar { series, values: normalised.collect() })
                });
                let name = if name == reference { format!("{name} (reference)") } else { name.to_owned() };
                Row { name, bars: bars.collect() }
            };
            let rows: Vec<Row> = names.iter().map(row).collect();
            if !rows.is_empty() {
                groups.push((recipe.to_owned(), rows));
            }
        }
        if groups.is_empty() {
            return None;
        }
        let better = match calibrated::lower_is_better(metric) {
            Some(true) => ", above 1 is worse",
            Some(false) => ", above 1 is better",
            None => "",
        };
        let name = calibrated::short_name(metric);
        let chart = Bars {
            title: format!("{}: {name}", self.title()),
            series: models.iter().map(|model| (*model).to_owned()).collect(),
            groups,
            baseline: 1.0,
            baseline_name: "reference set".to_owned(),
            axis: (format!("{name} ÷ that of the reference{better}"), metric.to_owned()),
        };
        let caption = format!(
            "{} of {name}, divided by that with the set's reference: the mean over seeds, with a dot for each where there \
             are several. Bars begin at the reference. Raw values stand in the tables.",
            self.title()
        );
        Some(chart.draw(format!("calibration-effects-{}-{}", self.name(), file_stem(metric)), caption))
    }
}

/// Whether a recipe has no steps but those that round.
fn is_naive(study: &Study<'_>) -> bool {
    let cell = study.sets.iter().flat_map(|set| &set.draws).map(|draw| draw.cell).next();
    cell.is_some_and(|cell| {
        let naive = |step: &serde_json::Value| {
            (is_weights(step) && step.get("solver").is_none_or(|solver| solver == "rtn"))
                || is_activations(step)
        };
        cell.steps.iter().all(naive)
    })
}
