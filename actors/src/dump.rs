//! Dumps: existing rows of tables, read from replicas and handed to sessions.
//!
//! [`RangeSource`] is the seam to the gateway: a subscription that has a session pulls ranges, opens
//! them at a position that it has not passed yet, and says how each ended. A range that is given up
//! is handed out again; a range is finished once its last row was acknowledged. [`RangeReader`] is the
//! seam between nodes: the controller of the one that leads says which node reads a range, and that
//! one reads it for whoever holds the ticket.

mod request;

mod handle;

mod plan;

mod targets;

mod hub;

mod controller;

mod worker;

mod dumper;

mod reader;

mod postgres_reader;

pub mod scripted;

use std::fmt::{self, Debug};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use pgcapture_engine::{
    codes::Explanation,
    dump::{DumpId, Extent, Heap},
    lsn::Lsn,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use self::{
    handle::DumpControllerHandle,
    hub::{OtherNodes, ReaderNode},
    postgres_reader::{PostgresReader, ReplicaConfigs},
    reader::{FoundTable, OpenedRows, RangeOrder, ReadTarget, RowReader, RowSource, TablesFound},
    request::{DumpRequest, ScheduledRange, TableRequest},
};
use crate::cursors::SubscriptionId;

/// Batches of rows between a dumper and a session. One is delivered while the next is read; more
/// would only hold memory.
pub const ROW_BATCHES_WAITING_MAX: usize = 4;

/// Where a gateway gets ranges from.
#[async_trait]
pub trait RangeSource: Debug + Send + Sync {
    /// Watches a number that changes whenever there may be something to pull; closed when there
    /// never will be.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Takes the next range that is due for a subscription; `None` when nothing is due now: wait
    /// for [`Self::changes`]. What was taken must be given back by [`Self::finish`] or
    /// [`Self::give_up`].
    ///
    /// # Errors
    ///
    /// [`DumpError`].
    async fn pull(&self, id: &SubscriptionId) -> Result<Option<RangeTicket>, DumpError>;

    /// Takes note that the server has said that a range has no more rows; they are on their way. Whoever
    /// opens a range by [`Self::open`] need not tell.
    async fn was_read(&self, _ticket: &RangeTicket) {}

    /// Opens a range in a snapshot that contains every transaction that commits before `at_least`.
    /// Waits for a replica that is behind, within its limits. Dropping the answer cancels the reading.
    ///
    /// # Errors
    ///
    /// [`DumpError`]; give the range up then.
    async fn open(&self, ticket: &RangeTicket, at_least: Lsn) -> Result<OpenedRange, DumpError>;

    /// Records durably that every row of the range was acknowledged. Idempotent.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when it could not be recorded: the range may be handed out again.
    async fn finish(&self, ticket: RangeTicket, delivered: Delivered) -> Result<(), DumpError>;

    /// Gives a range back that was not wholly acknowledged; it is handed out again after a pause.
    async fn give_up(&self, ticket: RangeTicket, reason: GivenUp);
}

/// Reads ranges on this node, whoever handed them out.
#[async_trait]
pub trait RangeReader: Debug + Send + Sync {
    /// Opens a range in a snapshot that contains every transaction that commits before the positions of
    /// the order and its ticket. Waits for a replica that is behind, within its limits. Dropping the
    /// answer cancels the reading.
    ///
    /// # Errors
    ///
    /// [`DumpError`]; with [`RangeRemedy::Elsewhere`] when this node is at fault.
    async fn read(&self, order: ReadOrder) -> Result<OpenedRange, DumpError>;
}

/// An order to read a range.
pub struct ReadOrder {
    /// Which.
    pub ticket: RangeTicket,
    /// Every transaction that commits before this position must be in.
    pub at_least: Lsn,
    /// Ends the reading before its end: nobody may have the rows any more.
    pub stop: CancellationToken,
    /// Is run once the server has said that there are no more rows; they may still be on their way.
    pub on_read: BoxFuture<'static, ()>,
}

impl fmt::Debug for ReadOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ReadOrder");
        let shown = shown.field("ticket", &self.ticket);
        shown
            .field("at_least", &self.at_least)
            .finish_non_exhaustive()
    }
}

