//! A change log in memory, for tests: the semantics of a real one, without a disk.
//!
//! Bounded by [`MemoryLogOptions`]: the oldest batches are removed as retention would. A test may
//! [`MemoryLog::hold`] durability to see what happens to what is accepted only, and may make the
//! log block or fail.
//!
//! # Invariants
//!
//! - What is held or blocked is not readable and not part of the tail.
//! - Batches become durable in the order of acceptance.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use pgcapture_engine::{
    batch::Batch,
    checkpoint::{Checkpoint, Epoch},
    confirm::Origin,
    lsn::{Lsn, PgTime},
};
use tokio::sync::{Notify, watch};

use super::{
    ChangeLog, LogError, LogExtent, LogHealth, LogReader, LogWriter, Start, Tail, ask, check_order,
    check_origin, removed, skip::Skip,
};
use crate::clock::now;

/// Bounds of a [`MemoryLog`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLogOptions {
    /// Batches kept; the oldest are removed beyond it.
    pub batches_max: usize,
    /// Batches accepted and not durable; `append` waits beyond it.
    pub queue_batches_max: usize,
}

/// A test that holds some hundred MiB is a mistake in the test: 65,536 batches of usual size.
/// A queue of 64 is met by any test that wants to see back-pressure.
impl Default for MemoryLogOptions {
    fn default() -> Self {
        Self {
            batches_max: 65_536,
            queue_batches_max: 64,
        }
    }
}

/// An ordered log in memory.
#[derive(Debug)]
pub struct MemoryLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: MemoryLogOptions,
    state: Mutex<State>,
    tail: watch::Sender<Tail>,
    health: watch::Sender<LogHealth>,
    asked: watch::Sender<Lsn>,
    /// Wakes appenders and flushers: room, fence, release or failure.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    epoch: Epoch,
    /// Counts `open_writer`; only the newest writer may append.
    generation: u64,
    accepted: VecDeque<(Epoch, Batch)>,
    last_accepted: Option<Checkpoint>,
    durable: VecDeque<Batch>,
    /// Number of batches removed by retention: index of `durable.front()`.
    removed: u64,
    bytes: u64,
    /// Last entry and newest commit time that retention removed.
    floor: Option<(Checkpoint, PgTime)>,
    /// Where the log was started anew, while it has no entry since.
    anew: Option<Lsn>,
    held: bool,
    failed: Option<String>,
}

impl MemoryLog {
    /// Makes an empty log.
    #[must_use]
    pub fn new(options: MemoryLogOptions) -> Arc<Self> {
        let shared = Shared {
            options,
            state: Mutex::default(),
            tail: watch::Sender::default(),
            health: watch::Sender::default(),
            asked: watch::Sender::default(),
            changed: Notify::new(),
        };
        Arc::new(Self {
            shared: Arc::new(shared),
        })
    }

    /// From now on batches are accepted and stay so; nothing becomes durable.
    pub fn hold(&self) {
        self.shared.lock().held = true;
    }

    /// Makes durable what is accepted, and what comes; ends [`Self::hold`] and [`Self::block`].
    pub fn release(&self) {
        let mut state = self.shared.lock();
        state.held = false;
        self.shared.health.send_replace(LogHealth::Writable);
        self.shared.commit(&mut state);
    }

    /// As [`Self::hold`], and the log reports itself blocked: a full disk.
    pub fn block(&self, reason: &str) {
        self.shared.lock().held = true;
        let reason = reason.to_owned();
        self.shared
            .health
            .send_replace(LogHealth::Blocked { reason });
    }

    /// Fails the log for good. What was accepted and not durable is lost.
    pub fn fail(&self, reason: &str) {
        let mut state = self.shared.lock();
        state.failed = Some(reason.to_owned());
        state.accepted.clear();
        let reason = reason.to_owned();
        self.shared
            .health
            .send_replace(LogHealth::Failed { reason });
        self.shared.changed.notify_waiters();
    }

    /// Removes the oldest batches until `keep` are left, as retention does.
    pub fn retain(&self, keep: usize) {
        let mut state = self.shared.lock();
        while state.durable.len() > keep {
            state.remove_oldest();
        }
    }
}

