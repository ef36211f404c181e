//! GPTQ of one layer at the widths of SmolLM2-135M. `cargo bench --bench gptq`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use harness::calibrate::moment::SecondMoment;
use harness::quantize::grid::{Convention, Granularity, Grid};
use harness::quantize::solve::clip::Clip;
use harness::quantize::solve::gptq::{BLOCK, Fit, Prepared, Settings, round};

/// Values without a pattern that rounding could follow.
fn values(count: usize, size: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next() * size).collect()
}

fn layer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("GPTQ, 4 bits");
    group.sample_size(10);
    for [channels, out] in [[576, 576], [1536, 576]] {
        let mut moment = SecondMoment::new(channels);
        moment.add(&values(2 * channels * channels, 1.0));
        let weight = values(out * channels, 0.1);
        let shape = format!("{out} × {channels}");
        group.bench_function(BenchmarkId::new("factor", channels), |bench| {
            bench.iter(|| black_box(Prepared::new(&moment, 0.01, false, None, None)).is_solvable());
        });
        let prepared = Prepared::new(&moment, 0.01, false, None, None);
        for granularity in [Granularity::Channel, Granularity::Group(64)] {
            let fit = Fit { grid: Grid::new(4, Convention::Absmax), granularity, clip: Clip::Factor(1.0) };
            let settings = Settings { fit, static_groups: false, block: BLOCK };
            group.bench_function(BenchmarkId::new(format!("{shape}, scales per"), granularity), |bench| {
                bench.iter(|| black_box(round(&weight, &prepared, &settings, None)).loss);
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = layer
}
criterion_main!(benches);
