//! Having a change agreed on, from any node.
//!
//! The leader proposes by itself; every other node asks the leader over the peer API, again and again
//! under one id until the deadline, whoever leads meanwhile. What it then answers, its own state
//! contains.

use std::time::Duration;

use async_trait::async_trait;
use openraft::{
    ReadPolicy,
    async_runtime::watch::WatchReceiver as _,
    errors::{ClientWriteError, LinearizableReadError, RaftError as OpenraftError},
};
use pgcapture_actors::{
    consensus::{Consensus, Leadership, ProposeError},
    cursors::{
        ACKED_RUNS_MAX, CURSOR_SAVE_INTERVAL, Cursor, CursorError, CursorStore, SubscriptionId,
    },
};
use pgcapture_engine::{
    checkpoint::Checkpoint,
    cluster::{
        Answer, Command, CursorCommand, HomeCommand, Outcome, Proposal, Request, RequestId, State,
    },
    codes,
};
use tokio::sync::watch;

use super::{
    RaftConsensus,
    network::Forwarded,
    types::{ENTRY_BYTES_MAX, Peer, to_bytes},
};
use crate::{
    sources::Floors,
    store::{Identity, VALUE_BYTES_MAX},
};

/// A proposal that no majority has agreed to after this time is given up. Longer than two elections.
pub(super) const PROPOSE_MAX: Duration = Duration::from_secs(5);

/// A majority that does not confirm a leader within this time may have another one.
const CONFIRM_MAX: Duration = Duration::from_secs(1);

/// With nobody to ask, the next try is made after this time at the latest.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// In a cluster cursors that nobody waits for are saved at this pace: every save is an entry of
/// every node's log.
const CLUSTER_PACE: Duration = Duration::from_secs(1);

/// Cursors of one entry have at most about this many bytes; more are several entries.
const CURSOR_BYTES_MAX: usize = ENTRY_BYTES_MAX / 2;

/// A state that is larger gets no more sources, replicas and homes: a quarter of what a value of the
/// store may have is left for whatever is proposed at the same moment, and for gaps, epochs and
/// attestations, which are never refused for their size.
pub(super) const STATE_BYTES_MAX: usize = VALUE_BYTES_MAX / 4 * 3;

/// Where a call goes.
enum Route {
    Here,
    There(u64, Peer),
    Nowhere,
}

impl RaftConsensus {
    /// Has a change agreed on.
    async fn agree(&self, proposal: Proposal) -> Result<Answer, ProposeError> {
        let id = RequestId(rand::random());
        self.agree_as(Request { id, proposal }).await
    }

