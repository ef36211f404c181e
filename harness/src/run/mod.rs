//! Running a plan: the only place that wires stages together. load → quantize → evaluate, cell by cell, into a store.
//!
//! Nothing here prints: what happens is told to an [`Observer`]. A cell that fails is recorded and the next one runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crate::calibrate::overlap;
use crate::calibrate::set::CalibrationSet;
use crate::quantize::integer::Arithmetic;
use crate::run::calibrations::Calibrations;
use crate::run::calibrator::Collected;

use crate::data::corpus::DataOptions;
use crate::device::Selected;
use crate::experiment::{Evaluation, Experiment, Planned};
use crate::plan::{Cell, Plan};
use crate::record::execution::Residence;
use crate::record::store::{Claim, ClaimOutcome, Store, StoreError};
use crate::record::{Failure, Manifest, ManifestCell, ManifestExpectation, MeasurementResult, SCHEMA};
use crate::run::interrupt::Interrupt;

mod calibrations;
mod calibrator;
mod cell;
mod error;
pub mod inspect;
pub mod interrupt;
mod items;
mod layers;
mod lockstep;
mod made;
mod originals;
mod refusal;
pub mod residence;
mod source;
mod speed;
pub mod survey;
mod texts;
mod windowed;

pub use cell::catching_now;
pub use error::RunError;
pub use items::TaskError;
pub use source::{ModelOptions, open_checkpoint};

/// What a sweep needs besides the plan.
pub struct Options<'a> {
    /// Where the models run.
    pub device: &'a Selected,
    /// Where models are looked for.
    pub models: ModelOptions,
    /// Where corpora are looked for.
    pub data: DataOptions,
    /// The results folder.
    pub results: PathBuf,
    /// Try again what failed before.
    pub retry_failed: bool,
    /// How quantized linear layers are executed.
    pub arithmetic: Arithmetic,
    /// Whether models are executed with all weights in memory.
    pub execution: residence::Choice,
}

/// What happens during a sweep.
#[derive(Debug)]
pub enum Event<'a> {
    /// Looking for a model's files and hashing them.
    Opening {
        /// Its label.
        model: &'a str,
    },
    /// A file of a model is being fetched.
    Download {
        /// The file.
        file: &'a str,
        /// Bytes here.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A model's files are there.
    Opened {
        /// Its label.
        model: &'a str,
        /// Number of parameters.
        parameters: u64,
        /// Bytes that the weights and the workspace of its greatest cell need at their peak.
        memory: u64,
        /// Where the weights of its first cell are.
        residence: Residence,
    },
    /// Something that is allowed and probably not meant.
    Warning {
        /// What.
        text: &'a str,
    },
    /// Work on a cell begins; `index` of `total`.
    CellStarted {
        /// Position in the plan.
        index: usize,
        /// Cells of the plan.
        total: usize,
        /// The cell.
        cell: &'a Cell,
    },
    /// A floating-point pass over a calibration set begins.
    Calibrating {
        /// Samples of the set.
        samples: usize,
    },
    /// A step of a recipe, a calibration or an evaluation goes on.
    Progress {
        /// Samples, windows or trials done.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// A value is there.
    Measured {
        /// The cell.
        cell: &'a Cell,
        /// The value.
        measurement: &'a MeasurementResult,
        /// Whether it was in the store already.
        reused: bool,
        /// Seconds it took, 0 where it was reused.
        seconds: f64,
    },
    /// A cell or measurement failed.
    Failed {
        /// The cell.
        cell: &'a Cell,
        /// What is recorded of it.
        failure: &'a Failure,
        /// Whether it failed in an earlier run and was not tried again.
        earlier: bool,
    },
    /// A value differs from its anchor.
    Missed {
        /// The anchor.
        expectation: &'a ManifestExpectation,
        /// The measured value.
        value: f64,
    },
    /// Another process is computing the rest; waiting for it.
    Waiting {
        /// Cells it holds.
        cells: usize,
    },
}

/// Told of every event.
pub trait Observer {
    /// Called on the thread of the sweep; should return soon.
    fn event(&mut self, event: Event);
}

/// How a sweep ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Measurements made now.
    pub measured: usize,
    /// Measurements that were there.
    pub reused: usize,
    /// Cells or measurements that failed, now or earlier.
    pub failed: usize,
    /// Expectations that were missed.
    pub missed: usize,
    /// Whether the user stopped it.
    pub interrupted: bool,
}

