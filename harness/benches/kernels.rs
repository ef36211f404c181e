//! Fused kernels on a device of CubeCL beside the tensor operations that they stand for, at the widths of SmolLM2-135M.
//!
//!     cargo bench --bench kernels
//!     QUANTSCOPE_DEVICE=vulkan:software cargo bench --bench kernels
//!
//! On the best device there is; without one, and without a name of a software driver, says so and measures nothing. Every round
//! waits for the device by reading one value back.

#[cfg(not(feature = "cube"))]
fn main() {}

#[cfg(feature = "cube")]
fn main() {
    on_device::run();
}

#[cfg(feature = "cube")]
mod on_device {
    use std::hint::black_box;
    use std::io::Write;

    use burn::tensor::{Device, Distribution, Tensor};
    use criterion::Criterion;
    use harness::device::{self, Choice};
    use harness::quantize::cache_rounding::{self, CacheGranularity, CacheRule};
    use harness::quantize::fake_quant::{ActivationRule, ScaleSource};
    use harness::quantize::grid::{Convention, Granularity, Grid};
    use harness::quantize::integer::device::DeviceGroup;
    use harness::quantize::integer::segments::{between, shares};
    use harness::quantize::integer::weights::rows;
    use harness::quantize::kernels;
    use harness::quantize::kernels::integers::Storage;
    use harness::quantize::rounding::{round_on_device, round_weight};
    use models::architecture::{Norm, Pairs};
    use models::hadamard::OnDevice;
    use models::{Fallback, Group, Hadamard, Linear, Normalisation, kernel};

    const TOKENS: usize = 512;
    const HIDDEN: usize = 576;
    const HEADS: usize = 3;
    const HEAD_DIM: usize = 64;

    /// Waits until a result is there.
    fn wait<const D: usize>(y: Tensor<D>) -> usize {
        let first = y.flatten::<1>(0, -1).narrow(0, 0, 1);
        black_box(first.into_data()).num_elements()
    }

