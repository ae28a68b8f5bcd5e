//! Typed streams against the mock gateway: changes, answers, reconnects, the end.

#[path = "support/common.rs"]
mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use common::{Order, client, ids, order, order_row};
use pgcapture::{
    Change, Client, Code, Error, Field, OnGap, Operation, RawMessage, Start,
    testkit::{Gateway, row},
};

#[tokio::test]
async fn every_kind_of_change_is_typed() {
    let gateway = Gateway::start().await;
    let committed = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_500_000_123_456);
    gateway
        .insert(order_row(1, "ann", "big"))
        .update(row("public.orders").set("id", 1_i64).null("customer"))
        .update_from(
            row("public.orders").set("id", 1_i64),
            order_row(2, "bob", "big"),
        )
        .delete(row("public.orders").set("id", 2_i64))
        .truncate(&["public.items", "public.orders"])
        .commit_at(committed)
        .dump([order_row(7, "eve", "old")]);
    let mut events = client(&gateway)
        .consumer("search")
        .stream("orders")
        .truncates()
        .commit_time()
        .subscribe::<Order>()
        .await
        .unwrap();

    let event = events.try_next().await.unwrap().unwrap();
    assert_eq!((event.schema(), event.table()), ("public", "orders"));
    assert_eq!(event.commit_time(), Some(committed));
    assert_eq!(
        (event.checkpoint().lsn().get(), event.checkpoint().seq()),
        (0x100, 1)
    );
    let Change::Insert(inserted) = event.change() else {
        panic!("{event:?}")
    };
    assert_eq!(*inserted, order(1, Some("ann"), Field::Value("big".into())));
    event.ack().await.unwrap();

    let event = events.try_next().await.unwrap().unwrap();
    let Change::Update { new, old, changed } = event.change() else {
        panic!("{event:?}")
    };
    assert_eq!(*new, order(1, None, Field::Unchanged));
    assert!(old.is_empty() && changed.contains("customer") && !changed.contains("note"));
    event.ack().await.unwrap();

    let event = events.try_next().await.unwrap().unwrap();
    let Change::Update { old, .. } = event.change() else {
        panic!("{event:?}")
    };
    assert_eq!(old.get::<i64>("id").unwrap(), 1);
    event.ack().await.unwrap();

    let event = events.try_next().await.unwrap().unwrap();
    let Change::Delete { key } = event.change() else {
        panic!("{event:?}")
    };
    assert_eq!(key.get::<i64>("id").unwrap(), 2);
    assert_eq!(
        key.decode::<Order>().unwrap(),
        order(2, None, Field::Unchanged)
    );
    event.ack().await.unwrap();

    let event = events.try_next().await.unwrap().unwrap();
    assert!(matches!(event.change(), Change::Truncate));
    event.ack().await.unwrap();

    let event = events.try_next().await.unwrap().unwrap();
    let Change::Snapshot(dumped) = event.change() else {
        panic!("{event:?}")
    };
    assert_eq!(dumped.id, 7);
    assert!(event.checkpoint().is_dump() && event.checkpoint().data() == [1]);
    event.ack().await.unwrap();
    events.stop().await.unwrap();
    assert_eq!(gateway.acked(), 6);
    assert_eq!(gateway.inits()[0].uri, "orders/search");
}

#[tokio::test]
async fn under_full_identity_only_changed_columns_count_as_changed() {
    let gateway = Gateway::start().await;
    gateway
        .update_from(order_row(1, "ann", "x"), order_row(1, "bob", "x"))
        .commit();
    let mut events = client(&gateway)
        .stream("orders")
        .subscribe::<Order>()
        .await
        .unwrap();
    let event = events.try_next().await.unwrap().unwrap();
    let Change::Update { old, changed, .. } = event.change() else {
        panic!("{event:?}")
    };
    assert_eq!(changed.columns().collect::<Vec<_>>(), ["customer"]);
    assert_eq!(
        old.decode::<Order>().unwrap().customer.as_deref(),
        Some("ann")
    );
    assert_eq!(gateway.inits()[0].uri, "orders");
}

#[tokio::test]
async fn a_negative_answer_reaches_the_gateway_and_the_change_comes_again() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "ann", "x"))
        .insert(order_row(2, "bob", "x"))
        .commit();
    let mut events = client(&gateway)
        .stream("orders")
        .subscribe::<Order>()
        .await
        .unwrap();
    let first = events.try_next().await.unwrap().unwrap();
    first.nack("index is down").await.unwrap();
    assert_eq!(ids(&mut events, 2).await, [2, 1]);
    gateway.wait_for_acks(2).await;
    let reasons: Vec<_> = gateway
        .answers()
        .into_iter()
        .map(|answer| answer.requeue_reason)
        .collect();
    assert!(reasons.contains(&"index is down".to_owned()));
}

