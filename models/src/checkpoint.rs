//! Checkpoints: a folder as the hub lays it out, or bytes that ship with the program, read one tensor at a time.
//!
//! Weights are memory-mapped, converted to f32 tensor by tensor, and their pages given back, so that the peak is the f32
//! model and one tensor, whatever the file's type.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use half::slice::HalfFloatSliceExt;
use memmap2::{Mmap, UncheckedAdvice};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::architecture::Architecture;
use crate::builtin;
use crate::decoder::Decoder;
use crate::families::{Config, ConfigError, Family};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// What can be wrong with a checkpoint. Every text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file that must be there.
    #[error(
        "{path}: {file} is missing; a checkpoint folder holds config.json, tokenizer.json and *.safetensors"
    )]
    MissingFile {
        /// The folder.
        path: PathBuf,
        /// The file.
        file: String,
    },
    /// Reading failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `config.json` or the shard index is no JSON.
    #[error("{path}: not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// `config.json` says something that cannot be loaded.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What.
        source: ConfigError,
    },
    /// The container is damaged.
    #[error("{path}: truncated or corrupt safetensors file ({reason}); download or copy it again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A tensor that the architecture needs.
    #[error("{path}: tensor `{name}` is missing, though config.json asks for it")]
    MissingTensor {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor of another shape.
    #[error("{path}: tensor `{name}` has shape {found:?}, but config.json asks for {expected:?}")]
    WrongShape {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// From the config.
        expected: Vec<usize>,
    },
    /// A type that is no plain float.
    #[error("{path}: tensor `{name}` is {found}; f32, f16 and bf16 can be loaded (dequantize it first)")]
    WrongType {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// In the file.
        found: String,
    },
    /// NaN or infinity.
    #[error(
        "{path}: tensor `{name}` holds a value that is not finite (element {index}: {value}); the file is damaged"
    )]
    NotFinite {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Flat index.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A tensor that nothing reads: ignoring it could change the result silently.
    #[error("{path}: tensor `{name}` belongs to no part that config.json describes")]
    UnknownTensor {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The tokenizer cannot be read or contradicts the config.
    #[error("{path}: {source}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokenizerError,
    },
}

/// A checkpoint on disk or in the program, not yet on a device.
pub struct Checkpoint {
    path: PathBuf,
    family: &'static Family,
    architecture: Architecture,
    containers: Vec<Container>,
    tensors: BTreeMap<String, Entry>,
    tokenizer: Tokenizer,
}

struct Container {
    path: PathBuf,
    bytes: Bytes,
}

