//! Trains `builtin/tiny-llama`: `cargo run --release -p models --example train_tiny_llama [STEPS]`.
//!
//! Text comes from [`models::stories`], the tokenizer is trained on it, and the model is trained through the one
//! forward pass, [`models::Decoder`], on an autodiff device: AdamW with a cosine schedule, every window beginning
//! with BOS. It overwrites `assets/tiny-llama/{tokenizer.json,model.safetensors}`, the weights every 250 steps too.
#![allow(clippy::print_stdout)]

use std::{collections::HashMap, env, error::Error, fs, path::Path, time::Instant};

use burn::tensor::{Device, Tensor, TensorData, activation::log_softmax};
use half::f16;
use models::{
    Decoder, Off,
    architecture::Architecture,
    families::{Config, FAMILIES},
    stories, token_tensor,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, tensor::TensorView};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer, TokenizerBuilder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::TemplateProcessing,
};

const BOS: u32 = 0;
const VOCABULARY: usize = 1024;
/// Weights are drawn from N(0, 0.02²) with this seed.
const WEIGHT_SEED: u64 = 0;
/// The tokenizer sees this much of the training text.
const TOKENIZER_BYTES: usize = 4_000_000;
/// Text tokens per step. Seven steps in eight are eight windows of 256, the eighth is four of 512.
const BATCH_TOKENS: usize = 2048;
const PEAK_RATE: f64 = 3e-3;
const WARM_UP: usize = 100;
const BETAS: (f64, f64) = (0.9, 0.95);
const WEIGHT_DECAY: f64 = 0.1;
const MAX_NORM: f64 = 1.0;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let steps = match env::args().nth(1) {
        Some(steps) => steps.parse()?,
        None => 2000,
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-llama");

    let tokenizer = train_tokenizer(&stories::corpus(stories::TRAINING_SEED, TOKENIZER_BYTES))?;
    tokenizer.save(folder.join("tokenizer.json"), true)?;
    let tokens = encode(&tokenizer, stories::TRAINING_SEED, steps * BATCH_TOKENS)?;
    let held_out = encode(&tokenizer, stories::HELD_OUT_SEED, 100 * 255)?;
    println!("{} training tokens", tokens.len());

    let config = Config(serde_json::from_slice(&fs::read(folder.join("config.json"))?)?);
    let architecture = (config.family()?.read)(&config)?;
    let device = Device::flex();
    let mut weights = Weights::draw(&architecture, &device);
    println!("{} parameters", architecture.parameters());

    let start = Instant::now();
    let (mut position, mut recent) = (0, 0.0);
    for step in 0..steps {
        let length = if step % 8 == 7 { 512 } else { 256 };
        let batch = &tokens[position..position + BATCH_TOKENS];
        position += BATCH_TOKENS;
        let loss = weights.step(&architecture, batch, length, step, steps)?;
        recent += loss;
        if (step + 1) % 50 == 0 {
            println!(
                "step {:5}  loss {:.4}  {:.0} s",
                step + 1,
                recent / 50.0,
                start.elapsed().as_secs_f64()
            );
            recent = 0.0;
        }
        if (step + 1) % 250 == 0 || step + 1 == steps {
            fs::write(folder.join("model.safetensors"), weights.to_safetensors()?)?;
            println!("step {:5}  held-out loss {:.4}", step + 1, weights.loss(&architecture, &held_out)?);
        }
    }
    Ok(())
}

/// A byte-level BPE tokenizer that puts BOS before a text.
fn train_tokenizer(text: &str) -> Result<Tokenizer> {
    let bytes = || ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(ModelWrapper::BPE(BPE::default()))
    .with_pre_tokenizer(Some(bytes().into()))
    .with_decoder(Some(bytes().into()))
    .build()?;
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(VOCABULARY)
        .initial_alphabet(alphabet.into_iter().collect())
        .special_tokens(vec![AddedToken::from("<s>", true)])
        .build()
        .into();
    tokenizer.train(&mut trainer, text.split_inclusive('\n'))?;
    tokenizer.with_post_processor(Some(
        TemplateProcessing::builder()
            .try_single("<s> $A")?
            .try_pair("<s> $A $B")?
            .special_tokens(vec![("<s>", BOS)])
            .build()?,
    ));
    // Through its own file, so that training sees what every later reader sees.
    Tokenizer::from_bytes(tokenizer.to_string(false)?)
}

