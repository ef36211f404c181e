//! A task's items as a store keeps them: one Parquet file per cell and task, one row per request, from which every metric
//! and every comparison can be made again without a model.
//!
//! ```text
//! cells/<cell id>/items/<key>.parquet
//! ```

use std::io::Cursor;

use polars::prelude::{
    BooleanChunked, Column, DataFrame, Float64Chunked, ParquetCompression, ParquetReader, ParquetWriter,
    PolarsError, SerReader, StringChunked, UInt32Chunked,
};

/// One request of an item, and what the model said to it.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemRow {
    /// The item's id in its data set.
    pub item: String,
    /// The part of the task that it belongs to.
    pub part: Option<String>,
    /// blake3 of the item's fields.
    pub document: String,
    /// Which request of the item, from 0: one per choice.
    pub request: u32,
    /// blake3 of the request's texts.
    pub request_hash: String,
    /// ln p of the continuation, or of the whole text.
    pub log_likelihood: f64,
    /// Whether greedy decoding gives it.
    pub greedy: bool,
    /// Tokens scored.
    pub tokens: u32,
    /// Characters of the choice; of the text, where a text is scored.
    pub characters: u32,
    /// UTF-8 bytes of the choice; of the original text, where a text is scored.
    pub bytes: u32,
    /// Words of the original text, where a text is scored.
    pub words: Option<u32>,
    /// The right choice, where there are several.
    pub gold: Option<u32>,
    /// The choice with the highest log-likelihood.
    pub chosen: Option<u32>,
    /// The choice with the highest log-likelihood per character.
    pub chosen_per_character: Option<u32>,
    /// The choice with the highest log-likelihood per byte.
    pub chosen_per_byte: Option<u32>,
    /// Tokens cut off on the left.
    pub truncated: u32,
    /// Whether a merge across the boundary swallowed the continuation.
    pub merged: bool,
}

/// The rows as Parquet; the same rows give the same bytes.
pub fn to_parquet(rows: &[ItemRow]) -> Vec<u8> {
    let words = |pick: fn(&ItemRow) -> &str| rows.iter().map(pick).collect::<Vec<&str>>();
    let counts = |pick: fn(&ItemRow) -> u32| rows.iter().map(pick).collect::<Vec<u32>>();
    let options = |pick: fn(&ItemRow) -> Option<u32>| rows.iter().map(pick).collect::<Vec<Option<u32>>>();
    let columns = vec![
        Column::new("item".into(), words(|r| &r.item)),
        Column::new("part".into(), rows.iter().map(|r| r.part.as_deref()).collect::<Vec<Option<&str>>>()),
        Column::new("document".into(), words(|r| &r.document)),
        Column::new("request".into(), counts(|r| r.request)),
        Column::new("request_hash".into(), words(|r| &r.request_hash)),
        Column::new("log_likelihood".into(), rows.iter().map(|r| r.log_likelihood).collect::<Vec<f64>>()),
        Column::new("greedy".into(), rows.iter().map(|r| r.greedy).collect::<Vec<bool>>()),
        Column::new("tokens".into(), counts(|r| r.tokens)),
        Column::new("characters".into(), counts(|r| r.characters)),
        Column::new("bytes".into(), counts(|r| r.bytes)),
        Column::new("words".into(), options(|r| r.words)),
        Column::new("gold".into(), options(|r| r.gold)),
        Column::new("chosen".into(), options(|r| r.chosen)),
        Column::new("chosen_per_character".into(), options(|r| r.chosen_per_character)),
        Column::new("chosen_per_byte".into(), options(|r| r.chosen_per_byte)),
        Column::new("truncated".into(), counts(|r| r.truncated)),
        Column::new("merged".into(), rows.iter().map(|r| r.merged).collect::<Vec<bool>>()),
    ];
    let mut frame = DataFrame::new(rows.len(), columns).expect("columns of the same rows, named apart");
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Snappy)
        .finish(&mut frame)
        .expect("writing to memory cannot fail");
    bytes
}

/// The rows of a Parquet file that [`to_parquet`] wrote.
///
/// # Errors
/// Bytes that are no such file.
pub fn from_parquet(bytes: Vec<u8>) -> Result<Vec<ItemRow>, PolarsError> {
    let frame = ParquetReader::new(Cursor::new(bytes)).finish()?;
    let texts = |name: &str| -> Result<StringChunked, PolarsError> { Ok(frame.column(name)?.str()?.clone()) };
    let counts =
        |name: &str| -> Result<UInt32Chunked, PolarsError> { Ok(frame.column(name)?.u32()?.clone()) };
    let flags =
        |name: &str| -> Result<BooleanChunked, PolarsError> { Ok(frame.column(name)?.bool()?.clone()) };
    let log_likelihoods: Float64Chunked = frame.column("log_likelihood")?.f64()?.clone();
    let (item, part, document) = (texts("item")?, texts("part")?, texts("document")?);
    let (request, request_hash) = (counts("request")?, texts("request_hash")?);
    let (greedy, merged) = (flags("greedy")?, flags("merged")?);
    let (tokens, characters, bytes) = (counts("tokens")?, counts("characters")?, counts("bytes")?);
    let (words, gold, chosen) = (counts("words")?, counts("gold")?, counts("chosen")?);
    let per_character = counts("chosen_per_character")?;
    let (per_byte, truncated) = (counts("chosen_per_byte")?, counts("truncated")?);
    let text = |column: &StringChunked, i: usize| column.get(i).unwrap_or_default().to_string();
    Ok((0..frame.height())
        .map(|i| ItemRow {
            item: text(&item, i),
            part: part.get(i).map(str::to_string),
            document: text(&document, i),
            request: request.get(i).unwrap_or_default(),
            request_hash: text(&request_hash, i),
            log_likelihood: log_likelihoods.get(i).unwrap_or(f64::NAN),
            greedy: greedy.get(i).unwrap_or_default(),
            tokens: tokens.get(i).unwrap_or_default(),
            characters: characters.get(i).unwrap_or_default(),
            bytes: bytes.get(i).unwrap_or_default(),
            words: words.get(i),
            gold: gold.get(i),
            chosen: chosen.get(i),
            chosen_per_character: per_character.get(i),
            chosen_per_byte: per_byte.get(i),
            truncated: truncated.get(i).unwrap_or_default(),
            merged: merged.get(i).unwrap_or_default(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were_and_bytes_are_the_same() {
        let row = |i: u32| ItemRow {
            item: format!("item {i}"),
            part: (i > 1).then(|| "anatomy".to_string()),
            document: "d".into(),
            request: i,
            request_hash: "r".into(),
            log_likelihood: -1.0 / f64::from(i + 3),
            greedy: i == 1,
            tokens: 3,
            characters: 4,
            bytes: 5,
            words: (i == 2).then_some(9),
            gold: Some(1),
            chosen: (i != 0).then_some(i),
            chosen_per_character: None,
            chosen_per_byte: Some(0),
            truncated: 0,
            merged: i == 2,
        };
        let rows: Vec<ItemRow> = (0..3).map(row).collect();
        assert_eq!(from_parquet(to_parquet(&rows)).unwrap(), rows);
        assert_eq!(to_parquet(&rows), to_parquet(&rows));
    }
}
