//! What the schedule keeps of one dump and one replica.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    RATE_STEP, Running, cut,
    rates::{RateBook, time},
};
use crate::{
    cluster::{Dump, DumpOptions, DumpState, DumpTable, Replica},
    dump::{Extent, ReplicaHealth, cut::Cutter},
};

/// A consumer that did not ask for so long, though there is something to take, is not there.
const ASKED_LATELY: Duration = Duration::from_secs(5);

/// One dump that is not over.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) dump: Arc<Dump>,
    /// As many as the dump has tables.
    tables: Vec<TableBook>,
    /// Tables before this one are done or failed.
    first_open: usize,
    /// Ranges that wait for their next try, by the moment it is due and a number.
    pub(super) retries: BTreeMap<(Duration, u64), Retry>,
    last_retry: u64,
    /// Pause after each range.
    pub(super) cool_down: Duration,
    /// The cool-down ends here.
    pub(super) not_before: Duration,
    /// The rate limit allows the next range here.
    paid_until: Duration,
    /// Ranges being read.
    pub(super) reading: u32,
    /// How many times their size ranges have: see [`cut::stretch`].
    pub(super) stretch: u32,
    /// When a session last asked.
    pub(super) asked_at: Option<Duration>,
    /// It found no free replica and has the next one reserved until then.
    pub(super) hungry_until: Option<Duration>,
    /// The newest ticket: equal dumps take turns.
    pub(super) last_ticket: u64,
    pub(super) given_up_count: u64,
    pub(super) meter: Meter,
}

/// One generation of one table.
#[derive(Debug)]
struct TableBook {
    generation: u32,
    cutter: Cutter,
    is_read: bool,
    is_sweep_taken: bool,
    /// Something is to be proposed about it first.
    has_errand: bool,
}

impl TableBook {
    fn new(table: &DumpTable) -> Self {
        Self {
            generation: table.generation,
            cutter: Cutter::new(table),
            is_read: table.is_read(),
            is_sweep_taken: false,
            has_errand: false,
        }
    }
}

/// A range that waits for its next try.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    pub(super) table: u32,
    pub(super) generation: u32,
    pub(super) extent: Extent,
    pub(super) tries: Tries,
}

/// What became of a range so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Tries {
    /// Tries that ended with a pause; its exponent.
    pub(super) pause_count: u32,
    /// Tries in a row that failed to read.
    pub(super) failure_count: u32,
    /// Tries that were repeated at once.
    pub(super) free_count: u32,
    /// All tries.
    pub(super) count: u32,
    /// Why the last one ended.
    pub(super) reason: String,
    /// The replica that failed with it.
    pub(super) avoid: Option<String>,
    /// The node that failed with it.
    pub(super) avoid_node: Option<String>,
}

/// What is to be handed out.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) table: u32,
    pub(super) extent: Extent,
    pub(super) tries: Tries,
}

impl Job {
    pub(super) fn new(dump: Arc<Dump>) -> Self {
        let tables = dump.tables.iter().map(|table| TableBook::new(table));
        Self {
            tables: tables.collect(),
            dump,
            first_open: 0,
            retries: BTreeMap::new(),
            last_retry: 0,
            cool_down: Duration::ZERO,
            not_before: Duration::ZERO,
            paid_until: Duration::ZERO,
            reading: 0,
            stretch: 1,
            asked_at: None,
            hungry_until: None,
            last_ticket: 0,
            given_up_count: 0,
            meter: Meter::default(),
        }
    }

