//! One cell, from checkpoint to measurements.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use models::{Decoder, Tap};
use serde_json::{Map, Value};

use crate::calibrate::recorded::recorded;
use crate::calibrate::set::CalibrationSet;
use crate::data::window::window_start;
use crate::evaluate::decoder_model::DecoderModel;
use crate::evaluate::metrics::perplexity::{self, Perplexity};
use crate::evaluate::noise::RoundingNoise;
use crate::evaluate::questions::{self, Questions};
use crate::evaluate::shared_scoring::Sharing;
use crate::evaluate::windows::Window;
use crate::evaluate::{EvaluateError, Measured, Progress, against};
use crate::experiment::{Evaluation, Planned, TaskEvaluation};
use crate::plan::Cell;
use crate::quantize::steps::Step;
use crate::quantize::{self, StepError, effective_bits, fake_quant::FakeQuant};
use crate::record::execution::Underway;
use crate::record::items::ItemRow;
use crate::record::measurement_key;
use crate::record::statistics::{PrefixTokens, StatisticsResult, StatisticsRows, statistics_id};
use crate::record::store::{Store, StoreError};
use crate::record::{CellResult, Execution, Failure, MeasurementResult, SCHEMA};
use crate::run::calibrator::{CellCalibrator, Fresh};
use crate::run::originals::Originals;
use crate::run::source::SourceError;
use crate::run::texts::Windows;
use crate::run::{Event, RunError, Sweep, source};

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
            self.evaluate(cell, id, &cell.evaluations[position], &mut decoder, &mut tap)?;
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
                    &windows.windows,
                    decoder,
                    start,
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
        mut underway: Underway,
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
                        StepError::NotEquivalent { .. } | StepError::Rescale(_) | StepError::Rotate(_) => {
                            "transform"
                        }
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
        if let Some(set) = &set {
            let is_fresh =
                |of: &(Vec<Step>, Vec<u32>)| fresh.iter().any(|f| (&f.state, &f.prefix) == (&of.0, &of.1));
            let reused = read.iter().filter(|of| !is_fresh(of));
            underway.reuse_statistics(
                reused.map(|(state, prefix)| id_of(source, set, prefix, &written(state))).collect(),
            );
        }
        let statistics = self.publish_statistics(source, set.as_deref(), fresh, read, &underway)?;
        if self.store.cell(id)?.is_none() {
            let bits = effective_bits::of(&cell.recipe.steps, &decoder, &tap);
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
                    let values = compared.measure(decoder, tap, originals, &mut underway, &mut progress);
                    values.map(|values| (values, Vec::new()))
                }
                Prepared::Questions(block, asked) => {
                    let sharing =
                        if tap.looks_at_whole_sequences() { Sharing::Alone } else { Sharing::Shared };
                    let mut model = DecoderModel::new(decoder, tap, start).sharing(sharing);
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
fn wanted(store: &Store, id: &str, planned: &[Planned]) -> Result<Vec<bool>, StoreError> {
    let there = |planned: &Planned| store.measurement(id, &planned.metric, planned.version);
    planned.iter().map(|planned| Ok(there(planned)?.is_none())).collect()
}

/// A perplexity evaluation of one cell, ready for its model.
struct Windowed<'a> {
    cell: &'a Cell,
    perplexity: &'a Perplexity,
    windows: &'a [Window],
    /// By [`Evaluation::planned_of`].
    wanted: &'a [bool],
    start: Option<u32>,
    /// Significant bits of the checkpoint's own precision.
    noise: u32,
}

impl Windowed<'_> {
    fn measure(
        &self,
        decoder: &mut Decoder,
        tap: &mut FakeQuant,
        originals: &mut Originals,
        underway: &mut Underway,
        progress: &mut Progress,
    ) -> Result<Vec<Option<Measured>>, EvaluateError> {
        let mut values = vec![None; self.wanted.len()];
        let (protocol, id) = (self.perplexity.protocol, self.perplexity.id());
        let compares = self.wanted[1..].contains(&true);
        let original = self.cell.recipe.is_original();
        if self.wanted[0] && (original || !compares) {
            let mut model = DecoderModel::new(decoder, tap, self.start).mode(self.perplexity.mode);
            let measured = perplexity::measure_windows(&mut model, protocol, self.windows, progress);
            underway.add_forward(model.forward.as_secs_f64(), model.tokens);
            values[0] = Some(measured?);
        }
        if !compares {
            return Ok(values);
        }
        let mut noise = RoundingNoise::new(self.noise);
        let tap: &mut dyn Tap = match original {
            true => {
                let label = &self.cell.model.label;
                originals.keep((label, &id), self.windows, decoder, self.start, progress)?;
                &mut noise
            }
            false => tap,
        };
        let kept = originals.get(&id).expect("the original was run before");
        let mut model = DecoderModel::new(decoder, tap, self.start).mode(self.perplexity.mode);
        let compared = against::compare(&mut model, self.windows, kept, progress);
        underway.add_forward(model.forward.as_secs_f64(), model.tokens);
        let compared = compared?;
        if !original {
            values[0] = Some(perplexity::measured(protocol, self.windows, &compared.scores)?);
        }
        for (value, mut measured) in values[1..].iter_mut().zip(against::measured(self.windows, &compared)?) {
            if original {
                measured.detail.insert("noise-bits".into(), self.noise.into());
            }
            *value = Some(measured);
        }
        Ok(values)
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
