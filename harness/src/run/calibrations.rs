//! The calibration sets of a plan: their texts are read before any model is loaded, the sets drawn once per tokenizer.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::Rc;

use models::Checkpoint;

use crate::calibrate::set::{self, CalibrationSet, DrawError};
use crate::data::corpus::{self, CorpusError, DataOptions, Text};
use crate::experiment::Calibration;
use crate::plan::Plan;

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
    /// The name of the first set whose text cannot be had, and why.
    pub fn load(plan: &Plan, options: &DataOptions) -> Result<Self, (String, CorpusError)> {
        let mut texts = BTreeMap::new();
        for calibration in plan.cells.iter().filter_map(|cell| cell.calibration.as_ref()) {
            if calibration.corpus.generated().is_some() {
                continue;
            }
            if let Entry::Vacant(vacant) = texts.entry(format!("{:?}", calibration.corpus)) {
                let text = corpus::load(&calibration.corpus, options);
                vacant.insert(text.map_err(|source| (calibration.name.clone(), source))?);
            }
        }
        Ok(Self { texts, sets: BTreeMap::new() })
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
