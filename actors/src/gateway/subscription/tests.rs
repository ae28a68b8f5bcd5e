//! One who comes as another leaves, and many that are looked up.

use async_trait::async_trait;

use super::*;
use crate::{
    cursors::{CursorError, CursorStore},
    dump::NoRanges,
    gateway::{GatewayLimits, ResolveError, Resolved, SourceResolver},
    log::memory::{MemoryLog, MemoryLogOptions},
};

/// How often one leaves as another comes: when the two were not one step each, some ten thousand were
/// enough to leave one without a ledger or a reader.
const ROUNDS: usize = 30_000;

/// No subscription has a cursor, which takes this long to find out.
#[derive(Debug, Default)]
struct Nothing {
    load_takes: Duration,
}

#[async_trait]
impl SourceResolver for Nothing {
    async fn resolve(&self, _: &str) -> Result<Resolved, ResolveError> {
        std::future::pending().await
    }
}

#[async_trait]
impl CursorStore for Nothing {
    async fn load(&self, _: &SubscriptionId) -> Result<Option<Cursor>, CursorError> {
        tokio::time::sleep(self.load_takes).await;
        Ok(None)
    }

    async fn save(
        &self,
        _: Vec<(SubscriptionId, Cursor)>,
    ) -> Result<Vec<SubscriptionId>, CursorError> {
        Ok(Vec::new())
    }

    async fn remove(&self, _: &SubscriptionId) -> Result<(), CursorError> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(SubscriptionId, Cursor)>, CursorError> {
        Ok(Vec::new())
    }
}

fn subscription(hub: &Hub, consumer: &str) -> Arc<Subscription> {
    hub.subscription(Resolved {
        subscription: SubscriptionId {
            stream: "shop".to_owned(),
            consumer: consumer.to_owned(),
        },
        log: MemoryLog::new(MemoryLogOptions::default()),
    })
}

const TERMS: Terms = Terms {
    unacked_max: 10,
    ack_timeout: None,
};

fn hub(load_takes: Duration) -> Arc<Hub> {
    Arc::new(Hub::new(
        Arc::new(Nothing::default()),
        Arc::new(Nothing { load_takes }),
        Arc::new(NoRanges),
        GatewayLimits::default(),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_as_the_last_one_leaves_is_served() {
    let (hub, options) = (hub(Duration::ZERO), CaptureOptions::default());
    let subscription = subscription(&hub, "shop");
    for round in 0..ROUNDS {
        let leaving = subscription.join(&hub, &options, TERMS).await.unwrap();
        let left = tokio::task::spawn_blocking(move || drop(leaving));
        let came = subscription.join(&hub, &options, TERMS).await.unwrap();
        left.await.unwrap();
        assert!(subscription.state().ledger.is_some(), "round {round}");
        assert!(subscription.feed.lock().await.is_some(), "round {round}");
        drop(came);
    }
}

#[tokio::test(start_paused = true)]
async fn many_books_are_looked_up_in_the_time_of_one() {
    let one = Duration::from_secs(1);
    let hub = hub(one);
    let known: Vec<_> = (0..200)
        .map(|number| subscription(&hub, &number.to_string()))
        .collect();
    let ids: Vec<_> = known.iter().map(|it| it.id.clone()).collect();
    let began = tokio::time::Instant::now();
    hub.renew(&ids).await;
    assert!(began.elapsed() < one * 2, "{:?}", began.elapsed());
}
