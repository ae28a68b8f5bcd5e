//! Which node keeps the books of a subscription, and what this node does about its own.
//!
//! A session asks for its place: here, or on the node that is the subscription's home. One task keeps the
//! agreed state and the sessions of this node in step: homes without sessions are given back a moment
//! later, so that a consumer that reconnects finds its books in memory; what another node took over is
//! given up, and so is what belongs to a stream that is gone; what has sessions and no home is claimed. A
//! node on its own claims nothing.
//!
//! # Invariants
//!
//! - Books in memory are used under a new claim only if they go on from what is saved.
//! - A home is given back only after its cursor is durable and its books have left the memory.
//! - No session is placed here while that goes on.
//! - A node that stops claims nothing any more: what it gave back stays free for the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pgcapture_actors::{
    consensus::{Consensus, ProposeError},
    cursors::SubscriptionId,
    gateway::GatewayHandle,
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::cluster::{Command, Home, HomeClaim, HomeCommand, State};
use tokio::sync::{Notify, RwLock, watch};
use tokio_util::sync::CancellationToken;

use crate::peers::Peers;

/// Homes are looked after at most this often, and one without sessions is given back at the second look.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Claims of one proposal.
const CLAIMS_TOGETHER_MAX: usize = 1_000;

/// A claim is repeated this often when others win and leave again meanwhile.
const CLAIM_TRIES: usize = 5;

/// How long a session that another node forwarded waits for this node to learn that it is the home.
const KNOWLEDGE_MAX: Duration = Duration::from_secs(1);

/// The homes of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Homes {
    inner: Arc<Inner>,
    _task: Arc<Task<()>>,
}

#[derive(Debug)]
struct Inner {
    node: String,
    consensus: Arc<dyn Consensus>,
    gateway: GatewayHandle,
    peers: Peers,
    /// Sessions here, by subscription.
    held: Mutex<BTreeMap<SubscriptionId, usize>>,
    /// Written while homes are given back.
    gate: RwLock<()>,
    claims: Mutex<Vec<HomeClaim>>,
    proposing: tokio::sync::Mutex<()>,
    /// What was proposed and not answered.
    asked: Mutex<BTreeSet<SubscriptionId>>,
    left: Notify,
    /// The node stops: sessions that were forwarded from here end, and none is placed.
    stop: CancellationToken,
}

/// Where a session is served.
#[derive(Debug)]
pub enum Placed {
    /// Here, while this is kept.
    Here(Held),
    /// On another node.
    There {
        /// Its name.
        node: String,
        /// Its address.
        address: String,
    },
}

/// A session's hold on its home. Its drop lets the home go after the last one.
#[derive(Debug)]
pub struct Held {
    inner: Arc<Inner>,
    id: SubscriptionId,
}

/// A home could not be found.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The state could not be changed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// Others claimed and left again, every time.
    #[error("the home of the subscription changes all the time")]
    Unsettled,
    /// This node stops, and is nobody's home any more.
    #[error("node is draining")]
    Draining,
}

impl Homes {
    /// Starts to look after the homes of `node`.
    #[must_use]
    pub fn start(
        node: &str,
        consensus: Arc<dyn Consensus>,
        gateway: GatewayHandle,
        peers: Peers,
    ) -> Self {
        let inner = Arc::new(Inner {
            node: node.to_owned(),
            consensus,
            gateway,
            peers,
            held: Mutex::default(),
            gate: RwLock::default(),
            claims: Mutex::default(),
            proposing: tokio::sync::Mutex::default(),
            asked: Mutex::default(),
            left: Notify::new(),
            stop: CancellationToken::new(),
        });
        let (looking, stop) = (look_after(Arc::clone(&inner)), inner.stop.clone());
        let task = spawn(TaskKind::Homes, node, async move {
            stop.run_until_cancelled(looking).await;
        });
        Self {
            inner,
            _task: Arc::new(task),
        }
    }

