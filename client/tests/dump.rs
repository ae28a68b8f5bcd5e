//! Dumps that a client asks for, against the mock gateway.

#[path = "support/common.rs"]
mod common;

use std::time::Duration;

use common::{Order, client, ids, order_row, within};
use pgcapture::{Client, Code, DumpState, Error, testkit::Gateway};

async fn gateway_with_rows() -> Gateway {
    let gateway = Gateway::start().await;
    gateway.existing((1..=3).map(|id| order_row(id, "old", "x")));
    gateway
}

#[tokio::test]
async fn a_dump_reaches_the_consumer_that_it_is_for_and_nobody_else() {
    let gateway = gateway_with_rows().await;
    let client = client(&gateway);
    let stream = |name: &str| client.consumer(name).stream("orders");
    let mut other = stream("other").subscribe::<Order>().await.unwrap();
    let mut events = stream("search").subscribe::<Order>().await.unwrap();
    let dump = client
        .dump("orders")
        .table::<Order>()
        .into("search")
        .parallel(2)
        .bytes_per_second(1 << 20)
        .priority(-1)
        .cool_down(Duration::from_millis(5))
        .start()
        .await
        .unwrap();
    assert_eq!(dump.id(), "d-1");
    let mut progress = dump.progress();
    let first = within(progress.try_next()).await.unwrap().unwrap();
    assert_eq!((first.state, first.rows), (DumpState::Active, 0));
    assert_eq!(first.row_estimate, Some(3));
    assert_eq!(ids(&mut events, 3).await, [1, 2, 3]);
    let last = tokio::select! {
        last = within(dump.wait()) => last.unwrap(),
        event = events.next() => panic!("nothing more was asked for: {event:?}"),
    };
    assert_eq!((last.state, last.rows), (DumpState::Finished, 3));
    while let Some(now) = within(progress.try_next()).await.unwrap() {
        assert!(now.rows == 0 || now.state.has_ended());
    }
    assert!(progress.next().await.is_none());
    gateway.insert(order_row(9, "new", "x")).commit();
    assert_eq!(ids(&mut other, 1).await, [9], "the rows were not theirs");
}

#[tokio::test]
async fn progress_goes_on_after_a_cut() {
    let gateway = gateway_with_rows().await;
    let client = client(&gateway);
    let started = client.dump("orders").tables(["public.orders"]).start();
    let dump = started.await.unwrap();
    let mut progress = dump.progress();
    let first = within(progress.try_next()).await.unwrap().unwrap();
    assert_eq!(first.state, DumpState::Active);
    gateway.disconnect();
    let again = within(progress.try_next()).await.unwrap().unwrap();
    assert_eq!(again.state, DumpState::Active);
    let mut events = client.stream("orders").subscribe::<Order>().await.unwrap();
    assert_eq!(ids(&mut events, 3).await, [1, 2, 3]);
    events.stop().await.unwrap();
    let last = within(progress.try_next()).await.unwrap().unwrap();
    assert_eq!(last.state, DumpState::Finished);
}

#[tokio::test]
async fn a_dump_is_paused_resumed_and_cancelled_by_its_id() {
    let gateway = gateway_with_rows().await;
    let client = client(&gateway);
    let started = client.dump("orders").tables(["public.orders"]).start();
    let dump = client.find_dump(started.await.unwrap().id());
    assert_eq!(dump.pause().await.unwrap().state, DumpState::Paused);
    assert_eq!(dump.resume().await.unwrap().state, DumpState::Active);
    assert_eq!(dump.retry().await.unwrap().state, DumpState::Active);
    assert_eq!(dump.cancel().await.unwrap().state, DumpState::Cancelled);
    assert_eq!(dump.get().await.unwrap().state, DumpState::Cancelled);
    assert_eq!(dump.wait().await.unwrap().state, DumpState::Cancelled);
}

#[tokio::test]
async fn what_cannot_be_is_said_at_once() {
    let gateway = Gateway::start().await;
    let client = client(&gateway);
    let unknown = client.find_dump("d-7");
    let error = within(unknown.wait()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::NotFound));
    let nothing = client.dump("orders").tables(["public.nothing"]).start();
    assert_eq!(nothing.await.unwrap_err().code(), Some(Code::NotFound));
    let no_table = client.dump("orders").start().await.unwrap_err();
    assert!(matches!(no_table, Error::Config(_)), "{no_table}");
    let no_stream = client.dump("").tables(["t"]).start().await.unwrap_err();
    assert!(matches!(no_stream, Error::Config(_)), "{no_stream}");
    let nowhere = Client::builder("http://127.0.0.1:1").build().unwrap();
    let error = nowhere.find_dump("d-1").get().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}
