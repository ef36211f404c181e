//! One look at one checkpoint: a text, one floating-point pass, optionally a second one behind a prefix.
//!
//! Needs no experiment. What it collects is what a sweep collects, so that it can be published into a store and drawn
//! by the same figures.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use models::Checkpoint;
use serde::Serialize;
use serde_json::Value;

use crate::calibrate::set::{self, CalibrationSet, DrawError};
use crate::data::corpus::{self, CORPORA, CorpusError, DataOptions, Text};
use crate::data::generated::Generated;
use crate::data::window::window_start;
use crate::data::{BosPolicy, CorpusRef};
use crate::device::Selected;
use crate::experiment::{BUILTIN_MODELS, Calibration, Model, ModelSource, ORIGINAL, Sampler, is_hub_id};
use crate::names;
use crate::quantize::steps::Step;
use crate::quantize::{self, Calibrator, ModelFacts, StepError};
use crate::record::execution::Execution;
use crate::record::execution::Residence;
use crate::record::store::{Store, StoreError};
use crate::record::{Manifest, SCHEMA};
use crate::run::calibrator::{self, CellCalibrator, Collected};
use crate::run::cell::catching;
use crate::run::interrupt::Interrupt;
use crate::run::made::statistics_result;
use crate::run::source::{Source, SourceError};
use crate::run::{Event, ModelOptions, Observer, residence};

pub mod findings;

pub use findings::{Channels, Look, Tokens};

/// The text for a model that ships with the program, and for want of another one.
const STORIES: &str = "builtin/stories-calibration";

/// The text for any other model.
const WEB: &str = "c4";

/// Tokens of a sample where nobody says another number and the context holds them.
const LENGTH: usize = 512;

/// Places that are left for a searched prefix where nobody says a length.
const ROOM: usize = 8;

/// Under which name a folder of looks is published.
const NAME: &str = "inspect";

/// What to look at.
#[derive(Clone, Debug)]
pub struct Request {
    /// The checkpoint.
    pub model: Model,
    /// The text; `None` for the one that suits the model.
    pub corpus: Option<CorpusRef>,
    /// Samples.
    pub samples: usize,
    /// Tokens per sample; `None` for 512, or what the context holds.
    pub length: Option<usize>,
    /// Where BOS stands; `None` for `every`, or `tokenizer` where there is none.
    pub bos: Option<BosPolicy>,
    /// Draws the samples.
    pub seed: u64,
    /// A prefix behind which to look a second time.
    pub prefix: Option<Step>,
}

/// Where to look.
pub struct Options<'a> {
    /// Where the model runs.
    pub device: &'a Selected,
    /// Where models are looked for.
    pub models: ModelOptions,
    /// Where corpora are looked for.
    pub data: DataOptions,
    /// A folder to publish the statistics in.
    pub out: Option<PathBuf>,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Blocks of the model.
    pub blocks: usize,
    /// Width of the residual stream, in channels.
    pub hidden: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// The device, as the user would name it and as the driver names it.
    pub device: String,
    /// The token that begins a sequence.
    pub start: Option<u32>,
    /// The model as it came.
    pub original: Look,
    /// What the search for a prefix reports; the prefix itself is in `behind_prefix`.
    pub prefix: Option<Value>,
    /// The model behind the prefix.
    pub behind_prefix: Option<Look>,
    /// The tokens at the site with the largest ratio, as the model came.
    pub tokens: Option<Tokens>,
    /// What it means, in words.
    pub verdict: Vec<String>,
}

/// Why there is nothing to see.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A name that is no model.
    #[error(
        "`{name}` is no model{hint}: give the folder of a checkpoint, a hub id (organisation/name), or one of {}",
        BUILTIN_MODELS.join(", ")
    )]
    NoModel {
        /// As it was given.
        name: String,
        /// The nearest name, in words.
        hint: String,
    },
    /// The model's files.
    #[error("{model}: {source}{note}")]
    Source {
        /// The model's label.
        model: String,
        /// Why not.
        source: Box<SourceError>,
        /// What else may be meant.
        note: &'static str,
    },
    /// A name that is neither a corpus nor a file.
    #[error(
        "`{name}` is neither a corpus{hint} nor a file; `quantscope list corpora` shows the names, and any text file will do"
    )]
    NoCorpus {
        /// As it was given.
        name: String,
        /// The nearest name, in words.
        hint: String,
    },
    /// The text.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The samples.
    #[error(transparent)]
    Draw(Box<DrawError>),
    /// Samples that the model cannot take.
    #[error(
        "samples of {length} tokens are longer than the context of {model}, {context} tokens: say --length {context} or less"
    )]
    Context {
        /// The model's label.
        model: String,
        /// Tokens of a sample.
        length: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A word that is no prefix.
    #[error(
        "`{word}` is no prefix{hint}: say none, bos, qfep, prefixquant, or token ids such as 1,278,29889"
    )]
    NoPrefix {
        /// As it was given.
        word: String,
        /// The nearest word, in words.
        hint: String,
    },
    /// The prefix, or the pass.
    #[error("{model}: {source}")]
    Step {
        /// The model's label.
        model: String,
        /// Why not.
        source: Box<StepError>,
    },
    /// A folder with records of something else.
    #[error(
        "{} holds the records of the experiment `{experiment}`: name another folder, or one that does not exist yet",
        folder.display()
    )]
    OtherRecords {
        /// The folder.
        folder: PathBuf,
        /// Whose records.
        experiment: String,
    },
    /// The folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A panic of the framework or its driver.
    #[error("{message}; {cure}")]
    Device {
        /// What it said.
        message: String,
        /// What can be done.
        cure: String,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}