#[async_trait]
impl ChangeLog for MemoryLog {
    async fn open_writer(&self, epoch: Epoch) -> Result<Box<dyn LogWriter>, LogError> {
        let mut state = self.shared.lock();
        if epoch < state.epoch {
            return Err(LogError::Fenced {
                asked: epoch,
                held: state.epoch,
            });
        }
        state.check_failed()?;
        state.epoch = epoch;
        state.generation += 1;
        self.shared.tail.send_modify(|tail| tail.epoch = epoch);
        self.shared.changed.notify_waiters();
        Ok(Box::new(MemoryWriter {
            shared: Arc::clone(&self.shared),
            epoch,
            generation: state.generation,
        }))
    }

    async fn open_reader(&self, start: Start) -> Result<Box<dyn LogReader>, LogError> {
        let state = self.shared.lock();
        let tail = self.shared.tail.subscribe();
        let mut next = state.removed;
        let skip = match start {
            Start::Earliest => Skip::Nothing,
            Start::Latest => {
                next += state.durable.len() as u64;
                Skip::Nothing
            }
            Start::After(checkpoint) => Skip::Through(checkpoint),
            Start::AtLsn(lsn) => Skip::before_lsn(lsn),
            Start::AtTime(time) => Skip::Before(time),
        };
        if let Some((floor, floor_time)) = state.floor {
            let earliest = state.earliest().unwrap_or(floor);
            if let Some(error) = removed(start, floor, floor_time, earliest) {
                return Err(error);
            }
        }
        Ok(Box::new(MemoryReader {
            shared: Arc::clone(&self.shared),
            tail,
            next,
            passed: match start {
                Start::Latest => self.shared.tail.borrow().last,
                Start::After(checkpoint) => Some(checkpoint),
                Start::Earliest | Start::AtLsn(_) | Start::AtTime(_) => {
                    state.floor.map(|(floor, _)| floor)
                }
            },
            skip,
        }))
    }

    fn tail(&self) -> watch::Receiver<Tail> {
        self.shared.tail.subscribe()
    }

    fn health(&self) -> watch::Receiver<LogHealth> {
        self.shared.health.subscribe()
    }

    fn extent(&self) -> LogExtent {
        let state = self.shared.lock();
        let first = state.durable.iter().find(|batch| batch.span.is_some());
        LogExtent {
            earliest: state
                .earliest()
                .or_else(|| state.anew.map(|lsn| Checkpoint::new(lsn, 0))),
            earliest_time: first.map_or(PgTime::default(), |batch| batch.commit_time),
            tail: *self.shared.tail.borrow(),
            bytes: state.bytes,
            segments: 1,
        }
    }

    fn ask_progress(&self, at: Lsn) {
        ask(&self.shared.asked, at);
    }

    fn asked_progress(&self) -> Option<watch::Receiver<Lsn>> {
        Some(self.shared.asked.subscribe())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics under this lock")
    }

    /// Makes everything accepted durable, unless that is held.
    fn commit(&self, state: &mut State) {
        if state.held || state.failed.is_some() {
            return;
        }
        let mut tail = *self.tail.borrow();
        for (_, batch) in state.accepted.drain(..) {
            tail.last = batch.span.map(|(_, last)| last).or(tail.last);
            tail.resume_lsn = batch.resume_lsn;
            tail.commit_time = tail.commit_time.max(batch.commit_time);
            tail.offset += batch.entries.len() as u64;
            state.bytes += batch.entries.len() as u64;
            state.durable.push_back(batch);
        }
        while state.durable.len() > self.options.batches_max {
            state.remove_oldest();
        }
        self.tail.send_replace(tail);
        self.changed.notify_waiters();
    }
}

impl State {
    fn check_failed(&self) -> Result<(), LogError> {
        match &self.failed {
            None => Ok(()),
            Some(reason) => Err(LogError::Closed {
                reason: reason.clone(),
            }),
        }
    }

    fn check_writer(&self, writer: &MemoryWriter) -> Result<(), LogError> {
        self.check_failed()?;
        if self.generation == writer.generation {
            return Ok(());
        }
        Err(LogError::Fenced {
            asked: writer.epoch,
            held: self.epoch,
        })
    }

