//! Corpora: texts by name or by file, with where they came from and the hash of what they say.
//!
//! A registered corpus is looked for in the data directory, and on the hub where it has a place there. Under a name
//! stands only what the name means: a part of a corpus is labelled as an excerpt, and a file that differs in form from
//! the published one says so ([`Text::label`]).

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use models::hub::{self, HubError, HubOptions};

use super::document::{self, Form};
use super::generated::Generated;
use super::half::Half;
use super::{CorpusRef, DATA_VARIABLE, data_dir};

/// Languages of the parallel texts `udhr/<language>`, as the files of the UDHR project are called.
pub const UDHR_LANGUAGES: [&str; 15] = [
    "arb",
    "cmn_hans",
    "deu_1996",
    "ell_monotonic",
    "eng",
    "fra",
    "heb",
    "hin",
    "jpn",
    "kor",
    "rus",
    "spa",
    "swh",
    "tur",
    "vie",
];

/// A corpus known by name.
#[derive(Clone, Copy, Debug)]
pub struct Corpus {
    /// The name in experiment files.
    pub name: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// Licence or terms, as far as known.
    pub licence: &'static str,
    /// The file below the data directory; `None` for what ships with the program.
    pub path: Option<&'static str>,
    /// Repository and file of a data set on the hub.
    pub on_hub: Option<(&'static str, &'static str)>,
    /// Whether the file in the data directory is a part of what the name means.
    pub excerpt: bool,
    /// How documents stand in the file.
    pub form: Form,
}

const WIKITEXT: &str = "Salesforce/wikitext";

/// Every registered corpus except the parallel texts `udhr/<language>`.
pub const CORPORA: [Corpus; 10] = [
    Corpus {
        name: "c4",
        summary: "English web pages (allenai/c4)",
        licence: "ODC-By 1.0, and Common Crawl's terms of use",
        path: Some("calibration/c4.utf8"),
        on_hub: None,
        excerpt: true,
        form: Form::Lines,
    },
    Corpus {
        name: "wiki",
        summary: "English Wikipedia articles, disjoint from WikiText-2's test split",
        licence: "CC BY-SA 3.0 and GFDL",
        path: Some("calibration/wiki.utf8"),
        on_hub: None,
        excerpt: true,
        form: Form::DocTags,
    },
    Corpus {
        name: "code",
        summary: "source code in many languages",
        licence: "those of the files' projects; the excerpt itself states none",
        path: Some("calibration/code.utf8"),
        on_hub: None,
        excerpt: true,
        form: Form::Whole,
    },
    Corpus {
        name: "technical",
        summary: "technical prose",
        licence: "not known; the excerpt states none",
        path: Some("calibration/technical.utf8"),
        on_hub: None,
        excerpt: true,
        form: Form::Whole,
    },
    Corpus {
        name: "multilingual",
        summary: "prose in many languages",
        licence: "not known; the excerpt states none",
        path: Some("calibration/multilingual.utf8"),
        on_hub: None,
        excerpt: true,
        form: Form::Whole,
    },
    Corpus {
        name: "tiny",
        summary: "short children's stories (TinyStories)",
        licence: "CDLA-Sharing 1.0",
        path: Some("calibration/tiny.utf8"),
        on_hub: None,
        excerpt: true,
        form: Form::EndOfText,
    },
    Corpus {
        name: "wikitext2/test",
        summary: "WikiText-2 raw, test split: the papers' perplexity text",
        licence: "CC BY-SA 3.0 and GFDL",
        path: Some("wikitext2/wiki.test.raw"),
        on_hub: Some((WIKITEXT, "wikitext-2-raw-v1/test-00000-of-00001.parquet")),
        excerpt: false,
        form: Form::WikiRows { rows: 4358 },
    },
    Corpus {
        name: "wikitext2/train",
        summary: "WikiText-2 raw, training split: a usual calibration text",
        licence: "CC BY-SA 3.0 and GFDL",
        path: Some("wikitext2/wiki.train.raw"),
        on_hub: Some((WIKITEXT, "wikitext-2-raw-v1/train-00000-of-00001.parquet")),
        excerpt: false,
        form: Form::WikiRows { rows: 36718 },
    },
    Corpus {
        name: "builtin/stories-held-out",
        summary: "stories of the grammar that the built-in model was trained on, none of them in its training text",
        licence: "as this program",
        path: None,
        on_hub: None,
        excerpt: false,
        form: Form::Whole,
    },
    Corpus {
        name: "builtin/stories-calibration",
        summary: "further stories of that grammar, for calibration",
        licence: "as this program",
        path: None,
        on_hub: None,
        excerpt: false,
        form: Form::Whole,
    },
];

