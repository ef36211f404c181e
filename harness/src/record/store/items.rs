//! Per-item files in a store: written once, before the measurements that are made of them.

use std::path::PathBuf;

use super::stage::Stage;
use super::{Store, StoreError, format, read, vanished};
use crate::record::items::{ItemRow, from_parquet, to_parquet};
use crate::record::measurement_key;

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
        self.writable()?;
        let path = self.items_path(cell, key, version)?;
        let folder = self.cell_dir(cell)?;
        if !folder.join("cell.json").is_file() {
            return Err(StoreError::NoSuchCell { path: folder });
        }
        let bytes = to_parquet(rows);
        let hash = blake3::hash(&bytes).to_hex().to_string();
        if !path.is_file() {
            self.ensure_dir(&folder.join("items"))?;
            let stage = Stage::new(self)?;
            if self.place_new(&stage, &bytes, &path)? {
                return Ok(hash);
            }
        }
        let stored = read(&path)?.ok_or_else(|| vanished(&path))?;
        super::same_result(&path, blake3::hash(&stored).to_hex().to_string(), hash.clone())?;
        Ok(hash)
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
