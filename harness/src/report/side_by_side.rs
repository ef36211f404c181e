//! Two cells side by side: two recipes of one results folder, or the same cells of two folders, paired item by item and
//! window by window from what is on record. Nothing is run.
//!
//! One table for each metric id, so that no two protocols meet; its comparisons are one family for Holm's and Benjamini
//! and Hochberg's corrections.

use crate::names::glob;
use crate::paired::mcnemar::Outcome as Decided;
use crate::record::items::ItemRow;
use crate::record::{AGAINST_ORIGINAL, Contents, MeasurementResult};
use crate::report::metric;
use crate::report::paired_items::{self, Compared, Measure, Pair, adjusted, paired_cells, paired_columns};
use crate::report::paired_texts::{self, Delta};
use crate::report::pivot::{self, distinct};
use crate::report::rows::{self, Outcome, Row};
use crate::report::table::{Cell, Column, Kind, Table};

/// One of the two sides.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its records.
    pub contents: &'a Contents,
    /// The recipes to take, a glob; all where there is none.
    pub recipe: Option<&'a str>,
}

/// Which cells and metrics to compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct Only<'a> {
    /// Models, as globs; all where there is none.
    pub models: &'a [String],
    /// Metric ids or their first segments, as globs; all where there is none.
    pub metrics: &'a [String],
}

impl Only<'_> {
    fn takes(globs: &[String], names: &[&str]) -> bool {
        globs.is_empty() || globs.iter().any(|pattern| names.iter().any(|name| glob(pattern, name)))
    }
}

/// The tables of what can be compared; none where no cell of one side has a partner on the other.
///
/// Partners are of the same model and metric, and of the same recipe unless both sides name theirs; their calibration set
/// and seed are the same, where both have one.
pub fn tables(first: Side<'_>, second: Side<'_>, only: Only<'_>) -> Vec<Table> {
    let (of_first, of_second) = (measured(first), measured(second));
    let free = first.recipe.is_some() && second.recipe.is_some();
    let mut tables = Vec::new();
    for id in distinct(of_first.iter().map(|row| row.metric)) {
        if !Only::takes(only.metrics, &[id, metric::split(id).0]) {
            continue;
        }
        let mut pairs: Vec<Both<'_>> = Vec::new();
        for a in of_first.iter().filter(|row| row.metric == id) {
            if !Only::takes(only.models, &[&a.cell.model]) {
                continue;
            }
            // A glob that takes the first side's recipe along does not ask for it against itself.
            let itself = |b: &Row<'_>| {
                std::ptr::eq(first.contents, second.contents)
                    && a.cell.id == b.cell.id
                    && first.recipe != second.recipe
            };
            let partner = |b: &&Row<'_>| b.metric == id && partners(a, b, free) && !itself(b);
            for b in of_second.iter().filter(partner) {
                let Some((x, y)) = value(a).zip(value(b)) else { continue };
                pairs.push(Both { rows: [*a, *b], measured: [x, y] });
            }
        }
        if pairs.is_empty() {
            continue;
        }
        let accuracy =
            paired_items::parse(id).filter(|_| paired_items::named_items(pairs[0].measured[0]).is_some());
        if let Some((task, measure, protocol)) = accuracy {
            tables.push(items(
                &format!("{} of {task} ({protocol})", measure.name()),
                measure,
                &pairs,
                first,
                second,
            ));
        } else if metric::split(id).0 == "perplexity" || AGAINST_ORIGINAL.contains(&metric::split(id).0) {
            tables.push(texts(id, &pairs));
        }
    }
    tables
}

/// Two measurements and the rows that name them.
struct Both<'a> {
    rows: [Row<'a>; 2],
    measured: [&'a MeasurementResult; 2],
}

fn measured<'a>(side: Side<'a>) -> Vec<Row<'a>> {
    let mut rows = rows::rows(side.contents);
    rows.retain(|row| row.last && side.recipe.is_none_or(|pattern| glob(pattern, &row.cell.recipe)));
    rows
}

fn value<'a>(row: &Row<'a>) -> Option<&'a MeasurementResult> {
    match row.outcome {
        Outcome::Measured(measured) => Some(measured),
        _ => None,
    }
}

fn partners(a: &Row<'_>, b: &Row<'_>, free: bool) -> bool {
    fn agree<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
        a.is_none() || b.is_none() || a == b
    }
    let same_draw = agree(&a.cell.calibration, &b.cell.calibration) && agree(&a.cell.seed, &b.cell.seed);
    a.cell.model == b.cell.model && same_draw && (free || a.cell.recipe == b.cell.recipe)
}

fn label(row: &Row<'_>) -> String {
    let (recipe, calibration, seed) = pivot::row_key(row);
    let calibration = calibration.map(|name| format!(" · {name}")).unwrap_or_default();
    let seed = seed.map(|seed| format!(" · seed {seed}")).unwrap_or_default();
    format!("{recipe}{calibration}{seed}")
}

