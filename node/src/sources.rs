//! Starts and stops the agents of this node as the agreed state wants.
//!
//! The reconciler compares the state with what runs: a source that was given to this node gets its
//! log and an agent; one that is paused, removed, given to another node or connects elsewhere is
//! drained. Whatever fails is kept as the source's trouble and tried again. It never changes what
//! the state wants, and it never takes a source that was given to another node.
//!
//! # Invariants
//!
//! - At most one agent a source.
//! - No two agents run under one epoch: one that starts again begins a new one.

mod definition;
mod floors;
mod host;
mod operations;
mod reach;
mod secrets;
mod setup;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pgcapture_actors::{
    agent::{self, AgentHandle, AgentLimits, AgentSpec, Durability, Lease, Trouble},
    consensus::Consensus,
};
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Answer, Command, OnGap, SecretRef, Source, State, liveness::NodeReport},
    codes,
    fence::ClusterId,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use self::{
    definition::Definition,
    floors::Floors,
    operations::SourceError,
    setup::{Check, SourcePlan},
};
use self::{floors::Floor, host::SourceHost};
pub(crate) use self::{
    host::connection,
    secrets::Secrets,
    status::{chain, lag, lag_bytes, unix_now_micros},
};
use crate::{config::Config, logs::Logs, peer_log::readers::RemoteReaders};

/// How long the reconciler waits before it tries again what failed. An operator who mends a
/// password file sees the effect at once; a broken one costs a log line each time.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// An agent that does not drain within this time is dropped: its epoch keeps it harmless.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// The sources of this node.
#[derive(Debug)]
pub struct Sources {
    consensus: Arc<dyn Consensus>,
    floors: Arc<dyn Floors>,
    readers: RemoteReaders,
    logs: Arc<Logs>,
    cluster: ClusterId,
    secrets: Secrets,
    node: String,
    limits: AgentLimits,
    running: watch::Sender<BTreeMap<String, Running>>,
    troubles: Mutex<BTreeMap<String, Trouble>>,
    /// Epochs that an agent has had, here or in an earlier life of this node.
    used: Mutex<BTreeMap<String, Epoch>>,
    report: watch::Sender<NodeReport>,
}

/// A running agent and what it was started for.
#[derive(Clone, Debug)]
struct Running {
    handle: AgentHandle,
    epoch: Epoch,
    /// What the slot may be let go up to; `None` on a node that is alone.
    floor: Option<Arc<Floor>>,
    url: String,
    password: Option<SecretRef>,
}

impl Running {
    fn fits(&self, source: &Source, is_alone: bool) -> bool {
        !source.paused
            && self.floor.is_none() == is_alone
            && self.epoch == source.epoch
            && self.url == source.url
            && self.password == source.password
    }
}

impl Sources {
    /// Makes the sources of a node; nothing runs before [`Self::start`].
    #[must_use]
    pub fn new(
        config: &Config,
        consensus: Arc<dyn Consensus>,
        floors: Arc<dyn Floors>,
        cluster: ClusterId,
        logs: Arc<Logs>,
    ) -> Self {
        let agent = &config.agent;
        let used = consensus.state().borrow().epochs.clone();
        Self {
            consensus,
            floors,
            readers: RemoteReaders::default(),
            cluster,
            logs,
            secrets: Secrets::new(config.node.data_dir.join("secrets")),
            node: config.node.name.clone(),
            limits: AgentLimits {
                row_bytes_max: config.limits.max_row.as_len(),
                catch_up_above: agent.catch_up_above.0,
                follow_below: agent.follow_below.0,
                catch_up_chunk: agent.catch_up_chunk.0,
            },
            running: watch::Sender::default(),
            troubles: Mutex::default(),
            used: Mutex::new(used),
            report: watch::Sender::default(),
        }
    }

    /// Who reads the logs of this node elsewhere: they are entered here by whoever serves them.
    #[must_use]
    pub fn readers(&self) -> RemoteReaders {
        self.readers.clone()
    }

    /// Starts the reconciler on the current arbiter; it ends after `stop` with every agent drained.
    /// In a cluster agents write only while the node holds its `lease`.
    ///
    /// # Panics
    ///
    /// Outside an actix `System`.
    pub fn start(
        self: &Arc<Self>,
        lease: watch::Receiver<bool>,
        stop: CancellationToken,
    ) -> JoinHandle<()> {
        let sources = Arc::clone(self);
        actix::spawn(async move { sources.reconcile_until(&lease, stop).await })
    }

