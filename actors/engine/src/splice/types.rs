//! The words in which the splice and the gateway speak.

/// Number of a range in the life of its subscription, from 1: `seq` of its rows on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeNumber(pub u32);

/// What was delivered of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowsSent {
    /// Rows.
    pub row_count: u64,
    /// Encoded bytes.
    pub bytes: u64,
}

/// How a range ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// Every row was acknowledged.
    Finished(RowsSent),
    /// The session that had it left, or the last one.
    Disconnected,
    /// The consumer sent a row back, with its reason.
    Requeued(String),
    /// An older change comes again, and the rows must come after it.
    Rewound,
    /// Nothing was taken or acknowledged for too long, or the changes before it did not come.
    Stalled,
    /// Its snapshot came too late, or older than it had to be.
    TooOld,
    /// It could not be read.
    Failed,
}

/// Which rows of a range are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowAck {
    /// One, whichever: they share a checkpoint.
    One,
    /// The first so many, and everything that the session got before.
    UpTo(u64),
    /// All of a range whose last row was sent, and everything that the session got before.
    All,
}

/// A consumer acknowledged rows that it was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRows;
