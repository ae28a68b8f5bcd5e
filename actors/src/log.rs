//! The ordered change log of one source, whatever keeps it.
//!
//! Two traits are the seam between the publisher and the gateway: [`ChangeLog`] and the
//! [`LogWriter`] and [`LogReader`] that it opens. Every backend passes the same contract test
//! (`actors/tests/log_contract.rs`). A batch that was *accepted* may be lost by a crash; a batch that is *durable*
//! may not. Readers see durable batches only.

pub mod embedded;
pub mod memory;

pub mod routed;

mod skip;

use std::{fmt::Debug, io, path::PathBuf};

use async_trait::async_trait;
use pgcapture_engine::{
    batch::Batch,
    checkpoint::{Checkpoint, Epoch},
    codes::{Explanation, log as codes},
    confirm::Origin,
    lsn::{Lsn, PgTime},
};
use tokio::sync::watch;

/// The ordered log of one source. Cheap to clone behind an `Arc`.
#[async_trait]
pub trait ChangeLog: Debug + Send + Sync {
    /// Takes the right to write under `epoch`. Every writer of an older epoch is refused from then
    /// on, as is an `epoch` older than the newest one in the log. The same epoch may be opened
    /// again; the earlier writer is then refused as well.
    ///
    /// # Errors
    ///
    /// [`LogError::Fenced`], or what the storage says.
    async fn open_writer(&self, epoch: Epoch) -> Result<Box<dyn LogWriter>, LogError>;

    /// Opens a reader. Any number of readers may be open; none holds up another or the writer.
    ///
    /// # Errors
    ///
    /// [`LogError::Removed`] when retention has removed what `start` asks for.
    async fn open_reader(&self, start: Start) -> Result<Box<dyn LogReader>, LogError>;

    /// Watches the durable end of the log.
    fn tail(&self) -> watch::Receiver<Tail>;

    /// Watches whether the log takes writes.
    fn health(&self) -> watch::Receiver<LogHealth>;

    /// Returns what the log holds now.
    fn extent(&self) -> LogExtent;

    /// Asks whoever writes the log to make known soon that nothing is missing up to `at`: a reader
    /// waits at the tail for that, and an idle source tells it once a second only. A wish: a log
    /// that is written elsewhere may ignore it.
    fn ask_progress(&self, at: Lsn) {
        let _ = at;
    }

    /// Watches the furthest position that was asked for; `None` when the log hears of none.
    fn asked_progress(&self) -> Option<watch::Receiver<Lsn>> {
        None
    }
}

/// The one writer of a log.
#[async_trait]
pub trait LogWriter: Send {
    /// Accepts a batch and returns before it is durable; waits while the queue is full. Batches
    /// become durable in the order of acceptance; [`ChangeLog::tail`] tells when. A batch without
    /// entries makes its `resume_lsn` durable.
    ///
    /// # Errors
    ///
    /// [`LogError::OutOfOrder`] when the batch does not follow the last accepted one,
    /// [`LogError::Fenced`] when a newer writer was opened. After an error the writer is dead:
    /// what was accepted may or may not be durable; open a new one and read the tail.
    async fn append(&mut self, batch: Batch) -> Result<(), LogError>;

    /// Waits until everything accepted is durable and returns the tail.
    ///
    /// # Errors
    ///
    /// As for [`Self::append`].
    async fn flush(&mut self) -> Result<Tail, LogError>;

    /// Waits as [`Self::flush`] does, then starts the log anew: everything in it is removed, and it
    /// goes on after `origin`, durably. A reader that has not passed everything before gets
    /// [`LogError::Removed`], as after retention; none goes on in silence. A crash leaves the log as
    /// it was or anew, nothing between.
    ///
    /// # Errors
    ///
    /// As for [`Self::append`]; [`LogError::OutOfOrder`] when `origin` lies before the log's end.
    async fn reset(&mut self, origin: Origin) -> Result<Tail, LogError>;
}

/// A position in a log that moves forward.
#[async_trait]
pub trait LogReader: Send {
    /// Returns the next durable batch; waits at the tail. Cancellation-safe: a dropped call loses
    /// nothing. Batches need not be the ones that were appended, but entries come in the same
    /// order and each once. Batches without entries may be skipped.
    ///
    /// # Errors
    ///
    /// [`LogError::Removed`] when retention has overtaken the reader, [`LogError::Corrupt`] when a
    /// checksum does not match: no byte of a damaged block is ever returned.
    async fn next(&mut self) -> Result<Batch, LogError>;

    /// Returns the next batch if one is durable already, else `None`, without waiting for more.
    ///
    /// # Errors
    ///
    /// As for [`Self::next`].
    async fn try_next(&mut self) -> Result<Option<Batch>, LogError>;
}

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest entry that retention has left.
    Earliest,
    /// At the durable tail: only what comes.
    Latest,
    /// After this entry.
    After(Checkpoint),
    /// At the first transaction that commits at or after this LSN.
    AtLsn(Lsn),
    /// At the first transaction that committed at or after this moment.
    AtTime(PgTime),
}

/// The durable end of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Newest epoch that may write.
    pub epoch: Epoch,
    /// Last durable entry; `None` in a log that never had one.
    pub last: Option<Checkpoint>,
    /// Where replication resumes; see [`Batch::resume_lsn`]. Zero in an empty log.
    pub resume_lsn: Lsn,
    /// Commit time of the newest transaction; zero when unknown.
    pub commit_time: PgTime,
    /// Bytes ever appended, those removed by retention included: distances between two tails.
    pub offset: u64,
}

