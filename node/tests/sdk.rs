//! Consumers with the crate `pgcapture`, and `tail`, against three processes and real PostgreSQL: the node
//! that they are connected to dies or drains, and the stream goes on from another one without a hole.

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

use pgcapture::{Client, RawEvents, RawMessage};
use process::{PATIENCE, run};
use trio::{Trio, Writer};

/// Takes and acknowledges rows until `last`. Every row comes in order; one that was taken before may come
/// again where a connection was lost, and nowhere is there a hole.
async fn take(events: &mut RawEvents, seen: &mut i64, last: i64) {
    while *seen < last {
        let event = tokio::time::timeout(PATIENCE, events.next()).await;
        let event = event.expect("the stream goes on").unwrap().unwrap();
        let RawMessage::Change(change) = event.message() else {
            panic!("no change: {event:?}");
        };
        let id: i64 = change.new_row().get("id").unwrap();
        assert!(id <= *seen + 1, "a hole between {seen} and {id}");
        *seen = id.max(*seen);
        event.ack().await.unwrap();
    }
}

/// A consumer that is connected to this node, and has learned from it where the others are.
async fn connected_to(trio: &Trio, index: usize) -> RawEvents {
    let healthy = ["cluster", "health", "--until", "healthy"];
    run(trio.listen(index), &healthy).await.expect(0);
    let client = Client::builder(trio.listen(index)).connect().await.unwrap();
    let consumer = client.consumer("index").stream("shop");
    let events = consumer.subscribe_raw().await.unwrap();
    trio.joined(index, "shop/index").await;
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_at_another_node_when_its_own_is_killed() {
    let mut trio = Trio::start().await;
    trio.add_source(&[]).await;
    let mut events = connected_to(&trio, 1).await;
    let mut writer = Writer::start(&trio.server);
    let mut seen = 0;
    let written = writer.goes_on().await;
    take(&mut events, &mut seen, written).await;
    trio.kill(1).await;
    let written = writer.goes_on().await;
    take(&mut events, &mut seen, written).await;
    let last = writer.stop().await;
    take(&mut events, &mut seen, last).await;
    events.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_follows_when_its_node_drains() {
    let mut trio = Trio::start().await;
    trio.add_source(&[]).await;
    let mut events = connected_to(&trio, 0).await;
    let mut writer = Writer::start(&trio.server);
    let mut seen = 0;
    let written = writer.goes_on().await;
    take(&mut events, &mut seen, written).await;
    // It takes changes all the while: a node that drains waits for nobody.
    let log = tokio::select! {
        log = trio.stop(0) => log,
        () = take(&mut events, &mut seen, i64::MAX) => unreachable!("there is always a next row"),
    };
    assert!(log.contains("\"stopped\""), "{log}");
    let last = writer.stop().await;
    take(&mut events, &mut seen, last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_tail_take_the_next_node() {
    let mut trio = Trio::start().await;
    trio.add_source(&[]).await;
    let all: Vec<&str> = (0..3).map(|index| trio.listen(index)).collect();
    let all = all.join(",");
    let mut writer = Writer::start(&trio.server);
    let args = [
        "tail", "shop", "--from", "earliest", "-n", "1000", "-f", "%k\\n",
    ];
    let faults = async {
        writer.goes_on().await;
        trio.kill(0).await;
        run(&all, &["source", "ls"]).await.expect(0);
        let refused = run(trio.listen(0), &["--timeout", "2s", "source", "ls"]).await;
        refused.expect(6).says(&["cannot reach"]);
    };
    let (seen, ()) = tokio::join!(run(&all, &args), faults);
    let seen = seen.expect(0);
    let wanted: Vec<String> = (1..=1000).map(|id| format!("id={id}")).collect();
    let shown: Vec<&str> = seen.data.lines().collect();
    assert_eq!(shown, wanted, "a hole, or a row twice");
    writer.stop().await;
}
