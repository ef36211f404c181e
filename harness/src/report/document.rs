//! The generated part of `results/<name>/README.md`.
//!
//! Nothing in it may differ between two runs on one machine: no times, no dates, no revision, no paths of the machine.

use std::collections::BTreeSet;

use super::drawing::Drawing;
use super::pivot;
use super::rows::{self, Row};
use super::sections;
use super::table::Table;
use super::tables::TableFormat;
use super::tables::markdown::{Markdown, escape};
use crate::record::Contents;

/// The folder of the figures, inside the results folder.
pub const FIGURES: &str = "figures";

/// The tables of a report, section by section.
pub fn tables(contents: &Contents) -> Vec<Table> {
    sections::tables(contents)
}

/// The block, without its markers. `folder` is the name of the results folder inside `results/`.
pub fn block(contents: &Contents, folder: &str, drawings: &[Drawing]) -> String {
    let manifest = &contents.manifest;
    let mut parts = vec![
        "<!-- Made by the command below. Text between the markers is overwritten, text outside of them is kept. -->".to_owned(),
        format!("```sh\ncargo run --release -- report results/{folder}\n```"),
    ];
    if !manifest.question.is_empty() {
        parts.push(format!("**Question.** {}", prose(&manifest.question)));
    }
    if !manifest.reference.is_empty() {
        parts.push(format!("**Reference.** {}", prose(&manifest.reference)));
    }
    if let Some(analysis) = manifest.analysis.as_deref().filter(|analysis| !analysis.trim().is_empty()) {
        parts.push(format!("## Analysis\n\n{}", prose(analysis)));
    }
    parts.push("## Results".to_owned());
    parts.extend(tables(contents).iter().map(|table| Markdown.write(table).trim_end().to_owned()));
    parts.push(
        "Every measurement with all its digits: [summary.csv](summary.csv), [summary.parquet](summary.parquet).".to_owned(),
    );
    for drawing in drawings {
        let (stem, caption) = (&drawing.stem, &drawing.caption);
        // Who cannot see the picture hears what it is, and reads the rest of the caption below it as everybody does.
        let what = caption.split_once(". ").map_or(caption.as_str(), |(what, _)| what);
        parts.push(format!(
            "![{}]({FIGURES}/{stem}.svg)\n\n{} ([PNG]({FIGURES}/{stem}.png))",
            escape(what),
            escape(caption)
        ));
    }
    let notes: Vec<String> = manifest.notes.iter().cloned().chain(rows::warnings(contents)).collect();
    if !notes.is_empty() {
        let lines: Vec<String> =
            notes.iter().map(|note| format!("- {}", prose(note).replace('\n', " "))).collect();
        parts.push(format!("## Notes\n\n{}", lines.join("\n")));
    }
    parts.push(format!("*{}*", escape(&provenance(contents))));
    parts.join("\n\n") + "\n"
}

/// Which experiment, how much of it, by which version of the program, on which devices.
fn provenance(contents: &Contents) -> String {
    let manifest = &contents.manifest;
    let rows = rows::rows(contents);
    let planned = manifest.cells.len();
    let complete = |id: &str| rows.iter().filter(|row| row.cell.id == id).all(|row| row.value().is_some());
    let measured = manifest.cells.iter().filter(|cell| complete(&cell.id)).count();
    let failed = pivot::distinct(rows.iter().filter(|row| is_failed(row)).map(|row| &row.cell.id)).len();

    let ids: BTreeSet<&str> = manifest.cells.iter().map(|cell| cell.id.as_str()).collect();
    let executions: Vec<_> = contents
        .measurements
        .iter()
        .filter(|envelope| ids.contains(envelope.result.cell.as_str()))
        .map(|envelope| &envelope.execution)
        .collect();
    let all = |pick: fn(&crate::record::Execution) -> &str| -> Vec<&str> {
        let values: BTreeSet<&str> =
            executions.iter().map(|e| pick(e)).filter(|value| !value.is_empty()).collect();
        values.into_iter().collect()
    };
    let (versions, devices) = (all(|e| &e.version), all(|e| &e.device));

    let mut text = format!("{measured} of {planned} cells measured");
    if failed > 0 {
        text.push_str(&format!(", {failed} failed"));
    }
    if !manifest.file.is_empty() {
        text.push_str(&format!(", from {}", file(&manifest.file)));
    }
    if !versions.is_empty() {
        text.push_str(&format!("; quantscope {}", versions.join(", ")));
    }
    if !devices.is_empty() {
        text.push_str(&format!("; on {}", devices.join("; ")));
    }
    text.push('.');
    text
}

fn is_failed(row: &Row<'_>) -> bool {
    matches!(row.outcome, rows::Outcome::Failed(_))
}

/// The experiment file's path from `experiments/` on, or its name: where it lies on this machine is nobody's business.
fn file(path: &str) -> &str {
    let path = path.trim_start_matches("./");
    match path.rfind("experiments/") {
        Some(at) if at == 0 || path.as_bytes()[at - 1] == b'/' => &path[at..],
        _ => path.rsplit('/').next().unwrap_or(path),
    }
}

/// Prose as its author wrote it, Markdown included, except that it cannot end the block.
fn prose(text: &str) -> String {
    text.trim().replace("<!--", "&lt;!--")
}
