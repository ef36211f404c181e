//! The items of a plan's tasks: read before any model is loaded, encoded once per tokenizer and context.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::rc::Rc;

use models::Checkpoint;
use models::hub::{HubError, fetch_dataset_file};

use crate::data::corpus::DataOptions;
use crate::evaluate::items::{self, Amount, ItemError, Items};
use crate::evaluate::questions::{self, QuestionError, Questions};
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
    let path = find(block, options)?;
    // A file that the experiment names may be a part of the task; one found by the task's name has to be whole.
    let amount = match (block.protocol.limit, &block.items) {
        (Some(limit), None) => Amount::First(limit),
        (_, Some(_)) => Amount::Subset,
        (None, None) => Amount::Full,
    };
    let mut items = items::load(task, &path, amount).map_err(wrong)?;
    if let (Some(limit), Some(_)) = (block.protocol.limit, &block.items) {
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

fn find(block: &TaskEvaluation, options: &DataOptions) -> Result<PathBuf, TaskError> {
    if let Some(path) = &block.items {
        return Ok(beside(path, options));
    }
    let mut looked = Vec::new();
    if let Some(folder) = &options.data_dir {
        for extension in ["jsonl", "parquet", "raw"] {
            let path = folder.join("tasks").join(format!("{}.{extension}", block.name));
            if path.is_file() {
                return Ok(path);
            }
            looked.push(path.display().to_string());
        }
    }
    let source = block.task().source();
    let file = format!("{}/{}/0000.parquet", source.configuration.unwrap_or("default"), source.split);
    looked.push(format!("{} ({file}) on the hub", source.repository));
    match fetch_dataset_file(source.repository, &file, PARQUET_REVISION, &options.hub, &mut |_, _, _| {}) {
        Ok(path) => Ok(path),
        Err(hub) => Err(TaskError::NotFound { task: block.name, looked, hub: Some(Box::new(hub)) }),
    }
}
