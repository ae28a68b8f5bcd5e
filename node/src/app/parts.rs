//! What a node stands on, and the parts that are started on it.

use std::sync::Arc;

use pgcapture_actors::{
    consensus::Consensus,
    cursors::CursorStore,
    dump::{DumpControllerHandle, OtherNodes, RangeSource, ReaderNode, RowReader},
    gateway::{GatewayHandle, GatewayLimits},
};
use tokio::sync::watch;

use super::begin::Begun;
use crate::{
    config::Config,
    homes::Homes,
    liveness::readers,
    logs::Logs,
    peer_ranges::{Leadership, PeerRanges},
    peers::Peers,
    raft::Wish,
    replicas::{self, Replicas},
    resolver::StreamResolver,
    routes::{Known, Routes},
    sources::Sources,
};

/// What a node stands on; nothing of it runs yet.
pub(super) struct Parts {
    pub(super) consensus: Arc<dyn Consensus>,
    pub(super) cursors: Arc<dyn CursorStore>,
    pub(super) logs: Arc<Logs>,
    pub(super) peers: Peers,
    pub(super) sources: Arc<Sources>,
    pub(super) replicas: Arc<Replicas>,
    pub(super) reader: Arc<dyn RowReader>,
    /// The cluster that this node belongs to.
    pub(super) cluster: String,
    routes: Routes,
    pub(super) node: String,
    pub(super) address: String,
    /// What this node was told of itself and the others.
    pub(super) wish: Wish,
}

impl Parts {
    /// Opens the logs.
    pub(super) async fn open(config: &Config, begun: &Begun) -> anyhow::Result<Self> {
        let (raft, address) = (begun.raft.clone(), begun.wish.address.clone());
        let node = config.node.name.clone();
        let cluster = raft.identity().cluster;
        let consensus: Arc<dyn Consensus> = Arc::new(raft.clone());
        let logs = Arc::new(Logs::new(config));
        let peers = Peers::new(config)?;
        let routes = Routes::new(Known {
            node: node.clone(),
            cluster: cluster.to_string(),
            state: consensus.state(),
            logs: Arc::clone(&logs),
            peers: peers.clone(),
        });
        let sources = Sources::new(
            config,
            Arc::clone(&consensus),
            Arc::new(raft.clone()),
            cluster.short(),
            Arc::clone(&logs),
        );
        let sources = Arc::new(sources);
        sources.open_logs().await;
        let replicas = Replicas::new(config, Arc::clone(&consensus), Arc::clone(&sources));
        Ok(Self {
            consensus,
            cursors: Arc::new(raft),
            logs,
            peers,
            sources,
            replicas: Arc::new(replicas),
            reader: Arc::new(replicas::reader(config.limits.max_row)),
            cluster: cluster.to_string(),
            routes,
            node,
            address,
            wish: begun.wish.clone(),
        })
    }

    /// Starts the dumps of this node; `others` says what other nodes can read.
    pub(super) fn start_dumps(&self, others: watch::Receiver<OtherNodes>) -> DumpControllerHandle {
        let node = ReaderNode {
            name: self.node.clone(),
            seats: readers::seats(),
            others,
        };
        let (consensus, reader) = (Arc::clone(&self.consensus), Arc::clone(&self.reader));
        DumpControllerHandle::start_on(node, consensus, reader)
    }

    /// Ranges from whichever node leads.
    pub(super) fn start_ranges(
        &self,
        dumps: &DumpControllerHandle,
        leader: watch::Receiver<Option<String>>,
    ) -> Arc<dyn RangeSource> {
        Arc::new(PeerRanges::start(Leadership {
            node: self.node.clone(),
            address: self.address.clone(),
            cluster: self.cluster.clone(),
            leader,
            local: Arc::new(dumps.clone()),
            reader: Arc::new(dumps.clone()),
            peers: self.peers.clone(),
            state: Some(self.consensus.state()),
        }))
    }

    pub(super) fn start_homes(&self, gateway: &GatewayHandle) -> Homes {
        let consensus = Arc::clone(&self.consensus);
        Homes::start(&self.node, consensus, gateway.clone(), self.peers.clone())
    }

    pub(super) fn start_gateway(
        &self,
        config: &Config,
        ranges: Arc<dyn RangeSource>,
    ) -> GatewayHandle {
        let resolver = StreamResolver::new(self.consensus.state(), self.routes.clone());
        let (resolver, cursors) = (Arc::new(resolver), Arc::clone(&self.cursors));
        GatewayHandle::start(resolver, cursors, ranges, gateway_limits(config))
    }
}

fn gateway_limits(config: &Config) -> GatewayLimits {
    let limits = &config.limits;
    GatewayLimits {
        sessions_max: usize::try_from(limits.sessions).unwrap_or(usize::MAX),
        subscriptions_max: usize::try_from(limits.subscriptions).unwrap_or(usize::MAX),
        unacked_max: limits.max_unacked,
        in_flight_bytes_max: limits.in_flight.as_len(),
        ack_timeout: limits.ack_timeout.map(|timeout| timeout.0),
        ..GatewayLimits::default()
    }
}
