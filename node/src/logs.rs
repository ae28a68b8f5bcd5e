//! The open logs of this node, one directory a source: `data_dir/logs/<source>`.
//!
//! Opens each log once and hands out shares of it. Each has a slot of its own, so that one that takes long
//! to open, or does not come to an end, holds up no other. Does not know who writes or reads.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::join_all;
use pgcapture_actors::log::{
    ChangeLog, LogError, LogHealth,
    embedded::{EmbeddedLog, EmbeddedLogOptions},
};
use pgcapture_engine::checkpoint::Epoch;
use tokio::sync::watch;

use crate::config::Config;

/// All logs of a node.
#[derive(Debug)]
pub struct Logs {
    directory: PathBuf,
    options: EmbeddedLogOptions,
    /// Never held while a disk is waited for.
    open: Mutex<BTreeMap<String, Arc<EmbeddedLog>>>,
    /// Those that somebody works on.
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    changes: watch::Sender<u64>,
}

/// The work on one log.
#[derive(Debug, Default)]
struct Slot {
    /// Held while it is opened.
    opening: Mutex<()>,
    /// Held while it is judged: what is opened meanwhile may not be what is removed then.
    judging: tokio::sync::Mutex<()>,
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
            slots: Mutex::default(),
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
        let slot = self.slot(source);
        let _opening = lock(&slot.opening);
        let open = self.lock().get(source).map(Arc::clone);
        if let Some(log) = open.filter(|log| !has_failed(log)) {
            return Ok(log);
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
        self.lock().insert(source.to_owned(), Arc::clone(&log));
        self.tell();
        Ok(log)
    }

    /// Opens a source's log as [`Self::open`] does. One that `is_former` tells by its newest epoch to be
    /// another source's is removed first.
    ///
    /// # Errors
    ///
    /// As [`EmbeddedLog::open`].
    pub async fn open_own(
        self: &Arc<Self>,
        source: &str,
        is_former: impl Fn(Epoch) -> bool,
    ) -> Result<(), LogError> {
        let slot = self.slot(source);
        let _judging = slot.judging.lock().await;
        let epoch = self.epoch_of(source).await?;
        if is_former(epoch) {
            tracing::warn!(source, %epoch, "removing the log of an earlier source of that name");
            self.close_and_remove(source).await?;
            self.epoch_of(source).await?;
        }
        Ok(())
    }

    /// Removes a source's log when `is_former` tells by its newest epoch that it is of no use; tells
    /// whether that was so. One that cannot be read counts as one without an epoch. One that was not open
    /// is not open afterwards.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub async fn remove_former(
        self: &Arc<Self>,
        source: &str,
        is_former: impl Fn(Epoch) -> bool,
    ) -> Result<bool, LogError> {
        let slot = self.slot(source);
        let _judging = slot.judging.lock().await;
        let was_open = self.get(source).is_some();
        if !was_open && !self.directory.join(source).exists() {
            return Ok(false);
        }
        let epoch = self.epoch_of(source).await.unwrap_or_else(|error| {
            tracing::warn!(source, %error, "a log that may be removed cannot be read");
            Epoch(0)
        });
        let is_former = is_former(epoch);
        if is_former {
            self.close_and_remove(source).await?;
        } else if !was_open {
            self.close_one(source).await;
        }
        Ok(is_former)
    }

    /// Returns the names of the logs on this node's disk. Blocks for a moment.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn names(&self) -> std::io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // What is not a name was not made here.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    /// Opens a log and returns its newest epoch.
    async fn epoch_of(self: &Arc<Self>, source: &str) -> Result<Epoch, LogError> {
        if let Some(log) = self.get(source).filter(|_| self.is_usable(source)) {
            return Ok(log.tail().borrow().epoch);
        }
        let (logs, name) = (Arc::clone(self), source.to_owned());
        let opened = tokio::task::spawn_blocking(move || logs.open(&name)).await;
        let log =
            opened.map_err(|error| self.io("open", source, std::io::Error::other(error)))??;
        let epoch = log.tail().borrow().epoch;
        Ok(epoch)
    }

    async fn close_one(&self, source: &str) {
        let log = self.lock().remove(source);
        if let Some(log) = log {
            self.tell();
            log.close().await;
        }
    }

    async fn close_and_remove(&self, source: &str) -> Result<(), LogError> {
        self.close_one(source).await;
        match tokio::fs::remove_dir_all(self.directory.join(source)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.io("remove", source, error))
            }
            _ => Ok(()),
        }
    }

    fn io(&self, action: &'static str, source: &str, error: std::io::Error) -> LogError {
        LogError::Io {
            action,
            path: self.directory.join(source),
            source: error,
        }
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

    /// Closes every log; what was accepted is durable on return.
    pub async fn close(&self) {
        let logs = std::mem::take(&mut *self.lock());
        join_all(logs.values().map(|log| log.close())).await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<EmbeddedLog>>> {
        lock(&self.open)
    }

    /// Returns the slot of a log. Those that nobody works on are forgotten.
    fn slot(&self, source: &str) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        Arc::clone(slots.entry(source.to_owned()).or_default())
    }
}

