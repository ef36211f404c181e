//! Text: where corpora come from, and how they become windows of token ids.

pub mod corpus;
pub mod document;
pub mod generated;
pub mod half;
pub mod window;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::generated::Generated;
use self::half::Half;

/// The environment variable that names the data directory when `--data` does not.
pub const DATA_VARIABLE: &str = "QUANTSCOPE_DATA";

/// The environment variable that names the folder of local models when `--models` does not.
pub const MODELS_VARIABLE: &str = "QUANTSCOPE_MODELS";

/// The data directory: what `--data` says, else [`DATA_VARIABLE`].
pub fn data_dir(flag: Option<PathBuf>) -> Option<PathBuf> {
    flag.or_else(|| folder_from(DATA_VARIABLE))
}

/// The folder of local models: what `--models` says, else [`MODELS_VARIABLE`].
pub fn models_dir(flag: Option<PathBuf>) -> Option<PathBuf> {
    flag.or_else(|| folder_from(MODELS_VARIABLE))
}

fn folder_from(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where BOS stands in windows and samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BosPolicy {
    /// Every window or sample is BOS followed by length − 1 tokens of text.
    Every,
    /// At the stream's start, if the tokenizer adds one.
    Tokenizer,
    /// Nowhere.
    None,
}

impl BosPolicy {
    /// The word used in files and metric ids.
    pub fn as_str(self) -> &'static str {
        match self {
            BosPolicy::Every => "every",
            BosPolicy::Tokenizer => "tokenizer",
            BosPolicy::None => "none",
        }
    }
}

/// A text named in an experiment: registered, or a file.
#[derive(Clone, Debug, PartialEq)]
pub enum CorpusRef {
    /// A registered corpus, e.g. `c4`, `wikitext2/test`, `udhr/deu_1996`, `builtin/stories-held-out`.
    Named(String),
    /// A text file, or JSONL with the field that holds the text.
    File {
        /// Relative to the experiment file, else to the working directory.
        path: PathBuf,
        /// The field of each JSONL object; `None` for plain text.
        field: Option<String>,
    },
    /// One half of a text.
    Half {
        /// The text: registered, or a file.
        whole: Box<CorpusRef>,
        /// Which half.
        half: Half,
    },
    /// Questions of a task with their right answers; for calibration sets alone.
    Task {
        /// The task's name in the registry.
        task: String,
        /// One half of its items; all of them where there is none.
        half: Option<Half>,
        /// The file of items, where it is not found by the task's name.
        items: Option<PathBuf>,
    },
}

impl CorpusRef {
    /// The generated corpus of this name, which has no text to load.
    pub fn generated(&self) -> Option<Generated> {
        match self {
            CorpusRef::Named(name) => Generated::find(name),
            CorpusRef::File { .. } | CorpusRef::Half { .. } | CorpusRef::Task { .. } => None,
        }
    }

    /// A short, file-name-like form for metric ids: `wikitext2-test`, or a file's stem.
    pub fn label(&self) -> String {
        match self {
            CorpusRef::Named(name) => name.replace('/', "-"),
            CorpusRef::File { path, .. } => {
                path.file_stem().map_or_else(|| "file".into(), |stem| stem.to_string_lossy().into_owned())
            }
            CorpusRef::Half { whole, half } => format!("{}-{}", whole.label(), half.as_str()),
            CorpusRef::Task { task, half: Some(half), .. } => format!("{task}-{}", half.as_str()),
            CorpusRef::Task { task, half: None, .. } => task.clone(),
        }
    }
}