/// Measures every cell of a plan that is not in the store yet.
///
/// # Errors
/// Only what leaves nothing to go on with; a failing cell is recorded and counted.
pub fn sweep(
    experiment: &Experiment,
    plan: &Plan,
    options: &Options,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Summary, RunError> {
    // Before the store: a folder with nothing in it would be left behind where a text is missing.
    let texts = texts::Texts::load(plan, &options.data)?;
    let items = items::TaskItems::load(plan, &options.data).map_err(|e| RunError::Task(Box::new(e)))?;
    let calibrations = Calibrations::load(plan, &options.data)?;
    let store = Store::open(&options.results)?;
    store.sweep_tmp()?;
    let mut sweep = Sweep {
        expectations: expectations(experiment),
        texts,
        items,
        calibrations,
        sets: BTreeMap::new(),
        collected: Collected::default(),
        originals: originals::Originals::default(),
        sources: BTreeMap::new(),
        residences: Vec::new(),
        occupied: None,
        summary: Summary::default(),
        store: &store,
        plan,
        options,
        interrupt,
        observer,
    };
    sweep.open_models();
    if interrupt.requested() {
        // Not every id is known, and a manifest without them would hide what is measured.
        return Ok(Summary { interrupted: true, ..Summary::default() });
    }
    sweep.forget_unopened()?;
    sweep.draw_sets()?;
    sweep.check_steps()?;
    sweep.check_texts()?;
    sweep.choose()?;
    store.write_manifest(&sweep.manifest(experiment)?)?;

    let mut pending: Vec<usize> = (0..plan.cells.len()).collect();
    // Statistics of a set live in the process that collected them: first each has sets of its own, then all help.
    let mut helps = false;
    while !pending.is_empty() && !sweep.summary.interrupted {
        let mut held = Vec::new();
        let before = pending.len();
        let mut rest = pending.as_slice();
        while let [index, others @ ..] = rest {
            if interrupt.requested() || sweep.summary.interrupted {
                sweep.summary.interrupted = true;
                break;
            }
            // Cells of a model stand together, and so do those of them that stream.
            let together = 1 + others.iter().take_while(|other| sweep.goes_with(*index, **other)).count();
            if sweep.residences[*index] == Residence::Streamed {
                held.extend(sweep.lockstep(&rest[..together])?);
                rest = &rest[together..];
                continue;
            }
            if !sweep.cell(*index, helps)? {
                held.push(*index);
            }
            rest = others;
        }
        let stuck = !held.is_empty() && held.len() == before;
        if stuck && helps {
            sweep.observer.event(Event::Waiting { cells: held.len() });
            std::thread::sleep(Duration::from_millis(200));
        }
        helps = stuck;
        pending = held;
    }
    Ok(sweep.summary)
}

/// The state of a sweep; its methods are the stages.
struct Sweep<'a> {
    store: &'a Store,
    plan: &'a Plan,
    options: &'a Options<'a>,
    interrupt: &'a Interrupt,
    observer: &'a mut dyn Observer,
    texts: texts::Texts,
    items: items::TaskItems,
    calibrations: Calibrations,
    /// The drawn sets by model label, set and seed.
    sets: BTreeMap<(String, String, u64), Rc<CalibrationSet>>,
    collected: Collected,
    originals: originals::Originals,
    /// By model label: what is there, or why nothing is.
    sources: BTreeMap<String, Result<source::Source, source::SourceError>>,
    /// By cell of the plan.
    residences: Vec<Residence>,
    /// The set whose cells this process does, by its claim's name.
    occupied: Option<(String, Claim)>,
    expectations: Vec<ManifestExpectation>,
    summary: Summary,
}

