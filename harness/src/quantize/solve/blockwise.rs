//! A calibration set led through a model one block after another, so that no more than one block's second moments are
//! held at a time and later blocks can read what earlier, rounded ones make.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;

use burn::tensor::Tensor;
use models::{Decoder, Group, Port, Site, Tap, token_tensor};

use crate::calibrate::moment::SecondMoment;
use crate::calibrate::observe::TOKENS_PER_BATCH;
use crate::hidden::Hidden;
use crate::matrix::{View, add_product};
use crate::quantize::StepError;
use crate::quantize::fake_quant::FakeQuant;

/// The residual stream of every sample of a calibration set, before some block.
pub struct Stream {
    batches: Hidden,
    /// Tokens of all samples.
    pub tokens: usize,
}

/// What the linears of a block read, over the whole calibration set. An expert that no token reached is not in it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// XᵀX by site.
    pub moments: BTreeMap<Site, SecondMoment>,
    /// (X − X̃)ᵀX̃ by site, where another stream was compared.
    pub drifts: BTreeMap<Site, Vec<f64>>,
}

impl Stream {
    /// Before the first block. A sample's BOS is left out where a prefix stands for it.
    ///
    /// # Errors
    /// A calibration set without samples, or with one that is too short.
    pub fn begin(decoder: &Decoder, samples: &[Vec<u32>], start: Option<u32>) -> Result<Self, StepError> {
        if samples.is_empty() {
            let text = "the calibration set has no samples: use `samples` of at least 1";
            return Err(StepError::Statistics(text.into()));
        }
        let fed: Vec<&[u32]> =
            samples.iter().map(|s| &s[usize::from(decoder.stands_for_first(start, s))..]).collect();
        if let Some(sample) = fed.iter().position(|s| s.is_empty()) {
            let text =
                format!("calibration sample {sample} has no tokens behind the prefix: use longer samples");
            return Err(StepError::TooLittle(text));
        }
        let device = decoder.device();
        let mut batches = Hidden::default();
        let mut rest = fed.as_slice();
        while let Some(first) = rest.first() {
            let most = (TOKENS_PER_BATCH / first.len()).max(1);
            let count = rest.iter().take(most).take_while(|s| s.len() == first.len()).count();
            batches.push(decoder.embed(token_tensor(&rest[..count], &device))).map_err(kept)?;
            rest = &rest[count..];
        }
        Ok(Self { batches, tokens: fed.iter().map(|s| s.len()).sum() })
    }

    /// Sums the second moments of the sites `wanted` of a block, what the linears read being what `tap` makes of the
    /// activations. With `advance` the stream is behind the block afterwards, else nothing beyond the last wanted port
    /// is computed.
    ///
    /// # Errors
    /// An activation that is not finite.
    pub fn pass(
        &mut self,
        decoder: &mut Decoder,
        layer: usize,
        tap: &mut FakeQuant,
        wanted: &[Site],
        advance: bool,
    ) -> Result<Seen, StepError> {
        let mut seen = Seen::default();
        for index in 0..self.batches.len() {
            let read = self.batch(index, decoder, layer, tap, wanted, advance)?;
            for (site, x) in read {
                let channels = x.dims()[2];
                seen.add(site, &values(x), channels);
            }
        }
        seen.check()?;
        Ok(seen)
    }

    /// As [`Stream::pass`] without advancing, where `original`, the stream of the unrounded model, is led through its
    /// block at the same time, without a tap, and compared token by token: not for experts, to which the two may send
    /// different tokens.
    ///
    /// # Errors
    /// As [`Stream::pass`].
    pub fn compare(
        &mut self,
        decoder: &mut Decoder,
        layer: usize,
        tap: &mut FakeQuant,
        wanted: &[Site],
        original: (&mut Stream, &mut Decoder),
    ) -> Result<Seen, StepError> {
        let mut seen = Seen::default();
        let (truth, whole) = original;
        for index in 0..self.batches.len() {
            let read = self.batch(index, decoder, layer, tap, wanted, false)?;
            let meant = truth.batch(index, whole, layer, &mut FakeQuant::default(), wanted, false)?;
            for ((site, x), (_, meant)) in read.into_iter().zip(meant) {
                let channels = x.dims()[2];
                let (x, meant) = (values(x), values(meant));
                seen.add(site, &x, channels);
                let drift: Vec<f64> =
                    meant.iter().zip(&x).map(|(&m, &x)| f64::from(m) - f64::from(x)).collect();
                let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                let rows = wide.len() / channels;
                let sums = seen.drifts.entry(site).or_insert_with(|| vec![0.0; channels * channels]);
                let left = View::new(&drift, rows, channels, channels).transposed();
                add_product(sums, channels, 1.0, left, View::new(&wide, rows, channels, channels), true);
            }
        }
        seen.check()?;
        Ok(seen)
    }

