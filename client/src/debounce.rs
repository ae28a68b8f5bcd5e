//! Only the newest change of a key, a while after the first that it replaces.
//!
//! A hot row becomes one change per interval. Nothing is acknowledged before the consumer
//! acknowledges the newest: the changes that it superseded are acknowledged with it. While a
//! change of a key is being worked on, newer ones of the key wait, so that a key is never
//! handled twice at once or out of order.
//!
//! A negative answer (or a drop) does not go to the gateway: it would come back behind newer
//! changes of its key, and the superseded ones, acknowledged or not, would be lost or late.
//! The change stays unacknowledged at the gateway and comes back here after one more interval,
//! merged with whatever came since. If this process dies, the gateway delivers all of it again.

mod pending;

use std::{
    fmt,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::Stream;
use tokio::time::{Instant, Sleep};

use crate::{
    change::Change,
    checkpoint::Checkpoint,
    decode::DecodeError,
    error::Error,
    event::{Answer, Event},
    events::{Hooks, settle_gap},
    raw::{Operation, RawChange, RawRow},
    raw_events::{RawEvent, RawEvents, RawMessage},
    row::Row,
    session::Ticket,
};

use pending::{Merge, Pending};

/// Changes held at most; then the oldest are delivered before their time. Gateways stop
/// earlier, at what a consumer may have in flight.
const HELD_CHANGES: usize = 100_000;

type KeyOf<K> = Box<dyn Fn(&RawRow) -> Result<K, DecodeError> + Send + Sync>;

/// Changes of one key: the newest, and the tickets of all.
#[derive(Debug)]
pub(crate) struct Changes {
    newest: RawChange,
    commit_micros: u64,
    /// In order of arrival; the ticket of `newest` is not always the last.
    tickets: Vec<Ticket>,
    newest_ticket: Ticket,
    /// The highest position among them; `None` while there are only rows of dumps.
    last_position: Option<Checkpoint>,
    /// Whether the row came from another key: its old image is the only word of that key's end.
    is_moved: bool,
}

impl Changes {
    /// Whether this, which came after `other`, is newer than it: not so when it is an old change
    /// that was delivered again.
    fn is_newer_than(&self, other: &Self) -> bool {
        let own = self.newest_ticket.checkpoint();
        // Rows of dumps have no place in the order; where the stream put them counts.
        own.is_dump()
            || other.last_position.as_ref().is_none_or(|last| {
                own > last || (own == last && !other.newest_ticket.checkpoint().is_dump())
            })
    }

    /// Whether `other` is a repeated delivery of something in this.
    fn repeats(&self, other: &Self) -> bool {
        let newest = other.newest_ticket.checkpoint();
        let mut own = self.tickets.iter();
        !newest.is_dump() && own.any(|ticket| ticket.checkpoint() == newest)
    }
}

impl Merge for Changes {
    fn is_behind(&self, other: &Self) -> bool {
        self.is_newer_than(other)
    }

    /// A move stands for what it finds deleted and for updates behind it. Another row under its
    /// key, or none, stands for nothing of it: whoever has the row under its old key must hear
    /// of the move first.
    fn can_merge(&self, later: &Self) -> bool {
        let (older, newer) = if later.is_newer_than(self) {
            (self, later)
        } else {
            (later, self)
        };
        if newer.is_moved {
            older.newest.operation() == Operation::Delete || newer.repeats(older)
        } else {
            !older.is_moved || newer.newest.operation() == Operation::Update
        }
    }

    fn merge(self, later: Self) -> Self {
        let (older, mut newer) = if later.is_newer_than(&self) {
            (self, later)
        } else {
            (later, self)
        };
        newer.newest = newer.newest.merged_over(&older.newest);
        let is_repeated = |ticket: &Ticket| {
            !ticket.checkpoint().is_dump()
                && newer
                    .tickets
                    .iter()
                    .any(|other| other.checkpoint() == ticket.checkpoint())
        };
        let (few, many) = (older.tickets, newer.tickets.len());
        // A repeated delivery needs one answer only. Looking for it is cheap when one is new.
        let mut tickets: Vec<_> = if many <= 1 {
            few.into_iter().filter(|t| !is_repeated(t)).collect()
        } else {
            few
        };
        tickets.append(&mut newer.tickets);
        Self {
            tickets,
            last_position: older.last_position.max(newer.last_position.take()),
            is_moved: older.is_moved || newer.is_moved,
            ..newer
        }
    }

    fn weight(&self) -> usize {
        self.tickets.len()
    }
}

/// What happened to a delivered group.
type Outcome = (u64, Option<Changes>);

/// Where delivered groups report to.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    outcomes: Vec<Outcome>,
    waker: Option<Waker>,
}

