//! What is published of a cell once its model is made.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::calibrate::recorded::recorded;
use crate::calibrate::set::CalibrationSet;
use crate::plan::Cell;
use crate::quantize::steps::Step;
use crate::record::execution::Underway;
use crate::record::statistics::{PrefixTokens, StatisticsResult, StatisticsRows, statistics_id};
use crate::record::{CellResult, EffectiveBits};
use crate::run::calibrator::Fresh;
use crate::run::{RunError, Sweep, source};

/// Statistics that were collected for a cell now, and what all that it read is of: transforms, and tokens of a prefix.
pub(super) type OfSet = (Vec<Fresh>, Vec<(Vec<Step>, Vec<u32>)>);

impl Sweep<'_> {
    /// Publishes the statistics that were collected for a cell, and the cell.
    pub(super) fn publish_cell(
        &self,
        cell: &Cell,
        id: &str,
        (fitted, bits): (Map<String, Value>, EffectiveBits),
        (fresh, read): OfSet,
        mut underway: Underway,
    ) -> Result<(), RunError> {
        let Ok(source) = &self.sources[&cell.model.label] else { return Ok(()) };
        let set = cell.calibration.as_ref().and_then(|_| self.sets.get(&super::set_key(cell)));
        if let Some(set) = set {
            let is_fresh =
                |of: &(Vec<Step>, Vec<u32>)| fresh.iter().any(|f| (&f.state, &f.prefix) == (&of.0, &of.1));
            let reused = read.iter().filter(|of| !is_fresh(of));
            underway.reuse_statistics(
                reused.map(|(state, prefix)| id_of(source, set, prefix, &written(state))).collect(),
            );
        }
        let statistics = self.publish_statistics(source, set.map(AsRef::as_ref), fresh, read, &underway)?;
        if self.store.cell(id)?.is_none() {
            let result = CellResult {
                id: id.into(),
                model: source.identity.clone(),
                steps: source::steps(cell),
                calibration: set.map(|set| Value::Object(set.detail.clone())),
                seed: cell.seed,
                fitted,
                statistics,
                effective_bits: Some(bits),
            };
            self.store.publish_cell(result, underway.finish())?;
        }
        Ok(self.store.clear_failure(id, None)?)
    }

    /// Publishes the statistics that were collected for a cell; the ids of all that it read.
    fn publish_statistics(
        &self,
        source: &source::Source,
        set: Option<&CalibrationSet>,
        fresh: Vec<Fresh>,
        read: Vec<(Vec<Step>, Vec<u32>)>,
        underway: &Underway,
    ) -> Result<Vec<String>, RunError> {
        let Some(set) = set else { return Ok(Vec::new()) };
        for fresh in fresh {
            let (result, rows) = statistics_result(source, set, fresh);
            self.store.publish_statistics(result, &rows, underway.clone().finish())?;
        }
        Ok(read.iter().map(|(state, prefix)| id_of(source, set, prefix, &written(state))).collect())
    }
}

/// Statistics as the store keeps them: the summary, whose tables have no hashes yet, and their rows.
pub(super) fn statistics_result(
    source: &source::Source,
    set: &CalibrationSet,
    Fresh { state, prefix, statistics }: Fresh,
) -> (StatisticsResult, StatisticsRows) {
    let text = |token: u32| source.checkpoint.tokenizer().decode(&[token]).unwrap_or_default();
    let (sites, rows) = recorded(&statistics, &text);
    let texts = prefix.iter().map(|&token| text(token)).collect();
    let steps = written(&state);
    let result = StatisticsResult {
        id: id_of(source, set, &prefix, &steps),
        model: source.identity.clone(),
        calibration: Value::Object(set.detail.clone()),
        steps,
        prefix: (!prefix.is_empty()).then_some(PrefixTokens { tokens: prefix, texts }),
        samples: statistics.samples as u64,
        tokens: statistics.tokens,
        sites,
        tables: BTreeMap::new(),
    };
    (result, rows)
}

fn id_of(source: &source::Source, set: &CalibrationSet, prefix: &[u32], steps: &[Value]) -> String {
    statistics_id(&source.weights(), &source.identity.tokenizer, &set.hash, prefix, steps)
}

fn written(steps: &[Step]) -> Vec<Value> {
    steps.iter().map(|step| serde_json::to_value(step).expect("a step is plain data")).collect()
}
