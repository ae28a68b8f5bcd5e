//! The store's file, which survives a full disk.
//!
//! redb takes nothing any more after a write failed, for the rest of a database's life: what a disk
//! made of it is known only after a recovery. A full disk passes, so the file is opened again then, which is
//! that recovery. After other failures it stays closed to writes until the node starts anew: pages
//! that a broken disk lost may still look whole from here.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use pgcapture_engine::{cluster::State, codes};
use redb::Database;

use super::{CACHE_BYTES, StoreError, failed, format, open_error};

/// The file while it is open, and whether it has to be opened again.
#[derive(Debug)]
pub(super) struct StoreFile {
    path: PathBuf,
    /// `None` while it cannot be opened.
    database: RwLock<Option<Database>>,
    /// A write found no space: nothing works before the file was opened again.
    was_full: AtomicBool,
}

impl StoreFile {
    /// Opens or makes the file and reads the agreed state.
    pub(super) fn open(path: &Path) -> Result<(Self, State), StoreError> {
        let (database, state) = open(path)?;
        let file = Self {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            was_full: AtomicBool::new(false),
        };
        Ok((file, state))
    }

    /// Opens the file again if the disk was full, and hands over the state that it has: a
    /// transaction that failed may have reached the disk.
    pub(super) fn recover(&self, publish: impl FnOnce(State)) -> Result<(), StoreError> {
        if !self.was_full.load(Ordering::Acquire) {
            return Ok(());
        }
        let database = self.database.write();
        let mut database = database.unwrap_or_else(PoisonError::into_inner);
        // Somebody else was faster.
        if !self.was_full.load(Ordering::Acquire) {
            return Ok(());
        }
        // The old one has the file's lock.
        *database = None;
        let (opened, state) = open(&self.path)?;
        *database = Some(opened);
        publish(state);
        self.was_full.store(false, Ordering::Release);
        tracing::info!("the node's store takes writes again");
        Ok(())
    }

    /// Runs work on the open file.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let database = self.database.read();
        let database = database.unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*database else {
            let what = format!("{} cannot be opened again", self.path.display());
            return Err(StoreError::Failed { what });
        };
        work(database).map_err(|error| {
            if is_full(&error) && !self.was_full.swap(true, Ordering::AcqRel) {
                let code = codes::node::STORE_FAILED.code;
                tracing::error!(code, %error, "the disk of the node's store is full");
            }
            failed(error)
        })
    }
}

fn open(path: &Path) -> Result<(Database, State), StoreError> {
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create(path)
        .map_err(|error| open_error(error, path))?;
    let state = format::read_or_create(&database, path)?;
    Ok((database, state))
}

fn is_full(error: &redb::Error) -> bool {
    let redb::Error::Io(error) = error else {
        return false;
    };
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
