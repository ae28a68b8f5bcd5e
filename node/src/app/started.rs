//! What runs on a node's parts, and what it serves to other nodes.

use std::sync::Arc;

use pgcapture_actors::{
    dump::{DumpControllerHandle, OtherNodes, RangeSource},
    gateway::GatewayHandle,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    parts::Parts,
    server::{Others, PeerServices, Readers},
};
use crate::{
    config::Config,
    events::Events,
    group::RaftGroup,
    homes::Homes,
    liveness::{Book, Confirmations, Registry},
    raft::{Door, RaftConsensus},
    rpc::{
        forward::Forward,
        liveness::LivenessService,
        peer_log::PeerLogService,
        peer_ranges::{Controller, PeerRangesService},
    },
};

/// What ends each part of a node.
#[derive(Debug, Default)]
pub(super) struct Stops {
    /// What it does for the cluster.
    pub(super) part: CancellationToken,
    /// Streams about dumps.
    pub(super) dumps: CancellationToken,
    /// Agents.
    pub(super) agents: CancellationToken,
    /// Listeners.
    pub(super) servers: CancellationToken,
}

/// The parts that run.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) door: Door,
    pub(super) dumps: DumpControllerHandle,
    pub(super) gateway: GatewayHandle,
    pub(super) homes: Homes,
    pub(super) ranges: Arc<dyn RangeSource>,
    /// Where the controller of dumps hears what other nodes can read.
    pub(super) others: watch::Sender<OtherNodes>,
    pub(super) book: Book,
    pub(super) confirmations: Confirmations,
    pub(super) events: Events,
    pub(super) orders: TaskTracker,
    pub(super) stops: Stops,
    leader: watch::Receiver<Option<String>>,
}

impl Started {
    /// Starts dumps, gateway and homes; `leader` is the address of the node that leads.
    pub(super) fn start(
        config: &Config,
        parts: &Parts,
        leader: watch::Receiver<Option<String>>,
        (door, stops): (Door, Stops),
    ) -> Self {
        let (others, known) = watch::channel(OtherNodes::default());
        let dumps = parts.start_dumps(known);
        let ranges = parts.start_ranges(&dumps, leader.clone());
        let gateway = parts.start_gateway(config, Arc::clone(&ranges));
        let homes = parts.start_homes(&gateway);
        Self {
            door,
            dumps,
            gateway,
            homes,
            ranges,
            others,
            book: Book::default(),
            confirmations: Confirmations::new(Arc::clone(&parts.consensus)),
            events: Events::default(),
            orders: TaskTracker::new(),
            stops,
            leader,
        }
    }

    /// The other nodes, as the administration sees them.
    pub(super) fn others(&self, parts: &Parts, raft: &RaftConsensus) -> Others {
        let census = Registry {
            book: self.book.clone(),
            consensus: Arc::clone(&parts.consensus),
        };
        Others {
            group: Arc::new(RaftGroup::new(raft.clone(), Some(Arc::new(census)))),
            forward: Forward {
                node: parts.node.clone(),
                peers: parts.peers.clone(),
                consensus: Arc::clone(&parts.consensus),
            },
            events: self.events.clone(),
        }
    }

    /// What the services of dumps stand on.
    pub(super) fn readers(&self, parts: &Parts) -> Readers {
        Readers {
            replicas: Arc::clone(&parts.replicas),
            dumps: self.dumps.clone(),
            ranges: Arc::clone(&self.ranges),
            rows: Arc::clone(&parts.reader),
        }
    }

    /// What other nodes ask of this one.
    pub(super) fn peer_services(&self, parts: &Parts) -> PeerServices {
        PeerServices {
            door: self.door.clone(),
            liveness: LivenessService {
                consensus: Arc::clone(&parts.consensus),
                book: self.book.clone(),
                confirmations: self.confirmations.clone(),
                orders: self.orders.clone(),
                stop: self.stops.part.clone(),
            },
            log: PeerLogService {
                node: parts.node.clone(),
                cluster: parts.cluster.clone(),
                state: parts.consensus.state(),
                logs: Arc::clone(&parts.logs),
                readers: parts.sources.readers(),
                stop: self.stops.servers.clone(),
            },
            ranges: PeerRangesService::new(Controller {
                cluster: parts.cluster.clone(),
                address: parts.address.clone(),
                leader: self.leader.clone(),
                ranges: Arc::new(self.dumps.clone()),
                reader: Arc::new(self.dumps.clone()),
                orders: self.orders.clone(),
                stop: self.stops.dumps.clone(),
            }),
            homes: self.homes.clone(),
        }
    }
}
