//! Every family against what `transformers` computes: logits, and a few tensors on the way, of tiny random models.
//!
//! The dumps are made by `scripts/oracle/dump_decoder.py` and compared in every test run.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use models::{Checkpoint, Group, Off, Port, Site, Tap, token_tensor};

use dumps::{assert_close, checkpoint_folder, oracle};

#[path = "oracle/configs.rs"]
mod configs;
#[path = "oracle/dumps.rs"]
mod dumps;
#[path = "oracle/prefix.rs"]
mod prefix;
#[path = "oracle/rescale.rs"]
mod rescale;
#[path = "oracle/rotate.rs"]
mod rotate;

/// Keeps what passes the sites of block 0.
#[derive(Default)]
struct Keep(BTreeMap<String, Vec<f32>>);

impl Keep {
    fn keep<const D: usize>(&mut self, site: Site, x: &Tensor<D>) {
        if site.layer == Some(0) {
            self.0.insert(site.to_string(), x.to_data().try_to_vec::<f32>().unwrap());
        }
    }
}

impl Tap for Keep {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        self.keep(site, &x);
        group.forward(x)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.keep(site, &x);
        x
    }

    fn residual(&mut self, layer: usize, x: &Tensor<3>) {
        self.0.insert(format!("residual {layer}"), x.to_data().try_to_vec::<f32>().unwrap());
    }
}

fn logits(folder: &Path, tokens: &[Vec<u32>], tap: &mut dyn Tap) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut decoder = checkpoint.load(&Device::flex()).unwrap();
    let hidden = decoder.hidden(token_tensor(tokens, &Device::flex()), tap);
    decoder.logits(hidden, tap).to_data().try_to_vec().unwrap()
}

#[test]
fn logits_and_intermediates_agree_with_transformers() {
    for name in dumps::ORACLES {
        let oracle = oracle(name);
        let folder = checkpoint_folder(name);
        let mut keep = Keep::default();
        let found = logits(folder.path(), &oracle.tokens, &mut keep);
        for (port, key) in [
            (Port::AttnIn, "layers.0.attn_in"),
            (Port::Q, "layers.0.q_rope"),
            (Port::K, "layers.0.k_rope"),
            (Port::OIn, "layers.0.o_in"),
            (Port::MlpIn, "layers.0.mlp_in"),
            (Port::DownIn, "layers.0.down_in"),
        ] {
            // A parallel block has one norm, experts have an input of down each, and OPT turns nothing.
            let Some((_, expected)) = oracle.tensors.get(key) else {
                let absent = match key {
                    "layers.0.q_rope" | "layers.0.k_rope" => name == "opt",
                    "layers.0.mlp_in" => name.starts_with("cohere"),
                    _ => name == "mixtral" && key == "layers.0.down_in",
                };
                assert!(absent, "{name} has no {key}");
                continue;
            };
            assert_close(&format!("{name} {key}"), &keep.0[&Site::block(0, port).to_string()], expected);
        }
        assert_close(
            &format!("{name} residual"),
            &keep.0["residual 0"],
            &oracle.tensors["layers.0.output"].1,
        );
        assert!(keep.0.contains_key("residual 1") && !keep.0.contains_key("residual 2"), "two blocks");
        assert_close(&format!("{name} logits"), &found, &oracle.tensors["logits"].1);
    }
}

#[test]
fn other_layouts_of_the_same_weights_load() {
    let reference = oracle("llama2");
    let sharded = checkpoint_folder("llama2-sharded");
    let found = logits(sharded.path(), &reference.tokens, &mut Off);
    assert_close("sharded", &found, &reference.tensors["logits"].1);
    for name in ["llama2-bf16", "llama2-f16"] {
        let oracle = oracle(name);
        let folder = checkpoint_folder(name);
        assert_close(name, &logits(folder.path(), &oracle.tokens, &mut Off), &oracle.tensors["logits"].1);
    }
    let newer = checkpoint_folder("llama3");
    fs::rename(newer.path().join("config.rope_parameters.json"), newer.path().join("config.json")).unwrap();
    let oracle = oracle("llama3");
    assert_close(
        "rope_parameters",
        &logits(newer.path(), &oracle.tokens, &mut Off),
        &oracle.tensors["logits"].1,
    );
}

#[test]
fn names_without_the_leading_model_load() {
    let oracle = oracle("opt");
    let folder = checkpoint_folder("opt");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let bare = file.iter().map(|(name, view)| (name.strip_prefix("model.").unwrap(), view));
    let bare = safetensors::serialize(bare, None).unwrap();
    fs::write(&path, bare).unwrap();
    assert_close("bare", &logits(folder.path(), &oracle.tokens, &mut Off), &oracle.tensors["logits"].1);
}

