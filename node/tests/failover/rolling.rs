//! Three nodes are restarted one after the other, as an upgrade does it, while rows are written: each
//! hands its source over before it is gone, and consumers get every row once and in order.

use futures_util::future::join_all;
use serde_json::Value;

use crate::{
    consumer::Consumer,
    process::{eventually, run},
    take_in_order,
    trio::{Trio, Writer},
};

/// From the assignment to the first reading: some tenths of a second, but for a machine that is busy
/// with other tests. That it was handed over, not taken from a dead node,
/// is told by the order of things.
const TAKEN_OVER_SECONDS_MAX: f64 = 20.0;

/// What the nodes remember, as one of them tells it.
async fn events(listen: &str) -> Vec<Value> {
    let events = run(listen, &["cluster", "events", "-o", "json"]).await;
    events.json().as_array().unwrap().clone()
}

/// The last event of this kind about the source with these words.
fn newest(events: &[Value], kind: &str, words: &str) -> Option<Value> {
    let is_wanted = |event: &&Value| {
        let text = event["text"].as_str().unwrap();
        event["kind"] == kind && event["subject"] == "shop" && text.contains(words)
    };
    events.iter().rfind(is_wanted).cloned()
}

fn time(value: &Value) -> jiff::Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

/// Checks by its log and by what the others remember that a node handed over before it was gone.
async fn handed_over(log: &str, name: &str, witness: &str) {
    assert!(!log.contains("no other node takes the sources"), "{log}");
    let lines = log.lines().map(serde_json::from_str::<Value>);
    let stopped = lines.flatten().find(|line| line["message"] == "stopped");
    let stopped = time(&stopped.unwrap_or_else(|| panic!("no clean end: {log}"))["timestamp"]);
    let (assigned, taken) = eventually("the source is taken over", async || {
        let events = events(witness).await;
        let assigned = newest(&events, "assigned", &format!("goes from {name} to"));
        let taken = newest(&events, "taken_over", &format!("over from {name}"));
        assigned.zip(taken).ok_or_else(|| format!("{events:?}"))
    })
    .await;
    assert!(
        time(&assigned["at"]) <= stopped,
        "{assigned} came after the end at {stopped}"
    );
    let took = taken["took_seconds"].as_f64().unwrap();
    assert!(took <= TAKEN_OVER_SECONDS_MAX, "{taken}");
}

/// A consumer with a subscription of its own, which is at home on its node.
struct Reader {
    index: usize,
    consumer: Consumer,
    seen: i64,
}

impl Reader {
    async fn open(trio: &Trio, index: usize, seen: i64) -> Self {
        let uri = format!("shop/c{index}");
        let consumer = Consumer::open(trio.listen(index), &uri, &[]).await;
        trio.joined(index, &uri).await;
        Self {
            index,
            consumer,
            seen,
        }
    }

    /// Takes every row up to `last`: each once, in order.
    async fn read_to(&mut self, last: i64) {
        take_in_order(&mut self.consumer, self.seen + 1, last).await;
        self.seen = last;
    }
}

async fn all_read_to(readers: &mut [Reader], last: i64) {
    join_all(readers.iter_mut().map(|reader| reader.read_to(last))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_restarted_one_by_one_lose_nothing_and_double_nothing() {
    let mut trio = Trio::start().await;
    trio.add_source(&[]).await;
    let mut readers = Vec::new();
    for index in 0..3 {
        readers.push(Reader::open(&trio, index, 0).await);
    }
    let mut writer = Writer::start(&trio.server);
    for index in 0..3 {
        let witness = (index + 1) % 3;
        // So that its agent has to be handed over.
        trio.move_source(witness, index).await;
        let written = writer.goes_on().await;
        all_read_to(&mut readers, written).await;
        // One leaves in time; the streams of the others go on.
        let place = readers.iter().position(|reader| reader.index == index);
        let Reader { consumer, seen, .. } = readers.swap_remove(place.unwrap());
        consumer.close().await;
        let until = written + 100;
        let reads = all_read_to(&mut readers, until);
        let (log, ()) = tokio::join!(trio.stop(index), reads);
        let name = format!("n{}", index + 1);
        handed_over(&log, &name, trio.listen(witness)).await;
        trio.owner_after(index).await;
        let written = writer.goes_on().await;
        all_read_to(&mut readers, written).await;
        trio.start_again(index).await;
        readers.push(Reader::open(&trio, index, seen).await);
        let written = writer.goes_on().await;
        all_read_to(&mut readers, written).await;
    }
    let last = writer.stop().await;
    all_read_to(&mut readers, last).await;
}
