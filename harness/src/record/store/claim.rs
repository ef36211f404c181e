//! Claims: who is computing a cell or a measurement now, so that processes sharing a store do not compute it twice.
//!
//! A claim is a file under `claims/` with the owner's host, process and start, and an operating-system lock on it. The
//! lock dies with its process, so on one machine the claim of a killed process is free at once. On a file system shared
//! between machines locks may be known only to the machine that took them (Lustre with `localflock`, some network
//! shares), so the owner also rewrites the file once a minute, and the claim of another host counts as abandoned when
//! it has not been rewritten for [`STALE_AFTER`](super::STALE_AFTER), ten minutes. Both times are the file server's, so
//! clocks need not agree. Where two machines take over one abandoned claim in the same instant, both compute: that costs
//! time, never a wrong record, because records are written once.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::stage::Stage;
use super::{Files, STALE_AFTER, Store, StoreError};
use crate::record::execution::{host_name, now_rfc3339};

/// Who holds a claim: the content of its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Host name.
    pub host: String,
    /// Process number on that host.
    pub pid: u32,
    /// Since when, RFC 3339, UTC.
    pub since: String,
}

/// What came of asking for a claim.
#[derive(Debug)]
pub enum ClaimOutcome {
    /// This process has it until the claim is dropped.
    Claimed(Claim),
    /// Another process, or another thread of this one, has it.
    HeldBy(Holder),
}

/// One unit of work, held by this process. Dropping it lets go.
#[derive(Debug)]
pub struct Claim {
    files: Arc<dyn Files>,
    path: PathBuf,
    file: File,
    heartbeat: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Store {
    /// Asks for the right to compute a cell (`metric` is `None`) or one of its measurements.
    ///
    /// Never waits. After [`ClaimOutcome::Claimed`], look in the store again before computing: another process may have
    /// finished between the first look and the claim.
    pub fn claim(&self, cell: &str, metric: Option<&str>) -> Result<ClaimOutcome, StoreError> {
        self.claim_with(cell, metric, STALE_AFTER)
    }

    fn claim_with(
        &self,
        cell: &str,
        metric: Option<&str>,
        stale: Duration,
    ) -> Result<ClaimOutcome, StoreError> {
        self.writable()?;
        let path = self.dir.join("claims").join(super::unit_name(cell, metric)?);
        self.ensure_dir(&self.dir.join("claims"))?;
        let started = Instant::now();
        loop {
            if !path.try_exists().map_err(|e| StoreError::io("read", &path, e))?
                && let Some(claim) = self.new_claim(&path, stale)?
            {
                return Ok(ClaimOutcome::Claimed(claim));
            }
            match self.existing_claim(&path, stale)? {
                Existing::Held(holder) => return Ok(ClaimOutcome::HeldBy(holder)),
                Existing::Gone => {}
            }
            // Each turn means that another process let go in that instant; so many turns mean a broken file system.
            if started.elapsed() > Duration::from_secs(60) {
                let e = io::Error::other("it keeps appearing and vanishing");
                return Err(StoreError::io("claim", &path, e));
            }
        }
    }

    /// A claim that appears under its name whole and already locked; `None` where another came first.
    fn new_claim(&self, path: &Path, stale: Duration) -> Result<Option<Claim>, StoreError> {
        let stage = Stage::new(self)?;
        let draft = stage.path().join("claim");
        let holder = Holder { host: host_name().to_string(), pid: std::process::id(), since: now_rfc3339() };
        let content = super::format::encode(&holder, path)?;
        self.files.write(&draft, &content).map_err(|e| StoreError::io("write", &draft, e))?;
        let file = open(&draft).map_err(|e| StoreError::io("open", &draft, e))?;
        // Where the file system knows no locks, the time of the last rewriting stands alone.
        let _ = file.try_lock();
        match self.files.rename_new(&draft, path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(e) => return Err(StoreError::io("write", path, e)),
        }
        let heartbeat = beat(&file, content, stale / 10);
        Ok(Some(Claim { files: self.files.clone(), path: path.into(), file, heartbeat }))
    }

    /// Looks at the claim under `path`: held, or gone (let go by its owner, or abandoned and removed here).
    fn existing_claim(&self, path: &Path, stale: Duration) -> Result<Existing, StoreError> {
        match open(path) {
            Ok(file) => self.opened_claim(file, path, stale),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Existing::Gone),
            Err(e) => Err(StoreError::io("open", path, e)),
        }
    }

