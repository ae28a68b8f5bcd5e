//! What other nodes find behind this node's address, before and after it belongs to a cluster.

use std::sync::Arc;

use pgcapture_engine::{cluster::Spoken, membership::Told};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{RaftConsensus, RaftError, Wish};
use crate::store::{ClusterId, Store};

/// The door that the peer API is served behind. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Door {
    name: String,
    /// What this node was told.
    told: Arc<Told>,
    /// The cluster that the node's store belongs to. It stays known after a stop: a node that is about to
    /// end waits for no cluster either.
    cluster: watch::Sender<Option<ClusterId>>,
    member: watch::Sender<Option<RaftConsensus>>,
    stop: CancellationToken,
    /// The versions of the protocol that the node speaks.
    spoken: Spoken,
}

impl Door {
    /// Makes the door of the node whose store this is, and which was told that. It is closed, yet tells which cluster the store
    /// belongs to: whoever begins a cluster must know that there is one.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn of(wish: &Wish, store: &Store) -> Result<Self, RaftError> {
        let identity = store.identity()?;
        Ok(Self {
            name: wish.name.clone(),
            told: Arc::new(wish.told()),
            cluster: watch::Sender::new(identity.map(|identity| identity.cluster)),
            member: watch::channel(None).0,
            stop: CancellationToken::new(),
            spoken: Spoken::OURS,
        })
    }

    /// Has the node speak other versions than this program does: for tests of clusters whose nodes are of
    /// different ones.
    #[must_use]
    pub fn speaking(mut self, spoken: Spoken) -> Self {
        self.spoken = spoken;
        self
    }

    /// The versions of the protocol that the node speaks.
    pub(crate) const fn spoken(&self) -> Spoken {
        self.spoken
    }

    /// What this node was told.
    pub(crate) fn told(&self) -> &Told {
        &self.told
    }

    /// Opens it: the node is a member from now on.
    pub fn open(&self, member: RaftConsensus) {
        self.belongs_to(member.identity().cluster);
        self.member.send_replace(Some(member));
    }

    /// Tells others from now on that the node belongs to a cluster.
    pub(super) fn belongs_to(&self, cluster: ClusterId) {
        self.cluster.send_replace(Some(cluster));
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

    /// Returns the cluster that the node belongs to, whether its member is behind the door or not.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.borrow()
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
