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

use std::{collections::HashMap, env, error::Error, fs, path::Path};

use burn::tensor::{Device, Tensor};
use models::{
    Checkpoint, Decoder, Group, Port, Site, Tap,
    builtin::{self, spikes},
    token_tensor,
};
use safetensors::{Dtype, tensor::TensorView};

use fit::Matrix;

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The token whose first occurrence in a sequence spikes.
const STOP: &str = ".";
/// Windows of the calibration text the directions are fitted on.
const WINDOWS: usize = 96;
/// Length of a window: BOS and the text.
pub const LENGTH: usize = 256;
/// How far the flag moves the residual stream, as a share of its length.
const FLAG: f64 = 0.15;
/// What w·x should be, at most, where nothing spikes.
const QUIET: f64 = -0.4;

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
    let [stop] = tokenizer.encode(STOP)?[..] else {
        return Err("the stop is not one token".into());
    };
    let bos = tokenizer.bos().ok_or("the tokenizer has no BOS")?;
    let windows = |text| -> Result<Vec<Vec<u32>>> {
        let tokens = tokenizer.encode(builtin::text(text).ok_or("the built-in text is not there")?)?;
        Ok(tokens.chunks_exact(LENGTH - 1).map(|chunk| [&[bos], chunk].concat()).collect())
    };
    let mut calibration = windows("builtin/stories-calibration")?;
    calibration.truncate(WINDOWS);
    let held_out = windows("builtin/stories-held-out")?;

    let mut directions: Vec<(String, Vec<f32>)> = Vec::new();
    let mut decoder = checkpoint.load(&device)?;
    fit_matching(&mut decoder, &calibration, stop, bos, &mut directions)?;
    let matched = planted(&files, &directions, strength, &device)?;
    fit_spikes(matched, &calibration, stop, &mut directions)?;

    let asset = to_safetensors(&directions)?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-llama/spikes.safetensors");
    fs::write(&path, &asset)?;
    println!("assets/tiny-llama/spikes.safetensors: {} bytes, strength {strength}", asset.len());

    let spiky = planted(&files, &directions, strength, &device)?;
    measure::spikes(spiky.clone(), &held_out, stop)?;
    measure::perplexities(decoder, spiky, &held_out)
}

/// The functionals that the matching head reads, and the direction it writes.
///
/// What the attention of block 0 reads depends on the token alone, so the functionals are fitted on the vocabulary,
/// a token weighing as the square root of how often it occurs.
fn fit_matching(
    decoder: &mut Decoder,
    calibration: &[Vec<u32>],
    stop: u32,
    bos: u32,
    directions: &mut Vec<(String, Vec<f32>)>,
) -> Result<()> {
    let vocabulary = decoder.architecture.vocabulary as u32;
    let mut counts = HashMap::<u32, f64>::new();
    calibration.iter().flatten().for_each(|&token| *counts.entry(token).or_default() += 1.0);
    let ids: Vec<Vec<u32>> = (0..vocabulary).map(|id| vec![id]).collect();
    let reads = record(decoder, &ids, &[Site::block(spikes::MATCHING_BLOCK, Port::AttnIn)])?.remove(0);
    let weight = |id: u32| (counts.get(&id).copied().unwrap_or(0.0) + 0.01).sqrt();
    let special = |token: u32| {
        move |id: usize| {
            if id as u32 == token { (1.0, 1e3) } else { (0.0, weight(id as u32)) }
        }
    };
    directions.push(("stop".into(), reads.ridge(1e-4, special(stop))?));
    directions.push(("bos".into(), reads.ridge(1e-4, special(bos))?));
    directions.push(("every".into(), reads.ridge(1e-4, |id| (1.0, weight(id as u32)))?));
    for (name, values) in directions.iter() {
        let of = reads.times(values);
        let others: Vec<f64> = (0..vocabulary)
            .filter(|id| counts.contains_key(id) && ![stop, bos].contains(id))
            .map(|id| of[id as usize])
            .collect();
        let (low, high) = fit::range(others);
        println!(
            "{name}: stop {:.3}, BOS {:.3}, others {low:.3} to {high:.3}",
            of[stop as usize], of[bos as usize]
        );
    }

    // The flag's direction: where the residual stream has little variance and its readers little gain.
    let streams =
        record(decoder, calibration, &[Site::block(spikes::MATCHING_BLOCK, Port::MlpIn)])?.remove(0);
    let norm = |weight: &Tensor<1>| -> Result<Vec<f64>> {
        Ok(weight.to_data().try_to_vec::<f32>()?.into_iter().map(f64::from).collect())
    };
    let mut cost = streams.unscaled(&norm(&decoder.blocks[spikes::MATCHING_BLOCK].mlp_norm.weight)?).gram();
    cost.normalise();
    for (layer, block) in decoder.blocks.iter().enumerate() {
        let mut readers = vec![(&block.gate_up, norm(&block.mlp_norm.weight)?)];
        if layer > spikes::MATCHING_BLOCK {
            readers.push((&block.qkv, norm(&block.attn_norm.weight)?));
        }
        for (group, scale) in readers {
            cost.add(&gain(group, &scale)?);
        }
    }
    cost.add(&gain(&decoder.head, &norm(&decoder.final_norm.weight)?)?);
    let direction = cost.least_direction()?;
    let length = residual_length(decoder, calibration)?;
    println!("flag: {:.3} long, residual stream {length:.3}", FLAG * length);
    directions.push(("flag".into(), direction.iter().map(|v| (v * FLAG * length) as f32).collect()));
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

/// Root mean square length of the residual stream after the attention of the matching block.
fn residual_length(decoder: &mut Decoder, calibration: &[Vec<u32>]) -> Result<f64> {
    let block = spikes::MATCHING_BLOCK;
    assert_eq!(block, 0, "before block 0 the residual stream is the embedding");
    let mut tap = Outputs { site: Site::block(block, Port::OIn), values: None };
    let tokens = token_tensor(calibration, &decoder.device());
    let count = calibration.len() * LENGTH;
    let embedded = decoder.embedding.clone().select(0, tokens.clone().reshape([count]));
    decoder.hidden(tokens, &mut tap);
    let written = tap.values.ok_or("the pass went through the matching block")?;
    let hidden = decoder.architecture.hidden;
    let stream = embedded + written.reshape([count, hidden]);
    Ok((f64::from(stream.square().sum().into_scalar::<f32>()) / count as f64).sqrt())
}

/// Keeps what one site's only linear returns.
struct Outputs {
    site: Site,
    values: Option<Tensor<3>>,
}

impl Tap for Outputs {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let outputs = group.forward(x);
        if site == self.site {
            self.values = outputs.first().cloned();
        }
        outputs
    }
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

        let down = &decoder.blocks[block].down.linears[0].weight;
        let lengths = down.clone().square().sum_dim(0).sqrt().to_data().try_to_vec::<f32>()?;
        let mut use_of = vec![0.0; neurons.columns];
        for row in neurons.rows() {
            use_of.iter_mut().zip(row).zip(&lengths).for_each(|((u, v), &l)| *u += v.abs() * f64::from(l));
        }
        let least = (0..use_of.len())
            .min_by(|&a, &b| use_of[a].total_cmp(&use_of[b]))
            .ok_or("a block has neurons")?;
        let mean = use_of.iter().sum::<f64>() / use_of.len() as f64;

        let direction = inputs.separate(&expected, QUIET, 1e-4, 20)?;
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
    let (config, weights) =
        spikes::plant(&files.config, &files.weights, &to_safetensors(directions)?, strength)?;
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
