//! Calibration: what activations look like while text runs through the model, in floating point.
//!
//! | module | holds |
//! |---|---|
//! | [`histogram`] | log-binned counts of magnitudes |
//! | [`statistics`] | what is known of the activation of one site, and of all of them; merging |
//! | [`moment`] | second moments, on demand |
//! | [`observe`] | the tap that collects them, and the pass over a calibration set |
//! | [`recorded`] | the form in which a store keeps them |
//!
//! One pass gives everything that was asked for. Every number but the second moment is exact under any order of samples
//! and any split into batches: counts, extremes and per-sequence values do not depend on order, and sums are kept as
//! integers.

pub mod histogram;
pub mod moment;
pub mod observe;
pub mod recorded;
pub mod statistics;
