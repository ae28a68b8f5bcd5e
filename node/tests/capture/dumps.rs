//! Rows of dumps on the stream: where they come, what they look like, how they are answered.

use std::sync::atomic::Ordering;

use pgcapture_actors::{
    dump::{
        Delivered, RowBatch, RowEvent,
        scripted::{Ended, Opening, Script, script},
    },
    gateway::GatewayLimits,
    log::ChangeLog,
};
use pgcapture_engine::lsn::Lsn;
use pgcapture_proto::pgcapture::{CaptureMessage, Change, Message, change::Operation, message};
use prost::Message as _;
use prost_types::value::Kind;
use tokio::sync::mpsc;

use crate::harness::{
    Consumer, Node, PATIENCE, earliest, id, node_with_ranges, position, run, text,
};

/// A node with a scripted source of ranges.
pub(crate) async fn dumping() -> (Node, Script) {
    let script = script();
    let ranges = std::sync::Arc::clone(&script.ranges);
    let node = node_with_ranges(ranges, GatewayLimits::default()).await;
    (node, script)
}

/// The same, with a change at 10 and a consumer of what comes after it.
async fn joined(parameters: &[(&str, Kind)]) -> (Node, Script, Consumer) {
    let (mut node, script) = dumping().await;
    node.publish(10, &["a"]).await;
    let consumer = node.join("shop", parameters).await;
    (node, script, consumer)
}

/// The same, with a consumer in order that got the change and has not answered it.
async fn in_order() -> (Node, Script, Consumer, CaptureMessage) {
    let (mut node, script) = dumping().await;
    node.publish(10, &["a"]).await;
    let parameters = [earliest(), ("Mode", text("ordered"))];
    let mut consumer = node.open("shop", &parameters).await;
    let change = consumer.next().await;
    (node, script, consumer, change)
}

/// Encoded rows of these tables.
pub(crate) fn rows(tables: &[&str]) -> RowEvent {
    let (mut bytes, mut rows) = (Vec::new(), Vec::new());
    for table in tables {
        let change = Change {
            op: Operation::Update.into(),
            schema: "public".to_owned(),
            table: (*table).to_owned(),
            ..Change::default()
        };
        let row = Message {
            r#type: Some(message::Type::Change(change)),
        }
        .encode_to_vec();
        rows.push((
            u32::try_from(bytes.len()).unwrap(),
            u32::try_from(row.len()).unwrap(),
        ));
        bytes.extend(row);
    }
    RowEvent::Rows(RowBatch {
        bytes: bytes.into(),
        rows,
    })
}

pub(crate) async fn opening(script: &mut Script) -> Opening {
    let opening = tokio::time::timeout(PATIENCE, script.opening()).await;
    opening.expect("a range is opened").unwrap()
}

pub(crate) async fn ended(script: &mut Script) -> Ended {
    let ended = tokio::time::timeout(PATIENCE, script.ended()).await;
    ended.expect("a range ends").unwrap()
}

pub(crate) async fn finished(script: &mut Script) -> (u64, Delivered) {
    match ended(script).await {
        Ended::Finished(number, delivered) => (number, delivered),
        Ended::GivenUp(number, reason) => panic!("{number} was given up: {reason:?}"),
        Ended::Read(number) => panic!("{number} was read elsewhere"),
    }
}

/// Opens the next range at `at` with all its rows there.
pub(crate) async fn open_whole(script: &mut Script, at: u64, tables: &[&str]) {
    let sender = opening(script).await.at(Lsn(at));
    send(&sender, rows(tables)).await;
    send(&sender, RowEvent::End).await;
}

pub(crate) async fn send(sender: &mpsc::Sender<RowEvent>, event: RowEvent) {
    sender.send(event).await.unwrap();
}