/// At least `count` token ids of the documents of `seed`, without BOS.
fn encode(tokenizer: &Tokenizer, seed: u64, count: usize) -> Result<Vec<u32>> {
    let mut tokens = Vec::with_capacity(count + 4096);
    let mut stories = stories::stories(seed);
    while tokens.len() < count {
        let documents: Vec<String> = stories.by_ref().take(2000).map(|story| story.document()).collect();
        for encoding in tokenizer.encode_batch_fast(documents, false)? {
            tokens.extend_from_slice(encoding.get_ids());
        }
    }
    Ok(tokens)
}

/// One weight with the optimizer's two moments, all flat and outside autodiff.
struct Weight {
    name: String,
    shape: Vec<usize>,
    value: Tensor<1>,
    mean: Tensor<1>,
    square: Tensor<1>,
}

struct Weights {
    all: Vec<Weight>,
    device: Device,
}

impl Weights {
    /// Matrices from N(0, 0.02²), those that write to the residual stream divided by sqrt(2·layers); norms at one.
    fn draw(architecture: &Architecture, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(WEIGHT_SEED);
        let h = architecture.hidden;
        let a = &architecture.attention;
        let (q, kv, m) = (a.heads * a.head_dim, a.kv_heads * a.head_dim, architecture.mlp.intermediate);
        let residual = 0.02 / ((2 * architecture.layers) as f64).sqrt();
        let mut all = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, deviation: Option<f64>| {
            let count = shape.iter().product();
            let value: Vec<f32> = match deviation {
                Some(deviation) => (0..count).map(|_| (deviation * normal(&mut rng)) as f32).collect(),
                None => vec![1.0; count],
            };
            let value = Tensor::from_data(TensorData::new(value, [count]), device);
            let (mean, square) = (value.zeros_like(), value.zeros_like());
            all.push(Weight { name, shape, value, mean, square });
        };
        add("model.embed_tokens.weight".into(), vec![architecture.vocabulary, h], Some(0.02));
        for layer in 0..architecture.layers {
            let matrices = [
                ("self_attn.q_proj", q, h, 0.02),
                ("self_attn.k_proj", kv, h, 0.02),
                ("self_attn.v_proj", kv, h, 0.02),
                ("self_attn.o_proj", h, q, residual),
                ("mlp.gate_proj", m, h, 0.02),
                ("mlp.up_proj", m, h, 0.02),
                ("mlp.down_proj", h, m, residual),
            ];
            for (name, rows, columns, deviation) in matrices {
                add(format!("model.layers.{layer}.{name}.weight"), vec![rows, columns], Some(deviation));
            }
            for name in ["input_layernorm", "post_attention_layernorm"] {
                add(format!("model.layers.{layer}.{name}.weight"), vec![h], None);
            }
        }
        add("model.norm.weight".into(), vec![h], None);
        Self { all, device: device.clone() }
    }

    /// One step of AdamW on windows of `length` tokens; the loss before it, in nats per token.
    fn step(
        &mut self,
        architecture: &Architecture,
        batch: &[u32],
        length: usize,
        step: usize,
        steps: usize,
    ) -> Result<f64> {
        let device = self.device.clone().autodiff();
        let leaves: Vec<Tensor<1>> =
            self.all.iter().map(|weight| Tensor::from_inner(weight.value.clone()).require_grad()).collect();
        let mut decoder = decoder(architecture, self.all.iter().zip(&leaves), &device)?;
        let loss = cross_entropy(&mut decoder, batch, length, &device);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let mut gradients = loss.backward();

        let gradients: Vec<Tensor<1>> =
            leaves.iter().filter_map(|leaf| leaf.grad_remove(&mut gradients)).collect();
        assert_eq!(gradients.len(), self.all.len(), "every weight takes part in the loss");
        let squares: Vec<Tensor<1>> = gradients.iter().map(|g| g.clone().powi_scalar(2).sum()).collect();
        let norm = f64::from(Tensor::cat(squares, 0).sum().into_scalar::<f32>()).sqrt();
        let clip = (MAX_NORM / norm.max(1e-12)).min(1.0);

        let rate = rate(step, steps);
        let t = (step + 1) as i32;
        for (weight, gradient) in self.all.iter_mut().zip(gradients) {
            let gradient = gradient * clip;
            weight.mean = weight.mean.clone() * BETAS.0 + gradient.clone() * (1.0 - BETAS.0);
            weight.square = weight.square.clone() * BETAS.1 + gradient.powi_scalar(2) * (1.0 - BETAS.1);
            let mean = weight.mean.clone() / (1.0 - BETAS.0.powi(t));
            let deviation = (weight.square.clone() / (1.0 - BETAS.1.powi(t))).sqrt() + 1e-8;
            let decay = if weight.shape.len() > 1 { 1.0 - rate * WEIGHT_DECAY } else { 1.0 };
            weight.value = weight.value.clone() * decay - mean / deviation * rate;
        }
        Ok(value)
    }

