//! Rows of a Parquet file as JSON objects.

use std::path::Path;

use polars::prelude::{AnyValue, ParquetReader, PolarsError, SerReader};
use serde_json::{Map, Value};

use super::ItemError;

/// A row and its number, from 1.
type Row = (usize, Map<String, Value>);

/// The rows of a file.
///
/// # Errors
/// [`ItemError::Read`] and [`ItemError::Parquet`].
pub(super) fn read(path: &Path) -> Result<Vec<Row>, ItemError> {
    let unreadable =
        |error: PolarsError| ItemError::Parquet { path: path.to_owned(), reason: error.to_string() };
    let file =
        std::fs::File::open(path).map_err(|source| ItemError::Read { path: path.to_owned(), source })?;
    let frame = ParquetReader::new(file).finish().map_err(unreadable)?;
    let mut rows: Vec<Row> = (1..=frame.height()).map(|row| (row, Map::new())).collect();
    for column in frame.columns() {
        for (i, (_, row)) in rows.iter_mut().enumerate() {
            let value = json(column.get(i).map_err(unreadable)?).map_err(|reason| ItemError::Parquet {
                path: path.to_owned(),
                reason: format!("column `{}`: {reason}", column.name()),
            })?;
            row.insert(column.name().to_string(), value);
        }
    }
    Ok(rows)
}

fn json(value: AnyValue<'_>) -> Result<Value, String> {
    Ok(match value.clone() {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(bit) => bit.into(),
        AnyValue::String(text) => text.into(),
        AnyValue::StringOwned(text) => text.as_str().into(),
        AnyValue::Float32(number) => f64::from(number).into(),
        AnyValue::Float64(number) => number.into(),
        AnyValue::List(series) => {
            let items = (0..series.len()).map(|i| {
                let item = series.get(i).map_err(|error| error.to_string())?;
                json(item)
            });
            Value::Array(items.collect::<Result<_, String>>()?)
        }
        AnyValue::Struct(_, _, fields) => {
            let names = fields.iter().map(|field| field.name().to_string());
            let values = value._iter_struct_av().map(json);
            Value::Object(
                names.zip(values).map(|(name, value)| Ok((name, value?))).collect::<Result<_, String>>()?,
            )
        }
        other => match other.extract::<i64>() {
            Some(number) if other.dtype().is_integer() => number.into(),
            _ => return Err(format!("values of type {} are not read", other.dtype())),
        },
    })
}
