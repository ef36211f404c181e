//! Calibration: what is learnt from text before a recipe changes a model.
//!
//! | module | holds |
//! |---|---|
//! | [`set`] | calibration sets: drawn once from a text, a tokenizer and a seed |
//! | [`overlap`] | refusing a set that overlaps what is measured |
//! | [`observe`] | the tap that collects statistics, and the floating-point pass over a set |
//! | [`statistics`] | what is known of the activation of one site, and of all of them; merging |
//! | [`led`] | the same pass, part by part through a model that does not fit |
//! | [`histogram`] | log-binned counts of magnitudes |
//! | [`moment`] | second moments, on demand |
//! | [`recorded`] | statistics as the store keeps them |
//!
//! One pass gives everything that was asked for. Every number but the second moment is exact under any order of samples
//! and any split into batches: counts, extremes and per-sequence values do not depend on order, and sums are kept as
//! integers.

pub mod histogram;
pub mod led;
pub mod moment;
pub mod observe;
pub mod overlap;
pub mod recorded;
pub mod set;
pub mod statistics;
