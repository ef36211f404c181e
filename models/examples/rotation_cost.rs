//! What rotations cost: the time of rotating a model against that of a forward pass, and how much of a forward pass the
//! transforms in it take. `cargo run --release --workspace --example rotation_cost -- FOLDER [TOKENS] [ROUNDS]`
//!
//! Wall time, and under Linux the processor's time too, which other programs' load changes less.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use burn::tensor::Device;
use models::{Checkpoint, Decoder, Fallback, Hadamard, Off, Port, Site, token_tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("which folder?")?;
    let tokens: usize = arguments.next().map_or(Ok(2048), |n| n.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(5), |n| n.parse())?;
    let original = Checkpoint::open(folder.as_ref())?.load(&Device::flex())?;
    let a = original.architecture.clone();
    let (heads, head_dim) = (a.attention.heads, a.attention.head_dim);
    let matrix = |order| Hadamard::new(order, Fallback::BlockDiagonal, 0);

    let residual = |decoder: &mut Decoder| decoder.rotate_residual(&matrix(a.hidden).with_random_signs(1));
    let values = |decoder: &mut Decoder| {
        (0..a.layers).try_for_each(|layer| decoder.rotate_values(layer, &matrix(head_dim)))
    };
    let down = |decoder: &mut Decoder| {
        let rotation = matrix(a.mlp.intermediate);
        (0..a.layers).try_for_each(|layer| decoder.rotate_online(Site::block(layer, Port::DownIn), &rotation))
    };
    let across = |decoder: &mut Decoder| {
        let rotation = matrix(heads).over(head_dim);
        if rotation.construction().is_identity() {
            return Ok(());
        }
        (0..a.layers).try_for_each(|layer| decoder.rotate_online(Site::block(layer, Port::OIn), &rotation))
    };
    let queries_and_keys = |decoder: &mut Decoder| {
        (0..a.layers).try_for_each(|layer| decoder.rotate_queries_and_keys(layer, &matrix(head_dim)))
    };

    // Each alone, and all of QuaRot's, each measured in every round, so that a change of the machine's load meets all.
    type Change<'a> = &'a dyn Fn(&mut Decoder) -> Result<(), models::RotateError>;
    let folded: [Change; 2] = [&residual, &values];
    let online: [(&str, Vec<Change>); 5] = [
        ("down_in", vec![&down]),
        ("heads", vec![&across]),
        ("q, k", vec![&queries_and_keys]),
        ("down_in, heads", vec![&down, &across]),
        ("all", vec![&down, &across, &queries_and_keys]),
    ];
    let mut models = Vec::new();
    for (name, changes) in &online {
        let mut decoder = original.clone();
        changes.iter().try_for_each(|change| change(&mut decoder))?;
        models.push((*name, decoder));
    }
    let input: Vec<u32> = (0..tokens).map(|i| (i * 7919 % a.vocabulary) as u32).collect();
    let mut seconds: Vec<(String, Vec<[f64; 2]>)> = Vec::new();
    let mut record = |name: &str, time: [f64; 2]| match seconds.iter_mut().find(|(other, _)| other == name) {
        Some((_, times)) => times.push(time),
        None => seconds.push((name.into(), vec![time])),
    };
    let forward = |decoder: &mut Decoder| {
        let begin = Clock::start();
        let hidden = decoder.hidden(token_tensor(&[&input], &Device::flex()), &mut Off);
        let _: f32 = hidden.sum().into_scalar();
        begin.elapsed()
    };
    let mut plain = original.clone();
    for round in 0..=rounds {
        let mut measured = vec![("forward".to_string(), forward(&mut plain))];
        for (name, decoder) in &mut models {
            measured.push((format!("forward, online {name}"), forward(decoder)));
        }
        let begin = Clock::start();
        let mut rotated = original.clone();
        folded.iter().try_for_each(|change| change(&mut rotated))?;
        measured.push(("rotate residual, values".into(), begin.elapsed()));
        down(&mut rotated)?;
        across(&mut rotated)?;
        measured.push(("rotate residual, values, down_in, heads".into(), begin.elapsed()));
        // The first round warms up.
        if round > 0 {
            measured.iter().for_each(|(name, time)| record(name, *time));
        }
    }
    let median = |times: &[[f64; 2]], which: usize| {
        let mut times: Vec<f64> = times.iter().map(|time| time[which]).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    println!("{folder}: {tokens} tokens, without the head, medians of {rounds}; share of a forward pass");
    for (name, times) in &seconds {
        let of = |which: usize| {
            let (time, base) = (median(times, which), median(&seconds[0].1, which));
            format!("{time:8.3} s {:6.1} %", 100.0 * time / base)
        };
        println!("{name:<42} wall {}   processors {}", of(0), of(1));
    }
    Ok(())
}

/// When something began.
struct Clock(Instant, f64);

impl Clock {
    fn start() -> Self {
        Self(Instant::now(), Self::processors())
    }

    /// Seconds on the wall and on all processors together.
    fn elapsed(&self) -> [f64; 2] {
        [self.0.elapsed().as_secs_f64(), Self::processors() - self.1]
    }

    /// Time that this process has used, where the system says so in ticks of 10 ms; else 0.
    fn processors() -> f64 {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let behind_name = text.rsplit(')').next().unwrap_or_default();
        let ticks = behind_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok());
        ticks.sum::<f64>() / 100.0
    }
}
