//! One slot, two agents: the newer epoch gets it, the older one stops for good, nobody else is touched.

use std::time::Duration;

use pgcapture_actors::{
    agent::{AgentHandle, AgentState},
    log::{LogError, Start},
    postgres::{SlotCopies, SlotCopyOptions},
};
use pgcapture_engine::{checkpoint::Epoch, codes, lsn::Lsn};

use crate::{
    cluster::Cluster,
    world::{World, on_node_runtime, wait_for},
};

async fn trouble_code(agent: &AgentHandle, state: AgentState) -> &'static str {
    let status = wait_for(agent, state).await;
    status.trouble.expect("a reason").code
}

async fn insert(world: &World, ids: std::ops::RangeInclusive<i64>) {
    let (first, last) = ids.into_inner();
    world
        .sql(&format!(
            "INSERT INTO t SELECT i FROM generate_series({first}, {last}) i"
        ))
        .await;
}

#[test]
fn a_newer_agent_takes_the_slot_and_the_older_one_stops_for_good() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let old = cluster.start(0, 1);
        insert(&cluster.world, 1..=100).await;
        cluster.world.caught_up().await;
        cluster.consume_all();
        // It is not told anything: a node that was paused and cut off, and is awake again.
        let new = cluster.start(1, 2);
        wait_for(&new, AgentState::Following).await;
        assert_eq!(
            trouble_code(&old, AgentState::Halted).await,
            codes::source::FENCED.code
        );
        assert_eq!(
            cluster.holder().await.as_deref(),
            Some("pgcapture/n1/2/000000c1")
        );
        let stale = *cluster.logs[0].tail().borrow();
        insert(&cluster.world, 101..=200).await;
        cluster.world.caught_up().await;
        assert_eq!(
            cluster.logs[0].tail().borrow().offset,
            stale.offset,
            "it writes nothing more"
        );
        // The last transaction is kept by its cursor.
        let found = cluster.world.inserted_ids().await;
        let wanted: Vec<i64> = (1..=200).collect();
        assert!(found == wanted || found == wanted[100..], "{found:?}");
        assert_eq!(new.status().borrow().rebuild_count, 0);
        new.drain().await;
        old.drain().await;
    });
}

#[test]
fn on_one_log_no_entry_of_the_older_epoch_follows_the_newer() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        cluster.logs[1] = std::sync::Arc::clone(&cluster.logs[0]);
        let old = cluster.start(0, 1);
        insert(&cluster.world, 1..=1_000).await;
        let new = cluster.start(1, 2);
        insert(&cluster.world, 1_001..=2_000).await;
        let halted = trouble_code(&old, AgentState::Halted).await;
        assert!(
            [codes::source::FENCED.code, codes::log::FENCED.code].contains(&halted),
            "{halted}"
        );
        insert(&cluster.world, 2_001..=3_000).await;
        cluster.world.caught_up().await;
        assert_eq!(cluster.world.log.tail().borrow().epoch, Epoch(2));
        assert_eq!(
            cluster.world.inserted_ids().await,
            (1..=3_000).collect::<Vec<i64>>()
        );
        let refused = cluster.world.log.open_writer(Epoch(1)).await.err();
        assert!(
            matches!(refused, Some(LogError::Fenced { .. })),
            "{refused:?}"
        );
        new.drain().await;
        old.drain().await;
    });
}

#[test]
fn a_killed_agent_and_a_hung_one_are_replaced() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let old = cluster.start(0, 1);
        insert(&cluster.world, 1..=10).await;
        cluster.world.caught_up().await;
        drop(old);
        let new = cluster.start(1, 2);
        insert(&cluster.world, 11..=20).await;
        cluster.world.caught_up().await;
        drop(new);
        // Between the two a client of epoch 3 that takes nothing any more, with full buffers.
        let hung = loop {
            // The walsender of the agent that was dropped is about to end.
            if cluster.holder().await.is_none() {
                break cluster.hold_slot("pgcapture/n0/3/000000c1").await;
            }
        };
        cluster
            .world
            .sql("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(21, 20000) i")
            .await;
        let newest = cluster.start(0, 4);
        cluster.world.caught_up().await;
        assert_eq!(
            cluster.holder().await.as_deref(),
            Some("pgcapture/n0/4/000000c1")
        );
        let found = cluster.world.inserted_ids().await;
        assert_eq!(found.last(), Some(&20_000));
        assert!(
            found.is_sorted_by(|one, next| one + 1 == *next),
            "whole and once"
        );
        newest.drain().await;
        drop(hung);
    });
}

