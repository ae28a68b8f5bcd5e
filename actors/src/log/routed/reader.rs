//! A reader that changes from place to place and goes on where it was.
//!
//! While the log stays where it is every call is the inner reader's. What to do when that breaks off is
//! decided by [`Follow`]; nothing here moves but by it.
//!
//! # Invariants
//!
//! - A dropped call loses nothing: what is being opened stays in the reader.

use std::{pin::Pin, sync::Arc};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use pgcapture_engine::{
    batch::Batch,
    checkpoint::Checkpoint,
    follow::{Admission, Follow, Standing, Step, Trouble},
};
use tokio::{sync::watch, time::Sleep};

use super::{LogError, LogReader, Place, Site, Start, Tail};

type Opening = BoxFuture<'static, Result<Box<dyn LogReader>, LogError>>;

/// See the module.
pub(super) struct RoutedReader {
    place: watch::Receiver<Place>,
    /// What was shown as the end of the log.
    shown: watch::Receiver<Tail>,
    /// What was asked for; counts until the position is known.
    start: Start,
    follow: Follow,
    /// The next opening begins at the earliest entry.
    from_earliest: bool,
    site: Option<Site>,
    inner: Inner,
}

enum Inner {
    /// Nothing is open.
    Closed,
    Pausing(Pin<Box<Sleep>>),
    Opening(Opening),
    Open(Box<dyn LogReader>),
}

impl RoutedReader {
    pub(super) fn new(
        (place, shown): (watch::Receiver<Place>, watch::Receiver<Tail>),
        start: Start,
        position: Option<Checkpoint>,
    ) -> Self {
        Self {
            place,
            shown,
            start,
            follow: Follow::new(position),
            from_earliest: false,
            site: None,
            inner: Inner::Closed,
        }
    }

    /// Opens the log where it is now; waits while it is nowhere.
    pub(super) async fn open(&mut self) -> Result<(), LogError> {
        loop {
            let opened = match &mut self.inner {
                Inner::Open(_) => return Ok(()),
                Inner::Closed => {
                    self.begin().await?;
                    continue;
                }
                Inner::Pausing(pause) => tokio::select! {
                    biased;
                    moved = self.place.changed() => Some(moved.is_ok()),
                    () = pause => None,
                }
                .map_or(Change::Again, Change::Moved),
                Inner::Opening(opening) => tokio::select! {
                    biased;
                    opened = opening => Change::Opened(opened),
                    moved = self.place.changed() => Change::Moved(moved.is_ok()),
                },
            };
            match opened {
                Change::Opened(Ok(reader)) => self.inner = Inner::Open(reader),
                Change::Opened(Err(error)) => self.on_error(error)?,
                Change::Again => self.inner = Inner::Closed,
                Change::Moved(true) => self.move_on(),
                Change::Moved(false) => return Err(dropped()),
            }
        }
    }

    /// Begins to open the log at its place.
    async fn begin(&mut self) -> Result<(), LogError> {
        let place = self.place.borrow_and_update().clone();
        let site = match place {
            Place::At(site) => site,
            Place::Gone => {
                return Err(LogError::Closed {
                    reason: "the source was removed".to_owned(),
                });
            }
            Place::Nowhere { .. } => {
                self.place.changed().await.map_err(|_| dropped())?;
                self.follow.moved();
                return Ok(());
            }
        };
        let start = match self.follow.position() {
            _ if std::mem::take(&mut self.from_earliest) => Start::Earliest,
            Some(position) => Start::After(position),
            None => self.start,
        };
        let log = Arc::clone(&site.log);
        self.inner = Inner::Opening(Box::pin(async move { log.open_reader(start).await }));
        self.site = Some(site);
        Ok(())
    }

    fn move_on(&mut self) {
        self.follow.moved();
        self.from_earliest = false;
        self.inner = Inner::Closed;
    }

    /// Does what a failure asks for; returns the error when it is the reader's.
    fn on_error(&mut self, error: LogError) -> Result<(), LogError> {
        self.inner = Inner::Closed;
        let Some(site) = &self.site else {
            return Err(error);
        };
        let standing = Standing {
            is_here: site.is_here,
            assigned: site.epoch,
            written: site.log.tail().borrow().epoch,
        };
        match self
            .follow
            .on_trouble(trouble(&error), standing, rand::random())
        {
            Step::Pause(pause) => {
                tracing::debug!(%error, ?pause, "a reader of a log tries again");
                self.inner = Inner::Pausing(Box::pin(tokio::time::sleep(pause)));
            }
            Step::FromEarliest => self.from_earliest = true,
            Step::Fail => return Err(error),
        }
        Ok(())
    }

