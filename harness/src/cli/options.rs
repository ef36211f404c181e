//! The flags that every verb takes.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::data;
use crate::device::Choice;
use crate::plan::{Globs, Selection};
use crate::quantize::integer::Arithmetic;
use crate::run::residence::{self, Ask};

/// The flags that every verb takes; a verb that has no use for one ignores it.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Keep only the models that this glob matches. May be given several times.
    ///
    /// Use it to run one model of a large experiment: -m 'builtin/*'. `*` stands for any characters, `?` for one.
    #[arg(short = 'm', long = "keep-models", value_name = "GLOB", help_heading = "Filters")]
    pub keep_models: Vec<String>,

    /// Drop the models that this glob matches.
    ///
    /// Use it to leave out what does not fit this machine: -M 'meta-llama/*'.
    #[arg(short = 'M', long = "drop-models", value_name = "GLOB", help_heading = "Filters")]
    pub drop_models: Vec<String>,

    /// Keep only the recipes that this glob matches; the original stays beside them.
    ///
    /// Use it while writing a recipe: -r my-recipe. The original is kept, because a quantized value means little
    /// without it; -R original drops it.
    #[arg(short = 'r', long = "keep-recipes", value_name = "GLOB", help_heading = "Filters")]
    pub keep_recipes: Vec<String>,

    /// Drop the recipes that this glob matches; only -R original drops the original.
    #[arg(short = 'R', long = "drop-recipes", value_name = "GLOB", help_heading = "Filters")]
    pub drop_recipes: Vec<String>,

    /// Keep only the calibration sets that this glob matches; cells that need none stay.
    #[arg(short = 'c', long = "keep-calibrations", value_name = "GLOB", help_heading = "Filters")]
    pub keep_calibrations: Vec<String>,

    /// Drop the calibration sets that this glob matches.
    #[arg(short = 'C', long = "drop-calibrations", value_name = "GLOB", help_heading = "Filters")]
    pub drop_calibrations: Vec<String>,

    /// Keep only the metrics and tasks that this glob matches, by name or by full id.
    ///
    /// Use it to add one evaluation now and the slow ones tonight: -t perplexity, or -t 'perplexity/gptq/wikitext2*'.
    #[arg(short = 't', long = "keep-tasks", value_name = "GLOB", help_heading = "Filters")]
    pub keep_tasks: Vec<String>,

    /// Drop the metrics and tasks that this glob matches, by name or by full id.
    #[arg(short = 'T', long = "drop-tasks", value_name = "GLOB", help_heading = "Filters")]
    pub drop_tasks: Vec<String>,

    /// Where to compute: auto, cpu, cuda[:n], vulkan[:software] or metal.
    ///
    /// auto takes CUDA if it is compiled in and present, then Vulkan or Metal, then the CPU, and says which. Name a
    /// device to be sure of it; vulkan:software allows a driver that runs on the CPU, for tests.
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Places")]
    pub device: Choice,

    /// Folder of records and reports. The default is results/ and the experiment's name.
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    pub results: Option<PathBuf>,

    /// Folder of corpora by name; what is not there comes from the hub. The default is $QUANTSCOPE_DATA.
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    pub data: Option<PathBuf>,

    /// Folder under which local models are looked up. The default is $QUANTSCOPE_MODELS.
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    pub models: Option<PathBuf>,

    /// Forbid the network: a model or text that is not on disk is an error.
    #[arg(long, help_heading = "Places")]
    pub offline: bool,

    /// How models are executed: auto, resident or streamed.
    ///
    /// resident holds all weights in memory; streamed holds one block at a time, and takes all cells of a model through it
    /// in lockstep. No result depends on it. auto streams what does not fit, and `plan` shows what that is.
    #[arg(long, value_name = "EXECUTION", default_value = "auto", help_heading = "Running")]
    pub execution: Ask,

    /// Memory that auto may count on, such as 4GiB. The default is what the machine has free.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Running")]
    pub memory: Option<u64>,

    /// Show what would be done, and do nothing.
    #[arg(long, help_heading = "Running")]
    pub dry_run: bool,

    /// Measure at most N windows or items per evaluation, for a quick look.
    ///
    /// Such records are kept apart from full ones, the metric's id says how many were used, and expectations are not
    /// checked.
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub limit: Option<NonZeroUsize>,

    /// Try again what failed before; without it, a cell that has failed is left alone.
    #[arg(long, help_heading = "Running")]
    pub retry_failed: bool,

    /// How quantized linear layers are executed: integer or fake.
    ///
    /// integer multiplies whole codes where the device and the recipe's grids allow it, and rounds in floating point
    /// elsewhere; records say which. fake always multiplies rounded floating-point values: use it to check the other.
    #[arg(long, value_name = "HOW", default_value = "integer", help_heading = "Running")]
    pub arithmetic: Arithmetic,
}

impl Options {
    /// The filters.
    pub fn selection(&self) -> Selection {
        let globs = |keep: &[String], drop: &[String]| Globs { keep: keep.to_vec(), drop: drop.to_vec() };
        Selection {
            models: globs(&self.keep_models, &self.drop_models),
            recipes: globs(&self.keep_recipes, &self.drop_recipes),
            calibrations: globs(&self.keep_calibrations, &self.drop_calibrations),
            tasks: globs(&self.keep_tasks, &self.drop_tasks),
        }
    }

    /// How models are executed, and what memory there is. On a GPU only the flag says how much that is.
    pub fn execution(&self) -> residence::Choice {
        let free = || matches!(self.device, Choice::Auto | Choice::Cpu).then(residence::free).flatten();
        residence::Choice { ask: self.execution, memory: self.memory.or_else(free) }
    }

    /// The folder of corpora: the flag, else `QUANTSCOPE_DATA`.
    pub fn data_dir(&self) -> Option<PathBuf> {
        data::data_dir(self.data.clone())
    }

    /// The folder of local models: the flag, else `QUANTSCOPE_MODELS`.
    pub fn models_dir(&self) -> Option<PathBuf> {
        data::models_dir(self.models.clone())
    }

    /// The folder of an experiment's records for this run: those of a limited one are kept apart.
    pub fn store_of(&self, experiment: &str) -> PathBuf {
        let results = self.results_of(experiment);
        if self.limit.is_some() { results.join("limited") } else { results }
    }

    /// The folder of records of an experiment.
    pub fn results_of(&self, experiment: &str) -> PathBuf {
        self.results.clone().unwrap_or_else(|| Path::new("results").join(experiment))
    }
}

/// Bytes, with or without a unit.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(format!("`{text}` is no size: give bytes, or MiB, GiB, MB or GB, such as 4GiB")),
    };
    match digits.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok((number * factor) as u64),
        _ => Err(format!("`{text}` is no size: give a number above zero, such as 4GiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("4GiB"), Ok(4 << 30));
        assert_eq!(size("1.5mib"), Ok(3 << 19));
        assert_eq!((size("12"), size("2GB")), (Ok(12), Ok(2_000_000_000)));
        for bad in ["", "GiB", "-1", "4 parsecs", "nan"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