/// The model of a word of the command line: built in, a folder (as it is, or under `models`), or a hub id.
///
/// # Errors
/// Where it is none of these.
pub fn model(name: &str, models: Option<&Path>) -> Result<Model, InspectError> {
    if BUILTIN_MODELS.contains(&name) {
        return Ok(Model { label: name.into(), source: ModelSource::Builtin(name.into()) });
    }
    let candidates = [Some(PathBuf::from(name)), models.map(|folder| folder.join(name))];
    if let Some(path) = candidates.into_iter().flatten().find(|path| path.is_dir()) {
        let path = path.canonicalize().unwrap_or(path);
        // The last part only: where it lies on this machine is nobody's business.
        let label = path.file_name().map_or_else(|| name.into(), |part| part.to_string_lossy().into_owned());
        return Ok(Model { label, source: ModelSource::Local { path } });
    }
    if is_hub_id(name) && !name.starts_with("builtin/") {
        return Ok(Model {
            label: name.into(),
            source: ModelSource::Hub { id: name.into(), revision: None },
        });
    }
    let hint = names::hint(name, BUILTIN_MODELS.iter().copied());
    Err(InspectError::NoModel { name: name.into(), hint })
}

/// The corpus of a word of the command line: a registered name, else a file. JSON lines have their text in `text`.
///
/// # Errors
/// Where it is neither.
pub fn corpus(name: &str) -> Result<CorpusRef, InspectError> {
    if Generated::find(name).is_some() || corpus::find(name).is_ok() {
        return Ok(CorpusRef::Named(name.into()));
    }
    let path = PathBuf::from(name);
    if path.is_file() {
        let field = path.extension().is_some_and(|end| end == "jsonl").then(|| "text".into());
        return Ok(CorpusRef::File { path, field });
    }
    let known = corpus::list();
    let generated = Generated::ALL.map(Generated::name);
    let hint = names::hint(name, known.iter().map(String::as_str).chain(generated));
    Err(InspectError::NoCorpus { name: name.into(), hint })
}

/// The prefix of a word of the command line, `None` for `none`.
///
/// # Errors
/// Where it is neither a method nor a list of token ids.
pub fn prefix(word: &str) -> Result<Option<Step>, InspectError> {
    const METHODS: [&str; 3] = ["bos", "qfep", "prefixquant"];
    let ids: Result<Vec<u32>, _> = word.split(',').map(|id| id.trim().parse()).collect();
    let (method, keys) = match (word, ids) {
        ("none", _) => return Ok(None),
        (_, Ok(ids)) => ("tokens", serde_json::json!({ "tokens": ids })),
        _ if METHODS.contains(&word) => (word, serde_json::json!({})),
        _ => {
            let hint = names::hint(word, METHODS.into_iter().chain(["none"]));
            return Err(InspectError::NoPrefix { word: word.into(), hint });
        }
    };
    let step = Step::read("prefix", Some(method), keys).expect("the method is registered");
    Ok(Some(step.expect("every key is there").resolved()))
}

/// What is looked at, with every default decided.
pub struct Subject {
    /// The text's name, and the numbers of the set.
    pub calibration: Calibration,
    text: Option<Text>,
    source: Source,
    start: Option<u32>,
}

