//! Which version nodes speak with each other: what this one says and takes, and when more is agreed on.
//!
//! A message is of the agreed version; one of any version that this node speaks is taken, since nodes hear
//! of a raised version one after the other. While the cluster is behind what the leader speaks, the leader
//! asks every node what it speaks, by the one call that nodes of all versions answer. The decision is the
//! engine's (`cluster::next_protocol`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use pgcapture_engine::cluster::{
    Command, Proposal, Request, RequestId, Spoken, State, next_protocol,
};
use pgcapture_proto::peer::v1::{IdentifyRequest, raft_client::RaftClient};
use tokio::sync::watch;

use super::{Inner, network::within};
use crate::store::Store;

/// How often nodes are asked while some may not speak the next version. It must be so twice, with the same
/// nodes: of those that begin a cluster together the last ones join meanwhile.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A node that does not answer within this time is away.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// A raised version must be agreed on within this time, or is proposed again.
const RAISE_MAX: Duration = Duration::from_secs(10);

/// In which versions a node speaks.
#[derive(Clone, Debug)]
pub(super) struct Speech {
    spoken: Spoken,
    state: watch::Receiver<Arc<State>>,
}

impl Speech {
    pub(super) fn new(spoken: Spoken, store: &Store) -> Self {
        let state = store.state();
        Self { spoken, state }
    }

    /// All versions that the node takes.
    pub(super) const fn spoken(&self) -> Spoken {
        self.spoken
    }

    /// The version in which it speaks now.
    pub(super) fn said(&self) -> u32 {
        self.spoken.said(self.state.borrow().protocol())
    }
}

/// What all nodes speak; `None` for one that did not say.
type Heard = BTreeMap<u64, Option<Spoken>>;

impl Inner {
    /// Raises the agreed version while this node leads, once every node speaks the next one: the body of
    /// an owned task.
    pub(super) async fn keep_protocol(&self) {
        let mut leadership = self.leadership.subscribe();
        let mut state = self.store.state();
        let mut before = None;
        loop {
            let is_leader = leadership.borrow_and_update().is_me;
            let agreed = state.borrow_and_update().protocol();
            if !is_leader || agreed >= self.network.spoken().newest {
                before = None;
                self.holding_back.send_if_modified(|names| {
                    let was_any = !names.is_empty();
                    names.clear();
                    was_any
                });
                tokio::select! {
                    changed = leadership.changed() => if changed.is_err() { return },
                    changed = state.changed() => if changed.is_err() { return },
                }
                continue;
            }
            let heard = self.hear_all().await;
            self.holding_back
                .send_replace(self.names_of(&heard, agreed + 1));
            let nodes: BTreeSet<u64> = heard.keys().copied().collect();
            let next = next_protocol(agreed, &heard).map(|to| (to, nodes));
            match next {
                Some((to, nodes)) if before == Some((to, nodes.clone())) => {
                    self.raise(to, nodes).await;
                    before = None;
                }
                other => before = other,
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Asks every node what it speaks: those of the agreed state and those that still take part.
    async fn hear_all(&self) -> Heard {
        let mut places: BTreeMap<u64, (String, String)> = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let members = metrics.membership_config.membership();
            let nodes = members.nodes();
            nodes
                .map(|(id, it)| (*id, (it.name.clone(), it.address.clone())))
                .collect()
        };
        let state = Arc::clone(&self.store.state().borrow());
        let known = state.nodes.values();
        places.extend(known.map(|node| (node.id, (node.name.clone(), node.address.clone()))));
        let asked = places.iter().map(|(id, (name, address))| async move {
            let spoken = if *id == self.identity.id {
                Some(self.network.spoken())
            } else {
                self.hear(name, address).await
            };
            (*id, spoken)
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Asks one node; `None` when it does not answer, or another one answers there.
    async fn hear(&self, name: &str, address: &str) -> Option<Spoken> {
        let cluster = self.identity.cluster.0.to_be_bytes();
        let request = IdentifyRequest {
            protocol: self.network.said(),
            name: self.identity.name.clone(),
            cluster: cluster.to_vec().into(),
        };
        let channel = self.peers.channel(address).ok()?;
        let answer = within(ANSWER_MAX, RaftClient::new(channel).identify(request)).await;
        let answer = answer.ok()?;
        let is_it = answer.cluster.as_ref() == cluster && answer.name == name;
        is_it.then(|| Spoken::told(answer.protocol, answer.newest))
    }

    fn names_of(&self, heard: &Heard, next: u32) -> Vec<String> {
        let state = self.store.state();
        let state = state.borrow();
        let speaks = |id| {
            heard
                .get(id)
                .copied()
                .flatten()
                .is_some_and(|it| it.has(next))
        };
        let behind = state.nodes.values().filter(|node| !speaks(&node.id));
        behind.map(|node| node.name.clone()).collect()
    }

    async fn raise(&self, to: u32, nodes: BTreeSet<u64>) {
        // Nobody is let in meanwhile who may not speak it.
        let _order = self.joining.lock().await;
        let request = Request {
            id: RequestId(rand::random()),
            proposal: Proposal::State(Command::RaiseProtocol { to, nodes }),
        };
        let raised = tokio::time::timeout(RAISE_MAX, self.raft.client_write(request)).await;
        match raised {
            Ok(Ok(written)) if matches!(written.data.0, Some(Ok(_))) => {
                tracing::info!(
                    protocol = to,
                    "all nodes speak a newer version: it is agreed on"
                );
            }
            Ok(Ok(written)) => {
                tracing::debug!(outcome = ?written.data.0, "the version is not raised yet");
            }
            Ok(Err(error)) => tracing::debug!(%error, "the version is not raised yet"),
            Err(_) => tracing::warn!(protocol = to, "the version was not agreed on in time"),
        }
    }
}
