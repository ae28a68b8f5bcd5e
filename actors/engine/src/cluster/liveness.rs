//! Which nodes live: what the leader of the Raft group concludes from their reports.
//!
//! Soft state of one leader, never agreed on; a new leader begins with nothing but the names. A
//! node is gone when somebody has proof (its sockets closed and nobody listens at its address) or
//! when it was silent for too long. A wrong guess costs a move and never a change: epochs, the log
//! and the slot fence the node that was given up.
//!
//! # Invariants
//!
//! - A node holds its lease at most [`LEASE`] after a report that the leader has answered, counted
//!   from when it sent that report; the leader gives it up only [`SILENCE_MAX`] after it received
//!   one. Both use clocks that only run forward, so that no two clocks are ever compared.
//! - A leader answers only while it is known to lead: on a round in which a majority said so, begun at
//!   most [`CONFIRMED_MAX`] before the report came. The next leader was elected after that round began,
//!   so that it gives nobody up before the leases that its predecessor has renewed are over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{cluster::State, dump::schedule::NodeReach};

/// Nodes report this often, and at once when something changes.
pub const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// A silent node keeps its agents for this long: some reports may be lost, and a Raft group may
/// elect a leader meanwhile.
pub const LEASE: Duration = Duration::from_millis(1_200);

/// A node that was silent for this long is given up. Longer than [`LEASE`], so that its agents have
/// stopped by themselves before others begin.
pub const SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// A report is answered on a majority's word from a round that began at most this long before it came:
/// what is left between the end of a lease and the moment at which a new leader may give the node up.
pub const CONFIRMED_MAX: Duration = SILENCE_MAX.saturating_sub(LEASE);

/// A source that its owner cannot reach moves after this time to a node that reaches it: a server
/// that restarts is back sooner.
pub const UNREACHABLE_MAX: Duration = Duration::from_secs(5);

/// What a node tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// It wants to stop: its work goes elsewhere.
    pub is_draining: bool,
    /// Sources whose PostgreSQL it cannot reach.
    pub unreachable: BTreeSet<String>,
    /// What it can read for dumps.
    pub reach: NodeReach,
}

/// Whether a node lives, as the leader concludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It reports.
    Alive,
    /// It has not been heard for too long.
    Silent,
    /// Its process is known to be gone.
    Gone,
    /// It wants to stop.
    Draining,
}

impl Life {
    /// Tells whether the node still does its work.
    #[must_use]
    pub const fn is_there(self) -> bool {
        matches!(self, Self::Alive | Self::Draining)
    }

    /// Returns the stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Silent => "silent",
            Self::Gone => "gone",
            Self::Draining => "draining",
        }
    }
}

/// What the leader knows of all nodes. Times are since any fixed moment.
#[derive(Clone, Debug)]
pub struct Liveness {
    began: Duration,
    nodes: BTreeMap<String, Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    /// When it was last heard; `None` before the first report.
    heard: Option<Duration>,
    is_gone: bool,
    report: NodeReport,
    /// Since when each source that it cannot reach is out of its reach.
    unreachable_since: BTreeMap<String, Duration>,
}

impl Liveness {
    /// Begins at a new leader: every node counts as alive until it had time to report.
    #[must_use]
    pub const fn new(now: Duration) -> Self {
        Self {
            began: now,
            nodes: BTreeMap::new(),
        }
    }

    /// Records a report; returns whether it says anything new: a node that was not alive, or
    /// another report than the last one.
    pub fn heard(&mut self, node: &str, report: NodeReport, now: Duration) -> bool {
        let was_alive = self.is_alive(node, now);
        let seen = self.nodes.entry(node.to_owned()).or_default();
        let is_news = !was_alive || seen.heard.is_none() || seen.report != report;
        let before = std::mem::take(&mut seen.unreachable_since);
        let since = |name: &String| (name.clone(), before.get(name).copied().unwrap_or(now));
        seen.unreachable_since = report.unreachable.iter().map(since).collect();
        seen.heard = seen.heard.max(Some(now));
        seen.is_gone = false;
        seen.report = report;
        is_news
    }

    /// Records proof that a node's process is gone. The next report takes it back.
    pub fn gone(&mut self, node: &str) {
        self.nodes.entry(node.to_owned()).or_default().is_gone = true;
    }

    /// Tells whether a node counts as alive.
    #[must_use]
    pub fn is_alive(&self, node: &str, now: Duration) -> bool {
        let Some(seen) = self.nodes.get(node) else {
            return now.saturating_sub(self.began) < SILENCE_MAX;
        };
        let heard = seen.heard.unwrap_or(self.began);
        !seen.is_gone && now.saturating_sub(heard) < SILENCE_MAX
    }

    /// Returns how a node is.
    #[must_use]
    pub fn life(&self, node: &str, now: Duration) -> Life {
        let seen = self.nodes.get(node);
        match seen {
            Some(seen) if seen.is_gone => Life::Gone,
            _ if !self.is_alive(node, now) => Life::Silent,
            Some(seen) if seen.report.is_draining => Life::Draining,
            _ => Life::Alive,
        }
    }

