//! How a range ended, and what follows: recorded, tried again, planned anew, failed.

use std::time::Duration;

use super::{
    DumpId, FREE_TRIES_MAX, RANGE_TRIES_MAX, Running, Schedule, back_off,
    books::{Job, ReplicaBook, Retry},
    cut,
};
use crate::{
    cluster::{DumpTable, FinishedRange, TableFailure, WantedPages},
    codes,
};

/// Why a range was given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setback {
    /// Its consumer went away.
    Disconnected,
    /// Its snapshot was older than what the session had delivered.
    TooOld,
    /// Its consumer sent a row back, or took none for too long; with the reason.
    Consumer(String),
    /// It could not be read this time.
    Unread(TableFailure),
    /// The node that read it is away, or did not take it: no fault of the range.
    NodeLost(String),
    /// The table lies elsewhere now.
    Rewritten(String),
    /// The table cannot be read, and will not get better by itself.
    Final(TableFailure),
}

/// What the schedule wants done outside: the owner does it and proposes what comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Look how a table lies now, and begin a new generation.
    Replan {
        /// Of which dump.
        dump: DumpId,
        /// Index of the table.
        table: u32,
        /// The generation that ends.
        generation: u32,
    },
    /// End the work on a table.
    Fail {
        /// Of which dump.
        dump: DumpId,
        /// Index of the table.
        table: u32,
        /// Its generation.
        generation: u32,
        /// Why.
        failure: TableFailure,
    },
}

impl Errand {
    /// Returns dump, table and generation.
    #[must_use]
    pub const fn about(&self) -> (DumpId, u32, u32) {
        match self {
            Self::Replan {
                dump,
                table,
                generation,
            }
            | Self::Fail {
                dump,
                table,
                generation,
                ..
            } => (*dump, *table, *generation),
        }
    }
}

/// An errand and when to do it.
#[derive(Debug)]
pub(super) struct Order {
    errand: Errand,
    pub(super) due: Duration,
    is_running: bool,
    failure_count: u32,
}

impl Schedule {
    /// Takes note that a range was read to its end: its rows are on their way, its place is free.
    /// Returns whether there is a free place now. With a cool-down the place stays taken: the pause
    /// follows the whole range.
    pub fn read(&mut self, ticket: u64) -> bool {
        let Some(range) = self.running.get_mut(&ticket) else {
            return false;
        };
        let job = self.jobs.get_mut(&range.dump);
        if range.is_read || job.as_ref().is_some_and(|job| !job.cool_down.is_zero()) {
            return false;
        }
        range.is_read = true;
        free_places(
            job,
            self.replicas.get_mut(&range.place.replica),
            range.share,
        );
        true
    }

    /// Takes the end of a range of which every row was acknowledged; returns what to propose, `None`
    /// for a ticket that is not running. Then comes [`Self::recorded`] or [`Self::not_recorded`]. No rows
    /// and no bytes: whoever delivered it does not count, and what was charged stays charged.
    pub fn finished(
        &mut self,
        ticket: u64,
        row_count: u64,
        bytes: u64,
        now: Duration,
    ) -> Option<FinishedRange> {
        let running = self.release(ticket)?;
        let read = if row_count == 0 && bytes == 0 {
            running.charged
        } else {
            bytes
        };
        if let Some(book) = self.replicas.get_mut(&running.place.replica) {
            let paid = running.replica_charged;
            book.rates.settle(paid, if paid == 0 { 0 } else { read });
        }
        if let Some(job) = self.jobs.get_mut(&running.dump) {
            job.not_before = job.not_before.max(now + job.cool_down);
            job.settle_charge(now, running.charged, read);
            let took = now.saturating_sub(running.since);
            // A pause was meant for ranges of the size that was asked for.
            job.stretch = if job.cool_down.is_zero() {
                cut::stretch(&job.dump.options, job.stretch, took)
            } else {
                1
            };
            job.meter.add(now, row_count, bytes);
        }
        let range = FinishedRange {
            dump: running.dump,
            table: running.table,
            generation: running.generation,
            extent: running.extent,
            row_count,
            bytes,
        };
        self.recording.insert(ticket, running);
        Some(range)
    }

