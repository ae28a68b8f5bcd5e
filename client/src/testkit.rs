//! A mock gateway for the tests of consumers: real gRPC on a port of its own, no cluster.
//!
//! ```
//! use pgcapture::{Client, testkit::{Gateway, row}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> pgcapture::Result<()> {
//! let gateway = Gateway::start().await;
//! gateway.insert(row("public.orders").set("id", 1_i64)).commit();
//!
//! let client = Client::builder(gateway.endpoints()).connect().await?;
//! let mut changes = client.consumer("test").stream("orders").subscribe_raw().await?;
//! changes.try_next().await?.expect("a change").ack().await?;
//! gateway.wait_for_acks(1).await;
//! # Ok(())
//! # }
//! ```
//!
//! It keeps one log for all streams and a position per uri. It knows the parameters `Tables`,
//! `Operations`, `Boundaries`, `Truncate`, `Gaps`, `CommitTime`, `BatchSize` and `MaxUnacked`
//! and ignores others. Nothing is durable, and nothing times out: `expire` does that by hand.
//! Its methods panic on misuse, as test helpers should.

mod dumps;
mod log;
mod rows;
mod session;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use pgcapture_proto::{
    admin::v1::dumps_server::DumpsServer,
    pgcapture::{self as proto, change::Operation, db_log_gateway_server::DbLogGatewayServer},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Server};

use log::{Log, change, truncation};
use session::Service;

pub use log::Answer;
pub use rows::{TestRow, row};

/// Flow-control windows as a real node has them.
const WINDOW: u32 = 8 * 1024 * 1024;

/// What all nodes of the mock share.
#[derive(Debug)]
pub(crate) struct Shared {
    log: Mutex<Log>,
    /// Counts what happened, for whoever waits for something.
    version: watch::Sender<u64>,
    /// Counts disconnects.
    disconnects: watch::Sender<u64>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn touch(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

#[derive(Debug)]
struct Node {
    address: SocketAddr,
    down: CancellationToken,
}

/// A mock gateway of one or more nodes. Dropping it takes the nodes down.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    nodes: Vec<Node>,
    _servers: JoinSet<()>,
}

impl Gateway {
    /// Starts one node on a free port of the loopback interface.
    pub async fn start() -> Self {
        Self::cluster(1).await
    }

    /// Starts several nodes that share everything.
    pub async fn cluster(nodes: usize) -> Self {
        let shared = Arc::new(Shared {
            log: Mutex::default(),
            version: watch::Sender::new(0),
            disconnects: watch::Sender::new(0),
        });
        let mut servers = JoinSet::new();
        let mut started = Vec::new();
        for _ in 0..nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener
                .local_addr()
                .expect("a bound listener has an address");
            let down = CancellationToken::new();
            let service = Service {
                shared: Arc::clone(&shared),
                down: down.clone(),
            };
            let dumps = dumps::Service {
                shared: Arc::clone(&shared),
            };
            let stop = down.clone();
            servers.spawn(async move {
                let served = Server::builder()
                    .initial_stream_window_size(WINDOW)
                    .initial_connection_window_size(WINDOW)
                    .add_service(DbLogGatewayServer::new(service))
                    .add_service(DumpsServer::new(dumps))
                    .serve_with_incoming_shutdown(
                        TcpListenerStream::new(listener),
                        stop.cancelled_owned(),
                    );
                served.await.expect("the mock gateway serves");
            });
            started.push(Node { address, down });
        }
        Self {
            shared,
            nodes: started,
            _servers: servers,
        }
    }

    /// The addresses for [`Client::builder`](crate::Client::builder).
    #[must_use]
    pub fn endpoints(&self) -> String {
        let all: Vec<_> = self
            .nodes
            .iter()
            .map(|node| format!("http://{}", node.address))
            .collect();
        all.join(",")
    }

    /// Takes a node down for good.
    pub fn stop_node(&self, node: usize) -> &Self {
        if let Some(node) = self.nodes.get(node) {
            node.down.cancel();
        }
        self
    }

    /// An INSERT in the open transaction.
    pub fn insert(&self, row: TestRow) -> &Self {
        self.change(Operation::Insert, Some(row), None)
    }

