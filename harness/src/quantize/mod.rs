//! Quantization: grids, steps, and what applies them to groups of linear layers. Knows no model family.

pub mod grid;
pub mod steps;

/// The module documentation of a source file, as Markdown: the page that `quantscope explain` prints.
pub fn page(source: &str) -> String {
    source
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.trim_start_matches("//!").strip_prefix(' ').unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}
