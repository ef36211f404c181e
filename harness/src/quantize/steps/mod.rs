//! The registry of steps: one file and one line each.

use serde::ser::Serializer;
use serde::{Deserialize, Deserializer, Serialize};

use crate::quantize::Method;

pub mod activations;
pub mod keep;
pub mod kv;
pub mod prefix;
pub mod rotate;
pub mod smooth;
pub mod tune;
pub mod weights;

/// The method of a registry line, or none.
macro_rules! method {
    () => {
        None::<&'static str>
    };
    ($method:literal) => {
        Some($method)
    };
}

/// Declares the enum of steps, their names, and their parsing, from one list: the variant, the step's word, its method's
/// word where a step has several, the type, and the file whose documentation is its page.
macro_rules! registry {
    ($($variant:ident: $step:literal $($method:literal)? => $kind:ty, $file:literal;)+) => {
        /// One configured stage of a recipe.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Step {
            $(#[doc = concat!("`", $step, "`" $(, " by `", $method, "`")?)] $variant($kind),)+
        }

        /// Every step with its method, where it has several, in alphabetical order.
        pub const STEPS: &[(&str, Option<&str>)] = &[$(($step, method!($($method)?))),+];

        impl Step {
            /// The step's word in a recipe.
            pub fn name(&self) -> &'static str {
                match self { $(Step::$variant(_) => $step,)+ }
            }

            /// The method's word, for a step that has several.
            pub fn method_name(&self) -> Option<&'static str> {
                match self { $(Step::$variant(_) => method!($($method)?),)+ }
            }

            /// What the step does.
            pub fn method(&self) -> &dyn Method {
                match self { $(Step::$variant(step) => step,)+ }
            }

            /// Reads the keys of a step (its table without the keys `step` and `method`). `None` where no step has this
            /// name and method; an error is the deserializer's own.
            pub fn read<'de, D: Deserializer<'de>>(
                name: &str,
                method: Option<&str>,
                keys: D,
            ) -> Option<Result<Self, D::Error>> {
                match (name, method) {
                    $(($step, given) if given == method!($($method)?) =>
                        Some(<$kind>::deserialize(keys).map(Step::$variant)),)+
                    _ => None,
                }
            }

            /// The same step with every default written out, so that equal meaning is equal text.
            pub fn resolved(self) -> Self {
                match self { $(Step::$variant(step) => Step::$variant(step.resolved()),)+ }
            }

            /// The page of a step without methods, or of a method: its file's module documentation.
            pub fn page(name: &str) -> Option<String> {
                $(if name == method!($($method)?).unwrap_or($step) {
                    return Some(crate::quantize::page(include_str!($file)));
                })+
                None
            }
        }

        impl Serialize for Step {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let (step, method) = (self.name(), self.method_name());
                match self { $(Step::$variant(keys) => Tagged { step, method, keys }.serialize(serializer),)+ }
            }
        }
    };
}

/// A step as recipes and records write it.
#[derive(Serialize)]
struct Tagged<'a, T> {
    step: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(flatten)]
    keys: &'a T,
}

/// The words of all steps, each once, in alphabetical order.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = STEPS.iter().map(|(name, _)| *name).collect();
    names.dedup();
    names
}

/// The words of a step's methods; empty for a step that has only one.
pub fn methods(step: &str) -> Vec<&'static str> {
    STEPS.iter().filter(|(name, _)| *name == step).filter_map(|(_, method)| *method).collect()
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
    /// Training of what the grids round.
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

impl Step {
    /// The keys whose values are not the defaults, where all keys have defaults.
    pub fn differences(&self) -> Vec<(String, String)> {
        let nothing = serde_json::Value::Object(serde_json::Map::new());
        let Some(Ok(default)) = Step::read(self.name(), self.method_name(), nothing) else {
            return Vec::new();
        };
        let keys = |step: &Step| match serde_json::to_value(step) {
            Ok(serde_json::Value::Object(keys)) => keys,
            _ => serde_json::Map::new(),
        };
        let default = keys(&default.resolved());
        let own = keys(self).into_iter().filter(|(key, value)| default.get(key) != Some(value));
        own.map(|(key, value)| (key, value.to_string().replace('"', ""))).collect()
    }
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
    Activations: "activations" => activations::Activations, "activations.rs";
    KeepChannels: "keep" "channels" => keep::channels::Channels, "keep/channels.rs";
    KeepQfem: "keep" "qfem" => keep::qfem::Qfem, "keep/qfem.rs";
    KeepRanked: "keep" "ranked" => keep::ranked::Ranked, "keep/ranked.rs";
    Kv: "kv" => kv::Kv, "kv.rs";
    PrefixBos: "prefix" "bos" => prefix::given::Bos, "prefix/given.rs";
    PrefixPrefixquant: "prefix" "prefixquant" => prefix::prefixquant::Prefixquant, "prefix/prefixquant.rs";
    PrefixQfep: "prefix" "qfep" => prefix::qfep::Qfep, "prefix/qfep.rs";
    PrefixRandom: "prefix" "random" => prefix::given::Random, "prefix/given.rs";
    PrefixTokens: "prefix" "tokens" => prefix::given::Tokens, "prefix/given.rs";
    RotateBestOf: "rotate" "best-of" => rotate::best_of::BestOf, "rotate/best_of.rs";
    RotateCayley: "rotate" "cayley" => rotate::cayley::Cayley, "rotate/cayley.rs";
    RotateHadamard: "rotate" "hadamard" => rotate::hadamard::Hadamard, "rotate/hadamard.rs";
    RotateRandomOrthogonal: "rotate" "random-orthogonal" => rotate::random_orthogonal::RandomOrthogonal, "rotate/random_orthogonal.rs";
    SmoothAwq: "smooth" "awq" => smooth::awq::Awq, "smooth/awq.rs";
    SmoothOsplus: "smooth" "osplus" => smooth::osplus::Osplus, "smooth/osplus.rs";
    SmoothSmoothquant: "smooth" "smoothquant" => smooth::smoothquant::Smoothquant, "smooth/smoothquant.rs";
    TuneBisupStyle: "tune" "bisup-style" => tune::bisup_style::BisupStyle, "tune/bisup_style.rs";
    Weights: "weights" => weights::Weights, "weights.rs";
}
