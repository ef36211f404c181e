//! `quantscope inspect`: one look at the activations of a checkpoint.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::calibrate::statistics::OUTLIER_RATIO;
use crate::cli::progress::Progress;
use crate::cli::{CliError, Options, Outcome, print, say};
use crate::data::BosPolicy;
use crate::data::corpus::DataOptions;
use crate::device;
use crate::record::statistics::SiteSummary;
use crate::run::inspect::findings::{CHANNEL_OUTLIER, Share, TokenSpikes, digits};
use crate::run::inspect::{self, InspectError, Inspection, Look, Request, shown};
use crate::run::interrupt::Interrupt;
use crate::run::{self, ModelOptions};

/// Look at the activations of a checkpoint once: which groups spike, at which tokens, in which channels.
///
/// Draws a few samples of text, runs them through the model as it is, and shows the groups of linear layers with the
/// largest spike ratios. With --prefix it looks a second time, behind that prefix. Use it before writing an experiment,
/// to see whether a model has spikes at all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quantscope inspect builtin/tiny-llama-spiky
  quantscope inspect ~/models/smollm2 --corpus my-text.txt --prefix bos
  quantscope inspect meta-llama/Llama-2-7b-hf --data ~/corpora --out results/llama2-activations")]
pub struct InspectArgs {
    /// The checkpoint: its folder, a hub id (organisation/name), or a model that ships with the program.
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// The text: a corpus of `quantscope list corpora`, or a file (JSON lines have their text in `text`).
    ///
    /// The default is c4 from the data directory; stories that ship with the program where c4 is not there, and for the
    /// models that ship with it.
    #[arg(long, value_name = "CORPUS")]
    pub corpus: Option<String>,

    /// Samples to draw.
    #[arg(long, value_name = "N", default_value = "8")]
    pub samples: NonZeroUsize,

    /// Tokens per sample. The default is 512, or what the context holds.
    #[arg(long, value_name = "N")]
    pub length: Option<usize>,

    /// Where BOS stands. The default is every, or tokenizer for a tokenizer without BOS and EOS.
    #[arg(long, value_name = "POLICY")]
    pub bos: Option<Bos>,

    /// Seed of the samples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Look a second time behind a prefix: none, bos, qfep, prefixquant, or token ids such as 1,278,29889.
    ///
    /// qfep and prefixquant search one on the samples; `quantscope explain qfep` says how.
    #[arg(long, value_name = "PREFIX", default_value = "none")]
    pub prefix: String,

    /// Rows of each table; JSON has all.
    #[arg(long, value_name = "N", default_value = "12")]
    pub top: NonZeroUsize,

    /// Format on stdout.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,

    /// Publish the statistics in this folder, with a report and figures. Several models may share it.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would replace the verb's help")]
    pub options: Options,
}

/// Where BOS stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bos {
    /// In front of every sample.
    Every,
    /// Where the tokenizer puts it by itself.
    Tokenizer,
    /// Nowhere.
    None,
}

/// What goes to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    Text,
    /// Everything that was seen, one object.
    Json,
}

/// Looks, and prints what was seen.
///
/// # Errors
/// Where the model, the text or the numbers have to be changed.
pub fn run(args: &InspectArgs) -> Result<Outcome, CliError> {
    let options = &args.options;
    let request = request(args)?;
    let models = ModelOptions { folder: options.models_dir(), offline: options.offline };
    let data = DataOptions::new(options.data_dir(), PathBuf::new(), options.offline);
    let mut progress = Progress::new(1);
    if options.dry_run {
        let subject = inspect::subject(&request, &models, &data, &mut progress);
        progress.finish();
        let set = subject?.calibration;
        print(&format!(
            "would look at {}: {} samples × {} tokens of {}\n",
            request.model.label, set.samples, set.length, set.name
        ))?;
        return Ok(Outcome::Complete);
    }
    let device = device::select(options.device)?;
    // As in a sweep: a panic of the framework becomes an error, and its own message would tear the progress bar.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !run::catching_now() {
            report(panic);
        }
    }));
    let interrupt = Interrupt::install()?;
    let places = inspect::Options { device: &device, models, data, out: args.out.clone() };
    let seen = inspect::inspect(&request, &places, &interrupt, &mut progress);
    progress.finish();
    let seen = match seen {
        Err(InspectError::Interrupted) => {
            say("interrupted: nothing was kept");
            return Ok(Outcome::Interrupted);
        }
        seen => seen?,
    };
    print(&match args.format {
        Format::Text => text(&seen, args.top.get()),
        Format::Json => serde_json::to_string_pretty(&seen).expect("plain data with string keys") + "\n",
    })?;
    if let Some(out) = &args.out {
        publish(out)?;
    }
    Ok(Outcome::Complete)
}

