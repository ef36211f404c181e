//! Quantization: grids, steps, and what applies them to groups of linear layers. Knows no model family.
//!
//! | module | holds |
//! |---|---|
//! | [`grid`] | which values can be represented, how a scale is chosen |
//! | [`rounding`] | rounding weights and activations to a grid, on the host and on devices |
//! | [`cache_rounding`] | rounding keys and values as they enter the cache |
//! | [`effective_bits`] | what a recipe stores and moves per value, scales and exemptions included |
//! | [`fake_quant`] | the tap that rounds what linears read and what the cache holds |
//! | [`integer`] | the tap that multiplies codes as integers, where grids are whole numbers |
//! | `kernels` | rounding on devices of CubeCL, alone and behind what makes the activation |
//! | [`equivalence`] | the gate that every function-preserving step passes |
//! | [`parts`] | a recipe carried out on a model whole, or part by part |
//! | [`direct`] | what steps ask of their surroundings, without a run around them |
//! | [`likelihood`] | the language model's loss, by which steps choose |
//! | [`admissible`] | what a step may say: the checks that steps share |
//! | [`low_rank`] | small products beside rounded linears |
//! | [`solve`] | rounding weights by what they read: solvers, clip searches, the pass block by block |
//! | [`tuning`] | training the rounding of one block after another |
//! | [`steps`] | one file per step of a recipe |

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;

use models::architecture::Architecture;
use models::{Decoder, Group, Port, RescaleError, RotateError, Site};
use serde_json::{Map, Value};

use crate::calibrate::statistics::Statistics;
use crate::quantize::effective_bits::Tally;
use crate::quantize::fake_quant::{ActivationRule, FakeQuant, Kept};
use crate::quantize::parts::Application;
use crate::quantize::solve::layout::Layout;
use crate::quantize::steps::{Stage, Step};

pub mod admissible;
pub mod cache_rounding;
pub mod direct;
pub mod effective_bits;
pub mod equivalence;
pub mod fake_quant;
pub mod grid;
pub mod integer;
#[cfg(feature = "cube")]
pub mod kernels;
pub mod likelihood;
pub mod low_rank;
pub mod parts;
pub mod rounding;
pub mod solve;
pub mod steps;
pub mod tuning;

pub use parts::apply_after;

/// A group of linears as the steps of a recipe pass over it.
pub struct GroupInFlight<'a> {
    /// The site that the group reads.
    pub site: Site,
    /// The linears; steps change their weights in place.
    pub group: &'a mut Group,
    /// How the activation is rounded before they read it; `None` for not at all.
    pub activation: &'a mut Option<ActivationRule>,
    /// What an earlier `keep` step has exempted.
    pub kept: Option<Kept>,
    /// Channels that an earlier `keep` step has put on a grid of their own.
    pub layout: Option<Arc<Layout>>,
    /// Whether a step of the stage `tune` has rounded the weights.
    pub rounded: bool,
}

/// A model as the steps of a recipe pass over it, and what a step may ask of its surroundings.
pub struct ModelInFlight<'a> {
    /// The decoder as the earlier steps left it.
    pub decoder: &'a mut Decoder,
    /// What will execute the recipe.
    pub tap: &'a mut FakeQuant,
    /// Statistics of the original, where the step asks for them.
    pub original: Option<Rc<Statistics>>,
    /// Statistics of the model as it is now, where the step asks for them.
    pub present: Option<Rc<Statistics>>,
    /// Samples, words and seed.
    pub calibrator: &'a mut dyn Calibrator,
    /// The transforms that made the decoder what it is.
    pub state: &'a [Step],
    /// The steps before it in the recipe, carried out or not: see [`apply`].
    pub earlier: &'a [Step],
    /// The steps that follow.
    pub after: &'a [Step],
    /// The step as later steps and statistics are to know it, where its own keys do not decide what it did.
    pub becomes: Option<Step>,
    /// What the step hands itself from one part of a model to the next.
    pub carried: &'a mut Carried,
}

/// What a step hands itself from one part of a model to the next; nothing on the first, or on a whole model.
#[derive(Default)]
pub struct Carried(Option<Box<dyn Any>>);

