//! What stops a whole sweep: mistakes of files that are found before the long work, a broken store, a broken device.

use std::path::PathBuf;

use crate::calibrate::overlap::OverlapError;
use crate::calibrate::set::DrawError;
use crate::quantize::StepError;
use crate::record::store::StoreError;
use crate::run::items;
use crate::run::residence::Whole;

/// What stops a whole sweep.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A text cannot be read: found before any model is loaded.
    #[error("evaluation {metric}: {source}")]
    Corpus {
        /// The full metric id.
        metric: String,
        /// Why.
        source: crate::data::corpus::CorpusError,
    },
    /// The store's number of an evaluation belongs to other windows than those of this run.
    #[error(
        "the text of {metric} is not the text on which `{}` has it measured (blake3 {stored} there, {found} now): \
         measure into another folder with --results DIR, or delete `{}` to measure everything anew",
        results.display(), results.join("cells").display()
    )]
    OtherText {
        /// The full metric id.
        metric: String,
        /// The store.
        results: PathBuf,
        /// Hash of the text that was measured.
        stored: String,
        /// Hash of the text that is there now.
        found: String,
    },
    /// The items of a task cannot be had.
    #[error(transparent)]
    Task(Box<items::TaskError>),
    /// The text of a calibration set cannot be read.
    #[error("calibration `{calibration}`: {source}")]
    CalibrationText {
        /// The set's name.
        calibration: String,
        /// Why.
        source: crate::data::corpus::CorpusError,
    },
    /// The items that a calibration set is made of cannot be had.
    #[error("calibration `{calibration}`: {source}")]
    CalibrationItems {
        /// The set's name.
        calibration: String,
        /// Why.
        source: Box<items::TaskError>,
    },
    /// A calibration set cannot be drawn.
    #[error("{model}: {source}")]
    Draw {
        /// The model whose tokenizer it is drawn with.
        model: String,
        /// Why.
        source: Box<DrawError>,
    },
    /// A calibration set holds what is measured.
    #[error(transparent)]
    Overlap(Box<OverlapError>),
    /// A step that a model cannot have.
    #[error("recipe `{recipe}`, step {step}, on {model}: {source}")]
    Step {
        /// The recipe.
        recipe: String,
        /// `<place>.<step>`.
        step: String,
        /// The model's label.
        model: String,
        /// Why not.
        source: Box<StepError>,
    },
    /// A cell that is to be executed part by part and cannot be.
    #[error(
        "recipe `{recipe}` on {model} cannot be executed part by part: {source}; use --execution resident or auto, or leave \
         it out with -R"
    )]
    Whole {
        /// The recipe.
        recipe: String,
        /// The model's label.
        model: String,
        /// Why not.
        source: Whole,
    },
    /// The device failed in a way that leaves it unusable.
    #[error(
        "{device} failed and cannot be used any more: {message}; everything measured so far is kept, run again to go on"
    )]
    Device {
        /// The device.
        device: String,
        /// What it said.
        message: String,
    },
}
