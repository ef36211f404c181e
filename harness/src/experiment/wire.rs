//! The shape of the file: what keys each block takes. The rest of the program never sees these types.
//!
//! A key added here is described in `docs/format.md`; a test compares the two.

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, forward_to_deserialize_any};
use toml::Spanned;

use super::Sampler;
use crate::data::half::Half;
use crate::data::{BosPolicy, CorpusRef};
use crate::evaluate::decode::Mode;
use crate::evaluate::metrics::perplexity::Protocol;
use crate::layerwise;
use crate::quantize::steps::{self, Step};

/// The top of the file. Blocks within it are read one by one, so that each can be named in a fault.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
#[expect(dead_code, reason = "the ignored fields only make their keys known")]
pub(super) struct Document {
    pub question: String,
    pub reference: String,
    pub analysis: Option<String>,
    sweep: IgnoredAny,
    model: Option<IgnoredAny>,
    calibration: Option<IgnoredAny>,
    recipe: Option<IgnoredAny>,
    evaluate: Option<IgnoredAny>,
    expect: Option<IgnoredAny>,
}

/// `[sweep]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[expect(dead_code, reason = "the ignored fields only make their keys known")]
pub(super) struct Sweep {
    pub models: Spanned<Vec<Spanned<String>>>,
    pub recipes: Spanned<Vec<Spanned<String>>>,
    pub calibrations: Option<Vec<Spanned<String>>>,
    pub seeds: Option<Spanned<Vec<Spanned<u64>>>>,
    exclude: Option<IgnoredAny>,
}

/// An item of `exclude`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Exclude {
    pub model: Option<String>,
    pub recipe: Option<String>,
    pub calibration: Option<String>,
}

/// `[model.NAME]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Model {
    pub path: Option<PathBuf>,
    pub id: Option<Spanned<String>>,
    pub revision: Option<String>,
}

/// `[calibration.NAME]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Calibration {
    pub corpus: Corpus,
    pub samples: usize,
    pub length: usize,
    #[serde(default)]
    pub sampler: Sampler,
    #[serde(default = "tokenizer")]
    pub bos: BosPolicy,
    #[serde(default = "yes")]
    pub repeat: bool,
    #[serde(default)]
    pub allow_overlap: bool,
    pub seeds: Option<Spanned<Vec<Spanned<u64>>>>,
    pub reference: Option<Spanned<String>>,
}

/// `[recipe.NAME]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[expect(dead_code, reason = "the ignored field only makes its key known")]
pub(super) struct Recipe {
    steps: IgnoredAny,
}

/// `[[evaluate]]` with `metric = "perplexity"`, without the key `metric`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Perplexity {
    pub protocol: Protocol,
    pub corpus: Corpus,
    pub length: usize,
    #[serde(default = "tokenizer")]
    pub bos: BosPolicy,
    pub limit: Option<usize>,
    #[serde(default)]
    pub mode: Mode,
    #[serde(default)]
    pub against_original: bool,
}

/// `[[evaluate]]` with `metric = "layer-error"`, without the key `metric`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct LayerError {
    pub mode: layerwise::Mode,
    pub corpus: Corpus,
    #[serde(default = "paper_length")]
    pub length: usize,
    pub samples: Option<usize>,
    #[serde(default = "no_bos")]
    pub bos: BosPolicy,
    #[serde(default)]
    pub seed: u64,
    #[serde(default = "four")]
    pub bits: u8,
    #[serde(default = "half")]
    pub alpha: f64,
    pub calibration: Option<Separate>,
}

/// `calibration` of a layer-wise error in honest mode
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Separate {
    pub corpus: Corpus,
    #[serde(default = "sixteen")]
    pub samples: usize,
    #[serde(default = "paper_length")]
    pub length: usize,
}

/// `[[evaluate]]` with `metric = "speed"`, without the key `metric`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Speed {
    #[serde(default = "prefill")]
    pub prefill: usize,
    #[serde(default = "decode")]
    pub decode: usize,
    #[serde(default = "rounds")]
    pub rounds: usize,
}

/// `[[evaluate]]` with a `task`, without the key `task`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Task {
    pub items: Option<PathBuf>,
    pub form: Option<String>,
    pub examples: Option<PathBuf>,
    #[serde(default)]
    pub shots: usize,
    pub seed: Option<u64>,
    #[serde(default = "tokenizer")]
    pub bos: BosPolicy,
    pub half: Option<Half>,
    pub limit: Option<usize>,
    pub length: Option<usize>,
}

/// `[[expect]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Expect {
    pub model: Spanned<String>,
    pub recipe: Spanned<String>,
    pub calibration: Option<Spanned<String>>,
    pub metric: Spanned<String>,
    pub value: f64,
    pub tolerance: f64,
    pub source: String,
}

