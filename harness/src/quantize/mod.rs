//! Quantization: grids, steps, and what applies them to groups of linear layers. Knows no model family.
//!
//! | module | holds |
//! |---|---|
//! | [`grid`] | which values can be represented, how a scale is chosen |
//! | [`rounding`] | rounding weights and activations to a grid, on the host and on devices |
//! | [`fake_quant`] | the tap that rounds what linears read |
//! | [`admissible`] | what a step may say: the checks that steps share |
//! | [`steps`] | one file per step of a recipe |

use models::{Decoder, Group, Port, Site};
use serde_json::{Map, Value};

use crate::quantize::fake_quant::{ActivationRule, FakeQuant};
use crate::quantize::steps::{Stage, Step};

pub mod admissible;
pub mod fake_quant;
pub mod grid;
pub mod rounding;
pub mod steps;

/// A group of linears as the steps of a recipe pass over it.
pub struct GroupInFlight<'a> {
    /// The site that the group reads.
    pub site: Site,
    /// The linears; steps change their weights in place.
    pub group: &'a mut Group,
    /// How the activation is rounded before they read it; `None` for not at all.
    pub activation: &'a mut Option<ActivationRule>,
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

    /// Whether a calibration set decides what the step does.
    fn needs_calibration(&self) -> bool {
        false
    }

    /// Whether the step draws random numbers of its own; the calibration set is drawn by seed in any case.
    fn uses_randomness(&self) -> bool {
        false
    }

    /// Whether the model after the step must compute the same function as before.
    fn preserves_function(&self) -> bool {
        false
    }

    /// Acts on the whole model before its groups are visited.
    ///
    /// # Errors
    /// Where the model's shape does not allow it.
    fn prepare(&self, decoder: &mut Decoder) -> Result<(), StepError> {
        let _ = decoder;
        Ok(())
    }

    /// Acts on one group.
    ///
    /// # Errors
    /// Where the group's shape does not allow it.
    fn apply(&self, group: &mut GroupInFlight) -> Result<(), StepError>;
}

/// A step that cannot be carried out on a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepError {
    /// Groups of channels that do not fit.
    #[error(
        "{place}: groups of {group} do not divide its {width} input channels; choose a divisor of {width}, such as {example}"
    )]
    GroupWidth {
        /// Linear or site.
        place: String,
        /// Channels per group.
        group: usize,
        /// Input channels.
        width: usize,
        /// The largest divisor not above `group`.
        example: usize,
    },
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
/// Returns the tap that executes it, and what each step reports, keyed `<index>.<step>`.
///
/// # Errors
/// The first step that cannot be carried out, with its key.
pub fn apply(
    steps: &[Step],
    decoder: &mut Decoder,
) -> Result<(FakeQuant, Map<String, Value>), (String, StepError)> {
    let mut tap = FakeQuant::default();
    let mut fitted = Map::new();
    for (index, step) in steps.iter().enumerate() {
        let key = format!("{index}.{}", step.name());
        let method = step.method();
        method.prepare(decoder).map_err(|e| (key.clone(), e))?;
        let mut groups = 0u64;
        for (site, group) in decoder.groups_mut() {
            let rule = tap.rules.entry(site).or_default();
            let mut flight = GroupInFlight { site, group, activation: rule };
            method.apply(&mut flight).map_err(|e| (key.clone(), e))?;
            groups += 1;
        }
        fitted.insert(key, serde_json::json!({ "groups": groups }));
    }
    Ok((tap, fitted))
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
