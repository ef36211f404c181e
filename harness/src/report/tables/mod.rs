//! The registry of table formats: one file and one line each.

use super::table::Table;

pub mod csv;
pub mod json;
pub mod latex;
pub mod markdown;

/// A way to write tables down.
pub trait TableFormat: Sync {
    /// The name given to `report --format`.
    fn name(&self) -> &'static str;

    /// True where a program reads the format: it is given the long form. False where a person does: it is given the
    /// tables of the report.
    fn long(&self) -> bool;

    /// The table as text, ending in a line break. The same table gives the same bytes.
    fn write(&self, table: &Table) -> String;
}

/// All formats, in alphabetical order of their names.
pub const FORMATS: &[&dyn TableFormat] = &[&csv::Csv, &json::Json, &latex::Latex, &markdown::Markdown];

/// The format of this name.
pub fn find(name: &str) -> Option<&'static dyn TableFormat> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::table::{Cell, Column, Digits, Kind};

    /// A table with every kind of cell and every character that some format must escape.
    pub(crate) fn example() -> Table {
        let mut table = Table::new(
            "Perplexity & co_50%",
            vec![
                Column::new("recipe", Kind::Text),
                Column::new("a|b", Kind::Number),
                Column::new("n", Kind::Count),
            ],
        );
        let number = |value, stderr| Cell::Number { value, stderr, digits: Digits::Significant(4) };
        table.rows.push(vec![Cell::text("original"), number(17.5412, Some(0.3149)), Cell::Count(10220)]);
        table.rows.push(vec![Cell::text("w8,\"a8\"_x|y"), number(123456.7, None), Cell::Missing]);
        table.rows.push(vec![Cell::text("w4"), Cell::Failed { stage: "quantize".into() }, Cell::Missing]);
        table.notes.push("lower is better".into());
        table
    }

    #[test]
    fn formats_are_registered_alphabetically_and_found_by_name() {
        assert!(FORMATS.windows(2).all(|pair| pair[0].name() < pair[1].name()));
        assert!(find("markdown").is_some_and(|format| !format.long()));
        assert!(find("word").is_none());
    }

    #[test]
    fn the_same_table_gives_the_same_bytes() {
        for format in FORMATS {
            assert_eq!(format.write(&example()), format.write(&example()), "{}", format.name());
        }
    }
}
