//! Effective bits: what a recipe stores and moves per value, all that goes with the codes included.
//!
//! Every step enters what it stores ([`Method::store`](crate::quantize::Method::store)); the means are taken here. The
//! conventions, of which papers use several:
//!
//! | what | counts |
//! |---|---|
//! | a value that is not rounded | 16 bits, whatever the checkpoint's own type |
//! | a scale | 16 bits; of `mxfp4` and `nvfp4` 8, as their formats say |
//! | a zero point | the grid's bits where the convention keeps it among the codes (`zero-in-range`, `awq`), else 16 |
//! | a scale that all tokens share, dynamic or static | nothing: it vanishes beside them |
//! | channels with a grid of their own | that grid, a scale for each row of a weight and each token; their order counts nothing |
//! | a low-rank branch | 16 bits for each of its values, spread over the weights it stands beside |
//! | weights | mean over the linear layers of the blocks, exempted ones at 16 bits; parameters: mean over all there are |
//! | activations | mean over the values that the blocks' linear layers read, each site once |
//! | cache | mean over the keys and values of a token that is rounded; how many are not stands beside it |
//!
//! So weights at 4 bits in symmetric groups of 64 take 4 + 16/64 = 4.25. A tied head is one with the embedding table
//! unless one of the two is rounded otherwise.

use models::architecture::{Architecture, Head};
use models::{Decoder, Port, Site};

use crate::quantize::fake_quant::{FakeQuant, Kept};
use crate::quantize::grid::{Convention, Granularity, Grid};
use crate::quantize::low_rank::LowRank;
use crate::quantize::steps::Step;
use crate::record::effective_bits::EffectiveBits;

/// Bits of a value that is not rounded.
pub const FULL: f64 = 16.0;

/// Groups in order, with the shapes of their linears, `[out, in]`.
pub type Shapes = Vec<(Site, Vec<[usize; 2]>)>;

/// Bits of a scale.
const SCALE: f64 = 16.0;

/// Bits per value of a grid, where `sharing` values have one scale and zero point.
pub fn stored(grid: Grid, sharing: usize) -> f64 {
    shared(grid, sharing, 1) / sharing as f64
}

/// Bits of `values` values on a grid with `scales` scales and zero points.
fn shared(grid: Grid, values: usize, scales: usize) -> f64 {
    let scale = match grid.convention() {
        Convention::Mxfp4 | Convention::Nvfp4 => 8.0,
        _ => SCALE,
    };
    let zero = match grid.convention() {
        convention if convention.is_symmetric() => 0.0,
        Convention::ZeroInRange | Convention::Awq => f64::from(grid.bits()),
        _ => 16.0,
    };
    f64::from(grid.bits()) * values as f64 + (scale + zero) * scales as f64
}

/// Channels of a site on a grid of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outliers {
    /// How many.
    pub count: usize,
    /// Theirs; none for 16 bits.
    pub grid: Option<Grid>,
}

impl Outliers {
    /// Bits of `rows` rows of them, a scale for each.
    fn bits(self, rows: usize) -> f64 {
        match self.grid {
            _ if self.count == 0 => 0.0,
            Some(grid) => shared(grid, rows * self.count, rows),
            None => FULL * (rows * self.count) as f64,
        }
    }
}

/// What is stored in place of a model's weights, activations, keys and values.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// The blocks' groups, and the head's behind them.
    pub groups: Vec<GroupTally>,
    /// The embedding table.
    pub embedding: WeightTally,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Parameters that are in no linear layer and not in the embedding table: norms, biases.
    pub others: u64,
    /// Key and value heads of a block.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Bits per key, by block.
    pub keys: Vec<f64>,
    /// Bits per value of the cache, by block.
    pub values: Vec<f64>,
    /// Tokens of the prefix, and then of a prompt behind it, whose keys and values are not rounded.
    pub exact_tokens: usize,
}

