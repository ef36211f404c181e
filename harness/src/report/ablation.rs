//! The ablation lattice of training: recipes that are equal but for what is trained and for a prompt in full precision.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::record::{Contents, canonical_json};
use crate::report::pivot::distinct;
use crate::report::recipes::{self, Draw, Entry, is_kv};

/// Parts in the order in which they are added, as recipes and tables write them.
pub const PARTS: [&str; 4] = ["clipping", "smoothing", "low-rank", "prompt"];

/// A place of the lattice: which of [`PARTS`] a recipe has.
pub type Parts = BTreeSet<usize>;

/// Recipes of one model that differ in their parts alone.
pub struct Lattice<'a> {
    /// The model's label.
    pub model: &'a str,
    /// Calibration set and seed.
    pub draw: Draw<'a>,
    /// What a reader calls the recipe without any part.
    pub host: String,
    /// From few parts to many.
    pub members: Vec<(Parts, Entry<'a>)>,
}

/// A step that trains.
pub fn is_tune(step: &Value) -> bool {
    step.get("step").and_then(Value::as_str) == Some("tune")
}

/// The lattices of a metric: two members at least, one of them trained.
pub fn lattices<'a>(contents: &'a Contents, metric: &str) -> Vec<Lattice<'a>> {
    let entries = recipes::entries(contents, metric);
    let shown: Vec<Entry<'a>> =
        entries.iter().filter(|entry| !entry.is_original() && entry.value().is_some()).copied().collect();
    let trained: Vec<&Entry<'a>> = shown.iter().filter(|entry| entry.step(is_tune).is_some()).collect();
    let key = |entry: &Entry<'_>| bare(entry).iter().map(canonical_json).collect::<Vec<_>>().join("\n");
    let families = distinct(trained.iter().map(|entry| (entry.model(), entry.draw(), key(entry))));
    let mut lattices = Vec::new();
    for (model, draw, family) in families {
        let of_family =
            |entry: &&Entry<'a>| entry.model() == model && entry.is_of(draw) && key(entry) == family;
        let mut members: Vec<(Parts, Entry<'a>)> =
            shown.iter().filter(of_family).map(|entry| (parts(entry), *entry)).collect();
        // Stable: recipes of equal parts, which differ in the keys of training, stand as the experiment has them.
        members.sort_by_key(|(parts, _)| (parts.len(), parts.clone()));
        if members.len() > 1 {
            let steps = bare(&members[0].1);
            let host = recipes::host_name(&steps.iter().collect::<Vec<_>>());
            lattices.push(Lattice { model, draw, host, members });
        }
    }
    lattices
}

/// A recipe's steps without its parts.
fn bare(entry: &Entry<'_>) -> Vec<Value> {
    let plain = |step: &Value| {
        let mut step = step.clone();
        if let (true, Some(keys)) = (is_kv(&step), step.as_object_mut()) {
            keys.remove("prompt");
        }
        step
    };
    entry.without(&[is_tune]).into_iter().map(plain).collect()
}

fn parts(entry: &Entry<'_>) -> Parts {
    let components = entry.step(is_tune).and_then(|step| step.get("components")?.as_array());
    let trained = components.into_iter().flatten().filter_map(Value::as_str);
    let prompt = entry.step(is_kv).and_then(|step| step.get("prompt")?.as_u64()).unwrap_or(0) > 0;
    let words = trained.chain(prompt.then_some("prompt"));
    words.filter_map(|word| PARTS.iter().position(|part| *part == word)).collect()
}

/// `host`, `clipping + smoothing`.
pub fn name(parts: &Parts) -> String {
    if parts.is_empty() {
        return "host".to_owned();
    }
    parts.iter().map(|&part| PARTS[part]).collect::<Vec<_>>().join(" + ")
}

impl<'a> Lattice<'a> {
    /// The members that lack exactly one part of another.
    pub fn before(&self, parts: &Parts) -> Vec<&(Parts, Entry<'a>)> {
        self.members.iter().filter(|(own, _)| own.len() + 1 == parts.len() && own.is_subset(parts)).collect()
    }
}
