//! Where the log of each source is now: here, on the node that runs its agent, or nowhere.
//!
//! Keeps one [`RoutedLog`] a source while somebody reads it, and a task for each that follows the
//! agreed state: it takes this node's log while the agent runs here, and connects to the owner's
//! otherwise, again and again with back-off. Reads nothing of a log itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use pgcapture_actors::{
    log::{
        ChangeLog,
        routed::{Place, RoutedLog, Site},
    },
    supervise::{TaskKind, spawn},
};
use pgcapture_engine::{
    backoff::Backoff,
    checkpoint::Epoch,
    cluster::{Route, State},
};
use pgcapture_proto::peer::v1::LogName;
use tokio::sync::watch;

use crate::{logs::Logs, peer_log::RemoteLog, peers::Peers};

/// Pause after the first connection that failed: an owner that restarts is back within a second.
const CONNECT_FIRST: Duration = Duration::from_millis(10);

/// The longest pause. A new owner ends it at once.
const CONNECT_MAX: Duration = Duration::from_millis(500);

/// The routes of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Routes {
    known: Arc<Known>,
    logs: Arc<Mutex<BTreeMap<String, Weak<RoutedLog>>>>,
}

/// What a route depends on.
#[derive(Debug)]
pub struct Known {
    /// Name of this node.
    pub node: String,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The agreed state.
    pub state: watch::Receiver<Arc<State>>,
    /// This node's logs.
    pub logs: Arc<Logs>,
    /// The way to the others.
    pub peers: Peers,
}

impl Routes {
    /// Makes the routes; follows none before it is asked for.
    #[must_use]
    pub fn new(known: Known) -> Self {
        Self {
            known: Arc::new(known),
            logs: Arc::default(),
        }
    }

    /// Returns the log of a source, wherever it is. The same one while somebody has it.
    #[must_use]
    pub fn log(&self, source: &str) -> Arc<RoutedLog> {
        // A panic under the lock leaves the map as it was: go on.
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = logs.get(source).and_then(Weak::upgrade) {
            return log;
        }
        logs.retain(|_, log| log.strong_count() > 0);
        let reason = "it is being looked for".to_owned();
        let (place, places) = watch::channel(Place::Nowhere { reason });
        let follower = Follower {
            known: Arc::clone(&self.known),
            source: source.to_owned(),
            state: self.known.state.clone(),
            opened: self.known.logs.changes(),
            place,
        };
        let keeper = spawn(TaskKind::LogRoute, source, follower.run());
        let log = RoutedLog::start(source, places, keeper);
        logs.insert(source.to_owned(), Arc::downgrade(&log));
        log
    }
}

/// Follows the log of one source.
struct Follower {
    known: Arc<Known>,
    source: String,
    state: watch::Receiver<Arc<State>>,
    opened: watch::Receiver<u64>,
    place: watch::Sender<Place>,
}

impl Follower {
    /// The body of the task; it ends with the node's state.
    async fn run(mut self) {
        loop {
            let route = self.route();
            let lives = match &route {
                Route::Here { epoch } => self.here(&route, *epoch).await,
                Route::There {
                    node,
                    address,
                    epoch,
                } => self.there(&route, (node, address), *epoch).await,
                Route::Nobody { .. } => {
                    self.nowhere("no node runs the source".to_owned());
                    self.moved(&route).await
                }
                Route::Unknown => {
                    self.place.send_replace(Place::Gone);
                    self.moved(&route).await
                }
            };
            if !lives {
                return;
            }
        }
    }

    fn route(&self) -> Route {
        let state = self.known.state.borrow();
        state.route(&self.source, &self.known.node)
    }

    /// Waits until the route is another one; `false` when the node stops.
    async fn moved(&mut self, route: &Route) -> bool {
        let (source, node) = (&self.source, &self.known.node);
        let is_other = |state: &Arc<State>| state.route(source, node) != *route;
        self.state.wait_for(is_other).await.is_ok()
    }

    fn nowhere(&self, reason: String) {
        self.place.send_replace(Place::Nowhere { reason });
    }

    /// Shows this node's log, whenever it is opened, until the route is another one.
    async fn here(&mut self, route: &Route, epoch: Epoch) -> bool {
        let mut shown: Option<Arc<dyn ChangeLog>> = None;
        let mut opened = self.opened.clone();
        loop {
            opened.borrow_and_update();
            match self.known.logs.get(&self.source) {
                Some(log) if shown.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, &log)) => {}
                Some(log) => {
                    shown = Some(Arc::clone(&log));
                    self.place.send_replace(Place::At(Site {
                        log,
                        epoch,
                        is_here: true,
                    }));
                }
                // Of a log that was closed its readers know.
                None if shown.is_some() => {}
                None => self.nowhere("its log is not open yet".to_owned()),
            }
            tokio::select! {
                lives = self.moved(route) => return lives,
                changed = opened.changed() => if changed.is_err() {
                    return self.moved(route).await;
                },
            }
        }
    }

    /// Shows the log of another node until the route is another one.
    async fn there(&mut self, route: &Route, (node, address): (&str, &str), epoch: Epoch) -> bool {
        let mut backoff = Backoff::new(CONNECT_FIRST, CONNECT_MAX);
        loop {
            let known = Arc::clone(&self.known);
            let name = LogName {
                cluster: known.cluster.clone(),
                source: self.source.clone(),
                epoch: epoch.0,
            };
            let connected = tokio::select! {
                connected = connect(&known.peers, (node, address), name) => connected,
                lives = self.moved(route) => return lives,
            };
            let reason = match connected {
                Ok(log) => {
                    backoff.reset();
                    self.place.send_replace(Place::At(Site {
                        log: Arc::<RemoteLog>::clone(&log),
                        epoch,
                        is_here: false,
                    }));
                    tokio::select! {
                        reason = log.ended() => reason,
                        lives = self.moved(route) => return lives,
                    }
                }
                Err(reason) => reason,
            };
            tracing::debug!(source = self.source, node, reason, "lost the way to a log");
            self.nowhere(reason);
            let pause = backoff.next_delay(rand::random());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                lives = self.moved(route) => return lives,
            }
        }
    }
}

async fn connect(
    peers: &Peers,
    (node, address): (&str, &str),
    name: LogName,
) -> Result<Arc<RemoteLog>, String> {
    let channel = peers.channel(address);
    let channel = channel.map_err(|error| format!("{address} is no address: {error}"))?;
    let connected = RemoteLog::connect(channel, node, name).await;
    connected.map_err(|error| error.to_string())
}