/// Receives rows of range `number` and says what they are, the last one marked.
async fn receive_rows(consumer: &mut Consumer, number: u32, count: usize) -> Vec<CaptureMessage> {
    let mut received = Vec::new();
    for _ in 0..count {
        let message = consumer.next().await;
        assert_eq!(position(&message), (0, number));
        received.push(message);
    }
    received
}

fn data(message: &CaptureMessage) -> &[u8] {
    &message.checkpoint.as_ref().unwrap().data
}

#[test]
fn rows_come_after_every_change_before_them_and_before_every_other() {
    run(async {
        let (mut node, mut script) = dumping().await;
        node.publish(10, &["a", "b"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        for _ in 0..2 {
            let message = consumer.next().await;
            consumer.ack(&message).await;
        }
        let ticket = script.schedule(&id("shop", "shop"));
        let opening = opening(&mut script).await;
        assert_eq!((opening.ticket.number, opening.at_least), (ticket, Lsn(11)));
        node.publish(20, &["c"]).await;
        node.publish(30, &["d", "e"]).await;
        assert!(consumer.is_quiet().await, "changes wait for the snapshot");

        let sender = opening.at(Lsn(30));
        assert_eq!(consumer.positions(1).await, [(20, 1)]);
        assert!(consumer.is_quiet().await, "30 comes after the rows");
        send(&sender, rows(&["t", "u"])).await;
        send(&sender, rows(&["v"])).await;
        let first = receive_rows(&mut consumer, 1, 2).await;
        assert!(consumer.is_quiet().await, "the last row is not known yet");
        send(&sender, RowEvent::End).await;
        let last = consumer.next().await;
        assert_eq!(consumer.positions(2).await, [(30, 1), (30, 2)]);

        for (message, table) in first.iter().zip(["t", "u"]) {
            let change = message.change.as_ref().unwrap();
            assert_eq!(
                (change.op(), change.table.as_str()),
                (Operation::Update, table)
            );
            assert_eq!((data(message), message.commit_time), (&[][..], 0));
            consumer.ack(message).await;
        }
        assert_eq!(data(&last), [1]);
        assert_eq!(node.status("shop").await.unwrap().range_count, 1);
        consumer.ack(&last).await;
        let (number, delivered) = finished(&mut script).await;
        assert_eq!((number, delivered.row_count), (ticket, 3));
        node.status_when("shop", |status| {
            status.range_count == 0 && status.unacked == 3
        })
        .await;
    });
}

#[test]
fn on_an_idle_source_rows_come_when_the_log_says_that_nothing_is_missing() {
    run(async {
        let (mut node, mut script, mut consumer) = joined(&[]).await;
        let mut asked = node.log.asked_progress().unwrap();
        script.schedule(&id("shop", "shop"));
        open_whole(&mut script, 50, &["t"]).await;
        let asked = asked.wait_for(|lsn| *lsn == Lsn(50)).await;
        assert_eq!(*asked.unwrap(), Lsn(50), "the agent is asked for it");
        assert!(consumer.is_quiet().await);
        node.progress(49).await;
        assert!(consumer.is_quiet().await);
        node.progress(50).await;
        assert_eq!(data(&consumer.next().await), [1]);
    });
}

#[test]
fn ranges_follow_each_other_while_the_next_is_opened() {
    run(async {
        let (_node, mut script, mut consumer) = joined(&[]).await;
        let shop = id("shop", "shop");
        for _ in 0..3 {
            script.schedule(&shop);
        }
        let first = opening(&mut script).await.at(Lsn(11));
        let second = opening(&mut script).await;
        assert_eq!(second.at_least, Lsn(11));
        let second = second.at(Lsn(11));
        send(&second, rows(&["u"])).await;
        send(&second, RowEvent::End).await;
        assert!(consumer.is_quiet().await, "the first one comes first");
        send(&first, rows(&["t"])).await;
        send(&first, RowEvent::End).await;
        assert_eq!(consumer.positions(2).await, [(0, 1), (0, 2)]);
        // The third is opened before anything is answered.
        open_whole(&mut script, 11, &["v"]).await;
        assert_eq!(consumer.positions(1).await, [(0, 3)]);
        for number in 1..=3 {
            consumer.ack_at((0, number)).await;
            assert_eq!(finished(&mut script).await.0, u64::from(number));
        }
    });
}

#[test]
fn in_batches_rows_carry_their_place_and_one_answer_covers_many() {
    run(async {
        let (mut node, mut script) = dumping().await;
        node.publish(10, &["a"]).await;
        let parameters = [earliest(), ("BatchSize", Kind::NumberValue(4.0))];
        let mut consumer = node.open("shop", &parameters).await;
        assert_eq!(consumer.next().await.batch.unwrap().messages.len(), 1);
        script.schedule(&id("shop", "shop"));
        open_whole(&mut script, 11, &["t"; 10]).await;
        let mut messages = Vec::new();
        while messages.len() < 10 {
            messages.extend(consumer.next().await.batch.unwrap().messages);
        }
        let places: Vec<_> = messages.iter().map(data).collect();
        for (place, data) in (1_u32..).zip(&places[..9]) {
            assert_eq!(*data, place.to_be_bytes());
        }
        assert_eq!(places[9], [1]);
        consumer.answer(&messages[5], "", true).await;
        // What came before the rows is answered too.
        let status = node.status_when("shop", |status| status.unacked == 0);
        assert!(status.await.range_count == 1);
        consumer.answer(&messages[9], "", true).await;
        assert_eq!(finished(&mut script).await.1.row_count, 10);
    });
}

/// As a consumer answers that works on several rows at a time.
#[test]
fn rows_answered_out_of_order_are_done_once_a_cumulative_answer_names_the_last() {
    run(async {
        let (mut node, mut script) = dumping().await;
        node.progress(1).await;
        let parameters = [("BatchSize", Kind::NumberValue(10.0))];
        let mut consumer = node.join("shop", &parameters).await;
        script.schedule(&id("shop", "shop"));
        open_whole(&mut script, 1, &["t"; 4]).await;
        let mut messages = Vec::new();
        while messages.len() < 4 {
            messages.extend(consumer.next().await.batch.unwrap().messages);
        }
        for (nth, is_cumulative) in [(2, false), (3, false), (0, true), (1, true)] {
            consumer.answer(&messages[nth], "", is_cumulative).await;
        }
        // All before the last one have come: it is named again.
        consumer.answer(&messages[3], "", true).await;
        assert_eq!(finished(&mut script).await.1.row_count, 4);
    });
}

#[test]
fn a_cumulative_answer_without_a_place_counts_for_one_row() {
    run(async {
        let (mut node, mut script) = dumping().await;
        node.progress(1).await;
        let mut consumer = node.join("shop", &[]).await;
        script.schedule(&id("shop", "shop"));
        let sender = opening(&mut script).await.at(Lsn(1));
        send(&sender, rows(&["t"; 3])).await;
        let received = receive_rows(&mut consumer, 1, 2).await;
        consumer.answer(&received[0], "", true).await;
        send(&sender, RowEvent::End).await;
        let last = consumer.next().await;
        consumer.ack(&last).await;
        node.status_when("shop", |status| status.range_count == 1)
            .await;
        consumer.answer(&last, "", true).await;
        assert_eq!(finished(&mut script).await.1.row_count, 3);
    });
}

#[test]
fn only_the_tables_that_a_session_wants_come_and_the_rest_counts_as_answered() {
    run(async {
        let (_node, mut script, mut consumer) = joined(&[("TableRegex", text("^t"))]).await;
        let shop = id("shop", "shop");
        script.schedule(&shop);
        open_whole(&mut script, 11, &["t"; 2]).await;
        let received = receive_rows(&mut consumer, 1, 2).await;
        assert_eq!(
            (data(&received[0]), data(&received[1])),
            (&[][..], &[1][..])
        );
        for message in &received {
            consumer.ack(message).await;
        }
        assert_eq!(finished(&mut script).await.1.row_count, 2);
        script.schedule(&shop);
        open_whole(&mut script, 11, &["u"; 3]).await;
        assert_eq!(finished(&mut script).await.1, Delivered::default());
        assert!(consumer.is_quiet().await);
    });
}

#[test]
fn other_subscriptions_see_neither_rows_nor_a_pause() {
    run(async {
        let (mut node, mut script) = dumping().await;
        node.publish(10, &["a"]).await;
        let mut asking = node.join("shop/asking", &[]).await;
        let mut other = node.join("shop/other", &[]).await;
        script.schedule(&id("shop", "asking"));
        let sender = opening(&mut script).await.at(Lsn(11));
        for lsn in 20..40 {
            node.publish(lsn, &["t"]).await;
            assert_eq!(other.positions(1).await, [(lsn, 1)]);
        }
        send(&sender, rows(&["t"])).await;
        send(&sender, RowEvent::End).await;
        assert_eq!(asking.positions(2).await, [(0, 1), (20, 1)]);
        assert!(other.is_quiet().await);
    });
}

#[test]
fn beside_another_session_newer_changes_wait_until_the_rows_are_answered() {
    run(async {
        let (mut node, mut script) = dumping().await;
        node.publish(10, &["a"]).await;
        let mut first = node.join("shop", &[]).await;
        let mut second = node.join("shop", &[]).await;
        script.schedule(&id("shop", "shop"));
        open_whole(&mut script, 11, &["t", "t"]).await;
        let (holder, other, row) = tokio::select! {
            row = first.next() => (&mut first, &mut second, row),
            row = second.next() => (&mut second, &mut first, row),
        };
        let last = holder.next().await;
        node.publish(20, &["b"]).await;
        assert!(holder.is_quiet().await && other.is_quiet().await);
        holder.ack(&row).await;
        assert!(holder.is_quiet().await && other.is_quiet().await);
        holder.ack(&last).await;
        let message = tokio::select! {
            message = holder.next() => message,
            message = other.next() => message,
        };
        assert_eq!(position(&message), (20, 1));
        finished(&mut script).await;
    });
}

#[test]
fn in_order_rows_are_done_after_the_changes_before_them_and_come_again_with_them() {
    run(async {
        let (_node, mut script, mut consumer, change) = in_order().await;
        let shop = id("shop", "shop");
        script.schedule(&shop);
        open_whole(&mut script, 11, &["t"]).await;
        let row = consumer.next().await;
        consumer.ack(&row).await;
        consumer.answer(&change, "not now", false).await;
        let again = ended(&mut script).await;
        assert!(matches!(again, Ended::GivenUp(1, _)), "{again:?}");
        assert_eq!(consumer.next().await, change);
        consumer.ack(&row).await;
        script.schedule(&shop);
        open_whole(&mut script, 11, &["t"]).await;
        let row = consumer.next().await;
        assert_eq!(position(&row), (0, 2));
        consumer.ack(&row).await;
        consumer.ack(&change).await;
        finished(&mut script).await;
    });
}

#[test]
fn a_range_is_finished_only_once_its_cursors_are_durable() {
    run(async {
        let (node, mut script, mut consumer, change) = in_order().await;
        script.schedule(&id("shop", "shop"));
        open_whole(&mut script, 11, &["t"]).await;
        let row = consumer.next().await;
        node.cursors.is_failing.store(true, Ordering::SeqCst);
        consumer.ack(&change).await;
        consumer.ack(&row).await;
        node.status_when("shop", |status| status.range_count == 0)
            .await;
        assert!(consumer.is_quiet().await);
        node.cursors.is_failing.store(false, Ordering::SeqCst);
        finished(&mut script).await;
        let durable = node.status("shop").await.unwrap().durable_floor.unwrap();
        assert!(durable.lsn >= Lsn(10) && durable.seq >= 1, "{durable}");
    });
}
