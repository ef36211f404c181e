//! What rounding every linear group costs at its output, as a store keeps it: three Parquet files per evaluation, from which
//! tables and figures are made without a model.
//!
//! ```text
//! cells/<cell id>/layers/<key>.parquet             a row per block, port and transform
//! cells/<cell id>/layers/<key>.surface.parquet     one group's magnitudes by token and channel, under every transform
//! cells/<cell id>/layers/<key>.token.parquet       that group's token with the greatest value, and its codes
//! ```

use std::io::Cursor;

use polars::prelude::{
    Column, DataFrame, ParquetCompression, ParquetReader, ParquetWriter, PolarsError, SerReader,
};

/// The bits whose grids [`TokenRow`] shows.
pub const TOKEN_BITS: [u8; 4] = [3, 4, 6, 8];

/// A group of one block under one transform. E, D and the rest are defined in `docs/metrics.md`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerRow {
    /// Zero-based block.
    pub layer: u32,
    /// As in recipes: `attn_in`, `o_in`, `mlp_in`, `down_in`.
    pub port: String,
    /// The linears that count, `k_proj` or `q_proj, k_proj, v_proj`.
    pub module: String,
    /// `none`, `smooth`, `rotate`, `hybrid`, `reverse`.
    pub transform: String,
    /// Tokens of the activation.
    pub tokens: u32,
    /// Its channels.
    pub channels: u32,
    /// Output channels of the weights.
    pub outputs: u32,
    /// E.
    pub error: f64,
    /// The estimate of E by the steps of the grid.
    pub estimate: f64,
    /// The estimate by the steps that the released code puts into it.
    pub estimate_released: f64,
    /// ‖X·Wᵀ‖², to which errors of different groups can be compared.
    pub output_energy: f64,
    /// D of the activation.
    pub x_difficulty: f64,
    /// D·√d/‖X‖.
    pub x_scale_free: f64,
    /// Kurtosis of the activation's values.
    pub x_kurtosis: f64,
    /// max |X|.
    pub x_largest: f64,
    /// ‖X‖.
    pub x_norm: f64,
    /// D of the weights.
    pub w_difficulty: f64,
    /// D·√d/‖W‖.
    pub w_scale_free: f64,
    /// Kurtosis of the weights.
    pub w_kurtosis: f64,
    /// max |W|.
    pub w_largest: f64,
    /// ‖W‖.
    pub w_norm: f64,
    /// Greatest token scale over the lower median; none where that is zero.
    pub token_ratio: Option<f64>,
}

/// The greatest magnitude in a patch of neighbouring tokens and channels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SurfaceRow {
    /// The transform.
    pub transform: String,
    /// The patch's first token.
    pub token: u32,
    /// The patch's first channel.
    pub channel: u32,
    /// max |X|
    pub magnitude: f32,
}

/// A channel of the token with the greatest value; channels stand in the order of their magnitudes, greatest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenRow {
    /// The transform.
    pub transform: String,
    /// The token's index among all that were looked at.
    pub token: u32,
    /// How many channels are greater.
    pub rank: u32,
    /// The channel.
    pub channel: u32,
    /// |x|
    pub magnitude: f32,
    /// |x| rounded on the grids of [`TOKEN_BITS`], with the token's own scale.
    pub rounded: [f32; 4],
}

/// The three tables of one evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerTables {
    /// By block, port, transform.
    pub rows: Vec<LayerRow>,
    /// By transform, token, channel.
    pub surface: Vec<SurfaceRow>,
    /// By transform, rank.
    pub token: Vec<TokenRow>,
}

/// Names of the numbers of a [`LayerRow`] and where they stand in it.
type Number = (&'static str, fn(&LayerRow) -> f64, fn(&mut LayerRow, f64));

macro_rules! numbers {
    ($($field:ident),* $(,)?) => {
        [$((stringify!($field), |row: &LayerRow| row.$field, |row: &mut LayerRow, value| row.$field = value)),*]
    };
}

const NUMBERS: [Number; 14] = numbers![
    error,
    estimate,
    estimate_released,
    output_energy,
    x_difficulty,
    x_scale_free,
    x_kurtosis,
    x_largest,
    x_norm,
    w_difficulty,
    w_scale_free,
    w_kurtosis,
    w_largest,
    w_norm,
];

fn parquet(height: usize, columns: Vec<Column>) -> Vec<u8> {
    let mut frame = DataFrame::new(height, columns).expect("columns of the same rows, named apart");
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Snappy)
        .finish(&mut frame)
        .expect("writing to memory cannot fail");
    bytes
}

