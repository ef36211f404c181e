//! `accuracy`: accuracies with intervals and their paired differences to the original, one table for each task, protocol
//! and model, computed from the items on record.
//!
//! Only readings of the same items are paired: the same documents and requests in the same order. A recipe with a prefix
//! is also compared with the original behind the same prefix, in a second table, because a prefix changes the original,
//! too. The formulas are those of [`crate::paired`].
//!
//! # Reference
//! Flips: arXiv:2407.09141. Minimum detectable effect: arXiv:2605.28873.

use super::Section;
use crate::paired::mcnemar::Outcome;
use crate::record::Contents;
use crate::record::items::ItemRow;
use crate::report::paired_items::{
    Compared, Measure, Pair, accuracy_cells, mismatch, named_items, paired_cells, paired_columns, parse,
    read, right,
};
use crate::report::pivot::{self, distinct};
use crate::report::recipes;
use crate::report::rows::{self, ORIGINAL, Outcome as Became, Row};
use crate::report::table::{Cell, Column, Kind, Table};

/// See the module.
pub struct Accuracy;

impl Section for Accuracy {
    fn name(&self) -> &'static str {
        "accuracy"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let rows = rows::rows(contents);
        let mut tables = Vec::new();
        for group in groups(contents) {
            let of_group: Vec<Row<'_>> =
                rows.iter().filter(|row| row.last && group.ids.contains(&row.metric)).copied().collect();
            for model in distinct(of_group.iter().map(|row| row.cell.model.as_str())) {
                let of_model: Vec<Row<'_>> =
                    of_group.iter().filter(|row| row.cell.model == model).copied().collect();
                let lines = lines(contents, &group, &of_model);
                tables.push(against_original(&group, model, &lines));
                tables.extend(against_prefixed(contents, &group, model, &lines));
            }
        }
        // One explanation is enough for a report with dozens of these tables.
        if let Some((first, others)) = tables.split_first_mut() {
            first.notes.splice(0..0, LEGEND.map(str::to_owned));
            for table in others {
                table.notes.insert(0, "columns as explained below the first table of accuracies".to_owned());
            }
        }
        tables
    }
}

/// What the columns are.
const LEGEND: [&str; 8] = [
    "acc is the share of items whose right answer has the highest log-likelihood, or whose target is what greedy decoding \
     gives; acc_norm the same by log-likelihood per character; higher is better. ± is one standard error, “95 %” Wilson's \
     interval of the one accuracy; two of these intervals say little about a difference, the paired columns do",
    "diff points: accuracy less that of the original on the same items, in percentage points, ± one standard error; diff 95 %: \
     Newcombe's interval of paired proportions",
    "bootstrap 95 %: the same difference, from 10 000 draws of the items (percentiles)",
    "lost: items that only the original has right; gained: items that only the recipe has right; both together are the \
     flips. all flips: also counts one wrong answer for another",
    "p: exact two-sided McNemar test of lost against gained",
    "p Holm: adjusted over the comparisons of this table, so that the chance of even one false difference keeps the level",
    "p BH: adjusted by Benjamini and Hochberg over the same comparisons, so that the share of false ones among the \
     differences found keeps the level",
    "MDE points: the smallest difference that one test at level 0.05 finds with probability 0.8, given so many items and \
     flips; if it is larger than flips over items, no difference could have been found. None where nothing flips",
];

/// The accuracies of one task under one protocol.
struct Group<'a> {
    task: &'a str,
    /// The metric ids without task and measure.
    protocol: String,
    /// Planned ids in the order of the plan.
    ids: Vec<&'a str>,
    measures: Vec<(Measure, &'a str)>,
}

impl<'a> Group<'a> {
    /// What stands in columns: acc and acc_norm; acc_bytes only where there is nothing else.
    fn columns(&self) -> Vec<(Measure, &'a str)> {
        let find = |measure| self.measures.iter().find(|(other, _)| *other == measure).copied();
        let columns: Vec<_> = [Measure::Acc, Measure::AccNorm].into_iter().filter_map(find).collect();
        if columns.is_empty() { self.measures.clone() } else { columns }
    }

    /// What is paired: acc_norm where the task has it.
    fn primary(&self) -> (Measure, &'a str) {
        *self.columns().last().expect("a group is made of an id")
    }
}

/// The accuracies of which at least one measurement names its items.
fn groups(contents: &Contents) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for id in rows::metrics(contents) {
        let Some((task, measure, protocol)) = parse(id) else { continue };
        match groups.iter_mut().find(|group| group.task == task && group.protocol == protocol) {
            Some(group) => {
                group.ids.push(id);
                group.measures.push((measure, id));
            }
            None => groups.push(Group { task, protocol, ids: vec![id], measures: vec![(measure, id)] }),
        }
    }
    let has_items = |group: &Group<'_>| {
        let measured = contents.measurements.iter().map(|envelope| &envelope.result);
        measured.filter(|m| group.ids.contains(&m.metric.as_str())).any(|m| named_items(m).is_some())
    };
    groups.into_iter().filter(has_items).collect()
}

