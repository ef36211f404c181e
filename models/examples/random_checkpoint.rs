//! Writes a checkpoint of a published shape with random weights, to see what a model of that size takes:
//! `cargo run --release --example random_checkpoint -- FOLDER [--config FILE] [--layers N] [--seed N]`.
//!
//! The shape is Llama-2-7B's (`models/tests/configs/Llama-2-7b-hf.json`), or that of another `config.json` without biases; the weights are bfloat16,
//! uniform with standard deviation 0.02, norms 1; the shards hold at most 2 GiB each, as on the hub. The tokenizer is the
//! built-in model's, whose 512 tokens are the first of the vocabulary. The same seed writes the same bytes.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use half::bf16;
use models::architecture::{Architecture, AttentionBias, Bias, Head, MlpForm, Positions};
use models::builtin;
use models::families::Config;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

/// Bytes of a shard, at most; a tensor is never split.
const SHARD: usize = 2 << 30;

/// Values that one draw of a chunk makes.
const CHUNK: usize = 1 << 20;

/// Of a normal matrix, as Llama's `initializer_range`.
const DEVIATION: f32 = 0.02;

struct Asked {
    folder: PathBuf,
    config: PathBuf,
    layers: Option<u64>,
    seed: u64,
}

fn main() -> ExitCode {
    match asked().and_then(|asked| write(&asked)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn asked() -> Result<Asked, Box<dyn Error>> {
    let usage = "usage: random_checkpoint FOLDER [--config FILE] [--layers N] [--seed N]";
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or(usage)?);
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs/Llama-2-7b-hf.json");
    let mut asked = Asked { folder, config: published, layers: None, seed: 0 };
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or(usage)?;
        match flag.as_str() {
            "--config" => asked.config = value.into(),
            "--layers" => asked.layers = Some(value.parse()?),
            "--seed" => asked.seed = value.parse()?,
            _ => return Err(usage.into()),
        }
    }
    Ok(asked)
}

/// A tensor of the checkpoint: its name, its shape, and whether it is a norm's weight.
type Named = (String, Vec<usize>, bool);

fn tensors(a: &Architecture, names: &models::families::WeightNames) -> Result<Vec<Named>, Box<dyn Error>> {
    let plain = a.attention.bias == AttentionBias::Absent && a.mlp.bias == Bias::Absent;
    let rotary = matches!(a.positions, Positions::Rotary(_));
    if !plain || !rotary || !matches!(a.mlp.form, MlpForm::Gated(_)) {
        return Err("only gated blocks with rotary positions and without biases are written".into());
    }
    let (h, f, d) = (a.hidden, a.mlp.intermediate, a.attention.head_dim);
    let (q, kv) = (a.attention.heads * d, a.attention.kv_heads * d);
    let mut named = vec![(names.embedding.to_string(), vec![a.vocabulary, h], false)];
    for layer in 0..a.layers {
        let mut add = |part: &str, shape: Vec<usize>| {
            let is_norm = shape.len() == 1;
            named.push((format!("{}.weight", names.block(layer, part)), shape, is_norm));
        };
        add(names.attn_norm, vec![h]);
        add(names.q, vec![q, h]);
        add(names.k, vec![kv, h]);
        add(names.v, vec![kv, h]);
        add(names.o, vec![h, q]);
        add(names.mlp_norm, vec![h]);
        add(names.gate, vec![f, h]);
        add(names.up, vec![f, h]);
        add(names.down, vec![h, f]);
    }
    named.push((format!("{}.weight", names.final_norm), vec![h], true));
    if a.head == Head::Untied {
        named.push((format!("{}.weight", names.head), vec![a.vocabulary, h], false));
    }
    Ok(named)
}

fn write(asked: &Asked) -> Result<(), Box<dyn Error>> {
    let mut config: Value = serde_json::from_slice(&fs::read(&asked.config)?)?;
    if let Some(layers) = asked.layers {
        config["num_hidden_layers"] = layers.into();
    }
    config["torch_dtype"] = "bfloat16".into();
    // Those of the tokenizer, or its BOS would be another token than the config's.
    let tokenizer = builtin::files("builtin/tiny-llama").ok_or("the built-in model is gone")?;
    let small: Value = serde_json::from_slice(&tokenizer.config)?;
    for key in ["bos_token_id", "eos_token_id"] {
        config[key] = small[key].clone();
    }
    let read = Config(config.clone());
    let family = read.family()?;
    let architecture = (family.read)(&read)?;
    let named = tensors(&architecture, family.names)?;

    fs::create_dir_all(&asked.folder)?;
    fs::write(asked.folder.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    fs::write(asked.folder.join("tokenizer.json"), &tokenizer.tokenizer)?;
    fs::write(asked.folder.join("tokenizer_config.json"), &tokenizer.tokenizer_config)?;

    let bytes = |shape: &[usize]| 2 * shape.iter().product::<usize>();
    let mut shards: Vec<Vec<&Named>> = vec![Vec::new()];
    let mut size = 0;
    for tensor in &named {
        if size + bytes(&tensor.1) > SHARD && size > 0 {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes(&tensor.1);
        shards.last_mut().ok_or("there is a shard")?.push(tensor);
    }
    let (count, mut drawn, mut places) = (shards.len(), 0u64, Map::new());
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        let mut header = Map::new();
        let mut start = 0;
        for (tensor, shape, _) in shard {
            let end = start + bytes(shape);
            header.insert(
                tensor.clone(),
                json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }),
            );
            places.insert(tensor.clone(), name.clone().into());
            start = end;
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::new(File::create(asked.folder.join(&name))?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, shape, is_norm) in shard {
            let mut left: usize = shape.iter().product();
            while left > 0 {
                // Some chunks at a time, so that both the memory and the time stay small.
                let chunks: Vec<usize> =
                    (0..16).map(|i| CHUNK.min(left.saturating_sub(i * CHUNK))).filter(|&n| n > 0).collect();
                let values: Vec<Vec<u8>> = chunks
                    .par_iter()
                    .enumerate()
                    .map(|(i, &n)| chunk(asked.seed, drawn + i as u64, n, *is_norm))
                    .collect();
                values.iter().try_for_each(|values| file.write_all(values))?;
                drawn += chunks.len() as u64;
                left -= chunks.iter().sum::<usize>();
            }
        }
        file.flush()?;
        println!("{name}: {} tensors", shard.len());
    }
    let total: usize = named.iter().map(|(_, shape, _)| bytes(shape)).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
    fs::write(asked.folder.join("model.safetensors.index.json"), serde_json::to_string_pretty(&index)?)?;
    println!("{} parameters, {total} bytes", architecture.parameters());
    Ok(())
}

/// Values of a chunk in bfloat16: four of every 64 random bits.
fn chunk(seed: u64, number: u64, values: usize, is_norm: bool) -> Vec<u8> {
    if is_norm {
        return bf16::ONE.to_le_bytes().repeat(values);
    }
    // Uniform on ±√3·σ has the standard deviation σ.
    let unit = DEVIATION * 3f32.sqrt() / 32768.0;
    let mut bytes = Vec::with_capacity(2 * values);
    let mut state = splitmix(seed ^ splitmix(number));
    while bytes.len() < 2 * values {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        for part in splitmix(state).to_le_bytes().chunks_exact(2) {
            let drawn = f32::from(i16::from_le_bytes([part[0], part[1]])) + 0.5;
            bytes.extend(bf16::from_f32(drawn * unit).to_le_bytes());
        }
    }
    bytes.truncate(2 * values);
    bytes
}

fn splitmix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
