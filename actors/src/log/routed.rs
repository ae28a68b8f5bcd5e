//! The log of a source wherever its agent runs: here, on another node, or nowhere for a moment.
//!
//! A subscription holds a [`RoutedLog`]; its readers change from place to place underneath and go on
//! after the last entry that they have returned, so that a session notices a pause at most. Owns the
//! task that shows the end and the health of whatever log is read now. Does not decide where that
//! is: whoever makes it tells by [`Place`].
//!
//! # Invariants
//!
//! - The end that is shown never goes back while the source exists. A log that is decoded again ends earlier for a moment; what
//!   was shown is committed, and comes again with the same checkpoints.
//! - An entry comes once, in order, and none is left out; else the reader fails with
//!   [`LogError::Removed`].

mod reader;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    codes::log as codes,
    ledger::before,
    lsn::Lsn,
};
use tokio::sync::watch;

use self::reader::RoutedReader;
use super::{ChangeLog, LogError, LogExtent, LogHealth, LogReader, LogWriter, Start, Tail, ask};
use crate::supervise::{Task, TaskKind, spawn};

/// Where the log of a source can be read.
#[derive(Clone)]
pub enum Place {
    /// Behind this log.
    At(Site),
    /// Nowhere now: no node runs the source, or the one that does cannot be reached.
    Nowhere {
        /// Why, for operators.
        reason: String,
    },
    /// Never again: the source was removed.
    Gone,
}

/// A log that can be read.
#[derive(Clone)]
pub struct Site {
    /// The log; its end is known.
    pub log: Arc<dyn ChangeLog>,
    /// The epoch under which the source was assigned to the node that has it.
    pub epoch: Epoch,
    /// Whether that is this node.
    pub is_here: bool,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(site) if site.is_here => write!(f, "here, epoch {}", site.epoch),
            Self::At(site) => write!(f, "on another node, epoch {}", site.epoch),
            Self::Nowhere { reason } => write!(f, "nowhere: {reason}"),
            Self::Gone => f.write_str("gone"),
        }
    }
}

/// The log of one source, for reading.
#[derive(Debug)]
pub struct RoutedLog {
    place: watch::Receiver<Place>,
    shown: Arc<Shown>,
    /// What keeps `place` up to date, and what shows the end of the log; both end with it.
    _tasks: [Task<()>; 2],
}

/// What is known of the log.
#[derive(Debug, Default)]
struct Shown {
    tail: watch::Sender<Tail>,
    health: watch::Sender<LogHealth>,
    asked: watch::Sender<Lsn>,
    /// While the log is nowhere.
    extent: Mutex<LogExtent>,
    /// A place was found once, so that the end is known.
    is_known: watch::Sender<bool>,
}

impl RoutedLog {
    /// Begins to follow `place`, which `keeper` keeps up to date: it lives as long as the log.
    #[must_use]
    pub fn start(source: &str, place: watch::Receiver<Place>, keeper: Task<()>) -> Arc<Self> {
        let shown = Arc::new(Shown::default());
        let show = show(place.clone(), Arc::clone(&shown));
        let show = spawn(TaskKind::LogRoute, source, show);
        Arc::new(Self {
            place,
            shown,
            _tasks: [keeper, show],
        })
    }

    /// Waits until the end of the log is known, at most so long.
    ///
    /// # Errors
    ///
    /// Why it is not, for operators.
    pub async fn ready(&self, most: Duration) -> Result<(), String> {
        let mut known = self.shown.is_known.subscribe();
        let waited = tokio::time::timeout(most, known.wait_for(|is_known| *is_known));
        if let Ok(Ok(_)) = waited.await {
            return Ok(());
        }
        Err(match &*self.place.borrow() {
            Place::At(_) => "its end is not known yet".to_owned(),
            Place::Nowhere { reason } => reason.clone(),
            Place::Gone => "the source was removed".to_owned(),
        })
    }

    fn site(&self) -> Option<Site> {
        match &*self.place.borrow() {
            Place::At(site) => Some(site.clone()),
            Place::Nowhere { .. } | Place::Gone => None,
        }
    }

    /// Returns the entry after which a reader of `start` begins, where that is known.
    fn position(&self, start: Start) -> Option<Checkpoint> {
        match start {
            // What was shown as the end must come at any place.
            Start::Latest => Some(self.shown.tail.borrow().last.unwrap_or_default()),
            Start::After(checkpoint) => Some(checkpoint),
            Start::AtLsn(lsn) => Some(before(Checkpoint::new(lsn, 0))),
            Start::Earliest | Start::AtTime(_) => None,
        }
    }
}