    /// Tells whether a node may be given a source: it lives, has reported, stays, and reaches the
    /// source's server.
    #[must_use]
    pub fn is_candidate(&self, node: &str, source: &str, now: Duration) -> bool {
        self.is_alive(node, now)
            && self.nodes.get(node).is_some_and(|seen| {
                seen.heard.is_some()
                    && !seen.report.is_draining
                    && !seen.report.unreachable.contains(source)
            })
    }

    /// Returns the nodes that may be given ranges of dumps, with what they say that they can read: they
    /// live, have reported and stay.
    #[must_use]
    pub fn readers(&self, state: &State, now: Duration) -> BTreeMap<String, NodeReach> {
        let reports = self.nodes.iter().filter(|(node, seen)| {
            let is_there = seen.heard.is_some() && self.is_alive(node, now);
            is_there && !seen.report.is_draining && state.nodes.contains_key(*node)
        });
        reports
            .map(|(node, seen)| (node.clone(), seen.report.reach.clone()))
            .collect()
    }

    /// Tells whether the owner of a source keeps it: it lives, does not want to stop, and has not
    /// been without the source's server for too long.
    #[must_use]
    pub fn keeps(&self, node: &str, source: &str, now: Duration) -> bool {
        let Some(seen) = self.nodes.get(node) else {
            return self.is_alive(node, now);
        };
        let since = seen.unreachable_since.get(source);
        let is_cut_off = since.is_some_and(|since| now.saturating_sub(*since) >= UNREACHABLE_MAX);
        self.is_alive(node, now) && !seen.report.is_draining && !is_cut_off
    }

    /// Tells whether no other node could take what a node owns: all others are away or stop as well. One
    /// that has not been heard yet may still be there.
    #[must_use]
    pub fn is_stranded(&self, state: &State, node: &str, now: Duration) -> bool {
        let mut others = state.nodes.keys().filter(|other| *other != node);
        others.all(|other| self.life(other, now) != Life::Alive)
    }

    /// Returns when the next node would be given up for its silence, or a source for its distance:
    /// the moment to look again if nothing is heard before.
    #[must_use]
    pub fn next_look(&self, state: &State, now: Duration) -> Option<Duration> {
        let silence = state.nodes.keys().filter_map(|node| {
            let seen = self.nodes.get(node);
            let heard = seen.and_then(|seen| seen.heard).unwrap_or(self.began);
            (!seen.is_some_and(|seen| seen.is_gone)).then(|| heard.saturating_add(SILENCE_MAX))
        });
        let distance = self.nodes.values().flat_map(|seen| {
            let since = seen.unreachable_since.values();
            since.map(|since| since.saturating_add(UNREACHABLE_MAX))
        });
        silence.chain(distance).filter(|at| *at > now).min()
    }
}

/// A node's right to go on with what it was given, as the node itself sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    until: Duration,
}

impl Lease {
    /// Records that the leader has answered the report that was sent at `sent`.
    pub fn renewed(&mut self, sent: Duration) {
        self.until = self.until.max(sent.saturating_add(LEASE));
    }

    /// Tells whether the node may go on.
    #[must_use]
    pub fn is_held(&self, now: Duration) -> bool {
        now < self.until
    }

    /// Returns when it ends if it is not renewed.
    #[must_use]
    pub const fn until(&self) -> Duration {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        cluster::{Command, Node},
        lsn::PgTime,
    };

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_new_leader_gives_every_node_time_to_report() {
        let liveness = Liveness::new(ms(100));
        assert!(liveness.is_alive("n1", ms(100)));
        assert!(!liveness.is_candidate("n1", "shop", ms(100)), "unheard");
        assert!(!liveness.is_alive("n1", ms(100) + SILENCE_MAX));
    }

    #[test]
    fn silence_and_proof_end_a_node_and_a_report_brings_it_back() {
        let mut liveness = Liveness::new(ms(0));
        liveness.heard("n1", NodeReport::default(), ms(10));
        assert!(liveness.is_candidate("n1", "shop", ms(1_000)));
        assert!(!liveness.is_alive("n1", ms(10) + SILENCE_MAX));
        liveness.heard("n1", NodeReport::default(), ms(3_000));
        assert!(liveness.is_alive("n1", ms(3_000)));
        liveness.gone("n1");
        assert!(!liveness.is_alive("n1", ms(3_000)));
        liveness.heard("n1", NodeReport::default(), ms(3_010));
        assert!(liveness.is_alive("n1", ms(3_010)));
    }

