//! `Table`: one value that every format writes.
//!
//! Cells keep their numbers; how many digits a reader sees is decided by the cell, how a number is spelled by the
//! format. So Markdown, LaTeX, CSV and JSON cannot disagree.

/// A table with its caption and what must be said below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// One line above the table.
    pub caption: String,
    /// The columns, left to right.
    pub columns: Vec<Column>,
    /// The rows; each has as many cells as there are columns.
    pub rows: Vec<Vec<Cell>>,
    /// Sentences below the table.
    pub notes: Vec<String>,
}

/// A column's heading and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The heading.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
}

/// What a column holds. It fixes the column's type in CSV and Parquet even where every cell is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Words.
    Text,
    /// Whole numbers.
    Count,
    /// Measured numbers.
    Number,
}

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Flush left: words.
    Left,
    /// Flush right: numbers.
    Right,
}

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A whole number.
    Count(u64),
    /// A measured number.
    Number {
        /// The value.
        value: f64,
        /// Its standard error, where known.
        stderr: Option<f64>,
        /// How a reader sees it.
        digits: Digits,
    },
    /// Not measured.
    Missing,
    /// Failed at this stage.
    Failed {
        /// The stage.
        stage: String,
    },
}

/// How many digits a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digits {
    /// The shortest decimal that reads back as the same number.
    Exact,
    /// This many after the point.
    Decimals(usize),
    /// This many significant digits, and at least one of the standard error, but no more than six after the point.
    Significant(usize),
    /// As `Significant`, but a value below 10⁻⁴ in size with its power of ten: `1.67e-8`.
    Scaled(usize),
}