/// What the flags ask for.
fn request(args: &InspectArgs) -> Result<Request, InspectError> {
    Ok(Request {
        model: inspect::model(&args.model, args.options.models_dir().as_deref())?,
        corpus: args.corpus.as_deref().map(inspect::corpus).transpose()?,
        samples: args.samples.get(),
        length: args.length,
        bos: args.bos.map(|bos| match bos {
            Bos::Every => BosPolicy::Every,
            Bos::Tokenizer => BosPolicy::Tokenizer,
            Bos::None => BosPolicy::None,
        }),
        seed: args.seed,
        prefix: inspect::prefix(&args.prefix)?,
    })
}

/// Makes the report of a folder of statistics, and says where it is.
fn publish(out: &Path) -> Result<(), CliError> {
    let written = crate::report::write(out)?;
    say(&format!("report: {}", out.join("README.md").display()));
    for file in written.files.iter().filter(|file| file.extension().is_some_and(|e| e == "png")) {
        say(&format!("figure: {}", file.display()));
    }
    Ok(())
}

/// What was seen, for people.
fn text(seen: &Inspection, top: usize) -> String {
    let statistics = &seen.original.statistics;
    let model = &statistics.model;
    let mut text = format!(
        "{}: {}, {:.1} M parameters, {} blocks of {} channels, context {}\n",
        model.name,
        model.family,
        model.parameters as f64 / 1e6,
        seen.blocks,
        seen.hidden,
        seen.context
    );
    let said = |key: &str| match &statistics.calibration[key] {
        serde_json::Value::String(word) => word.clone(),
        other => other.to_string(),
    };
    let mut line = |what: &str| writeln!(text, "{what}").expect("writing to a string cannot fail");
    line(&format!(
        "{}: {} samples × {} tokens ({} tokens), bos = {}, seed {}",
        said("text"),
        statistics.samples,
        said("length"),
        statistics.tokens,
        said("bos"),
        said("seed")
    ));
    line(&format!("device: {}", seen.device));
    if let Some(look) = &seen.behind_prefix {
        line(&format!("prefix: {}", prefix(look, seen.start)));
    }
    line("");
    line(groups(seen, top).trim_end());
    line("");
    line(
        "r: mean over samples of max / lower median of the token scales; a token's scale is its largest |x|",
    );
    line(&format!(
        "outliers: channels whose largest |x| is over {CHANNEL_OUTLIER} times the median channel's; channel: the largest"
    ));
    if let Some(tokens) = &seen.tokens {
        let spiking: Vec<&TokenSpikes> = tokens.spiking().collect();
        let (what, listed) = match spiking.is_empty() {
            true => ("Largest tokens", tokens.tokens.iter().take(top.min(5)).collect()),
            false => ("Tokens that spike", spiking),
        };
        line("");
        line(&format!(
            "{what} at {}: over {OUTLIER_RATIO} medians, at first places in a sample and at later ones",
            tokens.site
        ));
        line("");
        line(table_of_tokens(&listed, top, seen.start).trim_end());
        if listed.len() > top {
            line(&format!("and {} more: --top {}", listed.len() - top, listed.len()));
        }
        if tokens.capped {
            line("Some samples have more spikes than are kept: the counts may be too small.");
        }
    }
    line("");
    for sentence in &seen.verdict {
        line(&format!("→ {sentence}"));
    }
    text
}

