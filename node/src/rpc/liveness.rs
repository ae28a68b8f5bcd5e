//! The service that other nodes report to while this one leads.
//!
//! The end of a report stream is a sign as well: if nobody listens at the node's address, its process
//! is gone, and its sources need not wait for the silence to be long enough.

use std::{collections::BTreeSet, pin::pin, sync::Arc};

use futures_util::{
    FutureExt as _,
    future::{Fuse, FusedFuture as _},
};
use pgcapture_actors::consensus::Consensus;
use pgcapture_engine::{
    cluster::liveness::{CONFIRMED_MAX, NodeReport},
    codes,
    dump::schedule::NodeReach,
};
use pgcapture_proto::{
    peer::v1::{self as proto, liveness_server::Liveness},
    status::status,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use crate::liveness::{Book, Confirmations, probe::look_for};

/// Answers that wait for a slow node; it takes them far faster than it reports.
const ANSWERS_WAITING_MAX: usize = 8;

/// Hears reports.
#[derive(Clone, Debug)]
pub struct LivenessService {
    /// Who leads, and where nodes are.
    pub consensus: Arc<dyn Consensus>,
    /// Where reports go.
    pub book: Book,
    /// What an answer rests on.
    pub confirmations: Confirmations,
    /// Owns the streams.
    pub orders: TaskTracker,
    /// Ends the streams.
    pub stop: CancellationToken,
}

#[tonic::async_trait]
impl Liveness for LivenessService {
    type ReportStream = ReceiverStream<Result<proto::ReportAnswer, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<proto::NodeReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let mut reports = request.into_inner();
        if !self.consensus.leadership().borrow().is_me {
            return Err(not_leading());
        }
        let (answers, answered) = mpsc::channel(ANSWERS_WAITING_MAX);
        let (service, stop) = (self.clone(), self.stop.clone());
        self.orders.spawn(async move {
            let mut node = None;
            tokio::select! {
                () = service.hear(&mut reports, &answers, &mut node) => (),
                () = stop.cancelled() => return,
            }
            if let Some((node, false)) = node {
                look_for(service.consensus.as_ref(), &service.book, &node).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answered)))
    }
}

impl LivenessService {
    /// Hears a node until its stream ends or this node leads no more; `node` becomes its name and
    /// whether it has said that it stops.
    async fn hear(
        &self,
        reports: &mut Streaming<proto::NodeReport>,
        answers: &mpsc::Sender<Result<proto::ReportAnswer, Status>>,
        node: &mut Option<(String, bool)>,
    ) {
        let mut unanswered = None;
        let mut answering = pin!(Fuse::terminated());
        loop {
            let answer = tokio::select! {
                report = reports.message() => {
                    let Ok(Some(report)) = report else {
                        return;
                    };
                    *node = Some((report.node.clone(), report.draining));
                    unanswered = Some((report.node.clone(), report.number, Instant::now()));
                    // Heard at once, whenever it is answered.
                    (!self.hear_one(report)).then(|| Err(not_leading()))
                }
                answer = &mut answering, if !answering.is_terminated() => Some(answer),
            };
            if let Some(answer) = answer {
                let is_over = answer.is_err();
                if answers.send(answer).await.is_err() || is_over {
                    return;
                }
            }
            // The answer to a report answers those before it.
            if answering.is_terminated()
                && let Some((name, number, received)) = unanswered.take()
            {
                answering.set(self.answer(name, number, received).fuse());
            }
        }
    }

    /// Enters a report in the book; `false` when this node does not lead.
    fn hear_one(&self, report: proto::NodeReport) -> bool {
        let heard = NodeReport {
            is_draining: report.draining,
            unreachable: BTreeSet::from_iter(report.unreachable_sources),
            reach: NodeReach {
                seats: report.dump_seats,
                replicas: BTreeSet::from_iter(report.readable_replicas),
            },
        };
        self.book.heard(&report.node, heard)
    }

