//! What an operator sees of subscriptions, connected or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use pgcapture_engine::{capture_options::Mode, checkpoint::Checkpoint, lsn::PgTime};

use super::{error::GatewayError, hub::Hub, meters, subscription::Glance};
use crate::{cursors::SubscriptionId, log::Tail};

/// The end of a log that is not read here must be known within this time, for all logs together: it is
/// in memory here, or one step away. A list must not wait for a log that cannot be read.
const TAILS_MAX: Duration = Duration::from_millis(250);

/// Where a subscription stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionStatus {
    /// Which one.
    pub id: SubscriptionId,
    /// How its sessions share it; the default while none is connected.
    pub mode: Mode,
    /// Connected sessions.
    pub session_count: usize,
    /// Everything up to here is acknowledged or filtered out.
    pub floor: Checkpoint,
    /// The part of that which a crash cannot undo; `None` before the first save.
    pub durable_floor: Option<Checkpoint>,
    /// Messages that were delivered and not acknowledged.
    pub unacked: usize,
    /// Bytes of rows in memory until they are acknowledged.
    pub retained_bytes: usize,
    /// Messages delivered again since the subscription came to memory.
    pub redelivered_count: u64,
    /// Ranges of dumps that are being read, delivered or acknowledged.
    pub range_count: usize,
    /// WAL between the floor and the durable end of the log; `None` when the log cannot be read.
    pub lag_bytes: Option<u64>,
    /// Time between the commits at both; `None` when either is unknown.
    pub lag: Option<Duration>,
}

/// Returns all subscriptions in the order of their names.
pub(super) async fn all(hub: &Hub) -> Result<Vec<SubscriptionStatus>, GatewayError> {
    let mut found = BTreeMap::new();
    let mut connected = BTreeMap::new();
    for subscription in hub.subscriptions() {
        let glance = subscription.glance();
        if glance.floor.is_some() {
            let tail = Some(*subscription.log().tail().borrow());
            let id = subscription.id.clone();
            connected.insert(id.clone(), status(id, &glance, tail));
        }
    }
    let mut stored = hub.cursors.list().await?;
    stored.retain(|(id, _)| !connected.contains_key(id));
    let tails = tails(
        hub,
        stored.iter().map(|(id, _)| id.stream.clone()).collect(),
    )
    .await;
    for (id, cursor) in stored {
        let tail = tails.get(&id.stream).copied();
        let glance = Glance {
            mode: Mode::default(),
            session_count: 0,
            unacked: 0,
            retained_bytes: 0,
            redelivered_count: 0,
            floor: Some(cursor.floor),
            floor_time: PgTime(0),
            durable_floor: Some(cursor.floor),
            range_count: 0,
        };
        found.insert(id.clone(), status(id, &glance, tail));
    }
    found.append(&mut connected);
    Ok(found.into_values().collect())
}

/// Returns the ends of the logs of streams, side by side; what is not known soon is left out.
async fn tails(hub: &Hub, streams: BTreeSet<String>) -> BTreeMap<String, Tail> {
    let looks = streams.into_iter().map(|stream| async {
        let id = SubscriptionId {
            consumer: stream.clone(),
            stream,
        };
        let resolved = tokio::time::timeout(TAILS_MAX, hub.resolve_id(&id)).await;
        let tail = *resolved.ok()?.ok()?.log.tail().borrow();
        Some((id.stream, tail))
    });
    join_all(looks).await.into_iter().flatten().collect()
}

/// Sets the gauges of connected subscriptions.
pub(super) fn report(hub: &Arc<Hub>) {
    let (mut active, mut standby) = (0, 0);
    for subscription in hub.subscriptions() {
        let glance = subscription.glance();
        let served = match glance.mode {
            Mode::Shared => glance.session_count,
            Mode::Ordered => glance.session_count.min(1),
        };
        active += served;
        standby += glance.session_count - served;
        let tail = *subscription.log().tail().borrow();
        let status = status(subscription.id.clone(), &glance, Some(tail));
        subscription.meters.stand(
            status.unacked,
            status.lag_bytes.unwrap_or(0),
            status.lag.unwrap_or_default(),
        );
    }
    meters::sessions(active, standby);
}