/// What is stored of a group of linears.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupTally {
    /// The site that it reads.
    pub site: Site,
    /// What a `keep` step has exempted.
    pub kept: Option<Kept>,
    /// Its linears, in order.
    pub linears: Vec<WeightTally>,
    /// Bits per value of the activation.
    pub activation: f64,
    /// Channels that a `keep` step puts on a grid of their own; none before it is known.
    pub outliers: Option<Outliers>,
    /// Bits of the branches beside the linears.
    pub branches: f64,
}

/// What is stored of a weight `[out, in]`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightTally {
    /// Rows: output channels.
    pub out: usize,
    /// Columns: input channels.
    pub input: usize,
    /// Bits of all that is stored of it.
    pub bits: f64,
    /// Its grid, and how many weights share a scale; `None` where it is not rounded.
    pub shared: Option<(Grid, usize)>,
}

impl WeightTally {
    fn new(out: usize, input: usize) -> Self {
        Self { out, input, bits: FULL * (out * input) as f64, shared: None }
    }

    /// Number of weights.
    pub fn count(&self) -> usize {
        self.out * self.input
    }

    /// Whether it takes other than 16 bits.
    pub fn is_rounded(&self) -> bool {
        self.bits != FULL * self.count() as f64
    }

    /// Enters a grid, beside which some of the input channels have one of their own. The last group of a row may be short.
    pub fn set(&mut self, grid: Grid, granularity: Granularity, outliers: Outliers) {
        let rest = self.input - outliers.count;
        let scales = match granularity {
            Granularity::Tensor => 1,
            Granularity::Channel | Granularity::Token => self.out,
            Granularity::Group(n) => self.out * rest.div_ceil(n),
        };
        let sharing = match granularity {
            Granularity::Tensor => self.count(),
            Granularity::Channel | Granularity::Token => self.input,
            Granularity::Group(n) => n,
        };
        self.shared = Some((grid, sharing));
        self.bits = shared(grid, self.out * rest, scales) + outliers.bits(self.out);
    }
}

impl GroupTally {
    /// Channels that its linears read.
    pub fn channels(&self) -> usize {
        self.linears.first().map_or(0, |linear| linear.input)
    }

    /// Enters the grid of the activation. A scale that all tokens share vanishes.
    pub fn set_activation(&mut self, grid: Grid, granularity: Granularity) {
        let (channels, outliers) = (self.channels(), self.outliers.unwrap_or_default());
        let rest = channels - outliers.count;
        let scales = match granularity {
            Granularity::Group(n) => rest.div_ceil(n),
            Granularity::Token => 1,
            Granularity::Tensor | Granularity::Channel => 0,
        };
        self.activation = (shared(grid, rest, scales) + outliers.bits(1)) / channels as f64;
    }
}

impl Tally {
    /// A model before any step: everything at 16 bits. `shapes` are those of its groups' linears, `[out, in]`.
    fn new(architecture: &Architecture, shapes: Shapes) -> Self {
        let (a, h, attention) = (architecture, architecture.hidden, &architecture.attention);
        let group = |(site, shapes): (Site, Vec<[usize; 2]>)| GroupTally {
            site,
            kept: None,
            linears: shapes.into_iter().map(|[out, input]| WeightTally::new(out, input)).collect(),
            activation: FULL,
            outliers: None,
            branches: 0.0,
        };
        let groups: Vec<GroupTally> = shapes.into_iter().map(group).collect();
        let tied = a.head == Head::Tied;
        let embedding = WeightTally::new(a.vocabulary, h);
        let blocks: usize = groups.iter().flat_map(|group| &group.linears).map(WeightTally::count).sum();
        let tables = if tied { 0 } else { embedding.count() };
        let others = a.parameters().saturating_sub((blocks + tables) as u64);
        Self {
            groups,
            embedding,
            tied,
            others,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            keys: vec![FULL; a.layers],
            values: vec![FULL; a.layers],
            exact_tokens: 0,
        }
    }

