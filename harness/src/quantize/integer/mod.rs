//! Integer execution: the tap that multiplies codes by codes, where a recipe's grids are whole numbers.
//!
//! [`FakeQuant`] rounds in floating point and multiplies in floating point: it is what every number means. Here the same
//! codes are multiplied as integers. With x = Δ·(u − z) and w = Δ'·(c + z'),
//!
//! y = Σ over segments of Δ·Δ'·Σ (u − z)·(c + z')
//!
//! The inner sum is exact, in i32; a segment is what shares both scales. So the two differ by the rounding of sums in
//! floating point, which the integers do not have, and of the final scale.
//!
//! | module | holds |
//! |---|---|
//! | [`codes`] | the codes of rounded weights, read off their values |
//! | [`weights`] | these codes, packed once |
//! | [`activation`] | activations to codes |
//! | [`segments`] | where scales change along a row |
//! | [`kernel`] | the products, by what the processor has |
//! | [`tile`] | some rows by some outputs: sums, zero points and scales |
//! | [`product`] | all tiles, over the cores |
//! | `device` | the same on a device of CubeCL that multiplies bytes |
//!
//! A group is executed so if its activation is rounded to a grid of whole codes, dynamic or static, and each of its weights
//! is whole codes times scales; else it is left to [`FakeQuant`], and [`IntegerTap::report`] says why. Online rotations
//! belong to the decoder and happen before. What the prefix of a model holds was computed in floating point. Channels that
//! `keep` leaves in floating point are multiplied there and added.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::{Device, Tensor, TensorData};
use models::architecture::Pairs;
use models::kernel::on_host;
use models::{Decoder, Group, Linear, Normalisation, Site, Tap};
use serde::{Deserialize, Serialize};

use crate::quantize::effective_bits::{self, GroupTally, Tally};
use crate::quantize::fake_quant::{ActivationRule, FakeQuant};
use crate::quantize::grid::{Convention, Granularity, Grid};
use crate::quantize::integer::activation::Plan;
#[cfg(feature = "cube")]
use crate::quantize::integer::device::DeviceGroup;
use crate::quantize::integer::kernel::Kernel;
use crate::quantize::integer::weights::PackedWeight;
#[cfg(feature = "cube")]
use crate::quantize::kernels::integers::Storage;
use crate::quantize::steps::Step;
use crate::record::execution::Executed;

pub mod activation;
pub mod codes;
#[cfg(feature = "cube")]
pub mod device;
pub mod kernel;
pub mod product;
pub mod segments;
pub mod tile;
pub mod weights;

/// How quantized linear layers are executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arithmetic {
    /// In integers, where the device and the recipe's grids allow it.
    Integer,
    /// In floating point, by rounded values.
    #[default]
    Fake,
}

impl Arithmetic {
    /// `integer`, `fake`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Fake => "fake",
        }
    }

    /// What multiplies integers on a device, or why nothing does.
    fn place(self, device: &Device) -> Result<Place, &'static str> {
        match self {
            Self::Fake => Err("asked for"),
            Self::Integer => Place::of(device).ok_or("the device has no integer products"),
        }
    }
}

impl std::str::FromStr for Arithmetic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Integer, Self::Fake]
            .into_iter()
            .find(|arithmetic| arithmetic.name() == text)
            .ok_or_else(|| format!("unknown arithmetic `{text}`; expected integer or fake"))
    }
}

/// Executes a recipe: in integers what can be, the rest by rounding in floating point.
#[derive(Clone, Debug)]
pub struct IntegerTap {
    fake: FakeQuant,
    groups: HashMap<Site, Executable>,
    /// Why groups are left to floating point, and how many.
    left: BTreeMap<&'static str, u64>,
    place: Place,
    stored: Stored,
}

/// What the linear layers and the head take where a recipe is stored as it says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stored {
    /// Bits of their weights, scales and zero points among them.
    pub bits: f64,
    /// Number of weights.
    pub weights: u64,
}

/// What multiplies integers.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// The processor.
    Host(Kernel),
    /// A device of CubeCL.
    #[cfg(feature = "cube")]
    Device(Storage),
}

impl Place {
    /// What a device has: the processor's best kernel, or matrix instructions of bytes; `None` of a device without.
    pub fn of(device: &Device) -> Option<Self> {
        if on_host(device) {
            return Some(Self::Host(Kernel::best()));
        }
        #[cfg(feature = "cube")]
        if let Some(storage) = Storage::of(device) {
            return Some(Self::Device(storage));
        }
        None
    }