/// Finds the model and the text, and decides every default. Nothing is computed yet.
///
/// # Errors
/// Where one of them is not there, or they do not go together.
pub fn subject(
    request: &Request,
    models: &ModelOptions,
    data: &DataOptions,
    observer: &mut dyn Observer,
) -> Result<Subject, InspectError> {
    let (corpus, text) = text(request, data, observer)?;
    let label = &request.model.label;
    observer.event(Event::Opening { model: label });
    let source = Source::open(&request.model, models, &mut |file, done, total| {
        observer.event(Event::Download { file, done, total });
    });
    let source = source.map_err(|source| InspectError::Source {
        model: label.clone(),
        note: match &source {
            SourceError::Hub(_) => " (there is no folder of this name)",
            _ => "",
        },
        source: Box::new(source),
    })?;
    let tokenizer = source.checkpoint.tokenizer();
    let start = window_start(tokenizer.bos(), tokenizer.eos());
    let context = source.checkpoint.architecture().context;
    let room = if request.prefix.is_some() { ROOM } else { 0 };
    let length = request.length.unwrap_or_else(|| LENGTH.min(context.saturating_sub(room)));
    if length > context {
        return Err(InspectError::Context { model: label.clone(), length, context });
    }
    let usual = if start.is_some() { BosPolicy::Every } else { BosPolicy::Tokenizer };
    let calibration = Calibration {
        name: corpus.label(),
        corpus,
        samples: request.samples,
        length,
        sampler: Sampler::Windows,
        bos: request.bos.unwrap_or(usual),
        repeat: true,
        allow_overlap: false,
        seeds: None,
        reference: None,
    };
    observer.event(Event::Opened {
        model: label,
        parameters: source.identity.parameters,
        memory: residence::resident(source.checkpoint.architecture(), &[], length),
        residence: Residence::Resident,
    });
    Ok(Subject { calibration, text, source, start })
}

/// The corpus that was asked for; else what suits the model and is there.
fn text(
    request: &Request,
    data: &DataOptions,
    observer: &mut dyn Observer,
) -> Result<(CorpusRef, Option<Text>), InspectError> {
    if let Some(corpus) = &request.corpus {
        let text = match corpus.generated() {
            Some(_) => None,
            None => Some(corpus::load(corpus, data)?),
        };
        return Ok((corpus.clone(), text));
    }
    let named = |name: &str| CorpusRef::Named(name.into());
    let builtin = matches!(request.model.source, ModelSource::Builtin(_));
    if !builtin {
        match corpus::load(&named(WEB), data) {
            Ok(text) => return Ok((named(WEB), Some(text))),
            Err(CorpusError::NotFound { .. }) => {
                let file = CORPORA.iter().find(|corpus| corpus.name == WEB).and_then(|corpus| corpus.path);
                let text = format!(
                    "no corpus `{WEB}` here, so that the text is {STORIES}, short sentences of few words: spikes at BOS \
                     show on it, tokens of other text that spike do not. Say --corpus FILE, or --data DIR with {}",
                    file.unwrap_or(WEB)
                );
                observer.event(Event::Warning { text: &text });
            }
            Err(other) => return Err(other.into()),
        }
    }
    let text = corpus::load(&named(STORIES), data)?;
    Ok((named(STORIES), Some(text)))
}

