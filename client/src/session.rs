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

mod ack_line;

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
pub(crate) use ack_line::Place;
use ack_line::{AckLine, ack};

/// Acknowledgements on their way to the connection: more than a gateway keeps in flight for
/// one session by default, so that a consumer waits only for a gateway that reads slowly.
pub(crate) const ACK_QUEUE: usize = 8_192;

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

/// Allows more messages.
pub(crate) fn credit(messages: u32) -> CaptureRequest {
    CaptureRequest {
        r#type: Some(RequestType::Credit(Credit { messages })),
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
