//! Bad input and failing parts: a clear status, nothing lost, nobody else affected.

use std::{sync::atomic::Ordering, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt;
use pgcapture_actors::{
    cursors::Cursor,
    gateway::{CaptureError, GatewayLimits, RequestError, RequestSource, Requested},
};
use pgcapture_engine::{checkpoint::Checkpoint, ledger::Ack, lsn::Lsn};
use pgcapture_proto::{
    pgcapture::{CaptureInit, capture_request},
    status::CODE_KEY,
};
use tonic::{Code, Status};

use crate::harness::{Node, earliest, id, node, node_with, position, run, text};

fn assert_status(status: &Status, code: Code, stable: &str, says: &str) {
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(says), "{status}");
    assert!(status.message().contains("; next: "), "{status}");
    assert_eq!(status.metadata().get(CODE_KEY).unwrap(), stable);
}

async fn is_served(node: &mut Node, lsn: u64) {
    node.publish(lsn, &["t"]).await;
    let uri = format!("shop/witness-{lsn}");
    let mut witness = node.open(&uri, &[earliest()]).await;
    assert_eq!(witness.positions(1).await.len(), 1);
}

#[test]
fn an_unknown_uri_is_not_found_and_names_the_known_ones() {
    run(async {
        let node = node().await;
        for uri in ["shoop", "", "shoop/a"] {
            let status = node.open(uri, &[]).await.end().await;
            assert_status(&status, Code::NotFound, "PGC-G01", "known streams: shop");
        }
    });
}

#[test]
fn bad_parameters_are_refused_with_the_reason() {
    run(async {
        let node = node().await;
        for (name, value, says) in [
            ("TableRegex", "(", "unclosed group"),
            ("Start", "yesterday", "earliest"),
            ("Mode", "both", "neither"),
        ] {
            let status = node.open("shop", &[(name, text(value))]).await.end().await;
            assert_status(&status, Code::InvalidArgument, "PGC-G04", says);
        }
        assert_eq!(node.gateway.subscriptions().await.unwrap(), []);
    });
}

#[test]
fn init_comes_first_and_once() {
    run(async {
        let node = node().await;
        let mut consumer = node.open_bare().await;
        consumer.ack_at((1, 1)).await;
        let status = consumer.end().await;
        assert_status(&status, Code::InvalidArgument, "PGC-G02", "must be init");

        let mut consumer = node.open_bare().await;
        consumer.requests = tokio::sync::mpsc::channel(1).0;
        let status = consumer.end().await;
        assert_status(&status, Code::InvalidArgument, "PGC-G02", "must be init");

        let mut consumer = node.open("shop", &[]).await;
        let init = CaptureInit {
            uri: "shop".to_owned(),
            parameters: None,
        };
        consumer.send(capture_request::Type::Init(init)).await;
        let status = consumer.end().await;
        assert_status(&status, Code::InvalidArgument, "PGC-G03", "second time");
    });
}

#[test]
fn a_client_that_says_nothing_is_not_kept() {
    run(async {
        let node = node_with(GatewayLimits {
            init_deadline: Duration::from_millis(20),
            ..GatewayLimits::default()
        })
        .await;
        let status = node.open_bare().await.end().await;
        assert_status(&status, Code::InvalidArgument, "PGC-G02", "no init came");
    });
}

#[test]
fn an_ack_of_an_unknown_checkpoint_ends_only_its_session() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a", "b"]).await;
        for foreign in [(1, 9), (2, 1), (u64::MAX, u32::MAX)] {
            let mut consumer = node.open("shop", &[earliest()]).await;
            assert_eq!(consumer.positions(2).await, [(1, 1), (1, 2)]);
            consumer.ack_at(foreign).await;
            let status = consumer.end().await;
            assert_status(
                &status,
                Code::InvalidArgument,
                "PGC-G05",
                "was not delivered",
            );
        }
        let mut consumer = node.open("shop", &[]).await;
        assert_eq!(consumer.positions(2).await, [(1, 1), (1, 2)]);
    });
}

#[test]
fn an_oversized_request_is_refused() {
    run(async {
        let mut node = node().await;
        let uri = "x".repeat(2 << 20);
        let status = node.open(&uri, &[]).await.end().await;
        assert_status(
            &status,
            Code::ResourceExhausted,
            "PGC-G07",
            "larger than the limit",
        );
        is_served(&mut node, 1).await;
    });
}

#[test]
fn a_position_that_retention_removed_is_out_of_range_with_the_earliest_one() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a"]).await;
        drop(node.join("shop/slow", &[earliest()]).await);
        node.status_when("shop/slow", |status| status.session_count == 0)
            .await;
        for lsn in 2..=5 {
            node.publish(lsn, &["b"]).await;
        }
        node.log.retain(2);
        let status = node.open("shop/slow", &[]).await.end().await;
        assert_status(
            &status,
            Code::OutOfRange,
            "PGC-G06",
            "the earliest one is 0/4|0",
        );
        let status = node
            .open("shop/new", &[("Start", text("0/1"))])
            .await
            .end()
            .await;
        assert_status(&status, Code::OutOfRange, "PGC-G06", "0/4");
        let mut consumer = node.open("shop/other", &[earliest()]).await;
        assert_eq!(consumer.positions(2).await, [(4, 1), (5, 1)]);
    });
}