fn names(pair: &Both<'_>) -> [Cell; 3] {
    [Cell::text(&pair.rows[0].cell.model), Cell::Text(label(&pair.rows[0])), Cell::Text(label(&pair.rows[1]))]
}

fn name_columns() -> Vec<Column> {
    ["model", "first", "second"].map(|name| Column::new(name, Kind::Text)).to_vec()
}

fn items(caption: &str, measure: Measure, pairs: &[Both<'_>], first: Side<'_>, second: Side<'_>) -> Table {
    let mut columns = name_columns();
    columns.push(Column::new("items", Kind::Count));
    for side in ["first", "second"] {
        columns.push(Column::new(&format!("{} {side}", measure.name()), Kind::Number));
        columns.push(Column::new(&format!("{side} 95 %"), Kind::Number));
    }
    columns.extend(paired_columns());
    let mut table = Table::new(&format!("Item by item, {caption}: second less first"), columns);
    type Read = (Result<Vec<ItemRow>, String>, Option<Vec<Decided>>);
    let read = |side: Side<'_>, measured: &MeasurementResult| -> Read {
        let rows = paired_items::read(side.contents, measured);
        let outcomes = rows.as_ref().ok().and_then(|rows| measure.outcomes(rows));
        (rows, outcomes)
    };
    let read: Vec<[Read; 2]> =
        pairs.iter().map(|pair| [read(first, pair.measured[0]), read(second, pair.measured[1])]).collect();
    let compared: Vec<Compared> = read
        .iter()
        .map(|[(a, before), (b, after)]| {
            let (a, b) = (a.as_ref().map_err(Clone::clone)?, b.as_ref().map_err(Clone::clone)?);
            match paired_items::mismatch("the first", a, b) {
                Some(reason) => Err(reason),
                None => Ok(before.as_ref().zip(after.as_ref()).and_then(|(a, b)| Pair::of(a, b))),
            }
        })
        .collect();
    for (((pair, sides), compared), cells) in
        pairs.iter().zip(&read).zip(&compared).zip(paired_cells(&compared))
    {
        let mut row = names(pair).to_vec();
        row.push(sides[1].1.as_ref().map_or(Cell::Missing, |outcomes| Cell::Count(outcomes.len() as u64)));
        for (side, (_, outcomes)) in pair.rows.iter().zip(sides) {
            row.extend(paired_items::accuracy_cells(Some(side), outcomes.as_deref()));
        }
        row.extend(cells);
        table.rows.push(row);
        if let Err(reason) = compared {
            table.notes.push(format!("`{}` {reason}", label(&pair.rows[1])));
        }
    }
    table
}

fn texts(id: &str, pairs: &[Both<'_>]) -> Table {
    let (name, protocol) = metric::split(id);
    let difference = if name == "perplexity" { "Δ ln ppl" } else { "difference" };
    let mut columns = name_columns();
    columns.extend(["value first", "value second"].map(|name| Column::new(name, Kind::Number)));
    columns.push(Column::new(difference, Kind::Number));
    columns.extend(
        ["95 %", "bootstrap 95 %", "p", "p Holm", "p BH"].map(|name| Column::new(name, Kind::Number)),
    );
    columns.push(Column::new("units", Kind::Count));
    let caption = format!("Window by window, {name} ({protocol}): second less first");
    let mut table = Table::new(&caption, columns);
    let compared: Vec<Result<Option<Delta>, String>> = pairs
        .iter()
        .map(|pair| Ok(Delta::of(&paired_texts::differences(pair.measured[0], pair.measured[1])?)))
        .collect();
    let delta = |compared: &Result<Option<Delta>, String>| compared.as_ref().ok().copied().flatten();
    let raw: Vec<Option<f64>> = compared.iter().map(|c| delta(c)?.estimate.p_value()).collect();
    for ((pair, compared), p_values) in pairs.iter().zip(&compared).zip(adjusted(&raw)) {
        let mut row = names(pair).to_vec();
        row.extend(pair.rows.iter().map(pivot::cell));
        let delta = delta(compared);
        row.extend(delta.map_or_else(|| std::array::from_fn(|_| Cell::Missing), |delta| delta.cells()));
        row.extend(p_values);
        row.push(delta.map_or(Cell::Missing, |delta| Cell::Count(delta.estimate.units)));
        table.rows.push(row);
        if let Err(reason) = compared {
            table.notes.push(format!("`{}` {reason}", label(&pair.rows[1])));
        }
    }
    table.notes.push(
        "± is one standard error, clustered by window (by document under the protocol of that name); p: two-sided, normal"
            .to_owned(),
    );
    table
}
