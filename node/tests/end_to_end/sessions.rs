//! Ten thousand idle consumers on one node.
//!
//! Each has a uri of its own, so each makes a durable cursor; then ten workers of one service share
//! a subscription.

use std::time::Duration;

use pgcapture_proto::admin::v1::{ListConsumersRequest, admin_client::AdminClient};
use rustix::process::{Resource, getrlimit, setrlimit};
use tonic::transport::Endpoint;

use crate::{
    consumer::{Consumer, id},
    process::eventually,
    world::World,
};

const SESSIONS: usize = 10_000;

/// Streams of one connection; HTTP/2 allows some hundreds.
const STREAMS: usize = 200;

/// Sessions that share one subscription.
const SHARING: usize = 10;

/// What one idle session may cost, its subscription included: 25 KiB, so that 10,000 stay below
/// 250 MiB.
const BYTES_PER_SESSION_MAX: u64 = 25 << 10;

/// Ten thousand cursors are made durable within this; one write each would take minutes.
const OPENING_MAX: Duration = Duration::from_secs(20);

/// Opens streams, all of them at once.
async fn open_all(world: &World, uris: Vec<String>) -> Vec<Consumer> {
    let connections = uris.chunks(STREAMS).map(|uris| async move {
        let endpoint = Endpoint::from_shared(format!("http://{}", world.node.listen)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let opening = uris
            .iter()
            .map(|uri| Consumer::on(channel.clone(), uri, &[]));
        futures_util::future::join_all(opening).await
    });
    let opened = futures_util::future::join_all(connections).await;
    opened.into_iter().flatten().collect()
}

/// Waits until so many sessions have their subscription.
async fn until_held(world: &World, wanted: usize) {
    eventually("all sessions", async || {
        let request = ListConsumersRequest::default();
        let shown = AdminClient::new(world.channel())
            .list_consumers(request)
            .await;
        let shown = shown.unwrap().into_inner().consumers.into_iter();
        let count: u32 = shown.map(|consumer| consumer.session_count).sum();
        let is_reached = count as usize == wanted;
        is_reached
            .then_some(())
            .ok_or_else(|| format!("{count} sessions"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_sessions_are_held_and_served() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let world = World::new().await;
    let before = world.node.rss();
    let began = tokio::time::Instant::now();
    let uris = (SHARING..SESSIONS).map(|number| format!("shop/idle-{number}"));
    let workers = (0..SHARING).map(|_| "shop/workers".to_owned());
    let mut consumers = open_all(&world, workers.chain(uris).collect()).await;
    until_held(&world, SESSIONS).await;
    let took = began.elapsed();
    let held = world.node.rss();
    let each = held.saturating_sub(before) / SESSIONS as u64;
    println!(
        "{SESSIONS} sessions in {took:?}: {} MiB before, {} MiB held, {each} bytes each",
        before >> 20,
        held >> 20
    );
    assert!(each < BYTES_PER_SESSION_MAX, "{each} bytes a session");
    assert!(took < OPENING_MAX, "{took:?}");
    world.sql("INSERT INTO t VALUES (42)").await;
    let (workers, idle) = consumers.split_at_mut(SHARING);
    let waiting = workers.iter_mut().map(|worker| Box::pin(worker.next()));
    let (message, ..) = futures_util::future::select_all(waiting).await;
    assert_eq!(id(&message), 42);
    for consumer in idle.iter_mut().step_by(97) {
        assert_eq!(id(&consumer.next().await), 42);
    }
}
