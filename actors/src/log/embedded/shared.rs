//! What the log, its writer thread and its readers share.
//!
//! The writer thread alone adds and removes segments and publishes the tail; everybody else reads.
//! No lock is held across an await or a disk access, but for [`Segment::index`], which only
//! blocking threads take.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{Counter, Gauge, Histogram};
use pgcapture_engine::{
    checkpoint::Checkpoint,
    lsn::{Lsn, PgTime},
    segment::SegmentHeader,
};
use tokio::sync::watch;

use super::{cache::TailCache, index::SegmentIndex, queue::Queue};
use crate::log::{LogError, LogHealth, Tail};

/// A segment that is part of the log.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) path: PathBuf,
    /// Length of the file.
    pub(super) bytes: AtomicU64,
    pub(super) index: Mutex<SegmentIndex>,
}

impl Segment {
    pub(super) fn new(header: SegmentHeader, path: PathBuf, bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            index: Mutex::new(SegmentIndex::new(&header)),
            header,
            path,
            bytes: AtomicU64::new(bytes),
        })
    }
}

/// The segment that holds a position, and where it ends.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) segment: Arc<Segment>,
    /// Offset where the next segment begins; `None` for the one being written.
    pub(super) end: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) queue: Queue,
    pub(super) tail: watch::Receiver<Tail>,
    pub(super) health: watch::Sender<LogHealth>,
    /// Position that readers ask the writer to make known soon.
    pub(super) asked: watch::Sender<Lsn>,
    /// Number of the last durable batch, as [`Queue`] counts; closed when the writer has ended.
    pub(super) committed: watch::Receiver<u64>,
    pub(super) segments: RwLock<VecDeque<Arc<Segment>>>,
    /// First entry of the log and its commit time.
    pub(super) earliest: Mutex<Option<(Checkpoint, PgTime)>>,
    pub(super) cache: Mutex<TailCache>,
    pub(super) metrics: LogMetrics,
}

impl Shared {
    /// Returns the segments, oldest first.
    pub(super) fn segments(&self) -> Vec<Arc<Segment>> {
        let segments = self.segments.read();
        let segments = segments.expect("no code panics under this lock");
        segments.iter().map(Arc::clone).collect()
    }

    /// Finds the segment that holds the block at `offset`; `None` when retention removed it.
    pub(super) fn locate(&self, offset: u64) -> Option<Located> {
        let segments = self.segments.read();
        let segments = segments.expect("no code panics under this lock");
        let after = segments.partition_point(|segment| segment.header.base_offset <= offset);
        let segment = segments.get(after.checked_sub(1)?)?;
        Some(Located {
            segment: Arc::clone(segment),
            end: segments.get(after).map(|next| next.header.base_offset),
        })
    }

    /// Returns the header of the oldest segment: what is removed ends where it begins.
    pub(super) fn oldest(&self) -> SegmentHeader {
        let segments = self.segments.read();
        let segments = segments.expect("no code panics under this lock");
        segments
            .front()
            .map(|segment| segment.header)
            .unwrap_or_default()
    }

    /// Returns the bytes on disk and the number of segments.
    pub(super) fn size(&self) -> (u64, u64) {
        let segments = self.segments.read();
        let segments = segments.expect("no code panics under this lock");
        let bytes = segments
            .iter()
            .map(|segment| segment.bytes.load(Ordering::Relaxed));
        (bytes.sum(), segments.len() as u64)
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, TailCache> {
        self.cache.lock().expect("no code panics under this lock")
    }

    pub(super) fn earliest(&self) -> MutexGuard<'_, Option<(Checkpoint, PgTime)>> {
        let earliest = self.earliest.lock();
        earliest.expect("no code panics under this lock")
    }
}

/// The metrics of one log, label `source`.
#[derive(Clone)]
pub(super) struct LogMetrics {
    pub(super) append_seconds: Histogram,
    pub(super) fsync_seconds: Histogram,
    pub(super) bytes: Gauge,
    pub(super) durable_lsn: Gauge,
    pub(super) oldest_seconds: Gauge,
    pub(super) fenced: Counter,
    pub(super) corruptions: Counter,
}

impl LogMetrics {
    pub(super) fn new(source: &str) -> Self {
        let source = || [("source", source.to_owned())];
        Self {
            append_seconds: metrics::histogram!("pgcapture_log_append_duration_seconds", &source()),
            fsync_seconds: metrics::histogram!("pgcapture_log_fsync_duration_seconds", &source()),
            bytes: metrics::gauge!("pgcapture_log_bytes", &source()),
            durable_lsn: metrics::gauge!("pgcapture_log_durable_lsn_bytes", &source()),
            oldest_seconds: metrics::gauge!(
                "pgcapture_log_oldest_event_timestamp_seconds",
                &source()
            ),
            fenced: metrics::counter!("pgcapture_log_fenced_appends_total", &source()),
            corruptions: metrics::counter!("pgcapture_log_corruptions_total", &source()),
        }
    }
}

impl std::fmt::Debug for LogMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogMetrics").finish_non_exhaustive()
    }
}

impl LogMetrics {
    /// Counts `error` if a writer was refused for its epoch.
    pub(super) fn count_fenced(&self, error: &LogError) {
        if matches!(error, LogError::Fenced { .. }) {
            self.fenced.increment(1);
        }
    }
}
