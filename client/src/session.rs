//! One connection's way back: acknowledgements, credits and the end.
//!
//! A session owns the outgoing half of one `Capture` call; tickets of delivered changes hold
//! it and answer through it. Acknowledgements of an ordered session with batches that come in
//! order are joined into cumulative ones. A ticket whose connection is gone is answered by the next
//! delivery of the same change.
//!
//! All rows of a range of a dump have the same position. Where their checkpoints say nothing else
//! they are acknowledged one by one: a joined answer could not say how many it stands for, and the
//! gateway, which counts, would take rows for done that are still on their way. In batches the data
//! of a checkpoint has the row's place, and answers are joined across rows and changes.
//!
//! Invariants: a cumulative acknowledgement covers only changes that were acknowledged, along with
//! all that was delivered before them; none is sent any more after a negative one or a repeated
//! delivery in the session.

use std::{
    future::Future as _,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureRequest, Credit, capture_request::Type as RequestType,
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    checkpoint::Checkpoint,
    dedup::{Acknowledged, DEDUP_WINDOW},
    error::Error,
};

/// Acknowledgements on their way to the connection: more than a gateway keeps in flight for
/// one session by default, so that a consumer waits only for a gateway that reads slowly.
pub(crate) const ACK_QUEUE: usize = 8_192;

/// Acknowledgements joined into one at most; those before a slow change wait no longer.
const JOINED_ACKS: u64 = 64;

/// What outlives a connection.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Set when repeated deliveries are to be hidden.
    pub(crate) acknowledged: OnceLock<Mutex<Acknowledged>>,
    pub(crate) closed: AtomicBool,
    /// Sessions so far.
    sessions: AtomicU64,
}

impl Shared {
    /// Hides repeated deliveries from now on.
    pub(crate) fn start_dedup(&self) {
        self.acknowledged
            .get_or_init(|| Mutex::new(Acknowledged::new(DEDUP_WINDOW)));
    }

    pub(crate) fn knows(&self, checkpoint: &Checkpoint) -> bool {
        self.acknowledged.get().is_some_and(|known| {
            known
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(checkpoint)
        })
    }
}

/// The outgoing half of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    requests: mpsc::Sender<CaptureRequest>,
    closing: CancellationToken,
    shared: Arc<Shared>,
    /// Counts from 1.
    number: u64,
    /// Only in ordered sessions with batches: with one active session, whatever lies before a
    /// change was delivered to this session, so that a cumulative acknowledgement is exact.
    line: Option<Mutex<AckLine>>,
}

/// The right, and the duty, to answer one delivered change.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    session: Arc<Session>,
    checkpoint: Checkpoint,
    place: Place,
    /// Answers nothing: another ticket of the same change does.
    is_silent: bool,
}

/// Where a change stands in the order of its session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    index: u64,
    ends_batch: bool,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, joins_acks: bool) -> (Arc<Self>, Outgoing) {
        let (requests, queue) = mpsc::channel(ACK_QUEUE);
        let closing = CancellationToken::new();
        let outgoing = Outgoing {
            queue,
            closing: Some(Box::pin(closing.clone().cancelled_owned())),
        };
        let line = joins_acks.then(Mutex::default);
        let number = shared.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        (
            Arc::new(Self {
                requests,
                closing,
                shared,
                number,
                line,
            }),
            outgoing,
        )
    }

    /// The queue to the connection, for the session's own first message and credits.
    pub(crate) fn requests(&self) -> &mpsc::Sender<CaptureRequest> {
        &self.requests
    }

    /// Registers a delivery and gives its ticket.
    pub(crate) fn ticket(self: &Arc<Self>, checkpoint: Checkpoint, ends_batch: bool) -> Ticket {
        let index = self.line().map_or(0, |mut line| line.deliver(&checkpoint));
        let place = Place { index, ends_batch };
        Ticket {
            session: Arc::clone(self),
            checkpoint,
            place,
            is_silent: false,
        }
    }

    /// An existing row arrived behind this change of the session.
    pub(crate) fn existing_row_behind(&self, last: Option<&Checkpoint>) {
        if let Some(known) = self.shared.acknowledged.get() {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.forget_behind(last, self.number);
        }
    }

    /// Takes no more answers; those accepted are still sent, then the stream half-closes.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    fn line(&self) -> Option<std::sync::MutexGuard<'_, AckLine>> {
        self.line
            .as_ref()
            .map(|line| line.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The requests that an acknowledgement causes now: none, one or two.
    fn acknowledge(&self, checkpoint: &Checkpoint, place: Place) -> [Option<CaptureRequest>; 2] {
        if let Some(known) = self.shared.acknowledged.get() {
            known
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(checkpoint, self.number);
        }
        match self.line() {
            None => [Some(ack(checkpoint, false)), None],
            Some(mut line) => line.acknowledge(checkpoint, place),
        }
    }

    /// What waits to be joined with later acknowledgements.
    pub(crate) fn flush(&self) -> Option<CaptureRequest> {
        self.line().and_then(|mut line| line.break_off())
    }

    pub(crate) async fn send(&self, request: CaptureRequest) -> Result<(), Error> {
        let Err(refused) = self.requests.try_send(request) else {
            return Ok(());
        };
        let sent = match refused {
            mpsc::error::TrySendError::Full(request) => self.requests.send(request).await.is_ok(),
            mpsc::error::TrySendError::Closed(_) => false,
        };
        // A lost connection is no error: the gateway delivers again what it did not hear of.
        if sent || !self.shared.closed.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(Error::Closed)
        }
    }
}

