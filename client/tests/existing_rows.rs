//! Existing rows between changes, against the mock gateway: marked, echoed, counted, redelivered.

#[path = "support/common.rs"]
mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Order, client, id_of, ids, order_row, within};
use pgcapture::{
    Change, Event, Field, RawMessage,
    testkit::{Gateway, row},
};

/// Two changes, a range of three rows, two changes.
async fn changes_around_a_range() -> Gateway {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "ann", "x"))
        .insert(order_row(2, "bob", "x"))
        .commit()
        .dump((11..=13).map(|id| order_row(id, "old", "x")))
        .insert(order_row(3, "eve", "x"))
        .insert(order_row(4, "joe", "x"))
        .commit();
    gateway
}

#[tokio::test]
async fn existing_rows_are_marked_and_their_checkpoints_echoed_untouched() {
    let gateway = changes_around_a_range().await;
    let stream = client(&gateway).stream("orders").dedup(true).commit_time();
    let mut events = stream.subscribe::<Order>().await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..7 {
        let event = within(events.try_next()).await.unwrap().unwrap();
        let is_snapshot = matches!(event.change(), Change::Snapshot(_));
        assert_eq!(event.is_existing_row(), is_snapshot);
        assert_eq!(event.commit_time().is_none(), is_snapshot);
        seen.push((id_of(&event), is_snapshot));
        event.ack().await.unwrap();
    }
    let row = |id| (id, (11..=13).contains(&id));
    assert_eq!(seen, [1, 2, 11, 12, 13, 3, 4].map(row));
    gateway.wait_for_acks(7).await;
    assert_eq!(gateway.finished_ranges(), 1);
    let echoed: Vec<_> = gateway
        .answers()
        .into_iter()
        .filter(|answer| answer.lsn == 0)
        .map(|answer| (answer.seq, answer.data.to_vec()))
        .collect();
    assert_eq!(echoed, [(1, vec![]), (1, vec![]), (1, vec![1])]);
}

#[tokio::test]
async fn raw_streams_show_them_as_updates_that_exist() {
    let gateway = Gateway::start().await;
    gateway.dump([order_row(7, "old", "x")]);
    let mut events = client(&gateway)
        .stream("orders")
        .subscribe_raw()
        .await
        .unwrap();
    let event = within(events.try_next()).await.unwrap().unwrap();
    assert!(event.is_existing_row());
    let RawMessage::Change(change) = event.message() else {
        panic!("{event:?}")
    };
    assert!(change.old_row().is_empty());
    assert_eq!(change.new_row().get::<i64>("id").unwrap(), 7);
}

#[tokio::test]
async fn in_batches_rows_and_changes_are_acknowledged_together() {
    let gateway = changes_around_a_range().await;
    let stream = client(&gateway)
        .consumer("c")
        .stream("orders")
        .batch(100)
        .ordered();
    let mut events = stream.subscribe::<Order>().await.unwrap();
    assert_eq!(ids(&mut events, 7).await, [1, 2, 11, 12, 13, 3, 4]);
    gateway.wait_for_acks(7).await;
    assert_eq!(gateway.finished_ranges(), 1);
    let answers = gateway.answers();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers[0].cumulative && answers[0].lsn == 0x200);
}

#[tokio::test]
async fn a_row_without_an_answer_keeps_its_range_open_whatever_is_acknowledged_around_it() {
    let gateway = changes_around_a_range().await;
    let stream = client(&gateway)
        .consumer("c")
        .stream("orders")
        .batch(100)
        .ordered();
    let mut events = stream.subscribe::<Order>().await.unwrap();
    for _ in 0..7 {
        let event = within(events.try_next()).await.unwrap().unwrap();
        if id_of(&event) != 12 {
            event.ack().await.unwrap();
        }
    }
    gateway.wait_for_acks(6).await;
    assert_eq!(gateway.finished_ranges(), 0);
    gateway.disconnect();
    assert_eq!(ids(&mut events, 3).await, [11, 12, 13]);
    gateway.wait_for_acks(7).await;
    assert_eq!(gateway.finished_ranges(), 1);
}

