//! Nodes of neighbouring versions in one cluster: what they agree on is the same, the next version is
//! agreed on when all speak it, and whoever cannot take part is refused with a code.

use std::sync::Arc;

use pgcapture_actors::consensus::Consensus as _;
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Answer, Command},
    codes,
};

use pgcapture_node::raft::GroupStatus;

use crate::harness::{Node, Place, add_source, addresses, assign, leader, start_all, voters};

fn protocol(node: &Node) -> u32 {
    Arc::clone(&node.raft.state().borrow()).protocol()
}

async fn raised(node: &Node, to: u32) {
    let is_so = |status: &GroupStatus| status.protocol == to && status.holding_back.is_empty();
    node.wait("the version is raised", is_so).await;
}

async fn let_lead(node: &Node) {
    if !node.is_leader() {
        let to = node.name().to_owned();
        let handed = node.run(|raft| Box::pin(async move { raft.transfer(&to).await }));
        handed.await.unwrap();
    }
}

/// All have agreed on the same.
async fn assert_same(nodes: &[Node]) {
    let index = leader(nodes).await;
    let last = nodes[index].raft.status().last_log;
    let mut hashes = Vec::new();
    for node in nodes {
        node.wait("all is applied", |status| status.applied >= last)
            .await;
        let hash = node.run(|raft| Box::pin(async move { raft.hash().await }));
        hashes.push(hash.await.unwrap().sum);
    }
    assert!(
        hashes.windows(2).all(|pair| pair[0] == pair[1]),
        "{hashes:?}"
    );
}

async fn refused(place: &Place, peers: &[String]) {
    let error = place.start(peers).refused().await;
    let code = codes::cluster::OTHER_PROTOCOL.code;
    assert_eq!(error.explanation().code, code, "{error}");
}

fn keep(epoch: u64, oid: u32) -> Command {
    Command::KeepPublication {
        name: "shop".to_owned(),
        epoch: Epoch(epoch),
        oid,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_upgraded_node_by_node() {
    let mut places: Vec<Place> = ["n1", "n2", "n3"]
        .map(|name| Place::speaking(name, 1, 1))
        .into();
    let peers = addresses(&places);
    let mut nodes = start_all(&places).await;
    nodes[0].propose(add_source("shop")).await.unwrap();
    for (index, place) in places.iter_mut().enumerate() {
        nodes.remove(0).kill().await;
        place.spoken.newest = 2;
        let node = place.start(&peers).ready().await;
        nodes.push(node);
        let epoch = index as u64;
        let assigned = nodes[0].propose(assign("shop", epoch)).await;
        assert_eq!(assigned.unwrap(), Answer::Assigned(Epoch(epoch + 1)));
        if index < 2 {
            assert_eq!(protocol(&nodes[2]), 1, "one does not speak it yet");
            assert!(nodes[2].propose(keep(epoch + 1, 7)).await.is_err());
            assert_same(&nodes).await;
        }
        // Whoever leads.
        let_lead(&nodes[0]).await;
    }
    for node in &nodes {
        raised(node, 2).await;
    }
    let kept = nodes[1].propose(keep(3, 7)).await;
    assert_eq!(kept.unwrap(), Answer::Done);
    assert_same(&nodes).await;
    // Killed and back: it is still so.
    nodes.remove(0).kill().await;
    nodes.push(places[0].start(&peers).ready().await);
    assert_eq!(protocol(&nodes[2]), 2);
    assert_same(&nodes).await;
    let state = Arc::clone(&nodes[2].raft.state().borrow());
    assert_eq!(state.added.publications.get("shop"), Some(&7));
    // There is no way back to the older program.
    nodes.pop().unwrap().kill().await;
    places[0].spoken.newest = 1;
    refused(&places[0], &peers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_tells_who_keeps_it_from_the_next_version() {
    let mut places = vec![
        Place::speaking("n1", 1, 2),
        Place::speaking("n2", 1, 1),
        Place::speaking("n3", 1, 2),
    ];
    let peers = addresses(&places);
    let mut nodes = start_all(&places).await;
    let_lead(&nodes[0]).await;
    let is_told = |status: &GroupStatus| status.holding_back == ["n2"];
    nodes[0].wait("the leader has asked", is_told).await;
    // One that is away may come back as it was.
    let old = nodes.remove(1);
    old.kill().await;
    places[1].spoken.newest = 2;
    let_lead(&nodes[1]).await;
    nodes[1].wait("the next leader has asked", is_told).await;
    assert_eq!(protocol(&nodes[1]), 1);
    let new = places[1].start(&peers).ready().await;
    for node in nodes.iter().chain([&new]) {
        raised(node, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_must_speak_the_agreed_version() {
    let (old, new) = (Place::speaking("n1", 1, 1), Place::speaking("n2", 1, 2));
    let newest = Place::speaking("n3", 2, 2);
    let peers = vec![old.address.clone()];
    let first = old.start(&[]).ready().await;
    refused(&newest, &peers).await;
    let second = new.start(&peers).ready().await;
    second.wait("both vote", |status| voters(status) == 2).await;
    refused(&newest, &peers).await;
    assert_eq!((protocol(&first), protocol(&second)), (1, 1));
    // The older program is replaced; from then on there is no way back, and no way in for it.
    first.kill().await;
    let upgraded = Place {
        spoken: new.spoken,
        ..old
    };
    let first = upgraded.start(&peers).ready().await;
    raised(&first, 2).await;
    raised(&second, 2).await;
    refused(&Place::speaking("n4", 1, 1), &peers).await;
    let third = newest.start(&peers).ready().await;
    third.wait("all vote", |status| voters(status) == 3).await;
    assert_same(&[first, second, third]).await;
}
