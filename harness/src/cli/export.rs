//! `quantscope export`: records in other programs' formats.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::{CliError, Options, Outcome, print, say};
use crate::names::glob;
use crate::record::ManifestCell;
use crate::record::store::Store;
use crate::report::{ReportError, lm_eval_results};

/// Write task scores as lm-evaluation-harness writes its results; needs no model and no device.
///
/// One document for each cell: to stdout where the filters leave one cell, or into a folder, a file for each. Only metrics
/// computed as lm-eval 0.4.13 computes them are exported, under its names (`acc,none`, `acc_stderr,none`, …).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quantscope export results/scores -m smollm2 -r original > results.json
  quantscope export results/scores --output exported/")]
pub struct ExportArgs {
    /// The folder of records.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// The format.
    #[arg(long, value_name = "FORMAT", default_value = "lm-eval")]
    pub format: Format,

    /// The folder to write into, one file for each cell.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would replace the verb's help")]
    pub options: Options,
}

/// Formats of other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// lm-evaluation-harness's results JSON.
    LmEval,
}

/// Writes the documents.
///
/// # Errors
/// Where the folder holds no records, or the output cannot be written.
pub fn run(args: &ExportArgs) -> Result<Outcome, CliError> {
    let contents =
        Store::open_read_only(&args.dir).and_then(|store| store.contents()).map_err(ReportError::from)?;
    let any = |globs: &[String], name: &str| globs.iter().any(|pattern| glob(pattern, name));
    let options = &args.options;
    let selects = |keep: &[String], drop: &[String], name: &str| {
        (keep.is_empty() || any(keep, name)) && !any(drop, name)
    };
    let takes = |cell: &ManifestCell| {
        selects(&options.keep_models, &options.drop_models, &cell.model)
            && selects(&options.keep_recipes, &options.drop_recipes, &cell.recipe)
            && cell
                .calibration
                .as_ref()
                .is_none_or(|name| selects(&options.keep_calibrations, &options.drop_calibrations, name))
    };
    let Format::LmEval = args.format;
    let results = lm_eval_results::results(&contents, &takes);
    let text = |document| format!("{}\n", serde_json::to_string_pretty(document).expect("JSON is text"));
    match (&results[..], &args.output) {
        ([], _) => {
            say("nothing to export: no selected cell has scores under lm-evaluation-harness's protocol");
            return Ok(Outcome::Incomplete);
        }
        (results, Some(folder)) => {
            let failure = |path: PathBuf| move |source| ReportError::Write { path, source };
            std::fs::create_dir_all(folder).map_err(failure(folder.clone()))?;
            for result in results {
                let path = folder.join(format!("{}.json", result.name));
                std::fs::write(&path, text(&result.document)).map_err(failure(path.clone()))?;
                print(&format!("{}\n", path.display()))?;
            }
        }
        ([one], None) => print(&text(&one.document))?,
        (several, None) => {
            let names: Vec<&str> = several.iter().map(|result| result.name.as_str()).collect();
            say(&format!(
                "{} cells have scores ({}): name one with -m and -r, or a folder with --output",
                several.len(),
                names.join(", ")
            ));
            return Ok(Outcome::Incomplete);
        }
    }
    Ok(Outcome::Complete)
}
