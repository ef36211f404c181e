//! One cell, from checkpoint to measurements.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use models::{Decoder, Site};
use serde_json::{Map, Value};

use crate::data::window::window_start;
use crate::evaluate::decoder_model::DecoderModel;
use crate::evaluate::metrics::perplexity::Perplexity;
use crate::evaluate::questions::{self, Questions};
use crate::evaluate::shared_scoring::Sharing;
use crate::evaluate::{EvaluateError, Measured};
use crate::experiment::{Evaluation, Planned, TaskEvaluation};
use crate::plan::Cell;
use crate::quantize::integer::IntegerTap;
use crate::quantize::{self, StepError, effective_bits};
use crate::record::execution::Underway;
use crate::record::items::ItemRow;
use crate::record::measurement_key;
use crate::record::store::{Store, StoreError};
use crate::record::{Execution, Failure, MeasurementResult, SCHEMA};
use crate::run::calibrator::CellCalibrator;
use crate::run::source::SourceError;
use crate::run::texts::Windows;
use crate::run::windowed::{Streams, Windowed};
use crate::run::{Event, RunError, Sweep};

/// What went wrong with a cell, before it is written down.
#[derive(Clone)]
pub(super) struct Fault {
    stage: &'static str,
    pub(super) message: String,
    pub(super) cure: String,
}

impl Fault {
    pub(super) fn new(stage: &'static str, message: impl ToString, cure: impl ToString) -> Self {
        Self { stage, message: message.to_string(), cure: cure.to_string() }
    }

    /// A step that cannot be carried out.
    pub(super) fn of_step(cell: &Cell, step: &str, error: &StepError) -> Self {
        let stage = match error {
            StepError::Statistics(_) => "calibrate",
            StepError::NotEquivalent { .. } | StepError::Rescale(_) | StepError::Rotate(_) => "transform",
            _ => "quantize",
        };
        let cure = match cell.calibration {
            Some(_) => "change the recipe or its calibration set in the experiment file",
            None => "change the recipe in the experiment file",
        };
        Self::new(stage, format!("step {step}: {error}"), cure)
    }
}

/// An evaluation, ready for a model.
enum Prepared<'a> {
    Windows(&'a Perplexity, Windows),
    Questions(&'a TaskEvaluation, Rc<Questions>),
}

/// Values in the order of [`Evaluation::planned_of`], none where nobody asked, and a task's rows.
type Values = (Vec<Option<Measured>>, Vec<ItemRow>);

impl Prepared<'_> {
    /// What all of its measurements report.
    fn detail(&self) -> Map<String, Value> {
        match self {
            Prepared::Windows(_, windows) => windows.detail.clone(),
            Prepared::Questions(_, questions) => questions.detail.clone(),
        }
    }
}

