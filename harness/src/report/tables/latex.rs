//! `latex`: a `table` with booktabs rules, to be pasted into a paper that loads `booktabs`.

use super::TableFormat;
use crate::report::table::{Align, Cell, Table};

/// See the module.
pub struct Latex;

impl TableFormat for Latex {
    fn name(&self) -> &'static str {
        "latex"
    }

    fn long(&self) -> bool {
        false
    }

    fn write(&self, table: &Table) -> String {
        let columns: String = table
            .columns
            .iter()
            .map(|column| match column.align() {
                Align::Left => 'l',
                Align::Right => 'r',
            })
            .collect();
        let head: Vec<String> = table.columns.iter().map(|column| escape(&column.name)).collect();
        let mut out = format!(
            "\\begin{{table}}\n  \\centering\n  \\caption{{{}}}\n  \\begin{{tabular}}{{{columns}}}\n    \\toprule\n    {} \
             \\\\\n    \\midrule\n",
            escape(&table.caption),
            head.join(" & "),
        );
        for row in &table.rows {
            let cells: Vec<String> = row.iter().map(spell).collect();
            out.push_str(&format!("    {} \\\\\n", cells.join(" & ")));
        }
        out.push_str("    \\bottomrule\n  \\end{tabular}\n");
        for note in &table.notes {
            out.push_str(&format!("  \\par\\footnotesize {}\n", escape(note)));
        }
        out.push_str("\\end{table}\n");
        out
    }
}

fn spell(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => escape(text),
        Cell::Count(count) => count.to_string(),
        Cell::Missing => "--".to_owned(),
        Cell::Failed { stage } => format!("failed: {}", escape(stage)),
        Cell::Number { .. } => match cell.spelled() {
            Some((value, Some(stderr))) => format!("${} \\pm {}$", power(&value), power(&stderr)),
            Some((value, None)) => format!("${}$", power(&value)),
            None => String::new(),
        },
    }
}

/// `1.7e-8` as a product with a power of ten.
fn power(number: &str) -> String {
    match number.split_once('e') {
        Some((factor, exponent)) => format!("{factor} \\times 10^{{{exponent}}}"),
        None => number.to_owned(),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("$<$"),
            '>' => out.push_str("$>$"),
            '|' => out.push_str("$|$"),
            '±' => out.push_str("$\\pm$"),
            '×' => out.push_str("$\\times$"),
            '÷' => out.push_str("$\\div$"),
            '−' => out.push_str("$-$"),
            'Δ' => out.push_str("$\\Delta$"),
            '“' => out.push_str("``"),
            '”' => out.push_str("''"),
            '–' => out.push_str("--"),
            '`' => out.push_str("\\textasciigrave{}"),
            '\n' => out.push(' '),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tables::tests::example;

    #[test]
    fn a_booktabs_table_with_every_kind_of_cell() {
        let expected = r#"\begin{table}
  \centering
  \caption{Perplexity \& co\_50\%}
  \begin{tabular}{lrr}
    \toprule
    recipe & a$|$b & n \\
    \midrule
    original & $17.54 \pm 0.31$ & 10220 \\
    w8,"a8"\_x$|$y & $123457$ & -- \\
    w4 & failed: quantize & -- \\
    \bottomrule
  \end{tabular}
  \par\footnotesize lower is better
\end{table}
"#;
        assert_eq!(Latex.write(&example()), expected);
    }

    #[test]
    fn powers_of_ten_are_set_as_such() {
        assert_eq!(power("1.67e-8"), r"1.67 \times 10^{-8}");
        assert_eq!(power("17.54"), "17.54");
    }

    #[test]
    fn no_special_character_reaches_tex_bare() {
        assert_eq!(escape(r"\a{b}^~#$"), r"\textbackslash{}a\{b\}\textasciicircum{}\textasciitilde{}\#\$");
        assert_eq!(escape("Δ ln ppl ÷ “x” −1"), r"$\Delta$ ln ppl $\div$ ``x'' $-$1");
    }
}
