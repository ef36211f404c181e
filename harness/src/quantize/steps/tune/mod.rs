//! `tune`: training of what the grids round; one file per method.

pub mod bisup_style;
