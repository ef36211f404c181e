//! `config.json`: its fields by type, and what several families read alike.

use serde_json::Value;

use super::{FAMILIES, Family};
use crate::architecture::{
    Activation, Attention, AttentionBias, Cap, Head, LocalRope, Norm, Pairs, QkNorm, Rope, RopeScaling,
    ScoreScale, Window,
};

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

/// No model's width or vocabulary is near.
const LARGEST: usize = 1 << 24;

/// No model has as many blocks or experts.
const MOST_PARTS: usize = 1 << 12;

/// A parsed `config.json`.
#[derive(Debug, Clone)]
pub struct Config(pub Value);

impl Config {
    /// The family that reads this config.
    pub fn family(&self) -> Result<&'static Family, ConfigError> {
        let found = self.0["architectures"][0].as_str().ok_or(ConfigError::NoArchitecture)?;
        if let Some(found) = self.get("quantization_config") {
            return Err(unsupported("quantization_config", found, "weights in f32, f16 or bf16"));
        }
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

    /// A positive whole number that must be there, of channels, tokens or heads: products of two of them are bytes.
    pub fn required_size(&self, field: &'static str) -> Result<usize, ConfigError> {
        self.at_most(field, LARGEST)?.ok_or(ConfigError::Missing(field))
    }

    /// How many blocks or experts there are, where present: what plans and tallies go through one by one.
    pub(super) fn parts(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        self.at_most(field, MOST_PARTS)
    }

    /// How many blocks there are.
    pub(super) fn layers(&self) -> Result<usize, ConfigError> {
        self.parts("num_hidden_layers")?.ok_or(ConfigError::Missing("num_hidden_layers"))
    }

    fn at_most(&self, field: &str, most: usize) -> Result<Option<usize>, ConfigError> {
        match self.size(field)? {
            Some(n) if n > most => Err(unsupported(field, &n.into(), &format!("1 to {most}"))),
            size => Ok(size),
        }
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

/// What several families read alike.
impl Config {
    /// Grouped-query attention over everything, with biases where `attention_bias` asks for them. Without
    /// `num_key_value_heads` every head has keys of its own; without `head_dim`, heads share the hidden channels, or
    /// have `default_head_dim`.
    pub(super) fn attention(&self, default_head_dim: Option<usize>) -> Result<Attention, ConfigError> {
        let hidden = self.required_size("hidden_size")?;
        let heads = self.required_size("num_attention_heads")?;
        let kv_heads = self.size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(ConfigError::Contradiction(format!(
                "`num_key_value_heads` = {kv_heads} does not divide `num_attention_heads` = {heads}"
            )));
        }
        let head_dim = match self.size("head_dim")?.or(default_head_dim) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(ConfigError::Contradiction(format!(
                    "`head_dim` is absent and `num_attention_heads` = {heads} does not divide `hidden_size` = {hidden}"
                )));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(ConfigError::Contradiction(format!(
                "`head_dim` = {head_dim} is odd: rotary embedding needs pairs"
            )));
        }
        let bias = self.flag("attention_bias")?.unwrap_or(false);
        Ok(Attention {
            heads,
            kv_heads,
            head_dim,
            bias: if bias { AttentionBias::All } else { AttentionBias::Absent },
            window: Window::Absent,
            scale: ScoreScale::HeadDim,
            cap: Cap::Absent,
            qk_norm: QkNorm::Absent,
        })
    }

    /// Rotary embedding. Older files say `rope_theta` and `rope_scaling`, newer ones put both into `rope_parameters`.
    pub(super) fn rope(&self, default_theta: f64) -> Result<Rope, ConfigError> {
        self.rope_of(self.get("rope_parameters"), default_theta)
    }

    /// As [`Config::rope`], from given `rope_parameters`.
    pub(super) fn rope_of(&self, newer: Option<&Value>, default_theta: f64) -> Result<Rope, ConfigError> {
        let partial = newer.and_then(|newer| newer.get("partial_rotary_factor"));
        if let Some(partial) = partial.or_else(|| self.get("partial_rotary_factor"))
            && partial.as_f64() != Some(1.0)
        {
            return Err(unsupported("partial_rotary_factor", partial, "1"));
        }
        let theta = match newer.and_then(|newer| newer.get("rope_theta")) {
            Some(theta) => theta.as_f64(),
            None => self.number("rope_theta")?,
        }
        .unwrap_or(default_theta);
        let scaling = match newer.or_else(|| self.get("rope_scaling")) {
            Some(scaling) => rope_scaling(scaling, newer.is_some())?,
            None => RopeScaling::Plain,
        };
        Ok(Rope { theta, scaling, pairs: Pairs::Halves, local: LocalRope::Same })
    }

