//! A recipe carried out on a model: whole, or on one part after the other where the model does not fit into memory.
//!
//! On every part all steps act in their order, each on what the steps before it have made of that part; what a step needs of
//! the parts before (hidden states of its samples) it carries itself. For steps that say so
//! ([`Method::needs_whole_model`](super::Method::needs_whole_model)) nothing comes out otherwise than on the whole model.

use std::rc::Rc;

use models::Decoder;
use serde_json::{Map, Value, json};

use crate::calibrate::statistics::Statistics;
use crate::quantize::effective_bits::{self, Shapes};
use crate::quantize::equivalence::Gate;
use crate::quantize::fake_quant::FakeQuant;
use crate::quantize::steps::{Stage, Step};
use crate::quantize::{Calibrator, Carried, ModelInFlight, StatisticsNeed, StepError};
use crate::record::EffectiveBits;

/// A recipe on its way through a model.
pub struct Application<'a> {
    /// Steps that have been applied already to the whole model.
    before: &'a [Step],
    steps: &'a [Step],
    /// Statistics of the original, where they are known.
    original: Option<Rc<Statistics>>,
    /// What executes the recipe on the parts so far.
    pub tap: FakeQuant,
    reports: Vec<Map<String, Value>>,
    carried: Vec<Carried>,
    gate: Gate,
    shapes: Shapes,
    prefix: usize,
}

impl<'a> Application<'a> {
    /// A recipe before the first part.
    pub fn new(steps: &'a [Step]) -> Self {
        Self {
            before: &[],
            steps,
            original: None,
            tap: FakeQuant::default(),
            reports: vec![Map::new(); steps.len()],
            carried: steps.iter().map(|_| Carried::default()).collect(),
            gate: Gate::default(),
            shapes: Shapes::new(),
            prefix: 0,
        }
    }

    /// The first step that needs the whole model at once, as `<place>.<step>`, and why.
    pub fn needs_whole_model(steps: &[Step]) -> Option<(String, &'static str)> {
        let asked = steps.iter().enumerate();
        let mut asked = asked.filter_map(|(place, step)| {
            let why = step.method().needs_whole_model()?;
            let method = step.method_name().map(|method| format!(" {method}")).unwrap_or_default();
            Some((format!("{place}.{}{method}", step.name()), why))
        });
        asked.next()
    }

    fn key(&self, index: usize) -> String {
        format!("{}.{}", self.before.len() + index, self.steps[index].name())
    }

    /// Carries all steps out on a part, or on the whole model. Grids are fitted before any weight is rounded: statistics are
    /// those of the floating-point model. Of the steps that round weights, training comes first: it learns how the blocks'
    /// weights are rounded, and leaves `weights` the rest.
    ///
    /// # Errors
    /// The first step that cannot be carried out, with its key.
    pub fn part(
        &mut self,
        decoder: &mut Decoder,
        calibrator: &mut dyn Calibrator,
    ) -> Result<(), (String, StepError)> {
        let steps = self.steps;
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|&index| {
            let method = steps[index].method();
            (method.rounds_weights(), method.stage() != Stage::Tune)
        });

        let wants_original = steps.iter().position(|s| s.method().statistics() == StatisticsNeed::Original);
        if let (Some(index), true) = (wants_original, self.before.is_empty()) {
            let statistics = calibrator.statistics(decoder, &[]);
            self.original = Some(statistics.map_err(|e| (self.key(index), e))?);
        }
        let before = self.before.iter().filter(|step| step.method().stage() < Stage::Keep);
        let mut state: Vec<Step> = before.cloned().collect();
        let mut is_probed = false;
        for index in order {
            let step = &steps[index];
            let method = step.method();
            let key = self.key(index);
            let failed = |e| (key.clone(), e);
            let present = match method.statistics() {
                StatisticsNeed::Present => Some(calibrator.statistics(decoder, &state).map_err(failed)?),
                _ => None,
            };
            if method.preserves_function() && !is_probed {
                self.gate.before(decoder, calibrator.start());
                is_probed = true;
            }
            let mut model = ModelInFlight {
                decoder,
                tap: &mut self.tap,
                original: self.original.clone(),
                present,
                calibrator,
                state: &state,
                earlier: &steps[..index],
                after: &steps[index + 1..],
                becomes: None,
                carried: &mut self.carried[index],
            };
            let report = method.act(&mut model).map_err(failed)?;
            let becomes = model.becomes.take();
            add(&mut self.reports[index], report);
            if method.preserves_function()
                && let Some(equivalence) = self.gate.after(index, decoder).map_err(failed)?
            {
                self.reports[index].insert("equivalence".into(), equivalence);
            }
            if method.stage() < Stage::Keep {
                state.push(becomes.unwrap_or_else(|| step.clone()));
            }
        }
        self.shapes.extend(effective_bits::shapes_in(decoder));
        self.prefix = decoder.prefix.as_ref().map_or(0, |prefix| prefix.tokens.len());
        Ok(())
    }

    /// What the recipe stores per value, once it is through.
    pub fn effective_bits(&self, decoder: &Decoder) -> EffectiveBits {
        let shapes = self.shapes.clone();
        effective_bits::of_shapes(self.steps, &decoder.architecture, shapes, &self.tap, self.prefix)
    }

    /// The tap that executes the recipe, and what each step reports, keyed `<place>.<step>`.
    pub fn finish(self) -> (FakeQuant, Map<String, Value>) {
        let keys: Vec<String> = (0..self.steps.len()).map(|index| self.key(index)).collect();
        (self.tap, keys.into_iter().zip(self.reports.into_iter().map(|report| json!(report))).collect())
    }
}

/// Carries steps out on a whole model to which `before` has been applied already, and whose statistics were `original`.
///
/// # Errors
/// As [`Application::part`].
pub fn apply_after(
    before: &[Step],
    original: Option<Rc<Statistics>>,
    steps: &[Step],
    decoder: &mut Decoder,
    tap: &mut FakeQuant,
    calibrator: &mut dyn Calibrator,
) -> Result<Map<String, Value>, (String, StepError)> {
    let begun = std::mem::take(tap);
    let mut application = Application { before, original, tap: begun, ..Application::new(steps) };
    application.part(decoder, calibrator)?;
    let fitted;
    (*tap, fitted) = application.finish();
    Ok(fitted)
}

/// Numbers of a report that count what a step has done, and add up over parts.
const COUNTS: [&str; 2] = ["groups", "sites"];

/// Adds the report of a part to those of the parts before: counts add up, tables join, and all else is the same of every
/// part, or of the last one.
fn add(report: &mut Map<String, Value>, part: Map<String, Value>) {
    for (key, value) in part {
        let Some(known) = report.get_mut(&key) else {
            report.insert(key, value);
            continue;
        };
        match (known, value) {
            (Value::Object(known), Value::Object(more)) => known.extend(more),
            (known @ Value::Number(_), Value::Number(more)) if COUNTS.contains(&key.as_str()) => {
                let sum = known.as_u64().unwrap_or_default() + more.as_u64().unwrap_or_default();
                *known = sum.into();
            }
            (known, value) => *known = value,
        }
    }
}
