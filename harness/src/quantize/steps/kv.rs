//! `kv`: round keys and values to a grid as they enter the cache.
//!
//! # Equation
//! x̂ = Δ·(clamp(round(x/Δ) + z) − z), for a token's keys and values, one (Δ, z) for each share:
//!
//! | granularity | who shares (Δ, z) | where it comes from |
//! |---|---|---|
//! | `token` | a token's keys (or values) in all heads | the values themselves |
//! | `head` | a token's in one head: Atom's, QuaRot's with groups of a head's width | the values themselves |
//! | `group(n)` | n neighbouring channels of a token in one head | the values themselves |
//! | `channel` | a channel of a head at all tokens: static | smallest and largest value over the calibration set |
//!
//! A token is rounded once, when it enters, by what it holds itself; later tokens never change it, so one pass over a text
//! computes what decoding it token by token does. A token's own key and value are rounded before it reads them, as the
//! published codes simulate it. A scale per channel that is dynamic would need tokens still to come, or a window in full
//! precision (KIVI): it is not here. Keys and values of a prefix are never rounded.
//!
//! # Parameters
//! `bits` 2–8, or 16 for none, of both; `key-bits` and `value-bits` in its place or beside it · `granularity` token, head,
//! group(n) or channel · `symmetric` · `convention` · `clip` shrinks the range before the scale is chosen ·
//! `keys` after-rope or before-rope: rounded as attention reads them, or as the linear layer gives them, position free ·
//! `prompt`: so many tokens from the start of every sequence, behind a prefix where there is one, stay in full precision.
//!
//! # Reference
//! Keys before rotary embedding: Atom (arXiv:2310.19102, per head) and KVQuant (arXiv:2401.18079, per channel, on a grid
//! that is not uniform); after it: QuaRot (arXiv:2404.00456, per head, clip 0.95). `prompt` is our reading of BiSup's prompt
//! mixed precision (arXiv:2405.15346), whose system prompt may as well be a `prefix`; KVQuant's code keeps the first few
//! tokens in 16 bits, too.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::Tensor;
use models::{Port, Site, Tap, token_tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::hidden::Hidden;
use crate::quantize::cache_rounding::{CacheGranularity, CacheRule};
use crate::quantize::effective_bits::{Tally, stored};
use crate::quantize::grid::{Convention, Grid};
use crate::quantize::steps::Stage;
use crate::quantize::{Method, ModelFacts, ModelInFlight, StepError, admissible};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kv {
    /// 2 to 8, or 16 for no rounding, of keys and values. Default: none where `key-bits` and `value-bits` are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// Of keys. Default: `bits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_bits: Option<u8>,
    /// Of values. Default: `bits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_bits: Option<u8>,
    /// Who shares a scale. Default: `head`.
    #[serde(default = "head")]
    pub granularity: CacheGranularity,
    /// Without a zero point. Default: false.
    #[serde(default)]
    pub symmetric: bool,
    /// Default: `absmax` where symmetric, `zero-in-range` where not.
    #[serde(default)]
    pub convention: Option<Convention>,
    /// Factor on the range, 0 < clip ≤ 1. Default: 1.
    #[serde(default = "one")]
    pub clip: f32,
    /// Which keys are rounded. Default: `after-rope`.
    #[serde(default)]
    pub keys: Keys,
    /// Tokens from the start of every sequence that stay in full precision. Default: 0.
    #[serde(default)]
    pub prompt: usize,
}

/// Where keys are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keys {
    /// As attention reads them.
    #[default]
    AfterRope,
    /// As the linear layer gives them; they are turned after it.
    BeforeRope,
}

impl Kv {
    /// The same step with its convention and both widths written out.
    pub fn resolved(mut self) -> Self {
        self.convention = Some(self.convention.unwrap_or(admissible::default_convention(self.symmetric)));
        self.key_bits = self.key_bits.or(self.bits);
        self.value_bits = self.value_bits.or(self.bits);
        self.bits = None;
        self
    }

    /// Bits of keys and of values.
    pub fn widths(&self) -> [u8; 2] {
        [self.key_bits, self.value_bits].map(|own| own.or(self.bits).unwrap_or(16))
    }

    /// The port at which keys are rounded.
    fn key_port(&self) -> Port {
        match self.keys {
            Keys::AfterRope => Port::K,
            Keys::BeforeRope => Port::KPre,
        }
    }

