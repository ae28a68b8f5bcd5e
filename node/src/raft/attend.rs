//! Noticing at once that the leader died.
//!
//! A process that dies closes its connections, and its address refuses new ones. Waiting for silence
//! would take most of a second; so every follower keeps one call to the leader open that never ends.
//! When it breaks and the leader's address *refuses* a connection, the leader is gone; a network that
//! is merely silent never leads to that, and is left to Raft's own time-outs.
//!
//! One follower's word is not enough to begin an election, which would depose a leader that works. It
//! asks the others: when a majority has lost the same leader, the one of them with the longest log
//! begins, and the others vote for it although the leader's lease is not over. Safety does not rest on
//! any of this: an election is Raft's own, and nothing is read under a lease.

use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use pgcapture_proto::peer::v1::{AttendRequest, LeaderLostRequest};

use super::{
    Inner,
    network::within,
    types::{LogId, Peer, from_bytes},
};
use crate::knock::knock;

/// A leader's address that does not answer within this time is silent, which proves nothing.
const CONNECT_MAX: Duration = Duration::from_millis(200);

/// The others are asked within this time; they answer from memory.
const ASK_MAX: Duration = Duration::from_millis(150);

/// The others notice within milliseconds, but not in the same one: they are asked this often.
const ASKS: u32 = 8;

/// Pause between two tries of anything here.
const PAUSE: Duration = Duration::from_millis(15);

/// A call that cannot be opened is opened again after this time.
const REOPEN_AFTER: Duration = Duration::from_millis(100);

/// A leader, in one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reign {
    pub(super) leader: u64,
    pub(super) term: u64,
}

/// How attending a leader ended.
enum End {
    /// Its address refuses connections.
    Refused,
    /// Something else.
    Unknown,
}

impl super::RaftConsensus {
    /// Tells whether this node knows that the leader it followed last is gone.
    pub(super) fn has_lost_leader(&self) -> bool {
        let lost = self.inner.lost.borrow();
        lost.is_some() && *lost == self.inner.reign().map(|(reign, _)| reign)
    }

    /// Tells whether this node has lost that leader as well.
    pub(crate) fn has_lost(&self, leader: u64, term: u64) -> bool {
        *self.inner.lost.borrow() == Some(Reign { leader, term })
    }
}

impl Inner {
    /// Attends whoever leads, for ever: the body of an owned task.
    pub(super) async fn attend(&self) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let Some((reign, peer)) = self.reign() else {
                if metrics.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let end = tokio::select! {
                end = self.attend_to(reign, &peer) => end,
                () = self.reign_over(reign) => continue,
            };
            match end {
                End::Refused => {
                    self.lost.send_replace(Some(reign));
                    tracing::info!(leader = %peer.name, "the leader is gone: its address refuses connections");
                    tokio::select! {
                        () = self.replace(reign) => {}
                        () = self.reign_over(reign) => continue,
                    }
                    tokio::time::sleep(REOPEN_AFTER).await;
                }
                End::Unknown => tokio::time::sleep(REOPEN_AFTER).await,
            }
        }
    }

    /// Returns the leader that this node follows; `None` when it leads itself or follows nobody.
    fn reign(&self) -> Option<(Reign, Peer)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.vote.leader_id;
        let is_other = metrics.vote.committed && leader.node_id != self.identity.id;
        let members = metrics.membership_config.membership();
        let peer = members.get_node(&leader.node_id).filter(|_| is_other)?;
        let reign = Reign {
            leader: leader.node_id,
            term: leader.term,
        };
        Some((reign, peer.clone()))
    }

    /// Waits until somebody else leads, or nobody.
    async fn reign_over(&self, reign: Reign) {
        let mut metrics = self.raft.server_metrics();
        while self.reign().is_some_and(|(now, _)| now == reign) {
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Keeps a call to a leader open, and returns when it broke.
    async fn attend_to(&self, reign: Reign, peer: &Peer) -> End {
        let client = self.network.client(reign.leader, peer);
        let request = AttendRequest {
            envelope: Some(client.envelope()),
        };
        let opened = match client.rpc() {
            Ok(mut rpc) => within(ASK_MAX, rpc.attend(request)).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(mut open) => {
                self.lost.send_replace(None);
                match open.message().await {
                    // It leaves in order, and has handed over.
                    Ok(_) => return End::Unknown,
                    Err(error) => {
                        tracing::debug!(leader = %peer.name, %error, "the leader hung up");
                    }
                }
            }
            Err(error) => {
                tracing::debug!(leader = %peer.name, %error, "the leader does not answer");
            }
        }
        if knock(&peer.address, CONNECT_MAX).await.is_refused() {
            End::Refused
        } else {
            End::Unknown
        }
    }

    /// Begins an election when a majority has lost the same leader, and nobody among them has a
    /// longer log.
    async fn replace(&self, reign: Reign) {
        for _ in 0..ASKS {
            let voters = self.other_voters(reign.leader);
            let Some((others, quorum)) = voters else {
                return;
            };
            let asked = others.iter().map(|(id, peer)| self.ask(*id, peer, reign));
            let answers = join_all(asked).await;
            let lost = answers.iter().flatten().count() + 1;
            let mine = (self.log.last_log_id().ok().flatten(), self.identity.id);
            let is_longest = answers.into_iter().flatten().all(|theirs| theirs < mine);
            if lost >= quorum {
                if is_longest {
                    tracing::info!("a majority lost the leader; this node stands for election");
                    if let Err(error) = self.raft.trigger().elect(false).await {
                        tracing::error!(%error, "no election could be begun");
                    }
                }
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks another node whether it lost the leader, too; then it tells how long its log is.
    async fn ask(&self, id: u64, peer: &Peer, reign: Reign) -> Option<(Option<LogId>, u64)> {
        let client = self.network.client(id, peer);
        let request = LeaderLostRequest {
            envelope: Some(client.envelope()),
            leader: reign.leader,
            term: reign.term,
        };
        let mut rpc = client.rpc().ok()?;
        let answer = within(ASK_MAX, rpc.leader_lost(request)).await.ok()?;
        let last = match answer.last_log_id.as_ref() {
            [] => None,
            bytes => Some(from_bytes(bytes).ok()?),
        };
        answer.lost.then_some((last, id))
    }

    /// Returns the others that vote but for the leader, and how many make a majority; `None` when
    /// this node does not vote.
    fn other_voters(&self, leader: u64) -> Option<(Vec<(u64, Peer)>, usize)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        let voters: Vec<u64> = members.voter_ids().collect();
        if !voters.contains(&self.identity.id) {
            return None;
        }
        let others = voters
            .iter()
            .filter(|id| **id != leader && **id != self.identity.id);
        let others = others.filter_map(|id| Some((*id, members.get_node(id)?.clone())));
        Some((others.collect(), voters.len() / 2 + 1))
    }
}
