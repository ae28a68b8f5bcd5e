//! Reports to whoever leads, and holds this node's lease.
//!
//! The lease is the node's right to let its agents write. It is renewed by the leader's answers,
//! counted from when the report was sent; a node that leads renews its own only after a quorum has
//! confirmed that it still does. What reports say comes from [`Reachable`].

use std::{collections::VecDeque, fmt::Debug, sync::Arc};

use pgcapture_actors::{
    consensus::Consensus,
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::cluster::liveness::{Lease, NodeReport, REPORT_INTERVAL};
use pgcapture_proto::peer::v1::{self as proto, liveness_client::LivenessClient};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{Book, Confirmations};
use crate::peers::Peers;

/// Reports on their way, or not answered yet; a leader that is further behind counts as silent.
const REPORTS_WAITING_MAX: usize = 8;

/// What this node can say of itself.
pub trait Reachable: Debug + Send + Sync {
    /// Watches what the next report says.
    fn report(&self) -> watch::Receiver<NodeReport>;
}

/// Reports of one node.
#[derive(Debug)]
pub struct Reporter {
    node: String,
    consensus: Arc<dyn Consensus>,
    peers: Peers,
    book: Book,
    confirmations: Confirmations,
    report: watch::Receiver<NodeReport>,
    lease: watch::Sender<Option<Instant>>,
    stranded: watch::Sender<bool>,
}

/// What a node learns from the answers to its reports.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Whether it holds its lease.
    pub lease: watch::Receiver<bool>,
    /// Whether no other node could take what it owns.
    pub stranded: watch::Receiver<bool>,
}

/// Why reporting to one leader has ended.
enum Ended {
    /// Somebody else leads.
    Moved,
    /// The connection broke, or the other one says that it does not lead.
    Broken(String),
}

impl Reporter {
    /// Makes the reporter of a node; nothing runs before [`Self::start`].
    #[must_use]
    pub fn new(
        node: String,
        consensus: Arc<dyn Consensus>,
        peers: Peers,
        (book, confirmations): (Book, Confirmations),
        reachable: &dyn Reachable,
    ) -> Self {
        Self {
            node,
            consensus,
            peers,
            book,
            confirmations,
            report: reachable.report(),
            lease: watch::Sender::new(None),
            stranded: watch::Sender::new(false),
        }
    }

    /// Starts to report until `stop`; what is learned from it can be watched.
    #[must_use]
    pub fn start(self, stop: CancellationToken) -> (Standing, [Task<()>; 2]) {
        let (held_tx, lease) = watch::channel(false);
        let standing = Standing {
            lease,
            stranded: self.stranded.subscribe(),
        };
        let keeper = spawn(
            TaskKind::Liveness,
            "lease",
            keep_lease(self.lease.subscribe(), held_tx),
        );
        let reporter = spawn(TaskKind::Liveness, "reporter", async move {
            tokio::select! {
                () = self.run() => (),
                () = stop.cancelled() => (),
            }
        });
        (standing, [keeper, reporter])
    }