impl Ticket {
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// A ticket of the same change whose answers go nowhere.
    pub(crate) fn silent(&self) -> Self {
        Self {
            is_silent: true,
            ..self.clone()
        }
    }

    pub(crate) fn is_of(&self, session: &Arc<Session>) -> bool {
        Arc::ptr_eq(&self.session, session)
    }

    pub(crate) async fn ack(self) -> Result<(), Error> {
        for request in self.requests().into_iter().flatten() {
            self.session.send(request).await?;
        }
        Ok(())
    }

    pub(crate) async fn nack(self, reason: &str) -> Result<(), Error> {
        if self.is_silent {
            return Ok(());
        }
        if let Some(request) = self.session.flush() {
            self.session.send(request).await?;
        }
        // An empty reason would be an acknowledgement.
        let reason = if reason.is_empty() {
            "requeued"
        } else {
            reason
        };
        let ack = CaptureAck {
            checkpoint: Some(self.checkpoint.to_proto()),
            requeue_reason: reason.to_owned(),
            cumulative: false,
        };
        self.session
            .send(CaptureRequest {
                r#type: Some(RequestType::Ack(ack)),
            })
            .await
    }

    /// The requests of an acknowledgement, for a caller that queues them itself.
    pub(crate) fn requests(&self) -> [Option<CaptureRequest>; 2] {
        if self.is_silent {
            return [None, None];
        }
        self.session.acknowledge(&self.checkpoint, self.place)
    }
}

fn ack(checkpoint: &Checkpoint, cumulative: bool) -> CaptureRequest {
    let ack = CaptureAck {
        checkpoint: Some(checkpoint.to_proto()),
        requeue_reason: String::new(),
        cumulative,
    };
    CaptureRequest {
        r#type: Some(RequestType::Ack(ack)),
    }
}

/// Allows more messages.
pub(crate) fn credit(messages: u32) -> CaptureRequest {
    CaptureRequest {
        r#type: Some(RequestType::Credit(Credit { messages })),
    }
}

/// Joins acknowledgements that come in the order of delivery.
#[derive(Debug, Default)]
pub(crate) struct AckLine {
    /// The index that the next delivery gets.
    delivered: u64,
    /// Everything before this index was acknowledged in order.
    answered: u64,
    /// Acknowledged in order and not yet sent: how many, and the last.
    waiting: u64,
    last: Option<Checkpoint>,
    highest: Option<Checkpoint>,
    /// Each for itself from here on.
    broken: bool,
}

impl AckLine {
    fn deliver(&mut self, checkpoint: &Checkpoint) -> u64 {
        let ascends = self
            .highest
            .as_ref()
            .is_none_or(|highest| checkpoint > highest);
        // Rows of a dump stand between changes without a place in their order.
        if !checkpoint.is_dump() {
            self.broken |= !ascends;
            self.highest = Some(checkpoint.clone());
        }
        let index = self.delivered;
        self.delivered += 1;
        index
    }

    fn acknowledge(
        &mut self,
        checkpoint: &Checkpoint,
        place: Place,
    ) -> [Option<CaptureRequest>; 2] {
        if self.broken || place.index != self.answered {
            return [self.flush(), Some(ack(checkpoint, false))];
        }
        self.answered += 1;
        if checkpoint.is_dump() && checkpoint.data().is_empty() {
            return [self.flush(), Some(ack(checkpoint, false))];
        }
        self.waiting += 1;
        self.last = Some(checkpoint.clone());
        let due = place.ends_batch || self.waiting >= JOINED_ACKS;
        [if due { self.flush() } else { None }, None]
    }

    /// Sends what waits. Whoever breaks the line later is not covered: the cumulative
    /// acknowledgement ends before the first change without an answer.
    fn flush(&mut self) -> Option<CaptureRequest> {
        self.waiting = 0;
        self.last.take().map(|last| ack(&last, true))
    }

    fn break_off(&mut self) -> Option<CaptureRequest> {
        self.broken = true;
        self.flush()
    }
}

