//! One subscription: its ledger, its reader, and the sessions that share them.
//!
//! The ledger sits behind a mutex that is held for a batch of work, never across an await; the
//! reader behind an asynchronous one that the session at the front holds while it waits for the log.
//! Lives in memory while a session is connected; in between only its position is kept.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pgcapture_engine::{
    capture_options::{CaptureOptions, Mode},
    checkpoint::Checkpoint,
    ledger::{Ledger, Position, SessionId, Terms},
    lsn::PgTime,
};
use tokio::{sync::Notify, time::Instant};

use super::{
    error::{CaptureError, EndReason, GatewayError},
    feed::Feed,
    hub::Hub,
    intake,
    membership::Membership,
    meters::Meters,
    ranges::Ranges,
    start,
};
use crate::{
    cursors::{ACKED_RUNS_MAX, Cursor, SubscriptionId},
    log::{ChangeLog, LogError},
    supervise::{Task, TaskKind, spawn},
};

/// A session that opens waits this long for a log that is nowhere, which is several times what it takes
/// another node to take a source over; then its client comes again, perhaps to a node that knows more.
const OPEN_MAX: Duration = Duration::from_secs(10);

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

/// What sessions and ranges share, behind one lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) log: Arc<dyn ChangeLog>,
    /// There while sessions are connected.
    pub(super) ledger: Option<Ledger>,
    pub(super) mode: Mode,
    /// Where it stands while no session is connected; `None` until it was loaded.
    pub(super) position: Option<Position>,
    pub(super) session_count: usize,
    pub(super) session_number: u32,
    /// Grows with everything that moves the cursor.
    pub(super) version: u64,
    pub(super) saved_version: u64,
    /// What the store has.
    pub(super) saved: Option<Cursor>,
    pub(super) redelivered_count: u64,
    /// Another node keeps it: its cursor is not ours to save, and no session may join.
    pub(super) is_disowned: bool,
    /// Its cursor was refused when it was saved last.
    pub(super) is_refused: bool,
    pub(super) ranges: Ranges,
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
                is_disowned: false,
                is_refused: false,
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
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
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
        let deadline = Instant::now() + OPEN_MAX;
        // Others may be waiting for the same log: one after the other would take as many times as long.
        let opening = async { Ok(self.opening.lock().await) };
        let _opening = in_time(deadline, opening).await?;
        if let Some(membership) = self.enter(hub, options.mode, terms)? {
            return Ok(membership);
        }
        // Nobody leaves it and nobody else opens it meanwhile.
        let known = self.state().position.clone();
        let position = match known {
            Some(position) => position,
            None => self.load(hub, options, deadline).await?,
        };
        let log = self.log();
        let reader = in_time(deadline, start::open_after(&log, position.floor)).await?;
        let restored_at = log.tail().borrow().last.unwrap_or_default();
        *self.feed.lock().await = Some(Feed::new(log, reader, &position.acked_above));
        {
            let mut state = self.state();
            state.ranges.restored_at = restored_at;
            state.mode = options.mode;
            state.position = None;
            state.ledger = Some(Ledger::restore(position, options.mode == Mode::Ordered));
        }
        let entered = self.enter(hub, options.mode, terms)?;
        // Its ledger leaves with its last session, and there was none yet.
        entered.ok_or(CaptureError::Failed)
    }

    /// Loads the cursor, or creates it, durable before anything is delivered.
    async fn load(
        &self,
        hub: &Hub,
        options: &CaptureOptions,
        deadline: Instant,
    ) -> Result<Position, CaptureError> {
        if let Some(cursor) = hub.cursors.load(&self.id).await? {
            let position = Position {
                floor: cursor.floor,
                acked_above: cursor.acked_above,
            };
            self.overwrite(position.clone(), true);
            return Ok(position);
        }
        let log = self.log();
        let found = start::find_position(&log, options.start);
        let position = in_time(deadline, found).await?;
        // A session that is ended while it opens is dropped at an await: it is counted and kept, or neither.
        hub.count_new_subscription().await?;
        self.overwrite(position.clone(), false);
        hub.save_cursors().await?;
        self.check_kept()?;
        Ok(position)
    }

    /// Moves it, back as well, while no session uses it; durable on return.
    pub(super) async fn seek(
        self: &Arc<Self>,
        hub: &Hub,
        position: Position,
    ) -> Result<(), GatewayError> {
        // No session joins meanwhile, and no older cursor is on its way.
        let _opening = self.opening.lock().await;
        let _saves = hub.hold_saves().await;
        if self.state().ledger.is_some() {
            return Err(GatewayError::Busy);
        }
        let cursor = cursor_of(position.clone());
        match hub.cursors.seek(&self.id, cursor).await {
            Ok(true) => {
                self.overwrite(position, true);
                Ok(())
            }
            Ok(false) => {
                hub.abandon(self);
                Err(GatewayError::Busy)
            }
            Err(error) => {
                // It may have moved: the next session finds out.
                hub.abandon(self);
                Err(error.into())
            }
        }
    }

    /// Takes a session in that finds the subscription in memory; `None` when it must be brought there.
    /// Looking and entering is one step: the last session may leave at any moment.
    fn enter(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        mode: Mode,
        terms: Terms,
    ) -> Result<Option<Membership>, CaptureError> {
        let mut state = self.state();
        state.check_kept()?;
        if state.ledger.is_none() {
            return Ok(None);
        }
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
        // Beside another, rows without an answer have a deadline.
        self.intake_wake.notify_one();
        Ok(Some(Membership {
            subscription: Arc::clone(self),
            hub: Arc::clone(hub),
            session,
        }))
    }

    /// Takes a session out; returns how many messages it gives back. With the last one the ledger and the
    /// reader leave, in the same step: who comes next opens them anew.
    pub(super) fn leave(&self, session: SessionId, now: Duration) -> u64 {
        let mut state = self.state();
        state.session_count -= 1;
        let released = state
            .ledger
            .as_mut()
            .map_or(0, |ledger| ledger.release(session, now));
        let State { ledger, ranges, .. } = &mut *state;
        ranges.splice.leave(session, now);
        self.settle(ranges, ledger.as_ref(), now);
        if state.session_count == 0
            && let Some(ledger) = state.ledger.take()
        {
            state.position = Some(ledger.position(ACKED_RUNS_MAX));
            // Who has it now is about to be dropped, and reads no more.
            if let Ok(mut feed) = self.feed.try_lock() {
                *feed = None;
            }
        }
        released
    }

    /// Sets the position of a subscription without a ledger.
    fn overwrite(&self, position: Position, is_saved: bool) {
        let mut state = self.state();
        state.version += 1;
        if is_saved {
            state.saved = Some(cursor_of(position.clone()));
            state.saved_version = state.version;
        }
        state.position = Some(position);
    }

    /// Checks that what is acknowledged here counts once it is saved.
    ///
    /// # Errors
    ///
    /// [`EndReason::Elsewhere`] when the books of another node count, or those that this node has not
    /// loaded yet.
    pub(super) fn check_kept(&self) -> Result<(), CaptureError> {
        self.state().check_kept()
    }

    /// Records that the cursor was refused.
    pub(super) fn refused(&self) {
        self.state().is_refused = true;
    }

    /// Tells whether it goes on from what the store has: it has saved that, or has loaded nothing yet.
    pub(super) fn goes_on_from(&self, kept: Option<&Cursor>) -> bool {
        let state = self.state();
        let is_loaded = state.ledger.is_some() || state.position.is_some();
        !is_loaded || state.saved.as_ref() == kept
    }

    /// Saves its cursor no more.
    pub(super) fn disown(&self) {
        self.state().is_disowned = true;
    }

    /// Returns the cursor if it moved since it was saved, with the version it has.
    pub(super) fn unsaved(&self) -> Option<(u64, Cursor)> {
        let mut state = self.state();
        if state.is_disowned {
            state.saved_version = state.version;
        }
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
        state.is_refused = false;
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

impl State {
    fn check_kept(&self) -> Result<(), CaptureError> {
        if self.is_disowned || self.is_refused {
            return Err(CaptureError::Ended(EndReason::Elsewhere));
        }
        Ok(())
    }
}

/// Waits for the log of a session that opens.
async fn in_time<T>(
    deadline: Instant,
    opened: impl Future<Output = Result<T, LogError>>,
) -> Result<T, LogError> {
    let opened = tokio::time::timeout_at(deadline, opened).await;
    opened.unwrap_or_else(|_| {
        Err(LogError::Closed {
            reason: format!("it could not be opened within {OPEN_MAX:?}"),
        })
    })
}

fn cursor_of(position: Position) -> Cursor {
    Cursor {
        floor: position.floor,
        acked_above: position.acked_above,
    }
}

#[cfg(test)]
mod tests;
