//! Ten thousand idle consumers on one node.
//!
//! Ten of them share a subscription, as the workers of one service do.

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

/// Sessions of one subscription.
const SHARING: usize = 10;

/// What one idle session may cost: 25 KiB, so that 10,000 stay below 250 MiB.
const BYTES_PER_SESSION_MAX: u64 = 25 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_sessions_are_held_and_served() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let world = World::new().await;
    let before = world.node.rss();
    let mut consumers = Vec::with_capacity(SESSIONS);
    for connection in 0..SESSIONS / STREAMS {
        let endpoint = Endpoint::from_shared(format!("http://{}", world.node.listen)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let opening = (0..STREAMS).map(|number| {
            let uri = format!("shop/idle-{}", (connection * STREAMS + number) / SHARING);
            let channel = channel.clone();
            async move { Consumer::on(channel, &uri, &[]).await }
        });
        consumers.extend(futures_util::future::join_all(opening).await);
    }
    eventually("all sessions", async || {
        let request = ListConsumersRequest::default();
        let shown = AdminClient::new(world.channel())
            .list_consumers(request)
            .await;
        let shown = shown.unwrap().into_inner().consumers.into_iter();
        let count: u32 = shown.map(|consumer| consumer.session_count).sum();
        let count = count as usize;
        (count == SESSIONS)
            .then_some(())
            .ok_or_else(|| format!("{count} sessions"))
    })
    .await;
    let held = world.node.rss();
    let each = held.saturating_sub(before) / SESSIONS as u64;
    println!(
        "{SESSIONS} sessions: {} MiB before, {} MiB held, {each} bytes each",
        before >> 20,
        held >> 20
    );
    assert!(each < BYTES_PER_SESSION_MAX, "{each} bytes a session");
    world.sql("INSERT INTO t VALUES (42)").await;
    for workers in consumers.chunks_mut(SHARING).step_by(97) {
        let waiting = workers.iter_mut().map(|worker| Box::pin(worker.next()));
        let (message, ..) = futures_util::future::select_all(waiting).await;
        assert_eq!(id(&message), 42);
    }
}