fn column<R, T>(name: &str, rows: &[R], pick: impl Fn(&R) -> T) -> Column
where
    Vec<T>: IntoColumn,
{
    rows.iter().map(pick).collect::<Vec<T>>().named(name)
}

/// Values that become a column.
trait IntoColumn {
    fn named(self, name: &str) -> Column;
}

macro_rules! into_column {
    ($($type:ty),*) => {
        $(impl IntoColumn for Vec<$type> {
            fn named(self, name: &str) -> Column {
                Column::new(name.into(), self)
            }
        })*
    };
}

into_column!(u32, f32, f64, Option<f64>, String);

/// The name of a rounded column: `rounded_4`.
fn rounded(bits: u8) -> String {
    format!("rounded_{bits}")
}

impl LayerTables {
    /// The tables as Parquet, in the order of the fields; the same rows give the same bytes.
    pub fn to_parquet(&self) -> [Vec<u8>; 3] {
        let rows = &self.rows;
        let mut columns = vec![
            column("layer", rows, |r| r.layer),
            column("port", rows, |r| r.port.clone()),
            column("module", rows, |r| r.module.clone()),
            column("transform", rows, |r| r.transform.clone()),
            column("tokens", rows, |r| r.tokens),
            column("channels", rows, |r| r.channels),
            column("outputs", rows, |r| r.outputs),
        ];
        columns.extend(NUMBERS.map(|(name, get, _)| column(name, rows, get)));
        columns.push(column("token_ratio", rows, |r| r.token_ratio));
        let surface = vec![
            column("transform", &self.surface, |r| r.transform.clone()),
            column("token", &self.surface, |r| r.token),
            column("channel", &self.surface, |r| r.channel),
            column("magnitude", &self.surface, |r| r.magnitude),
        ];
        let mut token = vec![
            column("transform", &self.token, |r| r.transform.clone()),
            column("token", &self.token, |r| r.token),
            column("rank", &self.token, |r| r.rank),
            column("channel", &self.token, |r| r.channel),
            column("magnitude", &self.token, |r| r.magnitude),
        ];
        let places = TOKEN_BITS.iter().enumerate();
        token.extend(places.map(|(i, bits)| column(&rounded(*bits), &self.token, |r| r.rounded[i])));
        [parquet(rows.len(), columns), parquet(self.surface.len(), surface), parquet(self.token.len(), token)]
    }

