//! What the steps of one cell's recipe ask of the run: samples, statistics shared between cells, words and progress.

use std::collections::HashMap;
use std::rc::Rc;

use models::{Checkpoint, Decoder};
use serde_json::Value;

use crate::calibrate::led::Led;
use crate::calibrate::observe::{self, CollectError};
use crate::calibrate::set::CalibrationSet;
use crate::calibrate::statistics::Statistics;
use crate::data::window::window_start;
use crate::quantize::steps::Step;
use crate::quantize::{Calibrator, StepError};
use crate::run::interrupt::Interrupt;
use crate::run::{Event, Observer};

/// Statistics that were collected, by what they are of.
#[derive(Default)]
pub struct Collected {
    by_key: HashMap<String, Rc<Statistics>>,
    /// Sets on their way through a model part by part, by owner and by what they are of.
    led: HashMap<String, Led>,
    /// What steps found by long searches.
    found: HashMap<String, Value>,
    /// The model, set and seed that they belong to: cells that share them stand together in a plan.
    owner: String,
}

impl Collected {
    /// Forgets what belongs to another model, set or seed.
    pub fn keep(&mut self, owner: String) {
        if self.owner != owner {
            self.by_key.clear();
            self.found.clear();
            self.owner = owner;
        }
    }

    /// Forgets the sets on their way.
    pub fn forget_led(&mut self) {
        self.led.clear();
    }
}

/// What was collected for a cell and is not in the store yet.
pub struct Fresh {
    /// The transforms that had been applied.
    pub state: Vec<Step>,
    /// Tokens of the prefix.
    pub prefix: Vec<u32>,
    /// What was seen.
    pub statistics: Rc<Statistics>,
}

/// The surroundings of one cell's steps.
pub struct CellCalibrator<'a> {
    pub set: Option<Rc<CalibrationSet>>,
    pub checkpoint: &'a Checkpoint,
    pub collected: &'a mut Collected,
    /// The model, set and seed.
    pub owner: String,
    pub seed: Option<u64>,
    pub observer: &'a mut dyn Observer,
    pub interrupt: &'a Interrupt,
    /// Collected now, in order.
    pub fresh: Vec<Fresh>,
    /// Keys of all statistics that were read, collected now or earlier.
    pub read: Vec<(Vec<Step>, Vec<u32>)>,
}

impl Calibrator for CellCalibrator<'_> {
    fn samples(&self) -> &[Vec<u32>] {
        self.set.as_ref().map_or(&[], |set| &set.samples)
    }

    fn statistics(&mut self, decoder: &mut Decoder, state: &[Step]) -> Result<Rc<Statistics>, StepError> {
        let prefix = decoder.prefix.as_ref().map_or(Vec::new(), |prefix| prefix.tokens.clone());
        let read = (state.to_vec(), prefix.clone());
        if !self.read.contains(&read) {
            self.read.push(read);
        }
        let key = serde_json::to_string(state).expect("a step is plain data");
        let is_whole = decoder.has_table() && decoder.has_head();
        if let (true, Some(known)) = (is_whole, self.collected.by_key.get(&key)) {
            return Ok(known.clone());
        }
        let start = self.start();
        let drop = |sample: &Vec<u32>| decoder.stands_for_first(start, sample);
        let samples = self.samples();
        let all = samples.iter().all(drop);
        // Where only some begin with BOS, these are cut by hand and their positions count from the first token fed.
        let cut: Vec<Vec<u32>> = match all {
            true => samples.to_vec(),
            false => samples.iter().map(|s| s[usize::from(drop(s))..].to_vec()).collect(),
        };
        let (observer, interrupt) = (&mut *self.observer, self.interrupt);
        observer.event(Event::Calibrating { samples: cut.len() });
        let options = observe::Options::default();
        let failed = |e| match e {
            CollectError::Interrupted => StepError::Interrupted,
            other => StepError::Statistics(other.to_string()),
        };
        if !is_whole {
            let led = self.collected.led.entry(format!("{} {key}", self.owner)).or_default();
            let seen = led.through(decoder, &cut, all, &options, &mut |_, _| !interrupt.requested());
            let seen = seen.map_err(failed)?;
            if let Some(whole) = led.take_whole() {
                self.fresh.push(Fresh { state: state.to_vec(), prefix, statistics: Rc::new(whole) });
            }
            return Ok(seen);
        }
        let mut progress = |done, total| {
            observer.event(Event::Progress { done, total });
            !interrupt.requested()
        };
        let statistics = observe::collect(decoder, &cut, all, &options, &mut progress);
        let statistics = Rc::new(statistics.map_err(failed)?);
        self.collected.by_key.insert(key, statistics.clone());
        self.fresh.push(Fresh { state: state.to_vec(), prefix, statistics: statistics.clone() });
        Ok(statistics)
    }

    fn start(&self) -> Option<u32> {
        let tokenizer = self.checkpoint.tokenizer();
        window_start(tokenizer.bos(), tokenizer.eos())
    }

    fn token(&self, text: &str) -> Option<u32> {
        one_token(self.checkpoint, text)
    }

    fn text(&self, token: u32) -> String {
        self.checkpoint.tokenizer().decode(&[token]).unwrap_or_default()
    }

    fn ordinary(&self) -> Vec<u32> {
        self.checkpoint.tokenizer().ordinary()
    }

    fn seed(&self) -> u64 {
        self.seed.unwrap_or_default()
    }

    fn recall(&self, key: &str) -> Option<Value> {
        self.collected.found.get(key).cloned()
    }

    fn remember(&mut self, key: String, found: Value) {
        self.collected.found.insert(key, found);
    }

    fn progress(&mut self, done: usize, total: usize) -> bool {
        self.observer.event(Event::Progress { done, total });
        !self.interrupt.requested()
    }
}

/// The id of a text that is exactly one token.
pub fn one_token(checkpoint: &Checkpoint, text: &str) -> Option<u32> {
    let tokenizer = checkpoint.tokenizer();
    let piece = tokenizer.id_of(text);
    piece.or_else(|| match tokenizer.encode(text).ok()?.as_slice() {
        [id] => Some(*id),
        _ => None,
    })
}