    /// Name of this node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.inner.node
    }

    /// The way to the others.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    /// Ends what was forwarded, and every claim, when the node stops.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.inner.stop
    }

    /// Tells whether the state knows a stream: a uri of another has no home.
    #[must_use]
    pub fn knows(&self, id: &SubscriptionId) -> bool {
        self.inner.knows(id)
    }

    /// Finds the place of a session, claiming the home when there is none.
    ///
    /// # Errors
    ///
    /// [`HomeError`]
    pub async fn place(&self, id: &SubscriptionId) -> Result<Placed, HomeError> {
        let placed = self.inner.stop.run_until_cancelled(self.find_place(id));
        placed.await.unwrap_or(Err(HomeError::Draining))
    }

    async fn find_place(&self, id: &SubscriptionId) -> Result<Placed, HomeError> {
        for _ in 0..CLAIM_TRIES {
            let _open = self.inner.gate.read().await;
            match self.inner.home(id) {
                Home::Alone | Home::Here => return Ok(Placed::Here(self.hold(id))),
                Home::There { node, address } => return Ok(Placed::There { node, address }),
                Home::Unclaimed => {
                    // Held before it is claimed, so that it is not given back at once.
                    let held = self.hold(id);
                    self.inner.claim(id, None).await?;
                    if matches!(self.inner.home(id), Home::Alone | Home::Here) {
                        return Ok(Placed::Here(held));
                    }
                }
            }
        }
        Err(HomeError::Unsettled)
    }

    /// Finds the place of a session that another node forwarded: here or nowhere. Waits a moment for what
    /// that node knows already.
    pub async fn place_forwarded(&self, id: &SubscriptionId) -> Option<Held> {
        let mut state = self.inner.consensus.state();
        let node = &self.inner.node;
        let is_here = |state: &Arc<State>| matches!(state.home(id, node), Home::Alone | Home::Here);
        let known = tokio::time::timeout(KNOWLEDGE_MAX, state.wait_for(is_here));
        let known = self.inner.stop.run_until_cancelled(known).await?;
        drop(known.ok()?.ok()?);
        let _open = self.inner.gate.read().await;
        is_here(&self.inner.state()).then(|| self.hold(id))
    }

    /// Claims the home of a node that is proven to be dead; look for the place again afterwards.
    ///
    /// # Errors
    ///
    /// [`HomeError`]
    pub async fn replace(&self, id: &SubscriptionId, dead: &str) -> Result<(), HomeError> {
        let claimed = async {
            let _open = self.inner.gate.read().await;
            self.inner.claim(id, Some(dead)).await
        };
        let claimed = self.inner.stop.run_until_cancelled(claimed).await;
        Ok(claimed.ok_or(HomeError::Draining)??)
    }

    /// Gives every home back, so that the next sessions find theirs elsewhere. The gateway has drained,
    /// and [`Self::stop`] was cancelled.
    ///
    /// # Errors
    ///
    /// [`HomeError`]; the others find out by themselves then.
    pub async fn drain(&self) -> Result<(), HomeError> {
        // Whoever was claiming has given up; what was proposed for them may be agreed on yet.
        let _closed = self.inner.gate.write().await;
        let mut ids: BTreeSet<_> = self.inner.claimed().into_iter().collect();
        ids.append(&mut self.inner.asked());
        Ok(self.inner.give_back(ids.into_iter().collect()).await?)
    }

    fn hold(&self, id: &SubscriptionId) -> Held {
        *self.inner.held().entry(id.clone()).or_default() += 1;
        Held {
            inner: Arc::clone(&self.inner),
            id: id.clone(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.inner.held();
        if let Some(count) = held.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.id);
                self.inner.left.notify_one();
            }
        }
    }
}

