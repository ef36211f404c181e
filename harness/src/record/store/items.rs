//! Per-item files in a store: written once, before the measurements that are made of them, read when they are asked for.

use std::path::{Path, PathBuf};

use super::stage::Stage;
use super::{Store, StoreError, entries, format, read, vanished};
use crate::record::items::{ItemRow, from_parquet, to_parquet};
use crate::record::measurement_key;

/// A per-item file that stands in a store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredItems {
    /// The cell it belongs to.
    pub cell: String,
    /// Its name without the extension: `items-file` in the detail of a measurement.
    pub file: String,
    path: PathBuf,
}

impl StoredItems {
    /// The rows, if their bytes have this blake3 hash: `items-file-hash` in the detail of a measurement.
    ///
    /// # Errors
    /// If the file is missing or not what was written.
    pub fn rows(&self, hash: &str) -> Result<Vec<ItemRow>, StoreError> {
        let bytes = read(&self.path)?.ok_or_else(|| vanished(&self.path))?;
        if blake3::hash(&bytes).to_hex().as_str() != hash {
            return Err(format::corrupt(&self.path, "its bytes are not those that the measurement names"));
        }
        from_parquet(bytes)
            .map_err(|e| format::corrupt(&self.path, format!("it is not the table it was ({e})")))
    }
}

/// The per-item files of a cell, by name.
pub(super) fn stored(cell: &str, folder: &Path) -> Result<Vec<StoredItems>, StoreError> {
    let files = entries(&folder.join("items"))?.into_iter().filter_map(|path| {
        let name = path.file_name()?.to_str()?;
        let file = name.strip_suffix(".parquet")?.to_owned();
        Some(StoredItems { cell: cell.to_owned(), file, path })
    });
    Ok(files.collect())
}

/// Writes a table into a folder of a published cell; its hash. The same bytes being there already is fine.
pub(super) fn place_table(
    store: &Store,
    cell: &str,
    folder: &str,
    file: &str,
    bytes: &[u8],
) -> Result<String, StoreError> {
    store.writable()?;
    let of_cell = store.cell_dir(cell)?;
    if !of_cell.join("cell.json").is_file() {
        return Err(StoreError::NoSuchCell { path: of_cell });
    }
    let path = of_cell.join(folder).join(file);
    let hash = blake3::hash(bytes).to_hex().to_string();
    if !path.is_file() {
        store.ensure_dir(&of_cell.join(folder))?;
        let stage = Stage::new(store)?;
        if store.place_new(&stage, bytes, &path)? {
            return Ok(hash);
        }
    }
    let stored = read(&path)?.ok_or_else(|| vanished(&path))?;
    super::same_result(&path, blake3::hash(&stored).to_hex().to_string(), hash.clone())?;
    Ok(hash)
}

impl Store {
    /// Publishes the rows of a cell's task under `key`, the metric id of the whole task and its version; their hash.
    ///
    /// Where they exist already with the same bytes, nothing happens.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where other rows stand there; [`StoreError::NoSuchCell`] before the cell is published.
    pub fn publish_items(
        &self,
        cell: &str,
        key: &str,
        version: u32,
        rows: &[ItemRow],
    ) -> Result<String, StoreError> {
        let file = format!("{}.parquet", measurement_key(key, version));
        place_table(self, cell, "items", &file, &to_parquet(rows))
    }

    /// The rows of a cell's task, where they have been published.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn items(&self, cell: &str, key: &str, version: u32) -> Result<Option<Vec<ItemRow>>, StoreError> {
        let path = self.items_path(cell, key, version)?;
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let rows = from_parquet(bytes);
        rows.map(Some).map_err(|e| format::corrupt(&path, format!("it is not the table it was ({e})")))
    }

    fn items_path(&self, cell: &str, key: &str, version: u32) -> Result<PathBuf, StoreError> {
        let name = format!("{}.parquet", measurement_key(key, version));
        Ok(self.cell_dir(cell)?.join("items").join(name))
    }
}
