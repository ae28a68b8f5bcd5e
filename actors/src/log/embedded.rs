//! The embedded log: checksummed segment files in one directory, no broker.
//!
//! One owned thread writes (`writer`): it takes everything that was accepted, writes and syncs
//! once, and publishes the tail. Readers follow the tail from memory and read files behind it.
//! The format and the decisions lie in `pgcapture_engine::segment`.
//!
//! # Invariants
//!
//! - What a reader or the tail shows was synced to the device.
//! - One process at a time has the directory open.
//! - Memory is bounded by the queue and the tail cache, whatever is written and whoever reads.

mod blocks;
mod cache;
mod files;
mod index;
mod merge;
mod queue;
mod reader;
mod recovery;
mod segments;
mod shared;
mod spare;
mod writer;

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, RwLock, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use async_trait::async_trait;
use pgcapture_engine::{
    batch::Batch,
    checkpoint::{Checkpoint, Epoch},
    confirm::Origin,
    lsn::{Lsn, PgTime},
    retention::Retention,
    segment::SegmentHeader,
};
use tokio::sync::watch;

pub use self::files::{Disk, RealDisk};
use self::{
    cache::TailCache,
    files::{io_error, lock_directory},
    queue::{Queue, Right},
    reader::{EmbeddedReader, Position},
    recovery::{Recovered, recover},
    segments::{Segments, begin},
    shared::{LogMetrics, Shared},
    spare::Spare,
    writer::Writer,
};
use super::{
    ChangeLog, LogError, LogExtent, LogHealth, LogReader, LogWriter, Start, Tail, ask,
    check_origin, removed, skip::Skip,
};
use crate::clock::now;

/// How a log behaves; [`Default`] suits a source of a busy database.
#[derive(Clone, Debug)]
pub struct EmbeddedLogOptions {
    /// Name of the source, the label of the metrics.
    pub source: String,
    /// Length of a segment file. 64 MiB: recovery reads one segment at most, in some 20 ms, and
    /// retention removes in these units. The first ones of a log are smaller, from 1 MiB on: a source
    /// that is idle takes little space. A larger batch makes a larger segment.
    pub segment_bytes: u64,
    /// Bytes kept; the oldest segments are removed beyond it. 16 GiB: a day or more of most
    /// sources, and the disk of a small machine holds it. `None` keeps everything.
    pub retention_bytes: Option<u64>,
    /// How long a closed segment is kept. 7 days: a consumer that broke on a Friday is repaired
    /// on a Monday. `None` keeps everything.
    pub retention_time: Option<Duration>,
    /// Bytes accepted and not durable. 32 MiB: at 400 MB/s of disk some 80 ms of writes, enough
    /// that group commit is never short of work; also the most that a crash makes PostgreSQL send
    /// again.
    pub queue_bytes_max: usize,
    /// Bytes of the newest batches kept in memory for readers at the tail. 16 MiB: readers that
    /// are up to some 50,000 changes behind cost no disk access.
    pub tail_cache_bytes: usize,
    /// How bytes become durable.
    pub disk: Arc<dyn Disk>,
}

impl Default for EmbeddedLogOptions {
    fn default() -> Self {
        Self {
            source: String::new(),
            segment_bytes: 64 << 20,
            retention_bytes: Some(16 << 30),
            retention_time: Some(Duration::from_hours(7 * 24)),
            queue_bytes_max: 32 << 20,
            tail_cache_bytes: 16 << 20,
            disk: Arc::new(RealDisk),
        }
    }
}

/// Least length of a segment: below it files and syncs cost more than the data.
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;