    /// Has a change agreed on under an id that is known: once, however often it is called.
    pub(super) async fn agree_as(&self, request: Request) -> Result<Answer, ProposeError> {
        let broken = |error: std::io::Error| ProposeError::Store {
            reason: error.to_string(),
        };
        let bytes = to_bytes(&request).map_err(broken)?;
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(ProposeError::TooLarge {
                bytes: bytes.len(),
                bytes_max: ENTRY_BYTES_MAX,
            });
        }
        self.state().borrow().check_readable(&request.proposal)?;
        room_for(&request.proposal, self.inner.store.state_bytes())?;
        let mut seen = String::new();
        let driven = self.drive(&request, &bytes, &mut seen);
        match self.while_there_is_hope(driven).await {
            Some(outcome) => Ok(outcome??),
            None => {
                self.refuse_when_full()?;
                Err(ProposeError::Unavailable { reason: seen })
            }
        }
    }

    /// Waits for what a majority must say; `None` when it does not in time, or was given up.
    pub(super) async fn while_there_is_hope<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let work = tokio::time::timeout(PROPOSE_MAX, work);
        let done = self.inner.given_up.run_until_cancelled(work).await;
        done.and_then(Result::ok)
    }

    /// Nothing is agreed on while this node waits for space on its disk.
    fn refuse_when_full(&self) -> Result<(), ProposeError> {
        if !self.inner.store.is_full() {
            return Ok(());
        }
        let code = codes::node::STORE_FAILED.code;
        Err(ProposeError::Store {
            reason: format!("{code}: the disk of the node's store is full"),
        })
    }

    /// Tries until there is an outcome.
    async fn drive(
        &self,
        request: &Request,
        bytes: &[u8],
        seen: &mut String,
    ) -> Result<Outcome, ProposeError> {
        loop {
            match self.route() {
                Route::Here => {
                    if let Some((outcome, _)) = self.propose_here(request.clone()).await? {
                        return Ok(outcome);
                    }
                }
                Route::There(id, peer) => {
                    let client = self.inner.network.client(id, &peer);
                    match client.propose(bytes).await {
                        Ok(Forwarded::Done { outcome, index }) => {
                            self.wait_applied(index).await?;
                            return Ok(outcome);
                        }
                        Ok(Forwarded::NotLeader) => {}
                        // A leader whose disk fails ends, and another one may agree.
                        Ok(Forwarded::Failed(reason)) => {
                            *seen = format!("node {}: {reason}", peer.name);
                        }
                        Err(error) => *seen = format!("node {}: {error}", peer.name),
                    }
                }
                Route::Nowhere => "no leader is known".clone_into(seen),
            }
            self.wait_for_change().await;
        }
    }

    /// Proposes on this node; `None` when it does not lead.
    pub(crate) async fn propose_here(
        &self,
        request: Request,
    ) -> Result<Option<(Outcome, u64)>, ProposeError> {
        self.refuse_when_full()?;
        // Whoever asks may speak more than others here do.
        self.state().borrow().check_readable(&request.proposal)?;
        match self.inner.raft.client_write(request).await {
            Ok(written) => {
                let index = written.log_id.index();
                let outcome = written.data.0;
                let outcome = outcome.ok_or_else(|| ProposeError::Store {
                    reason: "an entry was applied without an outcome".to_owned(),
                })?;
                Ok(Some((outcome, index)))
            }
            Err(OpenraftError::APIError(ClientWriteError::ForwardToLeader(_))) => Ok(None),
            Err(error) => Err(ProposeError::Store {
                reason: error.to_string(),
            }),
        }
    }

    /// Returns up to where everything is agreed on that was before the call; `None` when this node
    /// does not lead.
    pub(crate) async fn read_index_here(&self) -> Result<Option<u64>, ProposeError> {
        let read = self.inner.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
        match read {
            Ok((read, _)) => Ok(Some(read.index())),
            Err(OpenraftError::APIError(
                LinearizableReadError::ForwardToLeader(_)
                | LinearizableReadError::QuorumNotEnough(_),
            )) => Ok(None),
            Err(error) => Err(ProposeError::Store {
                reason: error.to_string(),
            }),
        }
    }

    /// Waits until this node knows everything that was agreed on before the call.
    pub(super) async fn catch_up(&self) -> Result<(), ProposeError> {
        if self.is_alone() {
            return Ok(());
        }
        let asked = self.while_there_is_hope(async {
            loop {
                // Whoever asks while a question is on its way shares the next one.
                let asked = self.inner.read_index.ask(|| self.ask_read_index()).await;
                let broken = |reason| ProposeError::Store { reason };
                if let Some(index) = asked.map_err(broken)? {
                    return self.wait_applied(index).await;
                }
                self.wait_for_change().await;
            }
        });
        asked.await.unwrap_or_else(|| {
            Err(ProposeError::Unavailable {
                reason: String::new(),
            })
        })
    }

    /// Asks the leader once up to where everything is agreed on; `None` when nobody knows now.
    async fn ask_read_index(&self) -> Result<Option<u64>, String> {
        Ok(match self.route() {
            Route::Here => self
                .read_index_here()
                .await
                .map_err(|error| error.to_string())?,
            Route::There(id, peer) => {
                let client = self.inner.network.client(id, &peer);
                client.read_index().await.ok().flatten()
            }
            Route::Nowhere => None,
        })
    }

    async fn wait_applied(&self, index: u64) -> Result<(), ProposeError> {
        let wait = self.inner.raft.wait(Some(PROPOSE_MAX));
        let applied = wait.applied_index_at_least(Some(index), "the outcome is known here");
        applied
            .await
            .map(drop)
            .map_err(|error| ProposeError::Unavailable {
                reason: error.to_string(),
            })
    }

    /// Returns the name under which the state knows this node: one that was always alone may have
    /// changed it.
    fn name_now(&self) -> String {
        let Identity { id, name, .. } = &self.inner.identity;
        let state = self.state();
        let state = state.borrow();
        let me = state.nodes.values().find(|node| node.id == *id);
        me.map_or(name, |node| &node.name).clone()
    }

    /// Proposes one entry and returns the subscriptions whose cursor was refused.
    async fn save_part(
        &self,
        cursors: Vec<(SubscriptionId, Cursor)>,
    ) -> Result<Vec<SubscriptionId>, CursorError> {
        let save = CursorCommand::Save {
            by: self.name_now(),
            cursors: cursors.clone(),
        };
        let agreed = self.agree(Proposal::Cursors(save)).await;
        agreed.map_err(cursor_error)?;
        Ok(self.refused_of(cursors))
    }

    /// Finds out whose cursors are not what was proposed last. This node's state contains the entry.
    fn refused_of(&self, cursors: Vec<(SubscriptionId, Cursor)>) -> Vec<SubscriptionId> {
        self.inner.store.with_cursors(|known| {
            let is_refused = |(id, cursor): &(SubscriptionId, Cursor)| {
                known.get(id).is_none_or(|known| **known != *cursor)
            };
            let refused = cursors.into_iter().filter(is_refused);
            refused.map(|(id, _)| id).collect()
        })
    }

    fn route(&self) -> Route {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let Some(id) = metrics.current_leader else {
            return Route::Nowhere;
        };
        if id == self.inner.identity.id {
            return Route::Here;
        }
        let members = metrics.membership_config.membership();
        members
            .get_node(&id)
            .map_or(Route::Nowhere, |peer| Route::There(id, peer.clone()))
    }

    /// Waits until somebody else leads, or a moment.
    async fn wait_for_change(&self) {
        let mut leadership = self.inner.leadership.subscribe();
        leadership.mark_unchanged();
        // Whatever ends it, the next try looks again.
        let _woken = tokio::time::timeout(RETRY_AFTER, leadership.changed()).await;
    }
}