    /// Lets the steps of a recipe enter what they store.
    fn enter(&mut self, steps: &[Step]) {
        steps.iter().for_each(|step| step.method().store(self));
    }

    /// The means.
    fn means(&self) -> EffectiveBits {
        let (head, blocks): (Vec<&GroupTally>, Vec<&GroupTally>) =
            self.groups.iter().partition(|group| group.site.port == Port::HeadIn);
        let sum = |weights: &[&WeightTally]| -> (f64, f64) {
            (weights.iter().map(|w| w.bits).sum(), weights.iter().map(|w| w.count() as f64).sum())
        };
        let weights: Vec<&WeightTally> = blocks.iter().flat_map(|group| &group.linears).collect();
        let (weight_bits, weight_count) = sum(&weights);
        let weight_bits = weight_bits + blocks.iter().map(|group| group.branches).sum::<f64>();
        let mut tables: Vec<&WeightTally> = head.iter().flat_map(|group| &group.linears).collect();
        let one = self.tied && tables.iter().all(|table| table.bits == self.embedding.bits);
        if !one {
            tables.push(&self.embedding);
        }
        let (table_bits, _) = sum(&tables);
        // What is stored twice is divided by the parameters of the checkpoint, which holds it once.
        let in_checkpoint = if self.tied { 1.0 } else { 2.0 } * self.embedding.count() as f64;
        let others = self.others as f64;
        let activations = blocks.iter().map(|group| (group.activation, group.channels() as f64));
        let (read, channels) = activations.fold((0.0, 0.0), |(b, n), (bits, c)| (b + bits * c, n + c));
        let cached: f64 = self.keys.iter().chain(&self.values).sum();
        EffectiveBits {
            weights: weight_bits / weight_count,
            parameters: (weight_bits + table_bits + FULL * others) / (weight_count + in_checkpoint + others),
            activations: read / channels,
            cache: cached / (self.keys.len() + self.values.len()) as f64,
            exact_tokens: self.exact_tokens as u64,
        }
    }
}

/// The effective bits of a recipe that has been carried out on a decoder, and of which `tap` is what executes it.
pub fn of(steps: &[Step], decoder: &Decoder, tap: &FakeQuant) -> EffectiveBits {
    let prefix = decoder.prefix.as_ref().map_or(0, |prefix| prefix.tokens.len());
    of_shapes(steps, &decoder.architecture, shapes_in(decoder), tap, prefix)
}

/// As [`of`], where the decoder's parts have gone by: the shapes of their groups, and the tokens of their prefix.
pub fn of_shapes(
    steps: &[Step],
    architecture: &Architecture,
    shapes: Shapes,
    tap: &FakeQuant,
    prefix: usize,
) -> EffectiveBits {
    let mut tally = tally_of_shapes(steps, architecture, shapes, tap);
    tally.exact_tokens += prefix;
    tally.means()
}

/// What is stored of a decoder on which a recipe has been carried out, group by group.
pub fn tally(steps: &[Step], decoder: &Decoder, tap: &FakeQuant) -> Tally {
    tally_of_shapes(steps, &decoder.architecture, shapes_in(decoder), tap)
}

fn tally_of_shapes(steps: &[Step], architecture: &Architecture, shapes: Shapes, tap: &FakeQuant) -> Tally {
    let mut tally = Tally::new(architecture, shapes);
    for group in &mut tally.groups {
        group.kept = tap.kept.get(&group.site).copied();
        let layout = tap.layouts.get(&group.site);
        let outliers = layout.map(|layout| Outliers { count: layout.kept, grid: layout.grid });
        group.outliers = Some(outliers.unwrap_or_default());
    }
    tally.enter(steps);
    for group in &mut tally.groups {
        let branches = tap.low_rank.get(&group.site).into_iter().flatten();
        group.branches = FULL * branches.map(LowRank::parameters).sum::<usize>() as f64;
    }
    tally
}