/// There is never a range: for a gateway without dumps.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRanges;

#[async_trait]
impl RangeSource for NoRanges {
    fn changes(&self) -> watch::Receiver<u64> {
        // Closed from the beginning: nobody need wait.
        watch::channel(0).1
    }

    async fn pull(&self, _: &SubscriptionId) -> Result<Option<RangeTicket>, DumpError> {
        Ok(None)
    }

    async fn open(&self, _: &RangeTicket, _: Lsn) -> Result<OpenedRange, DumpError> {
        let (_, rows) = mpsc::channel(1);
        Ok(OpenedRange {
            at: Lsn::ZERO,
            rows,
        })
    }

    async fn finish(&self, _: RangeTicket, _: Delivered) -> Result<(), DumpError> {
        Ok(())
    }

    async fn give_up(&self, _: RangeTicket, _: GivenUp) {}
}

/// The right to run one range once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeTicket {
    /// Unique in the life of the controller; an answer under an old number is ignored.
    pub number: u64,
    /// The dump.
    pub dump: DumpId,
    /// The source whose log the rows are spliced into.
    pub source: String,
    /// Which heap.
    pub heap: Heap,
    /// Which of its rows.
    pub extent: Extent,
    /// From which replica.
    pub replica: String,
    /// The node that shall read it; empty for the one that is asked, which is alone.
    pub node: String,
    /// Where that node is reached; empty when nobody has agreed on one.
    pub address: String,
    /// Every transaction that commits before this position must be in, whatever was delivered.
    pub at_least: Lsn,
    /// Bytes that may be read a second, at most.
    pub rate_bytes_per_second: Option<u64>,
    /// Ranges of the dump that are read at once, at most.
    pub parallel: u32,
}

/// A range that is being read.
#[derive(Debug)]
pub struct OpenedRange {
    /// The rows are those after every transaction that commits before this position and before every
    /// one that commits at or after it.
    pub at: Lsn,
    /// The rows, ending with [`RowEvent::End`]. A channel that closes without it means that the
    /// reader died.
    pub rows: mpsc::Receiver<RowEvent>,
}

/// What a reader of rows says.
#[derive(Debug)]
pub enum RowEvent {
    /// Rows.
    Rows(RowBatch),
    /// The server has said that there are no more.
    End,
    /// The range failed; the rows before are right, but not all.
    Failed(DumpError),
}

/// Rows of one table in one piece of memory.
#[derive(Clone, Debug, Default)]
pub struct RowBatch {
    /// Encoded `pgcapture.Message`s, one after another.
    pub bytes: Bytes,
    /// Offset and length of each in `bytes`.
    pub rows: Vec<(u32, u32)>,
}

/// What was delivered of a finished range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Rows.
    pub row_count: u64,
    /// Encoded bytes.
    pub bytes: u64,
}

/// Why a range was given back.
#[derive(Debug)]
pub enum GivenUp {
    /// The consumer went away: hand it out again at once.
    Disconnected,
    /// The consumer sent a row back, with its reason.
    Requeued(String),
    /// The consumer took or acknowledged nothing for too long.
    Stalled,
    /// The snapshot was older than what the session had delivered already.
    TooOld,
    /// It could not be read.
    Failed(DumpError),
}

/// Why dumps do not go on.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct DumpError {
    /// Its meaning.
    pub explanation: &'static Explanation,
    /// What happened, the chain of causes joined; never a secret, never a row.
    pub what: String,
    /// What to do with the range.
    pub remedy: RangeRemedy,
}

/// What to do with a range that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeRemedy {
    /// Try it again after a pause: the replica was away, cancelled us, or was behind.
    Retry,
    /// Try it again at once, on another node: the one that read it is away, or took no more.
    Elsewhere,
    /// The table was rewritten: plan it anew.
    Replan,
    /// It will not get better by itself: the table fails, with this error.
    Fail,
}

#[cfg(test)]
mod tests;
