//! The windows of an evaluation on their way through a model part by part, all of them in one part before any is in the
//! next: what [`DecoderModel`](super::decoder_model::DecoderModel) reads in place of a pass of its own where the model does
//! not fit into memory.
//!
//! Windows stand in the batches in which a whole model would be given them, so that every product has the same shape and
//! every number comes out the same.

use std::cell::Cell;
use std::rc::Rc;

use burn::tensor::Tensor;
use models::{Decoder, Tap, token_tensor};

use crate::evaluate::EvaluateError;
use crate::evaluate::decoder_model::{batch_of, rows_of_logits};
use crate::evaluate::growth::Watch;
use crate::evaluate::noise::RoundingNoise;
use crate::evaluate::windows::{Window, batches};
use crate::hidden::Hidden;

/// Windows on their way.
#[derive(Default)]
pub struct Passage {
    hidden: Hidden,
    /// The batch that is read next.
    next: usize,
    noise: Option<Noise>,
    watch: Watch,
    /// Of every batch, its first window, and how many tokens of each of its windows are not fed.
    places: Vec<(usize, usize)>,
}

/// What a reading with rounding noise keeps: draws are counted over a whole pass of one batch after the other, and here the
/// batches take turns.
struct Noise {
    tap: RoundingNoise,
    drawn: Rc<Cell<u64>>,
    /// Draws of the head for every batch.
    of_head: Vec<u64>,
    /// Draws of one block for one batch, once they are known.
    of_block: u64,
    layers: u64,
}

impl Noise {
    /// Draws before a batch is in a layer; behind the last one it is at the head.
    fn before(&self, batch: usize, layer: u64) -> u64 {
        let earlier: u64 = self.of_head[..batch].iter().map(|head| head + self.layers * self.of_block).sum();
        earlier + layer * self.of_block
    }
}

impl Passage {
    /// A reading with rounding noise of a format with so many significant bits, of windows that stand behind no prefix.
    pub fn with_noise(decoder: &Decoder, windows: &[Window], bits: u32) -> Self {
        let tap = RoundingNoise::new(bits);
        let rows = rows_of_logits(&decoder.architecture);
        let slices = |window: &Window| window.targets.len().div_ceil(rows) as u64;
        let fed =
            batches(windows, &batch_of).into_iter().filter(|batch| !windows[batch.start].fed.is_empty());
        let of_head = fed.map(|batch| windows[batch].iter().map(slices).sum()).collect();
        let drawn = tap.counter();
        let layers = decoder.architecture.layers as u64;
        Self { noise: Some(Noise { tap, drawn, of_head, of_block: 0, layers }), ..Self::default() }
    }

    /// From now on, before the first part, the windows are looked at on their way.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// What looks at the windows.
    pub fn watching(&self) -> &Watch {
        &self.watch
    }

    /// What has looked at the windows.
    pub(super) fn watched(&mut self) -> Watch {
        std::mem::take(&mut self.watch)
    }

    /// Whether windows can be given noise: the draws of a batch are counted beforehand, and how many experts a router
    /// chooses is not known then.
    pub fn knows_its_noise(architecture: &models::architecture::Architecture) -> bool {
        !matches!(architecture.mlp.form, models::architecture::MlpForm::Experts { .. })
    }

    /// Leads the windows through a part. On the first, which holds the table, they are embedded; a BOS in whose place the
    /// decoder's prefix stands is left out.
    ///
    /// # Errors
    /// Hidden states that find no place, or where `progress` says so.
    pub fn through(
        &mut self,
        decoder: &mut Decoder,
        tap: &mut dyn Tap,
        (windows, start): (&[Window], Option<u32>),
        progress: &mut dyn FnMut() -> bool,
    ) -> Result<(), EvaluateError> {
        let device = decoder.device();
        if decoder.has_table() {
            for batch in batches(windows, &batch_of) {
                let of_batch: Vec<&Window> = windows[batch.clone()].iter().collect();
                for Fed { first, dropped, tokens } in fed(decoder, &of_batch, start) {
                    self.hidden.push(decoder.embed(token_tensor(&tokens, &device))).map_err(kept)?;
                    self.places.push((batch.start + first, dropped));
                }
            }
        }
        for layer in decoder.blocks.layers() {
            for batch in 0..self.hidden.len() {
                if !progress() {
                    return Err(EvaluateError::Interrupted);
                }
                let x = self.hidden.get(batch, &device).map_err(kept)?;
                let (first, dropped) = self.places[batch];
                let x = match &mut self.noise {
                    None => decoder.through_block(layer, x, &mut self.watch.beside(tap, first, dropped)),
                    Some(noise) => {
                        let before = noise.before(batch, layer as u64);
                        noise.drawn.set(before);
                        let look = &mut self.watch.beside(&mut noise.tap, first, dropped);
                        let x = decoder.through_block(layer, x, look);
                        noise.of_block = noise.drawn.get() - before;
                        x
                    }
                };
                self.hidden.put(batch, x).map_err(kept)?;
            }
        }
        Ok(())
    }

