//! A running node: the order of its start and of its stop.
//!
//! [`start`] reads from top to bottom as the node comes up: store, logs, dumps, gateway, agents,
//! gRPC, HTTP, ready. [`Node::stop`] is the reverse under one deadline. Nothing here decides anything.

mod begin;
mod exposure;
mod membership;
mod parts;
mod server;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use pgcapture_actors::{dump::DumpControllerHandle, gateway::GatewayHandle, supervise::Task};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::exposure::refuse_open_listener;
use self::{
    begin::Begun,
    membership::{take_part, watch_leader},
    parts::Parts,
    server::{PeerServices, Services},
};
use crate::{
    config::Config,
    events::{self, Events},
    homes::Homes,
    http::{self, Pages},
    liveness::Book,
    logs::Logs,
    raft::{Door, RaftConsensus},
    replicas::Replicas,
    rpc::{
        admin::{AdminService, NodeInfo},
        liveness::LivenessService,
        peer_log::PeerLogService,
        peer_ranges::{Controller, PeerRangesService},
    },
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
    door: Door,
    /// Connections of other nodes that were made before everything was served.
    _peers: Option<Task<()>>,
    dumps: DumpControllerHandle,
    deadline: Duration,
    logs: Arc<Logs>,
    gateway: GatewayHandle,
    homes: Homes,
    orders: TaskTracker,
    reconciler: JoinHandle<()>,
    /// What this node does for the cluster.
    part: Vec<Task<()>>,
    ready: watch::Sender<bool>,
    health: server::Health,
    stop_part: CancellationToken,
    stop_dumps: CancellationToken,
    stop_agents: CancellationToken,
    stop_servers: CancellationToken,
    servers: [Task<()>; 2],
    // Only watches: it ends with the node.
    _events: Task<()>,
}

/// Starts a node; returns when it serves.
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
    http::install_metrics();
    let credentials = server::Credentials::read(config)?;
    let grpc_listener = bind(config.node.listen).await?;
    let http_listener = bind(config.node.metrics).await?;

    let door = Door::new(&config.node.name);
    let begun = Begun::begin(config, &grpc_listener, &door, &credentials).await?;
    let address = begun.address.clone();
    let parts = Parts::open(config, begun.raft.clone(), address.clone()).await?;
    let (leader, watching) = watch_leader(&parts.consensus);
    let dumps = parts.start_dumps();
    let ranges = parts.start_ranges(&dumps, leader.clone());
    let gateway = parts.start_gateway(config, ranges);
    let homes = parts.start_homes(&gateway);

    let (book, events) = (Book::default(), Events::default());
    let stop_part = CancellationToken::new();
    let (lease, mut part) = take_part(&parts, &book, &events, &stop_part);
    part.push(watching);
    let stop_agents = CancellationToken::new();
    let reconciler = parts.sources.start(lease, stop_agents.clone());

    let (ready, is_ready) = watch::channel(false);
    let orders = TaskTracker::new();
    let addresses = (grpc_listener.local_addr()?, http_listener.local_addr()?);
    let admin = AdminService {
        info: Arc::new(node_info(config, addresses)),
        ready: is_ready.clone(),
        consensus: Arc::clone(&parts.consensus),
        sources: Arc::clone(&parts.sources),
        logs: Arc::clone(&parts.logs),
        gateway: gateway.clone(),
        orders: orders.clone(),
    };
    let census = book.clone();
    let liveness = LivenessService {
        consensus: Arc::clone(&parts.consensus),
        book,
        orders: orders.clone(),
        stop: stop_part.clone(),
    };
    let stop_dumps = CancellationToken::new();
    let readers = (
        Arc::clone(&parts.replicas),
        dumps.clone(),
        Arc::clone(&parts.reader),
    );
    let stop_servers = CancellationToken::new();
    let peers = PeerServices {
        door: door.clone(),
        liveness,
        log: PeerLogService {
            node: config.node.name.clone(),
            cluster: parts.cluster.clone(),
            state: parts.consensus.state(),
            logs: Arc::clone(&parts.logs),
            stop: stop_servers.clone(),
        },
        ranges: PeerRangesService::new(Controller {
            cluster: parts.cluster.clone(),
            address,
            leader,
            ranges: Arc::new(dumps.clone()),
            orders: orders.clone(),
            stop: stop_dumps.clone(),
        }),
        homes: homes.clone(),
    };
    let recording = events::start(
        config.node.name.clone(),
        Arc::clone(&parts.consensus),
        Arc::clone(&parts.sources),
        events.clone(),
        stop_servers.clone(),
    );
    let others = parts.others(&begun.raft, &census, events);
    let services = Services::new(admin, others, readers, peers, stop_dumps.clone());
    let (listen, health, grpc) =
        server::serve(grpc_listener, services, credentials, stop_servers.clone()).await?;
    let pages = Pages {
        ready: is_ready,
        sources: Arc::clone(&parts.sources),
    };
    let (metrics, http) = http::serve(http_listener, pages, stop_servers.clone())?;

    begun.stop_peers.cancel();
    add_configured(config, &parts.sources, &parts.replicas, &orders);
    health.serving().await;
    ready.send_replace(true);
    tell_ready(config, listen, metrics);
    Ok(Node {
        listen,
        metrics,
        sources: parts.sources,
        replicas: parts.replicas,
        raft: begun.raft,
        _peers: begun.peers,
        door,
        dumps,
        deadline: config.node.drain_timeout.0,
        logs: parts.logs,
        gateway,
        homes,
        orders,
        reconciler,
        part,
        ready,
        health,
        stop_part,
        stop_dumps,
        stop_agents,
        stop_servers,
        servers: [grpc, http],
        _events: recording,
    })
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
    /// Stops in order: no new sessions, sessions drained, dumps and agents drained, logs closed. Returns whether all of it ended within the configured time; what did not is cut off
    /// and loses nothing that is durable.
    pub async fn stop(self) -> bool {
        let deadline = self.deadline;
        let began = Instant::now();
        self.ready.send_replace(false);
        self.health.not_serving().await;
        tracing::info!("stopping: draining sessions and agents");
        let is_clean = tokio::time::timeout(deadline, self.drain()).await;
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

    async fn drain(mut self) -> bool {
        let mut is_clean = true;
        self.raft.step_aside().await;
        self.stop_dumps.cancel();
        self.homes.stop().cancel();
        if let Err(error) = self.gateway.drain().await {
            tracing::error!(%error, "the last acknowledgements could not be saved");
            is_clean = false;
        }
        self.sources.hand_over().await;
        self.stop_part.cancel();
        if let Err(error) = self.homes.drain().await {
            tracing::warn!(%error, "the homes of subscriptions were not given back");
        }
        self.orders.close();
        self.orders.wait().await;
        self.dumps.drain().await;
        self.stop_agents.cancel();
        is_clean &= self.reconciler.await.is_ok();
        for task in &mut self.part {
            is_clean &= task.join().await.is_ok();
        }
        self.logs.close().await;
        self.door.close();
        self.stop_servers.cancel();
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
