//! The segment after the one being written, prepared off the hot path.
//!
//! A segment that is allocated and zeroed before it is used needs no metadata at an fdatasync. A
//! short-lived named thread prepares it; the writer thread takes it when it needs it, and joins
//! the thread when it ends.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use pgcapture_engine::segment::{Preparation, next_segment_bytes};

use super::files::{allocate, create_allocated, io_error, spare_path};
use crate::log::LogError;

/// See the module.
#[derive(Debug)]
pub(super) struct Spare {
    path: PathBuf,
    /// Length of the next segment.
    bytes: u64,
    bytes_max: u64,
    preparing: Option<JoinHandle<Result<File, LogError>>>,
    is_cancelled: Arc<AtomicBool>,
}

impl Spare {
    /// Makes an empty place for segment files of up to `bytes_max`; removes what a crash left there.
    pub(super) fn new(directory: &Path, bytes_max: u64) -> Result<Self, LogError> {
        let path = spare_path(directory);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &path)(error));
            }
            _ => {}
        }
        Ok(Self {
            path,
            bytes: next_segment_bytes(0, bytes_max),
            bytes_max,
            preparing: None,
            is_cancelled: Arc::default(),
        })
    }

    /// Takes note of the length of the segment that is written now.
    pub(super) fn follow(&mut self, segment_bytes: u64) {
        self.bytes = next_segment_bytes(segment_bytes, self.bytes_max);
    }

    /// Has the next segment be as long as the one that is written now, unless a larger one is prepared.
    pub(super) fn stay(&mut self, segment_bytes: u64) {
        if self.preparing.is_none() {
            self.bytes = self.bytes.min(segment_bytes);
        }
    }

    /// Begins with small segments again; what was prepared goes.
    pub(super) fn start_small(&mut self) {
        self.discard();
        self.follow(0);
    }

    /// Begins to prepare a file unless one is there or being prepared.
    pub(super) fn prepare(&mut self, preparation: Preparation) {
        if self.preparing.is_some() {
            return;
        }
        let (path, bytes) = (self.path.clone(), self.bytes);
        let is_cancelled = Arc::clone(&self.is_cancelled);
        let prepare = move || {
            let is_cancelled = || is_cancelled.load(Ordering::Relaxed);
            match preparation {
                Preparation::Zeroed => create_allocated(&path, bytes, Some(&is_cancelled)),
                Preparation::Allocated => create_allocated(&path, bytes, None),
            }
        };
        let name = "pgcapture-log-spare".to_owned();
        match thread::Builder::new().name(name).spawn(prepare) {
            Ok(thread) => self.preparing = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread to prepare a log segment"),
        }
    }

    /// Returns a file of at least `bytes`, all zero: the prepared one, else a new one.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(File, u64), LogError> {
        let prepared = self.preparing.take().map(JoinHandle::join);
        let bytes = bytes.max(self.bytes);
        let file = match prepared {
            Some(Ok(Ok(file))) if bytes == self.bytes => file,
            Some(Ok(Ok(file))) => {
                allocate(&file, &self.path, bytes)?;
                file
            }
            // Whatever went wrong there, a full disk above all, is met again and told here.
            None | Some(Ok(Err(_)) | Err(_)) => create_allocated(&self.path, bytes, None)?,
        };
        self.follow(bytes);
        Ok((file, bytes))
    }

    /// Returns where the file lies that [`Self::take`] returned.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the space of a prepared file back.
    pub(super) fn discard(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.preparing.take().map(JoinHandle::join) {
            tracing::warn!("the thread that prepares log segments panicked");
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "cannot remove a spare segment");
            }
            _ => {}
        }
        self.is_cancelled.store(false, Ordering::Relaxed);
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.discard();
    }
}
