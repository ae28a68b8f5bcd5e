//! Handlers for several tables, run with order kept per key.
//!
//! The runner reads the stream, gives each change to the lane of its key, and answers by what
//! the handler returns. Lanes are owned tasks with bounded queues; a full lane holds the stream
//! back. A change whose keys are in two lanes (a moved key, TRUNCATE, a change without its key)
//! runs alone, after everything before it and before everything after it.

mod lanes;

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    error::Error,
    event::{Answer, Event, Typed, typed},
    events::{Hooks, settle_gap},
    raw::{Operation, RawChange, RawRow, Value},
    raw_events::{RawEvent, RawEvents, RawMessage},
    row::Row,
    session::Ticket,
    subscribe::Subscribe,
};

use lanes::Lanes;

/// What a handler returns when the change is dealt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack;

/// What may end a handler: `Ack`, `()`, or a `Result`, whose error asks for the change again
/// and is told to the gateway.
pub trait IntoAnswer {
    /// The reason to deliver again, or `None` to acknowledge.
    fn requeue_reason(self) -> Option<String>;
}

impl IntoAnswer for Ack {
    fn requeue_reason(self) -> Option<String> {
        None
    }
}

impl IntoAnswer for () {
    fn requeue_reason(self) -> Option<String> {
        None
    }
}

impl<A: IntoAnswer, E: fmt::Display> IntoAnswer for Result<A, E> {
    fn requeue_reason(self) -> Option<String> {
        match self {
            Ok(answer) => answer.requeue_reason(),
            Err(error) => Some(error.to_string()),
        }
    }
}

type Running = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;
type Call = Arc<dyn Fn(RawEvent, Hooks) -> Running + Send + Sync>;

#[derive(Clone)]
struct Handler {
    call: Call,
    key: &'static [&'static str],
}

/// Handlers by table. Changes of tables without one are acknowledged.
#[must_use = "call run_until"]
pub struct Handlers {
    subscribe: Subscribe,
    asks_for_tables: bool,
    handlers: HashMap<(&'static str, &'static str), Handler>,
    lanes: usize,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers")
            .field("tables", &self.handlers.keys().collect::<Vec<_>>())
            .field("lanes", &self.lanes)
            .finish_non_exhaustive()
    }
}

impl Handlers {
    pub(crate) fn new(subscribe: Subscribe) -> Self {
        let asks_for_tables = subscribe.is_open_to_all();
        Self {
            subscribe,
            asks_for_tables,
            handlers: HashMap::new(),
            lanes: 1,
        }
    }

    /// Adds a handler for `T`'s table; a second one for the same table replaces the first.
    ///
    /// What it returns is the answer. It may also answer by the event's own `ack` or `nack`;
    /// then what it returns does not count.
    pub fn on<T, F, R>(mut self, handler: F) -> Self
    where
        T: Row + Send + 'static,
        F: Fn(Event<T>) -> R + Send + Sync + 'static,
        R: Future + Send + 'static,
        R::Output: IntoAnswer,
    {
        if self.asks_for_tables {
            self.subscribe.want(T::SCHEMA, T::TABLE);
        }
        let handler = Arc::new(handler);
        let call: Call = Arc::new(move |raw, hooks| {
            let handler = Arc::clone(&handler);
            Box::pin(async move { handle::<T, _, _>(raw, hooks, &*handler).await })
        });
        self.handlers
            .insert((T::SCHEMA, T::TABLE), Handler { call, key: T::KEY });
        self
    }

    /// Runs up to so many handlers at once; changes of one key stay in order.
    ///
    /// The key is what `#[pgcapture(key)]` marks; changes of a table without it run one after
    /// the other. A change that is asked for again comes behind newer ones of its key.
    pub fn parallel_by_key(mut self, lanes: usize) -> Self {
        self.lanes = lanes.max(1);
        self
    }

