//! A cluster that lost the disks of a majority: one survivor goes on by `pgcapture cluster recover`, with
//! its sources and positions; new nodes join it, and one that comes back with its old data is refused.

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
#[expect(dead_code, reason = "shared with the tests of failover")]
mod trio;

use consumer::{Consumer, id};
use process::{Node, run};
use trio::{Trio, Writer};

/// Takes and acknowledges rows until `last`. What was acknowledged just before a node died may come
/// again; nowhere is there a hole.
async fn take(consumer: &mut Consumer, seen: &mut i64, last: i64) {
    while *seen < last {
        let message = consumer.next().await;
        let id = id(&message);
        assert!(id <= *seen + 1, "a hole between {seen} and {id}");
        *seen = id.max(*seen);
        consumer.ack(&message).await;
    }
}

/// What a node knows: its source and its consumer.
async fn known(node: &str) -> [serde_json::Value; 2] {
    let sources = run(node, &["source", "ls", "-o", "json"]).await.json();
    let consumers = run(node, &["consumer", "ls", "-o", "json"]).await.json();
    [sources[0]["name"].clone(), consumers[0]["uri"].clone()]
}

async fn wait_healthy(node: &str) {
    let healthy = [
        "cluster",
        "health",
        "--until",
        "healthy",
        "--timeout",
        "50s",
    ];
    run(node, &healthy).await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_goes_on_and_others_join_it() {
    let mut trio = Trio::start().await;
    trio.add_source(&[]).await;
    wait_healthy(trio.listen(2)).await;
    let mut consumer = Consumer::open(trio.listen(2), "shop/index", &[]).await;
    trio.joined(2, "shop/index").await;
    let mut writer = Writer::start(&trio.server);
    let written = writer.goes_on().await;
    let mut seen = 0;
    take(&mut consumer, &mut seen, written).await;
    consumer.close().await;
    assert_eq!(known(trio.listen(2)).await, ["shop", "shop/index"]);
    let last = writer.stop().await;

    let file = trio.file(2);
    let recover = ["cluster", "recover", "-c", &file];
    let yes = ["cluster", "recover", "-c", &file, "--yes"];
    let running = run("", &yes).await.expect(7);
    running.says(&["PGC-N01"]);
    trio.kill(2).await;
    // The others live: nothing to recover, and nothing is done.
    run("", &yes)
        .await
        .expect(7)
        .says(&["PGC-R17", "is n1 alive?"]);
    trio.kill(0).await;
    trio.kill(1).await;
    trio.lose_disk(0);

    let plan = run("", &recover).await.expect(7);
    for words in [
        "let node n3 go on alone",
        "keep 1 source(s)",
        "drop n1 (",
        "n2 (",
    ] {
        assert!(plan.data.contains(words), "{plan:?}");
    }
    run("", &[&recover[..], &["--dry-run"]].concat())
        .await
        .expect(0);
    let done = run("", &yes).await.expect(0);
    assert!(done.talk.contains("it joins"), "{done:?}");
    run("", &yes).await.expect(1).says(&["PGC-R16"]);

    trio.start_again(2).await;
    assert_eq!(known(trio.listen(2)).await, ["shop", "shop/index"]);
    wait_healthy(trio.listen(2)).await;
    let mut consumer = Consumer::open(trio.listen(2), "shop/index", &[]).await;
    take(&mut consumer, &mut seen, last).await;

    // One with its old data says why it cannot come back; an empty one joins under a name that is free.
    let (exit, log) = Node::launch(&trio.file(1), &[]).ended().await;
    assert_eq!(exit, Some(1), "{log}");
    assert!(log.contains("PGC-R15") && log.contains("next: "), "{log}");
    trio.lose_disk(1);
    trio.start_again(0).await;
    trio.start_again(1).await;
    wait_healthy(trio.listen(0)).await;
    // They join as learners and vote once they have everything.
    process::eventually("three vote", async || {
        let members = run(trio.listen(1), &["cluster", "members", "-o", "json"]).await;
        let members = members.json();
        let voters = members.as_array().unwrap().iter();
        let voters = voters.filter(|it| it["role"] == "voter").count();
        (voters == 3).then_some(()).ok_or(members.to_string())
    })
    .await;
    // Three again: they agree without the survivor.
    consumer.close().await;
    trio.kill(2).await;
    wait_for_change(&trio).await;
}

/// A change that a majority must agree on.
async fn wait_for_change(trio: &Trio) {
    process::eventually("a change is agreed on", async || {
        let paused = run(trio.listen(0), &["source", "pause", "shop"]).await;
        paused.succeeded().then_some(()).ok_or(paused.talk)
    })
    .await;
}

#[tokio::test]
async fn what_is_no_survivor_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let place = process::Place::at(folder.path());
    let file = place.configure("");
    let recover = ["cluster", "recover", "-c", &file, "--yes"];
    run("", &recover).await.expect(4).says(&["PGC-R16"]);
    assert!(!place.data().exists());
    let node = Node::start(&file).await;
    assert_eq!(node.stop().await.0, Some(0));
    let refused = run("", &recover).await.expect(1);
    refused.says(&["PGC-R16", "its only member"]);
    Node::start(&file).await.kill().await;
}
