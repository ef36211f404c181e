//! What holds of every step and method whatever it does, what smoothing must do on whole models, and what rounding
//! costs.

#![allow(clippy::unwrap_used)]

#[path = "../support/recipes.rs"]
mod recipes;

mod registry;
mod rounding;
mod smoothing;
mod tuning;
