//! The stream under everything: messages as they come, over as many connections as it takes.
//!
//! Owns the connection of one subscription and reconnects to the next node with growing,
//! jittered pauses. There is no task behind it: it works while it is polled, and a consumer
//! that stops polling is held back by HTTP/2 flow control. Dropping the future of `next` at
//! any point loses nothing, because all state is kept here.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::Stream;
use pgcapture_proto::pgcapture as proto;
use prost::Message as _;
use tokio::time::{Instant, Sleep};
use tonic::transport::Endpoint;

use crate::{
    backoff::Backoff,
    checkpoint::Checkpoint,
    error::{Error, Gap},
    link::{Link, Plan},
    lsn::Lsn,
    raw::RawChange,
    session::Ticket,
    wire::{Body, Parsed},
};

/// Messages looked at in one poll before other tasks get their turn.
const POLL_BUDGET: usize = 256;
/// How long `stop` waits for the gateway to take the last acknowledgements.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `subscribe` waits for the gateway's first word. Some gateways are silent until
/// there is a change.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// Seconds from 1970 to 2000, where PostgreSQL's clock begins.
const POSTGRES_EPOCH: u64 = 946_684_800;

/// What a message says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RawMessage {
    /// One change of one row.
    Change(RawChange),
    /// A transaction begins; with `boundaries`.
    Begin {
        /// Its commit LSN.
        commit_lsn: Lsn,
        /// Its id on the source.
        xid: u32,
    },
    /// A transaction ends; with `boundaries`.
    Commit {
        /// Its commit LSN.
        commit_lsn: Lsn,
        /// The end of its commit record.
        end_lsn: Lsn,
    },
    /// Tables were emptied, as (schema, table); with `truncates`.
    Truncate(Vec<(String, String)>),
    /// What `pg_logical_emit_message` wrote; with `logical_messages`.
    Logical {
        /// Its prefix.
        prefix: String,
        /// Its content.
        content: Bytes,
    },
    /// Changes may be missing; with `gaps`.
    Gap(Gap),
}

/// One delivered message. Dropping it without an answer means that it comes again later: after
/// the gateway's acknowledgement time-out or with the next connection.
#[derive(Debug)]
#[must_use = "a message that is not acknowledged is delivered again"]
pub struct RawEvent {
    pub(crate) message: RawMessage,
    pub(crate) ticket: Ticket,
    pub(crate) commit_micros: u64,
}

impl RawEvent {
    /// What the message says.
    #[must_use]
    pub fn message(&self) -> &RawMessage {
        &self.message
    }

    /// Where it stands.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        self.ticket.checkpoint()
    }

    /// Whether this is a row that a dump read, not a change; see
    /// [`Event::is_existing_row`](crate::Event::is_existing_row).
    #[must_use]
    pub fn is_existing_row(&self) -> bool {
        self.checkpoint().is_dump()
    }

    /// When its transaction committed; with `commit_time` or `boundaries`. Never on existing rows.
    #[must_use]
    pub fn commit_time(&self) -> Option<SystemTime> {
        commit_time(self.commit_micros)
    }

    /// Acknowledges; see [`Event::ack`](crate::Event::ack).
    ///
    /// # Errors
    /// The stream was stopped or dropped.
    pub async fn ack(self) -> Result<(), Error> {
        self.ticket.ack().await
    }

    /// Asks for the message again; see [`Event::nack`](crate::Event::nack).
    ///
    /// # Errors
    /// The stream was stopped or dropped.
    pub async fn nack(self, reason: impl AsRef<str>) -> Result<(), Error> {
        self.ticket.nack(reason.as_ref()).await
    }
}

pub(crate) fn commit_time(micros: u64) -> Option<SystemTime> {
    let since = Duration::from_secs(POSTGRES_EPOCH) + Duration::from_micros(micros);
    (micros != 0)
        .then(|| UNIX_EPOCH.checked_add(since))
        .flatten()
}

type Opening = Pin<Box<dyn Future<Output = Result<Link, Error>> + Send>>;

enum State {
    Disconnected,
    Opening(Opening),
    Open(Box<Link>),
    Pausing(Pin<Box<Sleep>>),
    Done,
}

/// Untyped messages of all wanted tables.
#[must_use = "a stream does nothing unless it is polled"]
pub struct RawEvents {
    state: State,
    plan: Plan,
    endpoints: Vec<Endpoint>,
    attempt: usize,
    backoff: Backoff,
    failing_since: Option<Instant>,
    transaction_micros: u64,
}

