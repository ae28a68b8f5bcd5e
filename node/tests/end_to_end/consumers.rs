//! Consumers that break the rules, never read or never acknowledge, against the built node.

use pgcapture_proto::pgcapture::{CaptureAck, Checkpoint, capture_request};
use tonic::{Code, Status};

use crate::{
    consumer::{Consumer, id, text},
    process::eventually,
    world::World,
};

fn check(status: &Status, code: Code, says: &str) {
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(says), "{status}");
    assert!(status.message().contains("next: "), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_contract_ends_its_own_session_only() {
    let world = World::new().await;
    let mut good = world.joined("shop/good").await;
    let mut stranger = world.consumer("shoop").await;
    check(&stranger.end().await, Code::NotFound, "known streams: shop");

    let mut silent = Consumer::without_init(world.channel()).await;
    silent.requests = tokio::sync::mpsc::channel(1).0;
    check(&silent.end().await, Code::InvalidArgument, "must be init");

    let mut twice = world.joined("shop/twice").await;
    twice.init("shop/twice", &[]).await;
    check(&twice.end().await, Code::InvalidArgument, "second time");

    let regex = [("TableRegex", text("("))];
    let mut broken = Consumer::open(&world.node.listen, "shop/broken", &regex).await;
    check(&broken.end().await, Code::InvalidArgument, "unclosed group");

    world.sql("INSERT INTO t VALUES (1)").await;
    let mut unknown = world.joined("shop/unknown").await;
    unknown
        .send(capture_request::Type::Ack(CaptureAck {
            checkpoint: Some(Checkpoint {
                lsn: 1 << 60,
                seq: 77,
                ..Checkpoint::default()
            }),
            ..CaptureAck::default()
        }))
        .await;
    let refused = unknown.end().await;
    assert!(refused.message().contains("next: "), "{refused}");

    let large = "u".repeat(32 << 20);
    let mut oversized = world.consumer(&large).await;
    let refused = oversized.end().await;
    assert!(
        matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{refused}"
    );

    let message = good.next().await;
    for _ in 0..3 {
        good.ack(&message).await;
    }
    world.sql("INSERT INTO t VALUES (2)").await;
    assert_eq!(
        id(&good.next().await),
        2,
        "an ack that comes twice is harmless"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_never_read_or_never_acknowledge_hold_up_nobody_and_no_memory() {
    let world = World::new().await;
    let never_reads = world.joined("shop/never-reads").await;
    let mut never_acks = world.joined("shop/never-acks").await;
    let mut good = world.joined("shop/good").await;
    let before = world.node.rss();
    world
        .sql("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 100000) i")
        .await;
    let mut got = 0;
    while got < 5_000 {
        got = id(&never_acks.next().await);
    }
    assert_eq!(good.take_until(100_000).await.len(), 100_000);
    let shown = eventually("the limit", async || {
        let args = ["consumer", "show", "shop/never-acks", "-o", "json"];
        let shown = world.ask(&args).await.json();
        let is_full = shown["unacked"].as_u64() >= Some(5_000);
        is_full
            .then(|| shown.clone())
            .ok_or_else(|| shown.to_string())
    });
    assert_eq!(
        shown.await["unacked"],
        5_000,
        "no more than the limit is delivered"
    );
    let grown = world.node.rss().saturating_sub(before) >> 20;
    assert!(grown < 128, "100 MB of rows, grown by {grown} MiB");
    drop(never_reads);
}
