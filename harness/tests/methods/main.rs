//! What holds of every step and method whatever it does, what smoothing and training must do on whole models, what rounding
//! costs, and what a rounded cache is.

#![allow(clippy::unwrap_used)]

#[path = "../support/recipes.rs"]
mod recipes;

mod cache;
mod experts;
mod families;
mod pairs;
mod parts;
mod registry;
mod rotation;
mod rounding;
mod smoothing;
mod tuning;
mod tuning_hosts;