    /// What is rounded, and to which grid.
    fn grids(&self) -> Vec<(Port, Grid)> {
        let ports = [self.key_port(), Port::V].into_iter().zip(self.widths());
        let grid = |bits| admissible::grid(bits, self.symmetric, self.convention);
        ports.filter_map(|(port, bits)| Some((port, grid(bits)?))).collect()
    }

    /// Refuses heads whose channels make no groups.
    fn check_heads(&self, site: Site, head_dim: usize) -> Result<(), StepError> {
        match self.granularity {
            CacheGranularity::Group(n) => StepError::check_group(&site.to_string(), n, head_dim),
            _ => Ok(()),
        }
    }

    /// The range of every channel of every head over the calibration set, in the floating-point model, behind its prefix
    /// and without the first `exact` positions.
    fn ranges(&self, model: &mut ModelInFlight, exact: usize) -> Result<Ranges, StepError> {
        let start = model.calibrator.start();
        let ports = self.grids().into_iter().map(|(port, _)| port).collect();
        let mut ranges = Ranges { ports, exact, ..Ranges::default() };
        let device = model.decoder.device();
        let states = |error: std::io::Error| StepError::States(error.to_string());
        let mut stream: Hidden = model.carried.take().unwrap_or_default();
        if model.decoder.has_table() {
            for sample in model.calibrator.samples() {
                let fed = &sample[usize::from(model.decoder.stands_for_first(start, sample))..];
                stream.push(model.decoder.embed(token_tensor(&[fed], &device))).map_err(states)?;
            }
        }
        let layers = model.decoder.architecture.layers;
        for layer in model.decoder.blocks.layers() {
            if !model.calibrator.progress(layer, layers) {
                return Err(StepError::Interrupted);
            }
            for sample in 0..stream.len() {
                let x = stream.get(sample, &device).map_err(states)?;
                let x = model.decoder.through_block(layer, x, &mut ranges);
                stream.put(sample, x).map_err(states)?;
            }
        }
        model.carried.put(stream);
        if ranges.found.is_empty() && !model.decoder.blocks.is_empty() {
            let text = "static scales of the cache need a calibration set whose samples are longer than the `prompt` and \
                        the prefix together";
            return Err(StepError::TooLittle(text.into()));
        }
        Ok(ranges)
    }
}

impl Method for Kv {
    fn stage(&self) -> Stage {
        Stage::Quantize
    }

    fn check(&self) -> Result<(), String> {
        for (key, own) in [("bits", self.bits), ("key-bits", self.key_bits), ("value-bits", self.value_bits)]
        {
            own.map_or(Ok(()), |bits| admissible::bits_of(key, bits))?;
        }
        match (self.bits, self.key_bits, self.value_bits) {
            (None, None, _) => return Err("`bits` is missing, or `key-bits`".into()),
            (None, _, None) => return Err("`bits` is missing, or `value-bits`".into()),
            (Some(_), Some(_), Some(_)) => {
                return Err("`bits` says nothing beside `key-bits` and `value-bits`: leave it out".into());
            }
            _ => {}
        }
        admissible::convention(self.convention, self.symmetric)?;
        admissible::clip(self.clip)
    }

    fn claims(&self) -> Vec<String> {
        let ports = self.grids().into_iter().map(|(port, _)| port);
        ports
            .map(|port| match port {
                Port::V => "the values of the cache".to_string(),
                _ => "the keys of the cache".to_string(),
            })
            .collect()
    }

    fn needs_calibration(&self) -> bool {
        self.granularity == CacheGranularity::Channel && !self.grids().is_empty()
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        let (context, head_dim) = (facts.architecture.context, facts.architecture.attention.head_dim);
        if self.prompt >= context {
            return Err(StepError::Prompt { prompt: self.prompt, context });
        }
        let mut grids = self.grids().into_iter();
        grids.try_for_each(|(port, _)| self.check_heads(Site::block(0, port), head_dim))
    }

