//! The items of a plan's tasks: read before any model is loaded, encoded once per tokenizer and context.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use models::Checkpoint;
use models::hub::{HubError, fetch_dataset_file};

use crate::data::corpus::{DataOptions, Extent, Text};
use crate::data::half::Half;
use crate::evaluate::items::{self, Amount, ItemError, Items};
use crate::evaluate::questions::{self, QuestionError, Questions};
use crate::evaluate::tasks::{self, Task};
use crate::experiment::{Evaluation, TaskEvaluation};
use crate::plan::Plan;

/// Where the hub keeps every data set as Parquet.
const PARQUET_REVISION: &str = "refs/convert/parquet";

/// Items by task block, and questions by block, tokenizer and room.
#[derive(Default)]
pub struct TaskItems {
    items: BTreeMap<String, (Items, Vec<items::Item>)>,
    questions: BTreeMap<(String, String, usize), Rc<Questions>>,
}

/// Why a task's items cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A file that is wrong.
    #[error("task `{task}`: {source}")]
    Items {
        /// The task.
        task: &'static str,
        /// Why.
        source: Box<ItemError>,
    },
    /// No file anywhere.
    #[error(
        "task `{task}`: its items were not found: looked for {}{}; name the file with items = \"…\", or the data \
         directory that holds tasks/{task}.jsonl with --data DIR", looked.join(", "),
        hub.as_ref().map(|e| format!("; the hub: {e}")).unwrap_or_default()
    )]
    NotFound {
        /// The task.
        task: &'static str,
        /// The places.
        looked: Vec<String>,
        /// What the hub said.
        hub: Option<Box<HubError>>,
    },
    /// A half of the items in which there are none.
    #[error("task `{task}`: {} holds no items of the {} half: name a file with more items", path.display(), half.as_str())]
    NoHalf {
        /// The task.
        task: &'static str,
        /// The file.
        path: PathBuf,
        /// The half.
        half: Half,
    },
    /// Items in another form than the block says.
    #[error(
        "task `{task}`: {} holds items in the form `{found}`, and the block measures `{wanted}`: say form = \"{found}\" (the \
         form is part of a metric's id), or name another file", path.display()
    )]
    Form {
        /// The task.
        task: &'static str,
        /// The file.
        path: PathBuf,
        /// Its form.
        found: &'static str,
        /// The block's.
        wanted: &'static str,
    },
}

impl TaskItems {
    /// Reads the items of every task of the plan.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub fn load(plan: &Plan, options: &DataOptions) -> Result<Self, TaskError> {
        let mut loaded = Self::default();
        for evaluation in plan.cells.iter().flat_map(|cell| &cell.evaluations) {
            let Evaluation::Task(block) = evaluation else { continue };
            if let Entry::Vacant(vacant) = loaded.items.entry(key(block)) {
                vacant.insert(read(block, options)?);
            }
        }
        Ok(loaded)
    }

    /// A task's questions for a checkpoint, behind a prefix of so many tokens.
    ///
    /// # Errors
    /// Where they cannot be encoded.
    pub fn questions(
        &mut self,
        block: &TaskEvaluation,
        checkpoint: &Checkpoint,
        prefix: usize,
    ) -> Result<Rc<Questions>, QuestionError> {
        let room = checkpoint.architecture().context.saturating_sub(prefix).max(1);
        let tokenizer = checkpoint.tokenizer();
        let key = (key(block), tokenizer.hash().to_string(), room);
        if let Some(known) = self.questions.get(&key) {
            return Ok(known.clone());
        }
        let (items, examples) = &self.items[&key.0];
        let asked = questions::ask(block.task(), &block.protocol, items, examples, tokenizer, room)?;
        let asked = Rc::new(asked);
        self.questions.insert(key, asked.clone());
        Ok(asked)
    }
}

fn key(block: &TaskEvaluation) -> String {
    format!("{block:?}")
}

