//! What a plan finds on disk: which models are there, and which measurements are made. Reaches no network, loads no
//! weights and computes nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use models::CheckpointError;
use models::architecture::Architecture;

use crate::calibrate::set::CalibrationSet;
use crate::data::corpus::{self, CorpusError, DataOptions};
use crate::experiment::{ModelSource, Planned};
use crate::plan::{Cell, Plan};
use crate::quantize::effective_bits;
use crate::record::EffectiveBits;
use crate::record::execution::Residence;
use crate::record::store::{Store, StoreError};
use crate::run::calibrations::Calibrations;
use crate::run::residence::{self, Choice, Whole};
use crate::run::{ModelOptions, RunError, TaskError, refusal, source};

/// What is there of a plan.
pub struct Survey {
    /// By model label, in the plan's order.
    pub models: Vec<(String, Model)>,
    /// One per cell of the plan.
    pub cells: Vec<State>,
    /// One per cell of the plan, where its model's config.json is here: what the recipe says, before a calibration set has exempted
    /// anything.
    pub bits: Vec<Option<EffectiveBits>>,
    /// The calibration sets that can be drawn here, by name and model, each with its first seed.
    pub sets: Vec<(String, String, Rc<CalibrationSet>)>,
    /// Why others cannot be drawn, and steps that a model cannot have, each once. A text that would be fetched from the hub is
    /// none.
    pub faults: Vec<RunError>,
}

/// What is known of a model without fetching it.
#[derive(Debug)]
pub enum Model {
    /// Its files are there.
    Here {
        /// Number of parameters.
        parameters: u64,
        /// What either execution takes.
        needs: Needs,
    },
    /// Of its files config.json is there; the others would be fetched from the hub.
    Described {
        /// Number of parameters.
        parameters: u64,
        /// What either execution takes.
        needs: Needs,
    },
    /// It would be fetched from the hub.
    ToFetch {
        /// Number of parameters, where the model's name says it (`-8B`).
        parameters_by_name: Option<f64>,
    },
    /// It cannot be had as things are.
    Unusable {
        /// Why.
        reason: String,
    },
}

/// What executing a model's cells takes, and how they are executed.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Bytes at the peak of the greatest cell, with all weights in memory and part by part.
    pub memory: [u64; 2],
    /// Seconds of all cells, likewise, where it is known how much text there is.
    pub seconds: Option<[f64; 2]>,
    /// Cells that are executed part by part, and of how many.
    pub streamed: (usize, usize),
    /// Why cells cannot be, by recipe, each recipe once.
    pub whole: Vec<(String, Whole)>,
}

impl Needs {
    fn of(cells: &[&Cell], a: &Architecture, stored: u64, choice: Choice) -> Self {
        let peak = |residence| cells.iter().map(|cell| residence::memory(residence, a, cell)).max();
        let memory = [Residence::Resident, Residence::Streamed].map(|r| peak(r).unwrap_or_default());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let chosen = cells.iter().map(|cell| residence::choose(cell, a, choice));
        let mut whole: Vec<(String, Whole)> = Vec::new();
        for cell in cells {
            if let Err(why) = residence::streamable(cell, a)
                && !whole.iter().any(|(recipe, _)| *recipe == cell.recipe.name)
            {
                whole.push((cell.recipe.name.clone(), why));
            }
        }
        Self {
            memory,
            seconds: residence::seconds(a, cells, stored, threads),
            streamed: (chosen.filter(|c| *c == Ok(Residence::Streamed)).count(), cells.len()),
            whole,
        }
    }
}

/// What is there of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Number of measurements made, of how many.
    Measured(usize, usize),
    /// It failed in an earlier run.
    Failed,
    /// Its model's files are not there, so that its id is not known.
    Unknown,
}