    fn name(self) -> &'static str {
        match self {
            Self::Host(kernel) => kernel.name,
            #[cfg(feature = "cube")]
            Self::Device(storage) => storage.name(),
        }
    }
}

/// A group, made ready.
#[derive(Clone, Debug)]
enum Executable {
    Host(Kernel, IntegerGroup),
    #[cfg(feature = "cube")]
    Device(DeviceGroup),
}

impl Executable {
    fn forward(&self, x: Tensor<3>) -> Vec<Tensor<3>> {
        match self {
            Self::Host(kernel, group) => group.forward(x, kernel),
            #[cfg(feature = "cube")]
            Self::Device(group) => group.forward(&x),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Host(_, group) => group.linears.iter().map(IntegerLinear::bytes).sum(),
            #[cfg(feature = "cube")]
            Self::Device(group) => group.bytes(),
        }
    }
}

/// A group of linears as integers.
#[derive(Clone, Debug)]
struct IntegerGroup {
    plan: Plan,
    linears: Vec<IntegerLinear>,
}

#[derive(Clone, Debug)]
struct IntegerLinear {
    weight: PackedWeight,
    bias: Option<Vec<f32>>,
    /// Columns that are kept in floating point, `[kept, out]`.
    kept: Option<Tensor<2>>,
}

impl IntegerLinear {
    fn bytes(&self) -> u64 {
        let kept = self.kept.as_ref().map_or(0, |kept| kept.shape().num_elements());
        (self.weight.bytes() + 4 * kept) as u64
    }
}

impl IntegerTap {
    /// Packs the weights of a decoder on which a recipe has been carried out, for the device that it is on.
    pub fn new(arithmetic: Arithmetic, steps: &[Step], decoder: &Decoder, fake: FakeQuant) -> Self {
        Self::at(arithmetic.place(&decoder.device()), steps, decoder, fake)
    }

    /// As [`IntegerTap::new`], at a place, or nowhere and why.
    pub fn at(
        place: Result<Place, &'static str>,
        steps: &[Step],
        decoder: &Decoder,
        fake: FakeQuant,
    ) -> Self {
        let (mut tap, whole, tally) = Self::begin(place, steps, decoder, fake);
        for ((site, group), stored) in decoder.groups().into_iter().zip(&tally.groups) {
            tap.take(whole, site, group, stored);
        }
        tap
    }

    /// As [`IntegerTap::new`], and a group's weights are given up as soon as their codes stand: those of the decoder are
    /// one zero afterwards where the tap executes integers, so that no other tap can execute it. The head, which comparisons
    /// also read, keeps its own.
    pub fn instead_of_weights(
        arithmetic: Arithmetic,
        steps: &[Step],
        decoder: &mut Decoder,
        fake: FakeQuant,
    ) -> Self {
        let device = decoder.device();
        let (mut tap, whole, tally) = Self::begin(arithmetic.place(&device), steps, decoder, fake);
        for ((site, group), stored) in decoder.groups_mut().into_iter().zip(&tally.groups) {
            tap.take(whole, site, group, stored);
            if site != Site::HEAD && tap.is_integer(site) {
                for linear in &mut group.linears {
                    // Not every device has tensors without values.
                    linear.weight = Tensor::zeros([1, 1], &device);
                }
            }
        }
        tap
    }

    /// Without any group, why all of them will be left to floating point, and what is stored of each.
    fn begin(
        place: Result<Place, &'static str>,
        steps: &[Step],
        decoder: &Decoder,
        fake: FakeQuant,
    ) -> (Self, Option<&'static str>, Tally) {
        let (whole, place) = match place {
            Ok(place) => (None, place),
            Err(why) => (Some(why), Place::Host(Kernel::best())),
        };
        let tally = effective_bits::tally(steps, decoder, &fake);
        let mut stored = Stored::default();
        for linear in tally.groups.iter().flat_map(|group| &group.linears) {
            stored.bits += linear.bits;
            stored.weights += linear.count() as u64;
        }
        (Self { fake, groups: HashMap::new(), left: BTreeMap::new(), place, stored }, whole, tally)
    }