    fn earliest(&self) -> Option<Checkpoint> {
        let mut spans = self.durable.iter().filter_map(|batch| batch.span);
        spans.next().map(|(first, _)| first)
    }

    fn remove_oldest(&mut self) {
        let Some(batch) = self.durable.pop_front() else {
            return;
        };
        self.removed += 1;
        self.bytes -= batch.entries.len() as u64;
        if let Some((_, last)) = batch.span {
            let time = self.floor.map_or(batch.commit_time, |(_, time)| time);
            self.floor = Some((last, time.max(batch.commit_time)));
        }
    }
}

#[derive(Debug)]
struct MemoryWriter {
    shared: Arc<Shared>,
    epoch: Epoch,
    generation: u64,
}

#[async_trait]
impl LogWriter for MemoryWriter {
    async fn append(&mut self, batch: Batch) -> Result<(), LogError> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.shared.lock();
                state.check_writer(self)?;
                check_order(&batch, state.last_accepted)?;
                if state.accepted.len() < self.shared.options.queue_batches_max {
                    state.last_accepted = batch.span.map(|(_, last)| last).or(state.last_accepted);
                    state.accepted.push_back((self.epoch, batch));
                    self.shared.commit(&mut state);
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    async fn flush(&mut self) -> Result<Tail, LogError> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.shared.lock();
                state.check_writer(self)?;
                if state.accepted.is_empty() {
                    return Ok(*self.shared.tail.borrow());
                }
            }
            changed.await;
        }
    }

    async fn reset(&mut self, origin: Origin) -> Result<Tail, LogError> {
        check_origin(origin, &self.flush().await?)?;
        let mut state = self.shared.lock();
        state.check_writer(self)?;
        // One more than there are: every reader has to look where it stands.
        state.removed += state.durable.len() as u64 + 1;
        state.durable.clear();
        state.bytes = 0;
        state.floor = origin.previous.map(|previous| (previous, now()));
        state.anew = Some(origin.resume_lsn);
        state.last_accepted = origin.previous;
        let mut tail = *self.shared.tail.borrow();
        tail.last = origin.previous;
        tail.resume_lsn = origin.resume_lsn;
        tail.offset += 1;
        self.shared.tail.send_replace(tail);
        Ok(tail)
    }
}

#[derive(Debug)]
struct MemoryReader {
    shared: Arc<Shared>,
    tail: watch::Receiver<Tail>,
    /// Number of the next batch, counted from the first one ever.
    next: u64,
    /// Nothing at or before this entry is missed if it is removed.
    passed: Option<Checkpoint>,
    skip: Skip,
}

impl MemoryReader {
    /// Returns the next batch and whether the tail was reached without one.
    fn take(&mut self) -> Result<Option<Batch>, LogError> {
        loop {
            let batch = {
                let state = self.shared.lock();
                let floor = state.floor.map(|(floor, _)| floor);
                if self.next < state.removed && floor <= self.passed {
                    self.next = state.removed;
                }
                let Some(index) = self.next.checked_sub(state.removed) else {
                    return Err(overtaken(&state));
                };
                let Some(batch) = state
                    .durable
                    .get(usize::try_from(index).unwrap_or(usize::MAX))
                else {
                    return Ok(None);
                };
                batch.clone()
            };
            self.next += 1;
            self.passed = batch.span.map(|(_, last)| last).max(self.passed);
            let kept = self.skip.apply(batch).map_err(|error| LogError::Corrupt {
                file: "memory".into(),
                offset: self.next - 1,
                what: error.to_string(),
            })?;
            if kept.is_some() {
                return Ok(kept);
            }
        }
    }
}

#[async_trait]
impl LogReader for MemoryReader {
    async fn next(&mut self) -> Result<Batch, LogError> {
        loop {
            self.tail.mark_unchanged();
            if let Some(batch) = self.take()? {
                return Ok(batch);
            }
            if self.tail.changed().await.is_err() {
                let reason = "it was dropped".to_owned();
                return Err(LogError::Closed { reason });
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<Batch>, LogError> {
        self.take()
    }
}

fn overtaken(state: &State) -> LogError {
    let floor = state.floor.unwrap_or_default().0;
    LogError::Removed {
        asked: format!("batch {}", state.removed),
        earliest: state.earliest().unwrap_or(floor),
    }
}
