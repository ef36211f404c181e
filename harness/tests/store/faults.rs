//! File operations that fail at a chosen moment.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use harness::record::store::{Disk, Files};

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing; operations are counted.
    None,
    /// The process dies in the middle of the operation: it is half done, and no later one happens.
    Crash,
    /// As `Crash`, and bytes that were never synced are lost, wherever their file was renamed to.
    PowerCut,
    /// No space from here on: folders and bytes are refused (of the first file, half is written); the rest works.
    DiskFull,
    /// Nothing may be written.
    Denied,
}

/// A disk with a fault at one operation. Clones share the count.
#[derive(Clone, Debug)]
pub struct Faulty {
    fault: Fault,
    at: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    count: usize,
    unsynced: Vec<(PathBuf, File)>,
}

/// Whether an operation happens.
enum Turn {
    Whole,
    Half(io::Error),
    Not(io::Error),
}

impl Faulty {
    pub fn new(fault: Fault) -> Self {
        Faulty { fault, at: usize::MAX, state: Arc::default() }
    }

    /// Strikes at operation `at`, counted from 0.
    pub fn at(self, at: usize) -> Self {
        Faulty { at, ..self }
    }

    pub fn count(&self) -> usize {
        self.state.lock().unwrap().count
    }

    pub fn struck(&self) -> bool {
        self.count() > self.at
    }

    /// `grows`: whether the operation takes space.
    fn turn(&self, grows: bool) -> Turn {
        let mut state = self.state.lock().unwrap();
        let now = state.count;
        state.count += 1;
        if now < self.at {
            return Turn::Whole;
        }
        let error = match self.fault {
            Fault::None => return Turn::Whole,
            Fault::Denied => return Turn::Not(io::ErrorKind::PermissionDenied.into()),
            Fault::DiskFull if !grows => return Turn::Whole,
            Fault::DiskFull => io::ErrorKind::StorageFull.into(),
            Fault::Crash => io::Error::other("this process is dead"),
            Fault::PowerCut => {
                for (_, file) in state.unsynced.drain(..) {
                    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
                }
                io::Error::other("the power is cut")
            }
        };
        if now == self.at { Turn::Half(error) } else { Turn::Not(error) }
    }

    fn whole_or_not(&self, grows: bool, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.turn(grows) {
            Turn::Whole => act(),
            Turn::Half(error) | Turn::Not(error) => Err(error),
        }
    }
}

impl Files for Faulty {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.whole_or_not(true, || Disk.create_dir(path))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self.turn(true) {
            Turn::Whole => {
                Disk.write(path, bytes)?;
                let file = File::options().write(true).open(path)?;
                self.state.lock().unwrap().unsynced.push((path.into(), file));
                Ok(())
            }
            Turn::Half(error) => {
                Disk.write(path, &bytes[..bytes.len() / 2])?;
                Err(error)
            }
            Turn::Not(error) => Err(error),
        }
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        // Durability is modelled here, and tens of thousands of real syncs would take minutes on a busy disk.
        self.whole_or_not(true, || fs::metadata(path).map(drop))?;
        self.state.lock().unwrap().unsynced.retain(|(unsynced, _)| unsynced != path);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.whole_or_not(false, || Disk.rename(from, to))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.whole_or_not(false, || Disk.rename_new(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.whole_or_not(false, || Disk.remove_file(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match self.turn(false) {
            Turn::Whole => Disk.remove_dir_all(path),
            Turn::Half(error) => {
                for entry in fs::read_dir(path)?.take(1) {
                    let entry = entry?.path();
                    if entry.is_dir() { fs::remove_dir_all(entry)? } else { fs::remove_file(entry)? }
                }
                Err(error)
            }
            Turn::Not(error) => Err(error),
        }
    }
}
