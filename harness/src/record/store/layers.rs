//! Files of layer-wise errors in a store: written once, before the measurements that are made of them.

use std::path::{Path, PathBuf};

use super::items::place_table;
use super::{Store, StoreError, entries, format, read, vanished};
use crate::record::layers::LayerTables;
use crate::record::measurement_key;

/// Endings of the three files, in the order of the fields of [`LayerTables`].
const ENDINGS: [&str; 3] = ["parquet", "surface.parquet", "token.parquet"];

/// The three files of one evaluation, as they stand in a store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredLayers {
    /// The cell they belong to.
    pub cell: String,
    /// Their name without the endings: `layers-file` in the detail of a measurement.
    pub file: String,
    folder: PathBuf,
}

impl StoredLayers {
    /// The tables, if their bytes have these blake3 hashes: `layers-file-hashes` in the detail of a measurement.
    ///
    /// # Errors
    /// If a file is missing or not what was written.
    pub fn tables(&self, hashes: [&str; 3]) -> Result<LayerTables, StoreError> {
        let path = |ending: &str| self.folder.join(format!("{}.{ending}", self.file));
        let mut tables: [Vec<u8>; 3] = Default::default();
        for ((bytes, ending), hash) in tables.iter_mut().zip(ENDINGS).zip(hashes) {
            let path = path(ending);
            *bytes = read(&path)?.ok_or_else(|| vanished(&path))?;
            if blake3::hash(bytes).to_hex().as_str() != hash {
                return Err(format::corrupt(&path, "its bytes are not those that the measurement names"));
            }
        }
        LayerTables::from_parquet(tables).map_err(|e| {
            format::corrupt(
                &path(ENDINGS[0]),
                format!("it or a file beside it is not the table it was ({e})"),
            )
        })
    }
}

/// The files of a cell, by name.
pub(super) fn stored(cell: &str, folder: &Path) -> Result<Vec<StoredLayers>, StoreError> {
    let folder = folder.join("layers");
    let files = entries(&folder)?.into_iter().filter_map(|path| {
        let name = path.file_name()?.to_str()?;
        let file = name.strip_suffix(&format!(".{}", ENDINGS[1]))?.to_owned();
        Some(StoredLayers { cell: cell.to_owned(), file, folder: folder.clone() })
    });
    Ok(files.collect())
}

impl Store {
    /// Publishes the tables of a cell's evaluation under `key`, what the ids of its measurements share, and its version;
    /// their hashes.
    ///
    /// Where they exist already with the same bytes, nothing happens.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where other tables stand there; [`StoreError::NoSuchCell`] before the cell is published.
    pub fn publish_layers(
        &self,
        cell: &str,
        key: &str,
        version: u32,
        tables: &LayerTables,
    ) -> Result<[String; 3], StoreError> {
        let mut hashes: [String; 3] = Default::default();
        for ((bytes, ending), hash) in tables.to_parquet().iter().zip(ENDINGS).zip(&mut hashes) {
            let file = format!("{}.{ending}", measurement_key(key, version));
            *hash = place_table(self, cell, "layers", &file, bytes)?;
        }
        Ok(hashes)
    }
}