    /// Mean loss over windows of BOS and 255 tokens, in nats per scored token.
    fn loss(&self, architecture: &Architecture, tokens: &[u32]) -> Result<f64> {
        let values: Vec<Tensor<1>> = self.all.iter().map(|weight| weight.value.clone()).collect();
        let mut decoder = decoder(architecture, self.all.iter().zip(&values), &self.device)?;
        let mut sum = 0.0;
        let batches = tokens.chunks_exact(10 * 255);
        let count = batches.len() as f64;
        for batch in batches {
            sum += f64::from(cross_entropy(&mut decoder, batch, 255, &self.device).into_scalar::<f32>());
        }
        Ok(sum / count)
    }

    fn to_safetensors(&self) -> Result<Vec<u8>> {
        let mut tensors = Vec::with_capacity(self.all.len());
        for weight in &self.all {
            let values =
                weight.value.clone().try_into_data()?.try_to_vec::<f32>().map_err(|e| format!("{e:?}"))?;
            let bytes: Vec<u8> = values.into_iter().flat_map(|v| f16::from_f32(v).to_le_bytes()).collect();
            tensors.push((weight.name.as_str(), weight.shape.clone(), bytes));
        }
        let views: Vec<(&str, TensorView)> = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F16, shape.clone(), bytes)?)))
            .collect::<Result<_>>()?;
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(safetensors::serialize(views, Some(format))?)
    }
}

fn decoder<'a>(
    architecture: &Architecture,
    values: impl Iterator<Item = (&'a Weight, &'a Tensor<1>)>,
    device: &Device,
) -> Result<Decoder> {
    let values: HashMap<&str, &Tensor<1>> =
        values.map(|(weight, value)| (weight.name.as_str(), value)).collect();
    let llama = FAMILIES.iter().find(|family| family.name == "llama").ok_or("no family llama")?;
    Ok(Decoder::from_tensors(architecture, llama.names, device, &mut |name, _| Ok(values[name].clone()))?)
}

/// Mean cross-entropy over windows of `length` tokens: BOS and all but the last go in, all are scored.
fn cross_entropy(decoder: &mut Decoder, batch: &[u32], length: usize, device: &Device) -> Tensor<1> {
    let windows = batch.len() / length;
    let inputs: Vec<Vec<u32>> =
        batch.chunks_exact(length).map(|window| [&[BOS], &window[..length - 1]].concat()).collect();
    let targets = token_tensor(&[batch], device).reshape([windows * length, 1]);
    let hidden = decoder.hidden(token_tensor(&inputs, device), &mut Off);
    let logits = decoder.logits(hidden, &mut Off);
    let [.., vocabulary] = logits.dims();
    let log = log_softmax(logits.reshape([windows * length, vocabulary]), 1);
    -log.gather(1, targets).mean()
}

/// Linear warm-up, then a cosine down to a twentieth of the peak.
fn rate(step: usize, steps: usize) -> f64 {
    if step < WARM_UP {
        return PEAK_RATE * (step + 1) as f64 / WARM_UP as f64;
    }
    let progress = (step - WARM_UP) as f64 / (steps - WARM_UP).max(1) as f64;
    PEAK_RATE * (0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()))
}

/// A standard normal number, by Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let mut uniform = || (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
    let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), 2.0 * std::f64::consts::PI * uniform());
    radius * angle.cos()
}
