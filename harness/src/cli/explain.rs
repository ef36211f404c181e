//! `quantscope explain`: the page of a step or metric, from its source file.

use clap::Args;

use crate::cli::{CliError, Options, Outcome, print};
use crate::experiment::{METRICS, metric_page};
use crate::names::hint;
use crate::quantize::page;
use crate::quantize::steps::{STEPS, Step, methods};

/// Print the page of a step, a method, a metric or the grids' conventions.
///
/// The page says what it does in words and as an equation, what its keys mean, and where it comes from. It is the
/// documentation of the source file, so it cannot be older than the program.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quantscope explain weights
  quantscope explain qfem               a method of the step `keep`
  quantscope explain perplexity
  quantscope explain conventions        how scale, zero point and codes follow from a range")]
pub struct ExplainArgs {
    /// A step, a step's method or a metric, as `quantscope list steps` and `quantscope list metrics` print them, or `conventions`.
    #[arg(value_name = "NAME")]
    pub name: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would replace the verb's help")]
    pub options: Options,
}

/// The name of the page on grids.
const CONVENTIONS: &str = "conventions";

/// Prints the page.
///
/// # Errors
/// Where nothing has this name.
pub fn run(args: &ExplainArgs) -> Result<Outcome, CliError> {
    let name = args.name.as_str();
    let grids = || (name == CONVENTIONS).then(|| page(include_str!("../quantize/grid.rs")));
    let Some(page) = Step::page(name).or_else(|| metric_page(name)).or_else(grids) else {
        let of_several = methods(name);
        if !of_several.is_empty() {
            return Err(CliError::SeveralMethods { step: name.to_string(), methods: of_several.join(", ") });
        }
        let steps = STEPS.iter().map(|(step, method)| method.unwrap_or(step));
        let names: Vec<_> = steps.chain(METRICS.iter().copied()).chain([CONVENTIONS]).collect();
        let hint = hint(name, names.iter().copied());
        return Err(CliError::Unknown { name: name.to_string(), hint, names: names.join(", ") });
    };
    print(&format!("{}\n", page.trim_end()))?;
    Ok(Outcome::Complete)
}
