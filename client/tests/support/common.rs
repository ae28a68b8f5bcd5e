//! What the tests of streams share.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses its part"
)]

use std::{future::Future, time::Duration};

use pgcapture::{
    Change, Client, Event, Events, Field, Row,
    testkit::{Gateway, TestRow, row},
};

/// Longer than anything here takes; a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Row)]
#[pgcapture(table = "public.orders")]
pub struct Order {
    #[pgcapture(key)]
    pub id: i64,
    pub customer: Option<String>,
    pub note: Field<String>,
}

pub fn order(id: i64, customer: Option<&str>, note: Field<String>) -> Order {
    Order {
        id,
        customer: customer.map(str::to_owned),
        note,
    }
}

pub fn order_row(id: i64, customer: &str, note: &str) -> TestRow {
    row("public.orders")
        .set("id", id)
        .set("customer", customer)
        .set("note", note)
}

pub fn client(gateway: &Gateway) -> Client {
    Client::builder(gateway.endpoints())
        .build()
        .expect("the mock gateway serves")
}

pub fn id_of(event: &Event<Order>) -> i64 {
    match event.change() {
        Change::Insert(order) | Change::Snapshot(order) | Change::Update { new: order, .. } => {
            order.id
        }
        Change::Delete { key } => -key.get::<i64>("id").expect("the mock gateway serves"),
        Change::Truncate => 0,
    }
}

/// Takes and acknowledges so many events.
pub async fn ids(events: &mut Events<Order>, count: usize) -> Vec<i64> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let event = within(events.try_next())
            .await
            .expect("the mock gateway serves")
            .expect("the stream goes on");
        ids.push(id_of(&event));
        event.ack().await.expect("the mock gateway serves");
    }
    ids
}

pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it happens in time")
}