/// A delivered group's duty: acknowledge all, or come back.
#[derive(Debug)]
pub(crate) struct Group {
    id: u64,
    changes: Option<Changes>,
    returns: Arc<Mutex<Returns>>,
}

impl Group {
    pub(crate) async fn ack(mut self) -> Result<(), Error> {
        // Until the last acknowledgement is queued the group can come back as a whole.
        let tickets = self.changes.as_ref().map(|changes| changes.tickets.clone());
        for ticket in tickets.into_iter().flatten() {
            ticket.ack().await?;
        }
        self.changes = None;
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let outcome = (self.id, self.changes.take());
        let mut returns = self.returns.lock().unwrap_or_else(PoisonError::into_inner);
        returns.outcomes.push(outcome);
        if let Some(waker) = returns.waker.take() {
            waker.wake();
        }
    }
}

/// The newest changes per key, made by [`Events::debounce`](crate::Events::debounce).
///
/// Delivered is the newest change, with columns that it left out (unchanged TOAST) filled from
/// those that it superseded; treat inserts, updates and existing rows alike. `ack` acknowledges all,
/// `nack` and drop bring the change back after the interval. An update that moves a row to
/// another key lets the change that waits under the old key go first, and nothing but updates of
/// the row takes its place: a delete behind it comes as a change of its own. Implies `dedup`.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Debounced<T, K> {
    raw: RawEvents,
    hooks: Hooks,
    key: KeyOf<K>,
    pending: Pending<K, Changes>,
    returns: Arc<Mutex<Returns>>,
    timer: Pin<Box<Sleep>>,
    /// Waits until everything before it was delivered.
    barrier: Option<Box<Event<T>>>,
    ended: bool,
}

impl<T, K> fmt::Debug for Debounced<T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Debounced").field(&self.raw).finish()
    }
}

