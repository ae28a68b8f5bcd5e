//! A dump as it lies in the replicated state: what is wanted, what is finished, what has failed.
//!
//! Who reads which range now stands nowhere here; it is the controller's knowledge. A controller
//! built from this alone goes on where the last one was: what is finished is never handed out again,
//! what was running is.
//!
//! # Invariants
//!
//! - The pages of a generation only become more; a new generation begins without any.
//! - A dump is [`DumpState::Finished`] when every table is done, its sweep included, and
//!   [`DumpState::Failed`] when every table is done or failed, and one failed.

mod apply;

mod refusal;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::refusal::DumpRefusal;

use crate::{
    dump::{DumpId, Extent, Heap, PageRange, PageSet},
    lsn::{Lsn, PgTime},
};

/// At most this many dumps are active or paused.
pub const DUMPS_OPEN_MAX: usize = 1_000;

/// Dumps that are over are kept to be looked at; beyond this many the oldest are forgotten.
pub const DUMPS_KEPT_MAX: usize = 1_000;

/// At most this many tables in a dump; a schema with partitions by day for years stays below.
pub const DUMP_TABLES_MAX: usize = 10_000;

/// At most this many page ranges given by hand in a dump: 32 GiB in ranges of 64 pages stay below.
pub const DUMP_RANGES_MAX: usize = 100_000;

/// A table that is rewritten this often during a dump fails: the dump would never end.
pub const REPLANS_MAX: u32 = 5;

/// Longest pause between ranges.
pub const COOL_DOWN_MAX: Duration = Duration::from_hours(24);

/// At most this many subscriptions have a cool-down of their own.
pub const COOL_DOWNS_MAX: usize = 10_000;

/// A job: existing rows for one uri.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// Its number.
    pub id: DumpId,
    /// Who asked, as they wrote it.
    pub uri: String,
    /// The stream of the uri.
    pub stream: String,
    /// The subscription of the uri on that stream; only its sessions see the rows.
    pub consumer: String,
    /// Whose rows.
    pub source: String,
    /// How to go about it.
    pub options: DumpOptions,
    /// When it was created.
    pub created_at: PgTime,
    /// When it was over.
    pub ended_at: Option<PgTime>,
    /// Where it stands.
    pub state: DumpState,
    /// Its tables in the order they are read. Not serialised with the dump: stores keep one row a
    /// table, and write only those that changed.
    #[serde(skip)]
    pub tables: Vec<Arc<DumpTable>>,
}

impl Dump {
    /// Tells whether nothing more is going to happen by itself.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(
            self.state,
            DumpState::Finished | DumpState::Failed | DumpState::Cancelled
        )
    }

    /// Finds a table by its index.
    #[must_use]
    pub fn table(&self, index: u32) -> Option<&DumpTable> {
        let table = self.tables.get(usize::try_from(index).ok()?)?;
        Some(table)
    }
}

/// How to go about a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpOptions {
    /// Ranges that are read at once, at most.
    pub parallel: u32,
    /// Bytes delivered a second, at most, on average.
    pub rate_bytes_per_second: Option<u64>,
    /// Dumps of a higher number go first; equal ones take turns.
    pub priority: i32,
    /// Pause after each range.
    pub cool_down: Duration,
    /// Size that ranges aim at; those of the default size grow while they are done fast. Page ranges
    /// given by hand are left as they are.
    pub range_bytes: u64,
}

impl DumpOptions {
    /// Ranges of one dump read at once when nothing else is said: while one is delivered the next is
    /// there already.
    pub const DEFAULT_PARALLEL: u32 = 2;

    /// A range of this size is read in a fraction of a second, and little is lost when it is read
    /// again.
    pub const DEFAULT_RANGE_BYTES: u64 = 32 << 20;

    /// At most this many ranges at once.
    pub const PARALLEL_MAX: u32 = 64;

