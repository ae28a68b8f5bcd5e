//! An agent that runs, and for what it was started.

use std::sync::Arc;

use pgcapture_actors::agent::AgentHandle;
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{SecretRef, Source},
    wal_guard::WalGuard,
};

use super::floors::Floor;

/// A running agent and what it was started for.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) handle: AgentHandle,
    pub(super) epoch: Epoch,
    /// What the slot may be let go up to; `None` on a node that is alone.
    pub(super) floor: Option<Arc<Floor>>,
    pub(super) guard: Option<WalGuard>,
    pub(super) url: String,
    pub(super) password: Option<SecretRef>,
}

impl Running {
    /// Tells whether it is what the state wants of the source.
    pub(super) fn fits(&self, source: &Source, is_alone: bool, guard: Option<WalGuard>) -> bool {
        !source.paused
            && self.guard == guard
            && self.floor.is_none() == is_alone
            && self.epoch == source.epoch
            && self.url == source.url
            && self.password == source.password
    }
}
