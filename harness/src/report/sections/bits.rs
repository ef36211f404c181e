//! `bits`: the effective bits of every recipe, scales, zero points and exemptions included; one table for each model.
//!
//! Cells from before effective bits were recorded have none; where all are such, there is no table.

use super::Section;
use crate::record::{Contents, EffectiveBits, ManifestCell};
use crate::report::pivot::distinct;
use crate::report::table::{Cell, Column, Digits, Kind, Table};

/// See the module.
pub struct Bits;

/// The sequence for which a cache with tokens in full precision is summed up: the length at which most papers measure.
const TOKENS: u64 = 2048;

impl Section for Bits {
    fn name(&self) -> &'static str {
        "bits"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let cells: Vec<(&ManifestCell, &EffectiveBits)> =
            contents.manifest.cells.iter().filter_map(|cell| Some((cell, of(contents, cell)?))).collect();
        let models = distinct(cells.iter().map(|(cell, _)| cell.model.as_str()));
        models.into_iter().filter_map(|model| table(&cells, model)).collect()
    }
}

fn of<'a>(contents: &'a Contents, cell: &ManifestCell) -> Option<&'a EffectiveBits> {
    let found = contents.cells.iter().find(|envelope| envelope.result.id == cell.id)?;
    found.result.effective_bits.as_ref()
}

/// What names a row: recipe, calibration set, and bits, which seeds may share.
type Entry<'a> = (&'a str, Option<&'a str>, &'a EffectiveBits);

fn table(cells: &[(&ManifestCell, &EffectiveBits)], model: &str) -> Option<Table> {
    let here = cells.iter().filter(|(cell, _)| cell.model == model);
    let entries: Vec<Entry<'_>> =
        distinct(here.map(|&(cell, bits)| (cell.recipe.as_str(), cell.calibration.as_deref(), bits)));
    if !entries.iter().any(|(_, _, bits)| bits.is_reduced()) {
        return None;
    }
    let by_set = distinct(entries.iter().filter_map(|entry| entry.1)).len() > 1;
    let exact = entries.iter().any(|(_, _, bits)| bits.exact_tokens > 0 && bits.cache != 16.0);
    let mut columns = vec![Column::new("recipe", Kind::Text)];
    if by_set {
        columns.push(Column::new("calibration", Kind::Text));
    }
    columns
        .extend(["weights", "all parameters", "activations", "cache"].map(|n| Column::new(n, Kind::Number)));
    if exact {
        columns.push(Column::new("tokens in 16 bits", Kind::Count));
        columns.push(Column::new(&format!("cache of {TOKENS} tokens"), Kind::Number));
    }
    let mut table = Table::new(&format!("effective bits ({model})"), columns);
    for (recipe, calibration, bits) in entries {
        let mut row = vec![Cell::text(recipe)];
        if by_set {
            row.push(calibration.map_or(Cell::Missing, Cell::text));
        }
        row.extend([bits.weights, bits.parameters, bits.activations, bits.cache].map(number));
        if exact {
            row.push(Cell::Count(bits.exact_tokens));
            row.push(number(bits.cache_at(TOKENS)));
        }
        table.rows.push(row);
    }
    table.notes.push(
        "Bits per value with scales, zero points and what stays in 16 bits. Weights: the blocks' linear layers."
            .to_owned(),
    );
    Some(table)
}

fn number(bits: f64) -> Cell {
    Cell::Number { value: bits, stderr: None, digits: Digits::Decimals(3) }
}
