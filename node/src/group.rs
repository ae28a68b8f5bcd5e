//! What the administration asks of the group of nodes: who belongs to it, who leads, who lives.
//!
//! A seam between the services and Raft; [`RaftGroup`] fills it.

mod raft;

use std::{collections::BTreeMap, fmt::Debug};

use async_trait::async_trait;
use pgcapture_engine::{cluster::Command, codes::Explanation};

pub use pgcapture_engine::cluster::liveness::Life;

pub use self::raft::{Census, RaftGroup};

/// The group as one member sees it.
#[async_trait]
pub trait Group: Debug + Send + Sync {
    /// What this node knows by itself.
    fn standing(&self) -> Standing;

    /// How the nodes are, by name; `None` unless this node leads.
    fn lives(&self) -> Option<BTreeMap<String, Life>>;

    /// The assignments that would make the load even; `None` unless this node leads.
    fn balance(&self) -> Option<Vec<Command>>;

    /// Takes a node out for good. Idempotent.
    async fn remove(&self, name: &str) -> Result<(), GroupError>;

    /// Lets another member lead.
    async fn transfer(&self, name: &str) -> Result<(), GroupError>;

    /// Hashes what this node has applied.
    async fn hash(&self) -> Result<StateHash, GroupError>;
}

/// Who belongs to the group and how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Identity of the cluster; empty: it has none.
    pub cluster: String,
    /// Grows with every election.
    pub term: u64,
    /// Who leads; `None` when this node knows of nobody.
    pub leader: Option<String>,
    /// The last entry that a majority has.
    pub committed: u64,
    /// The last entry that this node's state contains.
    pub applied: u64,
    /// All members.
    pub members: Vec<Member>,
    /// The agreed version of the protocol between nodes; 0: there is none.
    pub protocol: u32,
    /// Nodes that do not speak the next version, or did not say; only the leader knows.
    pub holding_back: Vec<String>,
}

/// A member of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u64,
    /// Where it is reached.
    pub address: String,
    /// Whether it votes.
    pub is_voter: bool,
    /// Entries of the common log that it has not confirmed; only the leader knows.
    pub lag: Option<u64>,
}

/// A hash of the agreed state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// The last entry that it contains.
    pub applied: u64,
    /// In hexadecimal digits.
    pub hash: String,
}

/// The group does not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct GroupError {
    /// What it means.
    pub explanation: &'static Explanation,
    /// What happened.
    pub text: String,
}
