//! From the wire to the domain: reads every block, resolves every name, and refuses what cannot be.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;

use super::source::{Block, Fault, Source};
use super::{
    BUILTIN_MODELS, Evaluation, Exclusion, Expectation, Experiment, Model, ModelSource, ORIGINAL, Recipe,
    Warning, calibration, evaluation, recipe, wire,
};
use crate::data::CorpusRef;
use crate::names;

pub(super) type Checked<T> = Result<T, Box<Fault>>;

/// Reads the whole file.
pub(super) fn experiment(text: &str, file: &Path) -> Checked<Experiment> {
    let shown = file.display().to_string();
    let top = Source { file: &shown, text }.parse()?;
    let wire::Document { question, reference, analysis, .. } = top.read()?;
    let sweep = top.table("sweep")?.ok_or_else(|| top.fault(0..0, "the block `[sweep]` is missing"))?;
    let axes: wire::Sweep = sweep.read()?;
    let mut warnings = Vec::new();

    let models = Defined::read(&top, "model", |name, block, _| model(name, block), &mut warnings)?;
    let models = swept_models(&sweep, &axes.models, models, &mut warnings)?;
    let recipes = Defined::read(&top, "recipe", recipe::read, &mut warnings)?;
    let recipes = swept_recipes(&sweep, &axes.recipes, recipes, &mut warnings)?;
    let calibrations =
        Defined::read(&top, "calibration", |name, block, _| calibration::read(name, block), &mut warnings)?;
    let listed = axes.calibrations.as_deref().unwrap_or_default();
    let calibrations = calibrations.sweep(&sweep, listed, &mut warnings)?;
    calibration::check_references(&top, &calibrations)?;
    if let (Some(needy), true) =
        (recipes.iter().find(|recipe| recipe.needs_calibration), calibrations.is_empty())
    {
        let message =
            format!("recipe `{}` needs a calibration set, and the key `calibrations` names none", needy.name);
        return Err(sweep.fault(sweep.span.clone(), message));
    }

    let recipes = super::with_references(recipes);
    let mut experiment = Experiment {
        name: file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        file: file.to_path_buf(),
        question: not_empty(&top, "question", question)?,
        reference: not_empty(&top, "reference", reference)?,
        analysis,
        models,
        recipes,
        calibrations,
        seeds: seeds(&sweep, axes.seeds, "[0]")?,
        exclude: exclude(&sweep)?,
        evaluations: evaluations(&top)?,
        expectations: Vec::new(),
        warnings,
    };
    calibration::check_halves(&top, &experiment)?;
    for block in top.list_of_tables("expect", "expect")? {
        let expectation = expectation(&block, &experiment)?;
        experiment.expectations.push(expectation);
    }
    Ok(experiment)
}

fn not_empty(block: &Block<'_>, key: &str, text: String) -> Checked<String> {
    if text.trim().is_empty() {
        return Err(block.fault_of_key(format!("`{key}` is empty: reports print it above the tables")));
    }
    Ok(text)
}

/// The blocks `[kind.NAME]`, read, by name, each with the place of its name.
struct Defined<'s, T> {
    kind: &'static str,
    order: Vec<(String, Range<usize>)>,
    values: HashMap<String, T>,
    top: &'s Block<'s>,
}

