//! `metrics`: a pivot for each metric id, every recipe and model; accuracies whose items and layer-wise errors whose rows
//! are on record have tables of their own, and so have comparisons with the original on the same tokens.

use super::{Section, accuracy, against, layers};
use crate::record::Contents;
use crate::report::pivot::pivot;
use crate::report::table::Table;
use crate::report::{metric, rows};

/// See the module.
pub struct Metrics;

impl Section for Metrics {
    fn name(&self) -> &'static str {
        "metrics"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let rows = rows::rows(contents);
        let elsewhere =
            [accuracy::shown(contents), against::shown(contents), layers::shown(contents)].concat();
        rows::metrics(contents)
            .into_iter()
            .filter(|id| !elsewhere.contains(id))
            .filter(|id| rows.iter().any(|row| row.metric == *id))
            .map(|id| pivot(&caption(id), &rows, &[id]))
            .collect()
    }
}

/// `perplexity (gptq/…)`: a metric id as a caption.
pub fn caption(id: &str) -> String {
    let (name, protocol) = metric::split(id);
    if protocol.is_empty() { name.to_owned() } else { format!("{name} ({protocol})") }
}
