//! Handlers against the mock gateway: answers, order per key, the end.

#[path = "support/common.rs"]
mod common;

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Order, client, id_of, order_row, within};
use pgcapture::{
    Ack, Error, Event, Row,
    testkit::{Gateway, row},
};

#[derive(Debug, Row)]
#[pgcapture(table = "public.items")]
struct Item {
    #[pgcapture(key)]
    #[expect(dead_code, reason = "decoded, not read")]
    id: i64,
}

#[tokio::test]
async fn order_is_kept_per_key_while_keys_run_side_by_side() {
    const KEYS: i64 = 8;
    const ROUNDS: i64 = 40;
    let gateway = Gateway::start().await;
    for round in 0..ROUNDS {
        for key in 0..KEYS {
            gateway.update(order_row(key, &format!("{round:04}"), "x"));
        }
    }
    gateway.commit();
    let seen: Arc<Mutex<HashMap<i64, Vec<String>>>> = Arc::default();
    let kept = Arc::clone(&seen);
    let run = client(&gateway)
        .consumer("c")
        .stream("orders")
        .on(move |event: Event<Order>| {
            let seen = Arc::clone(&kept);
            async move {
                // Different keys take differently long.
                for _ in 0..id_of(&event) {
                    tokio::task::yield_now().await;
                }
                let pgcapture::Change::Update { new, .. } = event.change() else {
                    panic!("only updates were made: {event:?}");
                };
                let customer = new.customer.clone();
                seen.lock()
                    .unwrap()
                    .entry(id_of(&event))
                    .or_default()
                    .extend(customer);
                Ok::<_, Infallible>(Ack)
            }
        })
        .parallel_by_key(4)
        .run_until(gateway.wait_for_acks((KEYS * ROUNDS) as usize));
    within(run).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len() as i64, KEYS);
    for rounds in seen.values() {
        assert!(
            rounds.is_sorted() && rounds.len() as i64 == ROUNDS,
            "{rounds:?}"
        );
    }
}

#[tokio::test]
async fn an_error_of_a_handler_asks_again_and_other_tables_are_acknowledged() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "ann", "x"))
        .insert(row("public.items").set("id", 1_i64))
        .insert(row("public.others").set("id", 1_i64))
        .insert(row("public.items").set("id", "bad"))
        .commit();
    let failed = Arc::new(Mutex::new(false));
    let run = client(&gateway)
        .stream("orders")
        .table_regex(".")
        .on(move |_: Event<Order>| {
            let first = !std::mem::replace(&mut *failed.lock().unwrap(), true);
            async move { if first { Err("index is down") } else { Ok(Ack) } }
        })
        .on(|event: Event<Item>| async move { event.ack().await })
        .run_until(gateway.wait_for_acks(4));
    within(run).await.unwrap();
    let reasons: Vec<_> = gateway
        .answers()
        .into_iter()
        .map(|answer| answer.requeue_reason)
        .collect();
    assert_eq!(
        reasons
            .iter()
            .filter(|reason| *reason == "index is down")
            .count(),
        1
    );
    assert_eq!(
        reasons.len(),
        5,
        "an answer by hand is the only one: {reasons:?}"
    );
}

#[tokio::test]
async fn a_panicking_handler_ends_the_run_and_its_change_stays_unanswered() {
    let gateway = Gateway::start().await;
    gateway.insert(order_row(1, "ann", "x")).commit();
    let run = client(&gateway)
        .stream("orders")
        .on(|event: Event<Order>| async move {
            assert!(id_of(&event) != 1, "on purpose");
        })
        .run_until(tokio::time::sleep(Duration::from_secs(20)));
    assert!(matches!(within(run).await, Err(Error::HandlerPanicked)));
    assert_eq!(gateway.acked(), 0);
}
