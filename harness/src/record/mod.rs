//! What a run leaves behind: cells, measurements, failures, and the manifest that names them.
//!
//! Knows nothing of Burn, models or devices, so that a report can be made on any machine. In each file `result` is
//! deterministic and hashed; `execution` (times, host, memory) is neither.
//!
//! ```text
//! results/<experiment>/
//!   store.json                                    the schema it was written with
//!   manifest.json                                 what the experiment asked for when it last ran: labels, ids, metrics
//!   cells/<cell id>/cell.json                     what the cell is, what was fitted, provenance
//!   cells/<cell id>/measurements/<key>.json       one write-once file per measurement
//!   cells/<cell id>/items/<key>.parquet           a task's items, one write-once file per task; see `items`
//!   cells/<cell id>/layers/<key>.*parquet         layer-wise errors, three write-once files per evaluation; see `layers`
//!   statistics/<id>/                              what activations look like; see `statistics`
//!   failures/<cell id>[.<key>].json               the last failure of a cell or measurement; removed when it succeeds
//!   claims/<cell id>[.<key>]                      who is computing it now
//!   tmp/<host>-<process>-<n>/                     what is not whole yet
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub mod effective_bits;
pub mod execution;
pub mod id;
pub mod items;
pub mod layers;
pub mod statistics;
pub mod store;

pub use effective_bits::EffectiveBits;
pub use execution::Execution;
pub use store::statistics::StoredStatistics;
pub use store::{StoredItems, StoredLayers};

/// The version of every file format in a store. A store with a higher number was written by a newer program.
pub const SCHEMA: u32 = 1;

/// The metrics of readings against the original on the same tokens. Their ids go on with the protocol of the perplexity
/// that they stand beside.
pub const AGAINST_ORIGINAL: [&str; 3] = ["kl-divergence", "top1-agreement", "log-perplexity-difference"];

/// The last segment of their ids where they are of the noise floor, which the original has in place of a comparison with
/// itself.
pub const NOISE_FLOOR: &str = "noise-floor";

/// A file of a record: a deterministic part, its hash, and how it came to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`SCHEMA`] at the time of writing.
    pub schema: u32,
    /// The deterministic part: two runs on one device write the same bytes.
    pub result: T,
    /// blake3 of the canonical JSON of `result`, in hexadecimal.
    pub result_hash: String,
    /// Times, host, memory: what may differ between two runs.
    pub execution: Execution,
}

/// Where a model's bytes came from and what they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// Name in tables: hub id, local name, or `builtin/…`.
    pub name: String,
    /// `builtin`, `local` or `hub`, with the revision for the hub.
    pub origin: String,
    /// Family name, as `list families` prints it.
    pub family: String,
    /// Number of parameters.
    pub parameters: u64,
    /// blake3 of the weights' content (tensor names, shapes, types and bytes in name order).
    pub weights: String,
    /// blake3 of `tokenizer.json` and what else decides its token ids.
    pub tokenizer: String,
}

/// One of the three states a measurement can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// The checkpoint as it came.
    Original,
    /// After function-preserving steps, before any grid.
    Transformed,
    /// After all steps.
    Quantized,
}

impl Reading {
    /// The word used in tables and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Reading::Original => "original",
            Reading::Transformed => "transformed",
            Reading::Quantized => "quantized",
        }
    }
}

/// `cell.json`, the deterministic part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// Content id: a hash of what produces the quantized model.
    pub id: String,
    /// The model.
    pub model: ModelIdentity,
    /// The recipe's steps with every default resolved; empty for the original.
    pub steps: Vec<Value>,
    /// What calibrated it: corpus, samples, length, policy, hash of the token ids; `null` where nothing did.
    pub calibration: Option<Value>,
    /// The seed, where randomness was used.
    pub seed: Option<u64>,
    /// What was fitted or counted by each step, by step name and place (`0.weights`).
    pub fitted: Map<String, Value>,
    /// Ids of the activation statistics that its steps read: folders of `statistics/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statistics: Vec<String>,
    /// Bits per weight, activation, key and value; none in cells from before they were recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_bits: Option<EffectiveBits>,
}

/// A measurement, the deterministic part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasurementResult {
    /// The cell it belongs to.
    pub cell: String,
    /// Which state of the model was measured.
    pub reading: Reading,
    /// Full metric id, protocol included, e.g. `perplexity/gptq/wikitext2-test/2048/bos=tokenizer`.
    pub metric: String,
    /// Version of the metric's code; a change that can move a number raises it.
    pub version: u32,
    /// The value.
    pub value: f64,
    /// Standard error; `None` where there are too few items to tell.
    pub stderr: Option<f64>,
    /// Number of items (scored tokens, questions) behind the value.
    pub n: u64,
    /// Whatever else the metric reports (windows, hashes of the text, per-window values).
    pub detail: Map<String, Value>,
}

