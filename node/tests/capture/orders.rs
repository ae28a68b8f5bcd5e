//! What operators order: drain, move, remove.

use std::time::Duration;

use pgcapture_actors::gateway::{GatewayError, GatewayLimits};
use pgcapture_engine::{capture_options::StartAt, lsn::Lsn};
use tonic::Code;

use crate::harness::{earliest, id, node, node_with, run};

#[test]
fn a_drain_waits_for_answers_saves_them_and_sends_consumers_elsewhere() {
    run(async {
        let mut node = node_with(GatewayLimits {
            drain_grace: Duration::from_secs(10),
            ..GatewayLimits::default()
        })
        .await;
        node.publish(1, &["a", "b"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let messages = [consumer.next().await, consumer.next().await];
        let gateway = node.gateway.clone();
        let draining = tokio::time::timeout(Duration::from_secs(5), gateway.drain());
        let answering = async {
            for message in &messages {
                consumer.ack(message).await;
            }
            consumer.end().await
        };
        let (drained, status) = tokio::join!(draining, answering);
        drained.expect("nothing is left to wait for").unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("node is draining"), "{status}");
        let cursor = node.cursors.cursors.lock().unwrap()[&id("shop", "shop")].clone();
        assert!(cursor.floor.seq >= 2, "{cursor:?}");

        gateway.drain().await.unwrap();
        let mut client = pgcapture_proto::pgcapture::db_log_gateway_client::DbLogGatewayClient::new(
            node.channel.clone(),
        );
        let refused = client.capture(tokio_stream::pending()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
    });
}

#[test]
fn a_drain_does_not_wait_for_consumers_that_never_answer() {
    run(async {
        let mut node = node_with(GatewayLimits {
            drain_grace: Duration::from_millis(30),
            ..GatewayLimits::default()
        })
        .await;
        node.publish(1, &["a"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        consumer.next().await;
        node.gateway.drain().await.unwrap();
        assert_eq!(consumer.end().await.code(), Code::Unavailable);
    });
}

#[test]
fn a_drain_does_not_wait_for_consumers_that_never_read() {
    run(async {
        let mut node = node_with(GatewayLimits {
            drain_grace: Duration::from_millis(30),
            ..GatewayLimits::default()
        })
        .await;
        let mut stuck = node.join("shop", &[]).await;
        for lsn in 1..=8 {
            node.publish_large(lsn, 64, 16 * 1024).await;
        }
        node.status_when("shop", |status| status.retained_bytes > 2 << 20)
            .await;
        let drained = tokio::time::timeout(Duration::from_secs(5), node.gateway.drain()).await;
        drained.expect("the gateway lets go").unwrap();
        assert_eq!(stuck.end().await.code(), Code::Unavailable);
    });
}

#[test]
fn a_seek_ends_sessions_and_moves_the_subscription() {
    run(async {
        let mut node = node().await;
        for lsn in 1..=4 {
            node.publish(lsn, &["t"]).await;
        }
        let mut consumer = node.join("shop/a", &[]).await;
        let subscription = id("shop", "a");
        node.gateway
            .seek(&subscription, StartAt::Lsn(Lsn(3)))
            .await
            .unwrap();
        let status = consumer.end().await;
        assert_eq!(status.code(), Code::Aborted, "{status}");
        let mut consumer = node.open("shop/a", &[]).await;
        assert_eq!(consumer.positions(2).await, [(3, 1), (4, 1)]);
        drop(consumer);
        node.log.retain(1);
        let refused = node.gateway.seek(&subscription, StartAt::Lsn(Lsn(1))).await;
        assert!(matches!(refused, Err(GatewayError::Log(_))), "{refused:?}");
        let unknown = node.gateway.seek(&id("x", "x"), StartAt::Latest).await;
        assert!(matches!(unknown, Err(GatewayError::Resolve(_))));
    });
}

#[test]
fn a_removed_subscription_begins_anew() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a"]).await;
        let mut consumer = node.join("shop/a", &[earliest()]).await;
        let first = consumer.next().await;
        consumer.ack(&first).await;
        let subscription = id("shop", "a");
        node.gateway.remove(&subscription).await.unwrap();
        assert_eq!(consumer.end().await.code(), Code::Aborted);
        assert_eq!(node.gateway.subscriptions().await.unwrap(), []);
        node.gateway.remove(&subscription).await.unwrap();
        let mut consumer = node.open("shop/a", &[earliest()]).await;
        assert_eq!(consumer.positions(1).await, [(1, 1)]);
    });
}
