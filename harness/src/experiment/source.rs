//! The text of an experiment file: blocks that know their name and place, and faults that point at them.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::names;

/// Something wrong in an experiment file, and where.
///
/// ```text
/// experiments/x.toml:12:33: unknown key `granulrity` (did you mean `granularity`?)
///    |
/// 12 |   { step = "weights", bits = 8, granulrity = "channel" },
///    |                                 ^^^^^^^^^^
///    = in recipe.qfem, step 2
///    = keys here: bits, granularity, …
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file as it was named.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The block it is in, e.g. `recipe.qfem, step 2`; empty at the top of the file.
    pub block: String,
    /// What would be right.
    pub notes: Vec<String>,
    /// The text of the line.
    text: String,
    /// Characters to underline.
    width: usize,
}

impl Fault {
    /// Adds what would be right.
    pub(super) fn note(mut self: Box<Self>, note: impl Into<String>) -> Box<Self> {
        self.notes.push(note.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line.to_string();
        let gutter = " ".repeat(line.len());
        writeln!(f, "{}:{line}:{}: {}", self.file, self.column, self.message)?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{line} | {}", self.text)?;
        write!(f, "{gutter} | {}{}", " ".repeat(self.column - 1), "^".repeat(self.width))?;
        if !self.block.is_empty() {
            write!(f, "\n{gutter} = in {}", self.block)?;
        }
        for note in &self.notes {
            write!(f, "\n{gutter} = {note}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// A file's name and text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'t> {
    pub file: &'t str,
    pub text: &'t str,
}

impl<'t> Source<'t> {
    /// Parses the text into its outermost block.
    pub fn parse(self) -> Result<Block<'t>, Box<Fault>> {
        match DeTable::parse(self.text) {
            Ok(table) => {
                Ok(Block { source: self, name: String::new(), span: 0..0, table: table.into_inner() })
            }
            Err(error) => {
                let end = self.text.len();
                Err(self.fault("", error.span().unwrap_or(end..end), error.message()))
            }
        }
    }

    /// A fault at a range of bytes.
    pub fn fault(self, block: &str, span: Range<usize>, message: impl Into<String>) -> Box<Fault> {
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |i| start + i);
        let text = self.text[line_start..line_end].trim_end_matches('\r');
        let before = self.text[line_start..start].chars().count();
        let underlined = self.text[start..span.end.clamp(start, line_end)].chars().count();
        Box::new(Fault {
            file: self.file.to_string(),
            line: self.text[..start].matches('\n').count() + 1,
            column: before + 1,
            message: message.into(),
            block: block.to_string(),
            notes: Vec::new(),
            // One column per character, so that the marks stand under what they mark.
            text: text.replace('\t', " "),
            width: underlined.max(1),
        })
    }
}

/// A table of the file, under the name by which a person would find it.
#[derive(Clone, Debug)]
pub(super) struct Block<'t> {
    pub source: Source<'t>,
    pub name: String,
    pub span: Range<usize>,
    table: DeTable<'t>,
}

/// A name, its place in the file, and the table under it.
type NamedTable<'t> = (String, Range<usize>, Block<'t>);

impl<'t> Block<'t> {
    /// A fault at a range of bytes of this block.
    pub fn fault(&self, span: Range<usize>, message: impl Into<String>) -> Box<Fault> {
        self.source.fault(&self.name, span, message)
    }

    /// A fault of this block that begins with the key it is about, in backticks; it points at the key's value where
    /// the file has one.
    pub fn fault_of_key(&self, message: String) -> Box<Fault> {
        let key = message.strip_prefix('`').and_then(|rest| rest.split('`').next()).unwrap_or_default();
        let span = self.table.get(key).map_or(self.span.clone(), Spanned::span);
        self.fault(span, message)
    }