impl Carried {
    /// Takes out what was put in.
    ///
    /// # Panics
    /// If it is of another type.
    pub fn take<T: 'static>(&mut self) -> Option<T> {
        let held = self.0.take()?;
        Some(*held.downcast().expect("a step carries values of one type"))
    }

    /// Puts something in for the next part.
    pub fn put<T: 'static>(&mut self, value: T) {
        self.0 = Some(Box::new(value));
    }
}

/// What a step may ask of its surroundings.
pub trait Calibrator {
    /// The samples of the calibration set; empty where the recipe needs none.
    fn samples(&self) -> &[Vec<u32>];

    /// Statistics of a floating-point pass of the samples through `decoder`, which `state`, function-preserving steps
    /// and prefixes, has made of the original. May remember them: equal state, equal statistics.
    ///
    /// # Errors
    /// Where the pass fails or the user stops it.
    fn statistics(&mut self, decoder: &mut Decoder, state: &[Step]) -> Result<Rc<Statistics>, StepError>;

    /// The token that begins a sequence: BOS, or EOS where there is only that.
    fn start(&self) -> Option<u32>;

    /// The id of a text that is exactly one token.
    fn token(&self, text: &str) -> Option<u32>;

    /// A token's text, for people.
    fn text(&self, token: u32) -> String;

    /// Ids that stand for text, ascending: no BOS, EOS, padding or their kin.
    fn ordinary(&self) -> Vec<u32>;

    /// The seed of the cell.
    fn seed(&self) -> u64;

    /// What a step found by a long search in this model's calibration set, if it was [remembered](Self::remember).
    fn recall(&self, key: &str) -> Option<Value>;

    /// Remembers what a step found. `key` must hold all that decides it besides model, set and seed: the step, and the
    /// transforms before it.
    fn remember(&mut self, key: String, found: Value);

    /// Tells how far a step is; false where the user wants to stop.
    fn progress(&mut self, done: usize, total: usize) -> bool;
}

/// Which statistics a step reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatisticsNeed {
    /// None.
    #[default]
    Nothing,
    /// Those of the original, whatever earlier steps have made of it.
    Original,
    /// Those of the model as the earlier steps left it, behind its prefix.
    Present,
}

/// What is known of a model before its weights are read.
pub struct ModelFacts<'a> {
    /// What it is.
    pub architecture: &'a Architecture,
    /// The steps before the one that is asked.
    pub earlier: &'a [Step],
    /// Longest sequence that will be fed behind a prefix, which takes the place of BOS, in tokens.
    pub longest: usize,
    /// The token that begins a sequence.
    pub start: Option<u32>,
    /// The id of a text that is exactly one token.
    pub token: &'a dyn Fn(&str) -> Option<u32>,
}

/// What a step does, besides its keys: see [`steps`] for the registry.
pub trait Method {
    /// Where in a recipe the step may stand.
    fn stage(&self) -> Stage;

    /// Complains of a value that the step cannot have; the text begins with the key, in backticks.
    ///
    /// # Errors
    /// The complaint.
    fn check(&self) -> Result<(), String>;

    /// What the step has for itself, in words: a second step of the recipe with the same claim is a mistake.
    fn claims(&self) -> Vec<String>;

    /// Which statistics it reads.
    fn statistics(&self) -> StatisticsNeed {
        StatisticsNeed::Nothing
    }

    /// Whether a calibration set decides what the step does.
    fn needs_calibration(&self) -> bool {
        self.statistics() != StatisticsNeed::Nothing
    }

    /// Whether the step draws random numbers of its own; the calibration set is drawn by seed in any case.
    fn uses_randomness(&self) -> bool {
        false
    }

    /// Whether the model after the step must compute the same function as before.
    fn preserves_function(&self) -> bool {
        false
    }

    /// Whether it rounds weights, after which no statistic of the floating-point model can be taken.
    fn rounds_weights(&self) -> bool {
        false
    }

