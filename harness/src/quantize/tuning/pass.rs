//! The way through the model: one block after another, and what held-out samples decide.
//!
//! The target of a block is what the floating-point model gives there; it is trained on what the blocks before it, as they
//! ship, give. So a block can make good some of what was lost before it.

use std::collections::HashMap;

use burn::tensor::Tensor;
use models::{Decoder, Group, Off, Site, Tap, token_tensor};
use serde::Serialize;

use crate::quantize::fake_quant::FakeQuant;
use crate::quantize::tuning::Options;
use crate::quantize::tuning::block::{PlainBlock, values};
use crate::quantize::tuning::clipping::Host;
use crate::quantize::tuning::learned::Learned;
use crate::quantize::tuning::objective::Loss;
use crate::quantize::tuning::train::{Objective, Trainer};
use crate::quantize::{Calibrator, StepError};

/// What came of one block, for the record. Losses are means over samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tuned {
    /// Held-out loss of the host.
    pub host: f64,
    /// Held-out loss where training begins.
    pub start: f64,
    /// Whether it begins with SmoothQuant's scales, not with ones.
    pub smoothed: bool,
    /// Mean loss over the training samples of every epoch, each before its step.
    pub training: Vec<f64>,
    /// Held-out loss after every epoch.
    pub held_out: Vec<f64>,
    /// What ships: `host`, `start`, or the number of the epoch.
    pub kept: String,
    /// Held-out loss of what ships.
    pub shipped: f64,
    /// By site the smallest and largest learned scale.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub scales: serde_json::Map<String, serde_json::Value>,
    /// Values that the branches hold.
    pub low_rank_parameters: usize,
}

/// The samples of one pass.
#[derive(Clone, Debug)]
pub struct Samples {
    /// Token ids; the last are held out.
    pub tokens: Vec<Vec<u32>>,
    /// How many of them only decide.
    pub held_out: usize,
}

/// Trains every block of the model, in order, and leaves it as it ships; where there is nothing to train, as it was.
/// `embedding` is the table that the recipe will round, as it will be.
///
/// # Errors
/// Where a host does not fit a linear, a scale cannot be folded, or the user stops it.
pub fn run(
    decoder: &mut Decoder,
    tap: &mut FakeQuant,
    calibrator: &mut dyn Calibrator,
    hosts: &HashMap<Site, Host>,
    options: &Options,
    samples: &Samples,
    embedding: Option<Tensor<2>>,
) -> Result<Vec<(usize, Tuned)>, StepError> {
    let mut original = decoder.clone();
    let device = decoder.device();
    let embed = |decoder: &Decoder| -> Vec<Tensor<3>> {
        samples.tokens.iter().map(|tokens| decoder.embed(token_tensor(&[tokens], &device))).collect()
    };
    let mut exact = embed(decoder);
    let mut quantized = match embedding {
        Some(embedding) => {
            let mut rounded = decoder.clone();
            rounded.embedding = embedding;
            embed(&rounded)
        }
        None => exact.clone(),
    };
    let train = samples.tokens.len() - samples.held_out;
    let layers = decoder.blocks.len();
    let mut found = Vec::with_capacity(layers);
    for layer in 0..layers {
        let mut largest = Largest::default();
        for (i, x) in exact.iter_mut().enumerate() {
            let tap: &mut dyn Tap = if i < train { &mut largest } else { &mut Off };
            *x = original.through_block(layer, x.clone(), tap);
        }
        let block = PlainBlock::of(decoder, layer, hosts, tap)?;
        if block.is_rounded(tap) {
            let data = Data { inputs: &quantized, targets: &exact, train, loss: options.loss };
            let mut progress = |epoch: usize| match calibrator
                .progress(layer * options.epochs + epoch, layers * options.epochs)
            {
                true => Ok(()),
                false => Err(StepError::Interrupted),
            };
            let (tuned, shipped) =
                tune_block(&block, decoder, tap, options, &largest.channels, &data, &mut progress)?;
            (*decoder, *tap) = shipped;
            found.push((layer, tuned));
        }
        for x in &mut quantized {
            *x = decoder.through_block(layer, x.clone(), tap);
        }
    }
    Ok(found)
}

/// Inputs and targets of one block; the first `train` are trained on, the others held out.
struct Data<'a> {
    inputs: &'a [Tensor<3>],
    targets: &'a [Tensor<3>],
    train: usize,
    loss: Loss,
}

