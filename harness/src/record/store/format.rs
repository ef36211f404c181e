//! The bytes of a store's files: deterministic JSON out, and nothing in that is not exactly what was written.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::StoreError;
use crate::record::{Envelope, Execution, SCHEMA, canonical_hash};

/// Pretty JSON: two spaces, a newline at the end, fields in the order of their definition, floats as the shortest
/// decimals that read back to the same number.
///
/// Fails with [`StoreError::NotFinite`] where the bytes would not read back as `value`: serde writes NaN and the
/// infinities as `null`.
pub(super) fn encode<T>(value: &T, path: &Path) -> Result<Vec<u8>, StoreError>
where
    T: Serialize + DeserializeOwned + PartialEq,
{
    let refused = |what: String| StoreError::NotFinite { what, path: path.into() };
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| refused(format!("a value JSON refuses ({e})")))?;
    bytes.push(b'\n');
    match serde_json::from_slice::<T>(&bytes) {
        Ok(back) if back == *value => Ok(bytes),
        _ => Err(refused("a number that is NaN or infinite".into())),
    }
}

/// Puts a result into its envelope. Fails with [`StoreError::NotFinite`] as [`encode`] does.
pub(super) fn seal<T>(result: T, execution: Execution, path: &Path) -> Result<Envelope<T>, StoreError>
where
    T: Serialize + DeserializeOwned + PartialEq,
{
    encode(&result, path)?;
    let value = serde_json::to_value(&result).map_err(|e| StoreError::NotFinite {
        what: format!("a value JSON refuses ({e})"),
        path: path.into(),
    })?;
    Ok(Envelope { schema: SCHEMA, result_hash: canonical_hash(&value), result, execution })
}

/// Parses a file of this schema. `bytes` are the file's, `path` is only for messages.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T, StoreError> {
    typed(checked_value(bytes, path)?, path)
}

/// Parses an envelope and checks its hash.
pub(super) fn unseal<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<Envelope<T>, StoreError> {
    let value = checked_value(bytes, path)?;
    let result = value.get("result").ok_or_else(|| corrupt(path, "it has no `result`"))?;
    let hash = canonical_hash(result);
    if value.get("result_hash").and_then(Value::as_str) != Some(&hash) {
        return Err(corrupt(path, format!("its `result` does not have its `result_hash` but {hash}")));
    }
    typed(value, path)
}

pub(super) fn corrupt(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Corrupt { path: path.into(), reason: reason.into() }
}

fn checked_value(bytes: &[u8], path: &Path) -> Result<Value, StoreError> {
    if bytes.is_empty() {
        return Err(corrupt(path, "it is empty"));
    }
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| corrupt(path, format!("it is no valid JSON ({e})")))?;
    match value.get("schema").and_then(Value::as_u64) {
        Some(found) if found > u64::from(SCHEMA) => {
            Err(StoreError::Newer { path: path.into(), found, supported: SCHEMA })
        }
        Some(found) if found == u64::from(SCHEMA) => Ok(value),
        Some(found) => Err(corrupt(path, format!("its schema is {found}, and there never was one"))),
        None => Err(corrupt(path, "it has no `schema`")),
    }
}

fn typed<T: DeserializeOwned>(value: Value, path: &Path) -> Result<T, StoreError> {
    serde_json::from_value(value)
        .map_err(|e| corrupt(path, format!("a field is missing or of another type ({e})")))
}
