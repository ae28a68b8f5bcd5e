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
    ChangeLog, LogError, LogHealth,
    embedded::{EmbeddedLog, EmbeddedLogOptions},
};

use tokio::sync::watch;

use crate::config::Config;

/// All logs of a node.
#[derive(Debug)]
pub struct Logs {
    directory: PathBuf,
    options: EmbeddedLogOptions,
    open: Mutex<BTreeMap<String, Arc<EmbeddedLog>>>,
    changes: watch::Sender<u64>,
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
            changes: watch::Sender::default(),
        }
    }

    /// Watches a number that changes whenever a log is opened or closed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn tell(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    /// Opens a source's log, or returns the open one; one that has failed is opened again, which
    /// checks what it holds. Blocks for some milliseconds.
    ///
    /// # Errors
    ///
    /// As [`EmbeddedLog::open`].
    pub fn open(&self, source: &str) -> Result<Arc<dyn ChangeLog>, LogError> {
        let mut open = self.lock();
        if let Some(log) = open.get(source).filter(|log| !has_failed(log)) {
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
        drop(open);
        self.tell();
        Ok(log)
    }

    /// Tells whether a source's log is open and has not failed.
    #[must_use]
    pub fn is_usable(&self, source: &str) -> bool {
        self.lock().get(source).is_some_and(|log| !has_failed(log))
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
            self.tell();
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

fn has_failed(log: &EmbeddedLog) -> bool {
    matches!(*log.health().borrow(), LogHealth::Failed { .. })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io};

    use pgcapture_actors::log::embedded::Disk;
    use pgcapture_engine::{
        batch::Batch,
        checkpoint::Epoch,
        lsn::{Lsn, PgTime},
    };

    use super::*;

    /// Every sync fails.
    #[derive(Debug)]
    struct BrokenDisk;

    impl Disk for BrokenDisk {
        fn sync(&self, _: &File) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(5))
        }
    }

    #[tokio::test]
    async fn a_log_that_has_failed_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs {
            directory: folder.path().to_owned(),
            options: EmbeddedLogOptions {
                disk: Arc::new(BrokenDisk),
                ..EmbeddedLogOptions::default()
            },
            open: Mutex::default(),
            changes: watch::Sender::default(),
        };
        let failing = logs.open("shop").unwrap();
        assert!(logs.is_usable("shop"));
        let mut writer = failing.open_writer(Epoch(1)).await.unwrap();
        let progress = Batch::progress(Lsn(1), PgTime(0));
        writer.append(progress).await.unwrap();
        assert!(writer.flush().await.is_err());
        let mut health = failing.health();
        let is_failed = |health: &LogHealth| matches!(health, LogHealth::Failed { .. });
        health.wait_for(is_failed).await.unwrap();
        assert!(!logs.is_usable("shop"));
        let again = loop {
            match logs.open("shop") {
                // Its thread is about to give up the directory.
                Err(LogError::InUse { .. }) => tokio::task::yield_now().await,
                opened => break opened.unwrap(),
            }
        };
        assert!(logs.is_usable("shop"));
        assert!(!Arc::ptr_eq(&again, &failing));
    }
}
