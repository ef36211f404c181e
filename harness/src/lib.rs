//! The harness: experiment → plan → run → record → report.
//!
//! Modules stand in the order data flows through them; what each may know of the others is said in
//! `docs/architecture.md` and tested in `tests/tidy.rs`.

pub mod calibrate;
pub mod cli;
pub mod data;
pub mod device;
pub mod doctor;
pub mod evaluate;
pub mod experiment;
pub mod hidden;
pub mod layerwise;
pub mod matrix;
pub mod names;
pub mod paired;
pub mod plan;
pub mod quantize;
pub mod record;
pub mod report;
pub mod run;
