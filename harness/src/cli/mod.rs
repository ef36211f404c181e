//! The command line: verbs, flags, exit codes. The only place that prints, reads arguments and decides how to exit.
//!
//! stdout is data, stderr is talk: whatever a verb is asked for goes to stdout and can be piped; notes, warnings,
//! progress and errors go to stderr.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | all is well |
//! | 1 | some cells failed, an expectation was missed, or a report is stale |
//! | 2 | the command, the experiment file or the environment has to be changed |
//! | 130 | stopped by Ctrl-C or SIGTERM; everything measured is kept |

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::device::DeviceError;
use crate::experiment::{Experiment, ExperimentError};
use crate::plan::{Plan, SelectionError};
use crate::report::ReportError;
use crate::run::RunError;
use crate::run::inspect::InspectError;
use crate::run::interrupt::InterruptError;

pub mod compare;
pub mod doctor;
pub mod explain;
pub mod export;
pub mod inspect;
pub mod list;
pub mod options;
pub mod plan;
pub mod progress;
pub mod report;
pub mod sweep;

pub use options::Options;

/// Measure what quantization does to language models.
///
/// An experiment is one TOML file: a question, the models, recipes and calibration sets to sweep, and what to measure.
/// `plan` shows what it would run, `sweep` measures whatever is missing, and `report` turns the records into tables
/// and figures.
#[derive(Debug, Parser)]
#[command(name = "quantscope", version, max_term_width = 100, help_expected = true)]
#[command(after_help = "Examples:
  quantscope sweep experiments/quickstart.toml       measure, then write the report
  quantscope plan  experiments/llama3.toml           what would run, without running it
  quantscope explain weights                         what a step does, with its equation and source
  quantscope inspect builtin/tiny-llama-spiky        which groups of a checkpoint spike, and at which tokens

Exit codes: 0 all is well; 1 some cells failed, an expectation was missed or a report is stale;
2 the command, the experiment file or the environment has to be changed.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "the help of a verb is the documentation of its arguments, in its own file")]
pub enum Verb {
    Sweep(sweep::SweepArgs),
    Plan(plan::PlanArgs),
    Report(report::ReportArgs),
    Compare(compare::CompareArgs),
    Export(export::ExportArgs),
    Inspect(inspect::InspectArgs),
    List(list::ListArgs),
    Explain(explain::ExplainArgs),
    Doctor(doctor::DoctorArgs),
}

/// How a verb that did its work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Complete,
    /// Some cells failed, an expectation was missed, or a report is stale.
    Incomplete,
    /// The user stopped it; everything measured is kept.
    Interrupted,
}

/// Why a verb could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The experiment file.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// The filters.
    #[error(transparent)]
    Selection(#[from] SelectionError),
    /// A name that is in no registry.
    #[error("nothing is called `{name}`{hint}; there are: {names}")]
    Unknown {
        /// The name as it was given.
        name: String,
        /// The nearest name, in words.
        hint: String,
        /// All names.
        names: String,
    },
    /// A step whose page is that of its methods.
    #[error("the step `{step}` has several methods, each with a page of its own: {methods}")]
    SeveralMethods {
        /// The step.
        step: String,
        /// Its methods.
        methods: String,
    },
    /// Filters that say nothing of which side is meant.
    #[error("-r and -R do not say which side they are of: choose with --first GLOB and --second GLOB")]
    NoSide,
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The store, the texts, or a device that broke.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A look at a checkpoint.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The system refuses to tell of signals.
    #[error("cannot watch for Ctrl-C: {0}")]
    Interrupt(#[from] InterruptError),
    /// stdout is closed or full.
    #[error("cannot write to stdout: {0}")]
    Stdout(#[from] io::Error),
}

/// Bytes of a thread's stack, as the system gives them to a program's first one.
const STACK: usize = 8 << 20;

/// Carries out what the command line says, and exits as the table above has it.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Products are divided among the threads of this pool. Asked for from outside of it, each of them puts the asker to sleep
    // and wakes it again, which for small models takes longer than the product.
    match rayon::ThreadPoolBuilder::new().stack_size(STACK).build_global() {
        Ok(()) => rayon::scope(|_| carried_out(&cli.verb)),
        Err(_) => carried_out(&cli.verb),
    }
}

fn carried_out(verb: &Verb) -> ExitCode {
    match run(verb) {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Incomplete) => ExitCode::from(1),
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        // Whoever reads has read enough, as in `quantscope plan … | head`.
        Err(CliError::Stdout(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

/// Carries out one verb.
///
/// # Errors
/// Whatever the user has to change.
pub fn run(verb: &Verb) -> Result<Outcome, CliError> {
    match verb {
        Verb::Sweep(args) => sweep::run(args),
        Verb::Plan(args) => plan::run(args),
        Verb::Report(args) => report::run(args),
        Verb::Compare(args) => compare::run(args),
        Verb::Export(args) => export::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::List(args) => list::run(args),
        Verb::Explain(args) => explain::run(args),
        Verb::Doctor(args) => doctor::run(args),
    }
}

/// Reads an experiment and the selected part of its plan, and says what is worth a word.
///
/// # Errors
/// Where the file or the filters have to be changed.
pub fn load(file: &Path, options: &Options) -> Result<(Experiment, Plan), CliError> {
    let mut experiment = Experiment::read(file)?;
    if let Some(limit) = options.limit {
        experiment = experiment.limited(limit.get());
    }
    for warning in &experiment.warnings {
        say(&format!("warning: {}: {warning}", file.display()));
    }
    let plan = options.selection().apply(Plan::new(&experiment))?;
    for note in &plan.notes {
        say(&format!("note: {note}"));
    }
    Ok((experiment, plan))
}

/// Data, to stdout.
///
/// # Errors
/// Where stdout is closed or full.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Talk, to stderr.
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// Rows as columns of text, two spaces between them, nothing trailing.
pub fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..rows.iter().map(Vec::len).max().unwrap_or(0)).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            write!(line, "{cell:width$}  ").expect("writing to a string cannot fail");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_is_consistent_and_has_help() {
        // `help_expected` makes a flag without help a panic here.
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_its_own_long_help() {
        let command = Cli::command();
        let mut seen = Vec::new();
        for verb in command.get_subcommands() {
            let about = verb.get_long_about().map(ToString::to_string).unwrap_or_default();
            assert!(about.contains("\n\n"), "{} has no long help: {about:?}", verb.get_name());
            assert!(!seen.contains(&about), "{} has another verb's help", verb.get_name());
            seen.push(about);
        }
    }

    #[test]
    fn the_same_flags_stand_on_every_verb() {
        let command = Cli::command();
        let flags = |verb: &clap::Command| -> Vec<String> {
            verb.get_arguments().filter_map(|arg| arg.get_long().map(String::from)).collect()
        };
        let shared = flags(command.find_subcommand("plan").expect("a verb"));
        assert!(shared.contains(&"keep-models".to_string()) && shared.contains(&"offline".to_string()));
        for verb in command.get_subcommands() {
            let own = flags(verb);
            assert!(
                shared.iter().all(|flag| own.contains(flag)),
                "{} lacks some of {shared:?}",
                verb.get_name()
            );
        }
    }

    #[test]
    fn columns_line_up_and_do_not_trail() {
        let rows = [vec!["a".into(), "bb".into()], vec!["ccc".into(), String::new()]];
        assert_eq!(columns(&rows), "a    bb\nccc\n");
    }
}
