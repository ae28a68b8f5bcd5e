//! What is agreed on is known everywhere, survives, and counts once.

use pgcapture_actors::{
    consensus::{Consensus as _, ProposeError},
    cursors::{Cursor, CursorStore as _, SubscriptionId},
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    cluster::{Answer, Command, HomeClaim, HomeCommand, Refusal},
    lsn::Lsn,
};

use super::harness::{Node, add_source, addresses, assign, leader, soon, three_nodes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_has_what_it_proposed_when_it_is_answered() {
    let (_places, nodes) = three_nodes().await;
    let leading = leader(&nodes).await;
    for (index, node) in nodes.iter().enumerate() {
        let name = format!("s{index}");
        assert_eq!(node.propose(add_source(&name)).await.unwrap(), Answer::Done);
        assert!(node.raft.state().borrow().sources.contains_key(&name));
    }
    // A refusal comes back as what it is, from the leader or not.
    for node in &nodes {
        let refused = node.propose(assign("nope", 0)).await;
        assert!(
            matches!(
                refused,
                Err(ProposeError::Refused(Refusal::UnknownSource { .. }))
            ),
            "{refused:?}"
        );
    }
    // It would be agreed on in between.
    for node in &nodes {
        node.wait("all speak the newest version", |status| {
            status.protocol == 2
        })
        .await;
    }
    let last = nodes[leading].raft.status().last_log;
    let mut hashes = Vec::new();
    for node in &nodes {
        node.wait("everything is applied", |status| status.applied >= last)
            .await;
        hashes.push(node.raft.hash().await.unwrap());
    }
    assert_eq!(hashes[0], hashes[1]);
    assert_eq!(hashes[1], hashes[2]);
}

/// Proposes sixty epochs one after the other. They tell whether a proposal was applied twice: the
/// second time would be refused.
async fn assign_sixty_times(node: &Node, first: u64) -> Task<u64> {
    let raft = node.raft.clone();
    node.run(move |_| {
        Box::pin(async move {
            spawn(TaskKind::Tool, "proposals", async move {
                let mut epoch = first;
                for _ in 0..60 {
                    let answer = raft.propose(assign("shop", epoch)).await;
                    epoch += 1;
                    assert_eq!(answer.unwrap(), Answer::Assigned(Epoch(epoch)));
                }
                epoch
            })
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_nothing_counts_twice_or_is_lost() {
    let (places, mut nodes) = three_nodes().await;
    nodes[0].propose(add_source("shop")).await.unwrap();
    let mut epoch = 0;
    for _ in 0..3 {
        let leading = leader(&nodes).await;
        let asked = (leading + 1) % nodes.len();
        let proposals = assign_sixty_times(&nodes[asked], epoch);
        let mut proposals = proposals.await;
        let mut state = nodes[asked].raft.state();
        let is_far = |state: &std::sync::Arc<pgcapture_engine::cluster::State>| {
            state
                .sources
                .get("shop")
                .is_some_and(|source| source.epoch.0 > epoch + 5)
        };
        let under_way = state.wait_for(is_far);
        soon("proposals are under way", under_way)
            .await
            .map(drop)
            .unwrap();
        let mut leadership = nodes[asked].raft.leadership();
        let old = leadership.borrow_and_update().clone();
        let killed = nodes.remove(leading);
        let name = killed.name().to_owned();
        killed.kill().await;
        let is_new = |now: &pgcapture_actors::consensus::Leadership| {
            now.term > old.term && now.leader.is_some() && now.leader.as_deref() != Some(&name)
        };
        soon("another one leads", leadership.wait_for(is_new))
            .await
            .map(drop)
            .unwrap();
        epoch = soon("all proposals end", proposals.join()).await.unwrap();
        // Comes back with its log, and learns what it missed.
        let place = places.iter().find(|place| place.name == name).unwrap();
        let node = place.start(&addresses(&places)).ready().await;
        let mut state = node.raft.state();
        let known = state.wait_for(|state| {
            state
                .sources
                .get("shop")
                .is_some_and(|source| source.epoch == Epoch(epoch))
        });
        soon("it learns what it missed", known)
            .await
            .map(drop)
            .unwrap();
        nodes.push(node);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_die_at_once_and_nothing_is_forgotten() {
    let (places, nodes) = three_nodes().await;
    nodes[1].propose(add_source("shop")).await.unwrap();
    nodes[2].propose(assign("shop", 0)).await.unwrap();
    let id = SubscriptionId {
        stream: "shop".to_owned(),
        consumer: "a".to_owned(),
    };
    let cursor = Cursor {
        floor: Checkpoint::new(Lsn(77), 3),
        acked_above: Vec::new(),
    };
    let claim = HomeCommand::Claim {
        node: nodes[2].name().to_owned(),
        claims: vec![HomeClaim {
            id: id.clone(),
            instead_of: None,
        }],
    };
    nodes[2].propose(Command::Home(claim)).await.unwrap();
    let save = async |node: &Node, cursor: Cursor| {
        let saved = vec![(id.clone(), cursor)];
        node.run(|raft| Box::pin(async move { raft.save(saved).await }))
            .await
            .unwrap()
    };
    assert_eq!(save(&nodes[2], cursor.clone()).await, []);
    let not_its_home = save(&nodes[1], Cursor::default()).await;
    assert_eq!(not_its_home, std::slice::from_ref(&id));
    let term = nodes[0].raft.status().term;
    for node in nodes {
        node.kill().await;
    }
    let peers = addresses(&places);
    let starting: Vec<_> = places.iter().map(|place| place.start(&peers)).collect();
    let mut nodes = Vec::new();
    for starting in starting {
        nodes.push(starting.ready().await);
    }
    leader(&nodes).await;
    for node in &nodes {
        let id = id.clone();
        let found = node
            .run(|raft| Box::pin(async move { raft.load(&id).await }))
            .await;
        assert_eq!(found.unwrap(), Some(cursor.clone()));
        let state = node.raft.state();
        assert_eq!(state.borrow().sources["shop"].epoch, Epoch(1));
        assert!(node.raft.status().term > term);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_a_change_is_refused_with_a_code() {
    let (_places, mut nodes) = three_nodes().await;
    let last = nodes.pop().unwrap();
    for node in nodes {
        node.kill().await;
    }
    let error = soon("it gives up", last.propose(add_source("shop")))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ProposeError::Unavailable { .. }),
        "{error:?}"
    );
    assert!(error.to_string().starts_with("PGC-R01"), "{error}");
    assert!(last.raft.state().borrow().sources.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_cursors_are_refused_for_that_and_not_for_the_disk() {
    let (_places, mut nodes) = three_nodes().await;
    let last = nodes.pop().unwrap();
    for node in nodes {
        node.kill().await;
    }
    let id = SubscriptionId {
        stream: "shop".to_owned(),
        consumer: "a".to_owned(),
    };
    let saved = vec![(id.clone(), Cursor::default())];
    let both =
        last.run(|raft| Box::pin(async move { tokio::join!(raft.load(&id), raft.save(saved)) }));
    let (loaded, saved) = soon("they give up", both).await;
    for error in [loaded.unwrap_err(), saved.unwrap_err()] {
        assert_eq!(error.explanation.code, "PGC-R01", "{error}");
        assert!(!error.to_string().contains("PGC-"), "{error}");
    }
}