#[tokio::test]
async fn an_empty_reason_is_no_acknowledgement() {
    let gateway = Gateway::start().await;
    gateway.insert(order_row(1, "ann", "x")).commit();
    let mut events = client(&gateway)
        .stream("orders")
        .subscribe::<Order>()
        .await
        .unwrap();
    events
        .try_next()
        .await
        .unwrap()
        .unwrap()
        .nack("")
        .await
        .unwrap();
    assert_eq!(ids(&mut events, 1).await, [1]);
}

#[tokio::test]
async fn a_dropped_change_comes_again_after_the_time_out() {
    let gateway = Gateway::start().await;
    gateway.insert(order_row(1, "ann", "x")).commit();
    let mut events = client(&gateway)
        .stream("orders")
        .subscribe::<Order>()
        .await
        .unwrap();
    drop(events.try_next().await.unwrap().unwrap());
    gateway.expire();
    assert_eq!(ids(&mut events, 1).await, [1]);
}

#[tokio::test]
async fn rows_that_do_not_decode_go_to_the_callback_and_are_acknowledged() {
    let gateway = Gateway::start().await;
    gateway
        .insert(
            row("public.orders")
                .set("id", "no number")
                .null("customer")
                .set("note", "n"),
        )
        .insert(row("public.orders").set("id", 2_i64))
        .insert(order_row(3, "ann", "x"))
        .commit();
    let errors = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = Arc::clone(&errors);
    let mut events = client(&gateway)
        .stream("orders")
        .on_decode_error(move |error| kept.lock().unwrap().push(error.to_string()))
        .subscribe::<Order>()
        .await
        .unwrap();
    assert_eq!(ids(&mut events, 1).await, [3]);
    gateway.wait_for_acks(3).await;
    let errors = errors.lock().unwrap();
    assert_eq!(
        errors[0],
        "cannot decode column id (text) of public.orders as i64"
    );
    assert!(
        errors[1].contains("column customer (not sent)"),
        "{}",
        errors[1]
    );
}

#[tokio::test]
async fn changes_of_other_tables_are_acknowledged() {
    let gateway = Gateway::start().await;
    gateway
        .insert(row("public.items").set("id", 1_i64))
        .insert(order_row(2, "ann", "x"))
        .insert(row("other.orders").set("id", 3_i64))
        .commit();
    let mut events = client(&gateway)
        .stream("orders")
        .table_regex(".")
        .subscribe::<Order>()
        .await
        .unwrap();
    assert_eq!(ids(&mut events, 1).await, [2]);
    tokio::select! {
        event = events.next() => panic!("nothing else is wanted: {event:?}"),
        () = gateway.wait_for_acks(3) => {}
    }
}

#[tokio::test]
async fn batches_are_events_of_their_own_and_ordered_acknowledgements_travel_together() {
    let gateway = Gateway::start().await;
    for id in 1..=100 {
        gateway.insert(order_row(id, "ann", "x"));
    }
    gateway.commit();
    let stream = client(&gateway)
        .consumer("c")
        .stream("orders")
        .batch(50)
        .ordered();
    let mut events = stream.subscribe::<Order>().await.unwrap();
    assert_eq!(ids(&mut events, 100).await, (1..=100).collect::<Vec<_>>());
    gateway.wait_for_acks(100).await;
    assert_eq!(gateway.answers().len(), 2, "{:?}", gateway.answers());
    assert!(gateway.answers().iter().all(|answer| answer.cumulative));
}

#[tokio::test]
async fn a_negative_answer_in_a_batch_is_never_covered_by_a_cumulative_one() {
    let gateway = Gateway::start().await;
    for id in 1..=10 {
        gateway.insert(order_row(id, "ann", "x"));
    }
    gateway.commit();
    let stream = client(&gateway)
        .consumer("c")
        .stream("orders")
        .batch(10)
        .ordered();
    let mut events = stream.subscribe::<Order>().await.unwrap();
    assert_eq!(ids(&mut events, 3).await, [1, 2, 3]);
    events
        .try_next()
        .await
        .unwrap()
        .unwrap()
        .nack("later")
        .await
        .unwrap();
    assert_eq!(ids(&mut events, 7).await, [5, 6, 7, 8, 9, 10, 4]);
    gateway.wait_for_acks(10).await;
}

