//! `quantscope sweep`: measure what is missing.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::progress::Progress;
use crate::cli::{CliError, Options, Outcome, load, plan, print, say};
use crate::data::corpus::DataOptions;
use crate::device;
use crate::run::interrupt::Interrupt;
use crate::run::{self, ModelOptions};

/// Measure every cell of an experiment that is not measured yet.
///
/// What is on disk is not computed again: stop a sweep at any moment and start it again, or start it twice and let the
/// two share the work. A cell that fails is recorded and does not stop the others.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quantscope sweep experiments/quickstart.toml
  quantscope sweep experiments/naive-smollm2.toml -r 'w8*' --limit 4      a quick look
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
    let options = &args.options;
    let (experiment, plan) = load(&args.experiment, options)?;
    if options.dry_run {
        print(&plan::render(&experiment, &plan, &plan::survey(&experiment, &plan, options)?))?;
        return Ok(Outcome::Complete);
    }
    let results = options.store_of(&experiment.name);
    let device = device::select(options.device)?;
    let passed: Vec<_> =
        device.passed_over.iter().map(|(choice, reason)| format!("{choice}: {}", reason.brief())).collect();
    let passed = if passed.is_empty() { String::new() } else { format!("  (not {})", passed.join("; not ")) };
    say(&format!("device: {}{passed}", device.name));
    let base = args.experiment.parent().unwrap_or(Path::new("")).to_path_buf();
    let run_options = run::Options {
        device: &device,
        models: ModelOptions { folder: options.models_dir(), offline: options.offline },
        data: DataOptions::new(options.data_dir(), base, options.offline),
        results: results.clone(),
        retry_failed: options.retry_failed,
        arithmetic: options.arithmetic,
        execution: options.execution(),
    };
    // A panic of the framework becomes a recorded failure; its own message would only tear the progress bar.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !run::catching_now() {
            report(panic);
        }
    }));
    let interrupt = Interrupt::install()?;
    let mut progress = Progress::new(plan.cells.len());
    let summary = run::sweep(&experiment, &plan, &run_options, &interrupt, &mut progress);
    progress.finish();
    let summary = summary?;
    say(&format!(
        "{} measured, {} already there, {} failed, {} expectations missed",
        summary.measured, summary.reused, summary.failed, summary.missed
    ));
    if summary.interrupted {
        say("interrupted: everything measured is kept; run the same command to go on");
        return Ok(Outcome::Interrupted);
    }
    let written = crate::report::write(&results)?;
    print(&crate::report::print(&results, "markdown")?)?;
    say(&format!("report: {}", results.join("README.md").display()));
    for file in written.files.iter().filter(|file| file.extension().is_some_and(|e| e == "png")) {
        say(&format!("figure: {}", file.display()));
    }
    Ok(if summary.failed + summary.missed > 0 { Outcome::Incomplete } else { Outcome::Complete })
}
