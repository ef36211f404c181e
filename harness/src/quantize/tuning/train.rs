//! One step of training: the block under autodiff, its gradients, the update.
//!
//! Rounded weights and branches enter the block's graph as leaves; what is learned of a weight gets its gradient from
//! theirs by [`clipping::backward`], in one pass over host memory where tensor operations would take thirty. Activations
//! are rounded by the host's own tap, x + (Q(x) − x) with the second part a constant.

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use models::{Decoder, Group, Port, Site, Tap, product};
use rayon::prelude::*;

use crate::quantize::fake_quant::FakeQuant;
use crate::quantize::tuning::adam::Adam;
use crate::quantize::tuning::block::{PlainBlock, PlainSite, values};
use crate::quantize::tuning::clipping::{self, Clips};
use crate::quantize::tuning::learned::Learned;
use crate::quantize::tuning::objective::Loss;

/// Learning rates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Of γ and β.
    pub clipping: f64,
    /// Of u.
    pub smoothing: f64,
    /// Of A and B.
    pub low_rank: f64,
}

/// The longest gradient of all branches of a block together.
const LONGEST: f64 = 1.0;

/// A linear of the graph.
struct GraphLinear {
    /// The weight as it is before rounding, rows of `in`.
    effective: Vec<f32>,
    /// Ŵ, `[out, in]`
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    /// A and B, and the factor on them.
    branch: Option<(Tensor<2>, Tensor<2>, f32)>,
}

/// A site of the graph.
struct GraphSite {
    site: Site,
    /// 1/s, where a norm, or a rotation in the forward pass, produces the activation: the graph's is the one that came.
    inverse: Option<Tensor<1>>,
    linears: Vec<GraphLinear>,
}

/// The tap of training: the host's rounding, around leaves.
struct Training<'a> {
    host: &'a mut FakeQuant,
    sites: &'a [GraphSite],
}

/// Rounds as the host does; the gradient passes straight through.
fn straight_through<const D: usize>(x: Tensor<D>, round: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    if !x.is_autodiff() {
        return round(x);
    }
    let inner = x.clone().inner();
    x + (round(inner.clone()) - inner)
}

impl Tap for Training<'_> {
    fn begin(&mut self, past: usize) {
        self.host.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let Some(graph) = self.sites.iter().find(|graph| graph.site == site) else {
            return self.host.linears(site, x, group);
        };
        let x = match &graph.inverse {
            Some(inverse) => x * inverse.clone().unsqueeze(),
            None => x,
        };
        let read = straight_through(x.clone(), |x| self.host.read(site, x));
        let [sequences, tokens, channels] = x.dims();
        let rows = |x: Tensor<3>| x.reshape([sequences * tokens, channels]);
        let (x, read) = (rows(x), rows(read));
        let output = |linear: &GraphLinear| {
            let mut y = product::linear(read.clone(), linear.weight.clone());
            if let Some((a, b, scale)) = &linear.branch {
                y = y + product::linear(product::linear(x.clone(), a.clone()), b.clone()) * *scale;
            }
            if let Some(bias) = &linear.bias {
                y = y + bias.clone().unsqueeze();
            }
            let out = y.dims()[1];
            y.reshape([sequences, tokens, out])
        };
        graph.linears.iter().map(output).collect()
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        straight_through(x, |x| self.host.tensor(site, x))
    }
}

