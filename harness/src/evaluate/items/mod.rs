//! Items of tasks: what they ask, and reading them from JSON lines, Parquet files and raw text.
//!
//! A file is read in one of the forms of [`Form`], told from its first item; the form is a part of what was measured,
//! because the same item can be written in ways that are prompted differently (docs/tasks.md).

mod content;
mod fields;
mod parquet;

pub use fields::{Fault, Fields};

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::corpus::Extent;
use crate::data::document::extent_of_rows;
use crate::evaluate::tasks::Task;

/// Rows of WikiText-2's raw test split, blank ones included.
const TEST_ROWS: usize = 4358;

/// How items are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The fields of the data set on the hub.
    Hub,
    /// `{id, query, choices, gold}`, with `passage` for BoolQ; `{id, context, target}` for LAMBADA.
    Uniform,
    /// The raw text of WikiText, cut into its articles.
    Raw,
    /// As `Raw`, of a file from which the blank rows were taken out: other tokens than the hub's.
    RawWithoutBlankRows,
}

impl Form {
    /// The word used in metric ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Form::Hub => "hub",
            Form::Uniform => "uniform",
            Form::Raw => "raw",
            Form::RawWithoutBlankRows => "raw-without-blank-rows",
        }
    }
}

/// What an item asks, before few shots and the delimiter are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// One text and several continuations, of which one is right. The task's delimiter comes between.
    Choices {
        /// The text.
        text: String,
        /// The continuations, without the delimiter. Their lengths normalize `acc_norm` and `acc_bytes`.
        choices: Vec<String>,
        /// Place of the right one.
        gold: usize,
    },
    /// Several texts, of which one is right, and one continuation: partial evaluation (arXiv 1806.02847, WinoGrande).
    Contexts {
        /// The texts.
        texts: Vec<String>,
        /// The continuation, without the delimiter.
        target: String,
        /// Place of the right text.
        gold: usize,
    },
    /// One text and its continuation, which begins with its own space: no delimiter comes between.
    Target {
        /// The text.
        text: String,
        /// The continuation.
        target: String,
    },
    /// A text that is scored as a whole.
    Text {
        /// The text as the model reads it.
        text: String,
        /// Words of the original, the unit of word perplexity.
        words: usize,
        /// UTF-8 bytes of the original, the unit of byte perplexity.
        bytes: usize,
    },
}

/// One item of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// As the data set numbers it, else its place in the file from 0.
    pub id: String,
    /// The part of the task that it belongs to: MMLU's subject.
    pub part: Option<String>,
    /// What it asks.
    pub prompt: Prompt,
    /// blake3 of its fields as JSON with sorted keys, hexadecimal: what proves that two runs saw the same item.
    pub document: String,
}

/// Items of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Items {
    /// In the order of the file.
    pub items: Vec<Item>,
    /// How they were written.
    pub form: Form,
    /// Whether these are all items of the task.
    pub full: bool,
    /// blake3 of the items' hashes in order, hexadecimal.
    pub hash: String,
}

/// How many items are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// All that the task has; a file with another number of them is refused.
    Full,
    /// The first so many of each part, as the reference's `--limit`; the file must still hold them all.
    First(usize),
    /// What the file holds: it is named a subset.
    Subset,
    /// What the file holds, to draw examples from. Continuations that are not scored may be empty, as the reference has it.
    Examples,
}

/// Why items cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ItemError {
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A line that is no item.
    #[error("{} line {line}: {fault}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A row of a Parquet file, or an article of a raw text, that is no item.
    #[error("{} row {row}: {fault}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// From 1.
        row: usize,
        /// What is wrong with it.
        fault: Fault,
    },
    /// Fields of no form that the task can read.
    #[error(
        "{}: the items of `{task}` need the fields {}; the first item has {}",
        path.display(), forms.join(", or "), has.join(", ")
    )]
    Form {
        /// The file.
        path: PathBuf,
        /// The task.
        task: String,
        /// The fields of each form it reads.
        forms: Vec<String>,
        /// The fields that are there.
        has: Vec<String>,
    },
    /// A file that is not the task's.
    #[error(
        "{}: holds {found} items, and `{task}` has {expected}: fetch the whole file, or say that a subset is meant",
        path.display()
    )]
    Count {
        /// The file.
        path: PathBuf,
        /// The task.
        task: String,
        /// Items in the file.
        found: usize,
        /// Items of the task.
        expected: usize,
    },
    /// A limit of nothing.
    #[error("a limit of 0 items measures nothing: leave it out, or set it to 1 or more")]
    NoItems,
    /// A Parquet file that cannot be read.
    #[error("{}: no readable Parquet file ({reason}); delete it and fetch it again", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        reason: String,
    },
}

