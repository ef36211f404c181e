//! `quantscope report`: from records to tables and figures.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::{CliError, Options, Outcome};

/// Turn records into tables and figures; needs no model and no device.
///
/// Without --format the report is written into the folder: the table into README.md, the numbers as CSV and Parquet,
/// and the figures. With it, the table goes to stdout.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quantscope report results/quickstart
  quantscope report results/quickstart --format csv > quickstart.csv
  quantscope report results/quickstart --check       is the committed report that of the records?")]
pub struct ReportArgs {
    /// The folder of an experiment's records, such as results/quickstart.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Print one row per measurement to stdout in this format.
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,

    /// Change nothing; exit with 1 if the report in the folder is not that of its records.
    #[arg(long, conflicts_with = "format")]
    pub check: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would replace the verb's help")]
    pub options: Options,
}

/// Formats of the table on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table.
    Markdown,
    /// Comma-separated values with a header.
    Csv,
    /// A list of objects.
    Json,
    /// A LaTeX table with booktabs rules.
    Latex,
}

/// Makes, prints or checks the report.
///
/// # Errors
/// Where the folder holds no records, or cannot be written.
pub fn run(args: &ReportArgs) -> Result<Outcome, CliError> {
    let _ = args;
    Err(CliError::NotInThisBuild("report"))
}
