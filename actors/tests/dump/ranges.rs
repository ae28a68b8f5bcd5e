//! Ranges of pages and sweeps: every row once, none held in memory, connections used again.

use pgcapture_actors::postgres::dump::{ReadError, ReplicaKind};
use pgcapture_engine::dump::{Extent, PageRange};

use crate::world::{V15, World, connect, numbers, pages, read, request, rest, table, whole};

const TABLE: &[&str] = &[
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i",
    "CREATE PUBLICATION p FOR TABLE t",
    "VACUUM ANALYZE t",
];

#[tokio::test]
async fn ranges_side_by_side_have_every_row_once() {
    let mut world = World::with_standby(&[]).await;
    world.run(TABLE).await;
    world.run(&["DELETE FROM t WHERE id % 10 = 0"]).await;
    world.catch_up().await;
    for kind in [ReplicaKind::Source, ReplicaKind::Standby] {
        let replica = world.replica(kind).await;
        let t = table(&replica, "t").await;
        assert!(t.page_count > 50, "{t:?}");
        let mut ids = Vec::new();
        for first in (0..t.page_count).step_by(7) {
            let last = if first + 7 < t.page_count {
                first + 6
            } else {
                PageRange::OPEN
            };
            ids.extend(numbers(
                &read(&replica, pages(&t, first, last)).await.unwrap(),
                "id",
            ));
        }
        ids.sort_unstable();
        let expected: Vec<i32> = (1..=5_000).filter(|id| id % 10 != 0).collect();
        assert_eq!(ids, expected);
        let whole = read(&replica, whole(&t)).await.unwrap();
        assert_eq!(numbers(&whole, "id"), expected);
        let change = &whole[0];
        assert_eq!(
            (&*change.schema, &*change.table, change.op),
            ("public", "t", 1)
        );
        assert!(change.old.is_empty());
    }
}

