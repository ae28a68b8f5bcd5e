//! Brings ranges of dumps to one subscription and reports how they ended: an owned task that runs
//! while the subscription has a session.
//!
//! Pulls what is due from the [`RangeSource`], opens it at the position that the splice names, and
//! hands the reader to the session that delivers it. What ends goes back: finished once the cursors are
//! durable, given up otherwise. It ends when the last session has left and everything was given
//! back. Never touches a row.
//!
//! # Invariants
//!
//! - What was pulled is finished or given up, exactly once.
//! - A range is finished only after the cursors that stood when its last row was acknowledged are
//!   durable.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use pgcapture_engine::{
    codes::gateway as codes,
    splice::{RANGES_HELD_MAX, RangeEnd, RangeNumber, RowsSent, open_max},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{hub::Hub, membership::sleep_for, subscription::Subscription};
use crate::cursors::CURSOR_SAVE_INTERVAL;
use crate::dump::{Delivered, DumpError, GivenUp, OpenedRange, RangeRemedy, RangeTicket};

/// A consumer that is further behind gets changes first: a range would wait for them, and its
/// reader would hold a snapshot on the replica meanwhile.
const RANGE_LAG_MAX: u64 = 64 << 20;

/// Pause before looking again whether the consumer has caught up.
const LAG_LOOK: Duration = Duration::from_millis(100);

/// Pause after a pull that failed: whoever hands out ranges is away.
const PULL_RETRY: Duration = Duration::from_secs(1);

type Pulling = BoxFuture<'static, Result<Option<RangeTicket>, DumpError>>;
type Opening = BoxFuture<'static, (RangeNumber, Option<Result<OpenedRange, DumpError>>)>;

/// The ranges of one subscription, as the outside knows them.
struct Intake {
    subscription: Arc<Subscription>,
    hub: Arc<Hub>,
    changes: watch::Receiver<u64>,
    /// There may be something to pull that the pull under way does not see.
    is_due: bool,
    /// Nothing is pulled before this.
    pause_until: Option<Duration>,
    pulling: Option<Pulling>,
    opening: FuturesUnordered<Opening>,
    /// What was pulled and has not ended.
    tickets: BTreeMap<RangeNumber, (RangeTicket, CancellationToken)>,
    concluding: FuturesUnordered<BoxFuture<'static, ()>>,
}

/// Runs until the last session has left: the body of an owned task.
pub(super) async fn run(subscription: Arc<Subscription>, hub: Arc<Hub>) {
    let _running = Running {
        subscription: Arc::clone(&subscription),
        hub: Arc::clone(&hub),
    };
    let mut intake = Intake {
        changes: hub.ranges.changes(),
        subscription,
        hub,
        is_due: true,
        pause_until: None,
        pulling: None,
        opening: FuturesUnordered::new(),
        tickets: BTreeMap::new(),
        concluding: FuturesUnordered::new(),
    };
    loop {
        intake.conclude();
        if intake.is_over() {
            return;
        }
        intake.pull();
        intake.step().await;
    }
}

/// While it lives somebody looks after the ranges. After a panic nothing may stay behind that
/// holds up changes.
struct Running {
    subscription: Arc<Subscription>,
    hub: Arc<Hub>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let now = self.hub.now();
        self.subscription.with_ranges(|ranges, ledger| {
            if ranges.has_intake {
                ranges.has_intake = false;
                ranges.is_requesting = false;
                ranges.splice.give_up_all(now);
                ranges.take_ended();
                self.subscription.settle(ranges, ledger, now);
            }
        });
        self.subscription.changed.notify_waiters();
    }
}