/// An ordered log in a directory. Dropping it finishes what was accepted and gives up the
/// directory; see [`Self::close`].
#[derive(Debug)]
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedLog {
    /// Opens the log in `directory`, or makes one. Repairs what a crash left. Blocks the thread
    /// for some milliseconds: reads the headers of all segments and the last segment.
    ///
    /// # Errors
    ///
    /// [`LogError::InUse`], [`LogError::NewerVersion`], [`LogError::Corrupt`] when something that
    /// was durable is damaged or missing in the last segment, or [`LogError::Io`].
    pub fn open(
        directory: impl AsRef<Path>,
        options: EmbeddedLogOptions,
    ) -> Result<Arc<Self>, LogError> {
        let directory = directory.as_ref().to_owned();
        let lock = lock_directory(&directory)?;
        let segment_bytes = options.segment_bytes.max(SEGMENT_BYTES_MIN);
        let mut spare = Spare::new(&directory, segment_bytes)?;
        let recovered = match recover(&directory)? {
            Some(recovered) => recovered,
            None => first_segment(&directory, &mut spare)?,
        };
        let tail = recovered.tail;
        let active = recovered.segments.back().map(Arc::clone);
        let active = active.expect("a recovered log has a segment");
        spare.follow(active.bytes.load(Ordering::Relaxed));
        let (tail_sender, tail_receiver) = watch::channel(tail);
        let (committed_sender, committed_receiver) = watch::channel(0);
        let shared = Arc::new(Shared {
            queue: Queue::new(options.queue_bytes_max, &tail),
            tail: tail_receiver,
            health: watch::Sender::default(),
            asked: watch::Sender::default(),
            committed: committed_receiver,
            segments: RwLock::new(recovered.segments),
            earliest: Mutex::default(),
            cache: Mutex::new(TailCache::new(tail.offset, options.tail_cache_bytes)),
            metrics: LogMetrics::new(&options.source),
            directory: directory.clone(),
        });
        match index::first_entry(&shared, tail.offset) {
            Ok(first) => *shared.earliest() = first,
            // A reader that gets there is told; the rest of the log can be used.
            Err(error) => tracing::error!(%error, "the first entry of the log cannot be read"),
        }
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let ways = (spare, Arc::clone(&options.disk));
        let segments = Segments::new(directory, active, recovered.file, tail.offset, ways);
        let writer = Writer {
            shared: Arc::clone(&shared),
            segments,
            tail: tail_sender,
            committed: committed_sender,
            retention: Retention {
                bytes: options.retention_bytes,
                micros: options.retention_time.map(micros),
            },
            _lock: lock,
        };
        let thread = thread::Builder::new()
            .name("pgcapture-log".to_owned())
            .spawn(move || writer.run())
            .map_err(io_error("start a thread for", &shared.directory))?;
        Ok(Arc::new(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Finishes what was accepted, ends the writer thread and gives up the directory. Readers
    /// read on to the tail and then get [`LogError::Closed`]. What waits for space on a full disk
    /// is dropped: it was never durable. A second call does nothing.
    pub async fn close(&self) {
        let Some(thread) = self.signal_close() else {
            return;
        };
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the writer thread of a log panicked");
        }
    }

    fn signal_close(&self) -> Option<JoinHandle<()>> {
        self.shared.queue.close();
        let mut thread = self.thread.lock().expect("no code panics under this lock");
        thread.take()
    }

    /// Returns where a reader of `start` begins.
    async fn position(&self, start: Start) -> Result<Position, LogError> {
        let oldest = self.shared.oldest();
        if let Some(floor) = oldest.previous {
            let earliest = self.extent().earliest.unwrap_or(floor);
            // Of what was before a log that was started anew only this is known: it was earlier.
            let floor_time = if oldest.starts_anew {
                oldest.created
            } else {
                oldest.commit_time
            };
            if let Some(error) = removed(start, floor, floor_time, earliest) {
                return Err(error);
            }
        }
        let skip = match start {
            Start::Earliest => Skip::Nothing,
            Start::Latest => {
                let tail = *self.shared.tail.borrow();
                return Ok(Position {
                    offset: tail.offset,
                    passed: tail.last,
                    skip: Skip::Nothing,
                });
            }
            Start::After(checkpoint) => Skip::Through(checkpoint),
            Start::AtLsn(lsn) => Skip::before_lsn(lsn),
            Start::AtTime(time) => Skip::Before(time),
        };
        let passed = match skip {
            Skip::Through(checkpoint) => Some(checkpoint),
            Skip::Nothing | Skip::Before(_) => oldest.previous,
        };
        let offset = if skip == Skip::Nothing {
            oldest.base_offset
        } else {
            let shared = Arc::clone(&self.shared);
            let sought = tokio::task::spawn_blocking(move || index::seek(&shared, skip)).await;
            sought.map_err(|error| LogError::Closed {
                reason: format!("a read ended with {error}"),
            })??
        };
        Ok(Position {
            offset,
            passed,
            skip,
        })
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        if let Some(Err(_)) = self.signal_close().map(JoinHandle::join) {
            tracing::error!("the writer thread of a log panicked");
        }
    }
}

/// Makes the first segment of a new log: allocated, not zeroed, so that opening does not wait.
fn first_segment(directory: &Path, spare: &mut Spare) -> Result<Recovered, LogError> {
    let header = SegmentHeader {
        number: 1,
        created: now(),
        ..SegmentHeader::default()
    };
    let (segment, file) = begin(directory, spare, header, 0)?;
    Ok(Recovered {
        segments: VecDeque::from([segment]),
        tail: Tail::default(),
        file,
    })
}

#[async_trait]
impl ChangeLog for EmbeddedLog {
    async fn open_writer(&self, epoch: Epoch) -> Result<Box<dyn LogWriter>, LogError> {
        let count = |error: &LogError| self.shared.metrics.count_fenced(error);
        let (right, answer) = self.shared.queue.fence(epoch).inspect_err(count)?;
        answer.await.map_err(|_| self.shared.queue.why_closed())?;
        Ok(Box::new(EmbeddedWriter {
            shared: Arc::clone(&self.shared),
            right,
        }))
    }

    async fn open_reader(&self, start: Start) -> Result<Box<dyn LogReader>, LogError> {
        let position = self.position(start).await?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(EmbeddedReader::new(shared, position)))
    }

    fn tail(&self) -> watch::Receiver<Tail> {
        self.shared.tail.clone()
    }

    fn health(&self) -> watch::Receiver<LogHealth> {
        self.shared.health.subscribe()
    }

    fn extent(&self) -> LogExtent {
        let earliest = *self.shared.earliest();
        let oldest = self.shared.oldest();
        let will_be = || Checkpoint::new(oldest.resume_lsn, 0);
        let (bytes, segments) = self.shared.size();
        LogExtent {
            earliest: earliest
                .map(|(first, _)| first)
                .or_else(|| oldest.starts_anew.then(will_be)),
            earliest_time: earliest.map_or(PgTime::default(), |(_, time)| time),
            tail: *self.shared.tail.borrow(),
            bytes,
            segments,
        }
    }

    fn ask_progress(&self, at: Lsn) {
        ask(&self.shared.asked, at);
    }

    fn asked_progress(&self) -> Option<watch::Receiver<Lsn>> {
        Some(self.shared.asked.subscribe())
    }
}

/// One writer of the log; the queue decides whether it still is.
#[derive(Debug)]
struct EmbeddedWriter {
    shared: Arc<Shared>,
    right: Right,
}

#[async_trait]
impl LogWriter for EmbeddedWriter {
    async fn append(&mut self, batch: Batch) -> Result<(), LogError> {
        let appended = self.shared.queue.append(self.right, batch).await;
        appended.inspect_err(|error| self.shared.metrics.count_fenced(error))
    }

    async fn flush(&mut self) -> Result<Tail, LogError> {
        let accepted = self.shared.queue.accepted(self.right)?;
        let mut committed = self.shared.committed.clone();
        let reached = committed.wait_for(|number| *number >= accepted).await;
        reached.map_err(|_| self.shared.queue.why_closed())?;
        self.shared.queue.check(self.right)?;
        Ok(*self.shared.tail.borrow())
    }

    async fn reset(&mut self, origin: Origin) -> Result<Tail, LogError> {
        check_origin(origin, &self.flush().await?)?;
        let answer = self.shared.queue.reset(self.right, origin)?;
        answer.await.map_err(|_| self.shared.queue.why_closed())
    }
}
