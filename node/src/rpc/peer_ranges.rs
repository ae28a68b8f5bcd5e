//! `pgcapture.peer.v1.PeerRanges`: the controller of dumps of the leader, for the sessions of all nodes, and
//! what this node reads for them, whoever leads.
//!
//! A node joins the leader and keeps the stream of that open; whatever it pulled and has not ended when
//! the stream ends is given up, as if its consumers had disconnected. Rows keep to the caller's credit
//! and are not copied. A range is read for whoever has a ticket of this cluster: that the ticket still
//! counts is asked when the range is finished, by the leader.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, StreamExt as _, stream};
use pgcapture_actors::{
    cursors::SubscriptionId,
    dump::{
        Delivered, DumpError, GivenUp, OpenedRange, RangeReader, RangeRemedy, RangeSource,
        RangeTicket, ReadOrder, RowEvent,
    },
};
use pgcapture_engine::{codes, lsn::Lsn};
use pgcapture_proto::peer::v1::{
    FinishRange, GiveUpRange, JoinRanges, OpenRange, OpenRangeAnswer, OpenRangeRequest, PullRange,
    PulledRange, RangeEnded, RangesChanged, RangesMember, ReadRange,
    open_range_answer::{self, End},
    open_range_request,
    peer_ranges_server::PeerRanges,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use crate::{peer_log::credit::Allowance, peer_ranges::wire};

/// Name of the service in health and reflection.
pub const SERVICE_NAME: &str = "pgcapture.peer.v1.PeerRanges";

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PeerRangesService {
    shared: Arc<Shared>,
}

/// What the service stands on.
#[derive(Debug)]
pub struct Controller {
    /// The cluster that this node belongs to.
    pub cluster: String,
    /// This node's address.
    pub address: String,
    /// The leader's address; only the leader hands out ranges.
    pub leader: watch::Receiver<Option<String>>,
    /// This node's controller.
    pub ranges: Arc<dyn RangeSource>,
    /// What reads on this node.
    pub reader: Arc<dyn RangeReader>,
    /// Ends of ranges under way; awaited when the node stops.
    pub orders: TaskTracker,
    /// Ends the streams when the node stops.
    pub stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    controller: Controller,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    /// What each member has pulled and not ended.
    taken: HashMap<u64, HashMap<u64, RangeTicket>>,
}

impl PeerRangesService {
    /// Makes the service.
    #[must_use]
    pub fn new(controller: Controller) -> Self {
        Self {
            shared: Arc::new(Shared {
                controller,
                members: Mutex::default(),
            }),
        }
    }
}

impl Shared {
    /// A panic under the lock leaves the maps as they were: go on.
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leads(&self) -> bool {
        self.controller.leader.borrow().as_ref() == Some(&self.controller.address)
    }

    fn join(self: &Arc<Self>, cluster: &str) -> Result<Membership, Status> {
        if cluster != self.controller.cluster {
            return Err(Status::failed_precondition("this is another cluster"));
        }
        if !self.leads() {
            return Err(Status::unavailable("this node does not lead"));
        }
        let mut members = self.members();
        // A number of an earlier process must not be taken for one of this.
        let number = std::iter::repeat_with(rand::random::<u64>)
            .find(|number| !members.taken.contains_key(number));
        let number = number.ok_or_else(|| Status::internal("no number is left"))?;
        members.taken.insert(number, HashMap::new());
        Ok(Membership {
            shared: Arc::clone(self),
            number,
        })
    }

    /// Keeps a ticket for a member; gives it back when the member has left.
    fn keep(&self, member: u64, ticket: &RangeTicket) -> bool {
        let mut members = self.members();
        let taken = members.taken.get_mut(&member);
        taken.is_some_and(|taken| {
            taken.insert(ticket.number, ticket.clone());
            true
        })
    }

    fn ticket(&self, member: Option<&RangesMember>, number: u64) -> Result<RangeTicket, DumpError> {
        let members = self.members();
        let taken = member.and_then(|member| members.taken.get(&member.number));
        let ticket = taken.and_then(|taken| taken.get(&number)).cloned();
        ticket.ok_or_else(|| wire::away("the range was given up already"))
    }

    fn forget(&self, member: Option<&RangesMember>, number: u64) {
        let mut members = self.members();
        let taken = member.and_then(|member| members.taken.get_mut(&member.number));
        if let Some(taken) = taken {
            taken.remove(&number);
        }
    }

    async fn pull(&self, request: PullRange) -> Result<Option<RangeTicket>, DumpError> {
        let number = request.member.map_or(0, |member| member.number);
        if !self.members().taken.contains_key(&number) {
            return Err(wire::away("this is no member"));
        }
        let id = SubscriptionId {
            stream: request.stream,
            consumer: request.consumer,
        };
        let ticket = self.controller.ranges.pull(&id).await?;
        if let Some(ticket) = &ticket
            && !self.keep(number, ticket)
        {
            let ranges = &self.controller.ranges;
            ranges.give_up(ticket.clone(), GivenUp::Disconnected).await;
            return Err(wire::away("the member has left"));
        }
        Ok(ticket)
    }

    async fn was_read(&self, request: &ReadRange) -> Result<(), DumpError> {
        let ticket = self.ticket(request.member.as_ref(), request.number)?;
        self.controller.ranges.was_read(&ticket).await;
        Ok(())
    }

    async fn finish(&self, request: FinishRange) -> Result<(), DumpError> {
        let (member, number) = (request.member.as_ref(), request.number);
        let ticket = self.ticket(member, number)?;
        let delivered = Delivered {
            row_count: request.row_count,
            bytes: request.bytes,
        };
        let finished = self.controller.ranges.finish(ticket, delivered).await;
        // A finish that is refused leaves no ticket either: the controller hands the range out again.
        self.forget(member, number);
        finished
    }

    async fn give_up(&self, request: GiveUpRange) -> Result<(), DumpError> {
        let (member, number) = (request.member.as_ref(), request.number);
        let ticket = self.ticket(member, number)?;
        self.forget(member, number);
        let reason = wire::to_reason(request.reason);
        self.controller.ranges.give_up(ticket, reason).await;
        Ok(())
    }

    async fn open(
        &self,
        requests: &mut Streaming<OpenRangeRequest>,
    ) -> Result<(OpenedRange, Allowance), DumpError> {
        let first = requests.message().await.ok().flatten();
        let Some(open_range_request::Kind::Open(open)) = first.and_then(|first| first.kind) else {
            return Err(wire::away("the first request must open"));
        };
        let OpenRange {
            cluster,
            ticket,
            at_least,
            credit,
        } = open;
        if cluster != self.controller.cluster {
            return Err(wire::away("this is another cluster"));
        }
        let ticket = ticket.and_then(wire::to_ticket);
        let order = ReadOrder {
            ticket: ticket.ok_or_else(|| wire::away(wire::MALFORMED))?,
            at_least: Lsn(at_least),
            stop: self.controller.stop.child_token(),
            // Whoever takes the rows tells the leader.
            on_read: Box::pin(std::future::ready(())),
        };
        let opened = self.controller.reader.read(order).await;
        let opened = opened.map_err(|error| {
            if error.remedy == RangeRemedy::Retry && is_of_this_node(&error) {
                let remedy = RangeRemedy::Elsewhere;
                return DumpError { remedy, ..error };
            }
            error
        });
        Ok((opened?, Allowance::new(credit)))
    }
}

/// Tells whether this node cannot read now, whichever range it is.
fn is_of_this_node(error: &DumpError) -> bool {
    error.explanation.code == codes::dump::CONTROLLER_AWAY.code
}

/// A member, as long as its stream is open.
struct Membership {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let taken = self.shared.members().taken.remove(&self.number);
        let shared = Arc::clone(&self.shared);
        let Some(taken) = taken.filter(|taken| !taken.is_empty()) else {
            return;
        };
        self.shared.controller.orders.spawn(async move {
            for ticket in taken.into_values() {
                let ranges = &shared.controller.ranges;
                ranges.give_up(ticket, GivenUp::Disconnected).await;
            }
        });
    }
}

