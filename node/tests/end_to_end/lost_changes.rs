//! What PostgreSQL cannot give any more: declared to operators and consumers, never passed over.

use pgcapture_actors::postgres::{Connection, Replication};
use pgcapture_engine::lsn::Lsn;
use pgcapture_proto::pgcapture::Gap;
use rustix::process::{Signal, kill_process};

use crate::{
    consumer::{Consumer, YES, id, text},
    process::eventually,
    world::World,
};

/// A consumer that asks for gaps, from the beginning.
async fn watcher(world: &World) -> Consumer {
    let parameters = [("Gaps", YES), ("Start", text("earliest"))];
    Consumer::open(&world.node.listen, "shop/watcher", &parameters).await
}

async fn next_gap(consumer: &mut Consumer) -> Gap {
    let message = consumer.next().await;
    consumer.ack(&message).await;
    message
        .gap
        .clone()
        .unwrap_or_else(|| panic!("a gap, not {message:?}"))
}

/// Drops the slot under its reader, who may be quick to take it again.
async fn drop_slot(world: &World) {
    let sql = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots \
               WHERE active; SELECT pg_drop_replication_slot('shop_pgcapture')";
    eventually("the end of the slot", async || {
        let config = world.server.config("postgres");
        let connection = Connection::connect(&config, Replication::Off).await;
        let dropped = connection.unwrap().query(sql).await;
        dropped.map(drop).map_err(|error| format!("{error:?}"))
    })
    .await;
}

/// The gaps of `source show`: from, to and reason.
async fn shown_gaps(world: &World) -> Vec<(Lsn, Option<Lsn>, String)> {
    let shown = world.ask(&["source", "show", "shop", "-o", "json"]).await;
    let shown = shown.json();
    let gaps = shown["gaps"].as_array().unwrap().iter();
    gaps.map(|gap| {
        let position = |name: &str| gap[name].as_str().map(|text| text.parse().unwrap());
        let reason = gap["reason"].as_str().unwrap().to_owned();
        (position("from_lsn").unwrap(), position("to_lsn"), reason)
    })
    .collect()
}

/// Row 1 is captured before and row 9 after a loss that `lose` brings about.
async fn lost_and_accepted(world: World, lose: impl AsyncFn(&World), code: &str, reason: &str) {
    let mut old = world.joined("shop/old").await;
    let mut watcher = watcher(&world).await;
    world.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(watcher.take_until(1).await, [1]);
    lose(&world).await;
    world.until("halted").await;
    let trouble = world.until_trouble(code).await;
    let command = "pgcapture source resume shop --accept-gap";
    assert!(trouble.next.contains(command), "{trouble:?}");
    let shown = world.ask(&["source", "show", "shop"]).await.expect(0);
    assert!(
        shown.data.contains("halted") && shown.talk.contains(command),
        "{shown:?}"
    );
    let gap = next_gap(&mut watcher).await;
    assert_eq!(
        (gap.reason.as_str(), gap.to_lsn),
        (reason, 0),
        "its end is not known"
    );
    let from = Lsn(gap.from_lsn);
    let open = [(from, None, reason.to_owned())];
    assert_eq!(shown_gaps(&world).await, open);

    // A plain resume is no decision: the source stays halted.
    world.ask(&["source", "resume", "shop"]).await.expect(0);
    world.until("halted").await;
    let resumed = world
        .ask(&["source", "resume", "shop", "--accept-gap"])
        .await;
    resumed.expect(0);
    world.until("following").await;
    world.sql("INSERT INTO t VALUES (9)").await;
    let gap = next_gap(&mut watcher).await;
    assert!(gap.to_lsn > gap.from_lsn && gap.from_lsn > 0, "{gap:?}");
    let closed = (from, Some(Lsn(gap.to_lsn)), reason.to_owned());
    assert_eq!(shown_gaps(&world).await, std::slice::from_ref(&closed));
    assert_eq!(watcher.take_until(9).await, [9]);
    let mut seen = old.take_until(9).await;
    seen.dedup();
    assert_eq!(seen, [1, 9], "old consumers go on without knowing of gaps");

    // It was accepted once: the next loss halts again, and a restart of the node does not accept it.
    let world = world.crash("").await;
    world.until("following").await;
    assert_eq!(shown_gaps(&world).await, std::slice::from_ref(&closed));
    world.sql("INSERT INTO t VALUES (10)").await;
    world.caught_up().await;
    drop_slot(&world).await;
    world.until("halted").await;
    let gaps = shown_gaps(&world).await;
    assert_eq!(gaps.first(), Some(&closed), "{}", world.node.log());
    let open = gaps.get(1).map(|gap| gap.1);
    assert_eq!(open, Some(None), "{gaps:?} {}", world.node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_while_running_halts_until_the_gap_is_accepted() {
    let lose = async |world: &World| drop_slot(world).await;
    lost_and_accepted(World::new().await, lose, "PGC-S13", "slot_dropped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_dropped_while_running_halts_until_the_gap_is_accepted() {
    let lose = async |world: &World| {
        world.sql("DROP PUBLICATION pgcapture_shop").await;
        world.sql("INSERT INTO t VALUES (2)").await;
        world
            .sql("CREATE PUBLICATION pgcapture_shop FOR TABLE t")
            .await;
    };
    lost_and_accepted(World::new().await, lose, "PGC-S33", "publication_dropped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_invalidated_while_running_halts_until_the_gap_is_accepted() {
    let world = World::with(&[("max_slot_wal_keep_size", "1MB")], "").await;
    // A node that is stopped confirms nothing while its slot's WAL grows.
    let lose = async |world: &World| {
        kill_process(world.node.pid(), Signal::STOP).unwrap();
        // Nothing of this is captured: the walsender has nothing to send and can be ended.
        for number in 0..4 {
            world.sql(&format!("CREATE TABLE other_{number} ()")).await;
            world.sql("SELECT pg_switch_wal()").await;
        }
        world.sql("CHECKPOINT").await;
        let lost = "SELECT 1 FROM pg_replication_slots WHERE wal_status = 'lost'";
        assert_eq!(world.sql(lost).await.len(), 1);
        kill_process(world.node.pid(), Signal::CONT).unwrap();
    };
    lost_and_accepted(world, lose, "PGC-S14", "slot_invalidated").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_read_by_somebody_else_halts_until_the_gap_is_accepted() {
    let world = World::new().await;
    world.sql("INSERT INTO t VALUES (1)").await;
    world.caught_up().await;
    world.ask(&["source", "pause", "shop"]).await.expect(0);
    world.sql("INSERT INTO t VALUES (2)").await;
    world
        .sql("SELECT pg_replication_slot_advance('shop_pgcapture', pg_current_wal_flush_lsn())")
        .await;
    world.ask(&["source", "resume", "shop"]).await.expect(0);
    world.until("halted").await;
    world.until_trouble("PGC-S29").await;
    world
        .ask(&["source", "resume", "shop", "--accept-gap"])
        .await
        .expect(0);
    world.until("following").await;
    let mut consumer = world.joined("shop").await;
    world.sql("INSERT INTO t VALUES (3)").await;
    assert_eq!(id(&consumer.next().await), 3);
    assert_eq!(world.logged_ids().await, [1, 3]);
}
