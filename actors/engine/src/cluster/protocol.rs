//! Which version of the protocol between nodes the cluster has agreed on, and when it is raised.
//!
//! A node speaks a range of versions. What is said, stored and proposed is of the version that was
//! agreed on; it is raised once every node speaks the next one, and never lowered. Until then nodes of
//! both versions make the same state of the same log, byte for byte, and each may go back to the older
//! program.
//!
//! # Invariants
//!
//! - What a version has added is empty before that version was agreed on.
//! - No version is agreed on that a node of the state was not asked about.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Answer, Command, Proposal, Refusal, State, changed};

/// The version of clusters that never agreed on one.
pub const PROTOCOL_FIRST: u32 = 1;

/// From this version on it is agreed on which publication a source is captured with, and how much may be
/// read from a replica a second.
pub const PROTOCOL_SECOND: u32 = 2;

/// The versions that a node speaks: two neighbouring ones, so that a cluster can be upgraded node by node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

/// What versions after the first have added to the state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// The version that was agreed on; 0 before one was.
    pub protocol: u32,
    /// OID of the publication that each source is captured with.
    pub publications: BTreeMap<String, u32>,
    /// Bytes of rows that may be read from each replica a second; none for one without a limit.
    pub replica_rates: BTreeMap<String, u64>,
}

impl Spoken {
    /// What this program speaks.
    pub const OURS: Self = Self {
        oldest: PROTOCOL_FIRST,
        newest: PROTOCOL_SECOND,
    };

    /// What a node speaks that names one version, and the newest if it knows that there are more.
    #[must_use]
    pub fn told(version: u32, newest: u32) -> Self {
        Self {
            oldest: version,
            newest: newest.max(version),
        }
    }

    /// Tells whether it speaks a version.
    #[must_use]
    pub const fn has(self, version: u32) -> bool {
        self.oldest <= version && version <= self.newest
    }

    /// Returns the version in which it talks to others: the agreed one. A node that is new has not heard
    /// of that yet, and one that lags behind not of the newest.
    #[must_use]
    pub fn said(self, agreed: u32) -> u32 {
        agreed.clamp(self.oldest, self.newest.max(self.oldest))
    }
}

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { oldest, newest } = self;
        if oldest == newest {
            write!(f, "{newest}")
        } else {
            write!(f, "{oldest} to {newest}")
        }
    }
}

/// Returns the version that can be agreed on next: that every node speaks, voters and learners. `None` for
/// a node that did not answer; a node that is away may come back as the older program.
#[must_use]
pub fn next_protocol(agreed: u32, nodes: &BTreeMap<u64, Option<Spoken>>) -> Option<u32> {
    let next = agreed + 1;
    let speaks = |spoken: &Option<Spoken>| spoken.is_some_and(|spoken| spoken.has(next));
    (!nodes.is_empty() && nodes.values().all(speaks)).then_some(next)
}

impl Command {
    /// Returns the version of the protocol that must be agreed on before this may be proposed: nodes of an
    /// older one could not read it.
    #[must_use]
    pub fn since(&self) -> u32 {
        match self {
            Self::RaiseProtocol { to, .. } => to.saturating_sub(1),
            Self::KeepPublication { .. } | Self::SetReplicaRate { .. } => PROTOCOL_SECOND,
            Self::AddSource(_)
            | Self::RemoveSource { .. }
            | Self::SetPaused { .. }
            | Self::Assign { .. }
            | Self::SetConnection { .. }
            | Self::DeclareGap { .. }
            | Self::AddReplica(_)
            | Self::RemoveReplica { .. }
            | Self::Attest { .. }
            | Self::Dump(_)
            | Self::AddNode(_)
            | Self::RemoveNode { .. }
            | Self::Home(_)
            | Self::AddGuardedSource { .. }
            | Self::SetWalGuard { .. }
            | Self::LetGo { .. } => PROTOCOL_FIRST,
        }
    }
}

impl State {
    /// Tells whether every node can read a proposal.
    ///
    /// # Errors
    ///
    /// [`Refusal::Protocol`].
    pub fn check_readable(&self, proposal: &Proposal) -> Result<(), Refusal> {
        self.check_agreed(match proposal {
            Proposal::State(command) => command.since(),
            Proposal::Cursors(_) => PROTOCOL_FIRST,
        })
    }