    /// Takes over what was agreed on about the dump.
    pub(super) fn update(&mut self, dump: &Arc<Dump>) {
        if Arc::ptr_eq(&self.dump, dump) {
            return;
        }
        let mut retried = Vec::new();
        let pairs = self.dump.tables.iter().zip(&dump.tables);
        for (index, ((old, new), book)) in pairs.zip(&mut self.tables).enumerate() {
            if Arc::ptr_eq(old, new) {
                continue;
            }
            if book.generation != new.generation {
                *book = TableBook::new(new);
            }
            book.cutter.leave_out_done(new);
            book.is_read = new.is_read();
            if new.failure.is_some() {
                book.has_errand = false;
            }
            if old.failure.is_some() && new.failure.is_none() {
                retried.push(index);
            }
        }
        self.dump = Arc::clone(dump);
        if !retried.is_empty() {
            self.first_open = 0;
            self.begin_anew(&retried);
        }
        let tables = &self.dump.tables;
        self.retries.retain(|_, retry| {
            let table = usize::try_from(retry.table).ok();
            let table = table.and_then(|index| tables.get(index));
            table.is_some_and(|table| {
                table.generation == retry.generation && !is_finished(table, retry.extent)
            })
        });
    }

    /// Forgets the failures of ranges of these tables: they are due, as if they had never been tried.
    fn begin_anew(&mut self, tables: &[usize]) {
        for ((due, number), mut retry) in std::mem::take(&mut self.retries) {
            let is_retried =
                usize::try_from(retry.table).is_ok_and(|table| tables.contains(&table));
            if is_retried {
                retry.tries = Tries::default();
                self.retries.insert((Duration::ZERO, number), retry);
            } else {
                self.retries.insert((due, number), retry);
            }
        }
    }

    /// Leaves out what is being read or recorded: the dump is new to this schedule, the range is not.
    pub(super) fn leave_out(&mut self, running: &Running) {
        let Ok(index) = usize::try_from(running.table) else {
            return;
        };
        let (table, book) = (self.dump.tables.get(index), self.tables.get_mut(index));
        if let (Some(table), Some(book)) = (table, book)
            && table.generation == running.generation
        {
            match running.extent {
                Extent::Pages(pages) => book.cutter.leave_out(table, pages),
                Extent::Sweep { .. } => book.is_sweep_taken = true,
            }
        }
    }

    /// Orders dumps: priority first, then who was served longest ago.
    pub(super) fn turn(&self) -> (std::cmp::Reverse<i32>, u64, u64) {
        let priority = std::cmp::Reverse(self.dump.options.priority);
        (priority, self.last_ticket, self.dump.id.0)
    }

    pub(super) fn is_active(&self) -> bool {
        self.dump.state == DumpState::Active
    }

    /// Tells whether its consumer has asked a moment ago.
    pub(super) fn is_asked(&self, now: Duration) -> bool {
        self.asked_at.is_some_and(|at| now < at + ASKED_LATELY)
    }

    /// Tells whether its ranges are read, or would be if there were room.
    pub(super) fn is_wanted(&self, now: Duration) -> bool {
        self.is_active() && (self.reading > 0 || self.is_asked(now))
    }

    pub(super) fn is_hungry(&self, now: Duration) -> bool {
        self.is_active() && self.hungry_until.is_some_and(|until| now < until)
    }

    /// Returns the moment from which cool-down and rate allow another range.
    pub(super) fn pace(&self) -> Duration {
        self.not_before.max(self.paid_until)
    }

    /// Tells whether the dump's own limits allow another range now.
    pub(super) fn may_begin(&self, now: Duration) -> bool {
        self.is_active() && self.reading < self.dump.options.parallel && self.pace() <= now
    }

    /// Tells whether there is a range to hand out now.
    pub(super) fn has_work(&self, now: Duration) -> bool {
        self.next_retry(now).is_some() || self.fresh_table().is_some()
    }

    /// Returns the retry that is due first.
    pub(super) fn next_retry(&self, now: Duration) -> Option<&Retry> {
        self.due_retry(now).and_then(|key| self.retries.get(&key))
    }

    fn due_retry(&self, now: Duration) -> Option<(Duration, u64)> {
        let mut due = self.retries.range(..=(now, u64::MAX));
        due.find(|(_, retry)| self.may_read(retry.table))
            .map(|(key, _)| *key)
    }

