//! The registry of steps: one file and one line each.

use serde::{Deserialize, Deserializer, Serialize};

use crate::quantize::Method;

pub mod activations;
pub mod weights;

/// Declares the enum of steps, their names, and their parsing, from one list.
macro_rules! registry {
    ($($name:literal => $module:ident :: $step:ident,)+) => {
        /// One configured stage of a recipe.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(tag = "step")]
        pub enum Step {
            $(#[doc = concat!("`", $name, "`")] #[serde(rename = $name)] $step($module::$step),)+
        }

        /// The names of all steps, in alphabetical order.
        pub const NAMES: &[&str] = &[$($name),+];

        impl Step {
            /// The step's name in a recipe.
            pub fn name(&self) -> &'static str {
                match self { $(Step::$step(_) => $name,)+ }
            }

            /// What the step does.
            pub fn method(&self) -> &dyn Method {
                match self { $(Step::$step(step) => step,)+ }
            }

            /// Reads the keys of the step called `name` (its table without the key `step`). `None` where no step has
            /// this name; an error is the deserializer's own.
            pub fn read<'de, D: Deserializer<'de>>(name: &str, keys: D) -> Option<Result<Self, D::Error>> {
                match name {
                    $($name => Some($module::$step::deserialize(keys).map(Step::$step)),)+
                    _ => None,
                }
            }

            /// The same step with every default written out, so that equal meaning is equal text.
            pub fn resolved(self) -> Self {
                match self { $(Step::$step(step) => Step::$step(step.resolved()),)+ }
            }

            /// The page of the step: its file's module documentation.
            pub fn page(name: &str) -> Option<String> {
                match name {
                    $($name => Some(crate::quantize::page(include_str!(concat!(stringify!($module), ".rs")))),)+
                    _ => None,
                }
            }
        }
    };
}

/// Where in a recipe a step may stand: the stages follow each other in this order, each step in one of them.
///
/// `prefix`, `shift`, `smooth`, `rotate`, `keep`, `quantize`, `tune`: a prefix changes what every later statistic sees; a
/// scale is fitted on channels that a rotation would mix; a grid rounds what the transforms have made; exemptions are
/// known before anything is rounded; tuning needs the grids it tunes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Tokens in front of every sequence.
    Prefix,
    /// Channel shifts.
    Shift,
    /// Channel scales.
    Smooth,
    /// Rotations.
    Rotate,
    /// What stays in floating point.
    Keep,
    /// Grids: weights, activations, cache. Their order among themselves means nothing.
    Quantize,
    /// Training after rounding.
    Tune,
}

/// What is to be said of one step after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    Fine,
    /// It may be meant, and is worth a warning: why.
    Doubtful(&'static str),
    /// It cannot be meant: why.
    Wrong(&'static str),
}

impl Stage {
    /// Judges a step of this stage after one of stage `earlier`.
    pub fn after(self, earlier: Stage) -> Order {
        if self >= earlier {
            return Order::Fine;
        }
        match (earlier, self) {
            (_, Stage::Prefix) => Order::Wrong("a prefix comes first: it changes what every other step sees"),
            (Stage::Tune, _) => Order::Wrong("tuning comes last: it needs the grids it tunes"),
            (Stage::Quantize, Stage::Keep) => Order::Wrong("what is kept is said before anything is rounded"),
            (Stage::Quantize, _) => {
                Order::Wrong("transforms come before grids: what is rounded stays as it is")
            }
            (Stage::Keep, _) => {
                Order::Wrong("transforms come before `keep`, which looks at transformed activations")
            }
            (Stage::Rotate, Stage::Smooth) => Order::Doubtful(
                "scales fitted on rotated channels have little left to even out; smooth first, then rotate",
            ),
            _ => Order::Wrong("shifts come before scales and rotations, which act on what was shifted"),
        }
    }
}

registry! {
    "activations" => activations::Activations,
    "weights" => weights::Weights,
}
