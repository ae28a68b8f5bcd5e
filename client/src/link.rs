//! One open `Capture` call: messages in, the client's own answers out.
//!
//! Takes batches apart and keeps what the client itself owes the gateway (acknowledgements of
//! changes nobody wants, credits) in order with everything else. Never waits: it is polled.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::Stream as _;
use pgcapture_proto::pgcapture::{CaptureInit, CaptureRequest, capture_request::Type};
use tokio_util::sync::PollSender;
use tonic::{Request, Streaming, codegen::http::uri::PathAndQuery, transport::Endpoint};

use crate::{
    checkpoint::Checkpoint,
    client::{Client, connect},
    codec::CaptureCodec,
    error::Error,
    session::{Session, Shared, credit},
    trust,
    wire::{self, Body, Parsed},
};

const CAPTURE: &str = "/pgcapture.DBLogGateway/Capture";

/// How a link is opened; the same for every attempt.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) client: Client,
    pub(crate) init: CaptureInit,
    pub(crate) shared: Arc<Shared>,
    /// Acknowledgements may be joined: batches in the order of one session.
    pub(crate) joins_acks: bool,
    pub(crate) credits: Option<u32>,
}

pub(crate) struct Link {
    incoming: Streaming<Bytes>,
    session: Arc<Session>,
    batch: Bytes,
    own: PollSender<CaptureRequest>,
    owed: VecDeque<CaptureRequest>,
    credits: Option<u32>,
    unreplaced: u32,
    /// The highest change that this session brought.
    last: Option<Checkpoint>,
}

impl Plan {
    /// Connects and opens the call.
    pub(crate) async fn open(self, endpoint: Endpoint) -> Result<Link, Error> {
        let channel = connect(&endpoint).await?;
        let (session, outgoing) = Session::new(Arc::clone(&self.shared), self.joins_acks);
        let init = CaptureRequest {
            r#type: Some(Type::Init(self.init)),
        };
        session
            .requests()
            .try_send(init)
            .map_err(|_| Error::Closed)?;
        let settings = self.client.settings();
        let mut request = Request::new(outgoing);
        if let Some(authorization) = settings.authorization()? {
            request
                .metadata_mut()
                .insert("authorization", authorization);
        }
        let mut grpc =
            tonic::client::Grpc::new(channel).max_decoding_message_size(settings.message_limit());
        let failed = |source| trust::not_connected(&endpoint, source);
        grpc.ready().await.map_err(failed)?;
        let path = PathAndQuery::from_static(CAPTURE);
        let incoming = grpc
            .streaming(request, path, CaptureCodec)
            .await
            .map_err(|status| trust::not_opened(&endpoint, status))?
            .into_inner();
        let own = PollSender::new(session.requests().clone());
        Ok(Link {
            incoming,
            session,
            batch: Bytes::new(),
            own,
            owed: VecDeque::new(),
            credits: self.credits,
            unreplaced: 0,
            last: None,
        })
    }
}

impl Link {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Notes what came, so that no repetition is hidden that an existing row makes needed.
    pub(crate) fn note(&mut self, checkpoint: &Checkpoint) {
        if checkpoint.is_dump() {
            self.session.existing_row_behind(self.last.as_ref());
        } else if self.last.as_ref().is_none_or(|last| checkpoint > last) {
            self.last = Some(checkpoint.clone());
        }
    }

    /// Queues requests of the client itself; sent before the next message is taken.
    pub(crate) fn owe(&mut self, requests: impl IntoIterator<Item = CaptureRequest>) {
        self.owed.extend(requests);
    }

    pub(crate) fn take_owed(&mut self) -> VecDeque<CaptureRequest> {
        std::mem::take(&mut self.owed)
    }

    /// The next message and whether it ends its batch; `None` at the end of the stream.
    pub(crate) fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(Parsed, bool)>, Error>> {
        ready!(self.poll_owed(cx));
        loop {
            if let Some(parsed) = wire::next_of_batch(&mut self.batch)? {
                self.count();
                let ends_batch = self.batch.is_empty();
                return Poll::Ready(Ok(Some((parsed, ends_batch))));
            }
            let bytes = match ready!(std::pin::Pin::new(&mut self.incoming).poll_next(cx)) {
                None => return Poll::Ready(Ok(None)),
                Some(answer) => answer?,
            };
            let parsed = wire::parse(&bytes)?;
            if let Body::Batch(batch) = parsed.body {
                self.batch = batch;
            } else {
                self.count();
                return Poll::Ready(Ok(Some((parsed, true))));
            }
        }
    }

    fn poll_owed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.owed.is_empty() {
            let reserved = ready!(self.own.poll_reserve(cx)).is_ok();
            if let Some(request) = self.owed.pop_front()
                && !(reserved && self.own.send_item(request).is_ok())
            {
                // The connection is gone; the stream is about to say so.
                self.owed.clear();
            }
        }
        Poll::Ready(())
    }

    /// Replaces used credits once half of them are gone.
    fn count(&mut self) {
        let Some(credits) = self.credits else { return };
        self.unreplaced += 1;
        if self.unreplaced.saturating_mul(2) >= credits {
            self.owed.push_back(credit(self.unreplaced));
            self.unreplaced = 0;
        }
    }
}
