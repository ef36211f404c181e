//! The store on disk: one folder of results, shared by any number of processes, valid at every instant.
//!
//! Everything is made whole under `tmp/`, synced, renamed into place, and the folder it now stands in synced. Cells and
//! measurements are written once: a second writer compares hashes and drops its own. Failures and the manifest are
//! replaced in one step. So a process may be killed between any two operations, and what stands outside `tmp/` and
//! `claims/` is complete. Nothing needs a lock to be right; claims only save work.

mod claim;
mod error;
mod files;
mod format;
mod items;
mod layers;
mod stage;
pub mod statistics;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    CellResult, Contents, Envelope, Execution, Failure, Manifest, MeasurementResult, SCHEMA, measurement_key,
};
pub use claim::{Claim, ClaimOutcome, Holder};
pub use error::StoreError;
pub use files::{Disk, Files};
pub use items::StoredItems;
pub use layers::StoredLayers;
pub use stage::STALE_AFTER;
pub use statistics::StoredStatistics;

use stage::Stage;

/// A results folder. Cheap to clone; clones share the folder.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    files: Arc<dyn Files>,
    read_only: bool,
}

/// `store.json`: by whose rules the folder is laid out.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Marker {
    schema: u32,
}

impl Store {
    /// Opens a folder for reading and writing, and creates it where it is missing.
    ///
    /// Fails where the folder is not writable, a file is in the way, or a newer version of this program wrote it.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        Store::open_with(dir, Arc::new(Disk))
    }

    /// [`Store::open`] with other file operations: for tests that let them fail.
    pub fn open_with(dir: &Path, files: Arc<dyn Files>) -> Result<Store, StoreError> {
        let store = Store { dir: dir.into(), files, read_only: false };
        store.ensure_dir(dir)?;
        let marker = dir.join("store.json");
        // Also where the marker exists: a folder that cannot be written is refused now and not after hours of work.
        let stage = Stage::new(&store)?;
        match store.read_marker()? {
            Some(_) => Ok(()),
            None => store
                .place_new(&stage, &format::encode(&Marker { schema: SCHEMA }, &marker)?, &marker)
                .map(drop),
        }?;
        drop(stage);
        Ok(store)
    }

    /// Opens a folder for reading: creates and changes nothing, so it works on a read-only file system.
    pub fn open_read_only(dir: &Path) -> Result<Store, StoreError> {
        match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(StoreError::InTheWay { path: dir.into() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { path: dir.into() });
            }
            Err(e) => return Err(StoreError::io("read", dir, e)),
        }
        let store = Store { dir: dir.into(), files: Arc::new(Disk), read_only: true };
        store.read_marker()?;
        Ok(store)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Publishes a cell under its id, and forgets a failure recorded under that id.
    ///
    /// Where it exists already with the same result, nothing happens; with another result, [`StoreError::Conflict`].
    pub fn publish_cell(&self, cell: CellResult, execution: Execution) -> Result<(), StoreError> {
        self.writable()?;
        let folder = self.cell_dir(&cell.id)?;
        let path = folder.join("cell.json");
        let id = cell.id.clone();
        let envelope = format::seal(cell, execution, &path)?;
        let bytes = format::encode(&envelope, &path)?;
        // Before the cell appears: a crash in between leaves neither, and the cell is computed again.
        self.clear_failure(&id, None)?;
        if let Some(stored) = self.cell(&id)? {
            return same_result(&path, stored.result_hash, envelope.result_hash);
        }

        let cells = self.dir.join("cells");
        self.ensure_dir(&cells)?;
        let stage = Stage::new(self)?;
        if folder.is_dir() {
            // Someone followed the cure of `Corrupt` and deleted `cell.json`; the measurements beside it stay.
            if self.place_new(&stage, &bytes, &path)? {
                return Ok(());
            }
        } else {
            self.write_synced(&stage.path().join("cell.json"), &bytes)?;
            let measurements = stage.path().join("measurements");
            self.files.create_dir(&measurements).map_err(|e| StoreError::io("create", &measurements, e))?;
            self.sync(stage.path())?;
            match self.files.rename(stage.path(), &folder) {
                Ok(()) => return self.sync(&cells),
                Err(_) if path.is_file() => {}
                Err(e) => return Err(StoreError::io("write", &folder, e)),
            }
        }
        let stored = self.cell(&id)?.ok_or_else(|| vanished(&path))?;
        same_result(&path, stored.result_hash, envelope.result_hash)
    }

    /// Publishes a measurement beside its cell, and forgets a failure recorded for it.
    ///
    /// The cell must have been published. A value or a standard error that is not finite is refused with
    /// [`StoreError::NotFinite`]: it is a failure, not a measurement. On an existing measurement, as
    /// [`Store::publish_cell`].
    pub fn publish_measurement(
        &self,
        measured: MeasurementResult,
        execution: Execution,
    ) -> Result<(), StoreError> {
        self.writable()?;
        let path = self.measurement_path(&measured.cell, &measured.metric, measured.version)?;
        for (what, number) in [("value", Some(measured.value)), ("standard error", measured.stderr)] {
            if let Some(number) = number.filter(|n| !n.is_finite()) {
                let what = format!("the {what} of `{}` is {number}", measured.metric);
                return Err(StoreError::NotFinite { what, path });
            }
        }
        let (cell, metric, version) = (measured.cell.clone(), measured.metric.clone(), measured.version);
        let folder = self.cell_dir(&cell)?;
        if !folder.join("cell.json").is_file() {
            return Err(StoreError::NoSuchCell { path: folder });
        }
        let envelope = format::seal(measured, execution, &path)?;
        let bytes = format::encode(&envelope, &path)?;
        self.clear_failure(&cell, Some(&metric))?;
        if !path.is_file() {
            self.ensure_dir(&folder.join("measurements"))?;
            let stage = Stage::new(self)?;
            if self.place_new(&stage, &bytes, &path)? {
                return Ok(());
            }
        }
        let stored = self.measurement(&cell, &metric, version)?.ok_or_else(|| vanished(&path))?;
        same_result(&path, stored.result_hash, envelope.result_hash)
    }

    /// A cell, where it has been published.
    pub fn cell(&self, id: &str) -> Result<Option<Envelope<CellResult>>, StoreError> {
        let path = self.cell_dir(id)?.join("cell.json");
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        let envelope: Envelope<CellResult> = format::unseal(&bytes, &path)?;
        if envelope.result.id != id {
            return Err(format::corrupt(&path, format!("it is the cell {}", envelope.result.id)));
        }
        Ok(Some(envelope))
    }

    /// A measurement, where it has been published.
    pub fn measurement(
        &self,
        cell: &str,
        metric: &str,
        version: u32,
    ) -> Result<Option<Envelope<MeasurementResult>>, StoreError> {
        self.measurement_at(&self.measurement_path(cell, metric, version)?)
    }

    /// Records a failure in place of an earlier one of the same cell or measurement. Its `schema` is set here.
    pub fn record_failure(&self, failure: Failure) -> Result<(), StoreError> {
        self.writable()?;
        let failure = Failure { schema: SCHEMA, ..failure };
        let path = self.failure_path(&failure.cell, failure.metric.as_deref())?;
        let bytes = format::encode(&failure, &path)?;
        self.ensure_dir(&self.dir.join("failures"))?;
        self.replace(&bytes, &path)
    }

    /// Forgets a failure; none being there is fine. Publishing does this for the same id; a failure recorded under the
    /// id of a description must be cleared by whoever learns the content id.
    pub fn clear_failure(&self, cell: &str, metric: Option<&str>) -> Result<(), StoreError> {
        self.writable()?;
        let path = self.failure_path(cell, metric)?;
        if !path.try_exists().map_err(|e| StoreError::io("read", &path, e))? {
            return Ok(());
        }
        match self.files.remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &path, e)),
            _ => self.sync(&self.dir.join("failures")),
        }
    }

    /// The last failure of a cell (`metric` is `None`) or of one of its measurements.
    pub fn failure(&self, cell: &str, metric: Option<&str>) -> Result<Option<Failure>, StoreError> {
        let path = self.failure_path(cell, metric)?;
        read(&path)?.map(|bytes| format::decode(&bytes, &path)).transpose()
    }

    /// Replaces the manifest. Its `schema` is set here.
    pub fn write_manifest(&self, manifest: &Manifest) -> Result<(), StoreError> {
        self.writable()?;
        let path = self.dir.join("manifest.json");
        let manifest = Manifest { schema: SCHEMA, ..manifest.clone() };
        self.replace(&format::encode(&manifest, &path)?, &path)
    }

    /// The manifest, once there is one.
    pub fn read_manifest(&self) -> Result<Option<Manifest>, StoreError> {
        let path = self.dir.join("manifest.json");
        read(&path)?.map(|bytes| format::decode(&bytes, &path)).transpose()
    }

    /// Everything published, sorted; an empty manifest where there is none. Fails on the first file that cannot be
    /// trusted.
    pub fn contents(&self) -> Result<Contents, StoreError> {
        let mut contents =
            Contents { manifest: self.read_manifest()?.unwrap_or_default(), ..Contents::default() };
        for folder in entries(&self.dir.join("cells"))? {
            // A folder whose `cell.json` was deleted waits for the next run, with the measurements in it.
            let id = folder.file_name().unwrap_or_default().to_string_lossy();
            let Some(cell) = self.cell(&id)? else { continue };
            contents.cells.push(cell);
            for path in entries(&folder.join("measurements"))? {
                contents.measurements.extend(self.measurement_at(&path)?);
            }
            contents.items.extend(items::stored(&id, &folder)?);
            contents.layers.extend(layers::stored(&id, &folder)?);
        }
        for path in entries(&self.dir.join("failures"))? {
            if let Some(bytes) = read(&path)? {
                contents.failures.push(format::decode(&bytes, &path)?);
            }
        }
        fn key(m: &Envelope<MeasurementResult>) -> (&str, &str, u32) {
            (&m.result.cell, &m.result.metric, m.result.version)
        }
        contents.measurements.sort_by(|a, b| key(a).cmp(&key(b)));
        contents.statistics = self.statistics()?;
        contents.failures.sort_by(|a, b| (&a.cell, &a.metric).cmp(&(&b.cell, &b.metric)));
        Ok(contents)
    }

    fn measurement_at(&self, path: &Path) -> Result<Option<Envelope<MeasurementResult>>, StoreError> {
        let Some(bytes) = read(path)? else { return Ok(None) };
        let envelope: Envelope<MeasurementResult> = format::unseal(&bytes, path)?;
        let m = &envelope.result;
        if self.measurement_path(&m.cell, &m.metric, m.version)? != path {
            let reason = format!("it is `{}` version {} of cell {}", m.metric, m.version, m.cell);
            return Err(format::corrupt(path, reason));
        }
        Ok(Some(envelope))
    }

    fn cell_dir(&self, id: &str) -> Result<PathBuf, StoreError> {
        Ok(self.dir.join("cells").join(checked_id(id)?))
    }

    fn measurement_path(&self, cell: &str, metric: &str, version: u32) -> Result<PathBuf, StoreError> {
        let name = format!("{}.json", measurement_key(metric, version));
        Ok(self.cell_dir(cell)?.join("measurements").join(name))
    }

    fn failure_path(&self, cell: &str, metric: Option<&str>) -> Result<PathBuf, StoreError> {
        Ok(self.dir.join("failures").join(format!("{}.json", unit_name(cell, metric)?)))
    }

    fn read_marker(&self) -> Result<Option<Marker>, StoreError> {
        let path = self.dir.join("store.json");
        read(&path)?.map(|bytes| format::decode(&bytes, &path)).transpose()
    }

    fn writable(&self) -> Result<(), StoreError> {
        if self.read_only { Err(StoreError::ReadOnly { path: self.dir.clone() }) } else { Ok(()) }
    }

    /// Creates a folder and those above it, where they are missing.
    fn ensure_dir(&self, path: &Path) -> Result<(), StoreError> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.ensure_dir(parent)?;
        }
        match self.files.create_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(StoreError::InTheWay { path: path.into() })
            }
            Err(e) => Err(StoreError::io("create", path, e)),
            Ok(()) => self.sync(parent.unwrap_or(Path::new("."))),
        }
    }

    fn sync(&self, path: &Path) -> Result<(), StoreError> {
        self.files.sync(path).map_err(|e| StoreError::io("write", path, e))
    }

    fn write_synced(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.files.write(path, bytes).map_err(|e| StoreError::io("write", path, e))?;
        self.sync(path)
    }

    /// Writes a file and renames it into place; `false` where another came first.
    fn place_new(&self, stage: &Stage, bytes: &[u8], target: &Path) -> Result<bool, StoreError> {
        let draft = stage.path().join("draft.json");
        self.write_synced(&draft, bytes)?;
        match self.files.rename_new(&draft, target) {
            Ok(()) => self.sync(target.parent().unwrap_or(&self.dir)).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(StoreError::io("write", target, e)),
        }
    }

    /// Writes a file and renames it over what stands there.
    fn replace(&self, bytes: &[u8], target: &Path) -> Result<(), StoreError> {
        let stage = Stage::new(self)?;
        let draft = stage.path().join("draft.json");
        self.write_synced(&draft, bytes)?;
        self.files.rename(&draft, target).map_err(|e| StoreError::io("write", target, e))?;
        self.sync(target.parent().unwrap_or(&self.dir))
    }
}

