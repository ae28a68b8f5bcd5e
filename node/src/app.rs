//! A running node: the order of its start and of its stop.
//!
//! [`start`] reads from top to bottom as the node comes up: store, logs, dumps, gateway, agents,
//! gRPC, HTTP, ready. [`Node::stop`] is the reverse under one deadline. Nothing here decides anything.

mod agreeing;
mod begin;
mod exposure;
mod membership;
mod parts;
mod server;
mod started;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use pgcapture_actors::supervise::Task;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::task::TaskTracker;

pub use self::exposure::refuse_open_listener;
use self::{
    agreeing::Leaderless,
    begin::Begun,
    membership::{take_part, watch_leader},
    parts::Parts,
    server::Services,
    started::{Started, Stops},
};
use crate::{
    config::Config,
    http::{self, Pages},
    liveness::Standing,
    logs::Logs,
    raft::RaftConsensus,
    replicas::Replicas,
    rpc::admin::{AdminService, NodeInfo},
    sources::{Sources, unix_now_micros},
};

/// A running node.
#[derive(Debug)]
pub struct Node {
    /// Bound address of gRPC.
    pub listen: SocketAddr,
    /// Bound address of HTTP.
    pub metrics: SocketAddr,
    /// Its sources.
    pub sources: Arc<Sources>,
    /// Where existing rows of its sources are read from.
    pub replicas: Arc<Replicas>,
    raft: RaftConsensus,
    _peers: Option<Task<()>>,
    deadline: Duration,
    logs: Arc<Logs>,
    started: Started,
    reconciler: JoinHandle<()>,
    /// What this node does for the cluster.
    part: Vec<Task<()>>,
    /// Whether no other node could take what it owns.
    stranded: watch::Receiver<bool>,
    /// Whether nobody has led for some time.
    leaderless: Leaderless,
    ready: watch::Sender<bool>,
    health: server::Health,
    servers: [Task<()>; 2],
}

/// Starts a node; returns when it serves. A node with peers waits for them, perhaps for ever.
///
/// # Errors
///
/// When the data directory, the configuration's secrets or an address cannot be used; nothing runs
/// then.
///
/// # Panics
///
/// Outside an actix `System` on a tokio runtime.
pub async fn start(config: &Config) -> anyhow::Result<Node> {
    let started = start_unless(config, std::future::pending()).await?;
    started.context("nobody has told it to stop")
}

/// The same until it is told to stop while it waits for its peers: `None` then, and nothing runs. Told
/// later it starts to the end, since there is something to drain by then.
///
/// # Errors
///
/// As [`start`].
///
/// # Panics
///
/// As [`start`].
pub async fn start_unless(
    config: &Config,
    stopped: impl Future<Output = ()>,
) -> anyhow::Result<Option<Node>> {
    http::install_metrics();
    let credentials = server::Credentials::read(config)?;
    let grpc_listener = bind(config.node.listen).await?;
    let http_listener = bind(config.node.metrics).await?;

    let mut begun = tokio::select! {
        begun = Begun::begin(config, &grpc_listener, &credentials) => begun?,
        () = stopped => return Ok(None),
    };
    let parts = Parts::open(config, &begun).await?;
    let stops = Stops::default();
    let (leader, watching) = watch_leader(&parts.consensus, stops.part.clone());
    let started = Started::start(config, &parts, leader, (begun.door.clone(), stops));
    let stops = &started.stops;

    let (Standing { lease, stranded }, mut part) = take_part(&parts, &started);
    part.push(watching);
    let leaderless = Leaderless::watch(parts.consensus.as_ref());
    let reconciler = parts.sources.start(lease, stops.agents.clone());

    let (ready, is_ready) = watch::channel(false);
    let addresses = (grpc_listener.local_addr()?, http_listener.local_addr()?);
    let admin = AdminService {
        info: Arc::new(node_info(config, addresses)),
        ready: is_ready.clone(),
        consensus: Arc::clone(&parts.consensus),
        sources: Arc::clone(&parts.sources),
        logs: Arc::clone(&parts.logs),
        gateway: started.gateway.clone(),
        orders: started.orders.clone(),
    };
    let readers = started.readers(&parts);
    let others = started.others(&parts, &begun.raft);
    let peers = started.peer_services(&parts);
    let services = Services::new(admin, others, readers, peers, stops.dumps.clone());
    let (listen, health, grpc) =
        server::serve(grpc_listener, services, credentials, stops.servers.clone()).await?;
    let pages = Pages {
        ready: is_ready,
        sources: Arc::clone(&parts.sources),
    };
    let (metrics, http) = http::serve(http_listener, pages, stops.servers.clone())?;

    let peers = begun.leave_address().await;
    add_configured(config, &parts.sources, &parts.replicas, &started.orders);
    health.serving().await;
    ready.send_replace(true);
    tell_ready(config, listen, metrics);
    Ok(Some(Node {
        listen,
        metrics,
        sources: parts.sources,
        replicas: parts.replicas,
        raft: begun.raft,
        _peers: peers,
        deadline: config.node.drain_timeout.0,
        logs: parts.logs,
        started,
        reconciler,
        part,
        stranded,
        leaderless,
        ready,
        health,
        servers: [grpc, http],
    }))
}