/// Reads the items of a task: JSON lines, a Parquet file (`*.parquet`), or for tasks with [`Form::Raw`] a raw text
/// (`*.raw`).
///
/// # Errors
/// See [`ItemError`]: the first line that is wrong, a form that the task cannot read, a wrong number of items.
pub fn load(task: &dyn Task, path: &Path, amount: Amount) -> Result<Items, ItemError> {
    let read = |source| ItemError::Read { path: path.to_owned(), source };
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if extension.eq_ignore_ascii_case("parquet") {
        let rows = parquet::read(path)?;
        return assemble(task, path, amount, Source::Rows, rows.into_iter().map(|row| (row.0, Ok(row.1))));
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    if extension.eq_ignore_ascii_case("raw") && task.forms().iter().any(|(form, _)| *form == Form::Raw) {
        let pages = articles(&text).into_iter().enumerate();
        let rows =
            pages.map(|(i, page)| (i + 1, Ok(Map::from_iter([("page".to_owned(), Value::from(page))]))));
        let mut items = assemble(task, path, amount, Source::Raw, rows)?;
        if let Extent::Altered(_) = extent_of_rows(&text, TEST_ROWS) {
            items.form = Form::RawWithoutBlankRows;
        }
        return Ok(items);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(i, line)| (i + 1, fields::object(line)));
    assemble(task, path, amount, Source::Lines, rows)
}

/// Items from objects at hand, for tests and for tasks that ship with the program.
///
/// # Errors
/// As [`load`]; `path` is what errors call the source.
pub fn from_objects(
    task: &dyn Task,
    path: &Path,
    objects: &[Map<String, Value>],
    amount: Amount,
) -> Result<Items, ItemError> {
    let rows = objects.iter().enumerate().map(|(i, object)| (i + 1, Ok(object.clone())));
    assemble(task, path, amount, Source::Rows, rows)
}

#[derive(Clone, Copy, PartialEq)]
enum Source {
    Lines,
    Rows,
    Raw,
}

fn assemble(
    task: &dyn Task,
    path: &Path,
    amount: Amount,
    source: Source,
    rows: impl Iterator<Item = (usize, Result<Map<String, Value>, Fault>)>,
) -> Result<Items, ItemError> {
    if amount == Amount::First(0) {
        return Err(ItemError::NoItems);
    }
    let mut form = None;
    let mut items = Vec::new();
    let mut taken: HashMap<Option<String>, usize> = HashMap::new();
    let mut found = 0;
    for (place, row) in rows {
        let wrong = |fault| match source {
            Source::Lines => ItemError::Line { path: path.to_owned(), line: place, fault },
            Source::Rows | Source::Raw => ItemError::Row { path: path.to_owned(), row: place, fault },
        };
        let map = row.map_err(&wrong)?;
        let form = match form {
            Some(form) => form,
            None => *form.insert(form_of(task, path, source, &map)?),
        };
        let fields = Fields::new(&map);
        let part = task.part(&fields).map_err(&wrong)?;
        let prompt = task.read(&fields, form).map_err(&wrong)?;
        check(&prompt, amount).map_err(&wrong)?;
        let id = fields.id().unwrap_or_else(|| found.to_string());
        found += 1;
        let count = taken.entry(part.clone()).or_default();
        *count += 1;
        if !matches!(amount, Amount::First(limit) if *count > limit) {
            items.push(Item { id, part, prompt, document: fields.hash() });
        }
    }
    if matches!(amount, Amount::Full | Amount::First(_)) && found != task.items() {
        let task_name = task.name().to_owned();
        return Err(ItemError::Count {
            path: path.to_owned(),
            task: task_name,
            found,
            expected: task.items(),
        });
    }
    let Some(form) = form else { return Err(ItemError::NoItems) };
    let full = items.len() == task.items();
    Ok(Items { full, hash: hash(&items), items, form })
}

/// blake3 of the items' hashes in order, hexadecimal.
fn hash(items: &[Item]) -> String {
    let mut hasher = blake3::Hasher::new();
    for item in items {
        hasher.update(item.document.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The first form of the task whose fields the first item has.
fn form_of(
    task: &dyn Task,
    path: &Path,
    source: Source,
    map: &Map<String, Value>,
) -> Result<Form, ItemError> {
    let fits = |fields: &[&str]| fields.iter().all(|field| map.contains_key(*field));
    let found = task.forms().iter().find(|(form, fields)| match form {
        Form::Raw => source == Source::Raw,
        _ => source != Source::Raw && fits(fields),
    });
    found.map(|(form, _)| *form).ok_or_else(|| {
        let forms = task.forms().iter().filter(|(form, _)| *form != Form::Raw);
        ItemError::Form {
            path: path.to_owned(),
            task: task.name().to_owned(),
            forms: forms.map(|(form, fields)| format!("{} ({})", fields.join(", "), form.as_str())).collect(),
            has: map.keys().cloned().collect(),
        }
    })
}

/// What no task allows: a right answer that is not there, and continuations of nothing.
fn check(prompt: &Prompt, amount: Amount) -> Result<(), Fault> {
    let (answers, gold, continuations): (usize, usize, Vec<&String>) = match prompt {
        Prompt::Choices { choices, gold, .. } => (choices.len(), *gold, choices.iter().collect()),
        Prompt::Contexts { texts, target, gold } => (texts.len(), *gold, vec![target]),
        Prompt::Target { target, .. } => (1, 0, vec![target]),
        Prompt::Text { text, .. } => (1, 0, vec![text]),
    };
    if gold >= answers {
        return Err(Fault::Gold { gold: gold.to_string(), choices: answers });
    }
    if amount == Amount::Examples {
        return Ok(());
    }
    match continuations.iter().position(|text| text.chars().all(crate::evaluate::python::text::is_space)) {
        Some(index) => Err(Fault::Empty { index }),
        None => Ok(()),
    }
}

/// The articles of a raw WikiText file, cut as the data set `EleutherAI/wikitext_document_level` does: a line whose
/// heading marks are single begins one; lines keep their white space.
pub fn articles(text: &str) -> Vec<String> {
    use crate::evaluate::python::text::strip;
    // Python's text mode turns every line end into `\n`.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut articles = Vec::new();
    let mut lines: Vec<&str> = Vec::new();
    for line in text.split('\n') {
        let marks = line.replace("= = =", "===").replace("= =", "==");
        let heading = strip(&marks);
        if heading.starts_with("= ") && heading.ends_with(" =") {
            let article = lines.join("\n");
            if !strip(&article).is_empty() {
                articles.push(article);
            }
            lines.clear();
        }
        lines.push(line);
    }
    let last = lines.join("\n");
    if !strip(&last).is_empty() {
        articles.push(last);
    }
    articles
}