/// The stream of a member.
struct Joined {
    membership: Membership,
    changes: watch::Receiver<u64>,
    leader: watch::Receiver<Option<String>>,
    is_told: bool,
}

impl Joined {
    async fn next(mut self) -> Option<(RangesChanged, Self)> {
        let controller = &self.membership.shared.controller;
        if self.is_told {
            let me = &controller.address;
            let is_over = |leader: &Option<String>| leader.as_ref() != Some(me);
            let may_come = tokio::select! {
                changed = self.changes.changed() => changed.is_ok(),
                _ = self.leader.wait_for(is_over) => return None,
                () = controller.stop.cancelled() => return None,
            };
            if !may_come {
                // There never will be a range while this node leads.
                drop(self.leader.wait_for(is_over).await);
                return None;
            }
        }
        self.is_told = true;
        let member = RangesMember {
            cluster: controller.cluster.clone(),
            number: self.membership.number,
        };
        let changed = RangesChanged {
            member: Some(member),
        };
        Some((changed, self))
    }
}

/// A range that is read for a member.
struct Reading {
    rows: OpenedRange,
    requests: Streaming<OpenRangeRequest>,
    allowance: Allowance,
    stop: CancellationToken,
}

impl Reading {
    async fn next(mut self) -> Option<(open_range_answer::Kind, Option<Self>)> {
        loop {
            let is_open = self.allowance.is_open();
            let event = tokio::select! {
                biased;
                request = self.requests.message() => {
                    match request.ok().flatten()?.kind {
                        Some(open_range_request::Kind::Credit(bytes)) => self.allowance.grant(bytes),
                        Some(open_range_request::Kind::Open(_)) | None => return None,
                    }
                    continue;
                }
                () = self.stop.cancelled() => return None,
                event = self.rows.rows.recv(), if is_open => event,
            };
            // Without a last word the reader died; so does the stream.
            return Some(match event? {
                RowEvent::Rows(batch) => {
                    self.allowance.spend(batch.bytes.len());
                    let rows = open_range_answer::Kind::Rows(wire::rows(batch));
                    (rows, Some(self))
                }
                RowEvent::End => (open_range_answer::Kind::End(End {}), None),
                RowEvent::Failed(error) => {
                    let failure = wire::failure(&error);
                    (open_range_answer::Kind::Failure(failure), None)
                }
            });
        }
    }
}

