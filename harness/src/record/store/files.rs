//! The few operations by which a store changes the disk, as a trait, so that a test can stop between any two of them.
//!
//! Reading is not here: it changes nothing, and so cannot leave a store half done.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// File operations that change the disk. [`Disk`] does them; tests count them and let them fail.
pub trait Files: Debug + Send + Sync {
    /// Creates one folder; an existing one is an error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates a file with these bytes; an existing one is an error. The bytes are durable only after `sync`.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Makes a file's bytes, or a folder's entries, durable.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Renames, replacing a file in the way. A folder in the way that is not empty is an error.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames a file; one in the way is an error of kind `AlreadyExists`.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder and all below it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
}

/// The disk itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Files for Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        File::create_new(path)?.write_all(bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        if !path.is_dir() {
            return OpenOptions::new().read(true).write(true).open(path)?.sync_all();
        }
        // Only Unix can open a folder to sync it, and some network file systems refuse even there. Without it a power
        // cut may lose the newest entry, which the next run computes again.
        #[cfg(unix)]
        match File::open(path)?.sync_all() {
            Err(e) if !matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                return Err(e);
            }
            _ => {}
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let temporary = tempfile::TempPath::try_from_path(from)?;
        match temporary.persist_noclobber(to) {
            Ok(()) => Ok(()),
            Err(refused) => {
                refused.path.keep().map_err(|e| e.error)?;
                match refused.error.kind() {
                    // File systems without hard links (exFAT, some network shares): the check and the rename are two
                    // steps, and a race between them replaces a result by an equal one.
                    io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported if !to.try_exists()? => {
                        fs::rename(from, to)
                    }
                    _ => Err(refused.error),
                }
            }
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}
