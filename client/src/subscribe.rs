//! The options of a subscription, and its three forms: typed, raw, handlers.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    client::Client,
    decode::DecodeError,
    error::{Error, Gap},
    event::Event,
    events::{Events, Hooks, OnGap},
    handlers::{Handlers, IntoAnswer},
    link::Plan,
    options::{Options, Start},
    raw::Operation,
    raw_events::RawEvents,
    row::Row,
    session::Shared,
};

/// A subscription that is being described. Nothing is sent before `subscribe` or `run_until`.
#[derive(Clone, Debug)]
#[must_use = "call subscribe, subscribe_raw or on"]
pub struct Subscribe {
    client: Client,
    options: Options,
    hooks: Hooks,
}

impl Subscribe {
    pub(crate) fn new(client: Client, options: Options) -> Self {
        Self {
            client,
            options,
            hooks: Hooks::default(),
        }
    }

    /// Wants `T`'s table; may be called for several. `subscribe` and `on` add theirs.
    pub fn table<T: Row>(mut self) -> Self {
        self.want(T::SCHEMA, T::TABLE);
        self
    }

    /// Wants these tables, each as `schema.table`.
    pub fn tables<S: Into<String>>(mut self, tables: impl IntoIterator<Item = S>) -> Self {
        self.options
            .tables
            .extend(tables.into_iter().map(Into::into));
        self
    }

    /// Wants the tables whose name matches, anywhere in the name.
    pub fn table_regex(mut self, regex: impl Into<String>) -> Self {
        self.options.table_regex = Some(regex.into());
        self
    }

    /// Wants these operations only.
    pub fn operations(mut self, operations: impl IntoIterator<Item = Operation>) -> Self {
        self.options.operations = operations.into_iter().collect();
        self
    }

    /// Where a consumer that the stream does not know yet begins.
    pub fn start(mut self, start: Start) -> Self {
        self.options.start = Some(start);
        self
    }

    /// One active session gets all changes in order; others of the same name stand by.
    pub fn ordered(mut self) -> Self {
        self.options.ordered = true;
        self
    }

    /// How many changes may be delivered and not yet acknowledged.
    pub fn max_in_flight(mut self, changes: u32) -> Self {
        self.options.max_in_flight = Some(changes);
        self
    }

    /// After how long without an answer a change is delivered again.
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.options.ack_timeout = Some(timeout);
        self
    }

    /// Lets the gateway put up to so many changes into one message, for speed. Each is still
    /// an event of its own; with `ordered` their acknowledgements travel together too.
    pub fn batch(mut self, changes: u32) -> Self {
        self.options.batch_size = Some(changes);
        self
    }

    /// Lets the gateway send only so many messages ahead of what was taken from the stream.
    pub fn credits(mut self, messages: u32) -> Self {
        self.options.credits = Some(messages);
        self
    }

    /// Does not show again what was acknowledged, when the gateway had not stored that yet:
    /// the last 65,536 acknowledged changes are remembered. Existing rows are not,
    /// and changes that a later connection brings behind one are shown again.
    pub fn dedup(mut self, on: bool) -> Self {
        self.options.dedup = on;
        self
    }

    /// Wants begin and commit of transactions; raw streams show them.
    pub fn boundaries(mut self) -> Self {
        self.options.boundaries = true;
        self
    }

    /// Wants TRUNCATE.
    pub fn truncates(mut self) -> Self {
        self.options.truncates = true;
        self
    }

    /// Wants what `pg_logical_emit_message` wrote; raw streams show it.
    pub fn logical_messages(mut self) -> Self {
        self.options.logical_messages = true;
        self
    }

    /// Wants gaps declared. Without [`on_gap`](Self::on_gap) one ends a typed stream.
    pub fn gaps(mut self) -> Self {
        self.options.gaps = true;
        self
    }

    /// Wants the commit time with every change.
    pub fn commit_time(mut self) -> Self {
        self.options.commit_time = true;
        self
    }

    /// Wants gaps declared to this callback, which decides whether to go on.
    pub fn on_gap(mut self, hook: impl Fn(&Gap) -> OnGap + Send + Sync + 'static) -> Self {
        self.options.gaps = true;
        self.hooks.on_gap = Arc::new(hook);
        self
    }

    /// Sees rows that do not fit their type; they are acknowledged afterwards. Without it they
    /// are logged, without values.
    pub fn on_decode_error(mut self, hook: impl Fn(&DecodeError) + Send + Sync + 'static) -> Self {
        self.hooks.on_decode_error = Arc::new(hook);
        self
    }

    /// Opens the stream of `T`'s changes. Without chosen tables only `T`'s is asked for.
    ///
    /// # Errors
    /// An option is bad, no node could be reached, or the gateway refuses for good.
    pub async fn subscribe<T: Row>(mut self) -> Result<Events<T>, Error> {
        if self.options.tables.is_empty() && self.options.table_regex.is_none() {
            self.want(T::SCHEMA, T::TABLE);
        }
        let hooks = self.hooks.clone();
        Ok(Events::new(self.subscribe_raw().await?, hooks))
    }

    /// Opens the stream of all wanted messages, undecoded.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub async fn subscribe_raw(self) -> Result<RawEvents, Error> {
        let init = self.options.init()?;
        let shared = Arc::new(Shared::default());
        if self.options.dedup {
            shared.start_dedup();
        }
        RawEvents::open(Plan {
            client: self.client,
            init,
            shared,
            joins_acks: self.options.ordered && self.options.batch_size.is_some(),
            credits: self.options.credits,
        })
        .await
    }

    /// Begins a set of handlers with this one for `T`'s table.
    pub fn on<T, F, R>(self, handler: F) -> Handlers
    where
        T: Row + Send + 'static,
        F: Fn(Event<T>) -> R + Send + Sync + 'static,
        R: Future + Send + 'static,
        R::Output: IntoAnswer,
    {
        Handlers::new(self).on(handler)
    }

    pub(crate) fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    pub(crate) fn is_open_to_all(&self) -> bool {
        self.options.tables.is_empty() && self.options.table_regex.is_none()
    }

    pub(crate) fn want(&mut self, schema: &str, table: &str) {
        let name = format!("{schema}.{table}");
        if !self.options.tables.contains(&name) {
            self.options.tables.push(name);
        }
    }
}

impl fmt::Display for Subscribe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.options.uri())
    }
}
