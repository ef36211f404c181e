//! `quantscope sweep`: measure what is missing.

use std::path::PathBuf;

use clap::Args;

use crate::cli::{CliError, Options, Outcome, load, plan, print};

/// Measure every cell of an experiment that is not measured yet.
///
/// What is on disk is not computed again: stop a sweep at any moment and start it again, or start it twice and let the
/// two share the work. A cell that fails is recorded and does not stop the others.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quantscope sweep experiments/quickstart.toml
  quantscope sweep experiments/naive-smollm2.toml -r 'w8a8*' --limit 4    a quick look
  quantscope sweep experiments/llama3.toml --device cuda --models ~/models")]
pub struct SweepArgs {
    /// The experiment: a TOML file, as docs/format.md describes it.
    #[arg(value_name = "EXPERIMENT")]
    pub experiment: PathBuf,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would replace the verb's help")]
    pub options: Options,
}

/// Runs the sweep.
///
/// # Errors
/// Whatever the user has to change before anything can be measured.
pub fn run(args: &SweepArgs) -> Result<Outcome, CliError> {
    let (experiment, plan) = load(&args.experiment, &args.options)?;
    if args.options.dry_run {
        print(&plan::render(&experiment, &plan))?;
        return Ok(Outcome::Complete);
    }
    Err(CliError::NotInThisBuild("sweep"))
}
