//! `speed`: what every recipe costs, in time, memory and bytes moved; one table for each model and protocol.
//!
//! # Reference
//! arXiv:2405.14428, its table of costs (the original, W8A8, with QFeM, with QFeP).

use super::Section;
use crate::record::Contents;
use crate::report::clocked::{self, Clocked};
use crate::report::metric;
use crate::report::rows::ORIGINAL;
use crate::report::table::{Cell, Column, Digits, Kind, Table};

/// See the module.
pub struct Speeds;

impl Section for Speeds {
    fn name(&self) -> &'static str {
        "speed"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let mut tables = Vec::new();
        for id in clocked::metrics(contents) {
            let all = clocked::clocked(contents, id);
            for model in clocked::models(&all) {
                let here: Vec<Clocked<'_>> = all.iter().filter(|c| c.cell.model == model).copied().collect();
                tables.push(table(&here, model, id));
            }
        }
        tables
    }
}

fn table(rows: &[Clocked<'_>], model: &str, id: &str) -> Table {
    let number = |name: &str| Column::new(name, Kind::Number);
    let mut table = Table::new(
        &format!("Speed and memory ({model}, {})", metric::split(id).1.trim_start_matches("speed/")),
        vec![
            Column::new("recipe", Kind::Text),
            number("prefill, tokens/s"),
            number("× original"),
            number("decode, ms/token"),
            number("× faster"),
            number("peak memory, MiB"),
            number("weights stored, MB"),
            number("weights moved, MB"),
            Column::new("in integers", Kind::Text),
        ],
    );
    let original = rows.iter().find(|row| row.cell.recipe == ORIGINAL);
    for row in rows {
        let (prefill, decode) = (row.speed.prefill_tokens_per_second, row.speed.decode_seconds_per_token);
        let ratio = |of: &dyn Fn(&Clocked<'_>) -> f64| {
            original.map_or(Cell::Missing, |original| decimals(of(row) / of(original), 2))
        };
        let groups = row.execution.executed.as_ref().map_or(Cell::Missing, |executed| {
            let all = executed.integer_groups + executed.floating_groups.values().sum::<u64>();
            Cell::Text(format!("{} of {all}", executed.integer_groups))
        });
        table.rows.push(vec![
            Cell::text(&row.cell.recipe),
            spread(prefill.median, prefill.most - prefill.least, 1),
            ratio(&|row| row.speed.prefill_tokens_per_second.median),
            spread(1e3 * decode.median, 1e3 * (decode.most - decode.least), 2),
            ratio(&|row| 1.0 / row.speed.decode_seconds_per_token.median),
            decimals(row.speed.peak_memory as f64 / f64::from(1 << 20), 0),
            decimals(row.stored / 1e6, 1),
            decimals(row.speed.weight_bytes as f64 / 1e6, 1),
            groups,
        ]);
    }
    let rounds = rows.iter().map(|row| row.speed.rounds).min().unwrap_or(0);
    table.notes.push(format!(
        "Medians of at least {rounds} rounds, ± the range between the slowest and the fastest. Measured on {}. Times of \
         different machines or loads are not comparable, and these stand in no id.",
        clocked::machines(rows)
    ));
    table.notes.push(
        "Stored: linear layers and head at effective bits. Moved: the same as they were executed here, in f32 where not \
         in integers."
            .to_owned(),
    );
    if rows.iter().any(|row| !row.speed.peak_is_of_rounds) {
        table.notes.push(
            "Peak memory is that of the whole process until then, in the order of the sweep.".to_owned(),
        );
    }
    table
}

fn decimals(value: f64, digits: usize) -> Cell {
    Cell::Number { value, stderr: None, digits: Digits::Decimals(digits) }
}

fn spread(value: f64, range: f64, digits: usize) -> Cell {
    Cell::Number { value, stderr: Some(range), digits: Digits::Decimals(digits) }
}