    /// The stream of the next batch behind the last block, `[sequences, tokens, hidden]`; behind the last batch the first
    /// comes again.
    ///
    /// # Errors
    /// Hidden states that cannot be read again.
    pub(super) fn next(&mut self, decoder: &Decoder) -> Result<Tensor<3>, EvaluateError> {
        let batch = self.next;
        self.next = (batch + 1) % self.hidden.len();
        if let Some(noise) = &self.noise {
            noise.drawn.set(noise.before(batch, noise.layers));
        }
        self.hidden.get(batch, &decoder.device()).map_err(kept)
    }

    /// The tap that goes on drawing noise at the head.
    pub fn noise(&self) -> Option<RoundingNoise> {
        self.noise.as_ref().map(|noise| noise.tap.clone())
    }

    /// How far this passage is from another one of the same windows, √(Σ (x − y)² / Σ y²) over all their hidden states y
    /// where both are now. `None` where they feed other tokens: behind a prefix, without BOS.
    ///
    /// # Errors
    /// Hidden states that cannot be read again.
    pub fn distance(&mut self, other: &mut Passage, decoder: &Decoder) -> Result<Option<f64>, EvaluateError> {
        let batches = self.hidden.len();
        let shapes = |passage: &Passage| (0..batches).map(|b| passage.hidden.shape(b)).collect::<Vec<_>>();
        if other.hidden.len() != batches || shapes(self) != shapes(other) {
            return Ok(None);
        }
        let device = decoder.device();
        let read = |x: Tensor<3>| x.into_data().try_into_vec::<f32>().expect("hidden states are f32");
        let (mut difference, mut norm) = (0.0, 0.0);
        for batch in 0..batches {
            let x = read(self.hidden.get(batch, &device).map_err(kept)?);
            let y = read(other.hidden.get(batch, &device).map_err(kept)?);
            for (x, y) in x.into_iter().zip(y) {
                difference += (f64::from(x) - f64::from(y)).powi(2);
                norm += f64::from(y).powi(2);
            }
        }
        Ok(Some((difference / norm).sqrt()))
    }
}

/// Windows that go through the blocks together.
struct Fed<'a> {
    /// The first of them.
    first: usize,
    /// How many tokens of each are not fed.
    dropped: usize,
    /// What is fed of each.
    tokens: Vec<&'a [u32]>,
}

/// What of windows that feed equally many tokens goes through the blocks together: all of them, without a BOS in whose
/// place a prefix stands; one by one where only some begin with it.
fn fed<'a>(decoder: &Decoder, windows: &[&'a Window], start: Option<u32>) -> Vec<Fed<'a>> {
    let dropped: Vec<usize> =
        windows.iter().map(|w| usize::from(decoder.stands_for_first(start, &w.fed))).collect();
    let same = dropped.iter().all(|&d| d == dropped[0]);
    let each = windows.iter().zip(&dropped).enumerate();
    let each = each.map(|(first, (window, &dropped))| (first, dropped, &window.fed[dropped..]));
    let groups: Vec<Fed> = match same {
        true => vec![Fed { first: 0, dropped: dropped[0], tokens: each.map(|(.., fed)| fed).collect() }],
        false => each.map(|(first, dropped, fed)| Fed { first, dropped, tokens: vec![fed] }).collect(),
    };
    groups.into_iter().filter(|group| !group.tokens[0].is_empty()).collect()
}

fn kept(error: std::io::Error) -> EvaluateError {
    EvaluateError::States { message: error.to_string() }
}