/// Tells whether something may be proposed while the encoded state has so many bytes. Nothing is added to
/// one that a node could soon not read again; what shrinks it, what moves what is there, and what must
/// be kept whatever happens goes on. Claims are proposed together: those that replace a dead home go on, and
/// take the others along.
///
/// # Errors
///
/// [`ProposeError::StateFull`].
pub(super) fn room_for(proposal: &Proposal, state_bytes: usize) -> Result<(), ProposeError> {
    let adds = match proposal {
        Proposal::State(Command::Home(HomeCommand::Claim { claims, .. })) => {
            claims.iter().all(|claim| claim.instead_of.is_none())
        }
        Proposal::State(command) => matches!(
            command,
            Command::AddSource(_) | Command::AddGuardedSource { .. } | Command::AddReplica(_)
        ),
        Proposal::Cursors(_) => false,
    };
    if adds && state_bytes >= STATE_BYTES_MAX {
        return Err(ProposeError::StateFull {
            bytes: state_bytes,
            bytes_max: STATE_BYTES_MAX,
        });
    }
    Ok(())
}

#[async_trait]
impl Consensus for RaftConsensus {
    async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        self.agree(Proposal::State(command)).await
    }

    fn state(&self) -> watch::Receiver<std::sync::Arc<State>> {
        self.inner.store.state()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    async fn confirm_leadership(&self) -> Result<(), ProposeError> {
        let confirmed = tokio::time::timeout(CONFIRM_MAX, self.read_index_here());
        match confirmed.await {
            Ok(read) => read?.map(drop).ok_or_else(|| ProposeError::Unavailable {
                reason: "this node does not lead".to_owned(),
            }),
            Err(_) => Err(ProposeError::Unavailable {
                reason: "no majority confirmed that this node leads".to_owned(),
            }),
        }
    }
}

