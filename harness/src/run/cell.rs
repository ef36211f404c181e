//! One cell, from checkpoint to measurements.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use models::Decoder;
use serde_json::Value;

use crate::calibrate::recorded::recorded;
use crate::calibrate::set::CalibrationSet;
use crate::data::window::window_start;
use crate::evaluate::decoder_model::DecoderModel;
use crate::evaluate::metrics::perplexity;
use crate::evaluate::{EvaluateError, Measured};
use crate::experiment::Evaluation;
use crate::plan::Cell;
use crate::quantize::steps::Step;
use crate::quantize::{self, StepError, fake_quant::FakeQuant};
use crate::record::execution::Underway;
use crate::record::statistics::{PrefixTokens, StatisticsResult, StatisticsRows, statistics_id};
use crate::record::{CellResult, Execution, Failure, MeasurementResult, SCHEMA};
use crate::run::calibrator::{CellCalibrator, Fresh};
use crate::run::source::SourceError;
use crate::run::{Event, RunError, Sweep, source};

/// What went wrong with a cell, before it is written down.
pub(super) struct Fault {
    stage: &'static str,
    pub(super) message: String,
    pub(super) cure: String,
}

impl Fault {
    fn new(stage: &'static str, message: impl ToString, cure: impl ToString) -> Self {
        Self { stage, message: message.to_string(), cure: cure.to_string() }
    }
}

