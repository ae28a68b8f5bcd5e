//! How a node comes to its cluster: its store, its members, what was agreed on.

use pgcapture_actors::supervise::Task;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::server::{Credentials, serve_peers};
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
    pub(super) peers: Option<Task<()>>,
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
        let door = Door::of(&config.node.name, &store)?;
        let address = listener.local_addr()?.to_string();
        let wish = Wish {
            name: config.node.name.clone(),
            address: config.node.advertise.clone().unwrap_or(address),
            peers: config.node.peers.clone(),
        };
        door.show(&wish);
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

/// Opens the same listener once more: both take connections from one queue.
fn listener_again(listener: &TcpListener) -> anyhow::Result<TcpListener> {
    use std::os::fd::AsFd as _;
    let again = listener.as_fd().try_clone_to_owned()?;
    Ok(TcpListener::from_std(std::net::TcpListener::from(again))?)
}