    /// Opens the stream and runs the handlers until `shutdown` is ready. Then the changes that
    /// were handed out are finished and their answers sent.
    ///
    /// # Errors
    /// The stream could not be opened or ended, a gap was declared and not accepted, or a
    /// handler panicked. Changes without an answer are delivered to the next session.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let hooks = self.subscribe.hooks().clone();
        let mut raw = self.subscribe.clone().subscribe_raw().await?;
        let mut lanes = Lanes::start(self.lanes, &hooks);
        let mut shutdown = std::pin::pin!(shutdown);
        let ended = loop {
            let event = tokio::select! {
                biased;
                () = &mut shutdown => break Ok(()),
                error = lanes.failed() => break Err(error),
                event = raw.next() => event,
            };
            let step = match event {
                Some(Ok(event)) => self.dispatch(event, &mut raw, &mut lanes, &hooks).await,
                Some(Err(error)) => Err(error),
                None => break Ok(()),
            };
            if let Err(error) = step {
                break Err(error);
            }
        };
        let finished = lanes.finish().await;
        let stopped = raw.stop().await;
        ended.and(finished).and(stopped)
    }

    async fn dispatch(
        &self,
        event: RawEvent,
        raw: &mut RawEvents,
        lanes: &mut Lanes,
        hooks: &Hooks,
    ) -> Result<(), Error> {
        let change = match event.message() {
            RawMessage::Change(change) => change,
            RawMessage::Truncate(tables) => {
                let wanted = tables
                    .iter()
                    .filter_map(|(s, t)| self.handlers.get(&(&**s, &**t)));
                let calls: Vec<_> = wanted.map(|handler| Arc::clone(&handler.call)).collect();
                return truncate(event, &calls, raw, lanes).await;
            }
            RawMessage::Gap(gap) => {
                let gap = gap.clone();
                lanes.barrier().await?;
                return settle_gap(raw, hooks, &event.ticket, gap);
            }
            RawMessage::Begin { .. } | RawMessage::Commit { .. } | RawMessage::Logical { .. } => {
                raw.skip(&event.ticket);
                return Ok(());
            }
        };
        let Some(handler) = self.handlers.get(&(change.schema(), change.table())) else {
            raw.skip(&event.ticket);
            return Ok(());
        };
        let call = Arc::clone(&handler.call);
        match lane_of(change, handler.key) {
            Some(hash) => lanes.send(hash, call, event).await,
            None => {
                lanes.barrier().await?;
                lanes.send(0, call, event).await?;
                lanes.barrier().await
            }
        }
    }
}

/// The hash of the change's key; `None` when it has to run alone.
fn lane_of(change: &RawChange, key: &[&str]) -> Option<u64> {
    let hash = |row: &RawRow| {
        let mut hasher = DefaultHasher::new();
        (row.schema(), row.table()).hash(&mut hasher);
        for column in key {
            match row.value(column)? {
                Value::Null => 0u8.hash(&mut hasher),
                Value::Binary { bytes, .. } => bytes.hash(&mut hasher),
                Value::Text { text, .. } => text.hash(&mut hasher),
            }
        }
        Some(hasher.finish())
    };
    let now = hash(change.identity())?;
    let may_move = change.operation() == Operation::Update && !change.old_row().is_empty();
    // Under a replica identity that lacks the key nobody can tell where the row was.
    if may_move && hash(change.old_row())? != now {
        None
    } else {
        Some(now)
    }
}

/// Runs every handler of the truncated tables alone, then answers once.
async fn truncate(
    event: RawEvent,
    calls: &[Call],
    raw: &mut RawEvents,
    lanes: &mut Lanes,
) -> Result<(), Error> {
    let [first @ .., last] = calls else {
        raw.skip(&event.ticket);
        return Ok(());
    };
    lanes.barrier().await?;
    for call in first {
        // Only the last handler's answer is sent: a cut between them repeats them all.
        let copy = RawEvent {
            message: event.message.clone(),
            ticket: event.ticket.silent(),
            commit_micros: event.commit_micros,
        };
        lanes.send(0, Arc::clone(call), copy).await?;
    }
    lanes.send(0, Arc::clone(last), event).await?;
    lanes.barrier().await
}

async fn handle<T, F, R>(raw: RawEvent, hooks: Hooks, handler: &F) -> Result<(), Error>
where
    T: Row,
    F: Fn(Event<T>) -> R,
    R: Future,
    R::Output: IntoAnswer,
{
    let answered = Arc::new(AtomicBool::new(false));
    let keep = |ticket| Answer::Handler(ticket, Arc::clone(&answered));
    let ticket: Ticket = raw.ticket.clone();
    match typed::<T>(raw, keep) {
        Typed::Event(event) => {
            let reason = handler(event).await.requeue_reason();
            match reason {
                _ if answered.load(Ordering::Acquire) => Ok(()),
                None => ticket.ack().await,
                Some(reason) => ticket.nack(&reason).await,
            }
        }
        Typed::Bad(ticket, error) => {
            (hooks.on_decode_error)(&error);
            ticket.ack().await
        }
        Typed::Unwanted(ticket) | Typed::Gap(ticket, _) => ticket.ack().await,
    }
}
