//! Decides which range is read next, for whom, on which node and from which replica, and when one is
//! tried again.
//!
//! The leader's knowledge: built from the agreed state alone, kept up to date by [`Schedule::sync`],
//! and thrown away with the controller. What it hands out is *running* until it is finished or given
//! up; what is finished is *being recorded* until the agreed state has it. A running range takes a place of
//! its dump and of its replica until it is read to its end ([`Schedule::read`]): the next one is read while
//! its last rows are delivered and acknowledged. Time comes in as an argument, counted from any moment;
//! nothing here waits, reads or proposes.
//!
//! # Invariants
//!
//! - A page is never handed out while it is running, being recorded or finished in its generation.
//! - The sweep of a table is handed out only when the agreed state has all its pages.
//! - No more ranges are read at once than a replica, a node, or a dump, allows.
//! - A range that waits for its next try holds up nothing else.

mod books;
#[cfg(test)]
pub(super) mod fixtures;
mod look;
mod outcome;
mod places;
mod rates;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use self::{
    books::{Job, ReplicaBook, Tries},
    places::{Nodes, Place},
};
use super::{DumpId, Extent, Heap, ReplicaHealth, cut};
use crate::{
    cluster::{Dump, DumpState, State},
    lsn::Lsn,
};

/// The longest back-off of a range: 2 to this power in seconds (`wire.md`).
const BACK_OFF_EXPONENT_MAX: u32 = 9;

/// A range that could not be read this often in a row fails its table: with the pauses between, that
/// is a quarter of an hour of a replica that seems well.
pub const RANGE_TRIES_MAX: u32 = 10;

/// A range whose consumer went away, or whose snapshot was too old, is handed out again at once, this
/// often; then it pauses as after a failure. It may be the row that ends its consumer.
const FREE_TRIES_MAX: u32 = 3;

/// A dump that found no free replica has the next one reserved for so long. Longer than a session needs
/// to ask again, short enough not to matter when it is gone.
const HUNGER: Duration = Duration::from_secs(1);

/// A rate limit makes ranges of at most so much time: they are read at that rate ([`super::pace`]), and
/// hold back the changes of their consumer meanwhile.
const RATE_STEP: Duration = cut::RANGE_TIME;

/// What was handed out to whom, and what waits.
#[derive(Debug, Default)]
pub struct Schedule {
    jobs: BTreeMap<DumpId, Job>,
    replicas: BTreeMap<String, ReplicaBook>,
    nodes: Nodes,
    /// Ranges handed out, by ticket.
    running: BTreeMap<u64, Running>,
    /// Finished ranges that the agreed state does not have yet, by ticket.
    recording: BTreeMap<u64, Running>,
    errands: VecDeque<outcome::Order>,
    last_ticket: u64,
}

/// A range that was handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Number of the ticket.
    pub ticket: u64,
    /// Of which dump.
    pub dump: DumpId,
    /// Index of the table in the dump.
    pub table: u32,
    /// Generation of the table.
    pub generation: u32,
    /// The source whose rows it has.
    pub source: String,
    /// Which heap.
    pub heap: Heap,
    /// Which of its rows.
    pub extent: Extent,
    /// From which replica.
    pub replica: String,
    /// The node that reads it.
    pub node: String,
    /// Bytes a second that it may read, at most: its share of what the dump may, and the replica gives.
    pub rate_bytes_per_second: Option<u64>,
    /// Ranges of the dump that are read at once, at most.
    pub parallel: u32,
    /// The position that its snapshot must reach, whatever the session has delivered.
    pub at_least: Lsn,
}

#[derive(Clone, Debug)]
struct Running {
    dump: DumpId,
    table: u32,
    generation: u32,
    extent: Extent,
    place: Place,
    since: Duration,
    /// Bytes that the dump's rate was charged with.
    charged: u64,
    /// Bytes that the replica's rate was charged with; 0 without one.
    replica_charged: u64,
    /// Bytes a second that it was given of what the replica gives.
    share: u64,
    /// The server has said that there are no more rows.
    is_read: bool,
    tries: Tries,
}

