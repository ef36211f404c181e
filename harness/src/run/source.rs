//! From a model of an experiment to an open checkpoint and what identifies it.

use std::path::{Path, PathBuf};

use models::architecture::Architecture;
use models::families::Config;
use models::hub::{self, HubError, HubOptions};
use models::{Checkpoint, CheckpointError};
use serde_json::Value;

use crate::experiment::{Model, ModelSource};
use crate::plan::Cell;
use crate::record::ModelIdentity;
use crate::record::canonical_hash;
use crate::record::id::cell_id;

/// Where models are looked for.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Folder of local models; relative paths of an experiment are looked up in it.
    pub folder: Option<PathBuf>,
    /// Never reach the network.
    pub offline: bool,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The folder is nowhere.
    #[error("model folder `{path}` not found; looked for {looked}")]
    NoFolder {
        /// As the experiment names it.
        path: String,
        /// Where it was looked for.
        looked: String,
    },
    /// No such built-in model.
    #[error("`{0}` does not ship with this program")]
    NotBuiltin(String),
    /// The files are damaged or not supported.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
}

impl SourceError {
    /// What the user can do.
    pub fn cure(&self) -> &'static str {
        match self {
            Self::NoFolder { .. } => {
                "fetch it (scripts/fetch_model lists what can be had without hub access), or say --models DIR"
            }
            Self::NotBuiltin(_) => "`quantscope list models` shows what does",
            Self::Checkpoint(CheckpointError::Config { .. }) => {
                "correct config.json if it was edited; otherwise this version cannot run the model: take another one"
            }
            Self::Checkpoint(_) => "mend or fetch the checkpoint again, then run with --retry-failed",
            Self::Hub(_) => "mend it, then run with --retry-failed",
        }
    }
}

/// An open checkpoint and its identity.
pub struct Source {
    /// The files.
    pub checkpoint: Checkpoint,
    /// What they are.
    pub identity: ModelIdentity,
}

impl Source {
    /// Opens a model and hashes its content.
    pub fn open(
        model: &Model,
        options: &ModelOptions,
        progress: &mut dyn FnMut(&str, u64, u64),
    ) -> Result<Self, SourceError> {
        let (checkpoint, origin) = open_checkpoint(&model.source, options, progress)?;
        let identity = ModelIdentity {
            name: model.label.clone(),
            origin,
            family: checkpoint.family().name.into(),
            parameters: checkpoint.architecture().parameters(),
            weights: checkpoint.weights_hash(),
            tokenizer: checkpoint.tokenizer().hash().into(),
        };
        Ok(Self { checkpoint, identity })
    }

    /// The content id of a cell of this model. The same weights under another config (a RoPE base, an ε) are another
    /// model, so what config.json says of the architecture enters with them.
    ///
    /// `calibration` is the hash of the drawn set's token ids, for a cell that has one.
    pub fn cell_id(&self, cell: &Cell, calibration: Option<&str>) -> String {
        cell_id(&self.weights(), &self.identity.tokenizer, &steps(cell), calibration, cell.seed)
    }

    /// What the model computes, as a hash: its weights, and what config.json says of the architecture.
    pub fn weights(&self) -> String {
        let architecture = serde_json::to_value(self.checkpoint.architecture()).expect("plain data");
        format!("{}/{}", self.identity.weights, canonical_hash(&architecture))
    }
}

/// What the `config.json` of a hub model says where the cache holds that file and not all of the others. `None` without
/// such a file.
///
/// # Errors
/// A file that is no JSON, or describes what no family reads.
pub fn architecture_in_cache(source: &ModelSource) -> Option<Result<Architecture, CheckpointError>> {
    let ModelSource::Hub { id, revision } = source else { return None };
    let revision = revision.as_deref().unwrap_or(hub::DEFAULT_REVISION);
    let path = hub::cached_folder(id, revision, &HubOptions::from_env(true))?.join("config.json");
    let text = std::fs::read(&path).ok()?;
    Some(match serde_json::from_slice(&text) {
        Ok(config) => {
            let config = Config(config);
            let read = config.family().and_then(|family| (family.read)(&config));
            read.map_err(|source| CheckpointError::Config { path, source })
        }
        Err(source) => Err(CheckpointError::Json { path, source }),
    })
}

/// The steps of a cell's recipe as they enter its id.
pub fn steps(cell: &Cell) -> Vec<Value> {
    cell.recipe.steps.iter().map(|step| serde_json::to_value(step).expect("a step is plain data")).collect()
}

/// Opens the checkpoint of a source and says where it came from.
///
/// # Errors
/// Where it is not there or not readable.
pub fn open_checkpoint(
    source: &ModelSource,
    options: &ModelOptions,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<(Checkpoint, String), SourceError> {
    match source {
        ModelSource::Builtin(name) => {
            let checkpoint =
                Checkpoint::builtin(name).ok_or_else(|| SourceError::NotBuiltin(name.clone()))?;
            Ok((checkpoint?, "builtin".into()))
        }
        ModelSource::Local { path } => {
            let folder = find_folder(path, options.folder.as_deref())?;
            Ok((Checkpoint::open(&folder)?, "local".into()))
        }
        ModelSource::Hub { id, revision } => {
            let revision = revision.as_deref().unwrap_or(hub::DEFAULT_REVISION);
            let hub = HubOptions::from_env(options.offline);
            let folder = hub::fetch(id, revision, &hub, progress)?;
            Ok((Checkpoint::open(&folder)?, format!("hub, revision {revision}")))
        }
    }
}

/// An absolute path as it is; a relative one under the models folder, else under the working directory.
fn find_folder(path: &Path, folder: Option<&Path>) -> Result<PathBuf, SourceError> {
    let mut candidates = Vec::new();
    if let Some(folder) = folder.filter(|_| path.is_relative()) {
        candidates.push(folder.join(path));
    }
    candidates.push(path.to_path_buf());
    match candidates.iter().find(|candidate| candidate.is_dir()) {
        Some(found) => Ok(found.clone()),
        None => {
            let looked: Vec<_> = candidates.iter().map(|c| c.display().to_string()).collect();
            Err(SourceError::NoFolder { path: path.display().to_string(), looked: looked.join(" and ") })
        }
    }
}
