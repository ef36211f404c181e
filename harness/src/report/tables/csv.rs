//! `csv`: RFC 4180, numbers with every digit, an empty field where there is none.
//!
//! Written by polars from the data frame that the Parquet file is written from, so the two hold the same values.

use super::TableFormat;
use crate::report::frame;
use crate::report::table::Table;

/// See the module.
pub struct Csv;

impl TableFormat for Csv {
    fn name(&self) -> &'static str {
        "csv"
    }

    fn long(&self) -> bool {
        true
    }

    fn write(&self, table: &Table) -> String {
        frame::csv(&mut frame::from_table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tables::tests::example;

    #[test]
    fn numbers_are_exact_and_errors_have_a_column_of_their_own() {
        let expected = "\
recipe,a|b,a|b stderr,n
original,17.5412,0.3149,10220
\"w8,\"\"a8\"\"_x|y\",123456.7,,
w4,,,
";
        assert_eq!(Csv.write(&example()), expected);
    }
}