    /// An UPDATE that did not change the key.
    pub fn update(&self, row: TestRow) -> &Self {
        self.change(Operation::Update, Some(row), None)
    }

    /// An UPDATE with the old key, or the old row under REPLICA IDENTITY FULL.
    pub fn update_from(&self, old: TestRow, new: TestRow) -> &Self {
        self.change(Operation::Update, Some(new), Some(old))
    }

    /// A DELETE of the row with this key.
    pub fn delete(&self, key: TestRow) -> &Self {
        self.change(Operation::Delete, None, Some(key))
    }

    /// A TRUNCATE of tables, each as `schema.table`.
    pub fn truncate(&self, tables: &[&str]) -> &Self {
        self.shared.log().push(truncation(tables));
        self
    }

    /// Commits the open transaction now: its changes are delivered.
    pub fn commit(&self) -> &Self {
        self.commit_at(SystemTime::now())
    }

    /// Commits the open transaction at a time.
    pub fn commit_at(&self, time: SystemTime) -> &Self {
        self.shared.log().commit(time);
        self.shared.touch();
        self
    }

    /// Delivers these existing rows as one range of a dump, between the transactions before and
    /// after. A negative answer for one of them, and a lost session, bring the whole range back.
    pub fn dump(&self, rows: impl IntoIterator<Item = TestRow>) -> &Self {
        let rows = rows.into_iter().collect();
        self.shared.log().dump(rows, None);
        self.shared.touch();
        self
    }

    /// Rows that exist: delivered to whoever asks for them by [`Client::dump`](crate::Client::dump).
    pub fn existing(&self, rows: impl IntoIterator<Item = TestRow>) -> &Self {
        self.shared.log().existing.extend(rows);
        self
    }

    /// Declares a gap.
    pub fn gap(&self, reason: &str) -> &Self {
        self.shared.log().gap(reason);
        self.shared.touch();
        self
    }

    /// Cuts every stream; what was not acknowledged is delivered again.
    pub fn disconnect(&self) -> &Self {
        self.shared.disconnects.send_modify(|count| *count += 1);
        self
    }

    /// Delivers again what is in flight, as after the acknowledgement time-out.
    pub fn expire(&self) -> &Self {
        self.shared.log().expire();
        self.shared.touch();
        self
    }

    /// Forgets all acknowledgements, as a node that dies before it has stored them.
    pub fn forget_acks(&self) -> &Self {
        self.shared.log().forget_acks();
        self.shared.touch();
        self
    }

    /// Refuses the next attempt to open a stream.
    pub fn reject(&self, code: Code, message: &str) -> &Self {
        self.shared
            .log()
            .rejections
            .push_back((code, message.to_owned()));
        self
    }

    /// What sessions opened with, in order.
    #[must_use]
    pub fn inits(&self) -> Vec<proto::CaptureInit> {
        self.shared.log().inits.clone()
    }

    /// The authorization headers that sessions opened with, in order.
    #[must_use]
    pub fn authorizations(&self) -> Vec<Option<String>> {
        self.shared.log().authorizations.clone()
    }

    /// All answers, in the order in which they came.
    #[must_use]
    pub fn answers(&self) -> Vec<Answer> {
        self.shared.log().answers.clone()
    }

    /// How many messages are acknowledged, over all uris; cumulative answers count fully.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.shared.log().acked()
    }

    /// How many ranges of dumps are wholly acknowledged, over all uris.
    #[must_use]
    pub fn finished_ranges(&self) -> usize {
        self.shared.log().finished_ranges()
    }

    /// Waits until so many messages are acknowledged.
    pub async fn wait_for_acks(&self, count: usize) {
        self.wait_until(|gateway| gateway.acked() >= count).await;
    }

    /// Waits until something holds; it is looked at whenever the gateway saw something.
    pub async fn wait_until(&self, mut holds: impl FnMut(&Self) -> bool) {
        let mut version = self.shared.version.subscribe();
        version.borrow_and_update();
        while !holds(self) {
            version
                .changed()
                .await
                .expect("the gateway holds the sender");
        }
    }

    fn change(&self, op: Operation, new: Option<TestRow>, old: Option<TestRow>) -> &Self {
        self.shared.log().push(change(op, new, old));
        self
    }
}
