//! Nodes in one process: each has logs and a listener; the agreed state is in the test's hand.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use pgcapture_actors::{
    log::{ChangeLog, LogWriter},
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Command, Node, OnGap, Origin, Source, State},
    lsn::PgTime,
};
use pgcapture_node::{
    config::Config,
    logs::Logs,
    peer_log::{RemoteLog, readers::RemoteReaders},
    peers::Peers,
    routes::{Known, Routes},
    rpc::peer_log::PeerLogService,
};
use pgcapture_proto::peer::v1::{LogName, peer_log_server::PeerLogServer};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

pub(crate) const SOURCE: &str = "shop";

pub(crate) const CLUSTER: &str = "c1";

/// The cluster: what it agreed on, and its nodes.
pub(crate) struct Cluster {
    pub(crate) state: watch::Sender<Arc<State>>,
    pub(crate) nodes: BTreeMap<&'static str, TestNode>,
}

/// One node.
pub(crate) struct TestNode {
    pub(crate) address: SocketAddr,
    pub(crate) logs: Arc<Logs>,
    pub(crate) routes: Routes,
    pub(crate) peers: Peers,
    server: Option<Task<()>>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts nodes of these names; the first owns the source under epoch 1.
    pub(crate) async fn start(names: &[&'static str]) -> Self {
        Self::start_keeping(names, 1 << 30).await
    }

    /// The same with logs that keep so many bytes.
    pub(crate) async fn start_keeping(names: &[&'static str], retention: u64) -> Self {
        let (state, _) = watch::channel(Arc::default());
        let mut cluster = Self {
            state,
            nodes: BTreeMap::new(),
        };
        cluster.apply(Command::AddSource(Box::new(source())));
        for (id, name) in names.iter().enumerate() {
            let node = TestNode::start(name, &cluster.state, retention).await;
            cluster.apply(Command::AddNode(Node {
                name: (*name).to_owned(),
                id: id as u64 + 1,
                address: node.address.to_string(),
                joined_at: PgTime(0),
            }));
            cluster.nodes.insert(name, node);
        }
        cluster.assign(names[0]);
        cluster
    }

    pub(crate) fn apply(&self, command: Command) {
        self.state.send_modify(|state| {
            Arc::make_mut(state).apply(command).unwrap();
        });
    }

    /// Gives the source to a node under the next epoch.
    pub(crate) fn assign(&self, node: &str) {
        let after = self.epoch();
        self.apply(Command::Assign {
            name: SOURCE.to_owned(),
            node: node.to_owned(),
            after,
        });
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.state.borrow().sources[SOURCE].epoch
    }

    pub(crate) fn node(&self, name: &str) -> &TestNode {
        &self.nodes[name]
    }

    /// Opens the node's log for writing, as the agent of the newest epoch does.
    pub(crate) async fn writer(&self, name: &str) -> Box<dyn LogWriter> {
        let log = self.log(name);
        log.open_writer(self.epoch()).await.unwrap()
    }

    /// The log of a node, opened on the first call.
    pub(crate) fn log(&self, name: &str) -> Arc<dyn ChangeLog> {
        self.node(name).logs.open(SOURCE).unwrap()
    }

    /// Ends a node's listener and every connection to it, as a killed process does.
    pub(crate) fn kill(&mut self, name: &str) {
        self.nodes.get_mut(name).unwrap().server = None;
    }

    /// The log of `owner` as `reader` reads it under `epoch`.
    pub(crate) async fn remote(
        &self,
        (reader, owner): (&str, &str),
        epoch: u64,
    ) -> Result<Arc<RemoteLog>, pgcapture_actors::log::LogError> {
        let address = self.node(owner).address.to_string();
        let channel = self.node(reader).peers.channel(&address).unwrap();
        RemoteLog::connect(channel, owner, log_name(epoch)).await
    }
}

pub(crate) fn log_name(epoch: u64) -> LogName {
    LogName {
        cluster: CLUSTER.to_owned(),
        source: SOURCE.to_owned(),
        epoch,
    }
}

impl TestNode {
    async fn start(name: &str, state: &watch::Sender<Arc<State>>, retention: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::from_text("test.toml", "").unwrap();
        config.node.data_dir = folder.path().to_owned();
        config.log.segment.0 = 64 << 10;
        config.log.retention.size.0 = retention;
        let logs = Arc::new(Logs::new(&config));
        let peers = Peers::new(&config).unwrap();
        let known = Known {
            node: name.to_owned(),
            cluster: CLUSTER.to_owned(),
            state: state.subscribe(),
            logs: Arc::clone(&logs),
            peers: peers.clone(),
        };
        let service = PeerLogService {
            node: name.to_owned(),
            cluster: CLUSTER.to_owned(),
            state: state.subscribe(),
            logs: Arc::clone(&logs),
            readers: RemoteReaders::default(),
            stop: CancellationToken::new(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self {
            address,
            logs,
            routes: Routes::new(known),
            peers,
            server: Some(serve(listener, service)),
            _folder: folder,
        }
    }
}

/// Serves in a runtime of its own: with the task every connection ends, as with a process.
fn serve(listener: TcpListener, service: PeerLogService) -> Task<()> {
    let listener = listener.into_std().unwrap();
    spawn(TaskKind::Server, "node", async move {
        let stopped = CancellationToken::new();
        let end = stopped.clone().drop_guard();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                let server = Server::builder().add_service(PeerLogServer::new(service));
                tokio::select! {
                    served = server.serve_with_incoming(incoming) => served.unwrap(),
                    () = stopped.cancelled() => {}
                }
            });
        });
        std::future::pending::<()>().await;
        drop((end, thread));
    })
}

fn source() -> Source {
    Source {
        name: SOURCE.to_owned(),
        stream: SOURCE.to_owned(),
        url: "postgres://pgcapture@db/shop".to_owned(),
        password: None,
        slot: "slot".to_owned(),
        publication: "publication".to_owned(),
        tables: vec!["public.*".to_owned()],
        exclude: Vec::new(),
        paused: false,
        epoch: Epoch(0),
        created_at: PgTime(0),
        on_gap: OnGap::Halt,
        origin: Origin::Command,
        owns_publication: true,
    }
}
