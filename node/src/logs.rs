//! The open logs of this node, one directory a source: `data_dir/logs/<source>`.
//!
//! Opens each log once and hands out shares of it. Does not know who writes or reads.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pgcapture_actors::log::{
    ChangeLog, LogError,
    embedded::{EmbeddedLog, EmbeddedLogOptions},
};

use crate::config::Config;

/// All logs of a node.
#[derive(Debug)]
pub struct Logs {
    directory: PathBuf,
    options: EmbeddedLogOptions,
    open: Mutex<BTreeMap<String, Arc<EmbeddedLog>>>,
}

impl Logs {
    /// Makes the registry; opens nothing.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let log = &config.log;
        Self {
            directory: config.node.data_dir.join("logs"),
            options: EmbeddedLogOptions {
                segment_bytes: log.segment.0,
                retention_bytes: Some(log.retention.size.0),
                retention_time: Some(log.retention.time.0),
                queue_bytes_max: log.queue.as_len(),
                ..EmbeddedLogOptions::default()
            },
            open: Mutex::default(),
        }
    }

    /// Opens a source's log, or returns the open one. Blocks for some milliseconds.
    ///
    /// # Errors
    ///
    /// As [`EmbeddedLog::open`].
    pub fn open(&self, source: &str) -> Result<Arc<dyn ChangeLog>, LogError> {
        let mut open = self.lock();
        if let Some(log) = open.get(source) {
            return Ok(Arc::<EmbeddedLog>::clone(log));
        }
        let options = EmbeddedLogOptions {
            source: source.to_owned(),
            ..self.options.clone()
        };
        let directory = self.directory.join(source);
        fs::create_dir_all(&directory).map_err(|error| LogError::Io {
            action: "create",
            path: directory.clone(),
            source: error,
        })?;
        let log = EmbeddedLog::open(directory, options)?;
        open.insert(source.to_owned(), Arc::clone(&log));
        Ok(log)
    }

    /// Returns a source's log if it is open.
    #[must_use]
    pub fn get(&self, source: &str) -> Option<Arc<dyn ChangeLog>> {
        let log = self.lock().get(source).map(Arc::clone)?;
        Some(log)
    }

    /// Closes a source's log and removes its files. The second call does nothing.
    ///
    /// # Errors
    ///
    /// When the files cannot be removed.
    pub async fn remove(&self, source: &str) -> std::io::Result<()> {
        let log = self.lock().remove(source);
        if let Some(log) = log {
            log.close().await;
        }
        match tokio::fs::remove_dir_all(self.directory.join(source)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Closes every log; what was accepted is durable on return.
    pub async fn close(&self) {
        let logs = std::mem::take(&mut *self.lock());
        for log in logs.into_values() {
            log.close().await;
        }
    }

    /// A panic under the lock leaves the map as it was: go on.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<EmbeddedLog>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
