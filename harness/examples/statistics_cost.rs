//! What statistics cost: a pass with all of them but the second moments against a plain one, and its memory.
//!
//!     statistics_cost MODEL_DIR TEXT [SAMPLES [LENGTH]]       time: medians of 5 rounds
//!     statistics_cost MODEL_DIR TEXT memory SAMPLES [LENGTH]  peak memory of one pass; run it for several SAMPLES
//!
//! 32 samples of 512 tokens unless said otherwise.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use harness::calibrate::observe::{Options, TOKENS_PER_BATCH, collect};
use harness::data::BosPolicy;
use harness::data::window::windows;
use harness::record::execution::peak_memory;
use models::{Checkpoint, Decoder, Off, token_tensor};

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, rest @ ..] = &arguments[..] else {
        return Err("usage: statistics_cost MODEL_DIR TEXT [memory] [SAMPLES [LENGTH]]".into());
    };
    let (memory, rest) = match rest {
        [word, rest @ ..] if word == "memory" => (true, rest),
        rest => (false, rest),
    };
    let number = |i: usize, default: usize| rest.get(i).map_or(Ok(default), |n| n.parse());
    let (samples, length) = (number(0, 32)?, number(1, 512)?);

    let checkpoint = Checkpoint::open(Path::new(model))?;
    let tokenizer = checkpoint.tokenizer();
    let ids = tokenizer.encode(&std::fs::read_to_string(text)?)?;
    let samples = windows(&ids, tokenizer.bos(), BosPolicy::Every, length, Some(samples))?;
    let mut decoder = checkpoint.load(&Device::flex())?;
    let options = Options::default();

    if memory {
        let before = peak_memory();
        plain(&mut decoder, &samples[..1]);
        let forward = peak_memory();
        collect(&mut decoder, &samples, false, &options, &mut |_, _| true)?;
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "{} samples of {length}: peak {} MiB; {} MiB with the model loaded, {} MiB after a plain pass of one sample",
            samples.len(),
            mib(peak_memory()),
            mib(before),
            mib(forward)
        );
        return Ok(());
    }
    plain(&mut decoder, &samples[..1]);
    let batch = (TOKENS_PER_BATCH / length).max(1);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // Batch by batch in turn, so that what else the machine does falls on both alike.
        let (mut plainly, mut observed) = (0.0, 0.0);
        for batch in samples.chunks(batch) {
            plainly += seconds(|| plain(&mut decoder, batch));
            observed += seconds(|| {
                collect(&mut decoder, batch, false, &options, &mut |_, _| true).expect("a sound model");
            });
        }
        println!("plain {plainly:.2} s, observed {observed:.2} s");
        without.push(plainly);
        with.push(observed);
    }
    without.sort_by(f64::total_cmp);
    with.sort_by(f64::total_cmp);
    let (without, with) = (without[ROUNDS / 2], with[ROUNDS / 2]);
    println!(
        "{} samples of {length}, medians: plain {without:.2} s, observed {with:.2} s, ratio {:.3}",
        samples.len(),
        with / without
    );
    Ok(())
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Hidden states of the same batches as a calibration pass has, and nothing else.
fn plain(decoder: &mut Decoder, samples: &[Vec<u32>]) {
    let device = decoder.device();
    for batch in samples.chunks((TOKENS_PER_BATCH / samples[0].len()).max(1)) {
        let hidden = decoder.hidden(token_tensor(batch, &device), &mut Off);
        std::hint::black_box(hidden.into_data());
    }
}