    /// Measures every kernel.
    pub fn run() {
        let wanted = std::env::var("QUANTSCOPE_DEVICE").unwrap_or_else(|_| "auto".into());
        let selected = wanted.parse::<Choice>().and_then(device::select);
        let device = match selected {
            Ok(selected) if kernel::on_host(&selected.device) => {
                let _ =
                    writeln!(std::io::stderr(), "SKIPPED: no device of CubeCL; QUANTSCOPE_DEVICE names one");
                return;
            }
            Ok(selected) => {
                let _ = writeln!(std::io::stderr(), "{}", selected.name);
                selected.device
            }
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "SKIPPED: {error}");
                return;
            }
        };
        let mut criterion = Criterion::default().sample_size(20).configure_from_args();
        rounding(&mut criterion, &device);
        norms(&mut criterion, &device);
        keys(&mut criterion, &device);
        transforms(&mut criterion, &device);
        linears(&mut criterion, &device);
        criterion.final_summary();
    }

    fn normal<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
        Tensor::random(dims, Distribution::Normal(0.0, 1.0), device)
    }

    fn rounding(criterion: &mut Criterion, device: &Device) {
        let grid = Grid::new(8, Convention::Absmax);
        for (name, dims) in [
            ("round, per token", [TOKENS, HIDDEN]),
            ("round, groups of 64", [TOKENS * HIDDEN / 64, 64]),
            ("round, per tensor", [1, TOKENS * HIDDEN]),
        ] {
            let x = normal(dims, device);
            let mut group = criterion.benchmark_group(name);
            group.bench_function("fused", |bench| {
                bench.iter(|| wait(kernels::round::runs(&x, grid, 1.0).expect("a device")));
            });
            group.bench_function("plain", |bench| bench.iter(|| wait(round_on_device(x.clone(), grid, 1.0))));
            group.finish();
        }
    }

    fn norms(criterion: &mut Criterion, device: &Device) {
        let grid = Grid::new(8, Convention::Absmax);
        let rule =
            ActivationRule { grid, granularity: Granularity::Token, clip: 1.0, scale: ScaleSource::Dynamic };
        let kind = Norm::Rms { eps: 1e-5 };
        let norm = Normalisation { kind, weight: normal([HIDDEN], device), bias: None };
        let x = normal([1, TOKENS, HIDDEN], device);
        let mut group = criterion.benchmark_group("norm and round");
        group.bench_function("fused", |bench| {
            bench.iter(|| wait(kernels::norm::and_round(&x, &norm, &rule).expect("a device")));
        });
        group.bench_function("plain", |bench| {
            bench.iter(|| {
                let normed = norm.forward(x.clone()).reshape([TOKENS, HIDDEN]);
                wait(round_on_device(normed, grid, 1.0))
            });
        });
        group.finish();
    }

    fn keys(criterion: &mut Criterion, device: &Device) {
        let grid = Grid::new(4, Convention::ZeroInRange);
        let granularity = CacheGranularity::Head;
        let rule = CacheRule { grid, granularity, clip: 1.0, exact: 0, scales: Vec::new() };
        let x = normal([1, HEADS, TOKENS, HEAD_DIM], device);
        let [cos, sin] = [(); 2].map(|()| normal([TOKENS, HEAD_DIM / 2], device));
        let mut group = criterion.benchmark_group("rotary and round");
        group.bench_function("fused", |bench| {
            bench.iter(|| {
                let keys = kernels::rotary::and_round(&x, Pairs::Halves, [&cos, &sin], &rule, 0);
                wait(keys.expect("a device"))
            });
        });
        group.bench_function("one after the other", |bench| {
            bench.iter(|| {
                let turned = kernel::rotate(x.clone(), Pairs::Halves, &cos, &sin);
                wait(cache_rounding::round(turned, &rule, 0))
            });
        });
        group.finish();
    }

    fn transforms(criterion: &mut Criterion, device: &Device) {
        for width in [HIDDEN, 1536] {
            let transform = OnDevice::new(Hadamard::new(width, Fallback::BlockDiagonal, 1), device);
            let (x, dense) = (normal([1, TOKENS, width], device), normal([width, width], device));
            let mut group = criterion.benchmark_group(format!("hadamard {width}"));
            group.bench_function("butterflies", |bench| bench.iter(|| wait(transform.forward(x.clone()))));
            group.bench_function("a dense product", |bench| {
                bench.iter(|| wait(x.clone().reshape([TOKENS, width]).matmul(dense.clone())));
            });
            group.finish();
        }
    }

    /// In bytes where the device multiplies them, else in words.
    fn linears(criterion: &mut Criterion, device: &Device) {
        let storage = Storage::of(device).unwrap_or(Storage::I32);
        let grid = Grid::new(8, Convention::Absmax);
        let rule =
            ActivationRule { grid, granularity: Granularity::Token, clip: 1.0, scale: ScaleSource::Dynamic };
        for (channels, out) in [(HIDDEN, 1536), (1536, HIDDEN)] {
            let weight = round_weight("w", normal([out, channels], device), grid, Granularity::Channel, 1.0)
                .expect("rows are whole");
            let values: Vec<f32> = weight.to_data().try_to_vec().expect("f32");
            let order: Vec<usize> = (0..channels).collect();
            let whole = shares(Granularity::Channel, channels, None);
            let segments = between(&whole, &whole, 0);
            let rows = rows(&values, &order, &whole, &segments, 8).expect("codes");
            let linears = Group { linears: vec![Linear::new(String::new(), weight, None)] };
            let integers = DeviceGroup::new(storage, &rule, &segments, &linears, vec![rows]);
            let integers = integers.expect("one segment");
            let x = normal([1, TOKENS, channels], device);
            let mut group = criterion.benchmark_group(format!("linear {channels}→{out}"));
            group.bench_function(storage.name(), |bench| bench.iter(|| wait(integers.forward(&x).remove(0))));
            group.bench_function("f32, rounded before", |bench| {
                bench.iter(|| {
                    let rows = x.clone().reshape([TOKENS, channels]);
                    let rounded = kernels::round::runs(&rows, grid, 1.0).expect("a device");
                    wait(linears.linears[0].forward(rounded))
                });
            });
            group.finish();
        }
    }
}
