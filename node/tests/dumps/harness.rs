//! A node's services of dumps on a free port, over a store in a folder and a scripted replica.

use std::{sync::Arc, time::Duration};

use pgcapture_actors::{
    consensus::Consensus,
    dump::{DumpControllerHandle, RowReader},
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{
        Command, DEFAULT_LAG_MAX, DEFAULT_RANGES_MAX, OnGap, Origin, Replica, ReplicaKind, Source,
    },
    lsn::PgTime,
};
use pgcapture_node::{
    raft::RaftConsensus,
    rpc::{agent::AgentService, dump_control::DumpControlService, dumps::DumpsService},
};
use pgcapture_proto::{
    admin::v1::{
        Dump, GetDumpRequest, ListDumpsRequest, dumps_client::DumpsClient,
        dumps_server::DumpsServer,
    },
    pgcapture::{
        agent_client::AgentClient, agent_server::AgentServer,
        db_log_controller_client::DbLogControllerClient,
        db_log_controller_server::DbLogControllerServer,
    },
};
use tempfile::TempDir;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Channel, Server};

use crate::reader::ScriptedReader;

/// Far beyond what anything here takes: reaching it is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test as the node runs: an actix system on a multi-thread runtime.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    };
    actix::System::with_tokio_rt(runtime).block_on(async {
        tokio::time::timeout(2 * PATIENCE, test)
            .await
            .expect("the test ends");
    });
}

/// A node with source `shop`; its stream has the same name.
pub(crate) struct Node {
    pub(crate) store: Arc<RaftConsensus>,
    pub(crate) reader: Arc<ScriptedReader>,
    pub(crate) stop: CancellationToken,
    channel: Channel,
    _server: Task<()>,
    _folder: TempDir,
}

impl Node {
    /// A node whose source has a replica.
    pub(crate) async fn start() -> Self {
        let node = Self::without_replica().await;
        node.propose(Command::AddReplica(Box::new(Replica {
            name: "r1".to_owned(),
            source: "shop".to_owned(),
            url: "postgres://scripted/shop".to_owned(),
            password: None,
            kind: ReplicaKind::Standby,
            system_identifier: 7,
            ranges_max: DEFAULT_RANGES_MAX,
            lag_max: DEFAULT_LAG_MAX,
            created_at: PgTime(1),
        })))
        .await;
        node
    }

    pub(crate) async fn without_replica() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(RaftConsensus::alone(folder.path(), "n1").await.unwrap());
        let reader = Arc::new(ScriptedReader::default());
        let consensus: Arc<dyn Consensus> = Arc::<RaftConsensus>::clone(&store);
        let rows: Arc<dyn RowReader> = Arc::<ScriptedReader>::clone(&reader);
        let dumps = DumpControllerHandle::start(Arc::clone(&consensus), Arc::clone(&rows));
        let (orders, stop) = (TaskTracker::new(), CancellationToken::new());
        let admin = DumpsService {
            consensus: Arc::clone(&consensus),
            dumps: dumps.clone(),
            orders: orders.clone(),
            stop: stop.clone(),
        };
        let control = DumpControlService {
            consensus: Arc::clone(&consensus),
            dumps: dumps.clone(),
            ranges: Arc::new(dumps.clone()),
            orders,
            stop: stop.clone(),
        };
        let agent = AgentService::new(consensus, rows, dumps);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Server::builder()
            .add_service(DumpsServer::new(admin))
            .add_service(DbLogControllerServer::new(control))
            .add_service(AgentServer::new(agent))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = spawn(TaskKind::Server, "grpc", async move {
            serving.await.unwrap();
        });
        let channel = Channel::from_shared(format!("http://{address}"));
        let node = Self {
            store,
            reader,
            stop,
            channel: channel.unwrap().connect().await.unwrap(),
            _server: server,
            _folder: folder,
        };
        node.add_source("shop").await;
        node
    }

    pub(crate) async fn add_source(&self, name: &str) {
        self.propose(Command::AddSource(Box::new(Source {
            name: name.to_owned(),
            stream: name.to_owned(),
            url: format!("postgres://scripted/{name}"),
            password: None,
            slot: format!("{name}_pgcapture"),
            publication: format!("pgcapture_{name}"),
            tables: vec!["public.*".to_owned()],
            exclude: Vec::new(),
            paused: false,
            epoch: Epoch(0),
            created_at: PgTime(1),
            on_gap: OnGap::Halt,
            origin: Origin::Command,
            owns_publication: true,
        })))
        .await;
    }

    async fn propose(&self, command: Command) {
        self.store.propose(command).await.unwrap();
    }

    pub(crate) fn admin(&self) -> DumpsClient<Channel> {
        DumpsClient::new(self.channel.clone())
    }

    pub(crate) fn control(&self) -> DbLogControllerClient<Channel> {
        DbLogControllerClient::new(self.channel.clone())
    }

    pub(crate) fn agent(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone())
    }

    pub(crate) async fn dump(&self, id: &str) -> Dump {
        let id = id.to_owned();
        let dump = self.admin().get_dump(GetDumpRequest { id }).await;
        dump.unwrap().into_inner()
    }

    /// The newest dump.
    pub(crate) async fn newest(&self) -> Dump {
        let all = self.admin().list_dumps(ListDumpsRequest::default()).await;
        all.unwrap().into_inner().dumps.swap_remove(0)
    }
}