    async fn run(mut self) {
        let mut leadership = self.consensus.leadership();
        loop {
            let now = leadership.borrow_and_update().clone();
            let ended = match now.leader {
                Some(_) if now.is_me => self.report_to_self(&mut leadership).await,
                Some(leader) => self.report_to(&leader, &mut leadership).await,
                None => {
                    if leadership.changed().await.is_err() {
                        return;
                    }
                    Ended::Moved
                }
            };
            if let Ended::Broken(reason) = ended {
                tracing::debug!(reason, "reports do not reach the leader");
                tokio::select! {
                    () = sleep(REPORT_INTERVAL) => (),
                    changed = leadership.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    /// Leads, and renews its own lease as often as a quorum confirms it.
    async fn report_to_self(
        &mut self,
        leadership: &mut watch::Receiver<pgcapture_actors::consensus::Leadership>,
    ) -> Ended {
        loop {
            let sent = Instant::now();
            let report = self.report.borrow_and_update().clone();
            self.book.heard(&self.node, report);
            let state = Arc::clone(&self.consensus.state().borrow());
            self.strand(self.book.is_stranded(&state, &self.node));
            match self.confirmations.since(sent).await {
                Ok(()) => self.renew(sent),
                Err(reason) => return Ended::Broken(reason),
            }
            tokio::select! {
                () = sleep_until(sent + REPORT_INTERVAL) => (),
                changed = self.report.changed() => if changed.is_err() {
                    sleep_until(sent + REPORT_INTERVAL).await;
                },
                changed = leadership.changed() => {
                    if changed.is_err() || !leadership.borrow().is_me {
                        return Ended::Moved;
                    }
                }
            }
        }
    }

    /// Reports to another node for as long as it leads.
    async fn report_to(
        &mut self,
        leader: &str,
        leadership: &mut watch::Receiver<pgcapture_actors::consensus::Leadership>,
    ) -> Ended {
        let address = {
            let state = self.consensus.state();
            let state = state.borrow();
            state.nodes.get(leader).map(|node| node.address.clone())
        };
        let Some(address) = address else {
            return Ended::Broken(format!("the address of node {leader} is not known yet"));
        };
        let channel = match self.peers.channel(&address) {
            Ok(channel) => channel,
            Err(error) => return Ended::Broken(error.to_string()),
        };
        let (reports, waiting) = mpsc::channel(REPORTS_WAITING_MAX);
        let mut number = 0;
        let mut sent = VecDeque::with_capacity(REPORTS_WAITING_MAX);
        // The first report opens the stream: the answer's head comes with its answer.
        self.send(&reports, &mut number, &mut sent);
        let call = LivenessClient::new(channel);
        let mut call = call;
        let opened = tokio::select! {
            opened = call.report(ReceiverStream::new(waiting)) => opened,
            _ = leadership.changed() => return Ended::Moved,
        };
        let mut answers = match opened {
            Ok(opened) => opened.into_inner(),
            Err(status) => return Ended::Broken(status.to_string()),
        };
        let mut tick = interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        self.strand(answer.stranded);
                        self.answered(answer.number, &mut sent);
                    }
                    Ok(None) => return Ended::Broken("the stream has ended".to_owned()),
                    Err(status) => return Ended::Broken(status.to_string()),
                },
                _ = tick.tick() => self.send(&reports, &mut number, &mut sent),
                changed = self.report.changed() => {
                    if changed.is_err() {
                        return Ended::Moved;
                    }
                    self.send(&reports, &mut number, &mut sent);
                }
                changed = leadership.changed() => {
                    let is_same = leadership.borrow().leader.as_deref() == Some(leader);
                    if changed.is_err() || !is_same {
                        return Ended::Moved;
                    }
                }
            }
        }
    }

    /// Sends a report unless too many wait: the next tick sends a newer one.
    fn send(
        &mut self,
        reports: &mpsc::Sender<proto::NodeReport>,
        number: &mut u64,
        sent: &mut VecDeque<(u64, Instant)>,
    ) {
        if sent.len() >= REPORTS_WAITING_MAX {
            return;
        }
        *number += 1;
        let report = self.report.borrow_and_update().clone();
        let report = proto::NodeReport {
            node: self.node.clone(),
            number: *number,
            draining: report.is_draining,
            unreachable_sources: report.unreachable.into_iter().collect(),
            readable_replicas: report.reach.replicas.into_iter().collect(),
            dump_seats: report.reach.seats,
        };
        let at = Instant::now();
        if reports.try_send(report).is_ok() {
            sent.push_back((*number, at));
        }
    }

    /// An answer to a report answers the ones before it.
    fn answered(&self, number: u64, sent: &mut VecDeque<(u64, Instant)>) {
        while let Some((oldest, at)) = sent.front().copied() {
            if oldest > number {
                break;
            }
            sent.pop_front();
            if oldest == number {
                self.renew(at);
            }
        }
    }

    fn strand(&self, is_stranded: bool) {
        self.stranded
            .send_if_modified(|before| std::mem::replace(before, is_stranded) != is_stranded);
    }

    fn renew(&self, sent: Instant) {
        self.lease.send_if_modified(|renewed| {
            let is_newer = renewed.is_none_or(|before| before < sent);
            if is_newer {
                *renewed = Some(sent);
            }
            is_newer
        });
    }
}

/// Turns the time of the last answered report into a lease that is held or not.
async fn keep_lease(mut renewed: watch::Receiver<Option<Instant>>, held: watch::Sender<bool>) {
    let began = Instant::now();
    let mut lease = Lease::default();
    loop {
        if let Some(sent) = *renewed.borrow_and_update() {
            lease.renewed(sent.saturating_duration_since(began));
        }
        let is_held = lease.is_held(began.elapsed());
        held.send_if_modified(|before| std::mem::replace(before, is_held) != is_held);
        tokio::select! {
            changed = renewed.changed() => if changed.is_err() {
                held.send_replace(false);
                return;
            },
            () = sleep_until(began + lease.until()), if is_held => {}
        }
    }
}
