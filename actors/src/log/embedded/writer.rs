//! The one thread that writes a log: group commit, rotation, epochs, retention.
//!
//! It takes everything that was accepted, writes it with one vectored write from the bytes that
//! the decoder made, syncs once, and publishes the tail. Nothing becomes visible before its sync.
//!
//! # Invariants
//!
//! - A failed fsync ends the log: the kernel may have dropped the pages and called them clean, so
//!   that trying again would succeed and lie.
//! - Without space nothing is dropped: the group stays in memory, its room in the queue stays
//!   taken, and the same bytes are written to the same place when there is space again.
//! - A segment is used only after everything before it was synced.

use std::{
    collections::VecDeque,
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use pgcapture_engine::{codes, confirm::Origin, retention::Retention};
use tokio::sync::watch;

use super::{
    files::is_full,
    index,
    queue::Order,
    segments::{Active, Segments},
    shared::Shared,
};
use crate::log::{LogError, LogHealth, Tail};

/// After this much rest the writer notes in the segment that the last group is durable: long
/// enough not to happen between the groups of a busy log, where the next group attests it.
const MARK_AFTER: Duration = Duration::from_millis(100);

/// How often an idle writer looks whether retention has something to remove.
const RETENTION_EVERY: Duration = Duration::from_secs(2);

/// How often a blocked writer looks whether there is space again.
const RETRY_FULL_EVERY: Duration = Duration::from_millis(250);

/// State of the writer thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) segments: Segments,
    pub(super) tail: watch::Sender<Tail>,
    pub(super) committed: watch::Sender<u64>,
    pub(super) retention: Retention,
    /// Held until the thread ends.
    pub(super) _lock: File,
}

impl Writer {
    /// Writes until the log is closed or fails.
    pub(super) fn run(mut self) {
        let mut looked = Instant::now();
        loop {
            let idle = if self.segments.active.is_marked() {
                RETENTION_EVERY
            } else {
                MARK_AFTER
            };
            let (mut orders, closing) = self.shared.queue.take(idle);
            let idle = orders.is_empty();
            let written = self.write(&mut orders).and_then(|()| {
                if idle {
                    self.segments.active.mark()?;
                }
                Ok(())
            });
            if let Err(error) = written {
                self.fail(&error);
                return;
            }
            if looked.elapsed() >= RETENTION_EVERY {
                looked = Instant::now();
                self.retain();
            }
            if closing {
                if let Err(error) = self.segments.active.mark() {
                    tracing::warn!(%error, "cannot mark a closed log");
                }
                self.shared.queue.fail("it was closed");
                return;
            }
        }
    }

    /// Carries out all `orders`; waits while there is no space. Gives up only when the log closes.
    fn write(&mut self, orders: &mut VecDeque<Order>) -> Result<(), LogError> {
        while let Err(error) = self.try_write(orders) {
            if !is_full(&error) {
                return Err(error);
            }
            self.block(&error);
            // What was prepared for later is space that can be used now.
            self.segments.give_back();
            self.retain();
            if self.shared.queue.wait_for_close(RETRY_FULL_EVERY) {
                orders.clear();
                return Ok(());
            }
        }
        if *self.shared.health.borrow() != LogHealth::Writable {
            tracing::info!(directory = %self.shared.directory.display(), "the log takes writes again");
            self.shared.health.send_replace(LogHealth::Writable);
        }
        Ok(())
    }

