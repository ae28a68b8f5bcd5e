//! Nodes in one process, each on a runtime of its own, so that one can be killed like a process: its
//! tasks end where they are, its connections break, its address refuses.

use std::{future::Future, net::SocketAddr, path::Path, time::Duration};

use pgcapture_actors::{
    consensus::{Consensus as _, ProposeError},
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Answer, Command, OnGap, Origin, Source, Spoken},
    lsn::PgTime,
};
use pgcapture_node::{
    peers::Peers,
    raft::{Door, GroupStatus, Pace, RaftConsensus, RaftError, Wish, enter},
    rpc::raft::RaftService,
    store::Store,
};
use pgcapture_proto::peer::v1::raft_server::RaftServer;
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::watch};
use tonic::transport::{Server, server::TcpIncoming};

/// Nothing here takes longer; what does is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where a node is and where its data lies; what a restart needs.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Where the others reach it.
    pub(crate) address: String,
    pub(crate) folder: TempDir,
    /// The versions of the protocol that the node speaks which is started here.
    pub(crate) spoken: Spoken,
}

impl Place {
    /// A place on a free port.
    pub(crate) fn new(name: &str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap();
        Self {
            name: name.to_owned(),
            listen,
            address: listen.to_string(),
            folder: tempfile::tempdir().unwrap(),
            spoken: Spoken::OURS,
        }
    }

    /// A place of a node of another version.
    pub(crate) fn speaking(name: &str, oldest: u32, newest: u32) -> Self {
        Self {
            spoken: Spoken { oldest, newest },
            ..Self::new(name)
        }
    }

    /// Starts the node that lives here.
    pub(crate) fn start(&self, peers: &[String]) -> Starting {
        self.start_held(peers, watch::channel(false).1)
    }

    /// The same, but a store that belongs to a cluster is not acted for while `is_held`: the node answers
    /// others, and is not behind its door yet.
    pub(crate) fn start_held(&self, peers: &[String], is_held: watch::Receiver<bool>) -> Starting {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let wish = Wish {
            name: self.name.clone(),
            address: self.address.clone(),
            peers: peers.to_vec(),
        };
        let started = runtime.spawn(run(
            self.folder.path().to_owned(),
            self.listen,
            wish,
            (self.spoken, is_held),
        ));
        Starting { runtime, started }
    }
}

/// A member and what serves the others; dropping that ends it.
type Started = Result<(RaftConsensus, Task<Result<(), tonic::transport::Error>>), RaftError>;

/// A node on its way.
#[derive(Debug)]
pub(crate) struct Starting {
    runtime: Runtime,
    started: tokio::task::JoinHandle<Started>,
}

impl Starting {
    /// Waits until it is a member.
    pub(crate) async fn ready(self) -> Node {
        let (raft, server) = soon("a node starts", self.started).await.unwrap().unwrap();
        Node {
            raft,
            _server: server,
            runtime: Some(self.runtime),
        }
    }

    /// Ends it on its way.
    pub(crate) async fn stop(self) {
        end(self.runtime).await;
    }

    /// Waits until it says why it cannot be one.
    pub(crate) async fn refused(self) -> RaftError {
        let ended = soon("a node is refused", self.started).await.unwrap();
        end(self.runtime).await;
        ended.map(drop).unwrap_err()
    }
}

/// A running node. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) raft: RaftConsensus,
    _server: Task<Result<(), tonic::transport::Error>>,
    runtime: Option<Runtime>,
}

