//! Tables as polars data frames: the one road to CSV and Parquet, and back from CSV.
//!
//! Both files are written from the same frame and depend on nothing but the table, so the same records give the same
//! bytes. polars writes no time and no random key into a Parquet file; a test holds it to that.

use std::collections::BTreeMap;
use std::io::Cursor;

use polars::prelude::{
    Column, CsvParseOptions, CsvReadOptions, CsvWriter, DataFrame, ParquetWriter, PolarsError, SerReader,
    SerWriter,
};

use super::table::{Cell, Kind, Table};

/// The frame of a table. A column of numbers of which some have a standard error is followed by a column
/// `<name> stderr`. Missing and failed cells are nulls.
pub fn from_table(table: &Table) -> DataFrame {
    let mut columns = Vec::new();
    for (i, column) in table.columns.iter().enumerate() {
        let cells = || table.rows.iter().map(move |row| &row[i]);
        let name = column.name.as_str();
        match column.kind {
            Kind::Text => {
                let texts: Vec<Option<&str>> = cells()
                    .map(|cell| match cell {
                        Cell::Text(text) => Some(text.as_str()),
                        _ => None,
                    })
                    .collect();
                columns.push(Column::new(name.into(), texts));
            }
            Kind::Count => {
                let counts: Vec<Option<u64>> = cells()
                    .map(|cell| match cell {
                        Cell::Count(count) => Some(*count),
                        _ => None,
                    })
                    .collect();
                columns.push(Column::new(name.into(), counts));
            }
            Kind::Number => {
                let (values, stderrs): (Vec<Option<f64>>, Vec<Option<f64>>) = cells()
                    .map(|cell| match cell {
                        Cell::Number { value, stderr, .. } => (Some(*value), *stderr),
                        _ => (None, None),
                    })
                    .unzip();
                columns.push(Column::new(name.into(), values));
                if stderrs.iter().any(Option::is_some) {
                    columns.push(Column::new(format!("{name} stderr").into(), stderrs));
                }
            }
        }
    }
    DataFrame::new(table.rows.len(), columns)
        .expect("a table's columns are as long as it has rows, and named apart")
}

/// The frame as CSV text.
pub fn csv(frame: &mut DataFrame) -> String {
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes).finish(frame).expect("writing CSV to memory cannot fail");
    String::from_utf8(bytes).expect("polars writes UTF-8")
}

/// The frame as the bytes of a Parquet file.
pub fn parquet(frame: &mut DataFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(frame).expect("writing Parquet to memory cannot fail");
    bytes
}

/// The records of a CSV file as maps from column name to text; fields without text are left out.
///
/// # Errors
/// polars' own, where `text` is not CSV.
pub fn read_csv(text: &str) -> Result<Vec<BTreeMap<String, String>>, PolarsError> {
    // No inference: every column is read as text, so that `0` and `0.0` stay apart.
    let frame = CsvReadOptions::default()
        .with_infer_schema_length(Some(0))
        .with_parse_options(CsvParseOptions::default().with_try_parse_dates(false))
        .into_reader_with_file_handle(Cursor::new(text.as_bytes()))
        .finish()?;
    let mut records = vec![BTreeMap::new(); frame.height()];
    for column in frame.columns() {
        for (record, field) in records.iter_mut().zip(column.str()?.iter()) {
            if let Some(field) = field.filter(|field| !field.is_empty()) {
                record.insert(column.name().to_string(), field.to_owned());
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use polars::prelude::{DataType, ParquetReader};

    use super::*;
    use crate::report::table;

    fn example() -> Table {
        let mut table = Table::new(
            "",
            vec![
                table::Column::new("name", Kind::Text),
                table::Column::new("seed", Kind::Count),
                table::Column::new("value", Kind::Number),
            ],
        );
        table.rows.push(vec![Cell::text("a, \"b\""), Cell::Missing, Cell::exact(17.000000000000004)]);
        table.rows.push(vec![Cell::text("ü"), Cell::Missing, Cell::Failed { stage: "load".into() }]);
        table
    }

    #[test]
    fn parquet_bytes_repeat_and_hold_the_types_and_values() {
        let bytes = parquet(&mut from_table(&example()));
        assert_eq!(bytes, parquet(&mut from_table(&example())));
        let frame = ParquetReader::new(Cursor::new(bytes)).finish().unwrap();
        assert_eq!(frame.dtypes(), [DataType::String, DataType::UInt64, DataType::Float64]);
        assert_eq!(frame.column("value").unwrap().f64().unwrap().get(0), Some(17.000000000000004));
        assert_eq!(frame.column("value").unwrap().f64().unwrap().get(1), None);
        assert_eq!(frame.column("seed").unwrap().null_count(), 2);
    }

    #[test]
    fn csv_reads_back() {
        let text = csv(&mut from_table(&example()));
        assert_eq!(text, "name,seed,value\n\"a, \"\"b\"\"\",,17.000000000000004\nü,,\n");
        let records = read_csv(&text).unwrap();
        assert_eq!(records[0]["name"], "a, \"b\"");
        assert_eq!(records[0]["value"], "17.000000000000004");
        assert_eq!(records[1].keys().collect::<Vec<_>>(), ["name"]);
    }
}