    /// Smallest and largest size of a range: a page costs a snapshot; a range holds back the changes
    /// that follow it.
    pub const RANGE_BYTES_LIMITS: (u64, u64) = (64 << 10, 4 << 30);
}

impl Default for DumpOptions {
    fn default() -> Self {
        Self {
            parallel: Self::DEFAULT_PARALLEL,
            rate_bytes_per_second: None,
            priority: 0,
            cool_down: Duration::ZERO,
            range_bytes: Self::DEFAULT_RANGE_BYTES,
        }
    }
}

/// Where a dump stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DumpState {
    /// Ranges are handed out.
    Active,
    /// Running ranges end; none is handed out.
    Paused,
    /// Ended by someone; running ranges end.
    Cancelled,
    /// Every row was acknowledged.
    Finished,
    /// At least one table failed; the others are done or failed too.
    Failed,
}

impl DumpState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Active,
        Self::Paused,
        Self::Cancelled,
        Self::Finished,
        Self::Failed,
    ];

    /// Returns the stable lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Cancelled => "cancelled",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

/// One table of a dump: one heap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpTable {
    /// What is read.
    pub heap: Heap,
    /// Which of its pages.
    pub wanted: WantedPages,
    /// How it lay when it was planned.
    pub layout: TableLayout,
    /// Whether rows that moved between ranges are looked for at the end: when the change that moves a
    /// row may leave values out, because they lie in TOAST. A table that was read whole in one snapshot
    /// is done without.
    pub needs_sweep: bool,
    /// Grows with each new plan; what belongs to an older one does not count.
    pub generation: u32,
    /// New plans since the beginning or the last retry.
    pub replan_count: u32,
    /// Finished pages of this generation.
    pub done: PageSet,
    /// Whether the sweep of this generation is finished, or was never needed.
    pub sweep_done: bool,
    /// Why it failed.
    pub failure: Option<TableFailure>,
    /// Rows acknowledged.
    pub row_count: u64,
    /// Their encoded bytes.
    pub bytes: u64,
    /// Ranges finished.
    pub range_count: u64,
}

impl DumpTable {
    /// Makes a table of which nothing is read yet.
    #[must_use]
    pub fn new(plan: PlannedTable) -> Self {
        Self {
            heap: plan.heap,
            wanted: plan.wanted,
            layout: plan.layout,
            needs_sweep: plan.needs_sweep,
            generation: 0,
            replan_count: 0,
            done: PageSet::new(),
            sweep_done: false,
            failure: None,
            row_count: 0,
            bytes: 0,
            range_count: 0,
        }
    }

    /// Tells whether every wanted page is finished.
    #[must_use]
    pub fn is_read(&self) -> bool {
        match &self.wanted {
            WantedPages::Whole => self.done.contains(PageRange::ALL),
            // Ranges end in about the order they are given: the last one says it soonest.
            WantedPages::Ranges(ranges) => {
                let mut ranges = ranges.iter().rev();
                ranges.all(|pages| self.done.contains(*pages))
            }
        }
    }

    /// Tells whether nothing is left to do.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_read() && (self.sweep_done || !self.needs_sweep)
    }
}

/// A table as it is to be dumped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTable {
    /// What is read.
    pub heap: Heap,
    /// Which of its pages.
    pub wanted: WantedPages,
    /// How it lies.
    pub layout: TableLayout,
    /// Whether rows that move during the dump are looked for at its end.
    pub needs_sweep: bool,
}

/// Which pages of a table are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantedPages {
    /// All; we cut the ranges.
    Whole,
    /// These ranges, each handed out exactly as it is given.
    Ranges(Vec<PageRange>),
}

/// How a table lay when it was planned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableLayout {
    /// Its file.
    pub filenode: u32,
    /// Number of its pages; rows may lie behind them by the time they are read.
    pub pages_end: u32,
    /// Bytes of heap and TOAST.
    pub bytes: u64,
    /// Rows, as the server guesses.
    pub row_estimate: u64,
    /// The oldest transaction that may move a row after this plan.
    pub since_xid: u32,
    /// Every transaction that the plan saw commits before this position; each range is read at it or
    /// later, so that an older transaction than `since_xid` is in every snapshot.
    pub planned_at: Lsn,
}

