//! The membership of this node in the leader's controller, and the task that keeps one.
//!
//! An order whose answer does not come may have been done or not. Neither side could tell which ranges the
//! other takes for held, so such a membership is ended: the leader gives up what it holds, and this node
//! joins anew.

use std::{sync::Arc, time::Duration};

use pgcapture_actors::{
    cursors::SubscriptionId,
    dump::{Delivered, DumpError, GivenUp, RangeSource, RangeTicket},
};
use pgcapture_engine::backoff::Backoff;
use pgcapture_proto::peer::v1::{
    FinishRange, GiveUpRange, JoinRanges, PullRange, RangeFailure, RangesChanged, RangesMember,
    ReadRange, peer_ranges_client::PeerRangesClient,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Inner, rows::MESSAGE_BYTES_MAX, wire};
use crate::peers::PeerChannel;

/// A leader that has not answered by then is away, and the membership ends.
const CALL_MAX: Duration = Duration::from_secs(10);

/// The same for a finish, which is an entry of the common log behind another one: twice what such an entry
/// may take, and more, since a membership that ends has every range of this node read again.
const FINISH_MAX: Duration = Duration::from_secs(20);

/// Pause before the leader is joined again.
const JOIN_FIRST: Duration = Duration::from_millis(20);

/// The longest pause; a new leader ends it.
const JOIN_MAX: Duration = Duration::from_millis(500);

/// A membership. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Link {
    way: Way,
    /// The membership has ended: what it holds is handed out again.
    pub(super) gone: CancellationToken,
}

/// The way to the controller.
#[derive(Clone, Debug)]
enum Way {
    /// This node leads.
    Here(Arc<dyn RangeSource>),
    /// Another one does.
    There(Box<Member>),
}

/// A membership over the peer API.
#[derive(Clone, Debug)]
pub(super) struct Member {
    client: PeerRangesClient<PeerChannel>,
    member: RangesMember,
}

impl Link {
    fn new(way: Way) -> Self {
        let gone = CancellationToken::new();
        Self { way, gone }
    }

    pub(super) async fn pull(&self, id: &SubscriptionId) -> Result<Option<RangeTicket>, DumpError> {
        let Member { mut client, member } = match &self.way {
            Way::Here(local) => return local.pull(id).await,
            Way::There(member) => Member::clone(member),
        };
        let request = PullRange {
            member: Some(member),
            stream: id.stream.clone(),
            consumer: id.consumer.clone(),
        };
        // What it hands out in an answer that is lost would be held by nobody.
        let pulled = self
            .answered(CALL_MAX, client.pull(request))
            .await?
            .into_inner();
        refused(pulled.failure)?;
        let malformed = || wire::away(wire::MALFORMED);
        let ticket = pulled
            .ticket
            .map(|ticket| wire::to_ticket(ticket).ok_or_else(malformed));
        ticket.transpose()
    }

    /// Tells the controller that the server has no more rows of a range.
    pub(super) async fn was_read(&self, ticket: &RangeTicket) {
        let Member { mut client, member } = match &self.way {
            Way::Here(local) => return local.was_read(ticket).await,
            Way::There(member) => Member::clone(member),
        };
        let number = ticket.number;
        let request = ReadRange {
            member: Some(member),
            number,
        };
        if let Err(error) = in_time(CALL_MAX, client.was_read(request)).await {
            tracing::debug!(number, %error, "a range was read for nobody");
        }
    }

    pub(super) async fn finish(
        &self,
        ticket: RangeTicket,
        delivered: Delivered,
    ) -> Result<(), DumpError> {
        if self.gone.is_cancelled() {
            return Err(wire::away("the range was handed out by another leader"));
        }
        let Member { mut client, member } = match &self.way {
            Way::Here(local) => return local.finish(ticket, delivered).await,
            Way::There(member) => Member::clone(member),
        };
        let request = FinishRange {
            member: Some(member),
            number: ticket.number,
            row_count: delivered.row_count,
            bytes: delivered.bytes,
        };
        let finished = self.answered(FINISH_MAX, client.finish(request)).await?;
        refused(finished.into_inner().failure)
    }