impl<'s, T> Defined<'s, T> {
    fn read(
        top: &'s Block<'s>,
        kind: &'static str,
        read: impl Fn(&str, &Block<'s>, &mut Vec<Warning>) -> Checked<T>,
        warnings: &mut Vec<Warning>,
    ) -> Checked<Self> {
        let mut defined = Self { kind, order: Vec::new(), values: HashMap::new(), top };
        for (name, place, block) in top.named_tables(kind)? {
            let wrong = |c: char| !c.is_ascii_alphanumeric() && !"-_.+/".contains(c);
            if name.is_empty() || name.contains(wrong) {
                let message = format!("`{name}` cannot name a {kind}: letters, digits and - _ . + / only");
                return Err(block.fault(place, message));
            }
            if name == ORIGINAL {
                let message = "`original` is the model as it came, always measured, and cannot be defined";
                return Err(block.fault(place, message));
            }
            defined.values.insert(name.clone(), read(&name, &block, warnings)?);
            defined.order.push((name, place));
        }
        Ok(defined)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.order.iter().map(|(name, _)| name.as_str())
    }

    /// Takes the values that `listed` names, in its order; what is left over is a warning.
    fn sweep(
        self,
        sweep: &Block<'_>,
        listed: &[Spanned<String>],
        warnings: &mut Vec<Warning>,
    ) -> Checked<Vec<T>> {
        let kind = self.kind;
        self.sweep_or(
            sweep,
            listed,
            warnings,
            |_, _| None,
            &format!("no `[{kind}.NAME]` block has this name"),
        )
    }

    /// As [`Defined::sweep`], with `otherwise` for names that no block defines.
    fn sweep_or(
        mut self,
        sweep: &Block<'_>,
        listed: &[Spanned<String>],
        warnings: &mut Vec<Warning>,
        otherwise: impl Fn(&str, &Self) -> Option<T>,
        cure: &str,
    ) -> Checked<Vec<T>> {
        let mut swept = Vec::new();
        for (i, name) in listed.iter().enumerate() {
            let (text, place) = (name.get_ref().as_str(), name.span());
            if listed[..i].iter().any(|earlier| earlier.get_ref() == text) {
                return Err(sweep.fault(place, format!("{} `{text}` is named twice", self.kind)));
            }
            let value = self.values.remove(text).or_else(|| otherwise(text, &self));
            let Some(value) = value else {
                let builtin = if self.kind == "model" { BUILTIN_MODELS } else { &[] };
                let near = names::hint(text, self.names().chain(builtin.iter().copied()));
                let fault = sweep.fault(place, format!("unknown {} `{text}`{near}", self.kind));
                let defined: Vec<_> = self.names().collect();
                let listing = format!("{}s defined in this file: {}", self.kind, defined.join(", "));
                return Err(if defined.is_empty() {
                    fault.note(cure)
                } else {
                    fault.note(listing).note(cure)
                });
            };
            swept.push(value);
        }
        let left = self.order.into_iter().filter(|(name, _)| self.values.contains_key(name));
        warnings.extend(left.map(|(name, place)| Warning::NotSwept {
            kind: self.kind,
            line: self.top.fault(place, "").line,
            name,
        }));
        Ok(swept)
    }
}

fn model(name: &str, block: &Block<'_>) -> Checked<Model> {
    let wire::Model { path, id, revision } = block.read()?;
    if name.starts_with("builtin/") {
        return Err(block.fault(block.span.clone(), format!("`{name}`: the names builtin/… are taken")));
    }
    let source = match (path, id) {
        (Some(_), Some(id)) => {
            return Err(block.fault(id.span(), "a model has `path` or `id`, not both"));
        }
        (Some(path), None) => {
            if is_hub_id(name) {
                let message =
                    format!("`path` makes `{name}` a local folder, whose name may not look like a hub id");
                return Err(block.fault_of_key(message).note(
                    "its numbers would be taken for the hub's: choose a name without `/` that says what it is",
                ));
            }
            if revision.is_some() {
                return Err(
                    block.fault_of_key("`revision` belongs to a hub id, not to a local folder".into())
                );
            }
            ModelSource::Local { path }
        }
        (None, id) => {
            let place = id.as_ref().map_or(block.span.clone(), Spanned::span);
            let id = id.map_or_else(|| name.to_string(), Spanned::into_inner);
            if !is_hub_id(&id) {
                let fault = block.fault(place, format!("`{id}` is no hub id, which reads organisation/name"));
                return Err(fault.note("for a local folder give `path`, for a hub model `id`"));
            }
            ModelSource::Hub { id, revision }
        }
    };
    Ok(Model { label: name.to_string(), source })
}

/// Whether a name reads `organisation/name`.
pub(crate) fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['-', '.'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/').is_some_and(|(organisation, name)| part(organisation) && part(name))
}

fn swept_models(
    sweep: &Block<'_>,
    listed: &Spanned<Vec<Spanned<String>>>,
    defined: Defined<'_, Model>,
    warnings: &mut Vec<Warning>,
) -> Checked<Vec<Model>> {
    if listed.get_ref().is_empty() {
        return Err(sweep.fault(listed.span(), "`models` is empty: nothing would be measured"));
    }
    let undefined = |name: &str, _: &Defined<'_, Model>| {
        let source = if BUILTIN_MODELS.contains(&name) {
            ModelSource::Builtin(name.to_string())
        } else if is_hub_id(name) && !name.starts_with("builtin/") {
            ModelSource::Hub { id: name.to_string(), revision: None }
        } else {
            return None;
        };
        Some(Model { label: name.to_string(), source })
    };
    let cure = format!(
        "a model is built in ({}), a hub id (organisation/name), or the name of a [model.NAME] block",
        BUILTIN_MODELS.join(", ")
    );
    defined.sweep_or(sweep, listed.get_ref(), warnings, undefined, &cure)
}