    /// Makes a group ready, or notes why not.
    fn take(&mut self, whole: Option<&'static str>, site: Site, group: &Group, stored: &GroupTally) {
        let shared: Vec<_> = stored.linears.iter().map(|linear| linear.shared).collect();
        let made = match (whole, shared.contains(&None), self.fake.rules.get(&site)) {
            // Nothing is rounded here.
            (_, true, None) => return,
            (Some(why), ..) => Err(why),
            (_, true, _) => Err("weights in floating point"),
            (.., None) => Err("activations in floating point"),
            (.., Some(rule)) => self.group(site, group, rule, &shared),
        };
        match made {
            Ok(made) => drop(self.groups.insert(site, made)),
            Err(why) => *self.left.entry(why).or_default() += 1,
        }
    }

    /// What rounds in floating point, for the groups that are left to it.
    pub fn fake(&self) -> &FakeQuant {
        &self.fake
    }

    /// How many groups are executed in integers.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// How the rounded groups are executed.
    pub fn report(&self) -> Executed {
        Executed {
            kernel: (!self.groups.is_empty()).then(|| self.place.name().to_string()),
            integer_groups: self.groups.len() as u64,
            floating_groups: self.left.iter().map(|(why, groups)| (why.to_string(), *groups)).collect(),
        }
    }

    /// Bytes of the linear layers' weights that a token reads as they are executed: packed codes with their scales, f32
    /// elsewhere.
    pub fn weight_bytes(&self, decoder: &Decoder) -> u64 {
        let of = |(site, group): (Site, &Group)| -> u64 {
            match self.groups.get(&site) {
                Some(integers) => integers.bytes(),
                None => {
                    group.linears.iter().map(|linear| 4 * linear.weight.shape().num_elements() as u64).sum()
                }
            }
        };
        decoder.groups().into_iter().map(of).sum::<u64>()
    }

    /// What the model takes where it is stored as its recipe says.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// Whether a site's linears are executed in integers.
    pub fn is_integer(&self, site: Site) -> bool {
        self.groups.contains_key(&site)
    }

    fn group(
        &self,
        site: Site,
        group: &Group,
        rule: &ActivationRule,
        shared: &[Option<(Grid, usize)>],
    ) -> Result<Executable, &'static str> {
        let is_float = |grid: Grid| grid.convention().float().is_some();
        if is_float(rule.grid) || shared.iter().flatten().any(|(grid, _)| is_float(*grid)) {
            return Err("grids of floating-point numbers");
        }
        if matches!(rule.grid.convention(), Convention::AtomAsymmetric | Convention::Omniquant) {
            return Err("activations whose zero points have no bound");
        }
        if self.fake.low_rank.get(&site).is_some_and(|branches| !branches.is_empty()) {
            return Err("branches beside the weights");
        }
        let layout = self.fake.layouts.get(&site).cloned();
        let Some(channels) = group.linears.first().map(|linear| linear.weight.dims()[1]) else {
            return Err("no linears");
        };
        let of_weights = |sharing: usize| match sharing < channels {
            true => Granularity::Group(sharing),
            false => Granularity::Channel,
        };
        let sharing: Vec<usize> = shared.iter().flatten().map(|(_, sharing)| *sharing).collect();
        if sharing.windows(2).any(|pair| of_weights(pair[0]) != of_weights(pair[1])) {
            return Err("linears of one group whose scales are shared otherwise");
        }
        let floating = layout.as_ref().filter(|layout| layout.grid.is_none()).map_or(0, |layout| layout.kept);
        let by_weights = segments::shares(of_weights(sharing[0]), channels, layout.as_deref());
        let by_tokens = segments::shares(rule.granularity, channels, layout.as_deref());
        let segments = segments::between(&by_weights, &by_tokens, floating);
        let natural: Vec<usize> = (0..channels).collect();
        let order = layout.as_ref().map_or(&natural, |layout| &layout.order);
        let widest = segments.iter().map(|segment| segment.to - segment.from).max().unwrap_or(0);
        let mut each = Vec::with_capacity(group.linears.len());
        for (linear, (grid, _)) in group.linears.iter().zip(shared.iter().flatten()) {
            let rounded = values(&linear.weight);
            let rows = weights::rows(&rounded, order, &by_weights, &segments, grid.bits())
                .ok_or("weights that are no codes times scales in the order of their channels")?;
            let greatest = rows.iter().map(|row| row.greatest).max().unwrap_or(0);
            if !product::fits(widest, GREATEST_ACTIVATION, greatest) {
                return Err("sums that may leave 32 bits");
            }
            each.push(rows);
        }
        let kernel = match self.place {
            Place::Host(kernel) => kernel,
            #[cfg(feature = "cube")]
            Place::Device(_) if layout.is_some() => return Err("channels in another order, on a device"),
            #[cfg(feature = "cube")]
            Place::Device(storage) => {
                return DeviceGroup::new(storage, rule, &segments, group, each).map(Executable::Device);
            }
        };
        let of = |(linear, rows): (&Linear, Vec<weights::Row>)| IntegerLinear {
            weight: PackedWeight::pack(&rows, &segments),
            bias: linear.bias.as_ref().map(values),
            kept: (floating > 0).then(|| columns(linear, &order[channels - floating..])),
        };
        let linears: Vec<IntegerLinear> = group.linears.iter().zip(each).map(of).collect();
        let with_sums = linears.iter().any(|linear| linear.weight.has_zeros());
        let plan = Plan { rule: *rule, layout, shares: by_tokens, segments, with_sums };
        Ok(Executable::Host(kernel, IntegerGroup { plan, linears }))
    }
}