/// The effective bits of a recipe as far as it says them itself: nothing exempted, no prefix, every branch there.
pub fn planned(steps: &[Step], architecture: &Architecture) -> EffectiveBits {
    let mut tally = Tally::new(architecture, architecture.groups());
    tally.enter(steps);
    tally.means()
}

/// The groups of a decoder with the shapes of their linears.
pub fn shapes_in(decoder: &Decoder) -> Shapes {
    let groups = decoder.groups().into_iter();
    groups.map(|(site, group)| (site, group.linears.iter().map(|l| l.weight.dims()).collect())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use burn::tensor::{Device, Tensor};
    use models::Checkpoint;
    use serde_json::{Value, json};

    use super::*;
    use crate::quantize::solve::layout::Layout;

    fn step(name: &str, keys: Value) -> Step {
        method(name, None, keys)
    }

    fn method(name: &str, method: Option<&str>, keys: Value) -> Step {
        let step = Step::read(name, method, keys).expect("a registered step").expect("its keys");
        step.method().check().unwrap();
        step.resolved()
    }

    /// The means of a recipe on the built-in model: 5 blocks, hidden 128, 4 heads of 32 on 2 key heads, 384 between up and
    /// down.
    fn bits(steps: &[Step]) -> EffectiveBits {
        planned(steps, architecture().architecture())
    }

    /// Rows of 128 in a block: q, k, v, o, gate, up.
    const NARROW: f64 = 128.0 + 64.0 + 64.0 + 128.0 + 384.0 + 384.0;

    fn architecture() -> Checkpoint {
        Checkpoint::builtin("builtin/tiny-llama").unwrap().unwrap()
    }

    #[test]
    fn by_hand() {
        let weights = |keys: Value| bits(&[step("weights", keys)]).weights;
        assert_eq!(weights(json!({ "bits": 4, "granularity": "group(64)" })), 4.25);
        // A zero point of 4 bits in each group, too.
        let asymmetric = json!({ "bits": 4, "granularity": "group(64)", "symmetric": false });
        assert_eq!(weights(asymmetric), 4.0 + 20.0 / 64.0);
        let omniquant =
            json!({ "bits": 4, "granularity": "group(64)", "symmetric": false, "convention": "omniquant" });
        assert_eq!(weights(omniquant), 4.5);
        assert_eq!(weights(json!({ "bits": 16 })), 16.0);
        assert_eq!(bits(&[]), EffectiveBits { weights: 16.0, ..bits(&[]) });
        assert!(!bits(&[]).is_reduced());

        let cache = |keys: Value| bits(&[step("kv", keys)]);
        let a = architecture();
        let head_dim = a.architecture().attention.head_dim as f64;
        let heads = a.architecture().attention.kv_heads as f64;
        assert_eq!(cache(json!({ "bits": 4 })).cache, 4.0 + 20.0 / head_dim);
        assert_eq!(cache(json!({ "bits": 4, "symmetric": true })).cache, 4.0 + 16.0 / head_dim);
        assert_eq!(
            cache(json!({ "bits": 2, "granularity": "token" })).cache,
            2.0 + 18.0 / (head_dim * heads)
        );
        assert_eq!(cache(json!({ "bits": 2, "granularity": "channel" })).cache, 2.0);
        let keys_alone = cache(json!({ "key-bits": 2, "value-bits": 16, "granularity": "group(8)" }));
        assert_eq!(keys_alone.cache, (2.0 + 18.0 / 8.0 + 16.0) / 2.0);
        let prompt = cache(json!({ "bits": 4, "granularity": "channel", "prompt": 4 }));
        assert_eq!((prompt.exact_tokens, prompt.cache_at(16)), (4, (4.0 * 16.0 + 12.0 * 4.0) / 16.0));

        let activations = |keys: Value| bits(&[step("activations", keys)]).activations;
        assert_eq!(activations(json!({ "bits": 8, "granularity": "tensor" })), 8.0);
        assert_eq!(activations(json!({ "bits": 4, "granularity": "group(32)" })), 4.5);
    }

    #[test]
    fn means_weigh_by_values_and_exemptions_count_full() {
        let mut decoder = architecture().load(&Device::flex()).unwrap();
        decoder.set_prefix(&[0, 7, 5]);
        let a = &decoder.architecture;
        let (h, f) = (a.hidden as f64, a.mlp.intermediate as f64);
        let steps = [
            step("weights", json!({ "bits": 4, "granularity": "tensor", "sites": ["down_in"] })),
            step("activations", json!({ "bits": 8, "granularity": "tensor" })),
        ];
        let group = |port| Site::block(0, port);
        let kept = HashMap::from([
            (group(Port::DownIn), Kept::ActivationAndWeights),
            (group(Port::AttnIn), Kept::Activation),
        ]);
        let mut tap = FakeQuant::default();
        tap.kept = kept;
        let found = of(&steps, &decoder, &tap);
        let (layers, q) = (a.layers as f64, (a.attention.heads * a.attention.head_dim) as f64);
        let kv = (a.attention.kv_heads * a.attention.head_dim) as f64;
        let block = h * (q + 2.0 * kv) + h * q + 3.0 * h * f;
        let rounded = (layers - 1.0) * h * f;
        let scales = (layers - 1.0) * 16.0;
        let expected = (16.0 * (layers * block - rounded) + 4.0 * rounded + scales) / (layers * block);
        assert!((found.weights - expected).abs() < 1e-12, "{} {expected}", found.weights);
        let read = layers * (h + q + h + f);
        let expected = (8.0 * (read - h - f) + 16.0 * (h + f)) / read;
        assert!((found.activations - expected).abs() < 1e-12, "{} {expected}", found.activations);
        assert_eq!((found.cache, found.exact_tokens), (16.0, 3));
        let all = a.parameters() as f64;
        let expected = (16.0 * (all - rounded) + 4.0 * rounded + scales) / all;
        assert!((found.parameters - expected).abs() < 1e-12, "{} {expected}", found.parameters);
    }

    #[test]
    fn a_tied_head_is_stored_once_unless_the_table_is_rounded_alone() {
        let a = architecture();
        let mut a = a.architecture().clone();
        let steps = [step(
            "weights",
            json!({ "bits": 8, "granularity": "tensor", "sites": ["o_in"], "embeddings": true }),
        )];
        let table = (a.vocabulary * a.hidden) as f64;
        let rest = |a: &Architecture| {
            let o = (a.layers * a.hidden * a.attention.heads * a.attention.head_dim) as f64;
            8.0 * o + 16.0 * a.layers as f64 + 8.0 * table + 16.0 + 16.0 * (a.parameters() as f64 - o - table)
        };
        for head in [Head::Tied, Head::Untied] {
            a.head = head;
            // A tied head in 16 bits is a second table.
            let second = if head == Head::Tied { 16.0 * table } else { 0.0 };
            let expected = (rest(&a) + second) / a.parameters() as f64;
            let found = planned(&steps, &a).parameters;
            assert!((found - expected).abs() < 1e-12, "{head:?}: {found} {expected}");
        }
    }

    #[test]
    fn formats_have_scales_of_their_own() {
        let weights = |keys: Value| bits(&[step("weights", keys)]).weights;
        let mxfp4 = json!({ "bits": 4, "granularity": "group(32)", "convention": "mxfp4" });
        assert_eq!(weights(mxfp4), 4.0 + 8.0 / 32.0);
        let nvfp4 = json!({ "bits": 4, "granularity": "group(16)", "convention": "nvfp4" });
        assert_eq!(weights(nvfp4), 4.5);
        // 128 and 384 channels in groups of 100: 2 and 4 scales a row.
        let ragged = weights(json!({ "bits": 4, "granularity": "group(100)", "ragged": true }));
        let (narrow, wide) = (NARROW * 128.0, 384.0 * 128.0);
        let expected = 4.0 + 16.0 * (narrow * 2.0 / 128.0 + wide * 4.0 / 384.0) / (narrow + wide);
        assert!((ragged - expected).abs() < 1e-12, "{ragged} {expected}");
    }

    #[test]
    fn outliers_count_at_their_own_bits() {
        let steps = [
            method("keep", Some("channels"), json!({ "count": 32 })),
            step("weights", json!({ "bits": 4, "granularity": "group(32)" })),
            step("activations", json!({ "bits": 4, "granularity": "group(32)" })),
        ];
        let found = bits(&steps);
        // Of a row of 128: 96 at 4 bits in 3 groups, 32 at 8 bits with a scale; of 384: 352 in 11 groups, and 32.
        let row = |rest: f64| (4.0 * rest + 16.0 * rest / 32.0) + (8.0 * 32.0 + 16.0);
        let (narrow, wide) = (NARROW, 128.0);
        let weights = (narrow * row(96.0) + wide * row(352.0)) / (narrow * 128.0 + wide * 384.0);
        assert!((found.weights - weights).abs() < 1e-12, "{} {weights}", found.weights);
        let read = (3.0 * row(96.0) + row(352.0)) / (3.0 * 128.0 + 384.0);
        assert!((found.activations - read).abs() < 1e-12, "{} {read}", found.activations);

        // What was carried out counts, not what was planned: here one site has an order, and its outliers stay whole.
        let decoder = architecture().load(&Device::flex()).unwrap();
        let importance: Vec<f64> = (0..128).map(f64::from).collect();
        let layout = Arc::new(Layout::by_importance(&importance, 16, 16));
        let mut tap = FakeQuant::default();
        tap.layouts.insert(Site::block(0, Port::OIn), layout);
        let found = of(&steps, &decoder, &tap);
        let plain = planned(&steps[1..], &decoder.architecture);
        let more = 128.0 * 16.0 * (16.0 - 4.0);
        let count = 5.0 * (narrow * 128.0 + wide * 384.0);
        // 112 channels make 4 groups, as 128 do.
        assert!((found.weights - plain.weights - more / count).abs() < 1e-12, "{}", found.weights);
    }

    #[test]
    fn branches_count_as_far_as_they_are_there() {
        let tune = json!({ "components": ["low-rank"], "rank": 8 });
        let weights = step("weights", json!({ "bits": 4, "granularity": "group(64)" }));
        let steps = [weights, method("tune", Some("bisup-style"), tune)];
        // By block: 2 of 128 × 128, 2 of 64 × 128, 3 of 128 × 384.
        let count = 2.0 * 128.0 * 128.0 + 2.0 * 64.0 * 128.0 + 3.0 * 128.0 * 384.0;
        let held = 8.0 * (2.0 * 256.0 + 2.0 * 192.0 + 3.0 * 512.0);
        let found = bits(&steps).weights;
        assert!((found - 4.25 - 16.0 * held / count).abs() < 1e-12, "{found}");
        let decoder = architecture().load(&Device::flex()).unwrap();
        let device = Device::flex();
        let branch = LowRank { down: Tensor::zeros([2, 128], &device), up: Tensor::zeros([128, 2], &device) };
        let mut tap = FakeQuant::default();
        tap.low_rank.insert(Site::block(1, Port::OIn), vec![branch]);
        let found = of(&steps, &decoder, &tap).weights;
        assert!((found - 4.25 - 16.0 * 512.0 / (5.0 * count)).abs() < 1e-12, "{found}");
    }

    #[test]
    fn the_shapes_are_those_of_the_decoder() {
        for name in ["builtin/tiny-llama", "builtin/tiny-llama-spiky"] {
            let checkpoint = Checkpoint::builtin(name).unwrap().unwrap();
            let decoder = checkpoint.load(&Device::flex()).unwrap();
            assert_eq!(checkpoint.architecture().groups(), shapes_in(&decoder), "{name}");
        }
    }
}
