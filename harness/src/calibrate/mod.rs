//! Calibration: what is learnt from text before a recipe changes a model.
//!
//! A calibration set is drawn once from its text, its tokenizer and a seed ([`set`]), and refused where it overlaps what
//! is measured ([`overlap`]).

pub mod overlap;
pub mod set;
