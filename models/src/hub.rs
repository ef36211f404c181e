//! Checkpoints and data files from the Hugging Face hub, through its ordinary cache.
//!
//! `hf-hub` moves the bytes; this file decides which files a model needs, pins them to one commit, resumes cut
//! downloads, checks sizes, and turns every failure into a sentence with a cure. A complete snapshot in the cache is
//! used without touching the network.

mod download;
mod error;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use download::{Commit, Info, Trouble};
pub use error::HubError;

/// The hub's address when `HF_ENDPOINT` does not name another.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// The branch used when nobody names a revision.
pub const DEFAULT_REVISION: &str = "main";

/// The single-file form of a checkpoint.
pub const WEIGHTS: &str = "model.safetensors";

/// The list of shards of a checkpoint in several files.
pub const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Without these a model cannot be run at all.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];

/// Fetched when the repository has them.
const OPTIONAL: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// Told a file's path in the repository, the bytes on disk (those of an earlier interrupted attempt included) and the
/// bytes of the whole file, as they arrive: often, so a bar should throttle its drawing.
pub type OnProgress<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// Where to fetch from, and where to keep it.
#[derive(Clone)]
pub struct HubOptions {
    /// Forbids every request; only the cache is used.
    pub offline: bool,
    /// Access token for gated and private repositories.
    pub token: Option<String>,
    /// Address of the hub, without a trailing slash.
    pub endpoint: String,
    /// The cache's `hub` folder, which holds `models--owner--name` folders.
    pub cache: PathBuf,
}

impl HubOptions {
    /// What the environment says, with the names every other hub client uses: `HF_ENDPOINT`, `HF_HUB_CACHE`,
    /// `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_TOKEN_PATH`, else the token file that a login left in the cache.
    /// `offline` forbids the network whatever the environment says.
    pub fn from_env(offline: bool) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let cache = match variable("HF_HUB_CACHE") {
            Some(folder) => Cache::new(folder.into()),
            // `Cache::from_env` panics on a machine without a home folder; a relative folder is better.
            None if variable("HF_HOME").is_none() && std::env::home_dir().is_none() => {
                Cache::new(PathBuf::from(".huggingface").join("hub"))
            }
            None => Cache::from_env(),
        };
        let token_file = match (variable("HF_TOKEN_PATH"), variable("HF_HOME")) {
            (Some(file), _) => PathBuf::from(file),
            (None, Some(home)) => Path::new(&home).join("token"),
            (None, None) => std::env::home_dir().unwrap_or_default().join(".cache/huggingface/token"),
        };
        let token = variable("HF_TOKEN")
            .or_else(|| std::fs::read_to_string(token_file).ok())
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let truthy =
            |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        HubOptions {
            offline: offline || variable("HF_HUB_OFFLINE").is_some_and(truthy),
            token,
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            cache: cache.path().clone(),
        }
    }
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("offline", &self.offline)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .finish()
    }
}