#[test]
fn an_added_token_without_a_row_is_refused_where_a_text_spells_it() {
    let folder = checkpoint_folder("gemma3");
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for id in 2..64 {
        tokenizer["model"]["vocab"][format!("w{id}")] = id.into();
    }
    tokenizer["added_tokens"] = serde_json::json!([{"id": 64, "content": "<image>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tokenizer().encode("b").unwrap(), [1]);
    let message = checkpoint.tokenizer().encode("<image>").unwrap_err().to_string();
    assert!(message.contains("64") && message.contains("vocab_size"), "{message}");
}

#[test]
#[should_panic(expected = "49 tokens are more than the 48 positions that were learned")]
fn learned_positions_end() {
    let mut decoder = dumps::load("opt", &Device::flex());
    decoder.hidden(token_tensor(&[vec![3u32; 49]], &Device::flex()), &mut Off);
}

#[test]
fn a_batch_gives_what_its_sequences_give_alone() {
    let oracle = oracle("smollm2");
    let folder = checkpoint_folder("smollm2");
    let together = logits(folder.path(), &oracle.tokens, &mut Off);
    let alone: Vec<f32> =
        oracle.tokens.iter().flat_map(|s| logits(folder.path(), std::slice::from_ref(s), &mut Off)).collect();
    assert_close("batch", &together, &alone);
}

#[test]
fn gradients_flow_through_the_one_forward_pass() {
    let folder = checkpoint_folder("smollm2");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let device = Device::flex().autodiff();
    let mut table = None;
    let mut decoder = models::Decoder::from_tensors(
        checkpoint.architecture(),
        checkpoint.family().names,
        &device,
        &mut |name, shape| {
            let values = checkpoint.values(name, shape)?;
            let length = values.len();
            let tensor = Tensor::<1>::from_data(TensorData::new(values, [length]), &device).require_grad();
            table.get_or_insert_with(|| tensor.clone());
            Ok(tensor)
        },
    )
    .unwrap();
    let tokens = oracle("smollm2").tokens;
    let hidden = decoder.hidden(token_tensor(&tokens, &device), &mut Off);
    let logits = decoder.logits(hidden, &mut Off);
    let plain: Vec<f32> = logits.clone().inner().to_data().try_to_vec().unwrap();
    assert_close("autodiff", &plain, &oracle("smollm2").tensors["logits"].1);
    let gradients = logits.square().mean().backward();
    let gradient = table.unwrap().grad(&gradients).unwrap();
    let largest: f32 = gradient.abs().max().into_scalar();
    assert!(largest > 0.0 && largest.is_finite());
}

#[test]
fn damaged_checkpoints_are_refused_by_name() {
    let open = |change: &dyn Fn(&Path)| {
        let folder = checkpoint_folder("llama2");
        change(folder.path());
        match Checkpoint::open(folder.path()).and_then(|c| c.load(&Device::flex())) {
            Ok(_) => panic!("a damaged checkpoint loaded"),
            Err(e) => e.to_string(),
        }
    };
    let weights = "model.safetensors";
    let cut = open(&|f| {
        let bytes = fs::read(f.join(weights)).unwrap();
        fs::write(f.join(weights), &bytes[..bytes.len() / 2]).unwrap();
    });
    assert!(cut.contains("truncated or corrupt safetensors file") && cut.contains(weights), "{cut}");
    let noise = open(&|f| fs::write(f.join(weights), b"not a container").unwrap());
    assert!(noise.contains("truncated or corrupt"), "{noise}");
    let nan = open(&|f| {
        let mut bytes = fs::read(f.join(weights)).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(f.join(weights), bytes).unwrap();
    });
    assert!(nan.contains("not finite") && nan.contains("NaN"), "{nan}");
    let edit = |from: &'static str, to: &'static str| {
        move |f: &Path| {
            let text = fs::read_to_string(f.join("config.json")).unwrap();
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            let mut value = value;
            value[from] = serde_json::from_str(to).unwrap();
            fs::write(f.join("config.json"), value.to_string()).unwrap();
        }
    };
    let shape = open(&edit("intermediate_size", "7"));
    assert!(shape.contains("gate_proj.weight") && shape.contains("has shape"), "{shape}");
    let vocabulary = open(&edit("vocab_size", "1"));
    assert!(vocabulary.contains("vocab_size") && vocabulary.contains("tokenizer.json"), "{vocabulary}");
    let architecture = open(&edit("architectures", r#"["OddForCausalLM"]"#));
    assert!(architecture.contains("unsupported architecture `OddForCausalLM`"), "{architecture}");
    let bias = open(&edit("num_hidden_layers", "1"));
    assert!(bias.contains("belongs to no part"), "{bias}");
    let deeper = open(&edit("num_hidden_layers", "9"));
    assert!(deeper.contains("layers.2.self_attn.q_proj.weight") && deeper.contains("missing"), "{deeper}");
    let tokenizer = open(&|f| fs::remove_file(f.join("tokenizer.json")).unwrap());
    assert!(tokenizer.contains("tokenizer.json is missing"), "{tokenizer}");
    let broken = open(&|f| fs::write(f.join("tokenizer.json"), "{}").unwrap());
    assert!(broken.contains("not a tokenizer"), "{broken}");
    let config = open(&|f| fs::write(f.join("config.json"), "{").unwrap());
    assert!(config.contains("config.json") && config.contains("not valid JSON"), "{config}");
}

#[test]
fn the_content_hash_sees_values_and_not_paths() {
    let (a, b) = (checkpoint_folder("llama2"), checkpoint_folder("llama2"));
    let hash = |folder: &Path| Checkpoint::open(folder).unwrap().weights_hash();
    assert_eq!(hash(a.path()), hash(b.path()));
    let path = b.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 1] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_ne!(hash(a.path()), hash(b.path()));
    let sharded = checkpoint_folder("llama2-sharded");
    assert_eq!(hash(a.path()), hash(sharded.path()), "the same tensors in two files are the same weights");
}