    /// Why the step needs the whole model at once; `None` where it can act on a [part](models::parts) after the other, each
    /// as the earlier steps left it, and comes to the same.
    fn needs_whole_model(&self) -> Option<&'static str> {
        Some("it has not been taught to act on one block after the other")
    }

    /// Whether it tries something out on a copy of the model, whose changed weights stand in memory beside the model's own.
    fn tries_on_a_copy(&self) -> bool {
        false
    }

    /// What of a group it may leave in floating point, if its calibration set says so: no step behind it can know before
    /// whether it will act there.
    fn exempts(&self) -> Option<Kept> {
        (self.stage() == Stage::Keep).then_some(Kept::ActivationAndWeights)
    }

    /// Refuses a model that the step cannot act on, as far as that is known before its weights are read: with the error that
    /// acting would end in, so that both ask the same function.
    ///
    /// # Errors
    /// Why not.
    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        let _ = facts;
        Ok(())
    }

    /// Enters what it stores in place of 16 bits, all that goes with it included.
    fn store(&self, tally: &mut Tally) {
        let _ = tally;
    }

    /// Acts on the whole model, and reports what was fitted: by default on one group after another.
    ///
    /// # Errors
    /// Where the model's shape does not allow it, or what it needs fails.
    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        each_group(model, |flight| self.apply(flight))
    }

    /// Acts on one group; says whether it changed anything.
    ///
    /// # Errors
    /// Where the group's shape does not allow it.
    fn apply(&self, group: &mut GroupInFlight) -> Result<bool, StepError> {
        let _ = group;
        Ok(false)
    }
}

/// Visits every group in the order of the forward pass; reports how many `act` has changed.
///
/// # Errors
/// The first of `act`.
pub fn each_group(
    model: &mut ModelInFlight,
    mut act: impl FnMut(&mut GroupInFlight) -> Result<bool, StepError>,
) -> Result<Map<String, Value>, StepError> {
    let mut groups = 0u64;
    for (site, group) in model.decoder.groups_mut() {
        let mut activation = model.tap.rules.remove(&site);
        let kept = model.tap.kept.get(&site).copied();
        let layout = model.tap.layouts.get(&site).cloned();
        let rounded = model.tap.rounded.contains(&site);
        let mut flight = GroupInFlight { site, group, activation: &mut activation, kept, layout, rounded };
        let changed = act(&mut flight);
        if let Some(rule) = activation {
            model.tap.rules.insert(site, rule);
        }
        groups += u64::from(changed?);
    }
    let mut report = Map::new();
    report.insert("groups".into(), groups.into());
    Ok(report)
}

