//! What calibration sets do to a recipe: its scores by set and seed, taken from the manifest and the measurements.
//!
//! A set's scores are normalised to those of its reference: the set that its block names, else the first of the manifest.
//! Means over seeds are divided, so the reference has exactly 1.

use serde_json::Value;

use super::metric::{self, Direction};
use super::pivot::distinct;
use super::rows::{self, Outcome};
use crate::record::{CellResult, Contents, MeasurementResult};

/// A model under a recipe that reads calibration sets, measured by one metric.
#[derive(Clone, Debug)]
pub struct Study<'a> {
    /// The model's label.
    pub model: &'a str,
    /// The recipe's name.
    pub recipe: &'a str,
    /// Full metric id.
    pub metric: &'a str,
    /// In the order of the manifest; only those with a number.
    pub sets: Vec<SetScores<'a>>,
}

/// The scores of one set.
#[derive(Clone, Debug)]
pub struct SetScores<'a> {
    /// The set's name.
    pub name: &'a str,
    /// The name of its reference.
    pub reference: &'a str,
    /// What its text is.
    pub content: Content,
    /// One a seed, in the order of the manifest.
    pub draws: Vec<Drawn<'a>>,
}

/// A score of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Drawn<'a> {
    /// The seed.
    pub seed: Option<u64>,
    /// The measurement.
    pub result: &'a MeasurementResult,
    /// The cell.
    pub cell: &'a CellResult,
}

/// What the text of a set is, as far as a report tells kinds apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Generated: punctuation or random tokens.
    Nonsense,
    /// A parallel text in some language.
    Language,
    /// Questions and answers of a task.
    Task,
    /// Any other text.
    Text,
}

impl SetScores<'_> {
    /// The values.
    pub fn values(&self) -> Vec<f64> {
        self.draws.iter().map(|draw| draw.result.value).collect()
    }

    /// Their mean.
    pub fn mean(&self) -> f64 {
        self.draws.iter().map(|draw| draw.result.value).sum::<f64>() / self.draws.len() as f64
    }
}

impl<'a> Study<'a> {
    /// The set of this name.
    pub fn set(&self, name: &str) -> Option<&SetScores<'a>> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// A value of a set in units of its reference's mean, if that was measured and is not 0.
    pub fn normalised(&self, set: &SetScores<'_>, value: f64) -> Option<f64> {
        let reference = self.set(set.reference)?.mean();
        (reference.is_finite() && reference != 0.0).then(|| value / reference)
    }

    /// The sets that are normalised to one reference, the reference first.
    pub fn axes(&self) -> Vec<(&'a str, Vec<&SetScores<'a>>)> {
        let references = distinct(self.sets.iter().map(|set| set.reference));
        let of = |reference: &'a str| {
            let mut sets: Vec<_> = self.sets.iter().filter(|set| set.reference == reference).collect();
            sets.sort_by_key(|set| set.name != reference);
            (reference, sets)
        };
        references.into_iter().map(of).collect()
    }

    /// Largest less smallest normalised mean of the sets of one reference.
    pub fn range(&self, sets: &[&SetScores<'_>]) -> Option<f64> {
        let normalised = sets.iter().filter_map(|set| self.normalised(set, set.mean()));
        let (low, high) =
            normalised.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (v.min(l), v.max(h)));
        (sets.len() > 1 && low <= high).then_some(high - low)
    }
}

/// Every model × recipe × metric that was measured under two calibration sets or more.
pub fn studies(contents: &Contents) -> Vec<Study<'_>> {
    let rows = rows::rows(contents);
    let reference_of = |set: &str| -> Option<&str> {
        let named = contents.manifest.calibration_references.get(set).map(String::as_str);
        named.or_else(|| contents.manifest.calibrations.first().map(String::as_str))
    };
    let mut studies: Vec<Study<'_>> = Vec::new();
    for metric in metrics(contents) {
        for row in rows.iter().filter(|row| row.last && row.metric == metric) {
            let (Some(set), Outcome::Measured(result)) = (row.cell.calibration.as_deref(), row.outcome)
            else {
                continue;
            };
            let cell = contents.cells.iter().map(|cell| &cell.result).find(|cell| cell.id == row.cell.id);
            let (Some(cell), Some(reference), true) = (cell, reference_of(set), result.value.is_finite())
            else {
                continue;
            };
            let (model, recipe) = (row.cell.model.as_str(), row.cell.recipe.as_str());
            // A searched prefix alone is no quantized model.
            if matches!(cell.steps.as_slice(), [step] if step["step"] == "prefix") {
                continue;
            }
            let same = |s: &Study<'_>| s.model == model && s.recipe == recipe && s.metric == metric;
            let at = studies.iter().position(same).unwrap_or_else(|| {
                studies.push(Study { model, recipe, metric, sets: Vec::new() });
                studies.len() - 1
            });
            let sets = &mut studies[at].sets;
            let place = sets.iter().position(|known| known.name == set).unwrap_or_else(|| {
                sets.push(SetScores { name: set, reference, content: content(cell), draws: Vec::new() });
                sets.len() - 1
            });
            sets[place].draws.push(Drawn { seed: row.cell.seed, result, cell });
        }
    }
    studies.retain(|study| study.sets.len() > 1);
    let order = |set: &SetScores<'_>| {
        contents.manifest.calibrations.iter().position(|name| name == set.name).unwrap_or(usize::MAX)
    };
    studies.iter_mut().for_each(|study| study.sets.sort_by_key(order));
    studies
}