    /// Tells whether a version was agreed on.
    pub(super) fn check_agreed(&self, wanted: u32) -> Result<(), Refusal> {
        let agreed = self.protocol();
        if wanted > agreed {
            return Err(Refusal::Protocol { wanted, agreed });
        }
        Ok(())
    }

    /// Returns the agreed version of the protocol between nodes.
    #[must_use]
    pub fn protocol(&self) -> u32 {
        self.added.protocol.max(PROTOCOL_FIRST)
    }

    pub(super) fn raise_protocol(
        &mut self,
        to: u32,
        nodes: &BTreeSet<u64>,
    ) -> Result<Answer, Refusal> {
        let agreed = self.protocol();
        if to <= agreed {
            return Ok(Answer::Unchanged);
        }
        // One that was let in meanwhile may not speak it.
        let are_asked = self.nodes.values().all(|node| nodes.contains(&node.id));
        if to != agreed + 1 || !are_asked {
            return Err(Refusal::Protocol { wanted: to, agreed });
        }
        self.added.protocol = to;
        Ok(changed(true))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{cluster::Node, lsn::PgTime};

    fn spoken(oldest: u32, newest: u32) -> Spoken {
        Spoken { oldest, newest }
    }

    fn raise(to: u32, nodes: impl IntoIterator<Item = u64>) -> Command {
        Command::RaiseProtocol {
            to,
            nodes: nodes.into_iter().collect(),
        }
    }

    fn with_nodes(count: u64) -> State {
        let mut state = State::default();
        for id in 1..=count {
            let node = Node {
                name: format!("n{id}"),
                id,
                address: format!("n{id}:7700"),
                joined_at: PgTime(1),
            };
            state.apply(Command::AddNode(node)).unwrap();
        }
        state
    }

    #[test]
    fn it_is_raised_by_one_when_every_node_was_asked_and_never_lowered() {
        let mut state = with_nodes(2);
        assert_eq!(state.protocol(), 1);
        let refused = Err(Refusal::Protocol {
            wanted: 2,
            agreed: 1,
        });
        assert_eq!(state.apply(raise(2, [1])), refused, "n2 joined meanwhile");
        assert!(state.apply(raise(3, [1, 2])).is_err());
        assert_eq!(state.added, Added::default(), "no trace");
        assert!(state.check_readable(&Proposal::State(raise(2, []))).is_ok());
        assert!(
            state
                .check_readable(&Proposal::State(raise(3, [])))
                .is_err()
        );
        assert_eq!(state.apply(raise(2, [1, 2])), Ok(Answer::Done));
        assert_eq!(state.apply(raise(2, [1])), Ok(Answer::Unchanged));
        assert_eq!(state.apply(raise(1, [1, 2])), Ok(Answer::Unchanged));
        assert_eq!(state.protocol(), 2);
        state.recover(1);
        assert_eq!(state.protocol(), 2);
    }

    #[test]
    fn a_node_talks_in_the_agreed_version_as_far_as_it_speaks_it() {
        let ours = spoken(2, 3);
        assert_eq!([1, 2, 3, 4].map(|agreed| ours.said(agreed)), [2, 2, 3, 3]);
        // An older program names one version and knows of no other.
        assert_eq!(Spoken::told(1, 0), spoken(1, 1));
        assert_eq!(Spoken::told(1, 2), spoken(1, 2));
        let shown = [spoken(1, 1), spoken(1, 2)].map(|it| it.to_string());
        assert_eq!(shown, ["1", "1 to 2"]);
    }

    fn any_spoken() -> impl Strategy<Value = Option<Spoken>> {
        let spoken = (1..6_u32, 0..3_u32).prop_map(|(oldest, more)| spoken(oldest, oldest + more));
        proptest::option::weighted(0.9, spoken)
    }

    proptest! {
        #[test]
        fn a_raised_version_is_spoken_by_all(
            agreed in 1..6_u32,
            nodes in proptest::collection::btree_map(1..9_u64, any_spoken(), 0..5),
        ) {
            let all = |version| nodes.values().all(|it| it.is_some_and(|it| it.has(version)));
            match next_protocol(agreed, &nodes) {
                Some(next) => prop_assert!(next == agreed + 1 && all(next)),
                None => prop_assert!(nodes.is_empty() || !all(agreed + 1)),
            }
        }
    }
}
