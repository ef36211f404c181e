//! Rounding weights and activations at the widths of SmolLM2-135M. `cargo bench --bench quantizers`.

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use harness::quantize::fake_quant::{ActivationRule, ScaleSource};
use harness::quantize::grid::{Convention, Granularity, Grid};
use harness::quantize::rounding::{round_activation, round_weight};

const TOKENS: usize = 512;
const CHANNELS: usize = 1536;
const OUT: usize = 576;

fn activations(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("activations, 512 × 1536");
    group.throughput(Throughput::Elements((TOKENS * CHANNELS) as u64));
    let x = Tensor::<3>::random([1, TOKENS, CHANNELS], Distribution::Normal(0.0, 1.0), &Device::flex());
    for granularity in [Granularity::Tensor, Granularity::Token, Granularity::Group(64)] {
        let grid = Grid::new(8, Convention::Absmax);
        let rule = ActivationRule { grid, granularity, clip: 1.0, scale: ScaleSource::Dynamic };
        group.bench_function(granularity.to_string(), |bench| {
            bench.iter(|| black_box(round_activation(x.clone(), &rule)).dims());
        });
    }
    group.finish();
}

fn weights(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("weights, 576 × 1536");
    group.throughput(Throughput::Elements((OUT * CHANNELS) as u64));
    let w = Tensor::<2>::random([OUT, CHANNELS], Distribution::Normal(0.0, 0.04), &Device::flex());
    for (granularity, convention) in
        [(Granularity::Channel, Convention::Absmax), (Granularity::Group(64), Convention::ZeroInRange)]
    {
        let grid = Grid::new(4, convention);
        group.bench_function(format!("{granularity}, {}", convention.name()), |bench| {
            bench.iter(|| black_box(round_weight("w", w.clone(), grid, granularity, 1.0)).is_ok());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = activations, weights
}
criterion_main!(benches);