impl Intake {
    /// Waits for the next thing to happen and deals with it.
    async fn step(&mut self) {
        let now = self.hub.now();
        let deadline = self
            .subscription
            .with_ranges(|ranges, _| ranges.splice.next_deadline());
        let due = deadline.into_iter().chain(self.pause_until).min();
        tokio::select! {
            biased;
            () = self.subscription.intake_wake.notified() => {}
            Some(()) = self.concluding.next() => {}
            Some((number, opened)) = self.opening.next() => self.opened(number, opened),
            pulled = wait_for(&mut self.pulling) => {
                self.pulling = None;
                self.pulled(pulled).await;
            }
            changed = self.changes.changed() => match changed {
                Ok(()) => self.is_due = true,
                // There will never be more; wait for the end of what there is.
                Err(_) => self.subscription.intake_wake.notified().await,
            },
            () = sleep_for(due.map(|due| due.saturating_sub(now))) => self.time_passed(),
        }
    }

    fn time_passed(&mut self) {
        let now = self.hub.now();
        self.pause_until = self.pause_until.filter(|until| *until > now);
        self.subscription.with_ranges(|ranges, ledger| {
            ranges.splice.give_up_overdue(now);
            self.subscription.settle(ranges, ledger, now);
        });
    }

    /// Tells whether nobody is left and everything was given back.
    fn is_over(&mut self) -> bool {
        let is_idle =
            self.tickets.is_empty() && self.pulling.is_none() && self.concluding.is_empty();
        is_idle && self.subscription.end_intake()
    }

    /// Begins to pull when there may be something and room for it.
    fn pull(&mut self) {
        let now = self.hub.now();
        let is_paused = self.pause_until.is_some_and(|until| until > now);
        if !self.is_due || is_paused || self.pulling.is_some() || self.hub.is_refusing() {
            return;
        }
        let (open, all) = self
            .subscription
            .with_ranges(|ranges, _| ranges.splice.counts());
        if open >= self.open_max() || all >= RANGES_HELD_MAX {
            return;
        }
        let Some(lag) = self.subscription.lag() else {
            return;
        };
        if lag > RANGE_LAG_MAX {
            self.pause_until = Some(now + LAG_LOOK);
            return;
        }
        // What is told from now on may come too late for this one.
        self.is_due = false;
        let source = Arc::clone(&self.hub.ranges);
        let id = self.subscription.id.clone();
        self.pulling = Some(Box::pin(async move { source.pull(&id).await }));
    }

    /// Ranges that may have a reader: one is delivered while the others are opened and read ahead.
    fn open_max(&self) -> usize {
        let tickets = self.tickets.values();
        let wanted: BTreeMap<_, _> = tickets
            .map(|(ticket, _)| (ticket.dump, ticket.parallel))
            .collect();
        open_max(wanted.into_values())
    }

    async fn pulled(&mut self, pulled: Result<Option<RangeTicket>, DumpError>) {
        match pulled {
            Ok(Some(ticket)) => {
                self.is_due = true;
                self.begin(ticket).await;
            }
            Ok(None) => {}
            Err(error) => {
                self.is_due = true;
                let code = error.explanation.code;
                tracing::warn!(code, %error, "cannot ask for ranges; trying again");
                self.pause_until = Some(self.hub.now() + PULL_RETRY);
            }
        }
    }

    /// Names the position at which the range must be, and opens it there or later.
    async fn begin(&mut self, ticket: RangeTicket) {
        let subscription = Arc::clone(&self.subscription);
        subscription.with_ranges(|ranges, _| ranges.is_requesting = true);
        // Whoever waits for the log lets go of the feed.
        subscription.changed.notify_waiters();
        let feed = subscription.feed.lock().await;
        let now = self.hub.now();
        let begun = subscription.with_ranges(|ranges, ledger| {
            ranges.is_requesting = false;
            let ledger = ledger.filter(|_| !self.hub.is_refusing())?;
            let passed = ledger.admitted().max(ranges.restored_at);
            Some(ranges.splice.request(passed, now))
        });
        drop(feed);
        subscription.changed.notify_waiters();
        let source = Arc::clone(&self.hub.ranges);
        let Some((number, at_least)) = begun else {
            self.concluding.push(Box::pin(async move {
                source.give_up(ticket, GivenUp::Disconnected).await;
            }));
            return;
        };
        let stop = CancellationToken::new();
        self.tickets.insert(number, (ticket.clone(), stop.clone()));
        self.opening.push(Box::pin(async move {
            let opened = stop.run_until_cancelled(source.open(&ticket, at_least));
            (number, opened.await)
        }));
    }

