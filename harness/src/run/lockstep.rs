//! Cells of one model in lockstep, part by part: a part's weights are read once, every cell makes of them what its recipe
//! says, and leads its windows and calibration samples through before the next part is read. The original goes first, so
//! that recipes are compared with it; nobody's logits are stored.

use std::collections::BTreeMap;
use std::time::Instant;

use models::{Decoder, Off, Part};

use crate::data::window::window_start;
use crate::evaluate::EvaluateError;
use crate::evaluate::growth::Watch;
use crate::evaluate::passage::Passage;
use crate::evaluate::windows::Window;
use crate::experiment::Evaluation;
use crate::plan::Cell;
use crate::quantize::StepError;
use crate::quantize::integer::IntegerTap;
use crate::quantize::parts::Application;
use crate::record::Execution;
use crate::record::execution::{Residence, Underway};
use crate::record::store::{Claim, ClaimOutcome};
use crate::run::calibrator::CellCalibrator;
use crate::run::cell::{Fault, catching, wanted};
use crate::run::made::OfSet;
use crate::run::source::SourceError;
use crate::run::windowed::Streams;
use crate::run::{Event, RunError, Sweep, residence, set_key};

/// A cell on its way.
struct Lane<'p> {
    cell: &'p Cell,
    id: String,
    /// `None` once it has arrived or failed.
    application: Option<Application<'p>>,
    evaluations: Vec<OnItsWay<'p>>,
    of_set: OfSet,
    underway: Underway,
    _claim: Claim,
}

/// An evaluation of a cell on its way.
struct OnItsWay<'p> {
    evaluation: &'p Evaluation,
    windows: Vec<Window>,
    streams: Streams,
}

/// The original's windows on their way, for one evaluation.
struct Reference {
    windows: Vec<Window>,
    passage: Passage,
    seconds: f64,
    /// Whether something is compared with it.
    compared: bool,
}

/// By the id of the evaluation.
type References = BTreeMap<String, Reference>;

/// Why something does not go on.
enum Stop {
    Interrupted,
    Fault(Fault),
}

impl From<EvaluateError> for Stop {
    fn from(error: EvaluateError) -> Self {
        match error {
            EvaluateError::Interrupted => Stop::Interrupted,
            e => Stop::Fault(Fault::new("evaluate", e, "mend it, then run with --retry-failed")),
        }
    }
}