impl Table {
    /// A table without rows.
    pub fn new(caption: &str, columns: Vec<Column>) -> Self {
        Table { caption: caption.to_owned(), columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// Takes away rows with nothing behind their first `names` cells, and says below of whom there were how many: of a large
    /// sweep under way they would be most of the table. One where nothing was run stays as it is.
    pub fn leave_out_unrun(&mut self, names: usize) {
        let unrun = |row: &Vec<Cell>| row.iter().skip(names).all(|cell| *cell == Cell::Missing);
        if self.rows.iter().all(unrun) {
            return;
        }
        let mut left_out: Vec<(String, usize)> = Vec::new();
        for row in self.rows.extract_if(.., |row| unrun(row)) {
            let Some(Cell::Text(name)) = row.into_iter().next() else { continue };
            match left_out.iter_mut().find(|(known, _)| *known == name) {
                Some((_, rows)) => *rows += 1,
                None => left_out.push((name, 1)),
            }
        }
        if !left_out.is_empty() {
            let each = left_out.iter().map(|(name, rows)| match rows {
                1 => format!("`{name}`"),
                _ => format!("`{name}` × {rows}"),
            });
            self.notes
                .push(format!("rows of which nothing was run yet: {}", each.collect::<Vec<_>>().join(", ")));
        }
    }
}

impl Column {
    /// A column of this name and kind.
    pub fn new(name: &str, kind: Kind) -> Self {
        Column { name: name.to_owned(), kind }
    }

    /// Words stand left, numbers right.
    pub fn align(&self) -> Align {
        match self.kind {
            Kind::Text => Align::Left,
            Kind::Count | Kind::Number => Align::Right,
        }
    }
}

impl Cell {
    /// A cell of words.
    pub fn text(text: &str) -> Self {
        Cell::Text(text.to_owned())
    }

    /// A number with every digit it has.
    pub fn exact(value: f64) -> Self {
        Cell::Number { value, stderr: None, digits: Digits::Exact }
    }

    /// The value and the standard error as a reader sees them, or `None` where the cell is no number.
    pub fn spelled(&self) -> Option<(String, Option<String>)> {
        let Cell::Number { value, stderr, digits } = self else {
            return None;
        };
        let places = match digits {
            Digits::Exact => return Some((format!("{value}"), stderr.map(|stderr| format!("{stderr}")))),
            Digits::Decimals(places) => *places,
            Digits::Scaled(digits) if *value != 0.0 && value.abs() < 1e-4 => {
                let value = format!("{value:.*e}", digits.saturating_sub(1));
                return Some((value, stderr.map(|stderr| format!("{stderr:.0e}"))));
            }
            Digits::Significant(digits) | Digits::Scaled(digits) => {
                let for_value = *digits as i32 - magnitude(*value);
                // One digit of the error at the least: `5.47 ± 0.00` would say that it is known exactly.
                let for_error = stderr.map_or(0, |stderr| 1 - magnitude(stderr));
                for_value.max(for_error).clamp(0, 6) as usize
            }
        };
        Some((format!("{value:.places$}"), stderr.map(|stderr| format!("{stderr:.places$}"))))
    }
}

/// Digits before the decimal point: 1 for 5.47, 2 for 54.7, 0 for 0.547, −1 for 0.0547.
fn magnitude(value: f64) -> i32 {
    if value == 0.0 || !value.is_finite() { 1 } else { value.abs().log10().floor() as i32 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(value: f64, stderr: Option<f64>, digits: Digits) -> (String, Option<String>) {
        Cell::Number { value, stderr, digits }.spelled().unwrap()
    }

    #[test]
    fn significant_digits_follow_the_size_of_the_value_and_of_its_error() {
        let four = Digits::Significant(4);
        assert_eq!(spelled(5.4731, None, four), ("5.473".into(), None));
        assert_eq!(spelled(17.5412, Some(0.3149), four), ("17.54".into(), Some("0.31".into())));
        assert_eq!(spelled(123456.7, Some(4321.0), four), ("123457".into(), Some("4321".into())));
        assert_eq!(spelled(5.4731, Some(0.00021), four), ("5.4731".into(), Some("0.0002".into())));
        assert_eq!(spelled(0.0, Some(0.0), four), ("0.000".into(), Some("0.000".into())));
        assert_eq!(spelled(1e-12, None, four), ("0.000000".into(), None));
        let scaled = Digits::Scaled(3);
        assert_eq!(spelled(1.6695e-8, Some(1.14e-9), scaled), ("1.67e-8".into(), Some("1e-9".into())));
        assert_eq!(
            spelled(0.0165, Some(0.0021), scaled),
            spelled(0.0165, Some(0.0021), Digits::Significant(3))
        );
        assert_eq!(spelled(0.0, None, scaled).0, "0.00");
    }

    #[test]
    fn rows_of_which_nothing_was_run_are_counted_below() {
        let columns = ["recipe", "calibration", "value", "ratio"];
        let mut table = Table::new("", columns.map(|name| Column::new(name, Kind::Text)).to_vec());
        let row = |recipe: &str, set: Cell, value: Cell| vec![Cell::text(recipe), set, value, Cell::Missing];
        table.rows.push(row("gptq", Cell::text("c4"), Cell::Missing));
        table.rows.push(row("gptq", Cell::text("wiki"), Cell::Missing));
        let nothing = table.clone();
        table.leave_out_unrun(2);
        assert_eq!(table, nothing);
        let measured = row("w8a8", Cell::Missing, Cell::exact(1.0));
        let failed = row("awq", Cell::text("c4"), Cell::Failed { stage: "quantize".into() });
        table.rows.extend([measured.clone(), row("w4", Cell::Missing, Cell::Missing), failed.clone()]);
        table.leave_out_unrun(2);
        assert_eq!(table.rows, [measured, failed]);
        assert_eq!(table.notes, ["rows of which nothing was run yet: `gptq` × 2, `w4`"]);
    }

    #[test]
    fn exact_numbers_read_back_as_themselves() {
        let value = 17.000000000000004;
        let (text, _) = spelled(value, None, Digits::Exact);
        assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits());
        assert_eq!(spelled(2.0, None, Digits::Decimals(3)).0, "2.000");
    }
}
