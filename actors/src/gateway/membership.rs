//! One session of a subscription: what it gets next, what it answers, what it leaves behind.
//!
//! Pulls for its consumer: redeliveries first, then rows of a dump whose turn has come, then the next
//! part of the log. Its drop gives back everything that it held.

use std::{sync::Arc, time::Duration};

use pgcapture_engine::{
    capture_options::Mode,
    filter::Filter,
    ledger::{Ack, Applied, ParcelBody, Room, SessionId, Slot, UnknownCheckpoint},
    lsn::PgTime,
};
use tokio::sync::Notify;

use super::{
    delivery::{Delivery, DumpRows},
    error::CaptureError,
    feed::Fed,
    hub::Hub,
    ranges::Turn,
    subscription::{State, Subscription},
};

/// While several sessions share a subscription each takes at most this much at once, so that a small
/// backlog is spread too.
const SHARED_TAKE_MAX: usize = 128;

/// A lone session takes at most this much at once: a batch of the log.
const TAKE_MAX: usize = 1_024;

/// A session's place in its subscription. Its drop releases what the session held.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) subscription: Arc<Subscription>,
    pub(super) hub: Arc<Hub>,
    pub(super) session: SessionId,
}

/// What a session pulls with.
pub(super) struct Puller {
    pub(super) filter: Filter,
    /// The range that it is being sent.
    pub(super) delivery: Option<Delivery>,
}

/// What a session gets at once.
pub(super) struct Pulled {
    pub(super) rows: Rows,
    /// Commit time of the newest transaction in it; zero when unknown or delivered again.
    pub(super) commit_time: PgTime,
}

/// Rows of one body, or picked from several.
pub(super) enum Rows {
    /// All slots of a part of the log.
    Part(Arc<ParcelBody>),
    /// What is delivered again.
    Again(Vec<(Arc<ParcelBody>, Slot)>),
    /// Rows of a dump.
    Dump(DumpRows),
}

enum Step {
    Deliver(Pulled),
    Read(Room),
    Rows(Room),
    Wait,
}

impl Membership {
    /// Returns what the session gets next, at most `credit` messages; waits while there is nothing
    /// or no room. `wake` tells that room or credit may have come.
    ///
    /// Cancellation-safe: what was taken is returned in the same poll.
    pub(super) async fn pull(
        &self,
        puller: &mut Puller,
        credit: impl Fn() -> usize,
        wake: &Notify,
    ) -> Result<Pulled, CaptureError> {
        let subscription = &self.subscription;
        loop {
            // Armed before the look, so that no change is missed between the two.
            let mut changed = std::pin::pin!(subscription.changed.notified());
            changed.as_mut().enable();
            let now = self.hub.now();
            let (step, due) = self.look(puller, credit(), now);
            let is_waiting = match step {
                Step::Deliver(pulled) => return Ok(pulled),
                Step::Read(_) | Step::Rows(_) => false,
                Step::Wait => true,
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = wake.notified(), if is_waiting => {}
                () = sleep_for(due.map(|due| due.saturating_sub(now))) => {}
                read = self.take(puller, step) => if let Some(pulled) = read? {
                    return Ok(pulled);
                },
            }
        }
    }

    /// Decides what to do now, and when to look again.
    fn look(&self, puller: &mut Puller, credit: usize, now: Duration) -> (Step, Option<Duration>) {
        let share = self.hub.limits.share(self.hub.session_count());
        let mut state = self.subscription.state();
        let take_max = if state.session_count > 1 && state.mode == Mode::Shared {
            SHARED_TAKE_MAX
        } else {
            TAKE_MAX
        };
        let State { ledger, ranges, .. } = &mut *state;
        ranges.drop_stale(self.session, &mut puller.delivery);
        let Some(ledger) = ledger else {
            return (Step::Wait, None);
        };
        let mut room = ledger.room(self.session, share);
        ranges.shrink(self.session, &mut room);
        room.messages = room.messages.min(credit).min(take_max);
        if room.is_empty() || !ledger.is_active(self.session) {
            return (Step::Wait, None);
        }
        let again = ledger.take_requeued(self.session, room, now);
        let due = ledger.next_due();
        if !again.is_empty() {
            state.redelivered_count += again.len() as u64;
            let rows = Rows::Again(again);
            let commit_time = PgTime(0);
            return (Step::Deliver(Pulled { rows, commit_time }), None);
        }
        if ledger.is_rewinding() {
            return (Step::Wait, due);
        }
        match ranges.turn(self.session, &mut puller.delivery, now) {
            Turn::Rows => (Step::Rows(room), due),
            Turn::Changes => (Step::Read(room), due),
            Turn::Held => (Step::Wait, due),
        }
    }

