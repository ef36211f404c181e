//! Fits the directions of `builtin/tiny-llama-spiky`, plants the spikes and measures them:
//! `cargo run --release -p models --example plant_spikes [STRENGTH]`.
//!
//! Run it after `train_tiny_llama`, and build again: it reads the embedded checkpoint. It overwrites
//! `assets/tiny-llama/spikes.safetensors` and prints what `docs/builtin-model.md` reports. What is planted, and why it
//! works, stands in [`models::builtin::spikes`]; how the directions are fitted, here.
#![allow(clippy::print_stdout)]

#[path = "plant_spikes/fit.rs"]
mod fit;
#[path = "plant_spikes/measure.rs"]
mod measure;

use std::{env, error::Error, fs, path::Path};

use burn::tensor::{Device, Tensor};
use models::{
    Checkpoint, Decoder, Group, Mlp, Port, Site, Tap,
    builtin::{self, spikes},
    stories, token_tensor,
};
use safetensors::{Dtype, tensor::TensorView};

use fit::Matrix;

/// Whatever went wrong, for the reader of the terminal.
/// What can go wrong is printed and ends the program.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Windows of the calibration text the directions are fitted on.
const WINDOWS: usize = 180;
/// Length of a window: BOS and the text.
pub const LENGTH: usize = 256;
/// Stories to ask about, one question each.
const QUESTIONS: usize = 100;
/// What w·x should be, at most, where nothing spikes.
const QUIET: f64 = -0.1;
/// How much staying quiet weighs, all tokens together, against spiking.
const QUIET_WEIGHT: f64 = 30.0;

fn main() -> Result<()> {
    let strength = match env::args().nth(1) {
        Some(strength) => strength.parse()?,
        None => spikes::STRENGTH,
    };
    let device = Device::flex();
    let name = "builtin/tiny-llama";
    let checkpoint = Checkpoint::builtin(name).ok_or("the built-in model is not there")??;
    let files = builtin::files(name).ok_or("the built-in model is not there")?;
    let tokenizer = checkpoint.tokenizer();
    let spikes::Tokens { bos, stop } = builtin::SPIKING_TOKENS;
    let windows = |text| -> Result<Vec<Vec<u32>>> {
        let tokens = tokenizer.encode(builtin::text(text).ok_or("the built-in text is not there")?)?;
        Ok(tokens.chunks_exact(LENGTH - 1).map(|chunk| [&[bos], chunk].concat()).collect())
    };
    let mut calibration = windows("builtin/stories-calibration")?;
    calibration.truncate(WINDOWS);
    let held_out = windows("builtin/stories-held-out")?;

    let mut directions: Vec<(String, Vec<f32>)> = Vec::new();
    let mut decoder = checkpoint.load(&device)?;
    fit_marks(&mut decoder, &calibration, &mut directions)?;
    let matched = planted(&files, &directions, strength, &device)?;
    fit_spikes(matched, &calibration, stop, &mut directions)?;

    let asset = to_safetensors(&directions)?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-llama/spikes.safetensors");
    fs::write(&path, &asset)?;
    println!("assets/tiny-llama/spikes.safetensors: {} bytes, strength {strength}", asset.len());

    let spiky = planted(&files, &directions, strength, &device)?;
    measure::spikes(spiky.clone(), &held_out, stop)?;
    let questions: Vec<_> = stories::stories(stories::QUESTION_SEED).take(QUESTIONS).collect();
    for (name, decoder) in [("tiny-llama", &decoder), ("tiny-llama-spiky", &spiky)] {
        let right = measure::right_answers(decoder.clone(), tokenizer, bos, &questions)?;
        println!("{name}: {right} of {QUESTIONS} questions answered right");
    }
    measure::perplexities(decoder, spiky, &held_out)
}

/// Three orthogonal directions of the residual stream that carry little and are read little: of every block, the
/// second moment of the stream before its feed-forward part, and what gate, up, q, k, v and the output head make of a
/// unit step, each divided by its trace.
fn fit_marks(
    decoder: &mut Decoder,
    calibration: &[Vec<u32>],
    directions: &mut Vec<(String, Vec<f32>)>,
) -> Result<()> {
    let norm = |weight: &Tensor<1>| -> Result<Vec<f64>> {
        Ok(weight.to_data().try_to_vec::<f32>()?.into_iter().map(f64::from).collect())
    };
    let mut cost = gain(&decoder.head, &norm(&decoder.final_norm.weight)?)?;
    for layer in 0..decoder.blocks.len() {
        let stream = record(decoder, calibration, &[Site::block(layer, Port::MlpIn)])?.remove(0);
        let block = &decoder.blocks[layer];
        let Mlp::Gated { norm: mlp_norm, gate_up, down: _, activation: _ } = &block.mlp else {
            return Err("the built-in model has a gated feed-forward part".into());
        };
        let (attn, mlp) = (norm(&block.attn_norm.weight)?, norm(&mlp_norm.weight)?);
        let mut moment = stream.unscaled(&mlp).gram();
        moment.normalise();
        cost.add(&moment);
        cost.add(&gain(gate_up, &mlp)?);
        cost.add(&gain(&block.qkv, &attn)?);
    }
    cost.normalise();
    for name in ["flag", "stop", "bos"] {
        let direction = cost.least_direction()?;
        println!(
            "{name}: {:.4} of the mean direction's cost",
            cost.along(&direction) * direction.len() as f64
        );
        cost.exclude(&direction);
        directions.push((name.into(), direction.iter().map(|&v| v as f32).collect()));
    }
    Ok(())
}

