//! How far a dump is, once and as a stream.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use pgcapture_proto::admin::v1::{Dump, WatchDumpRequest};
use tokio::time::Instant;
use tonic::Streaming;

use super::{authorized, dumps};
use crate::{backoff::Backoff, client::Client, error::Error};

/// Where a dump stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DumpState {
    /// Ranges are read and delivered, or wait for something.
    Active,
    /// No range is begun.
    Paused,
    /// Every row was acknowledged.
    Finished,
    /// Something cannot be read; see [`DumpProgress::trouble`].
    Failed,
    /// It was ended before its end.
    Cancelled,
    /// A state that this version does not know.
    Unknown,
}

impl DumpState {
    fn read(text: &str) -> Self {
        match text {
            "active" | "planning" | "running" => Self::Active,
            "paused" => Self::Paused,
            "finished" => Self::Finished,
            "failed" => Self::Failed,
            "cancelled" => Self::Cancelled,
            _ => Self::Unknown,
        }
    }

    /// Whether nothing more happens by itself.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

/// Why a dump does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DumpTrouble {
    /// A stable code; `pgcapture explain` says more.
    pub code: String,
    /// What happened.
    pub text: String,
    /// What to do.
    pub next: String,
}

/// How far a dump is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DumpProgress {
    /// Where it stands.
    pub state: DumpState,
    /// Rows of finished ranges: all of them were acknowledged.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many rows there may be in all.
    pub row_estimate: Option<u64>,
    /// How much is done, from 0 to 1.
    pub ratio: f64,
    /// Rows a second, lately.
    pub rows_per_second: u64,
    /// Bytes a second, lately.
    pub bytes_per_second: u64,
    /// How long it may still take.
    pub eta: Option<Duration>,
    /// How often a range was given back and comes again.
    pub retries: u64,
    /// What is missing for it to go on, such as a consumer.
    pub waiting_for: Option<String>,
    /// What has failed.
    pub trouble: Option<DumpTrouble>,
}

impl From<Dump> for DumpProgress {
    fn from(dump: Dump) -> Self {
        let progress = dump.progress.unwrap_or_default();
        let eta = u64::try_from(progress.eta_micros).unwrap_or(0);
        let trouble = dump.trouble.map(|trouble| DumpTrouble {
            code: trouble.code,
            text: trouble.text,
            next: trouble.next,
        });
        Self {
            state: DumpState::read(&dump.state),
            rows: progress.row_count,
            bytes: progress.bytes,
            row_estimate: (progress.row_estimate > 0).then_some(progress.row_estimate),
            ratio: progress.ratio,
            rows_per_second: progress.rows_per_second,
            bytes_per_second: progress.bytes_per_second,
            eta: (eta > 0).then(|| Duration::from_micros(eta)),
            retries: progress.retry_count,
            waiting_for: Some(progress.waiting_for).filter(|text| !text.is_empty()),
            trouble,
        }
    }
}

type Inner = Pin<Box<dyn Stream<Item = Result<DumpProgress, Error>> + Send>>;

/// How far a dump is, again and again. `next` and `try_next` need no trait in scope.
#[must_use = "a stream does nothing unless it is polled"]
pub struct DumpEvents {
    inner: Inner,
}

impl fmt::Debug for DumpEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DumpEvents").finish_non_exhaustive()
    }
}

impl DumpEvents {
    pub(super) fn new(client: Client, id: String) -> Self {
        let watch = Watch {
            client,
            id,
            open: None,
            backoff: Backoff::default(),
            failing_since: None,
            is_over: false,
        };
        let next = |mut watch: Watch| async { watch.next().await.map(|item| (item, watch)) };
        Self {
            inner: Box::pin(stream::unfold(watch, next).fuse()),
        }
    }

    /// The next state; `None` after the final one. Cancellation-safe.
    pub async fn next(&mut self) -> Option<Result<DumpProgress, Error>> {
        std::future::poll_fn(|cx| self.inner.as_mut().poll_next(cx)).await
    }

    /// The next state, errors first. Cancellation-safe.
    ///
    /// # Errors
    /// The node refused for good; the stream has ended.
    pub async fn try_next(&mut self) -> Result<Option<DumpProgress>, Error> {
        self.next().await.transpose()
    }
}

impl Stream for DumpEvents {
    type Item = Result<DumpProgress, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx)
    }
}

/// Watches over as many connections as it takes.
struct Watch {
    client: Client,
    id: String,
    open: Option<Streaming<Dump>>,
    backoff: Backoff,
    failing_since: Option<Instant>,
    is_over: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<DumpProgress, Error>> {
        if self.is_over {
            return None;
        }
        loop {
            match self.step().await {
                Ok(progress) => {
                    self.backoff.reset();
                    self.failing_since = None;
                    self.is_over = progress.state.has_ended();
                    return Some(Ok(progress));
                }
                Err(error) => {
                    self.open = None;
                    let since = *self.failing_since.get_or_insert_with(Instant::now);
                    let limit = self.client.settings().give_up_after;
                    let gives_up = limit.is_some_and(|limit| since.elapsed() >= limit);
                    if gives_up || !error.is_retryable() {
                        self.is_over = true;
                        return Some(Err(error));
                    }
                    tokio::time::sleep(self.backoff.next(rand::random())).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<DumpProgress, Error> {
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let mut dumps = dumps(&self.client).await?;
                let id = self.id.clone();
                let request = authorized(&self.client, WatchDumpRequest { id })?;
                let opened = dumps.watch_dump(request).await?.into_inner();
                self.open.insert(opened)
            }
        };
        let dump = open.message().await?;
        let early = || tonic::Status::unavailable("the node ended the stream before the dump did");
        Ok(dump.ok_or_else(early)?.into())
    }
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::admin::v1::DumpProgress as Told;

    use super::*;

    #[test]
    fn zeros_and_empty_texts_are_nothing() {
        let progress = DumpProgress::from(Dump {
            state: "active".to_owned(),
            progress: Some(Told::default()),
            ..Dump::default()
        });
        assert_eq!(progress.state, DumpState::Active);
        assert_eq!((progress.row_estimate, progress.eta), (None, None));
        assert_eq!((progress.waiting_for, progress.trouble), (None, None));
    }

    #[test]
    fn a_state_of_a_later_version_is_not_taken_for_an_end() {
        let state = DumpState::read("hibernating");
        assert_eq!(state, DumpState::Unknown);
        assert!(!state.has_ended());
        assert!(DumpState::read("cancelled").has_ended());
    }
}
