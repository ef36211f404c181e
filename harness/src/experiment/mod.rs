//! The experiment file: what a user asks, read, checked and named.
//!
//! [`Experiment::read`] turns the text into domain types: every default is resolved, every name is known to exist, and
//! every fault names its line, its block and the nearest valid word. Nothing here touches a tensor, a device, a
//! checkpoint or the network. `docs/format.md` is the reference of the file.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::{BosPolicy, CorpusRef};
use crate::names::glob;
use crate::quantize::steps::{Stage, Step};
use crate::record::Reading;

mod calibration;
mod evaluation;
mod parse;
mod recipe;
mod source;
mod wire;

pub use evaluation::{Evaluation, METRICS, Planned, TaskEvaluation, metric_page, task_names};
pub(crate) use parse::is_hub_id;
pub use source::Fault;

/// The name of the recipe without steps, which every experiment measures.
pub const ORIGINAL: &str = "original";

/// The models that ship with the program.
pub const BUILTIN_MODELS: &[&str] = &["builtin/tiny-llama", "builtin/tiny-llama-spiky"];

/// A question and the axes that answer it.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    /// The file's stem.
    pub name: String,
    /// The file as the user named it; relative corpora are looked up beside it.
    pub file: PathBuf,
    /// What the experiment asks.
    pub question: String,
    /// Where the question comes from, or `own`.
    pub reference: String,
    /// Prose about the results, once there is one.
    pub analysis: Option<String>,
    /// The swept models, in the order of `[sweep]`.
    pub models: Vec<Model>,
    /// The swept recipes, in the order of `[sweep]`, without `original`.
    pub recipes: Vec<Recipe>,
    /// The swept calibration sets, in the order of `[sweep]`.
    pub calibrations: Vec<Calibration>,
    /// The seeds, at least one.
    pub seeds: Vec<u64>,
    /// What the product leaves out.
    pub exclude: Vec<Exclusion>,
    /// What is measured of every cell, in the order of the file.
    pub evaluations: Vec<Evaluation>,
    /// Known values to check.
    pub expectations: Vec<Expectation>,
    /// What is probably not meant.
    pub warnings: Vec<Warning>,
}

/// A checkpoint to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its name in tables.
    pub label: String,
    /// Where it comes from.
    pub source: ModelSource,
}

/// Where a checkpoint comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelSource {
    /// It ships with the program: `builtin/…`.
    Builtin(String),
    /// A repository of the hub.
    Hub {
        /// `organisation/name`.
        id: String,
        /// Branch, tag or commit; the default branch where there is none.
        revision: Option<String>,
    },
    /// A folder.
    Local {
        /// Absolute, or under the models directory.
        path: PathBuf,
    },
}

/// A named, ordered list of steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Its name in tables.
    pub name: String,
    /// Its steps, with every default written out; empty for `original`.
    pub steps: Vec<Step>,
    /// Whether a calibration set decides what any of its steps does. Where not, it runs once, not once per set.
    pub needs_calibration: bool,
    /// Whether any of its steps draws random numbers. Where neither this nor a calibration set, which is drawn by
    /// seed, does, it runs once, not once per seed.
    pub uses_randomness: bool,
}

/// A calibration set before it is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Its name in tables.
    pub name: String,
    /// The text.
    pub corpus: CorpusRef,
    /// Number of samples.
    pub samples: usize,
    /// Tokens per sample, BOS included where the policy adds one.
    pub length: usize,
    /// How samples are drawn from the text.
    pub sampler: Sampler,
    /// Where BOS stands.
    pub bos: BosPolicy,
    /// Whether text may stand in more than one sample.
    pub repeat: bool,
    /// Whether the set may hold what is measured. Decides no sample, so it is no part of the description.
    pub allow_overlap: bool,
    /// The seeds it is drawn with, where they are not those of the sweep.
    pub seeds: Option<Vec<u64>>,
    /// The swept set to whose scores a report normalises those of this one; the first of the sweep where there is none.
    pub reference: Option<String>,
}

