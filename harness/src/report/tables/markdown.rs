//! `markdown`: pipe tables as GitHub shows them, padded so that the source reads as a table too.

use super::TableFormat;
use crate::report::table::{Align, Cell, Table};

/// See the module.
pub struct Markdown;

impl TableFormat for Markdown {
    fn name(&self) -> &'static str {
        "markdown"
    }

    fn long(&self) -> bool {
        false
    }

    fn write(&self, table: &Table) -> String {
        let head = table.columns.iter().map(|column| escape(&column.name)).collect();
        let body = table.rows.iter().map(|row| row.iter().map(spell).collect());
        let lines: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
        let widths: Vec<usize> = (0..table.columns.len())
            .map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0).max(3))
            .collect();

        let mut out = format!("**{}**\n\n", escape(&table.caption));
        for (i, line) in lines.iter().enumerate() {
            for ((text, column), &width) in line.iter().zip(&table.columns).zip(&widths) {
                match column.align() {
                    Align::Left => out.push_str(&format!("| {text:<width$} ")),
                    Align::Right => out.push_str(&format!("| {text:>width$} ")),
                }
            }
            out.push_str("|\n");
            if i == 0 {
                for (column, &width) in table.columns.iter().zip(&widths) {
                    match column.align() {
                        Align::Left => out.push_str(&format!("|:{}", "-".repeat(width + 1))),
                        Align::Right => out.push_str(&format!("|{}:", "-".repeat(width + 1))),
                    }
                }
                out.push_str("|\n");
            }
        }
        for (i, note) in table.notes.iter().enumerate() {
            out.push_str(if i == 0 { "\n" } else { "" });
            out.push_str(&format!("- {}\n", one_line(note)));
        }
        out
    }
}

fn spell(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => escape(text),
        Cell::Count(count) => count.to_string(),
        Cell::Missing => "–".to_owned(),
        Cell::Failed { stage } => format!("failed: {}", escape(stage)),
        Cell::Number { .. } => match cell.spelled() {
            Some((value, Some(stderr))) => format!("{value} ± {stderr}"),
            Some((value, None)) => value,
            None => String::new(),
        },
    }
}

/// `text` so that Markdown shows it as it is. Underscores inside words need no escape and read better without.
pub(crate) fn escape(text: &str) -> String {
    let chars: Vec<char> = one_line(text).chars().collect();
    let mut out = String::new();
    for (i, &c) in chars.iter().enumerate() {
        let in_word =
            |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(|c| c.is_alphanumeric());
        let special = match c {
            '\\' | '|' | '*' | '`' | '<' | '[' | ']' => true,
            '_' => !(in_word(i.checked_sub(1)) && in_word(Some(i + 1))),
            _ => false,
        };
        if special {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tables::tests::example;

    #[test]
    fn a_table_with_every_kind_of_cell() {
        let expected = "\
**Perplexity & co_50%**

| recipe        |             a\\|b |     n |
|:--------------|-----------------:|------:|
| original      |     17.54 ± 0.31 | 10220 |
| w8,\"a8\"\\_x\\|y |           123457 |     – |
| w4            | failed: quantize |     – |

- lower is better
";
        assert_eq!(Markdown.write(&example()), expected);
    }

    #[test]
    fn what_markdown_would_interpret_is_escaped() {
        assert_eq!(escape("a_b *c* `d` <e> [f]\n_g"), "a_b \\*c\\* \\`d\\` \\<e> \\[f\\] \\_g");
    }
}
