//! How nodes agree: all of openraft, behind the seams `Consensus` and `CursorStore`.
//!
//! A node's agreed state goes through Raft always; a node that is alone is a group of one, which
//! elects itself within milliseconds and waits for its own disk only. What is agreed on is
//! `engine::cluster::Agreed`; where it lies is `crate::store`; how it travels is `crate::rpc::raft`.
//!
//! # Invariants
//!
//! - A proposal is answered after a majority has it on disk and this node's state contains it.
//! - A proposal that is sent again under its id counts once.
//! - No right to act follows from being the leader: rights are epochs, which are agreed on.
//! - A leader whose disk is full yields: it could agree to nothing, and would keep others from it.
//! - Nothing is read under a lease: a clock that goes wrong cannot show an old state as new.

mod types;

mod log;

mod snapshot;

mod machine;

mod network;

mod together;

mod propose;

mod attend;

mod leadership;

mod protocol;

mod members;

mod yielding;

mod join;

mod compare;

mod serve;

mod recover;

mod door;

mod error;

use std::{path::Path, sync::Arc, time::Duration};

use openraft::{
    ServerState, SnapshotPolicy, async_runtime::watch::WatchReceiver as _,
    impls::leader_id_adv::LeaderId, type_config::alias::WatchReceiverOf,
};
use pgcapture_actors::{
    consensus::Leadership,
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{
    cluster::{Node, Spoken},
    codes,
    lsn::PgTime,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    attend::Reign,
    leadership::tell_leadership,
    log::Log,
    machine::StateMachine,
    network::Network,
    protocol::Speech,
    snapshot::Snapshots,
    together::Together,
    types::{LogId, Peer, Raft, StoredMembership, Types, to_bytes},
};
pub use self::{
    compare::compare_peers,
    door::Door,
    error::RaftError,
    join::{Wish, enter},
    members::{AgreedHash, GroupStatus, Member},
    recover::{Recovery, plan as plan_recovery, recover},
    types::ENTRY_BYTES_MAX,
};
pub(crate) use self::{
    members::LetIn,
    network::MESSAGE_BYTES_MAX,
    serve::{Call, cluster_of, refused},
};
use crate::{
    peers::Peers,
    sources::unix_now_micros,
    store::{ClusterId, Identity, Mark, Store},
};

/// Entries after which a snapshot is made: some megabytes of log, applied again within a second.
const SNAPSHOT_AFTER: u64 = 4_096;

/// Entries that are kept behind a snapshot, for followers that are a little late.
const LOG_KEPT: u64 = 1_024;

/// Entries of one message to a follower.
const MESSAGE_ENTRIES_MAX: u64 = 64;

/// Calls and events that wait inside openraft. A full queue is back-pressure.
const CHANNEL_MAX: u64 = 1_024;

/// A snapshot must be transferred and installed within this time; it has some megabytes.
const SNAPSHOT_MAX: Duration = Duration::from_secs(60);

/// A node that starts waits this long for what it knew before, if others must tell it. Then it
/// serves what it has.
const RECOVERY_MAX: Duration = Duration::from_secs(5);

/// How fast a group notices and decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How often a leader shows that it lives.
    pub heartbeat: Duration,
    /// A follower that hears nothing for this long wants to lead; doubled for the slowest.
    pub election: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(300),
        }
    }
}

/// A member of the group: this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RaftConsensus {
    inner: Arc<Inner>,
    _tasks: Arc<[Task<()>]>,
}