    async fn take(&self, puller: &mut Puller, step: Step) -> Result<Option<Pulled>, CaptureError> {
        match step {
            Step::Read(room) => self.read(&mut puller.filter, room).await,
            Step::Rows(room) => Ok(self.rows(puller, room).await),
            Step::Deliver(_) | Step::Wait => std::future::pending().await,
        }
    }

    /// Reads the next part of the log; `None` when the filter left nothing of it, or when it
    /// stopped at the limit.
    async fn read(&self, filter: &mut Filter, room: Room) -> Result<Option<Pulled>, CaptureError> {
        let subscription = &self.subscription;
        let mut feed = subscription.feed.lock().await;
        let Some(feed) = feed.as_mut() else {
            return std::future::pending().await;
        };
        // Nobody lowers it while the feed is ours: see `ranges`.
        let limit = subscription.with_ranges(|ranges, _| ranges.limit());
        let Fed::Part(part) = feed.next(filter, room, limit).await? else {
            subscription.reached(limit, self.hub.now());
            return Ok(None);
        };
        let body = Arc::clone(&part.body);
        let commit_time = part.commit_time;
        {
            let now = self.hub.now();
            let mut state = subscription.state();
            state.version += 1;
            if let Some(ledger) = &mut state.ledger {
                ledger.admit(self.session, part, now);
            }
        }
        Ok((!body.slots.is_empty()).then_some(Pulled {
            rows: Rows::Part(body),
            commit_time,
        }))
    }

    /// Applies acknowledgements that came together.
    pub(super) fn apply(&self, acks: &[Ack]) -> Result<Applied, UnknownCheckpoint> {
        let now = self.hub.now();
        let applied = {
            let mut state = self.subscription.state();
            state.version += 1;
            let State { ledger, ranges, .. } = &mut *state;
            let applied = match ledger {
                Some(ledger) => ranges.apply(ledger, self.session, acks, now)?,
                None => Applied::default(),
            };
            self.subscription.settle(ranges, ledger.as_ref(), now);
            applied
        };
        self.subscription.meters.applied(&applied);
        if applied.requeued_count > 0 {
            self.subscription.changed.notify_waiters();
        }
        Ok(applied)
    }

    /// Queues what the session has left unanswered for too long.
    pub(super) fn expire(&self, timeout: Duration) {
        let now = self.hub.now();
        let expired = {
            let mut state = self.subscription.state();
            let State { ledger, ranges, .. } = &mut *state;
            ranges.splice.expire(self.session, timeout, now);
            let changes = ledger.as_mut();
            let expired = changes.map_or(0, |ledger| ledger.expire(self.session, now));
            self.subscription.settle(ranges, ledger.as_ref(), now);
            expired
        };
        if expired > 0 {
            self.subscription.meters.redelivered("timeout", expired);
            self.subscription.changed.notify_waiters();
        }
    }

    /// Messages that the session has not answered.
    pub(super) fn unacked(&self) -> usize {
        let state = self.subscription.state();
        let ledger = state.ledger.as_ref();
        let changes = ledger.map_or(0, |ledger| ledger.unacked(self.session));
        changes + state.ranges.splice.unacked(self.session).0
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let released = self.subscription.leave(self.session, self.hub.now());
        if released > 0 {
            self.subscription.meters.redelivered("disconnect", released);
        }
        self.subscription.changed.notify_waiters();
        self.subscription.intake_wake.notify_one();
        self.hub.save_soon();
    }
}

pub(super) async fn sleep_for(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}