fn swept_recipes(
    sweep: &Block<'_>,
    listed: &Spanned<Vec<Spanned<String>>>,
    defined: Defined<'_, Recipe>,
    warnings: &mut Vec<Warning>,
) -> Checked<Vec<Recipe>> {
    if listed.get_ref().is_empty() {
        return Err(sweep.fault(listed.span(), "`recipes` is empty: only the original would be measured"));
    }
    if let Some(name) = listed.get_ref().iter().find(|name| name.get_ref() == ORIGINAL) {
        return Err(sweep.fault(name.span(), "`original` is always measured: leave it out of `recipes`"));
    }
    let recipes = defined.sweep(sweep, listed.get_ref(), warnings)?;
    for (i, second) in recipes.iter().enumerate() {
        if let Some(first) = recipes[..i].iter().find(|first| first.steps == second.steps) {
            let (first, second) = (first.name.clone(), second.name.clone());
            warnings.push(Warning::SameSteps { first, second });
        }
    }
    Ok(recipes)
}

pub(super) fn seeds(
    sweep: &Block<'_>,
    listed: Option<Spanned<Vec<Spanned<u64>>>>,
    otherwise: &str,
) -> Checked<Vec<u64>> {
    let Some(listed) = listed else { return Ok(vec![0]) };
    let place = listed.span();
    let mut seeds = Vec::new();
    for seed in listed.into_inner() {
        if seeds.contains(seed.get_ref()) {
            return Err(sweep.fault(seed.span(), format!("seed {} is named twice", seed.get_ref())));
        }
        seeds.push(seed.into_inner());
    }
    if seeds.is_empty() {
        return Err(sweep.fault(place, format!("`seeds` is empty; leave it out for {otherwise}")));
    }
    Ok(seeds)
}

fn exclude(sweep: &Block<'_>) -> Checked<Vec<Exclusion>> {
    let read = |block: &Block<'_>| {
        let wire::Exclude { model, recipe, calibration } = block.read()?;
        if model.is_none() && recipe.is_none() && calibration.is_none() {
            let message =
                "an exclusion without `model`, `recipe` or `calibration` would take every cell away";
            return Err(block.fault(block.span.clone(), message));
        }
        Ok(Exclusion { model, recipe, calibration })
    };
    sweep.list_of_tables("exclude", "exclude")?.iter().map(read).collect()
}

