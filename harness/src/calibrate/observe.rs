//! The tap that looks at activations, and the pass that leads a calibration set past it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use burn::tensor::Tensor;
use models::kernel::on_host;
use models::{Decoder, Group, Off, Port, Routed, Site, Tap, token_tensor};

use super::statistics::{Batch, Depth, NotFinite, SiteStatistics, Statistics};

/// Tokens that go through the blocks together. Fixed, because on some devices the last bits of a product depend on how
/// many rows it has.
pub const TOKENS_PER_BATCH: usize = 1024;

/// What to collect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which inputs of linears to look at.
    pub ports: BTreeSet<Port>,
    /// Whether to look at the residual stream after each block.
    pub residual: bool,
    /// Whether to count magnitudes.
    pub histograms: bool,
    /// The first samples so many keep the scales of all their tokens.
    pub token_scales: usize,
    /// Sites whose second moment is summed; `8 · channels²` bytes each. They must be of `ports`.
    pub second_moments: BTreeSet<Site>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ports: Port::ALL.into_iter().filter(|port| port.has_linears()).collect(),
            residual: true,
            histograms: true,
            token_scales: 2,
            second_moments: BTreeSet::new(),
        }
    }
}

/// Why there are no statistics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectError {
    /// Nothing to calibrate with.
    #[error("the calibration set has no samples: use `samples` of at least 1")]
    NoSamples,
    /// A sample of which nothing is left.
    #[error(
        "calibration sample {sample} has {tokens} tokens, and at least {least} are needed: use longer samples"
    )]
    Short {
        /// Index of the sample.
        sample: usize,
        /// Its tokens.
        tokens: usize,
        /// Tokens needed.
        least: usize,
    },
    /// A broken model.
    #[error(
        "the activation at {site} is not finite in calibration sample {sample}: the model or a step before this one \
         is broken; measure its perplexity first"
    )]
    NotFinite {
        /// Where.
        site: String,
        /// Index of the sample.
        sample: usize,
    },
    /// Hidden states that found no place.
    #[error(
        "the hidden states of the calibration set cannot be kept in a temporary file: {0}; free space there, or set TMPDIR"
    )]
    States(String),
    /// The caller's progress said so.
    #[error("interrupted")]
    Interrupted,
}

/// A tap that takes every activation into [`Statistics`] and leaves what happens there to another tap.
pub struct Observer<'a> {
    inner: &'a mut dyn Tap,
    options: &'a Options,
    statistics: Statistics,
    samples: Vec<usize>,
    tokens: Vec<Vec<u32>>,
    fault: Option<CollectError>,
}

impl<'a> Observer<'a> {
    /// Sees what `inner` is handed. `first_position` is the position in its sample of the first token that goes through
    /// the model.
    pub fn new(inner: &'a mut dyn Tap, options: &'a Options, first_position: usize) -> Self {
        let statistics = Statistics { first_position, ..Statistics::default() };
        Self { inner, options, statistics, samples: Vec::new(), tokens: Vec::new(), fault: None }
    }

    /// Says what the next forward pass is of: the samples' indices and the tokens that go through the model.
    pub fn begin(&mut self, samples: &[usize], tokens: &[&[u32]]) {
        self.samples = samples.to_vec();
        self.tokens = tokens.iter().map(|t| t.to_vec()).collect();
        self.statistics.samples += samples.len();
        self.statistics.tokens += tokens.iter().map(|t| t.len() as u64).sum::<u64>();
        for (&sample, tokens) in samples.iter().zip(tokens) {
            if sample < self.options.token_scales {
                self.statistics.kept.insert(sample, tokens.to_vec());
            }
        }
    }

    /// Takes an activation in, and returns it as it was.
    ///
    /// # Shapes
    /// `[sequences, tokens, channels]`, as many sequences and tokens as [`Observer::begin`] named.
    pub fn observe(&mut self, site: Site, x: Tensor<3>) -> Tensor<3> {
        if !self.options.ports.contains(&site.port) {
            return x;
        }
        let device = x.device();
        if !on_host(&device) {
            self.look(Place::Site(site), &x);
            return x;
        }
        // Nothing else refers to the activation, so that its values are not copied on the way out and in.
        let channels = x.dims()[2];
        let data = x.try_into_data().expect("a host tensor can be read");
        self.take(Place::Site(site), data.as_slice::<f32>().expect("activations are f32"), channels);
        Tensor::from_data(data, &device)
    }

    /// Takes in what others still refer to.
    fn look(&mut self, place: Place, x: &Tensor<3>) {
        let channels = x.dims()[2];
        let data = x.clone().try_into_data().expect("the device answers");
        self.take(place, data.as_slice::<f32>().expect("activations are f32"), channels);
    }

    fn take(&mut self, place: Place, values: &[f32], channels: usize) {
        if self.fault.is_some() {
            return;
        }
        let first_position = self.statistics.first_position;
        let statistics = place.of(&mut self.statistics, self.options, channels);
        let tokens: Vec<&[u32]> = self.tokens.iter().map(Vec::as_slice).collect();
        let batch = Batch { samples: &self.samples, tokens: &tokens, first_position };
        if let Err(NotFinite { sample }) = statistics.observe(values, &batch, self.options.token_scales) {
            self.fault = Some(CollectError::NotFinite { site: place.to_string(), sample });
        }
    }

