//! What a plan shares: floating-point passes over calibration sets whose statistics several cells read.

use std::collections::HashSet;

use super::{Cell, Plan};
use crate::quantize::StatisticsNeed;
use crate::quantize::steps::{Stage, Step};

/// Passes over calibration sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passes {
    /// If every cell made its own.
    pub alone: usize,
    /// As they are made: once per model, set, seed and state of the model.
    pub shared: usize,
}

/// The passes of a plan's cells.
pub fn passes<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Passes {
    let mut made = HashSet::new();
    let mut passes = Passes::default();
    for cell in cells {
        let names = cell.names();
        for state in states(&cell.recipe.steps) {
            passes.alone += 1;
            passes.shared += usize::from(made.insert((names.model, names.calibration, names.seed, state)));
        }
    }
    passes
}

impl Plan {
    /// The passes of all its cells.
    pub fn passes(&self) -> Passes {
        passes(&self.cells)
    }
}

/// The states of a model whose statistics a recipe reads, as [`crate::quantize::apply`] asks for them, each once.
fn states(steps: &[Step]) -> HashSet<String> {
    let key = |state: &[&Step]| serde_json::to_string(state).expect("a step is plain data");
    let mut read = HashSet::new();
    if steps.iter().any(|step| step.method().statistics() == StatisticsNeed::Original) {
        read.insert(key(&[]));
    }
    let mut state: Vec<&Step> = Vec::new();
    let (late, early): (Vec<&Step>, Vec<&Step>) =
        steps.iter().partition(|step| step.method().rounds_weights());
    for step in early.into_iter().chain(late) {
        if step.method().statistics() == StatisticsNeed::Present {
            read.insert(key(&state));
        }
        if step.method().stage() < Stage::Keep {
            state.push(step);
        }
    }
    read
}