/// The names of texts that an experiment may use, parallel texts included; [`Generated`] corpora are no texts.
pub fn list() -> Vec<String> {
    let udhr = UDHR_LANGUAGES.iter().map(|language| format!("udhr/{language}"));
    CORPORA.iter().map(|corpus| corpus.name.to_owned()).chain(udhr).collect()
}

/// Where texts are looked for.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// The data directory.
    pub data_dir: Option<PathBuf>,
    /// The experiment's folder, to which the paths in it are relative.
    pub base: PathBuf,
    /// How the hub is asked; its `offline` forbids that.
    pub hub: HubOptions,
    /// The texts that ship with the program, by the name after `builtin/`.
    pub builtin: fn(&str) -> Option<Cow<'static, str>>,
}

impl DataOptions {
    /// `data` is what `--data` says; without it the environment variable [`DATA_VARIABLE`] decides.
    pub fn new(data: Option<PathBuf>, base: PathBuf, offline: bool) -> Self {
        Self {
            data_dir: data_dir(data),
            base,
            hub: HubOptions::from_env(offline),
            builtin: |name| models::builtin::text(&format!("builtin/{name}")).map(Cow::Borrowed),
        }
    }
}

/// How much of what a corpus's name means is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it, in the published form.
    Full,
    /// A part of it.
    Excerpt,
    /// All words of it, in a form that changes token counts: how it differs.
    Altered(&'static str),
}

/// A text, ready to be encoded.
#[derive(Clone, Debug)]
pub struct Text {
    /// The name it was asked for by, or the path as it was written.
    pub name: String,
    /// The text.
    pub text: String,
    /// Byte ranges of its documents, in order; one range where documents are not marked.
    pub documents: Vec<Range<usize>>,
    /// Where it came from, without the machine's own paths: `data:…`, `hub:…`, `file:…` or `builtin`.
    pub origin: String,
    /// blake3 of the text, hexadecimal.
    pub hash: String,
    /// Whether the name's whole meaning is there.
    pub extent: Extent,
}

impl Text {
    fn new(name: String, (text, documents): document::Parsed, origin: String, extent: Extent) -> Self {
        let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
        Self { name, text, documents, origin, hash, extent }
    }

    /// A text of these documents, trimmed, with a blank line between them.
    pub fn of_documents<'a>(
        name: String,
        documents: impl Iterator<Item = &'a str>,
        origin: String,
        extent: Extent,
    ) -> Self {
        Text::new(name, document::join(documents), origin, extent)
    }

    /// One half of the text.
    fn half(self, half: Half) -> Self {
        let range = half.range(&self.text, &self.documents);
        let inside = |document: &Range<usize>| {
            let (start, end) = (document.start.max(range.start), document.end.min(range.end));
            (start < end).then(|| start - range.start..end - range.start)
        };
        let documents = self.documents.iter().filter_map(inside).collect();
        let name = format!("{}, {} half", self.name, half.as_str());
        Text::new(name, (self.text[range.clone()].to_owned(), documents), self.origin, self.extent)
    }

    /// The documents.
    pub fn documents(&self) -> impl Iterator<Item = &str> {
        self.documents.iter().map(|range| &self.text[range.clone()])
    }

    /// Whether this is only a part of what the name means.
    pub fn is_excerpt(&self) -> bool {
        self.extent == Extent::Excerpt
    }

    /// What records and tables call it: the name alone only for the full corpus, else `c4 (excerpt, blake3 1f3a…)`.
    pub fn label(&self) -> String {
        let how = match &self.extent {
            Extent::Full => return self.name.clone(),
            Extent::Excerpt => "excerpt",
            Extent::Altered(how) => how,
        };
        format!("{} ({how}, blake3 {})", self.name, &self.hash[..12])
    }
}

