//! The long form: one row per planned measurement, measured or not.
//!
//! Everything a report shows is made from these rows, in the order of the manifest, so that a missing or failed
//! measurement is a row like any other and cannot be overlooked.

use std::collections::BTreeMap;

use super::metric;
use super::table::{Cell, Column, Kind, Table};
use crate::record::{Contents, Failure, ManifestCell, MeasurementResult, Reading};

/// The recipe label of the untouched model.
pub const ORIGINAL: &str = "original";

/// A planned measurement and what became of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row<'a> {
    /// The cell under its experiment's names.
    pub cell: &'a ManifestCell,
    /// The state of the model that is, or was to be, measured.
    pub reading: Reading,
    /// Full metric id.
    pub metric: &'a str,
    /// What became of it.
    pub outcome: Outcome<'a>,
    /// Whether no later state of the same cell was measured: what stands for the cell in pivots and figures.
    pub last: bool,
}

/// What became of a planned measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome<'a> {
    /// There is a value.
    Measured(&'a MeasurementResult),
    /// It, or its cell, failed.
    Failed(&'a Failure),
    /// Not run yet.
    Missing,
}

impl Row<'_> {
    /// The measured value, if there is one.
    pub fn value(&self) -> Option<f64> {
        match self.outcome {
            Outcome::Measured(result) => Some(result.value),
            _ => None,
        }
    }
}

/// One row per planned measurement in the order of the manifest (a cell with several readings of one metric has a row
/// for each). Where the store holds several versions of a metric, only the newest in the store counts: values of two
/// versions are not comparable.
pub fn rows(contents: &Contents) -> Vec<Row<'_>> {
    let newest = newest_versions(contents);
    let mut measured: BTreeMap<(&str, &str), Vec<&MeasurementResult>> = BTreeMap::new();
    for envelope in &contents.measurements {
        let result = &envelope.result;
        if newest.get(result.metric.as_str()) == Some(&result.version) {
            measured.entry((&result.cell, &result.metric)).or_default().push(result);
        }
    }
    for results in measured.values_mut() {
        results.sort_by_key(|result| result.reading);
    }

    let mut rows = Vec::new();
    for cell in &contents.manifest.cells {
        let reading = if cell.recipe == ORIGINAL { Reading::Original } else { Reading::Quantized };
        for metric in &cell.metrics {
            if let Some(results) = measured.get(&(cell.id.as_str(), metric.as_str())) {
                let last = results.len() - 1;
                rows.extend(results.iter().enumerate().map(|(i, &result)| Row {
                    cell,
                    reading: result.reading,
                    metric,
                    outcome: Outcome::Measured(result),
                    last: i == last,
                }));
                continue;
            }
            let failure = contents
                .failures
                .iter()
                .filter(|failure| failure.cell == cell.id)
                .find(|failure| failure.metric.as_ref().is_none_or(|failed| failed == metric));
            let outcome = failure.map_or(Outcome::Missing, Outcome::Failed);
            rows.push(Row { cell, reading, metric, outcome, last: true });
        }
    }
    rows
}

/// The metric ids of the plan, each once, in the order they are first asked for.
pub fn metrics(contents: &Contents) -> Vec<&str> {
    let mut ids: Vec<&str> = Vec::new();
    for id in contents.manifest.cells.iter().flat_map(|cell| &cell.metrics) {
        if !ids.contains(&id.as_str()) {
            ids.push(id);
        }
    }
    ids
}

/// What a reader must know before trusting the rows: measurements of an older version that were left out.
pub fn warnings(contents: &Contents) -> Vec<String> {
    let newest = newest_versions(contents);
    let planned: Vec<&str> = contents.manifest.cells.iter().map(|cell| cell.id.as_str()).collect();
    let mut outdated: BTreeMap<(&str, u32), usize> = BTreeMap::new();
    for result in contents.measurements.iter().map(|envelope| &envelope.result) {
        let superseded = contents.measurements.iter().any(|other| {
            other.result.cell == result.cell
                && other.result.metric == result.metric
                && Some(&other.result.version) == newest.get(result.metric.as_str())
        });
        if !superseded && planned.contains(&result.cell.as_str()) {
            *outdated.entry((&result.metric, result.version)).or_default() += 1;
        }
    }
    outdated
        .into_iter()
        .map(|((metric, version), count)| {
            let newest = newest[metric];
            format!(
                "{count} measurement(s) of `{metric}` have version {version} and are left out: version {newest} is not \
                 comparable. Run the sweep again."
            )
        })
        .collect()
}

fn newest_versions(contents: &Contents) -> BTreeMap<&str, u32> {
    let mut newest = BTreeMap::new();
    for result in contents.measurements.iter().map(|envelope| &envelope.result) {
        let version = newest.entry(result.metric.as_str()).or_insert(result.version);
        *version = result.version.max(*version);
    }
    newest
}

/// The long form as a table: `model, recipe, calibration, seed, reading, metric, protocol, value, stderr, n, status`.
pub fn long_table(contents: &Contents) -> Table {
    let columns = [
        ("model", Kind::Text),
        ("recipe", Kind::Text),
        ("calibration", Kind::Text),
        ("seed", Kind::Count),
        ("reading", Kind::Text),
        ("metric", Kind::Text),
        ("protocol", Kind::Text),
        ("value", Kind::Number),
        ("stderr", Kind::Number),
        ("n", Kind::Count),
        ("status", Kind::Text),
    ];
    let mut table = Table::new("Measurements", columns.map(|(name, kind)| Column::new(name, kind)).to_vec());
    for row in rows(contents) {
        let (name, protocol) = metric::split(row.metric);
        let (value, stderr, n, status) = match row.outcome {
            Outcome::Measured(result) => (
                Cell::exact(result.value),
                result.stderr.map_or(Cell::Missing, Cell::exact),
                Cell::Count(result.n),
                "ok".to_owned(),
            ),
            Outcome::Failed(failure) => {
                (Cell::Missing, Cell::Missing, Cell::Missing, format!("failed: {}", failure.stage))
            }
            Outcome::Missing => (Cell::Missing, Cell::Missing, Cell::Missing, "missing".to_owned()),
        };
        table.rows.push(vec![
            Cell::text(&row.cell.model),
            Cell::text(&row.cell.recipe),
            row.cell.calibration.as_deref().map_or(Cell::Missing, Cell::text),
            row.cell.seed.map_or(Cell::Missing, Cell::Count),
            Cell::text(row.reading.as_str()),
            Cell::text(name),
            Cell::text(protocol),
            value,
            stderr,
            n,
            Cell::text(&status),
        ]);
    }
    table
}
