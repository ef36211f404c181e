//! What can go wrong with a store, each with the place and the cure.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the store. Its message is [`StoreError::problem`] followed by [`StoreError::cure`].
#[derive(Debug, thiserror::Error)]
#[error("{}. {}", self.problem(), self.cure())]
pub enum StoreError {
    /// The operating system refused.
    Io {
        /// What was being done, as in "write".
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file stands where a folder must be.
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// There is no results folder to read.
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Written by a newer version of this program.
    Newer {
        /// The file that says so.
        path: PathBuf,
        /// The schema it was written with.
        found: u64,
        /// The highest schema this program reads.
        supported: u32,
    },
    /// A file that is truncated, edited by hand or in the wrong place.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What was computed now differs from what is stored under the same id.
    Conflict {
        /// The stored file.
        path: PathBuf,
        /// Its result hash.
        stored: String,
        /// The result hash of what was computed now.
        computed: String,
    },
    /// A number that JSON cannot hold, or anything else that would not be read back as it was written.
    NotFinite {
        /// Which value, in words.
        what: String,
        /// Where it would have gone.
        path: PathBuf,
    },
    /// A measurement came before its cell.
    NoSuchCell {
        /// Where the cell should be.
        path: PathBuf,
    },
    /// An id that cannot be a file name.
    BadId {
        /// The id.
        id: String,
    },
    /// Something was written to a store that was opened for reading.
    ReadOnly {
        /// The store.
        path: PathBuf,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotADirectory => match path.ancestors().find(|p| p.is_file()) {
                Some(file) => StoreError::InTheWay { path: file.into() },
                None => StoreError::Io { action, path: path.into(), source },
            },
            _ => StoreError::Io { action, path: path.into(), source },
        }
    }

    /// What happened and where, without a full stop.
    pub fn problem(&self) -> String {
        match self {
            StoreError::Io { action, path, source } => {
                let why = match source.kind() {
                    io::ErrorKind::StorageFull => "the disk is full".to_string(),
                    io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_string(),
                    io::ErrorKind::PermissionDenied => "permission denied".to_string(),
                    io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_string(),
                    _ => source.to_string(),
                };
                format!("cannot {action} `{}`: {why}", path.display())
            }
            StoreError::InTheWay { path } => {
                format!("`{}` is a file where the store needs a folder", path.display())
            }
            StoreError::Missing { path } => format!("there are no results at `{}`", path.display()),
            StoreError::Newer { path, found, supported } => format!(
                "`{}` was written by a newer version of this program (schema {found}; this one reads up to {supported})",
                path.display()
            ),
            StoreError::Corrupt { path, reason } => {
                format!("`{}` cannot be trusted: {reason}", path.display())
            }
            StoreError::Conflict { path, stored, computed } => format!(
                "`{}` holds another result for the same id: stored {stored}, computed now {computed}",
                path.display()
            ),
            StoreError::NotFinite { what, path } => {
                format!("{what}, which the record `{}` cannot hold", path.display())
            }
            StoreError::NoSuchCell { path } => {
                format!("a measurement was to be written before its cell `{}`", path.display())
            }
            StoreError::BadId { id } => format!("`{id}` cannot be the id of a cell"),
            StoreError::ReadOnly { path } => {
                format!("the store `{}` was opened for reading only", path.display())
            }
        }
    }

    /// What the user can do about it, as one sentence or two.
    pub fn cure(&self) -> &'static str {
        match self {
            StoreError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "Free some space, or choose a results folder on another disk, and run again: \
                     what was finished is kept."
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "Make it writable, or choose another results folder."
                }
                _ => "Check the disk and the folder, and run again: what was finished is kept.",
            },
            StoreError::InTheWay { .. } => "Move the file away, or choose another results folder.",
            StoreError::Missing { .. } => "Run the sweep first, or name the folder that holds its results.",
            StoreError::Newer { .. } => "Update this program, or choose another results folder.",
            StoreError::Corrupt { .. } => "Delete it and run again: only what it held is computed anew.",
            StoreError::Conflict { .. } => {
                "One of the two was computed on another device or with other code. Delete the stored file and run \
                 again to replace it, or leave it to keep it."
            }
            StoreError::NotFinite { .. } => {
                "Record it as a failure of the measurement, with the stage that made it."
            }
            StoreError::NoSuchCell { .. } => "Publish the cell first.",
            StoreError::BadId { .. } => "Use letters, digits, `-` and `_`, at most 64 of them.",
            StoreError::ReadOnly { .. } => "Open it for writing.",
        }
    }
}
