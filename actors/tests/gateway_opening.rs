//! A session whose log is nowhere: it is told to come again, soon, whatever happens to its node.
//!
//! The gateway is whole; time stands still and jumps to the next thing that is due whenever everybody
//! waits.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failure")]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use pgcapture_actors::{
    cursors::{Cursor, CursorError, CursorStore, SubscriptionId},
    dump::NoRanges,
    gateway::{
        CaptureError, Deliveries, EndReason, GatewayHandle, GatewayLimits, RequestError,
        RequestSource, Requested, ResolveError, Resolved, SourceResolver,
    },
    log::routed::{Place, RoutedLog},
    supervise::{TaskKind, spawn},
};
use pgcapture_engine::ledger::Ack;
use pgcapture_proto::pgcapture::CaptureInit;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// Longer than any take-over, shorter than anybody's patience.
const SILENT_MAX: Duration = Duration::from_secs(15);

/// Runs a test as a node runs, with time paused.
fn run(test: impl Future<Output = ()>) {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    actix::System::with_tokio_rt(runtime).block_on(test);
}

fn shop() -> SubscriptionId {
    SubscriptionId {
        stream: "shop".to_owned(),
        consumer: "shop".to_owned(),
    }
}

/// Every subscription has a cursor, and whoever loads one is seen.
#[derive(Debug, Default)]
struct Loaded(Arc<Notify>);

#[async_trait]
impl CursorStore for Loaded {
    async fn load(&self, _: &SubscriptionId) -> Result<Option<Cursor>, CursorError> {
        self.0.notify_one();
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
        Ok(Vec::new())
    }
}

/// A log that no node has.
#[derive(Debug)]
struct Lost {
    log: Arc<RoutedLog>,
    _place: watch::Sender<Place>,
}

impl Lost {
    fn new() -> Self {
        let reason = "no node runs the source".to_owned();
        let (tell, place) = watch::channel(Place::Nowhere { reason });
        let keeper = spawn(TaskKind::LogRoute, "shop", std::future::pending());
        Self {
            log: RoutedLog::start("shop", place, keeper),
            _place: tell,
        }
    }
}

#[async_trait]
impl SourceResolver for Lost {
    async fn resolve(&self, _: &str) -> Result<Resolved, ResolveError> {
        let log: Arc<RoutedLog> = Arc::clone(&self.log);
        Ok(Resolved {
            subscription: shop(),
            log,
        })
    }
}

/// Asks for `shop`, and nothing more.
struct Asks(Option<CaptureInit>);

#[async_trait]
impl RequestSource for Asks {
    async fn next(&mut self, _: &mut Vec<Ack>) -> Result<Requested, RequestError> {
        match self.0.take() {
            Some(init) => Ok(Requested::Init(init)),
            None => std::future::pending().await,
        }
    }
}

/// A gateway, and a session that waits for the log.
async fn opening() -> (GatewayHandle, Deliveries) {
    let cursors = Loaded::default();
    let loaded = Arc::clone(&cursors.0);
    let (resolver, limits) = (Arc::new(Lost::new()), GatewayLimits::default());
    let gateway = GatewayHandle::start(resolver, Arc::new(cursors), Arc::new(NoRanges), limits);
    let init = CaptureInit {
        uri: "shop".to_owned(),
        parameters: None,
    };
    let asks = Box::new(Asks(Some(init)));
    let deliveries = gateway.capture(asks).await.unwrap();
    loaded.notified().await;
    (gateway, deliveries)
}

async fn end(mut deliveries: Deliveries) -> CaptureError {
    deliveries.next().await.unwrap().unwrap_err()
}

#[test]
fn who_waits_for_a_log_that_is_nowhere_is_told_to_come_again() {
    run(async {
        let (_gateway, deliveries) = opening().await;
        let began = Instant::now();
        let error = end(deliveries).await;
        assert_eq!(error.explanation().code, "PGC-G10", "{error}");
        assert!(began.elapsed() < SILENT_MAX, "{:?}", began.elapsed());
    });
}

#[test]
fn a_node_that_stops_does_not_wait_for_sessions_that_open() {
    run(async {
        let (gateway, deliveries) = opening().await;
        let began = Instant::now();
        gateway.drain().await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1));
        let error = end(deliveries).await;
        assert!(
            matches!(error, CaptureError::Ended(EndReason::Draining)),
            "{error}"
        );
    });
}