fn answer(kind: open_range_answer::Kind) -> Result<OpenRangeAnswer, Status> {
    Ok(OpenRangeAnswer { kind: Some(kind) })
}

fn ended(result: Result<(), DumpError>) -> Response<RangeEnded> {
    let failure = result.err().map(|error| wire::failure(&error));
    Response::new(RangeEnded { failure })
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PeerRanges for PeerRangesService {
    type JoinStream = Answers<RangesChanged>;
    type OpenStream = Answers<OpenRangeAnswer>;

    async fn join(
        &self,
        request: Request<JoinRanges>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let JoinRanges { cluster, node } = request.into_inner();
        let membership = self.shared.join(&cluster)?;
        tracing::debug!(
            node,
            member = membership.number,
            "a node takes part in dumps"
        );
        let joined = Joined {
            membership,
            changes: self.shared.controller.ranges.changes(),
            leader: self.shared.controller.leader.clone(),
            is_told: false,
        };
        let changes = stream::unfold(joined, Joined::next).map(Ok);
        Ok(Response::new(Box::pin(changes)))
    }

    async fn pull(&self, request: Request<PullRange>) -> Result<Response<PulledRange>, Status> {
        let pulled = self.shared.pull(request.into_inner()).await;
        Ok(Response::new(match pulled {
            Ok(ticket) => PulledRange {
                ticket: ticket.as_ref().map(wire::ticket),
                failure: None,
            },
            Err(error) => PulledRange {
                ticket: None,
                failure: Some(wire::failure(&error)),
            },
        }))
    }

    async fn open(
        &self,
        request: Request<Streaming<OpenRangeRequest>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let mut requests = request.into_inner();
        let (rows, allowance) = match self.shared.open(&mut requests).await {
            Ok(opened) => opened,
            Err(error) => {
                let failure = open_range_answer::Kind::Failure(wire::failure(&error));
                return Ok(Response::new(Box::pin(stream::iter([answer(failure)]))));
            }
        };
        let first = answer(open_range_answer::Kind::OpenedAt(rows.at.0));
        let reading = Reading {
            rows,
            requests,
            allowance,
            stop: self.shared.controller.stop.clone(),
        };
        let rows = stream::unfold(Some(reading), |reading| async move {
            let (kind, rest) = reading?.next().await?;
            Some((answer(kind), rest))
        });
        Ok(Response::new(Box::pin(stream::iter([first]).chain(rows))))
    }

    async fn was_read(&self, request: Request<ReadRange>) -> Result<Response<RangeEnded>, Status> {
        Ok(ended(self.shared.was_read(request.get_ref()).await))
    }

    async fn finish(&self, request: Request<FinishRange>) -> Result<Response<RangeEnded>, Status> {
        let (shared, request) = (Arc::clone(&self.shared), request.into_inner());
        // It comes to its end though the caller hangs up: the row is acknowledged.
        let finished = self
            .shared
            .controller
            .orders
            .spawn(async move { shared.finish(request).await });
        let lost = |error: tokio::task::JoinError| Status::internal(error.to_string());
        Ok(ended(finished.await.map_err(lost)?))
    }

    async fn give_up(&self, request: Request<GiveUpRange>) -> Result<Response<RangeEnded>, Status> {
        let (shared, request) = (Arc::clone(&self.shared), request.into_inner());
        let given_up = self
            .shared
            .controller
            .orders
            .spawn(async move { shared.give_up(request).await });
        let lost = |error: tokio::task::JoinError| Status::internal(error.to_string());
        Ok(ended(given_up.await.map_err(lost)?))
    }
}