/// Whether the log takes writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogHealth {
    /// It does.
    #[default]
    Writable,
    /// It cannot write now (disk full) and tries again by itself; nothing is lost, the source
    /// waits.
    Blocked {
        /// What the operator should know, with a code: `PGC-L01: no space left …`.
        reason: String,
    },
    /// It failed for good (an fsync that failed once cannot be trusted again); reopen it.
    Failed {
        /// What the operator should know.
        reason: String,
    },
}

/// What a log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogExtent {
    /// First entry that retention has left; where the first one will be in a log that was started
    /// anew and has none yet.
    pub earliest: Option<Checkpoint>,
    /// Commit time of that entry's transaction; zero when unknown.
    pub earliest_time: PgTime,
    /// The durable end.
    pub tail: Tail,
    /// Bytes on disk.
    pub bytes: u64,
    /// Number of segments (or ledgers).
    pub segments: u64,
}

/// Why a log could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A newer epoch holds the log.
    #[error("epoch {asked} may not write: the log belongs to epoch {held}")]
    Fenced {
        /// The epoch that was refused.
        asked: Epoch,
        /// The epoch that holds the log.
        held: Epoch,
    },
    /// Retention has removed the position.
    #[error("position {asked} is no longer in the log; the earliest one is {earliest}")]
    Removed {
        /// What was asked for, as text.
        asked: String,
        /// The first position that can be read.
        earliest: Checkpoint,
    },
    /// The batch does not follow the last one.
    #[error("a batch that starts at {first} does not follow {last}")]
    OutOfOrder {
        /// First checkpoint of the refused batch.
        first: Checkpoint,
        /// Last accepted checkpoint.
        last: Checkpoint,
    },
    /// Stored bytes do not match their checksum.
    #[error("{} is damaged at byte {offset}: {what}", file.display())]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Files of a newer version of pgcapture.
    #[error("{} has format version {found}; this pgcapture reads up to {supported}", file.display())]
    NewerVersion {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this program reads.
        supported: u32,
    },
    /// Another process has the log open.
    #[error("{} is in use by another process", directory.display())]
    InUse {
        /// The locked directory.
        directory: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `write`, `read`, `create` …
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The node that has the log cannot be reached, or runs the source no more.
    #[error("{node} does not deliver the log: {reason}")]
    Away {
        /// The node, or its address.
        node: String,
        /// What it said, or the connection to it.
        reason: String,
    },
    /// The log was closed or its writer died of an earlier error.
    #[error("the log is closed: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
}

impl LogError {
    /// Returns the stable code that explains the error, if it is one for an operator.
    #[must_use]
    pub const fn explanation(&self) -> Option<&'static Explanation> {
        match self {
            Self::Fenced { .. } => Some(&codes::FENCED),
            Self::Removed { .. } => Some(&codes::REMOVED),
            Self::Corrupt { .. } => Some(&codes::CORRUPT),
            Self::NewerVersion { .. } => Some(&codes::NEWER_VERSION),
            Self::InUse { .. } => Some(&codes::IN_USE),
            Self::Io { .. } => Some(&codes::UNUSABLE),
            Self::Away { .. } => Some(&codes::OWNER_AWAY),
            Self::OutOfOrder { .. } | Self::Closed { .. } => None,
        }
    }
}

/// Raises the position that readers ask for.
fn ask(asked: &watch::Sender<Lsn>, at: Lsn) {
    asked.send_if_modified(|furthest| {
        let is_further = *furthest < at;
        *furthest = at.max(*furthest);
        is_further
    });
}

impl Tail {
    /// Returns the end as a place where a log may begin.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        Origin {
            previous: self.last,
            resume_lsn: self.resume_lsn,
        }
    }
}

/// Refuses to start a log anew before its end.
fn check_origin(origin: Origin, tail: &Tail) -> Result<(), LogError> {
    if origin.previous >= tail.last && origin.resume_lsn >= tail.resume_lsn {
        return Ok(());
    }
    let place = |previous: Option<Checkpoint>, resume_lsn| {
        previous.unwrap_or(Checkpoint::new(resume_lsn, 0))
    };
    Err(LogError::OutOfOrder {
        first: place(origin.previous, origin.resume_lsn),
        last: place(tail.last, tail.resume_lsn),
    })
}

/// Refuses a batch whose first entry does not come after `last`.
fn check_order(batch: &Batch, last: Option<Checkpoint>) -> Result<(), LogError> {
    let Some((first, _)) = batch.span else {
        return Ok(());
    };
    match last {
        Some(last) if first <= last => Err(LogError::OutOfOrder { first, last }),
        _ => Ok(()),
    }
}

/// Tells whether retention has removed something that `start` asks for. `floor` is the last entry
/// that was removed and `floor_time` the newest commit time among the removed ones.
///
/// A position exactly at the floor lacks nothing: what comes after it is all there.
fn removed(
    start: Start,
    floor: Checkpoint,
    floor_time: PgTime,
    earliest: Checkpoint,
) -> Option<LogError> {
    let asked = match start {
        Start::After(checkpoint) if checkpoint < floor => checkpoint.to_string(),
        Start::AtLsn(lsn) if lsn <= floor.lsn => lsn.to_string(),
        Start::AtTime(time) if time <= floor_time => {
            format!("{} µs since 1970", time.unix_micros())
        }
        Start::Earliest | Start::Latest | Start::After(_) | Start::AtLsn(_) | Start::AtTime(_) => {
            return None;
        }
    };
    Some(LogError::Removed { asked, earliest })
}
