//! One subscription: its ledger, its reader, and the sessions that share them.
//!
//! The ledger sits behind a mutex that is held for a batch of work, never across an await; the
//! reader behind an asynchronous one that the session at the front holds while it waits for the log.
//! Lives in memory while a session is connected; in between only its position is kept.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub(super) use pgcapture_engine::ledger::Room;
use pgcapture_engine::{
    capture_options::{CaptureOptions, Mode},
    checkpoint::Checkpoint,
    filter::Filter,
    ledger::{
        Ack, Applied, Ledger, ParcelBody, Position, SessionId, Slot, Terms, UnknownCheckpoint,
    },
    lsn::PgTime,
};
use tokio::sync::Notify;

use super::{
    delivery::{Delivery, DumpRows},
    error::CaptureError,
    feed::{Fed, Feed},
    hub::Hub,
    intake,
    meters::Meters,
    ranges::{Ranges, Turn},
    start,
};
use crate::{
    cursors::{ACKED_RUNS_MAX, Cursor, SubscriptionId},
    log::ChangeLog,
    supervise::{Task, TaskKind, spawn},
};

/// While several sessions share a subscription each takes at most this much at once, so that a small
/// backlog is spread too.
const SHARED_TAKE_MAX: usize = 128;

/// A lone session takes at most this much at once: a batch of the log.
const TAKE_MAX: usize = 1_024;

/// One subscription of this node.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) id: SubscriptionId,
    pub(super) meters: Meters,
    state: Mutex<State>,
    /// Held while the subscription is brought to memory.
    opening: tokio::sync::Mutex<()>,
    pub(super) feed: tokio::sync::Mutex<Option<Feed>>,
    /// Something other than the log has more to deliver, or another session became active.
    pub(super) changed: Notify,
    /// A range has ended, or the last session has left.
    pub(super) intake_wake: Notify,
}

#[derive(Debug)]
struct State {
    log: Arc<dyn ChangeLog>,
    /// There while sessions are connected.
    ledger: Option<Ledger>,
    mode: Mode,
    /// Where it stands while no session is connected; `None` until it was loaded.
    position: Option<Position>,
    session_count: usize,
    session_number: u32,
    /// Grows with everything that moves the cursor.
    version: u64,
    saved_version: u64,
    /// What the store has.
    saved: Option<Cursor>,
    redelivered_count: u64,
    ranges: Ranges,
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

/// What a status shows of a subscription in memory.
pub(super) struct Glance {
    pub(super) mode: Mode,
    pub(super) session_count: usize,
    pub(super) unacked: usize,
    pub(super) retained_bytes: usize,
    pub(super) redelivered_count: u64,
    pub(super) floor: Option<Checkpoint>,
    pub(super) floor_time: PgTime,
    pub(super) durable_floor: Option<Checkpoint>,
    pub(super) range_count: usize,
}

enum Step {
    Deliver(Pulled),
    Read(Room),
    Rows(Room),
    Wait,
}

impl Subscription {
    pub(super) fn new(id: SubscriptionId, log: Arc<dyn ChangeLog>) -> Self {
        Self {
            meters: Meters::new(&id),
            id,
            state: Mutex::new(State {
                log,
                ledger: None,
                mode: Mode::default(),
                position: None,
                session_count: 0,
                session_number: 0,
                version: 0,
                saved_version: 0,
                saved: None,
                redelivered_count: 0,
                ranges: Ranges::default(),
            }),
            opening: tokio::sync::Mutex::default(),
            feed: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            intake_wake: Notify::new(),
        }
    }

    /// Works on the ranges, beside the ledger while there is one.
    pub(super) fn with_ranges<T>(&self, work: impl FnOnce(&mut Ranges, Option<&Ledger>) -> T) -> T {
        let mut state = self.state();
        let State { ranges, ledger, .. } = &mut *state;
        work(ranges, ledger.as_ref())
    }

    /// Tells whether no session is connected.
    pub(super) fn is_left(&self) -> bool {
        self.state().session_count == 0
    }

    /// Ends the intake when no session is connected; tells whether it did.
    pub(super) fn end_intake(&self) -> bool {
        let mut state = self.state();
        let is_left = state.session_count == 0;
        state.ranges.has_intake &= !is_left;
        is_left
    }

    pub(super) fn take_intake(&self) -> Option<Task<()>> {
        self.state().ranges.intake.take()
    }

    /// WAL between what was handed out and the end of the log; `None` while nobody is connected.
    pub(super) fn lag(&self) -> Option<u64> {
        let state = self.state();
        let last = state.log.tail().borrow().last.unwrap_or_default();
        let admitted = state.ledger.as_ref()?.admitted();
        Some(last.lsn.bytes_since(admitted.lsn))
    }

    /// A session that panicked while it held the lock left the ledger between two calls at worst:
    /// every call of it keeps its books in step before it returns.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log that is read.
    pub(super) fn log(&self) -> Arc<dyn ChangeLog> {
        Arc::clone(&self.state().log)
    }

    /// Reads from `log` from now on, unless sessions read from another one already: theirs ends
    /// with it, and then a log that was opened anew is found here.
    pub(super) fn use_log(&self, log: Arc<dyn ChangeLog>) {
        let mut state = self.state();
        if state.ledger.is_none() {
            state.log = log;
        }
    }