/// Puts before every recipe with a prefix the original behind the same prefix, once, where no recipe says that already.
fn with_references(recipes: Vec<Recipe>) -> Vec<Recipe> {
    let mut all: Vec<Recipe> = Vec::new();
    for recipe in &recipes {
        if let Some(mut reference) = recipe.reference() {
            let known = recipes.iter().chain(&all).any(|other| other.steps == reference.steps);
            let plain = reference.name.clone();
            let mut n = 1;
            while recipes.iter().chain(&all).any(|other| other.name == reference.name) {
                n += 1;
                reference.name = format!("{plain}-{n}");
            }
            if !known {
                all.push(reference);
            }
        }
        all.push(recipe.clone());
    }
    all
}

/// How samples are drawn from a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// Windows at random places of the text, encoded once as one stream.
    #[default]
    Windows,
    /// A window at a random place of each of as many random documents, of those that are long enough.
    Documents,
}

/// An item of `exclude`: globs on the names of a cell; an axis that is not named matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusion {
    /// On the model's label.
    pub model: Option<String>,
    /// On the recipe's name. `original` is never excluded.
    pub recipe: Option<String>,
    /// On the calibration set's name; a cell without one does not match.
    pub calibration: Option<String>,
}

/// An `[[expect]]` block: a value known from elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// Model label.
    pub model: String,
    /// Recipe name, or `original`.
    pub recipe: String,
    /// Calibration set's name; any where there is none.
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

/// Something that is allowed and probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A block that `[sweep]` does not name.
    NotSwept {
        /// `model`, `calibration` or `recipe`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Line of the file.
        line: usize,
    },
    /// Two recipes that say the same: they are one cell under two names.
    SameSteps {
        /// The earlier recipe.
        first: String,
        /// The later recipe.
        second: String,
    },
    /// Two steps whose order is possible and seldom wanted.
    Order {
        /// The recipe.
        recipe: String,
        /// The two steps by name, as they stand.
        steps: [&'static str; 2],
        /// Why.
        why: &'static str,
    },
}

/// Why there is no experiment.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The file could not be read.
    #[error("cannot read the experiment {}: {source}\ngive the path of a TOML file, such as experiments/quickstart.toml", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something that cannot be.
    #[error(transparent)]
    Fault(#[from] Box<Fault>),
}

impl Experiment {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// Where the file cannot be read, is no TOML, or says something that cannot be.
    pub fn read(path: &Path) -> Result<Self, ExperimentError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ExperimentError::Read { file: path.to_path_buf(), source })?;
        Ok(Self::parse(&text, path)?)
    }

    /// Checks `text`, which `file` names in faults; its stem becomes the experiment's name.
    ///
    /// # Errors
    /// Where the text is no TOML, or says something that cannot be.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Box<Fault>> {
        parse::experiment(text, file)
    }

    /// The exclusion that takes a cell away, as an index into `exclude`. The original is never excluded.
    pub fn exclusion_of(&self, model: &str, recipe: &str, calibration: Option<&str>) -> Option<usize> {
        self.exclude.iter().position(|exclusion| exclusion.matches(model, recipe, calibration))
    }

    /// The same experiment with at most `limit` windows or items per evaluation, for a quick look. Expectations are
    /// about full measurements, so there are none left.
    pub fn limited(mut self, limit: usize) -> Self {
        self.evaluations = self.evaluations.into_iter().map(|evaluation| evaluation.limited(limit)).collect();
        self.expectations.clear();
        self
    }
}

impl Recipe {
    /// A recipe of steps whose defaults are resolved.
    pub fn new(name: impl Into<String>, steps: Vec<Step>) -> Self {
        Self {
            name: name.into(),
            needs_calibration: steps.iter().any(|step| step.method().needs_calibration()),
            uses_randomness: steps.iter().any(|step| step.method().uses_randomness()),
            steps,
        }
    }

    /// The recipe without steps.
    pub fn original() -> Self {
        Self::new(ORIGINAL, Vec::new())
    }

