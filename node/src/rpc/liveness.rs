//! The service that other nodes report to while this one leads.
//!
//! The end of a report stream is a sign as well: if nobody listens at the node's address, its process
//! is gone, and its sources need not wait for the silence to be long enough.

use std::{collections::BTreeSet, sync::Arc};

use pgcapture_actors::consensus::Consensus;
use pgcapture_engine::{cluster::liveness::NodeReport, codes, dump::schedule::NodeReach};
use pgcapture_proto::{
    peer::v1::{self as proto, liveness_server::Liveness},
    status::status,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use crate::liveness::{Book, probe::look_for};

/// Answers that wait for a slow node; it takes them far faster than it reports.
const ANSWERS_WAITING_MAX: usize = 8;

/// Hears reports.
#[derive(Clone, Debug)]
pub struct LivenessService {
    /// Who leads, and where nodes are.
    pub consensus: Arc<dyn Consensus>,
    /// Where reports go.
    pub book: Book,
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
        while let Ok(Some(report)) = reports.message().await {
            let number = report.number;
            *node = Some((report.node.clone(), report.draining));
            let heard = NodeReport {
                is_draining: report.draining,
                unreachable: BTreeSet::from_iter(report.unreachable_sources),
                reach: NodeReach {
                    seats: report.dump_seats,
                    replicas: BTreeSet::from_iter(report.readable_replicas),
                },
            };
            let answer = if self.book.heard(&report.node, heard) {
                Ok(proto::ReportAnswer { number })
            } else {
                Err(not_leading())
            };
            let is_over = answer.is_err();
            if answers.send(answer).await.is_err() || is_over {
                return;
            }
        }
    }
}

fn not_leading() -> Status {
    let explanation = &codes::cluster::NOT_LEADING;
    status(explanation.code, explanation.title, explanation.next)
}