struct Inner {
    raft: Raft,
    store: Store,
    log: Log,
    snapshots: Snapshots,
    identity: Identity,
    /// The identities of the cluster before it was recovered.
    former: Vec<ClusterId>,
    peers: Peers,
    network: Network,
    leadership: watch::Sender<Leadership>,
    /// The nodes that do not speak the next version of the protocol, while this one leads.
    holding_back: watch::Sender<Vec<String>>,
    /// The leader that died, for all that this node knows.
    lost: watch::Sender<Option<Reign>>,
    /// Held while a node is let in.
    joining: tokio::sync::Mutex<()>,
    /// The question up to where everything is agreed on.
    read_index: Together<Result<Option<u64>, String>>,
    /// This node stops, and no majority answers: nothing waits for one.
    given_up: CancellationToken,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl RaftConsensus {
    /// Opens the store in `directory` as a node that is alone, and starts it.
    ///
    /// # Errors
    ///
    /// [`RaftError`].
    pub async fn alone(directory: &Path, name: &str) -> Result<Self, RaftError> {
        let directory = directory.to_owned();
        let opened = tokio::task::spawn_blocking(move || Store::open(&directory)).await;
        let store = opened.map_err(RaftError::broken)??;
        bootstrap(&store, name, "")?;
        let node = Self::start(store, Pace::default(), Peers::default()).await?;
        node.recover().await?;
        Ok(node)
    }

    /// Starts a member. Its state is what the disk held; see [`Self::recover`].
    ///
    /// # Errors
    ///
    /// [`RaftError`]; also when the store belongs to no cluster yet.
    pub async fn start(store: Store, pace: Pace, peers: Peers) -> Result<Self, RaftError> {
        Self::start_speaking(store, pace, peers, Spoken::OURS).await
    }

    /// The same as a node that speaks other versions of the protocol than this program does: for tests of
    /// clusters whose nodes are of different ones.
    ///
    /// # Errors
    ///
    /// [`RaftError`]; also when the cluster has agreed on a version that the node does not speak.
    pub async fn start_speaking(
        store: Store,
        pace: Pace,
        peers: Peers,
        spoken: Spoken,
    ) -> Result<Self, RaftError> {
        let identity = store.identity()?;
        let identity = identity.ok_or_else(|| RaftError::broken("the node is no member yet"))?;
        check_protocol(&store, spoken)?;
        let former = recover::former(&store)?;
        let snapshots = Snapshots::open(store.directory(), identity.cluster)?;
        let log = Log::open(store.clone());
        let machine = StateMachine::new(store.clone(), snapshots.clone());
        let speech = Speech::new(spoken, &store);
        let network = Network::new(identity.clone(), peers.clone(), speech);
        let config = Arc::new(config(pace, &identity)?);
        let raft = Raft::new(identity.id, config, network.clone(), log.clone(), machine).await;
        let raft = raft.map_err(RaftError::broken)?;
        let (leadership, _) = watch::channel(Leadership::default());
        let telling = tell_leadership(raft.clone(), store.clone(), leadership.clone());
        let inner = Arc::new(Inner {
            raft,
            store,
            log,
            snapshots,
            identity,
            former,
            peers,
            network,
            leadership,
            holding_back: watch::Sender::default(),
            lost: watch::channel(None).0,
            joining: tokio::sync::Mutex::default(),
            read_index: Together::default(),
            given_up: CancellationToken::new(),
        });
        let (attending, keeping) = (Arc::clone(&inner), Arc::clone(&inner));
        let (yielding, raising) = (Arc::clone(&inner), Arc::clone(&inner));
        let tasks = [
            spawn(TaskKind::Raft, "leadership", telling),
            spawn(
                TaskKind::Raft,
                "attend",
                async move { attending.attend().await },
            ),
            spawn(TaskKind::Raft, "members", async move {
                keeping.keep_members().await;
            }),
            spawn(TaskKind::Raft, "yielding", async move {
                yielding.yield_when_full().await;
            }),
            spawn(TaskKind::Raft, "protocol", async move {
                raising.keep_protocol().await;
            }),
        ];
        Ok(Self {
            inner,
            _tasks: Arc::new(tasks),
        })
    }

    /// Returns who this node is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// Waits until this node cannot take part any more, and returns why. It never can again: what
    /// the disk holds after a failed write is not known.
    pub async fn failed(&self) -> String {
        let mut failure = self.inner.store.failure();
        let metrics = self.inner.raft.metrics();
        tokio::select! {
            Ok(failure) = failure.wait_for(Option::is_some) => {
                failure.clone().unwrap_or_default()
            }
            fatal = fatal(metrics) => fatal,
        }
    }

    /// Lets every proposal and question fail at once from now on: this node stops, and no majority answers.
    pub fn give_up(&self) {
        self.inner.given_up.cancel();
    }

    /// Leaves the group for this time; others go on. Proposals fail from now on.
    pub async fn stop(&self) {
        self.inner.store.give_up_waiting();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "the Raft group of this node ended badly");
        }
    }

    /// Waits until the state is what it was before, or, if other nodes are needed for that and do not
    /// answer, some seconds. The door must be open: others ask this node meanwhile.
    ///
    /// # Errors
    ///
    /// When the log cannot be read or written, or a node that is new learns nothing.
    pub async fn recover(&self) -> Result<(), RaftError> {
        let raft = &self.inner.raft;
        // What openraft shows by itself says nothing before it has looked.
        let voters = raft.with_raft_state(|state| {
            let effective = state.membership_state.effective();
            effective.voter_ids().collect::<Vec<_>>()
        });
        let voters = voters.await.map_err(RaftError::broken)?;
        if voters == [self.inner.identity.id] {
            raft.trigger()
                .elect(false)
                .await
                .map_err(RaftError::broken)?;
            let is_back = |metrics: &openraft::RaftMetrics<Types>| {
                let applied = metrics.last_applied.map(|id| id.index());
                let is_back =
                    metrics.state == ServerState::Leader && applied == metrics.last_log_index;
                is_back || metrics.running_state.is_err()
            };
            let wait = raft.wait(Some(SNAPSHOT_MAX));
            let metrics = wait.metrics(is_back, "the node is what it was").await;
            return match metrics.map_err(RaftError::broken)?.running_state {
                Ok(()) => Ok(()),
                Err(fatal) => Err(RaftError::broken(fatal)),
            };
        }
        if let Err(error) = raft.wait_for_recovery(Some(RECOVERY_MAX)).await {
            let code = codes::cluster::NO_QUORUM.code;
            tracing::warn!(%error, code, "the other nodes did not answer; this one starts with what it knows");
        }
        // A node that is new knows nothing, not even itself, until it is told.
        let id = self.inner.identity.id;
        let mut state = self.inner.store.state();
        let is_known = state.wait_for(|state| state.nodes.values().any(|node| node.id == id));
        if tokio::time::timeout(SNAPSHOT_MAX, is_known).await.is_ok() {
            return Ok(());
        }
        let was_known = state.borrow().last_node >= id;
        let (explanation, text) = if was_known {
            (
                &codes::cluster::REMOVED,
                "this node was removed from its cluster",
            )
        } else {
            (
                &codes::cluster::NO_QUORUM,
                "the cluster did not tell this node what was agreed on",
            )
        };
        let text = text.to_owned();
        Err(RaftError::Coded { explanation, text })
    }

    /// Tells whether nobody else has a vote.
    pub(crate) fn is_alone(&self) -> bool {
        let mut voters = self.inner.raft.voter_ids();
        voters.next() == Some(self.inner.identity.id) && voters.next().is_none()
    }
}