/// The graph's leaves for what is learned so far.
fn graph(block: &PlainBlock, learned: &Learned, device: &Device) -> Vec<GraphSite> {
    let leaf2 = |values: Vec<f32>, dims: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values, dims), device).autodiff().require_grad()
    };
    let leaf1 = |values: Vec<f32>| leaf(values, device);
    let linear = |s: usize, l: usize| {
        let (plain, own) = (&block.sites[s].linears[l], &learned.sites[s].linears[l]);
        let effective = learned.effective(block, s, l);
        let mut rounded = effective.clone();
        if let Some(runs) = &plain.runs {
            clipping::round(&mut rounded, runs, own.clips.as_ref());
        }
        let rows = learned.row_scales(block, s, l);
        let bias = plain.bias.clone().map(|mut bias| {
            if let Some(rows) = &rows {
                bias.iter_mut().zip(rows).for_each(|(b, t)| *b = (f64::from(*b) / t) as f32);
            }
            leaf1(bias)
        });
        let branch = own.factors.as_ref().map(|factors| {
            let [out, input] = plain.dims;
            let (a, b) = (factors.a.clone(), factors.b.clone());
            (leaf2(a, [factors.rank, input]), leaf2(b, [out, factors.rank]), factors.scale())
        });
        // Without a gradient to pass on, a constant spares the product that would make one.
        let weight = match own.clips.is_some() || rows.is_some() || learned.sites[s].smoothing.is_some() {
            true => leaf2(rounded, plain.dims),
            false => Tensor::from_data(TensorData::new(rounded, plain.dims), device),
        };
        GraphLinear { effective, weight, bias, branch }
    };
    let site = |s: usize| {
        let plain = &block.sites[s];
        let by_norm = learned.sites[s].smoothing.as_ref().filter(|_| plain.producer.is_none());
        let inverse =
            by_norm.map(|smoothing| leaf1(smoothing.by_channel().iter().map(|s| (1.0 / s) as f32).collect()));
        let linears = (0..plain.linears.len()).map(|l| linear(s, l)).collect();
        GraphSite { site: plain.site, inverse, linears }
    };
    (0..block.sites.len()).map(site).collect()
}

/// Gradients by what is learned of one linear.
#[derive(Clone, Debug, Default)]
pub struct LinearGradients {
    /// By the logits.
    pub clips: Option<Clips>,
    /// By A and B.
    pub factors: Option<(Vec<f32>, Vec<f32>)>,
}

/// Gradients by what is learned at one site.
#[derive(Clone, Debug, Default)]
pub struct SiteGradients {
    /// By u.
    pub smoothing: Option<Vec<f32>>,
    /// In the order of the site's linears.
    pub linears: Vec<LinearGradients>,
}

/// What a sample's loss is, and the unit it is told in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// How tokens count.
    pub loss: Loss,
    /// Losses are divided by it.
    pub unit: f64,
}

/// The loss of one sample, of block(x) from `target`, and its gradients.
///
/// # Shapes
/// `x` and `target` are `[sequences, tokens, hidden]`.
pub fn gradients(
    block: &PlainBlock,
    learned: &Learned,
    decoder: &mut Decoder,
    tap: &mut FakeQuant,
    [x, target]: [Tensor<3>; 2],
    objective: Objective,
) -> (f64, Vec<SiteGradients>) {
    let sites = graph(block, learned, &decoder.device());
    let behind = PrefixValues::divide(block, learned, decoder);
    let y = decoder.through_block(block.layer, x, &mut Training { host: tap, sites: &sites });
    let loss = objective.loss.of(y, target) / objective.unit;
    let value = f64::from(loss.clone().into_scalar::<f32>());
    let mut grads = loss.backward();

    let mut found: Vec<SiteGradients> = Vec::with_capacity(sites.len());
    // By ln s, by channel of the producer; the rows of one site's linears count for another site.
    let mut by_log: Vec<Vec<f64>> = learned
        .sites
        .iter()
        .map(|site| site.smoothing.as_ref().map_or(Vec::new(), |smoothing| vec![0.0; smoothing.u.len()]))
        .collect();
    if let Some(behind) = behind {
        behind.restore(decoder, block.layer, &mut grads, &mut by_log);
    }
    for (s, (graph, own)) in sites.into_iter().zip(&learned.sites).enumerate() {
        if let (Some(inverse), Some(smoothing)) = (&graph.inverse, &own.smoothing) {
            let by_inverse = taken(inverse, &mut grads);
            for ((g, i), &producer) in
                by_inverse.iter().zip(values(&inverse.clone().inner())).zip(&smoothing.producers)
            {
                by_log[s][producer] -= f64::from(*g) * f64::from(i);
            }
        }
        let mut linears = Vec::with_capacity(own.linears.len());
        for (l, linear) in graph.linears.into_iter().enumerate() {
            let divided = learned.divided_for(block, s, l);
            if let (Some(q), Some(bias)) = (divided, &linear.bias) {
                for (r, (g, b)) in
                    taken(bias, &mut grads).iter().zip(values(&bias.clone().inner())).enumerate()
                {
                    by_log[q][r] -= f64::from(*g) * f64::from(b);
                }
            }
            let factors =
                linear.branch.as_ref().map(|(a, b, _)| (taken(a, &mut grads), taken(b, &mut grads)));
            let mut clips = None;
            if linear.weight.is_autodiff() {
                let mut by_weight = taken(&linear.weight, &mut grads);
                let plain = &block.sites[s].linears[l];
                if let Some(runs) = &plain.runs {
                    let shares = own.linears[l].clips.as_ref();
                    clips = clipping::backward(&linear.effective, &mut by_weight, runs, shares);
                }
                if own.smoothing.is_some() || divided.is_some() {
                    let (by_row, by_column) = products(&by_weight, &linear.effective, plain.dims);
                    if let Some(smoothing) = &own.smoothing {
                        let columns = by_column.iter().zip(&smoothing.producers);
                        columns.for_each(|(sum, &producer)| by_log[s][producer] += sum);
                    }
                    if let Some(q) = divided {
                        by_log[q].iter_mut().zip(by_row).for_each(|(log, sum)| *log -= sum);
                    }
                }
            }
            linears.push(LinearGradients { clips, factors });
        }
        found.push(SiteGradients { smoothing: None, linears });
    }
    for ((site, own), by_log) in found.iter_mut().zip(&learned.sites).zip(&by_log) {
        site.smoothing = own.smoothing.as_ref().map(|smoothing| smoothing.gradient(by_log));
    }
    (value, found)
}

