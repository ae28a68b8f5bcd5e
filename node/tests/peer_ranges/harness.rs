//! A node that leads, or reads, by a script, and a member of it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use pgcapture_actors::{
    cursors::SubscriptionId,
    dump::{
        OpenedRange, RangeReader, RangeSource, RangeTicket, RowBatch, RowEvent,
        scripted::{Ended, Script, ScriptedRanges, script},
    },
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{cluster::State, lsn::Lsn};
use pgcapture_node::{
    config::Config,
    peer_ranges::{Leadership, PeerRanges},
    peers::Peers,
    rpc::peer_ranges::{Controller, PeerRangesService},
};
use pgcapture_proto::peer::v1::peer_ranges_server::PeerRangesServer;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::TcpIncoming};

/// Far beyond what anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("{what} did not happen"))
}

pub(crate) fn id() -> SubscriptionId {
    SubscriptionId {
        stream: "shop".to_owned(),
        consumer: "x".to_owned(),
    }
}

/// A node with a controller and a reader, whose answers the test gives.
pub(crate) struct Leader {
    pub(crate) script: Script,
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    _server: Task<()>,
}

impl Leader {
    pub(crate) async fn start(leader: &watch::Sender<Option<String>>) -> Self {
        let script = script();
        let ranges = Arc::clone(&script.ranges) as Arc<dyn RangeSource>;
        Self::start_with(leader, script, ranges).await
    }

    /// The same with a controller of the test's own before the script.
    pub(crate) async fn start_with(
        leader: &watch::Sender<Option<String>>,
        script: Script,
        ranges: Arc<dyn RangeSource>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let service = PeerRangesService::new(Controller {
            cluster: "c1".to_owned(),
            address: address.to_string(),
            leader: leader.subscribe(),
            ranges,
            reader: Arc::clone(&script.ranges) as Arc<dyn RangeReader>,
            orders: TaskTracker::new(),
            stop: stop.clone(),
        });
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().add_service(PeerRangesServer::new(service));
        let server = spawn(TaskKind::Server, "leader", async move {
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            script,
            address,
            stop,
            _server: server,
        }
    }

    /// Schedules a range for the subscription that this node reads itself.
    pub(crate) fn schedule(&mut self) {
        let address = self.address.to_string();
        self.script.schedule_on(&id(), "a", &address);
    }

    /// Schedules a range that another node reads.
    pub(crate) fn schedule_on(&mut self, worker: &Self) {
        let address = worker.address.to_string();
        self.script.schedule_on(&id(), "w", &address);
    }

    /// Opens the next range that is to be read here.
    pub(crate) async fn open(&mut self, at: u64) -> mpsc::Sender<RowEvent> {
        let opening = soon("opening", self.script.opening()).await;
        opening.unwrap().at(Lsn(at))
    }

    /// Opens a range for a member that wants it no earlier than `at_least`; the controller says that it
    /// is at 30.
    pub(crate) async fn opens(
        &mut self,
        ranges: &PeerRanges,
        ticket: &RangeTicket,
        at_least: Lsn,
    ) -> (OpenedRange, mpsc::Sender<RowEvent>) {
        let opened = async {
            let opening = soon("opening", self.script.opening()).await.unwrap();
            assert_eq!(opening.at_least, at_least);
            opening.at(Lsn(30))
        };
        let (range, rows) = tokio::join!(ranges.open(ticket, at_least), opened);
        (range.unwrap(), rows)
    }

    pub(crate) async fn ended(&mut self) -> Ended {
        soon("the end", self.script.ended()).await.unwrap()
    }
}

pub(crate) fn member(leader: &watch::Sender<Option<String>>, address: &str) -> PeerRanges {
    member_with(leader, address, &script().ranges)
}

pub(crate) fn member_with(
    leader: &watch::Sender<Option<String>>,
    address: &str,
    own: &Arc<ScriptedRanges>,
) -> PeerRanges {
    member_knowing(leader, address, own, None)
}

pub(crate) fn member_knowing(
    leader: &watch::Sender<Option<String>>,
    address: &str,
    own: &Arc<ScriptedRanges>,
    state: Option<watch::Receiver<Arc<State>>>,
) -> PeerRanges {
    let config = Config::from_text("test.toml", "").unwrap();
    PeerRanges::start(Leadership {
        node: "b".to_owned(),
        address: address.to_owned(),
        cluster: "c1".to_owned(),
        leader: leader.subscribe(),
        local: Arc::clone(own) as Arc<dyn RangeSource>,
        reader: Arc::clone(own) as Arc<dyn RangeReader>,
        peers: Peers::new(&config).unwrap(),
        state,
    })
}

/// Pulls until something is due.
pub(crate) async fn pull(ranges: &PeerRanges) -> RangeTicket {
    let mut changes = ranges.changes();
    soon("a range", async {
        loop {
            changes.borrow_and_update();
            if let Some(ticket) = ranges.pull(&id()).await.unwrap() {
                return ticket;
            }
            changes.changed().await.unwrap();
        }
    })
    .await
}

pub(crate) fn batch(length: usize) -> RowEvent {
    RowEvent::Rows(RowBatch {
        bytes: vec![7; length].into(),
        rows: vec![(0, u32::try_from(length).unwrap())],
    })
}
