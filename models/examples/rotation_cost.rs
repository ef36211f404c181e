//! What rotations cost: the time of rotating a model against that of a forward pass, and how much of a forward pass the
//! transforms in it take. `cargo run --release --workspace --example rotation_cost -- FOLDER [TOKENS] [ROUNDS]`

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
    let mut seconds: Vec<(String, Vec<f64>)> = Vec::new();
    let mut record = |name: &str, time: f64| match seconds.iter_mut().find(|(other, _)| other == name) {
        Some((_, times)) => times.push(time),
        None => seconds.push((name.into(), vec![time])),
    };
    let forward = |decoder: &mut Decoder| {
        let begin = Instant::now();
        let hidden = decoder.hidden(token_tensor(&[&input], &Device::flex()), &mut Off);
        let _: f32 = hidden.sum().into_scalar();
        begin.elapsed().as_secs_f64()
    };
    let mut plain = original.clone();
    for round in 0..=rounds {
        let mut measured = vec![("forward".to_string(), forward(&mut plain))];
        for (name, decoder) in &mut models {
            measured.push((format!("forward, online {name}"), forward(decoder)));
        }
        let begin = Instant::now();
        let mut rotated = original.clone();
        folded.iter().try_for_each(|change| change(&mut rotated))?;
        measured.push(("rotate residual, values".into(), begin.elapsed().as_secs_f64()));
        down(&mut rotated)?;
        across(&mut rotated)?;
        measured.push(("rotate residual, values, down_in, heads".into(), begin.elapsed().as_secs_f64()));
        // The first round warms up.
        if round > 0 {
            measured.iter().for_each(|(name, time)| record(name, *time));
        }
    }
    let median = |times: &[f64]| {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let base = median(&seconds[0].1);
    println!("{folder}: {tokens} tokens, without the head, medians of {rounds}");
    for (name, times) in &seconds {
        let (time, least) = (median(times), times.iter().copied().fold(f64::INFINITY, f64::min));
        println!(
            "{name:<45} {time:8.3} s  {:7.1} % of a forward pass  (least {least:.3} s)",
            100.0 * time / base
        );
    }
    Ok(())
}