fn evaluations(top: &Block<'_>) -> Checked<Vec<Evaluation>> {
    let blocks = top.list_of_tables("evaluate", "evaluate")?;
    if blocks.is_empty() {
        let fault = top.fault(0..0, "there is no [[evaluate]] block: nothing would be measured");
        return Err(fault.note("the shortest: metric = \"perplexity\", protocol, corpus and length"));
    }
    let mut evaluations: Vec<Evaluation> = Vec::new();
    for block in blocks {
        let place = block.span.clone();
        let source = block.source;
        let name = block.name.clone();
        let evaluation = evaluation::read(block)?;
        if let Some(earlier) = evaluations.iter().find(|earlier| earlier.id() == evaluation.id()) {
            let fault = source.fault(&name, place, format!("`{}` is measured twice", evaluation.id()));
            let same_text = earlier.corpus() == evaluation.corpus();
            return Err(match (same_text, evaluation.corpus()) {
                (false, Some(CorpusRef::File { .. })) => {
                    fault.note("two files whose names differ only in folder or ending: rename one of them")
                }
                _ => fault,
            });
        }
        evaluations.push(evaluation);
    }
    Ok(evaluations)
}

/// Reads an `[[expect]]` block and checks that something planned will meet it.
fn expectation(block: &Block<'_>, experiment: &Experiment) -> Checked<Expectation> {
    let wire::Expect { model, recipe, calibration, metric, value, tolerance, source } = block.read()?;
    for (key, number, least) in [("value", value, f64::MIN), ("tolerance", tolerance, 0.0)] {
        if !number.is_finite() || number < least {
            let bound = if key == "tolerance" { "a number, 0 or more" } else { "a finite number" };
            return Err(block.fault_of_key(format!("`{key}` must be {bound}, not {number}")));
        }
    }
    let known = |kind: &str, name: &Spanned<String>, names: Vec<String>| {
        let text = name.get_ref();
        if names.contains(text) {
            return Ok(());
        }
        let near = names::hint(text, names.iter().map(String::as_str));
        let message = format!("no planned measurement has the {kind} `{text}`{near}");
        Err(block.fault(name.span(), message).note(format!("{kind}s measured: {}", names.join(", "))))
    };
    known("model", &model, experiment.models.iter().map(|model| model.label.clone()).collect())?;
    let recipes =
        std::iter::once(ORIGINAL.to_string()).chain(experiment.recipes.iter().map(|r| r.name.clone()));
    known("recipe", &recipe, recipes.collect())?;
    known("metric", &metric, experiment.evaluations.iter().flat_map(Evaluation::ids).collect())?;
    if let Some(calibration) = &calibration {
        known("calibration", calibration, experiment.calibrations.iter().map(|c| c.name.clone()).collect())?;
    }
    let of_metric = |e: &&Evaluation| e.ids().contains(metric.get_ref());
    if *recipe.get_ref() != ORIGINAL
        && experiment.evaluations.iter().find(of_metric).is_some_and(Evaluation::only_originals)
    {
        let message = format!("`{}` is measured of originals only", metric.get_ref());
        return Err(block.fault(recipe.span(), message));
    }

    let calibrated = experiment.recipes.iter().any(|r| r.name == *recipe.get_ref() && r.needs_calibration);
    if let (Some(calibration), false) = (&calibration, calibrated) {
        let message = format!(
            "recipe `{}` needs no calibration set, so none of its measurements has one",
            recipe.get_ref()
        );
        return Err(block.fault(calibration.span(), message));
    }
    let mut sets: Vec<Option<&str>> = vec![None];
    if calibrated {
        let wanted =
            |name: &str| calibration.as_ref().is_none_or(|calibration| calibration.get_ref() == name);
        let names = experiment.calibrations.iter().map(|c| c.name.as_str());
        sets = names.filter(|name| wanted(name)).map(Some).collect();
    }
    let taken =
        |set: &Option<&str>| experiment.exclusion_of(model.get_ref(), recipe.get_ref(), *set).is_some();
    if sets.iter().all(taken) {
        let message =
            format!("`exclude` takes away what is expected of {}, {}", model.get_ref(), recipe.get_ref());
        return Err(block.fault(block.span.clone(), message));
    }
    Ok(Expectation {
        model: model.into_inner(),
        recipe: recipe.into_inner(),
        calibration: calibration.map(Spanned::into_inner),
        metric: metric.into_inner(),
        value,
        tolerance,
        source,
    })
}