fn status(id: SubscriptionId, glance: &Glance, tail: Option<Tail>) -> SubscriptionStatus {
    let floor = glance.floor.unwrap_or_default();
    let is_known = glance.floor_time != PgTime(0);
    let last = tail.map(|tail| tail.last.unwrap_or_default());
    let lag = match tail {
        _ if last.is_some_and(|last| floor >= last) => Some(Duration::ZERO),
        Some(tail) if is_known => {
            let micros = tail.commit_time.0.saturating_sub(glance.floor_time.0);
            Some(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
        }
        _ => None,
    };
    SubscriptionStatus {
        id,
        mode: glance.mode,
        session_count: glance.session_count,
        floor,
        durable_floor: glance.durable_floor,
        unacked: glance.unacked,
        retained_bytes: glance.retained_bytes,
        redelivered_count: glance.redelivered_count,
        range_count: glance.range_count,
        lag_bytes: last.map(|last| last.lsn.bytes_since(floor.lsn)),
        lag,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        cursors::{Cursor, CursorError, CursorStore},
        dump::NoRanges,
        gateway::{GatewayLimits, ResolveError, Resolved, SourceResolver},
        log::memory::{MemoryLog, MemoryLogOptions},
    };

    /// Knows where `shop` ends, and never learns it of other streams.
    #[derive(Debug)]
    struct Half {
        shop: Arc<MemoryLog>,
        asked: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl SourceResolver for Half {
        async fn resolve(&self, uri: &str) -> Result<Resolved, ResolveError> {
            self.asked.lock().unwrap().push(uri.to_owned());
            if uri != "shop" {
                return std::future::pending().await;
            }
            let log: Arc<MemoryLog> = Arc::clone(&self.shop);
            let subscription = id("shop", "shop");
            Ok(Resolved { subscription, log })
        }
    }

    /// Two consumers of each of three streams.
    #[derive(Debug)]
    struct Stored;

    #[async_trait]
    impl CursorStore for Stored {
        async fn load(&self, _: &SubscriptionId) -> Result<Option<Cursor>, CursorError> {
            Ok(Some(Cursor::default()))
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
            let streams = ["shop", "lost", "gone"].into_iter();
            let ids = streams.flat_map(|stream| ["a", "b"].map(|consumer| id(stream, consumer)));
            Ok(ids.map(|id| (id, Cursor::default())).collect())
        }
    }

    fn id(stream: &str, consumer: &str) -> SubscriptionId {
        SubscriptionId {
            stream: stream.to_owned(),
            consumer: consumer.to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn logs_that_cannot_be_read_are_looked_for_once_and_hold_up_no_list() {
        let resolver = Arc::new(Half {
            shop: MemoryLog::new(MemoryLogOptions::default()),
            asked: Mutex::default(),
        });
        let hub = Hub::new(
            Arc::<Half>::clone(&resolver),
            Arc::new(Stored),
            Arc::new(NoRanges),
            GatewayLimits::default(),
        );
        let began = Instant::now();
        let listed = super::all(&hub).await.unwrap();
        assert!(began.elapsed() <= TAILS_MAX + Duration::from_millis(2));
        let known = listed
            .iter()
            .map(|it| (it.id.stream.as_str(), it.lag_bytes));
        let wanted = [("gone", None), ("lost", None), ("shop", Some(0))];
        let wanted = wanted.iter().flat_map(|it| [*it, *it]);
        assert!(known.eq(wanted), "{listed:?}");
        assert_eq!(*resolver.asked.lock().unwrap(), ["gone", "lost", "shop"]);
    }
}
