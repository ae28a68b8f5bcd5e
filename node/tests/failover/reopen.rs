//! A consumer that opens its uri at the next node while its home stops: at whichever moment, rows come
//! soon, or a status that says to come again.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};

use crate::{
    consumer::{Consumer, id},
    process::run,
    trio::{Trio, Writer},
};

/// A uri that brings nothing for this long while rows are written hangs.
const SILENT_MAX: Duration = Duration::from_secs(20);

/// Times that a home is stopped.
const ROUNDS: usize = 6;

/// The next consumer comes so many rows later after the stop than the one before: a row takes about a
/// millisecond, a stop some hundred.
const ROWS_LATER: i64 = 60;

/// Takes and acknowledges rows until the stream ends with a status; returns the last one.
async fn take_all(mut consumer: Consumer) -> i64 {
    let mut last = 0;
    while let Ok(message) = consumer.try_next().await {
        last = id(&message);
        consumer.ack(&message).await;
    }
    last
}

/// Opens the uri again and again until a row comes, which must be soon.
async fn reopen(listen: &str, uri: &str) -> i64 {
    let first = async {
        loop {
            let mut consumer = Consumer::open(listen, uri, &[]).await;
            match consumer.try_next().await {
                Ok(message) => return id(&message),
                Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
            }
        }
    };
    timeout(SILENT_MAX, first).await.expect("a row")
}

async fn wait_for_row(rows: &mut watch::Receiver<i64>, wanted: i64) {
    rows.wait_for(|row| *row >= wanted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_reopens_while_its_home_stops_is_served_soon() {
    let mut trio = Trio::start().await;
    trio.add_source(&[]).await;
    let writer = Writer::start(&trio.server);
    for round in 0..ROUNDS {
        let home = round % 3;
        let next = (home + 1 + round / 3) % 3;
        let listen = trio.listen(next).to_owned();
        let healthy = ["cluster", "health", "--until", "healthy"];
        run(&listen, &healthy).await.expect(0);
        if round % 2 == 0 {
            trio.move_source(next, home).await;
        }
        let uri = format!("shop/c{round}");
        let mut consumer = Consumer::open(trio.listen(home), &uri, &[]).await;
        trio.joined(next, &uri).await;
        let message = consumer.next().await;
        consumer.ack(&message).await;
        let acked = id(&message);
        let mut rows = writer.rows();
        let later = *rows.borrow() + ROWS_LATER * i64::try_from(round).unwrap();
        let reopened = async {
            // Some leave when they are told to, others before.
            let last = if round % 2 == 0 {
                take_all(consumer).await
            } else {
                wait_for_row(&mut rows, later).await;
                drop(consumer);
                acked
            };
            let first = reopen(&listen, &uri).await;
            assert!(
                first > 0 && first <= last.max(acked) + 1,
                "a hole after {last}: {first}"
            );
        };
        let (log, ()) = tokio::join!(trio.stop(home), reopened);
        assert!(log.contains("\"stopped\""), "{log}");
        trio.start_again(home).await;
    }
    writer.stop().await;
}
