//! Starts and stops the agents of this node as the agreed state wants.
//!
//! The reconciler compares the state with what runs: a source that was given to this node gets its
//! log and an agent; one that is paused, removed, given to another node or connects elsewhere is
//! drained. Whatever fails is kept as the source's trouble and tried again. It never changes what
//! the state wants, and it never takes a source that was given to another node.
//!
//! # Invariants
//!
//! - At most one agent a source, and one piece of work on it: what runs is drained before what is wanted
//!   begins. No source waits for another one's drain.
//! - No two agents run under one epoch: one that starts again begins a new one.

mod definition;
mod floors;
mod host;
mod operations;
mod reach;
mod reconciler;
mod running;
mod secrets;
mod setup;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use pgcapture_actors::{
    agent::{self, AgentLimits, AgentSpec, Durability, Lease, Looks, Trouble},
    consensus::Consensus,
};
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Answer, Command, OnGap, Source, State, liveness::NodeReport},
    codes,
    fence::ClusterId,
    wal_guard::WalGuard,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use self::{
    definition::Definition,
    floors::Floors,
    operations::SourceError,
    setup::{Check, SourcePlan},
};
use self::{
    floors::Floor,
    host::SourceHost,
    reconciler::{Hosting, RETRY_AFTER, reconcile_until},
    running::Running,
};
pub(crate) use self::{
    host::connection,
    operations::FIRST_STATUS_MAX,
    secrets::Secrets,
    status::{chain, lag, lag_bytes, unix_now_micros},
};
use crate::{config::Config, logs::Logs, peer_log::readers::RemoteReaders};

/// Agents that are started, and logs that are opened, side by side: each agent waits for the others to
/// agree, each log for its disk.
const STARTS_MAX: usize = 16;

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
    /// Looks at servers, shared by the agents.
    looks: Looks,
    node: String,
    limits: AgentLimits,
    /// How much WAL a source may keep that does not say otherwise.
    guard: WalGuard,
    running: watch::Sender<BTreeMap<String, Running>>,
    troubles: Mutex<BTreeMap<String, Trouble>>,
    /// Epochs that an agent has had, here or in an earlier life of this node.
    used: Mutex<BTreeMap<String, Epoch>>,
    report: watch::Sender<NodeReport>,
}

