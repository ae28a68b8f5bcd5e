//! Nodes, events and hashes as they are shown.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgcapture_proto::admin::v1::{ClusterEvent, ClusterMember, ClusterStatus, NodeHash};
use serde::Serialize;

use crate::{
    cli::{
        output::{Column, View, joined},
        watch::{Awaited, Until},
    },
    units::human_duration,
};

/// Digits of a hash that people compare.
const HASH_SHOWN: usize = 16;

/// A cluster.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ClusterView {
    cluster: String,
    term: u64,
    leader: String,
    committed_index: u64,
    applied_index: u64,
    stale: bool,
    answered_by: String,
    protocol: u32,
    holding_back: Vec<String>,
    pub(super) members: Vec<MemberView>,
}

/// A member of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MemberView {
    pub(super) name: String,
    id: u64,
    address: String,
    role: String,
    pub(super) state: String,
    leads: bool,
    sources: Vec<String>,
    lag_entries: Option<u64>,
    /// The group in one line, under the last member.
    #[serde(skip)]
    headline: Option<String>,
}

impl From<ClusterStatus> for ClusterView {
    fn from(status: ClusterStatus) -> Self {
        let leader = status.leader.clone();
        let member = |member: ClusterMember| MemberView {
            leads: member.name == leader,
            name: member.name,
            id: member.id,
            address: member.address,
            role: member.role,
            state: member.state,
            sources: member.sources,
            lag_entries: member.lag_entries,
            headline: None,
        };
        Self {
            members: status.members.into_iter().map(member).collect(),
            cluster: status.cluster,
            term: status.term,
            leader: status.leader,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            stale: status.stale,
            answered_by: status.answered_by,
            protocol: status.protocol,
            holding_back: status.holding_back,
        }
    }
}

impl ClusterView {
    /// The group in one line.
    fn headline(&self) -> String {
        let leader = if self.leader.is_empty() {
            "! no leader".to_owned()
        } else {
            format!("leader {} (term {})", self.leader, self.term)
        };
        let cluster = if self.cluster.is_empty() {
            String::new()
        } else {
            format!("cluster {}  ", self.cluster)
        };
        let stale = if self.stale {
            format!(
                "  ! the leader does not answer: this is what {} knows",
                self.answered_by
            )
        } else {
            String::new()
        };
        format!(
            "{cluster}{leader}  committed {}  applied {}{}{stale}",
            self.committed_index,
            self.applied_index,
            self.protocol_text()
        )
    }

    /// The version that nodes speak, and who keeps them from the next one.
    fn protocol_text(&self) -> String {
        if self.protocol == 0 {
            // A node of an earlier version answers.
            return String::new();
        }
        let (protocol, next) = (self.protocol, self.protocol + 1);
        if self.holding_back.is_empty() {
            return format!("  protocol {protocol}");
        }
        let names = self.holding_back.join(", ");
        format!("  protocol {protocol} (not {next} yet: {names})")
    }

    /// The members, with the group in one line under them.
    pub(super) fn into_members_with_headline(mut self) -> Vec<MemberView> {
        let headline = self.headline();
        if let Some(last) = self.members.last_mut() {
            last.headline = Some(headline);
        }
        self.members
    }

    /// Tells whether the group itself works.
    fn is_healthy(&self) -> bool {
        !self.leader.is_empty() && !self.stale && self.members.iter().all(MemberView::is_alive)
    }
}

impl View for ClusterView {
    const COLUMNS: &'static [Column] = &[
        ("CLUSTER", false),
        ("LEADER", false),
        ("TERM", false),
        ("COMMITTED", false),
        ("APPLIED", false),
        ("STALE", false),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.cluster.clone(),
            self.leader.clone(),
            self.term.to_string(),
            self.committed_index.to_string(),
            self.applied_index.to_string(),
            self.stale.to_string(),
        ]
    }
}

impl Awaited for ClusterView {
    fn reaches(&self, until: Until) -> bool {
        let is_behind = self.members.iter().any(|member| !member.reaches(until));
        self.is_healthy() && !is_behind
    }
}

impl MemberView {
    pub(super) fn is_alive(&self) -> bool {
        self.state == "alive"
    }
}

impl View for MemberView {
    const COLUMNS: &'static [Column] = &[
        ("NODE", false),
        ("STATE", false),
        ("ROLE", false),
        ("ADDRESS", false),
        ("LAG", false),
        ("SOURCES", false),
        ("ID", true),
    ];

    fn cells(&self) -> Vec<String> {
        let is_well = matches!(self.state.as_str(), "alive" | "unknown");
        vec![
            self.name.clone(),
            if is_well {
                self.state.clone()
            } else {
                format!("! {}", self.state)
            },
            if self.leads {
                "leader".to_owned()
            } else {
                self.role.clone()
            },
            self.address.clone(),
            self.lag_entries
                .map_or_else(|| "–".to_owned(), |lag| lag.to_string()),
            joined(&self.sources),
            self.id.to_string(),
        ]
    }

    fn hint(&self) -> Option<String> {
        self.headline.clone()
    }
}

