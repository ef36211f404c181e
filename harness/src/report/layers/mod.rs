//! Layer-wise errors as tables and figures read them, and how errors go with difficulties.

use serde_json::{Map, Value};

use crate::record::layers::{LayerRow, LayerTables};
use crate::record::{Contents, MeasurementResult};
use crate::report::drawing::{Colour, Mark, palette};
use crate::report::observed::{ShownPort, ports};
use crate::report::rows::{self, Outcome};
use crate::report::table::{Cell, Digits};
use crate::report::{ReportError, metric};

pub mod chart;

/// The metric's name.
pub const METRIC: &str = "layer-error";

/// A group is massive where its greatest token scale is more than this many lower medians, before any transform.
pub const MASSIVE: f64 = 50.0;

/// The end of the id of the measurement that stands for all five.
const FIRST: &str = "/transform=none";

/// Transforms in the order of tables, with what figures call them.
pub const TRANSFORMS: [(&str, &str); 5] = [
    ("none", "none"),
    ("smooth", "smooth"),
    ("rotate", "rotate"),
    ("hybrid", "hybrid: smooth, then rotate"),
    ("reverse", "reverse: rotate, then smooth"),
];

/// One evaluation of one model.
#[derive(Clone, Debug)]
pub struct Analysis<'a> {
    /// The model's label.
    pub model: &'a str,
    /// The metric's id without its name and the transform.
    pub protocol: &'a str,
    /// `released` or `honest`.
    pub mode: &'a str,
    /// What the measurements report.
    pub detail: &'a Map<String, Value>,
    /// The rows behind them.
    pub tables: LayerTables,
}

/// The evaluations of the plan whose rows are there.
///
/// # Errors
/// A file that is missing or not what its measurement names.
pub fn analyses(contents: &Contents) -> Result<Vec<Analysis<'_>>, ReportError> {
    let mut found = Vec::new();
    for row in rows::rows(contents) {
        let (name, protocol) = metric::split(row.metric);
        let (Some(protocol), Outcome::Measured(result)) = (protocol.strip_suffix(FIRST), row.outcome) else {
            continue;
        };
        if name != METRIC {
            continue;
        }
        let Some((file, hashes)) = named(result) else { continue };
        let of_cell =
            |stored: &&crate::record::StoredLayers| stored.cell == result.cell && stored.file == file;
        let Some(stored) = contents.layers.iter().find(of_cell) else { continue };
        found.push(Analysis {
            model: &row.cell.model,
            protocol,
            mode: protocol.split('/').next().unwrap_or_default(),
            detail: &result.detail,
            tables: stored.tables(hashes)?,
        });
    }
    Ok(found)
}

/// Whether the plan has such evaluations with rows.
pub fn applies(contents: &Contents) -> bool {
    !contents.layers.is_empty() && rows::metrics(contents).iter().any(|id| metric::split(id).0 == METRIC)
}

/// File and hashes of the rows behind a measurement.
fn named(measured: &MeasurementResult) -> Option<(&str, [&str; 3])> {
    let hashes: Vec<&str> =
        measured.detail.get("layers-file-hashes")?.as_array()?.iter().filter_map(Value::as_str).collect();
    Some((measured.detail.get("layers-file")?.as_str()?, hashes.try_into().ok()?))
}