/// Looks at the models' folders and the store.
///
/// # Errors
/// A store that is there and cannot be read.
pub fn survey(
    plan: &Plan,
    options: &ModelOptions,
    data: &DataOptions,
    results: &Path,
    execution: Choice,
) -> Result<Survey, StoreError> {
    let (mut calibrations, missing) = Calibrations::load_what_is_there(plan, data);
    let absent: Vec<String> = missing.iter().map(|(name, _)| name.clone()).collect();
    let mut faults: Vec<RunError> = missing.into_iter().map(|(_, e)| e).filter(|e| !is_to_fetch(e)).collect();
    let mut sets: Vec<(String, String, Rc<CalibrationSet>)> = Vec::new();
    let store = if results.is_dir() { Some(Store::open_read_only(results)?) } else { None };
    let on_disk = ModelOptions { offline: true, ..options.clone() };
    let mut sources = BTreeMap::new();
    let mut described: BTreeMap<String, Architecture> = BTreeMap::new();
    let mut models = Vec::new();
    let mut cells = Vec::new();
    let mut bits = Vec::new();
    for cell in &plan.cells {
        let label = &cell.model.label;
        if !sources.contains_key(label) {
            let source = source::Source::open(&cell.model, &on_disk, &mut |_, _, _| {});
            let config = match &source {
                Err(source::SourceError::Hub(_)) => source::architecture_in_cache(&cell.model.source),
                _ => None,
            };
            let cells: Vec<&Cell> = plan.cells.iter().filter(|c| c.model.label == *label).collect();
            models.push((label.clone(), describe(&source, &config, &cell.model.source, &cells, execution)));
            described.extend(config.and_then(Result::ok).map(|architecture| (label.clone(), architecture)));
            sources.insert(label.clone(), source.ok());
        }
        let id = match &sources[label] {
            Some(source) => match &cell.calibration {
                Some(calibration) if absent.contains(&calibration.name) => None,
                Some(calibration) => {
                    let seed = cell.seed.unwrap_or_default();
                    match calibrations.set(calibration, &source.checkpoint, seed) {
                        Ok(set) => {
                            if !sets
                                .iter()
                                .any(|(name, model, _)| *name == calibration.name && model == label)
                            {
                                sets.push((calibration.name.clone(), label.clone(), set.clone()));
                            }
                            Some(source.cell_id(cell, Some(&set.hash)))
                        }
                        Err(e) => {
                            let fault = RunError::Draw { model: label.clone(), source: Box::new(e) };
                            if !faults.iter().any(|known| known.to_string() == fault.to_string()) {
                                faults.push(fault);
                            }
                            None
                        }
                    }
                }
                None => Some(source.cell_id(cell, None)),
            },
            None => None,
        };
        let architecture = sources[label].as_ref().map(|source| source.checkpoint.architecture());
        let architecture = architecture.or_else(|| described.get(label));
        let refused = match (&sources[label], architecture) {
            (Some(source), _) => refusal::check_steps(cell, &source.checkpoint),
            (None, Some(architecture)) => refusal::check_described(cell, architecture),
            (None, None) => Ok(()),
        };
        if let Err(fault) = refused
            && !faults.iter().any(|known| known.to_string() == fault.to_string())
        {
            faults.push(fault);
        }
        bits.push(architecture.map(|known| effective_bits::planned(&cell.recipe.steps, known)));
        let known = id.is_some();
        let id = id.unwrap_or_else(|| cell.description_id());
        cells.push(state(cell, &id, store.as_ref(), known)?);
    }
    Ok(Survey { models, cells, bits, sets, faults })
}

/// Whether a sweep with a network would have it.
fn is_to_fetch(fault: &RunError) -> bool {
    match fault {
        RunError::CalibrationText { source: CorpusError::NotFound { name, .. }, .. } => {
            corpus::find(name).is_ok_and(|(corpus, _)| corpus.on_hub.is_some())
        }
        RunError::CalibrationItems { source, .. } => matches!(**source, TaskError::NotFound { .. }),
        _ => false,
    }
}

fn describe(
    source: &Result<source::Source, source::SourceError>,
    config: &Option<Result<Architecture, CheckpointError>>,
    from: &ModelSource,
    cells: &[&Cell],
    execution: Choice,
) -> Model {
    match (source, config, from) {
        (Ok(source), ..) => {
            let stored = source.checkpoint.stored_bytes();
            let needs = Needs::of(cells, source.checkpoint.architecture(), stored, execution);
            Model::Here { parameters: source.identity.parameters, needs }
        }
        (Err(_), Some(Ok(known)), _) => {
            // Checkpoints of the hub store two bytes per parameter.
            let needs = Needs::of(cells, known, 2 * known.parameters(), execution);
            Model::Described { parameters: known.parameters(), needs }
        }
        (Err(_), Some(Err(error)), _) => Model::Unusable { reason: error.to_string() },
        (Err(source::SourceError::Hub(_)), None, ModelSource::Hub { id, .. }) => {
            Model::ToFetch { parameters_by_name: parameters_by_name(id) }
        }
        (Err(error), ..) => Model::Unusable { reason: error.to_string() },
    }
}

fn state(cell: &Cell, id: &str, store: Option<&Store>, known: bool) -> Result<State, StoreError> {
    let planned = cell.planned();
    let Some(store) = store else {
        return Ok(if known { State::Measured(0, planned.len()) } else { State::Unknown });
    };
    let mut measured = 0;
    let mut failed = store.failure(id, None)?.is_some();
    for Planned { metric, version } in &planned {
        measured += usize::from(store.measurement(id, metric, *version)?.is_some());
        failed |= store.failure(id, Some(metric))?.is_some();
    }
    Ok(match (failed, known) {
        (true, _) => State::Failed,
        (false, true) => State::Measured(measured, planned.len()),
        (false, false) => State::Unknown,
    })
}

/// `Meta-Llama-3-8B` has 8e9, `SmolLM2-135M` 135e6.
fn parameters_by_name(id: &str) -> Option<f64> {
    id.rsplit(['-', '_', '/']).find_map(|part| {
        let digits = part.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &part[digits.len()..] {
            "B" | "b" => 1e9,
            "M" | "m" => 1e6,
            _ => return None,
        };
        digits.parse::<f64>().ok().map(|n| n * unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_sizes() {
        assert_eq!(parameters_by_name("meta-llama/Meta-Llama-3-8B"), Some(8e9));
        assert_eq!(parameters_by_name("meta-llama/Llama-2-7b-hf"), Some(7e9));
        assert_eq!(parameters_by_name("HuggingFaceTB/SmolLM2-135M-Instruct"), Some(135e6));
        assert_eq!(parameters_by_name("google/gemma-2-2.6b"), Some(2.6e9));
        assert_eq!(parameters_by_name("openai/gpt2"), None);
    }
}