/// Fetches what a model needs (`config.json`, `tokenizer.json`, `tokenizer_config.json` where there is one, and the
/// safetensors weights, single or sharded) and returns the snapshot's folder.
///
/// A complete snapshot in the cache is returned without a request. Otherwise every file comes from the one commit
/// that `revision` names now.
///
/// # Errors
///
/// See [`HubError`]; each names the cure.
pub fn fetch(
    id: &str,
    revision: &str,
    options: &HubOptions,
    progress: OnProgress<'_>,
) -> Result<PathBuf, HubError> {
    let source = Source::new(id, revision, RepoType::Model, options)?;
    let missing = match source.cached_snapshot() {
        Some(folder) => match missing_of_model(&folder)? {
            missing if missing.is_empty() => return Ok(folder),
            missing => missing,
        },
        None => REQUIRED.iter().map(|file| (*file).to_owned()).chain([WEIGHTS.to_owned()]).collect(),
    };
    if options.offline {
        return Err(source.offline(missing));
    }
    let commit = source.resolve()?;
    for file in REQUIRED {
        commit.require(file)?;
    }
    let sharded = !commit.has(WEIGHTS);
    if sharded && !commit.has(WEIGHTS_INDEX) {
        let weights = [".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".safetensors"];
        let found = commit.files(|name| weights.iter().any(|end| name.ends_with(end)));
        return Err(HubError::NoSafetensors { id: id.into(), revision: revision.into(), found });
    }
    // Small files first: a snapshot whose weights are complete is complete.
    for file in REQUIRED.into_iter().chain(OPTIONAL.into_iter().filter(|file| commit.has(file))) {
        commit.download(file, progress)?;
    }
    if sharded {
        for shard in shards(&commit.download(WEIGHTS_INDEX, progress)?)? {
            commit.require(&shard)?;
            commit.download(&shard, progress)?;
        }
    } else {
        commit.download(WEIGHTS, progress)?;
    }
    commit.finish()
}

/// Fetches one file of a data set and returns its path in the cache.
///
/// # Errors
///
/// As [`fetch`].
pub fn fetch_dataset_file(
    repo: &str,
    file: &str,
    revision: &str,
    options: &HubOptions,
    progress: OnProgress<'_>,
) -> Result<PathBuf, HubError> {
    let source = Source::new(repo, revision, RepoType::Dataset, options)?;
    if let Some(path) = source.cached_snapshot().map(|folder| folder.join(file)).filter(|path| path.exists())
    {
        return Ok(path);
    }
    if options.offline {
        return Err(source.offline(vec![file.to_owned()]));
    }
    let commit = source.resolve()?;
    commit.require(file)?;
    commit.download(file, progress)?;
    Ok(commit.finish()?.join(file))
}

/// The folder of the revision in the cache, however little of the model it holds; no request is made.
pub fn cached_folder(id: &str, revision: &str, options: &HubOptions) -> Option<PathBuf> {
    Source::new(id, revision, RepoType::Model, options).ok()?.cached_snapshot()
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Hub id.
    pub id: String,
    /// Branches, tags and commits noted there.
    pub revisions: Vec<String>,
    /// What the first of them lacks to be run; empty if nothing.
    pub missing: Vec<String>,
}

/// The models that the cache holds, by id.
pub fn cached(options: &HubOptions) -> Vec<Cached> {
    let mut models: Vec<Cached> = names_in(&options.cache)
        .into_iter()
        .filter_map(|folder| {
            let id = folder.strip_prefix("models--")?.replacen("--", "/", 1);
            let mut revisions = names_in(&options.cache.join(&folder).join("refs"));
            // Downloads are pinned to a commit, which leaves a note under its own name; branches come first.
            revisions.sort_by_key(|name| (is_commit(name), name.clone()));
            let revision = revisions.first().map_or(DEFAULT_REVISION, String::as_str);
            let source = Source::new(&id, revision, RepoType::Model, options).ok()?;
            let missing = source.cached_snapshot().map(|folder| missing_of_model(&folder));
            let missing = match missing {
                Some(Ok(missing)) => missing,
                Some(Err(_)) => vec![WEIGHTS_INDEX.to_owned()],
                None => vec!["everything".to_owned()],
            };
            Some(Cached { id, revisions, missing })
        })
        .collect();
    models.sort_by(|a, b| a.id.cmp(&b.id));
    models
}

fn is_commit(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether the hub answers at all, within `timeout`; says why not.
///
/// # Errors
///
/// The reason, in words.
pub fn reachable(options: &HubOptions, timeout: Duration) -> Result<(), String> {
    if options.offline {
        return Err("the network is forbidden (--offline or HF_HUB_OFFLINE)".to_owned());
    }
    let source = Source::new("openai-community/gpt2", DEFAULT_REVISION, RepoType::Model, options)
        .map_err(|e| e.to_string())?;
    let api = source.api().map_err(|error| error.to_string())?;
    let asked = api.repo(source.repo(DEFAULT_REVISION)).info_request().timeout(timeout).call();
    match asked.map_err(|error| Trouble::from(ApiError::RequestError(Box::new(error)))) {
        // A refusal is an answer.
        Ok(_) | Err(Trouble::Http { .. }) => Ok(()),
        Err(trouble) => Err(trouble.words()),
    }
}

/// The shard files that an index names, sorted, each once.
///
/// # Errors
///
/// [`HubError::BadIndex`] if the file is no index, names no shard, or names one outside its folder.
pub fn shards(index: &Path) -> Result<Vec<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let bad = |reason: String| HubError::BadIndex { path: index.to_owned(), reason };
    let text = std::fs::read_to_string(index).map_err(|error| bad(error.to_string()))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let names: std::collections::BTreeSet<String> = parsed.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(bad("it names no file".to_owned()));
    }
    match names.iter().find(|name| !is_inside(name)) {
        Some(name) => Err(bad(format!("`{name}` is not a path inside the repository"))),
        None => Ok(names.into_iter().collect()),
    }
}

/// Whether a file name from elsewhere stays below the folder it is joined to.
fn is_inside(name: &str) -> bool {
    !name.is_empty()
        && Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// What a snapshot folder lacks to be a runnable model.
fn missing_of_model(folder: &Path) -> Result<Vec<String>, HubError> {
    let absent = |file: &String| !folder.join(file).exists();
    let mut needed: Vec<String> = REQUIRED.iter().map(|file| (*file).to_owned()).collect();
    if !folder.join(WEIGHTS).exists() && folder.join(WEIGHTS_INDEX).exists() {
        needed.extend(shards(&folder.join(WEIGHTS_INDEX))?);
    } else {
        needed.push(WEIGHTS.to_owned());
    }
    Ok(needed.into_iter().filter(absent).collect())
}

/// One repository at one revision, before anything is asked.
struct Source<'a> {
    id: &'a str,
    revision: &'a str,
    kind: RepoType,
    options: &'a HubOptions,
}

