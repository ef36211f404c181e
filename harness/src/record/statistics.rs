//! Statistics of activations as a store keeps them: a summary in JSON, and tables in Parquet.
//!
//! ```text
//! statistics/<id>/
//!   statistics.json        what was calibrated with what, and a summary of every site
//!   channels.parquet       ChannelRow
//!   sequences.parquet      SequenceRow
//!   top_tokens.parquet     TopTokenRow
//!   token_scales.parquet   TokenScaleRow
//!   histograms.parquet     HistogramRow
//! ```
//!
//! Rows go by site in the order of the forward pass. The residual stream after a block is stored as port `residual`.

use std::collections::BTreeMap;
use std::io::Cursor;

use polars::prelude::{
    Column, DataFrame, ParquetCompression, ParquetReader, ParquetWriter, PolarsError, SerReader,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ModelIdentity, canonical_json};

/// The port under which the residual stream after a block is stored.
pub const RESIDUAL: &str = "residual";

/// The id of the statistics of a model over a calibration set, 32 hexadecimal characters.
///
/// As for the id of a cell, hashes of content: `prefix_tokens` are the tokens of the prefix that is active, empty where
/// there is none, and `steps_before` the steps that had changed the model by then, with every default resolved.
pub fn statistics_id(
    weights: &str,
    tokenizer: &str,
    calibration_token_hash: &str,
    prefix_tokens: &[u32],
    steps_before: &[Value],
) -> String {
    let meaning = json!({
        "weights": weights,
        "tokenizer": tokenizer,
        "calibration": calibration_token_hash,
        "prefix": prefix_tokens,
        "steps": steps_before,
    });
    let mut hasher = blake3::Hasher::new_derive_key("quantscope statistics v1");
    hasher.update(canonical_json(&meaning).as_bytes());
    hasher.finalize().to_hex()[..32].to_string()
}

/// `statistics.json`, the deterministic part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatisticsResult {
    /// What [`statistics_id`] gives.
    pub id: String,
    /// The model.
    pub model: ModelIdentity,
    /// What calibrated it: corpus, samples, length, policy, hash of the token ids.
    pub calibration: Value,
    /// The prefix that was active.
    pub prefix: Option<PrefixTokens>,
    /// The steps that had changed the model before.
    pub steps: Vec<Value>,
    /// Samples seen.
    pub samples: u64,
    /// Tokens seen, those of the prefix not among them.
    pub tokens: u64,
    /// In the order of the forward pass.
    pub sites: Vec<SiteSummary>,
    /// blake3 of every table, by file name. Set when they are published.
    pub tables: BTreeMap<String, String>,
}

/// A prefix as a reader wants to see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefixTokens {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Their texts.
    pub texts: Vec<String>,
}

/// One site over all sequences. Numbers are f64 because f32 is written to JSON in two ways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteSummary {
    /// `layers.3.down_in`, `layers.3.residual`, `head_in`.
    pub site: String,
    /// Zero-based block, or `None`.
    pub layer: Option<u32>,
    /// Port.
    pub port: String,
    /// Channels.
    pub channels: u32,
    /// Greatest magnitude.
    pub absmax: f64,
    /// Mean over sequences of max / lower median of the token scales; `None` where a median is zero.
    pub ratio: Option<f64>,
    /// max / lower median over the tokens of all sequences together, within 0.8 %; `None` where the median is zero.
    pub ratio_pooled: Option<f64>,
    /// Sequences whose median is zero.
    pub zero_medians: u64,
    /// Lower median of the sequences' medians.
    pub median: f64,
    /// The tokens with the greatest scales of all sequences, descending.
    pub top: Vec<TopToken>,
}

/// A token with a great scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopToken {
    /// Index of its sample.
    pub sample: u32,
    /// Position in it.
    pub position: u32,
    /// Token id.
    pub token: u32,
    /// Its text.
    pub text: String,
    /// max over channels of |x|
    pub scale: f64,
}

/// The rows of one Parquet file.
pub trait Table: Sized {
    /// Its file's name.
    const FILE: &'static str;

    /// Rows as columns.
    fn frame(rows: &[Self]) -> DataFrame;