fn tell_ready(config: &Config, listen: SocketAddr, metrics: SocketAddr) {
    tracing::info!(
        node = config.node.name,
        %listen,
        %metrics,
        data_dir = %config.node.data_dir.display(),
        "ready"
    );
}

impl Node {
    /// Stops in order: no new sessions, sessions drained, subscriptions and sources given to others, dumps
    /// and agents drained, logs closed. Returns whether all of it ended within the configured time; what did
    /// not is cut off and loses nothing that is durable.
    pub async fn stop(self) -> bool {
        let deadline = self.deadline;
        let began = Instant::now();
        self.ready.send_replace(false);
        self.health.not_serving().await;
        tracing::info!("stopping: draining sessions and agents");
        let is_clean = tokio::time::timeout(deadline, Box::pin(self.drain())).await;
        let is_clean = is_clean.unwrap_or(false);
        let took = began.elapsed().as_millis();
        if is_clean {
            tracing::info!(took_ms = u64::try_from(took).unwrap_or(u64::MAX), "stopped");
        } else {
            let unclean = &pgcapture_engine::codes::node::UNCLEAN_STOP;
            tracing::error!(
                code = unclean.code,
                next = unclean.next,
                "{}",
                unclean.title
            );
        }
        is_clean
    }

    /// Waits until the node cannot go on, and returns why.
    pub async fn failed(&self) -> String {
        self.raft.failed().await
    }

    async fn drain(self) -> bool {
        let (raft, leaderless) = (self.raft.clone(), self.leaderless.clone());
        let name = raft.identity().name.clone();
        // Whatever waits for a word that cannot come waits no longer then.
        let hopeless = async {
            leaderless.for_good(&raft, &name, raft.is_alone()).await;
            tracing::warn!(
                "no majority of the nodes answers: what needs their word is left undone"
            );
            raft.give_up();
            std::future::pending().await
        };
        tokio::select! {
            is_clean = self.drain_in_order() => is_clean,
            is_clean = hopeless => is_clean,
        }
    }

    async fn drain_in_order(mut self) -> bool {
        let mut is_clean = true;
        self.raft.step_aside().await;
        self.started.stops.dumps.cancel();
        self.started.homes.stop().cancel();
        if let Err(error) = self.started.gateway.drain().await {
            tracing::error!(%error, "the last acknowledgements could not be saved");
            is_clean = false;
        }
        // Before the sources: consumers are served elsewhere while these move.
        if let Err(error) = self.started.homes.drain().await {
            tracing::warn!(%error, "the homes of subscriptions were not given back");
        }
        self.sources.hand_over(self.stranded.clone()).await;
        self.started.stops.part.cancel();
        self.started.orders.close();
        self.started.orders.wait().await;
        self.started.dumps.drain().await;
        self.started.stops.agents.cancel();
        is_clean &= self.reconciler.await.is_ok();
        for task in &mut self.part {
            is_clean &= task.join().await.is_ok();
        }
        self.logs.close().await;
        self.started.door.close();
        self.started.stops.servers.cancel();
        for server in &mut self.servers {
            is_clean &= server.join().await.is_ok();
        }
        self.raft.stop().await;
        is_clean
    }
}

/// Adds what the configuration declares, replicas after the sources that they name. What cannot be
/// set up must not hold up the node; the tracker owns the attempt.
fn add_configured(
    config: &Config,
    sources: &Arc<Sources>,
    replicas: &Arc<Replicas>,
    orders: &TaskTracker,
) {
    let (sources, replicas) = (Arc::clone(sources), Arc::clone(replicas));
    let (wanted_sources, wanted_replicas) = (config.source.clone(), config.replica.clone());
    let added = orders.clone();
    orders.spawn(async move {
        let each = wanted_sources
            .iter()
            .map(|(name, section)| sources.add_configured(name, section));
        futures_util::future::join_all(each).await;
        for (name, section) in wanted_replicas {
            let replicas = Arc::clone(&replicas);
            added.spawn(async move { replicas.add_configured(&name, &section).await });
        }
    });
}

fn node_info(config: &Config, (listen, metrics): (SocketAddr, SocketAddr)) -> NodeInfo {
    NodeInfo {
        name: config.node.name.clone(),
        started_at: unix_now_micros(),
        data_dir: config.node.data_dir.clone(),
        listen,
        metrics,
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let code = pgcapture_engine::codes::node::ADDRESS_IN_USE.code;
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{code}: cannot listen on {address}"))
}