    /// Answers a report, which renews the node's lease: only a leader that was confirmed may do that.
    async fn answer(
        &self,
        node: String,
        number: u64,
        received: Instant,
    ) -> Result<proto::ReportAnswer, Status> {
        let since = received.checked_sub(CONFIRMED_MAX).unwrap_or(received);
        let confirmed = self.confirmations.since(since).await;
        confirmed.map_err(|reason| {
            tracing::debug!(reason, "a report is not answered");
            not_leading()
        })?;
        let state = Arc::clone(&self.consensus.state().borrow());
        let stranded = self.book.is_stranded(&state, &node);
        Ok(proto::ReportAnswer { number, stranded })
    }
}

fn not_leading() -> Status {
    let explanation = &codes::cluster::NOT_LEADING;
    status(explanation.code, explanation.title, explanation.next)
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::atomic::Ordering};

    use pgcapture_actors::supervise::{Task, TaskKind, spawn};
    use pgcapture_proto::peer::v1::{
        liveness_client::LivenessClient, liveness_server::LivenessServer,
    };
    use tokio::net::TcpListener;
    use tonic::transport::{Server, server::TcpIncoming};

    use super::*;
    use crate::liveness::tests::Group;

    /// A leader that hears, and where.
    async fn listening(group: &Arc<Group>) -> (Book, SocketAddr, Task<()>) {
        let book = Book::default();
        book.open();
        let service = LivenessService {
            consensus: Arc::<Group>::clone(group),
            book: book.clone(),
            confirmations: Confirmations::new(Arc::<Group>::clone(group)),
            orders: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(LivenessServer::new(service));
        let serving = server.serve_with_incoming(TcpIncoming::from(listener));
        let task = spawn(TaskKind::Server, "liveness", async move {
            serving.await.unwrap();
        });
        (book, address, task)
    }

    fn report(number: u64) -> proto::NodeReport {
        proto::NodeReport {
            node: "n2".to_owned(),
            number,
            ..proto::NodeReport::default()
        }
    }

    #[tokio::test]
    async fn a_leader_that_was_deposed_renews_no_lease() {
        let group = Arc::new(Group::of(&[("n2", "n2")]));
        let (_book, address, _server) = listening(&group).await;
        let mut client = LivenessClient::connect(format!("http://{address}"))
            .await
            .unwrap();
        let (reports, waiting) = mpsc::channel(8);
        reports.send(report(1)).await.unwrap();
        let answers = client.report(ReceiverStream::new(waiting)).await;
        let mut answers = answers.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().number, 1);
        // It does not know yet: what was confirmed a moment ago may serve on, and for no longer.
        group.is_deposed.store(true, Ordering::SeqCst);
        let deposed = Instant::now();
        let ended = async {
            for number in 2.. {
                reports.send(report(number)).await.unwrap();
                let sent = Instant::now();
                match answers.message().await {
                    Ok(_) => assert!(sent < deposed + CONFIRMED_MAX, "renewed too late"),
                    Err(status) => return status,
                }
            }
            unreachable!("numbers end")
        };
        let status = tokio::time::timeout(CONFIRMED_MAX * 100, ended).await;
        let status = status.expect("a deposed leader answers on and on");
        assert!(status.message().starts_with("PGC-R"), "{status}");
    }

    #[tokio::test]
    async fn a_report_is_heard_while_its_answer_waits_for_a_majority() {
        let mut group = Group::of(&[("n2", "n2")]);
        group.may_answer = tokio::sync::Semaphore::new(0);
        let group = Arc::new(group);
        let (book, address, _server) = listening(&group).await;
        let mut client = LivenessClient::connect(format!("http://{address}"))
            .await
            .unwrap();
        let (reports, waiting) = mpsc::channel(8);
        reports.send(report(1)).await.unwrap();
        let answers = client.report(ReceiverStream::new(waiting)).await;
        let mut answers = answers.unwrap().into_inner();
        let mut changes = book.changes();
        let mut second = report(2);
        second.unreachable_sources = vec!["shop".to_owned()];
        reports.send(second).await.unwrap();
        let is_heard = |liveness: &pgcapture_engine::cluster::liveness::Liveness, now| {
            liveness.is_candidate("n2", "other", now) && !liveness.is_candidate("n2", "shop", now)
        };
        while !book.read(is_heard).unwrap() {
            changes.changed().await.unwrap();
        }
        group.may_answer.add_permits(2);
        let mut last = 0;
        while last < 2 {
            last = answers.message().await.unwrap().unwrap().number;
        }
    }
}
