//! `accuracy`: accuracies with intervals and their paired differences to the original, one table for each task, protocol
//! and model, computed from the items on record.
//!
//! Only readings of the same items are paired: the same documents and requests in the same order. A recipe with a prefix
//! is also compared with the original behind the same prefix, in a second table, because a prefix changes the original,
//! too. The formulas are those of [`crate::paired`].
//!
//! # Reference
//! Flips: arXiv:2407.09141. Minimum detectable effect: arXiv:2605.28873.

use serde_json::Value;

use super::Section;
use crate::paired::mcnemar::{self, Changes, Outcome};
use crate::paired::{CONFIDENCE, Interval, difference, multiplicity, power, proportion};
use crate::record::items::ItemRow;
use crate::record::{Contents, MeasurementResult};
use crate::report::pivot::{self, distinct};
use crate::report::recipes;
use crate::report::rows::{self, ORIGINAL, Outcome as Became, Row};
use crate::report::table::{Cell, Column, Digits, Kind, Table};

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
const LEGEND: [&str; 7] = [
    "acc is the share of items whose right answer has the highest log-likelihood, or whose target is what greedy decoding \
     gives; acc_norm the same by log-likelihood per character; higher is better. ± is one standard error, “95 %” Wilson's \
     interval of the one accuracy; two of these intervals say little about a difference, the paired columns do",
    "diff points: accuracy less that of the original on the same items, in percentage points, with Newcombe's 95 % interval of \
     paired proportions",
    "lost: items that only the original has right; gained: items that only the recipe has right; both together are the \
     flips. all flips: also counts one wrong answer for another",
    "p: exact two-sided McNemar test of lost against gained",
    "p Holm: adjusted over the comparisons of this table, so that the chance of even one false difference keeps the level",
    "p BH: adjusted by Benjamini and Hochberg over the same comparisons, so that the share of false ones among the \
     differences found keeps the level",
    "MDE points: the smallest difference that one test at level 0.05 finds with probability 0.8, given so many items and \
     flips; if it is larger than flips over items, no difference could have been found. None where nothing flips",
];

/// By which score an item is decided.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    Acc,
    AccNorm,
    AccBytes,
}

impl Measure {
    const ALL: [Measure; 3] = [Measure::Acc, Measure::AccNorm, Measure::AccBytes];

    fn name(self) -> &'static str {
        match self {
            Measure::Acc => "acc",
            Measure::AccNorm => "acc_norm",
            Measure::AccBytes => "acc_bytes",
        }
    }

    fn decision(self, row: &ItemRow) -> Option<u32> {
        match self {
            Measure::Acc => row.chosen,
            Measure::AccNorm => row.chosen_per_character,
            Measure::AccBytes => row.chosen_per_byte,
        }
    }

    /// What was decided on every item; `None` where the rows are of a task that has no right answers.
    fn outcomes(self, rows: &[ItemRow]) -> Option<Vec<Outcome>> {
        let firsts = rows.iter().filter(|row| row.request == 0);
        firsts
            .map(|row| match (row.gold, self.decision(row)) {
                (Some(gold), Some(decision)) => Some(Outcome { decision, correct: decision == gold }),
                // A target and no choices.
                (None, None) if row.words.is_none() => {
                    Some(Outcome { decision: row.greedy.into(), correct: row.greedy })
                }
                _ => None,
            })
            .collect()
    }
}

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