impl fmt::Debug for RawEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawEvents")
            .field("uri", &self.plan.init.uri)
            .finish_non_exhaustive()
    }
}

impl RawEvents {
    /// Opens the stream at the first node that takes it.
    pub(crate) async fn open(plan: Plan) -> Result<Self, Error> {
        let endpoints = plan.client.settings().endpoints()?;
        // Begin anywhere, but not at an address that is only for nodes.
        let attempt = rand::random_range(0..plan.client.settings().given_count().max(1));
        let mut events = Self {
            state: State::Disconnected,
            plan,
            endpoints,
            attempt,
            backoff: Backoff::default(),
            failing_since: None,
            transaction_micros: 0,
        };
        let mut last = Error::Closed;
        for _ in 0..events.endpoints.len() {
            let mut opening = events.opening();
            match tokio::time::timeout(FIRST_WORD, &mut opening).await {
                Ok(Ok(link)) => {
                    events.state = State::Open(Box::new(link));
                    return Ok(events);
                }
                Ok(Err(error)) if error.is_retryable() => last = error,
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    events.state = State::Opening(opening);
                    return Ok(events);
                }
            }
        }
        Err(last)
    }

    /// The next message; `None` after the end. Cancellation-safe.
    pub async fn next(&mut self) -> Option<Result<RawEvent, Error>> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next message, errors first. Cancellation-safe.
    ///
    /// # Errors
    /// The gateway refused for good; the stream has ended.
    pub async fn try_next(&mut self) -> Result<Option<RawEvent>, Error> {
        self.next().await.transpose()
    }

    /// Ends the stream after the gateway took the acknowledgements that were given.
    ///
    /// # Errors
    /// The gateway did not end the stream in time; it may deliver some changes again.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.plan.shared.closed.store(true, Ordering::Release);
        let State::Open(link) = std::mem::replace(&mut self.state, State::Done) else {
            return Ok(());
        };
        let late = |_| Error::Timeout {
            what: "the end of the stream",
            after: STOP_TIMEOUT,
        };
        tokio::time::timeout(STOP_TIMEOUT, finish(*link))
            .await
            .map_err(late)?
    }

    /// Acknowledges a message that nobody wants, without waiting.
    pub(crate) fn skip(&mut self, ticket: &Ticket) {
        let requests = ticket.requests().into_iter().flatten();
        if let State::Open(link) = &mut self.state
            && ticket.is_of(link.session())
        {
            link.owe(requests);
        }
    }

    /// Hides repeated deliveries of acknowledged changes from now on.
    pub(crate) fn start_dedup(&self) {
        self.plan.shared.start_dedup();
    }

    pub(crate) fn end(&mut self) {
        self.state = State::Done;
        self.plan.shared.closed.store(true, Ordering::Release);
    }

    fn opening(&mut self) -> Opening {
        let endpoint = self
            .endpoints
            .get(self.attempt % self.endpoints.len().max(1))
            .cloned();
        self.attempt = self.attempt.wrapping_add(1);
        let plan = self.plan.clone();
        Box::pin(async move { plan.open(endpoint.ok_or(Error::Closed)?).await })
    }

    pub(crate) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<RawEvent, Error>>> {
        for _ in 0..POLL_BUDGET {
            let step = match &mut self.state {
                State::Done => return Poll::Ready(None),
                State::Disconnected => {
                    self.state = State::Opening(self.opening());
                    continue;
                }
                State::Pausing(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.state = State::Disconnected;
                    continue;
                }
                State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(link) => {
                        self.state = State::Open(Box::new(link));
                        continue;
                    }
                    Err(error) => Err(error),
                },
                State::Open(link) => ready!(link.poll_message(cx)).and_then(|message| {
                    message.ok_or_else(|| tonic::Status::unavailable("the stream ended").into())
                }),
            };
            match step.and_then(|(parsed, ends_batch)| self.accept(parsed, ends_batch)) {
                Ok(Some(event)) => return Poll::Ready(Some(Ok(event))),
                Ok(None) => {}
                Err(error) => {
                    if let Some(error) = self.failed(error) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Plans the next attempt, or gives the error back when there is to be none.
    fn failed(&mut self, error: Error) -> Option<Error> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        let limit = self.plan.client.settings().give_up_after;
        let gives_up = limit.is_some_and(|limit| since.elapsed() >= limit);
        if gives_up || !error.is_retryable() {
            self.end();
            return Some(error);
        }
        let pause = self.backoff.next(rand::random());
        let uri = &self.plan.init.uri;
        tracing::warn!(%uri, error = %error, ?pause, "stream interrupted; reconnecting");
        self.state = State::Pausing(Box::pin(tokio::time::sleep(pause)));
        None
    }

    fn accept(&mut self, parsed: Parsed, ends_batch: bool) -> Result<Option<RawEvent>, Error> {
        self.backoff.reset();
        self.failing_since = None;
        let State::Open(link) = &mut self.state else {
            return Ok(None);
        };
        link.note(&parsed.checkpoint);
        let repeated = self.plan.shared.knows(&parsed.checkpoint);
        let ticket = link.session().ticket(parsed.checkpoint, ends_batch);
        let mut commit_micros = parsed.commit_time;
        let message = match parsed.body {
            Body::Change(change) => Some(RawMessage::Change(change)),
            Body::Begin(bytes) => {
                let begin = proto::Begin::decode(bytes).map_err(|_| UNREADABLE)?;
                self.transaction_micros = begin.commit_time;
                let commit_lsn = Lsn::new(begin.final_lsn);
                Some(RawMessage::Begin {
                    commit_lsn,
                    xid: begin.remote_xid,
                })
            }
            body @ (Body::Commit(_)
            | Body::Truncate(_)
            | Body::Logical(_)
            | Body::Gap(_)
            | Body::Batch(_)
            | Body::Unknown) => rare(body)?,
        };
        if commit_micros == 0 && !ticket.checkpoint().is_dump() {
            commit_micros = self.transaction_micros;
        }
        match message {
            Some(message) if !repeated => Ok(Some(RawEvent {
                message,
                ticket,
                commit_micros,
            })),
            Some(_) | None => {
                link.owe(ticket.requests().into_iter().flatten());
                Ok(None)
            }
        }
    }
}

const UNREADABLE: Error = Error::Protocol("a message does not parse");

/// Reads the kinds that are not worth a fast path; `None` for those of a later version.
fn rare(body: Body) -> Result<Option<RawMessage>, Error> {
    Ok(Some(match body {
        Body::Commit(bytes) => {
            let commit = proto::Commit::decode(bytes).map_err(|_| UNREADABLE)?;
            RawMessage::Commit {
                commit_lsn: Lsn::new(commit.commit_lsn),
                end_lsn: Lsn::new(commit.end_lsn),
            }
        }
        Body::Truncate(bytes) => {
            let truncate = proto::Truncate::decode(bytes).map_err(|_| UNREADABLE)?;
            let pair = |relation: proto::Relation| (relation.schema, relation.table);
            RawMessage::Truncate(truncate.relations.into_iter().map(pair).collect())
        }
        Body::Logical(bytes) => {
            let logical = proto::LogicalMessage::decode(bytes).map_err(|_| UNREADABLE)?;
            RawMessage::Logical {
                prefix: logical.prefix,
                content: logical.content,
            }
        }
        Body::Gap(bytes) => {
            let gap = proto::Gap::decode(bytes).map_err(|_| UNREADABLE)?;
            RawMessage::Gap(Gap {
                from: Lsn::new(gap.from_lsn),
                to: (gap.to_lsn != 0).then(|| Lsn::new(gap.to_lsn)),
                reason: gap.reason,
                detail: gap.detail,
            })
        }
        Body::Change(_) | Body::Begin(_) | Body::Batch(_) | Body::Unknown => return Ok(None),
    }))
}

/// Sends what is owed, half-closes, and reads until the gateway has ended the stream.
async fn finish(mut link: Link) -> Result<(), Error> {
    let session = Arc::clone(link.session());
    for request in link.take_owed().into_iter().chain(session.flush()) {
        session.send(request).await.or_else(ignore_closed)?;
    }
    session.close();
    // Whatever still arrives is delivered again to the next session.
    while let Ok(Some(_)) = std::future::poll_fn(|cx| link.poll_message(cx)).await {}
    Ok(())
}

/// A connection that is gone takes no acknowledgement, which stop accepts.
fn ignore_closed(error: Error) -> Result<(), Error> {
    if matches!(error, Error::Closed) {
        Ok(())
    } else {
        Err(error)
    }
}

impl Stream for RawEvents {
    type Item = Result<RawEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx)
    }
}

impl Drop for RawEvents {
    fn drop(&mut self) {
        self.plan.shared.closed.store(true, Ordering::Release);
    }
}
