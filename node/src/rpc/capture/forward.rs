//! A Capture stream that comes in here and is served by the home of its subscription.
//!
//! Bytes go through untouched in both directions; deadlines and errors are the home's. Before anything was
//! delivered a home that dies, or is not the home any more, is replaced inside the same stream. Afterwards
//! the client holds messages that the next home does not know to be delivered, so the stream ends
//! with UNAVAILABLE (`PGC-G19`) and the client connects again.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as HttpBody, Frame};
use pgcapture_actors::cursors::SubscriptionId;
use pgcapture_engine::{backoff::Backoff, codes};
use pgcapture_proto::status::{CODE_KEY, status};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, body::Body};
use tower::Service as _;

use super::{CAPTURE_PATH, client::SharedClient};
use crate::{homes::HomeError, peers::Peers};

/// Tells the home that it must serve the stream itself, and who forwarded it.
pub(super) const FORWARDED_KEY: &str = "pgcapture-forwarded-by";

/// The deadline of a client's call.
pub(super) const TIMEOUT_KEY: &str = "grpc-timeout";

/// Pause before the home is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(20);

/// The longest pause.
const RETRY_MAX: Duration = Duration::from_millis(250);

/// Tries of a home that cannot be reached and has not refused a connection either: some two seconds. A
/// host that is silent for so long is taken for dead.
const SILENT_TRIES_MAX: u32 = 6;

/// Tries of all nodes together; then the client comes again. With the pauses between them they last
/// longer than a home that stops takes to give its subscriptions back.
const TRIES_MAX: u32 = 20;

/// A node sends the head of its answer before it looks at anything: one that has not within this time,
/// though the connection lives, does not serve.
const HEAD_MAX: Duration = Duration::from_secs(3);

/// Why a node does not serve a stream that nothing was delivered on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rpc) enum Lost {
    /// It refuses connections: its process is gone.
    Refused,
    /// It cannot be reached, or the connection broke.
    Away,
    /// It says that it is not the home, or is about to give it back.
    NotHome,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rpc) enum Next {
    /// Claim the home instead of the node.
    Replace,
    /// Wait, and look for the home again.
    Pause(Duration),
    /// Tell the client.
    Fail,
}

/// The attempts of one stream.
#[derive(Debug)]
pub(in crate::rpc) struct Attempts {
    backoff: Backoff,
    count: u32,
    silent: u32,
}

impl Attempts {
    pub(in crate::rpc) const fn new() -> Self {
        Self {
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
            count: 0,
            silent: 0,
        }
    }

    pub(in crate::rpc) fn on_lost(&mut self, lost: Lost, jitter: f64) -> Next {
        self.count += 1;
        if self.count > TRIES_MAX {
            return Next::Fail;
        }
        match lost {
            Lost::Refused => return Next::Replace,
            Lost::Away => self.silent += 1,
            Lost::NotHome => self.silent = 0,
        }
        if self.silent >= SILENT_TRIES_MAX {
            self.silent = 0;
            return Next::Replace;
        }
        Next::Pause(self.backoff.next_delay(jitter))
    }
}

/// A stream that another node serves.
pub(super) struct Forwarded {
    pub(super) node: String,
    pub(super) id: SubscriptionId,
    pub(super) client: SharedClient,
    pub(super) attempts: Attempts,
    body: Body,
    /// Trailers that came instead of a body.
    refusal: Option<HeaderMap>,
    has_delivered: bool,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// What a forwarded stream has next.
pub(super) enum Event {
    Frame(Frame<Bytes>),
    /// The last frame.
    End(HeaderMap),
    /// Offer it to another node.
    Lost(Lost),
}

/// Opens the stream at its home.
pub(super) async fn open(
    peers: &Peers,
    address: &str,
    me: &str,
    (timeout, client): (Option<&HeaderValue>, &SharedClient),
) -> Result<http::Response<Body>, Lost> {
    let mut channel = peers.channel(address).map_err(|_| Lost::Away)?;
    let mut request = http::Request::new(Body::new(client.offer()));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(CAPTURE_PATH);
    *request.version_mut() = http::Version::HTTP_2;
    let sent = request.headers_mut();
    sent.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    sent.insert(header::TE, HeaderValue::from_static("trailers"));
    if let Some(timeout) = timeout {
        sent.insert(TIMEOUT_KEY, timeout.clone());
    }
    if let Ok(me) = HeaderValue::from_str(me) {
        sent.insert(FORWARDED_KEY, me);
    }
    let opened = tokio::time::timeout(HEAD_MAX, async {
        poll_fn(|cx| channel.poll_ready(cx)).await?;
        channel.call(request).await
    });
    let response = opened.await.map_err(|_| Lost::Away)?;
    let response = response.map_err(|error| lost_of(&error))?;
    Ok(response.map(Body::new))
}

/// Returns what a node's failure to answer proves.
pub(in crate::rpc) fn lost_of(error: &(dyn std::error::Error + 'static)) -> Lost {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            return Lost::Refused;
        }
        cause = error.source();
    }
    Lost::Away
}