    /// The agreed state has the end of a range; [`Self::sync`] was called with it.
    pub fn recorded(&mut self, ticket: u64) {
        self.recording.remove(&ticket);
    }

    /// The end of a range could not be recorded: it is handed out again.
    pub fn not_recorded(&mut self, ticket: u64, reason: &str, now: Duration) {
        if let Some(mut running) = self.recording.remove(&ticket) {
            reason.clone_into(&mut running.tries.reason);
            running.tries.pause_count += 1;
            let due = now + back_off(running.tries.pause_count);
            self.put_back(running, due);
        }
    }

    /// Takes a range back that was not wholly acknowledged. Returns whether the ticket was running.
    pub fn give_up(&mut self, ticket: u64, setback: Setback, now: Duration) -> bool {
        let Some(mut running) = self.release(ticket) else {
            return false;
        };
        if let Some(book) = self.replicas.get_mut(&running.place.replica) {
            book.rates
                .settle(running.replica_charged, running.read_at_most(now));
        }
        let Some(job) = self.jobs.get_mut(&running.dump) else {
            return true;
        };
        job.given_up_count += 1;
        let tries = &mut running.tries;
        tries.count += 1;
        tries.reason = reason(&setback);
        let (dump, table, generation) = (running.dump, running.table, running.generation);
        let (mut errand, mut is_free) = (None, false);
        match setback {
            Setback::Disconnected | Setback::TooOld | Setback::NodeLost(_) => {
                tries.free_count += 1;
                is_free = tries.free_count <= FREE_TRIES_MAX;
                tries.pause_count += u32::from(!is_free);
                if matches!(setback, Setback::NodeLost(_)) {
                    tries.avoid_node = Some(running.place.node.clone());
                }
            }
            Setback::Consumer(_) => tries.pause_count += 1,
            Setback::Unread(failure) => {
                tries.pause_count += 1;
                tries.failure_count += 1;
                tries.avoid = Some(running.place.replica.clone());
                tries.avoid_node = Some(running.place.node.clone());
                if tries.failure_count >= RANGE_TRIES_MAX {
                    let failure = gave_up(&failure, tries.failure_count);
                    errand = Some(Errand::Fail {
                        dump,
                        table,
                        generation,
                        failure,
                    });
                }
            }
            Setback::Rewritten(what) => {
                let found = job.dump.table(table);
                errand = Some(after_rewrite(found, what, (dump, table, generation)));
            }
            Setback::Final(failure) => {
                errand = Some(Errand::Fail {
                    dump,
                    table,
                    generation,
                    failure,
                });
            }
        }
        let due = if is_free || errand.is_some() {
            now
        } else {
            pause(job, tries.pause_count, now)
        };
        if let Some(errand) = errand {
            self.order(errand, now);
        }
        self.put_back(running, due);
        true
    }

    /// Returns something to do now, once; [`Self::errand_done`] says how it went.
    pub fn next_errand(&mut self, now: Duration) -> Option<Errand> {
        let is_due = |order: &&mut Order| !order.is_running && order.due <= now;
        let order = self.errands.iter_mut().find(is_due)?;
        order.is_running = true;
        Some(order.errand.clone())
    }

    /// Takes how an errand went. A done one must be in the agreed state that [`Self::sync`] has seen;
    /// another is tried again later.
    pub fn errand_done(&mut self, errand: &Errand, is_done: bool, now: Duration) {
        let is_it = |order: &Order| order.errand.about() == errand.about();
        let Some(index) = self.errands.iter().position(is_it) else {
            return;
        };
        if is_done {
            self.errands.remove(index);
            let (dump, table, _) = errand.about();
            if let Some(job) = self.jobs.get_mut(&dump) {
                job.set_errand(table, false);
            }
        } else if let Some(order) = self.errands.get_mut(index) {
            order.is_running = false;
            order.failure_count += 1;
            order.due = now + back_off(order.failure_count);
        }
    }

