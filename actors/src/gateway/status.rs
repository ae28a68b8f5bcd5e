//! What an operator sees of subscriptions, connected or not.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pgcapture_engine::{capture_options::Mode, checkpoint::Checkpoint, lsn::PgTime};

use super::{error::GatewayError, hub::Hub, meters, subscription::Glance};
use crate::{cursors::SubscriptionId, log::Tail};

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
    for (id, cursor) in hub.cursors.list().await? {
        let tail = match hub.resolve_id(&id).await {
            Ok(resolved) => Some(*resolved.log.tail().borrow()),
            Err(_) => None,
        };
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
    for subscription in hub.subscriptions() {
        let id = subscription.id.clone();
        let glance = subscription.glance();
        if glance.floor.is_some() {
            let tail = Some(*subscription.log().tail().borrow());
            found.insert(id.clone(), status(id, &glance, tail));
        }
    }
    Ok(found.into_values().collect())
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