    /// The window of each block, where `layer_types` or else `slides` gives it one.
    pub(super) fn window(
        &self,
        tokens: Option<usize>,
        layers: usize,
        slides: impl Fn(usize) -> bool,
    ) -> Result<Window, ConfigError> {
        let blocks: Vec<usize> = match self.get("layer_types") {
            None => (0..layers).filter(|&layer| slides(layer)).collect(),
            Some(listed) => {
                let types: Vec<_> = listed.as_array().into_iter().flatten().map(Value::as_str).collect();
                let known =
                    |kind: &Option<&str>| matches!(kind, Some("sliding_attention" | "full_attention"));
                if types.len() != layers || !types.iter().all(known) {
                    let supported = "one of sliding_attention and full_attention for every block";
                    return Err(unsupported("layer_types", listed, supported));
                }
                (0..layers).filter(|&layer| types[layer] == Some("sliding_attention")).collect()
            }
        };
        match tokens {
            Some(tokens) => Ok(Window::in_blocks(tokens, blocks, layers)),
            None if blocks.is_empty() || self.get("layer_types").is_none() => Ok(Window::Absent),
            None => Err(ConfigError::Contradiction(
                "`layer_types` names blocks with a window, and `sliding_window` gives none".into(),
            )),
        }
    }

    /// A length of `field`: `default` where the file does not name it, none where it says null.
    pub(super) fn size_or(&self, field: &str, default: usize) -> Result<Option<usize>, ConfigError> {
        if self.0.get(field).is_none() { Ok(Some(default)) } else { self.size(field) }
    }

    /// A whole number that may be 0, where present.
    pub(super) fn count(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        let count = |value: &Value| value.as_u64().ok_or_else(|| wrong_type(field, "a whole number", value));
        Ok(self.get(field).map(count).transpose()?.map(|n| n as usize))
    }

    /// A cap: `default` where the file does not name it, none where it says null.
    pub(super) fn cap(&self, field: &str, default: Option<f64>) -> Result<Option<f64>, ConfigError> {
        let cap = if self.0.get(field).is_none() { default } else { self.number(field)? };
        match cap {
            Some(cap) if cap.is_nan() || cap <= 0.0 => {
                Err(unsupported(field, &Value::from(cap), "numbers above 0, and null"))
            }
            cap => Ok(cap),
        }
    }

    /// An activation by the hub's name, one of `supported`; the first of them where the file names none.
    pub(super) fn activation(
        &self,
        field: &str,
        supported: &[(&'static str, Activation)],
    ) -> Result<Activation, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(supported[0].1) };
        let known = supported.iter().find(|(name, _)| value.as_str() == Some(name));
        known.map(|(_, activation)| *activation).ok_or_else(|| {
            let names: Vec<_> = supported.iter().map(|(name, _)| *name).collect();
            unsupported(field, value, &names.join(", "))
        })
    }

    /// Whether the head shares the embedding's table.
    pub(super) fn head(&self, tied_by_default: bool) -> Result<Head, ConfigError> {
        let tied = self.flag("tie_word_embeddings")?.unwrap_or(tied_by_default);
        Ok(if tied { Head::Tied } else { Head::Untied })
    }

    /// RMSNorm with the ε of `rms_norm_eps`.
    pub(super) fn rms_norm(&self, default_eps: f64) -> Result<Norm, ConfigError> {
        Ok(Norm::Rms { eps: self.number("rms_norm_eps")?.unwrap_or(default_eps) })
    }

    /// Gemma's RMSNorm.
    pub(super) fn rms_norm_offset(&self) -> Result<Norm, ConfigError> {
        Ok(Norm::RmsOffset { eps: self.number("rms_norm_eps")?.unwrap_or(1e-6) })
    }

    /// Refuses a field whose value is not the one that the forward pass computes with. Absent and null are that value.
    pub(super) fn only(&self, field: &str, supported: impl Into<Value>) -> Result<(), ConfigError> {
        let supported = supported.into();
        match self.get(field) {
            Some(value) if *value != supported => Err(unsupported(field, value, &supported.to_string())),
            _ => Ok(()),
        }
    }
}

fn rope_scaling(scaling: &Value, newer: bool) -> Result<RopeScaling, ConfigError> {
    let number =
        |field: &'static str| scaling.get(field).and_then(Value::as_f64).ok_or(ConfigError::Missing(field));
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
    match kind.map(Value::as_str) {
        None if newer => Ok(RopeScaling::Plain),
        Some(Some("default")) => Ok(RopeScaling::Plain),
        Some(Some("linear")) => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some(Some("llama3")) => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")? as usize,
        }),
        _ => Err(unsupported("rope_scaling", scaling, "default, linear, llama3")),
    }
}

pub(super) fn unsupported(field: &str, found: &Value, supported: &str) -> ConfigError {
    ConfigError::UnsupportedValue {
        field: field.into(),
        found: found.to_string(),
        supported: format!("supported: {supported}"),
    }
}

fn wrong_type(field: &str, expected: &'static str, found: &Value) -> ConfigError {
    ConfigError::WrongType { field: field.into(), expected, found: found.to_string() }
}
