//! `pgcapture.DBLogGateway` over gRPC: the transport around a session of the gateway.
//!
//! A stream whose subscription is at home on another node is forwarded there (`forward`). Written by hand, without a tonic codec: a session hands over whole gRPC frames, hundreds of
//! messages in one piece, and the body passes them on untouched. Owns nothing but the two ends of the
//! stream. Response headers go out at once, so that a client may wait for them before it sends init;
//! every error comes as the status at the end.

mod client;

pub(in crate::rpc) mod forward;

mod opening;

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, future::BoxFuture};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as HttpBody, Frame};
use pgcapture_actors::gateway::{CaptureError, Deliveries, GatewayHandle};
use pgcapture_proto::status::status;
use tonic::{Code, Status, body::Body, server::NamedService, transport::Server};
use tower::Service;

use self::{
    client::Client,
    forward::{Event, FORWARDED_KEY, Forwarded, TIMEOUT_KEY},
    opening::{Opened, Opening},
};
use super::codec::CaptureRequests;
use crate::homes::{Held, Homes};

/// Name of the service in paths, health and reflection.
pub const SERVICE_NAME: &str = "pgcapture.DBLogGateway";

/// The one method.
const CAPTURE_PATH: &str = "/pgcapture.DBLogGateway/Capture";

/// What a client may send on one stream before the gateway has read it. Acknowledgements are small
/// and read at once; 1 MiB holds some 60,000.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// The same for all streams of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Streams on one connection: a proxy may bring all consumers over a single one.
pub const CONCURRENT_STREAMS_MAX: u32 = 10_000;

/// A connection that is silent for this long is asked whether it lives; without an answer within the
/// same time it is closed, and what its sessions held is delivered to others.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Sets a tonic server up for Capture streams.
#[must_use]
pub fn configure(server: Server) -> Server {
    server
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CONCURRENT_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_INTERVAL))
        .tcp_nodelay(true)
}

/// Returns the status that a client sees of an error.
#[must_use]
pub fn capture_status(error: &CaptureError) -> Status {
    let explanation = error.explanation();
    status(explanation.code, chain(error), explanation.next)
}

/// Joins the causes; `Display` of an error does not repeat its source.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CaptureService {
    gateway: GatewayHandle,
    homes: Option<Homes>,
}

impl CaptureService {
    /// Serves the sessions of `gateway`.
    #[must_use]
    pub const fn new(gateway: GatewayHandle) -> Self {
        let homes = None;
        Self { gateway, homes }
    }

    /// Serves the sessions of `gateway` whose home is here, and forwards the others.
    #[must_use]
    pub const fn with_homes(gateway: GatewayHandle, homes: Homes) -> Self {
        let homes = Some(homes);
        Self { gateway, homes }
    }
}

impl NamedService for CaptureService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for CaptureService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (gateway, homes) = (self.gateway.clone(), self.homes.clone());
        Box::pin(async move {
            if let Some(refusal) = refuse(&request) {
                return Ok(refusal.into_http());
            }
            if let Some(homes) = homes {
                let (head, body) = request.into_parts();
                let is_forwarded = head.headers.contains_key(FORWARDED_KEY);
                let opening = Opening {
                    gateway,
                    homes,
                    timeout: head.headers.get(TIMEOUT_KEY).cloned(),
                };
                let opened = opening.clone().open(Client::new(body), is_forwarded);
                return Ok(respond(Stage::Opening(Box::pin(opened)), Some(opening)));
            }
            let requests = CaptureRequests::new(request.into_body());
            Ok(match gateway.capture(Box::new(requests)).await {
                Ok(deliveries) => {
                    let _held = None;
                    respond(Stage::Here { deliveries, _held }, None)
                }
                Err(error) => capture_status(&error).into_http(),
            })
        })
    }
}

/// Refuses what is not a call that this service understands.
fn refuse(request: &http::Request<Body>) -> Option<Status> {
    if request.uri().path() != CAPTURE_PATH {
        return Some(Status::new(Code::Unimplemented, "no such method"));
    }
    let encoding = request.headers().get("grpc-encoding");
    if encoding.is_some_and(|encoding| encoding != "identity") {
        let mut refusal = Status::new(Code::Unimplemented, "compression is not supported");
        refusal.metadata_mut().insert(
            "grpc-accept-encoding",
            tonic::metadata::MetadataValue::from_static("identity"),
        );
        return Some(refusal);
    }
    None
}

fn respond(stage: Stage, opening: Option<Opening>) -> http::Response<Body> {
    let body = DeliveryBody { stage, opening };
    let mut response = http::Response::new(Body::new(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

/// Frames of messages, then the status.
struct DeliveryBody {
    stage: Stage,
    /// How to open the stream again elsewhere; `None` once it is served here.
    opening: Option<Opening>,
}

/// Who serves the stream.
enum Stage {
    /// It is being found out.
    Opening(BoxFuture<'static, Result<Opened, Status>>),
    /// This node; the subscription stays at home here meanwhile.
    Here {
        deliveries: Deliveries,
        _held: Option<Held>,
    },
    /// Another node.
    There(Box<Forwarded>),
    Ended,
}

impl DeliveryBody {
    fn end(&mut self, trailers: HeaderMap) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.stage = Stage::Ended;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl HttpBody for DeliveryBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            match &mut self.stage {
                Stage::Here { deliveries, .. } => {
                    return match std::task::ready!(Pin::new(deliveries).poll_next(cx)) {
                        Some(Ok(chunk)) => Poll::Ready(Some(Ok(Frame::data(chunk.bytes)))),
                        Some(Err(error)) => self.end(trailers(&capture_status(&error))),
                        None => self.end(trailers(&Status::new(Code::Ok, ""))),
                    };
                }
                Stage::There(forwarded) => match std::task::ready!(forwarded.poll_event(cx)) {
                    Event::Frame(frame) => return Poll::Ready(Some(Ok(frame))),
                    Event::End(trailers) => return self.end(trailers),
                    Event::Lost(lost) => {
                        let there = std::mem::replace(&mut self.stage, Stage::Ended);
                        if let (Stage::There(forwarded), Some(opening)) = (there, &self.opening) {
                            let opened = opening.clone().open_again(*forwarded, lost);
                            self.stage = Stage::Opening(Box::pin(opened));
                        }
                    }
                },
                Stage::Opening(opening) => match std::task::ready!(opening.as_mut().poll(cx)) {
                    Ok(Opened::Here(deliveries, _held)) => {
                        // It stays here; an idle stream keeps nothing that it does not need.
                        self.opening = None;
                        self.stage = Stage::Here { deliveries, _held };
                    }
                    Ok(Opened::There(forwarded)) => self.stage = Stage::There(forwarded),
                    Err(status) => return self.end(trailers(&status)),
                },
                Stage::Ended => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Ended)
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // A text that cannot be a header: the code alone says enough.
        trailers = HeaderMap::new();
        let code = HeaderValue::from(status.code() as i32);
        trailers.insert(Status::GRPC_STATUS, code);
    }
    trailers
}
