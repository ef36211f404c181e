//! Layer-wise errors of one model: samples are drawn, every group is measured in one pass, tables and totals published.

use models::Decoder;
use serde_json::{Map, Value, json};

use crate::calibrate::overlap::{self, LARGEST_SHARE};
use crate::calibrate::set::{self, CalibrationSet};
use crate::data::CorpusRef;
use crate::experiment::{Calibration, Evaluation, Sampler};
use crate::layerwise::collect::{Found, LayerFault, measure};
use crate::layerwise::pair::Transform;
use crate::layerwise::{LayerError, VERSION};
use crate::plan::Cell;
use crate::record::layers::LayerRow;
use crate::record::{Execution, MeasurementResult, measurement_key};
use crate::run::cell::{Fault, catching};
use crate::run::texts::TEXT_HASH;
use crate::run::{Event, RunError, Sweep};

impl Sweep<'_> {
    /// Measures every group of the model and publishes a total per transform, or records why not.
    pub(super) fn layer_errors(
        &mut self,
        cell: &Cell,
        id: &str,
        block: &LayerError,
        decoder: &mut Decoder,
    ) -> Result<(), RunError> {
        let evaluation = Evaluation::LayerError(block.clone());
        let underway = Execution::begin(&self.options.device.name);
        let (samples, calibration) = match self.samples(cell, block) {
            Ok(drawn) => drawn,
            Err(message) => {
                let cure = "change the evaluation's corpus, length, samples or calibration";
                let fault = Fault::new("evaluate", message, cure);
                return self.fail(cell, id, Some(&evaluation.id()), fault, underway);
            }
        };
        let (interrupt, observer) = (self.interrupt, &mut *self.observer);
        let mut interrupted = false;
        let found = catching(self.options.device, "evaluate", || {
            let others = calibration.as_ref().map_or(&[][..], |set| &set.samples);
            let mut progress = |done, total| {
                observer.event(Event::Progress { done, total });
                !interrupt.requested()
            };
            measure(decoder, block, &samples.samples, others, &mut progress).map_err(|e| {
                interrupted = e == LayerFault::Interrupted;
                Fault::new("evaluate", e, "measure another model, or look at this one with `inspect`")
            })
        });
        if interrupted {
            self.summary.interrupted = true;
            return Ok(());
        }
        let found = match found {
            Ok(found) => found,
            Err(fault) => {
                let message = fault.message.clone();
                self.fail(cell, id, Some(&evaluation.id()), fault, underway)?;
                return self.outlived_by_device(&message);
            }
        };
        let seconds = underway.seconds();
        let execution = underway.finish();
        // Before the values: a value without its rows could not be explained.
        let hashes = self.store.publish_layers(id, &block.protocol(), VERSION, &found.tables)?;
        let mut detail = detail(block, &samples, calibration.as_ref(), &found);
        detail.insert("layers-file".into(), measurement_key(&block.protocol(), VERSION).into());
        detail.insert("layers-file-hashes".into(), hashes.to_vec().into());
        for transform in Transform::ALL {
            let rows = found.tables.rows.iter().filter(|row| row.transform == transform.as_str());
            let errors: Vec<f64> = rows.map(|row| row.error).collect();
            let result = MeasurementResult {
                cell: id.into(),
                reading: cell.recipe.reading(),
                metric: block.id(transform),
                version: VERSION,
                value: errors.iter().sum(),
                stderr: None,
                n: errors.len() as u64,
                detail: detail.clone(),
            };
            self.store.publish_measurement(result.clone(), execution.clone())?;
            self.store.clear_failure(id, Some(&result.metric))?;
            self.summary.measured += 1;
            self.measured(cell, &result, false, seconds);
        }
        Ok(())
    }

    /// What is measured, and what scales come from in honest mode.
    fn samples(
        &self,
        cell: &Cell,
        block: &LayerError,
    ) -> Result<(CalibrationSet, Option<CalibrationSet>), String> {
        let Ok(source) = &self.sources[&cell.model.label] else {
            return Err("the model's files are not there".into());
        };
        let draw = |name: &str, corpus: &CorpusRef, samples: usize, length: usize| {
            let calibration = Calibration {
                name: name.into(),
                corpus: corpus.clone(),
                samples,
                length,
                sampler: Sampler::Windows,
                bos: block.bos,
                repeat: true,
                allow_overlap: false,
                seeds: None,
                reference: None,
            };
            let text = self.texts.text(corpus);
            set::draw(&calibration, Some(text), source.checkpoint.tokenizer(), block.seed)
                .map_err(|e| e.to_string())
        };
        let samples = draw("layer-error", &block.corpus, block.samples, block.length)?;
        let Some(separate) = &block.calibration else { return Ok((samples, None)) };
        let other = draw("layer-error.calibration", &separate.corpus, separate.samples, separate.length)?;
        let shared = overlap::overlap(&other, &samples.samples);
        if shared.share > LARGEST_SHARE {
            return Err(format!(
                "the samples of `calibration` hold what is measured: {} of {} tokens stand there, too, in runs of {}",
                shared.tokens, shared.of, shared.run
            ));
        }
        Ok((samples, Some(other)))
    }

    /// Refuses to go on where the store has this evaluation's numbers of another text.
    pub(super) fn check_layer_text(&self, id: &str, block: &LayerError) -> Result<(), RunError> {
        let metric = block.id(Transform::None);
        let Some(known) = self.store.measurement(id, &metric, VERSION)? else { return Ok(()) };
        let stored = known.result.detail.get(TEXT_HASH).and_then(Value::as_str).unwrap_or_default();
        let found = self.texts.text(&block.corpus).hash.clone();
        if stored == found {
            return Ok(());
        }
        let results = self.options.results.clone();
        Err(RunError::OtherText { metric, results, stored: stored.into(), found })
    }
}

/// What all five measurements report.
fn detail(
    block: &LayerError,
    samples: &CalibrationSet,
    calibration: Option<&CalibrationSet>,
    found: &Found,
) -> Map<String, Value> {
    let mut detail = samples.detail.clone();
    if let Some(set) = calibration {
        detail.insert("calibration".into(), Value::Object(set.detail.clone()));
    }
    detail.insert("mode".into(), block.mode.as_str().into());
    detail.insert("convention".into(), "absmax-full".into());
    let rotations: Map<String, Value> =
        found.rotations.iter().map(|(width, name)| (width.to_string(), name.clone().into())).collect();
    detail.insert("rotations".into(), rotations.into());
    let rows = |port: &str, transform: Transform| -> Vec<&LayerRow> {
        let of = |row: &&LayerRow| row.port == port && row.transform == transform.as_str();
        found.tables.rows.iter().filter(of).collect()
    };
    let mut totals = Map::new();
    for port in ["attn_in", "o_in", "mlp_in", "down_in"] {
        let total = |transform| rows(port, transform).iter().map(|row| row.error).sum::<f64>();
        let of_port: Map<String, Value> =
            Transform::ALL.map(|t| (t.as_str().to_owned(), total(t).into())).into_iter().collect();
        totals.insert(port.into(), of_port.into());
    }
    detail.insert("totals".into(), totals.into());
    if let Some(shown) = &found.shown {
        let value = json!({
            "layer": shown.layer,
            "port": shown.port,
            "module": shown.module,
            "tokens": shown.tokens.0,
            "channels": shown.channels.0,
            "tokens-of-a-patch": shown.tokens.1,
            "channels-of-a-patch": shown.channels.1,
        });
        detail.insert("shown".into(), value);
    }
    detail
}
