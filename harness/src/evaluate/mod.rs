//! Evaluation: language models seen as likelihoods, and the metrics built on them.
//!
//! Nothing here can tell a quantized model from an original: both are a [`LanguageModel`].

pub mod against;
pub mod decode;
pub mod decoder_model;
pub mod growth;
pub mod items;
pub mod metrics;
pub mod noise;
pub mod passage;
pub mod python;
pub mod questions;
pub mod requests;
pub mod scoring;
pub mod shared_scoring;
pub mod tasks;
pub mod windows;

use serde_json::{Map, Value};

use crate::evaluate::scoring::Answer;
use crate::evaluate::windows::{Sequence, Window};

/// What every metric and task is built on.
pub trait LanguageModel {
    /// ln p of every target, given all that is fed up to its place, for each of several windows that feed equally many
    /// tokens.
    ///
    /// # Errors
    /// A failing device, or [`EvaluateError::Interrupted`].
    fn scores(&mut self, windows: &[&Window]) -> Result<Vec<Vec<f32>>, EvaluateError>;

    /// ln p(tokens[i] | tokens[..i]) for i in 1..tokens.len(), for each of several sequences of one length.
    ///
    /// # Errors
    /// As [`LanguageModel::scores`].
    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvaluateError> {
        let windows: Vec<Window> = sequences.iter().map(|tokens| Window::whole(tokens, 0)).collect();
        self.scores(&windows.iter().collect::<Vec<_>>())
    }

    /// Sequences of this length to hand over at once.
    fn batch(&self, length: usize) -> usize;

    /// What the model says to the scored tokens of every sequence, in order; the sequences of one item stand together,
    /// since they may share a context.
    ///
    /// # Errors
    /// A failing device, or [`EvaluateError::Interrupted`].
    fn answers(
        &mut self,
        items: &[&[Sequence]],
        progress: &mut Progress,
    ) -> Result<Vec<Answer>, EvaluateError>;
}

/// Why an evaluation has no result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EvaluateError {
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Hidden states found no place.
    #[error("hidden states cannot be kept in a temporary file: {message}; free space there, or set TMPDIR")]
    States {
        /// What the system said.
        message: String,
    },
    /// Values that are no numbers.
    #[error("the model's log-likelihoods are not finite ({count} of {total}, first in window {window})")]
    NotFinite {
        /// How many.
        count: usize,
        /// Of how many.
        total: usize,
        /// Where the first stands.
        window: usize,
    },
}

/// A measured value with what is needed to judge it.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The value.
    pub value: f64,
    /// Standard error; `None` below two clusters.
    pub stderr: Option<f64>,
    /// Scored items.
    pub n: u64,
    /// More, deterministic.
    pub detail: Map<String, Value>,
}

/// Told before every batch how far an evaluation is; says whether to go on.
pub type Progress<'a> = dyn FnMut(usize, usize) -> bool + 'a;