    /// The tables of files that [`LayerTables::to_parquet`] wrote.
    ///
    /// # Errors
    /// Bytes that are no such files.
    pub fn from_parquet([rows, surface, token]: [Vec<u8>; 3]) -> Result<Self, PolarsError> {
        let frame = Read::new(rows)?;
        let mut tables = Self { rows: vec![LayerRow::default(); frame.height()], ..Self::default() };
        frame.whole("layer", &mut tables.rows, |row, value| row.layer = value)?;
        frame.words("port", &mut tables.rows, |row, value| row.port = value)?;
        frame.words("module", &mut tables.rows, |row, value| row.module = value)?;
        frame.words("transform", &mut tables.rows, |row, value| row.transform = value)?;
        frame.whole("tokens", &mut tables.rows, |row, value| row.tokens = value)?;
        frame.whole("channels", &mut tables.rows, |row, value| row.channels = value)?;
        frame.whole("outputs", &mut tables.rows, |row, value| row.outputs = value)?;
        for (name, _, set) in NUMBERS {
            let numbers = frame.0.column(name)?.f64()?;
            for (i, row) in tables.rows.iter_mut().enumerate() {
                set(row, numbers.get(i).unwrap_or(f64::NAN));
            }
        }
        let ratios = frame.0.column("token_ratio")?.f64()?;
        for (i, row) in tables.rows.iter_mut().enumerate() {
            row.token_ratio = ratios.get(i);
        }

        let frame = Read::new(surface)?;
        tables.surface = vec![SurfaceRow::default(); frame.height()];
        frame.words("transform", &mut tables.surface, |row, value| row.transform = value)?;
        frame.whole("token", &mut tables.surface, |row, value| row.token = value)?;
        frame.whole("channel", &mut tables.surface, |row, value| row.channel = value)?;
        frame.numbers("magnitude", &mut tables.surface, |row, value| row.magnitude = value)?;

        let frame = Read::new(token)?;
        tables.token = vec![TokenRow::default(); frame.height()];
        frame.words("transform", &mut tables.token, |row, value| row.transform = value)?;
        frame.whole("token", &mut tables.token, |row, value| row.token = value)?;
        frame.whole("rank", &mut tables.token, |row, value| row.rank = value)?;
        frame.whole("channel", &mut tables.token, |row, value| row.channel = value)?;
        frame.numbers("magnitude", &mut tables.token, |row, value| row.magnitude = value)?;
        for (i, bits) in TOKEN_BITS.into_iter().enumerate() {
            frame.numbers(&rounded(bits), &mut tables.token, |row, value| row.rounded[i] = value)?;
        }
        Ok(tables)
    }
}

/// A file being read, column by column, into rows.
struct Read(DataFrame);

impl Read {
    fn new(bytes: Vec<u8>) -> Result<Self, PolarsError> {
        Ok(Self(ParquetReader::new(Cursor::new(bytes)).finish()?))
    }

    fn height(&self) -> usize {
        self.0.height()
    }

    fn words<R>(&self, name: &str, rows: &mut [R], set: impl Fn(&mut R, String)) -> Result<(), PolarsError> {
        let column = self.0.column(name)?.str()?;
        let values = rows.iter_mut().enumerate();
        values.for_each(|(i, row)| set(row, column.get(i).unwrap_or_default().to_string()));
        Ok(())
    }

    fn whole<R>(&self, name: &str, rows: &mut [R], set: impl Fn(&mut R, u32)) -> Result<(), PolarsError> {
        let column = self.0.column(name)?.u32()?;
        rows.iter_mut().enumerate().for_each(|(i, row)| set(row, column.get(i).unwrap_or_default()));
        Ok(())
    }

    fn numbers<R>(&self, name: &str, rows: &mut [R], set: impl Fn(&mut R, f32)) -> Result<(), PolarsError> {
        let column = self.0.column(name)?.f32()?;
        rows.iter_mut().enumerate().for_each(|(i, row)| set(row, column.get(i).unwrap_or(f32::NAN)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_come_back_as_they_were_and_bytes_are_the_same() {
        let row = |i: u32| {
            let mut row = LayerRow {
                layer: i,
                port: "down_in".into(),
                module: "down_proj".into(),
                transform: "hybrid".into(),
                tokens: 128,
                channels: 1536,
                outputs: 576,
                token_ratio: (i > 0).then_some(51.5),
                ..LayerRow::default()
            };
            for (n, (_, _, set)) in NUMBERS.iter().enumerate() {
                set(&mut row, 1.0 / (f64::from(i) + n as f64 + 3.0));
            }
            row
        };
        let surface = |i| SurfaceRow { transform: "none".into(), token: i, channel: 7 * i, magnitude: 0.3 };
        let token = |i: u32| TokenRow {
            transform: "rotate".into(),
            token: 3,
            rank: i,
            channel: 9 - i,
            magnitude: 1.5,
            rounded: [0.1, 0.2, 0.3, i as f32],
        };
        let tables = LayerTables {
            rows: (0..3).map(row).collect(),
            surface: (0..2).map(surface).collect(),
            token: (0..4).map(token).collect(),
        };
        assert_eq!(LayerTables::from_parquet(tables.to_parquet()).unwrap(), tables);
        assert_eq!(tables.to_parquet(), tables.to_parquet());
    }
}
