//! Who belongs to the cluster: letting in, letting go, handing over, and telling how it stands.
//!
//! A change of members is a change of the agreed state; the leader brings Raft's members after it,
//! one step after the other (`engine::membership`). So every node may be asked for one, and a leader
//! that dies half way leaves nothing half done.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::{ChangeMembers, async_runtime::watch::WatchReceiver as _};
use pgcapture_actors::consensus::{Consensus as _, ProposeError};
use pgcapture_engine::{
    cluster::{Command, Node, Proposal, Refusal, Request, RequestId, Spoken},
    codes,
    lsn::PgTime,
    membership::{Present, Step, next_step},
};
use pgcapture_proto::peer::v1::{TransferRequest, transfer_response};
use sha2::{Digest as _, Sha256};

use super::{
    Inner, RaftConsensus, RaftError,
    machine::place,
    network::within,
    types::{Peer, to_bytes},
};
use crate::{sources::unix_now_micros, store::StoreError};

/// A node that misses at most this many entries may vote: it has them within milliseconds.
const CAUGHT_UP: u64 = 64;

/// How often a leader looks whether its members are as they should be.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A number that another leader has given meanwhile is found out by the refusal; elections are rarer.
const NUMBER_TRIES: usize = 5;

/// A step that does not end within this time is begun anew.
const STEP_MAX: Duration = Duration::from_secs(10);

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What was agreed on.
    pub node: Node,
    /// Whether it votes.
    pub is_voter: bool,
    /// Whether it leads.
    pub is_leader: bool,
    /// Entries that it misses; only the leader knows.
    pub lag: Option<u64>,
}

/// How the group stands, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The term.
    pub term: u64,
    /// Who leads.
    pub leader: Option<String>,
    /// All members.
    pub members: Vec<Member>,
    /// Index of the newest entry here.
    pub last_log: u64,
    /// Index up to which a majority has everything.
    pub committed: u64,
    /// Index up to which this node's state contains everything.
    pub applied: u64,
    /// The agreed version of the protocol between nodes.
    pub protocol: u32,
    /// Nodes that do not speak the next version, or did not say; only the leader knows.
    pub holding_back: Vec<String>,
}

/// A fingerprint of everything that was agreed on up to a place in the log: equal on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgreedHash {
    /// The place.
    pub applied: u64,
    /// SHA-256.
    pub sum: [u8; 32],
}

/// How asking to be let in ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetIn {
    /// With this number.
    Joined(u64),
    /// It was let in before and removed since.
    Removed,
    /// It does not speak the version that was agreed on, which is this one.
    OtherProtocol(u32),
    /// Somebody else leads.
    NotLeader,
}

struct HashError(StoreError);

impl From<StoreError> for HashError {
    fn from(error: StoreError) -> Self {
        Self(error)
    }
}

