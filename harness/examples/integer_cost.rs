//! What integer execution costs and saves: the original, fake quantization and integers, by turns in one run.
//!
//!     integer_cost MODEL_DIR [TOKENS [ROUNDS]] [cpu]
//!
//! With `cpu`, times are of the processor and not of the clock, summed over threads (Linux only): what a machine that others use
//! can tell, with RAYON_NUM_THREADS=1, so that no thread waits in a loop.
//!
//! 1024 tokens in sequences of 512, medians of 5 rounds, unless said otherwise. Rows are recipes; times are of one forward
//! pass with the logits of every token, in milliseconds, and the part of it inside the blocks' linear layers, the head, and
//! the rest. Ratios are to the original.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use burn::tensor::{Device, Tensor};
use harness::experiment::Experiment;
use harness::quantize::apply;
use harness::quantize::direct::Direct;
use harness::quantize::integer::{Arithmetic, IntegerTap};
use models::{Checkpoint, Decoder, Group, Off, Site, Tap, token_tensor};

/// Steps of the recipes that are compared.
const RECIPES: [(&str, &str); 6] = [
    ("w8a8-token", r#"{ step = "weights", bits = 8 }, { step = "activations", bits = 8 }"#),
    (
        "w8a8-tensor",
        r#"{ step = "weights", bits = 8 }, { step = "activations", bits = 8, granularity = "tensor" }"#,
    ),
    (
        "w8a8-asymmetric",
        r#"{ step = "weights", bits = 8, symmetric = false }, { step = "activations", bits = 8, symmetric = false }"#,
    ),
    ("w4a8", r#"{ step = "weights", bits = 4 }, { step = "activations", bits = 8 }"#),
    ("w4a4", r#"{ step = "weights", bits = 4 }, { step = "activations", bits = 4 }"#),
    (
        "w4a4-group64",
        r#"{ step = "weights", bits = 4, granularity = "group(64)" }, { step = "activations", bits = 4, granularity = "group(64)" }"#,
    ),
];

/// Logits that are made at once.
const ROWS_OF_LOGITS: usize = 128;

/// Nanoseconds since the epoch, or of this process's threads on a processor.
fn now(cpu: bool) -> u64 {
    if !cpu {
        return SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    }
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let spent = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        spent.split_whitespace().next()?.parse::<u64>().ok()
    };
    std::fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.filter_map(of).sum())
}

/// Counts the time inside linear layers.
struct Timed<'a> {
    inner: &'a mut dyn Tap,
    cpu: bool,
    linears: u64,
    head: u64,
}

impl Tap for Timed<'_> {
    fn begin(&mut self, past: usize) {
        self.inner.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let begun = now(self.cpu);
        let y = self.inner.linears(site, x, group);
        let spent = if site == Site::HEAD { &mut self.head } else { &mut self.linears };
        *spent += now(self.cpu) - begun;
        y
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.inner.tensor(site, x)
    }
}

/// Seconds of a pass: all of it, its linear layers, its head, made as evaluations make it.
fn pass(
    decoder: &mut Decoder,
    tap: &mut dyn Tap,
    head: &Group,
    sequences: &[Vec<u32>],
    cpu: bool,
) -> [f64; 3] {
    let mut timed = Timed { inner: tap, cpu, linears: 0, head: 0 };
    let begun = now(cpu);
    let hidden = decoder.hidden(token_tensor(sequences, &decoder.device()), &mut timed);
    let [count, length, width] = hidden.dims();
    for sequence in 0..count {
        for from in (0..length).step_by(ROWS_OF_LOGITS) {
            let rows = from..length.min(from + ROWS_OF_LOGITS);
            let slice = hidden.clone().slice([sequence..sequence + 1, rows, 0..width]);
            std::hint::black_box(decoder.logits_by(head, slice, &mut timed).dims());
        }
    }
    [now(cpu) - begun, timed.linears, timed.head].map(|spent| spent as f64 * 1e-9)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let cpu = arguments.last().is_some_and(|last| last == "cpu");
    arguments.truncate(arguments.len() - usize::from(cpu));
    let [model, rest @ ..] = &arguments[..] else {
        return Err("usage: integer_cost MODEL_DIR [TOKENS [ROUNDS]] [cpu]".into());
    };
    let number = |i: usize, default: usize| rest.get(i).map_or(Ok(default), |n| n.parse());
    let (tokens, rounds) = (number(0, 1024)?, number(1, 5)?);
    let original = Checkpoint::open(Path::new(model))?.load(&Device::flex())?;
    let length = tokens.min(512);
    let vocabulary = original.architecture.vocabulary;
    let sequences: Vec<Vec<u32>> = (0..tokens.div_ceil(length))
        .map(|s| (0..length).map(|t| ((s * 7919 + t * 104_729) % vocabulary) as u32).collect())
        .collect();

    let mut contenders: Vec<(String, Decoder, Box<dyn Tap>)> =
        vec![("original".into(), original.clone(), Box::new(Off))];
    for (name, text) in RECIPES {
        let file = format!(
            "question = \"?\"\nreference = \"own\"\n[sweep]\nmodels = [\"builtin/tiny-llama\"]\nrecipes = [\"r\"]\n\
             [recipe.r]\nsteps = [{text}]\n[[evaluate]]\nmetric = \"perplexity\"\nprotocol = \"gptq\"\n\
             corpus = \"builtin/stories-held-out\"\nlength = 64\n"
        );
        let experiment = Experiment::parse(&file, Path::new("x.toml")).map_err(|fault| fault.to_string())?;
        let steps = &experiment.recipes[0].steps;
        let mut decoder = original.clone();
        let (tap, _) = apply(steps, &mut decoder, &mut Direct::default()).map_err(|(_, e)| e)?;
        let begun = Instant::now();
        let integers = IntegerTap::new(Arithmetic::Integer, steps, &decoder, tap.clone());
        println!("{name}: packed in {:.2} s: {:?}", begun.elapsed().as_secs_f64(), integers.report());
        if name == "w8a8-token" {
            contenders.push((format!("{name}, fake"), decoder.clone(), Box::new(tap)));
        }
        contenders.push((name.to_string(), decoder, Box::new(integers)));
    }
    let head = original.head.packed();
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for ((_, decoder, tap), times) in contenders.iter_mut().zip(&mut times) {
            let found = pass(decoder, tap.as_mut(), &head, &sequences, cpu);
            // The first round fetches pages and tables.
            if round > 0 {
                times.push(found);
            }
        }
    }
    println!("| recipe | all ms | ratio | linears ms | ratio | head ms | rest ms | tokens/s |");
    println!("|---|---|---|---|---|---|---|---|");
    let of = |times: &[[f64; 3]], i: usize| median(times.iter().map(|t| t[i]).collect());
    let first = [of(&times[0], 0), of(&times[0], 1)];
    for ((name, ..), times) in contenders.iter().zip(&times) {
        let [all, linears, head] = [0, 1, 2].map(|i| of(times, i));
        println!(
            "| {name} | {:.1} | {:.2} | {:.1} | {:.2} | {:.1} | {:.1} | {:.0} |",
            1e3 * all,
            first[0] / all,
            1e3 * linears,
            first[1] / linears,
            1e3 * head,
            1e3 * (all - linears - head),
            (sequences.len() * length) as f64 / all
        );
    }
    Ok(())
}
