//! Which part of a plan to look at or run: globs that keep or drop.

use super::Plan;
use crate::names::{glob, hint};

/// Globs per axis: a name stays where any `keep` matches it (or there is none) and no `drop` does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// On model labels.
    pub models: Globs,
    /// On recipe names. `original`, also behind the prefix of a selected recipe, stays unless it is dropped by its name, so
    /// that there is something to compare with.
    pub recipes: Globs,
    /// On calibration sets' names. A cell without one stays.
    pub calibrations: Globs,
    /// On metric ids, or on metric names alone.
    pub tasks: Globs,
}

/// Globs of one axis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globs {
    /// Keep what one of these matches; empty keeps everything.
    pub keep: Vec<String>,
    /// Drop what one of these matches.
    pub drop: Vec<String>,
}

/// A selection that selects nothing, or names something that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// A glob without effect.
    #[error("{flag} {glob}: no {what} of this experiment matches{hint}; there are: {names}")]
    NoMatch {
        /// The flag as it is typed.
        flag: &'static str,
        /// The glob.
        glob: String,
        /// `model`, `recipe`, `calibration set` or `metric`.
        what: &'static str,
        /// The nearest name, in words.
        hint: String,
        /// All names.
        names: String,
    },
    /// No cell is left.
    #[error("the filters -m -r -c -t leave no cell of the plan: drop one of them")]
    Nothing,
}

impl Selection {
    /// The part of the plan that is selected.
    ///
    /// # Errors
    /// Where a glob matches nothing, or nothing is left.
    pub fn apply(&self, mut plan: Plan) -> Result<Plan, SelectionError> {
        self.check(&plan)?;
        let selected = plan.cells.iter().filter(|cell| self.recipes.selects(&cell.recipe.name));
        let prefixes: Vec<_> = selected.filter_map(|cell| cell.recipe.steps.first().cloned()).collect();
        plan.cells.retain(|cell| {
            let names = cell.names();
            let compared = cell.recipe.is_original()
                || cell.recipe.is_reference() && cell.recipe.steps.iter().all(|step| prefixes.contains(step));
            let recipe = match compared {
                true => !self.recipes.drops(names.recipe),
                false => self.recipes.selects(names.recipe),
            };
            recipe
                && self.models.selects(names.model)
                && names.calibration.is_none_or(|name| self.calibrations.selects(name))
        });
        for cell in &mut plan.cells {
            cell.evaluations.retain(|evaluation| {
                let ids = evaluation.ids();
                let names: Vec<&str> = ids.iter().map(String::as_str).chain([evaluation.metric()]).collect();
                self.tasks.selects_any(&names)
            });
        }
        plan.cells.retain(|cell| !cell.evaluations.is_empty());
        if plan.cells.is_empty() { Err(SelectionError::Nothing) } else { Ok(plan) }
    }

    fn check(&self, plan: &Plan) -> Result<(), SelectionError> {
        let cells = || plan.cells.iter();
        let models = cells().map(|cell| cell.model.label.clone());
        self.models.check(["-m", "-M"], "model", models.collect())?;
        let recipes = cells().map(|cell| cell.recipe.name.clone());
        self.recipes.check(["-r", "-R"], "recipe", recipes.collect())?;
        let calibrations = cells().filter_map(|cell| Some(cell.calibration.as_ref()?.name.clone()));
        self.calibrations.check(["-c", "-C"], "calibration set", calibrations.collect())?;
        let metrics = cells().flat_map(|cell| &cell.evaluations);
        let metrics = metrics.flat_map(|evaluation| {
            evaluation.ids().into_iter().chain([evaluation.metric().to_string()]).collect::<Vec<_>>()
        });
        self.tasks.check(["-t", "-T"], "metric", metrics.collect())
    }
}

impl Globs {
    fn selects(&self, name: &str) -> bool {
        self.selects_any(&[name])
    }

    /// As for one name, where a thing goes by several.
    fn selects_any(&self, names: &[&str]) -> bool {
        let any = |globs: &[String]| globs.iter().any(|pattern| names.iter().any(|name| glob(pattern, name)));
        (self.keep.is_empty() || any(&self.keep)) && !any(&self.drop)
    }

    fn drops(&self, name: &str) -> bool {
        self.drop.iter().any(|pattern| pattern == name)
    }

    fn check(
        &self,
        flags: [&'static str; 2],
        what: &'static str,
        names: Vec<String>,
    ) -> Result<(), SelectionError> {
        for (flag, globs) in flags.into_iter().zip([&self.keep, &self.drop]) {
            if let Some(pattern) = globs.iter().find(|pattern| !names.iter().any(|name| glob(pattern, name)))
            {
                let mut distinct: Vec<&str> = Vec::new();
                for name in &names {
                    if !distinct.contains(&name.as_str()) {
                        distinct.push(name);
                    }
                }
                return Err(SelectionError::NoMatch {
                    flag,
                    glob: pattern.clone(),
                    what,
                    hint: hint(pattern, distinct.iter().copied()),
                    names: if distinct.is_empty() { "none".into() } else { distinct.join(", ") },
                });
            }
        }
        Ok(())
    }
}
