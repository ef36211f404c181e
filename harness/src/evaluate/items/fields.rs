//! The fields of one item, by name and type.

use serde_json::{Map, Value};

/// What is wrong with an item.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No JSON, or no object.
    #[error("no JSON object ({reason})")]
    NotJson {
        /// What the parser says.
        reason: String,
    },
    /// A field that is not there.
    #[error("no field `{field}`; it has {}", has.join(", "))]
    Missing {
        /// The field.
        field: String,
        /// The fields that are there.
        has: Vec<String>,
    },
    /// A field of another type.
    #[error("the field `{field}` is not {expected}")]
    Type {
        /// The field.
        field: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A field that cannot mean anything.
    #[error("the field `{field}`: {reason}")]
    Value {
        /// The field.
        field: String,
        /// Why.
        reason: String,
    },
    /// A right answer that is not among the choices.
    #[error("the right answer is {gold}, and there are {choices} choices")]
    Gold {
        /// As written.
        gold: String,
        /// How many there are.
        choices: usize,
    },
    /// A continuation of nothing, or of white space only.
    #[error("continuation {index} (from 0) is empty")]
    Empty {
        /// Which.
        index: usize,
    },
}

/// The object of a line.
pub(super) fn object(line: &str) -> Result<Map<String, Value>, Fault> {
    match serde_json::from_str(line) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Fault::NotJson { reason: "another kind of JSON value".to_owned() }),
        Err(error) => Err(Fault::NotJson { reason: error.to_string() }),
    }
}

/// Reads fields of an item.
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Of an object.
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map }
    }

    /// A field of any type.
    ///
    /// # Errors
    /// [`Fault::Missing`]
    pub fn value(&self, field: &str) -> Result<&'a Value, Fault> {
        let missing = || Fault::Missing { field: field.to_owned(), has: self.map.keys().cloned().collect() };
        self.map.get(field).ok_or_else(missing)
    }

    /// A text.
    ///
    /// # Errors
    /// [`Fault::Missing`] and [`Fault::Type`].
    pub fn text(&self, field: &str) -> Result<&'a str, Fault> {
        let value = self.value(field)?;
        value.as_str().ok_or_else(|| Fault::Type { field: field.to_owned(), expected: "a text" })
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`Fault::Missing`] and [`Fault::Type`].
    pub fn texts(&self, field: &str) -> Result<Vec<String>, Fault> {
        let wrong = || Fault::Type { field: field.to_owned(), expected: "a list of texts" };
        let list = self.value(field)?.as_array().ok_or_else(wrong)?;
        list.iter().map(|text| text.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
    }

    /// A place among choices: an integer, or a text of digits. A negative one, which test splits have for "not known",
    /// is out of range.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Type`] and [`Fault::Gold`].
    pub fn place(&self, field: &str, choices: usize) -> Result<usize, Fault> {
        let value = self.value(field)?;
        let number = match value {
            Value::String(text) => text.parse::<i64>().ok(),
            Value::Bool(bit) => Some(i64::from(*bit)),
            other => other.as_i64(),
        };
        let wrong = || Fault::Type { field: field.to_owned(), expected: "a place among the choices" };
        let number = number.ok_or_else(wrong)?;
        usize::try_from(number)
            .ok()
            .filter(|place| *place < choices)
            .ok_or_else(|| Fault::Gold { gold: number.to_string(), choices })
    }

    /// The fields of an object in a field.
    ///
    /// # Errors
    /// [`Fault::Missing`] and [`Fault::Type`].
    pub fn inner(&self, field: &str) -> Result<Fields<'a>, Fault> {
        let map = self.value(field)?.as_object();
        map.map(Fields::new).ok_or_else(|| Fault::Type { field: field.to_owned(), expected: "an object" })
    }

    /// The data set's own number or name of the item.
    pub(super) fn id(&self) -> Option<String> {
        ["id", "idx", "ind"].iter().find_map(|field| match self.map.get(*field)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
    }

    /// blake3 of the fields as JSON with sorted keys, hexadecimal.
    pub(super) fn hash(&self) -> String {
        let mut sorted = Value::Object(self.map.clone());
        sorted.sort_all_objects();
        blake3::hash(sorted.to_string().as_bytes()).to_hex().to_string()
    }
}
