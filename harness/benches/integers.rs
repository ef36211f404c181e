//! Linear layers at the widths of SmolLM2-135M: floating point, rounding in floating point, and integers, with the products
//! of `rten-gemm` beside them. `cargo bench --bench integers`; `examples/integer_cost` takes ratios in one run.

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use harness::quantize::fake_quant::{ActivationRule, ScaleSource};
use harness::quantize::grid::{Convention, Granularity, Grid};
use harness::quantize::integer::activation::Plan;
use harness::quantize::integer::kernel::Kernel;
use harness::quantize::integer::product;
use harness::quantize::integer::segments::{between, shares};
use harness::quantize::integer::weights::PackedWeight;
use harness::quantize::rounding::{round_activation, round_weight};
use models::Linear;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;

const TOKENS: usize = 512;

fn linears(criterion: &mut Criterion) {
    let device = Device::flex();
    for (channels, out) in [(576, 576), (576, 192), (576, 1536), (1536, 576)] {
        let mut group = criterion.benchmark_group(format!("linear {channels}→{out}, {TOKENS} tokens"));
        group.throughput(Throughput::Elements(2 * TOKENS as u64 * (channels * out) as u64));
        let x = Tensor::<3>::random([1, TOKENS, channels], Distribution::Normal(0.0, 1.0), &device);
        let weight = Tensor::<2>::random([out, channels], Distribution::Normal(0.0, 0.04), &device);
        let grid = Grid::new(8, Convention::Absmax);
        let weight = round_weight("w", weight, grid, Granularity::Channel, 1.0).expect("rows are whole");
        let linear = Linear::new(String::new(), weight.clone(), None);
        group.bench_function("f32", |bench| {
            bench.iter(|| black_box(linear.forward(x.clone().reshape([TOKENS, channels]))).dims());
        });
        let rule =
            ActivationRule { grid, granularity: Granularity::Token, clip: 1.0, scale: ScaleSource::Dynamic };
        group.bench_function("fake", |bench| {
            bench.iter(|| {
                let x = round_activation(x.clone(), &rule).reshape([TOKENS, channels]);
                black_box(linear.forward(x)).dims()
            });
        });
        let values: Vec<f32> = x.to_data().try_to_vec().expect("f32");
        let order: Vec<usize> = (0..channels).collect();
        let weights: Vec<f32> = weight.to_data().try_to_vec().expect("f32");
        for [of_weights, of_tokens] in [
            [Granularity::Channel, Granularity::Token],
            [Granularity::Channel, Granularity::Tensor],
            [Granularity::Channel, Granularity::Group(64)],
        ] {
            let rule = ActivationRule { granularity: of_tokens, ..rule };
            let shares_of_weights = shares(of_weights, channels, None);
            let shares_of_tokens = shares(of_tokens, channels, None);
            let segments = between(&shares_of_weights, &shares_of_tokens, 0);
            let packed =
                PackedWeight::read(&weights, &order, &shares_of_weights, &segments, 8).expect("codes");
            let plan = Plan { rule, layout: None, shares: shares_of_tokens, segments, with_sums: false };
            group.bench_function(BenchmarkId::new("integers", of_tokens), |bench| {
                bench.iter(|| {
                    let codes = plan.encode(&values, TOKENS, channels);
                    black_box(product::multiply(&Kernel::best(), &codes, &packed, &plan.segments, None)).len()
                });
            });
        }
        rten(&mut group, &values, &weights, [channels, out]);
        group.finish();
    }
}

fn rten(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    values: &[f32],
    weights: &[f32],
    [channels, out]: [usize; 2],
) {
    let a = NdTensor::from_data([TOKENS, channels], values.to_vec());
    let b = NdTensor::from_data([out, channels], weights.to_vec());
    let executor = GemmExecutor::<f32, f32, f32>::new();
    let packed = executor.prepack_b(b.transposed());
    let mut y = vec![0.0f32; TOKENS * out];
    group.bench_function("rten-gemm f32", |bench| {
        bench.iter(|| {
            let inputs = (GemmInputA::Unpacked(a.view()), GemmInputB::Packed(&packed));
            executor.gemm(&mut y, inputs.0, inputs.1, GemmOptions::default()).expect("shapes fit");
            black_box(y[0])
        });
    });
    let a = NdTensor::from_data(
        [TOKENS, channels],
        values.iter().map(|x| (x * 20.0 + 128.0) as u8).collect::<Vec<_>>(),
    );
    let b =
        NdTensor::from_data([out, channels], weights.iter().map(|w| (w * 500.0) as i8).collect::<Vec<_>>());
    let executor = GemmExecutor::<u8, i8, i32>::new();
    let packed = executor.prepack_b(b.transposed());
    let mut y = vec![0i32; TOKENS * out];
    // Products alone: codes are given, and sums are not scaled.
    group.bench_function("rten-gemm u8·i8", |bench| {
        bench.iter(|| {
            let inputs = (GemmInputA::Unpacked(a.view()), GemmInputB::Packed(&packed));
            executor.gemm(&mut y, inputs.0, inputs.1, GemmOptions::default()).expect("shapes fit");
            black_box(y[0])
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = linears
}
criterion_main!(benches);
