//! The registry of metrics: one file and one line each.

pub mod perplexity;
pub mod speed;
