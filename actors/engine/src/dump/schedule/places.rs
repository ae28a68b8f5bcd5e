//! Where the next range is read: from which replica, and on which node.
//!
//! A range gets its node when somebody takes it, never before. So none waits at a busy node while
//! another is idle: whoever has the most room reads next, up to the last range. Nodes say themselves
//! which replicas they reach and how much they can read at once; what they said is replaced as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    DumpId, Schedule,
    books::{Job, ReplicaBook, Tries},
    rates::Share,
};
use crate::{dump::ReplicaHealth, splice::RANGES_OPEN_MAX};

/// Ranges that a node reads at once, at most: each is a connection and a few batches of rows.
pub const NODE_SEATS_MAX: u32 = 256;

/// What a node can read, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReach {
    /// Ranges that it reads at once, at most.
    pub seats: u32,
    /// Replicas that it reaches and that are fit to be read from now.
    pub replicas: BTreeSet<String>,
}

/// A replica and the node that reads from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) replica: String,
    pub(super) node: String,
}

/// The nodes that read.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// The node of this schedule.
    own: String,
    own_reach: NodeReach,
    others: BTreeMap<String, NodeReach>,
    /// The newest ticket of each: equal ones take turns.
    last_tickets: BTreeMap<String, u64>,
}

impl Nodes {
    pub(super) fn new(own: &str, seats: u32) -> Self {
        Self {
            own: own.to_owned(),
            own_reach: NodeReach {
                seats,
                replicas: BTreeSet::new(),
            },
            ..Self::default()
        }
    }

    /// Takes note of whether this node may read from a replica.
    pub(super) fn set_own(&mut self, replica: &str, may_read: bool) {
        if may_read {
            self.own_reach.replicas.insert(replica.to_owned());
        } else {
            self.own_reach.replicas.remove(replica);
        }
    }

    pub(super) fn set_others(&mut self, others: BTreeMap<String, NodeReach>) {
        self.others = others;
        self.others.remove(&self.own);
        let (own, others) = (&self.own, &self.others);
        self.last_tickets
            .retain(|node, _| node == own || others.contains_key(node));
    }

    pub(super) fn forget_replicas(&mut self, is_known: impl Fn(&str) -> bool) {
        self.own_reach.replicas.retain(|name| is_known(name));
    }

    pub(super) fn set_last_ticket(&mut self, node: &str, ticket: u64) {
        self.last_tickets.insert(node.to_owned(), ticket);
    }

    /// Tells whether another node may read from a replica.
    fn is_reached_elsewhere(&self, replica: &str) -> bool {
        let mut others = self.others.values();
        others.any(|reach| reach.seats > 0 && reach.replicas.contains(replica))
    }

    /// Returns the nodes that may read from a replica, by name.
    fn reaching<'a>(&'a self, replica: &'a str) -> impl Iterator<Item = (&'a str, &'a NodeReach)> {
        let own = std::iter::once((self.own.as_str(), &self.own_reach));
        let others = self.others.iter();
        let others = others.map(|(name, reach)| (name.as_str(), reach));
        own.chain(others)
            .filter(move |(_, reach)| reach.replicas.contains(replica))
    }
}

impl Schedule {
    /// Takes over what other nodes say that they can read. Ranges that a node has keep it: whoever
    /// takes the rows sees first that it is gone, and gives them back.
    pub fn set_others(&mut self, others: BTreeMap<String, NodeReach>) {
        self.nodes.set_others(others);
    }

    /// Returns how many ranges each node is reading.
    #[must_use]
    pub fn reading_by_node(&self) -> BTreeMap<&str, u32> {
        let mut counts = BTreeMap::new();
        for range in self.running.values().filter(|range| !range.is_read) {
            *counts.entry(range.place.node.as_str()).or_default() += 1;
        }
        counts
    }

    /// Returns how many nodes may read from a replica.
    #[must_use]
    pub fn node_count(&self, replica: &str) -> usize {
        self.nodes.reaching(replica).count()
    }

    /// Returns how a replica is, for all nodes together: one that this node cannot ask is fit to be
    /// read when another node says so.
    pub(super) fn health(&self, name: &str, book: &ReplicaBook) -> ReplicaHealth {
        let is_ready = matches!(book.health, ReplicaHealth::Ready { .. });
        if !is_ready && self.is_ready(name, book) {
            // How far it is behind stands in no report; it is not too far.
            let lag = Duration::ZERO;
            return ReplicaHealth::Ready { lag };
        }
        book.health.clone()
    }

    pub(super) fn is_ready(&self, name: &str, book: &ReplicaBook) -> bool {
        match book.health {
            ReplicaHealth::Ready { .. } => true,
            ReplicaHealth::Unknown | ReplicaHealth::Unusable { .. } => {
                self.nodes.is_reached_elsewhere(name)
            }
            ReplicaHealth::Behind { .. } | ReplicaHealth::Busy { .. } => false,
        }
    }