impl RaftConsensus {
    /// Returns the members, as this node knows them.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.status().members
    }

    /// Returns how the group stands, as this node knows it.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let state = Arc::clone(&self.state().borrow());
        let nodes: Vec<Node> = state.nodes.values().cloned().collect();
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last_log = metrics.last_log_index.unwrap_or(0);
        // A change of members counts once it is agreed on in both its parts: until then the loss of
        // a node that had a vote before may hold it up.
        let committed = metrics.committed_membership_config.membership();
        let configs = committed.get_joint_config();
        let votes = |id: &u64| !configs.is_empty() && configs.iter().all(|it| it.contains(id));
        let member = |node: Node| {
            let known = metrics.replication.as_ref();
            let matched = known.and_then(|known| known.get(&node.id).copied());
            let lag = matched.map(|id| last_log.saturating_sub(id.map_or(0, |id| id.index())));
            Member {
                is_voter: votes(&node.id),
                is_leader: metrics.current_leader == Some(node.id),
                lag,
                node,
            }
        };
        let members: Vec<Member> = nodes.into_iter().map(member).collect();
        let leader = members.iter().find(|member| member.is_leader);
        GroupStatus {
            term: metrics.current_term,
            leader: leader.map(|member| member.node.name.clone()),
            last_log,
            committed: metrics.local_committed.map_or(0, |id| id.index()),
            applied: metrics.last_applied.map_or(0, |id| id.index()),
            members,
            protocol: state.protocol(),
            holding_back: self.inner.holding_back.borrow().clone(),
        }
    }

    /// Waits until the group stands as wished, as this node knows it.
    pub async fn wait_until(&self, mut is_so: impl FnMut(&GroupStatus) -> bool + Send) {
        let mut state = self.state();
        let mut metrics = self.inner.raft.metrics();
        while !is_so(&self.status()) {
            let is_over = tokio::select! {
                changed = metrics.changed() => changed.is_err(),
                changed = state.changed() => changed.is_err(),
            };
            if is_over {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns the fingerprint of what was agreed on. Reads all of it.
    ///
    /// # Errors
    ///
    /// [`RaftError`].
    pub async fn hash(&self) -> Result<AgreedHash, RaftError> {
        let store = self.inner.store.clone();
        let hash = tokio::task::spawn_blocking(move || {
            let view = store.view()?;
            let (applied, _) = place(|mark| view.mark(mark).map_err(std::io::Error::other))?;
            let mut hasher = Sha256::new();
            let hashed = view.each(|row| {
                let bytes = to_bytes(&row).unwrap_or_default();
                hasher.update(bytes.len().to_le_bytes());
                hasher.update(bytes);
                Ok::<_, HashError>(())
            });
            hashed.map_err(|HashError(error)| error)?;
            Ok(AgreedHash {
                applied: applied.map_or(0, |id| id.index()),
                sum: hasher.finalize().into(),
            })
        });
        hash.await.map_err(RaftError::broken)?
    }

    /// Removes a node: it owns nothing any more, has no vote, and is not let in with its old data. The
    /// second call does nothing.
    ///
    /// # Errors
    ///
    /// When it is the only one that votes, or no majority agrees.
    pub async fn remove(&self, name: &str) -> Result<(), RaftError> {
        let members = self.members();
        let others = members
            .iter()
            .filter(|it| it.is_voter && it.node.name != name);
        if others.count() == 0 {
            let text = format!("node \"{name}\" is the only one that votes");
            return Err(bad_change(text));
        }
        let removal = Command::RemoveNode {
            name: name.to_owned(),
        };
        self.propose(removal).await.map(drop).map_err(propose_error)
    }

    /// Lets another node lead. Returns once it does.
    ///
    /// # Errors
    ///
    /// When it does not vote, or does not lead within some seconds.
    pub async fn transfer(&self, name: &str) -> Result<(), RaftError> {
        let members = self.members();
        let heir = members
            .iter()
            .find(|it| it.node.name == name && it.is_voter);
        if heir.is_none() {
            return Err(bad_change(format!("node \"{name}\" does not vote")));
        }
        let mut leadership = self.leadership();
        let transferred = self.while_there_is_hope(async {
            loop {
                self.ask_transfer(name).await;
                let leads = leadership.wait_for(|now| now.leader.as_deref() == Some(name));
                if tokio::time::timeout(LOOK_EVERY, leads).await.is_ok() {
                    return;
                }
            }
        });
        transferred.await.ok_or_else(|| RaftError::Coded {
            explanation: &codes::cluster::NO_QUORUM,
            text: format!("node \"{name}\" did not come to lead in time"),
        })
    }

    /// Hands leadership over, if this node has it and anybody can take it. For a stop in order.
    pub async fn step_aside(&self) {
        let members = self.members();
        let is_mine = self.leadership().borrow().is_me;
        let heirs = members.iter().filter(|it| it.is_voter && !it.is_leader);
        let heir = heirs.min_by_key(|it| it.lag.unwrap_or(u64::MAX));
        if let (true, Some(heir)) = (is_mine, heir)
            && let Err(error) = self.transfer(&heir.node.name).await
        {
            tracing::warn!(%error, "leadership was not handed over; the others will notice");
        }
    }

    /// Asks whoever leads to hand over.
    async fn ask_transfer(&self, name: &str) {
        if self.transfer_here(name).await {
            return;
        }
        let Some((id, peer)) = self.leader_peer() else {
            return;
        };
        let client = self.inner.network.client(id, &peer);
        let request = TransferRequest {
            envelope: Some(client.envelope()),
            name: name.to_owned(),
        };
        if let Ok(mut rpc) = client.rpc()
            && let Ok(answer) = within(LOOK_EVERY, rpc.transfer(request)).await
            && !matches!(answer.end, Some(transfer_response::End::Begun(true)))
        {
            tracing::debug!(%name, "the node that was asked to hand over does not lead");
        }
    }

    /// Hands over when this node leads; tells whether it does.
    pub(crate) async fn transfer_here(&self, name: &str) -> bool {
        if !self.leadership().borrow().is_me {
            return false;
        }
        let members = self.members();
        if let Some(heir) = members
            .iter()
            .find(|it| it.node.name == name && it.is_voter)
            && let Err(error) = self
                .inner
                .raft
                .trigger()
                .transfer_leader(heir.node.id)
                .await
        {
            tracing::warn!(%error, "leadership cannot be handed over");
        }
        true
    }

    /// Lets a node in that speaks this, under the name and address that it gives. `request` makes asking
    /// again harmless.
    pub(crate) async fn let_in(
        &self,
        name: &str,
        address: &str,
        request: RequestId,
        spoken: Spoken,
    ) -> Result<LetIn, ProposeError> {
        // One after the other: each needs a number of its own.
        let _order = self.inner.joining.lock().await;
        if !self.leadership().borrow().is_me {
            return Ok(LetIn::NotLeader);
        }
        // A raise that was given up, or that the leader before proposed, may be agreed on already.
        self.catch_up().await?;
        let agreed = self.state().borrow().protocol();
        if !spoken.has(agreed) {
            return Ok(LetIn::OtherProtocol(agreed));
        }
        let mut id = self.state().borrow().last_node + 1;
        for _ in 1..NUMBER_TRIES {
            match self.let_in_as(id, name, address, request).await {
                Err(ProposeError::Refused(Refusal::NodeNumber { next, .. })) => id = next,
                ended => return ended,
            }
        }
        self.let_in_as(id, name, address, request).await
    }

    /// Proposes one number.
    pub(super) async fn let_in_as(
        &self,
        id: u64,
        name: &str,
        address: &str,
        request: RequestId,
    ) -> Result<LetIn, ProposeError> {
        let node = Node {
            name: name.to_owned(),
            id,
            address: address.to_owned(),
            joined_at: PgTime::from_unix_micros(unix_now_micros()),
        };
        let request = Request {
            id: request,
            proposal: Proposal::State(Command::AddNode(node)),
        };
        self.agree_as(request).await?;
        // It may have been let in under another number, when it asked before. The number of one that
        // was removed is nobody's any more.
        let state = self.state();
        let node = state.borrow().nodes.get(name).map(|node| node.id);
        Ok(node.map_or(LetIn::Removed, LetIn::Joined))
    }
}

impl RaftConsensus {
    /// Returns the leader, unless it is this node or not known.
    fn leader_peer(&self) -> Option<(u64, Peer)> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics
            .current_leader
            .filter(|id| *id != self.inner.identity.id)?;
        let members = metrics.membership_config.membership();
        Some((id, members.get_node(&id)?.clone()))
    }
}

impl Inner {
    /// Brings the members of the group after the agreed state, while this node leads: the body of an
    /// owned task.
    pub(super) async fn keep_members(&self) {
        let mut state = self.store.state();
        loop {
            while let Some((wanted, present)) = self.look() {
                let addresses = wanted.iter().map(|(id, peer)| (*id, peer.address.clone()));
                let Some(step) = next_step(&addresses.collect(), &present) else {
                    break;
                };
                tracing::info!(?step, "the members of the cluster change");
                let taken = tokio::time::timeout(STEP_MAX, self.take(step, &wanted)).await;
                match taken {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the members of the cluster could not be changed yet");
                        break;
                    }
                    Err(_) => break,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                changed = state.changed() => if changed.is_err() {
                    return;
                }
            }
        }
    }

    /// Returns the wanted members and the present ones; `None` while this node does not lead.
    fn look(&self) -> Option<(BTreeMap<u64, Peer>, Present)> {
        let state = self.store.state();
        let peer = |node: &Node| Peer {
            name: node.name.clone(),
            address: node.address.clone(),
        };
        let wanted: BTreeMap<u64, Peer> = state
            .borrow()
            .nodes
            .values()
            .map(|node| (node.id, peer(node)))
            .collect();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != openraft::ServerState::Leader {
            return None;
        }
        let members = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let known = metrics.replication.iter().flatten();
        let caught_up =
            known.filter(|(_, matched)| matched.is_some_and(|id| id.index() + CAUGHT_UP >= last));
        let present = Present {
            leader: self.identity.id,
            addresses: members
                .nodes()
                .map(|(id, it)| (*id, it.address.clone()))
                .collect(),
            voters: members.voter_ids().collect(),
            caught_up: caught_up.map(|(id, _)| *id).collect(),
        };
        Some((wanted, present))
    }

    async fn take(&self, step: Step, wanted: &BTreeMap<u64, Peer>) -> Result<(), String> {
        let of = |id: u64| wanted.get(&id).map(|peer| [(id, peer.clone())].into());
        let (change, retain) = match step {
            Step::HandOver { to } => {
                let handed = self.raft.trigger().transfer_leader(to).await;
                tokio::time::sleep(LOOK_EVERY).await;
                return handed.map_err(|error| error.to_string());
            }
            Step::TakeVote(id) => (ChangeMembers::RemoveVoters([id].into()), false),
            Step::Remove(id) => (ChangeMembers::RemoveNodes([id].into()), false),
            Step::GiveVote(id) => (ChangeMembers::AddVoterIds([id].into()), true),
            Step::Add(id) => (ChangeMembers::AddNodes(of(id).unwrap_or_default()), true),
            Step::Readdress(id) => (ChangeMembers::SetNodes(of(id).unwrap_or_default()), true),
        };
        let changed = self.raft.change_membership(change, retain).await;
        changed.map(drop).map_err(|error| error.to_string())
    }
}

fn bad_change(text: String) -> RaftError {
    RaftError::Coded {
        explanation: &codes::cluster::BAD_CHANGE,
        text,
    }
}

fn propose_error(error: ProposeError) -> RaftError {
    let explanation = match &error {
        ProposeError::Refused(Refusal::NodeExists { .. }) => &codes::cluster::NAME_TAKEN,
        ProposeError::Refused(_) => &codes::cluster::BAD_CHANGE,
        ProposeError::Unavailable { .. }
        | ProposeError::TooLarge { .. }
        | ProposeError::StateFull { .. }
        | ProposeError::Store { .. } => error.explanation(),
    };
    let text = error.to_string();
    let text = text.strip_prefix(explanation.code).unwrap_or(&text);
    let text = text.strip_prefix(": ").unwrap_or(text).to_owned();
    RaftError::Coded { explanation, text }
}