/// The metrics that stand for an evaluation: of a task's accuracies the normalised one where it has one.
pub fn metrics(contents: &Contents) -> Vec<&str> {
    let ids = rows::metrics(contents);
    let has = |id: &str, from: &str, to: &str| ids.contains(&id.replace(from, to).as_str());
    let stands = |id: &&str| {
        let other = [("/acc/", "/acc_norm/"), ("/acc_bytes/", "/acc_norm/"), ("/acc_bytes/", "/acc/")];
        !other.iter().any(|(own, better)| id.contains(own) && has(id, own, better))
    };
    ids.iter().copied().filter(stands).collect()
}

/// Whether smaller values are better; nothing where it is not known. A task's metric is the segment behind its version.
pub fn lower_is_better(id: &str) -> Option<bool> {
    let named = id.split('/').map(metric::direction).find(|direction| *direction != Direction::Unstated);
    match named? {
        Direction::LowerIsBetter => Some(true),
        Direction::HigherIsBetter => Some(false),
        Direction::Unstated => None,
    }
}

/// A metric as short as it can be told from others: `wikitext2-test` for its perplexity, `piqa acc_norm`.
pub fn short_name(id: &str) -> String {
    let segments: Vec<&str> = id.split('/').collect();
    match segments.as_slice() {
        ["perplexity", _, corpus, ..] => format!("perplexity {corpus}"),
        [task, _, _, measure, ..] => format!("{task} {measure}"),
        _ => id.to_owned(),
    }
}

/// [`short_name`]s, or the full ids where two would be the same.
pub fn short_names(ids: &[&str]) -> Vec<String> {
    let short: Vec<String> = ids.iter().map(|id| short_name(id)).collect();
    if distinct(short.iter()).len() == short.len() {
        short
    } else {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }
}

fn content(cell: &CellResult) -> Content {
    let text = |key: &str| {
        let calibration = cell.calibration.as_ref();
        calibration.and_then(|set| set.get(key)).and_then(Value::as_str).unwrap_or_default()
    };
    if text("text-origin") == "generated" {
        Content::Nonsense
    } else if text("text").starts_with("udhr/") {
        Content::Language
    } else if text("text").starts_with("questions and answers of ") {
        Content::Task
    } else {
        Content::Text
    }
}

/// Losses of windows, or whether items were right: what two measurements of one evaluation can be paired by. Nothing
/// where the record does not hold them.
pub fn per_item(result: &MeasurementResult) -> Option<Vec<f64>> {
    let losses = result.detail.get("window-losses")?.as_array()?;
    losses.iter().map(Value::as_f64).collect()
}

/// Which sets figures of activations show, where there are many: those that others are normalised to.
pub fn is_reference(contents: &Contents, set: &str) -> bool {
    let manifest = &contents.manifest;
    manifest.calibrations.len() <= 3
        || manifest.calibrations.first().is_some_and(|first| first == set)
        || manifest.calibration_references.values().any(|reference| reference == set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_short_names_and_directions() {
        let wiki = "perplexity/gptq/wikitext2-test/512/bos=every/windows=8";
        let piqa = "piqa/lm-eval-0.4.13/v1.0/acc_norm/shots=0/bos=tokenizer/items=uniform/half=second";
        assert_eq!(short_names(&[wiki, piqa]), ["perplexity wikitext2-test", "piqa acc_norm"]);
        let other = "perplexity/gptq/wikitext2-test/256/bos=every";
        assert_eq!(short_names(&[wiki, other]), [wiki, other]);
        assert_eq!((lower_is_better(wiki), lower_is_better(piqa)), (Some(true), Some(false)));
        assert_eq!(lower_is_better("wall-time/s"), None);
    }
}