/// The tokens of a prefix, in words.
fn prefix(look: &Look, start: Option<u32>) -> String {
    let Some(prefix) = &look.statistics.prefix else { return "none was found".into() };
    let named =
        prefix.tokens.iter().zip(&prefix.texts).map(|(&token, text)| match shown(token, text, start) {
            id if id.starts_with('#') => id,
            word => format!("{word} (#{token})"),
        });
    named.collect::<Vec<_>>().join(" ")
}

/// The groups with the largest ratios.
fn groups(seen: &Inspection, top: usize) -> String {
    let mut header = vec!["group", "r"];
    if seen.behind_prefix.is_some() {
        header.push("behind prefix");
    }
    header.extend(["max |x|", "median", "outliers", "channel", "position", "token"]);
    let mut rows = vec![header.into_iter().map(String::from).collect::<Vec<_>>()];
    let ratio = |site: Option<&SiteSummary>| {
        site.and_then(|site| site.ratio).map_or_else(|| "undefined".into(), |r| digits(r, 4))
    };
    for group in seen.original.groups().into_iter().take(top) {
        let mut row = vec![group.site.clone(), ratio(Some(group))];
        if let Some(behind) = &seen.behind_prefix {
            row.push(ratio(behind.site(&group.site)));
        }
        row.extend([digits(group.absmax, 4), digits(group.median, 3)]);
        let channels = seen.original.channels.get(&group.site);
        row.push(channels.map_or_else(String::new, |c| format!("{}/{}", c.outliers, group.channels)));
        row.push(channels.map_or_else(String::new, |c| c.largest.to_string()));
        let peak = group.top.first();
        row.push(peak.map_or_else(String::new, |top| top.position.to_string()));
        row.push(peak.map_or_else(String::new, |top| shown(top.token, &top.text, seen.start)));
        rows.push(row);
    }
    aligned(&rows)
}

fn table_of_tokens(tokens: &[&TokenSpikes], top: usize, start: Option<u32>) -> String {
    const POSITIONS: usize = 6;
    let header = ["max |x|", "÷ median", "first", "later", "id", "token", "positions"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for token in tokens.iter().take(top) {
        let share = |share: Share| format!("{} of {}", share.spikes, share.places);
        let mut positions: Vec<String> =
            token.positions.iter().take(POSITIONS).map(ToString::to_string).collect();
        if token.positions.len() > POSITIONS {
            positions.push("…".into());
        }
        rows.push(vec![
            digits(token.scale, 4),
            token.ratio.map_or_else(|| "undefined".into(), |r| digits(r, 3)),
            share(token.first),
            share(token.later),
            token.token.to_string(),
            shown(token.token, &token.text, start),
            positions.join(" "),
        ]);
    }
    aligned(&rows)
}

/// Rows as columns, two spaces between them. A column stands to the right where all below its header begin with a
/// digit; the others to the left. Nothing trails.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let numeric = |text: &String| text.starts_with(|c: char| c.is_ascii_digit()) || text == "undefined";
    let forms: Vec<(usize, bool)> = (0..columns)
        .map(|column| {
            let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            (width, column + 1 < columns && rows[1..].iter().all(|row| numeric(&row[column])))
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&forms).map(|(cell, &(width, right))| match right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_words_to_the_left() {
        let rows = [["group", "r", "token"], ["a", "9.5", "\" \""], ["long", "1234", "BOS"]];
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.map(String::from).to_vec()).collect();
        assert_eq!(aligned(&rows), "group     r  token\na       9.5  \" \"\nlong   1234  BOS\n");
    }

    #[test]
    fn white_space_and_long_tokens_can_be_seen() {
        assert_eq!(shown(5, " the", Some(1)), "\" the\"");
        assert_eq!(shown(5, "\n", Some(1)), "\"\\n\"");
        assert_eq!(shown(1, "<s>", Some(1)), "BOS");
        assert_eq!(shown(5, "", None), "#5");
        assert_eq!(shown(5, &"=".repeat(40), None), format!("\"{}…\"", "=".repeat(16)));
    }
}
