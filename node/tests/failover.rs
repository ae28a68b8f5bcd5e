//! Three nodes as three processes against real PostgreSQL: whoever dies, a consumer on another node
//! gets every row once and in order, on the stream that it opened before.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failure"
)]

#[path = "end_to_end/process.rs"]
#[expect(dead_code, reason = "shared with the tests of one node")]
mod process;

#[path = "end_to_end/consumer.rs"]
#[expect(dead_code, reason = "shared with the tests of one node")]
mod consumer;

#[path = "failover/trio.rs"]
#[expect(dead_code, reason = "shared with the tests of recovery and of dumps")]
mod trio;

#[path = "end_to_end/shim.rs"]
mod shim;

#[path = "failover/rolling.rs"]
mod rolling;

#[path = "failover/publication.rs"]
mod publication;

#[path = "failover/reopen.rs"]
mod reopen;

#[path = "failover/slow_disk.rs"]
mod slow_disk;

#[path = "failover/stops.rs"]
mod stops;

use std::collections::BTreeSet;

use consumer::{Consumer, YES, id, text};
use process::{eventually, run};
use serde_json::Value;
use trio::{Trio, Writer};

/// Takes rows until `last`, acknowledging each; every row once, in order.
async fn take_in_order(consumer: &mut Consumer, from: i64, last: i64) {
    for wanted in from..=last {
        let message = consumer.next().await;
        assert_eq!(id(&message), wanted, "a hole, or a row twice");
        consumer.ack(&message).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_on_another_node_goes_on_when_owners_die() {
    let (mut trio, _, reader) = Trio::with_source(&[]).await;
    let mut consumer = trio.consumer(reader).await;
    let mut writer = Writer::start(&trio.server);
    let mut seen = 0;
    for _ in 0..3 {
        let written = writer.goes_on().await;
        take_in_order(&mut consumer, seen + 1, written).await;
        seen = written;
        let owner = trio.owner().await;
        if owner == reader {
            break;
        }
        trio.kill(owner).await;
        trio.owner_after(owner).await;
        let written = writer.goes_on().await;
        take_in_order(&mut consumer, seen + 1, written).await;
        seen = written;
        trio.start_again(owner).await;
    }
    let last = writer.stop().await;
    take_in_order(&mut consumer, seen + 1, last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_goes_to_another_node_is_added_as_soon_as_that_node_reads_it() {
    let trio = Trio::start().await;
    let url = trio.server.url("postgres");
    let mut owners = BTreeSet::new();
    for number in 1..=3 {
        let (name, table) = (format!("s{number}"), format!("public.t{number}"));
        trio.sql(&format!("CREATE TABLE {table} (id bigint PRIMARY KEY)"))
            .await;
        let add = ["source", "add", &name, "--url", &url, "--tables", &table];
        let add = [&add[..], &["-o", "json"]].concat();
        let added = run(trio.listen(0), &add).await;
        let json: Value = serde_json::from_str(&added.data).unwrap_or_default();
        let state = json["state"].as_str().unwrap_or_default();
        // What the node that was asked knows by itself of another one's source is "starting".
        assert_eq!(state, "following", "{} {}", added.data, added.talk);
        owners.extend(json["owner"].as_str().map(str::to_owned));
    }
    assert_eq!(owners.len(), 3, "each node has one: {owners:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_can_be_shown_moved_and_removed_when_the_node_that_kept_it_is_gone() {
    let mut trio = Trio::start().await;
    trio.add_source(&[]).await;
    let owner = trio.owner().await;
    let (home, asked) = ((owner + 1) % 3, (owner + 2) % 3);
    let mut writer = Writer::start(&trio.server);
    let mut consumers = Vec::new();
    for uri in ["shop/moved", "shop/removed"] {
        let mut consumer = Consumer::open(trio.listen(home), uri, &[]).await;
        trio.joined(asked, uri).await;
        writer.goes_on().await;
        let message = consumer.next().await;
        consumer.ack(&message).await;
        consumers.push(consumer);
    }
    trio.kill(home).await;
    // The sessions were on that node, and end with it.
    drop(consumers);
    let ask = async |args: &[&str]| run(trio.listen(asked), args).await;

    let shown = ask(&["consumer", "show", "shop/moved", "-o", "json"]).await;
    assert!(shown.data.contains("\"sessions\": 0"), "{}", shown.data);
    shown.expect(0);
    ask(&[
        "consumer",
        "seek",
        "shop/moved",
        "--to",
        "latest",
        "--dry-run",
    ])
    .await
    .expect(0);
    ask(&["consumer", "seek", "shop/moved", "--to", "latest", "--yes"])
        .await
        .expect(0);
    ask(&["consumer", "rm", "shop/removed", "--yes"])
        .await
        .expect(0);
    let listed = ask(&["consumer", "ls", "-o", "json"]).await;
    assert!(listed.data.contains("shop/moved"), "{}", listed.data);
    assert!(!listed.data.contains("shop/removed"), "{}", listed.data);
    listed.expect(0);
    writer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_leaves_a_node_that_stops_before_the_node_is_gone() {
    let (mut trio, owner, reader) = Trio::with_source(&[]).await;
    let mut consumer = trio.consumer(reader).await;
    let mut writer = Writer::start(&trio.server);
    let written = writer.goes_on().await;
    take_in_order(&mut consumer, 1, written).await;
    let log = trio.stop(owner).await;
    assert!(log.contains("\"stopped\""), "{log}");
    trio.owner_after(owner).await;
    let last = writer.stop().await;
    take_in_order(&mut consumer, written + 1, last).await;
}

/// Waits until the slot has let go of everything that is committed now.
async fn slot_is_beyond_now(trio: &Trio) {
    let end = trio.sql("SELECT pg_current_wal_insert_lsn()").await;
    let end = end[0][0].clone().unwrap();
    let sql = format!("SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn >= '{end}'");
    eventually("the slot moves", async || {
        trio.sql("SELECT pg_logical_emit_message(true, 'mark', repeat('x', 2000000))")
            .await;
        let beyond = trio.sql(&sql).await;
        (!beyond.is_empty()).then_some(()).ok_or(end.clone())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_went_back_halts_no_next_owner_and_is_told_what_is_left() {
    let (mut trio, owner, reader) = Trio::with_source(&[]).await;
    let mut consumer = trio.consumer(reader).await;
    for number in 1..=9 {
        let row = format!("INSERT INTO t VALUES ({number})");
        trio.sql(&row).await;
    }
    take_in_order(&mut consumer, 1, 9).await;
    slot_is_beyond_now(&trio).await;
    consumer.close().await;
    eventually("the consumer goes back", async || {
        let args = ["consumer", "seek", "shop", "--to", "earliest", "--yes"];
        let sought = run(trio.listen(reader), &args).await;
        sought.succeeded().then_some(()).ok_or(sought.talk)
    })
    .await;
    // The log of the owner still has it all.
    let mut consumer = Consumer::open(trio.listen(reader), "shop", &[]).await;
    assert_eq!(id(&consumer.next().await), 1);
    drop(consumer);
    trio.kill(owner).await;
    trio.owner_after(owner).await;
    let mut consumer = Consumer::open(trio.listen(reader), "shop", &[]).await;
    let told = consumer.end().await;
    assert_eq!(told.code(), tonic::Code::OutOfRange, "{told}");
    assert!(told.message().starts_with("PGC-G06"), "{told}");
    // Others are not held up.
    let parameters = [("Start", text("earliest"))];
    let mut other = Consumer::open(trio.listen(reader), "shop/other", &parameters).await;
    trio.sql("INSERT INTO t VALUES (10)").await;
    assert_eq!(other.take_until(10).await, [10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_spills_frees_the_source_and_a_slow_consumer_is_told_of_it() {
    let budget = ["--wal-budget", "8MiB", "--wal-alert", "25%"];
    let budget = [&budget[..], &["--wal-policy", "spill"]].concat();
    let (mut trio, owner, reader) = Trio::with_source(&budget).await;
    let parameters = [("Gaps", YES)];
    let mut slow = Consumer::open(trio.listen(reader), "shop/slow", &parameters).await;
    trio.joined(reader, "shop/slow").await;
    trio.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(slow.take_until(1).await, [1]);
    slow.close().await;
    for first in [2, 10_001] {
        let last = first + 7_999;
        trio.sql(&format!(
            "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series({first}, {last}) i"
        ))
        .await;
        let end = trio.sql("SELECT pg_current_wal_insert_lsn()").await;
        let end = end[0][0].clone().unwrap();
        // Nobody has read it, and yet all but the newest of it may go.
        let sql = format!(
            "SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn >= '{end}'::pg_lsn - 4000000"
        );
        eventually("the slot is let go", async || {
            let is_free = !trio.sql(&sql).await.is_empty();
            is_free.then_some(()).ok_or(end.clone())
        })
        .await;
    }
    trio.kill(owner).await;
    trio.owner_after(owner).await;
    let mut slow = Consumer::open(trio.listen(reader), "shop/slow", &parameters).await;
    let message = slow.next().await;
    let gap = message.gap.clone().expect("a gap, not rows");
    assert_eq!(gap.reason, "wal_guard");
    assert!(gap.to_lsn > gap.from_lsn, "{gap:?}");
    slow.ack(&message).await;
    // Nothing has halted.
    trio.sql("INSERT INTO t VALUES (20000)").await;
    let after = slow.take_until(20_000).await;
    assert!(!after.contains(&2), "{}", after.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_told_other_peers_is_warned() {
    let mut trio = Trio::start().await;
    let log = trio.stop(2).await;
    assert!(!log.contains("PGC-R13"), "{log}");
    trio.start_again_with(2, "127.0.0.1:1").await;
    let warned = trio.node(2).logged(|line| line["code"] == "PGC-R13").await;
    let text = warned["message"].as_str().unwrap();
    assert!(text.contains("lists the peers"), "{warned}");
    assert!(text.contains("127.0.0.1:1"), "{warned}");
    assert!(!warned["next"].as_str().unwrap().is_empty());
}
