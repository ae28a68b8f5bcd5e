//! The lines of a history.
//!
//! A line says when it was written (microseconds since the run began) and what happened. Positions
//! are plain numbers here: the harness shares no type with the product.

use serde::{Deserialize, Serialize};

use super::row::{Operation, Row};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Microseconds since the run began.
    pub at_us: u64,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// What the run was asked to do; the first line.
    Run(RunHeader),
    /// A reader's session was opened.
    Opened {
        /// Who.
        reader: Reader,
        /// Counts from 1 for each reader.
        session: u32,
    },
    /// A session is over.
    Ended {
        /// Who.
        reader: Reader,
        /// Which of its sessions.
        session: u32,
        /// The error, or why the reader left.
        cause: String,
    },
    /// A reader got a message.
    Delivered {
        /// By whom, and the message's position.
        place: Place,
        /// What it was.
        item: Item,
    },
    /// A reader acknowledged a message.
    Acked(Place),
    /// A reader asked for a message to be delivered again.
    Nacked(Place),
    /// The slot's position and, read later, the log's.
    Sampled {
        /// `confirmed_flush_lsn` of the slot, read first.
        confirmed: u64,
        /// The node's durable position, read second.
        durable: u64,
    },
    /// A fault was injected, and what became of it.
    Fault {
        /// Its name.
        name: String,
        /// Whether it took place.
        outcome: FaultOutcome,
        /// Whether readers received something new since the fault before it.
        made_progress: bool,
    },
    /// How much the writers did; near the end.
    Load(Load),
    /// Something that must not happen was seen while running, such as a reader that never caught up.
    Trouble {
        /// The property it breaks.
        property: String,
        /// What was seen.
        what: String,
    },
}

/// What the run was asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunHeader {
    /// Seed of all random choices.
    pub seed: u64,
    /// Name of the scenario.
    pub scenario: String,
    /// How many faults must take place.
    pub faults_wanted: u32,
    /// How many accounts the bank has; 0 for a run without a bank.
    pub accounts: u32,
    /// The sum of all balances, at every commit.
    pub total_balance: i64,
    /// Id of the marker row that is committed after everything else.
    pub last_marker: i64,
    /// Rows a second below which the run proves nothing.
    pub rows_per_second_min: u32,
    /// Transactions a second below which the run proves nothing.
    pub transactions_per_second_min: u32,
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reader {
    /// Reads the whole log once, after all faults, with transaction boundaries.
    Log,
    /// An old-style consumer: rows only, acknowledges each, reconnects after every failure.
    Consumer,
}

/// Where a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Who got it.
    pub reader: Reader,
    /// In which of its sessions.
    pub session: u32,
    /// Commit LSN of the transaction.
    pub lsn: u64,
    /// Place inside the transaction.
    pub seq: u32,
}

impl Place {
    /// Returns the position of the message, the same for all readers.
    #[must_use]
    pub const fn checkpoint(&self) -> (u64, u32) {
        (self.lsn, self.seq)
    }
}

/// What a message was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// A transaction begins.
    Begin,
    /// A row was written.
    Change {
        /// How.
        op: Operation,
        /// The row; the key alone for a delete.
        row: Row,
    },
    /// A transaction ends.
    Commit {
        /// End of the commit record.
        end_lsn: u64,
    },
    /// A declared hole.
    Gap {
        /// Its begin.
        from_lsn: u64,
        /// Its end.
        to_lsn: u64,
        /// The stable word.
        reason: String,
    },
    /// Something that no writer of ours causes.
    Other {
        /// What it was.
        what: String,
    },
}

/// Whether a fault took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultOutcome {
    /// It did.
    Installed,
    /// There was nothing to break, such as no walsender.
    Skipped,
}

/// How much the writers did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Milliseconds that writers were meant to write in.
    pub busy_ms: u64,
    /// Committed rows.
    pub rows: u64,
    /// Committed transactions.
    pub transactions: u64,
    /// Rows of the largest transaction.
    pub largest_transaction_rows: u64,
}