/// The sums of g·w over the rows' and over the columns' values.
fn products(g: &[f32], w: &[f32], [rows, columns]: [usize; 2]) -> (Vec<f64>, Vec<f64>) {
    /// Rows whose sums are taken one after another, whatever the number of threads.
    const TOGETHER: usize = 64;
    let parts: Vec<(Vec<f64>, Vec<f64>)> = g
        .par_chunks(TOGETHER * columns)
        .zip(w.par_chunks(TOGETHER * columns))
        .map(|(g, w)| {
            let mut by_column = vec![0.0f64; columns];
            let by_row = g.chunks(columns).zip(w.chunks(columns)).map(|(g, w)| {
                for ((sum, g), w) in by_column.iter_mut().zip(g).zip(w) {
                    *sum += f64::from(g * w);
                }
                g.iter().zip(w).map(|(g, w)| f64::from(g * w)).sum()
            });
            let by_row = by_row.collect();
            (by_row, by_column)
        })
        .collect();
    let (mut by_row, mut by_column) = (Vec::with_capacity(rows), vec![0.0f64; columns]);
    for (rows, columns) in parts {
        by_row.extend(rows);
        by_column.iter_mut().zip(columns).for_each(|(sum, part)| *sum += part);
    }
    (by_row, by_column)
}

/// The values of a prefix, which are divided with the rows of v.
struct PrefixValues {
    /// The site that they become.
    site: usize,
    values: Tensor<4>,
    /// 1/s
    inverse: Tensor<1>,
}

impl PrefixValues {
    /// Divides the values of the block's prefix, where there is one, by the learned scales of `o_in`.
    fn divide(block: &PlainBlock, learned: &Learned, decoder: &mut Decoder) -> Option<Self> {
        let device = decoder.device();
        let prefix = decoder.prefix.as_mut()?;
        let divided = |plain: &PlainSite| plain.site.port == Port::OIn && plain.producer.is_some();
        let site = block.sites.iter().position(divided)?;
        let scales = learned.sites[site].smoothing.as_ref()?.scales();
        let held = &mut prefix.cache.blocks_mut()[block.layer].values;
        let values = held.clone();
        let [_, kv_heads, _, head_dim] = values.dims();
        let inverse = leaf(scales.iter().map(|s| (1.0 / s) as f32).collect(), &device);
        *held = values.clone() * inverse.clone().reshape([1, kv_heads, 1, head_dim]);
        Some(Self { site, values, inverse })
    }