#[test]
fn limits_of_the_node_are_told() {
    run(async {
        let node = node_with(GatewayLimits {
            sessions_max: 2,
            subscriptions_max: 1,
            ..GatewayLimits::default()
        })
        .await;
        let _first = node.join("shop/a", &[]).await;
        let status = node.open("shop/b", &[]).await.end().await;
        assert_status(
            &status,
            Code::ResourceExhausted,
            "PGC-G08",
            "1 subscriptions",
        );
        let _second = node.join("shop/a", &[]).await;
        let mut client = pgcapture_proto::pgcapture::db_log_gateway_client::DbLogGatewayClient::new(
            node.channel.clone(),
        );
        let refused = client.capture(tokio_stream::pending()).await.unwrap_err();
        assert_status(&refused, Code::ResourceExhausted, "PGC-G08", "2 sessions");
    });
}

#[test]
fn acknowledgements_do_not_count_while_the_store_fails() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a", "b"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let first = consumer.next().await;
        node.cursors.is_failing.store(true, Ordering::SeqCst);
        consumer.ack(&first).await;
        let status = node.status_when("shop", |status| status.unacked == 1).await;
        assert!(status.durable_floor.unwrap() < status.floor);
        let refused = node.open("shop/new", &[]).await.end().await;
        assert_status(&refused, Code::Unavailable, "PGC-G13", "the disk is full");
        node.cursors.is_failing.store(false, Ordering::SeqCst);
        node.status_when("shop", |status| status.durable_floor == Some(status.floor))
            .await;
    });
}

#[test]
fn the_end_is_told_once_what_was_acknowledged_is_durable() {
    run(async {
        let mut node = node().await;
        for lsn in 1..=20 {
            node.publish(lsn, &["a"]).await;
            let mut consumer = node.open("shop", &[earliest()]).await;
            let message = consumer.next().await;
            assert_eq!(position(&message), (lsn, 1), "nothing comes again");
            consumer.ack(&message).await;
            let told = consumer.close().await;
            let cursor = node.cursors.cursors.lock().unwrap()[&id("shop", "shop")].clone();
            assert_eq!(told.code(), Code::Ok);
            assert!(cursor.floor >= Checkpoint::new(Lsn(lsn), 1), "{cursor:?}");
        }
    });
}

#[test]
fn an_end_whose_acknowledgements_cannot_be_kept_is_an_error() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let message = consumer.next().await;
        node.cursors.is_failing.store(true, Ordering::SeqCst);
        consumer.ack(&message).await;
        let told = consumer.close().await;
        assert_status(&told, Code::Unavailable, "PGC-G13", "the disk is full");
    });
}

#[test]
fn a_log_that_fails_ends_its_sessions_with_unavailable() {
    run(async {
        let node = node().await;
        let mut consumer = node.join("shop", &[]).await;
        node.log.fail("a disk that lies");
        let status = consumer.end().await;
        assert_status(&status, Code::Unavailable, "PGC-G10", "a disk that lies");
    });
}

/// Opens a stream and then has a defect.
#[derive(Default)]
struct Defective {
    is_open: bool,
}

#[async_trait]
impl RequestSource for Defective {
    async fn next(&mut self, _: &mut Vec<Ack>) -> Result<Requested, RequestError> {
        assert!(!std::mem::replace(&mut self.is_open, true), "on purpose");
        let uri = "shop".to_owned();
        Ok(Requested::Init(CaptureInit {
            uri,
            parameters: None,
        }))
    }
}

#[test]
fn a_session_that_panics_is_told_so_and_affects_nobody_else() {
    run(async {
        let mut node = node().await;
        let mut healthy = node.join("shop", &[]).await;
        let defective = Box::<Defective>::default();
        let mut deliveries = node.gateway.capture(defective).await.unwrap();
        let end = loop {
            match deliveries.next().await {
                Some(Ok(_)) => {}
                other => break other,
            }
        };
        assert!(matches!(end, Some(Err(CaptureError::Failed))), "{end:?}");
        node.publish(1, &["a"]).await;
        assert_eq!(healthy.positions(1).await, [(1, 1)]);
        node.status_when("shop", |status| status.session_count == 1)
            .await;
    });
}

#[test]
fn what_another_node_keeps_is_not_told_durable() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["t"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let message = consumer.next().await;
        node.cursors
            .refused
            .lock()
            .unwrap()
            .insert(id("shop", "shop"));
        consumer.ack(&message).await;
        let status = consumer.close().await;
        assert_status(&status, Code::Unavailable, "PGC-G18", "another node");
        node.cursors.refused.lock().unwrap().clear();
        // Nor is it forgotten here that it was not.
        let mut again = node.open("shop", &[earliest()]).await;
        assert_eq!(position(&again.next().await), position(&message));
    });
}

#[test]
fn sessions_end_when_another_node_has_moved_their_cursor() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["t", "u"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let message = consumer.next().await;
        node.cursors
            .refused
            .lock()
            .unwrap()
            .insert(id("shop", "shop"));
        let moved = Cursor {
            floor: Checkpoint::new(Lsn(1), 2),
            acked_above: Vec::new(),
        };
        let mut cursors = node.cursors.cursors.lock().unwrap().clone();
        cursors.insert(id("shop", "shop"), moved.clone());
        *node.cursors.cursors.lock().unwrap() = cursors;
        consumer.ack(&message).await;
        let status = consumer.end().await;
        assert_status(&status, Code::Unavailable, "PGC-G18", "another node");
        let kept = node.cursors.cursors.lock().unwrap().clone();
        assert_eq!(kept[&id("shop", "shop")], moved);
        // Who comes now goes on from there.
        node.cursors.refused.lock().unwrap().clear();
        node.publish(2, &["t"]).await;
        let mut again = node.open("shop", &[earliest()]).await;
        assert_eq!(again.positions(1).await, [(2, 1)]);
    });
}