impl Data<'_> {
    /// The held-out loss of a block as it ships.
    fn held_out(&self, layer: usize, (decoder, tap): &mut (Decoder, FakeQuant)) -> f64 {
        let mut sum = 0.0;
        for (x, target) in self.inputs.iter().zip(self.targets).skip(self.train) {
            let y = decoder.through_block(layer, x.clone(), tap);
            sum += f64::from(self.loss.of(y, target.clone()).into_scalar::<f32>());
        }
        sum / (self.inputs.len() - self.train) as f64
    }
}

/// Trains one block; what came of it, and the model with the block as it ships.
fn tune_block(
    block: &PlainBlock,
    decoder: &mut Decoder,
    tap: &mut FakeQuant,
    options: &Options,
    largest: &HashMap<Site, Vec<f32>>,
    data: &Data,
    progress: &mut dyn FnMut(usize) -> Result<(), StepError>,
) -> Result<(Tuned, (Decoder, FakeQuant)), StepError> {
    let ship = |learned: &Learned, decoder: &Decoder, tap: &FakeQuant| {
        let mut shipped = learned.ship(block, decoder, tap)?;
        let loss = data.held_out(block.layer, &mut shipped);
        Ok::<_, StepError>((loss, shipped))
    };
    let learned = Learned::host(block);
    let (host, shipped) = ship(&learned, decoder, tap)?;
    let mut best = (host, "host".to_string(), learned, shipped);

    let learned = Learned::start(block, decoder, options, None);
    let (loss, shipped) = ship(&learned, decoder, tap)?;
    let mut start = (loss, false, learned, shipped);
    if options.smoothing.is_some() {
        let learned = Learned::start(block, decoder, options, Some(largest));
        let (loss, shipped) = ship(&learned, decoder, tap)?;
        if loss < start.0 {
            start = (loss, true, learned, shipped);
        }
    }
    let (start, smoothed, learned, shipped) = start;
    if start < best.0 {
        best = (start, "start".into(), learned.clone(), shipped);
    }

    // A component may find nothing here: no grid to clip to, no producer to fold a scale into.
    let epochs = if learned == Learned::host(block) { 0 } else { options.epochs };
    let unit = if host > 0.0 && host.is_finite() { host } else { 1.0 };
    let mut trainer = Trainer::new(block, learned, options.rates, Objective { loss: options.loss, unit });
    let (mut training, mut held_out) = (Vec::new(), Vec::new());
    for epoch in 1..=epochs {
        let mut sum = 0.0;
        for (x, target) in data.inputs.iter().zip(data.targets).take(data.train) {
            sum += trainer.step(decoder, tap, x.clone(), target.clone()) * unit;
        }
        training.push(sum / data.train as f64);
        let (loss, shipped) = ship(&trainer.learned, decoder, tap)?;
        held_out.push(loss);
        // A loss that is no number is not below anything.
        if loss < best.0 {
            best = (loss, epoch.to_string(), trainer.learned.clone(), shipped);
        }
        progress(epoch)?;
    }
    let (loss, kept, learned, shipped) = best;
    let mut scales = serde_json::Map::new();
    let mut low_rank_parameters = 0;
    for (plain, site) in block.sites.iter().zip(&learned.sites) {
        if let Some(smoothing) = &site.smoothing {
            let extremes = crate::quantize::steps::smooth::extremes(&smoothing.scales());
            scales.insert(plain.site.to_string(), extremes);
        }
        let factors = site.linears.iter().filter_map(|linear| linear.factors.as_ref());
        low_rank_parameters += factors.map(|factors| factors.a.len() + factors.b.len()).sum::<usize>();
    }
    let tuned =
        Tuned { host, start, smoothed, training, held_out, kept, shipped: loss, scales, low_rank_parameters };
    Ok((tuned, shipped))
}

/// Remembers the largest magnitude of every channel at the sites of one block.
#[derive(Default)]
struct Largest {
    channels: HashMap<Site, Vec<f32>>,
}

impl Tap for Largest {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let [sequences, tokens, channels] = x.dims();
        let rows = x.clone().reshape([sequences * tokens, channels]);
        let seen = values(&rows.abs().max_dim(0));
        let known = self.channels.entry(site).or_insert_with(|| vec![0.0; channels]);
        known.iter_mut().zip(seen).for_each(|(known, x)| *known = known.max(x));
        group.forward(x)
    }
}