    /// Returns a replica of a source that may be asked how tables lie.
    #[must_use]
    pub fn replica_to_ask(&self, source: &str) -> Option<&str> {
        let usable = self.replicas.iter().filter(|(_, book)| book.is_of(source));
        let rank = |(name, book): &(&String, &super::ReplicaBook)| {
            (self.free_ranges(name, book) == 0, book.load())
        };
        usable.min_by_key(rank).map(|(name, _)| name.as_str())
    }

    /// Forgets errands about what is over, failed or of another generation.
    pub(super) fn drop_done_errands(&mut self) {
        let jobs = &self.jobs;
        self.errands.retain(|order| {
            let (dump, table, generation) = order.errand.about();
            let table = jobs.get(&dump).and_then(|job| job.dump.table(table));
            table.is_some_and(|table| table.generation == generation && table.failure.is_none())
        });
    }

    fn order(&mut self, errand: Errand, now: Duration) {
        let (dump, table, generation) = errand.about();
        let Some(job) = self.jobs.get_mut(&dump) else {
            return;
        };
        let is_present = job
            .dump
            .table(table)
            .is_some_and(|found| found.generation == generation && found.failure.is_none());
        if is_present && !job.has_errand(table) {
            job.set_errand(table, true);
            self.errands.push_back(Order {
                errand,
                due: now,
                is_running: false,
                failure_count: 0,
            });
        }
    }

    /// Takes a range out of the running ones and frees its places.
    fn release(&mut self, ticket: u64) -> Option<Running> {
        let running = self.running.remove(&ticket)?;
        if !running.is_read {
            let book = self.replicas.get_mut(&running.place.replica);
            free_places(self.jobs.get_mut(&running.dump), book, running.share);
        }
        Some(running)
    }

    fn put_back(&mut self, running: Running, due: Duration) {
        if let Some(job) = self.jobs.get_mut(&running.dump) {
            let retry = Retry {
                table: running.table,
                generation: running.generation,
                extent: running.extent,
                tries: running.tries,
            };
            job.put_back(due, retry);
        }
    }
}

/// A range is read no more.
fn free_places(job: Option<&mut Job>, book: Option<&mut ReplicaBook>, share: u64) {
    if let Some(job) = job {
        job.reading = job.reading.saturating_sub(1);
    }
    if let Some(book) = book {
        book.reading = book.reading.saturating_sub(1);
        book.rates.end(share);
    }
}

/// Page numbers given by hand mean nothing in the new file; a whole table is planned anew.
fn after_rewrite(
    found: Option<&DumpTable>,
    what: String,
    (dump, table, generation): (DumpId, u32, u32),
) -> Errand {
    let is_whole = found.is_none_or(|found| found.wanted == WantedPages::Whole);
    if is_whole {
        return Errand::Replan {
            dump,
            table,
            generation,
        };
    }
    let failure = TableFailure {
        code: codes::dump::PAGES_MOVED.code.to_owned(),
        text: format!("page ranges given by hand mean other rows now: {what}"),
    };
    Errand::Fail {
        dump,
        table,
        generation,
        failure,
    }
}

/// Begins the cool-down of a dump and returns when a range of it is due again.
fn pause(job: &mut Job, pause_count: u32, now: Duration) -> Duration {
    job.not_before = job.not_before.max(now + job.cool_down);
    now + job.cool_down + back_off(pause_count)
}

fn reason(setback: &Setback) -> String {
    match setback {
        Setback::Disconnected => "the consumer went away".to_owned(),
        Setback::TooOld => "the snapshot was older than what was delivered already".to_owned(),
        Setback::Consumer(reason) | Setback::Rewritten(reason) | Setback::NodeLost(reason) => {
            reason.clone()
        }
        Setback::Unread(failure) | Setback::Final(failure) => {
            format!("{}: {}", failure.code, failure.text)
        }
    }
}

fn gave_up(last: &TableFailure, try_count: u32) -> TableFailure {
    TableFailure {
        code: codes::dump::RANGE_FAILED.code.to_owned(),
        text: format!(
            "a range could not be read in {try_count} tries; the last: {}: {}",
            last.code, last.text
        ),
    }
}
