//! Nodes join, leave and hand over.

use std::time::Duration;

use pgcapture_actors::consensus::Consensus as _;
use pgcapture_engine::{cluster::Answer, membership::Difference};
use pgcapture_node::{
    peers::Peers,
    raft::{Wish, compare_peers},
};
use pgcapture_proto::peer::v1::{IdentifyRequest, raft_client::RaftClient};
use tokio::sync::watch;

use super::harness::{Place, add_source, addresses, leader, soon, three_nodes, voters};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_alone_takes_others_in_with_all_it_had() {
    let first = Place::new("n1");
    // Alone, without a thought of a cluster; what it has is in no log.
    let alone = first.start(&[]).ready().await;
    let added = alone.propose(add_source("shop")).await;
    assert_eq!(added.unwrap(), Answer::Done);
    alone.kill().await;

    let places = [first, Place::new("n2")];
    let peers = addresses(&places);
    let second = places[1].start(&peers);
    let first = places[0].start(&peers).ready().await;
    let second = second.ready().await;
    assert!(second.raft.state().borrow().sources.contains_key("shop"));
    assert_eq!(
        second.raft.identity().cluster,
        first.raft.identity().cluster
    );
    second.wait("both vote", |status| voters(status) == 2).await;
    assert_eq!(
        second.propose(add_source("two")).await.unwrap(),
        Answer::Done
    );
    assert!(first.raft.state().borrow().sources.contains_key("two"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_comes_back_only_after_it_was_removed() {
    let (mut places, mut nodes) = three_nodes().await;
    nodes.pop().unwrap().kill().await;
    let old = places.pop().unwrap();
    let wiped = Place {
        folder: tempfile::tempdir().unwrap(),
        ..old
    };
    let peers = addresses(&places);
    let error = wiped.start(&peers).refused().await;
    let text = error.to_string();
    assert!(text.starts_with("PGC-R05"), "{text}");
    assert!(text.contains("pgcapture cluster remove n3"), "{text}");

    nodes[1]
        .run(|raft| Box::pin(async move { raft.remove("n3").await }))
        .await
        .unwrap();
    let back = wiped.start(&peers).ready().await;
    back.wait("three vote again", |status| voters(status) == 3)
        .await;
    let id = back.raft.identity().id;
    assert_eq!(id, 4, "a number is never given twice");
}

/// Asks the node at an address which cluster it belongs to, once it answers at all.
async fn cluster_at(address: &str) -> Vec<u8> {
    let asked = async {
        loop {
            let client = RaftClient::connect(format!("http://{address}")).await;
            let request = IdentifyRequest::default();
            if let Ok(mut client) = client
                && let Ok(answer) = client.identify(request).await
            {
                return answer.into_inner().cluster.to_vec();
            }
        }
    };
    soon("a node that starts answers", asked).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_data_begins_no_second_cluster_while_the_others_start() {
    let (mut places, nodes) = three_nodes().await;
    let cluster = nodes[0].raft.identity().cluster.0.to_be_bytes();
    for node in nodes {
        node.kill().await;
    }
    // The first of the list: the one that begins a cluster once all others wait.
    places[0].folder = tempfile::tempdir().unwrap();
    let peers = addresses(&places);
    let (hold, is_held) = watch::channel(true);
    let others = [1, 2].map(|index: usize| places[index].start_held(&peers, is_held.clone()));
    for place in &places[1..] {
        assert_eq!(cluster_at(&place.address).await, cluster);
    }
    let wiped = places[0].start(&peers);
    // It asks over and over while nobody can let it in; what it begins, it begins in its first round.
    assert_eq!(cluster_at(&places[0].address).await, Vec::<u8>::new());
    hold.send_replace(false);
    let mut back = Vec::new();
    for other in others {
        back.push(other.ready().await);
    }
    leader(&back).await;
    let error = wiped.refused().await;
    assert!(error.to_string().starts_with("PGC-R05"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_a_leader_can_be_removed() {
    let (_places, nodes) = three_nodes().await;
    let leading = leader(&nodes).await;
    let heir = (leading + 1) % 3;
    let name = nodes[heir].name().to_owned();
    let asked = (leading + 2) % 3;
    let transferred = nodes[asked].run(|raft| Box::pin(async move { raft.transfer(&name).await }));
    transferred.await.unwrap();
    let is_me = |now: &pgcapture_actors::consensus::Leadership| now.is_me;
    let mut leadership = nodes[heir].raft.leadership();
    soon("the heir leads", leadership.wait_for(is_me))
        .await
        .map(drop)
        .unwrap();

    let name = nodes[heir].name().to_owned();
    let removed = nodes[asked].run(|raft| Box::pin(async move { raft.remove(&name).await }));
    removed.await.unwrap();
    let gone = nodes[heir].name();
    for node in [&nodes[leading], &nodes[asked]] {
        node.wait("two are left", |status| {
            let is_left = status.members.iter().all(|member| member.node.name != gone);
            let leads = status
                .leader
                .as_deref()
                .is_some_and(|leader| leader != gone);
            is_left && leads && voters(status) == 2
        })
        .await;
    }
    nodes[asked].propose(add_source("shop")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_one_that_votes_cannot_be_removed() {
    let place = Place::new("n1");
    let node = place.start(&[]).ready().await;
    let error = node
        .run(|raft| Box::pin(async move { raft.remove("n1").await }))
        .await;
    assert!(error.unwrap_err().to_string().starts_with("PGC-R08"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_list_of_peers_is_told_what_differs() {
    let (places, _nodes) = three_nodes().await;
    let mut wish = Wish {
        name: "n9".to_owned(),
        address: places[0].address.clone(),
        peers: addresses(&places),
    };
    let peers = Peers::default();
    let told = soon("all answer", compare_peers(&wish, &peers)).await;
    assert_eq!(told, []);
    // The order matters only before there is a cluster.
    wish.peers.reverse();
    let told = soon("all answer", compare_peers(&wish, &peers)).await;
    assert_eq!(told, []);
    wish.peers.pop();
    let told = soon("all answer", compare_peers(&wish, &peers)).await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().all(|it| matches!(it, Difference::List { .. })));
}

/// Nodes that look for a cluster ask each other ten times in this time.
const MANY_ROUNDS: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_different_lists_begin_no_cluster() {
    let places = [Place::new("n1"), Place::new("n2")];
    let mut peers = addresses(&places);
    let first = places[0].start(&peers);
    peers.reverse();
    let second = places[1].start(&peers);
    // Each is the first of its own list: both would begin one.
    let asking = Wish {
        name: "n9".to_owned(),
        address: "elsewhere:1".to_owned(),
        peers: addresses(&places),
    };
    let told = soon("both answer", compare_peers(&asking, &Peers::default())).await;
    assert_eq!(told, []);
    let begun = async {
        while cluster_at(&places[0].address).await.is_empty()
            && cluster_at(&places[1].address).await.is_empty()
        {}
    };
    let begun = tokio::time::timeout(MANY_ROUNDS, begun).await;
    assert!(begun.is_err(), "a cluster was begun");
    second.stop().await;
    // With one list they do.
    let second = places[1].start(&addresses(&places));
    let (first, second) = (first.ready().await, second.ready().await);
    assert_eq!(
        first.raft.identity().cluster,
        second.raft.identity().cluster
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_heir_that_is_dead_leaves_a_cluster_that_still_agrees() {
    let (_places, mut nodes) = three_nodes().await;
    let dead = (leader(&nodes).await + 1) % 3;
    let name = nodes[dead].name().to_owned();
    nodes.remove(dead).kill().await;
    let leading = leader(&nodes).await;
    let transferred =
        nodes[leading].run(|raft| Box::pin(async move { raft.transfer(&name).await }));
    let error = transferred.await.unwrap_err();
    assert!(error.to_string().starts_with("PGC-R01"), "{error}");
    let agreed = async {
        while nodes[0].propose(add_source("after")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon("something is agreed on again", agreed).await;
}
