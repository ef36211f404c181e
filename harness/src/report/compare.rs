//! Comparing two summaries, row by row: what continuous integration asks after sweeping into an empty store.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::ReportError;
use super::frame;
use crate::record::{AGAINST_ORIGINAL, NOISE_FLOOR};

/// Largest relative difference allowed between two values, by the reading they are of. Quantized values may move more
/// than originals: a last-bit difference can push an activation over a rounding boundary. A noise floor, which rounding noise
/// makes, counts as quantized. Differences of log-perplexities, which may be near 0, are held absolutely: so much is the same
/// relative difference of the perplexity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    /// For `original` and `transformed` readings.
    pub original: f64,
    /// For `quantized` readings.
    pub quantized: f64,
}

/// The columns that name a row.
const KEYS: [&str; 7] = ["model", "recipe", "calibration", "seed", "reading", "metric", "protocol"];

/// A row in which two summaries disagree.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The row's key columns, joined by ` · `.
    pub row: String,
    /// In what they disagree.
    pub kind: DifferenceKind,
}

/// In what two summaries disagree.
#[derive(Clone, Debug, PartialEq)]
pub enum DifferenceKind {
    /// Only the second summary has the row.
    OnlyInSecond,
    /// Only the first summary has the row.
    OnlyInFirst,
    /// The row occurs more than once in one of them.
    Repeated,
    /// A column that must be equal is not.
    Field {
        /// Its name.
        column: &'static str,
        /// In the first summary.
        first: String,
        /// In the second summary.
        second: String,
    },
    /// The values differ by more than the tolerance.
    Value {
        /// In the first summary.
        first: f64,
        /// In the second summary.
        second: f64,
        /// |second − first| / |first|, or |second − first|.
        apart: f64,
        /// Whether it is the second.
        is_absolute: bool,
        /// What was allowed.
        tolerance: f64,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.row)?;
        match &self.kind {
            DifferenceKind::OnlyInSecond => write!(f, "only in the second summary"),
            DifferenceKind::OnlyInFirst => write!(f, "only in the first summary"),
            DifferenceKind::Repeated => write!(f, "occurs more than once"),
            DifferenceKind::Field { column, first, second } => {
                write!(f, "{column} is {first:?} and {second:?}")
            }
            DifferenceKind::Value { first, second, apart, is_absolute: true, tolerance } => {
                write!(f, "{first} and {second} differ by {apart:.6}, allowed is {tolerance:.6}")
            }
            DifferenceKind::Value { first, second, apart, tolerance, .. } => {
                write!(
                    f,
                    "{first} and {second} differ by {:.4} %, allowed are {:.4} %",
                    apart * 100.0,
                    tolerance * 100.0
                )
            }
        }
    }
}

/// Compares two `summary.csv` files. Rows are matched by all their key columns; a row that only one of them has is a
/// difference, and so is another `status` or number of items. Standard errors are not compared.
///
/// # Errors
/// Where a file cannot be read, is not CSV, lacks a column or holds a value that is no number.
pub fn compare_summaries(
    first: &Path,
    second: &Path,
    tolerances: Tolerances,
) -> Result<Vec<Difference>, ReportError> {
    let (mut differences, first_rows) = read(first)?;
    let (repeated, mut second_rows) = read(second)?;
    differences.extend(repeated);
    for (key, a) in &first_rows {
        let Some(b) = second_rows.remove(key) else {
            differences.push(Difference { row: key.clone(), kind: DifferenceKind::OnlyInFirst });
            continue;
        };
        for column in ["status", "n"] {
            let (a, b) = (field(a, column), field(&b, column));
            if a != b {
                let kind = DifferenceKind::Field { column, first: a.to_owned(), second: b.to_owned() };
                differences.push(Difference { row: key.clone(), kind });
            }
        }
        if let (Some(x), Some(y)) = (number(a, first)?, number(&b, second)?) {
            let moves = field(a, "reading") == "quantized" || field(a, "protocol").ends_with(NOISE_FLOOR);
            let tolerance = if moves { tolerances.quantized } else { tolerances.original };
            let is_absolute = field(a, "metric") == AGAINST_ORIGINAL[2];
            let apart = match x == y {
                true => 0.0,
                false if is_absolute => (y - x).abs(),
                false => (y - x).abs() / x.abs(),
            };
            if apart.is_nan() || apart > tolerance {
                let kind = DifferenceKind::Value { first: x, second: y, apart, is_absolute, tolerance };
                differences.push(Difference { row: key.clone(), kind });
            }
        }
    }
    differences
        .extend(second_rows.into_keys().map(|row| Difference { row, kind: DifferenceKind::OnlyInSecond }));
    Ok(differences)
}

type Fields = BTreeMap<String, String>;

/// The rows of a summary by their keys, and a difference for each key that occurs again.
fn read(path: &Path) -> Result<(Vec<Difference>, BTreeMap<String, Fields>), ReportError> {
    let unreadable = |message: String| ReportError::Summary { path: path.to_owned(), message };
    let text = std::fs::read_to_string(path)
        .map_err(|source| ReportError::Read { path: path.to_owned(), source })?;
    let header = text.lines().next().unwrap_or_default();
    let columns: Vec<&str> = header.trim_end().split(',').collect();
    if let Some(missing) = KEYS.iter().chain(&["value", "n", "status"]).find(|key| !columns.contains(key)) {
        return Err(unreadable(format!("it has no column `{missing}`")));
    }
    let mut repeated = Vec::new();
    let mut rows = BTreeMap::new();
    for record in frame::read_csv(&text).map_err(|error| unreadable(error.to_string()))? {
        let key = KEYS.map(|column| field(&record, column)).join(" · ");
        if rows.insert(key.clone(), record).is_some() {
            repeated.push(Difference { row: key, kind: DifferenceKind::Repeated });
        }
    }
    Ok((repeated, rows))
}

fn field<'a>(record: &'a Fields, column: &str) -> &'a str {
    record.get(column).map_or("", String::as_str)
}

fn number(record: &Fields, path: &Path) -> Result<Option<f64>, ReportError> {
    let text = field(record, "value");
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| ReportError::Summary {
        path: path.to_owned(),
        message: format!("the value {text:?} is no number"),
    })
}
