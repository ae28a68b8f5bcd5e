//! The typed stream: changes of one table as `Event<T>`.
//!
//! Acknowledges by itself what has no typed form: changes of other tables, rows that do not
//! decode (after the callback saw the error), transaction boundaries. Never swallows a gap:
//! without a callback that says to go on, a gap ends the stream with an error.

use std::{
    fmt,
    hash::Hash,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;

use crate::{
    debounce::Debounced,
    decode::DecodeError,
    error::{Error, Gap},
    event::{Answer, Event, Typed, typed},
    raw::RawRow,
    raw_events::RawEvents,
    row::Row,
    session::Ticket,
};

/// What to do about a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGap {
    /// Acknowledge the gap and go on behind it.
    Continue,
    /// End the stream with [`Error::Gap`]; the gap is declared again to the next session.
    Stop,
}

type OnDecodeError = Arc<dyn Fn(&DecodeError) + Send + Sync>;
type GapHook = Arc<dyn Fn(&Gap) -> OnGap + Send + Sync>;

/// The callbacks of a subscription.
#[derive(Clone)]
pub(crate) struct Hooks {
    pub(crate) on_decode_error: OnDecodeError,
    pub(crate) on_gap: GapHook,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            on_decode_error: Arc::new(log_decode_error),
            on_gap: Arc::new(|_| OnGap::Stop),
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

/// Names what did not fit. The cause may quote the value, so it is left out.
fn log_decode_error(error: &DecodeError) {
    tracing::warn!(error = %error, reason = %error.kind(), "change acknowledged undecoded");
}

/// Changes of `T`'s table. A `Stream`; `next` and `try_next` need no trait in scope.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Events<T> {
    raw: RawEvents,
    hooks: Hooks,
    row: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Events<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.raw).finish()
    }
}

impl<T: Row> Events<T> {
    pub(crate) fn new(raw: RawEvents, hooks: Hooks) -> Self {
        Self {
            raw,
            hooks,
            row: PhantomData,
        }
    }

    /// The next change; `None` after the end.
    ///
    /// Cancellation-safe: a future that is dropped, for example by `select!`, takes no change
    /// with it. Waits through reconnects.
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

    /// Ends the stream after the gateway took the acknowledgements that were given. Changes
    /// without an answer are delivered to the next session.
    ///
    /// # Errors
    /// The gateway did not end the stream in time; it may deliver some changes again.
    pub async fn stop(self) -> Result<(), Error> {
        self.raw.stop().await
    }

    /// Delivers only the newest change of a key, `interval` after the first that it replaces.
    ///
    /// `key` names the row, from the new row or, for a delete, from the old one. See
    /// [`Debounced`] for what is kept and acknowledged when.
    pub fn debounce<K, F>(self, interval: Duration, key: F) -> Debounced<T, K>
    where
        K: Clone + Eq + Hash,
        F: Fn(&RawRow) -> Result<K, DecodeError> + Send + Sync + 'static,
    {
        Debounced::new(self.raw, self.hooks, interval, Box::new(key))
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event<T>, Error>>> {
        loop {
            let raw = match ready!(self.raw.poll_event(cx)) {
                Some(Ok(raw)) => raw,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            match typed::<T>(raw, Answer::One) {
                Typed::Event(event) => return Poll::Ready(Some(Ok(event))),
                other @ (Typed::Unwanted(_) | Typed::Bad(..) | Typed::Gap(..)) => {
                    if let Err(error) = self.settle(other) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
    }

    fn settle(&mut self, other: Typed<T>) -> Result<(), Error> {
        match other {
            Typed::Event(_) => Ok(()),
            Typed::Unwanted(ticket) => {
                self.raw.skip(&ticket);
                Ok(())
            }
            Typed::Bad(ticket, error) => {
                (self.hooks.on_decode_error)(&error);
                self.raw.skip(&ticket);
                Ok(())
            }
            Typed::Gap(ticket, gap) => settle_gap(&mut self.raw, &self.hooks, &ticket, gap),
        }
    }
}

pub(crate) fn settle_gap(
    raw: &mut RawEvents,
    hooks: &Hooks,
    ticket: &Ticket,
    gap: Gap,
) -> Result<(), Error> {
    match (hooks.on_gap)(&gap) {
        OnGap::Continue => {
            raw.skip(ticket);
            Ok(())
        }
        OnGap::Stop => {
            raw.end();
            Err(Error::Gap(gap))
        }
    }
}

impl<T: Row> Stream for Events<T> {
    type Item = Result<Event<T>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx)
    }
}