    /// Σ x² by channel of what the linears of the sites `wanted` read, without a tap; the stream is behind the block
    /// afterwards. An expert that no token reached is not in it.
    ///
    /// # Errors
    /// Hidden states that find no place.
    pub fn squares(
        &mut self,
        decoder: &mut Decoder,
        layer: usize,
        wanted: &[Site],
    ) -> Result<BTreeMap<Site, Vec<f64>>, StepError> {
        let mut squares: BTreeMap<Site, Vec<f64>> = BTreeMap::new();
        for index in 0..self.batches.len() {
            for (site, x) in self.batch(index, decoder, layer, &mut FakeQuant::default(), wanted, true)? {
                let channels = x.dims()[2];
                let sums = squares.entry(site).or_insert_with(|| vec![0.0; channels]);
                for row in values(x).chunks(channels) {
                    sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
                }
            }
        }
        Ok(squares)
    }

    /// One batch through the block; what the wanted sites' linears read.
    fn batch(
        &mut self,
        index: usize,
        decoder: &mut Decoder,
        layer: usize,
        tap: &mut FakeQuant,
        wanted: &[Site],
        advance: bool,
    ) -> Result<Vec<(Site, Tensor<3>)>, StepError> {
        let last = if advance { None } else { wanted.iter().map(|site| site.port).max() };
        let mut look = Look { tap, wanted, last, read: Vec::new() };
        let x = self.batches.get(index, &decoder.device()).map_err(kept)?;
        let out = decoder.through_block(layer, x, &mut look);
        let read = look.read;
        if advance {
            self.batches.put(index, out).map_err(kept)?;
        }
        Ok(read)
    }

    /// The same states once more, to be led another way.
    ///
    /// # Errors
    /// Hidden states that find no place.
    pub fn copied(&mut self, decoder: &Decoder) -> Result<Self, StepError> {
        let batches = self.batches.copied(&decoder.device()).map_err(kept)?;
        Ok(Self { batches, tokens: self.tokens })
    }

    /// The second moment of what the output head reads, once the stream is behind the last block.
    ///
    /// # Errors
    /// Hidden states that cannot be read again.
    pub fn head(&mut self, decoder: &Decoder, tap: &FakeQuant) -> Result<SecondMoment, StepError> {
        let mut moment = SecondMoment::new(decoder.architecture.hidden);
        for index in 0..self.batches.len() {
            let x = self.batches.get(index, &decoder.device()).map_err(kept)?;
            let mut read = Read { tap, read: None };
            decoder.logits(decoder.final_norm.forward(x), &mut read);
            moment.add(&values(read.read.expect("the head reads what it is given")));
        }
        Ok(moment)
    }
}

impl Seen {
    fn add(&mut self, site: Site, rows: &[f32], channels: usize) {
        let moment = match self.moments.entry(site) {
            Entry::Vacant(vacant) => vacant.insert(SecondMoment::new(channels)),
            Entry::Occupied(known) => known.into_mut(),
        };
        moment.add(rows);
    }

    fn check(&self) -> Result<(), StepError> {
        for (site, moment) in &self.moments {
            if !moment.squares().iter().all(|x| x.is_finite()) {
                return Err(StepError::Statistics(format!(
                    "the activation at {site} is not finite in the calibration set: the model or a step before this one \
                     is broken; measure its perplexity first"
                )));
            }
        }
        Ok(())
    }
}

fn kept(error: io::Error) -> StepError {
    StepError::States(error.to_string())
}

fn values(x: Tensor<3>) -> Vec<f32> {
    let data = x.try_into_data().expect("the device answers");
    data.try_into_vec::<f32>().expect("activations are f32")
}

/// Keeps what linears read, and gives it in place of what they make of it.
struct Read<'a> {
    tap: &'a FakeQuant,
    read: Option<Tensor<3>>,
}

impl Tap for Read<'_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, _: &Group) -> Vec<Tensor<3>> {
        let x = self.tap.read(site, x);
        self.read = Some(x.clone());
        vec![x]
    }
}

/// Keeps what the linears of the wanted sites read.
struct Look<'a> {
    tap: &'a mut FakeQuant,
    wanted: &'a [Site],
    /// From here on outputs are of no use to anybody.
    last: Option<Port>,
    read: Vec<(Site, Tensor<3>)>,
}

impl Look<'_> {
    /// Whether nobody wants what linears make of this site: but a router, which decides what its experts read.
    fn is_useless(&self, site: Site) -> bool {
        let routes = |wanted: &Site| wanted.expert.is_some();
        let is_router = site.port == Port::MlpIn && site.expert.is_none() && self.wanted.iter().any(routes);
        self.last.is_some_and(|last| site.port >= last) && !is_router
    }
}

impl Tap for Look<'_> {
    fn begin(&mut self, past: usize) {
        self.tap.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let x = if self.last.is_some_and(|last| site.port > last) { x } else { self.tap.read(site, x) };
        if self.wanted.contains(&site) {
            self.read.push((site, x.clone()));
        }
        if self.is_useless(site) {
            let [sequences, tokens, _] = x.dims();
            let device = x.device();
            let zeros = |out: usize| Tensor::zeros([sequences, tokens, out], &device);
            return group.linears.iter().map(|linear| zeros(linear.weight.dims()[0])).collect();
        }
        group.forward(x)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.tap.tensor(site, x)
    }
}