impl Sweep<'_> {
    /// Decides of every cell whether it is executed part by part.
    pub(super) fn choose(&mut self) -> Result<(), RunError> {
        for cell in &self.plan.cells {
            let label = &cell.model.label;
            let mut chosen = Residence::Resident;
            if let Ok(source) = &self.sources[label] {
                let (a, choice) = (source.checkpoint.architecture(), self.options.execution);
                chosen = residence::choose(cell, a, choice).map_err(|source| RunError::Whole {
                    recipe: cell.recipe.name.clone(),
                    model: label.clone(),
                    source,
                })?;
                if let Some(text) = residence::warning(cell, a, choice) {
                    self.observer.event(Event::Warning { text: &text });
                }
            }
            self.residences.push(chosen);
        }
        Ok(())
    }

    /// Whether two cells can be in lockstep.
    pub(super) fn goes_with(&self, one: usize, other: usize) -> bool {
        let streamed = |index: usize| self.residences[index] == Residence::Streamed;
        let label = |index: usize| &self.plan.cells[index].model.label;
        streamed(one) && streamed(other) && label(one) == label(other)
    }

    /// Does what is missing of several cells of one model. What another process holds is left out, and returned.
    pub(super) fn lockstep(&mut self, indices: &[usize]) -> Result<Vec<usize>, RunError> {
        let plan = self.plan;
        let (mut lanes, mut held) = (Vec::new(), Vec::new());
        for &index in indices {
            let cell = &plan.cells[index];
            let id = self.id(cell);
            if self.missing(cell, &id)?.is_empty() {
                self.tell_known(cell, &id)?;
                continue;
            }
            let ClaimOutcome::Claimed(claim) = self.store.claim(&id, None)? else {
                held.push(index);
                continue;
            };
            // Another process may have finished between the look and the claim.
            let missing = self.missing(cell, &id)?;
            self.tell_known(cell, &id)?;
            if !missing.is_empty() {
                self.observer.event(Event::CellStarted { index, total: plan.cells.len(), cell });
                lanes.extend(self.lane(cell, id, &missing, claim)?);
            }
        }
        if !lanes.is_empty() {
            self.through_all_parts(&mut lanes)?;
        }
        self.collected.forget_led();
        Ok(held)
    }

    /// A cell before the first part. Evaluations whose windows cannot be cut fail here; `None` where none is left.
    fn lane<'p>(
        &mut self,
        cell: &'p Cell,
        id: String,
        missing: &[usize],
        claim: Claim,
    ) -> Result<Option<Lane<'p>>, RunError> {
        let mut underway = Execution::begin(&self.options.device.name);
        underway.streams();
        underway.pause();
        let mut evaluations = Vec::new();
        for evaluation in missing.iter().map(|&position| &cell.evaluations[position]) {
            let (Ok(source), Evaluation::Perplexity(block)) = (&self.sources[&cell.model.label], evaluation)
            else {
                continue;
            };
            match self.texts.windows(block, &source.checkpoint) {
                Ok(windows) => {
                    let (windows, streams) = (windows.windows, Streams::default());
                    evaluations.push(OnItsWay { evaluation, windows, streams });
                }
                Err(e) => {
                    let fault = Fault::new("evaluate", e, "change the evaluation's corpus, length or bos");
                    self.fail(cell, &id, Some(&evaluation.id()), fault, underway.clone())?;
                }
            }
        }
        let application = Some(Application::new(&cell.recipe.steps));
        let of_set = OfSet::default();
        let lane = Lane { cell, id, application, evaluations, of_set, underway, _claim: claim };
        Ok((!lane.evaluations.is_empty()).then_some(lane))
    }

    /// What of the original has to be led along: its own evaluations, and those that recipes are compared on.
    fn references(&self, lanes: &[Lane]) -> Result<References, RunError> {
        let mut references = References::new();
        for lane in lanes {
            let original = lane.cell.recipe.is_original();
            for on in &lane.evaluations {
                let id = on.evaluation.id();
                let planned = on.evaluation.planned_of(original);
                let compared = wanted(self.store, &lane.id, &planned)?[1..].contains(&true)
                    && !self.originals.has(&lane.cell.model.label, &id);
                if original || compared {
                    let reference = references.entry(id).or_insert_with(|| Reference {
                        windows: on.windows.clone(),
                        passage: Passage::default(),
                        seconds: 0.0,
                        compared: false,
                    });
                    reference.compared |= compared;
                }
            }
        }
        Ok(references)
    }

    fn through_all_parts(&mut self, lanes: &mut [Lane]) -> Result<(), RunError> {
        let label = lanes[0].cell.model.label.clone();
        let mut references = self.references(lanes)?;
        let Ok(source) = &self.sources[&label] else { return Ok(()) };
        let layers = source.checkpoint.architecture().layers;
        if let Err(error) = source.checkpoint.check().map_err(SourceError::from) {
            return self.fail_all(lanes, &Fault::new("load", &error, error.cure()));
        }
        let (count, total) = (lanes.len(), (layers + 2) * lanes.len());
        for (at, part) in Part::all(layers).enumerate() {
            let loaded = match self.load_part(&label, part) {
                Ok(loaded) => loaded,
                Err(fault) => return self.fail_all(lanes, &fault),
            };
            match self.lead_references(&label, &loaded, &mut references) {
                Ok(()) => {}
                Err(Stop::Interrupted) => return self.interrupted(),
                Err(Stop::Fault(fault)) => return self.fail_all(lanes, &fault),
            }
            for (place, lane) in lanes.iter_mut().enumerate() {
                if lane.application.is_none() {
                    continue;
                }
                if self.interrupt.requested() {
                    return self.interrupted();
                }
                lane.underway.resume();
                let led = self.lead(lane, loaded.clone(), &references).and_then(|model| {
                    if let (Some((decoder, _)), Part::Block(_)) = (&model, part) {
                        compare(lane, &mut references, decoder)?;
                    }
                    Ok(model)
                });
                lane.underway.pause();
                match led {
                    Ok(Some(model)) if part == Part::Head => self.arrive(lane, model, &mut references)?,
                    Ok(_) => {}
                    Err(Stop::Interrupted) => return self.interrupted(),
                    Err(Stop::Fault(fault)) => {
                        (lane.application, lane.evaluations) = (None, Vec::new());
                        self.fail(lane.cell, &lane.id, None, fault, lane.underway.clone())?;
                    }
                }
                let done = at * count + place + 1;
                self.observer.event(Event::Progress { done, total });
                if self.summary.interrupted {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn load_part(&self, label: &str, part: Part) -> Result<Decoder, Fault> {
        catching(self.options.device, "load", || {
            let source = self.sources[label].as_ref().map_err(|e| Fault::new("load", e, e.cure()))?;
            let loaded = source.checkpoint.load_part(part, &self.options.device.device);
            loaded.map_err(SourceError::from).map_err(|e| Fault::new("load", &e, e.cure()))
        })
    }

    /// Leads the original's windows through a part; behind the last one, keeps what recipes are compared with.
    fn lead_references(
        &mut self,
        label: &str,
        loaded: &Decoder,
        references: &mut References,
    ) -> Result<(), Stop> {
        let start = self.start_of(label);
        let (interrupt, originals) = (self.interrupt, &mut self.originals);
        let mut decoder = loaded.clone();
        for (id, reference) in references {
            let begun = Instant::now();
            let stopped = catching(self.options.device, "evaluate", || {
                let read = (&reference.windows[..], start);
                let goes_on = &mut || !interrupt.requested();
                if decoder.has_table() && reference.compared {
                    reference.passage.watch(Watch::keeps(&decoder.architecture, &reference.windows));
                }
                let mut led = reference.passage.through(&mut decoder, &mut Off, read, goes_on);
                if led.is_ok() && decoder.has_head() && reference.compared {
                    let last = (&mut decoder, Some(&mut reference.passage));
                    led =
                        originals.keep((label, id.as_str()), read, last, &mut |_, _| !interrupt.requested());
                }
                Ok(led.err())
            });
            if let Some(error) = stopped.map_err(Stop::Fault)? {
                return Err(error.into());
            }
            reference.seconds += begun.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Carries a cell's recipe out on a part, and leads its windows through what comes out: the part, and what executes it.
    /// `None` of a cell that has ended.
    fn lead(
        &mut self,
        lane: &mut Lane,
        mut decoder: Decoder,
        references: &References,
    ) -> Result<Option<(Decoder, IntegerTap)>, Stop> {
        let (cell, interrupt) = (lane.cell, self.interrupt);
        let start = self.start_of(&cell.model.label);
        let Ok(source) = &self.sources[&cell.model.label] else { return Ok(None) };
        let Some(application) = &mut lane.application else { return Ok(None) };
        let owner = format!("{:?}", set_key(cell));
        self.collected.keep(owner.clone());
        let (fresh, read) = std::mem::take(&mut lane.of_set);
        let mut calibrator = CellCalibrator {
            set: cell.calibration.as_ref().and_then(|_| self.sets.get(&set_key(cell)).cloned()),
            checkpoint: &source.checkpoint,
            collected: &mut self.collected,
            owner,
            seed: cell.seed,
            observer: &mut *self.observer,
            interrupt,
            fresh,
            read,
        };
        let mut stopped = false;
        let made = catching(self.options.device, "quantize", || {
            application.part(&mut decoder, &mut calibrator).map_err(|(step, e)| {
                stopped |= e == StepError::Interrupted;
                Fault::of_step(cell, &step, &e)
            })
        });
        lane.of_set = (calibrator.fresh, calibrator.read);
        if stopped {
            return Err(Stop::Interrupted);
        }
        made.map_err(Stop::Fault)?;

        let original = cell.recipe.is_original();
        let (arithmetic, steps) = (self.options.arithmetic, &cell.recipe.steps);
        let mut tap = IntegerTap::new(arithmetic, steps, &decoder, application.tap.clone());
        for on in &mut lane.evaluations {
            let begun = Instant::now();
            if original && decoder.has_table() && has_noise_floor(on.evaluation) {
                let digits = source.checkpoint.significant_bits();
                on.streams.noise = Some(Passage::with_noise(&decoder, &on.windows, digits));
            }
            if decoder.has_table() {
                let id = on.evaluation.id();
                let led = references.get(&id).and_then(|reference| reference.passage.watching().kept());
                let exact = self.originals.queries(&cell.model.label, &id).or(led);
                let watch = exact.map(Watch::compares).unwrap_or_default();
                on.streams.noise.as_mut().unwrap_or(&mut on.streams.plain).watch(watch);
            }
            let error = catching(self.options.device, "evaluate", || {
                let read = (&on.windows[..], start);
                let goes_on = &mut || !interrupt.requested();
                let led = match (&mut on.streams.noise, original) {
                    // Without noise the original is a reference already.
                    (Some(noise), _) => noise.through(&mut decoder, &mut Off, read, goes_on),
                    (None, true) => Ok(()),
                    (None, false) => on.streams.plain.through(&mut decoder, &mut tap, read, goes_on),
                };
                Ok(led.err())
            });
            if let Some(error) = error.map_err(Stop::Fault)? {
                return Err(error.into());
            }
            on.streams.seconds += begun.elapsed().as_secs_f64();
            on.streams.executed.join(tap.report());
        }
        Ok(Some((decoder, tap)))
    }

    /// Publishes a cell whose recipe is through, and measures behind its head.
    fn arrive(
        &mut self,
        lane: &mut Lane,
        (mut decoder, mut tap): (Decoder, IntegerTap),
        references: &mut References,
    ) -> Result<(), RunError> {
        let Some(application) = lane.application.take() else { return Ok(()) };
        let bits = application.effective_bits(&decoder);
        let (_, fitted) = application.finish();
        let of_set = std::mem::take(&mut lane.of_set);
        self.publish_cell(lane.cell, &lane.id, (fitted, bits), of_set, lane.underway.clone())?;
        for mut on in std::mem::take(&mut lane.evaluations) {
            if let (true, Some(reference)) =
                (lane.cell.recipe.is_original(), references.remove(&on.evaluation.id()))
            {
                on.streams.plain = reference.passage;
                on.streams.seconds += reference.seconds;
            }
            let model = (&mut decoder, &mut tap);
            self.evaluate(lane.cell, &lane.id, on.evaluation, model, Some(&mut on.streams))?;
        }
        Ok(())
    }

    fn start_of(&self, label: &str) -> Option<u32> {
        let tokenizer = self.sources[label].as_ref().ok()?.checkpoint.tokenizer();
        window_start(tokenizer.bos(), tokenizer.eos())
    }

    fn interrupted(&mut self) -> Result<(), RunError> {
        self.summary.interrupted = true;
        Ok(())
    }

    fn fail_all(&mut self, lanes: &mut [Lane], fault: &Fault) -> Result<(), RunError> {
        for lane in lanes.iter_mut().filter(|lane| lane.application.is_some()) {
            lane.application = None;
            self.fail(lane.cell, &lane.id, None, fault.clone(), lane.underway.clone())?;
        }
        Ok(())
    }
}

/// How far the lane's windows are from the original's behind a block, where these are led along and feed the same tokens.
fn compare(lane: &mut Lane, references: &mut References, decoder: &Decoder) -> Result<(), Stop> {
    if lane.cell.recipe.is_original() {
        return Ok(());
    }
    for on in &mut lane.evaluations {
        let Some(reference) = references.get_mut(&on.evaluation.id()) else { continue };
        let distance = on.streams.plain.distance(&mut reference.passage, decoder)?;
        on.streams.errors.extend(distance);
    }
    Ok(())
}

/// Whether the original's noise floor is measured.
fn has_noise_floor(evaluation: &Evaluation) -> bool {
    matches!(evaluation, Evaluation::Perplexity(block) if block.against_original)
}
