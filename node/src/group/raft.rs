//! The Raft group, as the administration sees it.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use pgcapture_actors::consensus::Consensus as _;
use pgcapture_engine::cluster::Command;

use super::{Group, GroupError, Life, Member, Standing, StateHash};
use crate::raft::{RaftConsensus, RaftError};

/// What the leader knows of the nodes beyond their logs: whether they live, and where sources would
/// be better off.
pub trait Census: Debug + Send + Sync {
    /// How the nodes are, by name; `None` unless this node leads.
    fn lives(&self) -> Option<BTreeMap<String, Life>>;

    /// The assignments that would make the load even; `None` unless this node leads.
    fn balance(&self) -> Option<Vec<Command>>;
}

/// The group that this node is a member of.
#[derive(Debug)]
pub struct RaftGroup {
    raft: RaftConsensus,
    census: Option<Arc<dyn Census>>,
}

impl RaftGroup {
    /// Shows a group; without a census nothing is said of lives, and nothing is moved.
    #[must_use]
    pub const fn new(raft: RaftConsensus, census: Option<Arc<dyn Census>>) -> Self {
        Self { raft, census }
    }

    fn leads(&self) -> bool {
        self.raft.leadership().borrow().is_me
    }
}

#[async_trait]
impl Group for RaftGroup {
    fn standing(&self) -> Standing {
        let status = self.raft.status();
        let member = |member: crate::raft::Member| Member {
            name: member.node.name,
            id: member.node.id,
            address: member.node.address,
            is_voter: member.is_voter,
            lag: member.lag,
        };
        Standing {
            cluster: self.raft.identity().cluster.to_string(),
            term: status.term,
            leader: status.leader,
            committed: status.committed,
            applied: status.applied,
            members: status.members.into_iter().map(member).collect(),
            protocol: status.protocol,
            holding_back: status.holding_back,
        }
    }

    fn lives(&self) -> Option<BTreeMap<String, Life>> {
        match &self.census {
            Some(census) => census.lives(),
            // It answers, so it lives.
            None if self.leads() => {
                let name = self.raft.identity().name.clone();
                Some(BTreeMap::from([(name, Life::Alive)]))
            }
            None => None,
        }
    }

    fn balance(&self) -> Option<Vec<Command>> {
        match &self.census {
            Some(census) => census.balance(),
            None => self.leads().then(Vec::new),
        }
    }

    async fn remove(&self, name: &str) -> Result<(), GroupError> {
        self.raft.remove(name).await.map_err(refused)
    }

    async fn transfer(&self, name: &str) -> Result<(), GroupError> {
        self.raft.transfer(name).await.map_err(refused)
    }

    async fn hash(&self) -> Result<StateHash, GroupError> {
        let hash = self.raft.hash().await.map_err(refused)?;
        Ok(StateHash {
            applied: hash.applied,
            hash: hash.sum.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

fn refused(error: RaftError) -> GroupError {
    let explanation = error.explanation();
    let text = error.to_string();
    let text = text.strip_prefix(explanation.code).unwrap_or(&text);
    GroupError {
        explanation,
        text: text.strip_prefix(": ").unwrap_or(text).to_owned(),
    }
}
