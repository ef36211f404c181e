//! Steps that a model cannot have, found before its weights are read: by a plan and by a sweep alike.

use models::Checkpoint;
use models::architecture::Architecture;

use crate::data::window::window_start;
use crate::plan::Cell;
use crate::quantize::ModelFacts;
use crate::run::RunError;
use crate::run::calibrator::one_token;

/// Refuses a cell one of whose steps its model cannot have.
///
/// # Errors
/// The first of them.
pub fn check_steps(cell: &Cell, checkpoint: &Checkpoint) -> Result<(), RunError> {
    let tokenizer = checkpoint.tokenizer();
    let start = window_start(tokenizer.bos(), tokenizer.eos());
    check(cell, checkpoint.architecture(), start, &|text| one_token(checkpoint, text))
}

/// As [`check_steps`], of a model of which nothing but `config.json` is there: words are taken to be tokens.
///
/// # Errors
/// As [`check_steps`].
pub fn check_described(cell: &Cell, architecture: &Architecture) -> Result<(), RunError> {
    check(cell, architecture, Some(0), &|_| Some(0))
}

fn check(
    cell: &Cell,
    architecture: &Architecture,
    start: Option<u32>,
    token: &dyn Fn(&str) -> Option<u32>,
) -> Result<(), RunError> {
    let steps = &cell.recipe.steps;
    for (place, step) in steps.iter().enumerate() {
        let longest = cell.longest_behind_prefix();
        let facts = ModelFacts { architecture, earlier: &steps[..place], longest, start, token };
        step.method().check_model(&facts).map_err(|e| RunError::Step {
            recipe: cell.recipe.name.clone(),
            step: format!("{place}.{}", step.name()),
            model: cell.model.label.clone(),
            source: Box::new(e),
        })?;
    }
    Ok(())
}
