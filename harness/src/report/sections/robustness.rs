//! `robustness`: what the calibration set does to a recipe. Four kinds of tables, made where recipes were measured under
//! two sets or more:
//!
//! - for each model and recipe, which calibration set with which evaluation: raw values, and normalised to the set's
//!   reference, whose own are exactly 1;
//! - for each model, the parts of the spread: seeds within a set, sets, items;
//! - for each model and metric, how often one recipe is better than another over (set, seed) pairs;
//! - for each model, the largest spike ratio beside what the sets change.
//!
//! # Reference
//! arXiv:2405.20835 for the question; arXiv:2311.09755 for many sets and seeds. Formulas: [`crate::paired::variance`].

use std::collections::BTreeMap;

use super::Section;
use crate::paired::{CONFIDENCE, Interval, difference, variance};
use crate::record::Contents;
use crate::report::calibrated::{self, SetScores, Study};
use crate::report::observed;
use crate::report::pivot::distinct;
use crate::report::rows::{self, ORIGINAL};
use crate::report::table::{Cell, Column, Digits, Kind, Table};

/// See the module.
pub struct Robustness;

impl Section for Robustness {
    fn name(&self) -> &'static str {
        "robustness"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let studies = calibrated::studies(contents);
        let models = distinct(studies.iter().map(|study| study.model));
        let mut tables = Vec::new();
        for model in models {
            let of_model: Vec<&Study<'_>> = studies.iter().filter(|study| study.model == model).collect();
            for recipe in distinct(of_model.iter().map(|study| study.recipe)) {
                let of_recipe: Vec<&Study<'_>> =
                    of_model.iter().copied().filter(|study| study.recipe == recipe).collect();
                tables.push(matrix(model, recipe, &of_recipe));
            }
            tables.extend(spreads(model, &of_model));
            tables.extend(rankings(contents, model, &of_model));
            tables.extend(sensitivities(contents, model, &of_model));
        }
        tables
    }
}

