//! The user's story of existing rows: `pgcapture dev --replicas 1`, a consumer, `dump start`.

#[path = "cli/harness.rs"]
mod harness;

use std::collections::BTreeSet;

use harness::{Running, free_directory, run};
use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureInit, CaptureRequest, capture_request,
    db_log_gateway_client::DbLogGatewayClient, field,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// The last order that the sample shop has before anything is captured.
const LAST_OLD_ORDER: i64 = 5_000;

/// Consumes `orders` as an old client until all orders from before have come, between the changes;
/// returns how many changes came.
async fn consume(endpoint: &str) -> usize {
    let (requests, outbound) = mpsc::channel(64);
    let client = DbLogGatewayClient::connect(format!("http://{endpoint}"));
    let mut client = client.await.expect("the node runs");
    let stream = client.capture(ReceiverStream::new(outbound)).await;
    let mut stream = stream.expect("the stream opens").into_inner();
    let send = async |request| {
        let r#type = Some(request);
        let sent = requests.send(CaptureRequest { r#type }).await;
        sent.expect("the stream is open");
    };
    let init = CaptureInit {
        uri: "orders/search".to_owned(),
        parameters: None,
    };
    send(capture_request::Type::Init(init)).await;
    let (mut rows, mut change_count) = (BTreeSet::new(), 0);
    let mut is_last = false;
    while !is_last || change_count == 0 {
        let message = stream.message().await.expect("the stream goes on");
        let message = message.expect("the stream goes on");
        let checkpoint = message.checkpoint.expect("every message has one");
        if checkpoint.lsn == 0 {
            let change = message.change.expect("a row");
            let Some(field::Value::Binary(id)) = change.new[0].value.clone() else {
                panic!("a binary id: {change:?}")
            };
            rows.insert(i64::from_be_bytes(
                id.as_ref().try_into().expect("eight bytes"),
            ));
            is_last |= !checkpoint.data.is_empty();
        } else {
            change_count += 1;
        }
        send(capture_request::Type::Ack(CaptureAck {
            checkpoint: Some(checkpoint),
            ..CaptureAck::default()
        }))
        .await;
    }
    // The load adds orders at one end and takes the oldest away: a snapshot has no hole.
    let (first, last) = (*rows.first().expect("rows"), *rows.last().expect("rows"));
    assert!(
        first < LAST_OLD_ORDER && LAST_OLD_ORDER <= last,
        "{first} to {last}"
    );
    assert_eq!(
        rows.into_iter().collect::<Vec<_>>(),
        (first..=last).collect::<Vec<_>>()
    );
    // The stream stays open until the dump was seen to end.
    std::mem::forget(stream);
    std::mem::forget(requests);
    change_count
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_arrive_between_the_changes_of_a_live_shop() {
    let directory = free_directory();
    let data = directory.path().to_str().expect("a plain path");
    let mut dev = Running::start(&[
        "dev",
        "--port",
        "0",
        "--data",
        data,
        "--replicas",
        "1",
        "--load",
        "orders:200/s",
    ]);
    let said = dev.wait_for("NOT FOR PRODUCTION").await;
    assert!(said.contains("r1 on :"), "{said}");
    assert!(
        said.contains("pgcapture dump start orders --table public.orders"),
        "{said}"
    );
    let endpoint = dev.endpoint();
    let ready = ["replica", "ls", "--until", "healthy", "-o", "json"];
    let replicas = run(&endpoint, &ready).expect(0);
    assert!(replicas.contains("\"kind\": \"standby\""), "{replicas}");

    let mut dump = Running::start(&[
        "--endpoint",
        &endpoint,
        "dump",
        "start",
        "orders",
        "--table",
        "public.orders",
        "--consumer",
        "search",
    ]);
    dump.wait_for("waiting for a consumer of orders/search")
        .await;
    assert!(consume(&endpoint).await > 0);
    let said = dump.wait_for("dump d-1 finished in ").await;
    assert!(said.contains("dump d-1  orders/search"), "{said}");
    let listed = run(&endpoint, &["dump", "ls", "--until", "done"]).expect(0);
    assert!(listed.contains("100 %"), "{listed}");
    assert_eq!(dev.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_watcher_leaves_the_dump_running() {
    let directory = free_directory();
    let data = directory.path().to_str().expect("a plain path");
    let mut dev = Running::start(&["dev", "--port", "0", "--data", data]);
    let said = dev.wait_for("NOT FOR PRODUCTION").await;
    assert!(said.contains("the source itself"), "{said}");
    let endpoint = dev.endpoint();
    let args = [
        "--endpoint",
        &endpoint,
        "dump",
        "start",
        "orders",
        "--table",
        "public.orders",
    ];
    let mut dump = Running::start(&args);
    dump.wait_for("waiting for a consumer of orders").await;
    assert_eq!(dump.interrupt().await, Some(130));
    let said = dump.seen.borrow().clone();
    assert!(said.contains("pgcapture dump watch d-1"), "{said}");
    assert!(said.contains("pgcapture dump cancel d-1 --yes"), "{said}");
    let open = run(&endpoint, &["dump", "show", "d-1", "-o", "json"]).expect(0);
    assert!(open.contains("\"state\": \"active\""), "{open}");
    run(&endpoint, &["dump", "cancel", "d-1", "--yes"]).expect(0);
    assert_eq!(dev.stop().await, Some(0));
}
