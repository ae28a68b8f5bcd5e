//! What the administration asks of the group of nodes: who belongs to it, who leads, who lives.
//!
//! A seam: the Raft group fills it. [`Alone`] is the group of a node that has no peers.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use pgcapture_actors::consensus::Consensus;
use pgcapture_engine::{
    cluster::Command,
    codes::{self, Explanation},
};
use sha2::{Digest as _, Sha256};

/// The group as one member sees it.
#[async_trait]
pub trait Group: Debug + Send + Sync {
    /// What this node knows by itself.
    fn standing(&self) -> Standing;

    /// How the nodes are, by name; `None` unless this node leads.
    fn lives(&self) -> Option<BTreeMap<String, Life>>;

    /// The assignments that would make the load even; `None` unless this node leads.
    fn balance(&self) -> Option<Vec<Command>>;

    /// Takes a node out for good. Idempotent. Only while this node leads.
    async fn remove(&self, name: &str) -> Result<(), GroupError>;

    /// Asks another member to lead. Only while this node leads.
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
    /// The last entry that it has confirmed; only the leader knows.
    pub confirmed: Option<u64>,
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

/// The group of a node without peers.
#[derive(Debug)]
pub struct Alone {
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// The agreed state.
    pub consensus: Arc<dyn Consensus>,
}

impl Alone {
    fn refuse(&self, what: &str) -> GroupError {
        GroupError {
            explanation: &codes::node::BAD_REQUEST,
            text: format!("{} is the only node: {what}", self.name),
        }
    }
}

#[async_trait]
impl Group for Alone {
    fn standing(&self) -> Standing {
        Standing {
            leader: Some(self.name.clone()),
            members: vec![Member {
                name: self.name.clone(),
                id: 1,
                address: self.address.clone(),
                is_voter: true,
                confirmed: Some(0),
            }],
            ..Standing::default()
        }
    }

    fn lives(&self) -> Option<BTreeMap<String, Life>> {
        Some(BTreeMap::from([(self.name.clone(), Life::Alive)]))
    }

    fn balance(&self) -> Option<Vec<Command>> {
        Some(Vec::new())
    }

    async fn remove(&self, name: &str) -> Result<(), GroupError> {
        Err(self.refuse(&format!("{name} cannot be removed")))
    }

    async fn transfer(&self, name: &str) -> Result<(), GroupError> {
        if name == self.name {
            return Ok(());
        }
        Err(self.refuse(&format!("{name} cannot lead")))
    }

    async fn hash(&self) -> Result<StateHash, GroupError> {
        let state = Arc::clone(&self.consensus.state().borrow());
        let json = serde_json::to_vec(&*state).map_err(|error| GroupError {
            explanation: &codes::node::STORE_FAILED,
            text: error.to_string(),
        })?;
        let digest = Sha256::digest(json);
        Ok(StateHash {
            applied: 0,
            hash: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}
