//! `quantscope list`: the registries.

use clap::{Args, ValueEnum};
use models::Port;

use crate::cli::{CliError, Options, Outcome, columns, print};
use crate::data::corpus::{CORPORA, UDHR_LANGUAGES};
use crate::data::generated::Generated;
use crate::evaluate::questions;
use crate::evaluate::scoring::Metric;
use crate::evaluate::tasks::TASKS;
use crate::experiment::{self, BUILTIN_MODELS, METRICS, metric_page};
use crate::quantize::grid::{CONVENTIONS, FLOATS};
use crate::quantize::steps::{STEPS, Step};
use crate::report::figures::FIGURES;

/// List the registered steps, metrics, conventions, models, corpora, figures or experiment keys.
///
/// One name a line, with a word on each; `quantscope explain NAME` prints the page of a step or metric.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quantscope list steps
  quantscope list keys                every key of the experiment file")]
pub struct ListArgs {
    /// What to list.
    #[arg(value_name = "WHAT")]
    pub what: Registry,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would replace the verb's help")]
    pub options: Options,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Registry {
    /// The steps that a recipe may have.
    Steps,
    /// What `[[evaluate]]` may name as its metric.
    Metrics,
    /// What `[[evaluate]]` may name as its task.
    Tasks,
    /// How a grid's scale follows from a range.
    Conventions,
    /// The places of a model where steps act.
    Sites,
    /// The models that ship with the program.
    Models,
    /// The texts that are known by name.
    Corpora,
    /// What a report draws where its records hold it.
    Figures,
    /// The keys of the experiment file, by block.
    Keys,
}

/// Prints the registry.
///
/// # Errors
/// Where stdout cannot be written.
pub fn run(args: &ListArgs) -> Result<Outcome, CliError> {
    print(&columns(&rows(args.what)))?;
    Ok(Outcome::Complete)
}

fn rows(what: Registry) -> Vec<Vec<String>> {
    match what {
        Registry::Steps => {
            let row = |(step, method): &(&str, Option<&str>)| {
                let page = Step::page(method.unwrap_or(step));
                vec![step.to_string(), method.unwrap_or("-").to_string(), about(page)]
            };
            STEPS.iter().map(row).collect()
        }
        Registry::Metrics => {
            METRICS.iter().map(|name| vec![name.to_string(), about(metric_page(name))]).collect()
        }
        Registry::Tasks => TASKS
            .iter()
            .map(|task| {
                let metrics: Vec<&str> = questions::metrics(*task).into_iter().map(Metric::name).collect();
                let items = format!("{} items", task.items());
                vec![
                    task.name().to_string(),
                    format!("version {}", task.version()),
                    items,
                    metrics.join(", "),
                ]
            })
            .collect(),
        Registry::Conventions => CONVENTIONS
            .iter()
            .chain(&FLOATS)
            .map(|c| {
                vec![
                    c.name().to_string(),
                    if c.is_symmetric() { "symmetric" } else { "asymmetric" }.to_string(),
                ]
            })
            .collect(),
        Registry::Sites => {
            let about = |port: &Port| {
                if port.has_linears() { "read by linear layers" } else { "a tensor of attention" }
            };
            Port::ALL.iter().map(|port| vec![port.as_str().to_string(), about(port).to_string()]).collect()
        }
        Registry::Models => BUILTIN_MODELS.iter().map(|name| vec![name.to_string()]).collect(),
        Registry::Corpora => {
            let named =
                CORPORA.iter().map(|corpus| vec![corpus.name.to_string(), corpus.summary.to_string()]);
            let parallel =
                |language| vec![format!("udhr/{language}"), "the Declaration of Human Rights".to_string()];
            let generated =
                Generated::ALL.map(|corpus| vec![corpus.name().to_string(), corpus.summary().to_string()]);
            named.chain(UDHR_LANGUAGES.iter().map(parallel)).chain(generated).collect()
        }
        Registry::Figures => {
            FIGURES.iter().map(|figure| vec![figure.name().to_string(), figure.about().to_string()]).collect()
        }
        Registry::Keys => {
            experiment::keys().into_iter().map(|(block, keys)| vec![block, keys.join(", ")]).collect()
        }
    }
}

/// The first line of a page, without the name that it begins with.
fn about(page: Option<String>) -> String {
    let page = page.unwrap_or_default();
    let first = page.lines().next().unwrap_or_default();
    first.split_once(": ").map_or(first, |(_, about)| about).to_string()
}