impl Node {
    /// Ends it as `kill -9` ends a process, and waits until its files are free.
    pub(crate) async fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            end(runtime).await;
        }
    }

    /// Runs something on the node.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(RaftConsensus) -> std::pin::Pin<Box<dyn Future<Output = T> + Send>>,
    ) -> T {
        let runtime = self.runtime.as_ref().unwrap();
        runtime.spawn(work(self.raft.clone())).await.unwrap()
    }

    pub(crate) async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        self.run(|raft| Box::pin(async move { raft.propose(command).await }))
            .await
    }

    pub(crate) async fn wait(
        &self,
        what: &str,
        is_so: impl FnMut(&GroupStatus) -> bool + Send,
    ) -> GroupStatus {
        let waited = tokio::time::timeout(PATIENCE, self.raft.wait_until(is_so)).await;
        let status = self.raft.status();
        assert!(waited.is_ok(), "{what}: {status:?}");
        status
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raft.leadership().borrow().is_me
    }

    pub(crate) fn name(&self) -> &str {
        &self.raft.identity().name
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Ends everything on a runtime where it is, and waits for that.
pub(crate) async fn end(runtime: Runtime) {
    let ended = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE));
    ended.await.unwrap();
}

/// Awaits what must not take long.
pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

async fn run(
    folder: std::path::PathBuf,
    listen: SocketAddr,
    wish: Wish,
    (spoken, mut is_held): (Spoken, watch::Receiver<bool>),
) -> Started {
    let store = open(&folder).await?;
    let door = Door::of(&wish, &store)?.speaking(spoken);
    let listener = tokio::net::TcpListener::bind(listen).await.unwrap();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = RaftServer::new(RaftService { door: door.clone() });
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    let server = spawn(TaskKind::Server, "peers", serving);
    let peers = Peers::default();
    enter(&store, &wish, &peers, &door).await?;
    // Whoever held it may be gone: go on.
    drop(is_held.wait_for(|is_held| !is_held).await);
    let raft = RaftConsensus::start_speaking(store, Pace::default(), peers, spoken).await?;
    door.open(raft.clone());
    raft.recover().await?;
    raft.introduce(&wish).await?;
    Ok((raft, server))
}

async fn open(folder: &Path) -> Result<Store, RaftError> {
    let folder = folder.to_owned();
    let opened = tokio::task::spawn_blocking(move || Store::open(&folder)).await;
    Ok(opened.unwrap()?)
}

/// Three nodes that have found each other and all vote.
pub(crate) async fn three_nodes() -> (Vec<Place>, Vec<Node>) {
    let places: Vec<Place> = ["n1", "n2", "n3"].map(Place::new).into();
    let nodes = start_all(&places).await;
    (places, nodes)
}

/// The same at places that are there already.
pub(crate) async fn start_all(places: &[Place]) -> Vec<Node> {
    let peers = addresses(places);
    let starting: Vec<Starting> = places.iter().map(|place| place.start(&peers)).collect();
    let mut nodes = Vec::new();
    for starting in starting {
        nodes.push(starting.ready().await);
    }
    for node in &nodes {
        node.wait("three vote", |status| voters(status) == 3).await;
    }
    nodes
}

pub(crate) fn addresses(places: &[Place]) -> Vec<String> {
    places.iter().map(|place| place.address.clone()).collect()
}

pub(crate) fn voters(status: &GroupStatus) -> usize {
    status
        .members
        .iter()
        .filter(|member| member.is_voter)
        .count()
}

/// Index of the node that leads, once one does.
pub(crate) async fn leader(nodes: &[Node]) -> usize {
    let leads = |node: &Node| {
        let mut leadership = node.raft.leadership();
        async move { leadership.wait_for(|now| now.is_me).await.map(drop) }
    };
    let (_, index, _) = soon(
        "somebody leads",
        futures_util::future::select_all(nodes.iter().map(|node| Box::pin(leads(node)))),
    )
    .await;
    index
}

pub(crate) fn add_source(name: &str) -> Command {
    Command::AddSource(Box::new(Source {
        name: name.to_owned(),
        stream: name.to_owned(),
        url: format!("postgres://pgcapture@db/{name}"),
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
    }))
}

pub(crate) fn assign(name: &str, after: u64) -> Command {
    Command::Assign {
        name: name.to_owned(),
        node: "n1".to_owned(),
        after: Epoch(after),
    }
}