    #[test]
    fn a_node_is_stranded_when_all_others_are_away_or_stop_as_well() {
        let mut state = State::default();
        for (id, name) in [(1, "n1"), (2, "n2"), (3, "n3")] {
            let node = crate::cluster::Node {
                name: name.to_owned(),
                id,
                address: format!("{name}:7700"),
                joined_at: crate::lsn::PgTime(1),
            };
            state.nodes.insert(name.to_owned(), node);
        }
        let mut liveness = Liveness::new(ms(0));
        let stops = NodeReport {
            is_draining: true,
            ..NodeReport::default()
        };
        liveness.heard("n1", stops.clone(), ms(10));
        liveness.heard("n2", stops.clone(), ms(10));
        assert!(!liveness.is_stranded(&state, "n1", ms(10)), "n3 is unheard");
        liveness.heard("n3", NodeReport::default(), ms(10));
        assert!(!liveness.is_stranded(&state, "n1", ms(10)));
        assert!(liveness.is_stranded(&state, "n3", ms(10)));
        let silent = ms(10) + SILENCE_MAX;
        liveness.heard("n1", stops.clone(), silent);
        assert!(liveness.is_stranded(&state, "n1", silent), "n3 is silent");
        liveness.heard("n3", stops, silent);
        assert!(liveness.is_stranded(&state, "n1", silent), "all stop");
        liveness.heard("n2", NodeReport::default(), silent);
        assert!(!liveness.is_stranded(&state, "n1", silent));
        liveness.gone("n2");
        assert!(liveness.is_stranded(&state, "n1", silent));
        assert!(Liveness::new(ms(0)).is_stranded(&State::default(), "n1", ms(0)));
    }

    #[test]
    fn only_nodes_that_live_and_stay_are_given_ranges() {
        let mut state = State::default();
        for (name, id) in [("n1", 1), ("n2", 2), ("n3", 3)] {
            let node = Node {
                name: name.to_owned(),
                id,
                address: format!("{name}:1"),
                joined_at: PgTime(1),
            };
            state.apply(Command::AddNode(node)).unwrap();
        }
        let reach = NodeReach {
            seats: 4,
            replicas: BTreeSet::from(["r1".to_owned()]),
        };
        let report = |is_draining| NodeReport {
            is_draining,
            reach: reach.clone(),
            ..NodeReport::default()
        };
        let mut liveness = Liveness::new(ms(0));
        assert!(liveness.readers(&state, ms(1)).is_empty(), "unheard");
        for node in ["n1", "n2", "n3", "stranger"] {
            liveness.heard(node, report(false), ms(10));
        }
        liveness.heard("n2", report(true), ms(20));
        liveness.gone("n3");
        let wanted = BTreeMap::from([("n1".to_owned(), reach.clone())]);
        assert_eq!(liveness.readers(&state, ms(20)), wanted);
        assert!(liveness.readers(&state, ms(10) + SILENCE_MAX).is_empty());
    }

    #[test]
    fn an_owner_keeps_a_source_that_is_out_of_reach_for_a_while() {
        let mut liveness = Liveness::new(ms(0));
        let report = NodeReport {
            unreachable: BTreeSet::from(["shop".to_owned()]),
            ..NodeReport::default()
        };
        liveness.heard("n1", report.clone(), ms(0));
        assert!(liveness.keeps("n1", "shop", ms(10)));
        assert!(!liveness.is_candidate("n1", "shop", ms(10)));
        let later = UNREACHABLE_MAX + ms(1);
        liveness.heard("n1", report, later);
        assert!(!liveness.keeps("n1", "shop", later));
        assert!(liveness.keeps("n1", "other", later));
        liveness.heard("n1", NodeReport::default(), later);
        assert!(liveness.keeps("n1", "shop", later));
    }

    proptest! {
        /// A leader that was deposed at any moment after its last round, and answers what it may, has
        /// renewed no lease beyond what the next leader waits for.
        #[test]
        fn a_lease_of_the_old_leader_ends_before_the_new_one_gives_the_node_up(
            round in 1_000_u64..100_000,
            elected_after in 0_u64..2_000,
            received_after in 0_u64..=300,
            travel in 0_u64..1_000,
        ) {
            prop_assert_eq!(CONFIRMED_MAX, ms(300));
            let next = Liveness::new(ms(round + elected_after));
            let mut lease = Lease::default();
            lease.renewed(ms((round + received_after).saturating_sub(travel)));
            prop_assert!(next.is_alive("n1", lease.until().saturating_sub(ms(1))));
        }

        /// However reports and answers travel, the leader gives a node up only after the node's
        /// own lease has ended. `skew` is the difference of the two clocks' starts.
        #[test]
        fn a_lease_ends_before_the_node_is_given_up(
            skew in 0_u64..100_000,
            trips in proptest::collection::vec((1_u64..900, 0_u64..400, any::<bool>()), 1..30),
        ) {
            let mut liveness = Liveness::new(ms(skew));
            let (mut lease, mut now) = (Lease::default(), ms(0));
            let mut is_heard = false;
            for (pause, travel, is_answered) in trips {
                now += ms(pause);
                let received = now + ms(travel);
                liveness.heard("n1", NodeReport::default(), received + ms(skew));
                is_heard = true;
                if is_answered {
                    lease.renewed(now);
                }
            }
            prop_assume!(is_heard);
            let is_alive = |at: Duration| liveness.is_alive("n1", at + ms(skew));
            let end = lease.until();
            if end > Duration::ZERO {
                prop_assert!(is_alive(end.saturating_sub(ms(1))) || !lease.is_held(end));
                prop_assert!(is_alive(end.saturating_sub(ms(1))));
            }
        }
    }
}
