//! What all sessions of a node share: the subscriptions, the limits, the saving of cursors.
//!
//! Owns no task and no actor; it outlives a `Gateway` actor that had to be built anew. A cursor is
//! saved with all others that moved, in one write.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix::Addr;
use futures_util::StreamExt as _;
use pgcapture_engine::ledger::Position;
use tokio::{
    sync::{Notify, OnceCell},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Resolved, SourceResolver,
    actor::{EndSession, GatewaySession},
    error::{CaptureError, GatewayError},
    limits::GatewayLimits,
    status,
    subscription::Subscription,
};
use crate::{
    cursors::{CURSOR_SAVE_INTERVAL, CursorError, CursorStore, SubscriptionId},
    dump::RangeSource,
};

/// Books that were refused are looked up side by side, this many at once: those that ask a leader together
/// share its answer.
const LOOKS_TOGETHER_MAX: usize = 256;

/// Gauges follow at this pace: finer than any scrape, and cheap with 10,000 subscriptions.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The shared state of a gateway.
#[derive(Debug)]
pub(super) struct Hub {
    resolver: Arc<dyn SourceResolver>,
    pub(super) cursors: Arc<dyn CursorStore>,
    pub(super) ranges: Arc<dyn RangeSource>,
    /// Whether there will ever be any.
    pub(super) has_ranges: bool,
    pub(super) limits: GatewayLimits,
    started: Instant,
    subscriptions: Mutex<BTreeMap<SubscriptionId, Arc<Subscription>>>,
    sessions: Mutex<HashMap<u64, Seated>>,
    session_count: AtomicUsize,
    session_number: AtomicUsize,
    is_refusing: AtomicBool,
    /// A session has left.
    left: Notify,
    saves_asked: AtomicU64,
    saving: tokio::sync::Mutex<Saves>,
    save_soon: Notify,
    stopped: CancellationToken,
    /// Cursors in the store.
    cursor_count: OnceCell<AtomicUsize>,
}

/// How far saving has come; held while cursors are written.
#[derive(Debug)]
pub(super) struct Saves {
    /// Everything that moved before this many saves were asked for has been tried.
    tried: u64,
    /// How the last try went. One that succeeds saves what earlier ones could not.
    outcome: Result<(), CursorError>,
}

#[derive(Debug)]
struct Seated {
    addr: Addr<GatewaySession>,
    subscription: Option<Arc<Subscription>>,
}

impl Hub {
    pub(super) fn new(
        resolver: Arc<dyn SourceResolver>,
        cursors: Arc<dyn CursorStore>,
        ranges: Arc<dyn RangeSource>,
        limits: GatewayLimits,
    ) -> Self {
        Self {
            resolver,
            cursors,
            has_ranges: ranges.changes().has_changed().is_ok(),
            ranges,
            limits,
            started: Instant::now(),
            subscriptions: Mutex::default(),
            sessions: Mutex::default(),
            session_count: AtomicUsize::new(0),
            session_number: AtomicUsize::new(0),
            is_refusing: AtomicBool::new(false),
            left: Notify::new(),
            saves_asked: AtomicU64::new(0),
            saving: tokio::sync::Mutex::new(Saves {
                tried: 0,
                outcome: Ok(()),
            }),
            save_soon: Notify::new(),
            stopped: CancellationToken::new(),
            cursor_count: OnceCell::new(),
        }
    }

