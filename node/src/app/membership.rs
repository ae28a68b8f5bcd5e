//! What a node does for its cluster beside serving.

use std::sync::Arc;

use pgcapture_actors::{
    consensus::Consensus,
    supervise::{Task, TaskKind, spawn},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{parts::Parts, started::Started};
use crate::{
    events,
    liveness::{Reporter, Standing, readers},
    placement,
    raft::compare_peers,
};

/// Begins what this node does for its cluster: it tells that it lives, looks which sources and replicas
/// it reaches, compares its list of peers with theirs, remembers what happened, and gives sources and
/// ranges of dumps to nodes while it leads.
pub(super) fn take_part(parts: &Parts, started: &Started) -> (Standing, Vec<Task<()>>) {
    let (book, stop) = (&started.book, &started.stops.part);
    let reporter = Reporter::new(
        parts.node.clone(),
        Arc::clone(&parts.consensus),
        parts.peers.clone(),
        (book.clone(), started.confirmations.clone()),
        parts.sources.as_ref(),
    );
    let (standing, reports) = reporter.start(stop.clone());
    let (sources, until) = (Arc::clone(&parts.sources), stop.clone());
    let mut part = Vec::from(reports);
    let (wish, peers) = (parts.wish.clone(), parts.peers.clone());
    let comparing = async move { drop(compare_peers(&wish, &peers).await) };
    part.push(run_until(stop, "peers", comparing));
    part.push(spawn(TaskKind::Liveness, "reach", async move {
        sources.look_around(until).await;
    }));
    let (sources, readable) = (Arc::clone(&parts.sources), started.dumps.readable());
    let telling = readers::tell_leader(sources, readable);
    part.push(run_until(stop, "reach of dumps", telling));
    let (consensus, others) = (Arc::clone(&parts.consensus), started.others.clone());
    let telling = readers::tell_controller(consensus, book.clone(), others);
    part.push(run_until(stop, "readers", telling));
    let placing = placement::start(
        Arc::clone(&parts.consensus),
        book.clone(),
        started.events.clone(),
        stop.clone(),
    );
    part.push(placing);
    part.push(events::start(
        parts.node.clone(),
        Arc::clone(&parts.consensus),
        Arc::clone(&parts.sources),
        started.events.clone(),
        stop.clone(),
    ));
    (standing, part)
}

/// Runs something until `stop`, if it has not ended before.
fn run_until(
    stop: &CancellationToken,
    name: &str,
    work: impl Future<Output = ()> + Send + 'static,
) -> Task<()> {
    let stop = stop.clone();
    spawn(TaskKind::Liveness, name, async move {
        stop.run_until_cancelled(work).await;
    })
}

/// Watches the address of the node that leads, until `stop`; `None` while there is none.
pub(super) fn watch_leader(
    consensus: &Arc<dyn Consensus>,
    stop: CancellationToken,
) -> (watch::Receiver<Option<String>>, Task<()>) {
    let (address_tx, address) = watch::channel(None);
    let (mut leadership, mut state) = (consensus.leadership(), consensus.state());
    let task = spawn(TaskKind::Liveness, "leader", async move {
        loop {
            let leader = leadership.borrow_and_update().leader.clone();
            let now = leader.and_then(|leader| {
                let state = state.borrow_and_update();
                state.nodes.get(&leader).map(|node| node.address.clone())
            });
            address_tx.send_if_modified(|before| {
                let is_other = *before != now;
                *before = now;
                is_other
            });
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                changed = state.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    });
    (address, task)
}