impl Running {
    /// Bytes that it has read by now, at most: it kept to its share of what it was charged with.
    fn read_at_most(&self, now: Duration) -> u64 {
        let nanos = now.saturating_sub(self.since).as_nanos();
        let bytes = u128::from(self.share) * nanos / 1_000_000_000;
        u64::try_from(bytes).map_or(self.replica_charged, |bytes| {
            bytes.min(self.replica_charged)
        })
    }
}

pub use self::{
    outcome::{Errand, Setback},
    places::{NODE_SEATS_MAX, NodeReach},
};

impl Schedule {
    /// Makes a schedule of a node that is alone, and knows nothing yet. Its first ticket follows
    /// `last_ticket`, so that tickets of an earlier life are strangers.
    #[must_use]
    pub fn new(last_ticket: u64) -> Self {
        Self::on("", NODE_SEATS_MAX, last_ticket)
    }

    /// The same on a node that reads so many ranges at once, at most.
    #[must_use]
    pub fn on(node: &str, seats: u32, last_ticket: u64) -> Self {
        Self {
            last_ticket,
            nodes: Nodes::new(node, seats),
            ..Self::default()
        }
    }

    /// Takes over what was agreed on. Cheap when little changed.
    pub fn sync(&mut self, state: &State) {
        self.jobs
            .retain(|id, _| state.dumps.get(id).is_some_and(|dump| !dump.is_over()));
        for (id, dump) in &state.dumps {
            if dump.is_over() {
                continue;
            }
            let subscription = (dump.stream.clone(), dump.consumer.clone());
            let cool_down = state.cool_downs.get(&subscription);
            let cool_down = cool_down.copied().unwrap_or_default();
            let running = &self.running;
            let recording = &self.recording;
            let new_job = || new_job(dump, running, recording);
            let job = self.jobs.entry(*id).or_insert_with(new_job);
            job.update(dump);
            job.cool_down = cool_down.max(dump.options.cool_down);
        }
        self.replicas
            .retain(|name, _| state.replicas.contains_key(name));
        for (name, replica) in &state.replicas {
            let book = self.replicas.entry(name.clone()).or_default();
            // Another server under an old name is asked anew.
            if book.definition.as_ref() != Some(replica) {
                *book = ReplicaBook {
                    definition: Some(replica.clone()),
                    reading: book.reading,
                    rates: book.rates.clone(),
                    ..ReplicaBook::default()
                };
                self.nodes.set_own(name, false);
            }
            book.rates.set_limit(state.replica_rate(name));
        }
        self.nodes
            .forget_replicas(|name| state.replicas.contains_key(name));
        self.drop_done_errands();
    }

    /// Records how a replica is, as this node sees it.
    pub fn set_health(&mut self, replica: &str, health: ReplicaHealth) {
        if let Some(book) = self.replicas.get_mut(replica) {
            let is_ready = matches!(health, ReplicaHealth::Ready { .. });
            self.nodes.set_own(replica, is_ready);
            book.health = health;
        }
    }

    /// Hands out the next range that is due for a subscription.
    pub fn pull(&mut self, stream: &str, consumer: &str, now: Duration) -> Option<Assignment> {
        let is_asked = |job: &&mut Job| {
            let dump = &job.dump;
            dump.stream == stream && dump.consumer == consumer && dump.state == DumpState::Active
        };
        let mut turns = Vec::new();
        for job in self.jobs.values_mut().filter(is_asked) {
            job.asked_at = Some(now);
            turns.push((job.turn(), job.dump.id));
        }
        turns.sort_unstable();
        turns
            .into_iter()
            .find_map(|(_, id)| self.pull_from(id, now))
    }