impl<T: Row, K: Clone + Eq + Hash> Debounced<T, K> {
    pub(crate) fn new(raw: RawEvents, hooks: Hooks, interval: Duration, key: KeyOf<K>) -> Self {
        raw.start_dedup();
        Self {
            raw,
            hooks,
            key,
            pending: Pending::new(interval),
            returns: Arc::default(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            barrier: None,
            ended: false,
        }
    }

    /// The next change; `None` after the end. Cancellation-safe.
    pub async fn next(&mut self) -> Option<Result<Event<T>, Error>> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next change, errors first. Cancellation-safe.
    ///
    /// # Errors
    /// The gateway refused for good, or declared a gap; the stream has ended.
    pub async fn try_next(&mut self) -> Result<Option<Event<T>>, Error> {
        self.next().await.transpose()
    }

    /// Ends the stream; changes that wait are delivered to the next session.
    ///
    /// # Errors
    /// As [`Events::stop`](crate::Events::stop).
    pub async fn stop(self) -> Result<(), Error> {
        self.raw.stop().await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event<T>, Error>>> {
        loop {
            self.take_returns(cx);
            if let Some(event) = self.due() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let is_full = self.pending.held() >= HELD_CHANGES;
            if self.barrier.is_none() && !is_full {
                match self.raw.poll_event(cx) {
                    Poll::Ready(Some(Ok(raw))) => {
                        if let Err(error) = self.take(raw) {
                            self.ended = true;
                            return Poll::Ready(Some(Err(error)));
                        }
                        continue;
                    }
                    Poll::Ready(Some(Err(error))) => {
                        self.ended = true;
                        return Poll::Ready(Some(Err(error)));
                    }
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => {}
                }
            }
            let Some(deadline) = self.pending.deadline() else {
                return Poll::Pending;
            };
            self.timer.as_mut().reset(deadline);
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn take_returns(&mut self, cx: &Context<'_>) {
        let mut returns = self.returns.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, changes) in returns.outcomes.drain(..) {
            self.pending.answered(id, changes, Instant::now());
        }
        if !returns
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            returns.waker = Some(cx.waker().clone());
        }
    }

    /// What is to be delivered now.
    fn due(&mut self) -> Option<Event<T>> {
        if self.pending.held() >= HELD_CHANGES {
            self.pending.release_all();
        }
        while let Some((id, changes)) = self.pending.next_due(Instant::now()) {
            let ticket = changes.newest_ticket.clone();
            let decoded = Change::decode(changes.newest.clone(), ticket.checkpoint().is_dump());
            let micros = changes.commit_micros;
            match decoded {
                Ok(change) => {
                    let returns = Arc::clone(&self.returns);
                    let group = Group {
                        id,
                        changes: Some(changes),
                        returns,
                    };
                    let checkpoint = ticket.checkpoint().clone();
                    return Some(Event::new(
                        change,
                        checkpoint,
                        micros,
                        Answer::Group(Box::new(group)),
                    ));
                }
                Err(error) => {
                    (self.hooks.on_decode_error)(&error);
                    changes
                        .tickets
                        .iter()
                        .for_each(|ticket| self.raw.skip(ticket));
                    self.pending.answered(id, None, Instant::now());
                }
            }
        }
        if self.pending.is_idle() {
            self.barrier.take().map(|event| *event)
        } else {
            None
        }
    }

    fn take(&mut self, raw: RawEvent) -> Result<(), Error> {
        let RawEvent {
            message,
            ticket,
            commit_micros,
        } = raw;
        match message {
            RawMessage::Change(change) if change.new_row().is_of(T::SCHEMA, T::TABLE) => {
                self.take_change(change, ticket, commit_micros);
            }
            RawMessage::Truncate(tables)
                if tables.iter().any(|(s, t)| s == T::SCHEMA && t == T::TABLE) =>
            {
                let checkpoint = ticket.checkpoint().clone();
                let answer = Answer::One(ticket);
                self.pending.release_all();
                let event = Event::new(Change::Truncate, checkpoint, commit_micros, answer);
                self.barrier = Some(Box::new(event));
            }
            RawMessage::Gap(gap) => {
                return settle_gap(&mut self.raw, &self.hooks, &ticket, gap);
            }
            RawMessage::Change(_)
            | RawMessage::Truncate(_)
            | RawMessage::Begin { .. }
            | RawMessage::Commit { .. }
            | RawMessage::Logical { .. } => self.raw.skip(&ticket),
        }
        Ok(())
    }

    fn take_change(&mut self, change: RawChange, ticket: Ticket, commit_micros: u64) {
        let key = match (self.key)(change.identity()) {
            Ok(key) => key,
            Err(error) => {
                (self.hooks.on_decode_error)(&error);
                self.raw.skip(&ticket);
                return;
            }
        };
        let mut is_moved = false;
        if change.operation() == Operation::Update
            && let Ok(old_key) = (self.key)(change.old_row())
            && old_key != key
        {
            self.pending.release(&old_key);
            is_moved = true;
        }
        let changes = Changes {
            newest: change,
            commit_micros,
            tickets: vec![ticket.clone()],
            last_position: (!ticket.checkpoint().is_dump()).then(|| ticket.checkpoint().clone()),
            newest_ticket: ticket,
            is_moved,
        };
        self.pending.add(key, changes, Instant::now());
    }
}

impl<T: Row, K: Clone + Eq + Hash + Unpin> Stream for Debounced<T, K> {
    type Item = Result<Event<T>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        lsn::Lsn,
        raw::Span,
        session::{Session, Shared},
    };

    /// A change at a position, or a row of a dump without one.
    fn update(position: Option<u32>) -> Changes {
        let row = RawRow::new(Bytes::new(), Span::default(), Span::default(), Vec::new());
        let (session, _) = Session::new(Arc::new(Shared::default()), false);
        let lsn = Lsn::new(if position.is_some() { 7 } else { 0 });
        let checkpoint = Checkpoint::new(lsn, position.unwrap_or(1), Bytes::new());
        let ticket = session.ticket(checkpoint.clone(), true);
        Changes {
            newest: RawChange::new(Operation::Update, row.clone(), row),
            commit_micros: 0,
            tickets: vec![ticket.clone()],
            last_position: position.map(|_| checkpoint),
            newest_ticket: ticket,
            is_moved: false,
        }
    }

    fn newest_of(arrivals: &[Option<u32>]) -> Option<u32> {
        let merged = arrivals.iter().map(|at| update(*at)).reduce(Changes::merge);
        let merged = merged.expect("something arrived");
        let newest = merged.newest_ticket.checkpoint();
        (!newest.is_dump()).then(|| newest.seq())
    }

    #[test]
    fn an_old_change_that_comes_again_never_wins() {
        assert_eq!(newest_of(&[Some(1), Some(2), Some(1)]), Some(2));
        assert_eq!(newest_of(&[Some(1), None, Some(1)]), None);
        assert_eq!(newest_of(&[Some(1), Some(2), None, Some(1)]), None);
    }

    #[test]
    fn existing_rows_win_over_what_came_before_and_lose_to_what_follows() {
        assert_eq!(newest_of(&[Some(1), None]), None);
        assert_eq!(newest_of(&[Some(1), None, Some(2)]), Some(2));
        assert_eq!(newest_of(&[None, None, Some(1)]), Some(1));
    }
}