/// Why a text could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A name nobody registered.
    #[error("there is no corpus `{name}`{}; `quantscope list corpora` shows all, and a file is {{ path = \"…\" }}",
        nearest.as_ref().map(|name| format!(": did you mean `{name}`?")).unwrap_or_default())]
    Unknown {
        /// The name.
        name: String,
        /// The most similar registered name.
        nearest: Option<String>,
    },
    /// A corpus that is made of random numbers.
    #[error(
        "the corpus `{name}` is generated for calibration sets: it is no text, and nothing is measured on it"
    )]
    Generated {
        /// The name.
        name: String,
    },
    /// A corpus that is made of the items of a task.
    #[error(
        "the corpus of the task `{task}` is made of questions and answers for calibration sets: nothing else reads it"
    )]
    OfTask {
        /// The task.
        task: String,
    },
    /// A registered corpus that is on none of its places.
    #[error(
        "the corpus `{name}` was not found: {}. Name the data directory with --data DIR or {DATA_VARIABLE}; it must \
         hold {file} (docs/data.md)",
        looked.join("; ")
    )]
    NotFound {
        /// The corpus.
        name: String,
        /// Its file below a data directory.
        file: String,
        /// The places looked at and why each failed.
        looked: Vec<String>,
    },
    /// A text that should ship with the program does not.
    #[error("this program was built without the text `{name}`")]
    NotBuiltIn {
        /// The corpus.
        name: String,
    },
    /// A file that is not there.
    #[error(
        "there is no file `{}` (looked for {}); a relative path starts at the experiment's folder, then at the \
         working directory", path.display(), looked.join(" and ")
    )]
    NoFile {
        /// The path as written.
        path: PathBuf,
        /// The places looked at.
        looked: Vec<String>,
    },
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Bytes that are no text.
    #[error("{}: not UTF-8 at byte {offset}: convert it, e.g. with `iconv -t UTF-8`", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Of the first wrong byte, from 0.
        offset: usize,
    },
    /// JSON lines without the field that holds the text.
    #[error("{}: a file of JSON lines needs the field of its text: {{ path = \"…\", field = \"text\" }}",
        path.display())]
    NeedsField {
        /// The file.
        path: PathBuf,
    },
    /// A line that is no JSON object with the text in its field.
    #[error("{} line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A Parquet file that cannot be read.
    #[error("{}: no readable Parquet file with a text column `text` ({reason}); delete it and fetch again",
        path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        reason: String,
    },
    /// Nothing but white space.
    #[error("{origin}: the text is empty")]
    Empty {
        /// Where it came from.
        origin: String,
    },
}

/// Reads a corpus.
///
/// # Errors
///
/// See [`CorpusError`].
pub fn load(corpus: &CorpusRef, options: &DataOptions) -> Result<Text, CorpusError> {
    let text = match corpus {
        CorpusRef::File { path, field } => load_file(path, field.as_deref(), &options.base)?,
        CorpusRef::Half { whole, half } => load(whole, options)?.half(*half),
        CorpusRef::Task { task, .. } => return Err(CorpusError::OfTask { task: task.clone() }),
        CorpusRef::Named(name) => match find(name)? {
            (corpus, None) if corpus.path.is_none() => {
                let short = name.trim_start_matches("builtin/");
                let missing = || CorpusError::NotBuiltIn { name: name.clone() };
                let text = (options.builtin)(short).ok_or_else(missing)?.into_owned();
                Text::new(
                    name.clone(),
                    document::parse(text, corpus.form),
                    "builtin".to_owned(),
                    Extent::Full,
                )
            }
            (corpus, language) => load_registered(name, &corpus, language, options)?,
        },
    };
    if text.text.trim().is_empty() {
        return Err(CorpusError::Empty { origin: text.origin });
    }
    Ok(text)
}

/// The registered corpus of a name, with the language for a parallel text.
///
/// # Errors
///
/// [`CorpusError::Unknown`] with the nearest name, [`CorpusError::Generated`] for what is no text.
pub fn find(name: &str) -> Result<(Corpus, Option<&str>), CorpusError> {
    if Generated::find(name).is_some() {
        return Err(CorpusError::Generated { name: name.to_owned() });
    }
    if let Some(corpus) = CORPORA.iter().find(|corpus| corpus.name == name) {
        return Ok((*corpus, None));
    }
    // Languages beyond the listed ones are served if the file is there.
    let word = |language: &&str| {
        !language.is_empty() && language.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    if let Some(language) = name.strip_prefix("udhr/").filter(word) {
        let corpus = Corpus {
            name: "udhr",
            summary: "the Universal Declaration of Human Rights: parallel texts",
            licence: "may be reproduced freely (United Nations; texts of the UDHR in Unicode project)",
            path: Some("udhr"),
            on_hub: None,
            excerpt: false,
            form: Form::Whole,
        };
        return Ok((corpus, Some(language)));
    }
    let nearest = list()
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&known, name), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.7)
        .map(|(_, known)| known);
    Err(CorpusError::Unknown { name: name.to_owned(), nearest })
}