    fn pull_from(&mut self, id: DumpId, now: Duration) -> Option<Assignment> {
        let job = self.jobs.get(&id)?;
        if !job.may_begin(now) || !job.has_work(now) {
            return None;
        }
        let tries = job.next_retry(now).map(|retry| retry.tries.clone());
        let Some(place) = self.free_place(id, &tries.unwrap_or_default(), now) else {
            self.set_hungry(id, now);
            return None;
        };
        let share = self.share(&place.replica, now);
        let job = self.jobs.get_mut(&id)?;
        let work = job.take_work(share, now)?;
        let charged = job.charge(&work, now);
        self.last_ticket += 1;
        job.hungry_until = None;
        job.last_ticket = self.last_ticket;
        job.reading += 1;
        let rates = job.rate_share().into_iter().chain(share);
        let mut replica_charged = 0;
        if let Some(book) = self.replicas.get_mut(&place.replica) {
            book.reading += 1;
            book.last_ticket = self.last_ticket;
            replica_charged = book.rates.begin(share.unwrap_or(0), charged, now);
        }
        self.nodes.set_last_ticket(&place.node, self.last_ticket);
        let dump = Arc::clone(&job.dump);
        let table = dump.table(work.table)?;
        let running = Running {
            dump: id,
            table: work.table,
            generation: table.generation,
            extent: work.extent,
            place: place.clone(),
            since: now,
            charged,
            replica_charged,
            share: share.unwrap_or(0),
            is_read: false,
            tries: work.tries,
        };
        self.running.insert(self.last_ticket, running);
        Some(Assignment {
            ticket: self.last_ticket,
            dump: id,
            table: work.table,
            generation: table.generation,
            source: dump.source.clone(),
            heap: table.heap.clone(),
            extent: work.extent,
            replica: place.replica,
            node: place.node,
            rate_bytes_per_second: rates.min(),
            parallel: dump.options.parallel,
            at_least: table.layout.planned_at,
        })
    }

    /// Returns the next moment after `now` at which something may be due that is not due now.
    #[must_use]
    pub fn next_due(&self, now: Duration) -> Option<Duration> {
        let jobs = self.jobs.values().filter(|job| job.is_active());
        let of_jobs = jobs.flat_map(|job| job.dues());
        let of_errands = self.errands.iter().map(|order| order.due);
        let of_replicas = self.replicas.values();
        let of_replicas = of_replicas.filter_map(|book| book.rates.rested_at());
        let all = of_jobs.chain(of_errands).chain(of_replicas);
        all.filter(|due| *due > now).min()
    }

    /// Returns how long a running range has been running.
    #[must_use]
    pub fn age(&self, ticket: u64, now: Duration) -> Option<Duration> {
        let running = self.running.get(&ticket)?;
        Some(now.saturating_sub(running.since))
    }

    /// Returns the number of the newest ticket.
    #[must_use]
    pub const fn last_ticket(&self) -> u64 {
        self.last_ticket
    }
}

/// Makes the book of a dump that is new to the schedule. Ranges of it may be running all the same: it
/// had failed with a table, and was tried again before the others had ended.
fn new_job(
    dump: &Arc<Dump>,
    running: &BTreeMap<u64, Running>,
    recording: &BTreeMap<u64, Running>,
) -> Job {
    let mut job = Job::new(Arc::clone(dump));
    let is_of = |range: &&Running| range.dump == dump.id;
    for range in running.values().filter(is_of) {
        job.reading += u32::from(!range.is_read);
        job.leave_out(range);
    }
    for range in recording.values().filter(is_of) {
        job.leave_out(range);
    }
    job
}

/// Returns the pause before a range is tried again, without the cool-down: 2, 4, 8 … s.
fn back_off(failure_count: u32) -> Duration {
    let exponent = failure_count.clamp(1, BACK_OFF_EXPONENT_MAX);
    Duration::from_secs(1 << exponent)
}

#[cfg(test)]
mod tests;
