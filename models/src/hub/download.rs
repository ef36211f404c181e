//! A repository pinned to one commit, and the download of its files: resumed, repeated, checked for size.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::Cache;
use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiError, ApiRepo};
use serde::Deserialize;

use super::{HubError, OnProgress, Source, is_inside};

/// Cut connections in a row, without a byte in between, after which a download is given up.
const FRUITLESS_ATTEMPTS: usize = 3;

/// How often a file locked by another process is looked at again; `hf-hub` itself waits five seconds each time.
const LOCK_ATTEMPTS: usize = 720;

/// The hub's description of a commit.
#[derive(Deserialize)]
pub(super) struct Info {
    pub(super) sha: String,
    pub(super) siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

/// A repository pinned to one commit.
pub(super) struct Commit<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) info: Info,
    pub(super) repo: ApiRepo,
}

impl Commit<'_> {
    fn find(&self, file: &str) -> Option<&Sibling> {
        self.info.siblings.iter().find(|sibling| sibling.rfilename == file)
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.find(file).is_some()
    }

    pub(super) fn files(&self, keep: impl Fn(&str) -> bool) -> Vec<String> {
        self.info.siblings.iter().map(|s| s.rfilename.clone()).filter(|name| keep(name)).collect()
    }

    pub(super) fn require(&self, file: &str) -> Result<(), HubError> {
        if self.has(file) && is_inside(file) {
            return Ok(());
        }
        let (id, revision) = (self.source.id.to_owned(), self.source.revision.to_owned());
        Err(HubError::MissingFile { id, revision, file: file.to_owned(), found: self.files(|_| true) })
    }

    fn snapshot(&self) -> PathBuf {
        self.source.folder().join("snapshots").join(&self.info.sha)
    }

    /// The unfinished download of a file, as `hf-hub` names it: the entity tag is the content's hash.
    fn part(&self, file: &str) -> Option<PathBuf> {
        let sibling = self.find(file)?;
        let tag = sibling.lfs.as_ref().and_then(|lfs| lfs.sha256.as_ref()).or(sibling.blob_id.as_ref())?;
        is_inside(tag).then(|| self.source.folder().join("blobs").join(tag).with_extension("part"))
    }

    /// Brings one file into the cache, resuming what an earlier attempt left; returns its path there.
    pub(super) fn download(&self, file: &str, progress: OnProgress<'_>) -> Result<PathBuf, HubError> {
        let path = self.snapshot().join(file);
        let (id, name) = (self.source.id.to_owned(), file.to_owned());
        let mut expected = self.find(file).and_then(|sibling| sibling.size);
        let (mut fruitless, mut locked, mut restarted, mut furthest) = (0, 0, false, 0);
        loop {
            match (std::fs::metadata(&path), expected) {
                (Ok(data), Some(size)) if data.len() != size => {
                    // Some server answered a resumed request with the whole file, or the cache was damaged.
                    self.discard(file, &path);
                    if restarted {
                        return Err(HubError::WrongSize { id, file: name, got: data.len(), expected: size });
                    }
                    restarted = true;
                }
                (Ok(_), _) => return Ok(path),
                // A link whose blob was deleted would stand in the way of the new link.
                (Err(_), _) => drop(std::fs::remove_file(&path)),
            }
            let (done, total) = (Cell::new(0), Cell::new(expected.unwrap_or(0)));
            let meter = Meter { report: &mut *progress, file, done: &done, total: &total };
            let outcome = self.repo.download_with_progress(file, meter);
            expected = expected.or(Some(total.get()).filter(|size| *size > 0));
            match outcome.map_err(Trouble::from) {
                Ok(got) if got == path => {}
                Ok(got) => {
                    let reason = format!("it answers with another commit than it named ({})", got.display());
                    return Err(self.source.unreachable(reason));
                }
                // `hf-hub` has waited five seconds by now.
                Err(Trouble::Locked(_)) if locked < LOCK_ATTEMPTS => locked += 1,
                // A part file that is complete, or longer than the file: nothing to resume.
                Err(Trouble::Http { status: 416, .. }) if !restarted => {
                    self.discard(file, &path);
                    restarted = true;
                }
                Err(trouble) if trouble.may_pass() => {
                    fruitless = if done.get() > furthest { 0 } else { fruitless + 1 };
                    furthest = furthest.max(done.get());
                    if fruitless >= FRUITLESS_ATTEMPTS {
                        let (done, total, reason) = (furthest, total.get(), trouble.words());
                        return Err(HubError::Interrupted { id, file: name, done, total, reason });
                    }
                    std::thread::sleep(Duration::from_millis(100 << fruitless));
                }
                Err(trouble) => return Err(self.source.explain(trouble, Some(file))),
            }
        }
    }

    /// Removes a damaged file with its blob and its unfinished download.
    fn discard(&self, file: &str, path: &Path) {
        let blob = std::fs::read_link(path).ok().and_then(|link| Some(path.parent()?.join(link)));
        for path in [blob, Some(path.to_owned()), self.part(file)].into_iter().flatten() {
            // What cannot be removed shows itself in the next attempt.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Notes that the revision is this commit, now that everything asked for is there.
    pub(super) fn finish(self) -> Result<PathBuf, HubError> {
        let cache = &self.source.options.cache;
        Cache::new(cache.clone())
            .repo(self.source.repo(self.source.revision))
            .create_ref(&self.info.sha)
            .map_err(|source| HubError::Cache { path: cache.clone(), source })?;
        Ok(self.snapshot())
    }
}

/// Hands `hf-hub`'s counting on to the caller's callback.
struct Meter<'a> {
    report: OnProgress<'a>,
    file: &'a str,
    done: &'a Cell<u64>,
    total: &'a Cell<u64>,
}

