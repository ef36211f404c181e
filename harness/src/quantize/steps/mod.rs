//! The registry of steps: one file and one line each.

use serde::Serialize;

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

            /// Reads a step from its table without the `step` key. `None` where no step has this name; the inner error
            /// is serde's, whose text names the unknown key and the expected ones.
            pub fn from_table(name: &str, table: toml::Table) -> Option<Result<Self, toml::de::Error>> {
                match name {
                    $($name => Some(table.try_into::<$module::$step>().map(Step::$step)),)+
                    _ => None,
                }
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

registry! {
    "activations" => activations::Activations,
    "weights" => weights::Weights,
}
