//! Strangers are refused, and a node that hears nobody harms nobody.

use std::net::SocketAddr;

use pgcapture_actors::{
    consensus::Consensus as _,
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::cluster::Spoken;
use pgcapture_proto::peer::v1::{Envelope, RaftMessage, raft_client::RaftClient};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::Code;

use super::harness::{Place, add_source, addresses, leader, soon, voters};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_and_another_protocol_are_refused() {
    let place = Place::new("n1");
    let node = place.start(&[]).ready().await;
    let address = format!("http://{}", place.listen);
    let mut client = RaftClient::connect(address).await.unwrap();
    let own = node.raft.identity().clone();
    let newer = Spoken::OURS.newest + 1;
    let cases = [
        (1, own.cluster.0 ^ 1, Code::FailedPrecondition, "PGC-R03"),
        (newer, own.cluster.0, Code::FailedPrecondition, "PGC-R04"),
    ];
    for (protocol, cluster, code, text) in cases {
        let message = RaftMessage {
            envelope: Some(Envelope {
                protocol,
                cluster: cluster.to_be_bytes().to_vec().into(),
                from: 2,
                to: own.id,
            }),
            body: vec![1, 2, 3].into(),
        };
        let term = node.raft.status().term;
        for _ in 0..2 {
            let refused = client.append_entries(message.clone()).await.unwrap_err();
            assert_eq!(refused.code(), code);
            assert!(refused.message().starts_with(text), "{refused}");
            let refused = client.vote(message.clone()).await.unwrap_err();
            assert_eq!(refused.code(), code);
        }
        assert_eq!(node.raft.status().term, term);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_nobody_reaches_does_not_raise_the_term() {
    let mut places: Vec<Place> = ["n1", "n2", "n3"].map(Place::new).into();
    let gate = Gate::open(places[2].listen).await;
    places[2].address = gate.address.to_string();
    let peers = addresses(&places);
    let starting: Vec<_> = places.iter().map(|place| place.start(&peers)).collect();
    let mut nodes = Vec::new();
    for starting in starting {
        nodes.push(starting.ready().await);
    }
    for node in &nodes {
        node.wait("three vote", |status| voters(status) == 3).await;
    }
    // The third must follow; it can then be deaf.
    let leading = leader(&nodes).await;
    if leading == 2 {
        nodes[2]
            .run(|raft| Box::pin(async move { raft.transfer("n1").await }))
            .await
            .unwrap();
    }
    let leading = leader(&nodes[..2]).await;
    let term = nodes[leading].raft.status().term;
    gate.shut();
    // Longer than several elections, measured in what the others agree on meanwhile.
    for index in 0..8 {
        let other = &nodes[1 - leading];
        other
            .propose(add_source(&format!("s{index}")))
            .await
            .unwrap();
        let waited = nodes[2].raft.wait_until(|status| status.term > term);
        let pause = std::time::Duration::from_millis(400);
        let raised = tokio::time::timeout(pause, waited).await;
        assert!(raised.is_err(), "the deaf one raised the term");
    }
    gate.unshut();
    let mut state = nodes[2].raft.state();
    let known = state.wait_for(|state| state.sources.contains_key("s7"));
    soon("it hears again", known).await.map(drop).unwrap();
    assert_eq!(nodes[leading].raft.status().term, term);
    assert!(nodes[leading].is_leader());
}

/// Passes connections on to a node, or lets them hang without a word: what it is sent does not arrive,
/// what it sends by itself does.
struct Gate {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
    _task: Task<()>,
}

impl Gate {
    async fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_open, open) = watch::channel(true);
        let task = spawn(TaskKind::Tool, "gate", async move {
            let mut passing = Vec::new();
            while let Ok((inbound, _)) = listener.accept().await {
                let open = open.clone();
                passing.push(spawn(TaskKind::Tool, "pass", pass(inbound, target, open)));
            }
        });
        Self {
            address,
            is_open,
            _task: task,
        }
    }

    fn shut(&self) {
        self.is_open.send_replace(false);
    }

    fn unshut(&self) {
        self.is_open.send_replace(true);
    }
}

async fn pass(inbound: TcpStream, target: SocketAddr, open: watch::Receiver<bool>) {
    let Ok(outbound) = TcpStream::connect(target).await else {
        return;
    };
    let (from, to) = (inbound.into_split(), outbound.into_split());
    tokio::join!(pour(from.0, to.1, open.clone()), pour(to.0, from.1, open),);
}

async fn pour(
    from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut open: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if from.readable().await.is_err() || open.wait_for(|open| *open).await.is_err() {
            return;
        }
        match from.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
