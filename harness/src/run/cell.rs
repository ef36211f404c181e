//! One cell, from checkpoint to measurements.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use models::Decoder;
use serde_json::{Map, Value};

use crate::calibrate::recorded::recorded;
use crate::calibrate::set::CalibrationSet;
use crate::data::window::window_start;
use crate::evaluate::decode::Mode;
use crate::evaluate::decoder_model::DecoderModel;
use crate::evaluate::metrics::perplexity;
use crate::evaluate::questions::{self, Questions};
use crate::evaluate::shared_scoring::Sharing;
use crate::evaluate::{EvaluateError, LanguageModel, Measured, Progress};
use crate::experiment::{Evaluation, TaskEvaluation};
use crate::plan::Cell;
use crate::quantize::steps::Step;
use crate::quantize::{self, StepError, effective_bits, fake_quant::FakeQuant};
use crate::record::execution::Underway;
use crate::record::items::ItemRow;
use crate::record::measurement_key;
use crate::record::statistics::{PrefixTokens, StatisticsResult, StatisticsRows, statistics_id};
use crate::record::{CellResult, Execution, Failure, MeasurementResult, SCHEMA};
use crate::run::calibrator::{CellCalibrator, Fresh};
use crate::run::source::SourceError;
use crate::run::texts::Windows;
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

/// An evaluation, ready for a model.
enum Prepared<'a> {
    Windows(Windows),
    Questions(&'a TaskEvaluation, Rc<Questions>),
}

impl Prepared<'_> {
    /// The values in the order of [`Evaluation::planned`], and a task's rows.
    fn measure(
        &self,
        model: &mut dyn LanguageModel,
        progress: &mut Progress,
    ) -> Result<(Vec<Measured>, Vec<ItemRow>), EvaluateError> {
        match self {
            Prepared::Windows(windows) => {
                Ok((vec![perplexity::measure(model, &windows.windows, progress)?], Vec::new()))
            }
            Prepared::Questions(block, asked) => {
                let answered = questions::measure(model, block.task(), asked, progress)?;
                Ok((answered.values.into_iter().map(|(_, measured)| measured).collect(), answered.rows))
            }
        }
    }

    /// What all of its measurements report.
    fn detail(&self) -> Map<String, Value> {
        match self {
            Prepared::Windows(windows) => windows.detail.clone(),
            Prepared::Questions(_, questions) => questions.detail.clone(),
        }
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
                    let cure = match cell.calibration {
                        Some(_) => "change the recipe or its calibration set in the experiment file",
                        None => "change the recipe in the experiment file",
                    };
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
            let bits = effective_bits::of(&cell.recipe.steps, &decoder, &tap.kept);
            let result = CellResult {
                id: id.into(),
                model: source.identity.clone(),
                steps: source::steps(cell),
                calibration: set.map(|set| Value::Object(set.detail.clone())),
                seed: cell.seed,
                fitted,
                statistics,
                effective_bits: Some(bits),
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
        let Ok(source) = &self.sources[&cell.model.label] else { return Ok(()) };
        let prepared = match evaluation {
            Evaluation::Perplexity(perplexity) => {
                let windows = self.texts.windows(perplexity, &source.checkpoint);
                let cure = "change the evaluation's corpus, length or bos";
                windows.map(Prepared::Windows).map_err(|e| Fault::new("evaluate", e, cure))
            }
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
            Err(fault) => return self.fail(cell, id, Some(&evaluation.id()), fault, underway),
        };
        let tokenizer = source.checkpoint.tokenizer();
        let start = window_start(tokenizer.bos(), tokenizer.eos());
        let sharing = if tap.looks_at_whole_sequences() { Sharing::Alone } else { Sharing::Shared };
        let mode = match evaluation {
            Evaluation::Perplexity(perplexity) => perplexity.mode,
            Evaluation::Task(_) => Mode::Dense,
        };
        let interrupt = self.interrupt;
        let observer = &mut *self.observer;
        let mut interrupted = false;
        let measured = catching(self.options.device, "evaluate", || {
            let mut model = DecoderModel::new(decoder, tap, start).sharing(sharing).mode(mode);
            let measured = prepared.measure(&mut model, &mut |done, total| {
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
        let (values, rows) = match measured {
            Ok(Some(measured)) => measured,
            Ok(None) => return Ok(()),
            Err(fault) => {
                let message = fault.message.clone();
                self.fail(cell, id, Some(&evaluation.id()), fault, underway)?;
                return self.options.device.still_works().map_err(|e| RunError::Device {
                    device: self.options.device.name.clone(),
                    message: format!("{message}; {e}"),
                });
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
        for (planned, measured) in evaluation.planned().into_iter().zip(values) {
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