    /// Carries out orders from the front; those that are left were not carried out.
    fn try_write(&mut self, orders: &mut VecDeque<Order>) -> Result<(), LogError> {
        while let Some(order) = orders.front() {
            match order {
                Order::Append(_) => self.write_group(orders)?,
                Order::Reset { origin, .. } => {
                    let tail = self.begin_anew(*origin)?;
                    if let Some(Order::Reset { reply, .. }) = orders.pop_front() {
                        reply.send(tail).ok();
                    }
                }
                Order::Fence { epoch, .. } => {
                    let mut tail = *self.tail.borrow();
                    if *epoch > tail.epoch {
                        tail.epoch = *epoch;
                        self.rotate(&tail, 0)?;
                        self.tail.send_replace(tail);
                    }
                    if let Some(Order::Fence { reply, .. }) = orders.pop_front() {
                        // Whoever asked may have gone; the epoch is taken all the same.
                        reply.send(tail).ok();
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the batches at the front durable: as many as fit into the segment.
    fn write_group(&mut self, orders: &mut VecDeque<Order>) -> Result<(), LogError> {
        let mut tail = *self.tail.borrow();
        let batches = orders.iter().map_while(|order| match order {
            Order::Append(accepted) => Some((&accepted.batch, accepted.epoch)),
            Order::Fence { .. } | Order::Reset { .. } => None,
        });
        let group = self.segments.active.frame(batches, &tail)?;
        let Some(needed) = group.blocked_by() else {
            let began = Instant::now();
            self.segments.write(&group)?;
            self.shared.metrics.fsync_seconds.record(began.elapsed());
            self.publish(group.ends(), orders, &mut tail);
            self.segments.prepare_next();
            return Ok(());
        };
        self.rotate(&tail, needed)
    }

    /// Shows what is durable now: first to the cache, then to the readers and the flushers.
    fn publish(&mut self, ends: Vec<u64>, orders: &mut VecDeque<Order>, tail: &mut Tail) {
        let (mut number, mut oldest, mut first) = (0, None, None);
        {
            let mut cache = self.shared.cache();
            for end in ends {
                let Some(Order::Append(accepted)) = orders.pop_front() else {
                    break;
                };
                let batch = accepted.batch;
                first = first.or(batch.span.map(|(first, _)| (first, batch.commit_time)));
                tail.last = batch.span.map(|(_, last)| last).or(tail.last);
                tail.epoch = accepted.epoch;
                tail.resume_lsn = batch.resume_lsn;
                tail.commit_time = tail.commit_time.max(batch.commit_time);
                tail.offset = end;
                number = accepted.number;
                oldest.get_or_insert(accepted.since);
                cache.push(end, batch);
            }
        }
        if let Some(first) = first {
            self.shared.earliest().get_or_insert(first);
        }
        self.tail.send_replace(*tail);
        self.committed.send_replace(number);
        let metrics = &self.shared.metrics;
        if let Some(since) = oldest {
            metrics.append_seconds.record(since.elapsed());
        }
        if let Some(last) = tail.last {
            metrics.durable_lsn.set(last.lsn.0 as f64);
        }
    }

    /// Begins a segment under the epoch of `tail`, with room for a block of `needed` bytes.
    fn rotate(&mut self, tail: &Tail, needed: u64) -> Result<(), LogError> {
        let (closed, segment) = self.segments.rotate(tail, needed)?;
        {
            let mut segments = self.shared.segments.write();
            let segments = segments.as_mut().expect("no code panics under this lock");
            segments.push_back(segment);
        }
        Active::trim(&closed, tail.offset);
        self.retain();
        Ok(())
    }

    /// Starts the log anew after `origin`. The first segment there, once its name is durable, is what
    /// decides after a crash; the older ones are removed behind it.
    fn begin_anew(&mut self, origin: Origin) -> Result<Tail, LogError> {
        let mut tail = *self.tail.borrow();
        tail.last = origin.previous;
        tail.resume_lsn = origin.resume_lsn;
        // One further than any reader can stand: each of them has to look where it is.
        tail.offset += 1;
        let segment = self.segments.begin_anew(&tail)?;
        let removed = {
            let mut segments = self.shared.segments.write();
            let segments = segments.as_mut().expect("no code panics under this lock");
            std::mem::replace(&mut **segments, VecDeque::from([segment]))
        };
        *self.shared.earliest() = None;
        self.shared.cache().restart(tail.offset);
        self.tail.send_replace(tail);
        self.segments.remove(removed);
        tracing::info!(
            directory = %self.shared.directory.display(), at = %origin.resume_lsn,
            "the log was started anew"
        );
        Ok(tail)
    }

    /// Removes the segments that have expired.
    fn retain(&mut self) {
        if let Err(error) = self.segments.retain(&self.shared, self.retention) {
            tracing::warn!(%error, "cannot remove an old log segment; tries again");
        }
        match index::first_entry(&self.shared, self.tail.borrow().offset) {
            Ok(first) => {
                let seconds = first.map_or(0.0, |(_, time)| time.unix_micros() as f64 / 1e6);
                self.shared.metrics.oldest_seconds.set(seconds);
                *self.shared.earliest() = first;
            }
            Err(error) => tracing::warn!(%error, "cannot read the first entry of the log"),
        }
        self.shared.metrics.bytes.set(self.shared.size().0 as f64);
    }

    fn block(&self, error: &LogError) {
        let reason = reason(&codes::log::DISK_FULL, error);
        let blocked = LogHealth::Blocked { reason };
        let changed = self.shared.health.send_if_modified(|health| {
            let changes = *health != blocked;
            health.clone_from(&blocked);
            changes
        });
        if changed {
            tracing::error!(health = ?blocked, "the log cannot write; the source waits");
        }
    }

    fn fail(&self, error: &LogError) {
        let reason = reason(&codes::log::WRITE_FAILED, error);
        tracing::error!(%reason, "the log has failed");
        self.shared.queue.fail(&reason);
        self.shared
            .health
            .send_replace(LogHealth::Failed { reason });
    }
}

/// However the thread ends, by a panic too: nobody waits for it any more.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.fail("its writer thread has ended");
    }
}

/// Writes code, title and the whole chain of causes.
fn reason(code: &codes::Explanation, error: &LogError) -> String {
    let mut reason = format!("{}: {}: {error}", code.code, code.title);
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason.push_str(": ");
        reason.push_str(&cause.to_string());
        source = cause.source();
    }
    reason
}