    /// Returns how many ranges may be read from a replica beside those that are.
    pub(super) fn free_ranges(&self, name: &str, book: &ReplicaBook) -> u32 {
        if self.is_ready(name, book) {
            book.ranges_max().saturating_sub(book.reading)
        } else {
            0
        }
    }

    /// The same for now: a replica that was read as much as it may is rested.
    fn free_now(&self, name: &str, book: &ReplicaBook, now: Duration) -> u32 {
        let free = self.free_ranges(name, book);
        match self.share_of(book, now) {
            Share::Unlimited => free,
            Share::Bytes(_, count) => free.min(count),
            Share::Nothing => 0,
        }
    }

    /// Returns the bytes a second that a replica gives to the next range; `None` for all it can.
    pub(super) fn share(&self, replica: &str, now: Duration) -> Option<u64> {
        match self.share_of(self.replicas.get(replica)?, now) {
            Share::Bytes(bytes, _) => Some(bytes),
            Share::Unlimited | Share::Nothing => None,
        }
    }

    fn share_of(&self, book: &ReplicaBook, now: Duration) -> Share {
        if book.rates.rested_at().is_none() {
            return Share::Unlimited;
        }
        let Some(definition) = &book.definition else {
            return Share::Nothing;
        };
        // As many as may be read from it at once, when every dump that is asked for has as many as it wants.
        let source = definition.source.as_str();
        let jobs = self.jobs.values();
        let jobs = jobs.filter(|job| job.is_wanted(now) && job.dump.source == source);
        let wanted = jobs.fold(0_u32, |sum, job| {
            sum.saturating_add(job.dump.options.parallel.min(RANGES_OPEN_MAX))
        });
        let books = self.replicas.iter();
        let ready = books.filter(|(name, book)| book.is_of(source) && self.is_ready(name, book));
        let ready = u32::try_from(ready.count()).unwrap_or(u32::MAX);
        let parts = wanted
            .div_ceil(ready.max(1))
            .clamp(1, book.ranges_max().max(1));
        book.rates.share(parts, now)
    }

    /// Finds the place where the next range of a dump shall be read: the least loaded replica that may,
    /// and the node with the most room that reaches it; rather not those that failed with the range. Equal
    /// ones take turns. Leaves room for hungry dumps whose turn is before.
    pub(super) fn free_place(&self, id: DumpId, tries: &Tries, now: Duration) -> Option<Place> {
        let job = self.jobs.get(&id)?;
        let source = job.dump.source.as_str();
        let taken = self.reading_by_node();
        let free_seats = |node: &str, reach: &NodeReach| {
            let taken = taken.get(node).copied().unwrap_or_default();
            reach.seats.saturating_sub(taken)
        };
        let is_reached = |replica: &str| {
            let mut nodes = self.nodes.reaching(replica);
            nodes.any(|(node, reach)| free_seats(node, reach) > 0)
        };
        let usable = || {
            let books = self.replicas.iter();
            books.filter(|(name, book)| {
                book.is_of(source) && self.free_now(name, book, now) > 0 && is_reached(name)
            })
        };
        let free: u32 = usable()
            .map(|(name, book)| self.free_now(name, book, now))
            .sum();
        let before = self.hungry_before(job, now);
        if u32::try_from(before).is_ok_and(|before| free <= before) {
            return None;
        }
        let rank = |(name, book): &(&String, &ReplicaBook)| {
            let is_avoided = tries.avoid.as_ref() == Some(*name);
            (is_avoided, book.load(), book.last_ticket)
        };
        let (replica, _) = usable().min_by_key(rank)?;
        let rank = |(node, reach): &(&str, &NodeReach)| {
            let is_avoided = tries.avoid_node.as_deref() == Some(*node);
            let free = u64::from(free_seats(node, reach));
            let load = 1_000 - free * 1_000 / u64::from(reach.seats.max(1));
            let last_ticket = self.nodes.last_tickets.get(*node).copied();
            (is_avoided, load, last_ticket)
        };
        let nodes = self.nodes.reaching(replica);
        let (node, _) = nodes
            .filter(|(node, reach)| free_seats(node, reach) > 0)
            .min_by_key(rank)?;
        Some(Place {
            replica: replica.clone(),
            node: node.to_owned(),
        })
    }

    /// Counts the hungry dumps of the same source whose turn is before that of a dump.
    fn hungry_before(&self, job: &Job, now: Duration) -> usize {
        let is_before = |other: &&Job| {
            other.dump.id != job.dump.id
                && other.dump.source == job.dump.source
                && other.is_hungry(now)
                && other.turn() < job.turn()
        };
        self.jobs.values().filter(is_before).count()
    }

    /// Reserves the next free replica for a dump, if there is one to become free.
    pub(super) fn set_hungry(&mut self, id: DumpId, now: Duration) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let mut books = self.replicas.iter();
        let may_come =
            books.any(|(name, book)| book.is_of(&job.dump.source) && self.is_ready(name, book));
        if may_come && let Some(job) = self.jobs.get_mut(&id) {
            job.hungry_until = Some(now + super::HUNGER);
        }
    }
}