#[tokio::test]
async fn a_negative_answer_brings_the_whole_range_back_and_dedup_hides_none_of_it() {
    let gateway = Gateway::start().await;
    gateway.dump((1..=3).map(|id| order_row(id, "old", "x")));
    let stream = client(&gateway).consumer("c").stream("orders").dedup(true);
    let mut events = stream.subscribe::<Order>().await.unwrap();
    assert_eq!(ids(&mut events, 1).await, [1]);
    let second = within(events.try_next()).await.unwrap().unwrap();
    second.nack("index is down").await.unwrap();
    // The third row was on its way already; its answer counts for the range that comes again.
    let mut seen = Vec::new();
    while gateway.finished_ranges() == 0 {
        let event = tokio::select! {
            event = events.try_next() => event.unwrap().unwrap(),
            () = gateway.wait_until(|gateway| gateway.finished_ranges() == 1) => break,
        };
        seen.push(id_of(&event));
        event.ack().await.unwrap();
    }
    assert!(
        seen.ends_with(&[1, 2, 3]) || seen.ends_with(&[1, 2]),
        "{seen:?}"
    );
    let reasons = gateway.answers();
    assert_eq!(reasons[1].requeue_reason, "index is down");
}

#[tokio::test]
async fn handlers_get_them_in_the_order_of_their_key() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "v1", "x"))
        .commit()
        .dump([order_row(1, "v2", "x"), order_row(2, "old", "x")])
        .update(order_row(1, "v3", "x"))
        .commit();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let run = client(&gateway)
        .stream("orders")
        .on(move |event: Event<Order>| {
            let is_existing = event.is_existing_row();
            if let Change::Insert(order)
            | Change::Snapshot(order)
            | Change::Update { new: order, .. } = event.change()
                && order.id == 1
            {
                let version = order.customer.clone();
                kept.lock().unwrap().push((version, is_existing));
            }
            async {}
        })
        .parallel_by_key(4)
        .run_until(gateway.wait_for_acks(4));
    within(run).await.unwrap();
    let version = |text: &str, is_existing| (Some(text.to_owned()), is_existing);
    assert_eq!(
        *seen.lock().unwrap(),
        [
            version("v1", false),
            version("v2", true),
            version("v3", false)
        ]
    );
    assert_eq!(gateway.finished_ranges(), 1);
}

#[tokio::test]
async fn debounced_they_are_written_over_what_waits_and_under_what_follows() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "v1", "x"))
        .update_from(
            row("public.orders").set("id", 8_i64),
            order_row(2, "moved", "x"),
        )
        .commit()
        .dump([order_row(1, "v2", "long"), order_row(2, "read", "long")])
        .update(row("public.orders").set("id", 1_i64).set("customer", "v3"))
        .commit();
    let stream = client(&gateway).consumer("c").stream("orders");
    let events = stream.subscribe::<Order>().await.unwrap();
    let mut events = events.debounce(Duration::from_millis(30), |row| row.get::<i64>("id"));
    let first = within(events.try_next()).await.unwrap().unwrap();
    let Change::Update { new, .. } = first.change() else {
        panic!("{first:?}")
    };
    assert_eq!(new.customer.as_deref(), Some("v3"));
    assert_eq!(
        new.note,
        Field::Value("long".into()),
        "from the existing row"
    );
    first.ack().await.unwrap();
    let second = within(events.try_next()).await.unwrap().unwrap();
    let Change::Update { new, old, .. } = second.change() else {
        panic!("the old key must not be forgotten: {second:?}")
    };
    assert_eq!(new.customer.as_deref(), Some("read"));
    assert_eq!(old.get::<i64>("id").unwrap(), 8);
    second.ack().await.unwrap();
    events.stop().await.unwrap();
    assert_eq!((gateway.acked(), gateway.finished_ranges()), (5, 1));
}

/// The gateway lost an acknowledgement and read the row at an older position than this process
/// had come to: the change behind it must be shown again, or the old row would stay.
#[tokio::test]
async fn dedup_shows_again_what_lies_behind_an_existing_row() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "v1", "x"))
        .commit()
        .dump([order_row(1, "v1", "x")])
        .update(order_row(1, "v2", "x"))
        .commit();
    let stream = client(&gateway).consumer("c").stream("orders").dedup(true);
    let mut events = stream.subscribe::<Order>().await.unwrap();
    assert_eq!(ids(&mut events, 3).await, [1, 1, 1]);
    gateway.wait_for_acks(3).await;
    gateway.forget_acks().disconnect();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let event = within(events.try_next()).await.unwrap().unwrap();
        seen.push(event.is_existing_row());
        event.ack().await.unwrap();
    }
    assert_eq!(
        seen,
        [true, false],
        "the first change is hidden, the last is not"
    );
    gateway.wait_for_acks(3).await;
}
