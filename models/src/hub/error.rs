//! What can go wrong between the hub and the disk, each with its cure.

use std::io;
use std::path::PathBuf;

/// Why a model or a data file could not be had from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name cannot be a hub id.
    #[error("`{id}` is no hub id: it must read `owner/name` (letters, digits, `-`, `_`, `.`)")]
    BadId {
        /// The name given.
        id: String,
    },
    /// Not in the cache, and the network is forbidden.
    #[error(
        "`{id}` (revision {revision}) is not complete in the hub cache and --offline forbids to fetch it: {folder} \
         lacks {}. Fetch it where there is a network with `hf download {}{id} --revision {revision}` (older: \
         `huggingface-cli download …`) and copy that folder here, or run once without --offline, or use a local \
         folder (`[model.NAME] path = \"…\"`)",
        missing.join(", "), if *dataset { "--repo-type dataset " } else { "" }
    )]
    Offline {
        /// Hub id.
        id: String,
        /// Branch, tag or commit.
        revision: String,
        /// The cache folder of this repository.
        folder: String,
        /// Files that are not there.
        missing: Vec<String>,
        /// Whether `id` is a data set.
        dataset: bool,
    },
    /// The hub refuses: a licence to accept, or a private repository.
    #[error(
        "the hub refuses access to `{id}` ({status}): it is gated or private{}. Accept the licence on {page} with \
         your account, create a read token there, and set HF_TOKEN ({})",
        reason.as_ref().map(|reason| format!(" (\"{reason}\")")).unwrap_or_default(),
        if *token_given { "the token that was sent does not have access" } else { "no token was sent" }
    )]
    Gated {
        /// Hub id.
        id: String,
        /// HTTP status.
        status: u16,
        /// The hub's own words.
        reason: Option<String>,
        /// The repository's page.
        page: String,
        /// Whether a token was sent.
        token_given: bool,
    },
    /// No such repository, as far as this token may know.
    #[error(
        "the hub ({endpoint}) has no `{id}` ({status}): check the spelling; if it is a private repository, set \
         HF_TOKEN to a token that may read it"
    )]
    UnknownId {
        /// Hub id.
        id: String,
        /// HTTP status.
        status: u16,
        /// The hub asked.
        endpoint: String,
    },
    /// The repository exists, the revision does not.
    #[error("`{id}` has no revision `{revision}`: name a branch, a tag or a full commit hash of {page}")]
    UnknownRevision {
        /// Hub id.
        id: String,
        /// Revision asked for.
        revision: String,
        /// The repository's page.
        page: String,
    },
    /// The repository lacks a file that is needed.
    #[error("`{id}` (revision {revision}) has no `{file}`; it has {}", listed(found))]
    MissingFile {
        /// Hub id.
        id: String,
        /// Revision asked for.
        revision: String,
        /// The file needed.
        file: String,
        /// Files that are there.
        found: Vec<String>,
    },
    /// Weights in another container than safetensors.
    #[error(
        "`{id}` (revision {revision}) has no safetensors weights (found: {}). Convert it with \
         `AutoModelForCausalLM.from_pretrained(\"{id}\").save_pretrained(DIR, safe_serialization=True)` and name DIR \
         as `[model.NAME] path = \"DIR\"`, or use a revision that has `model.safetensors`",
        listed(found)
    )]
    NoSafetensors {
        /// Hub id.
        id: String,
        /// Revision asked for.
        revision: String,
        /// Weight files of other formats.
        found: Vec<String>,
    },
    /// The list of shards cannot be used.
    #[error("{path}: not a usable list of shards ({reason}); delete it and fetch again")]
    BadIndex {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection broke again and again.
    #[error(
        "`{file}` of `{id}`: the download broke off after {done} of {total} bytes ({reason}); run again to resume \
         where it stopped"
    )]
    Interrupted {
        /// Hub id.
        id: String,
        /// File in the repository.
        file: String,
        /// Bytes received.
        done: u64,
        /// Bytes expected.
        total: u64,
        /// The last failure.
        reason: String,
    },
    /// The finished file does not have the size the hub states.
    #[error("`{file}` of `{id}` has {got} bytes and the hub states {expected}: it was deleted; run again")]
    WrongSize {
        /// Hub id.
        id: String,
        /// File in the repository.
        file: String,
        /// Bytes on disk.
        got: u64,
        /// Bytes stated.
        expected: u64,
    },
    /// Another process holds the download for too long.
    #[error(
        "`{file}` of `{id}` is being downloaded by another process (lock {lock}); wait for it, or end it"
    )]
    Busy {
        /// Hub id.
        id: String,
        /// File in the repository.
        file: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// No answer, or no understandable one.
    #[error(
        "the hub at {endpoint} could not be asked for `{id}`: {reason}. Check the network, HF_ENDPOINT and the proxy \
         variables, or use --offline with a filled cache"
    )]
    Unreachable {
        /// Hub id.
        id: String,
        /// The hub asked.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// The cache cannot be written.
    #[error("{path}: {source} (the hub cache; HF_HOME or HF_HUB_CACHE moves it)")]
    Cache {
        /// The cache folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn listed(files: &[String]) -> String {
    match files.len() {
        0 => "nothing usable".to_owned(),
        1..=8 => files.join(", "),
        n => format!("{} and {} more", files[..8].join(", "), n - 8),
    }
}
