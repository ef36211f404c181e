//! From records to tables and figures.
//!
//! Reads the records of one results folder and nothing else: needs no device, no checkpoint, and must not know Burn,
//! the models or the run. The data flow is a line:
//!
//! ```text
//! record::Contents ─ rows ─┬─ sections/* ─ table ─ tables/*  ─┬─ document ─ splice ─ README.md
//!                          ├─ figures/* ─ drawing ─ SVG, PNG ─┘
//!                          └─ long form ─ frame ─ summary.csv, summary.parquet ─ compare
//! ```
//!
//! [`side_by_side`] pairs two recipes or two folders, item by item and window by window. Figures and sections that compare
//! cells which differ in one step find them by [`recipes`]; [`published`] holds what
//! papers report.
//!
//! The same records give the same bytes, so a committed report can be checked by making it again.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::record::Contents;
use crate::record::store::{Store, StoreError};

pub mod ablation;
pub mod calibrated;
pub mod clocked;
pub mod compare;
pub mod document;
pub mod drawing;
pub mod expectations;
pub mod figures;
pub mod frame;
pub mod layers;
pub mod lm_eval_results;
pub mod metric;
pub mod observed;
pub mod paired_items;
pub mod paired_texts;
pub mod pivot;
pub mod published;
pub mod recipes;
pub mod rows;
pub mod sections;
pub mod side_by_side;
pub mod splice;
pub mod table;
pub mod tables;

pub use compare::{Difference, Tolerances, compare_summaries};

/// What can go wrong between records and a report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The records cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("{path} cannot be written: {source}; is the disk full or the folder read-only?")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The markers of the generated block are damaged.
    #[error(
        "{path} must hold one line `{begin}` and below it one line `{end}`, but has {begins} and {ends}: repair them, or \
         delete them to have the block appended",
        begin = splice::BEGIN,
        end = splice::END
    )]
    Markers {
        /// The README.
        path: PathBuf,
        /// How often the begin marker occurs.
        begins: usize,
        /// How often the end marker occurs.
        ends: usize,
    },
    /// A figure cannot be drawn.
    #[error("the figure {figure} cannot be drawn: {message}")]
    Drawing {
        /// Its file stem.
        figure: String,
        /// plotters' or the figure's own message.
        message: String,
    },
    /// A summary is not what this program writes.
    #[error("{path} is no summary of a report: {message}; make it again with `quantscope report`")]
    Summary {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// No table format has this name.
    #[error("there is no table format {name:?}; there are {}", format_names())]
    Format {
        /// The name asked for.
        name: String,
    },
}

fn format_names() -> String {
    tables::FORMATS.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
}

/// What [`write()`] left on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Every file of the report, whether its bytes changed or not.
    pub files: Vec<PathBuf>,
    /// Figures of the former report that are not part of this one.
    pub removed: Vec<PathBuf>,
    /// Planned measurements that are missing or failed.
    pub gaps: usize,
    /// Expectations that were missed.
    pub missed: usize,
}

/// A file of a committed report that is not what the records give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: StaleReason,
}

/// Why a file is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleReason {
    /// It is not there.
    Missing,
    /// Its bytes are not those that the records give.
    Differs,
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.reason {
            StaleReason::Missing => write!(f, "{} is missing", self.path.display()),
            StaleReason::Differs => write!(f, "{} differs from what the records give", self.path.display()),
        }
    }
}

/// Makes the report of the results folder `dir`: README, summaries and figures, each replaced in one step.
///
/// # Errors
/// Where the records cannot be read, a figure fails, the README's markers are damaged or a file cannot be written.
pub fn write(dir: &Path) -> Result<Written, ReportError> {
    write_contents(dir, &read(dir)?)
}

/// [`write()`] of contents already read.
///
/// # Errors
/// As [`write()`].
pub fn write_contents(dir: &Path, contents: &Contents) -> Result<Written, ReportError> {
    let former = read_readme(dir)?;
    let files = generate(dir, contents, former.as_deref())?;
    let figures = dir.join(document::FIGURES);
    if files.iter().any(|(path, _)| path.starts_with(&figures)) {
        std::fs::create_dir_all(&figures)
            .map_err(|source| ReportError::Write { path: figures.clone(), source })?;
    }
    for (path, bytes) in &files {
        replace(path, bytes)?;
    }

    // Only files that the former block names are ours to remove.
    let mut removed = Vec::new();
    let kept: BTreeSet<&PathBuf> = files.iter().map(|(path, _)| path).collect();
    for path in former.iter().flat_map(|readme| linked_figures(dir, readme)) {
        if !kept.contains(&path) && path.exists() {
            std::fs::remove_file(&path)
                .map_err(|source| ReportError::Write { path: path.clone(), source })?;
            removed.push(path);
        }
    }
    let missed =
        |(_, verdict): &(_, expectations::Verdict)| matches!(verdict, expectations::Verdict::Missed { .. });
    Ok(Written {
        files: files.into_iter().map(|(path, _)| path).collect(),
        removed,
        gaps: rows::rows(contents).iter().filter(|row| row.value().is_none()).count(),
        missed: expectations::judge(contents).iter().filter(|judged| missed(judged)).count(),
    })
}