/// The file of a registered corpus below a data directory; `None` for what ships with the program.
pub fn file_of(corpus: &Corpus, language: Option<&str>) -> Option<String> {
    match (corpus.path, language) {
        (Some(folder), Some(language)) => Some(format!("{folder}/{language}.txt")),
        (path, _) => path.map(str::to_owned),
    }
}

fn load_registered(
    name: &str,
    corpus: &Corpus,
    language: Option<&str>,
    options: &DataOptions,
) -> Result<Text, CorpusError> {
    let file = file_of(corpus, language).expect("what ships with the program was served before");
    let mut looked = Vec::new();
    match &options.data_dir {
        Some(folder) if folder.join(&file).is_file() => {
            let path = folder.join(&file);
            let note = std::fs::read_to_string(path.with_extension("origin")).unwrap_or_default();
            let note = note.trim();
            let text = read_text(&path)?;
            let extent = match corpus.form {
                Form::WikiRows { rows } => document::extent_of_rows(&text, rows),
                _ if corpus.excerpt && !note.starts_with("full:") => Extent::Excerpt,
                _ => Extent::Full,
            };
            let origin = match note {
                "" => format!("data:{file}"),
                note => format!("data:{file} ({})", note.lines().next().unwrap_or_default()),
            };
            return Ok(Text::new(name.to_owned(), document::parse(text, corpus.form), origin, extent));
        }
        Some(folder) => {
            looked.push(format!("no file {}", folder.join(&file).display()));
            looked.extend(language.and_then(|_| languages_in(&folder.join("udhr"))));
        }
        None => looked.push("no data directory was named".to_owned()),
    }
    match corpus.on_hub {
        None => looked.push("it is not fetched from the hub".to_owned()),
        Some((repo, hub_file)) => {
            let mut unseen = |_: &str, _: u64, _: u64| {};
            match hub::fetch_dataset_file(repo, hub_file, hub::DEFAULT_REVISION, &options.hub, &mut unseen) {
                Ok(path) => {
                    let rows = document::read_parquet(&path)?;
                    // .../snapshots/<commit>/<config>/<file>
                    let commit = path.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default();
                    let origin = format!("hub:{repo}/{hub_file}@{}", commit.to_string_lossy());
                    let parsed = document::join_rows(rows.iter().map(String::as_str));
                    return Ok(Text::new(name.to_owned(), parsed, origin, Extent::Full));
                }
                Err(HubError::Offline { .. }) => {
                    looked.push(format!("{repo} is not in the hub cache (offline)"))
                }
                Err(error) => looked.push(error.to_string()),
            }
        }
    }
    Err(CorpusError::NotFound { name: name.to_owned(), file, looked })
}

/// The languages whose texts are in a folder, in words; nothing where there are none.
fn languages_in(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let is_text = path.extension().is_some_and(|extension| extension == "txt");
        is_text.then(|| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))?
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    (!names.is_empty()).then(|| format!("languages there: {}", names.join(", ")))
}

fn load_file(path: &Path, field: Option<&str>, base: &Path) -> Result<Text, CorpusError> {
    // Joining an absolute path gives that path.
    let candidates = [base.join(path), path.to_owned()];
    let Some(found) = candidates.iter().find(|candidate| candidate.is_file()) else {
        let mut looked: Vec<String> = candidates.iter().map(|c| c.display().to_string()).collect();
        looked.dedup();
        return Err(CorpusError::NoFile { path: path.to_owned(), looked });
    };
    let is_json_lines = found.extension().is_some_and(|end| end == "jsonl");
    let parsed = match field {
        None if is_json_lines => return Err(CorpusError::NeedsField { path: found.clone() }),
        None => document::parse(read_text(found)?, Form::Whole),
        Some(field) => document::parse_json_lines(&read_text(found)?, field, found)?,
    };
    let name = path.display().to_string();
    let shown = path.file_name().unwrap_or_default().to_string_lossy();
    // An absolute path is the machine's own business.
    let origin = if path.is_absolute() { format!("file:{shown}") } else { format!("file:{name}") };
    Ok(Text::new(name, parsed, origin, Extent::Full))
}

fn read_text(path: &Path) -> Result<String, CorpusError> {
    let bytes = std::fs::read(path).map_err(|source| CorpusError::Read { path: path.to_owned(), source })?;
    let text = String::from_utf8(bytes).map_err(|error| CorpusError::NotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    // Editors leave a byte order mark; no tokenizer should see it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    // The reference scripts read text files in Python's text mode, which makes every line end "\n"; a raw WikiText
    // with "\r\n" would otherwise be another text, with another perplexity.
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}