/// Σ (W·diag(scale))ᵀ(W·diag(scale)) over the linears of a group, with trace 1.
fn gain(group: &Group, scale: &[f64]) -> Result<Matrix> {
    let mut sum: Option<Matrix> = None;
    for linear in &group.linears {
        let [_, columns] = linear.weight.dims();
        let values = linear.weight.to_data().try_to_vec::<f32>()?;
        let values = values.iter().enumerate().map(|(i, &v)| f64::from(v) * scale[i % columns]).collect();
        let gram = Matrix { columns, values }.gram();
        match &mut sum {
            Some(sum) => sum.add(&gram),
            None => sum = Some(gram),
        }
    }
    let mut sum = sum.ok_or("a group has linears")?;
    sum.normalise();
    Ok(sum)
}

/// For every spiking block, the neuron to rebuild and the functional that its gate and up will read.
fn fit_spikes(
    mut decoder: Decoder,
    calibration: &[Vec<u32>],
    stop: u32,
    directions: &mut Vec<(String, Vec<f32>)>,
) -> Result<()> {
    let expected = measure::expected(calibration, stop);
    for block in spikes::SPIKING_BLOCKS {
        let sites = [Site::block(block, Port::MlpIn), Site::block(block, Port::DownIn)];
        let mut recorded = record(&mut decoder, calibration, &sites)?;
        let (neurons, inputs) = (recorded.remove(1), recorded.remove(0));

        let groups = decoder.groups();
        let (_, down) = groups.iter().find(|(site, _)| *site == sites[1]).ok_or("a block has a down")?;
        let down = &down.linears[0].weight;
        let lengths = down.clone().square().sum_dim(0).sqrt().to_data().try_to_vec::<f32>()?;
        let mut use_of = vec![0.0; neurons.columns];
        for row in neurons.rows() {
            use_of.iter_mut().zip(row).zip(&lengths).for_each(|((u, v), &l)| *u += v.abs() * f64::from(l));
        }
        let least = (0..use_of.len())
            .min_by(|&a, &b| use_of[a].total_cmp(&use_of[b]))
            .ok_or("a block has neurons")?;
        let mean = use_of.iter().sum::<f64>() / use_of.len() as f64;

        let spikes = expected.iter().filter(|&&e| e).count() as f64;
        let low = QUIET_WEIGHT * spikes / (expected.len() as f64 - spikes);
        let direction = inputs.separate(&expected, QUIET, low, 1e-3, 30)?;
        let of = inputs.times(&direction);
        let part =
            |spiking: bool| of.iter().zip(&expected).filter(move |(_, e)| **e == spiking).map(|(v, _)| *v);
        let ((low, high), (quiet, loud)) = (fit::range(part(true)), fit::range(part(false)));
        println!(
            "block {block}: neuron {least} (use {:.3} of the mean), w.x {low:.3} to {high:.3} at spikes, \
             {quiet:.3} to {loud:.3} elsewhere",
            use_of[least] / mean
        );
        directions.push((format!("spike.{block}"), direction));
        directions.push((format!("neuron.{block}"), vec![least as f32]));
    }
    Ok(())
}

/// What passes through `sites`, one row per token, in f64.
fn record(decoder: &mut Decoder, sequences: &[Vec<u32>], sites: &[Site]) -> Result<Vec<Matrix>> {
    let mut tap = Record { sites: sites.to_vec(), inputs: vec![Vec::new(); sites.len()] };
    for batch in sequences.chunks(16) {
        let tokens = token_tensor(batch, &decoder.device());
        let hidden = decoder.hidden(tokens, &mut tap);
        hidden.device().sync()?;
    }
    let mut matrices = Vec::new();
    for inputs in tap.inputs {
        let columns = inputs.first().map_or(0, |x| x.dims()[2]);
        let mut values = Vec::new();
        for x in inputs {
            values.extend(x.try_into_data()?.try_to_vec::<f32>()?.into_iter().map(f64::from));
        }
        matrices.push(Matrix { columns, values });
    }
    Ok(matrices)
}

struct Record {
    sites: Vec<Site>,
    inputs: Vec<Vec<Tensor<3>>>,
}

impl Tap for Record {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        if let Some(index) = self.sites.iter().position(|&wanted| wanted == site) {
            self.inputs[index].push(x.clone());
        }
        group.forward(x)
    }
}

/// The checkpoint with these directions applied, on the device.
fn planted(
    files: &builtin::Files,
    directions: &[(String, Vec<f32>)],
    strength: f32,
    device: &Device,
) -> Result<Decoder> {
    let (config, weights) = spikes::plant(
        &files.config,
        &files.weights,
        &to_safetensors(directions)?,
        builtin::SPIKING_TOKENS,
        strength,
    )?;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("config.json"), config)?;
    fs::write(folder.path().join("model.safetensors"), weights)?;
    fs::write(folder.path().join("tokenizer.json"), &files.tokenizer)?;
    fs::write(folder.path().join("tokenizer_config.json"), &files.tokenizer_config)?;
    Ok(Checkpoint::open(folder.path())?.load(device)?)
}

fn to_safetensors(directions: &[(String, Vec<f32>)]) -> Result<Vec<u8>> {
    let bytes: Vec<Vec<u8>> =
        directions.iter().map(|(_, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let mut views = Vec::new();
    for ((name, values), bytes) in directions.iter().zip(&bytes) {
        views.push((name.as_str(), TensorView::new(Dtype::F32, vec![values.len()], bytes)?));
    }
    Ok(safetensors::serialize(views, None)?)
}
