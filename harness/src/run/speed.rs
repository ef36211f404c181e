//! Speed of one cell's model: measured on the clock, published with the machine it was measured on.

use models::Decoder;
use serde_json::{Map, Value, json};

use crate::evaluate::EvaluateError;
use crate::evaluate::metrics::speed::{SpeedOf, VERSION};
use crate::plan::Cell;
use crate::quantize::integer::IntegerTap;
use crate::record::{Execution, MeasurementResult};
use crate::run::cell::{Fault, catching};
use crate::run::{Event, RunError, Sweep};

impl Sweep<'_> {
    /// Measures the model's speed and publishes it, or records why not.
    pub(super) fn speed(
        &mut self,
        cell: &Cell,
        id: &str,
        block: &SpeedOf,
        decoder: &mut Decoder,
        tap: &mut IntegerTap,
    ) -> Result<(), RunError> {
        let mut underway = Execution::begin(&self.options.device.name);
        let (interrupt, observer) = (self.interrupt, &mut *self.observer);
        let mut interrupted = false;
        let measured = catching(self.options.device, "evaluate", || {
            let mut progress = |done, total| {
                observer.event(Event::Progress { done, total });
                !interrupt.requested()
            };
            block.measure(decoder, tap, &mut progress).map_err(|e| {
                interrupted = e == EvaluateError::Interrupted;
                Fault::new("evaluate", e, "mend it, then run with --retry-failed")
            })
        });
        if interrupted {
            self.summary.interrupted = true;
            return Ok(());
        }
        let mut speed = match measured {
            Ok(speed) => speed,
            Err(fault) => {
                let message = fault.message.clone();
                self.fail(cell, id, Some(&block.id()), fault, underway)?;
                return self.outlived_by_device(&message);
            }
        };
        speed.weight_bytes = tap.weight_bytes(decoder);
        underway.run_at(speed);
        underway.execute(tap.report());
        let seconds = underway.seconds();
        let stored = tap.stored();
        let prefix = decoder.prefix.as_ref().map_or(0, |prefix| prefix.tokens.len());
        let detail = json!({ "prefill": block.prefill, "decode": block.decode, "prefix-tokens": prefix });
        let result = MeasurementResult {
            cell: id.into(),
            reading: cell.recipe.reading(),
            metric: block.id(),
            version: VERSION,
            value: (stored.bits / 8.0).ceil(),
            stderr: None,
            n: stored.weights,
            detail: match detail {
                Value::Object(detail) => detail,
                _ => Map::new(),
            },
        };
        self.store.publish_measurement(result.clone(), underway.finish())?;
        self.store.clear_failure(id, Some(&result.metric))?;
        self.summary.measured += 1;
        self.measured(cell, &result, false, seconds);
        Ok(())
    }
}