    fn store(&self, tally: &mut Tally) {
        let grids = self.grids();
        for &(port, grid) in &grids {
            let bits = match self.granularity {
                CacheGranularity::Token => stored(grid, tally.kv_heads * tally.head_dim),
                CacheGranularity::Head => stored(grid, tally.head_dim),
                CacheGranularity::Group(n) => stored(grid, n),
                CacheGranularity::Channel => f64::from(grid.bits()),
            };
            let blocks = if port == Port::V { &mut tally.values } else { &mut tally.keys };
            blocks.fill(bits);
        }
        if !grids.is_empty() {
            tally.exact_tokens += self.prompt;
        }
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let shape = model.decoder.architecture.attention.clone();
        let prefix = model.decoder.prefix.as_ref().map_or(0, |prefix| prefix.tokens.len());
        let exact = prefix + self.prompt;
        if exact >= model.decoder.architecture.context {
            let context = model.decoder.architecture.context;
            return Err(StepError::Prompt { prompt: self.prompt, context });
        }
        let grids = self.grids();
        let mut ranges = Ranges::default();
        if self.needs_calibration() {
            ranges = self.ranges(model, exact)?;
        }
        let mut sites = 0u64;
        for layer in model.decoder.blocks.layers() {
            for &(port, grid) in &grids {
                let site = Site::block(layer, port);
                self.check_heads(site, shape.head_dim)?;
                let fit = |&(lo, hi): &(f32, f32)| grid.fit(lo, hi, self.clip);
                let scales =
                    ranges.found.get(&site).map_or(Vec::new(), |found| found.iter().map(fit).collect());
                let (granularity, clip) = (self.granularity, self.clip);
                model.tap.cache.insert(site, CacheRule { grid, granularity, clip, exact, scales });
                sites += 1;
            }
        }
        let mut report = Map::new();
        report.insert("sites".into(), sites.into());
        report.insert("exact-tokens".into(), exact.into());
        if let Some(scales) = extremes(&model.tap.cache) {
            report.insert("scales".into(), scales);
        }
        Ok(report)
    }
}

/// The smallest and largest static Δ of every site; `None` where all are dynamic.
fn extremes(rules: &HashMap<Site, CacheRule>) -> Option<Value> {
    let fixed: BTreeMap<Site, &CacheRule> =
        rules.iter().filter(|(_, rule)| !rule.scales.is_empty()).map(|(site, rule)| (*site, rule)).collect();
    let of = |rule: &CacheRule| {
        let deltas = rule.scales.iter().map(|scale| scale.delta);
        let (lo, hi) = deltas.fold((f32::INFINITY, 0f32), |(lo, hi), delta| (lo.min(delta), hi.max(delta)));
        json!({ "smallest-delta": lo, "largest-delta": hi })
    };
    let entries: Map<String, Value> =
        fixed.into_iter().map(|(site, rule)| (site.to_string(), of(rule))).collect();
    (!entries.is_empty()).then_some(Value::Object(entries))
}

/// Smallest and largest value of every channel of every head.
#[derive(Default)]
struct Ranges {
    ports: Vec<Port>,
    /// Positions that are never rounded, and not looked at.
    exact: usize,
    position: usize,
    /// By head and channel.
    found: BTreeMap<Site, Vec<(f32, f32)>>,
}

impl Tap for Ranges {
    fn begin(&mut self, past: usize) {
        self.position = past;
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        let [sequences, heads, tokens, head_dim] = x.dims();
        let skipped = self.exact.saturating_sub(self.position).min(tokens);
        if skipped == tokens || !self.ports.contains(&site.port) {
            return x;
        }
        let data = x.clone().narrow(2, skipped, tokens - skipped).try_into_data();
        let data = data.expect("keys and values can be read from their device");
        let values = data.as_slice::<f32>().expect("keys and values are f32");
        let nothing = (f32::INFINITY, f32::NEG_INFINITY);
        let ranges = self.found.entry(site).or_insert_with(|| vec![nothing; heads * head_dim]);
        for (index, row) in values.chunks_exact(head_dim).enumerate() {
            let head = index / (tokens - skipped) % heads;
            for (range, &value) in ranges[head * head_dim..][..head_dim].iter_mut().zip(row) {
                *range = (range.0.min(value), range.1.max(value));
            }
        }
        debug_assert_eq!(values.len(), sequences * heads * (tokens - skipped) * head_dim);
        x
    }
}

fn head() -> CacheGranularity {
    CacheGranularity::Head
}
fn one() -> f32 {
    1.0
}