/// The file name of a unit of work. A metric's version does not enter: the failure of a newer one replaces the older's.
fn unit_name(cell: &str, metric: Option<&str>) -> Result<String, StoreError> {
    checked_id(cell)?;
    Ok(match metric {
        Some(metric) => format!("{cell}.{}", measurement_key(metric, 0)),
        None => cell.to_string(),
    })
}

fn checked_id(id: &str) -> Result<&str, StoreError> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !id.is_empty() && id.len() <= 64 && id.chars().all(safe) {
        Ok(id)
    } else {
        Err(StoreError::BadId { id: id.to_string() })
    }
}

fn same_result(path: &Path, stored: String, computed: String) -> Result<(), StoreError> {
    if stored == computed {
        Ok(())
    } else {
        Err(StoreError::Conflict { path: path.into(), stored, computed })
    }
}

/// For a file that stood in the way a moment ago.
fn vanished(path: &Path) -> StoreError {
    StoreError::io("read", path, io::ErrorKind::NotFound.into())
}

/// A file's bytes; `None` where there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io("read", path, e)),
    }
}

/// What stands in a folder, by name, without hidden files (`.DS_Store`, `.nfs…`); empty where there is no such folder.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |e| StoreError::io("read", dir, e);
    let mut paths = Vec::new();
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(failed)?.path();
                if !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
                    paths.push(path);
                }
            }
        }
    }
    paths.sort();
    Ok(paths)
}
