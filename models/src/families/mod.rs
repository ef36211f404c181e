//! The registry of families: one file and one line each.
//!
//! A family is data: how its `config.json` becomes an [`Architecture`], and what its tensors are called.

use serde_json::Value;

use crate::architecture::Architecture;

mod llama;

/// A family of checkpoints.
pub struct Family {
    /// Its name in records and lists.
    pub name: &'static str,
    /// What it covers.
    pub covers: &'static str,
    /// Values of `architectures` in `config.json` that it reads.
    pub architectures: &'static [&'static str],
    /// Names of its tensors.
    pub names: &'static WeightNames,
    /// Reads `config.json`.
    pub read: fn(&Config) -> Result<Architecture, ConfigError>,
}

/// Every family, in alphabetical order.
pub const FAMILIES: &[Family] = &[llama::FAMILY];

/// Names of a family's tensors, without `.weight`; the embedding's with it.
#[derive(Debug)]
pub struct WeightNames {
    /// Embedding table.
    pub embedding: &'static str,
    /// Prefix of a block, `{}` standing for its index.
    pub block: &'static str,
    /// Norm before attention.
    pub attn_norm: &'static str,
    /// Query projection.
    pub q: &'static str,
    /// Key projection.
    pub k: &'static str,
    /// Value projection.
    pub v: &'static str,
    /// Output projection of attention.
    pub o: &'static str,
    /// Norm before the feed-forward part.
    pub mlp_norm: &'static str,
    /// Gate projection.
    pub gate: &'static str,
    /// Up projection.
    pub up: &'static str,
    /// Down projection.
    pub down: &'static str,
    /// Final norm.
    pub final_norm: &'static str,
    /// Output head.
    pub head: &'static str,
    /// Endings of tensors that checkpoints carry and no forward pass reads.
    pub ignored: &'static [&'static str],
}

impl WeightNames {
    /// The full name of a part of block `layer`.
    pub fn block(&self, layer: usize, part: &str) -> String {
        format!("{}.{part}", self.block.replace("{}", &layer.to_string()))
    }
}

/// What is wrong with a `config.json`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The file names no architecture.
    #[error("`architectures` is missing or empty")]
    NoArchitecture,
    /// No family reads it.
    #[error("unsupported architecture `{found}`; supported: {supported}")]
    UnsupportedArchitecture {
        /// What the file says.
        found: String,
        /// What is there.
        supported: String,
    },
    /// A field that the architecture needs.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A field of another type than expected.
    #[error("`{field}` should be {expected}, not {found}")]
    WrongType {
        /// The field.
        field: String,
        /// A type, in words.
        expected: &'static str,
        /// The JSON found.
        found: String,
    },
    /// A value that would change the result and is not implemented.
    #[error("`{field}` = {found} is not supported: {supported}")]
    UnsupportedValue {
        /// The field.
        field: String,
        /// The JSON found.
        found: String,
        /// What is.
        supported: String,
    },
    /// Fields that contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

/// A parsed `config.json`.
#[derive(Debug, Clone)]
pub struct Config(pub Value);

impl Config {
    /// The family that reads this config.
    pub fn family(&self) -> Result<&'static Family, ConfigError> {
        let found = self.0["architectures"][0].as_str().ok_or(ConfigError::NoArchitecture)?;
        FAMILIES.iter().find(|family| family.architectures.contains(&found)).ok_or_else(|| {
            let supported: Vec<_> = FAMILIES.iter().flat_map(|f| f.architectures.iter().copied()).collect();
            ConfigError::UnsupportedArchitecture { found: found.into(), supported: supported.join(", ") }
        })
    }

    /// A field, `None` where it is absent or null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// A positive whole number, where present.
    pub fn size(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        self.get(field)
            .map(|value| match value.as_u64() {
                Some(n) if n > 0 => Ok(n as usize),
                _ => Err(wrong_type(field, "a positive whole number", value)),
            })
            .transpose()
    }

    /// A positive whole number that must be there.
    pub fn required_size(&self, field: &'static str) -> Result<usize, ConfigError> {
        self.size(field)?.ok_or(ConfigError::Missing(field))
    }

    /// A number, where present.
    pub fn number(&self, field: &str) -> Result<Option<f64>, ConfigError> {
        self.get(field)
            .map(|value| value.as_f64().ok_or_else(|| wrong_type(field, "a number", value)))
            .transpose()
    }

    /// A truth value, where present.
    pub fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        self.get(field)
            .map(|value| value.as_bool().ok_or_else(|| wrong_type(field, "true or false", value)))
            .transpose()
    }
}

fn wrong_type(field: &str, expected: &'static str, found: &Value) -> ConfigError {
    ConfigError::WrongType { field: field.into(), expected, found: found.to_string() }
}