    /// Columns as rows.
    ///
    /// # Errors
    /// A column that is missing, of another type, or has nulls where there can be none.
    fn rows(frame: &DataFrame) -> Result<Vec<Self>, PolarsError>;

    /// Rows as the bytes of a Parquet file. The same rows give the same bytes.
    fn to_parquet(rows: &[Self]) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Snappy is compiled in whatever else is; sites repeat, and a dictionary makes them short anyway.
        ParquetWriter::new(&mut bytes)
            .with_compression(ParquetCompression::Snappy)
            .finish(&mut Self::frame(rows))
            .expect("writing Parquet to memory cannot fail");
        bytes
    }

    /// Rows of the bytes of a Parquet file.
    ///
    /// # Errors
    /// As [`Table::rows`], or bytes that are no Parquet.
    fn from_parquet(bytes: Vec<u8>) -> Result<Vec<Self>, PolarsError> {
        Self::rows(&ParquetReader::new(Cursor::new(bytes)).finish()?)
    }
}

/// A type that a column can have.
trait Field: Sized {
    fn read(column: &Column) -> Result<Vec<Self>, PolarsError>;
}

fn whole<T>(column: &Column, values: impl Iterator<Item = Option<T>>) -> Result<Vec<T>, PolarsError> {
    let missing = || PolarsError::NoData(format!("a value of `{}` is missing", column.name()).into());
    values.map(|value| value.ok_or_else(missing)).collect()
}

macro_rules! field {
    ($($type:ty, $as:ident;)*) => {$(
        impl Field for $type {
            fn read(column: &Column) -> Result<Vec<Self>, PolarsError> {
                whole(column, column.$as()?.iter())
            }
        }
        impl Field for Option<$type> {
            fn read(column: &Column) -> Result<Vec<Self>, PolarsError> {
                Ok(column.$as()?.iter().collect())
            }
        }
    )*};
}

field! {
    u32, u32;
    u64, u64;
    f32, f32;
    f64, f64;
}

impl Field for String {
    fn read(column: &Column) -> Result<Vec<Self>, PolarsError> {
        whole(column, column.str()?.iter().map(|text| text.map(str::to_owned)))
    }
}

macro_rules! table {
    (
        $(#[$doc:meta])* $name:ident in $file:literal {
            $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            /// `layers.3.down_in`, `layers.3.residual`, `head_in`.
            pub site: String,
            /// Zero-based block, or `None`.
            pub layer: Option<u32>,
            /// Port.
            pub port: String,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Table for $name {
            const FILE: &'static str = $file;

            fn frame(rows: &[Self]) -> DataFrame {
                let columns = vec![
                    Column::new("site".into(), rows.iter().map(|r| r.site.as_str()).collect::<Vec<&str>>()),
                    Column::new("layer".into(), rows.iter().map(|r| r.layer).collect::<Vec<Option<u32>>>()),
                    Column::new("port".into(), rows.iter().map(|r| r.port.as_str()).collect::<Vec<&str>>()),
                    $(Column::new(
                        stringify!($field).into(),
                        rows.iter().map(|r| r.$field.clone()).collect::<Vec<$type>>(),
                    ),)*
                ];
                DataFrame::new(rows.len(), columns).expect("columns of the same rows, named apart")
            }

            fn rows(frame: &DataFrame) -> Result<Vec<Self>, PolarsError> {
                let mut site = <String as Field>::read(frame.column("site")?)?.into_iter();
                let mut layer = <Option<u32> as Field>::read(frame.column("layer")?)?.into_iter();
                let mut port = <String as Field>::read(frame.column("port")?)?.into_iter();
                $(let mut $field = <$type as Field>::read(frame.column(stringify!($field))?)?.into_iter();)*
                let row = || {
                    Some(Self {
                        site: site.next()?,
                        layer: layer.next()?,
                        port: port.next()?,
                        $($field: $field.next()?,)*
                    })
                };
                Ok(std::iter::from_fn(row).collect())
            }
        }
    };
}

table! {
    /// One channel of a site.
    ChannelRow in "channels.parquet" {
        /// Channel.
        channel: u32,
        /// Smallest value.
        min: f32,
        /// Greatest value.
        max: f32,
        /// Greatest magnitude.
        absmax: f32,
        /// Mean magnitude.
        mean_abs: f32,
    }
}

table! {
    /// One sequence at a site.
    SequenceRow in "sequences.parquet" {
        /// Index of the sample.
        sample: u32,
        /// Greatest token scale.
        max: f32,
        /// Lower median of the token scales.
        median: f32,
        /// max / median; `None` where the median is zero.
        ratio: Option<f64>,
    }
}

table! {
    /// One of the tokens with the greatest scales of a sequence at a site.
    TopTokenRow in "top_tokens.parquet" {
        /// Index of the sample.
        sample: u32,
        /// 0 for the greatest scale of the sequence.
        rank: u32,
        /// Position in the sample.
        position: u32,
        /// Token id.
        token: u32,
        /// Its text.
        text: String,
        /// max over channels of |x|
        scale: f32,
    }
}

table! {
    /// One token at a site, of the first samples only.
    TokenScaleRow in "token_scales.parquet" {
        /// Index of the sample.
        sample: u32,
        /// Position in it.
        position: u32,
        /// Token id.
        token: u32,
        /// Its text.
        text: String,
        /// max over channels of |x|
        scale: f32,
    }
}

table! {
    /// One bin of the histogram of |x| of a site: `lower ≤ |x| < upper`; both are 0 for the bin of zeros. Empty bins are
    /// left out.
    HistogramRow in "histograms.parquet" {
        /// Lower edge.
        lower: f64,
        /// Upper edge; infinite for the last bin.
        upper: f64,
        /// Values in it.
        count: u64,
    }
}

/// All tables of one set of statistics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatisticsRows {
    /// By site and channel.
    pub channels: Vec<ChannelRow>,
    /// By site and sample.
    pub sequences: Vec<SequenceRow>,
    /// By site, sample and rank.
    pub top_tokens: Vec<TopTokenRow>,
    /// By site, sample and position.
    pub token_scales: Vec<TokenScaleRow>,
    /// By site and bin.
    pub histograms: Vec<HistogramRow>,
}