#[async_trait]
impl ChangeLog for RoutedLog {
    /// Refused: a log is written where it lies.
    async fn open_writer(&self, _: Epoch) -> Result<Box<dyn LogWriter>, LogError> {
        Err(LogError::Closed {
            reason: "a log is written on the node that has it".to_owned(),
        })
    }

    async fn open_reader(&self, start: Start) -> Result<Box<dyn LogReader>, LogError> {
        if start == Start::Latest {
            // The end is where a reader begins, so it must be known.
            let mut known = self.shown.is_known.subscribe();
            let waited = known.wait_for(|is_known| *is_known).await;
            waited.map_err(|_| reader::dropped())?;
        }
        let places = (self.place.clone(), self.shown.tail.subscribe());
        let mut reader = RoutedReader::new(places, start, self.position(start));
        reader.open().await?;
        Ok(Box::new(reader))
    }

    fn tail(&self) -> watch::Receiver<Tail> {
        self.shown.tail.subscribe()
    }

    fn health(&self) -> watch::Receiver<LogHealth> {
        self.shown.health.subscribe()
    }

    fn extent(&self) -> LogExtent {
        match self.site() {
            Some(site) => self.shown.extent(&site),
            None => *self.shown.remembered(),
        }
    }

    fn ask_progress(&self, at: Lsn) {
        ask(&self.shown.asked, at);
        if let Some(site) = self.site() {
            site.log.ask_progress(at);
        }
    }
}

impl Shown {
    fn show(&self, site: &Site, tail: Tail, health: &LogHealth) {
        self.tail.send_if_modified(|shown| {
            let is_later = *shown != tail && is_at_least(&tail, shown);
            if is_later {
                *shown = tail;
            }
            is_later
        });
        let health = match health {
            // The node that has it opens it anew; sessions elsewhere wait for that.
            LogHealth::Failed { reason } if !site.is_here => LogHealth::Blocked {
                reason: reason.clone(),
            },
            LogHealth::Writable | LogHealth::Blocked { .. } | LogHealth::Failed { .. } => {
                health.clone()
            }
        };
        self.show_health(health);
        self.is_known
            .send_if_modified(|known| !std::mem::replace(known, true));
    }

    fn show_health(&self, health: LogHealth) {
        self.health.send_if_modified(|shown| {
            let is_new = *shown != health;
            if is_new {
                *shown = health;
            }
            is_new
        });
    }

    /// Nothing of it will be seen again: a source of that name is another one.
    fn forget(&self) {
        self.is_known.send_replace(false);
        self.tail.send_replace(Tail::default());
        *self.remembered() = LogExtent::default();
        self.show_health(LogHealth::Failed {
            reason: "the source was removed".to_owned(),
        });
    }

    fn extent(&self, site: &Site) -> LogExtent {
        let extent = site.log.extent();
        *self.remembered() = extent;
        extent
    }

    /// A panic under the lock leaves an older value: go on.
    fn remembered(&self) -> std::sync::MutexGuard<'_, LogExtent> {
        self.extent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells whether a log that ends at `tail` has everything that one that ends at `shown` has.
fn is_at_least(tail: &Tail, shown: &Tail) -> bool {
    tail.last >= shown.last && tail.resume_lsn >= shown.resume_lsn
}

/// Shows the end and the health of the log at its place: the body of a task.
async fn show(mut place: watch::Receiver<Place>, shown: Arc<Shown>) {
    loop {
        let now = place.borrow_and_update().clone();
        match now {
            Place::At(site) => show_site(&site, &mut place, &shown).await,
            Place::Nowhere { reason } => {
                let reason = format!("{}: {reason}", codes::OWNER_AWAY.code);
                shown.show_health(LogHealth::Blocked { reason });
            }
            Place::Gone => shown.forget(),
        }
        if place.changed().await.is_err() {
            return;
        }
    }
}

/// Returns when the place has changed, or the log there ended.
async fn show_site(site: &Site, place: &mut watch::Receiver<Place>, shown: &Shown) {
    let (mut tail, mut health) = (site.log.tail(), site.log.health());
    let asked = *shown.asked.borrow();
    if asked > Lsn::ZERO {
        site.log.ask_progress(asked);
    }
    loop {
        let (now, well) = (
            *tail.borrow_and_update(),
            health.borrow_and_update().clone(),
        );
        shown.show(site, now, &well);
        let lives = tokio::select! {
            biased;
            moved = place.changed() => {
                if moved.is_ok() {
                    place.mark_changed();
                }
                shown.extent(site);
                return;
            }
            changed = tail.changed() => changed.is_ok(),
            changed = health.changed() => changed.is_ok(),
        };
        if !lives {
            return;
        }
    }
}
