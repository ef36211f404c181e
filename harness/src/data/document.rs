//! How a corpus file becomes a text and its documents: rows, tags, lines, JSON lines, Parquet.

use std::ops::Range;
use std::path::Path;

use polars::prelude::{ParquetReader, SerReader};

use super::corpus::{CorpusError, Extent};

/// A text and the byte ranges of its documents.
pub type Parsed = (String, Vec<Range<usize>>);

/// What stands between the documents of a corpus file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing: one document, the text as it is.
    Whole,
    /// Each line is a document; the text as it is.
    Lines,
    /// `<doc …>` and `</doc>` on lines of their own, which do not enter the text.
    DocTags,
    /// `<|endoftext|>` between documents, which does not enter the text.
    EndOfText,
    /// The raw file of WikiText: rows as the `datasets` library reads them, of which the full split has `rows`.
    WikiRows {
        /// Rows of the full split.
        rows: usize,
    },
}

/// Between the documents of a text whose separators were taken out.
const BETWEEN: &str = "\n\n";

/// Takes a file's text apart.
pub fn parse(text: String, form: Form) -> Parsed {
    match form {
        Form::Whole => {
            let whole = 0..text.len();
            (text, vec![whole])
        }
        Form::Lines => {
            let mut start = 0;
            let mut documents = Vec::new();
            for line in text.split_inclusive('\n') {
                let end = start + line.trim_end_matches(['\r', '\n']).len();
                if !line.trim().is_empty() {
                    documents.push(start..end);
                }
                start += line.len();
            }
            (text, documents)
        }
        Form::DocTags => join(text.split("</doc>").map(|document| {
            let document = document.trim_start();
            match document.starts_with("<doc ").then(|| document.split_once('\n')).flatten() {
                Some((_tag, article)) => article,
                None => document,
            }
        })),
        Form::EndOfText => join(text.split("<|endoftext|>")),
        Form::WikiRows { .. } => {
            let rows = rows(&text);
            join_rows(rows.iter().map(String::as_str))
        }
    }
}

/// Joins trimmed, non-empty documents.
pub(super) fn join<'a>(documents: impl Iterator<Item = &'a str>) -> Parsed {
    let mut text = String::new();
    let mut ranges = Vec::new();
    for document in documents.map(str::trim).filter(|document| !document.is_empty()) {
        if !text.is_empty() {
            text.push_str(BETWEEN);
        }
        ranges.push(text.len()..text.len() + document.len());
        text.push_str(document);
    }
    (text, ranges)
}

/// The rows that the `datasets` script makes of a raw WikiText file: Python's text mode turns `\r\n` into `\n`; a line
/// of white space only becomes an empty row, any other keeps its line end.
fn rows(text: &str) -> Vec<String> {
    // `str.strip` of Python also takes the four information separators.
    let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    text.split_inclusive('\n')
        .map(|line| if line.chars().all(is_space) { String::new() } else { line.to_owned() })
        .collect()
}

/// Whether a raw WikiText file is the full split, the split without its blank rows, or a part.
pub fn extent_of_rows(text: &str, full: usize) -> Extent {
    // Rows with words in the full test and training splits.
    const WITH_WORDS: [(usize, usize); 2] = [(4358, 2891), (36718, 23767)];
    let rows = rows(text);
    let words = rows.iter().filter(|row| !row.is_empty()).count();
    match WITH_WORDS.iter().find(|(all, _)| *all == full) {
        Some(_) if rows.len() == full => Extent::Full,
        Some((_, with_words)) if rows.len() == words && words == *with_words => {
            Extent::Altered("without blank rows")
        }
        _ => Extent::Excerpt,
    }
}

/// Joins rows with a blank line, as the papers' code does; a document begins at each article's title row.
pub fn join_rows<'a>(rows: impl Iterator<Item = &'a str>) -> Parsed {
    let mut text = String::new();
    let mut starts = Vec::new();
    for (i, row) in rows.enumerate() {
        if i > 0 {
            text.push_str(BETWEEN);
        }
        let title = row.trim();
        if title.len() > 4 && title.starts_with("= ") && title.ends_with(" =") && !title.starts_with("= =") {
            starts.push(text.len());
        }
        text.push_str(row);
    }
    // Rows before the first title belong to the first document.
    if starts.first() != Some(&0) {
        match starts.first_mut() {
            Some(first) if text[..*first].trim().is_empty() => *first = 0,
            _ => starts.insert(0, 0),
        }
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let documents = starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect();
    (text, documents)
}

/// The texts of JSON lines, one document a line, joined with a blank line; blank lines are skipped.
///
/// # Errors
///
/// [`CorpusError::Line`] with the line's number.
pub fn parse_json_lines(text: &str, field: &str, path: &Path) -> Result<Parsed, CorpusError> {
    let mut documents = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |reason: String| CorpusError::Line { path: path.to_owned(), line: i + 1, reason };
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|error| wrong(format!("no JSON ({error})")))?;
        let object = value.as_object().ok_or_else(|| wrong("no JSON object".to_owned()))?;
        let found = object.get(field).ok_or_else(|| {
            let fields: Vec<&str> = object.keys().map(String::as_str).collect();
            wrong(format!("no field `{field}`; it has {}", fields.join(", ")))
        })?;
        let document = found.as_str().ok_or_else(|| wrong(format!("the field `{field}` is no string")))?;
        documents.push(document.to_owned());
    }
    Ok(join(documents.iter().map(String::as_str)))
}

/// The column `text` of a Parquet file; a missing value is an empty row.
///
/// # Errors
///
/// [`CorpusError::Read`] and [`CorpusError::Parquet`].
pub fn read_parquet(path: &Path) -> Result<Vec<String>, CorpusError> {
    let unreadable = |error: polars::prelude::PolarsError| CorpusError::Parquet {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let file =
        std::fs::File::open(path).map_err(|source| CorpusError::Read { path: path.to_owned(), source })?;
    let frame =
        ParquetReader::new(file).with_columns(Some(vec!["text".to_owned()])).finish().map_err(unreadable)?;
    let column = frame.column("text").map_err(unreadable)?;
    let texts = column.str().map_err(unreadable)?;
    Ok((0..texts.len()).map(|i| texts.get(i).unwrap_or_default().to_owned()).collect())
}
