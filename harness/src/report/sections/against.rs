//! `against`: recipes against the original on the same tokens, one table for each perplexity evaluation and model: KL
//! divergence, top-1 agreement, Δ log-perplexity, and the noise floor; and the divergence by confidence of the original.
//!
//! # Reference
//! The statistics of llama.cpp's `--kl-divergence`, with errors clustered by window; confidence buckets and noise floor as
//! in exllamav3's `eval/`.

use serde_json::Value;

use super::Section;
use crate::paired::CONFIDENCE;
use crate::paired::clustered::{self, Cluster};
use crate::paired::floor::{AgainstFloor, excess_above};
use crate::record::{AGAINST_ORIGINAL as NAMES, Contents, MeasurementResult, NOISE_FLOOR as FLOOR};
use crate::report::paired_items::adjusted;
use crate::report::paired_texts::{Delta, excess, number, units};
use crate::report::pivot::{self, distinct};
use crate::report::rows::{self, ORIGINAL, Outcome, Row};
use crate::report::table::{Cell, Column, Digits, Kind, Table};

/// See the module.
pub struct Against;

impl Section for Against {
    fn name(&self) -> &'static str {
        "against"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let rows = rows::rows(contents);
        let mut tables = Vec::new();
        for protocol in protocols(contents) {
            for model in distinct(rows.iter().map(|row| row.cell.model.as_str())) {
                let of_model: Vec<Row<'_>> =
                    rows.iter().filter(|row| row.last && row.cell.model == model).copied().collect();
                let lines = lines(protocol, &of_model);
                if lines.iter().any(|line| line.kl.is_some()) {
                    tables.push(differences(protocol, model, &lines));
                    tables.push(buckets(protocol, model, &lines));
                }
            }
        }
        if let Some(first) = tables.first_mut() {
            first.notes.splice(0..0, LEGEND.map(str::to_owned));
        }
        tables
    }
}

/// What the columns are.
const LEGEND: [&str; 5] = [
    "every token is predicted by the original and by the recipe from the same text before it; nothing is averaged before it \
     is compared. ± is one standard error, clustered by window (by document under the protocol of that name)",
    "KL: divergence of the recipe's next-token distribution from the original's, nats per token; top-1: share of tokens for \
     which both have the same most likely token. They say how much two models disagree, not which one is right",
    "Δ ln ppl: ln perplexity less that of the original, with the normal interval and the bootstrap's over windows; p: \
     two-sided, normal; p Holm and p BH: adjusted over the recipes of the table",
    "noise floor: the original against itself when every activation carries rounding noise of the checkpoint's own \
     precision; a recipe is above it where its mean KL is larger, window by window, at 95 % one-sided",
    "few windows make all these intervals too short: below about thirty, trust the bootstrap no more than the normal one",
];

/// The protocols on which something was, or was to be, compared with the original.
fn protocols(contents: &Contents) -> Vec<&str> {
    let ids = rows::metrics(contents).into_iter();
    distinct(ids.filter_map(|id| {
        let protocol = id.strip_prefix(NAMES[0])?.strip_prefix('/')?;
        Some(protocol.strip_suffix(FLOOR).and_then(|rest| rest.strip_suffix('/')).unwrap_or(protocol))
    }))
}

/// The metric ids that this section's tables show.
pub fn shown(contents: &Contents) -> Vec<&str> {
    let compared = |id: &&str| NAMES.iter().any(|name| id.starts_with(&format!("{name}/")));
    rows::metrics(contents).into_iter().filter(compared).collect()
}

/// A row of a table: a recipe of one draw, or the noise floor.
struct Line<'a> {
    label: String,
    /// A row of the long form that says what became of it.
    row: Row<'a>,
    floor: bool,
    kl: Option<&'a MeasurementResult>,
    top: Option<&'a MeasurementResult>,
    delta: Option<&'a MeasurementResult>,
}

fn lines<'a>(protocol: &str, rows: &[Row<'a>]) -> Vec<Line<'a>> {
    let line = |key: pivot::RowKey<'_>| {
        let floor = key.0 == ORIGINAL;
        let of = |name: &str| {
            let end = if floor { format!("/{FLOOR}") } else { String::new() };
            let id = format!("{name}/{protocol}{end}");
            rows.iter().find(|row| row.metric == id && pivot::row_key(row) == key).copied()
        };
        let measured = |name: &str| match of(name)?.outcome {
            Outcome::Measured(measured) => Some(measured),
            _ => None,
        };
        let row = of(NAMES[0])?;
        let (_, calibration, seed) = key;
        let calibration = calibration.map(|name| format!(" · {name}")).unwrap_or_default();
        let seed = seed.map(|seed| format!(" · seed {seed}")).unwrap_or_default();
        let label = if floor { "noise floor".to_owned() } else { format!("{}{calibration}{seed}", key.0) };
        let [kl, top, delta] = NAMES.map(measured);
        Some(Line { label, row, floor, kl, top, delta })
    };
    pivot::row_keys(rows).into_iter().filter_map(line).collect()
}