impl Sweep<'_> {
    /// Makes the cell's model and measures what is missing. A fault is recorded; only a broken store is an error.
    pub(super) fn compute(&mut self, cell: &Cell, id: &str, missing: &[usize]) -> Result<(), RunError> {
        let underway = Execution::begin(&self.options.device.name);
        if !cell.recipe.is_original() {
            match self.keep_originals(cell, id, missing)? {
                Ok(true) => {}
                Ok(false) => {
                    self.summary.interrupted = true;
                    return Ok(());
                }
                Err(fault) => return self.fail(cell, id, None, fault, underway),
            }
        }
        let (mut decoder, mut tap) = match self.make(cell, id, underway.clone())? {
            Ok(Some(made)) => made,
            Ok(None) => {
                self.summary.interrupted = true;
                return Ok(());
            }
            Err(fault) => return self.fail(cell, id, None, fault, underway),
        };
        for &position in missing {
            if self.interrupt.requested() {
                self.summary.interrupted = true;
                return Ok(());
            }
            self.evaluate(cell, id, &cell.evaluations[position], (&mut decoder, &mut tap), None)?;
        }
        Ok(())
    }

    /// Runs the original over what a recipe is to be compared on, where this session has not done so: before the recipe's
    /// model is made, so that two never stand in memory together. False where the user stopped it.
    fn keep_originals(
        &mut self,
        cell: &Cell,
        id: &str,
        missing: &[usize],
    ) -> Result<Result<bool, Fault>, RunError> {
        let Ok(source) = &self.sources[&cell.model.label] else { return Ok(Ok(true)) };
        let label = &cell.model.label;
        let mut decoder = None;
        for evaluation in missing.iter().map(|&position| &cell.evaluations[position]) {
            let Evaluation::Perplexity(perplexity) = evaluation else { continue };
            let wanted = wanted(self.store, id, &evaluation.planned_of(false))?;
            if !wanted[1..].contains(&true) || self.originals.has(label, &evaluation.id()) {
                continue;
            }
            // Windows that cannot be cut are the evaluation's own failure.
            let Ok(windows) = self.texts.windows(perplexity, &source.checkpoint) else { continue };
            if decoder.is_none() {
                let loaded = catching(self.options.device, "load", || {
                    let loaded =
                        source.checkpoint.load(&self.options.device.device).map_err(SourceError::from);
                    loaded.map_err(|e| Fault::new("load", &e, e.cure()))
                });
                match loaded {
                    Ok(loaded) => decoder = Some(loaded),
                    Err(fault) => return Ok(Err(fault)),
                }
            }
            let Some(decoder) = &mut decoder else { continue };
            let tokenizer = source.checkpoint.tokenizer();
            let start = window_start(tokenizer.bos(), tokenizer.eos());
            let (observer, interrupt, originals) = (&mut *self.observer, self.interrupt, &mut self.originals);
            let kept = catching(self.options.device, "evaluate", || {
                let named = (label.as_str(), evaluation.id());
                let kept = originals.keep(
                    (named.0, &named.1),
                    (&windows.windows, start),
                    (decoder, None),
                    &mut |done, total| {
                        observer.event(Event::Progress { done, total });
                        !interrupt.requested()
                    },
                );
                match kept {
                    Ok(()) => Ok(true),
                    Err(EvaluateError::Interrupted) => Ok(false),
                    Err(e) => Err(Fault::new("evaluate", e, "mend it, then run with --retry-failed")),
                }
            });
            match kept {
                Ok(true) => {}
                other => return Ok(other),
            }
        }
        Ok(Ok(true))
    }

    /// Loads the checkpoint, applies the recipe, and publishes the cell. Nothing where the user stopped it.
    fn make(
        &mut self,
        cell: &Cell,
        id: &str,
        underway: Underway,
    ) -> Result<Result<Option<(Decoder, IntegerTap)>, Fault>, RunError> {
        let source = match &self.sources[&cell.model.label] {
            Ok(source) => source,
            Err(e) => return Ok(Err(Fault::new("load", e, e.cure()))),
        };
        let made = catching(self.options.device, "load", || {
            let loaded = source.checkpoint.load(&self.options.device.device).map_err(SourceError::from);
            loaded.map_err(|e| Fault::new("load", &e, e.cure()))
        });
        let set = cell.calibration.as_ref().and_then(|_| self.sets.get(&super::set_key(cell)).cloned());
        let owner = format!("{:?}", super::set_key(cell));
        self.collected.keep(owner.clone());
        let mut calibrator = CellCalibrator {
            set,
            checkpoint: &source.checkpoint,
            collected: &mut self.collected,
            owner,
            seed: cell.seed,
            observer: &mut *self.observer,
            interrupt: self.interrupt,
            fresh: Vec::new(),
            read: Vec::new(),
        };
        let mut interrupted = false;
        let made = made.and_then(|mut decoder| {
            catching(self.options.device, "quantize", || {
                let applied = quantize::apply(&cell.recipe.steps, &mut decoder, &mut calibrator);
                let (tap, fitted) = applied.map_err(|(step, e)| {
                    interrupted |= e == StepError::Interrupted;
                    Fault::of_step(cell, &step, &e)
                })?;
                Ok((decoder, tap, fitted))
            })
        });
        let (mut decoder, tap, fitted) = match made {
            Ok(made) => made,
            Err(_) if interrupted => return Ok(Ok(None)),
            Err(fault) => return Ok(Err(fault)),
        };
        let of_set = (calibrator.fresh, calibrator.read);
        let bits = effective_bits::of(&cell.recipe.steps, &decoder, &tap);
        self.publish_cell(cell, id, (fitted, bits), of_set, underway)?;
        let (arithmetic, steps) = (self.options.arithmetic, &cell.recipe.steps);
        let tap = match super::residence::reads_weights(&cell.evaluations) {
            true => IntegerTap::new(arithmetic, steps, &decoder, tap),
            false => IntegerTap::instead_of_weights(arithmetic, steps, &mut decoder, tap),
        };
        Ok(Ok(Some((decoder, tap))))
    }

    /// Measures one evaluation and publishes it, or records why not.
    ///
    /// Where the model is executed part by part, it is its last part, and `streams` hold what the others have made of the
    /// evaluation's windows.
    pub(super) fn evaluate(
        &mut self,
        cell: &Cell,
        id: &str,
        evaluation: &Evaluation,
        (decoder, tap): (&mut Decoder, &mut IntegerTap),
        streams: Option<&mut Streams>,
    ) -> Result<(), RunError> {
        let mut underway = Execution::begin(&self.options.device.name);
        if let Some(streams) = &streams {
            underway.streams();
            underway.goes_on_from(streams.seconds);
            underway.beside_original(streams.errors.clone());
            underway.execute(streams.executed.clone());
        }
        if streams.is_none() {
            underway.execute(tap.report());
        }
        let Ok(source) = &self.sources[&cell.model.label] else { return Ok(()) };
        let planned = evaluation.planned_of(cell.recipe.is_original());
        let wanted = wanted(self.store, id, &planned)?;
        let prepared = match evaluation {
            Evaluation::LayerError(block) => return self.layer_errors(cell, id, block, decoder),
            Evaluation::Perplexity(perplexity) => {
                let windows = self.texts.windows(perplexity, &source.checkpoint);
                let cure = "change the evaluation's corpus, length or bos";
                let prepared = windows.map(|windows| Prepared::Windows(perplexity, windows));
                prepared.map_err(|e| Fault::new("evaluate", e, cure))
            }
            Evaluation::Speed(block) => return self.speed(cell, id, block, decoder, tap),
            Evaluation::Task(block) => {
                let prefix = decoder.prefix.as_ref().map_or(0, |prefix| prefix.tokens.len());
                let questions = self.items.questions(block, &source.checkpoint, prefix);
                let cure = "change the task's bos or its items";
                let prepared = questions.map(|questions| Prepared::Questions(block, questions));
                prepared.map_err(|e| Fault::new("evaluate", e, cure))
            }
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(fault) => return self.fail_wanted(cell, id, (&planned, &wanted), fault, underway),
        };
        let tokenizer = source.checkpoint.tokenizer();
        let start = window_start(tokenizer.bos(), tokenizer.eos());
        let interrupt = self.interrupt;
        let (observer, originals) = (&mut *self.observer, &mut self.originals);
        let mut interrupted = false;
        let measured = catching(self.options.device, "evaluate", || {
            let mut progress = |done, total| {
                observer.event(Event::Progress { done, total });
                !interrupt.requested()
            };
            let measured = match &prepared {
                Prepared::Windows(perplexity, windows) => {
                    let compared = Windowed {
                        cell,
                        perplexity,
                        windows: &windows.windows,
                        wanted: &wanted,
                        start,
                        noise: source.checkpoint.significant_bits(),
                    };
                    let values =
                        compared.measure((decoder, tap), streams, originals, &mut underway, &mut progress);
                    values.map(|values| (values, Vec::new()))
                }
                Prepared::Questions(block, asked) => {
                    let sharing =
                        if tap.fake().looks_at_whole_sequences() { Sharing::Alone } else { Sharing::Shared };
                    let few = !tap.fake().rules.contains_key(&Site::HEAD);
                    let mut model =
                        DecoderModel::new(decoder, tap, start).sharing(sharing).few_rows_at_once(few);
                    let answered = questions::measure(&mut model, block.task(), asked, &mut progress);
                    underway.add_forward(model.forward.as_secs_f64(), model.tokens);
                    answered.map(|answered| {
                        (answered.values.into_iter().map(|(_, value)| Some(value)).collect(), answered.rows)
                    })
                }
            };
            match measured {
                Ok(measured) => Ok(Some(measured)),
                Err(EvaluateError::Interrupted) => {
                    interrupted = true;
                    Ok(None)
                }
                Err(e) => {
                    let cure =
                        "the recipe breaks this model: try more bits, a finer granularity, or another device";
                    Err(Fault::new("evaluate", e, cure))
                }
            }
        });
        if interrupted {
            self.summary.interrupted = true;
            return Ok(());
        }
        let (values, rows): Values = match measured {
            Ok(Some(measured)) => measured,
            Ok(None) => return Ok(()),
            Err(fault) => {
                let message = fault.message.clone();
                self.fail_wanted(cell, id, (&planned, &wanted), fault, underway)?;
                return self.outlived_by_device(&message);
            }
        };
        let mut shared = prepared.detail();
        let seconds = underway.seconds();
        let execution = underway.finish();
        if !rows.is_empty() {
            // Before the values: a value without its items could not be compared.
            let hash = self.store.publish_items(id, &evaluation.id(), questions::VERSION, &rows)?;
            shared.insert("items-file".into(), measurement_key(&evaluation.id(), questions::VERSION).into());
            shared.insert("items-file-hash".into(), hash.into());
        }
        for ((planned, measured), wanted) in planned.into_iter().zip(values).zip(wanted) {
            // What is there stays as it was measured, perhaps on another machine.
            let Some(measured) = measured.filter(|_| wanted) else { continue };
            let mut detail = shared.clone();
            detail.extend(measured.detail);
            let result = MeasurementResult {
                cell: id.into(),
                reading: cell.recipe.reading(),
                metric: planned.metric,
                version: planned.version,
                value: measured.value,
                stderr: measured.stderr,
                n: measured.n,
                detail,
            };
            self.store.publish_measurement(result.clone(), execution.clone())?;
            self.store.clear_failure(id, Some(&result.metric))?;
            self.summary.measured += 1;
            self.measured(cell, &result, false, seconds);
        }
        Ok(())
    }

    /// Writes a fault down for every value that was to be measured, so that none is tried again without being asked.
    fn fail_wanted(
        &mut self,
        cell: &Cell,
        id: &str,
        (planned, wanted): (&[Planned], &[bool]),
        fault: Fault,
        underway: Underway,
    ) -> Result<(), RunError> {
        for (planned, _) in planned.iter().zip(wanted).filter(|(_, wanted)| **wanted) {
            self.fail(cell, id, Some(&planned.metric), fault.clone(), underway.clone())?;
        }
        Ok(())
    }

    /// Goes on behind a fault that was written down, unless the device is gone with it.
    pub(super) fn outlived_by_device(&self, message: &str) -> Result<(), RunError> {
        self.options.device.still_works().map_err(|e| RunError::Device {
            device: self.options.device.name.clone(),
            message: format!("{message}; {e}"),
        })
    }

    /// Writes a fault down and goes on.
    pub(super) fn fail(
        &mut self,
        cell: &Cell,
        id: &str,
        metric: Option<&str>,
        fault: Fault,
        underway: Underway,
    ) -> Result<(), RunError> {
        let failure = Failure {
            schema: SCHEMA,
            cell: id.into(),
            metric: metric.map(Into::into),
            stage: fault.stage.into(),
            message: fault.message,
            cure: fault.cure,
            execution: underway.finish(),
        };
        self.store.record_failure(failure.clone())?;
        self.summary.failed += 1;
        self.observer.event(Event::Failed { cell, failure: &failure, earlier: false });
        Ok(())
    }
}

/// Which of the planned values are not in the store.
pub(super) fn wanted(store: &Store, id: &str, planned: &[Planned]) -> Result<Vec<bool>, StoreError> {
    let there = |planned: &Planned| store.measurement(id, &planned.metric, planned.version);
    planned.iter().map(|planned| Ok(there(planned)?.is_none())).collect()
}

/// Whether device work is under way whose panics are caught, on whatever thread they happen.
static CATCHING: AtomicBool = AtomicBool::new(false);

/// Whether a panic now becomes a recorded failure, so that nobody else needs to report it.
pub fn catching_now() -> bool {
    CATCHING.load(Ordering::SeqCst)
}

/// Runs device work so that a panic of the framework or its driver becomes a fault.
pub(super) fn catching<T>(
    device: &crate::device::Selected,
    stage: &'static str,
    work: impl FnOnce() -> Result<T, Fault>,
) -> Result<T, Fault> {
    CATCHING.store(true, Ordering::SeqCst);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    CATCHING.store(false, Ordering::SeqCst);
    outcome.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "no message".into());
        let cure =
            format!("{} gave up: try less memory (fewer or shorter windows) or --device cpu", device.name);
        Err(Fault::new(stage, format!("panic: {message}"), cure))
    })
}
