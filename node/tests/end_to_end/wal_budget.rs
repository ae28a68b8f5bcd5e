//! How much WAL PostgreSQL may keep for a source: said, foreseen, told, and dealt with as the policy
//! says.

use pgcapture_actors::postgres::{Connection, Replication};

use crate::{
    consumer::{Consumer, YES, text},
    process::eventually,
    world::World,
};

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, v text)";

/// A transaction that stays open keeps the WAL of every slot from its beginning on.
async fn open_transaction(world: &World) -> Connection {
    let config = world.server.config("postgres");
    let open = Connection::connect(&config, Replication::Off).await;
    let mut open = open.expect("the server takes sessions");
    let begun = open.query("BEGIN; INSERT INTO t VALUES (0)").await;
    begun.expect("it runs");
    open
}

/// 12 MB of WAL that bring nothing to the stream.
async fn fill(world: &World) {
    world
        .sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 12000000))")
        .await;
}

async fn world_with(budget: &[&str]) -> World {
    let world = World::bare(&[], "").await;
    world.sql(TABLE).await;
    world.add(budget).await.expect(0);
    world.until("following").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_reached_is_told_everywhere_and_can_be_changed() {
    let world = world_with(&["--wal-budget", "8MiB", "--wal-alert", "25%"]).await;
    let mut open = open_transaction(&world).await;
    world.sql("INSERT INTO t VALUES (1)").await;
    world.caught_up().await;
    fill(&world).await;
    let reached = world.status_when(|status| {
        let wal = status.wal.as_ref();
        wal.is_some_and(|wal| wal.level == "reached")
    });
    let wal = reached.await.wal.unwrap();
    assert_eq!((wal.limit_bytes, wal.policy.as_str()), (8 << 20, "alert"));
    let shown = world.ask(&["source", "show", "shop"]).await.expect(0);
    assert!(shown.talk.contains("PGC-S51"), "{shown:?}");
    assert!(shown.talk.contains("8 MiB (alert), reached"), "{shown:?}");
    let shown = world.ask(&["source", "show", "shop", "-o", "json"]).await;
    let shown = shown.json();
    assert_eq!(shown["wal_budget"]["level"], "reached");
    assert_eq!(shown["wal_budget"]["alert_percent"], 25);
    let page = world.page("/metrics").await;
    let line = "pgcapture_slot_wal_guard_bytes{source=\"shop\"} 8388608";
    assert!(page.contains(line), "{page}");
    assert!(page.contains("pgcapture_slot_wal_seconds_to_guard{source=\"shop\"} 0"));
    eventually("the event", async || {
        let events = world.ask(&["cluster", "events"]).await.expect(0);
        let is_told = events.data.contains("keeps as much WAL as it may: 8 MiB");
        is_told.then_some(()).ok_or(events.data)
    })
    .await;
    // Told and nothing else: the stream goes on.
    world.until("following").await;
    open.query("ROLLBACK").await.expect("it runs");
    world.sql("INSERT INTO t VALUES (2)").await;
    assert_eq!(world.logged_ids().await, [1, 2]);
    // The same source again, with another limit.
    world.add(&["--wal-budget", "1GiB"]).await.expect(0);
    let more = world.status_when(|status| {
        let wal = status.wal.as_ref();
        wal.is_some_and(|wal| wal.level == "within" && wal.limit_bytes == 1 << 30)
    });
    more.await;
    world.add(&["--wal-budget", "0B"]).await.expect(0);
    world.status_when(|status| status.wal.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_protects_the_source_lets_the_slot_go_with_a_gap() {
    let world = world_with(&["--wal-budget", "8MiB", "--wal-policy", "drop_with_gap"]).await;
    let parameters = [("Gaps", YES), ("Start", text("earliest"))];
    let mut watcher = Consumer::open(&world.node.listen, "shop/watcher", &parameters).await;
    let mut open = open_transaction(&world).await;
    world.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(watcher.take_until(1).await, [1]);
    fill(&world).await;
    world.until("halted").await;
    let trouble = world.until_trouble("PGC-S51").await;
    let command = "pgcapture source resume shop --accept-gap";
    assert!(trouble.next.contains(command), "{trouble:?}");
    // The source's disk is free of it, and the consumer is told.
    eventually("the end of the slot", async || {
        let slots = world.sql("SELECT 1 FROM pg_replication_slots").await;
        slots.is_empty().then_some(()).ok_or(format!("{slots:?}"))
    })
    .await;
    let gap = watcher.next().await.gap.expect("a gap");
    assert_eq!((gap.reason.as_str(), gap.to_lsn), ("wal_guard", 0));
    open.query("ROLLBACK").await.expect("it runs");
    let resumed = world.ask(&["source", "resume", "shop", "--accept-gap"]);
    resumed.await.expect(0);
    world.until("following").await;
    world.sql("INSERT INTO t VALUES (9)").await;
    assert_eq!(world.logged_ids().await, [1, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_the_configuration_counts_where_the_source_says_nothing() {
    let config = "[agent]\nwal_guard = { limit = \"3GiB\", policy = \"spill\" }\n";
    let world = World::with(&[], config).await;
    let known =
        world.status_when(|status| status.wal.as_ref().is_some_and(|wal| wal.limit_bytes > 0));
    let wal = known.await.wal.unwrap();
    let said = (wal.limit_bytes, wal.alert_percent, wal.policy.as_str());
    assert_eq!(said, (3 << 30, 50, "spill"));
    world
        .add(&["--wal-policy", "drop_with_gap"])
        .await
        .expect(0);
    let own = world.status_when(|status| {
        let wal = status.wal.as_ref();
        wal.is_some_and(|wal| wal.policy == "drop_with_gap" && wal.limit_bytes == 3 << 30)
    });
    own.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_none_is_refused_with_what_was_meant() {
    let world = World::bare(&[], "").await;
    world.sql(TABLE).await;
    let refused = world.add(&["--wal-policy", "drop_with_gab"]).await;
    refused.expect_usage(&["--wal-policy", "drop_with_gap", "alert", "spill"]);
    let refused = world.add(&["--wal-budget", "plenty"]).await;
    refused.expect_usage(&["plenty", "is not a size", "8GiB"]);
    let refused = world.add(&["--wal-alert", "0%"]).await;
    refused.expect_usage(&["0%", "50%"]);
    world.ask(&["source", "show", "shop"]).await.expect(4);
}
