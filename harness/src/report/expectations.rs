//! Anchors: what an experiment expects, beside what was measured.

use super::rows::{Row, rows};
use super::table::{Cell, Column, Digits, Kind, Table};
use crate::record::{Contents, ManifestExpectation};

/// What became of an expectation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Measured within the tolerance.
    Met {
        /// The value.
        measured: f64,
    },
    /// Measured outside of the tolerance.
    Missed {
        /// The value.
        measured: f64,
    },
    /// Nothing to compare with yet, or it failed.
    NotMeasured,
}

/// Every expectation with its verdict, in the order of the experiment. One that names no calibration where there are
/// several is judged by the value that is furthest from what is expected.
pub fn judge(contents: &Contents) -> Vec<(&ManifestExpectation, Verdict)> {
    let rows = rows(contents);
    contents
        .manifest
        .expectations
        .iter()
        .map(|expectation| (expectation, verdict(expectation, &rows)))
        .collect()
}

fn verdict(expectation: &ManifestExpectation, rows: &[Row<'_>]) -> Verdict {
    let concerns = |row: &&Row<'_>| {
        row.cell.model == expectation.model
            && row.cell.recipe == expectation.recipe
            && row.metric == expectation.metric
            && (expectation.calibration.is_none() || row.cell.calibration == expectation.calibration)
    };
    let distance = |value: &f64| (value - expectation.value).abs();
    let furthest = rows
        .iter()
        .filter(concerns)
        .filter_map(Row::value)
        .max_by(|a, b| distance(a).total_cmp(&distance(b)));
    match furthest {
        // Written so that a NaN is a miss.
        Some(measured) if expectation.is_met_by(measured) => Verdict::Met { measured },
        Some(measured) => Verdict::Missed { measured },
        None => Verdict::NotMeasured,
    }
}

/// The expectations as a table; `None` where the experiment has none.
pub fn table(contents: &Contents) -> Option<Table> {
    let judged = judge(contents);
    if judged.is_empty() {
        return None;
    }
    let columns = [
        ("model", Kind::Text),
        ("recipe", Kind::Text),
        ("metric", Kind::Text),
        ("expected", Kind::Number),
        ("tolerance", Kind::Number),
        ("measured", Kind::Number),
        ("difference", Kind::Number),
        ("verdict", Kind::Text),
        ("source", Kind::Text),
    ];
    let mut table = Table::new("Expectations", columns.map(|(name, kind)| Column::new(name, kind)).to_vec());
    for (expectation, verdict) in judged {
        let (measured, word) = match verdict {
            Verdict::Met { measured } => (Some(measured), "met"),
            Verdict::Missed { measured } => (Some(measured), "missed"),
            Verdict::NotMeasured => (None, "not measured"),
        };
        let number = |value, digits| Cell::Number { value, stderr: None, digits };
        let difference = |measured: f64| {
            // As many decimals as the measured value has beside it.
            let shown = number(measured, Digits::Significant(4)).spelled();
            let decimals = shown.and_then(|(text, _)| Some(text.split_once('.')?.1.len())).unwrap_or(0);
            number(measured - expectation.value, Digits::Decimals(decimals))
        };
        table.rows.push(vec![
            Cell::text(&expectation.model),
            Cell::text(&expectation.recipe),
            Cell::text(&expectation.metric),
            Cell::exact(expectation.value),
            Cell::exact(expectation.tolerance),
            measured.map_or(Cell::Missing, |measured| number(measured, Digits::Significant(4))),
            measured.map_or(Cell::Missing, difference),
            Cell::text(word),
            Cell::text(&expectation.source),
        ]);
    }
    Some(table)
}
