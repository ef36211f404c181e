//! Folders under `tmp/` in which a file or a cell is made whole before it is renamed into place.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::{Store, StoreError};
use crate::record::execution::host_name;

/// After this long without a sign of life, what another host left behind counts as abandoned.
pub const STALE_AFTER: Duration = Duration::from_secs(600);

/// A folder of this process, `tmp/<host>-<pid>-<n>`. It is locked while it lives, so that [`Store::sweep_tmp`] of
/// another process can tell it from a leftover, and removed on drop.
pub(super) struct Stage<'a> {
    store: &'a Store,
    path: PathBuf,
    _lock: Option<File>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(store: &'a Store) -> Result<Self, StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let tmp = store.dir.join("tmp");
        store.ensure_dir(&tmp)?;
        loop {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = tmp.join(format!("{}-{}-{n}", host_name(), std::process::id()));
            match store.files.create_dir(&path) {
                // A leftover of a process that had this number before (in containers that is common).
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(StoreError::io("create", &path, e)),
                Ok(()) => {}
            }
            match lock(&path) {
                // A sweep came between the creation and the lock and is removing it.
                Lock::Held => continue,
                Lock::Taken(_) if !path.is_dir() => continue,
                Lock::Taken(file) => {
                    return Ok(Stage { store, path, _lock: Some(file) });
                }
                Lock::Unknown => {
                    return Ok(Stage { store, path, _lock: None });
                }
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // Renamed away is the good case; what cannot be removed now, a later sweep removes.
        if self.path.is_dir() {
            let _ = self.store.files.remove_dir_all(&self.path);
        }
    }
}

impl Store {
    /// Removes what processes that died left under `tmp/`, and returns how many folders that were.
    ///
    /// A folder whose lock is free has no living owner on this machine. Where folders cannot be locked, or the folder
    /// bears another host's name, it is removed once it is ten minutes old: a living one lasts milliseconds.
    pub fn sweep_tmp(&self) -> Result<usize, StoreError> {
        self.writable()?;
        let mut removed = 0;
        for entry in super::entries(&self.dir.join("tmp"))? {
            let ours = entry
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(&format!("{}-", host_name())));
            let old = age(&entry).is_some_and(|age| age > STALE_AFTER);
            let (dead, _lock) = match lock(&entry) {
                Lock::Held => (false, None),
                Lock::Taken(file) => (ours || old, Some(file)),
                Lock::Unknown => (old, None),
            };
            if dead {
                let gone = if entry.is_dir() {
                    self.files.remove_dir_all(&entry)
                } else {
                    self.files.remove_file(&entry)
                };
                match gone {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(StoreError::io("remove", &entry, e)),
                    Ok(()) => removed += 1,
                }
            }
        }
        Ok(removed)
    }
}

enum Lock {
    Taken(File),
    Held,
    Unknown,
}

fn lock(path: &Path) -> Lock {
    let file = match File::open(path) {
        Ok(file) => file,
        // Whoever holds it has just removed it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Lock::Held,
        // Windows cannot open a folder as a file.
        Err(_) => return Lock::Unknown,
    };
    match file.try_lock() {
        Ok(()) => Lock::Taken(file),
        Err(TryLockError::WouldBlock) => Lock::Held,
        Err(TryLockError::Error(_)) => Lock::Unknown,
    }
}

fn age(path: &Path) -> Option<Duration> {
    SystemTime::now().duration_since(fs::metadata(path).ok()?.modified().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_removes_the_dead_and_spares_the_living() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let leftover = |name: &str| {
            let path = dir.path().join("tmp").join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("draft.json"), "{").unwrap();
            path
        };
        let living = Stage::new(&store).unwrap();
        let dead = leftover(&format!("{}-{}-0-dead", host_name(), std::process::id()));
        let far = leftover("a-host-that-is-not-this-one-1-0");
        let far_and_old = leftover("a-host-that-is-not-this-one-1-1");
        File::open(&far_and_old).unwrap().set_modified(SystemTime::now() - 2 * STALE_AFTER).unwrap();

        assert_eq!(store.sweep_tmp().unwrap(), 2);
        assert!(living.path().exists() && far.exists());
        assert!(!dead.exists() && !far_and_old.exists());
        let path = living.path().to_path_buf();
        drop(living);
        assert!(!path.exists());
    }

    #[test]
    fn a_stage_steps_over_the_leftovers_of_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for n in 0..2_000 {
            let name = format!("{}-{}-{n}", host_name(), std::process::id());
            let _ = fs::create_dir(dir.path().join("tmp").join(name));
        }
        let stage = Stage::new(&store).unwrap();
        assert!(stage.path().exists());
        assert_eq!(fs::read_dir(stage.path()).unwrap().count(), 0);
    }
}
