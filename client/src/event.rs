//! One typed change with the duty to answer it.

use std::{
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use crate::{
    change::Change,
    checkpoint::Checkpoint,
    debounce::Group,
    decode::DecodeError,
    error::Error,
    raw_events::{RawEvent, RawMessage, commit_time},
    row::Row,
    session::Ticket,
};

/// A change of `T`'s table. Acknowledge it when it is dealt with.
///
/// Dropping it without an answer means that it comes again later: after the gateway's
/// acknowledgement time-out, or with the next connection.
#[derive(Debug)]
#[must_use = "a change that is not acknowledged is delivered again"]
pub struct Event<T> {
    change: Change<T>,
    checkpoint: Checkpoint,
    commit_micros: u64,
    answer: Answer,
    row: PhantomData<fn() -> T>,
}

/// Who has to be told.
#[derive(Debug)]
pub(crate) enum Answer {
    One(Ticket),
    /// The runner of handlers answers by what the handler returns, unless that was done.
    Handler(Ticket, Arc<AtomicBool>),
    /// A debounced change with those that it superseded.
    Group(Box<Group>),
}

impl<T: Row> Event<T> {
    pub(crate) fn new(
        change: Change<T>,
        checkpoint: Checkpoint,
        commit_micros: u64,
        answer: Answer,
    ) -> Self {
        Self {
            change,
            checkpoint,
            commit_micros,
            answer,
            row: PhantomData,
        }
    }

    /// The change.
    #[must_use]
    pub fn change(&self) -> &Change<T> {
        &self.change
    }

    /// The schema of the table.
    #[must_use]
    pub fn schema(&self) -> &'static str {
        T::SCHEMA
    }

    /// The table, without its schema.
    #[must_use]
    pub fn table(&self) -> &'static str {
        T::TABLE
    }

    /// Where the change stands.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Whether this is a row that a dump read, not a change: [`Change::Snapshot`].
    ///
    /// It stands behind every change that the reading saw and before every later one, so that it
    /// can be written over what is there. It has no place in the log, hence no LSN.
    #[must_use]
    pub fn is_existing_row(&self) -> bool {
        self.checkpoint.is_dump()
    }

    /// When its transaction committed; with `commit_time` or `boundaries`. Never on existing rows.
    #[must_use]
    pub fn commit_time(&self) -> Option<SystemTime> {
        commit_time(self.commit_micros)
    }

    /// Takes the change out and leaves the duty to answer: for a change that is moved to where
    /// it is worked on.
    pub fn split(self) -> (Change<T>, Unanswered) {
        (self.change, Unanswered(self.answer))
    }

    /// Acknowledges: the gateway need not deliver this change again.
    ///
    /// Returns when the acknowledgement is queued, and waits only while very many are. It is
    /// durable once the gateway has stored it; [`stop`](crate::Events::stop) waits for that.
    /// Without a connection it is `Ok` too: the change comes again then, or, with `dedup`, is
    /// acknowledged by the stream itself. A future that is dropped before it is ready may not
    /// have acknowledged.
    ///
    /// # Errors
    /// The stream was stopped or dropped.
    pub async fn ack(self) -> Result<(), Error> {
        Unanswered(self.answer).ack().await
    }

    /// Asks for the change again and tells the gateway why.
    ///
    /// It comes back later, behind newer changes. A debounced change is kept by the stream and
    /// comes back merged with newer changes of its key. An existing row comes back with its whole
    /// range, read again then: rows of the range that were acknowledged come again, too.
    ///
    /// # Errors
    /// The stream was stopped or dropped.
    pub async fn nack(self, reason: impl AsRef<str>) -> Result<(), Error> {
        Unanswered(self.answer).nack(reason).await
    }
}

/// The duty to answer a change that was [split](Event::split) off.
#[derive(Debug)]
#[must_use = "a change that is not acknowledged is delivered again"]
pub struct Unanswered(Answer);

impl Unanswered {
    /// Acknowledges; see [`Event::ack`].
    ///
    /// # Errors
    /// The stream was stopped or dropped.
    pub async fn ack(self) -> Result<(), Error> {
        match self.0 {
            Answer::One(ticket) => ticket.ack().await,
            Answer::Handler(ticket, answered) => {
                answered.store(true, Ordering::Release);
                ticket.ack().await
            }
            Answer::Group(group) => group.ack().await,
        }
    }

    /// Asks for the change again; see [`Event::nack`].
    ///
    /// # Errors
    /// The stream was stopped or dropped.
    pub async fn nack(self, reason: impl AsRef<str>) -> Result<(), Error> {
        match self.0 {
            Answer::One(ticket) => ticket.nack(reason.as_ref()).await,
            Answer::Handler(ticket, answered) => {
                answered.store(true, Ordering::Release);
                ticket.nack(reason.as_ref()).await
            }
            Answer::Group(group) => {
                tracing::debug!(reason = reason.as_ref(), "debounced change comes back");
                drop(group);
                Ok(())
            }
        }
    }
}

/// What a raw message is to a consumer of `T`.
pub(crate) enum Typed<T> {
    Event(Event<T>),
    /// Nothing: another table, or a kind that has no typed form.
    Unwanted(Ticket),
    Bad(Ticket, DecodeError),
    Gap(Ticket, crate::Gap),
}

/// Turns a raw message into one for `T`; `answer` says who is to be told.
pub(crate) fn typed<T: Row>(raw: RawEvent, answer: impl FnOnce(Ticket) -> Answer) -> Typed<T> {
    let RawEvent {
        message,
        ticket,
        commit_micros,
    } = raw;
    let event = |change, ticket: Ticket| {
        let checkpoint = ticket.checkpoint().clone();
        Typed::Event(Event::new(
            change,
            checkpoint,
            commit_micros,
            answer(ticket),
        ))
    };
    match message {
        RawMessage::Change(change) if change.new_row().is_of(T::SCHEMA, T::TABLE) => {
            match Change::decode(change, ticket.checkpoint().is_dump()) {
                Ok(change) => event(change, ticket),
                Err(error) => Typed::Bad(ticket, error),
            }
        }
        RawMessage::Truncate(tables)
            if tables
                .iter()
                .any(|(schema, table)| schema == T::SCHEMA && table == T::TABLE) =>
        {
            event(Change::Truncate, ticket)
        }
        RawMessage::Gap(gap) => Typed::Gap(ticket, gap),
        RawMessage::Change(_)
        | RawMessage::Truncate(_)
        | RawMessage::Begin { .. }
        | RawMessage::Commit { .. }
        | RawMessage::Logical { .. } => Typed::Unwanted(ticket),
    }
}
