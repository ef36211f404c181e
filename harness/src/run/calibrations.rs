//! The calibration sets of a plan: their texts are read before any model is loaded, the sets drawn once per tokenizer.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::Rc;

use models::Checkpoint;

use crate::calibrate::set::{self, CalibrationSet, DrawError};
use crate::data::CorpusRef;
use crate::data::corpus::{self, DataOptions, Text};
use crate::experiment::Calibration;
use crate::plan::Plan;
use crate::run::{RunError, items};

/// Texts by corpus, and sets by tokenizer, set and seed.
#[derive(Default)]
pub struct Calibrations {
    texts: BTreeMap<String, Text>,
    sets: BTreeMap<(String, String, u64), Rc<CalibrationSet>>,
}

impl Calibrations {
    /// Reads every text that the plan's calibration sets name.
    ///
    /// # Errors
    /// Of the first set whose text cannot be had.
    pub fn load(plan: &Plan, options: &DataOptions) -> Result<Self, RunError> {
        let (loaded, mut faults) = Self::load_what_is_there(plan, options);
        if faults.is_empty() { Ok(loaded) } else { Err(faults.swap_remove(0).1) }
    }

    /// As [`Calibrations::load`], with the texts that can be had, and why the others cannot by the name of a set.
    pub fn load_what_is_there(plan: &Plan, options: &DataOptions) -> (Self, Vec<(String, RunError)>) {
        let mut texts = BTreeMap::new();
        let mut faults: Vec<(String, RunError)> = Vec::new();
        for calibration in plan.cells.iter().filter_map(|cell| cell.calibration.as_ref()) {
            let known = faults.iter().any(|(name, _)| *name == calibration.name);
            if known || calibration.corpus.generated().is_some() {
                continue;
            }
            if let Entry::Vacant(vacant) = texts.entry(format!("{:?}", calibration.corpus)) {
                match text(calibration, options) {
                    Ok(text) => {
                        vacant.insert(text);
                    }
                    Err(fault) => faults.push((calibration.name.clone(), fault)),
                }
            }
        }
        (Self { texts, sets: BTreeMap::new() }, faults)
    }

    /// The set under a checkpoint's tokenizer.
    ///
    /// # Errors
    /// Where the text or the tokenizer cannot give it.
    pub fn set(
        &mut self,
        calibration: &Calibration,
        checkpoint: &Checkpoint,
        seed: u64,
    ) -> Result<Rc<CalibrationSet>, DrawError> {
        let tokenizer = checkpoint.tokenizer();
        let key = (tokenizer.hash().to_string(), calibration.description().to_string(), seed);
        if let Some(known) = self.sets.get(&key) {
            return Ok(known.clone());
        }
        let text = self.texts.get(&format!("{:?}", calibration.corpus));
        let drawn = Rc::new(set::draw(calibration, text, tokenizer, seed)?);
        self.sets.insert(key, drawn.clone());
        Ok(drawn)
    }
}

/// The text of a set that is not generated.
fn text(calibration: &Calibration, options: &DataOptions) -> Result<Text, RunError> {
    let name = || calibration.name.clone();
    match &calibration.corpus {
        CorpusRef::Task { task, half, items } => items::text(task, *half, items.as_ref(), options)
            .map_err(|source| RunError::CalibrationItems { calibration: name(), source: Box::new(source) }),
        corpus => corpus::load(corpus, options)
            .map_err(|source| RunError::CalibrationText { calibration: name(), source }),
    }
}