impl Inner {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.consensus.state().borrow())
    }

    fn knows(&self, id: &SubscriptionId) -> bool {
        self.state().source_of_stream(&id.stream).is_some()
    }

    fn home(&self, id: &SubscriptionId) -> Home {
        self.state().home(id, &self.node)
    }

    /// A panic under the lock leaves the map as it was: go on.
    fn held(&self) -> MutexGuard<'_, BTreeMap<SubscriptionId, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is claimed and not answered. A panic under the lock leaves the set as it was: go on.
    fn asked(&self) -> MutexGuard<'_, BTreeSet<SubscriptionId>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node is the home of.
    fn claimed(&self) -> Vec<SubscriptionId> {
        let state = self.state();
        let mine = state.homes.iter().filter(|(_, home)| **home == self.node);
        mine.map(|(id, _)| id.clone()).collect()
    }

    /// Claims together with whoever else does; whether it was won stands in the state.
    async fn claim(
        &self,
        id: &SubscriptionId,
        instead_of: Option<&str>,
    ) -> Result<(), ProposeError> {
        let claims = || self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims().push(HomeClaim {
            id: id.clone(),
            instead_of: instead_of.map(str::to_owned),
        });
        let turn = self.proposing.lock().await;
        let claims: Vec<_> = {
            let mut waiting = claims();
            let count = waiting.len().min(CLAIMS_TOGETHER_MAX);
            waiting.drain(..count).collect()
        };
        // Nothing left: whoever had the turn before proposed it.
        if !claims.is_empty() {
            self.propose_claims(claims).await?;
        }
        drop(turn);
        if self.home(id) == Home::Here {
            // Another node may have kept the books since this one did last.
            self.gateway.renew(std::slice::from_ref(id)).await;
        }
        Ok(())
    }

    /// Claims the homes of sessions that are here already, which have lost theirs.
    async fn claim_all(&self, ids: &[SubscriptionId]) -> Result<(), ProposeError> {
        for ids in ids.chunks(CLAIMS_TOGETHER_MAX) {
            let _open = self.gate.read().await;
            let claims = ids.iter().map(|id| HomeClaim {
                id: id.clone(),
                instead_of: None,
            });
            self.propose_claims(claims.collect()).await?;
            let won = ids.iter().filter(|id| self.home(id) == Home::Here);
            let won: Vec<_> = won.cloned().collect();
            self.gateway.renew(&won).await;
        }
        Ok(())
    }

    /// Proposes claims. They are known as asked for until there is an answer: whoever is cut off meanwhile
    /// may have them all the same.
    async fn propose_claims(&self, claims: Vec<HomeClaim>) -> Result<(), ProposeError> {
        let ids: BTreeSet<_> = claims.iter().map(|claim| claim.id.clone()).collect();
        self.asked().extend(ids.iter().cloned());
        let node = self.node.clone();
        let command = HomeCommand::Claim { node, claims };
        let answer = self.consensus.propose(Command::Home(command)).await;
        self.asked().retain(|id| !ids.contains(id));
        answer.map(drop)
    }

    async fn give_back(&self, ids: Vec<SubscriptionId>) -> Result<(), ProposeError> {
        for ids in ids.chunks(CLAIMS_TOGETHER_MAX) {
            let (node, ids) = (self.node.clone(), ids.to_vec());
            let command = HomeCommand::Release { node, ids };
            self.consensus.propose(Command::Home(command)).await?;
        }
        Ok(())
    }

    /// Brings the homes and the sessions of this node in step; returns the homes without sessions.
    async fn look(&self, idle_before: &BTreeSet<SubscriptionId>) -> BTreeSet<SubscriptionId> {
        let held: Vec<_> = self.held().keys().cloned().collect();
        let state = self.state();
        let streams = state.sources.values().map(|source| source.stream.as_str());
        let streams: BTreeSet<&str> = streams.collect();
        let mut unclaimed = Vec::new();
        for id in held {
            let subscription = &id.consumer;
            if !streams.contains(id.stream.as_str()) {
                // A stream of the same name may come, with other positions.
                tracing::info!(subscription, "the stream of the subscription is gone");
                self.give_up(&id).await;
                continue;
            }
            match self.home(&id) {
                Home::Alone | Home::Here => {}
                Home::There { node, .. } => {
                    tracing::info!(
                        subscription,
                        node,
                        "another node keeps the subscription now"
                    );
                    self.give_up(&id).await;
                }
                Home::Unclaimed => unclaimed.push(id),
            }
        }
        if let Err(error) = self.claim_all(&unclaimed).await {
            tracing::warn!(%error, "homes could not be claimed");
        }
        let idle = |inner: &Self| {
            let held = inner.held();
            let mut idle = inner.claimed();
            idle.retain(|id| !held.contains_key(id));
            idle.into_iter().collect::<BTreeSet<_>>()
        };
        let found = idle(self);
        let again: BTreeSet<_> = found.intersection(idle_before).cloned().collect();
        if !again.is_empty() {
            let _closed = self.gate.write().await;
            // Nobody is placed now: who came before stays.
            let going: Vec<_> = idle(self).intersection(&again).cloned().collect();
            if let Err(error) = self.release(going).await {
                tracing::warn!(error, "homes could not be given back");
            }
        }
        found
    }

    async fn give_up(&self, id: &SubscriptionId) {
        if let Err(error) = self.gateway.give_up(id).await {
            tracing::debug!(%error, "the gateway stopped");
        }
    }

    async fn release(&self, ids: Vec<SubscriptionId>) -> Result<(), String> {
        for id in &ids {
            let released = self.gateway.release(id).await;
            released.map_err(|error| error.to_string())?;
        }
        let given = self.give_back(ids).await;
        given.map_err(|error| error.to_string())
    }
}

/// Looks after the homes: the body of the task. It ends when it is dropped.
async fn look_after(inner: Arc<Inner>) {
    let mut state = inner.consensus.state();
    let mut idle = BTreeSet::new();
    loop {
        idle = inner.look(&idle).await;
        tokio::time::sleep(LOOK_INTERVAL).await;
        if idle.is_empty() && !changed(&mut state, &inner.left).await {
            return;
        }
    }
}

async fn changed(state: &mut watch::Receiver<Arc<State>>, left: &Notify) -> bool {
    tokio::select! {
        changed = state.changed() => changed.is_ok(),
        () = left.notified() => true,
    }
}