#[tokio::test]
async fn max_in_flight_holds_the_gateway_back() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "a", "x"))
        .insert(order_row(2, "a", "x"))
        .commit();
    let mut events = client(&gateway)
        .stream("orders")
        .max_in_flight(1)
        .subscribe::<Order>()
        .await
        .unwrap();
    let first = events.try_next().await.unwrap().unwrap();
    let second = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
    assert!(second.is_err(), "one in flight was asked for");
    first.ack().await.unwrap();
    assert_eq!(ids(&mut events, 1).await, [2]);
}

#[tokio::test]
async fn a_gap_ends_the_stream_unless_the_callback_goes_on() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, "a", "x"))
        .commit()
        .gap("slot_lost");
    gateway.insert(order_row(2, "a", "x")).commit();
    let mut events = client(&gateway)
        .stream("orders")
        .gaps()
        .subscribe::<Order>()
        .await
        .unwrap();
    assert_eq!(ids(&mut events, 1).await, [1]);
    let error = events.try_next().await.unwrap_err();
    assert!(
        matches!(&error, Error::Gap(gap) if gap.reason == "slot_lost"),
        "{error}"
    );
    assert!(events.next().await.is_none());

    let gaps = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&gaps);
    let mut events = client(&gateway)
        .consumer("other")
        .stream("orders")
        .on_gap(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            OnGap::Continue
        })
        .subscribe::<Order>()
        .await
        .unwrap();
    assert_eq!(ids(&mut events, 2).await, [1, 2]);
    assert_eq!(gaps.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn raw_streams_show_boundaries_and_undecoded_rows() {
    let gateway = Gateway::start().await;
    gateway.insert(order_row(1, "ann", "x")).commit();
    let mut events = client(&gateway)
        .stream("orders")
        .tables(["public.orders"])
        .operations([Operation::Insert])
        .start(Start::Earliest)
        .boundaries()
        .subscribe_raw()
        .await
        .unwrap();
    let begin = events.try_next().await.unwrap().unwrap();
    assert!(matches!(begin.message(), RawMessage::Begin { xid: 7, .. }));
    assert!(begin.commit_time().is_some());
    begin.ack().await.unwrap();
    let change = events.try_next().await.unwrap().unwrap();
    let RawMessage::Change(inserted) = change.message() else {
        panic!("{change:?}")
    };
    assert_eq!(inserted.operation(), Operation::Insert);
    assert!(
        !format!("{change:?}").contains("ann"),
        "values stay out of Debug output"
    );
    assert!(change.commit_time().is_some());
    change.ack().await.unwrap();
    let commit = events.try_next().await.unwrap().unwrap();
    assert!(matches!(commit.message(), RawMessage::Commit { .. }));
    commit.ack().await.unwrap();
    events.stop().await.unwrap();
    assert_eq!(gateway.acked(), 3);
}

#[tokio::test]
async fn tokens_are_sent_and_read_again_for_each_connection() {
    let gateway = Gateway::start().await;
    let file = std::env::temp_dir().join(format!("pgcapture-token-{}", std::process::id()));
    std::fs::write(&file, "one\n").unwrap();
    let client = Client::builder(gateway.endpoints())
        .token_file(&file)
        .build()
        .unwrap();
    let mut events = client.stream("orders").subscribe::<Order>().await.unwrap();
    std::fs::write(&file, "two\n").unwrap();
    gateway.disconnect();
    gateway.insert(order_row(1, "ann", "x")).commit();
    assert_eq!(ids(&mut events, 1).await, [1]);
    std::fs::remove_file(&file).unwrap();
    let expected = ["Bearer one", "Bearer two"].map(|token| Some(token.to_owned()));
    assert_eq!(gateway.authorizations(), expected);
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_a_clear_error() {
    let gateway = Gateway::start().await;
    gateway
        .insert(order_row(1, &"x".repeat(10_000), "x"))
        .commit();
    let client = Client::builder(gateway.endpoints())
        .max_message_bytes(1_000)
        .build()
        .unwrap();
    let mut events = client.stream("orders").subscribe::<Order>().await.unwrap();
    let error = events.try_next().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::OutOfRange));
    assert!(!error.is_retryable());
}

#[test]
fn the_client_can_be_shared_between_threads() {
    fn shared<T: Clone + Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Client>();
    sent::<pgcapture::Events<Order>>();
    sent::<pgcapture::Event<Order>>();
    sent::<pgcapture::Debounced<Order, i64>>();
}
