//! The gRPC listener: streams, administration, health and reflection on one port.

use std::{net::SocketAddr, sync::Arc, task::Poll};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use pgcapture_actors::{
    dump::{DumpControllerHandle, RangeSource, RowReader},
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::codes;
use pgcapture_proto::{
    FILE_DESCRIPTOR_SET,
    admin::v1::{
        admin_server::AdminServer, cluster_server::ClusterServer, dumps_server::DumpsServer,
        replicas_server::ReplicasServer,
    },
    peer::v1::{
        liveness_server::LivenessServer, peer_log_server::PeerLogServer,
        peer_ranges_server::PeerRangesServer, raft_server::RaftServer,
    },
    pgcapture::{agent_server::AgentServer, db_log_controller_server::DbLogControllerServer},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    config::{Config, read_secret},
    events::Events,
    group::Group,
    homes::Homes,
    raft::Door,
    replicas::Replicas,
    rpc::{
        admin::{self, AdminService},
        agent::{self, AgentService},
        auth::{NodeCheck, TokenCheck},
        capture::{self, CaptureService},
        cluster::{self, ClusterService},
        dump_control::{self, DumpControlService},
        dumps::{self, DumpsService},
        forward::{Forward, admin::ForwardingAdmin, dumps::ForwardingDumps},
        liveness::LivenessService,
        peer_log::{self, PeerLogService},
        peer_ranges::{self, PeerRangesService},
        raft::{self, MESSAGE_BYTES_MAX, RaftService},
        replicas::{self, ReplicasService},
    },
    tls,
};

/// The largest administration request; a definition of a source has some KiB.
const ADMIN_REQUEST_BYTES_MAX: usize = 1 << 20;

/// The largest schedule: 100,000 ranges, as a dump may have, with long names.
const SCHEDULE_BYTES_MAX: usize = 16 << 20;

/// What the listener needs to be protected; read before anything starts.
#[derive(Clone)]
pub(super) struct Credentials {
    tls: Option<ServerTlsConfig>,
    check: TokenCheck,
    /// For what nodes ask of each other.
    nodes: NodeCheck,
}

impl Credentials {
    /// Reads the files and the token.
    pub(super) fn read(config: &Config) -> anyhow::Result<Self> {
        let token = config.auth.token.as_ref().map(read_secret).transpose()?;
        let check = TokenCheck::new(token.as_deref());
        Ok(Self {
            tls: tls::server(config)?,
            nodes: NodeCheck::new(check.clone(), tls::authority(config)?),
            check,
        })
    }
}

/// The other nodes, as the services see them.
#[derive(Debug)]
pub(super) struct Others {
    /// Who belongs to the group.
    pub(super) group: Arc<dyn Group>,
    /// The way to them.
    pub(super) forward: Forward,
    /// What happened.
    pub(super) events: Events,
}

/// What the services of dumps stand on.
pub(super) struct Readers {
    /// Where rows are read from.
    pub(super) replicas: Arc<Replicas>,
    /// What hands ranges out while this node leads.
    pub(super) dumps: DumpControllerHandle,
    /// Ranges of whichever node leads.
    pub(super) ranges: Arc<dyn RangeSource>,
    /// What reads rows.
    pub(super) rows: Arc<dyn RowReader>,
}

/// Everything that is served beside health and reflection.
pub(super) struct Services {
    admin: ForwardingAdmin,
    cluster: ClusterService,
    replicas: ReplicasService,
    dumps: ForwardingDumps,
    control: DumpControlService,
    agent: AgentService,
    peers: PeerServices,
}

/// What other nodes ask.
pub(super) struct PeerServices {
    /// Agreeing.
    pub(super) door: Door,
    /// Signs of life.
    pub(super) liveness: LivenessService,
    /// Reading logs that are written here.
    pub(super) log: PeerLogService,
    /// Ranges of dumps, while this node leads.
    pub(super) ranges: PeerRangesService,
    /// Sessions of subscriptions whose home is here.
    pub(super) homes: Homes,
}

impl Services {
    /// Makes the services of dumps beside those of the administration; `stop` ends their streams.
    pub(super) fn new(
        admin: AdminService,
        others: Others,
        readers: Readers,
        peers: PeerServices,
        stop: CancellationToken,
    ) -> Self {
        let Readers {
            replicas,
            dumps,
            ranges,
            rows,
        } = readers;
        let consensus = Arc::clone(&admin.consensus);
        let orders = admin.orders.clone();
        Self {
            admin: ForwardingAdmin {
                local: admin,
                forward: others.forward.clone(),
                events: others.events.clone(),
                homes: peers.homes.clone(),
            },
            cluster: ClusterService {
                group: others.group,
                consensus: Arc::clone(&consensus),
                forward: others.forward.clone(),
                events: others.events,
                orders: orders.clone(),
            },
            replicas: ReplicasService {
                replicas,
                dumps: dumps.clone(),
                orders: orders.clone(),
            },
            dumps: ForwardingDumps {
                local: DumpsService {
                    consensus: Arc::clone(&consensus),
                    dumps: dumps.clone(),
                    orders: orders.clone(),
                    stop: stop.clone(),
                },
                forward: others.forward,
            },
            control: DumpControlService {
                consensus: Arc::clone(&consensus),
                dumps: dumps.clone(),
                ranges,
                orders,
                stop,
            },
            agent: AgentService::new(consensus, rows, dumps),
            peers,
        }
    }
}

/// What the health service says.
#[derive(Clone)]
pub(super) struct Health {
    reporter: HealthReporter,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

impl Health {
    pub(super) async fn serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    pub(super) async fn not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        let services = [
            "",
            capture::SERVICE_NAME,
            dump_control::SERVICE_NAME,
            agent::SERVICE_NAME,
            admin::SERVICE_NAME,
            cluster::SERVICE_NAME,
            replicas::SERVICE_NAME,
            dumps::SERVICE_NAME,
            raft::SERVICE_NAME,
            peer_log::SERVICE_NAME,
            peer_ranges::SERVICE_NAME,
        ];
        for service in services {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// Serves until `stop`. Health answers without a token: probes have none.
pub(super) async fn serve(
    listener: TcpListener,
    services: Services,
    credentials: Credentials,
    stop: CancellationToken,
) -> anyhow::Result<(SocketAddr, Health, Task<()>)> {
    let address = listener.local_addr()?;
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health { reporter };
    health.not_serving().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (check, nodes) = (credentials.check, credentials.nodes);
    let mut server = builder(credentials.tls)?;
    let PeerServices {
        door,
        liveness,
        log,
        ranges,
        homes,
    } = services.peers;
    let gateway = services.admin.local.gateway.clone();
    let capture = CaptureService::with_homes(gateway, homes);
    let admin = AdminServer::new(services.admin).max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX);
    let cluster = ClusterServer::new(services.cluster);
    let cluster = cluster.max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX);
    let replicas = ReplicasServer::new(services.replicas);
    let replicas = replicas.max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX);
    let dumps = DumpsServer::new(services.dumps);
    let dumps = dumps.max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX);
    let control = DbLogControllerServer::new(services.control);
    let control = control.max_decoding_message_size(SCHEDULE_BYTES_MAX);
    let agent = AgentServer::new(services.agent);
    let liveness = LivenessServer::new(liveness);
    let raft = raft_server(door);
    let peer_log = PeerLogServer::new(log);
    let ranges = PeerRangesServer::new(ranges);
    let router = server
        .add_service(health_service)
        .add_service(InterceptedService::new(capture, check.clone()))
        .add_service(InterceptedService::new(control, check.clone()))
        .add_service(InterceptedService::new(agent, check.clone()))
        .add_service(InterceptedService::new(admin, check.clone()))
        .add_service(InterceptedService::new(cluster, check.clone()))
        .add_service(InterceptedService::new(replicas, check.clone()))
        .add_service(InterceptedService::new(dumps, check.clone()))
        .add_service(InterceptedService::new(liveness, nodes.clone()))
        .add_service(InterceptedService::new(raft, nodes.clone()))
        .add_service(InterceptedService::new(peer_log, nodes.clone()))
        .add_service(InterceptedService::new(ranges, nodes))
        .add_service(InterceptedService::new(
            reflection().build_v1()?,
            check.clone(),
        ))
        .add_service(InterceptedService::new(
            reflection().build_v1alpha()?,
            check,
        ));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let task = spawn(TaskKind::Server, "grpc", async move {
        let served = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the gRPC listener failed");
        }
    });
    Ok((address, health, task))
}