    /// Takes the range to hand out now: first what is tried again, then pages, then the sweep, table by
    /// table. `rate` is what the replica gives it.
    pub(super) fn take_work(&mut self, rate: Option<u64>, now: Duration) -> Option<Work> {
        if let Some(key) = self.due_retry(now) {
            let retry = self.retries.remove(&key)?;
            return Some(Work {
                table: retry.table,
                extent: retry.extent,
                tries: retry.tries,
            });
        }
        self.skip_closed();
        let index = self.fresh_table()?;
        let range_bytes = self.range_bytes(rate);
        let table = self.dump.tables.get(index)?;
        let book = self.tables.get_mut(index)?;
        let extent = match book.cutter.next(table, range_bytes) {
            Some(pages) => Extent::Pages(pages),
            None => {
                book.is_sweep_taken = true;
                let since_xid = table.layout.since_xid;
                Extent::Sweep { since_xid }
            }
        };
        Some(Work {
            table: u32::try_from(index).ok()?,
            extent,
            tries: Tries::default(),
        })
    }

    /// Returns the size of ranges: what was asked for, more when the dump is fast, less when a slow rate
    /// wants smaller steps.
    fn range_bytes(&self, rate: Option<u64>) -> u64 {
        let options = &self.dump.options;
        let rates = options.rate_bytes_per_second.into_iter().chain(rate);
        let step = rates.map(|rate| of_time(rate, RATE_STEP)).min();
        let least = DumpOptions::RANGE_BYTES_LIMITS.0;
        let wanted = cut::base_bytes(options).saturating_mul(self.stretch.into());
        wanted.min(step.unwrap_or(u64::MAX).max(least))
    }

    fn fresh_table(&self) -> Option<usize> {
        let pairs = self.dump.tables.iter().zip(&self.tables).enumerate();
        let is_fresh = |table: &DumpTable, book: &TableBook| {
            if table.failure.is_some() || book.has_errand {
                return false;
            }
            let wants_sweep = table.needs_sweep && !table.sweep_done;
            let may_sweep = book.is_read && wants_sweep && !book.is_sweep_taken;
            may_sweep || book.cutter.has_next(table)
        };
        pairs
            .skip(self.first_open)
            .find(|(_, (table, book))| is_fresh(table, book))
            .map(|(index, _)| index)
    }

    fn skip_closed(&mut self) {
        let rest = self.dump.tables.iter().skip(self.first_open);
        let is_closed = |table: &&Arc<DumpTable>| table.failure.is_some() || table.is_done();
        self.first_open += rest.take_while(is_closed).count();
    }

    /// Charges the rate limit with what the range will probably deliver.
    pub(super) fn charge(&mut self, work: &Work, now: Duration) -> u64 {
        let guess = match (work.extent, self.dump.table(work.table)) {
            (Extent::Pages(pages), Some(table)) => cut::guess_bytes(table, pages),
            _ => 0,
        };
        self.pay(now, guess, 0);
        guess
    }

    /// Corrects a charge once it is known.
    pub(super) fn settle_charge(&mut self, now: Duration, charged: u64, delivered: u64) {
        self.pay(now, delivered, charged);
    }

    fn pay(&mut self, now: Duration, bytes: u64, paid: u64) {
        let Some(rate) = self.dump.options.rate_bytes_per_second else {
            return;
        };
        let from = self
            .paid_until
            .max(if paid == 0 { now } else { Duration::ZERO });
        let until = from.saturating_add(time(bytes, rate));
        self.paid_until = until.saturating_sub(time(paid, rate));
    }

    /// Returns what a range that is handed out now may read at most: an equal part with those that are
    /// read already. Those keep what they were given; what all have read is kept to the rate by paying.
    pub(super) fn rate_share(&self) -> Option<u64> {
        let rate = self.dump.options.rate_bytes_per_second?;
        Some((rate / u64::from(self.reading.max(1))).max(1))
    }

    /// Puts a range back that is tried again at `due`.
    pub(super) fn put_back(&mut self, due: Duration, retry: Retry) {
        let table = self.dump.table(retry.table);
        if table.is_some_and(|table| {
            table.generation == retry.generation && !is_finished(table, retry.extent)
        }) {
            self.last_retry += 1;
            self.retries.insert((due, self.last_retry), retry);
        }
    }

    pub(super) fn set_errand(&mut self, table: u32, has_errand: bool) {
        if let Some(book) = self.book_mut(table) {
            book.has_errand = has_errand;
        }
    }