fn differences(protocol: &str, model: &str, lines: &[Line<'_>]) -> Table {
    let number_column = |name: &str| Column::new(name, Kind::Number);
    let mut columns = vec![Column::new("recipe", Kind::Text)];
    columns.extend(["KL mean", "KL median", "KL p99", "KL max", "top-1"].map(number_column));
    columns.extend(["Δ ln ppl", "Δ 95 %", "Δ bootstrap 95 %", "p", "p Holm", "p BH"].map(number_column));
    columns.push(Column::new("above floor", Kind::Text));
    let mut table =
        Table::new(&format!("Against the original on the same tokens, {model} ({protocol})"), columns);

    let deltas: Vec<Option<Delta>> = lines.iter().map(|line| Delta::of(&units(line.delta?)?)).collect();
    let raw = lines.iter().zip(&deltas).map(|(line, delta)| match line.floor {
        true => None,
        false => delta.and_then(|delta| delta.estimate.p_value()),
    });
    let p_values = adjusted(&raw.collect::<Vec<_>>());
    let floor = lines.iter().find(|line| line.floor).and_then(|line| units(line.kl?));
    for ((line, delta), p_values) in lines.iter().zip(deltas).zip(p_values) {
        let small = |value: Option<f64>| match value {
            Some(value) => Cell::Number { value, stderr: None, digits: Digits::Scaled(3) },
            None => Cell::Missing,
        };
        let mut cells = vec![Cell::text(&line.label)];
        cells.push(match line.kl {
            Some(kl) => Cell::Number { value: kl.value, stderr: kl.stderr, digits: Digits::Scaled(3) },
            None => pivot::cell(&line.row),
        });
        cells.extend(["median", "p99", "max"].map(|key| small(line.kl.and_then(|kl| number(kl, key)))));
        cells.push(line.top.map_or(Cell::Missing, |top| Cell::Number {
            value: top.value,
            stderr: top.stderr,
            digits: Digits::Decimals(4),
        }));
        cells.extend(delta.map_or_else(|| std::array::from_fn(|_| Cell::Missing), |delta| delta.cells()));
        cells.extend(p_values);
        cells.push(if line.floor { Cell::Missing } else { above(line.kl, floor.as_deref()) });
        table.rows.push(cells);
    }
    for line in lines {
        if let Some(count) = line.kl.and_then(|kl| number(kl, "not-finite")).filter(|count| *count > 0.0) {
            table.notes.push(format!(
                "`{}`: {count} tokens with an infinite KL are left out of KL and top-1",
                line.label
            ));
        }
    }
    table.notes.extend(pivot::failure_notes(&lines.iter().map(|line| line.row).collect::<Vec<_>>()));
    table
}

/// Whether a recipe's KL is above the noise floor.
fn above(kl: Option<&MeasurementResult>, floor: Option<&[Cluster]>) -> Cell {
    let (Some(kl), Some(floor)) = (kl, floor) else { return Cell::Missing };
    let excess = units(kl).and_then(|kl| excess(&kl, floor)).and_then(|excess| clustered::mean(&excess).ok());
    match excess.map(|excess| excess_above(&excess, CONFIDENCE)) {
        Some(AgainstFloor::Above) => Cell::text("yes"),
        Some(AgainstFloor::Within) => Cell::text("no"),
        Some(AgainstFloor::Unknown) | None => Cell::Missing,
    }
}

fn buckets(protocol: &str, model: &str, lines: &[Line<'_>]) -> Table {
    let of = |line: &Line<'_>| -> Vec<Value> {
        let buckets = line.kl.and_then(|kl| kl.detail.get("buckets")).and_then(Value::as_array);
        buckets.cloned().unwrap_or_default()
    };
    let edges = |bucket: &Value| -> Option<String> {
        Some(format!("{:.2} to {:.2}", bucket.get("from")?.as_f64()?, bucket.get("to")?.as_f64()?))
    };
    let first = lines.iter().map(of).find(|buckets| !buckets.is_empty()).unwrap_or_default();
    let names: Vec<String> = first.iter().filter_map(edges).collect();
    let mut columns = vec![Column::new("recipe", Kind::Text)];
    for name in &names {
        columns.push(Column::new(&format!("KL, {name}"), Kind::Number));
        columns.push(Column::new(&format!("top-1, {name}"), Kind::Number));
    }
    let caption =
        format!("KL and agreement by the original's confidence in its top token, {model} ({protocol})");
    let mut table = Table::new(&caption, columns);
    for line in lines {
        let buckets = of(line);
        let mut cells = vec![Cell::text(&line.label)];
        for place in 0..names.len() {
            let value = |key: &str| buckets.get(place).and_then(|bucket| bucket.get(key)?.as_f64());
            let cell = |value: Option<f64>, digits| match value {
                Some(value) => Cell::Number { value, stderr: None, digits },
                None => Cell::Missing,
            };
            cells.push(cell(value("mean"), Digits::Scaled(3)));
            cells.push(cell(value("same-top"), Digits::Decimals(3)));
        }
        table.rows.push(cells);
    }
    let counts: Vec<String> = first
        .iter()
        .filter_map(|bucket| Some(format!("{}: {}", edges(bucket)?, bucket.get("tokens")?)))
        .collect();
    table.notes.push(format!("tokens in the ranges of `{}`: {}", lines[0].label, counts.join("; ")));
    table
}
