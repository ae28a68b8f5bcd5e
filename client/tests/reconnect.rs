//! Streams whose gateway goes away, refuses or is told to stop, against the mock gateway.

#[path = "support/common.rs"]
mod common;

use std::time::Duration;

use common::{Order, client, ids, order_row, within};
use pgcapture::{Client, Code, Error, testkit::Gateway};

#[tokio::test]
async fn after_a_cut_the_stream_goes_on_where_acknowledgements_ended() {
    let gateway = Gateway::start().await;
    for id in 1..=4 {
        gateway.insert(order_row(id, "ann", "x")).commit();
    }
    let mut events = client(&gateway)
        .consumer("c")
        .stream("orders")
        .subscribe::<Order>()
        .await
        .unwrap();
    assert_eq!(ids(&mut events, 2).await, [1, 2]);
    gateway.wait_for_acks(2).await;
    let unanswered = events.try_next().await.unwrap().unwrap();
    gateway.disconnect();
    let mut seen = Vec::new();
    while !(seen.contains(&3) && seen.contains(&4)) {
        seen.extend(ids(&mut events, 1).await);
    }
    // Its connection is gone: no error, the change was delivered again.
    unanswered.ack().await.unwrap();
    assert!(gateway.inits().len() >= 2);
}

#[tokio::test]
async fn the_next_node_takes_over() {
    let gateway = Gateway::cluster(3).await;
    gateway.insert(order_row(1, "ann", "x")).commit();
    let mut events = client(&gateway)
        .stream("orders")
        .subscribe::<Order>()
        .await
        .unwrap();
    assert_eq!(ids(&mut events, 1).await, [1]);
    gateway.wait_for_acks(1).await;
    gateway.stop_node(0).stop_node(2);
    gateway.insert(order_row(2, "ann", "x")).commit();
    assert_eq!(ids(&mut events, 1).await, [2]);
}

#[tokio::test]
async fn dedup_hides_what_was_acknowledged_before_the_gateway_stored_it() {
    let gateway = Gateway::start().await;
    gateway.insert(order_row(1, "ann", "x")).commit();
    let mut events = client(&gateway)
        .stream("orders")
        .dedup(true)
        .subscribe::<Order>()
        .await
        .unwrap();
    let first = events.try_next().await.unwrap().unwrap();
    gateway.disconnect();
    // The first copy is answered while nobody is connected any more.
    let next = tokio::select! {
        biased;
        next = events.next() => next,
        () = gateway.wait_until(|gateway| gateway.inits().len() == 2) => None,
    };
    assert!(
        next.is_none(),
        "redelivered before the first copy was answered: {next:?}"
    );
    first.ack().await.unwrap();
    gateway.insert(order_row(2, "ann", "x")).commit();
    assert_eq!(ids(&mut events, 1).await, [2]);
    gateway.wait_for_acks(2).await;
}

#[tokio::test]
async fn definite_answers_are_returned_and_others_are_retried() {
    let gateway = Gateway::start().await;
    gateway.reject(Code::NotFound, "no such stream");
    let error = client(&gateway)
        .stream("nope")
        .subscribe::<Order>()
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::NotFound));
    assert!(!error.is_retryable() && error.to_string().contains("no such stream"));

    gateway.reject(Code::ResourceExhausted, "too many sessions");
    let error = client(&gateway)
        .stream("orders")
        .subscribe::<Order>()
        .await
        .unwrap_err();
    assert!(error.is_retryable());

    gateway.insert(order_row(1, "ann", "x")).commit();
    let mut events = client(&gateway)
        .stream("orders")
        .subscribe::<Order>()
        .await
        .unwrap();
    assert_eq!(ids(&mut events, 1).await, [1]);
    gateway
        .reject(Code::Unavailable, "not yet")
        .reject(Code::OutOfRange, "earliest is 0/100");
    gateway.disconnect();
    let error = events.try_next().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::OutOfRange));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_stream_can_give_up() {
    let gateway = Gateway::start().await;
    let client = Client::builder(gateway.endpoints())
        .give_up_after(Duration::ZERO)
        .build()
        .unwrap();
    let mut events = client.stream("orders").subscribe::<Order>().await.unwrap();
    gateway.stop_node(0);
    let error = within(events.try_next()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unavailable));
}

#[tokio::test]
async fn no_node_is_an_error_of_connect_and_subscribe() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Client::builder(&address).connect().await.unwrap_err();
    assert!(matches!(&error, Error::Connect { endpoint, .. } if endpoint.contains(&address)));
    let client = Client::builder(&address).build().unwrap();
    assert!(
        client
            .stream("orders")
            .subscribe::<Order>()
            .await
            .unwrap_err()
            .is_retryable()
    );
}

#[tokio::test]
async fn stop_sends_the_acknowledgements_first() {
    const CHANGES: i64 = 2_000;
    let gateway = Gateway::start().await;
    for id in 0..CHANGES {
        gateway.insert(order_row(id, "ann", "x"));
    }
    gateway.commit();
    let mut events = client(&gateway)
        .stream("orders")
        .subscribe::<Order>()
        .await
        .unwrap();
    let late = events.try_next().await.unwrap().unwrap();
    ids(&mut events, CHANGES as usize - 1).await;
    within(events.stop()).await.unwrap();
    assert_eq!(gateway.acked(), CHANGES as usize - 1);
    assert!(matches!(late.ack().await, Err(Error::Closed)));
}
