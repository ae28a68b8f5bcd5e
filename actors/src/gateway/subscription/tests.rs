//! One who comes as another leaves, many that are looked up, and a range that is told of too early.

use async_trait::async_trait;
use pgcapture_engine::lsn::Lsn;
use tokio::sync::watch;

use super::*;
use crate::{
    cursors::{CursorError, CursorStore},
    dump::{Delivered, DumpError, GivenUp, NoRanges, OpenedRange, RangeSource, RangeTicket},
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
    hub_with(load_takes, Arc::new(NoRanges))
}

fn hub_with(load_takes: Duration, ranges: Arc<dyn RangeSource>) -> Arc<Hub> {
    Arc::new(Hub::new(
        Arc::new(Nothing::default()),
        Arc::new(Nothing { load_takes }),
        ranges,
        GatewayLimits::default(),
    ))
}

/// Tells of a range while a pull is under way that was too early for it.
#[derive(Debug, Default)]
struct Early {
    changes: watch::Sender<u64>,
    pulls: watch::Sender<u64>,
}

#[async_trait]
impl RangeSource for Early {
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn pull(&self, _: &SubscriptionId) -> Result<Option<RangeTicket>, DumpError> {
        self.pulls.send_modify(|pulls| *pulls += 1);
        if *self.pulls.borrow() == 1 {
            self.changes.send_modify(|changes| *changes += 1);
        }
        // By then everybody has heard of it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(None)
    }

    async fn open(&self, ticket: &RangeTicket, at_least: Lsn) -> Result<OpenedRange, DumpError> {
        NoRanges.open(ticket, at_least).await
    }

    async fn finish(&self, _: RangeTicket, _: Delivered) -> Result<(), DumpError> {
        Ok(())
    }

    async fn give_up(&self, _: RangeTicket, _: GivenUp) {}
}

#[tokio::test(start_paused = true)]
async fn a_range_that_is_told_of_during_a_pull_is_pulled() {
    let ranges = Arc::new(Early::default());
    let source: Arc<dyn RangeSource> = Arc::<Early>::clone(&ranges);
    let hub = hub_with(Duration::ZERO, source);
    let options = CaptureOptions::default();
    let subscription = subscription(&hub, "shop");
    let _session = subscription.join(&hub, &options, TERMS).await.unwrap();
    let mut pulls = ranges.pulls.subscribe();
    let again = pulls.wait_for(|pulls| *pulls == 2);
    let again = tokio::time::timeout(Duration::from_secs(60), again).await;
    assert!(again.is_ok(), "nobody asked again");
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