    /// The original behind a recipe's prefix: what the recipe is to be compared with, beside the original. `None` for a
    /// recipe that has no prefix, or nothing else.
    fn reference(&self) -> Option<Self> {
        let prefix = self.steps.first().filter(|step| step.method().stage() == Stage::Prefix)?;
        let said = prefix.differences().into_iter().map(|(key, value)| format!("-{key}={value}"));
        let method = prefix.method_name().unwrap_or(prefix.name());
        let name = format!("{ORIGINAL}+{method}{}", said.collect::<String>());
        (self.steps.len() > 1).then(|| Self::new(name, vec![prefix.clone()]))
    }

    /// Whether it is the original behind a prefix.
    pub fn is_reference(&self) -> bool {
        matches!(&self.steps[..], [step] if step.method().stage() == Stage::Prefix)
    }

    /// The state of the model after all its steps.
    pub fn reading(&self) -> Reading {
        match self.steps.iter().any(|step| step.method().stage() > Stage::Keep) {
            true => Reading::Quantized,
            false if self.steps.is_empty() => Reading::Original,
            false => Reading::Transformed,
        }
    }

    /// Whether it is the recipe without steps.
    pub fn is_original(&self) -> bool {
        self.name == ORIGINAL
    }

    /// Whether the cell's seed changes what the recipe makes: a calibration set is drawn by seed, too.
    pub fn needs_seed(&self) -> bool {
        self.needs_calibration || self.uses_randomness
    }
}

impl Calibration {
    /// All that decides the samples but the seed.
    pub fn description(&self) -> Value {
        let mut description = json!({
            "corpus": corpus_description(&self.corpus),
            "samples": self.samples,
            "length": self.length,
            "sampler": self.sampler,
            "bos": self.bos,
        });
        if !self.repeat {
            description["repeat"] = false.into();
        }
        description
    }
}

/// A corpus as the experiment names it.
fn corpus_description(corpus: &CorpusRef) -> Value {
    match corpus {
        CorpusRef::Named(name) => json!(name),
        CorpusRef::File { path, field } => json!({ "path": path, "field": field }),
        CorpusRef::Half { whole, half } => json!({ "whole": corpus_description(whole), "half": half }),
        CorpusRef::Task { task, half, items } => json!({ "task": task, "half": half, "items": items }),
    }
}

impl Exclusion {
    fn matches(&self, model: &str, recipe: &str, calibration: Option<&str>) -> bool {
        let fits =
            |pattern: &Option<String>, name| pattern.as_ref().is_none_or(|pattern| glob(pattern, name));
        let calibration_fits = match (&self.calibration, calibration) {
            (Some(pattern), Some(name)) => glob(pattern, name),
            (Some(_), None) => false,
            (None, _) => true,
        };
        recipe != ORIGINAL && fits(&self.model, model) && fits(&self.recipe, recipe) && calibration_fits
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes = [("model", &self.model), ("recipe", &self.recipe), ("calibration", &self.calibration)];
        let said: Vec<_> = axes
            .iter()
            .filter_map(|(axis, glob)| glob.as_ref().map(|glob| format!("{axis} = \"{glob}\"")))
            .collect();
        write!(f, "{{ {} }}", said.join(", "))
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::NotSwept { kind, name, line } => {
                write!(
                    f,
                    "{kind} `{name}` (line {line}) is defined but not swept: name it in [sweep] {kind}s, or delete it"
                )
            }
            Warning::SameSteps { first, second } => {
                write!(
                    f,
                    "recipes `{first}` and `{second}` say the same: they are measured once and shown twice"
                )
            }
            Warning::Order { recipe, steps: [first, second], why } => {
                write!(f, "recipe `{recipe}` has `{second}` after `{first}`: {why}")
            }
        }
    }
}

/// Every block of the file, under the name it has in `docs/format.md`, with the keys it takes.
pub fn keys() -> Vec<(String, Vec<&'static str>)> {
    wire::keys()
}