    /// The block's keys as a value of type `T`.
    pub fn read<T: Deserialize<'t>>(&self) -> Result<T, Box<Fault>> {
        self.read_with(T::deserialize)
    }

    /// The block's keys as `read` understands them.
    pub fn read_with<T>(
        &self,
        read: impl FnOnce(ValueDeserializer<'t>) -> Result<T, toml::de::Error>,
    ) -> Result<T, Box<Fault>> {
        let value = Spanned::new(self.span.clone(), DeValue::Table(self.table.clone()));
        read(ValueDeserializer::from(value)).map_err(|error| self.translate(&error))
    }

    /// Takes a key that must be a string out of the block.
    pub fn take_word(&mut self, key: &str) -> Result<Option<(String, Range<usize>)>, Box<Fault>> {
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        match value.get_ref() {
            DeValue::String(word) => Ok(Some((word.to_string(), value.span()))),
            other => {
                Err(self.fault(value.span(), format!("`{key}` must be a string, not {}", article(other))))
            }
        }
    }

    /// Where the value of a key stands; the block itself where it has no such key.
    pub fn place_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or(self.span.clone(), Spanned::span)
    }

    /// The table under a key.
    pub fn table(&self, key: &str) -> Result<Option<Block<'t>>, Box<Fault>> {
        self.table.get(key).map(|value| self.inner(value, self.child(key))).transpose()
    }

    /// The tables under a key that holds named tables, e.g. every `[recipe.…]`, in the order of the file, with the
    /// places of their names.
    pub fn named_tables(&self, key: &str) -> Result<Vec<NamedTable<'t>>, Box<Fault>> {
        let Some(tables) = self.table(key)? else {
            return Ok(Vec::new());
        };
        let mut named = Vec::new();
        for (name, value) in &tables.table {
            let block = self.inner(value, format!("{key}.{}", name.get_ref()))?;
            named.push((name.get_ref().to_string(), name.span(), block));
        }
        named.sort_by_key(|(_, place, _)| place.start);
        Ok(named)
    }

    /// The tables in the list under a key, named `{what} 1`, `{what} 2`, …
    pub fn list_of_tables(&self, key: &str, what: &str) -> Result<Vec<Block<'t>>, Box<Fault>> {
        let Some(value) = self.table.get(key) else {
            return Ok(Vec::new());
        };
        let DeValue::Array(items) = value.get_ref() else {
            let message = format!("`{key}` must be a list of tables, not {}", article(value.get_ref()));
            return Err(self.fault(value.span(), message));
        };
        let prefix = if self.name.is_empty() { String::new() } else { format!("{}, ", self.name) };
        items.iter().zip(1..).map(|(item, i)| self.inner(item, format!("{prefix}{what} {i}"))).collect()
    }

    fn child(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_string() } else { format!("{}.{key}", self.name) }
    }

    fn inner(&self, value: &Spanned<DeValue<'t>>, name: String) -> Result<Block<'t>, Box<Fault>> {
        match value.get_ref() {
            DeValue::Table(table) => {
                Ok(Block { source: self.source, name, span: value.span(), table: table.clone() })
            }
            other => {
                Err(self.fault(value.span(), format!("`{name}` must be a table, not {}", article(other))))
            }
        }
    }

    /// serde's words in ours, with the nearest valid name.
    fn translate(&self, error: &toml::de::Error) -> Box<Fault> {
        let span = error.span().unwrap_or(self.span.clone());
        let text = error.message();
        let mut quoted = text.split('`').skip(1).step_by(2);
        let first = quoted.next().unwrap_or_default();
        let rest: Vec<&str> = quoted.collect();
        let near = names::hint(first, rest.iter().copied());
        if text.starts_with("unknown field") {
            let fault = self.fault(span, format!("unknown key `{first}`{near}"));
            return fault.note(format!("keys here: {}", rest.join(", ")));
        }
        let key = self.key_around(&span).map(|key| format!("`{key}`: ")).unwrap_or_default();
        if text.starts_with("unknown variant") {
            return self
                .fault(span, format!("{key}unknown word `{first}`{near}"))
                .note(format!("words here: {}", rest.join(", ")));
        }
        if text.starts_with("missing field") {
            return self.fault(span, format!("the key `{first}` is missing"));
        }
        self.fault(span, format!("{key}{}", in_plain_words(text)))
    }

    /// The key of this block whose value holds `span`.
    fn key_around(&self, span: &Range<usize>) -> Option<&str> {
        let holds =
            |value: &Spanned<DeValue<'t>>| value.span().start <= span.start && span.end <= value.span().end;
        self.table.iter().find(|(_, value)| holds(value)).map(|(key, _)| key.get_ref().as_ref())
    }
}

/// `invalid type: string "8", expected u8` → `expected a whole number, not the string "8"`.
fn in_plain_words(text: &str) -> String {
    let Some((found, expected)) = text
        .strip_prefix("invalid type: ")
        .or(text.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "))
    else {
        return text.to_string();
    };
    let expected = match expected {
        "u8" => "a whole number from 0 to 255",
        "u64" | "usize" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a string" | "string" => "a string",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other => other.strip_prefix("struct ").map_or(other, |_| "a table"),
    };
    let found = match found {
        "map" => "a table".to_string(),
        "sequence" => "a list".to_string(),
        other => {
            let other =
                other.replace("floating point `", "the number `").replace("integer `", "the number `");
            let other = other.replace("boolean `", "`").replace('`', "");
            if other.starts_with("string") { format!("the {other}") } else { other }
        }
    };
    format!("expected {expected}, not {found}")
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