impl Sweep<'_> {
    /// Opens every model of the plan, so that faults of files show before the long work starts.
    fn open_models(&mut self) {
        for cell in &self.plan.cells {
            let label = &cell.model.label;
            if self.sources.contains_key(label) || self.interrupt.requested() {
                continue;
            }
            self.observer.event(Event::Opening { model: label });
            let source = source::Source::open(&cell.model, &self.options.models, &mut |file, done, total| {
                self.observer.event(Event::Download { file, done, total });
            });
            if let Ok(source) = &source {
                let architecture = source.checkpoint.architecture();
                let (longest, context) = (cell.longest(), architecture.context);
                let choice = self.options.execution;
                let same_model = self.plan.cells.iter().filter(|other| other.model.label == *label);
                self.observer.event(Event::Opened {
                    model: label,
                    parameters: source.identity.parameters,
                    memory: residence::peak(same_model, architecture, choice),
                    residence: residence::choose(cell, architecture, choice).unwrap_or_default(),
                });
                if longest > context {
                    let text =
                        format!("{label}: windows of {longest} tokens exceed its context of {context}");
                    self.observer.event(Event::Warning { text: &text });
                }
            }
            self.sources.insert(label.clone(), source);
        }
    }

    /// Forgets the failures of models that could not be opened earlier and can be now: they are recorded under the ids
    /// of descriptions, which nobody looks up once the content is known.
    fn forget_unopened(&self) -> Result<(), StoreError> {
        let opened = |cell: &&Cell| matches!(self.sources.get(&cell.model.label), Some(Ok(_)));
        for cell in self.plan.cells.iter().filter(opened) {
            self.store.clear_failure(&cell.description_id(), None)?;
        }
        Ok(())
    }

    /// Draws every calibration set under every model's tokenizer, and refuses one that holds what is measured.
    fn draw_sets(&mut self) -> Result<(), RunError> {
        for cell in &self.plan.cells {
            let (Some(calibration), Some(Ok(source))) =
                (&cell.calibration, self.sources.get(&cell.model.label))
            else {
                continue;
            };
            let key = set_key(cell);
            if self.sets.contains_key(&key) {
                continue;
            }
            let drawn = self.calibrations.set(calibration, &source.checkpoint, key.2);
            let drawn =
                drawn.map_err(|e| RunError::Draw { model: cell.model.label.clone(), source: Box::new(e) })?;
            for evaluation in &cell.evaluations {
                // An evaluation without windows or questions fails by itself, and shares nothing.
                let measured = match evaluation {
                    Evaluation::Perplexity(perplexity) => {
                        let windows = self.texts.windows(perplexity, &source.checkpoint);
                        windows.map(|windows| windows.windows.into_iter().map(|w| w.fed).collect()).ok()
                    }
                    Evaluation::Task(block) => {
                        let asked = self.items.questions(block, &source.checkpoint, 0);
                        asked.map(|asked| asked.token_ids()).ok()
                    }
                    // Of originals alone, which no set calibrates; of no text.
                    Evaluation::LayerError(_) | Evaluation::Speed(_) => None,
                };
                if let Some(measured) = measured {
                    overlap::check(&drawn, calibration, &evaluation.id(), &measured)
                        .map_err(|e| RunError::Overlap(Box::new(e)))?;
                }
            }
            self.sets.insert(key, drawn);
        }
        Ok(())
    }

    /// Refuses steps that a model cannot have, before the long work starts.
    fn check_steps(&self) -> Result<(), RunError> {
        for cell in &self.plan.cells {
            let Some(Ok(source)) = self.sources.get(&cell.model.label) else { continue };
            refusal::check_steps(cell, &source.checkpoint)?;
        }
        Ok(())
    }

    /// Refuses to go on where the store has a number for an evaluation and it is that of another text: a metric's id
    /// names its text, and does not hold it.
    fn check_texts(&mut self) -> Result<(), RunError> {
        for cell in &self.plan.cells {
            let Some(Ok(source)) = self.sources.get(&cell.model.label) else {
                continue;
            };
            let id = source.cell_id(cell, self.set_hash(cell));
            for evaluation in &cell.evaluations {
                if let Evaluation::LayerError(block) = evaluation {
                    self.check_layer_text(&id, block)?;
                }
                let Evaluation::Perplexity(perplexity) = evaluation else { continue };
                let Planned { metric, version } = evaluation.planned().swap_remove(0);
                let Some(known) = self.store.measurement(&id, &metric, version)? else {
                    continue;
                };
                let Some(stored) = self.texts.other(perplexity, &source.checkpoint, &known.result.detail)
                else {
                    continue;
                };
                let (results, found) = (self.options.results.clone(), self.texts.hash(perplexity).into());
                return Err(RunError::OtherText { metric, results, stored, found });
            }
        }
        Ok(())
    }

    /// What the whole experiment asks for, for the report: a sweep of a part of it must not hide the rest. A cell whose
    /// model was not opened now keeps the id under which it was listed before.
    fn manifest(&self, experiment: &Experiment) -> Result<Manifest, StoreError> {
        let whole = Plan::new(experiment);
        let before = self.store.read_manifest()?.unwrap_or_default();
        let known = |cell: &Cell| {
            let names = cell.names();
            let same = |listed: &&ManifestCell| {
                listed.model == names.model
                    && listed.recipe == names.recipe
                    && listed.calibration.as_deref() == names.calibration
                    && listed.seed == names.seed
            };
            before.cells.iter().find(same).map(|listed| listed.id.clone())
        };
        let mut recipes = vec![crate::experiment::ORIGINAL.to_string()];
        recipes.extend(experiment.recipes.iter().map(|recipe| recipe.name.clone()));
        let listed = |cell: &Cell| ManifestCell {
            id: match self.sources.get(&cell.model.label) {
                Some(_) if cell.calibration.is_none() || self.set_hash(cell).is_some() => self.id(cell),
                _ => known(cell).unwrap_or_else(|| cell.description_id()),
            },
            model: cell.model.label.clone(),
            recipe: cell.recipe.name.clone(),
            calibration: cell.calibration.as_ref().map(|c| c.name.clone()),
            seed: cell.seed,
            metrics: cell.planned().into_iter().map(|planned| planned.metric).collect(),
        };
        Ok(Manifest {
            schema: SCHEMA,
            experiment: experiment.name.clone(),
            file: experiment.file.display().to_string(),
            question: experiment.question.clone(),
            reference: experiment.reference.clone(),
            analysis: experiment.analysis.clone(),
            models: experiment.models.iter().map(|model| model.label.clone()).collect(),
            recipes,
            calibrations: experiment.calibrations.iter().map(|c| c.name.clone()).collect(),
            calibration_references: experiment
                .calibrations
                .iter()
                .filter_map(|c| Some((c.name.clone(), c.reference.clone()?)))
                .collect(),
            cells: whole.cells.iter().map(listed).collect(),
            notes: whole
                .notes
                .into_iter()
                .chain(experiment.warnings.iter().map(ToString::to_string))
                .collect(),
            expectations: self.expectations.clone(),
        })
    }

    /// The cell's content id, or that of its description where the model's files are not there.
    fn id(&self, cell: &Cell) -> String {
        match self.sources.get(&cell.model.label) {
            Some(Ok(source)) => source.cell_id(cell, self.set_hash(cell)),
            _ => cell.description_id(),
        }
    }

    /// The hash of a cell's drawn set.
    fn set_hash(&self, cell: &Cell) -> Option<&str> {
        cell.calibration.as_ref()?;
        self.sets.get(&set_key(cell)).map(|set| set.hash.as_str())
    }

    /// Does what is missing of a cell. False where another process holds it, or its set and this one does not help.
    fn cell(&mut self, index: usize, helps: bool) -> Result<bool, RunError> {
        let cell = &self.plan.cells[index];
        let id = self.id(cell);
        if self.missing(cell, &id)?.is_empty() {
            self.tell_known(cell, &id)?;
            return Ok(true);
        }
        if !helps && !self.occupies_set(cell)? {
            return Ok(false);
        }
        let claim = match self.store.claim(&id, None)? {
            ClaimOutcome::Claimed(claim) => claim,
            ClaimOutcome::HeldBy(_) => return Ok(false),
        };
        // Another process may have finished between the look and the claim.
        let missing = self.missing(cell, &id)?;
        self.tell_known(cell, &id)?;
        if !missing.is_empty() {
            self.observer.event(Event::CellStarted { index, total: self.plan.cells.len(), cell });
            self.compute(cell, &id, &missing)?;
        }
        drop(claim);
        Ok(true)
    }

    /// Whether no other process does the cells of this one's set; from now on none does.
    fn occupies_set(&mut self, cell: &Cell) -> Result<bool, RunError> {
        let (Some(Ok(source)), Some(hash)) = (self.sources.get(&cell.model.label), self.set_hash(cell))
        else {
            return Ok(true);
        };
        let name = set_claim(&source.weights(), hash);
        if self.occupied.as_ref().is_some_and(|(occupied, _)| *occupied == name) {
            return Ok(true);
        }
        self.occupied = None;
        match self.store.claim(&name, None)? {
            ClaimOutcome::Claimed(claim) => self.occupied = Some((name, claim)),
            ClaimOutcome::HeldBy(_) => return Ok(false),
        }
        Ok(true)
    }

    /// The evaluations of a cell that have neither a value nor, unless failures are tried again, a failure.
    fn missing(&self, cell: &Cell, id: &str) -> Result<Vec<usize>, StoreError> {
        if !self.options.retry_failed && self.store.failure(id, None)?.is_some() {
            return Ok(Vec::new());
        }
        let mut missing = Vec::new();
        for (position, evaluation) in cell.evaluations.iter().enumerate() {
            for Planned { metric, version } in evaluation.planned_of(cell.recipe.is_original()) {
                let there = self.store.measurement(id, &metric, version)?.is_some();
                let failed = !self.options.retry_failed && self.store.failure(id, Some(&metric))?.is_some();
                if !there && !failed {
                    missing.push(position);
                    break;
                }
            }
        }
        Ok(missing)
    }

    /// Tells of the values and failures that were there before.
    fn tell_known(&mut self, cell: &Cell, id: &str) -> Result<(), StoreError> {
        let whole = self.store.failure(id, None)?;
        if let Some(failure) = whole.filter(|_| !self.options.retry_failed) {
            self.summary.failed += 1;
            self.observer.event(Event::Failed { cell, failure: &failure, earlier: true });
        }
        for Planned { metric, version } in cell.planned() {
            if let Some(found) = self.store.measurement(id, &metric, version)? {
                self.summary.reused += 1;
                self.measured(cell, &found.result, true, 0.0);
            } else if let Some(failure) =
                self.store.failure(id, Some(&metric))?.filter(|_| !self.options.retry_failed)
            {
                self.summary.failed += 1;
                self.observer.event(Event::Failed { cell, failure: &failure, earlier: true });
            }
        }
        Ok(())
    }

    /// Tells of a value and checks it against its anchors.
    fn measured(&mut self, cell: &Cell, measurement: &MeasurementResult, reused: bool, seconds: f64) {
        self.observer.event(Event::Measured { cell, measurement, reused, seconds });
        let calibration = cell.calibration.as_ref().map(|c| c.name.as_str());
        for expectation in &self.expectations {
            let concerned = expectation.model == cell.model.label
                && expectation.recipe == cell.recipe.name
                && expectation.metric == measurement.metric
                && (expectation.calibration.is_none() || expectation.calibration.as_deref() == calibration);
            if concerned && !expectation.is_met_by(measurement.value) {
                self.summary.missed += 1;
                self.observer.event(Event::Missed { expectation, value: measurement.value });
            }
        }
    }
}

/// Under what name a process claims the cells of a model and a drawn set, from the content hashes of both.
pub fn set_claim(weights: &str, set: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(weights.as_bytes()).update(b"\0").update(set.as_bytes());
    hasher.finalize().to_hex()[..32].to_string()
}

/// What a cell's drawn set is known by.
fn set_key(cell: &Cell) -> (String, String, u64) {
    let name = cell.calibration.as_ref().map_or_else(String::new, |calibration| calibration.name.clone());
    (cell.model.label.clone(), name, cell.seed.unwrap_or_default())
}

fn expectations(experiment: &Experiment) -> Vec<ManifestExpectation> {
    experiment
        .expectations
        .iter()
        .map(|e| ManifestExpectation {
            model: e.model.clone(),
            recipe: e.recipe.clone(),
            calibration: e.calibration.clone(),
            metric: e.metric.clone(),
            value: e.value,
            tolerance: e.tolerance,
            source: e.source.clone(),
        })
        .collect()
}