    pub(super) fn has_errand(&self, table: u32) -> bool {
        let index = usize::try_from(table).ok();
        index
            .and_then(|index| self.tables.get(index))
            .is_some_and(|book| book.has_errand)
    }

    /// Tells whether ranges of a table may be handed out.
    fn may_read(&self, table: u32) -> bool {
        let has_failed = |table: &DumpTable| table.failure.is_some();
        !self.has_errand(table) && !self.dump.table(table).is_some_and(has_failed)
    }

    pub(super) fn is_sweep_taken(&self, table: u32) -> bool {
        let index = usize::try_from(table).ok();
        index
            .and_then(|index| self.tables.get(index))
            .is_some_and(|book| book.is_sweep_taken)
    }

    fn book_mut(&mut self, table: u32) -> Option<&mut TableBook> {
        self.tables.get_mut(usize::try_from(table).ok()?)
    }

    /// Returns the moments at which something may become due.
    pub(super) fn dues(&self) -> impl Iterator<Item = Duration> {
        // One retry a moment is enough; those due already were told.
        let retries = self.retries.keys().map(|(due, _)| *due);
        retries.chain([self.pace()]).chain(self.hungry_until)
    }
}

/// Tells whether the agreed state has a range: another controller may have recorded it.
fn is_finished(table: &DumpTable, extent: Extent) -> bool {
    match extent {
        Extent::Pages(pages) => table.done.contains(pages),
        Extent::Sweep { .. } => table.sweep_done,
    }
}

/// Returns how many bytes a rate gives to a time.
fn of_time(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_millis() / 1_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// One replica.
#[derive(Debug, Default)]
pub(super) struct ReplicaBook {
    pub(super) definition: Option<Replica>,
    pub(super) health: ReplicaHealth,
    /// Ranges being read from it.
    pub(super) reading: u32,
    pub(super) last_ticket: u64,
    pub(super) rates: RateBook,
}

impl ReplicaBook {
    pub(super) fn is_of(&self, source: &str) -> bool {
        self.definition
            .as_ref()
            .is_some_and(|replica| replica.source == source)
    }

    pub(super) fn ranges_max(&self) -> u32 {
        self.definition
            .as_ref()
            .map_or(0, |replica| replica.ranges_max)
    }

    /// Returns the part of its room that is taken, in thousandths.
    pub(super) fn load(&self) -> u32 {
        self.reading.saturating_mul(1_000) / self.ranges_max().max(1)
    }
}

/// How fast a dump went lately.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Rows and bytes by second, the newest last.
    seconds: VecDeque<(u64, u64, u64)>,
}

/// A rate is taken over so many seconds: several ranges, yet a stop is seen soon.
const METER_SECONDS: u64 = 10;

impl Meter {
    pub(super) fn add(&mut self, now: Duration, row_count: u64, bytes: u64) {
        let second = now.as_secs();
        match self.seconds.back_mut() {
            Some((last, rows, sum)) if *last == second => {
                *rows = rows.saturating_add(row_count);
                *sum = sum.saturating_add(bytes);
            }
            _ => self.seconds.push_back((second, row_count, bytes)),
        }
        self.forget(second);
    }

    fn forget(&mut self, second: u64) {
        while let Some((first, ..)) = self.seconds.front() {
            if first + METER_SECONDS > second {
                break;
            }
            self.seconds.pop_front();
        }
    }

    /// Returns rows and bytes a second.
    pub(super) fn rates(&self, now: Duration) -> (u64, u64) {
        let second = now.as_secs();
        let recent = || {
            let seconds = self.seconds.iter();
            seconds.filter(move |(at, ..)| at + METER_SECONDS > second)
        };
        let Some((first, ..)) = recent().next() else {
            return (0, 0);
        };
        let span = (second - first + 1).min(METER_SECONDS);
        let rows: u64 = recent().map(|(_, rows, _)| rows).sum();
        let bytes: u64 = recent().map(|(.., bytes)| bytes).sum();
        (rows / span, bytes / span)
    }
}