/// Task, measure and protocol of a metric id, if it is an accuracy of a task.
fn parse(id: &str) -> Option<(&str, Measure, String)> {
    let mut segments: Vec<&str> = id.split('/').collect();
    let measure_at = |segment: &&str| Measure::ALL.into_iter().find(|measure| measure.name() == *segment);
    let place = 1 + segments[1..].iter().position(|segment| measure_at(segment).is_some())?;
    let measure = measure_at(&segments.remove(place))?;
    Some((segments[0], measure, segments[1..].join("/")))
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

/// File and hash of the items behind a measurement.
fn named_items(measured: &MeasurementResult) -> Option<(&str, &str)> {
    let text = |key: &str| measured.detail.get(key).and_then(Value::as_str);
    Some((text("items-file")?, text("items-file-hash")?))
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

/// The items behind a measurement, or why there are none. Nothing of the machine stands in the words: they are printed.
fn read(contents: &Contents, measured: &MeasurementResult) -> Result<Vec<ItemRow>, String> {
    let Some((file, hash)) = named_items(measured) else {
        return Err("has no items on record; run the sweep into an empty folder to compare it".to_owned());
    };
    let stored = contents.items.iter().find(|items| items.cell == measured.cell && items.file == file);
    let rows = stored.and_then(|items| items.rows(hash).ok());
    rows.filter(|rows| !rows.is_empty()).ok_or_else(|| {
        format!(
            "is not compared: items/{file}.parquet of cell {} is missing or not what was measured; restore it",
            measured.cell
        )
    })
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

fn right(outcomes: &[Outcome]) -> u64 {
    outcomes.iter().filter(|outcome| outcome.correct).count() as u64
}

/// Why two readings are not of the same items.
fn mismatch(other: &str, original: &[ItemRow], reading: &[ItemRow]) -> Option<String> {
    let items = |rows: &[ItemRow]| rows.iter().filter(|row| row.request == 0).count();
    let (expected, found) = (items(original), items(reading));
    if expected != found {
        return Some(format!("is not compared: it has {found} items, {other} has {expected}"));
    }
    let key = |row: &ItemRow| (row.item.clone(), row.document.clone(), row.request, row.request_hash.clone());
    let at = (0..original.len().max(reading.len()))
        .find(|&at| original.get(at).map(key) != reading.get(at).map(key))?;
    let (a, b) = (original.get(at), reading.get(at));
    let what = match (a, b) {
        (Some(a), Some(b)) if a.item != b.item => format!("item `{}` where {other} has `{}`", b.item, a.item),
        (Some(a), Some(b)) if a.document != b.document => {
            format!("another text of item `{}` than {other}", b.item)
        }
        (Some(row), _) | (_, Some(row)) => format!("other requests of item `{}` than {other}", row.item),
        (None, None) => return None,
    };
    Some(format!("is not compared: it has {what}"))
}

/// What changed from one line to another, or why that cannot be said; nothing where there is nothing to say.
fn compare(other: &str, original: Option<&Line<'_>>, line: &Line<'_>) -> Result<Option<Changes>, String> {
    let Some(original) = original else { return Ok(None) };
    let (Some(before), Some(after)) = (&original.items, &line.items) else { return Ok(None) };
    if let Some(reason) = mismatch(other, before, after) {
        return Err(reason);
    }
    let (Some(before), Some(after)) = (original.primary(), line.primary()) else { return Ok(None) };
    Ok(mcnemar::changes(before, after).ok())
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

/// An accuracy with its standard error, and its interval.
fn accuracy_cells(row: Option<&Row<'_>>, outcomes: Option<&[Outcome]>) -> [Cell; 2] {
    let digits = Digits::Decimals(4);
    let from_items = outcomes.and_then(|outcomes| {
        let (correct, n) = (right(outcomes), outcomes.len() as u64);
        let estimate = proportion::accuracy(correct, n).ok()?;
        let Interval { low, high } = proportion::wilson(correct, n, CONFIDENCE).ok()?;
        let value = Cell::Number { value: estimate.value, stderr: estimate.stderr, digits };
        Some([value, Cell::Text(format!("{low:.4} to {high:.4}"))])
    });
    from_items.unwrap_or_else(|| match row.map(|row| row.outcome) {
        Some(Became::Measured(m)) => {
            [Cell::Number { value: m.value, stderr: m.stderr, digits }, Cell::Missing]
        }
        Some(Became::Failed(failure)) => [Cell::Failed { stage: failure.stage.clone() }, Cell::Missing],
        Some(Became::Missing) | None => [Cell::Missing, Cell::Missing],
    })
}

fn paired_columns() -> [Column; 9] {
    let number = |name: &str| Column::new(name, Kind::Number);
    let count = |name: &str| Column::new(name, Kind::Count);
    [
        number("diff points"),
        number("diff 95 %"),
        count("lost"),
        count("gained"),
        count("all flips"),
        number("p"),
        number("p Holm"),
        number("p BH"),
        number("MDE points"),
    ]
}

/// The cells of [`paired_columns`] for every comparison; all comparisons are one family.
fn paired_cells(compared: &[Result<Option<Changes>, String>]) -> Vec<[Cell; 9]> {
    let changes = || compared.iter().map(|result| result.as_ref().ok().copied().flatten());
    let p: Vec<f64> = changes().flatten().map(|c| mcnemar::exact(c.lost, c.gained)).collect();
    let adjusted = |adjust: fn(&[f64]) -> Result<Vec<f64>, crate::paired::PairedError>| {
        adjust(&p).expect("exact p-values lie between 0 and 1")
    };
    let (holm, bh) = (adjusted(multiplicity::holm), adjusted(multiplicity::benjamini_hochberg));
    let mut place = 0;
    let of = |changes: Option<Changes>| {
        let missing = || std::array::from_fn(|_| Cell::Missing);
        let Some(changes) = changes else { return missing() };
        let at = place;
        place += 1;
        let estimate = difference::accuracies(&changes);
        let (Ok(estimate), Ok(interval)) = (estimate, difference::newcombe(&changes, CONFIDENCE)) else {
            return missing();
        };
        let points =
            |share: f64| Cell::Number { value: 100.0 * share, stderr: None, digits: Digits::Decimals(2) };
        let p_value = |value: f64| Cell::Number { value, stderr: None, digits: Digits::Significant(3) };
        // Without flips the formula gives 0, as if every difference could be seen.
        let effect = (changes.discordant() > 0).then(|| {
            power::minimum_detectable_effect(changes.items(), changes.flips(), power::ALPHA, power::POWER)
                .ok()
        });
        [
            points(estimate.value),
            Cell::Text(format!("{:.2} to {:.2}", 100.0 * interval.low, 100.0 * interval.high)),
            Cell::Count(changes.lost),
            Cell::Count(changes.gained),
            Cell::Count(changes.changed),
            p_value(p[at]),
            p_value(holm[at]),
            p_value(bh[at]),
            effect.flatten().map_or(Cell::Missing, points),
        ]
    };
    changes().map(of).collect()
}
