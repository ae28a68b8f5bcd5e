//! A disk that refuses one fsync, beneath the real binary: the source stops with a clear word, nothing
//! that was promised is lost, nothing comes twice, and it goes on when it is told to.

use std::{fs, path::Path};

use pgcapture_engine::lsn::Lsn;

use crate::{
    process::{Node, Place},
    shim::Refusal,
    world::World,
};

/// Small segments, so that the log begins a new one soon.
const SEGMENTS: &str = "[log]\nsegment = \"1MiB\"\n";

async fn world(refusal: &Refusal, folder: &Path) -> World {
    let place = Place::at(folder);
    let file = place.configure(SEGMENTS);
    let environment = refusal.environment();
    let node = Node::start_with(&file, &environment);
    let server = crate::world::server(&[]);
    let (node, server) = tokio::join!(node, server);
    let world = World::of(server, node, place);
    world
        .sql("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
        .await;
    world.add(&[]).await.expect(0);
    world.until("following").await;
    world
}

/// Rows of a kilobyte each.
async fn insert(world: &World, first: i64, last: i64) {
    let rows = format!("generate_series({first}, {last}) i");
    world
        .sql(&format!(
            "INSERT INTO t SELECT i, repeat('x', 1000) FROM {rows}"
        ))
        .await;
}

/// Everything that the log holds now, in order.
async fn held_ids(world: &World) -> Vec<i64> {
    let lines = world.tail().await;
    let inserts = lines.iter().filter(|line| line["op"] == "INSERT");
    inserts
        .map(|line| line["new"]["id"].as_i64().unwrap())
        .collect()
}

async fn confirmed(world: &World) -> Lsn {
    let rows = world
        .sql("SELECT confirmed_flush_lsn FROM pg_replication_slots")
        .await;
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

/// Lets a sync fail while `first` to `last` are written, and checks how the node stands then. The log
/// holds everything before `first`.
async fn refuse(world: &World, refusal: &Refusal, call: &str, first: i64, last: i64) {
    world.caught_up().await;
    fs::write(refusal.order(call), "").unwrap();
    insert(world, first, last).await;
    let trouble = world.until_trouble("PGC-L02").await;
    assert!(!refusal.order(call).exists(), "it was that sync");
    assert!(trouble.text.contains("cannot sync"), "{trouble:?}");
    assert!(trouble.text.contains("/logs/shop"), "{trouble:?}");
    assert!(trouble.next.contains("kernel log"), "{trouble:?}");
    assert!(trouble.next.contains("resume"), "{trouble:?}");
    let shown = world.ask(&["source", "show", "shop"]).await.expect(0);
    assert_eq!(shown.talk.matches("PGC-L02").count(), 1, "{shown:?}");
    let log = world.node.log();
    assert!(log.contains("the log has failed"), "{log}");
    // The kernel says that all is well now, and what was written can be read: neither counts.
    insert(world, last + 1, last + 1).await;
    let held = held_ids(world).await;
    let durable = i64::try_from(held.len()).unwrap();
    assert!(durable >= first - 1 && durable <= last, "{durable} rows");
    assert_eq!(held, (1..=durable).collect::<Vec<i64>>());
    assert!(confirmed(world).await.0 <= world.status().await.durable_lsn);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_sync_stops_the_source_and_loses_and_doubles_nothing() {
    let (refusal, folder) = (Refusal::build(), tempfile::tempdir().unwrap());
    let world = world(&refusal, folder.path()).await;
    insert(&world, 1, 50).await;
    refuse(&world, &refusal, "fdatasync", 51, 100).await;
    // As the message says: the log is opened again, and checked.
    world.ask(&["source", "pause", "shop"]).await.expect(0);
    world.ask(&["source", "resume", "shop"]).await.expect(0);
    assert_eq!(world.logged_ids().await, (1..=101).collect::<Vec<i64>>());
    // A segment whose name may not be durable.
    refuse(&world, &refusal, "fsync", 102, 3_000).await;
    world.ask(&["source", "pause", "shop"]).await.expect(0);
    world.ask(&["source", "resume", "shop"]).await.expect(0);
    assert_eq!(world.logged_ids().await, (1..=3_001).collect::<Vec<i64>>());
    // Or by a restart, here on a disk that works again.
    refuse(&world, &refusal, "fdatasync", 3_002, 3_010).await;
    let world = world.crash(SEGMENTS).await;
    assert_eq!(world.logged_ids().await, (1..=3_011).collect::<Vec<i64>>());
    let (exit, log) = world.node.stop().await;
    assert_eq!(exit, Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_sync_at_the_end_does_not_keep_a_node_from_stopping() {
    let (refusal, folder) = (Refusal::build(), tempfile::tempdir().unwrap());
    let world = world(&refusal, folder.path()).await;
    insert(&world, 1, 10).await;
    refuse(&world, &refusal, "fdatasync", 11, 20).await;
    let World {
        server,
        node,
        place,
        ..
    } = world;
    let (exit, log) = node.stop().await;
    assert_eq!(exit, Some(0), "{log}");
    let node = Node::start(&place.configure(SEGMENTS)).await;
    let world = World::of(server, node, place);
    assert_eq!(world.logged_ids().await, (1..=21).collect::<Vec<i64>>());
}