    /// Takes in what an expert reads of one sequence.
    fn take_routed(&mut self, site: Site, x: &Tensor<3>, routed: &Routed) {
        if self.fault.is_some() || !self.options.ports.contains(&site.port) {
            return;
        }
        let (sample, fed) = (self.samples[routed.sequence], &self.tokens[routed.sequence]);
        let first = self.statistics.first_position;
        let tokens: Vec<u32> = routed.tokens.iter().map(|&token| fed[token]).collect();
        let positions: Vec<u32> = routed.tokens.iter().map(|&token| (first + token) as u32).collect();
        let data = x.to_data();
        let values = data.as_slice::<f32>().expect("activations are f32");
        let statistics = Place::Site(site).of(&mut self.statistics, self.options, x.dims()[2]);
        if let Err(NotFinite { sample }) = statistics.observe_routed(values, sample, &tokens, &positions) {
            self.fault = Some(CollectError::NotFinite { site: site.to_string(), sample });
        }
    }

    /// The first fault met so far, if any.
    pub(super) fn fault(&self) -> Result<(), CollectError> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// What was seen.
    ///
    /// # Errors
    /// The first fault met.
    pub fn finish(self) -> Result<Statistics, CollectError> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(self.statistics),
        }
    }
}

impl Tap for Observer<'_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let x = self.observe(site, x);
        self.inner.linears(site, x, group)
    }

    fn routed(&mut self, site: Site, x: Tensor<3>, group: &Group, routed: &Routed) -> Vec<Tensor<3>> {
        self.take_routed(site, &x, routed);
        self.inner.routed(site, x, group, routed)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.inner.tensor(site, x)
    }

    fn residual(&mut self, layer: usize, x: &Tensor<3>) {
        if self.options.residual {
            self.look(Place::Residual(layer), x);
        }
        self.inner.residual(layer, x);
    }
}

#[derive(Clone, Copy)]
enum Place {
    Site(Site),
    Residual(usize),
}

impl Place {
    /// Its statistics, begun where there are none yet.
    fn of<'a>(
        self,
        statistics: &'a mut Statistics,
        options: &Options,
        channels: usize,
    ) -> &'a mut SiteStatistics {
        let depth = |second_moment| Depth { histogram: options.histograms, second_moment };
        match self {
            Place::Site(site) => statistics.sites.entry(site).or_insert_with(|| {
                SiteStatistics::new(channels, depth(options.second_moments.contains(&site)))
            }),
            Place::Residual(layer) => {
                let new = || SiteStatistics::new(channels, depth(false));
                statistics.residual.entry(layer).or_insert_with(new)
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Site(site) => site.fmt(f),
            Place::Residual(layer) => write!(f, "layers.{layer}.residual"),
        }
    }
}

/// Runs a calibration set through the model as it is, up to and without the output head, and looks at everything that
/// the options name.
///
/// With `drop_first`, the first token of every sample (its BOS, where a prefix has one) is left out; positions in the
/// statistics are those of the sample all the same. `progress` is told samples done and samples in all after each batch;
/// its `false` ends the pass.
///
/// # Errors
/// An empty set, an empty sample, an activation that is not finite, or [`CollectError::Interrupted`].
pub fn collect(
    decoder: &mut Decoder,
    samples: &[Vec<u32>],
    drop_first: bool,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Statistics, CollectError> {
    collect_through(decoder, &mut Off, samples, drop_first, options, progress)
}

/// As [`collect`], with a tap behind the observer that changes what is computed.
///
/// # Errors
/// As [`collect`].
pub fn collect_through(
    decoder: &mut Decoder,
    inner: &mut dyn Tap,
    samples: &[Vec<u32>],
    drop_first: bool,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Statistics, CollectError> {
    let skipped = usize::from(drop_first);
    let device = decoder.device();
    let mut observer = Observer::new(inner, options, skipped);
    for range in batches(samples, skipped)? {
        let batch: Vec<&[u32]> = samples[range.clone()].iter().map(|s| &s[skipped..]).collect();
        observer.begin(&range.clone().collect::<Vec<_>>(), &batch);
        let hidden = decoder.hidden(token_tensor(&batch, &device), &mut observer);
        // The head itself is not run: it is the greatest product of all, and nobody asks for logits.
        observer.observe(Site::HEAD, hidden);
        observer.fault()?;
        if !progress(range.end, samples.len()) {
            return Err(CollectError::Interrupted);
        }
    }
    observer.finish()
}

/// Places of samples that go through the blocks together, where the first `skipped` tokens of each are left out.
///
/// # Errors
/// An empty set, or a sample of which nothing is left.
pub(super) fn batches(samples: &[Vec<u32>], skipped: usize) -> Result<Vec<Range<usize>>, CollectError> {
    if samples.is_empty() {
        return Err(CollectError::NoSamples);
    }
    if let Some(sample) = samples.iter().position(|s| s.len() <= skipped) {
        let tokens = samples[sample].len();
        return Err(CollectError::Short { sample, tokens, least: skipped + 1 });
    }
    let (mut batches, mut done) = (Vec::new(), 0);
    while done < samples.len() {
        let length = samples[done].len();
        let most = (TOKENS_PER_BATCH / (length - skipped)).max(1);
        let count = samples[done..].iter().take(most).take_while(|s| s.len() == length).count();
        batches.push(done..done + count);
        done += count;
    }
    Ok(batches)
}