impl<'a> Source<'a> {
    fn new(
        id: &'a str,
        revision: &'a str,
        kind: RepoType,
        options: &'a HubOptions,
    ) -> Result<Self, HubError> {
        let word = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        // A few old models have no owner (`gpt2`).
        if !(id.split('/').count() <= 2 && id.split('/').all(word)) {
            return Err(HubError::BadId { id: id.to_owned() });
        }
        if !is_inside(revision) {
            let page = page(id, kind, options);
            return Err(HubError::UnknownRevision { id: id.to_owned(), revision: revision.to_owned(), page });
        }
        Ok(Self { id, revision, kind, options })
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.to_owned(), self.kind, revision.to_owned())
    }

    /// This repository's folder in the cache.
    fn folder(&self) -> PathBuf {
        self.options.cache.join(self.repo(self.revision).folder_name())
    }

    /// The snapshot that the cache holds for the revision: by its note under `refs`, or a commit named directly.
    fn cached_snapshot(&self) -> Option<PathBuf> {
        let noted = std::fs::read_to_string(self.folder().join("refs").join(self.revision)).ok();
        let commit = noted.as_deref().map_or(self.revision, str::trim);
        Some(self.folder().join("snapshots").join(commit)).filter(|folder| folder.is_dir())
    }

    fn offline(&self, missing: Vec<String>) -> HubError {
        HubError::Offline {
            id: self.id.to_owned(),
            revision: self.revision.to_owned(),
            folder: self.folder().display().to_string(),
            missing,
            dataset: matches!(self.kind, RepoType::Dataset),
        }
    }

    fn api(&self) -> Result<Api, HubError> {
        ApiBuilder::from_cache(Cache::new(self.options.cache.clone()))
            .with_endpoint(self.options.endpoint.trim_end_matches('/').to_owned())
            .with_token(self.options.token.clone())
            // hf-hub's own retry resumes from the wrong offset when the first attempt brought no byte.
            .with_retries(0)
            .with_progress(false)
            .build()
            .map_err(|error| self.unreachable(error.to_string()))
    }

    /// Asks the hub which commit the revision is, and which files it has.
    fn resolve(&'a self) -> Result<Commit<'a>, HubError> {
        let api = self.api()?;
        let response = api
            .repo(self.repo(self.revision))
            .info_request()
            .timeout(Duration::from_secs(60))
            .query("blobs", "true")
            .call()
            .map_err(|error| self.explain(ApiError::RequestError(Box::new(error)).into(), None))?;
        let text = response.into_string().map_err(|error| self.unreachable(error.to_string()))?;
        let info: Info = serde_json::from_str(&text).map_err(|error| {
            self.unreachable(format!("its answer is no repository description ({error})"))
        })?;
        if !is_inside(&info.sha) {
            return Err(self.unreachable(format!("it names the commit `{}`", info.sha)));
        }
        Ok(Commit { repo: api.repo(self.repo(&info.sha)), source: self, info })
    }

    fn unreachable(&self, reason: String) -> HubError {
        HubError::Unreachable { id: self.id.to_owned(), endpoint: self.options.endpoint.clone(), reason }
    }

    /// Puts a failure into words; `file` is the file it was about, if about one.
    fn explain(&self, trouble: Trouble, file: Option<&str>) -> HubError {
        let (id, page) = (self.id.to_owned(), page(self.id, self.kind, self.options));
        let (status, code, reason, words) = match trouble {
            Trouble::Http { status, code, reason, words } => (status, code, reason, words),
            Trouble::Io(source) => {
                return HubError::Cache { path: self.options.cache.clone(), source };
            }
            Trouble::Locked(lock) => {
                return HubError::Busy { id, file: file.unwrap_or_default().to_owned(), lock };
            }
            Trouble::Other(words) => return self.unreachable(words),
        };
        let revision = self.revision.to_owned();
        match (status, code.as_str()) {
            (_, "GatedRepo") | (403, _) => {
                HubError::Gated { id, status, reason, page, token_given: self.options.token.is_some() }
            }
            (_, "RevisionNotFound") => HubError::UnknownRevision { id, revision, page },
            (_, "EntryNotFound") => {
                let file = file.unwrap_or("that file").to_owned();
                HubError::MissingFile { id, revision, file, found: Vec::new() }
            }
            // Without a token the hub answers 401, not 404, for what does not exist.
            (404, _) | (401, "RepoNotFound") => {
                HubError::UnknownId { id, status, endpoint: self.options.endpoint.clone() }
            }
            (401, _) => {
                HubError::Gated { id, status, reason, page, token_given: self.options.token.is_some() }
            }
            _ => self.unreachable(words),
        }
    }
}

fn page(id: &str, kind: RepoType, options: &HubOptions) -> String {
    let repo = Repo::new(id.to_owned(), kind);
    format!("{}/{}", options.endpoint.trim_end_matches('/'), repo.url())
}