impl Meter<'_> {
    fn tell(&mut self) {
        (self.report)(self.file, self.done.get(), self.total.get());
    }
}

impl Progress for Meter<'_> {
    // Called twice: before anything, and again when the resumed request is answered.
    fn init(&mut self, size: usize, _filename: &str) {
        self.done.set(0);
        self.total.set(size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done.set(self.done.get() + size as u64);
        self.tell();
    }

    fn finish(&mut self) {
        self.tell();
    }
}

/// `hf-hub`'s errors, sorted by what can be done about them.
pub(super) enum Trouble {
    /// The hub answered with an error.
    Http { status: u16, code: String, reason: Option<String>, words: String },
    /// Reading from the connection, or writing to the disk.
    Io(io::Error),
    /// Another process downloads this file.
    Locked(PathBuf),
    /// No connection, or an answer without what belongs in it.
    Other(String),
}

impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::RequestError(error) => {
                let words = error.to_string();
                let Some(response) = error.into_response() else {
                    return Trouble::Other(words);
                };
                let header = |name| response.header(name).map(str::to_owned);
                Trouble::Http {
                    status: response.status(),
                    code: header("x-error-code").unwrap_or_default(),
                    reason: header("x-error-message"),
                    words,
                }
            }
            ApiError::IoError(error) => Trouble::Io(error),
            ApiError::LockAcquisition(lock) => Trouble::Locked(lock),
            // What the hub would answer to a part file longer than the file.
            ApiError::InvalidResume => {
                Trouble::Http { status: 416, code: String::new(), reason: None, words: error.to_string() }
            }
            error => Trouble::Other(error.to_string()),
        }
    }
}

impl Trouble {
    /// Whether trying again can help.
    fn may_pass(&self) -> bool {
        use io::ErrorKind::*;
        match self {
            Trouble::Io(error) => !matches!(
                error.kind(),
                StorageFull
                    | QuotaExceeded
                    | PermissionDenied
                    | ReadOnlyFilesystem
                    | NotFound
                    | NotADirectory
                    | AlreadyExists
            ),
            Trouble::Http { status, .. } => *status == 429 || *status >= 500,
            Trouble::Other(_) => true,
            Trouble::Locked(_) => false,
        }
    }

    pub(super) fn words(&self) -> String {
        match self {
            Trouble::Http { words, .. } | Trouble::Other(words) => words.clone(),
            Trouble::Io(error) => error.to_string(),
            Trouble::Locked(lock) => format!("{} is locked", lock.display()),
        }
    }
}