    /// Goes on after a read; `None` when it brought nothing new.
    fn take(&mut self, read: Read) -> Result<Option<Batch>, LogError> {
        match read {
            Read::Batch(Ok(batch)) => return self.accept(batch),
            Read::Batch(Err(error)) => self.on_error(error)?,
            Read::Moved(true) => self.move_on(),
            Read::Moved(false) => return Err(dropped()),
            Read::Nothing => {}
        }
        Ok(None)
    }

    /// Takes what the inner reader returned; `None` when nothing of it is new.
    fn accept(&mut self, batch: Batch) -> Result<Option<Batch>, LogError> {
        let Some((first, last)) = batch.span else {
            return Ok(None);
        };
        match self.follow.admit(first, last) {
            Admission::Whole => Ok(Some(batch)),
            Admission::Nothing => Ok(None),
            Admission::After(position) => {
                let rest = batch.after(position);
                Ok(Some(rest.map_err(|error| LogError::Closed {
                    reason: error.to_string(),
                })?))
            }
            Admission::Removed(earliest) => {
                let asked = self.follow.position().unwrap_or_default().to_string();
                Err(LogError::Removed { asked, earliest })
            }
        }
    }
}

/// What ended a wait.
enum Change {
    Opened(Result<Box<dyn LogReader>, LogError>),
    /// The pause is over.
    Again,
    /// The log has another place; `false` when nobody tells its place any more.
    Moved(bool),
}

/// What ended a read.
enum Read {
    Batch(Result<Batch, LogError>),
    /// The end of the log moved, and nothing came.
    Nothing,
    Moved(bool),
}

#[async_trait]
impl LogReader for RoutedReader {
    async fn next(&mut self) -> Result<Batch, LogError> {
        loop {
            let Inner::Open(reader) = &mut self.inner else {
                self.open().await?;
                continue;
            };
            // First the reader: what it has is right, though its node runs the source no more.
            let read = tokio::select! {
                biased;
                batch = reader.next() => Read::Batch(batch),
                moved = self.place.changed() => Read::Moved(moved.is_ok()),
            };
            if let Some(batch) = self.take(read)? {
                return Ok(batch);
            }
        }
    }

    /// Everything that was shown as durable comes before `None`, though it may have to be decoded again.
    async fn try_next(&mut self) -> Result<Option<Batch>, LogError> {
        let wanted = self.shown.borrow().last;
        loop {
            self.open().await?;
            let (Inner::Open(reader), Some(site)) = (&mut self.inner, &self.site) else {
                continue;
            };
            let mut tail = site.log.tail();
            // First the end, then the look.
            let has_all = tail.borrow_and_update().last >= wanted;
            let read = match reader.try_next().await {
                Ok(None) if has_all || self.follow.position() >= wanted => return Ok(None),
                Ok(None) => tokio::select! {
                    biased;
                    batch = reader.next() => Read::Batch(batch),
                    moved = self.place.changed() => Read::Moved(moved.is_ok()),
                    changed = tail.changed() => match changed {
                        Ok(()) => Read::Nothing,
                        Err(_) => Read::Batch(Err(dropped())),
                    },
                },
                Ok(Some(batch)) => Read::Batch(Ok(batch)),
                Err(error) => Read::Batch(Err(error)),
            };
            if let Some(batch) = self.take(read)? {
                return Ok(Some(batch));
            }
        }
    }
}

fn trouble(error: &LogError) -> Trouble {
    match error {
        LogError::Away { .. } => Trouble::Away,
        LogError::Closed { .. } => Trouble::Closed,
        LogError::Removed { earliest, .. } => Trouble::Removed {
            earliest: *earliest,
        },
        LogError::Fenced { .. }
        | LogError::OutOfOrder { .. }
        | LogError::Corrupt { .. }
        | LogError::NewerVersion { .. }
        | LogError::InUse { .. }
        | LogError::Io { .. } => Trouble::Definite,
    }
}

pub(super) fn dropped() -> LogError {
    LogError::Closed {
        reason: "the node stops".to_owned(),
    }
}