impl StatisticsRows {
    /// The bytes of every table, by file name.
    pub fn files(&self) -> BTreeMap<&'static str, Vec<u8>> {
        fn file<T: Table>(rows: &[T]) -> (&'static str, Vec<u8>) {
            (T::FILE, T::to_parquet(rows))
        }
        BTreeMap::from([
            file(&self.channels),
            file(&self.sequences),
            file(&self.top_tokens),
            file(&self.token_scales),
            file(&self.histograms),
        ])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_input_changes_the_id() {
        let step = json!({ "step": "smooth", "alpha": 0.5 });
        let ids = [
            statistics_id("w", "t", "c", &[], &[]),
            statistics_id("t", "w", "c", &[], &[]),
            statistics_id("w", "t", "d", &[], &[]),
            statistics_id("w", "t", "c", &[1], &[]),
            statistics_id("w", "t", "c", &[1, 2], &[]),
            statistics_id("w", "t", "c", &[2, 1], &[]),
            statistics_id("w", "t", "c", &[], std::slice::from_ref(&step)),
            super::super::id::cell_id("w", "t", &[], Some("c"), None),
        ];
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }

    #[test]
    fn rows_survive_parquet_to_the_same_bytes() {
        let row = |lower: f64, upper, layer: Option<u32>| HistogramRow {
            site: layer.map_or("head_in".into(), |l| format!("layers.{l}.down_in")),
            layer,
            port: "down_in".into(),
            lower,
            upper,
            count: u64::MAX,
        };
        let rows = [row(0.1 + 0.2, f64::INFINITY, Some(7)), row(-0.0, 1e-300, None)];
        let bytes = HistogramRow::to_parquet(&rows);
        assert_eq!(bytes, HistogramRow::to_parquet(&rows));
        assert_eq!(HistogramRow::from_parquet(bytes.clone()).unwrap(), rows);
        assert!(HistogramRow::from_parquet(bytes[..bytes.len() / 2].to_vec()).is_err());
        // Another table's bytes.
        assert!(ChannelRow::from_parquet(bytes).is_err());
        assert_eq!(HistogramRow::from_parquet(HistogramRow::to_parquet(&[])).unwrap(), []);
    }
}
