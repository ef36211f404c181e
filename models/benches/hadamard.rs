//! How the cost of the transform grows with its order: time per value should grow with log₂ n for powers of two, and
//! with the order of the factor elsewhere.

#![allow(missing_docs, reason = "the macro's functions have none")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use models::{Fallback, Hadamard};

/// Values of one measurement, so that every order works on as much memory.
const VALUES: usize = 1 << 20;

fn transform(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hadamard");
    let sylvester = (6..=14).map(|k| 1 << k);
    // SmolLM2-135M, Llama-2-7B, Llama-3-8B, Qwen2.5-0.5B.
    for order in sylvester.chain([576, 1536, 11008, 14336, 4864]) {
        let hadamard = Hadamard::new(order, Fallback::BlockDiagonal, 0);
        let rows = VALUES / order;
        let mut values: Vec<f32> = (0..rows * order).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        group.throughput(Throughput::Elements(values.len() as u64));
        let name = BenchmarkId::new(hadamard.construction().to_string(), order);
        group.bench_function(name, |bencher| bencher.iter(|| hadamard.apply_f32(&mut values)));
    }
    group.finish();
}

criterion_group!(benches, transform);
criterion_main!(benches);