    /// Opens the log of every source that the state knows, so that consumers can read before any
    /// agent runs. What fails is kept as the source's trouble.
    pub async fn open_logs(&self) {
        let state = Arc::clone(&self.consensus.state().borrow());
        for source in state.sources.values() {
            if self.owns(&state, source) {
                self.open_log(&source.name).await;
            }
        }
    }

    fn owns(&self, state: &State, source: &Source) -> bool {
        state.owner(&source.name) == Some(self.node.as_str())
    }

    async fn reconcile_until(&self, lease: &watch::Receiver<bool>, stop: CancellationToken) {
        let mut state = self.consensus.state();
        let mut swept = None;
        while !stop.is_cancelled() {
            let wanted = Arc::clone(&state.borrow_and_update());
            let mut is_done = self.reconcile(&wanted, lease).await;
            // Others may have removed sources whose logs lie here.
            let known: Option<BTreeSet<String>> = Some(wanted.sources.keys().cloned().collect());
            if swept != known {
                let is_swept = self.sweep_logs().await;
                swept = known.filter(|_| is_swept);
                is_done &= is_swept;
            }
            let retry = async {
                if is_done {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(RETRY_AFTER).await;
            };
            tokio::select! {
                changed = state.changed() => if changed.is_err() { break },
                () = retry => (),
                () = stop.cancelled() => (),
            }
        }
        let all: Vec<String> = self.running.borrow().keys().cloned().collect();
        self.drain(all).await;
    }

    /// Makes what runs fit the state; returns whether nothing is left to try again.
    async fn reconcile(&self, state: &State, lease: &watch::Receiver<bool>) -> bool {
        let is_alone = is_alone(state);
        let is_unwanted = |(name, running): &(&String, &Running)| {
            let source = state.sources.get(*name);
            !source.is_some_and(|source| self.owns(state, source) && running.fits(source, is_alone))
        };
        let unwanted: Vec<String> = {
            let running = self.running.borrow();
            let unwanted = running.iter().filter(is_unwanted);
            unwanted.map(|(name, _)| name.clone()).collect()
        };
        self.drain(unwanted).await;
        self.keep_troubles_of(state);
        let mut is_done = true;
        let given = |source: &&Source| self.owns(state, source);
        for source in state.sources.values().filter(given) {
            let runs = self.running.borrow().contains_key(&source.name);
            // An agent keeps the log that it was started with, even one that has failed.
            let has_log = runs || self.open_log(&source.name).await;
            if source.paused || runs {
                is_done &= has_log;
            } else {
                let lease = (!is_alone).then(|| lease.clone());
                is_done &= has_log && self.start_agent(source, lease).await;
            }
        }
        is_done
    }

    async fn open_log(&self, name: &str) -> bool {
        let is_former = |epoch| self.is_former_log(name, epoch);
        let Err(error) = self.logs.open_own(name, is_former).await else {
            return true;
        };
        self.set_trouble(name, status::log_trouble(&error));
        false
    }

    /// Tells it by the newest state: the name may have been given anew meanwhile.
    fn is_former_log(&self, name: &str, epoch: Epoch) -> bool {
        self.consensus.state().borrow().is_former_log(name, epoch)
    }

    /// Removes the logs of sources that are gone; returns whether nothing is left to try again.
    async fn sweep_logs(&self) -> bool {
        let logs = Arc::clone(&self.logs);
        let names = tokio::task::spawn_blocking(move || logs.names()).await;
        let names = match names.map_err(std::io::Error::other).flatten() {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(%error, "the logs of this node cannot be listed");
                return false;
            }
        };
        let mut is_done = true;
        for name in names {
            let is_known = self.consensus.state().borrow().sources.contains_key(&name);
            // Those of sources that are there are looked at when they are opened.
            if is_known {
                continue;
            }
            let is_former = |epoch| self.is_former_log(&name, epoch);
            match self.logs.remove_former(&name, is_former).await {
                Ok(true) => {
                    tracing::info!(source = name, "removed the log of a source that is gone");
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(source = name, %error, "the log of a source that is gone cannot be removed");
                    is_done = false;
                }
            }
        }
        is_done
    }

    async fn start_agent(&self, source: &Source, lease: Option<watch::Receiver<bool>>) -> bool {
        match self.try_start_agent(source, lease).await {
            Ok(()) => {
                self.troubles().remove(&source.name);
                true
            }
            Err(trouble) => {
                self.set_trouble(&source.name, trouble);
                false
            }
        }
    }