impl Forwarded {
    pub(super) fn new(
        (id, node): (SubscriptionId, String),
        (client, attempts): (SharedClient, Attempts),
        response: http::Response<Body>,
        stopping: WaitForCancellationFutureOwned,
    ) -> Self {
        let (head, body) = response.into_parts();
        let is_refusal = head.headers.contains_key(Status::GRPC_STATUS);
        Self {
            node,
            id,
            client,
            attempts,
            body,
            refusal: is_refusal.then_some(head.headers),
            has_delivered: false,
            stopping: Box::pin(stopping),
        }
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.stopping.as_mut().poll(cx).is_ready() {
            let draining = &codes::gateway::DRAINING;
            let told = status(draining.code, "node is draining", draining.next);
            return Poll::Ready(Event::End(super::trailers(&told)));
        }
        if let Some(refusal) = self.refusal.take() {
            return Poll::Ready(self.ended(refusal));
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => match frame.into_trailers() {
                Ok(trailers) => self.ended(trailers),
                Err(frame) => {
                    self.has_delivered |= frame.data_ref().is_some_and(|data| !data.is_empty());
                    Event::Frame(frame)
                }
            },
            Some(Err(error)) => self.broken(error.message()),
            None => self.broken("it ended the stream"),
        })
    }

    fn can_move(&self) -> bool {
        !self.has_delivered && self.client.is_unspent()
    }

    fn ended(&self, trailers: HeaderMap) -> Event {
        if self.can_move() && is_no_home(&trailers) {
            return Event::Lost(Lost::NotHome);
        }
        Event::End(trailers)
    }

    fn broken(&self, why: &str) -> Event {
        if self.can_move() {
            return Event::Lost(Lost::Away);
        }
        Event::End(super::trailers(&home_lost(&self.node, why)))
    }
}

/// Tells whether a node says that it is not the home, or will not be in a moment: it stops, and gives its
/// subscriptions back once its sessions have ended.
fn is_no_home(trailers: &HeaderMap) -> bool {
    let code = trailers.get(CODE_KEY).map(HeaderValue::as_bytes);
    [&codes::gateway::HOME_ELSEWHERE, &codes::gateway::DRAINING]
        .iter()
        .any(|it| code == Some(it.code.as_bytes()))
}

/// The status of a stream whose home went away.
pub(super) fn home_lost(node: &str, why: &str) -> Status {
    let lost = &codes::gateway::HOME_LOST;
    let what = format!("{node}, which keeps the subscription, went away: {why}");
    status(lost.code, what, lost.next)
}

/// The status of a subscription whose home could not be found or changed.
pub(in crate::rpc) fn unplaced(error: &HomeError) -> Status {
    let (explanation, text) = match error {
        HomeError::Propose(error) => (error.explanation(), error.text()),
        HomeError::Unsettled => (&codes::gateway::STREAM_UNAVAILABLE, error.to_string()),
        HomeError::Draining => (&codes::gateway::DRAINING, error.to_string()),
    };
    status(explanation.code, text, explanation.next)
}

/// The status for a node that forwarded a stream to one that is not its home.
pub(super) fn elsewhere() -> Status {
    let elsewhere = &codes::gateway::HOME_ELSEWHERE;
    let what = "this node is not the home of the subscription";
    status(elsewhere.code, what, elsewhere.next)
}

#[cfg(test)]
mod tests {
    use pgcapture_actors::consensus::ProposeError;
    use tonic::Code;

    use super::*;

    #[test]
    fn without_a_majority_the_status_says_so_once() {
        let reason = "no leader is known".to_owned();
        let error = HomeError::Propose(ProposeError::Unavailable { reason });
        let status = unplaced(&error);
        assert_eq!(status.code(), Code::Unavailable);
        let text = "PGC-R01: no majority of the nodes agreed in time: no leader is known; next: ";
        assert!(status.message().starts_with(text), "{}", status.message());
        let unsettled = unplaced(&HomeError::Unsettled);
        assert!(unsettled.message().starts_with("PGC-G10"));
        let draining = unplaced(&HomeError::Draining);
        assert!(draining.message().starts_with("PGC-G09"));
    }

    #[test]
    fn a_home_that_stops_is_asked_for_its_successor() {
        let said = |explanation: &codes::Explanation| {
            super::super::trailers(&status(explanation.code, "it says so", explanation.next))
        };
        assert!(is_no_home(&said(&codes::gateway::DRAINING)));
        assert!(is_no_home(&said(&codes::gateway::HOME_ELSEWHERE)));
        assert!(!is_no_home(&said(&codes::gateway::STREAM_UNAVAILABLE)));
        // It goes on to be asked until it has given back what it had.
        let mut attempts = Attempts::new();
        let pauses = (0..TRIES_MAX).map(|_| match attempts.on_lost(Lost::NotHome, 0.0) {
            Next::Pause(pause) => pause,
            next @ (Next::Replace | Next::Fail) => panic!("{next:?}"),
        });
        let grace = pgcapture_actors::gateway::GatewayLimits::default().drain_grace;
        assert!(pauses.sum::<Duration>() > grace * 2);
    }

    #[test]
    fn a_refused_connection_is_proof_and_silence_is_after_a_while() {
        let mut attempts = Attempts::new();
        assert_eq!(attempts.on_lost(Lost::Refused, 0.0), Next::Replace);
        for _ in 1..SILENT_TRIES_MAX {
            let next = attempts.on_lost(Lost::Away, 1.0);
            assert!(matches!(next, Next::Pause(pause) if pause <= RETRY_MAX));
        }
        assert_eq!(attempts.on_lost(Lost::Away, 0.0), Next::Replace);
    }

    #[test]
    fn a_home_that_moves_all_the_time_is_told_to_the_client() {
        let mut attempts = Attempts::new();
        for _ in 0..TRIES_MAX {
            let next = attempts.on_lost(Lost::NotHome, 0.0);
            assert!(matches!(next, Next::Pause(_)));
        }
        assert_eq!(attempts.on_lost(Lost::NotHome, 0.0), Next::Fail);
    }

    #[test]
    fn refusals_are_found_in_the_chain_of_causes() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(lost_of(&refused), Lost::Refused);
        let wrapped = pgcapture_actors::log::LogError::Io {
            action: "reach",
            path: "b".into(),
            source: refused,
        };
        assert_eq!(lost_of(&wrapped), Lost::Refused);
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(lost_of(&reset), Lost::Away);
    }
}