#[tokio::test]
async fn a_range_beyond_the_end_backwards_or_of_an_empty_table_is_whole_and_empty() {
    let mut world = World::start(&[]).await;
    world.run(TABLE).await;
    world
        .run(&["CREATE TABLE e (id int)", "ALTER PUBLICATION p ADD TABLE e"])
        .await;
    let replica = world.replica(ReplicaKind::Source).await;
    let (t, e) = (table(&replica, "t").await, table(&replica, "e").await);
    assert_eq!(
        (e.page_count, e.row_estimate, e.has_toast),
        (0, None, false)
    );
    let beyond = pages(&t, t.page_count, PageRange::OPEN);
    for request in [
        beyond,
        pages(&t, 4_000_000_000, 4_100_000_000),
        pages(&t, 3, 2),
        whole(&e),
    ] {
        assert!(read(&replica, request).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_sweep_has_what_was_written_since_the_plan_wherever_it_lies() {
    let mut world = World::with_standby(&[]).await;
    world.run(TABLE).await;
    world.run(&["VACUUM FREEZE t"]).await;
    // Open while the dump is planned: its number is older than those of transactions before.
    let mut open = crate::world::connect(&world.source).await;
    open.query("BEGIN; INSERT INTO t VALUES (9001, 'open')")
        .await
        .unwrap();
    world.run(&["INSERT INTO t VALUES (9000, 'before')"]).await;
    world.catch_up().await;
    let replica = world.replica(ReplicaKind::Standby).await;
    let position = crate::world::plan(&replica, "t").await.position;
    let t = table(&replica, "t").await;
    open.query(
        "SAVEPOINT a; INSERT INTO t VALUES (9002, 'sub'); SAVEPOINT b; \
         UPDATE t SET v = 'moved' WHERE id = 7; COMMIT",
    )
    .await
    .unwrap();
    world
        .run(&[
            "DELETE FROM t WHERE id = 8",
            "UPDATE t SET v = 'late' WHERE id = 9",
        ])
        .await;
    world.catch_up().await;
    for kind in [ReplicaKind::Source, ReplicaKind::Standby] {
        let since_xid = position.since_xid;
        let mut sweep = request(&t, Extent::Sweep { since_xid });
        sweep.at_least = position.at;
        let rows = read(&world.replica(kind).await, sweep).await.unwrap();
        // 9000 is newer than the open transaction: more than needed does no harm.
        assert_eq!(numbers(&rows, "id"), [7, 9, 9_000, 9_001, 9_002]);
    }
}

#[tokio::test]
async fn a_sweep_whose_start_is_beyond_comparison_reads_everything() {
    let mut world = World::start(&[]).await;
    world.run(TABLE).await;
    let replica = world.replica(ReplicaKind::Source).await;
    let t = table(&replica, "t").await;
    // Beyond 2^31 transactions a number seems to be ahead.
    let now: u32 = world.value("SELECT txid_current()").await.parse().unwrap();
    let since_xid = now + 1_000;
    let rows = read(&replica, request(&t, Extent::Sweep { since_xid }))
        .await
        .unwrap();
    assert_eq!(rows.len(), 5_000);
}

#[tokio::test]
async fn only_the_pages_of_a_range_are_read() {
    let mut world = World::start(&[]).await;
    world.run(TABLE).await;
    let replica = world.replica(ReplicaKind::Source).await;
    let t = table(&replica, "t").await;
    let fetched = "SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables \
                   WHERE relname = 't'";
    if world.sql.server_version() >= V15 {
        world.run(&["SELECT pg_stat_force_next_flush()"]).await;
    } else {
        begin_counters_anew(&mut world).await;
    }
    let before: u32 = world.value(fetched).await.parse().unwrap();
    read(&replica, pages(&t, 10, 19)).await.unwrap();
    replica.close_idle();
    let mut after = before;
    // Counters come when the session has ended.
    while after == before {
        after = world.value(fetched).await.parse().unwrap();
    }
    assert_eq!(after - before, 10);
}

/// Up to 14 a session sends its counters when it ends, and a collector takes all in order: once it
/// has forgotten what it was told to, nothing from before is on its way any more.
async fn begin_counters_anew(world: &mut World) {
    let before = world.sql.backend_pid();
    world.sql = connect(&world.source).await;
    let ended = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {before}");
    while world.value(&ended).await != "0" {}
    let rows = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 't'";
    while world.value(rows).await != "5000" {}
    world
        .run(&["SELECT pg_stat_reset_single_table_counters('t'::regclass)"])
        .await;
    while world.value(rows).await != "0" {}
}

#[tokio::test]
async fn sessions_are_named_used_again_and_end_with_a_dropped_reader() {
    let mut world = World::start(&[]).await;
    world.run(TABLE).await;
    let sessions = "SELECT coalesce(string_agg(application_name, ' '), '') FROM pg_stat_activity \
                    WHERE application_name LIKE 'pgcapture/dump/%'";
    let replica = world.replica(ReplicaKind::Source).await;
    let t = table(&replica, "t").await;
    let pid =
        "SELECT max(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgcapture/dump/%'";
    read(&replica, whole(&t)).await.unwrap();
    let first = world.value(pid).await;
    read(&replica, whole(&t)).await.unwrap();
    assert_eq!(world.value(pid).await, first);
    assert_eq!(world.value(sessions).await, "pgcapture/dump/d-41");
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(
        world.value(slots).await,
        "0",
        "the slot goes before the rows"
    );
    // Two at once are two sessions; a third waits for one of them.
    let mut one = replica.open(whole(&t)).await.unwrap();
    let two = replica.open(whole(&t)).await.unwrap();
    assert_eq!(
        world.value(sessions).await,
        "pgcapture/dump/d-41 pgcapture/dump/d-41"
    );
    let third = replica.open(whole(&t));
    tokio::pin!(third);
    assert!(futures_util::poll!(&mut third).is_pending());
    drop(two);
    let mut third = third.await.unwrap();
    assert_eq!(rest(&mut one).await.unwrap().len(), 5_000);
    assert_eq!(rest(&mut third).await.unwrap().len(), 5_000);
    while world.value(sessions).await.split(' ').count() > 2 {}
}

#[tokio::test]
async fn rows_flow_with_flat_memory_and_a_row_above_the_limit_is_refused() {
    let mut world = World::start(&[]).await;
    world
        .run(&[
            "CREATE TABLE t (id int, v text)",
            "ALTER TABLE t ALTER v SET STORAGE EXTERNAL",
            "INSERT INTO t SELECT i, repeat('x', 500000) FROM generate_series(1, 400) i",
            "CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')",
        ])
        .await;
    let replica = world.replica(ReplicaKind::Source).await;
    let t = table(&replica, "t").await;
    assert!(t.has_toast && t.byte_count > 200_000_000, "{t:?}");
    let mut reader = replica.open(whole(&t)).await.unwrap();
    let mut first = None;
    let (mut rows, mut bytes) = (0, 0);
    while let Some(batch) = reader.next().await.unwrap() {
        rows += batch.rows.len();
        bytes += batch.bytes.len();
        if rows == 40 {
            first = Some(resident_bytes());
        }
    }
    assert_eq!(rows, 400);
    assert!(bytes > 200_000_000);
    let grown = resident_bytes().saturating_sub(first.unwrap());
    // Other tests run in this process.
    assert!(grown < 100 << 20, "{grown} bytes more");
    world
        .run(&["INSERT INTO t VALUES (401, repeat('x', 1100000))"])
        .await;
    let error = read(&replica, whole(&t)).await.unwrap_err();
    assert!(matches!(error, ReadError::RowUnreadable { .. }), "{error}");
    world
        .run(&["INSERT INTO t VALUES (402, repeat('x', 5000000))"])
        .await;
    let error = read(&replica, whole(&t)).await.unwrap_err();
    assert_eq!(error.explanation().code, "PGC-E34", "{error}");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}