    async fn try_start_agent(
        &self,
        source: &Source,
        lease: Option<watch::Receiver<bool>>,
    ) -> Result<(), Trouble> {
        let missing = || {
            let closed = &codes::node::STORE_FAILED;
            status::trouble(closed, "the log of the source is not open".to_owned())
        };
        let log = self.logs.get(&source.name).ok_or_else(missing)?;
        let epoch = self.begin(source).await?;
        // Where others may take over, the slot is the truth; alone, the log is.
        let floor = || Floor::follow(Arc::clone(&self.floors), self.readers.clone(), source);
        let floor = lease.is_some().then(|| Arc::new(floor()));
        let durability = floor
            .as_ref()
            .map_or(Durability::Log, |floor| Durability::Slot {
                floor: floor.least.clone(),
            });
        let spec = AgentSpec {
            source: source.name.clone(),
            node: self.node.clone(),
            epoch,
            slot: source.slot.clone(),
            publication: source.publication.clone(),
            is_binary: true,
            accepts_gap: source.on_gap == OnGap::Continue,
            cluster: self.cluster,
            durability,
            lease: lease.map_or_else(Lease::permanent, Lease::watched),
            wal_guard: None,
            limits: self.limits.clone(),
        };
        tracing::info!(
            source = source.name,
            slot = source.slot,
            epoch = epoch.0,
            "starting the agent of a source"
        );
        let host = Arc::new(SourceHost::new(Arc::clone(&self.consensus), source));
        let running = Running {
            handle: agent::start(spec, host, log),
            epoch,
            floor,
            url: source.url.clone(),
            password: source.password.clone(),
        };
        let name = source.name.clone();
        self.running
            .send_modify(|all| drop(all.insert(name, running)));
        Ok(())
    }

    /// Returns the epoch of an agent that starts now: the one under which the source was given to
    /// this node, or a new one when an agent has had that already.
    async fn begin(&self, source: &Source) -> Result<Epoch, Trouble> {
        let used = self.used().get(&source.name).copied();
        let epoch = if used.is_none_or(|used| used < source.epoch) {
            source.epoch
        } else {
            let assign = Command::Assign {
                name: source.name.clone(),
                node: self.node.clone(),
                after: source.epoch,
            };
            match self.consensus.propose(assign).await {
                Ok(Answer::Assigned(epoch)) => epoch,
                Ok(Answer::Done | Answer::Unchanged | Answer::DumpCreated(_)) => {
                    let text = "an assignment was answered with something else".to_owned();
                    return Err(status::trouble(&codes::node::STORE_FAILED, text));
                }
                Err(error) => return Err(status::propose_trouble(&error)),
            }
        };
        self.used().insert(source.name.clone(), epoch);
        Ok(epoch)
    }

    /// A panic under the lock leaves the map as it was: go on.
    fn used(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Epoch>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drains agents, all at once, and forgets them.
    async fn drain(&self, names: Vec<String>) {
        let drains = names.iter().filter_map(|name| {
            let running = self.running.borrow().get(name).cloned()?;
            Some(async move {
                tracing::info!(source = name.as_str(), "draining the agent of a source");
                let drained = tokio::time::timeout(DRAIN_MAX, running.handle.drain()).await;
                if drained.is_err() {
                    tracing::warn!(
                        source = name.as_str(),
                        "the agent did not drain in time and is cut off; nothing durable is lost"
                    );
                }
            })
        });
        futures_util::future::join_all(drains).await;
        if !names.is_empty() {
            self.running
                .send_modify(|all| all.retain(|name, _| !names.contains(name)));
        }
    }

    /// Waits until no agent of the source runs.
    async fn wait_until_stopped(&self, name: &str) {
        let mut running = self.running.subscribe();
        // The sender lives in self: the wait cannot fail.
        drop(running.wait_for(|all| !all.contains_key(name)).await);
    }

    fn set_trouble(&self, name: &str, trouble: Trouble) {
        let before = self.troubles().insert(name.to_owned(), trouble.clone());
        if before.as_ref() != Some(&trouble) {
            tracing::error!(
                source = name,
                code = trouble.code,
                next = trouble.next,
                "cannot capture: {}",
                trouble.text
            );
        }
    }

    fn keep_troubles_of(&self, state: &State) {
        self.troubles()
            .retain(|name, _| state.sources.contains_key(name));
    }

    /// A panic under the lock leaves the map as it was: go on.
    fn troubles(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node without others: nobody takes its sources over, and nobody need be asked.
fn is_alone(state: &State) -> bool {
    state.nodes.len() <= 1
}

#[cfg(test)]
mod tests;
