//! A publication is made again while its source moves from one node to another: neither of them sees it
//! happen, and PostgreSQL 18 says nothing of what was written in between.

use serde_json::Value;

use crate::{
    consumer::{Consumer, YES, id, text},
    process::{eventually, run},
    trio::Trio,
};

/// Waits until the cluster has agreed on this version of the protocol between nodes.
async fn speaks(trio: &Trio, index: usize, protocol: u64) {
    eventually("the version", async || {
        let status = run(trio.listen(index), &["cluster", "status", "-o", "json"]).await;
        let json: Value = serde_json::from_str(&status.data).unwrap_or_default();
        let is_so = json["protocol"].as_u64() == Some(protocol);
        is_so.then_some(()).ok_or(status.data)
    })
    .await;
}

/// Waits until the source is in a state, as `source show` says; returns all of it.
async fn shows(trio: &Trio, index: usize, state: &str) -> String {
    eventually(state, async || {
        let shown = run(
            trio.listen(index),
            &["source", "show", "shop", "-o", "json"],
        )
        .await;
        let words = format!("\"{state}\"");
        let is_so = shown.data.contains(&words);
        is_so.then_some(shown.data.clone()).ok_or(shown.data)
    })
    .await
}

/// Row 2 is written while there is no publication and nobody reads the slot.
async fn remade(trio: &Trio) {
    eventually("the slot is free", async || {
        let sql = "SELECT 1 FROM pg_replication_slots WHERE active";
        let rows = trio.sql(sql).await;
        rows.is_empty()
            .then_some(())
            .ok_or_else(|| format!("{rows:?}"))
    })
    .await;
    trio.sql("DROP PUBLICATION pgcapture_shop").await;
    trio.sql("INSERT INTO t VALUES (2)").await;
    trio.sql("CREATE PUBLICATION pgcapture_shop FOR TABLE t")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_remade_while_its_source_moves_is_a_declared_gap() {
    let (trio, first, second) = Trio::with_source(&[]).await;
    let third = 3 - first - second;
    let parameters = [("Gaps", YES), ("Start", text("earliest"))];
    let mut watcher = Consumer::open(trio.listen(third), "shop/watcher", &parameters).await;
    trio.joined(third, "shop/watcher").await;
    speaks(&trio, third, 2).await;
    // From then on every owner has it agreed on before it reads.
    trio.move_source(third, first).await;
    trio.move_source(third, second).await;
    trio.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(watcher.take_until(1).await, [1]);
    let paused = run(trio.listen(third), &["source", "pause", "shop"]).await;
    paused.expect(0);
    remade(&trio).await;
    let name = format!("n{}", first + 1);
    let moved = run(trio.listen(third), &["slot", "move", "shop", &name]).await;
    moved.expect(0);
    let resumed = run(trio.listen(third), &["source", "resume", "shop"]).await;
    resumed.expect(0);

    let shown = shows(&trio, third, "halted").await;
    assert!(shown.contains("PGC-S33"), "{shown}");
    let args = ["source", "resume", "shop", "--accept-gap"];
    run(trio.listen(third), &args).await.expect(0);
    shows(&trio, third, "following").await;
    trio.sql("INSERT INTO t VALUES (9)").await;
    let mut gaps = Vec::new();
    let row = loop {
        let message = watcher.next().await;
        watcher.ack(&message).await;
        match &message.gap {
            Some(gap) => gaps.push((gap.reason.clone(), gap.to_lsn > gap.from_lsn)),
            None => break id(&message),
        }
    };
    let closed = ("publication_dropped".to_owned(), true);
    assert_eq!((row, gaps.last()), (9, Some(&closed)), "{gaps:?}");
    // It was passed once and for all.
    trio.move_source(third, second).await;
    trio.sql("INSERT INTO t VALUES (10)").await;
    assert_eq!(watcher.take_until(10).await, [10]);
}
