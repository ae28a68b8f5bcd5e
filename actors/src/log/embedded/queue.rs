//! What is accepted and not durable yet: between the writers' tasks and the writer thread.
//!
//! Decides who may append: only the writer of the newest generation, and only what follows. The
//! bound is in bytes; its permits return when a batch is durable, so that it bounds everything
//! that a crash can lose, not only what waits.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use pgcapture_engine::{
    batch::Batch,
    checkpoint::{Checkpoint, Epoch},
    confirm::Origin,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::log::{LogError, Tail, check_order};

/// Permits count in these units, and a batch takes at least one: a queue of 32 MiB holds no more
/// than 32,768 batches, however small.
const UNIT_BYTES: usize = 1_024;

/// What the writer thread has to do, in this order.
#[derive(Debug)]
pub(super) enum Order {
    /// Write this batch.
    Append(Accepted),
    /// Make the epoch durable, then answer.
    Fence {
        epoch: Epoch,
        reply: oneshot::Sender<Tail>,
    },
    /// Remove everything and begin anew, then answer.
    Reset {
        origin: Origin,
        reply: oneshot::Sender<Tail>,
    },
}

/// A batch that was accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) batch: Batch,
    pub(super) epoch: Epoch,
    /// Counts accepted batches from 1.
    pub(super) number: u64,
    pub(super) since: Instant,
    /// Room in the queue until the batch is durable.
    _room: OwnedSemaphorePermit,
}

/// The right to append: that of one `open_writer`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Right {
    pub(super) epoch: Epoch,
    generation: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Wakes the writer thread.
    wake: Condvar,
    room: Arc<Semaphore>,
    units: u32,
}

#[derive(Debug)]
struct State {
    orders: VecDeque<Order>,
    held: Epoch,
    generation: u64,
    last: Option<Checkpoint>,
    accepted: u64,
    closing: bool,
    /// Why nothing is accepted any more.
    closed: Option<String>,
}

impl Queue {
    pub(super) fn new(bytes_max: usize, tail: &Tail) -> Self {
        let units = u32::try_from(bytes_max / UNIT_BYTES).unwrap_or(u32::MAX);
        let units = units.clamp(1, 1 << 28);
        Self {
            state: Mutex::new(State {
                orders: VecDeque::new(),
                held: tail.epoch,
                generation: 0,
                last: tail.last,
                accepted: 0,
                closing: false,
                closed: None,
            }),
            wake: Condvar::new(),
            room: Arc::new(Semaphore::new(units as usize)),
            units,
        }
    }

    /// Takes the right to write; what is answered must be awaited before it is used.
    pub(super) fn fence(&self, epoch: Epoch) -> Result<(Right, oneshot::Receiver<Tail>), LogError> {
        let mut state = self.lock();
        state.check_open()?;
        if epoch < state.held {
            return Err(LogError::Fenced {
                asked: epoch,
                held: state.held,
            });
        }
        state.held = epoch;
        state.generation += 1;
        let (reply, answer) = oneshot::channel();
        state.orders.push_back(Order::Fence { epoch, reply });
        self.wake.notify_one();
        let generation = state.generation;
        Ok((Right { epoch, generation }, answer))
    }

    /// Accepts a batch; waits while there is no room. Cancellation-safe: a dropped call has
    /// accepted nothing.
    pub(super) async fn append(&self, right: Right, batch: Batch) -> Result<(), LogError> {
        self.lock().check(right)?;
        let units = u32::try_from(batch.entries.len().div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = units.clamp(1, self.units);
        let room = Arc::clone(&self.room).acquire_many_owned(units).await;
        let mut state = self.lock();
        state.check(right)?;
        let room = room.map_err(|_| state.why_closed())?;
        check_order(&batch, state.last)?;
        state.last = batch.span.map(|(_, last)| last).or(state.last);
        state.accepted += 1;
        let accepted = Accepted {
            batch,
            epoch: right.epoch,
            number: state.accepted,
            since: Instant::now(),
            _room: room,
        };
        state.orders.push_back(Order::Append(accepted));
        self.wake.notify_one();
        Ok(())
    }

    /// Starts the log anew after everything that was accepted; what is answered must be awaited.
    pub(super) fn reset(
        &self,
        right: Right,
        origin: Origin,
    ) -> Result<oneshot::Receiver<Tail>, LogError> {
        let mut state = self.lock();
        state.check(right)?;
        state.last = origin.previous.max(state.last);
        let (reply, answer) = oneshot::channel();
        state.orders.push_back(Order::Reset { origin, reply });
        self.wake.notify_one();
        Ok(answer)
    }

    /// Returns the number of the last accepted batch.
    pub(super) fn accepted(&self, right: Right) -> Result<u64, LogError> {
        let state = self.lock();
        state.check(right).map(|()| state.accepted)
    }

    /// Tells whether `right` may still append.
    pub(super) fn check(&self, right: Right) -> Result<(), LogError> {
        self.lock().check(right)
    }

    /// Waits for orders, no longer than `timeout`; returns them all, and whether the log closes.
    pub(super) fn take(&self, timeout: Duration) -> (VecDeque<Order>, bool) {
        let idle = |state: &mut State| state.orders.is_empty() && !state.closing;
        let waited = self.wake.wait_timeout_while(self.lock(), timeout, idle);
        let (mut state, _) = waited.expect("no code panics under this lock");
        (std::mem::take(&mut state.orders), state.closing)
    }

    /// Waits until the log closes, no longer than `timeout`; tells whether it does.
    pub(super) fn wait_for_close(&self, timeout: Duration) -> bool {
        let open = |state: &mut State| !state.closing;
        let waited = self.wake.wait_timeout_while(self.lock(), timeout, open);
        let (state, _) = waited.expect("no code panics under this lock");
        state.closing
    }

    /// Asks the writer thread to finish what was accepted and to end.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        state
            .closed
            .get_or_insert_with(|| "it was closed".to_owned());
        self.wake.notify_one();
        self.room.close();
    }

    /// Accepts nothing any more and drops what waits: the writer thread has ended.
    pub(super) fn fail(&self, reason: &str) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| reason.to_owned());
        state.orders.clear();
        self.room.close();
    }

    /// Returns the error that says why nothing is accepted any more.
    pub(super) fn why_closed(&self) -> LogError {
        self.lock().why_closed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics under this lock")
    }
}

impl State {
    fn check_open(&self) -> Result<(), LogError> {
        match self.closed {
            None => Ok(()),
            Some(_) => Err(self.why_closed()),
        }
    }

    fn check(&self, right: Right) -> Result<(), LogError> {
        self.check_open()?;
        if right.generation == self.generation {
            return Ok(());
        }
        Err(LogError::Fenced {
            asked: right.epoch,
            held: self.held,
        })
    }

    fn why_closed(&self) -> LogError {
        let reason = self.closed.as_deref().unwrap_or("its writer has ended");
        LogError::Closed {
            reason: reason.to_owned(),
        }
    }
}