    /// Puts the values back, and takes the gradient of their scales.
    fn restore(self, decoder: &mut Decoder, layer: usize, grads: &mut Gradients, by_log: &mut [Vec<f64>]) {
        if let Some(prefix) = &mut decoder.prefix {
            prefix.cache.blocks_mut()[layer].values = self.values;
        }
        let by_inverse = taken(&self.inverse, grads);
        for ((log, g), i) in by_log[self.site].iter_mut().zip(by_inverse).zip(values(&self.inverse.inner())) {
            *log -= f64::from(g) * f64::from(i);
        }
    }
}

/// A tensor whose gradient is wanted.
fn leaf(values: Vec<f32>, device: &Device) -> Tensor<1> {
    Tensor::<1>::from_floats(values.as_slice(), device).autodiff().require_grad()
}

/// A leaf's gradient; zeros where the loss does not depend on it.
fn taken<const D: usize>(leaf: &Tensor<D>, grads: &mut Gradients) -> Vec<f32> {
    match leaf.grad_remove(grads) {
        Some(gradient) => values(&gradient),
        None => vec![0.0; leaf.dims().iter().product()],
    }
}

/// A block in training.
#[derive(Debug)]
pub struct Trainer<'a> {
    block: &'a PlainBlock,
    rates: Rates,
    /// What is learned so far.
    pub learned: Learned,
    /// By site: u, and by linear γ, β, A and B.
    optimizers: Vec<(Adam, Vec<[Adam; 4]>)>,
    objective: Objective,
}

impl<'a> Trainer<'a> {
    /// Training from `learned` on. The objective's unit should be the host's loss, so that the bound on the branches'
    /// gradient means the same in every block.
    pub fn new(block: &'a PlainBlock, learned: Learned, rates: Rates, objective: Objective) -> Self {
        let optimizers = learned.sites.iter().map(|site| {
            let linears = site.linears.iter().map(|_| Default::default()).collect();
            (Adam::default(), linears)
        });
        let optimizers = optimizers.collect();
        Self { block, rates, learned, optimizers, objective }
    }

    /// Learns from one sample; the loss before it.
    pub fn step(
        &mut self,
        decoder: &mut Decoder,
        tap: &mut FakeQuant,
        x: Tensor<3>,
        target: Tensor<3>,
    ) -> f64 {
        let (loss, mut found) =
            gradients(self.block, &self.learned, decoder, tap, [x, target], self.objective);
        shorten(&mut found);
        let sites = self.learned.sites.iter_mut().zip(&found).zip(&mut self.optimizers);
        for ((site, found), (of_site, of_linears)) in sites {
            if let (Some(smoothing), Some(gradient)) = (&mut site.smoothing, &found.smoothing) {
                of_site.step(&mut smoothing.u, gradient, self.rates.smoothing);
            }
            for ((linear, found), [high, low, a, b]) in
                site.linears.iter_mut().zip(&found.linears).zip(of_linears)
            {
                if let (Some(clips), Some(gradient)) = (&mut linear.clips, &found.clips) {
                    high.step(&mut clips.high, &gradient.high, self.rates.clipping);
                    low.step(&mut clips.low, &gradient.low, self.rates.clipping);
                }
                if let (Some(factors), Some(gradient)) = (&mut linear.factors, &found.factors) {
                    a.step(&mut factors.a, &gradient.0, self.rates.low_rank);
                    b.step(&mut factors.b, &gradient.1, self.rates.low_rank);
                }
            }
        }
        loss
    }
}

/// Shortens the gradient of all branches together to [`LONGEST`].
fn shorten(found: &mut [SiteGradients]) {
    let of_branches = |found: &SiteGradients| {
        let factors = found.linears.iter().filter_map(|linear| linear.factors.as_ref());
        factors.flat_map(|(a, b)| a.iter().chain(b)).map(|g| f64::from(*g).powi(2)).sum::<f64>()
    };
    let length = found.iter().map(of_branches).sum::<f64>().sqrt();
    if length <= LONGEST {
        return;
    }
    let factor = (LONGEST / length) as f32;
    for (a, b) in
        found.iter_mut().flat_map(|site| &mut site.linears).filter_map(|linear| linear.factors.as_mut())
    {
        a.iter_mut().chain(b).for_each(|g| *g *= factor);
    }
}
