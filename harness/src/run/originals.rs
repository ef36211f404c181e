//! What recipes are compared with: the originals' hidden states, kept while cells of their model are measured.

use std::collections::BTreeMap;

use models::architecture::Architecture;
use models::{Decoder, Off};

use crate::evaluate::against::{Original, STATES_IN_MEMORY};
use crate::evaluate::decoder_model::DecoderModel;
use crate::evaluate::growth::{self, Shared};
use crate::evaluate::passage::Passage;
use crate::evaluate::windows::Window;
use crate::evaluate::{EvaluateError, Progress};
use crate::experiment::Evaluation;

/// Originals by the id of their evaluation, of one model at a time: cells of a model stand together in a plan.
#[derive(Default)]
pub struct Originals {
    model: String,
    kept: BTreeMap<String, Original>,
}

impl Originals {
    /// Runs the original over an evaluation's windows, where that was not done before in this session; the decoder may be
    /// its last part, with the passage of the windows through the others.
    ///
    /// # Errors
    /// An interrupted pass, or states that find no place.
    pub fn keep(
        &mut self,
        (model, evaluation): (&str, &str),
        (windows, start): (&[Window], Option<u32>),
        (decoder, passage): (&mut Decoder, Option<&mut Passage>),
        progress: &mut Progress,
    ) -> Result<(), EvaluateError> {
        if self.model != model {
            self.kept.clear();
            self.model = model.to_owned();
        }
        if !self.kept.contains_key(evaluation) {
            let bound = STATES_IN_MEMORY.saturating_sub(self.kept.values().map(Original::held).sum());
            let mut tap = Off;
            let mut model = DecoderModel::new(decoder, &mut tap, start).behind(passage);
            let original = Original::keep(&mut model, windows, bound, progress)?;
            self.kept.insert(evaluation.to_owned(), original);
        }
        Ok(())
    }

    /// Whether an evaluation's original is kept.
    pub fn has(&self, model: &str, evaluation: &str) -> bool {
        self.model == model && self.kept.contains_key(evaluation)
    }

    /// The queries of a model's original, once they are kept.
    pub fn queries(&self, model: &str, evaluation: &str) -> Option<&Shared> {
        self.kept.get(evaluation).filter(|_| self.model == model).map(Original::queries)
    }

    /// The original of an evaluation, once it is kept.
    pub fn get(&mut self, evaluation: &str) -> Option<&mut Original> {
        self.kept.get_mut(evaluation)
    }
}

/// Bytes that comparisons with the original add to the peak: its output head, its hidden states as far as they are kept
/// in memory, its first queries, and a second slice of logits. Before the text is encoded the number of windows is known only where it is
/// limited; else the bound counts.
pub fn memory(evaluations: &[Evaluation], architecture: &Architecture) -> u64 {
    let compared = |evaluation: &Evaluation| match evaluation {
        Evaluation::Perplexity(perplexity) if perplexity.against_original => Some(
            perplexity
                .limit
                .map_or(STATES_IN_MEMORY, |n| 4 * (n * perplexity.length * architecture.hidden) as u64),
        ),
        _ => None,
    };
    let states: Vec<u64> = evaluations.iter().filter_map(compared).collect();
    if states.is_empty() {
        return 0;
    }
    let head = 4 * (architecture.vocabulary * architecture.hidden) as u64;
    let length = evaluations.iter().map(Evaluation::length).max().unwrap_or_default();
    let queries = growth::BOUND * states.len() as u64;
    head + queries
        + states.iter().sum::<u64>().min(STATES_IN_MEMORY)
        + DecoderModel::logits_bytes(architecture, length)
}
