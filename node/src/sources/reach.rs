//! Which sources this node can reach: whether anybody listens where their PostgreSQL is.
//!
//! Looks at every source, its own or not, so that the leader knows where one could go before it must.
//! A connection that is taken is enough: whether the login works is the agent's business, and the
//! same on every node.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use pgcapture_actors::postgres::{Config, Host};
use pgcapture_engine::{
    cluster::{Source, State, liveness::NodeReport},
    dump::schedule::NodeReach,
};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Sources;
use crate::liveness::Reachable;

/// Every source is looked at this often; an agent that cannot connect tells of it earlier by itself.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A server that does not take a connection within this time cannot be reached.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Other nodes take the sources of one that stops within this time, or they stop as well.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);

/// Sources looked at side by side.
const LOOKS_MAX: usize = 32;

impl Reachable for Sources {
    fn report(&self) -> watch::Receiver<NodeReport> {
        self.report.subscribe()
    }
}

impl Sources {
    /// Tells the leader that this node wants to stop, and waits until its sources are elsewhere; not
    /// for long, since others may stop as well, and not at all when there are no others.
    pub async fn hand_over(&self) {
        if self.consensus.state().borrow().nodes.len() <= 1 {
            return;
        }
        self.report
            .send_if_modified(|report| !std::mem::replace(&mut report.is_draining, true));
        let mut state = self.consensus.state();
        let is_empty = |state: &Arc<State>| !state.owners.values().any(|it| *it == self.node);
        let handed_over = timeout(HAND_OVER_MAX, state.wait_for(is_empty)).await;
        if handed_over.is_err() {
            tracing::warn!(
                "no other node takes the sources of this one; they follow when it is gone"
            );
        }
    }

    /// Takes note of what this node can read for dumps; the next report says it.
    pub fn set_reach(&self, reach: NodeReach) {
        self.report.send_if_modified(|report| {
            let before = std::mem::replace(&mut report.reach, reach);
            before != report.reach
        });
    }

    /// Looks at every source again and again until `stop`.
    pub async fn look_around(&self, stop: CancellationToken) {
        let mut state = self.consensus.state();
        while !stop.is_cancelled() {
            let agreed = Arc::clone(&state.borrow_and_update());
            let sources: Vec<Source> = agreed.sources.values().cloned().collect();
            let looks = sources
                .into_iter()
                .map(|source| async move { (!is_reachable(&source).await).then_some(source.name) });
            let looks = futures_util::stream::iter(looks).buffer_unordered(LOOKS_MAX);
            let unreachable: BTreeSet<String> =
                looks.filter_map(std::future::ready).collect().await;
            self.report.send_if_modified(|report| {
                let before = std::mem::replace(&mut report.unreachable, unreachable);
                before != report.unreachable
            });
            tokio::select! {
                () = sleep(LOOK_INTERVAL) => (),
                () = stop.cancelled() => (),
            }
        }
    }
}

/// Tells whether anybody listens at one of a source's addresses. What cannot be looked at counts
/// as reachable: moving it elsewhere would not mend it.
async fn is_reachable(source: &Source) -> bool {
    let Ok(config) = Config::parse(&source.url) else {
        return true;
    };
    for host in config.hosts() {
        let connected = match host {
            Host::Tcp { host, port } => {
                let connect = TcpStream::connect((host.as_str(), *port));
                timeout(CONNECT_MAX, connect)
                    .await
                    .is_ok_and(|it| it.is_ok())
            }
            Host::Unix { .. } => match host.socket_path() {
                Some(path) => UnixStream::connect(path).await.is_ok(),
                None => false,
            },
        };
        if connected {
            return true;
        }
    }
    false
}
