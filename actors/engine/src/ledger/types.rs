//! The words in which the ledger and the gateway speak.

use std::{sync::Arc, time::Duration};

use super::ParcelBody;
use crate::{checkpoint::Checkpoint, lsn::PgTime};

/// Number of a session, unique within its subscription's life; grows with every join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u32);

/// What a session may hold.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Most messages it holds unacknowledged.
    pub unacked_max: usize,
    /// Messages unanswered for this long are delivered again.
    pub ack_timeout: Option<Duration>,
}

/// How much more a session may get now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Messages.
    pub messages: usize,
    /// Payload bytes; the last message may exceed it, so that any row passes.
    pub bytes: usize,
}

impl Room {
    /// Tells whether nothing more fits.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.messages == 0 || self.bytes == 0
    }
}

/// A piece of the log, as it is handed to a session.
#[derive(Clone, Debug)]
pub struct Part {
    /// First entry it stands for, filtered ones included.
    pub first: Checkpoint,
    /// Last entry it stands for.
    pub last: Checkpoint,
    /// Commit time of the newest transaction in it.
    pub commit_time: PgTime,
    /// What is delivered of it.
    pub body: Arc<ParcelBody>,
    /// Whether entries were left out because an earlier life had them acknowledged.
    pub has_restored: bool,
}

/// What a consumer said about one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which message.
    pub checkpoint: Checkpoint,
    /// What about it.
    pub kind: AckKind,
}

/// What a consumer may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckKind {
    /// Done with it.
    Done,
    /// Done with it and everything this session got before it.
    UpTo,
    /// Rows of a dump: done with this many from the first one on, and with everything this session
    /// got before; [`ALL_ROWS`] when the last row says so.
    UpToRow(u32),
    /// To be delivered again.
    Requeue,
}

/// Every row of a range, the last one included.
pub const ALL_ROWS: u32 = u32::MAX;

/// What a run of acknowledgements did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Messages that are done now.
    pub acked_count: u64,
    /// Acknowledgements of what was done already.
    pub repeated_count: u64,
    /// Messages that will be delivered again.
    pub requeued_count: u64,
}

/// A consumer acknowledged what was never delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint {0} was not delivered on this subscription")]
pub struct UnknownCheckpoint(pub Checkpoint);
