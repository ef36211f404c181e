//! `quantscope plan`: the cells of an experiment, and nothing run.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use indicatif::HumanBytes;

use crate::cli::progress::duration;
use crate::cli::{CliError, Options, Outcome, columns, load, print, say};
use crate::data::corpus::DataOptions;
use crate::experiment::{Evaluation, Experiment, ModelSource};
use crate::plan::Plan;
use crate::run::survey::{self, Model, State, Survey};
use crate::run::{ModelOptions, RunError};

/// Show the cells of an experiment and what is there of them; touches no device and no network.
///
/// One line per cell, in the order in which they would run, with the id of what each cell is. Use it before a long
/// sweep, and with the filters to see what they leave.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quantscope plan experiments/quickstart.toml
  quantscope plan experiments/naive-smollm2.toml -r 'w8*'")]
pub struct PlanArgs {
    /// The experiment: a TOML file, as docs/format.md describes it.
    #[arg(value_name = "EXPERIMENT")]
    pub experiment: PathBuf,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would replace the verb's help")]
    pub options: Options,
}

/// Prints the plan.
///
/// # Errors
/// Where the file or the filters have to be changed.
pub fn run(args: &PlanArgs) -> Result<Outcome, CliError> {
    let (experiment, plan) = load(&args.experiment, &args.options)?;
    let mut survey = survey(&experiment, &plan, &args.options)?;
    print(&render(&experiment, &plan, &survey))?;
    if survey.faults.is_empty() {
        return Ok(Outcome::Complete);
    }
    // All of them are told: one run of `plan` for one mistake would try anybody's patience.
    let first = survey.faults.remove(0);
    survey.faults.iter().for_each(|fault| say(&format!("error: {fault}")));
    Err(first.into())
}

/// What is on disk of a plan.
///
/// # Errors
/// A store that cannot be read.
pub fn survey(experiment: &Experiment, plan: &Plan, options: &Options) -> Result<Survey, CliError> {
    let models = ModelOptions { folder: options.models_dir(), offline: true };
    let base = experiment.file.parent().map(PathBuf::from).unwrap_or_default();
    let data = DataOptions::new(options.data_dir(), base, true);
    let store = options.store_of(&experiment.name);
    Ok(survey::survey(plan, &models, &data, &store, options.execution()).map_err(RunError::from)?)
}

/// The plan as text: a table of cells, what is measured of each, and what the models are.
pub fn render(experiment: &Experiment, plan: &Plan, survey: &Survey) -> String {
    let mut text = format!("{}: {}\n\n", experiment.name, experiment.question.trim());
    let mut rows: Vec<Vec<String>> =
        vec![["cell", "model", "recipe", "calibration", "seed", "measured"].map(String::from).to_vec()];
    for (cell, state) in plan.cells.iter().zip(&survey.cells) {
        let names = cell.names();
        rows.push(vec![
            cell.description_id()[..12].to_string(),
            names.model.to_string(),
            names.recipe.to_string(),
            names.calibration.unwrap_or("-").to_string(),
            names.seed.map_or("-".to_string(), |seed| seed.to_string()),
            match state {
                State::Measured(made, all) => format!("{made} of {all}"),
                State::Failed => "failed".into(),
                State::Unknown => "?".into(),
            },
        ]);
    }
    text.push_str(&columns(&rows));

    let mut rows = vec![vec!["evaluation".to_string(), "version".to_string(), "at most".to_string()]];
    for evaluation in
        experiment.evaluations.iter().filter(|e| plan.cells.iter().any(|c| c.evaluations.contains(e)))
    {
        for planned in evaluation.planned() {
            rows.push(vec![planned.metric, planned.version.to_string(), extent(evaluation)]);
        }
    }
    write!(text, "\n{}", columns(&rows)).expect("writing to a string cannot fail");

    if let Some(rows) = bits(plan, survey) {
        write!(text, "\n{}", columns(&rows)).expect("writing to a string cannot fail");
    }

    let mut rows = vec![["model", "from", "state"].map(String::from).to_vec()];
    for (label, found) in &survey.models {
        let source = experiment.models.iter().find(|model| model.label == *label);
        let from = source.map(|model| origin(&model.source)).unwrap_or_default();
        rows.push(vec![label.clone(), from, found_as(found)]);
    }
    write!(text, "\n{}", columns(&rows)).expect("writing to a string cannot fail");

    text.push_str(&executions(survey));

    if !survey.sets.is_empty() {
        let head = ["calibration", "model", "samples", "length", "unique tokens", "repetition", "text"];
        let mut rows = vec![head.map(String::from).to_vec()];
        for (name, model, set) in &survey.sets {
            let count = |key: &str| set.detail.get(key).map(ToString::to_string).unwrap_or_default();
            let repetition = set.detail.get("repetition").and_then(serde_json::Value::as_f64);
            let text = set.detail.get("text").and_then(serde_json::Value::as_str);
            rows.push(vec![
                name.clone(),
                model.clone(),
                count("samples"),
                count("length"),
                count("unique-tokens"),
                repetition.map_or(String::new(), |repetition| format!("{repetition:.2}")),
                text.unwrap_or_default().to_string(),
            ]);
        }
        write!(text, "\n{}", columns(&rows)).expect("writing to a string cannot fail");
    }

    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let (cells, measurements) =
        (plural(plan.cells.len(), "cell"), plural(plan.measurements(), "measurement"));
    writeln!(text, "\n{cells}, {measurements}").expect("writing to a string cannot fail");
    let passes = plan.passes();
    if passes.alone > 0 {
        let saved = passes.alone - passes.shared;
        let made = passes.shared;
        let text_of_passes = format!(
            "floating-point passes over calibration sets: {made} for statistics that steps read; without sharing {}, so \
             that {saved} are saved",
            passes.alone
        );
        writeln!(text, "{text_of_passes}").expect("writing to a string cannot fail");
    }
    text
}

