//! How a node comes to its cluster: its store, its members, what was agreed on.

use pgcapture_actors::supervise::Task;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::server::{Credentials, PeersAlone, serve_peers};
use crate::{
    config::Config,
    peers::Peers,
    raft::{self, Door, Pace, RaftConsensus, RaftError, Wish},
    store::Store,
};

/// A member of the cluster, and what serves other nodes until everything is served.
pub(super) struct Begun {
    pub(super) raft: RaftConsensus,
    /// What this node was told of itself and the others.
    pub(super) wish: Wish,
    pub(super) door: Door,
    pub(super) peers: Option<PeersAlone>,
    pub(super) stop_peers: CancellationToken,
}

impl Begun {
    /// Brings this node to its cluster, and back what was agreed on.
    pub(super) async fn begin(
        config: &Config,
        listener: &TcpListener,
        credentials: &Credentials,
    ) -> anyhow::Result<Self> {
        let data_dir = config.node.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&data_dir)).await?;
        let store = opened.map_err(RaftError::from)?;
        let address = listener.local_addr()?.to_string();
        let wish = Wish {
            name: config.node.name.clone(),
            address: config.node.advertise.clone().unwrap_or(address),
            peers: config.node.peers.clone(),
        };
        let door = Door::of(&wish, &store)?;
        let stop_peers = CancellationToken::new();
        let is_alone = wish.peers.is_empty() && store.state().borrow().nodes.len() <= 1;
        let peers = if is_alone {
            None
        } else {
            let listener = listener_again(listener)?;
            let (door, credentials) = (door.clone(), credentials.clone());
            Some(serve_peers(
                listener,
                door,
                credentials,
                stop_peers.clone(),
            )?)
        };
        let channels = Peers::new(config)?;
        raft::enter(&store, &wish, &channels, &door).await?;
        let pace = Pace {
            heartbeat: config.raft.heartbeat.0,
            election: config.raft.election.0,
        };
        let raft = RaftConsensus::start(store, pace, channels).await?;
        door.open(raft.clone());
        raft.recover().await?;
        raft.introduce(&wish).await?;
        Ok(Self {
            raft,
            wish,
            door,
            peers,
            stop_peers,
        })
    }
}

impl Begun {
    /// Leaves the address to what serves everything: who comes from now on is not served by less.
    pub(super) async fn leave_address(&mut self) -> Option<Task<()>> {
        self.stop_peers.cancel();
        let PeersAlone { mut task, let_go } = self.peers.take()?;
        tokio::select! {
            () = let_go.cancelled() => Some(task),
            // It has failed, and said so.
            _ = task.join() => None,
        }
    }
}

/// Opens the same listener once more: both take connections from one queue.
fn listener_again(listener: &TcpListener) -> anyhow::Result<TcpListener> {
    use std::os::fd::AsFd as _;
    let again = listener.as_fd().try_clone_to_owned()?;
    Ok(TcpListener::from_std(std::net::TcpListener::from(again))?)
}