/// How a table lies after a rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewLayout {
    /// What is read.
    pub heap: Heap,
    /// How it lies.
    pub layout: TableLayout,
    /// Whether rows that move during the dump are looked for at its end.
    pub needs_sweep: bool,
}

/// Why a table failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFailure {
    /// Stable code, such as `PGC-E07`.
    pub code: String,
    /// What happened, with names; never a secret, never a row.
    pub text: String,
}

/// A dump that is to be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDump {
    /// Who asked, as they wrote it.
    pub uri: String,
    /// The stream of the uri.
    pub stream: String,
    /// The subscription of the uri on that stream.
    pub consumer: String,
    /// Whose rows.
    pub source: String,
    /// How to go about it.
    pub options: DumpOptions,
    /// When it is created.
    pub created_at: PgTime,
    /// Its tables in the order they are read.
    pub tables: Vec<PlannedTable>,
}

/// A wish to change something about dumps. Applied whole or refused whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DumpCommand {
    /// Creates a dump under the next number. Not idempotent by itself: the rule refuses the second.
    Create {
        /// What is wanted.
        dump: Box<NewDump>,
        /// Which other dump is in its way.
        rule: DumpRule,
    },
    /// Records finished ranges. Idempotent; those of older generations and of forgotten dumps are
    /// ignored.
    FinishRanges {
        /// The ranges.
        ranges: Vec<FinishedRange>,
        /// When.
        at: PgTime,
    },
    /// Begins a new generation of a table whose rows lie elsewhere now; nothing of it is finished
    /// then. Ignored when the generation is not the present one.
    ReplanTable {
        /// Of which dump.
        dump: DumpId,
        /// Index of the table.
        table: u32,
        /// The generation that ends.
        generation: u32,
        /// What it is and how it lies now; which of its pages are wanted does not change.
        plan: Box<NewLayout>,
        /// When.
        at: PgTime,
    },
    /// Ends the work on a table; the others go on. Ignored when the generation is not the present
    /// one.
    FailTable {
        /// Of which dump.
        dump: DumpId,
        /// Index of the table.
        table: u32,
        /// Its generation.
        generation: u32,
        /// Why.
        failure: TableFailure,
        /// When.
        at: PgTime,
    },
    /// Pauses, resumes, cancels or retries a dump. Idempotent.
    Act {
        /// Which.
        id: DumpId,
        /// What to do.
        action: DumpAction,
        /// When.
        at: PgTime,
    },
    /// Forgets a dump that is over.
    Remove {
        /// Which.
        id: DumpId,
    },
    /// Sets the pause after each range for all dumps of a subscription; zero takes it away. Idempotent.
    SetCoolDown {
        /// Which stream.
        stream: String,
        /// Which subscription on it.
        consumer: String,
        /// How long.
        cool_down: Duration,
    },
}

/// When a new dump is refused because of another one of the same subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DumpRule {
    /// When that one is not over and has one of the tables.
    NoSharedTable,
    /// When that one is not over.
    Idle,
}

/// A range of which every row was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedRange {
    /// Of which dump.
    pub dump: DumpId,
    /// Index of the table in the dump.
    pub table: u32,
    /// Generation of the table when the range was handed out.
    pub generation: u32,
    /// Which rows.
    pub extent: Extent,
    /// How many rows.
    pub row_count: u64,
    /// Their encoded bytes.
    pub bytes: u64,
}

/// What may be done to a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DumpAction {
    /// Hand out no ranges for now.
    Pause,
    /// Hand them out again.
    Resume,
    /// End it.
    Cancel,
    /// Forget the failures of its tables and go on.
    Retry,
}

impl DumpAction {
    /// Returns the stable lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::Retry => "retry",
        }
    }
}

#[cfg(test)]
mod tests;