impl Sweep<'_> {
    /// Makes the cell's model and measures what is missing. A fault is recorded; only a broken store is an error.
    pub(super) fn compute(&mut self, cell: &Cell, id: &str, missing: &[usize]) -> Result<(), RunError> {
        let underway = Execution::begin(&self.options.device.name);
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
            self.evaluate(cell, id, &cell.evaluations[position], &mut decoder, &mut tap)?;
        }
        Ok(())
    }

    /// Loads the checkpoint, applies the recipe, and publishes the cell. Nothing where the user stopped it.
    fn make(
        &mut self,
        cell: &Cell,
        id: &str,
        underway: Underway,
    ) -> Result<Result<Option<(Decoder, FakeQuant)>, Fault>, RunError> {
        let source = match &self.sources[&cell.model.label] {
            Ok(source) => source,
            Err(e) => return Ok(Err(Fault::new("load", e, e.cure()))),
        };
        let made = catching(self.options.device, "load", || {
            let loaded = source.checkpoint.load(&self.options.device.device).map_err(SourceError::from);
            loaded.map_err(|e| Fault::new("load", &e, e.cure()))
        });
        let set = cell.calibration.as_ref().and_then(|_| self.sets.get(&super::set_key(cell)).cloned());
        self.collected.keep(format!("{:?}", super::set_key(cell)));
        let mut calibrator = CellCalibrator {
            set: set.clone(),
            checkpoint: &source.checkpoint,
            collected: &mut self.collected,
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
                    let stage = match e {
                        StepError::Statistics(_) => "calibrate",
                        StepError::NotEquivalent { .. } | StepError::Rescale(_) => "transform",
                        _ => "quantize",
                    };
                    let cure = "change the recipe or its calibration set in the experiment file";
                    Fault::new(stage, format!("step {step}: {e}"), cure)
                })?;
                Ok((decoder, tap, fitted))
            })
        });
        let (decoder, tap, fitted) = match made {
            Ok(made) => made,
            Err(_) if interrupted => return Ok(Ok(None)),
            Err(fault) => return Ok(Err(fault)),
        };
        let (fresh, read) = (calibrator.fresh, calibrator.read);
        let statistics = self.publish_statistics(source, set.as_deref(), fresh, read, &underway)?;
        if self.store.cell(id)?.is_none() {
            let result = CellResult {
                id: id.into(),
                model: source.identity.clone(),
                steps: source::steps(cell),
                calibration: set.map(|set| Value::Object(set.detail.clone())),
                seed: cell.seed,
                fitted,
                statistics,
            };
            self.store.publish_cell(result, underway.finish())?;
        }
        self.store.clear_failure(id, None)?;
        Ok(Ok(Some((decoder, tap))))
    }

    /// Publishes the statistics that were collected for a cell; the ids of all that it read.
    fn publish_statistics(
        &self,
        source: &source::Source,
        set: Option<&CalibrationSet>,
        fresh: Vec<Fresh>,
        read: Vec<(Vec<Step>, Vec<u32>)>,
        underway: &Underway,
    ) -> Result<Vec<String>, RunError> {
        let Some(set) = set else { return Ok(Vec::new()) };
        for fresh in fresh {
            let (result, rows) = statistics_result(source, set, fresh);
            self.store.publish_statistics(result, &rows, underway.clone().finish())?;
        }
        Ok(read.iter().map(|(state, prefix)| id_of(source, set, prefix, &written(state))).collect())
    }

    /// Measures one evaluation and publishes it, or records why not.
    fn evaluate(
        &mut self,
        cell: &Cell,
        id: &str,
        evaluation: &Evaluation,
        decoder: &mut Decoder,
        tap: &mut FakeQuant,
    ) -> Result<(), RunError> {
        let mut underway = Execution::begin(&self.options.device.name);
        let metric = evaluation.id();
        let Ok(source) = &self.sources[&cell.model.label] else { return Ok(()) };
        let windows = match self.texts.windows(evaluation, &source.checkpoint) {
            Ok(windows) => windows,
            Err(e) => {
                let fault = Fault::new("evaluate", e, "change the evaluation's corpus, length or bos");
                return self.fail(cell, id, Some(&metric), fault, underway);
            }
        };
        let tokenizer = source.checkpoint.tokenizer();
        let start = window_start(tokenizer.bos(), tokenizer.eos());
        let interrupt = self.interrupt;
        let observer = &mut *self.observer;
        let mut interrupted = false;
        let measured = catching(self.options.device, "evaluate", || {
            let mut model = DecoderModel::new(decoder, tap, start);
            let measured: Result<Measured, EvaluateError> =
                perplexity::measure(&mut model, &windows.windows, &mut |done, total| {
                    observer.event(Event::Progress { done, total });
                    !interrupt.requested()
                });
            underway.add_forward(model.forward.as_secs_f64(), model.tokens);
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
        let measured = match measured {
            Ok(Some(measured)) => measured,
            Ok(None) => return Ok(()),
            Err(fault) => {
                let message = fault.message.clone();
                self.fail(cell, id, Some(&metric), fault, underway)?;
                return self.options.device.still_works().map_err(|e| RunError::Device {
                    device: self.options.device.name.clone(),
                    message: format!("{message}; {e}"),
                });
            }
        };
        let mut detail = windows.detail;
        detail.extend(measured.detail);
        let result = MeasurementResult {
            cell: id.into(),
            reading: cell.recipe.reading(),
            metric: metric.clone(),
            version: evaluation.version(),
            value: measured.value,
            stderr: measured.stderr,
            n: measured.n,
            detail,
        };
        let seconds = underway.seconds();
        self.store.publish_measurement(result.clone(), underway.finish())?;
        self.store.clear_failure(id, Some(&metric))?;
        self.summary.measured += 1;
        self.measured(cell, &result, false, seconds);
        Ok(())
    }

    /// Writes a fault down and goes on.
    fn fail(
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

/// Statistics as the store keeps them: the summary, whose tables have no hashes yet, and their rows.
pub(super) fn statistics_result(
    source: &source::Source,
    set: &CalibrationSet,
    Fresh { state, prefix, statistics }: Fresh,
) -> (StatisticsResult, StatisticsRows) {
    let text = |token: u32| source.checkpoint.tokenizer().decode(&[token]).unwrap_or_default();
    let (sites, rows) = recorded(&statistics, &text);
    let texts = prefix.iter().map(|&token| text(token)).collect();
    let steps = written(&state);
    let result = StatisticsResult {
        id: id_of(source, set, &prefix, &steps),
        model: source.identity.clone(),
        calibration: Value::Object(set.detail.clone()),
        steps,
        prefix: (!prefix.is_empty()).then_some(PrefixTokens { tokens: prefix, texts }),
        samples: statistics.samples as u64,
        tokens: statistics.tokens,
        sites,
        tables: BTreeMap::new(),
    };
    (result, rows)
}

fn id_of(source: &source::Source, set: &CalibrationSet, prefix: &[u32], steps: &[Value]) -> String {
    statistics_id(&source.weights(), &source.identity.tokenizer, &set.hash, prefix, steps)
}

fn written(steps: &[Step]) -> Vec<Value> {
    steps.iter().map(|step| serde_json::to_value(step).expect("a step is plain data")).collect()
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
