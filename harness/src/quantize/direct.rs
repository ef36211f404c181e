//! A calibrator without a run around it: for tests, examples and whoever uses the steps as a library.

use std::collections::BTreeMap;
use std::rc::Rc;

use models::Decoder;
use serde_json::Value;

use crate::calibrate::led::Led;
use crate::calibrate::observe;
use crate::calibrate::statistics::Statistics;
use crate::quantize::steps::Step;
use crate::quantize::{Calibrator, StepError};

/// Samples, the token that begins a sequence, and a seed. Knows no texts: a token is shown as its id.
#[derive(Default)]
pub struct Direct {
    /// The calibration set.
    pub samples: Vec<Vec<u32>>,
    /// BOS.
    pub start: Option<u32>,
    /// Ids that stand for text.
    pub ordinary: Vec<u32>,
    /// The seed.
    pub seed: u64,
    /// Statistics by the transforms they are behind.
    collected: BTreeMap<String, Rc<Statistics>>,
    /// The same on their way through a model part by part.
    led: BTreeMap<String, Led>,
    found: BTreeMap<String, Value>,
}

impl Direct {
    /// A calibrator of these samples; `start` is BOS.
    pub fn new(samples: Vec<Vec<u32>>, start: Option<u32>) -> Self {
        Self { samples, start, ..Self::default() }
    }
}

impl Calibrator for Direct {
    fn samples(&self) -> &[Vec<u32>] {
        &self.samples
    }

    fn statistics(&mut self, decoder: &mut Decoder, state: &[Step]) -> Result<Rc<Statistics>, StepError> {
        let key = serde_json::to_string(state).expect("a step is plain data");
        if let Some(known) = self.collected.get(&key) {
            return Ok(known.clone());
        }
        let drop = self.samples.iter().all(|sample| decoder.stands_for_first(self.start, sample));
        let options = observe::Options::default();
        if !(decoder.has_table() && decoder.has_head()) {
            let led = self.led.entry(key).or_default();
            let seen = led.through(decoder, &self.samples, drop, &options, &mut |_, _| true);
            return seen.map_err(|e| StepError::Statistics(e.to_string()));
        }
        let statistics = observe::collect(decoder, &self.samples, drop, &options, &mut |_, _| true);
        let statistics = Rc::new(statistics.map_err(|e| StepError::Statistics(e.to_string()))?);
        self.collected.insert(key, statistics.clone());
        Ok(statistics)
    }

    fn start(&self) -> Option<u32> {
        self.start
    }

    fn token(&self, text: &str) -> Option<u32> {
        text.parse().ok()
    }

    fn text(&self, token: u32) -> String {
        token.to_string()
    }

    fn ordinary(&self) -> Vec<u32> {
        self.ordinary.clone()
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn recall(&self, key: &str) -> Option<Value> {
        self.found.get(key).cloned()
    }

    fn remember(&mut self, key: String, found: Value) {
        self.found.insert(key, found);
    }

    fn progress(&mut self, _: usize, _: usize) -> bool {
        true
    }
}
