//! `quantscope compare`: two recipes, or two results folders, item by item and window by window.

use std::path::PathBuf;

use clap::Args;

use crate::cli::report::Format;
use crate::cli::{CliError, Options, Outcome, print, say};
use crate::record::store::Store;
use crate::report::side_by_side::{Only, Side, tables};
use crate::report::{ReportError, tables as formats};

/// Compare two recipes, or two results folders, item by item; needs no model and no device.
///
/// Accuracies are paired by item (exact McNemar test, difference with intervals, flips, the smallest difference that could
/// have been seen), perplexities by window. All comparisons of a table are one family for the adjusted p-values.
/// Differences are always second less first. Exit code 1 says that nothing could be paired.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quantscope compare results/quickstart --second w4a16        the original and a recipe
  quantscope compare results/quickstart --first w8a16 --second w4a16
  quantscope compare results/here results/there               the same cells of two folders
  quantscope compare results/here --first 'w8*' --second 'w4*' -t piqa --format latex")]
pub struct CompareArgs {
    /// The folder of records.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Another folder, whose cells come second. Without it, both sides are of the first folder.
    #[arg(value_name = "OTHER")]
    pub other: Option<PathBuf>,

    /// The first side's recipes, a glob. With one folder the default is the original.
    #[arg(long, value_name = "GLOB")]
    pub first: Option<String>,

    /// The second side's recipes, a glob. With one folder the default is all but the original.
    #[arg(long, value_name = "GLOB")]
    pub second: Option<String>,

    /// How the tables are written.
    #[arg(long, value_name = "FORMAT", default_value = "markdown")]
    pub format: Format,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would replace the verb's help")]
    pub options: Options,
}

/// Prints the tables of what can be compared.
///
/// # Errors
/// Where a folder holds no records, and of filters by recipe.
pub fn run(args: &CompareArgs) -> Result<Outcome, CliError> {
    if !args.options.keep_recipes.is_empty() || !args.options.drop_recipes.is_empty() {
        return Err(CliError::NoSide);
    }
    let read = |dir: &PathBuf| -> Result<_, ReportError> { Ok(Store::open_read_only(dir)?.contents()?) };
    let first = read(&args.dir)?;
    let other = args.other.as_ref().map(read).transpose()?;
    let original = crate::report::rows::ORIGINAL;
    let default = args.other.is_none().then_some(original);
    let sides = [
        Side { contents: &first, recipe: args.first.as_deref().or(default) },
        Side {
            contents: other.as_ref().unwrap_or(&first),
            recipe: args.second.as_deref().or(args.other.is_none().then_some("*")),
        },
    ];
    let only = Only { models: &args.options.keep_models, metrics: &args.options.keep_tasks };
    let found = tables(sides[0], sides[1], only);
    if found.is_empty() {
        say(
            "nothing can be paired: no cell of the first side has a partner of the same model and metric on the second",
        );
        return Ok(Outcome::Incomplete);
    }
    let format = formats::find(args.format.name()).expect("every format of the flag is in the registry");
    let texts: Vec<String> = found.iter().map(|table| format.write(table)).collect();
    print(&texts.join("\n"))?;
    Ok(Outcome::Complete)
}