/// Serves other nodes alone, on the listener that everything is served on later, until `stop`: this
/// node needs them before it can serve anything. Calls that run then run on.
pub(super) fn serve_peers(
    listener: TcpListener,
    door: Door,
    credentials: Credentials,
    stop: CancellationToken,
) -> anyhow::Result<PeersAlone> {
    let service = InterceptedService::new(raft_server(door), credentials.nodes);
    let router = builder(credentials.tls)?.add_service(service);
    let let_go = CancellationToken::new();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let incoming = incoming.take_until(stop.cancelled_owned());
    let ended = let_go.clone();
    let incoming = incoming.chain(stream::poll_fn(move |_| {
        ended.cancel();
        Poll::Pending
    }));
    let shutdown = let_go.clone().cancelled_owned();
    let task = spawn(TaskKind::Server, "peers", async move {
        // A connection that was made here knows nothing of what is served later: it is told to go
        // (GOAWAY), what runs on it runs on, and the next call makes another one.
        let served = router.serve_with_incoming_shutdown(incoming, shutdown);
        if let Err(error) = served.await {
            tracing::error!(%error, "the listener for other nodes failed");
        }
    });
    Ok(PeersAlone { task, let_go })
}

/// What serves other nodes alone.
#[derive(Debug)]
pub(super) struct PeersAlone {
    pub(super) task: Task<()>,
    /// It takes no connection any more: whoever comes from now on finds all that is served.
    pub(super) let_go: CancellationToken,
}

fn raft_server(door: Door) -> RaftServer<RaftService> {
    let server = RaftServer::new(RaftService { door });
    server.max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn builder(tls: Option<ServerTlsConfig>) -> anyhow::Result<Server> {
    let server = capture::configure(Server::builder());
    let Some(tls) = tls else {
        return Ok(server);
    };
    let code = codes::config::TLS.code;
    server
        .tls_config(tls)
        .with_context(|| format!("{code}: TLS cannot be set up"))
}
