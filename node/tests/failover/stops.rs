//! A stop waits for nobody who cannot come: peers that are away, or that never were there.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use crate::{
    process::{Node, Place, run},
    trio::Trio,
};

/// A stop takes some tenths of a second; waiting for what cannot come took nine. A busy machine is
/// somewhere between.
const STOP_MAX: Duration = Duration::from_secs(6);

#[tokio::test]
async fn a_node_that_waits_for_peers_stops_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let peers = "advertise = \"127.0.0.1:1\"\npeers = [\"127.0.0.1:1\", \"127.0.0.1:2\"]";
    let file = Place::at(folder.path()).configure_as("n1", "127.0.0.1:0", peers);
    let node = Node::launch(&file, &[]);
    let is_waiting = |line: &Value| line["message"] == "waiting for peers";
    node.logged(is_waiting).await;
    let (exit, log) = timeout(STOP_MAX, node.stop()).await.expect("it stops");
    assert_eq!(exit, Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_stops_without_the_others() {
    let (mut trio, owner, other) = Trio::with_source(&[]).await;
    let third = 3 - owner - other;
    let consumer = trio.consumer(owner).await;
    // Its home is given back in the agreed state, which nobody can change once the others are gone.
    run(trio.listen(other), &["consumer", "show", "shop"])
        .await
        .expect(0);
    trio.kill(other).await;
    trio.kill(third).await;
    let log = timeout(STOP_MAX, trio.stop(owner)).await.expect("it stops");
    assert!(log.contains("\"stopped\""), "{log}");
    drop(consumer);
}