/// Draws the set and looks at the model.
///
/// # Errors
/// See [`InspectError`]; whatever can be known before the pass is said before it.
pub fn inspect(
    request: &Request,
    options: &Options,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Inspection, InspectError> {
    let underway = Execution::begin(&options.device.name);
    let subject = subject(request, &options.models, &options.data, observer)?;
    let source = &subject.source;
    let tokenizer = source.checkpoint.tokenizer();
    let set = set::draw(&subject.calibration, subject.text.as_ref(), tokenizer, request.seed)
        .map_err(|e| InspectError::Draw(Box::new(e)))?;
    let set = Rc::new(set);
    check_prefix(request, &subject, &set)?;
    let store = options.out.as_deref().map(open_store).transpose()?;
    if interrupt.requested() {
        return Err(InspectError::Interrupted);
    }

    let mut collected = Collected::default();
    let mut calibrator = CellCalibrator {
        set: Some(set.clone()),
        checkpoint: &source.checkpoint,
        collected: &mut collected,
        owner: String::new(),
        seed: Some(request.seed),
        observer,
        interrupt,
        fresh: Vec::new(),
        read: Vec::new(),
    };
    let looked = catching(options.device, "calibrate", || {
        Ok(passes(request, &source.checkpoint, options.device, &mut calibrator))
    });
    let panicked =
        |fault: crate::run::cell::Fault| InspectError::Device { message: fault.message, cure: fault.cure };
    let prefix = looked.map_err(panicked)??;

    let text = |token: u32| tokenizer.decode(&[token]).unwrap_or_default();
    let fresh = std::mem::take(&mut calibrator.fresh);
    let original = fresh[0].statistics.clone();
    let mut looks = fresh.into_iter().map(|fresh| {
        let sites = fresh.statistics.sites.iter().map(|(site, seen)| (site.to_string(), Channels::of(seen)));
        let channels = sites.collect();
        let (statistics, rows) = statistics_result(source, &set, fresh);
        Look { statistics, channels, rows }
    });
    let look = looks.next().expect("the model as it came is looked at first");
    let behind_prefix = looks.next();
    drop(looks);
    let spiking = look.groups().first().map(|group| group.site.clone());
    let tokens = spiking.and_then(|name| {
        let (_, seen) = original.sites.iter().find(|(site, _)| site.to_string() == name)?;
        Some(Tokens::of(&name, seen, &set.samples, &text))
    });
    let named = |token: u32, text: &str| shown(token, text, subject.start);
    let verdict = findings::verdict(&look, tokens.as_ref(), behind_prefix.as_ref(), &named);
    if let Some(store) = &store {
        for look in std::iter::once(&look).chain(&behind_prefix) {
            store.publish_statistics(look.statistics.clone(), &look.rows, underway.clone().finish())?;
        }
        list_in_manifest(store, &request.model.label)?;
    }
    let architecture = source.checkpoint.architecture();
    Ok(Inspection {
        blocks: architecture.layers,
        hidden: architecture.hidden,
        context: architecture.context,
        device: options.device.name.clone(),
        start: subject.start,
        original: look,
        prefix,
        behind_prefix,
        tokens,
        verdict,
    })
}

/// Loads the model, and looks at it once or twice; what the prefix step reports.
fn passes(
    request: &Request,
    checkpoint: &Checkpoint,
    device: &Selected,
    calibrator: &mut CellCalibrator,
) -> Result<Option<Value>, InspectError> {
    let label = &request.model.label;
    let failed = |source: StepError| match source {
        StepError::Interrupted => InspectError::Interrupted,
        source => InspectError::Step { model: label.clone(), source: Box::new(source) },
    };
    let mut decoder = checkpoint.load(&device.device).map_err(|e| InspectError::Source {
        model: label.clone(),
        source: Box::new(e.into()),
        note: "",
    })?;
    calibrator.statistics(&mut decoder, &[]).map_err(failed)?;
    let Some(step) = &request.prefix else { return Ok(None) };
    let steps = std::slice::from_ref(step);
    let (_, mut fitted) = quantize::apply(steps, &mut decoder, calibrator).map_err(|(_, e)| failed(e))?;
    calibrator.statistics(&mut decoder, steps).map_err(failed)?;
    Ok(fitted.remove(&format!("0.{}", step.name())))
}

/// Refuses a prefix that the model cannot have, before the long work starts.
fn check_prefix(request: &Request, subject: &Subject, set: &CalibrationSet) -> Result<(), InspectError> {
    let Some(step) = &request.prefix else { return Ok(()) };
    let checkpoint = &subject.source.checkpoint;
    let behind = |sample: &Vec<u32>| {
        let begins = subject.start.is_some() && sample.first().copied() == subject.start;
        sample.len() - usize::from(begins)
    };
    let facts = ModelFacts {
        architecture: checkpoint.architecture(),
        earlier: &[],
        longest: set.samples.iter().map(behind).max().unwrap_or(1),
        start: subject.start,
        token: &|text: &str| calibrator::one_token(checkpoint, text),
    };
    let failed = |source| InspectError::Step { model: request.model.label.clone(), source: Box::new(source) };
    step.method().check_model(&facts).map_err(failed)
}

/// A token as a reader wants to see it: its text in quotes, blanks and line ends visible, or BOS.
pub fn shown(token: u32, text: &str, start: Option<u32>) -> String {
    const LONGEST: usize = 16;
    if Some(token) == start {
        return "BOS".into();
    }
    if text.is_empty() {
        return format!("#{token}");
    }
    let mut quoted: String = text.chars().take(LONGEST).collect::<String>().escape_debug().collect();
    if text.chars().nth(LONGEST).is_some() {
        quoted.push('…');
    }
    format!("\"{quoted}\"")
}

/// Opens a folder for looks; refuses one with records of an experiment.
fn open_store(folder: &Path) -> Result<Store, InspectError> {
    if folder.is_dir()
        && let Some(manifest) = Store::open_read_only(folder)?.read_manifest()?
        && (manifest.experiment != NAME || !manifest.cells.is_empty())
    {
        return Err(InspectError::OtherRecords { folder: folder.into(), experiment: manifest.experiment });
    }
    Ok(Store::open(folder)?)
}

/// Adds a model to those whose statistics a report shows.
fn list_in_manifest(store: &Store, label: &str) -> Result<(), StoreError> {
    let mut manifest = store.read_manifest()?.unwrap_or_else(|| Manifest {
        schema: SCHEMA,
        experiment: NAME.into(),
        question: "What do the activations look like?".into(),
        recipes: vec![ORIGINAL.into()],
        ..Manifest::default()
    });
    if !manifest.models.iter().any(|known| known == label) {
        manifest.models.push(label.into());
    }
    store.write_manifest(&manifest)
}
