//! A running node: the order of its start and of its stop.
//!
//! [`start`] reads from top to bottom as the node comes up: store, logs, dumps, gateway, agents,
//! gRPC, HTTP, ready. [`Node::stop`] is the reverse under one deadline. Nothing here decides anything.

mod exposure;
mod server;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use pgcapture_actors::{
    consensus::Consensus,
    cursors::CursorStore,
    dump::{DumpControllerHandle, RowReader},
    gateway::{GatewayHandle, GatewayLimits},
    supervise::Task,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::exposure::refuse_open_listener;
use self::server::{Others, Services};
use crate::{
    config::Config,
    events::{self, Events},
    group::RaftGroup,
    http::{self, Pages},
    logs::Logs,
    peers::Peers,
    raft::{self, Door, Pace, RaftConsensus, RaftError, Wish},
    replicas::{self, Replicas},
    resolver::StreamResolver,
    rpc::{
        admin::{AdminService, NodeInfo},
        forward::Forward,
    },
    sources::{Sources, unix_now_micros},
    store::Store,
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
    orders: TaskTracker,
    reconciler: JoinHandle<()>,
    ready: watch::Sender<bool>,
    health: server::Health,
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
    let parts = Parts::open(config, begun.raft.clone()).await;
    let dumps = parts.start_dumps();
    let gateway = parts.start_gateway(config, &dumps);

    let stop_agents = CancellationToken::new();
    let reconciler = parts.sources.start(stop_agents.clone());

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
    let stop_dumps = CancellationToken::new();
    let readers = (
        Arc::clone(&parts.replicas),
        dumps.clone(),
        Arc::clone(&parts.reader),
    );
    let stop_servers = CancellationToken::new();
    let (others, watching) = begun.others(config, &parts, stop_servers.clone());
    let services = Services::new(admin, others, readers, door.clone(), stop_dumps.clone());
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
        orders,
        reconciler,
        ready,
        health,
        stop_dumps,
        stop_agents,
        stop_servers,
        servers: [grpc, http],
        _events: watching,
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
        if let Err(error) = self.gateway.drain().await {
            tracing::error!(%error, "the last acknowledgements could not be saved");
            is_clean = false;
        }
        self.orders.close();
        self.orders.wait().await;
        self.dumps.drain().await;
        self.stop_agents.cancel();
        is_clean &= self.reconciler.await.is_ok();
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

/// A member of the cluster, and what serves other nodes until everything is served.
struct Begun {
    raft: RaftConsensus,
    channels: Peers,
    peers: Option<Task<()>>,
    stop_peers: CancellationToken,
}

impl Begun {
    /// Brings this node to its cluster, and back what was agreed on.
    async fn begin(
        config: &Config,
        listener: &TcpListener,
        door: &Door,
        credentials: &server::Credentials,
    ) -> anyhow::Result<Self> {
        let data_dir = config.node.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&data_dir)).await?;
        let store = opened.map_err(RaftError::from)?;
        let address = listener.local_addr()?.to_string();
        let wish = Wish {
            name: config.node.name.clone(),
            address: config.node.advertise.clone().unwrap_or(address),
            peers: config.node.peers.clone(),
        };
        let stop_peers = CancellationToken::new();
        let is_alone = wish.peers.is_empty() && store.state().borrow().nodes.len() <= 1;
        let peers = if is_alone {
            None
        } else {
            let listener = listener_again(listener)?;
            let (door, credentials) = (door.clone(), credentials.clone());
            Some(server::serve_peers(
                listener,
                door,
                credentials,
                stop_peers.clone(),
            )?)
        };
        let channels = Peers::new(config)?;
        raft::enter(&store, &wish, &channels).await?;
        let pace = Pace {
            heartbeat: config.raft.heartbeat.0,
            election: config.raft.election.0,
        };
        let raft = RaftConsensus::start(store, pace, channels.clone()).await?;
        door.open(raft.clone());
        raft.recover().await?;
        raft.introduce(&wish).await?;
        Ok(Self {
            raft,
            channels,
            peers,
            stop_peers,
        })
    }

    /// The other nodes, as the services see them, and the memory of what happens to them.
    fn others(
        &self,
        config: &Config,
        parts: &Parts,
        stop: CancellationToken,
    ) -> (Others, Task<()>) {
        let events = Events::default();
        let watching = events::start(
            config.node.name.clone(),
            Arc::clone(&parts.consensus),
            Arc::clone(&parts.sources),
            events.clone(),
            stop,
        );
        let others = Others {
            group: Arc::new(RaftGroup::new(self.raft.clone(), None)),
            forward: Forward {
                node: config.node.name.clone(),
                peers: self.channels.clone(),
                consensus: Arc::clone(&parts.consensus),
            },
            events,
        };
        (others, watching)
    }
}

/// Opens the same listener once more: both take connections from one queue.
fn listener_again(listener: &TcpListener) -> anyhow::Result<TcpListener> {
    use std::os::fd::AsFd as _;
    let again = listener.as_fd().try_clone_to_owned()?;
    Ok(TcpListener::from_std(std::net::TcpListener::from(again))?)
}

/// What a node stands on; nothing of it runs yet.
struct Parts {
    consensus: Arc<dyn Consensus>,
    cursors: Arc<dyn CursorStore>,
    logs: Arc<Logs>,
    sources: Arc<Sources>,
    replicas: Arc<Replicas>,
    reader: Arc<dyn RowReader>,
}

impl Parts {
    /// Opens the logs.
    async fn open(config: &Config, raft: RaftConsensus) -> Self {
        let consensus: Arc<dyn Consensus> = Arc::new(raft.clone());
        let logs = Arc::new(Logs::new(config));
        let sources = Sources::new(config, Arc::clone(&consensus), Arc::clone(&logs));
        let sources = Arc::new(sources);
        sources.open_logs().await;
        let replicas = Replicas::new(config, Arc::clone(&consensus), Arc::clone(&sources));
        Self {
            consensus,
            cursors: Arc::new(raft),
            logs,
            sources,
            replicas: Arc::new(replicas),
            reader: Arc::new(replicas::reader(config.limits.max_row)),
        }
    }

    fn start_dumps(&self) -> DumpControllerHandle {
        DumpControllerHandle::start(Arc::clone(&self.consensus), Arc::clone(&self.reader))
    }

    fn start_gateway(&self, config: &Config, dumps: &DumpControllerHandle) -> GatewayHandle {
        let resolver = StreamResolver::new(self.consensus.state(), Arc::clone(&self.logs));
        GatewayHandle::start(
            Arc::new(resolver),
            Arc::clone(&self.cursors),
            Arc::new(dumps.clone()),
            gateway_limits(config),
        )
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

fn gateway_limits(config: &Config) -> GatewayLimits {
    let limits = &config.limits;
    GatewayLimits {
        sessions_max: usize::try_from(limits.sessions).unwrap_or(usize::MAX),
        subscriptions_max: usize::try_from(limits.subscriptions).unwrap_or(usize::MAX),
        unacked_max: limits.max_unacked,
        in_flight_bytes_max: limits.in_flight.as_len(),
        ack_timeout: limits.ack_timeout.map(|timeout| timeout.0),
        ..GatewayLimits::default()
    }
}