    pub(super) async fn give_up(&self, ticket: RangeTicket, reason: GivenUp) {
        let Member { mut client, member } = match &self.way {
            Way::Here(local) => return local.give_up(ticket, reason).await,
            Way::There(member) => Member::clone(member),
        };
        let number = ticket.number;
        let request = GiveUpRange {
            member: Some(member),
            number,
            reason: Some(wire::reason(reason)),
        };
        if let Err(error) = self.answered(CALL_MAX, client.give_up(request)).await {
            // With the membership everything that it holds is given up.
            tracing::debug!(number, %error, "a range was given back to nobody");
        }
    }

    /// Waits for the answer to an order that changes what the membership holds; without one it ends.
    async fn answered<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, DumpError> {
        let answer = in_time(limit, call).await;
        if let Err(error) = &answer
            && !self.gone.is_cancelled()
        {
            let code = error.explanation.code;
            tracing::warn!(code, %error, "the ranges of this node are read again");
            self.gone.cancel();
        }
        answer
    }
}

fn refused(failure: Option<RangeFailure>) -> Result<(), DumpError> {
    failure.map_or(Ok(()), |failure| Err(wire::to_error(&failure)))
}

pub(super) fn not_reached(status: &Status) -> DumpError {
    wire::away(format!("the leader does not answer: {}", status.message()))
}

async fn in_time<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, DumpError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|status| not_reached(&status)),
        Err(_) => Err(wire::away(format!("the leader is silent for {limit:?}"))),
    }
}

/// Stays a member of whoever leads: the body of the task.
pub(super) async fn follow(inner: Arc<Inner>) {
    let mut leader = inner.leadership.leader.clone();
    let mut backoff = Backoff::new(JOIN_FIRST, JOIN_MAX);
    loop {
        let now = leader.borrow_and_update().clone();
        let lead = async {
            match now {
                Some(address) if address == inner.leadership.address => lead_here(&inner).await,
                Some(address) => {
                    let (error, has_joined) = lead_there(&inner, &address).await;
                    tracing::debug!(%error, address, "is no member of the leader");
                    if has_joined {
                        backoff.reset();
                    }
                    inner.set_link(None);
                    tokio::time::sleep(backoff.next_delay(rand::random())).await;
                }
                None => {
                    inner.set_link(None);
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = lead => {}
            changed = leader.changed() => {
                inner.set_link(None);
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

async fn lead_here(inner: &Inner) {
    let local = &inner.leadership.local;
    let mut changes = local.changes();
    inner.set_link(Some(Link::new(Way::Here(Arc::clone(local)))));
    while changes.changed().await.is_ok() {
        inner.tell();
    }
    // There never will be any range, until another node leads.
    std::future::pending::<()>().await;
}

/// Returns why it is no member any more, and whether it was.
async fn lead_there(inner: &Inner, address: &str) -> (DumpError, bool) {
    let (member, mut changes) = match join(inner, address).await {
        Ok(joined) => joined,
        Err(error) => return (error, false),
    };
    let link = Link::new(Way::There(Box::new(member)));
    let gone = link.gone.clone();
    inner.set_link(Some(link));
    loop {
        // Returning drops the stream, which tells the leader.
        let change = gone.run_until_cancelled(changes.message()).await;
        match change {
            Some(Ok(Some(_))) => inner.tell(),
            Some(Ok(None)) => return (wire::away("the leader ended the membership"), true),
            Some(Err(status)) => return (not_reached(&status), true),
            None => return (wire::away("the leader left an order unanswered"), true),
        }
    }
}

async fn join(
    inner: &Inner,
    address: &str,
) -> Result<(Member, Streaming<RangesChanged>), DumpError> {
    let leadership = &inner.leadership;
    let channel = leadership.peers.channel(address);
    let channel = channel.map_err(|error| wire::away(error.to_string()))?;
    let mut client = PeerRangesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let request = JoinRanges {
        cluster: leadership.cluster.clone(),
        node: leadership.node.clone(),
    };
    let mut changes = in_time(CALL_MAX, client.join(request)).await?.into_inner();
    let first = in_time(CALL_MAX, changes.message()).await?;
    let member = first.and_then(|first| first.member);
    let member = member.ok_or_else(|| wire::away(wire::MALFORMED))?;
    Ok((Member { client, member }, changes))
}