/// The files of the committed report in `dir` that differ from what its records give.
///
/// # Errors
/// As [`write()`], except that nothing is written.
pub fn check(dir: &Path) -> Result<Vec<Stale>, ReportError> {
    check_contents(dir, &read(dir)?)
}

/// [`check`] against contents already read.
///
/// # Errors
/// As [`check`].
pub fn check_contents(dir: &Path, contents: &Contents) -> Result<Vec<Stale>, ReportError> {
    let mut stale = Vec::new();
    for (path, bytes) in generate(dir, contents, read_readme(dir)?.as_deref())? {
        match std::fs::read(&path) {
            Ok(found) if found == bytes => {}
            Ok(_) => stale.push(Stale { path, reason: StaleReason::Differs }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                stale.push(Stale { path, reason: StaleReason::Missing });
            }
            Err(source) => return Err(ReportError::Read { path, source }),
        }
    }
    Ok(stale)
}

/// The records of `dir` in a table format: the long form in formats that programs read, else the report's tables.
///
/// # Errors
/// Where the records cannot be read or no format has this name.
pub fn print(dir: &Path, format: &str) -> Result<String, ReportError> {
    // The name first: a typing error should not wait for the records.
    let format = tables::find(format).ok_or_else(|| ReportError::Format { name: format.to_owned() })?;
    Ok(print_contents(&read(dir)?, format))
}

/// [`print`] of contents already read.
pub fn print_contents(contents: &Contents, format: &dyn tables::TableFormat) -> String {
    if format.long() {
        return format.write(&rows::long_table(contents));
    }
    let tables: Vec<String> = document::tables(contents).iter().map(|table| format.write(table)).collect();
    tables.join("\n")
}

fn read(dir: &Path) -> Result<Contents, ReportError> {
    Ok(Store::open_read_only(dir)?.contents()?)
}

/// Every file of the report with its bytes.
fn generate(
    dir: &Path,
    contents: &Contents,
    readme: Option<&str>,
) -> Result<Vec<(PathBuf, Vec<u8>)>, ReportError> {
    let folder = folder_name(dir).unwrap_or_else(|| contents.manifest.experiment.clone());
    let drawings = figures::draw_all(contents)?;
    let block = document::block(contents, &folder, &drawings);
    let path = dir.join("README.md");
    let title = if contents.manifest.experiment.is_empty() { &folder } else { &contents.manifest.experiment };
    let readme = splice::splice(&path, readme, title, &block)?;
    let mut summary = frame::from_table(&rows::long_table(contents));

    let mut files = vec![
        (path, readme.into_bytes()),
        (dir.join("summary.csv"), frame::csv(&mut summary).into_bytes()),
        (dir.join("summary.parquet"), frame::parquet(&mut summary)),
    ];
    let painted = |drawing: &drawing::Drawing| {
        let file =
            |extension: &str| dir.join(document::FIGURES).join(format!("{}.{extension}", drawing.stem));
        Ok([(file("svg"), drawing.svg()?.into_bytes()), (file("png"), drawing.png()?)])
    };
    let figures: Result<Vec<_>, ReportError> = drawings.par_iter().map(painted).collect();
    files.extend(figures?.into_iter().flatten());
    Ok(files)
}

/// The last component of `dir`, also of `.`.
fn folder_name(dir: &Path) -> Option<String> {
    let resolved = dir.canonicalize().ok()?;
    Some(resolved.file_name()?.to_string_lossy().into_owned())
}

fn read_readme(dir: &Path) -> Result<Option<String>, ReportError> {
    let path = dir.join("README.md");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReportError::Read { path, source }),
    }
}

/// The figures that a README's generated block links to.
fn linked_figures(dir: &Path, readme: &str) -> Vec<PathBuf> {
    let block = readme.split_once(splice::BEGIN).map_or("", |(_, rest)| rest);
    let block = block.split_once(splice::END).map_or(block, |(block, _)| block);
    let start = format!("]({}/", document::FIGURES);
    let names =
        block.split(start.as_str()).skip(1).filter_map(|rest| rest.split_once(')')).map(|(name, _)| name);
    names
        .filter(|name| !name.contains('/') && (name.ends_with(".svg") || name.ends_with(".png")))
        .map(|name| dir.join(document::FIGURES).join(name))
        .collect()
}

/// Writes a file so that a reader sees the old bytes or the new ones, never a part.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    let failure = |source: std::io::Error| ReportError::Write { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // Temporary files are private; a report is as readable as the user's other files.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(failure)?;
    file.write_all(bytes).map_err(failure)?;
    file.as_file().sync_all().map_err(failure)?;
    file.persist(path).map_err(|error| failure(error.error))?;
    Ok(())
}