/// The greatest |u − z| of a grid whose zero point is among its codes.
const GREATEST_ACTIVATION: i32 = 255;

impl IntegerGroup {
    fn forward(&self, x: Tensor<3>, kernel: &Kernel) -> Vec<Tensor<3>> {
        let ([sequences, tokens, channels], device) = (x.dims(), x.device());
        // Before the values are taken: what is kept in floating point reads them, too.
        let floating = self.plan.layout.as_ref().filter(|layout| layout.grid.is_none() && layout.kept > 0);
        let x = x.try_into_data().expect("a host tensor can be read");
        let values = x.as_slice::<f32>().expect("activations are f32");
        let codes = self.plan.encode(values, tokens, channels);
        let rest = floating.map(|layout| {
            let kept = &layout.order[layout.rest()..];
            let rows = values.chunks(channels).flat_map(|row| kept.iter().map(|&c| row[c]));
            let data = TensorData::new(rows.collect::<Vec<f32>>(), [sequences * tokens, kept.len()]);
            Tensor::<2>::from_data(data, &device)
        });
        let each = self.linears.iter().map(|linear| {
            let (bias, out) = (linear.bias.as_deref(), linear.weight.out);
            let y = product::multiply(kernel, &codes, &linear.weight, &self.plan.segments, bias);
            let y = Tensor::<3>::from_data(TensorData::new(y, [sequences, tokens, out]), &device);
            match (&rest, &linear.kept) {
                (Some(rest), Some(kept)) => {
                    y + rest.clone().matmul(kept.clone()).reshape([sequences, tokens, out])
                }
                _ => y,
            }
        });
        each.collect()
    }
}

impl Tap for IntegerTap {
    fn begin(&mut self, past: usize) {
        self.fake.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        match self.groups.get(&site) {
            Some(integers) => integers.forward(x),
            None => self.fake.linears(site, x, group),
        }
    }

    fn behind_norm(
        &mut self,
        site: Site,
        x: &Tensor<3>,
        norm: &Normalisation,
        group: &Group,
    ) -> Vec<Tensor<3>> {
        match self.groups.get(&site) {
            Some(integers) => integers.forward(norm.forward(x.clone())),
            None => self.fake.behind_norm(site, x, norm, group),
        }
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.fake.tensor(site, x)
    }

    fn turned(&mut self, site: Site, x: Tensor<4>, pairs: Pairs, angles: [&Tensor<2>; 2]) -> Tensor<4> {
        self.fake.turned(site, x, pairs, angles)
    }
}

/// Columns of a linear's weight, `[columns, out]`.
fn columns(linear: &Linear, of: &[usize]) -> Tensor<2> {
    let [out, channels] = linear.weight.dims();
    let values = values(&linear.weight);
    let picked = of.iter().flat_map(|&c| (0..out).map(move |row| row * channels + c)).map(|i| values[i]);
    let data = TensorData::new(picked.collect::<Vec<f32>>(), [of.len(), out]);
    Tensor::from_data(data, &linear.weight.device())
}

fn values<const D: usize>(of: &Tensor<D>) -> Vec<f32> {
    of.to_data().try_to_vec().expect("weights and biases are f32 and can be read")
}
