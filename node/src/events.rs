//! What happened to the cluster lately, as this node remembers it: elections, assignments, nodes that
//! went and came back, how long a take-over took.
//!
//! Memory only, and bounded: a restart forgets, the log of the process does not. Every node keeps its
//! own; `rpc::cluster` puts them together by time.

mod watch;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use self::watch::start;
use crate::sources::unix_now_micros;

/// Events that are remembered: those of hours, and far more than anybody reads; some 200 KiB.
const EVENTS_MAX: usize = 1_000;

/// This node's memory. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Events {
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug, Default)]
struct Memory {
    events: VecDeque<Event>,
    /// The last take-over of each source that this node did.
    failovers: BTreeMap<String, Failover>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, microseconds since 1970.
    pub at: i64,
    /// What kind of thing.
    pub kind: EventKind,
    /// The node or the source that it is about.
    pub subject: String,
    /// For people.
    pub text: String,
    /// How long it took, if that is what it is about.
    pub took: Option<Duration>,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A node leads.
    Elected,
    /// A source was given to a node.
    Assigned,
    /// A node reads a source that another one had.
    TakenOver,
    /// A node belongs to the cluster from now on.
    NodeJoined,
    /// A node belongs to it no more.
    NodeLeft,
    /// The leader gave a node up.
    NodeGone,
    /// A node that was given up is heard again.
    NodeBack,
    /// The WAL that a source of this node keeps stands otherwise to its limit.
    WalBudget,
}

impl EventKind {
    /// Returns the stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Elected => "elected",
            Self::Assigned => "assigned",
            Self::TakenOver => "taken_over",
            Self::NodeJoined => "node_joined",
            Self::NodeLeft => "node_left",
            Self::NodeGone => "node_gone",
            Self::NodeBack => "node_back",
            Self::WalBudget => "wal_budget",
        }
    }
}

/// A take-over of a source by this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// When it was done, microseconds since 1970.
    pub at: i64,
    /// Who had it.
    pub from: String,
    /// From the assignment to the first reading.
    pub took: Duration,
}

impl Events {
    /// Remembers that a node leads.
    pub fn elected(&self, leader: &str, term: u64) {
        self.record(
            EventKind::Elected,
            leader,
            format!("{leader} leads in term {term}"),
        );
    }

    /// Remembers that the leader, this node, gave a node up.
    pub fn node_gone(&self, node: &str, why: &str) {
        self.record(
            EventKind::NodeGone,
            node,
            format!("{node} is given up: {why}"),
        );
    }

    /// Remembers that a node which was given up is heard again.
    pub fn node_back(&self, node: &str) {
        self.record(EventKind::NodeBack, node, format!("{node} is back"));
    }

    /// Remembers anything else.
    pub fn record(&self, kind: EventKind, subject: &str, text: String) {
        self.push(kind, subject, text, None);
    }

    /// Remembers that this node reads a source which another one had.
    pub fn taken_over(&self, source: &str, from: &str, took: Duration) {
        let text = format!("took {source} over from {from}");
        let at = self.push(EventKind::TakenOver, source, text, Some(took));
        let from = from.to_owned();
        let failover = Failover { at, from, took };
        self.lock().failovers.insert(source.to_owned(), failover);
    }

    /// Returns what is remembered, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Event> {
        self.lock().events.iter().cloned().collect()
    }

    /// Returns the last take-over of a source by this node.
    #[must_use]
    pub fn last_failover(&self, source: &str) -> Option<Failover> {
        self.lock().failovers.get(source).cloned()
    }

    fn push(&self, kind: EventKind, subject: &str, text: String, took: Option<Duration>) -> i64 {
        let mut memory = self.lock();
        // The clock may be set back; the order of what happened stays.
        let last = memory.events.back().map_or(0, |event| event.at);
        let at = unix_now_micros().max(last);
        if memory.events.len() >= EVENTS_MAX {
            memory.events.pop_front();
        }
        memory.events.push_back(Event {
            at,
            kind,
            subject: subject.to_owned(),
            text,
            took,
        });
        at
    }

    /// A panic under the lock leaves a memory that can be read: go on.
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first_and_order_is_kept() {
        let events = Events::default();
        for term in 0..=EVENTS_MAX as u64 {
            events.elected("n1", term);
        }
        let list = events.list();
        assert_eq!(list.len(), EVENTS_MAX);
        assert_eq!(list[0].text, "n1 leads in term 1");
        assert!(list.is_sorted_by_key(|event| event.at));
    }

    #[test]
    fn the_last_take_over_of_a_source_is_known() {
        let events = Events::default();
        assert_eq!(events.last_failover("shop"), None);
        for (from, millis) in [("n1", 900), ("n2", 400)] {
            events.taken_over("shop", from, Duration::from_millis(millis));
        }
        let last = events.last_failover("shop").unwrap();
        assert_eq!((last.from.as_str(), last.took.as_millis()), ("n2", 400));
        assert_eq!(events.list().len(), 2);
        assert_eq!(events.last_failover("other"), None);
    }
}
