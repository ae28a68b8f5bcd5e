//! The ways between the nodes of a `dev` cluster: one TCP proxy for every ordered pair.
//!
//! A link is open, cut or closed. A cut one is silent, as a network that loses everything is: bytes
//! do not flow, nothing is closed, new connections are taken and hear nothing. When it is open again,
//! what was held is closed, so that it is made anew. A closed one refuses connections, as the
//! machine of a process that died does.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc};

use pgcapture_actors::supervise::{Task, TaskKind, spawn};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

/// Connections of one link; a node has one to each other, and a few while it looks for it. More wait
/// in the system's queue, which is as silent.
const CONNECTIONS_MAX: usize = 64;

/// A pair of nodes by their numbers: who connects, and to whom.
type Pair = (u8, u8);

/// All links of a cluster.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: BTreeMap<Pair, Link>,
}

/// One way.
#[derive(Debug)]
struct Link {
    /// Where the proxy listens.
    address: SocketAddr,
    target: SocketAddr,
    state: watch::Sender<State>,
    _accepting: Task<()>,
}

/// What a link lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Cut,
    /// Nobody lives at its end.
    Closed,
}

impl Links {
    /// Makes the way from one node to another, open.
    pub(super) fn add(&mut self, pair: Pair, target: SocketAddr) -> io::Result<()> {
        let listener = std::net::TcpListener::bind((target.ip(), 0))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let (state, seen) = watch::channel(State::Open);
        let accepting = spawn(TaskKind::Tool, "link", accept(listener, target, seen));
        let link = Link {
            address,
            target,
            state,
            _accepting: accepting,
        };
        self.links.insert(pair, link);
        Ok(())
    }

    /// Returns the detours of a node, in the form that it reads them (`crate::peers`).
    pub(super) fn routes(&self, node: u8) -> String {
        let links = self.links.iter().filter(|((from, _), _)| *from == node);
        links
            .map(|(_, link)| format!("{} {}\n", link.target, link.address))
            .collect()
    }

    /// Cuts the ways for which `is_cut` holds and opens the others; those to dead nodes stay closed.
    pub(super) fn cut(&self, is_cut: impl Fn(Pair) -> bool) {
        for (pair, link) in &self.links {
            let wanted = if is_cut(*pair) {
                State::Cut
            } else {
                State::Open
            };
            link.state.send_if_modified(|state| {
                let is_new = *state != wanted && *state != State::Closed;
                if is_new {
                    *state = wanted;
                }
                is_new
            });
        }
    }

    /// Refuses connections to a node that died.
    pub(super) fn close_to(&self, node: u8) {
        let links = self.links.iter().filter(|((_, to), _)| *to == node);
        for (_, link) in links {
            link.state.send_replace(State::Closed);
        }
    }

    /// Takes connections to a node again, cut or not.
    pub(super) fn open_to(&self, node: u8, is_cut: impl Fn(Pair) -> bool) {
        for (pair, link) in &self.links {
            if pair.1 == node {
                let is_cut = is_cut(*pair);
                link.state
                    .send_replace(if is_cut { State::Cut } else { State::Open });
            }
        }
    }
}

/// Takes connections for as long as the link exists: the body of an owned task.
async fn accept(listener: TcpListener, target: SocketAddr, mut state: watch::Receiver<State>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut carried: Vec<Task<()>> = Vec::new();
    let address = listener.local_addr();
    let mut listener = Some(listener);
    loop {
        let now = *state.borrow_and_update();
        match (now, listener.is_some()) {
            (State::Closed, true) => listener = None,
            // The port is outside of what the system hands out only while we hold it; the chance
            // that somebody took it meanwhile is small, and is told.
            (State::Open | State::Cut, false) => match bind_again(&address).await {
                Ok(bound) => listener = Some(bound),
                Err(error) => tracing::error!(%error, "a link of dev cannot be opened again"),
            },
            (State::Closed, false) | (State::Open | State::Cut, true) => (),
        }
        let Some(open) = &listener else {
            if state.changed().await.is_err() {
                return;
            }
            continue;
        };
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            accepted = open.accept() => if let Ok((inbound, _)) = accepted {
                carried.retain(|task| !task.is_finished());
                let seen = state.clone();
                carried.push(spawn(TaskKind::Tool, "link connection", async move {
                    let _place = place;
                    carry(inbound, target, seen).await;
                }));
            },
        }
    }
}

async fn bind_again(address: &io::Result<SocketAddr>) -> io::Result<TcpListener> {
    match address {
        Ok(address) => TcpListener::bind(address).await,
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

/// Carries one connection until one of its ends closes it, or holds it until the link is healed.
async fn carry(mut inbound: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    // Held here and not in the future below: it is dropped by a cut, the connection is not.
    let mut outbound: Option<TcpStream> = None;
    let flow = async {
        let connected = TcpStream::connect(target).await?;
        let connected = outbound.insert(connected);
        inbound.set_nodelay(true)?;
        connected.set_nodelay(true)?;
        copy_bidirectional(&mut inbound, connected).await
    };
    tokio::select! {
        biased;
        // A closed end shows itself: what the dead process has sent still arrives.
        _ = state.wait_for(|state| *state == State::Cut) => (),
        // Closed by one end, or nobody listens there: so is the other.
        _ = flow => return,
    }
    // An error means that the link is gone, and so is what it held.
    drop(state.wait_for(|state| *state == State::Open).await);
}

#[cfg(test)]
mod tests;