/// What an agent is given beside its source: the lease, unless the node is alone, and the limit of
/// kept WAL.
type Given = (Option<watch::Receiver<bool>>, Option<WalGuard>);

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
            looks: Looks::default(),
            node: config.node.name.clone(),
            limits: AgentLimits {
                row_bytes_max: config.limits.max_row.as_len(),
                catch_up_above: agent.catch_up_above.0,
                follow_below: agent.follow_below.0,
                catch_up_chunk: agent.catch_up_chunk.0,
            },
            guard: agent.wal_guard.of_node(),
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
        actix::spawn(async move {
            let hosted = Hosted {
                sources: &sources,
                lease,
                stop: &stop,
                starts: Semaphore::new(STARTS_MAX),
            };
            let reconciled = reconcile_until(&hosted, sources.consensus.state(), &stop);
            tokio::join!(reconciled, sources.sweep_until(&stop));
            let all: Vec<String> = sources.running.borrow().keys().cloned().collect();
            sources.drain(all).await;
        })
    }

    /// Opens the log of every source that the state knows, so that consumers can read before any
    /// agent runs. What fails is kept as the source's trouble.
    pub async fn open_logs(&self) {
        let state = Arc::clone(&self.consensus.state().borrow());
        let own = state.sources.values();
        let own = own.filter(|source| self.owns(&state, source));
        let opened = own.map(|source| self.open_log(&source.name));
        let opened = futures_util::stream::iter(opened).buffer_unordered(STARTS_MAX);
        opened.for_each(|_| std::future::ready(())).await;
    }

    /// How much WAL a source may keep, of what was said about it and of what the node says; `None`: no
    /// limit.
    #[must_use]
    pub fn guard_of(&self, state: &State, name: &str) -> Option<WalGuard> {
        let wish = state.wal_wishes.get(name).copied();
        wish.unwrap_or_default().or(self.guard)
    }

    fn owns(&self, state: &State, source: &Source) -> bool {
        state.owner(&source.name) == Some(self.node.as_str())
    }

    /// Removes the logs that others left here by removing their source, whenever one is gone; until `stop`.
    async fn sweep_until(&self, stop: &CancellationToken) {
        let mut state = self.consensus.state();
        // For which sources everything was swept; most changes of the state are about something else.
        let mut swept: Option<BTreeSet<String>> = None;
        while !stop.is_cancelled() {
            let wanted = Arc::clone(&state.borrow_and_update());
            let is_same = |swept: &BTreeSet<String>| swept.iter().eq(wanted.sources.keys());
            let is_done = swept.as_ref().is_some_and(is_same) || self.sweep_logs().await;
            if !is_done {
                swept = None;
            } else if !swept.as_ref().is_some_and(is_same) {
                swept = Some(wanted.sources.keys().cloned().collect());
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY_AFTER), if !is_done => (),
                () = stop.cancelled() => (),
            }
        }
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

    async fn start_agent(&self, source: &Source, given: Given) -> bool {
        match self.try_start_agent(source, given).await {
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

    async fn try_start_agent(&self, source: &Source, (lease, guard): Given) -> Result<(), Trouble> {
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
            wal_guard: guard,
            limits: self.limits.clone(),
        };
        tracing::info!(
            source = source.name,
            slot = source.slot,
            epoch = epoch.0,
            "starting the agent of a source"
        );
        let consensus = Arc::clone(&self.consensus);
        let host = Arc::new(SourceHost::new(consensus, self.looks.clone(), source));
        let running = Running {
            handle: agent::start(spec, host, log),
            epoch,
            floor,
            guard,
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

/// The sources of a node while they are brought in step.
struct Hosted<'a> {
    sources: &'a Sources,
    lease: watch::Receiver<bool>,
    stop: &'a CancellationToken,
    starts: Semaphore,
}

impl Hosted<'_> {
    /// Tells whether an agent runs that the state does not want as it is.
    fn is_unwanted(&self, name: &str, state: &State) -> bool {
        let running = self.sources.running.borrow();
        let source = state.sources.get(name);
        let source = source.filter(|source| self.sources.owns(state, source));
        running.get(name).is_some_and(|running| {
            let guard = self.sources.guard_of(state, name);
            !source.is_some_and(|source| running.fits(source, is_alone(state), guard))
        })
    }
}

impl Hosting for Hosted<'_> {
    fn due(&self, state: &State) -> Vec<String> {
        self.sources.keep_troubles_of(state);
        let running: Vec<String> = self.sources.running.borrow().keys().cloned().collect();
        // Asked after every change and every start: sets, since a node may have hundreds.
        let (unwanted, running): (BTreeSet<_>, BTreeSet<_>) = running
            .into_iter()
            .partition(|name| self.is_unwanted(name, state));
        // A paused source has its log, for those who read it.
        let has_all = |source: &Source| {
            let name = &source.name;
            running.contains(name) || (source.paused && self.sources.logs.is_usable(name))
        };
        let is_missing = |source: &&Source| {
            let is_ours = self.sources.owns(state, source);
            is_ours && !unwanted.contains(&source.name) && !has_all(source)
        };
        let missing = state.sources.values().filter(is_missing);
        let missing: Vec<String> = missing.map(|source| source.name.clone()).collect();
        unwanted.into_iter().chain(missing).collect()
    }

    async fn settle(&self, name: &str) -> bool {
        let sources = self.sources;
        let newest = || Arc::clone(&sources.consensus.state().borrow());
        if self.is_unwanted(name, &newest()) {
            sources.drain(vec![name.to_owned()]).await;
        }
        let permit = self.starts.acquire().await;
        let state = newest();
        let source = state.sources.get(name);
        let source = source.filter(|source| sources.owns(&state, source));
        let (Some(source), Ok(_permit), false) = (source, permit, self.stop.is_cancelled()) else {
            return true;
        };
        // An agent keeps the log that it was started with, even one that has failed.
        if sources.running.borrow().contains_key(name) {
            return true;
        }
        let has_log = sources.open_log(name).await;
        if source.paused || !has_log {
            return has_log;
        }
        let lease = (!is_alone(&state)).then(|| self.lease.clone());
        let guard = sources.guard_of(&state, name);
        sources.start_agent(source, (lease, guard)).await
    }
}

/// A node without others: nobody takes its sources over, and nobody need be asked.
fn is_alone(state: &State) -> bool {
    state.nodes.len() <= 1
}

#[cfg(test)]
mod tests;