/// The requests of one session as the body of its call.
pub(crate) struct Outgoing {
    queue: mpsc::Receiver<CaptureRequest>,
    closing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Stream for Outgoing {
    type Item = CaptureRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<CaptureRequest>> {
        if let Poll::Ready(next) = self.queue.poll_recv(cx) {
            return Poll::Ready(next);
        }
        // Looked at only when the queue is empty, which keeps it off the path of every message.
        if let Some(closing) = &mut self.closing {
            ready!(closing.as_mut().poll(cx));
            self.closing = None;
            self.queue.close();
        }
        self.queue.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::lsn::Lsn;

    fn at(seq: u32) -> Checkpoint {
        Checkpoint::new(Lsn::new(7), seq, Bytes::new())
    }

    fn sent(requests: [Option<CaptureRequest>; 2]) -> Vec<(u32, bool)> {
        let ack = |request: CaptureRequest| match request.r#type {
            Some(RequestType::Ack(ack)) => (ack.checkpoint.unwrap().seq, ack.cumulative),
            other => panic!("not an acknowledgement: {other:?}"),
        };
        requests.into_iter().flatten().map(ack).collect()
    }

    fn line_of(count: u32) -> AckLine {
        let mut line = AckLine::default();
        for seq in 0..count {
            assert_eq!(line.deliver(&at(seq)), u64::from(seq));
        }
        line
    }

    fn acknowledge(line: &mut AckLine, seq: u32, ends_batch: bool) -> Vec<(u32, bool)> {
        sent(line.acknowledge(
            &at(seq),
            Place {
                index: u64::from(seq),
                ends_batch,
            },
        ))
    }

    #[test]
    fn acknowledgements_in_order_become_one_at_the_end_of_the_batch() {
        let mut line = line_of(3);
        assert!(acknowledge(&mut line, 0, false).is_empty());
        assert!(acknowledge(&mut line, 1, false).is_empty());
        assert_eq!(acknowledge(&mut line, 2, true), [(2, true)]);
    }

    #[test]
    fn a_cumulative_acknowledgement_never_passes_an_unanswered_change() {
        let mut line = line_of(4);
        assert!(acknowledge(&mut line, 0, false).is_empty());
        assert_eq!(acknowledge(&mut line, 2, false), [(0, true), (2, false)]);
        assert_eq!(acknowledge(&mut line, 3, true), [(3, false)]);
    }

    #[test]
    fn after_a_negative_one_each_goes_for_itself() {
        let mut line = line_of(4);
        assert!(acknowledge(&mut line, 0, false).is_empty());
        assert_eq!(sent([line.break_off(), None]), [(0, true)]);
        assert_eq!(acknowledge(&mut line, 2, false), [(2, false)]);
        assert_eq!(acknowledge(&mut line, 3, true), [(3, false)]);
    }

    #[test]
    fn repeated_changes_break_the_line() {
        let mut line = line_of(3);
        line.deliver(&at(1));
        assert_eq!(acknowledge(&mut line, 0, false), [(0, false)]);
    }

    /// A row of range 9.
    fn existing(data: &'static [u8]) -> Checkpoint {
        Checkpoint::new(Lsn::default(), 9, Bytes::from_static(data))
    }

    fn acknowledged_in_order(messages: &[Checkpoint]) -> Vec<(u32, bool)> {
        let mut line = AckLine::default();
        for (index, message) in (0..).zip(messages) {
            assert_eq!(line.deliver(message), index);
        }
        let mut all = Vec::new();
        for (index, message) in (0..).zip(messages) {
            let ends_batch = index + 1 == messages.len() as u64;
            all.extend(sent(line.acknowledge(message, Place { index, ends_batch })));
        }
        all
    }

    #[test]
    fn rows_without_a_place_go_one_by_one_and_changes_around_them_are_joined() {
        let rows = [existing(&[]), existing(&[])];
        let messages = [&[at(0), at(1)][..], &rows, &[at(2), at(3)]].concat();
        let expected = [(1, true), (9, false), (9, false), (3, true)];
        assert_eq!(acknowledged_in_order(&messages), expected);
    }

    #[test]
    fn rows_with_a_place_are_joined_with_what_is_around_them() {
        let rows = [existing(&[0, 0, 0, 1]), existing(&[1])];
        let messages = [&[at(0)][..], &rows, &[at(2)]].concat();
        assert_eq!(acknowledged_in_order(&messages), [(2, true)]);
        assert_eq!(acknowledged_in_order(&rows), [(9, true)]);
    }

    #[test]
    fn a_change_behind_an_unanswered_existing_row_is_acknowledged_alone() {
        let messages = [at(0), existing(&[1]), at(1)];
        let mut line = AckLine::default();
        for message in &messages {
            line.deliver(message);
        }
        let place = |index| Place {
            index,
            ends_batch: true,
        };
        assert_eq!(sent(line.acknowledge(&at(0), place(0))), [(0, true)]);
        assert_eq!(sent(line.acknowledge(&at(1), place(2))), [(1, false)]);
    }
}
