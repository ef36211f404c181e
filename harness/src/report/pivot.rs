//! Pivots: the long form as the tables a person compares by.
//!
//! Rows are recipes, columns are models × metric ids. Each measured column is followed by the ratio to the original of
//! the same model and metric id, so nothing is ever compared across protocols.

use super::metric;
use super::rows::{ORIGINAL, Outcome, Row};
use super::table::{Cell, Column, Digits, Kind, Table};
use crate::record::Failure;

/// What names a row of a pivot: recipe, calibration, seed.
pub type RowKey<'a> = (&'a str, Option<&'a str>, Option<u64>);

/// The keys of the rows of a pivot, each once, recipes in the manifest's order of cells with the original first.
pub fn row_keys<'a>(rows: &[Row<'a>]) -> Vec<RowKey<'a>> {
    let mut keys: Vec<RowKey<'a>> = Vec::new();
    for row in rows {
        let key = row_key(row);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    // Cells may be planned model by model; a recipe's rows belong together whatever that order was.
    let recipes: Vec<&str> = keys.iter().map(|key| key.0).collect();
    let first = |recipe: &str| recipes.iter().position(|other| *other == recipe);
    keys.sort_by_key(|key| (key.0 != ORIGINAL, first(key.0), key.1, key.2));
    keys
}

/// The key of the pivot's row that this row belongs to.
pub fn row_key<'a>(row: &Row<'a>) -> RowKey<'a> {
    (&row.cell.recipe, row.cell.calibration.as_deref(), row.cell.seed)
}

/// The reading that stands for a cell in pivots and figures: the last state that was measured.
pub fn is_final(row: &Row<'_>) -> bool {
    row.last
}

/// Distinct values, each once, in order of appearance.
pub fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for value in values {
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    kept
}

/// The pivot of `rows` over `metrics`: value ± standard error and ratio to the original, one pair of columns for each
/// model and metric id.
pub fn pivot(caption: &str, rows: &[Row<'_>], metrics: &[&str]) -> Table {
    let rows: Vec<Row<'_>> =
        rows.iter().filter(|row| metrics.contains(&row.metric) && is_final(row)).copied().collect();
    let keys = row_keys(&rows);
    let models = distinct(rows.iter().map(|row| row.cell.model.as_str()));
    let by_calibration = distinct(keys.iter().filter_map(|key| key.1)).len() > 1;
    let by_seed = distinct(keys.iter().filter_map(|key| key.2)).len() > 1;

    let mut columns = vec![Column::new("recipe", Kind::Text)];
    if by_calibration {
        columns.push(Column::new("calibration", Kind::Text));
    }
    if by_seed {
        columns.push(Column::new("seed", Kind::Count));
    }
    let names = columns.len();
    let mut measured = Vec::new();
    for model in &models {
        for metric in metrics {
            let name = if metrics.len() > 1 { format!("{model} · {metric}") } else { (*model).to_owned() };
            columns.push(Column::new(&name, Kind::Number));
            columns.push(Column::new(&format!("{name} ÷ original"), Kind::Number));
            measured.push((*model, *metric));
        }
    }

    let mut table = Table::new(caption, columns);
    for key in keys {
        let mut cells = vec![Cell::text(key.0)];
        if by_calibration {
            cells.push(key.1.map_or(Cell::Missing, Cell::text));
        }
        if by_seed {
            cells.push(key.2.map_or(Cell::Missing, Cell::Count));
        }
        for (model, metric) in &measured {
            let of_column = |row: &&Row<'_>| row.cell.model == *model && row.metric == *metric;
            let row = rows.iter().filter(of_column).find(|row| row_key(row) == key);
            let original = rows.iter().filter(of_column).find(|row| row.cell.recipe == ORIGINAL);
            let original = original.and_then(Row::value);
            cells.push(row.map_or(Cell::Missing, cell));
            cells.push(match (row.and_then(Row::value), original) {
                (Some(value), Some(original)) if original != 0.0 && key.0 != ORIGINAL => {
                    let ratio = value / original;
                    Cell::Number { value: ratio, stderr: None, digits: ratio_digits(ratio) }
                }
                _ => Cell::Missing,
            });
        }
        table.rows.push(cells);
    }

    let directions = distinct(metrics.iter().filter_map(|id| metric::direction(id).words()));
    if let [words] = directions.as_slice() {
        let stderr = rows.iter().any(|row| matches!(row.outcome, Outcome::Measured(m) if m.stderr.is_some()));
        let errors = if stderr { "; ± one standard error" } else { "" };
        table.notes.push(format!("{words}{errors}"));
    }
    table.notes.extend(failure_notes(&rows));
    table.leave_out_unrun(names);
    table
}

/// The cell of a pivot that shows this row.
pub fn cell(row: &Row<'_>) -> Cell {
    match row.outcome {
        Outcome::Measured(m) => {
            Cell::Number { value: m.value, stderr: m.stderr, digits: Digits::Significant(4) }
        }
        Outcome::Failed(failure) => Cell::Failed { stage: failure.stage.clone() },
        Outcome::Missing => Cell::Missing,
    }
}

/// Three decimals show a change of 0.1 %; beyond tenfold nobody reads them.
fn ratio_digits(ratio: f64) -> Digits {
    if ratio.abs() < 10.0 { Digits::Decimals(3) } else { Digits::Significant(3) }
}

/// The failures behind `rows`, each once, with the labels of the rows it spoiled.
pub fn failures<'a>(rows: &[Row<'a>]) -> Vec<(Vec<String>, &'a Failure)> {
    let mut found: Vec<(Vec<String>, &Failure)> = Vec::new();
    for row in rows {
        if let Outcome::Failed(failure) = row.outcome {
            let label = format!("`{}` of `{}`", row.cell.recipe, row.cell.model);
            match found.iter_mut().find(|(_, known)| std::ptr::eq(*known, failure)) {
                Some((labels, _)) if labels.contains(&label) => {}
                Some((labels, _)) => labels.push(label),
                None => found.push((vec![label], failure)),
            }
        }
    }
    found
}

/// What is said of the failures behind `rows` below a table.
pub fn failure_notes(rows: &[Row<'_>]) -> Vec<String> {
    failures(rows).into_iter().map(|(labels, failure)| failure_note(&labels, failure)).collect()
}

fn failure_note(labels: &[String], failure: &Failure) -> String {
    let cure = if failure.cure.is_empty() { String::new() } else { format!(". Cure: {}", failure.cure) };
    format!(
        "{} failed at {}: {}{cure}",
        labels.join(", "),
        failure.stage,
        failure.message.trim_end_matches('.')
    )
}