/// Effective bits of every recipe that has fewer than 16, on every model that is here.
fn bits(plan: &Plan, survey: &Survey) -> Option<Vec<Vec<String>>> {
    let mut rows = vec![["bits of", "recipe", "weights", "activations", "cache"].map(String::from).to_vec()];
    for (cell, bits) in plan.cells.iter().zip(&survey.bits) {
        let Some(bits) = bits.filter(|bits| bits.is_reduced()) else { continue };
        let names = cell.names();
        let numbers = [bits.weights, bits.activations, bits.cache].map(|bits| format!("{bits:.3}"));
        let row = [[names.model, names.recipe].map(String::from).to_vec(), numbers.to_vec()].concat();
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    (rows.len() > 1).then_some(rows)
}

/// What either execution of every model whose config.json is here is estimated to take, which is chosen, and what cannot be
/// streamed where a cell is or does not fit.
fn executions(survey: &Survey) -> String {
    let head = ["execution of", "", "estimated peak memory", "estimated time", "cells"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let mut notes = String::new();
    for (label, found) in &survey.models {
        let (Model::Here { needs, .. } | Model::Described { needs, .. }) = found else { continue };
        let (streamed, cells) = needs.streamed;
        for (place, (word, chosen)) in
            [("resident", cells - streamed), ("streamed", streamed)].into_iter().enumerate()
        {
            let time = needs.seconds.map_or("?".into(), |seconds| duration(seconds[place]));
            let memory = HumanBytes(needs.memory[place]).to_string();
            let count = if chosen == 0 { "-".into() } else { format!("{chosen} of {cells}") };
            rows.push(vec![label.clone(), word.into(), memory, time, count]);
        }
        if streamed > 0 {
            for (recipe, why) in &needs.whole {
                notes.push_str(&format!("{label} · {recipe} cannot be streamed: {why}\n"));
            }
        }
    }
    if rows.len() == 1 { String::new() } else { format!("\n{}{notes}", columns(&rows)) }
}

fn found_as(model: &Model) -> String {
    match model {
        Model::Here { parameters, .. } => format!("here; {:.1} M parameters", *parameters as f64 / 1e6),
        Model::Described { parameters, .. } => format!(
            "config.json is here; {:.1} M parameters: about {} to fetch in 16 bits",
            *parameters as f64 / 1e6,
            HumanBytes(2 * parameters)
        ),
        Model::ToFetch { parameters_by_name } => {
            let size = parameters_by_name.map_or(String::new(), |n| {
                let (stored, loaded) = (HumanBytes((2.0 * n) as u64), HumanBytes((4.0 * n) as u64));
                format!("; by its name about {stored} to fetch in 16 bits, and {loaded} of memory in f32")
            });
            format!("not here: would fetch config.json, tokenizer.json and *.safetensors{size}")
        }
        Model::Unusable { reason } => reason.clone(),
    }
}

fn extent(evaluation: &Evaluation) -> String {
    evaluation.extent().unwrap_or_else(|| "all of the text".to_string())
}

fn origin(source: &ModelSource) -> String {
    match source {
        ModelSource::Builtin(_) => "this program".to_string(),
        ModelSource::Hub { id, revision } => {
            let revision = revision.as_ref().map(|revision| format!(" at {revision}")).unwrap_or_default();
            format!("the hub: {id}{revision}")
        }
        ModelSource::Local { path } if path.is_absolute() => format!("the folder {}", path.display()),
        ModelSource::Local { path } => format!("the folder {} under --models", path.display()),
    }
}
