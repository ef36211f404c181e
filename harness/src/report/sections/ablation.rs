//! `ablation`: the ablation lattice of training, one table for each host: perplexity by what is trained, against the host and
//! against the recipes that lack one part.

use super::Section;
use crate::record::Contents;
use crate::report::ablation::{Lattice, PARTS, lattices};
use crate::report::figures::ablation::metrics;
use crate::report::metric;
use crate::report::recipes::{Entry, with_draw};
use crate::report::table::{Cell, Column, Digits, Kind, Table};

/// See the module.
pub struct Ablation;

impl Section for Ablation {
    fn name(&self) -> &'static str {
        "ablation"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let of = |metric| {
            let all = lattices(contents, metric);
            let draws: Vec<_> = all.iter().map(|lattice| lattice.draw).collect();
            all.iter()
                .map(|lattice| table(lattice, metric, &with_draw(lattice.model, lattice.draw, &draws)))
                .collect::<Vec<_>>()
        };
        metrics(contents).into_iter().flat_map(of).collect()
    }
}

fn table(lattice: &Lattice<'_>, id: &str, model: &str) -> Table {
    let mut columns = vec![Column::new("recipe", Kind::Text)];
    columns.extend(PARTS.map(|part| Column::new(part, Kind::Text)));
    columns.push(Column::new("perplexity", Kind::Number));
    columns.extend(["÷ host", "÷ best with one part less"].map(|name| Column::new(name, Kind::Number)));
    let title = format!("Ablation of training on {}: {model} ({})", lattice.host, metric::split(id).1);
    let mut table = Table::new(&title, columns);
    let host =
        lattice.members.iter().find(|(parts, _)| parts.is_empty()).and_then(|(_, entry)| entry.value());
    for (parts, entry) in &lattice.members {
        let mut row = vec![Cell::text(entry.recipe())];
        row.extend((0..PARTS.len()).map(|part| Cell::text(if parts.contains(&part) { "yes" } else { "" })));
        row.push(number(entry));
        row.push(ratio(entry.value(), host.filter(|_| !parts.is_empty())));
        let before = lattice.before(parts).into_iter().filter_map(|(_, entry)| entry.value());
        row.push(ratio(entry.value(), before.reduce(f64::min)));
        table.rows.push(row);
    }
    table.notes.push(
        "Prompt: the first keys and values of a sequence stay in full precision. A ratio below 1 is an improvement."
            .to_owned(),
    );
    table
}

fn number(entry: &Entry<'_>) -> Cell {
    let digits = Digits::Significant(4);
    entry.value().map_or(Cell::Missing, |value| Cell::Number { value, stderr: entry.stderr(), digits })
}

fn ratio(value: Option<f64>, to: Option<f64>) -> Cell {
    let of = value.zip(to).map(|(value, to)| value / to);
    of.map_or(Cell::Missing, |value| Cell::Number { value, stderr: None, digits: Digits::Decimals(3) })
}
