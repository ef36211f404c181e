//! The dumps under `tests/oracle/`, and what every comparison with them needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use models::{Checkpoint, Decoder};
use safetensors::{Dtype, SafeTensors};

/// Llama: multi-head, grouped-query with scaled frequencies, tied, with biases. Then every other family, and Command-R+,
/// which norms queries and keys.
pub const ORACLES: [&str; 14] = [
    "llama2",
    "llama3",
    "smollm2",
    "llama-bias",
    "cohere",
    "cohere-plus",
    "gemma",
    "gemma2",
    "gemma3",
    "mistral",
    "mixtral",
    "opt",
    "qwen2",
    "qwen3",
];

/// The host's fused path and the path of tensor operations.
pub fn devices() -> [Device; 2] {
    [Device::flex(), Device::flex().autodiff()]
}

/// f32 on both sides; see the main design: logits agree within 1e-4.
const TOLERANCE: f32 = 1e-4;

fn oracle_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(name)
}

/// A copy of an oracle's folder with a tokenizer, which a checkpoint folder must have and an oracle does not need.
pub fn checkpoint_folder(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(oracle_folder(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    fs::write(folder.path().join("tokenizer.json"), TOKENIZER).unwrap();
    folder
}

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"#;

/// What `transformers` computed.
pub struct Oracle {
    pub tokens: Vec<Vec<u32>>,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

pub fn oracle(name: &str) -> Oracle {
    let bytes = fs::read(oracle_folder(name).join("oracle.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tokens = Vec::new();
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let (words, _) = view.data().as_chunks::<4>();
        match view.dtype() {
            Dtype::I32 => {
                let ids: Vec<u32> = words.iter().map(|&b| i32::from_le_bytes(b) as u32).collect();
                tokens = ids.chunks(view.shape()[1]).map(<[u32]>::to_vec).collect();
            }
            Dtype::F32 => {
                let values = words.iter().map(|&b| f32::from_le_bytes(b)).collect();
                tensors.insert(name.to_string(), (view.shape().to_vec(), values));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    Oracle { tokens, tensors }
}

pub fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    let spread = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    assert!(spread > 1e-2, "{what}: an oracle of zeros shows nothing");
    assert!(worst <= TOLERANCE, "{what}: differs by {worst:e}");
}

/// An oracle's decoder on a device.
pub fn load(name: &str, device: &Device) -> Decoder {
    Checkpoint::open(checkpoint_folder(name).path()).unwrap().load(device).unwrap()
}
