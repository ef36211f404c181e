//! `quantscope doctor`: what this machine has, and what is missing.

use std::path::PathBuf;

use clap::Args;

use crate::cli::{CliError, Options, Outcome, print};
use crate::data::corpus::DataOptions;
use crate::doctor;

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
    let options = doctor::Options {
        data: DataOptions::new(args.options.data_dir(), PathBuf::new(), args.options.offline),
        models_dir: args.options.models_dir(),
    };
    print(&doctor::examine(&options).to_string())?;
    Ok(Outcome::Complete)
}
