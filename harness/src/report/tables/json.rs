//! `json`: an array of objects, one per row, numbers as numbers, `null` where there is none.

use serde_json::{Map, Value, json};

use super::TableFormat;
use crate::report::table::{Cell, Table};

/// See the module.
pub struct Json;

impl TableFormat for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn long(&self) -> bool {
        true
    }

    fn write(&self, table: &Table) -> String {
        // A row per line: small enough to read, and a changed measurement is a changed line.
        let rows: Vec<String> = table
            .rows
            .iter()
            .map(|row| {
                let fields =
                    table.columns.iter().zip(row).map(|(column, cell)| (column.name.clone(), value(cell)));
                format!("  {}", Value::Object(fields.collect::<Map<_, _>>()))
            })
            .collect();
        if rows.is_empty() { "[]\n".to_owned() } else { format!("[\n{}\n]\n", rows.join(",\n")) }
    }
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Text(text) => json!(text),
        Cell::Count(count) => json!(count),
        Cell::Number { value, stderr: None, .. } => json!(value),
        Cell::Number { value, stderr: Some(stderr), .. } => json!({ "value": value, "stderr": stderr }),
        Cell::Missing => Value::Null,
        Cell::Failed { stage } => json!({ "failed": stage }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tables::tests::example;

    #[test]
    fn a_row_is_an_object_on_a_line() {
        let expected = r#"[
  {"recipe":"original","a|b":{"value":17.5412,"stderr":0.3149},"n":10220},
  {"recipe":"w8,\"a8\"_x|y","a|b":123456.7,"n":null},
  {"recipe":"w4","a|b":{"failed":"quantize"},"n":null}
]
"#;
        let written = Json.write(&example());
        assert_eq!(written, expected);
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap()[0]["n"], json!(10220));
    }
}
