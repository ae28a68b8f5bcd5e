//! Which sources this node can reach: whether anybody listens where their PostgreSQL is.
//!
//! Looks at the server of every source, its own or not, so that the leader knows where one could go
//! before it must; once however many sources a server has, since each look costs it a process.
//! A connection that is taken is enough: whether the login works is the agent's business, and the
//! same on every node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use pgcapture_actors::{
    consensus::Leadership,
    postgres::{Config, Host},
};
use pgcapture_engine::{
    cluster::{State, liveness::NodeReport},
    dump::schedule::NodeReach,
};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Sources;
use crate::liveness::{Reachable, probe::deserted};

/// Every server is looked at this often; an agent that cannot connect tells of it earlier by itself.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A server that does not take a connection within this time cannot be reached.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Other nodes take the sources of one that stops within this time, or they stop as well.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);

/// A cluster that has lost its leader has another one within this time, or there is no majority that
/// could give a source to anybody.
const LEADERLESS_MAX: Duration = Duration::from_secs(1);

/// Servers looked at side by side.
const LOOKS_MAX: usize = 32;

impl Reachable for Sources {
    fn report(&self) -> watch::Receiver<NodeReport> {
        self.report.subscribe()
    }
}

impl Sources {
    /// Tells the leader that this node wants to stop, and waits until its sources are elsewhere; not
    /// for long, and not at all when no other node could take them: there is none, or all stop as well
    /// (`stranded`, as the leader says).
    pub async fn hand_over(&self, mut stranded: watch::Receiver<bool>) {
        if self.consensus.state().borrow().nodes.len() <= 1 {
            return;
        }
        self.report
            .send_if_modified(|report| !std::mem::replace(&mut report.is_draining, true));
        let mut state = self.consensus.state();
        let is_empty = |state: &Arc<State>| !state.owners.values().any(|it| *it == self.node);
        let nobody = async {
            if stranded.wait_for(|is_stranded| *is_stranded).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let why = tokio::select! {
            biased;
            handed_over = state.wait_for(is_empty) => handed_over.err().map(|_| "the node's store is closed"),
            () = nobody => Some("all other nodes are away or stop as well"),
            () = deserted(self.consensus.as_ref(), &self.node) => Some("all other nodes are gone"),
            () = leaderless(self.consensus.leadership()) => Some("nobody leads the cluster"),
            () = sleep(HAND_OVER_MAX) => Some("nobody took them in time"),
        };
        if let Some(why) = why {
            tracing::warn!(
                why,
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
            let unreachable = unreachable(&agreed).await;
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

/// Ends once nobody has led for longer than an election takes.
async fn leaderless(mut leadership: watch::Receiver<Leadership>) {
    loop {
        let lost = leadership.wait_for(|now| now.leader.is_none()).await;
        if lost.map(drop).is_err() {
            return;
        }
        let found = leadership.wait_for(|now| now.leader.is_some());
        if timeout(LEADERLESS_MAX, found).await.is_err() {
            return;
        }
    }
}

/// Looks at every server once and returns the sources whose server nobody listens at.
async fn unreachable(state: &State) -> BTreeSet<String> {
    let mut servers: BTreeMap<Vec<Host>, Vec<String>> = BTreeMap::new();
    for source in state.sources.values() {
        // What cannot be looked at counts as reachable: moving it elsewhere would not mend it.
        if let Ok(config) = Config::parse(&source.url) {
            let of_server = servers.entry(config.hosts().to_vec()).or_default();
            of_server.push(source.name.clone());
        }
    }
    let looks = servers.into_iter().map(|(hosts, sources)| async move {
        if is_reachable(&hosts).await {
            Vec::new()
        } else {
            sources
        }
    });
    let looks = futures_util::stream::iter(looks).buffer_unordered(LOOKS_MAX);
    looks
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .flatten()
        .collect()
}

/// Tells whether anybody listens at one of a server's addresses.
async fn is_reachable(hosts: &[Host]) -> bool {
    for host in hosts {
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use pgcapture_engine::{
        checkpoint::Epoch,
        cluster::{Command, OnGap, Origin, Source},
        lsn::PgTime,
    };

    use super::*;

    fn source(name: &str, url: &str) -> Command {
        Command::AddSource(Box::new(Source {
            name: name.to_owned(),
            stream: name.to_owned(),
            url: url.to_owned(),
            password: None,
            slot: name.to_owned(),
            publication: name.to_owned(),
            tables: Vec::new(),
            exclude: Vec::new(),
            paused: false,
            epoch: Epoch(0),
            created_at: PgTime(0),
            on_gap: OnGap::Halt,
            origin: Origin::Command,
            owns_publication: false,
        }))
    }

    #[tokio::test]
    async fn a_server_with_many_sources_is_looked_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = gone.local_addr().unwrap().port();
        drop(gone);
        let mut state = State::default();
        for (name, port, database) in [
            ("a", port, "one"),
            ("b", port, "two"),
            ("c", port, "one"),
            ("d", nobody, "one"),
            ("e", nobody, "two"),
        ] {
            let url = format!("postgres://me@127.0.0.1:{port}/{database}");
            state.apply(source(name, &url)).unwrap();
        }
        state.apply(source("f", "no url")).unwrap();
        let found = unreachable(&state).await;
        assert_eq!(found, ["d", "e"].map(str::to_owned).into());
        listener.set_nonblocking(true).unwrap();
        let looks = listener.incoming().take_while(Result::is_ok).count();
        assert_eq!(looks, 1);
    }
}
