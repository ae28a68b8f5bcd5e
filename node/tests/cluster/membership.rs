//! Nodes join, leave and hand over.

use pgcapture_actors::consensus::Consensus as _;
use pgcapture_engine::{cluster::Answer, membership::Difference};
use pgcapture_node::{
    peers::Peers,
    raft::{Wish, compare_peers},
};

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
    second.stop().await;
    // With one list they do.
    let second = places[1].start(&addresses(&places));
    let (first, second) = (first.ready().await, second.ready().await);
    assert_eq!(
        first.raft.identity().cluster,
        second.raft.identity().cluster
    );
}
