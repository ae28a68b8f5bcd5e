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
#[expect(dead_code, reason = "shared with the tests of dumps")]
mod trio;

use consumer::{Consumer, id};
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
    let mut trio = Trio::start().await;
    trio.add_source().await;
    let first = trio.owner().await;
    let reader = (0..3).find(|index| *index != first).unwrap();
    let mut consumer = Consumer::open(trio.listen(reader), "shop", &[]).await;
    trio.joined(reader, "shop").await;
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
async fn a_source_leaves_a_node_that_stops_before_the_node_is_gone() {
    let mut trio = Trio::start().await;
    trio.add_source().await;
    let owner = trio.owner().await;
    let reader = (0..3).find(|index| *index != owner).unwrap();
    let mut consumer = Consumer::open(trio.listen(reader), "shop", &[]).await;
    trio.joined(reader, "shop").await;
    let mut writer = Writer::start(&trio.server);
    let written = writer.goes_on().await;
    take_in_order(&mut consumer, 1, written).await;
    let log = trio.stop(owner).await;
    assert!(log.contains("\"stopped\""), "{log}");
    trio.owner_after(owner).await;
    let last = writer.stop().await;
    take_in_order(&mut consumer, written + 1, last).await;
}