/// The policy of every published number.
fn tokenizer() -> BosPolicy {
    BosPolicy::Tokenizer
}

/// The paper's sample: 128 tokens from the middle of a stream, hence no BOS.
fn paper_length() -> usize {
    128
}
fn no_bos() -> BosPolicy {
    BosPolicy::None
}
fn four() -> u8 {
    4
}
fn half() -> f64 {
    0.5
}
fn sixteen() -> usize {
    16
}

fn prefill() -> usize {
    512
}
fn decode() -> usize {
    32
}
fn rounds() -> usize {
    5
}

/// The published samplers do not look whether a text is long enough for all samples.
fn yes() -> bool {
    true
}

/// A corpus: its name, or a table that names a text, a file, or the items of a task.
#[derive(Debug)]
pub(super) struct Corpus(pub CorpusRef);

/// A corpus as a table
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CorpusTable {
    path: Option<PathBuf>,
    field: Option<String>,
    name: Option<String>,
    task: Option<String>,
    items: Option<PathBuf>,
    half: Option<Half>,
}

impl CorpusTable {
    /// What it names, or what is wrong with it.
    fn corpus(self) -> Result<CorpusRef, &'static str> {
        let Self { path, field, name, task, items, half } = self;
        if field.is_some() && path.is_none() {
            return Err("`field` belongs to `path`, a file of JSON lines");
        }
        if items.is_some() && task.is_none() {
            return Err("`items` belongs to `task`");
        }
        let whole = match (path, name, task) {
            (Some(path), None, None) => CorpusRef::File { path, field },
            (None, Some(name), None) => CorpusRef::Named(name),
            (None, None, Some(task)) => return Ok(CorpusRef::Task { task, half, items }),
            _ => return Err("a corpus has one of `path`, `name` and `task`"),
        };
        Ok(match half {
            Some(half) => CorpusRef::Half { whole: Box::new(whole), half },
            None => whole,
        })
    }
}

impl<'de> Deserialize<'de> for Corpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrFile;
        impl<'de> Visitor<'de> for NameOrFile {
            type Value = Corpus;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a corpus, or { path = \"…\" }")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Corpus, E> {
                Ok(Corpus(CorpusRef::Named(name.to_string())))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Corpus, A::Error> {
                let table = CorpusTable::deserialize(MapAccessDeserializer::new(map))?;
                table.corpus().map(Corpus).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(NameOrFile)
    }
}

/// Every block of the file under the name it has in `docs/format.md`, with the keys it takes.
pub(super) fn keys() -> Vec<(String, Vec<&'static str>)> {
    fn of<'de, T: Deserialize<'de>>() -> Vec<&'static str> {
        fields(|capture| T::deserialize(capture).err())
    }
    let mut blocks = vec![
        ("the top of the file".to_string(), of::<Document>()),
        ("`[sweep]`".to_string(), of::<Sweep>()),
        ("`exclude`".to_string(), of::<Exclude>()),
        ("`[model.NAME]`".to_string(), of::<Model>()),
        ("`[calibration.NAME]`".to_string(), of::<Calibration>()),
        ("a corpus as a table".to_string(), of::<CorpusTable>()),
        ("`[recipe.NAME]`".to_string(), of::<Recipe>()),
        ("`[[evaluate]]`, metric `perplexity`".to_string(), [&["metric"], &of::<Perplexity>()[..]].concat()),
        ("`[[evaluate]]`, metric `layer-error`".to_string(), [&["metric"], &of::<LayerError>()[..]].concat()),
        ("`calibration` of `layer-error`".to_string(), of::<Separate>()),
        ("`[[evaluate]]`, metric `speed`".to_string(), [&["metric"], &of::<Speed>()[..]].concat()),
        ("`[[evaluate]]`, a task".to_string(), [&["task"], &of::<Task>()[..]].concat()),
        ("`[[expect]]`".to_string(), of::<Expect>()),
    ];
    for (name, method) in steps::STEPS {
        let keys = fields(|capture| Step::read(name, *method, capture).and_then(Result::err));
        blocks.push(match method {
            Some(method) => {
                (format!("step `{name}`, method `{method}`"), [&["step", "method"], &keys[..]].concat())
            }
            None => (format!("step `{name}`"), [&["step"], &keys[..]].concat()),
        });
    }
    blocks
}

/// The field names that a derived `Deserialize` asks for.
fn fields(read: impl FnOnce(Fields<'_>) -> Option<de::value::Error>) -> Vec<&'static str> {
    let mut found = Vec::new();
    read(Fields(&mut found)).expect("the capturing deserializer always fails");
    found
}

/// A deserializer that notes the fields it is asked for, and fails.
struct Fields<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.extend(fields);
        Err(de::Error::custom("only the fields were wanted"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