/// The metric ids that this section's tables show, or whose sisters they show.
pub fn shown(contents: &Contents) -> Vec<&str> {
    groups(contents).into_iter().flat_map(|group| group.ids).collect()
}

/// A row of a table: one recipe of one draw.
struct Line<'a> {
    /// The rows of the measures in columns.
    rows: Vec<Option<Row<'a>>>,
    /// The row that names the line, of the primary measure where there is one.
    row: Row<'a>,
    items: Option<Vec<ItemRow>>,
    /// By measure in columns.
    outcomes: Vec<Option<Vec<Outcome>>>,
    /// What is wrong with the items.
    trouble: Option<String>,
}

impl Line<'_> {
    fn label(&self) -> String {
        let (_, calibration, seed) = pivot::row_key(&self.row);
        let calibration = calibration.map(|name| format!(" · {name}")).unwrap_or_default();
        let seed = seed.map(|seed| format!(" · seed {seed}")).unwrap_or_default();
        format!("{}{calibration}{seed}", self.row.cell.recipe)
    }

    /// Of the primary measure.
    fn primary(&self) -> Option<&Vec<Outcome>> {
        self.outcomes.last()?.as_ref()
    }

    fn count(&self) -> Option<u64> {
        self.primary().map(|outcomes| outcomes.len() as u64)
    }
}

fn lines<'a>(contents: &Contents, group: &Group<'a>, rows: &[Row<'a>]) -> Vec<Line<'a>> {
    let columns = group.columns();
    let line = |key: pivot::RowKey<'_>| {
        let of_key =
            |id: &str| rows.iter().find(|row| row.metric == id && pivot::row_key(row) == key).copied();
        let in_columns: Vec<Option<Row<'a>>> = columns.iter().map(|(_, id)| of_key(id)).collect();
        let row = in_columns.iter().rev().flatten().next().copied()?;
        let mut line =
            Line { row, rows: in_columns, items: None, outcomes: vec![None; columns.len()], trouble: None };
        let measured = line.rows.iter().rev().flatten().find_map(|row| match row.outcome {
            Became::Measured(m) => Some(m),
            _ => None,
        });
        if let Some(measured) = measured {
            match read(contents, measured) {
                Ok(items) => {
                    let of = |(measure, _): &(Measure, &str)| measure.outcomes(&items);
                    line.outcomes = columns.iter().map(of).collect();
                    line.items = Some(items);
                    line.trouble = disagreement(&line);
                }
                Err(trouble) => line.trouble = Some(trouble),
            }
        }
        Some(line)
    };
    pivot::row_keys(rows).into_iter().filter_map(line).collect()
}

/// A measured value that is not what its items give.
fn disagreement(line: &Line<'_>) -> Option<String> {
    line.rows.iter().zip(&line.outcomes).find_map(|(row, outcomes)| {
        let (row, outcomes) = (row.as_ref()?, outcomes.as_ref()?);
        let (measured, value) = (row.value()?, right(outcomes) as f64 / outcomes.len() as f64);
        ((measured - value).abs() > 1e-9)
            .then(|| format!("was measured as {measured}, but its items give {value}, which is shown"))
    })
}

/// What changed from one line to another, or why that cannot be said; nothing where there is nothing to say.
fn compare(other: &str, original: Option<&Line<'_>>, line: &Line<'_>) -> Compared {
    let Some(original) = original else { return Ok(None) };
    let (Some(before), Some(after)) = (&original.items, &line.items) else { return Ok(None) };
    if let Some(reason) = mismatch(other, before, after) {
        return Err(reason);
    }
    let (Some(before), Some(after)) = (original.primary(), line.primary()) else { return Ok(None) };
    Ok(Pair::of(before, after))
}

/// The columns that name rows, where rows differ in them.
struct Names {
    calibration: bool,
    seed: bool,
    items: bool,
}

