//! What other nodes find behind this node's address, before and after it belongs to a cluster.

use std::sync::{Arc, OnceLock};

use pgcapture_engine::membership::Told;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{RaftConsensus, Wish};

/// The door that the peer API is served behind. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Door {
    name: String,
    told: Arc<OnceLock<Told>>,
    member: watch::Sender<Option<RaftConsensus>>,
    stop: CancellationToken,
}

impl Door {
    /// Makes the door of a node that belongs to no cluster yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            told: Arc::default(),
            member: watch::channel(None).0,
            stop: CancellationToken::new(),
        }
    }

    /// Shows to others what this node was told; the first time counts.
    pub fn show(&self, wish: &Wish) {
        // Told once, with the start of the node.
        let _known = self.told.set(wish.told());
    }

    /// What this node was told.
    pub(crate) fn told(&self) -> Told {
        self.told.get().cloned().unwrap_or_default()
    }

    /// Opens it: the node is a member from now on.
    pub fn open(&self, member: RaftConsensus) {
        self.member.send_replace(Some(member));
    }

    /// Closes it: calls that never end, end.
    pub fn close(&self) {
        self.stop.cancel();
        self.member.send_replace(None);
    }

    /// Returns the node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the member behind it.
    pub(crate) fn member(&self) -> Option<RaftConsensus> {
        self.member.borrow().clone()
    }

    /// Ends when it closes.
    pub(crate) async fn closed(self) {
        self.stop.cancelled().await;
    }
}
