//! `partial`: what quantizing only a few groups costs, chosen by the rank of their ratio; one table for each metric.
//!
//! # Reference
//! arXiv:2405.14428, its table of partial quantization: the groups with the largest ratios cause the whole loss.

use serde_json::Value;

use super::Section;
use super::metrics::caption;
use crate::record::Contents;
use crate::report::pivot::{self, distinct};
use crate::report::recipes::{self, Draw, Entry, is_ranked, site_and_ratio};
use crate::report::table::{Cell, Column, Kind, Table};
use crate::report::{metric, rows};

/// See the module.
pub struct Partial;

/// The parts of a ranking, in the order of the columns.
pub const PARTS: [&str; 3] = ["top", "middle", "bottom"];

impl Section for Partial {
    fn name(&self) -> &'static str {
        "partial"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let metrics = rows::metrics(contents).into_iter();
        metrics.flat_map(|id| of_metric(&recipes::entries(contents, id), id)).collect()
    }
}

/// Recipes that are equal but for the part of the groups that they quantize.
pub struct Ranking<'a> {
    /// What a reader calls their common steps.
    pub host: String,
    /// How many groups they quantize.
    pub groups: u64,
    /// The recipes.
    pub members: Vec<Entry<'a>>,
}

/// The rankings among entries.
pub fn rankings<'a>(entries: &[Entry<'a>]) -> Vec<Ranking<'a>> {
    let groups = |entry: &Entry<'_>| entry.step(is_ranked)?.get("groups")?.as_u64();
    let key = |entry: &Entry<'_>| Some((entry.key_without(&[is_ranked]), groups(entry)?));
    distinct(entries.iter().filter_map(key))
        .into_iter()
        .filter_map(|family| {
            let members: Vec<Entry<'a>> =
                entries.iter().filter(|entry| key(entry).as_ref() == Some(&family)).copied().collect();
            let host = recipes::host_name(&members.first()?.without(&[is_ranked]));
            Some(Ranking { host, groups: family.1, members })
        })
        .collect()
}

impl<'a> Ranking<'a> {
    /// The recipe that quantizes a part, of a model and a draw.
    pub fn part(&self, model: &str, draw: Draw<'_>, part: &str) -> Option<&Entry<'a>> {
        let quantizes = |entry: &Entry<'_>| {
            entry.step(is_ranked).and_then(|step| step.get("quantize")).and_then(Value::as_str) == Some(part)
        };
        self.members.iter().find(|entry| entry.model() == model && entry.is_of(draw) && quantizes(entry))
    }
}

fn of_metric(entries: &[Entry<'_>], id: &str) -> Vec<Table> {
    rankings(entries).iter().map(|ranking| table(ranking, entries, id)).collect()
}

fn table(ranking: &Ranking<'_>, entries: &[Entry<'_>], id: &str) -> Table {
    let mut columns = vec![Column::new("model", Kind::Text), Column::new("original", Kind::Number)];
    let column = |part: &&str| Column::new(&format!("{part} {}", ranking.groups), Kind::Number);
    columns.extend(PARTS.iter().map(column));
    let caption = format!(
        "Partial quantization, {} of {} groups by their ratio: {}",
        ranking.host,
        ranking.groups,
        caption(id)
    );
    let mut table = Table::new(&caption, columns);
    let draws = recipes::draws(&ranking.members);
    let mut sites = Vec::new();
    for model in distinct(ranking.members.iter().map(Entry::model)) {
        for draw in &draws {
            let name = recipes::with_draw(model, *draw, &draws);
            let parts = PARTS.map(|part| ranking.part(model, *draw, part));
            if parts.iter().all(Option::is_none) {
                continue;
            }
            let cell =
                |entry: Option<&Entry<'_>>| entry.map_or(Cell::Missing, |entry| pivot::cell(&entry.row));
            let mut row = vec![Cell::text(&name), cell(recipes::original(entries, model))];
            row.extend(parts.iter().map(|entry| cell(*entry)));
            table.rows.push(row);
            let ranges: Vec<String> = PARTS
                .iter()
                .zip(parts)
                .filter_map(|(part, entry)| Some(format!("{part} {}", range(entry?)?)))
                .collect();
            if !ranges.is_empty() {
                sites.push(format!("ratios of the quantized groups of {name}: {}", ranges.join(", ")));
            }
        }
    }
    if let Some(words) = metric::direction(id).words() {
        table.notes.push(format!("{words}; all other groups keep weights and activations in floating point"));
    }
    table.notes.extend(sites);
    table
}

/// `559–6.53`: the ratios of the groups that a recipe quantizes.
fn range(entry: &Entry<'_>) -> Option<String> {
    let quantized = entry.fitted(is_ranked)?.get("quantized")?.as_array()?;
    let ratios: Vec<f64> = quantized.iter().filter_map(site_and_ratio).map(|(_, ratio)| ratio).collect();
    let (first, last) = (ratios.first()?, ratios.last()?);
    Some(format!("{}–{}", three(*first), three(*last)))
}

/// A number with three significant digits.
pub fn three(value: f64) -> String {
    let digits = crate::report::table::Digits::Significant(3);
    Cell::Number { value, stderr: None, digits }.spelled().map_or(String::new(), |(text, _)| text)
}