fn read(block: &TaskEvaluation, options: &DataOptions) -> Result<(Items, Vec<items::Item>), TaskError> {
    let task = block.task();
    let wrong = |source| TaskError::Items { task: block.name, source: Box::new(source) };
    if let (Some(objects), None) = (task.builtin(), &block.items) {
        let amount = block.protocol.limit.map_or(Amount::Full, Amount::First);
        let path = PathBuf::from("builtin").join(block.name);
        return Ok((items::from_objects(task, &path, &objects, amount).map_err(wrong)?, Vec::new()));
    }
    let (path, _) = find(task, block.items.as_ref(), options)?;
    // A file that the experiment names may be a part of the task; one found by the task's name has to be whole.
    let amount = match (block.protocol.limit, &block.items, block.protocol.half) {
        (Some(limit), None, None) => Amount::First(limit),
        (_, Some(_), _) => Amount::Subset,
        (_, None, _) => Amount::Full,
    };
    let mut items = items::load(task, &path, amount).map_err(wrong)?;
    if let Some(half) = block.protocol.half {
        items = items.half(half, block.protocol.limit);
        if items.items.is_empty() {
            return Err(TaskError::NoHalf { task: block.name, path, half });
        }
    } else if let (Some(limit), Some(_)) = (block.protocol.limit, &block.items) {
        items.items.truncate(limit);
    }
    if items.form != block.protocol.form {
        let (found, wanted) = (items.form.as_str(), block.protocol.form.as_str());
        return Err(TaskError::Form { task: block.name, path, found, wanted });
    }
    let examples = match &block.examples {
        Some(path) => items::load(task, &beside(path, options), Amount::Examples).map_err(wrong)?.items,
        None => Vec::new(),
    };
    Ok((items, examples))
}

/// A path of the experiment: beside it, else from the working directory.
fn beside(path: &PathBuf, options: &DataOptions) -> PathBuf {
    let beside = options.base.join(path);
    if path.is_relative() && beside.exists() { beside } else { path.clone() }
}

/// The questions of a task with their right answers as a text, an item a document.
///
/// # Errors
/// Where the items cannot be had, or the half has none.
pub fn text(
    name: &str,
    half: Option<Half>,
    items: Option<&PathBuf>,
    options: &DataOptions,
) -> Result<Text, TaskError> {
    let task = tasks::find(name).expect("experiments name tasks of the registry");
    let (path, origin) = find(task, items, options)?;
    let amount = if items.is_some() { Amount::Subset } else { Amount::Full };
    let wrong = |source| TaskError::Items { task: task.name(), source: Box::new(source) };
    let all = items::load(task, &path, amount).map_err(wrong)?;
    let extent = if all.full { Extent::Full } else { Extent::Excerpt };
    let (kept, label) = match half {
        Some(half) => (all.half(half, None), format!("{name}, {} half", half.as_str())),
        None => (all, name.to_owned()),
    };
    if let (Some(half), true) = (half, kept.items.is_empty()) {
        return Err(TaskError::NoHalf { task: task.name(), path, half });
    }
    let answered = kept.answered();
    let label = format!("questions and answers of {label}");
    Ok(Text::of_documents(label, answered.iter().map(String::as_str), origin, extent))
}

/// The file of a task's items, and its origin without the machine's own paths.
fn find(
    task: &'static dyn Task,
    items: Option<&PathBuf>,
    options: &DataOptions,
) -> Result<(PathBuf, String), TaskError> {
    let name = task.name();
    if let Some(path) = items {
        let name = path.file_name().map(Path::new);
        let shown = name.filter(|_| path.is_absolute()).unwrap_or(path);
        return Ok((beside(path, options), format!("file:{}", shown.display())));
    }
    let mut looked = Vec::new();
    if let Some(folder) = &options.data_dir {
        for extension in ["jsonl", "parquet", "raw"] {
            let file = format!("tasks/{name}.{extension}");
            let path = folder.join(&file);
            if path.is_file() {
                return Ok((path, format!("data:{file}")));
            }
            looked.push(path.display().to_string());
        }
    }
    let source = task.source();
    let file = format!("{}/{}/0000.parquet", source.configuration.unwrap_or("default"), source.split);
    looked.push(format!("{} ({file}) on the hub", source.repository));
    match fetch_dataset_file(source.repository, &file, PARQUET_REVISION, &options.hub, &mut |_, _, _| {}) {
        Ok(path) => Ok((path, format!("hub:{}/{file}", source.repository))),
        Err(hub) => Err(TaskError::NotFound { task: name, looked, hub: Some(Box::new(hub)) }),
    }
}
