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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{CellResult, Envelope, Execution, ModelIdentity, SCHEMA};

    fn contents(bits: &[(&str, Option<EffectiveBits>)]) -> Contents {
        let mut contents = Contents::default();
        for (recipe, bits) in bits {
            contents.manifest.cells.push(ManifestCell {
                id: (*recipe).into(),
                model: "tiny".into(),
                recipe: (*recipe).into(),
                calibration: None,
                seed: None,
                metrics: Vec::new(),
            });
            let word = String::new;
            let model = ModelIdentity {
                name: word(),
                origin: word(),
                family: word(),
                parameters: 1,
                weights: word(),
                tokenizer: word(),
            };
            let result = CellResult {
                id: (*recipe).into(),
                model,
                steps: Vec::new(),
                calibration: None,
                seed: None,
                fitted: Default::default(),
                statistics: Vec::new(),
                effective_bits: *bits,
            };
            let (result_hash, execution) = (word(), Execution::default());
            contents.cells.push(Envelope { schema: SCHEMA, result, result_hash, execution });
        }
        contents
    }

    const FULL: EffectiveBits =
        EffectiveBits { weights: 16.0, parameters: 16.0, activations: 16.0, cache: 16.0, exact_tokens: 0 };

    #[test]
    fn records_without_bits_and_originals_alone_have_no_table() {
        assert!(Bits.tables(&contents(&[("original", None), ("w4", None)])).is_empty());
        assert!(Bits.tables(&contents(&[("original", Some(FULL))])).is_empty());
    }

    #[test]
    fn a_prompt_has_its_columns() {
        let w4 = EffectiveBits { weights: 4.25, parameters: 7.5, ..FULL };
        let kv4 = EffectiveBits { cache: 4.0, exact_tokens: 32, ..FULL };
        let tables = Bits.tables(&contents(&[("original", Some(FULL)), ("w4", Some(w4)), ("old", None)]));
        assert_eq!(tables.len(), 1);
        assert_eq!((tables[0].rows.len(), tables[0].columns.len()), (2, 5));
        assert_eq!(tables[0].rows[1][1].spelled(), Some(("4.250".into(), None)));
        let tables = Bits.tables(&contents(&[("w4", Some(w4)), ("kv4", Some(kv4))]));
        let last = tables[0].rows[1].last().and_then(Cell::spelled);
        // (32 · 16 + 2016 · 4) / 2048
        assert_eq!(last, Some(("4.188".into(), None)));
    }
}
