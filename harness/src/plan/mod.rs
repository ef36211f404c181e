//! Expanding an experiment into cells: no tensor, no device, no network.
//!
//! The product of the axes, without what is excluded and without repetition: the original runs once per model, a
//! recipe that needs no calibration set once and not per set, one that the seed does not change once and not per
//! seed. Cells stand in an order that shares work: by model, then calibration set and seed, then recipe.

use serde::Serialize;
use serde_json::{Value, json};

use crate::data::BosPolicy;
use crate::experiment::{Calibration, Evaluation, Experiment, Model, Planned, Recipe};
use crate::record::canonical_hash;

mod selection;
pub mod sharing;

pub use selection::{Globs, Selection, SelectionError};

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
        self.cells.iter().map(|cell| cell.planned().len()).sum()
    }
}

/// All cells before exclusion, in order.
fn product(experiment: &Experiment) -> Vec<Cell> {
    let original = Recipe::original();
    let free =
        || std::iter::once(&original).chain(experiment.recipes.iter().filter(|r| !r.needs_calibration));
    let calibrated = || experiment.recipes.iter().filter(|r| r.needs_calibration);
    let mut cells = Vec::new();
    for model in &experiment.models {
        let mut add = |recipe: &Recipe, calibration: Option<&Calibration>, seed: Option<u64>| {
            let asked = |e: &&Evaluation| recipe.is_original() || !e.only_originals();
            let evaluations: Vec<Evaluation> = experiment.evaluations.iter().filter(asked).cloned().collect();
            cells.push(Cell {
                model: model.clone(),
                recipe: recipe.clone(),
                calibration: calibration.cloned(),
                seed,
                evaluations,
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
            for &seed in calibration.seeds.as_ref().unwrap_or(&experiment.seeds) {
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

    /// Tokens of the longest sequence that its evaluations pass through the model.
    pub fn longest(&self) -> usize {
        self.evaluations.iter().map(Evaluation::length).max().unwrap_or(1)
    }

    /// Tokens of the longest sequence that is fed behind a prefix, which takes the place of BOS.
    pub fn longest_behind_prefix(&self) -> usize {
        let evaluated = self.evaluations.iter().map(Evaluation::length_behind_prefix);
        let calibrated = self.calibration.iter().map(|c| c.length - usize::from(c.bos == BosPolicy::Every));
        evaluated.chain(calibrated).max().unwrap_or(1)
    }

    /// Every measurement that is made of it.
    pub fn planned(&self) -> Vec<Planned> {
        let original = self.recipe.is_original();
        self.evaluations.iter().flat_map(|evaluation| evaluation.planned_of(original)).collect()
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::data::{BosPolicy, CorpusRef};
    use crate::experiment::{Exclusion, ModelSource, ORIGINAL, Sampler};

    /// An experiment of so many models and calibration sets; recipes by (needs calibration, uses randomness).
    fn experiment(models: usize, recipes: &[(bool, bool)], calibrations: usize, seeds: usize) -> Experiment {
        let text = include_str!("../../tests/fixtures/small.toml");
        let mut experiment = Experiment::parse(text, Path::new("small.toml")).unwrap();
        let hub = |label: &String| ModelSource::Hub { id: label.clone(), revision: None };
        let labels = (0..models).map(|i| format!("m{i}"));
        experiment.models = labels.map(|label| Model { source: hub(&label), label }).collect();
        let steps = experiment.recipes[0].steps.clone();
        let recipe = |(i, &(needs_calibration, uses_randomness)): (usize, &(bool, bool))| Recipe {
            name: format!("r{i}"),
            steps: steps.clone(),
            needs_calibration,
            uses_randomness,
        };
        experiment.recipes = recipes.iter().enumerate().map(recipe).collect();
        let calibration = |i| Calibration {
            name: format!("c{i}"),
            corpus: CorpusRef::Named(format!("text-{i}")),
            samples: 4,
            length: 8,
            sampler: Sampler::Windows,
            bos: BosPolicy::None,
            repeat: true,
            allow_overlap: false,
            seeds: None,
            reference: None,
        };
        experiment.calibrations = (0..calibrations).map(calibration).collect();
        experiment.seeds = (0..seeds as u64).collect();
        experiment.exclude = Vec::new();
        experiment
    }

    type Key = (String, String, Option<String>, Option<u64>);

    fn keys(plan: &Plan) -> Vec<Key> {
        let owned = |names: Names| {
            (
                names.model.to_string(),
                names.recipe.to_string(),
                names.calibration.map(String::from),
                names.seed,
            )
        };
        plan.cells.iter().map(|cell| owned(cell.names())).collect()
    }

    /// The plan by definition: walk the whole product, forget what does not matter to a cell, keep the distinct rest.
    fn by_definition(experiment: &Experiment) -> HashSet<Key> {
        let mut cells = HashSet::new();
        for model in &experiment.models {
            cells.insert((model.label.clone(), ORIGINAL.to_string(), None, None));
            for recipe in &experiment.recipes {
                let mut sets: Vec<Option<String>> = vec![None];
                if recipe.needs_calibration {
                    sets = experiment.calibrations.iter().map(|c| Some(c.name.clone())).collect();
                }
                for set in sets {
                    for &seed in &experiment.seeds {
                        let seed = (recipe.needs_calibration || recipe.uses_randomness).then_some(seed);
                        let excluded = experiment.exclude.iter().any(|exclusion| {
                            exclusion.model.as_ref().is_none_or(|m| *m == model.label)
                                && exclusion.recipe.as_ref().is_none_or(|r| *r == recipe.name)
                                && exclusion.calibration.as_ref().is_none_or(|c| Some(c) == set.as_ref())
                        });
                        if !excluded {
                            cells.insert((model.label.clone(), recipe.name.clone(), set.clone(), seed));
                        }
                    }
                }
            }
        }
        cells
    }

    proptest! {
        #[test]
        fn a_plan_is_the_product_without_repetition_and_exclusions(
            models in 1usize..4,
            recipes in prop::collection::vec(any::<(bool, bool)>(), 1..5),
            calibrations in 1usize..4,
            seeds in 1usize..4,
            exclude in prop::collection::vec((0usize..5, 0usize..6, 0usize..5), 0..4),
        ) {
            let mut experiment = experiment(models, &recipes, calibrations, seeds);
            // Names beyond the axes match nothing; the largest number leaves the axis open.
            let name = |letter: char, i: usize, open: usize| (i != open).then(|| format!("{letter}{i}"));
            experiment.exclude = exclude
                .iter()
                .map(|&(m, r, c)| Exclusion {
                    model: name('m', m, 4),
                    recipe: name('r', r, 5),
                    calibration: name('c', c, 4),
                })
                .collect();
            let plan = Plan::new(&experiment);
            let found = keys(&plan);
            let distinct: HashSet<Key> = found.iter().cloned().collect();
            prop_assert_eq!(distinct.len(), found.len(), "a cell stands twice");
            prop_assert_eq!(&distinct, &by_definition(&experiment));
            prop_assert_eq!(plan.notes.len(), experiment.exclude.len());

            // Cells that share a model, or a drawn calibration set, stand together.
            let mut stretches: Vec<(&str, Option<&str>, Option<u64>)> =
                found.iter().map(|(m, _, c, s)| (m.as_str(), c.as_deref(), s.filter(|_| c.is_some()))).collect();
            stretches.dedup();
            let count = stretches.len();
            stretches.sort();
            stretches.dedup();
            prop_assert_eq!(stretches.len(), count, "work that could be shared is torn apart");
        }
    }

    #[test]
    fn counts_are_those_of_the_product() {
        // Two models; the original, one recipe that needs nothing, one random, one calibrated; 3 sets, 2 seeds.
        let experiment = experiment(2, &[(false, false), (false, true), (true, false)], 3, 2);
        assert_eq!(Plan::new(&experiment).cells.len(), 2 * (1 + 1 + 2 + 3 * 2));
        assert_eq!(Plan::new(&experiment).measurements(), 20);
    }

    #[test]
    fn ids_follow_meaning_and_not_names() {
        let mut experiment = experiment(1, &[(true, false)], 1, 2);
        let ids = |experiment: &Experiment| -> Vec<String> {
            Plan::new(experiment).cells.iter().map(Cell::description_id).collect()
        };
        let before = ids(&experiment);
        assert!(before.iter().all(|id| id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit())));
        assert_eq!(before.iter().collect::<HashSet<_>>().len(), 3);

        experiment.models[0].label = "another-label".into();
        experiment.recipes[0].name = "another-name".into();
        experiment.calibrations[0].name = "another-set".into();
        experiment.evaluations.clear();
        assert_eq!(ids(&experiment), before);

        experiment.calibrations[0].samples += 1;
        let after = ids(&experiment);
        assert_eq!(after[0], before[0]);
        assert!(after[1] != before[1] && after[2] != before[2]);
    }

    #[test]
    fn exclusions_say_what_they_took() {
        let mut experiment = experiment(2, &[(false, false)], 1, 1);
        let exclusion = |model: &str| Exclusion { model: Some(model.into()), ..Default::default() };
        experiment.exclude = vec![exclusion("m1"), exclusion("m*"), exclusion("x")];
        let plan = Plan::new(&experiment);
        assert_eq!(
            plan.notes,
            [
                "exclude { model = \"m1\" }: takes 1 cell away",
                "exclude { model = \"m*\" }: takes 1 cell away",
                "exclude { model = \"x\" }: takes no cell away; is it spelt as in [sweep]?",
            ]
        );
        assert_eq!(keys(&plan).len(), 2, "the original is never excluded");
    }
}