impl Analysis<'_> {
    /// Rows of a port under a transform, by block.
    pub fn rows(&self, port: &str, transform: &str) -> Vec<&LayerRow> {
        let of = |row: &&LayerRow| row.port == port && row.transform == transform;
        self.tables.rows.iter().filter(of).collect()
    }

    /// Rows of all ports under a transform.
    pub fn all(&self, transform: &str) -> Vec<&LayerRow> {
        self.tables.rows.iter().filter(|row| row.transform == transform).collect()
    }

    /// The ports that there are rows of, in the order of the forward pass.
    pub fn ports(&self) -> Vec<ShownPort> {
        ports().into_iter().filter(|port| !self.rows(port.port, "none").is_empty()).collect()
    }

    /// `k_proj`, or what the port is called where the linears differ between blocks.
    pub fn module(&self, port: &str) -> String {
        let rows = self.rows(port, "none");
        match rows.first() {
            Some(first) if rows.iter().all(|row| row.module == first.module) => {
                format!("{port} ({})", first.module)
            }
            _ => port.to_owned(),
        }
    }

    /// Blocks of the model.
    pub fn blocks(&self) -> u32 {
        self.tables.rows.iter().map(|row| row.layer + 1).max().unwrap_or(0)
    }

    /// `released mode, wikitext2-test/128/…`.
    pub fn about(&self) -> String {
        let rest = self.protocol.split_once('/').map_or("", |(_, rest)| rest);
        format!("{} mode, {}", self.mode, rest.replace('/', ", "))
    }

    /// The sentences of a caption that say what was measured.
    pub fn provenance(&self) -> String {
        let how = match self.mode {
            "released" => {
                "one linear of each group, smoothing scales from the very tokens that are measured, as in the released \
                 code of arXiv:2506.01967"
            }
            _ => "all linears of a group, smoothing scales from separate samples",
        };
        format!("Mode {}: {how}. Measured: {}.", self.mode, self.protocol)
    }
}

/// Whether a group has a massive token; of rows of the transform `none`.
pub fn is_massive(row: &LayerRow) -> bool {
    row.token_ratio.is_some_and(|ratio| ratio > MASSIVE)
}

/// Colour and mark of a transform, by its place in [`TRANSFORMS`].
pub fn style(transform: usize) -> (Colour, Mark) {
    match transform {
        0 => (Colour::GREY, Mark::Circle),
        n => {
            let (colour, _) = palette::series(n - 1);
            (colour, palette::series(n).1)
        }
    }
}

/// How errors of groups go with the difficulties of their activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correlation {
    /// Groups.
    pub groups: usize,
    /// Of E and D.
    pub pearson: Option<f64>,
    /// Of E and D².
    pub pearson_of_squares: Option<f64>,
    /// Of their ranks.
    pub spearman: Option<f64>,
}

impl Correlation {
    /// Over rows of the transform `none`.
    pub fn of(rows: &[&LayerRow]) -> Self {
        let errors: Vec<f64> = rows.iter().map(|row| row.error).collect();
        let difficulties: Vec<f64> = rows.iter().map(|row| row.x_difficulty).collect();
        let squares: Vec<f64> = difficulties.iter().map(|d| d * d).collect();
        Self {
            groups: rows.len(),
            pearson: pearson(&errors, &difficulties),
            pearson_of_squares: pearson(&errors, &squares),
            spearman: pearson(&ranks(&errors), &ranks(&difficulties)),
        }
    }
}

/// Pearson's correlation; none of fewer than three pairs, or where one side does not vary.
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        ab += (a - mean_a) * (b - mean_b);
        aa += (a - mean_a).powi(2);
        bb += (b - mean_b).powi(2);
    }
    (a.len() > 2 && aa > 0.0 && bb > 0.0).then(|| ab / (aa * bb).sqrt())
}

/// Ranks from 1; equal values share the mean of theirs.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let first = order.iter().position(|i| *i == tied[0]).unwrap_or_default();
        let rank = first as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&i| ranks[i] = rank);
    }
    ranks
}

/// A number in three significant digits.
pub fn short(value: f64) -> String {
    let cell = Cell::Number { value, stderr: None, digits: Digits::Significant(3) };
    cell.spelled().map(|(text, _)| text).unwrap_or_default()
}

/// The lower median; 0 of nothing.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlations_are_those_of_scipy() {
        // scipy.stats.pearsonr and spearmanr of these columns.
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 10.0], [2.0, 1.0, 4.0, 4.0, 5.0]);
        assert!((pearson(&a, &b).unwrap() - 0.7745966692414833).abs() < 1e-12);
        assert_eq!(ranks(&b), [2.0, 1.0, 3.5, 3.5, 5.0]);
        assert!((pearson(&ranks(&a), &ranks(&b)).unwrap() - 0.8720815992723809).abs() < 1e-12);
        assert_eq!(pearson(&[1.0, 2.0], &[1.0, 2.0]), None);
        assert_eq!(pearson(&[1.0; 4], &[1.0, 2.0, 3.0, 4.0]), None);
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), 2.0);
    }
}
