//! Debouncing against the mock gateway: what is delivered, and what is acknowledged when.

#[path = "support/common.rs"]
mod common;

use std::time::Duration;

use common::{Order, client, id_of, order_row, within};
use pgcapture::{
    Change, Debounced, Field,
    testkit::{Gateway, row},
};

const INTERVAL: Duration = Duration::from_millis(30);

async fn debounced(gateway: &Gateway) -> Debounced<Order, i64> {
    let stream = client(gateway).consumer("c").stream("orders").truncates();
    let events = stream
        .subscribe::<Order>()
        .await
        .expect("the mock gateway serves");
    events.debounce(INTERVAL, |row| row.get("id"))
}

#[tokio::test]
async fn the_newest_of_a_key_stands_for_all_and_keeps_columns_it_left_out() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "ann", "long"))
        .update(row("public.orders").set("id", 1_i64).set("customer", "bob"))
        .insert(order_row(2, "eve", "x"))
        .commit();
    let mut events = debounced(&gateway).await;
    let event = within(events.try_next()).await.unwrap().unwrap();
    let Change::Update { new, .. } = event.change() else {
        panic!("{event:?}")
    };
    assert_eq!(new.customer.as_deref(), Some("bob"));
    assert_eq!(
        new.note,
        Field::Value("long".into()),
        "what the insert said is not lost"
    );
    assert_eq!(
        gateway.acked(),
        0,
        "nothing is acknowledged before the consumer says so"
    );
    event.ack().await.unwrap();
    let event = within(events.try_next()).await.unwrap().unwrap();
    assert_eq!(id_of(&event), 2);
    event.ack().await.unwrap();
    events.stop().await.unwrap();
    assert_eq!(gateway.acked(), 3);
}

#[tokio::test]
async fn a_negative_answer_loses_nothing_and_comes_back_merged_in_order() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "v1", "long"))
        .update(row("public.orders").set("id", 1_i64).set("customer", "v2"))
        .commit();
    let mut events = debounced(&gateway).await;
    let event = within(events.try_next()).await.unwrap().unwrap();
    gateway
        .update(row("public.orders").set("id", 1_i64).set("customer", "v3"))
        .commit();
    event.nack("not now").await.unwrap();
    let mut last = None;
    while gateway.acked() < 3 {
        let event = within(events.try_next()).await.unwrap().unwrap();
        let Change::Update { new, .. } = event.change() else {
            panic!("{event:?}")
        };
        assert_eq!(new.note, Field::Value("long".into()));
        let newest = new.customer.clone();
        assert!(newest >= last, "{newest:?} came after {last:?}");
        last = newest;
        event.ack().await.unwrap();
        if last.as_deref() == Some("v3") {
            break;
        }
    }
    assert_eq!(last.as_deref(), Some("v3"));
    events.stop().await.unwrap();
    assert_eq!(gateway.acked(), 3);
}

#[tokio::test]
async fn what_is_not_answered_is_delivered_to_the_next_session() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "ann", "x"))
        .update(order_row(1, "bob", "x"))
        .commit();
    let mut events = debounced(&gateway).await;
    let event = within(events.try_next()).await.unwrap().unwrap();
    drop(event);
    events.stop().await.unwrap();
    assert_eq!(gateway.acked(), 0);
    let mut events = debounced(&gateway).await;
    let event = within(events.try_next()).await.unwrap().unwrap();
    event.ack().await.unwrap();
    events.stop().await.unwrap();
    assert_eq!(gateway.acked(), 2);
}

#[tokio::test]
async fn truncate_waits_for_what_came_before_it() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "ann", "x"))
        .truncate(&["public.orders"])
        .commit();
    let mut events = debounced(&gateway).await;
    let event = within(events.try_next()).await.unwrap().unwrap();
    assert_eq!(id_of(&event), 1);
    event.ack().await.unwrap();
    let event = within(events.try_next()).await.unwrap().unwrap();
    assert!(matches!(event.change(), Change::Truncate));
    event.ack().await.unwrap();
    gateway.wait_for_acks(2).await;
}

/// Takes the next change, which must be an update, and returns the keys that it left and has.
fn move_of(event: &pgcapture::Event<Order>) -> (i64, i64) {
    let Change::Update { new, old, .. } = event.change() else {
        panic!("a move: {event:?}")
    };
    (old.get("id").expect("the key it came from"), new.id)
}

/// A consumer that keeps rows by key has the row under its old one.
#[tokio::test]
async fn a_delete_behind_a_move_comes_as_a_change_of_its_own() {
    let gateway = Gateway::start().await;
    let key = |id: i64| row("public.orders").set("id", id);
    gateway
        .update_from(key(8), order_row(2, "ann", "x"))
        .update(key(2).set("customer", "bob"))
        .delete(key(2))
        .commit();
    let mut events = debounced(&gateway).await;
    let event = within(events.try_next()).await.unwrap().unwrap();
    assert_eq!(move_of(&event), (8, 2));
    event.nack("not now").await.unwrap();
    let event = within(events.try_next()).await.unwrap().unwrap();
    assert_eq!(move_of(&event), (8, 2), "before the delete, again");
    event.ack().await.unwrap();
    gateway.wait_for_acks(2).await;
    let event = within(events.try_next()).await.unwrap().unwrap();
    assert_eq!(id_of(&event), -2, "{event:?}");
    event.ack().await.unwrap();
    gateway.wait_for_acks(3).await;
}

#[tokio::test]
async fn rows_that_come_to_one_key_tell_both_keys_that_they_left() {
    let gateway = Gateway::start().await;
    let key = |id: i64| row("public.orders").set("id", id);
    gateway
        .update_from(key(8), order_row(2, "ann", "long"))
        .delete(key(2))
        .update_from(key(7), key(2).set("customer", "eve"))
        .commit();
    let mut events = debounced(&gateway).await;
    let event = within(events.try_next()).await.unwrap().unwrap();
    assert_eq!(move_of(&event), (8, 2));
    event.ack().await.unwrap();
    let event = within(events.try_next()).await.unwrap().unwrap();
    assert_eq!(move_of(&event), (7, 2));
    let Change::Update { new, .. } = event.change() else {
        panic!("{event:?}")
    };
    assert_eq!(
        new.note,
        Field::Unchanged,
        "nothing of the row that was there before"
    );
    event.ack().await.unwrap();
    gateway.wait_for_acks(3).await;
}