/// A failure of a cell or of one of its measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The cell, by content id where it was known, else by the id of its description.
    pub cell: String,
    /// The metric that failed, or `None` when the cell itself did.
    pub metric: Option<String>,
    /// `load`, `calibrate`, `transform`, `quantize`, `evaluate`.
    pub stage: String,
    /// What happened.
    pub message: String,
    /// What the user can do about it.
    pub cure: String,
    /// When, where, on what.
    pub execution: Execution,
}

/// The labels and ids an experiment last ran with; what a report reads besides the records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The experiment's name: its file's stem.
    pub experiment: String,
    /// Path of the experiment file as the user gave it, for the command that a report prints.
    pub file: String,
    /// The question it asks.
    pub question: String,
    /// Where the question comes from.
    pub reference: String,
    /// Prose about the results, once there is one.
    pub analysis: Option<String>,
    /// Models, recipes (with `original` first) and calibrations in the order of the file.
    pub models: Vec<String>,
    /// See `models`.
    pub recipes: Vec<String>,
    /// See `models`.
    pub calibrations: Vec<String>,
    /// By calibration set, the one to whose scores its own are normalised, where that is not the first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub calibration_references: BTreeMap<String, String>,
    /// Every planned cell.
    pub cells: Vec<ManifestCell>,
    /// Exclusions that took cells away, and warnings of the plan.
    pub notes: Vec<String>,
    /// Anchors to check.
    pub expectations: Vec<ManifestExpectation>,
}

/// A planned cell under the names the experiment gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestCell {
    /// Content id once known, else the id of the cell's description.
    pub id: String,
    /// Model label.
    pub model: String,
    /// Recipe label; `original` for the original.
    pub recipe: String,
    /// Calibration label, or `None`.
    pub calibration: Option<String>,
    /// Seed, or `None`.
    pub seed: Option<u64>,
    /// Full metric ids asked for.
    pub metrics: Vec<String>,
}

/// An `[[expect]]` block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestExpectation {
    /// Model label.
    pub model: String,
    /// Recipe label.
    pub recipe: String,
    /// Calibration label, where the experiment has several.
    pub calibration: Option<String>,
    /// Full metric id.
    pub metric: String,
    /// The expected value.
    pub value: f64,
    /// Allowed absolute difference.
    pub tolerance: f64,
    /// Where the value comes from.
    pub source: String,
}

impl ManifestExpectation {
    /// Whether a measured value lies within the tolerance.
    pub fn is_met_by(&self, measured: f64) -> bool {
        (measured - self.value).abs() <= self.tolerance
    }
}

/// Everything a report needs from one results folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// The manifest.
    pub manifest: Manifest,
    /// All cells present, by id, ascending.
    pub cells: Vec<Envelope<CellResult>>,
    /// All measurements present, by cell and metric, ascending.
    pub measurements: Vec<Envelope<MeasurementResult>>,
    /// All failures present.
    pub failures: Vec<Failure>,
    /// All activation statistics present, by id, ascending.
    pub statistics: Vec<StoredStatistics>,
    /// All per-item files present, by cell and name, ascending.
    pub items: Vec<StoredItems>,
    /// All files of layer-wise errors present, by cell and name, ascending.
    pub layers: Vec<StoredLayers>,
}

/// The file name under which a measurement is kept: a readable, file-system-safe form of its metric id and version.
pub fn measurement_key(metric: &str, version: u32) -> String {
    let readable: String = metric
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '=') { c } else { '_' })
        .collect();
    let hash = blake3::hash(format!("{metric}\u{0}{version}").as_bytes()).to_hex();
    format!("{}-{}", &readable[..readable.len().min(120)], &hash[..12])
}

/// blake3 of a value's [canonical JSON](canonical_json), in hexadecimal.
pub fn canonical_hash(value: &Value) -> String {
    blake3::hash(canonical_json(value).as_bytes()).to_hex().to_string()
}

/// A value as JSON that does not depend on the order of keys: keys sorted by code point, no white space, floats as
/// shortest round-trip decimals. `1` and `1.0` stay different.
pub fn canonical_json(value: &Value) -> String {
    fn join(out: &mut String, brackets: [char; 2], n: usize, mut item: impl FnMut(&mut String, usize)) {
        out.push(brackets[0]);
        for i in 0..n {
            if i > 0 {
                out.push(',');
            }
            item(out, i);
        }
        out.push(brackets[1]);
    }
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                join(out, ['{', '}'], entries.len(), |out, i| {
                    out.push_str(&Value::String(entries[i].0.clone()).to_string());
                    out.push(':');
                    write(entries[i].1, out);
                });
            }
            Value::Array(items) => join(out, ['[', ']'], items.len(), |out, i| write(&items[i], out)),
            other => out.push_str(&other.to_string()),
        }
    }
    let mut text = String::new();
    write(value, &mut text);
    text
}