impl Names {
    fn of(lines: &[&Line<'_>]) -> Self {
        let keys: Vec<_> = lines.iter().map(|line| pivot::row_key(&line.row)).collect();
        Names {
            calibration: distinct(keys.iter().filter_map(|key| key.1)).len() > 1,
            seed: distinct(keys.iter().filter_map(|key| key.2)).len() > 1,
            items: distinct(lines.iter().filter_map(|line| line.count())).len() > 1,
        }
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![Column::new("recipe", Kind::Text)];
        let wanted = [
            (self.calibration, "calibration", Kind::Text),
            (self.seed, "seed", Kind::Count),
            (self.items, "items", Kind::Count),
        ];
        columns.extend(wanted.iter().filter(|w| w.0).map(|(_, name, kind)| Column::new(name, *kind)));
        columns
    }

    fn cells(&self, line: &Line<'_>) -> Vec<Cell> {
        let (recipe, calibration, seed) = pivot::row_key(&line.row);
        let mut cells = vec![Cell::text(recipe)];
        if self.calibration {
            cells.push(calibration.map_or(Cell::Missing, Cell::text));
        }
        if self.seed {
            cells.push(seed.map_or(Cell::Missing, Cell::Count));
        }
        if self.items {
            cells.push(line.count().map_or(Cell::Missing, Cell::Count));
        }
        cells
    }

    /// `40 items, `, where all lines have as many.
    fn count(&self, lines: &[&Line<'_>]) -> String {
        match lines.iter().find_map(|line| line.count()) {
            Some(count) if !self.items => format!("{count} items, "),
            _ => String::new(),
        }
    }
}

fn against_original(group: &Group<'_>, model: &str, lines: &[Line<'_>]) -> Table {
    let all: Vec<&Line<'_>> = lines.iter().collect();
    let names = Names::of(&all);
    let mut columns = names.columns();
    let named = columns.len();
    for (measure, _) in group.columns() {
        columns.push(Column::new(measure.name(), Kind::Number));
        columns.push(Column::new(&format!("{} 95 %", measure.name()), Kind::Number));
    }
    columns.extend(paired_columns());
    let caption = format!(
        "Accuracy on {}, {model}: {}differences of {} to the original ({})",
        group.task,
        names.count(&all),
        group.primary().0.name(),
        group.protocol
    );
    let mut table = Table::new(&caption, columns);

    let is_original = |line: &&Line<'_>| line.row.cell.recipe == ORIGINAL;
    let original = lines.iter().find(is_original);
    let compared: Vec<_> = lines
        .iter()
        .map(|line| if is_original(&line) { Ok(None) } else { compare("the original", original, line) })
        .collect();
    for (line, paired) in lines.iter().zip(paired_cells(&compared)) {
        let mut cells = names.cells(line);
        for (row, outcomes) in line.rows.iter().zip(&line.outcomes) {
            cells.extend(accuracy_cells(row.as_ref(), outcomes.as_deref()));
        }
        cells.extend(paired);
        table.rows.push(cells);
    }
    for (line, compared) in lines.iter().zip(&compared) {
        let said = line.trouble.iter().chain(compared.as_ref().err());
        table.notes.extend(said.map(|words| format!("`{}` {words}", line.label())));
    }
    if original.is_none_or(|line| line.items.is_none()) {
        table.notes.push("nothing is compared: the original has no items on record".to_owned());
    }
    if lines.iter().filter_map(|line| line.items.as_ref()).flatten().any(|row| row.part.is_some()) {
        table.notes.push(
            "the items of all parts together, taken as independent; items of one part may be right or wrong together, and \
             then intervals are too short"
                .to_owned(),
        );
    }
    let planned: Vec<Row<'_>> = lines.iter().flat_map(|line| line.rows.iter().flatten()).copied().collect();
    table.notes.extend(pivot::failure_notes(&planned));
    table.leave_out_unrun(named);
    table
}

/// Recipes with a prefix against the original behind the same prefix, where it was measured.
fn against_prefixed(
    contents: &Contents,
    group: &Group<'_>,
    model: &str,
    lines: &[Line<'_>],
) -> Option<Table> {
    let entries = recipes::entries(contents, group.primary().1);
    let line_of = |entry: &recipes::Entry<'_>| {
        lines.iter().find(|line| pivot::row_key(&line.row) == pivot::row_key(&entry.row))
    };
    let of_model = entries.iter().filter(|entry| entry.model() == model && !entry.is_reference());
    let pairs: Vec<(&Line<'_>, &Line<'_>)> = of_model
        .filter_map(|entry| Some((line_of(recipes::reference(&entries, entry)?)?, line_of(entry)?)))
        .collect();
    if pairs.is_empty() {
        return None;
    }
    let members: Vec<&Line<'_>> = pairs.iter().map(|(_, line)| *line).collect();
    let names = Names::of(&members);
    let mut columns = names.columns();
    columns.push(Column::new("compared with", Kind::Text));
    columns.extend(paired_columns());
    let caption = format!(
        "Accuracy on {}, {model}: {}differences of {} to the original behind the same prefix ({})",
        group.task,
        names.count(&members),
        group.primary().0.name(),
        group.protocol
    );
    let mut table = Table::new(&caption, columns);
    let compared: Vec<_> = pairs
        .iter()
        .map(|(reference, line)| compare(&format!("`{}`", reference.label()), Some(reference), line))
        .collect();
    for ((reference, line), paired) in pairs.iter().zip(paired_cells(&compared)) {
        let mut cells = names.cells(line);
        cells.push(Cell::Text(reference.label()));
        cells.extend(paired);
        table.rows.push(cells);
    }
    let said = pairs
        .iter()
        .zip(&compared)
        .filter_map(|((_, line), compared)| Some(format!("`{}` {}", line.label(), compared.as_ref().err()?)));
    table.notes.extend(said);
    Some(table)
}
