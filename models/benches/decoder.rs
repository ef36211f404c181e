//! The forward pass at the widths of SmolLM2-135M: its matrix products alone, one block, and one token behind a cache.
//!
//! Weights are random; only shapes matter. `cargo bench --bench decoder`.

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Int, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use models::families::Config;
use models::{Decoder, Linear, Off, token_tensor};

/// SmolLM2-135M with one block and a small vocabulary.
fn one_block() -> Decoder {
    let config = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 1, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "hidden_act": "silu",
        "tie_word_embeddings": true}"#;
    let config = Config(config.parse().expect("it is JSON"));
    let family = config.family().expect("Llama is a family");
    let architecture = (family.read)(&config).expect("a Llama");
    let device = Device::flex();
    let names = family.names;
    let mut random = |_: &str, shape: &[usize]| {
        let values = shape.iter().product::<usize>();
        Ok(Tensor::<1>::random([values], Distribution::Normal(0.0, 0.04), &device))
    };
    Decoder::from_tensors(&architecture, names, &device, &mut random)
        .expect("random weights have every shape")
}

fn tokens(count: usize) -> Tensor<2, Int> {
    let ids: Vec<u32> = (0..count as u32).map(|i| i * 7 % 256).collect();
    token_tensor(&[ids], &Device::flex())
}

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear, 512 tokens");
    let device = Device::flex();
    for (input, out) in [(576, 576), (576, 192), (576, 1536), (1536, 576)] {
        let linear =
            Linear::new(String::new(), Tensor::random([out, input], Distribution::Default, &device), None);
        let x = Tensor::<2>::random([512, input], Distribution::Default, &device);
        group.throughput(Throughput::Elements(2 * 512 * (input * out) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{input}→{out}")), |bench| {
            bench.iter(|| black_box(linear.forward(x.clone())).dims());
        });
    }
    group.finish();
}

fn block(criterion: &mut Criterion) {
    let mut decoder = one_block();
    let mut group = criterion.benchmark_group("one block");
    for length in [128, 512, 2048] {
        let tokens = tokens(length);
        group.throughput(Throughput::Elements(length as u64));
        group.bench_function(BenchmarkId::new("prefill", length), |bench| {
            bench.iter(|| black_box(decoder.hidden(tokens.clone(), &mut Off)).dims());
        });
    }
    let (_, cache) = decoder.encode(None, tokens(512), &mut Off);
    group.throughput(Throughput::Elements(1));
    group.bench_function("a token behind 512", |bench| {
        bench.iter(|| black_box(decoder.encode(Some(&cache), tokens(1), &mut Off)).0.dims());
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = products, block
}
criterion_main!(benches);
