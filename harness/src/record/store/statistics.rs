//! Statistics of activations in a store: published as one folder, its tables read when they are asked for.

use std::path::{Path, PathBuf};

use super::stage::Stage;
use super::{Store, StoreError, checked_id, entries, format, read, same_result, vanished};
use crate::record::statistics::{
    ChannelRow, HistogramRow, SequenceRow, StatisticsResult, StatisticsRows, Table, TokenScaleRow,
    TopTokenRow,
};
use crate::record::{Envelope, Execution};

/// Statistics that stand in a store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredStatistics {
    /// `statistics.json`.
    pub envelope: Envelope<StatisticsResult>,
    folder: PathBuf,
}

impl StoredStatistics {
    /// Of every channel.
    ///
    /// # Errors
    /// If the file is missing or not what was written.
    pub fn channels(&self) -> Result<Vec<ChannelRow>, StoreError> {
        self.table()
    }

    /// Of every sequence. Errors as [`StoredStatistics::channels`].
    pub fn sequences(&self) -> Result<Vec<SequenceRow>, StoreError> {
        self.table()
    }

    /// Tokens with the greatest scales. Errors as [`StoredStatistics::channels`].
    pub fn top_tokens(&self) -> Result<Vec<TopTokenRow>, StoreError> {
        self.table()
    }

    /// All tokens of the first samples. Errors as [`StoredStatistics::channels`].
    pub fn token_scales(&self) -> Result<Vec<TokenScaleRow>, StoreError> {
        self.table()
    }

    /// Counts of magnitudes. Errors as [`StoredStatistics::channels`].
    pub fn histograms(&self) -> Result<Vec<HistogramRow>, StoreError> {
        self.table()
    }

    fn table<T: Table>(&self) -> Result<Vec<T>, StoreError> {
        let path = self.folder.join(T::FILE);
        let bytes = read(&path)?.ok_or_else(|| vanished(&path))?;
        let hash = blake3::hash(&bytes).to_hex();
        if self.envelope.result.tables.get(T::FILE).map(String::as_str) != Some(hash.as_str()) {
            return Err(format::corrupt(&path, "its bytes are not those that `statistics.json` names"));
        }
        T::from_parquet(bytes)
            .map_err(|e| format::corrupt(&path, format!("it is not the table it was ({e})")))
    }
}

impl Store {
    /// Publishes statistics under their id, as a whole. The hashes in `tables` are set here.
    ///
    /// Where they exist already with the same result, nothing happens; with another result, [`StoreError::Conflict`].
    pub fn publish_statistics(
        &self,
        mut result: StatisticsResult,
        rows: &StatisticsRows,
        execution: Execution,
    ) -> Result<(), StoreError> {
        self.writable()?;
        let folder = self.statistics_dir(&result.id)?;
        let path = folder.join("statistics.json");
        let id = result.id.clone();
        let files = rows.files();
        let hashes =
            files.iter().map(|(name, bytes)| (name.to_string(), blake3::hash(bytes).to_hex().to_string()));
        result.tables = hashes.collect();
        let envelope = format::seal(result, execution, &path)?;
        let bytes = format::encode(&envelope, &path)?;
        if let Some(stored) = self.statistics_of(&id)? {
            return same_result(&path, stored.envelope.result_hash, envelope.result_hash);
        }

        let parent = self.dir.join("statistics");
        self.ensure_dir(&parent)?;
        if folder.is_dir() {
            // Someone followed the cure of `Corrupt` and deleted a file; what is left of it is not statistics.
            self.files.remove_dir_all(&folder).map_err(|e| StoreError::io("remove", &folder, e))?;
        }
        let stage = Stage::new(self)?;
        for (name, bytes) in &files {
            self.write_synced(&stage.path().join(name), bytes)?;
        }
        self.write_synced(&stage.path().join("statistics.json"), &bytes)?;
        self.sync(stage.path())?;
        match self.files.rename(stage.path(), &folder) {
            Ok(()) => return self.sync(&parent),
            Err(_) if path.is_file() => {}
            Err(e) => return Err(StoreError::io("write", &folder, e)),
        }
        let stored = self.statistics_of(&id)?.ok_or_else(|| vanished(&path))?;
        same_result(&path, stored.envelope.result_hash, envelope.result_hash)
    }

    /// Statistics, where they have been published and no file of them is missing.
    pub fn statistics_of(&self, id: &str) -> Result<Option<StoredStatistics>, StoreError> {
        let folder = self.statistics_dir(id)?;
        let path = folder.join("statistics.json");
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        let envelope: Envelope<StatisticsResult> = format::unseal(&bytes, &path)?;
        if envelope.result.id != id {
            return Err(format::corrupt(&path, format!("it is the statistics {}", envelope.result.id)));
        }
        let complete = envelope.result.tables.keys().all(|name| folder.join(name).is_file());
        Ok(complete.then_some(StoredStatistics { envelope, folder }))
    }

    /// All statistics published, by id, ascending. Their tables are not read.
    pub fn statistics(&self) -> Result<Vec<StoredStatistics>, StoreError> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folders = entries(&self.dir.join("statistics"))?;
        folders.iter().filter_map(|folder| self.statistics_of(&name(folder)).transpose()).collect()
    }

    fn statistics_dir(&self, id: &str) -> Result<PathBuf, StoreError> {
        Ok(self.dir.join("statistics").join(checked_id(id)?))
    }
}
