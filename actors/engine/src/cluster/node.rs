//! The nodes of a cluster and what each of them owns.

use serde::{Deserialize, Serialize};

use super::{Answer, Refusal, State, changed, check_name};
use crate::{checkpoint::Epoch, confirm::Origin, lsn::PgTime};

/// At most this many nodes: up to five vote, the others follow.
pub const NODES_MAX: usize = 100;

/// Every epoch grows by this much when a cluster is recovered: more sources move than that while nobody
/// notices that the survivor hears nothing. So what the lost nodes began last is older.
pub const RECOVERY_EPOCHS: u64 = 1_000;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name; what users and `application_name` call it.
    pub name: String,
    /// Its number in the Raft group. Never given twice.
    pub id: u64,
    /// Where clients and peers reach it: `host:port`.
    pub address: String,
    /// When it joined.
    pub joined_at: PgTime,
}

impl State {
    /// Returns the node that runs a source's agent; `None` before the first assignment and after
    /// its owner was removed.
    #[must_use]
    pub fn owner(&self, source: &str) -> Option<&str> {
        self.owners.get(source).map(String::as_str)
    }

    pub(super) fn add_node(&mut self, node: Node) -> Result<Answer, Refusal> {
        check_name("node", &node.name)?;
        if let Some(known) = self.nodes.get_mut(&node.name) {
            if known.id != node.id {
                return Err(Refusal::NodeExists { name: node.name });
            }
            let is_new = known.address != node.address;
            known.address = node.address;
            return Ok(changed(is_new));
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(Refusal::TooManyNodes);
        }
        // Who proposes may not have heard of the last one: two would share a number, and a vote.
        let next = self.last_node + 1;
        // A node that was always alone changes its name by leaving and coming back.
        let is_renamed = self.nodes.is_empty() && node.id == self.last_node;
        if node.id != next && !is_renamed {
            let Node { name, id, .. } = node;
            return Err(Refusal::NodeNumber { name, id, next });
        }
        self.last_node = node.id;
        self.nodes.insert(node.name.clone(), node);
        Ok(Answer::Done)
    }

    /// Forgets a node; its sources have no owner until they are assigned again.
    pub(super) fn remove_node(&mut self, name: &str) -> Answer {
        self.owners.retain(|_, owner| owner != name);
        self.homes.retain(|_, home| home != name);
        changed(self.nodes.remove(name).is_some())
    }

    /// Keeps one node and forgets all others, as the last resort when they cannot agree any more. Every
    /// source gets an epoch that no other node can have begun.
    pub fn recover(&mut self, survivor: u64) {
        let others = self.nodes.values().filter(|node| node.id != survivor);
        let names: Vec<String> = others.map(|node| node.name.clone()).collect();
        for name in names {
            self.remove_node(&name);
        }
        for epoch in self.epochs.values_mut() {
            epoch.0 += RECOVERY_EPOCHS;
        }
        for (name, source) in &mut self.sources {
            source.epoch.0 += RECOVERY_EPOCHS;
            self.epochs.insert(name.clone(), source.epoch);
        }
    }

    /// Begins a new epoch of a source on a node, when nobody else has since `after`.
    pub(super) fn assign(
        &mut self,
        name: &str,
        node: String,
        after: Epoch,
    ) -> Result<Answer, Refusal> {
        let source = self.source_mut(name)?;
        if source.epoch != after {
            let (name, epoch) = (name.to_owned(), source.epoch);
            return Err(Refusal::EpochMoved { name, epoch });
        }
        source.epoch = Epoch(after.0 + 1);
        let epoch = source.epoch;
        self.epochs.insert(name.to_owned(), epoch);
        self.owners.insert(name.to_owned(), node);
        Ok(Answer::Assigned(epoch))
    }

    /// Keeps what the agent of a source attests.
    pub(super) fn attest(
        &mut self,
        name: &str,
        epoch: Epoch,
        origin: Origin,
    ) -> Result<Answer, Refusal> {
        let source = self.source(name)?;
        if source.epoch != epoch {
            let (name, epoch) = (name.to_owned(), source.epoch);
            return Err(Refusal::EpochMoved { name, epoch });
        }
        let before = self.attested.insert(name.to_owned(), origin);
        Ok(changed(before != Some(origin)))
    }
}
