//! `layers`: layer-wise errors under every transform; how they go with difficulties; the honest mode beside the released.
//!
//! # Reference
//! arXiv:2506.01967.

use super::Section;
use crate::record::Contents;
use crate::record::layers::LayerRow;
use crate::report::layers::{
    Analysis, Correlation, MASSIVE, METRIC, TRANSFORMS, analyses, is_massive, median,
};
use crate::report::pivot::distinct;
use crate::report::table::{Cell, Column, Digits, Kind, Table};
use crate::report::{metric, rows};

/// See the module.
pub struct Layers;

impl Section for Layers {
    fn name(&self) -> &'static str {
        "layers"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        // A damaged file is the figures' to complain of, and the metrics' table shows the totals then.
        let analyses = analyses(contents).unwrap_or_default();
        let mut tables = Vec::new();
        for analysis in &analyses {
            tables.push(errors(analysis));
            tables.push(correlations(analysis));
        }
        for model in distinct(analyses.iter().map(|analysis| analysis.model)) {
            let of_model: Vec<_> = analyses.iter().filter(|analysis| analysis.model == model).collect();
            tables.extend(modes(model, &of_model));
        }
        tables
    }
}

/// The metric ids that these tables show, so that no other table repeats them.
pub fn shown(contents: &Contents) -> Vec<&str> {
    if !analyses(contents).is_ok_and(|analyses| !analyses.is_empty()) {
        return Vec::new();
    }
    rows::metrics(contents).into_iter().filter(|id| metric::split(id).0 == METRIC).collect()
}

fn number(value: f64) -> Cell {
    Cell::Number { value, stderr: None, digits: Digits::Significant(4) }
}

fn share(value: Option<f64>) -> Cell {
    value.map_or(Cell::Missing, |value| Cell::Number { value, stderr: None, digits: Digits::Decimals(3) })
}

fn columns(names: &[(&str, Kind)]) -> Vec<Column> {
    names.iter().map(|(name, kind)| Column::new(name, *kind)).collect()
}

/// Errors and what goes with them, by port and transform.
fn errors<'a>(analysis: &'a Analysis<'_>) -> Table {
    use Kind::{Number, Text};
    let mut table = Table::new(
        &format!("Layer-wise error, {}: {}", analysis.model, analysis.protocol),
        columns(&[
            ("group", Text),
            ("transform", Text),
            ("total E", Number),
            ("÷ none", Number),
            ("median E", Number),
            ("median E ÷ output", Number),
            ("median estimate ÷ E", Number),
            ("median D(X)", Number),
            ("median D(W)", Number),
            ("median D(X)·√d/‖X‖", Number),
            ("median kurtosis of X", Number),
            ("greatest |X|", Number),
        ]),
    );
    let total = |rows: &[&LayerRow]| rows.iter().map(|row| row.error).sum::<f64>();
    let mut add = |name: &str, of: &dyn Fn(&'static str) -> Vec<&'a LayerRow>| {
        let none = total(&of("none"));
        for (transform, _) in TRANSFORMS {
            let rows = of(transform);
            let middle = |pick: &dyn Fn(&LayerRow) -> f64| number(median(rows.iter().map(|row| pick(row))));
            table.rows.push(vec![
                Cell::text(name),
                Cell::text(transform),
                number(total(&rows)),
                share((none > 0.0).then(|| total(&rows) / none)),
                middle(&|row| row.error),
                middle(&|row| row.error / row.output_energy),
                middle(&|row| row.estimate / row.error),
                middle(&|row| row.x_difficulty),
                middle(&|row| row.w_difficulty),
                middle(&|row| row.x_scale_free),
                middle(&|row| row.x_kurtosis),
                number(rows.iter().fold(0.0, |most, row| row.x_largest.max(most))),
            ]);
        }
    };
    for port in analysis.ports() {
        add(&analysis.module(port.port), &|transform| analysis.rows(port.port, transform));
    }
    add("all", &|transform| analysis.all(transform));
    table.notes.push(
        "E = ‖XWᵀ − Q(X)Q(W)ᵀ‖² over all tokens and outputs; lower is better. D is the standard deviation of channel norms; \
         the estimate assumes that every value is off by a random part of its step"
            .to_owned(),
    );
    table
}

/// How errors go with difficulties before any transform.
fn correlations(analysis: &Analysis<'_>) -> Table {
    use Kind::{Count, Number, Text};
    let mut table = Table::new(
        &format!("Error against difficulty, {}: {}", analysis.model, analysis.protocol),
        columns(&[
            ("group", Text),
            ("layers", Text),
            ("number", Count),
            ("Pearson E, D", Number),
            ("Pearson E, D²", Number),
            ("Spearman", Number),
        ]),
    );
    let mut add = |name: &str, rows: &[&LayerRow]| {
        let rest: Vec<&LayerRow> = rows.iter().copied().filter(|row| !is_massive(row)).collect();
        let of = [("every", rows), ("without massive", &rest[..])];
        for (which, rows) in of.into_iter().take(if rest.len() < rows.len() { 2 } else { 1 }) {
            let found = Correlation::of(rows);
            table.rows.push(vec![
                Cell::text(name),
                Cell::text(which),
                Cell::Count(found.groups as u64),
                share(found.pearson),
                share(found.pearson_of_squares),
                share(found.spearman),
            ]);
        }
    };
    for port in analysis.ports() {
        add(&analysis.module(port.port), &analysis.rows(port.port, "none"));
    }
    add("all", &analysis.all("none"));
    table.notes.push(format!(
        "before any transform; massive: the greatest token scale is more than {MASSIVE} lower medians"
    ));
    table
}

/// What a transform leaves of the error, in the released mode and in the honest one.
fn modes(model: &str, analyses: &[&Analysis<'_>]) -> Option<Table> {
    if distinct(analyses.iter().map(|analysis| analysis.mode)).len() < 2 {
        return None;
    }
    let mut names = vec![Column::new("transform", Kind::Text)];
    names.extend(analyses.iter().map(|analysis| Column::new(analysis.protocol, Kind::Number)));
    let mut table = Table::new(&format!("Honest beside released: total E ÷ none, {model}"), names);
    for (transform, _) in TRANSFORMS {
        let mut row = vec![Cell::text(transform)];
        row.extend(analyses.iter().map(|analysis| {
            let total = |transform| analysis.all(transform).iter().map(|row| row.error).sum::<f64>();
            share((total("none") > 0.0).then(|| total(transform) / total("none")))
        }));
        table.rows.push(row);
    }
    table.notes.push(
        "released: one linear of each group, scales from what is measured; honest: every linear, scales from other samples"
            .to_owned(),
    );
    Some(table)
}
