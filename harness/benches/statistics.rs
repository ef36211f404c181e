//! What looking at activations costs beside a plain pass, on a built-in model. `cargo bench --bench statistics`.

use burn::tensor::Device;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use harness::calibrate::observe::{Options, collect};
use models::{Checkpoint, Off, token_tensor};

const SAMPLES: usize = 8;
const LENGTH: usize = 256;

fn statistics(criterion: &mut Criterion) {
    let checkpoint = Checkpoint::builtin("builtin/tiny-llama").expect("it ships").expect("it opens");
    let device = Device::flex();
    let mut decoder = checkpoint.load(&device).expect("it loads");
    let vocabulary = decoder.architecture.vocabulary;
    let token = |i: usize| (i * 31 % vocabulary) as u32;
    let samples: Vec<Vec<u32>> =
        (0..SAMPLES).map(|sample| (0..LENGTH).map(|i| token(sample * LENGTH + i)).collect()).collect();

    let mut group = criterion.benchmark_group("calibration, 8 × 256 tokens");
    group.throughput(Throughput::Elements((SAMPLES * LENGTH) as u64));
    group.bench_function("plain pass", |bench| {
        bench.iter(|| {
            for batch in samples.chunks(4) {
                decoder.hidden(token_tensor(batch, &device), &mut Off).dims();
            }
        });
    });
    let bare = Options { residual: false, histograms: false, token_scales: 0, ..Options::default() };
    for (name, options) in [("ranges", bare), ("everything but second moments", Options::default())] {
        group.bench_function(name, |bench| {
            bench.iter(|| collect(&mut decoder, &samples, false, &options, &mut |_, _| true).is_ok());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = statistics
}
criterion_main!(benches);
