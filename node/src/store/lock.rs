//! The lock on a data directory: one node at a time.
//!
//! An `flock` on `node.lock`; the kernel releases it when the process ends, however it ends.

use std::{
    fs::{File, OpenOptions},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use super::StoreError;

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock without waiting.
    pub(super) fn take(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("node.lock");
        let unwritable = |action, source| StoreError::Unwritable {
            action,
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| unwritable("create", source))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse {
                directory: directory.to_owned(),
            }),
            Err(errno) => Err(unwritable("lock", errno.into())),
        }
    }
}