/// A step that cannot be carried out on a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepError {
    /// Groups of channels that do not fit.
    #[error(
        "{place}: groups of {group} do not divide its {width} input channels; choose a divisor of {width}, such as {example}"
    )]
    GroupWidth {
        /// The site, or the embedding table.
        place: String,
        /// Channels per group.
        group: usize,
        /// Input channels.
        width: usize,
        /// The largest divisor not above `group`.
        example: usize,
    },
    /// A step that would act on nothing.
    #[error(
        "no linear layer of this model reads {sites}; they read {there}: name one of these, or leave the step out"
    )]
    NoSites {
        /// The step's sites.
        sites: String,
        /// The sites of the model.
        there: String,
    },
    /// A transform that changes what the model computes.
    #[error(
        "the transformed, unquantized model does not compute what the original does: logits differ by up to {difference:.3e}, \
         {relative:.1e} of the largest, where {tolerance:.0e} is allowed; the step's scales are too extreme for f32, or it \
         has a fault: leave it out, or make it milder"
    )]
    NotEquivalent {
        /// Largest absolute difference of a logit.
        difference: f64,
        /// The same as a share of the largest logit.
        relative: f64,
        /// What is allowed.
        tolerance: f64,
    },
    /// A site that cannot be rescaled as asked.
    #[error(transparent)]
    Rescale(Box<RescaleError>),
    /// Something that cannot be rotated as asked.
    #[error(transparent)]
    Rotate(Box<RotateError>),
    /// Statistics that cannot be had, or say nothing.
    #[error("{0}")]
    Statistics(String),
    /// A prefix token that the model does not have.
    #[error("prefix token {token} is not in the vocabulary, whose ids are 0 to {last}")]
    Vocabulary {
        /// The id.
        token: u32,
        /// The largest id.
        last: usize,
    },
    /// A word that is not exactly one token.
    #[error(
        "`{word}` is not exactly one token of this model: give a token's id, or a text that encodes to one token"
    )]
    Word {
        /// As the recipe has it.
        word: String,
    },
    /// A tokenizer without a token that begins a sequence.
    #[error(
        "this prefix begins with BOS, and the tokenizer has neither a BOS nor an EOS token: use method = \"tokens\", or \
         leave BOS out with bos = false"
    )]
    NoStart,
    /// A prefix and a sequence that are longer than the context.
    #[error(
        "a prefix of {prefix} tokens leaves no room for sequences of {longest} tokens in a context of {context}: shorten \
         the prefix, or the evaluation's and calibration's `length` to at most {}",
        context.saturating_sub(*prefix)
    )]
    NoRoom {
        /// Tokens of the prefix.
        prefix: usize,
        /// Tokens of the longest sequence.
        longest: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A prompt in full precision that leaves nothing to round.
    #[error(
        "a prompt of {prompt} tokens in full precision fills the context of {context}, and no key or value would be \
         rounded: `prompt` must be below {context}, less the tokens of a prefix"
    )]
    Prompt {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A method that compares two models token by token, and experts.
    #[error(
        "`asymmetric-calibration` compares what two models compute of the same tokens, and two models may send different \
         tokens to an expert: leave it out, or mlp_in and down_in out of `sites` and round them in a step of their own"
    )]
    Experts,
    /// Steps before it, or a model, that the step cannot build on.
    #[error("{0}")]
    Host(String),
    /// Too little of something that the step needs.
    #[error("{0}")]
    TooLittle(String),
    /// Hidden states that found no place.
    #[error(
        "the hidden states of the calibration set cannot be kept in a temporary file: {0}; free space there, or set TMPDIR"
    )]
    States(String),
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}

impl From<RescaleError> for StepError {
    fn from(error: RescaleError) -> Self {
        StepError::Rescale(Box::new(error))
    }
}

impl From<RotateError> for StepError {
    fn from(error: RotateError) -> Self {
        StepError::Rotate(Box::new(error))
    }
}

impl StepError {
    pub(crate) fn check_group(place: &str, group: usize, width: usize) -> Result<(), StepError> {
        if width.is_multiple_of(group) {
            return Ok(());
        }
        let example = (1..=group.min(width)).rev().find(|n| width.is_multiple_of(*n)).unwrap_or(1);
        Err(StepError::GroupWidth { place: place.into(), group, width, example })
    }
}

/// Applies a recipe to a decoder in place.
///
/// Returns the tap that executes it, and what each step reports, keyed `<place>.<step>`. Grids are fitted before any
/// weight is rounded: statistics are those of the floating-point model. Of the steps that round weights, training comes
/// first: it learns how the blocks' weights are rounded, and leaves `weights` the rest. Every function-preserving step
/// passes the [equivalence gate](equivalence).
///
/// # Errors
/// The first step that cannot be carried out, with its key.
pub fn apply(
    steps: &[Step],
    decoder: &mut Decoder,
    calibrator: &mut dyn Calibrator,
) -> Result<(FakeQuant, Map<String, Value>), (String, StepError)> {
    let mut application = Application::new(steps);
    application.part(decoder, calibrator)?;
    Ok(application.finish())
}

/// Whether a step acts at a port: the ports it lists, by default every one with linears but the head's.
pub fn acts_at(sites: Option<&[String]>, port: Port) -> bool {
    match sites {
        Some(sites) => sites.iter().any(|site| site == port.as_str()),
        None => port.has_linears() && port != Port::HeadIn,
    }
}

/// The module documentation of a source file, as Markdown: the page that `quantscope explain` prints.
pub fn page(source: &str) -> String {
    source
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.trim_start_matches("//!").strip_prefix(' ').unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}