impl Awaited for MemberView {
    fn reaches(&self, until: Until) -> bool {
        match until {
            Until::Healthy => self.is_alive(),
            Until::CaughtUp | Until::Done => self.is_alive() && self.lag_entries == Some(0),
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EventView {
    at: String,
    node: String,
    kind: String,
    subject: String,
    text: String,
    took_seconds: Option<f64>,
    #[serde(skip)]
    took: Option<std::time::Duration>,
}

impl From<ClusterEvent> for EventView {
    fn from(event: ClusterEvent) -> Self {
        let took = (event.took_micros > 0)
            .then(|| std::time::Duration::from_micros(event.took_micros.unsigned_abs()));
        Self {
            at: time_text(event.at),
            node: event.node,
            kind: event.kind,
            subject: event.subject,
            text: event.text,
            took_seconds: took.map(|took| took.as_secs_f64()),
            took,
        }
    }
}

impl View for EventView {
    const COLUMNS: &'static [Column] = &[
        ("TIME", false),
        ("KIND", false),
        ("WHAT", false),
        ("TOOK", false),
        ("TOLD BY", true),
        ("SUBJECT", true),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.at.clone(),
            self.kind.clone(),
            self.text.clone(),
            self.took.map_or_else(|| "–".to_owned(), human_duration),
            self.node.clone(),
            self.subject.clone(),
        ]
    }
}

fn time_text(micros: i64) -> String {
    Timestamp::from_microsecond(micros).map_or_else(|_| "–".to_owned(), |time| format!("{time:.3}"))
}

/// What one node has applied.
#[derive(Clone, Debug, Serialize)]
pub(super) struct HashView {
    node: String,
    applied_index: u64,
    hash: String,
    error: String,
}

impl From<NodeHash> for HashView {
    fn from(hash: NodeHash) -> Self {
        let NodeHash {
            node,
            applied_index,
            hash,
            error,
        } = hash;
        Self {
            node,
            applied_index,
            hash,
            error,
        }
    }
}

impl View for HashView {
    const COLUMNS: &'static [Column] = &[("NODE", false), ("APPLIED", false), ("HASH", false)];

    fn cells(&self) -> Vec<String> {
        let shown = if self.error.is_empty() {
            self.hash.chars().take(HASH_SHOWN).collect()
        } else {
            format!("! {}", self.error)
        };
        vec![self.node.clone(), self.applied_index.to_string(), shown]
    }
}

/// What follows from the hashes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// For people.
    pub(super) said: String,
    /// Set when nodes have applied the same and have something else.
    pub(super) differ: Option<String>,
}

/// Compares nodes that have applied equally much.
pub(super) fn verdict(hashes: &[HashView]) -> Verdict {
    let mut of_index: BTreeMap<u64, Vec<&HashView>> = BTreeMap::new();
    let known = hashes.iter().filter(|it| it.error.is_empty());
    for hash in known.clone() {
        of_index.entry(hash.applied_index).or_default().push(hash);
    }
    for (index, nodes) in &of_index {
        let is_equal = nodes.windows(2).all(|pair| match pair {
            [one, other] => one.hash == other.hash,
            _ => true,
        });
        if !is_equal {
            let names: Vec<&str> = nodes.iter().map(|it| it.node.as_str()).collect();
            let differ = format!("{} have applied {index} and differ", names.join(", "));
            return Verdict {
                said: String::new(),
                differ: Some(differ),
            };
        }
    }
    let (known, all) = (known.count(), hashes.len());
    let said = if of_index.len() > 1 {
        "not comparable: entries were applied meanwhile; run it again".to_owned()
    } else {
        format!("{known} of {all} nodes answered, and are equal")
    };
    Verdict { said, differ: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(node: &str, applied_index: u64, hash: &str) -> HashView {
        HashView {
            node: node.to_owned(),
            applied_index,
            hash: hash.to_owned(),
            error: String::new(),
        }
    }

    #[test]
    fn only_equal_indexes_are_compared() {
        let equal = verdict(&[hash("n1", 5, "aa"), hash("n2", 5, "aa")]);
        assert_eq!(equal.said, "2 of 2 nodes answered, and are equal");
        let moving = verdict(&[hash("n1", 5, "aa"), hash("n2", 6, "bb")]);
        assert!(moving.said.starts_with("not comparable"), "{moving:?}");
        let differ = verdict(&[hash("n1", 5, "aa"), hash("n2", 6, "b"), hash("n3", 5, "cc")]);
        assert_eq!(
            differ.differ.as_deref(),
            Some("n1, n3 have applied 5 and differ")
        );
        let mut away = hash("n2", 0, "");
        away.error = "does not answer".to_owned();
        let partly = verdict(&[hash("n1", 5, "aa"), away]);
        assert_eq!(partly.said, "1 of 2 nodes answered, and are equal");
    }

    #[test]
    fn a_cluster_is_healthy_when_all_live_and_the_leader_says_so() {
        let member = |name: &str, state: &str| ClusterMember {
            name: name.to_owned(),
            role: "voter".to_owned(),
            state: state.to_owned(),
            lag_entries: Some(1),
            ..ClusterMember::default()
        };
        let mut status = ClusterStatus {
            leader: "n1".to_owned(),
            term: 7,
            members: vec![member("n1", "alive"), member("n2", "alive")],
            ..ClusterStatus::default()
        };
        let view = ClusterView::from(status.clone());
        assert!(view.reaches(Until::Healthy) && !view.reaches(Until::CaughtUp));
        assert_eq!(
            view.headline(),
            "leader n1 (term 7)  committed 0  applied 0"
        );
        assert_eq!(view.members[0].cells()[2], "leader");
        status.stale = true;
        assert!(!ClusterView::from(status.clone()).reaches(Until::Healthy));
        status.stale = false;
        status.members[1].state = "silent".to_owned();
        let view = ClusterView::from(status.clone());
        assert!(!view.reaches(Until::Healthy));
        assert_eq!(view.members[1].cells()[1], "! silent");
        status.leader.clear();
        assert!(
            ClusterView::from(status)
                .headline()
                .starts_with("! no leader")
        );
    }
}