impl Floors for RaftConsensus {
    fn floor(&self, stream: &str) -> Option<Checkpoint> {
        self.inner
            .store
            .with_cursors(|cursors| cursors.floor(stream))
    }

    fn moves(&self) -> watch::Receiver<u64> {
        self.inner.store.cursor_moves()
    }
}

#[async_trait]
impl CursorStore for RaftConsensus {
    async fn load(&self, id: &SubscriptionId) -> Result<Option<Cursor>, CursorError> {
        self.catch_up().await.map_err(cursor_error)?;
        let load = |cursor: &std::sync::Arc<Cursor>| Cursor::clone(cursor);
        Ok(self
            .inner
            .store
            .with_cursors(|cursors| cursors.get(id).map(load)))
    }

    async fn save(
        &self,
        cursors: Vec<(SubscriptionId, Cursor)>,
    ) -> Result<Vec<SubscriptionId>, CursorError> {
        let mut refused = Vec::new();
        let mut part = Vec::new();
        let mut bytes = 0;
        for (id, mut cursor) in cursors {
            cursor.acked_above.truncate(ACKED_RUNS_MAX);
            let length = to_bytes(&(&id, &cursor)).map_or(0, |bytes| bytes.len());
            if bytes + length > CURSOR_BYTES_MAX && !part.is_empty() {
                refused.extend(self.save_part(std::mem::take(&mut part)).await?);
                bytes = 0;
            }
            bytes += length;
            part.push((id, cursor));
        }
        refused.extend(self.save_part(part).await?);
        Ok(refused)
    }

    async fn seek(&self, id: &SubscriptionId, mut cursor: Cursor) -> Result<bool, CursorError> {
        cursor.acked_above.truncate(ACKED_RUNS_MAX);
        let cursors = vec![(id.clone(), cursor)];
        let seek = CursorCommand::Seek {
            by: self.name_now(),
            cursors: cursors.clone(),
        };
        let agreed = self.agree(Proposal::Cursors(seek)).await;
        agreed.map_err(cursor_error)?;
        Ok(self.refused_of(cursors).is_empty())
    }

    async fn remove(&self, id: &SubscriptionId) -> Result<(), CursorError> {
        let remove = CursorCommand::Remove(id.clone());
        self.agree(Proposal::Cursors(remove))
            .await
            .map(drop)
            .map_err(cursor_error)
    }

    async fn list(&self) -> Result<Vec<(SubscriptionId, Cursor)>, CursorError> {
        self.catch_up().await.map_err(cursor_error)?;
        Ok(self.inner.store.with_cursors(|cursors| {
            let owned = |(id, cursor): (&SubscriptionId, &std::sync::Arc<Cursor>)| {
                (id.clone(), Cursor::clone(cursor))
            };
            cursors.iter().map(owned).collect()
        }))
    }

    fn pace(&self) -> Duration {
        if self.is_alone() {
            CURSOR_SAVE_INTERVAL
        } else {
            CLUSTER_PACE
        }
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn cursor_error(error: ProposeError) -> CursorError {
    let explanation = match error {
        ProposeError::Refused(_) | ProposeError::Store { .. } => &codes::gateway::CURSOR_NOT_KEPT,
        ProposeError::Unavailable { .. }
        | ProposeError::TooLarge { .. }
        | ProposeError::StateFull { .. } => error.explanation(),
    };
    CursorError {
        explanation,
        reason: error.text(),
    }
}
