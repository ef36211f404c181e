//! Expanding an experiment into cells: no tensor, no device, no network.
//!
//! The product of the axes, without what is excluded and without repetition: the original runs once per model, a
//! recipe that needs no calibration set once and not per set, one that the seed does not change once and not per
//! seed. Cells stand in an order that shares work: by model, then calibration set and seed, then recipe.

use serde::Serialize;
use serde_json::{Value, json};

use crate::experiment::{Calibration, Evaluation, Experiment, Model, Recipe};
use crate::record::canonical_hash;

mod selection;

pub use selection::{Selection, SelectionError};

/// What will be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The cells, in the order in which they share work.
    pub cells: Vec<Cell>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// model × recipe × calibration set × seed, and what to measure of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The model.
    pub model: Model,
    /// The recipe; [`Recipe::original`] for the original.
    pub recipe: Recipe,
    /// The calibration set, where the recipe needs one.
    pub calibration: Option<Calibration>,
    /// The seed, where it changes what the recipe makes.
    pub seed: Option<u64>,
    /// What is measured.
    pub evaluations: Vec<Evaluation>,
}

impl Plan {
    /// Every cell of the experiment.
    pub fn new(experiment: &Experiment) -> Self {
        let all = product(experiment);
        let mut taken = vec![0; experiment.exclude.len()];
        let mut cells = Vec::new();
        for cell in all {
            let calibration = cell.calibration.as_ref().map(|calibration| calibration.name.as_str());
            match experiment.exclusion_of(&cell.model.label, &cell.recipe.name, calibration) {
                Some(exclusion) => taken[exclusion] += 1,
                None => cells.push(cell),
            }
        }
        let said = experiment.exclude.iter().zip(taken);
        let notes = said.map(|(exclusion, n)| match n {
            0 => format!("exclude {exclusion}: takes no cell away; is it spelt as in [sweep]?"),
            1 => format!("exclude {exclusion}: takes 1 cell away"),
            n => format!("exclude {exclusion}: takes {n} cells away"),
        });
        Self { notes: notes.collect(), cells }
    }

    /// Number of measurements.
    pub fn measurements(&self) -> usize {
        self.cells.iter().map(|cell| cell.evaluations.len()).sum()
    }
}

/// All cells before exclusion, in order.
fn product(experiment: &Experiment) -> Vec<Cell> {
    let original = Recipe::original();
    let free = || std::iter::once(&original).chain(experiment.recipes.iter().filter(|r| !r.needs_calibration));
    let calibrated = || experiment.recipes.iter().filter(|r| r.needs_calibration);
    let mut cells = Vec::new();
    for model in &experiment.models {
        let mut add = |recipe: &Recipe, calibration: Option<&Calibration>, seed: Option<u64>| {
            cells.push(Cell {
                model: model.clone(),
                recipe: recipe.clone(),
                calibration: calibration.cloned(),
                seed,
                evaluations: experiment.evaluations.clone(),
            });
        };
        for recipe in free() {
            match recipe.needs_seed() {
                true => experiment.seeds.iter().for_each(|&seed| add(recipe, None, Some(seed))),
                false => add(recipe, None, None),
            }
        }
        for calibration in &experiment.calibrations {
            // The recipes of one seed stand together: they share the drawn samples and their statistics.
            for &seed in &experiment.seeds {
                calibrated().for_each(|recipe| add(recipe, Some(calibration), Some(seed)));
            }
        }
    }
    cells
}

impl Cell {
    /// What produces the quantized model, as the experiment describes it: no label of a model or recipe, no
    /// evaluation. The content id, known once the files are on disk, replaces names by hashes.
    pub fn description(&self) -> Value {
        json!({
            "model": self.model.source,
            "steps": self.recipe.steps,
            "calibration": self.calibration.as_ref().map(Calibration::description),
            "seed": self.seed,
        })
    }

    /// The first 32 hexadecimal digits of the blake3 hash of the description's canonical JSON.
    pub fn description_id(&self) -> String {
        canonical_hash(&self.description())[..32].to_string()
    }

    /// The cell's names.
    pub fn names(&self) -> Names<'_> {
        Names {
            model: &self.model.label,
            recipe: &self.recipe.name,
            calibration: self.calibration.as_ref().map(|calibration| calibration.name.as_str()),
            seed: self.seed,
        }
    }
}

/// What a cell is called in an experiment; no two cells of a plan share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Names<'a> {
    /// Model label.
    pub model: &'a str,
    /// Recipe name.
    pub recipe: &'a str,
    /// Calibration set's name.
    pub calibration: Option<&'a str>,
    /// Seed.
    pub seed: Option<u64>,
}
