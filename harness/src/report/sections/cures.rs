//! `cures`: hosts, and the same with QFeM, with a prefix, with both; one table for each model and metric.
//!
//! A host is a recipe without its `prefix` and `keep` steps. It has a place here if some recipe adds one of them to it.
//! Differences are to the original and to the original behind the same prefix, because a prefix changes the original,
//! too.
//!
//! # Reference
//! arXiv:2405.14428, its main table and the one with other methods (SmoothQuant, OS+) as hosts.

use super::Section;
use super::metrics::caption;
use crate::record::Contents;
use crate::report::pivot::{self, distinct};
use crate::report::recipes::{self, Draw, Entry, is_prefix, is_qfem, is_ranked};
use crate::report::table::{Cell, Column, Digits, Kind, Table};
use crate::report::{metric, rows};

/// See the module.
pub struct Cures;

impl Section for Cures {
    fn name(&self) -> &'static str {
        "cures"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let mut tables = Vec::new();
        for id in rows::metrics(contents) {
            let entries = recipes::entries(contents, id);
            let models = distinct(entries.iter().map(Entry::model));
            tables.extend(models.into_iter().filter_map(|model| table(&entries, model, id)));
        }
        tables
    }
}

/// A host with its recipes: the host itself first, then QFeM, the prefix, both.
pub struct Host<'a> {
    /// What a reader calls it.
    pub name: String,
    /// Its recipes, in order.
    pub members: Vec<Entry<'a>>,
}

/// The hosts of a model that have a recipe with a cure, with the cures that a comparison shows.
pub fn hosts<'a>(entries: &[Entry<'a>], model: &str) -> Vec<Host<'a>> {
    let host_of = |entry: &Entry<'_>| entry.key_without(&[is_qfem, is_prefix]);
    let of_model: Vec<&Entry<'a>> = entries
        .iter()
        .filter(|entry| entry.model() == model && !entry.is_original() && !entry.is_reference())
        .filter(|entry| entry.step(is_ranked).is_none())
        .collect();
    let mut hosts = Vec::new();
    for host in distinct(of_model.iter().map(|entry| host_of(entry))) {
        let all: Vec<&Entry<'a>> = of_model.iter().filter(|entry| host_of(entry) == host).copied().collect();
        if all.iter().all(|entry| entry.step(is_qfem).or(entry.step(is_prefix)).is_none()) {
            continue;
        }
        let chosen = recipes::chosen_cures(&all);
        let mut members: Vec<Entry<'a>> =
            all.into_iter().filter(|entry| recipes::is_chosen(entry, &chosen)).copied().collect();
        let cured = |entry: &Entry<'_>| (entry.step(is_prefix).is_some(), entry.step(is_qfem).is_some());
        members.sort_by_key(cured);
        let steps = members[0].without(&[is_qfem, is_prefix]);
        hosts.push(Host { name: recipes::host_name(&steps), members });
    }
    hosts
}

fn table(entries: &[Entry<'_>], model: &str, id: &str) -> Option<Table> {
    let hosts = hosts(entries, model);
    if hosts.is_empty() {
        return None;
    }
    let draws: Vec<Draw<'_>> = distinct(
        hosts.iter().flat_map(|host| &host.members).map(Entry::draw).filter(|draw| *draw != (None, None)),
    );
    let mut table = Table::new(
        &format!("Cures of activation spikes, {model}: {}", caption(id)),
        vec![
            Column::new("what", Kind::Text),
            Column::new("recipe", Kind::Text),
            Column::new("excepted", Kind::Text),
            Column::new(metric::split(id).0, Kind::Number),
            Column::new("− original", Kind::Number),
            Column::new("− original with its prefix", Kind::Number),
        ],
    );
    let original = recipes::original(entries, model);
    if let Some(original) = original {
        table.rows.push(row("original", original, None, None, &draws));
    }
    let members = || hosts.iter().flat_map(|host| &host.members);
    let references = distinct(members().filter_map(|entry| {
        let found = recipes::reference(entries, entry)?;
        Some((found.recipe(), found.draw()))
    }));
    for (recipe, draw) in references {
        let same = |entry: &&Entry<'_>| {
            entry.is_reference() && (entry.model(), entry.recipe(), entry.draw()) == (model, recipe, draw)
        };
        if let Some(entry) = entries.iter().find(same) {
            let name = format!("original {}", recipes::cure_name(None, entry.step(is_prefix)));
            table.rows.push(row(&name, entry, original, None, &draws));
        }
    }
    for host in &hosts {
        for entry in &host.members {
            let cure = recipes::cure_name(entry.step(is_qfem), entry.step(is_prefix));
            let name = if cure.is_empty() { host.name.clone() } else { cure };
            table.rows.push(row(&name, entry, original, recipes::reference(entries, entry), &draws));
        }
    }
    let errors = if members().any(|entry| entry.stderr().is_some()) { "; ± one standard error" } else { "" };
    if let Some(words) = metric::direction(id).words() {
        table.notes.push(format!("{words}{errors}"));
    }
    let is_cured = |entry: &Entry<'_>| entry.step(is_qfem).or(entry.step(is_prefix)).is_some();
    let planned = entries.iter().filter(|entry| entry.model() == model && !entry.is_reference());
    if planned.filter(|entry| is_cured(entry)).count() > members().filter(|entry| is_cured(entry)).count() {
        table.notes.push(
            "of a host with several, the QFeM and the prefix that also stand together; the rest of a sweep stands in the first table"
                .to_owned(),
        );
    }
    Some(table)
}

fn row(
    name: &str,
    entry: &Entry<'_>,
    original: Option<&Entry<'_>>,
    reference: Option<&Entry<'_>>,
    draws: &[Draw<'_>],
) -> Vec<Cell> {
    let less = |other: Option<&Entry<'_>>| match (entry.value(), other.and_then(Entry::value)) {
        (Some(value), Some(other)) => {
            let difference = value - other;
            Cell::Number { value: difference, stderr: None, digits: digits(difference) }
        }
        _ => Cell::Missing,
    };
    let excepted = match (entry.excepted(), entry.groups()) {
        (Some(excepted), Some(groups)) => Cell::Text(format!("{} of {groups}", excepted.len())),
        _ => Cell::Missing,
    };
    vec![
        Cell::text(name),
        Cell::Text(recipes::with_draw(entry.recipe(), entry.draw(), draws)),
        excepted,
        pivot::cell(&entry.row),
        less(original),
        less(reference),
    ]
}

/// Three decimals show what a good cure leaves; beyond tenfold nobody reads them.
fn digits(difference: f64) -> Digits {
    if difference.abs() < 10.0 { Digits::Decimals(3) } else { Digits::Significant(4) }
}
