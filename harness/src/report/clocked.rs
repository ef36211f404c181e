//! What measurements of `speed` found, by cell: the times stand beside a record's value, as its execution.

use super::pivot::distinct;
use super::rows;
use crate::record::execution::{Execution, Speed};
use crate::record::{Contents, ManifestCell};

/// A cell's model on the clock.
#[derive(Clone, Copy, Debug)]
pub struct Clocked<'a> {
    /// The cell under its experiment's names.
    pub cell: &'a ManifestCell,
    /// Bytes of weights as stored: the measurement's value.
    pub stored: f64,
    /// What was found.
    pub speed: &'a Speed,
    /// Where and how.
    pub execution: &'a Execution,
}

/// Whether a metric is one of `speed`'s.
pub fn is_speed(metric: &str) -> bool {
    metric.starts_with("weight-bytes/speed/")
}

/// Every measurement of this metric, in the order of the manifest.
pub fn clocked<'a>(contents: &'a Contents, metric: &str) -> Vec<Clocked<'a>> {
    let cells = contents.manifest.cells.iter().filter(|cell| cell.metrics.iter().any(|m| m == metric));
    let of = |cell: &'a ManifestCell| {
        let mut found = contents.measurements.iter().filter(|m| m.result.cell == cell.id);
        let found = found.find(|m| m.result.metric == metric)?;
        let speed = found.execution.speed.as_ref()?;
        Some(Clocked { cell, stored: found.result.value, speed, execution: &found.execution })
    };
    cells.filter_map(of).collect()
}

/// The metrics of `speed`, each once.
pub fn metrics(contents: &Contents) -> Vec<&str> {
    rows::metrics(contents).into_iter().filter(|metric| is_speed(metric)).collect()
}

/// The models among them, each once.
pub fn models<'a>(clocked: &[Clocked<'a>]) -> Vec<&'a str> {
    distinct(clocked.iter().map(|clocked| clocked.cell.model.as_str()))
}

/// On what machines, and under what load, the times were taken.
pub fn machines(clocked: &[Clocked<'_>]) -> String {
    let of = |clocked: &Clocked<'_>| {
        let Execution { device, threads, .. } = clocked.execution;
        let processor = match clocked.speed.processor.as_str() {
            "" => String::new(),
            processor => format!(", {processor}"),
        };
        format!("{device}{processor}, {threads} threads")
    };
    let loads = clocked.iter().flat_map(|clocked| clocked.speed.load);
    let (least, most) = loads.fold((f64::INFINITY, 0.0f64), |(least, most), l| (least.min(l), most.max(l)));
    format!("{}; load {least:.1} to {most:.1}", distinct(clocked.iter().map(of)).join("; and "))
}