/// Calibration sets × evaluations of one recipe.
fn matrix(model: &str, recipe: &str, studies: &[&Study<'_>]) -> Table {
    let ids: Vec<&str> = studies.iter().map(|study| study.metric).collect();
    let sets = distinct(studies.iter().flat_map(|study| &study.sets).map(|set| (set.name, set.reference)));
    let mut columns = vec![
        Column::new("calibration", Kind::Text),
        Column::new("reference", Kind::Text),
        Column::new("seeds", Kind::Count),
    ];
    for name in calibrated::short_names(&ids) {
        columns.push(Column::new(&name, Kind::Number));
        columns.push(Column::new(&format!("{name} ÷ reference"), Kind::Number));
    }
    let mut table = Table::new(&format!("Calibration × evaluation: {recipe} on {model}"), columns);
    for (name, reference) in sets {
        let seeds = studies.iter().filter_map(|s| s.set(name)).map(|set| set.draws.len()).max().unwrap_or(0);
        let mut cells = vec![Cell::text(name), Cell::text(reference), Cell::Count(seeds as u64)];
        for study in studies {
            let Some(set) = study.set(name) else {
                cells.extend([Cell::Missing, Cell::Missing]);
                continue;
            };
            let mean = set.mean();
            cells.push(Cell::Number { value: mean, stderr: None, digits: Digits::Significant(4) });
            cells.push(study.normalised(set, mean).map_or(Cell::Missing, ratio));
        }
        table.rows.push(cells);
    }
    table.notes.push(
        "means over seeds; ÷ reference: divided by that of the set's reference, which is exactly 1; above 1 is worse for a \
         perplexity and better for an accuracy"
            .to_owned(),
    );
    table.notes.extend(ids.iter().map(|id| format!("{}: `{id}`", calibrated::short_name(id))));
    table
}

fn ratio(value: f64) -> Cell {
    let digits = if value.abs() < 10.0 { Digits::Decimals(4) } else { Digits::Significant(4) };
    Cell::Number { value, stderr: None, digits }
}

/// What a metric is analysed on, and in which unit: perplexities by their logarithm, accuracies in points.
fn scale(id: &str) -> (fn(f64) -> f64, &'static str) {
    match calibrated::lower_is_better(id) {
        Some(true) if id.contains("perplexity") => (|value| 100.0 * value.ln(), "100 ln"),
        Some(false) => (|value| 100.0 * value, "points"),
        _ => (|value| value, "raw"),
    }
}

/// The spread of every recipe, taken apart.
fn spreads(model: &str, studies: &[&Study<'_>]) -> Option<Table> {
    let ids = distinct(studies.iter().map(|study| study.metric));
    let names: BTreeMap<&str, String> = ids.iter().copied().zip(calibrated::short_names(&ids)).collect();
    let columns = [
        ("recipe", Kind::Text),
        ("metric", Kind::Text),
        ("unit", Kind::Text),
        ("sets of", Kind::Text),
        ("sets", Kind::Count),
        ("values", Kind::Count),
        ("range", Kind::Number),
        ("sd seeds", Kind::Number),
        ("sd seeds 95 %", Kind::Text),
        ("sd sets", Kind::Number),
        ("sd sets 95 %", Kind::Text),
        ("se items", Kind::Number),
        ("se items, paired", Kind::Number),
    ];
    let mut table = Table::new(
        &format!("Spread over calibration sets, seeds and items: {model}"),
        columns.map(|(name, kind)| Column::new(name, kind)).to_vec(),
    );
    let (mut floored, mut unbalanced) = (false, false);
    for study in studies {
        let (scaled, unit) = scale(study.metric);
        for (reference, sets) in study.axes() {
            if sets.len() < 2 {
                continue;
            }
            let groups: Vec<Vec<f64>> =
                sets.iter().map(|set| set.values().into_iter().map(scaled).collect()).collect();
            let all = || groups.iter().flatten().copied();
            let range = all().fold(f64::NEG_INFINITY, f64::max) - all().fold(f64::INFINITY, f64::min);
            let parts = variance::components(&groups, CONFIDENCE).ok();
            let [within, between] = match parts {
                Some(parts) => {
                    floored |= parts.between.floored;
                    unbalanced |= !parts.balanced;
                    [deviation(&parts.within), deviation(&parts.between)]
                }
                None => [[Cell::Missing, Cell::Missing], [Cell::Missing, Cell::Missing]],
            };
            let mut row = vec![
                Cell::text(study.recipe),
                Cell::text(&names[study.metric]),
                Cell::text(unit),
                Cell::text(reference),
                Cell::Count(sets.len() as u64),
                Cell::Count(all().count() as u64),
                number(range),
            ];
            row.extend(within);
            row.extend(between);
            row.push(item_noise(study.metric, &sets).map_or(Cell::Missing, number));
            row.push(paired_noise(study, &sets).map_or(Cell::Missing, number));
            table.rows.push(row);
        }
    }
    if table.rows.is_empty() {
        return None;
    }
    table.notes.extend(
        [
            "unit: 100 ln is a hundred times the logarithm of a perplexity, so 1 is about 1 %; points are percentage points",
            "sets of: the reference of the sets that are compared. range: largest less smallest value of all sets and seeds; \
             with few seeds it says more than a standard deviation does",
            "sd seeds, sd sets: one-way random effects, of seeds within a set and of sets besides; intervals by χ² and after \
             Williams and Tukey. None where no set has two seeds: then seeds and sets cannot be told apart",
            "se items: standard error of one value over its windows or items, the same for all rows of a metric; paired: of \
             the difference to the reference on the same windows, the median over sets. A range below a few of these may be \
             chance of the text",
        ]
        .map(str::to_owned),
    );
    if floored {
        table.notes.push("an sd of sets of 0 was estimated below 0 and is floored".to_owned());
    }
    if unbalanced {
        table.notes.push(
            "sets with unequally many seeds: n₀ of them count, and intervals are approximate".to_owned(),
        );
    }
    Some(table)
}

fn number(value: f64) -> Cell {
    Cell::Number { value, stderr: None, digits: Digits::Significant(3) }
}

/// A standard deviation, and its interval in words.
fn deviation(component: &variance::Component) -> [Cell; 2] {
    let (value, Interval { low, high }) = component.deviation();
    let word = |value: f64| number(value).spelled().map_or_else(String::new, |(text, _)| text);
    [number(value), Cell::Text(format!("{} to {}", word(low), word(high)))]
}

/// The mean standard error of a value over its windows or items, in the unit of the metric.
fn item_noise(id: &str, sets: &[&SetScores<'_>]) -> Option<f64> {
    let draws = || sets.iter().flat_map(|set| &set.draws);
    let errors: Vec<f64> = draws()
        .filter_map(|draw| {
            let (value, stderr) = (draw.result.value, draw.result.stderr?);
            Some(match scale(id).1 {
                // By the delta method.
                "100 ln" => 100.0 * stderr / value,
                "points" => 100.0 * stderr,
                _ => stderr,
            })
        })
        .collect();
    (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
}

/// The median standard error of a difference to the reference on the same windows. Seeds of one rank are paired.
fn paired_noise(study: &Study<'_>, sets: &[&SetScores<'_>]) -> Option<f64> {
    let mut errors = Vec::new();
    for set in sets.iter().filter(|set| set.name != set.reference) {
        let reference = study.set(set.reference)?;
        for (draw, other) in set.draws.iter().zip(&reference.draws) {
            let (Some(own), Some(theirs)) =
                (calibrated::per_item(draw.result), calibrated::per_item(other.result))
            else {
                continue;
            };
            let estimate = difference::means(&theirs, &own).ok()?;
            errors.extend(estimate.stderr.map(|stderr| 100.0 * stderr));
        }
    }
    errors.sort_by(f64::total_cmp);
    (!errors.is_empty()).then(|| crate::paired::sorted_quantile(&errors, 0.5))
}

/// For each metric, how often one recipe is better than another.
fn rankings(contents: &Contents, model: &str, studies: &[&Study<'_>]) -> Vec<Table> {
    let ids = distinct(studies.iter().map(|study| study.metric));
    ids.into_iter().filter_map(|id| ranking(contents, model, id)).collect()
}

/// A recipe's values: by set and seed, or one for all of them.
enum Scores<'a> {
    Drawn(BTreeMap<(&'a str, Option<u64>), f64>),
    Fixed(f64),
}

fn ranking(contents: &Contents, model: &str, id: &str) -> Option<Table> {
    let lower = calibrated::lower_is_better(id)?;
    let mut recipes: Vec<(&str, Scores<'_>)> = Vec::new();
    let prefixed: Vec<&str> = contents
        .cells
        .iter()
        .filter(|cell| matches!(cell.result.steps.as_slice(), [step] if step["step"] == "prefix"))
        .map(|cell| cell.result.id.as_str())
        .collect();
    for row in rows::rows(contents).iter().filter(|row| row.last && row.metric == id) {
        let cell = row.cell;
        if cell.model != model || cell.recipe == ORIGINAL || prefixed.contains(&cell.id.as_str()) {
            continue;
        }
        let Some(value) = row.value() else { continue };
        let Some(set) =
            contents.manifest.calibrations.iter().find(|set| Some(*set) == cell.calibration.as_ref())
        else {
            if cell.seed.is_none() {
                recipes.push((&cell.recipe, Scores::Fixed(value)));
            }
            continue;
        };
        match recipes.iter_mut().find(|(recipe, _)| *recipe == cell.recipe) {
            Some((_, Scores::Drawn(values))) => {
                values.insert((set, cell.seed), value);
            }
            Some(_) => {}
            None => {
                recipes.push((
                    &cell.recipe,
                    Scores::Drawn(BTreeMap::from([((set.as_str(), cell.seed), value)])),
                ));
            }
        }
    }
    if recipes.len() < 2 {
        return None;
    }
    let mut columns = vec![Column::new("recipe", Kind::Text)];
    columns.extend(recipes.iter().map(|(recipe, _)| Column::new(recipe, Kind::Text)));
    let caption = format!(
        "How often the row's recipe is better than the column's, over calibration sets and seeds: {model}, {id}"
    );
    let mut table = Table::new(&caption, columns);
    for (recipe, own) in &recipes {
        let mut row = vec![Cell::text(recipe)];
        for (other, theirs) in &recipes {
            let pairs = pairs(own, theirs);
            let share = variance::better(&pairs, lower).filter(|_| recipe != other);
            row.push(
                share.map_or(Cell::Missing, |share| Cell::Text(format!("{share:.2} ({})", pairs.len()))),
            );
        }
        table.rows.push(row);
    }
    table.notes.push(
        "share of (set, seed) pairs, their number in brackets; ties count half. A recipe that reads no calibration set stands \
         with its one value against every pair. Pairs of one set share its text, so they are fewer independent trials than \
         their number says"
            .to_owned(),
    );
    Some(table)
}

fn pairs(own: &Scores<'_>, theirs: &Scores<'_>) -> Vec<(f64, f64)> {
    match (own, theirs) {
        (Scores::Drawn(own), Scores::Drawn(theirs)) => {
            own.iter().filter_map(|(key, value)| Some((*value, *theirs.get(key)?))).collect()
        }
        (Scores::Drawn(own), Scores::Fixed(value)) => own.values().map(|own| (*own, *value)).collect(),
        (Scores::Fixed(value), Scores::Drawn(theirs)) => theirs.values().map(|v| (*value, *v)).collect(),
        (Scores::Fixed(own), Scores::Fixed(theirs)) => vec![(*own, *theirs)],
    }
}

/// The site with the largest spike ratio of a model without a prefix, over the first reference set that has any.
pub fn largest_ratio(contents: &Contents, model: &str) -> Option<(String, f64)> {
    let observed = observed::observed(contents);
    let of_model: Vec<_> =
        observed.iter().filter(|one| one.model == model && one.original().is_some()).collect();
    let first = contents.manifest.calibrations.first();
    let chosen = of_model.iter().find(|one| Some(one.calibration) == first.map(String::as_str));
    let state = chosen.or(of_model.first())?.original()?;
    let ratios = state.result().sites.iter().filter(|site| site.port != crate::record::statistics::RESIDUAL);
    let ratios = ratios.filter_map(|site| Some((site.site.clone(), site.ratio?)));
    ratios.max_by(|a, b| a.1.total_cmp(&b.1))
}

fn sensitivities(contents: &Contents, model: &str, studies: &[&Study<'_>]) -> Option<Table> {
    let (site, largest) = largest_ratio(contents, model)?;
    let ids = distinct(studies.iter().map(|study| study.metric));
    let references = distinct(studies.iter().flat_map(|study| study.axes()).map(|(reference, _)| reference));
    let mut columns = vec![Column::new("recipe", Kind::Text), Column::new("sets of", Kind::Text)];
    let names = calibrated::short_names(&ids);
    columns
        .extend(names.iter().map(|name| Column::new(&format!("range of {name} ÷ reference"), Kind::Number)));
    let mut table = Table::new(&format!("What calibration sets change, beside the spikes: {model}"), columns);
    for recipe in distinct(studies.iter().map(|study| study.recipe)) {
        for reference in &references {
            let of = |id: &&str| {
                let study = studies.iter().find(|study| study.recipe == recipe && study.metric == *id)?;
                let (_, sets) = study.axes().into_iter().find(|(known, _)| known == reference)?;
                study.range(&sets)
            };
            let ranges: Vec<Option<f64>> = ids.iter().map(of).collect();
            if ranges.iter().all(Option::is_none) {
                continue;
            }
            let mut row = vec![Cell::text(recipe), Cell::text(reference)];
            row.extend(ranges.into_iter().map(|range| range.map_or(Cell::Missing, ratio)));
            table.rows.push(row);
        }
    }
    let largest = number(largest).spelled().map_or_else(String::new, |(text, _)| text);
    table.notes.push(format!(
        "largest spike ratio of {model}: {largest} at {site} (mean over sequences of the largest token scale over the median). \
         arXiv:2405.20835 says that models with outliers depend on the calibration set; one model shows nothing of that, \
         compare models"
    ));
    (!table.rows.is_empty()).then_some(table)
}
