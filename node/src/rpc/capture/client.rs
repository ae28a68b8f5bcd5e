//! The client's half of a stream that may be served elsewhere.
//!
//! What the client sent first is kept until it is certain who serves it, so that a stream can be offered
//! to one node after another. As soon as something else of it went on, it belongs to that node.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use pgcapture_proto::pgcapture::{CaptureInit, CaptureRequest, capture_request};
use prost::Message as _;
use tonic::{Status, body::Body};

use crate::rpc::codec::{CaptureRequests, first_frame};

/// What a client has sent so far, and the rest.
#[derive(Debug)]
pub(super) struct Client {
    sent: BytesMut,
    body: Body,
}

impl Client {
    pub(super) fn new(body: Body) -> Self {
        Self {
            sent: BytesMut::new(),
            body,
        }
    }

    /// Reads up to init; `None` when something else comes, which is for the gateway to refuse.
    pub(super) async fn init(&mut self) -> Option<CaptureInit> {
        loop {
            if let Some(frame) = first_frame(&self.sent).ok()? {
                let request = CaptureRequest::decode(frame).ok()?;
                return match request.r#type {
                    Some(capture_request::Type::Init(init)) => Some(init),
                    Some(capture_request::Type::Ack(_) | capture_request::Type::Credit(_))
                    | None => None,
                };
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.sent.extend_from_slice(data);
            }
        }
    }

    /// Its requests, from the first one.
    pub(super) fn requests(self) -> CaptureRequests {
        CaptureRequests::after(self.sent, self.body)
    }

    pub(super) fn share(self) -> SharedClient {
        SharedClient {
            half: Arc::new(Mutex::new(Half {
                sent: self.sent.freeze(),
                body: Some(self.body),
                turn: 0,
                has_more: false,
            })),
        }
    }
}

/// A client that is offered to nodes, one at a time.
#[derive(Clone, Debug)]
pub(super) struct SharedClient {
    half: Arc<Mutex<Half>>,
}

#[derive(Debug)]
struct Half {
    sent: Bytes,
    /// `None` once it is served here.
    body: Option<Body>,
    /// Counts the nodes; only the newest may read.
    turn: u64,
    /// Something after `sent` went on.
    has_more: bool,
}

impl SharedClient {
    /// Its bytes for the next node; whoever had them before gets no more.
    pub(super) fn offer(&self) -> OfferedBody {
        let mut half = self.lock();
        half.turn += 1;
        OfferedBody {
            turn: half.turn,
            client: self.clone(),
            is_begun: false,
        }
    }

    /// Tells whether another node may have it from the beginning.
    pub(super) fn is_unspent(&self) -> bool {
        let half = self.lock();
        !half.has_more && half.body.is_some()
    }

    /// Takes it back to serve it here; once.
    pub(super) fn take(&self) -> Option<Client> {
        let mut half = self.lock();
        half.turn += 1;
        let body = half.body.take()?;
        Some(Client {
            sent: BytesMut::from(&half.sent[..]),
            body,
        })
    }

    /// A panic under the lock is one of the body's; it ends the stream anyway.
    fn lock(&self) -> MutexGuard<'_, Half> {
        self.half.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a client, untouched, for one node.
#[derive(Debug)]
pub(super) struct OfferedBody {
    client: SharedClient,
    turn: u64,
    is_begun: bool,
}

impl HttpBody for OfferedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let client = self.client.clone();
        let mut half = client.lock();
        if half.turn != self.turn {
            return Poll::Ready(None);
        }
        if !std::mem::replace(&mut self.is_begun, true) {
            return Poll::Ready(Some(Ok(Frame::data(half.sent.clone()))));
        }
        let Some(body) = &mut half.body else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        half.has_more = true;
        Poll::Ready(frame)
    }
}
