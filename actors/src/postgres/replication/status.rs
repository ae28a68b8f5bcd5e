//! Reports positions to PostgreSQL, on a task of its own.
//!
//! The task never waits for the reader or the log, so a blocked log lets no `wal_sender_timeout`
//! run out. It reports a confirmed position soon after it moved, an answer at once when the server
//! asks, and its life every second; when nothing was heard for that long it asks for an answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use pgcapture_engine::lsn::{Lsn, PgTime};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::received::Seen;
use crate::{
    clock::now,
    postgres::{
        connection::{transport::Transport, wire::Wire},
        error::PgError,
    },
    supervise::{self, Task, TaskKind},
};

/// Longest time between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Shortest time between two reports of a moving position. A report is data from us to a walsender
/// that is sending as fast as it can, and costs it more than its few bytes: with 50 a second a
/// backlog was read at half the rate (measured). A position that is half a second old keeps no
/// WAL worth mentioning.
const CONFIRM_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Shared {
    received: AtomicU64,
    confirmed: AtomicU64,
    reply_requested: AtomicBool,
    was_heard: AtomicBool,
    /// We want to hear where the server stands.
    is_asking: AtomicBool,
    wake: Notify,
}

/// Says what is reported. Cheap to clone; positions only grow.
#[derive(Clone, Debug)]
pub struct StatusHandle {
    shared: Arc<Shared>,
}

impl StatusHandle {
    pub(super) fn new(start: Lsn) -> Self {
        let shared = Shared {
            received: AtomicU64::new(start.0),
            ..Shared::default()
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Everything before `lsn` is durable: PostgreSQL may forget it. A smaller position than
    /// before does nothing.
    pub fn confirm(&self, lsn: Lsn) {
        self.received(lsn);
        if self.shared.confirmed.fetch_max(lsn.0, Ordering::AcqRel) < lsn.0 {
            self.shared.wake.notify_one();
        }
    }

    /// Everything before `lsn` has arrived; the stream notes it by itself. Shown as `write_lsn`.
    pub fn received(&self, lsn: Lsn) {
        self.shared.received.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Asks the server now where it stands; a keepalive is its answer.
    pub fn ask(&self) {
        self.shared.is_asking.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Returns the confirmed position.
    #[must_use]
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.shared.confirmed.load(Ordering::Acquire))
    }

    pub(super) fn heard(&self, seen: &Seen) {
        self.received(seen.received);
        self.shared.was_heard.store(true, Ordering::Relaxed);
        if seen.reply_requested {
            self.shared.reply_requested.store(true, Ordering::Release);
            self.shared.wake.notify_one();
        }
    }
}

/// Starts the task; it ends, after a last report, when `stop` is cancelled.
pub(super) fn spawn(
    slot: &str,
    handle: StatusHandle,
    wire: &Wire,
    stop: CancellationToken,
) -> Task<Result<(), PgError>> {
    let transport = wire.transport.clone();
    supervise::spawn(TaskKind::StatusUpdates, slot, async move {
        let mut reporter = Reporter::new(handle, transport);
        let result = reporter.run(&stop).await;
        if let Err(error) = &result {
            tracing::debug!(%error, "positions cannot be reported any more");
            // The reader may not notice by itself.
            reporter.transport.shutdown();
        }
        result
    })
}

struct Reporter {
    shared: Arc<Shared>,
    transport: Transport,
    reported: u64,
    last: Instant,
}

impl Reporter {
    fn new(handle: StatusHandle, transport: Transport) -> Self {
        Self {
            shared: handle.shared,
            transport,
            reported: 0,
            last: Instant::now(),
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<(), PgError> {
        loop {
            let is_moved = self.shared.confirmed.load(Ordering::Acquire) > self.reported;
            let pause = if is_moved {
                CONFIRM_EVERY
            } else {
                REPORT_EVERY
            };
            let due = self.last + pause;
            tokio::select! {
                // An answer must not wait for the clock; the end for nothing.
                biased;
                () = stop.cancelled() => return self.report(false).await,
                () = self.shared.wake.notified() => {
                    let is_answer = self.shared.reply_requested.swap(false, Ordering::AcqRel);
                    let is_asking = self.shared.is_asking.swap(false, Ordering::AcqRel);
                    if is_answer || is_asking {
                        self.report(is_asking).await?;
                    }
                }
                () = sleep_until(due) => {
                    let ask = !self.shared.was_heard.swap(false, Ordering::Relaxed);
                    self.report(ask && !is_moved).await?;
                }
            }
        }
    }

    async fn report(&mut self, ask: bool) -> Result<(), PgError> {
        let confirmed = self.shared.confirmed.load(Ordering::Acquire);
        let received = self.shared.received.load(Ordering::Acquire);
        let frame = status_update(Lsn(received), Lsn(confirmed), now(), ask);
        self.transport
            .write_all(&frame)
            .await
            .map_err(PgError::Io)?;
        self.reported = confirmed;
        self.last = Instant::now();
        Ok(())
    }
}

/// Writes a standby status update. The applied position is the confirmed one: what is durable
/// here is as good as applied.
fn status_update(received: Lsn, confirmed: Lsn, now: PgTime, ask: bool) -> [u8; 39] {
    let mut frame = [0; 39];
    let fields: [&[u8]; 8] = [
        b"d",
        &38_u32.to_be_bytes(),
        b"r",
        &received.0.to_be_bytes(),
        &confirmed.0.to_be_bytes(),
        &confirmed.0.to_be_bytes(),
        &now.0.to_be_bytes(),
        &[u8::from(ask)],
    ];
    for (target, byte) in frame.iter_mut().zip(fields.into_iter().flatten()) {
        *target = *byte;
    }
    frame
}

pub(super) const fn copy_done() -> [u8; 5] {
    [b'c', 0, 0, 0, 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_update_has_the_fields_that_the_server_reads() {
        let frame = status_update(Lsn(2), Lsn(1), PgTime(3), true);
        assert_eq!(frame[..6], [b'd', 0, 0, 0, 38, b'r']);
        assert_eq!(frame[13], 2);
        assert_eq!((frame[21], frame[29], frame[37], frame[38]), (1, 1, 3, 1));
    }

    #[test]
    fn positions_only_grow() {
        let handle = StatusHandle::new(Lsn(5));
        handle.confirm(Lsn(9));
        handle.confirm(Lsn(7));
        assert_eq!(handle.confirmed(), Lsn(9));
    }
}