enum Bytes {
    Mapped(Mmap),
    Held(Cow<'static, [u8]>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }

    /// Gives back the resident pages of a range that will not be read again soon.
    fn release(&self, start: usize, length: usize) {
        if let Bytes::Mapped(map) = self {
            // SAFETY: the mapping is of a file and read-only: dropped pages are read again from it. Failure is harmless.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, length) };
        }
    }
}

#[derive(Clone)]
pub(crate) struct Entry {
    container: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    length: usize,
}

impl Checkpoint {
    /// Opens a folder as the hub lays it out.
    ///
    /// # Errors
    /// Everything of [`CheckpointError`] but the values' own faults, which [`Checkpoint::load`] finds.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let read = |file: &str| match fs::read(folder.join(file)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CheckpointError::Io { path: folder.join(file), source }),
        };
        let missing = |file: &str| CheckpointError::MissingFile { path: folder.into(), file: file.into() };
        let config = read("config.json")?.ok_or_else(|| missing("config.json"))?;
        let tokenizer = read("tokenizer.json")?.ok_or_else(|| missing("tokenizer.json"))?;
        let tokenizer_config = read("tokenizer_config.json")?;
        let mut containers = Vec::new();
        for name in shards(folder, read("model.safetensors.index.json")?)? {
            let path = folder.join(&name);
            let file = match fs::File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing(&name)),
                Err(source) => return Err(CheckpointError::Io { path, source }),
            };
            // SAFETY: a file changed by someone else while it is mapped gives wrong numbers, which the content hash
            // taken from the same mapping shows; nothing of it is trusted as code or as a length.
            let map = unsafe { Mmap::map(&file) }
                .map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
            containers.push(Container { path, bytes: Bytes::Mapped(map) });
        }
        Self::assemble(folder.into(), &config, &tokenizer, tokenizer_config.as_deref(), containers)
    }

    /// A checkpoint that ships with the program, or `None` where none has this name.
    ///
    /// # Errors
    /// Only if the shipped bytes are damaged.
    pub fn builtin(name: &str) -> Option<Result<Self, CheckpointError>> {
        let files = builtin::files(name)?;
        let path = PathBuf::from(name);
        let container = Container { path: path.join("model.safetensors"), bytes: Bytes::Held(files.weights) };
        Some(Self::assemble(
            path,
            &files.config,
            &files.tokenizer,
            Some(&files.tokenizer_config),
            vec![container],
        ))
    }

    fn assemble(
        path: PathBuf,
        config: &[u8],
        tokenizer: &[u8],
        tokenizer_config: Option<&[u8]>,
        containers: Vec<Container>,
    ) -> Result<Self, CheckpointError> {
        let config_path = path.join("config.json");
        let config: Value = serde_json::from_slice(config)
            .map_err(|source| CheckpointError::Json { path: config_path.clone(), source })?;
        let config = Config(config);
        let in_config = |source| CheckpointError::Config { path: config_path.clone(), source };
        let family = config.family().map_err(in_config)?;
        let architecture = (family.read)(&config).map_err(in_config)?;

        let mut tensors = BTreeMap::new();
        for (index, container) in containers.iter().enumerate() {
            let corrupt = |reason: String| CheckpointError::Corrupt { path: container.path.clone(), reason };
            let bytes = container.bytes.as_slice();
            let parsed = SafeTensors::deserialize(bytes).map_err(|e| corrupt(e.to_string()))?;
            let base = bytes.as_ptr() as usize;
            for (name, view) in parsed.iter() {
                let start = view.data().as_ptr() as usize - base;
                let entry = Entry {
                    container: index,
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    start,
                    length: view.data().len(),
                };
                tensors.insert(name.to_string(), entry);
            }
        }

        let tokenizer_path = path.join("tokenizer.json");
        let in_tokenizer = |source| CheckpointError::Tokenizer { path: tokenizer_path.clone(), source };
        let mut tokenizer = Tokenizer::new(tokenizer, tokenizer_config, &config.0).map_err(in_tokenizer)?;
        tokenizer.fits(architecture.vocabulary).map_err(in_tokenizer)?;
        Ok(Self { path, family, architecture, containers, tensors, tokenizer })
    }

    /// What kind of decoder it is.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The family that reads it.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// blake3 of every tensor's name, type, shape and bytes, in name order.
    pub fn weights_hash(&self) -> String {
        let hashes: Vec<_> = self
            .tensors
            .par_iter()
            .map(|(name, entry)| {
                let container = &self.containers[entry.container];
                let mut hasher = blake3::Hasher::new();
                hasher.update(format!("{name}\0{:?}\0{:?}\0", entry.dtype, entry.shape).as_bytes());
                hasher.update(&container.bytes.as_slice()[entry.start..][..entry.length]);
                container.bytes.release(entry.start, entry.length);
                hasher.finalize()
            })
            .collect();
        let mut all = blake3::Hasher::new();
        for hash in hashes {
            all.update(hash.as_bytes());
        }
        all.finalize().to_hex().to_string()
    }

    /// Bytes of all tensors as they are stored.
    pub fn stored_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.length as u64).sum()
    }

    /// Significant bits of the type that most values are stored in, the hidden one included: 8 of bfloat16, 11 of
    /// float16, 24 of float32.
    pub fn significant_bits(&self) -> u32 {
        let bytes_of = |dtype: Dtype| -> usize {
            self.tensors.values().filter(|entry| entry.dtype == dtype).map(|entry| entry.length).sum()
        };
        let stored = [(Dtype::F32, 24, 4), (Dtype::F16, 11, 2), (Dtype::BF16, 8, 2)];
        let most = stored.iter().max_by_key(|(dtype, _, bytes)| bytes_of(*dtype) / bytes);
        most.map_or(24, |(_, digits, _)| *digits)
    }

    /// Puts the decoder on a device, in f32.
    ///
    /// # Errors
    /// Missing, surplus, misshapen, non-float or non-finite tensors.
    pub fn load(&self, device: &Device) -> Result<Decoder, CheckpointError> {
        let mut read = BTreeSet::new();
        let names = self.family.names;
        let decoder = Decoder::from_tensors(&self.architecture, names, device, &mut |name, shape| {
            read.insert(name.to_string());
            self.tensor(name, shape, device)
        })?;
        self.refuse_surplus(&read)?;
        Ok(decoder)
    }

    /// A tensor on a device, flattened, in f32.
    pub(crate) fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        device: &Device,
    ) -> Result<Tensor<1>, CheckpointError> {
        let values = self.values(name, shape)?;
        let length = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [length]), device))
    }

    /// Refuses tensors that are not among those that were `read`.
    pub(crate) fn refuse_surplus(&self, read: &BTreeSet<String>) -> Result<(), CheckpointError> {
        let head = format!("{}.weight", self.family.names.head);
        for name in self.tensors.keys() {
            let ignored = self.family.names.ignored.iter().any(|ending| name.ends_with(ending));
            let known = read.contains(name) || read.contains(&format!("{MODEL}{name}"));
            // A tied checkpoint may carry the table twice.
            if !ignored && !known && *name != head {
                return Err(CheckpointError::UnknownTensor { path: self.path.clone(), name: name.clone() });
            }
        }
        Ok(())
    }

    /// Where a tensor stands, once it is there in this shape and of a type that can be loaded.
    pub(crate) fn find(&self, name: &str, shape: &[usize]) -> Result<&Entry, CheckpointError> {
        let entry =
            self.tensors.get(name).or_else(|| self.tensors.get(name.strip_prefix(MODEL)?)).ok_or_else(
                || CheckpointError::MissingTensor { path: self.path.clone(), name: name.into() },
            )?;
        if entry.shape != shape {
            return Err(CheckpointError::WrongShape {
                path: self.path.clone(),
                name: name.into(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(CheckpointError::WrongType {
                path: self.path.clone(),
                name: name.into(),
                found: format!("{:?}", entry.dtype),
            });
        }
        Ok(entry)
    }

    /// The values of one tensor in f32, row by row.
    ///
    /// # Errors
    /// As [`Checkpoint::load`], for this tensor.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let entry = self.find(name, shape)?;
        let container = &self.containers[entry.container];
        let bytes = &container.bytes.as_slice()[entry.start..][..entry.length];
        let values = to_f32(entry.dtype, bytes).expect("types were checked");
        container.bytes.release(entry.start, entry.length);
        match values.par_iter().position_any(|x| !x.is_finite()) {
            Some(_) => {
                let index = values.iter().position(|x| !x.is_finite()).unwrap_or_default();
                Err(CheckpointError::NotFinite {
                    path: self.path.clone(),
                    name: name.into(),
                    index,
                    value: values[index],
                })
            }
            None => Ok(values),
        }
    }
}

/// What stands before the names of a checkpoint with a head, and is missing where one was saved without it, as some of
/// OPT are.
const MODEL: &str = "model.";

/// The names of the weight files: those of the index, or the single one.
fn shards(folder: &Path, index: Option<Vec<u8>>) -> Result<Vec<String>, CheckpointError> {
    let single = "model.safetensors";
    if folder.join(single).exists() {
        return Ok(vec![single.into()]);
    }
    let Some(index) = index else {
        return Err(CheckpointError::MissingFile { path: folder.into(), file: single.into() });
    };
    let path = folder.join("model.safetensors.index.json");
    let index: Value = serde_json::from_slice(&index)
        .map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    let map = index["weight_map"]
        .as_object()
        .ok_or_else(|| CheckpointError::Corrupt { path: path.clone(), reason: "no `weight_map`".into() })?;
    let mut names: Vec<String> = map.values().filter_map(Value::as_str).map(String::from).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Little-endian floats as f32; `None` for other types.
fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    /// Halves that are converted together, eight or sixteen at a time where the processor can.
    const TOGETHER: usize = 1 << 12;
    fn halves<H: Copy + Sync>(bytes: &[u8], zero: H, one: impl Fn([u8; 2]) -> H + Sync) -> Vec<f32>
    where
        [H]: HalfFloatSliceExt,
    {
        let mut values = vec![0.0f32; bytes.len() / 2];
        let parts = values.par_chunks_mut(TOGETHER).zip(bytes.par_chunks(2 * TOGETHER));
        parts.with_min_len(4).for_each(|(values, bytes)| {
            let mut halves = [zero; TOGETHER];
            let halves = &mut halves[..values.len()];
            for (half, &bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *half = one(bytes);
            }
            halves.convert_to_f32_slice(values);
        });
        values
    }
    match dtype {
        Dtype::F32 => {
            let (elements, _) = bytes.as_chunks::<4>();
            Some(elements.par_iter().with_min_len(1 << 14).map(|&b| f32::from_le_bytes(b)).collect())
        }
        Dtype::F16 => Some(halves(bytes, half::f16::ZERO, half::f16::from_le_bytes)),
        Dtype::BF16 => Some(halves(bytes, half::bf16::ZERO, half::bf16::from_le_bytes)),
        _ => None,
    }
}