    /// Takes a session in, bringing the subscription to memory with the first one.
    pub(super) async fn join(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        options: &CaptureOptions,
        terms: Terms,
    ) -> Result<Membership, CaptureError> {
        let _opening = self.opening.lock().await;
        let is_open = self.state().ledger.is_some();
        if is_open {
            return self.enter(hub, options.mode, terms);
        }
        let known = self.state().position.clone();
        let position = match known {
            Some(position) => position,
            None => self.load(hub, options).await?,
        };
        let log = self.log();
        let reader = start::open_after(&log, position.floor).await?;
        let restored_at = log.tail().borrow().last.unwrap_or_default();
        *self.feed.lock().await = Some(Feed::new(log, reader, &position.acked_above));
        {
            let mut state = self.state();
            state.ranges.restored_at = restored_at;
            state.mode = options.mode;
            state.position = None;
            state.ledger = Some(Ledger::restore(position, options.mode == Mode::Ordered));
        }
        self.enter(hub, options.mode, terms)
    }

    /// Loads the cursor, or creates it, durable before anything is delivered.
    async fn load(&self, hub: &Hub, options: &CaptureOptions) -> Result<Position, CaptureError> {
        if let Some(cursor) = hub.cursors.load(&self.id).await? {
            let position = Position {
                floor: cursor.floor,
                acked_above: cursor.acked_above,
            };
            self.overwrite(position.clone(), true);
            return Ok(position);
        }
        hub.count_new_subscription().await?;
        let position = start::find_position(&self.log(), options.start).await?;
        self.overwrite(position.clone(), false);
        hub.save_cursors().await?;
        Ok(position)
    }

    fn enter(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        mode: Mode,
        terms: Terms,
    ) -> Result<Membership, CaptureError> {
        let mut state = self.state();
        if state.mode != mode {
            return Err(CaptureError::ModeDiffers {
                used: state.mode.as_str(),
            });
        }
        state.session_number += 1;
        let session = SessionId(state.session_number);
        if let Some(ledger) = &mut state.ledger {
            ledger.join(session, terms);
        }
        state.session_count += 1;
        let ranges = &mut state.ranges;
        ranges.splice.join(session, mode == Mode::Ordered);
        if hub.has_ranges && !ranges.has_intake {
            ranges.has_intake = true;
            let intake = intake::run(Arc::clone(self), Arc::clone(hub));
            ranges.intake = Some(spawn(TaskKind::RangeIntake, &self.id.consumer, intake));
        }
        Ok(Membership {
            subscription: Arc::clone(self),
            hub: Arc::clone(hub),
            session,
        })
    }

    /// Sets the position of a subscription that is not in memory; tells whether it was not.
    pub(super) fn overwrite(&self, position: Position, is_saved: bool) -> bool {
        let mut state = self.state();
        if state.ledger.is_some() {
            return false;
        }
        state.version += 1;
        if is_saved {
            state.saved = Some(cursor_of(position.clone()));
            state.saved_version = state.version;
        }
        state.position = Some(position);
        true
    }

    /// Returns the cursor if it moved since it was saved, with the version it has.
    pub(super) fn unsaved(&self) -> Option<(u64, Cursor)> {
        let mut state = self.state();
        if state.version == state.saved_version {
            return None;
        }
        let cursor = cursor_of(match &state.ledger {
            Some(ledger) => ledger.position(ACKED_RUNS_MAX),
            None => state.position.clone()?,
        });
        if state.saved.as_ref() == Some(&cursor) {
            state.saved_version = state.version;
            return None;
        }
        Some((state.version, cursor))
    }

    /// Records that the cursor of that version is durable.
    pub(super) fn saved(&self, version: u64, cursor: Cursor) {
        let mut state = self.state();
        state.saved_version = state.saved_version.max(version);
        state.saved = Some(cursor);
    }

    /// Tells whether nobody needs it in memory.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        state.session_count == 0 && state.version == state.saved_version
    }

    pub(super) fn glance(&self) -> Glance {
        let state = self.state();
        let ledger = state.ledger.as_ref();
        Glance {
            mode: state.mode,
            session_count: state.session_count,
            unacked: ledger.map_or(0, Ledger::open_count),
            retained_bytes: ledger.map_or(0, Ledger::retained_bytes),
            redelivered_count: state.redelivered_count,
            floor: ledger
                .map(|ledger| ledger.position(0).floor)
                .or_else(|| state.position.as_ref().map(|position| position.floor)),
            floor_time: ledger.map_or(PgTime(0), Ledger::floor_time),
            durable_floor: state.saved.as_ref().map(|cursor| cursor.floor),
            range_count: state.ranges.splice.counts().1,
        }
    }
}

/// A session's place in its subscription. Its drop releases what the session held.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) subscription: Arc<Subscription>,
    pub(super) hub: Arc<Hub>,
    pub(super) session: SessionId,
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
        let now = self.hub.now();
        let mut released = 0;
        let is_last = {
            let mut state = self.subscription.state();
            state.session_count -= 1;
            if let Some(ledger) = &mut state.ledger {
                released = ledger.release(self.session, now);
            }
            let State { ledger, ranges, .. } = &mut *state;
            ranges.splice.leave(self.session, now);
            self.subscription.settle(ranges, ledger.as_ref(), now);
            let is_last = state.session_count == 0;
            if is_last && let Some(ledger) = state.ledger.take() {
                state.position = Some(ledger.position(ACKED_RUNS_MAX));
            }
            is_last
        };
        if released > 0 {
            self.subscription.meters.redelivered("disconnect", released);
        }
        if is_last && let Ok(mut feed) = self.subscription.feed.try_lock() {
            *feed = None;
        }
        self.subscription.changed.notify_waiters();
        self.subscription.intake_wake.notify_one();
        self.hub.save_soon();
    }
}

fn cursor_of(position: Position) -> Cursor {
    Cursor {
        floor: position.floor,
        acked_above: position.acked_above,
    }
}

pub(super) async fn sleep_for(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}