    /// Time since the gateway started: the clock of the ledgers.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) async fn resolve(&self, uri: &str) -> Result<Resolved, CaptureError> {
        Ok(self.resolver.resolve(uri).await?)
    }

    pub(super) async fn resolve_id(&self, id: &SubscriptionId) -> Result<Resolved, GatewayError> {
        let uri = if id.consumer == id.stream {
            id.stream.clone()
        } else {
            format!("{}/{}", id.stream, id.consumer)
        };
        Ok(self.resolver.resolve(&uri).await?)
    }

    /// Returns the subscription, making it known to this node.
    pub(super) fn subscription(&self, resolved: Resolved) -> Arc<Subscription> {
        let Resolved { subscription, log } = resolved;
        let mut all = lock(&self.subscriptions);
        if let Some(known) = all.get(&subscription) {
            known.use_log(log);
            return Arc::clone(known);
        }
        let new = Arc::new(Subscription::new(subscription.clone(), log));
        all.insert(subscription, Arc::clone(&new));
        new
    }

    pub(super) fn subscriptions(&self) -> Vec<Arc<Subscription>> {
        lock(&self.subscriptions).values().map(Arc::clone).collect()
    }

    /// Counts a subscription whose cursor is not in the store yet.
    pub(super) async fn count_new_subscription(&self) -> Result<(), CaptureError> {
        let cursors = &self.cursors;
        let count = self
            .cursor_count
            .get_or_try_init(|| async {
                let listed = cursors.list().await?;
                Ok::<_, CursorError>(AtomicUsize::new(listed.len()))
            })
            .await?;
        let most = self.limits.subscriptions_max;
        let admitted = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < most).then_some(count + 1)
        });
        match admitted {
            Ok(_) => Ok(()),
            Err(count) => Err(CaptureError::TooMany {
                what: "subscriptions",
                count,
            }),
        }
    }

    /// Moves a subscription that no session uses; durable on return.
    pub(super) async fn seek(
        &self,
        id: &SubscriptionId,
        position: Position,
    ) -> Result<(), GatewayError> {
        let resolved = self.resolve_id(id).await?;
        self.subscription(resolved).seek(self, position).await
    }

    /// Waits until nothing is being saved; nothing is until the answer is dropped.
    pub(super) async fn hold_saves(&self) -> tokio::sync::MutexGuard<'_, Saves> {
        self.saving.lock().await
    }

    /// Gives up what the memory holds of subscriptions, unless it is what the store has: this node has
    /// just become their home, and another one may have been it meanwhile.
    pub(super) async fn renew(&self, ids: &[SubscriptionId]) {
        let known: Vec<_> = {
            let all = lock(&self.subscriptions);
            ids.iter()
                .filter_map(|id| all.get(id).map(Arc::clone))
                .collect()
        };
        if known.is_empty() {
            return;
        }
        let _saves = self.hold_saves().await;
        for subscription in self.stale_of(known).await {
            self.abandon(&subscription);
        }
    }

    /// Tells whether the store may have something else than this node has saved last.
    async fn is_stale(&self, subscription: &Subscription) -> bool {
        let kept = self.cursors.load(&subscription.id).await;
        !kept.is_ok_and(|kept| subscription.goes_on_from(kept.as_ref()))
    }

    /// Returns those of which the store may have something else than this node has saved last.
    async fn stale_of(&self, subscriptions: Vec<Arc<Subscription>>) -> Vec<Arc<Subscription>> {
        let looks = subscriptions.into_iter().map(|subscription| async move {
            let is_stale = self.is_stale(&subscription).await;
            is_stale.then_some(subscription)
        });
        let looks = futures_util::stream::iter(looks).buffer_unordered(LOOKS_TOGETHER_MAX);
        looks.filter_map(std::future::ready).collect().await
    }

    /// Ends the sessions of a subscription and forgets its books, which are not the ones that count.
    /// Who comes from now on loads it.
    pub(super) fn abandon(&self, subscription: &Arc<Subscription>) {
        let id = &subscription.id;
        tracing::info!(subscription = %id.consumer, "the books of a subscription are given up: others count");
        subscription.disown();
        let mut all = lock(&self.subscriptions);
        if all
            .get(id)
            .is_some_and(|known| Arc::ptr_eq(known, subscription))
        {
            all.remove(id);
        }
        drop(all);
        for session in self.session_addrs(Some(id)) {
            // One that is full has such an order already; one that is closed has ended.
            if let Err(error) = session.try_send(EndSession(super::EndReason::Elsewhere)) {
                tracing::debug!(%error, "a session did not need to be told");
            }
        }
    }

    /// Lets a subscription go from memory; it is loaded anew when a session comes.
    pub(super) fn let_go(&self, id: &SubscriptionId) {
        lock(&self.subscriptions).remove(id);
    }

    /// Does not save the cursor of a subscription any more: it is another node's.
    pub(super) fn disown(&self, id: &SubscriptionId) {
        if let Some(subscription) = lock(&self.subscriptions).get(id) {
            subscription.disown();
        }
    }

    /// Forgets a subscription.
    pub(super) async fn forget(&self, id: &SubscriptionId) -> Result<(), GatewayError> {
        // No cursor is saved in between: it would come back.
        let _saving = self.saving.lock().await;
        lock(&self.subscriptions).remove(id);
        self.cursors.remove(id).await?;
        if let Some(count) = self.cursor_count.get() {
            let listed = self.cursors.list().await?;
            count.store(listed.len(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes durable every cursor that moved before the call. Those who ask while one write is under
    /// way share the next: ten thousand subscriptions that open, or sessions that end, at the same
    /// moment cost a few writes.
    pub(super) async fn save_cursors(&self) -> Result<(), CursorError> {
        let ticket = self.saves_asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut saves = self.saving.lock().await;
        if saves.tried < ticket {
            let tried = self.saves_asked.load(Ordering::SeqCst);
            saves.outcome = self.write_cursors().await;
            saves.tried = tried;
        }
        saves.outcome.clone()
    }

    /// Writes every cursor that moved, and lets go of subscriptions that nobody uses.
    async fn write_cursors(&self) -> Result<(), CursorError> {
        let mut moved = Vec::new();
        let mut cursors = Vec::new();
        for subscription in self.subscriptions() {
            if let Some((version, cursor)) = subscription.unsaved() {
                cursors.push((subscription.id.clone(), cursor.clone()));
                moved.push((subscription, version, cursor));
            }
        }
        if !cursors.is_empty() {
            let refused = self.cursors.save(cursors).await?;
            let refused: BTreeSet<_> = refused.into_iter().collect();
            let mut unkept = Vec::new();
            for (subscription, version, cursor) in moved {
                if refused.contains(&subscription.id) {
                    subscription.refused();
                    unkept.push(subscription);
                } else {
                    subscription.saved(version, cursor);
                }
            }
            // With sessions, this node may be about to become the home.
            let (left, used): (Vec<_>, Vec<_>) = unkept.into_iter().partition(|it| it.is_left());
            for subscription in left.into_iter().chain(self.stale_of(used).await) {
                self.abandon(&subscription);
            }
        }
        // The map's own reference is the only one: no session is about to join.
        lock(&self.subscriptions).retain(|_, subscription| {
            Arc::strong_count(subscription) > 1 || !subscription.is_idle()
        });
        Ok(())
    }

    pub(super) fn save_soon(&self) {
        self.save_soon.notify_one();
    }

    /// Saves cursors until the gateway stops: the body of an owned task.
    pub(super) async fn keep_saving(self: Arc<Self>) {
        let mut reported = Duration::ZERO;
        loop {
            if self.now() >= reported + REPORT_INTERVAL {
                reported = self.now();
                status::report(&self);
            }
            tokio::select! {
                () = tokio::time::sleep(self.cursors.pace()) => {}
                () = self.save_soon.notified() => {}
                () = self.stopped.cancelled() => return,
            }
            if let Err(error) = self.save_cursors().await {
                tracing::error!(%error, "acknowledgements do not count until cursors can be saved");
                metrics::counter!("pgcapture_cursor_save_errors_total").increment(1);
                // A store that fails is not asked again at once.
                tokio::time::sleep(CURSOR_SAVE_INTERVAL).await;
            }
        }
    }

    pub(super) fn session_count(&self) -> usize {
        self.session_count.load(Ordering::Relaxed)
    }

    pub(super) fn is_refusing(&self) -> bool {
        self.is_refusing.load(Ordering::SeqCst)
    }

    /// Waits until every range was given back. Sessions have left.
    pub(super) async fn wait_for_intakes(&self) {
        for subscription in self.subscriptions() {
            if let Some(mut intake) = subscription.take_intake()
                && let Err(error) = intake.join().await
            {
                tracing::error!(%error, "the ranges of a subscription were not given back");
            }
        }
    }

    pub(super) fn refuse_sessions(&self) {
        self.is_refusing.store(true, Ordering::SeqCst);
    }

    pub(super) fn stop(&self) {
        self.stopped.cancel();
    }

    pub(super) fn stopped(&self) -> CancellationToken {
        self.stopped.clone()
    }

    /// Tells whether another session may come, and under which number.
    pub(super) fn admit_session(&self) -> Result<u64, CaptureError> {
        if self.is_refusing() {
            return Err(CaptureError::Ended(super::EndReason::Draining));
        }
        let count = self.session_count();
        if count >= self.limits.sessions_max {
            return Err(CaptureError::TooMany {
                what: "sessions",
                count,
            });
        }
        Ok(self.session_number.fetch_add(1, Ordering::Relaxed) as u64)
    }

    /// Seats a session that has started.
    pub(super) fn seat(self: &Arc<Self>, key: u64, addr: Addr<GatewaySession>) -> Seat {
        let seated = Seated {
            addr,
            subscription: None,
        };
        let mut sessions = lock(&self.sessions);
        sessions.insert(key, seated);
        self.session_count.store(sessions.len(), Ordering::Relaxed);
        Seat {
            hub: Arc::clone(self),
            key,
        }
    }

    /// Records which subscription a session uses.
    pub(super) fn name_session(&self, key: u64, subscription: &Arc<Subscription>) {
        if let Some(seated) = lock(&self.sessions).get_mut(&key) {
            seated.subscription = Some(Arc::clone(subscription));
        }
    }

    /// Returns the subscription that a session has found.
    pub(super) fn named(&self, key: u64) -> Option<Arc<Subscription>> {
        let sessions = lock(&self.sessions);
        sessions.get(&key)?.subscription.as_ref().map(Arc::clone)
    }

    /// Returns the sessions of a subscription, or all.
    pub(super) fn session_addrs(&self, id: Option<&SubscriptionId>) -> Vec<Addr<GatewaySession>> {
        lock(&self.sessions)
            .values()
            .filter(|seated| {
                let subscription = seated.subscription.as_ref();
                id.is_none() || subscription.map(|subscription| &subscription.id) == id
            })
            .map(|seated| seated.addr.clone())
            .collect()
    }

    /// Waits until no session of a subscription, or none at all, is left.
    pub(super) async fn wait_until_left(&self, id: Option<&SubscriptionId>) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if self.session_addrs(id).is_empty() {
                return;
            }
            left.await;
        }
    }
}

/// A session's place on the node. Its drop gives the place back.
#[derive(Debug)]
pub(super) struct Seat {
    hub: Arc<Hub>,
    key: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut sessions = lock(&self.hub.sessions);
        sessions.remove(&self.key);
        self.hub
            .session_count
            .store(sessions.len(), Ordering::Relaxed);
        drop(sessions);
        self.hub.left.notify_waiters();
    }
}

/// The maps are changed by single calls: a panic elsewhere leaves them whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