    /// As [`Store::existing_claim`], for the file that stood under `path` when it was opened.
    fn opened_claim(&self, mut file: File, path: &Path, stale: Duration) -> Result<Existing, StoreError> {
        let locked = file.try_lock();
        let mut text = String::new();
        let holder = match file.read_to_string(&mut text) {
            Ok(_) => serde_json::from_str::<Holder>(&text).ok(),
            Err(_) => None, // On Windows a locked file cannot be read.
        };
        let unknown = || Holder { host: "unknown".into(), pid: 0, since: "unknown".into() };
        if matches!(locked, Err(TryLockError::WouldBlock)) {
            return Ok(Existing::Held(holder.unwrap_or_else(unknown)));
        }
        if !is_at(&file, path) {
            // Its owner removed it between the opening and the lock; another claim may stand there by now.
            return Ok(Existing::Gone);
        }
        let abandoned = match (&locked, &holder) {
            // Claims appear whole, so an unreadable one was torn by a power cut.
            (_, None) => true,
            // The lock is free on the machine that took it: the owner is dead.
            (Ok(()), Some(holder)) if holder.host == host_name() => true,
            _ => self.since_beat(&file, path)? > stale,
        };
        if !abandoned {
            return Ok(Existing::Held(holder.unwrap_or_else(unknown)));
        }
        match self.files.remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path, e)),
            _ => Ok(Existing::Gone),
        }
    }

    /// Time since a claim was last rewritten, by the clock of the file server: that of a new file beside it.
    fn since_beat(&self, file: &File, path: &Path) -> Result<Duration, StoreError> {
        let failed = |e| StoreError::io("read", path, e);
        let beaten = file.metadata().and_then(|m| m.modified()).map_err(failed)?;
        let stage = Stage::new(self)?;
        let now = fs::metadata(stage.path()).and_then(|m| m.modified()).map_err(failed)?;
        Ok(now.duration_since(beaten).unwrap_or_default())
    }
}

enum Existing {
    Held(Holder),
    Gone,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.heartbeat.take() {
            drop(stop);
            let _ = thread.join();
        }
        // Removed while the lock is still held; whoever opened it before sees that it is gone and asks anew. One that
        // was taken over in the meantime is another's, and stays.
        if is_at(&self.file, &self.path) {
            let _ = self.files.remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Rewrites the claim's content every `interval` until the sender is dropped.
fn beat(file: &File, content: Vec<u8>, interval: Duration) -> Option<(mpsc::Sender<()>, JoinHandle<()>)> {
    let mut file = file.try_clone().ok()?;
    let (stop, stopped) = mpsc::channel();
    let thread = std::thread::Builder::new().name("claim".into()).spawn(move || {
        while stopped.recv_timeout(interval) == Err(mpsc::RecvTimeoutError::Timeout) {
            // A beat that fails (a full disk, a network gone) is tried again at the next.
            let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&content));
        }
    });
    Some((stop, thread.ok()?))
}

/// Whether this open file is the one that stands under `path` now.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (open.dev(), open.ino()) == (there.dev(), there.ino())
    }
    #[cfg(not(unix))]
    {
        open.created().ok() == there.created().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(outcome: ClaimOutcome) -> Option<Holder> {
        match outcome {
            ClaimOutcome::Claimed(_) => None,
            ClaimOutcome::HeldBy(holder) => Some(holder),
        }
    }

    fn foreign_claim(store: &Store) -> PathBuf {
        let path = store.dir().join("claims/cell");
        fs::create_dir_all(store.dir().join("claims")).unwrap();
        fs::write(&path, r#"{"host":"a-host-that-is-not-this-one","pid":1,"since":"2020-01-01T00:00:00Z"}"#)
            .unwrap();
        path
    }

    #[test]
    fn another_host_keeps_its_claim_while_it_beats_and_loses_it_after() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let path = foreign_claim(&store);
        let held = holder(store.claim("cell", None).unwrap()).expect("it was written just now");
        assert_eq!((held.host.as_str(), held.pid), ("a-host-that-is-not-this-one", 1));

        let long_ago = std::time::SystemTime::now() - STALE_AFTER - Duration::from_secs(5);
        open(&path).unwrap().set_modified(long_ago).unwrap();
        assert!(matches!(store.claim("cell", None).unwrap(), ClaimOutcome::Claimed(_)));
    }

    #[test]
    fn the_owner_beats() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ClaimOutcome::Claimed(claim) =
            store.claim_with("cell", None, Duration::from_millis(100)).unwrap()
        else {
            panic!("nobody else is here");
        };
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(1000);
        claim.file.set_modified(long_ago).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while fs::metadata(&claim.path).unwrap().modified().unwrap() == long_ago {
            assert!(Instant::now() < deadline, "no beat came");
            std::thread::sleep(Duration::from_millis(5));
        }
        let text = fs::read_to_string(&claim.path).unwrap();
        assert_eq!(serde_json::from_str::<Holder>(&text).unwrap().pid, std::process::id());
    }

    #[test]
    fn a_claim_that_was_taken_over_is_not_removed_by_its_former_owner() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ClaimOutcome::Claimed(former) = store.claim("cell", None).unwrap() else {
            panic!("nobody else is here")
        };
        fs::remove_file(&former.path).unwrap();
        let ClaimOutcome::Claimed(heir) = store.claim("cell", None).unwrap() else {
            panic!("it was removed")
        };
        drop(former);
        assert!(heir.path.exists());
        drop(heir);
        assert!(!dir.path().join("claims/cell").exists());
    }

    #[test]
    fn who_opened_a_claim_before_its_owner_let_go_does_not_remove_the_next_owners() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ClaimOutcome::Claimed(first) = store.claim("cell", None).unwrap() else {
            panic!("nobody else is here")
        };
        let late = open(&first.path).unwrap();
        drop(first);
        let ClaimOutcome::Claimed(next) = store.claim("cell", None).unwrap() else { panic!("it was let go") };
        let seen = store.opened_claim(late, &next.path, STALE_AFTER).unwrap();
        assert!(matches!(seen, Existing::Gone));
        assert!(holder(store.claim("cell", None).unwrap()).is_some(), "the next owner lost its claim");
    }
}