    fn opened(&mut self, number: RangeNumber, opened: Option<Result<OpenedRange, DumpError>>) {
        let (Some(opened), Some((_, stop))) = (opened, self.tickets.get(&number)) else {
            return;
        };
        let now = self.hub.now();
        self.subscription.with_ranges(|ranges, ledger| {
            match opened {
                Ok(OpenedRange { at, rows }) => ranges.opened(number, at, rows, stop.clone(), now),
                Err(error) => ranges.failed(number, error, now),
            }
            self.subscription.settle(ranges, ledger, now);
        });
        self.subscription.changed.notify_waiters();
    }

    /// Reports what has ended.
    fn conclude(&mut self) {
        let ended = self
            .subscription
            .with_ranges(|ranges, _| ranges.take_ended());
        for (number, end, error) in ended {
            let Some((ticket, stop)) = self.tickets.remove(&number) else {
                continue;
            };
            stop.cancel();
            let hub = Arc::clone(&self.hub);
            let reason = match end {
                RangeEnd::Finished(rows) => {
                    let subscription = Arc::clone(&self.subscription);
                    let finishing = finish(subscription, hub, ticket, rows);
                    self.concluding.push(Box::pin(finishing));
                    continue;
                }
                RangeEnd::Disconnected => GivenUp::Disconnected,
                RangeEnd::Requeued(reason) => GivenUp::Requeued(reason),
                RangeEnd::Rewound => GivenUp::Requeued(
                    "an older change is delivered again; the rows come after it".to_owned(),
                ),
                RangeEnd::Stalled => GivenUp::Stalled,
                RangeEnd::TooOld => GivenUp::TooOld,
                RangeEnd::Failed => GivenUp::Failed(error.unwrap_or_else(unknown)),
            };
            self.subscription.meters.given_up(&reason);
            tracing::info!(
                dump = %ticket.dump, table = %ticket.heap.name, extent = %ticket.extent, ?reason,
                "gave a range up; it is read again"
            );
            self.concluding.push(Box::pin(async move {
                hub.ranges.give_up(ticket, reason).await;
            }));
        }
    }
}

/// Makes the cursors durable, then says that the range is finished.
async fn finish(
    subscription: Arc<Subscription>,
    hub: Arc<Hub>,
    ticket: RangeTicket,
    rows: RowsSent,
) {
    while let Err(error) = hub.save_cursors().await {
        tracing::error!(%error, "a range cannot be finished until cursors can be saved");
        if subscription.is_left() {
            hub.ranges.give_up(ticket, GivenUp::Disconnected).await;
            return;
        }
        tokio::time::sleep(CURSOR_SAVE_INTERVAL).await;
    }
    if subscription.check_kept().is_err() {
        // What was acknowledged does not count: its changes and rows are delivered again elsewhere.
        hub.ranges.give_up(ticket, GivenUp::Disconnected).await;
        return;
    }
    let delivered = Delivered {
        row_count: rows.row_count,
        bytes: rows.bytes,
    };
    let dump = ticket.dump;
    if let Err(error) = hub.ranges.finish(ticket, delivered).await {
        let code = error.explanation.code;
        tracing::warn!(code, %error, %dump, "a finished range may be read again");
    }
}

fn unknown() -> DumpError {
    DumpError {
        explanation: &codes::ROWS_LOST,
        what: "a range failed without a reason".to_owned(),
        remedy: RangeRemedy::Retry,
    }
}

async fn wait_for<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
