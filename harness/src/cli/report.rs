//! `quantscope report`: from records to tables and figures.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::cli::{CliError, Options, Outcome, print, say};
use crate::report::{self, Tolerances};

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

    /// Compare the folder's summary.csv with this one; exit with 1 where they differ by more than the tolerances.
    ///
    /// Use it to see whether a change of code, device or machine moved a number.
    #[arg(long, value_name = "CSV", conflicts_with_all = ["format", "check"])]
    pub compare: Option<PathBuf>,

    /// Relative tolerance of original readings under --compare.
    #[arg(long, value_name = "X", default_value_t = 1e-4, requires = "compare")]
    pub tolerance_original: f64,

    /// Relative tolerance of quantized readings under --compare: a value near a rounding boundary may fall either way.
    #[arg(long, value_name = "X", default_value_t = 2e-2, requires = "compare")]
    pub tolerance_quantized: f64,

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

impl Format {
    /// Its name in the registry.
    pub fn name(self) -> &'static str {
        match self {
            Format::Markdown => "markdown",
            Format::Csv => "csv",
            Format::Json => "json",
            Format::Latex => "latex",
        }
    }
}

/// Makes, prints or checks the report.
///
/// # Errors
/// Where the folder holds no records, or cannot be written.
pub fn run(args: &ReportArgs) -> Result<Outcome, CliError> {
    if let Some(other) = &args.compare {
        return compare(args, other);
    }
    if args.check {
        let stale = report::check(&args.dir)?;
        for file in &stale {
            say(&file.to_string());
        }
        if stale.is_empty() {
            say("the report is that of its records");
        }
        return Ok(if stale.is_empty() { Outcome::Complete } else { Outcome::Incomplete });
    }
    if let Some(format) = args.format {
        print(&report::print(&args.dir, format.name())?)?;
        return Ok(Outcome::Complete);
    }
    for file in report::write(&args.dir)?.files {
        print(&format!("{}\n", file.display()))?;
    }
    Ok(Outcome::Complete)
}

/// Compares the folder's summary with another one.
fn compare(args: &ReportArgs, other: &Path) -> Result<Outcome, CliError> {
    let tolerances = Tolerances { original: args.tolerance_original, quantized: args.tolerance_quantized };
    let differences = report::compare_summaries(&args.dir.join("summary.csv"), other, tolerances)?;
    for difference in &differences {
        print(&format!("{difference}\n"))?;
    }
    if differences.is_empty() {
        say("the summaries agree within the tolerances");
    }
    Ok(if differences.is_empty() { Outcome::Complete } else { Outcome::Incomplete })
}