#[test]
fn nobody_else_is_ended() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        for (holder, code) in [
            ("pg_recvlogical", codes::source::SLOT_IN_USE.code),
            ("pgcapture/n0/1/000000c2", codes::source::SLOT_IN_USE.code),
            ("pgcapture/n0/1", codes::source::SLOT_IN_USE.code),
            ("pgcapture/n9/5/000000c1", codes::source::SLOT_IN_USE.code),
            ("pgcapture/n0/6/000000c1", codes::source::FENCED.code),
        ] {
            let stranger = cluster.hold_slot(holder).await;
            let agent = cluster.start(1, 5);
            let state = if code == codes::source::FENCED.code {
                AgentState::Halted
            } else {
                AgentState::Retrying
            };
            assert_eq!(trouble_code(&agent, state).await, code, "{holder}");
            assert_eq!(cluster.holder().await.as_deref(), Some(holder), "it lives");
            agent.drain().await;
            drop(stranger);
            while cluster.holder().await.is_some() {}
        }
    });
}

#[test]
fn a_catch_up_of_an_older_epoch_is_ended_with_its_copies() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        insert(&cluster.world, 1..=1_000).await;
        let config = cluster.world.server.config("postgres");
        let config = config.with_application_name("pgcapture/n0/1/000000c1");
        let options = || SlotCopyOptions::new("s", "p");
        let mut copies = SlotCopies::open(&config, options())
            .await
            .expect("there is room");
        copies
            .request(cluster.world.wal_end().await)
            .await
            .expect("it lives");
        let (mut chunk, mut next) = copies.begin().await.expect("a chunk");
        assert!(chunk.receive().await.expect("rows").is_some());
        assert!(
            next.place()
                .await
                .expect("a place")
                .is_some_and(|lsn| lsn > Lsn::ZERO)
        );
        let left = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
        assert_eq!(cluster.world.sql(left).await[0][0].as_deref(), Some("2"));
        let agent = cluster.start(1, 2);
        wait_for(&agent, AgentState::Following).await;
        assert_eq!(cluster.world.sql(left).await[0][0].as_deref(), Some("0"));
        cluster.world.caught_up().await;
        assert_eq!(cluster.world.inserted_ids().await.len(), 1_000);
        agent.drain().await;
        // The other way round: a newer one that catches up.
        let config = config.with_application_name("pgcapture/n0/7/000000c1");
        let copies = SlotCopies::open(&config, options())
            .await
            .expect("there is room");
        let agent = cluster.start(1, 6);
        assert_eq!(
            trouble_code(&agent, AgentState::Halted).await,
            codes::source::FENCED.code
        );
        assert_eq!(cluster.world.sql(left).await[0][0].as_deref(), Some("1"));
        agent.drain().await;
        drop(copies);
    });
}

#[test]
fn a_drained_agent_gives_the_slot_back_at_once() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        for epoch in 1..=6 {
            let node = usize::from(epoch % 2 == 0);
            let agent = cluster.start(node, epoch);
            let id = i64::try_from(epoch).expect("small");
            insert(&cluster.world, id..=id).await;
            cluster.world.caught_up().await;
            let began = tokio::time::Instant::now();
            agent.drain().await;
            let took = began.elapsed();
            assert_eq!(cluster.holder().await, None);
            assert!(took < Duration::from_secs(5), "{took:?}");
            cluster.consume_all();
        }
    });
}

#[test]
fn a_reader_goes_on_where_it_was_on_the_other_node() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let old = cluster.start(0, 1);
        insert(&cluster.world, 1..=10).await;
        cluster.world.caught_up().await;
        old.drain().await;
        let cursor = cluster.consume_all();
        // The other node has never had a log; nothing is missed between cursor and slot.
        let new = cluster.start(1, 2);
        insert(&cluster.world, 11..=20).await;
        cluster.world.caught_up().await;
        let mut reader = cluster
            .world
            .log
            .open_reader(Start::After(cursor))
            .await
            .expect("it is there");
        let batch = reader.next().await.expect("the next ones");
        assert!(batch.span.is_some_and(|(first, _)| first > cursor));
        drop(new);
        // And back: the log of the first node ends long before the slot.
        insert(&cluster.world, 21..=30).await;
        let cursor = cluster.consume_all();
        let again = cluster.start(0, 3);
        cluster.world.caught_up().await;
        let reader = cluster.world.log.open_reader(Start::After(cursor)).await;
        drop(reader.expect("nothing is missing"));
        assert_eq!(cluster.world.inserted_ids().await.last(), Some(&30));
        again.drain().await;
    });
}