/// Makes a store the first node of a new cluster, which begins with what the store holds. Does
/// nothing when it belongs to one.
///
/// # Errors
///
/// [`RaftError`]; nothing has changed then.
pub fn bootstrap(store: &Store, name: &str, address: &str) -> Result<(), RaftError> {
    if store.identity()?.is_some() {
        return Ok(());
    }
    let identity = Identity {
        cluster: ClusterId(rand::random()),
        id: 1,
        name: name.to_owned(),
    };
    let node = Node {
        name: name.to_owned(),
        id: identity.id,
        address: address.to_owned(),
        joined_at: PgTime::from_unix_micros(unix_now_micros()),
    };
    let peer = Peer {
        name: name.to_owned(),
        address: address.to_owned(),
    };
    // As if the first entry of the log, which names this node, had been applied and removed: there
    // is no log from which another node could learn what the store held before, so that it must
    // learn it from a snapshot.
    let first = LogId::new(
        LeaderId {
            term: 0,
            node_id: identity.id,
        },
        0,
    );
    let nodes = std::collections::BTreeMap::from([(identity.id, peer)]);
    let members = openraft::Membership::new(vec![[identity.id].into()], nodes);
    let members = members.map_err(RaftError::broken)?;
    let marks = [
        (Mark::Purged, to_bytes(&first)?),
        (Mark::Applied, to_bytes(&Some(first))?),
        (
            Mark::Membership,
            to_bytes(&StoredMembership::new(Some(first), members))?,
        ),
    ];
    store.become_member(&identity, Some(node), &marks)?;
    Ok(())
}

/// A node that has not heard of its cluster yet is told by the others.
fn check_protocol(store: &Store, spoken: Spoken) -> Result<(), RaftError> {
    let state = Arc::clone(&store.state().borrow());
    let agreed = state.protocol();
    if spoken.has(agreed) || state.nodes.is_empty() {
        return Ok(());
    }
    Err(RaftError::Coded {
        explanation: &codes::cluster::OTHER_PROTOCOL,
        text: format!("the cluster has agreed on version {agreed}; this node speaks {spoken}"),
    })
}

fn config(pace: Pace, identity: &Identity) -> Result<openraft::Config, RaftError> {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: identity.cluster.to_string(),
        heartbeat_interval: millis(pace.heartbeat),
        election_timeout_min: millis(pace.election),
        election_timeout_max: millis(pace.election * 2),
        install_snapshot_timeout: millis(SNAPSHOT_MAX),
        max_payload_entries: MESSAGE_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_AFTER),
        max_in_snapshot_log_to_keep: LOG_KEPT,
        api_channel_size: Some(CHANNEL_MAX),
        notification_channel_size: Some(CHANNEL_MAX),
        state_machine_channel_size: Some(CHANNEL_MAX),
        // Without it a node that heard nobody for a while would depose a leader that works.
        enable_pre_vote: Some(true),
        // A leader that comes back could act on a state that the disk has not caught up with.
        enable_leader_restore: Some(false),
        backoff: "50ms 100ms 200ms ..500ms".to_owned(),
        ..openraft::Config::default()
    };
    config.validate().map_err(RaftError::broken)
}

/// Waits until openraft has stopped by itself, and returns why.
async fn fatal(mut metrics: WatchReceiverOf<Types, openraft::RaftMetrics<Types>>) -> String {
    loop {
        if let Err(fatal) = &metrics.borrow_and_update().running_state {
            return fatal.to_string();
        }
        if metrics.changed().await.is_err() {
            // Nothing runs any more; whoever dropped it knows.
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod golden;