/// A panic under the lock leaves what it guards as it was: go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has_failed(log: &EmbeddedLog) -> bool {
    matches!(*log.health().borrow(), LogHealth::Failed { .. })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io, path::Path};

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

    fn logs(folder: &Path, options: EmbeddedLogOptions) -> Arc<Logs> {
        Arc::new(Logs {
            directory: folder.to_owned(),
            options,
            open: Mutex::default(),
            slots: Mutex::default(),
            changes: watch::Sender::default(),
        })
    }

    /// Writes up to `lsn` under `epoch`, durably.
    async fn write(log: &dyn ChangeLog, epoch: u64, lsn: u64) {
        let mut writer = log.open_writer(Epoch(epoch)).await.unwrap();
        let progress = Batch::progress(Lsn(lsn), PgTime(0));
        writer.append(progress).await.unwrap();
        writer.flush().await.unwrap();
    }

    #[tokio::test]
    async fn the_log_of_an_earlier_source_is_not_gone_on_from() {
        let folder = tempfile::tempdir().unwrap();
        let logs = logs(folder.path(), EmbeddedLogOptions::default());
        let former = |newest| move |epoch| epoch <= Epoch(newest) && epoch != Epoch(0);
        write(logs.open("shop").unwrap().as_ref(), 3, 500).await;
        let resume = || logs.get("shop").unwrap().tail().borrow().resume_lsn;
        // Open or not.
        logs.open_own("shop", former(2)).await.unwrap();
        assert_eq!(resume(), Lsn(500));
        logs.close().await;
        logs.open_own("shop", former(2)).await.unwrap();
        assert_eq!(resume(), Lsn(500));
        logs.open_own("shop", former(3)).await.unwrap();
        assert_eq!(resume(), Lsn(0));
        // What the new one writes is its own.
        write(logs.get("shop").unwrap().as_ref(), 4, 7).await;
        logs.open_own("shop", former(3)).await.unwrap();
        assert_eq!(resume(), Lsn(7));
    }

    #[tokio::test]
    async fn a_log_that_is_of_no_use_leaves_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let logs = logs(folder.path(), EmbeddedLogOptions::default());
        for (name, epoch) in [("audit", 9), ("shop", 3)] {
            write(logs.open(name).unwrap().as_ref(), epoch, 500).await;
        }
        logs.close().await;
        for (name, is_removed) in [("audit", false), ("shop", true), ("none", false)] {
            let removed = logs.remove_former(name, |epoch| epoch <= Epoch(3)).await;
            assert_eq!(removed.unwrap(), is_removed, "{name}");
            assert!(logs.get(name).is_none(), "{name}");
        }
        assert_eq!(logs.names().unwrap(), ["audit"]);
    }

    #[tokio::test]
    async fn a_log_that_takes_long_to_open_holds_up_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let logs = logs(folder.path(), EmbeddedLogOptions::default());
        // As its disk holds it while it answers nothing.
        let slot = logs.slot("slow");
        let (held, is_held) = tokio::sync::oneshot::channel();
        let (answer, answered) = std::sync::mpsc::channel();
        let disk = tokio::task::spawn_blocking(move || {
            let _opening = lock(&slot.opening);
            held.send(()).unwrap();
            answered.recv().unwrap();
        });
        is_held.await.unwrap();
        let waiting = Arc::clone(&logs);
        let slow = tokio::task::spawn_blocking(move || waiting.open("slow").map(drop));
        logs.open_own("shop", |_| false).await.unwrap();
        assert!(logs.is_usable("shop"));
        assert!(logs.get("slow").is_none());
        assert!(!logs.remove_former("none", |_| true).await.unwrap());
        answer.send(()).unwrap();
        disk.await.unwrap();
        slow.await.unwrap().unwrap();
        assert!(logs.is_usable("slow"));
        drop(logs.slot("shop"));
        assert!(lock(&logs.slots).len() <= 1, "nobody works on the others");
    }

    #[tokio::test]
    async fn a_log_that_has_failed_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let options = EmbeddedLogOptions {
            disk: Arc::new(BrokenDisk),
            ..EmbeddedLogOptions::default()
        };
        let logs = logs(folder.path(), options);
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
