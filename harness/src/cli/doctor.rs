//! `quantscope doctor`: what this machine has, and what is missing.

use clap::Args;

use crate::cli::{CliError, Options, Outcome};

/// Look at devices, data and model cache, and say what is missing.
///
/// Use it first when something does not work, and put its output into a bug report.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  quantscope doctor --data ~/corpora --models ~/models")]
pub struct DoctorArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would replace the verb's help")]
    pub options: Options,
}

/// Prints what was found.
///
/// # Errors
/// Where stdout cannot be written.
pub fn run(args: &DoctorArgs) -> Result<Outcome, CliError> {
    let _ = args;
    Err(CliError::NotInThisBuild("doctor"))
}
