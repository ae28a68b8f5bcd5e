//! The measuring consumer: one Capture stream, every message acknowledged by itself as old clients
//! do, or by the batch.
//!
//! Checks that positions only grow, so that a figure is never one of messages lost or doubled.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, StreamBody};
use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureMessage, CaptureRequest, Change, capture_request,
    db_log_gateway_client::DbLogGatewayClient, field,
};
use prost_types::{ListValue, Value, value::Kind};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{Service as _, ServiceExt as _};

use super::{child, frames, measure};

/// Windows of a client that expects much.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Frames of HTTP/2 as large as a batch, as our client crate asks for.
const FRAME_BYTES_MAX: u32 = 256 << 10;

/// Acknowledgements on their way to the connection; each place holds what one read brought.
const ACKS_QUEUE_MAX: usize = 64;

/// Acknowledgements in one place of that queue at most: those of some 40 KB of narrow rows.
const ACKS_TOGETHER_MAX: usize = 256;

/// Largest message that the generated client takes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A stream that is silent for this long will not bring the rest.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// 2000-01-01 in seconds since 1970: where PostgreSQL's time begins.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// Largest latency that is told apart, in microseconds.
const LATENCY_MAX: u64 = 60_000_000;

/// What to consume.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// Address of the node.
    pub(super) address: String,
    /// What to subscribe to.
    pub(super) uri: String,
    /// Changes to receive.
    pub(super) changes: u64,
    /// Changes in a message; 0 takes them one by one.
    pub(super) batch: u32,
    /// What the consumer is made of.
    pub(super) client: ClientKind,
    /// Measure how old each row's first timestamp is, from this change on.
    pub(super) latency_from: Option<u64>,
    /// Which messages.
    pub(super) wants: Wants,
}

/// Which messages a consumer wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Wants {
    /// Every change in the log.
    Log,
    /// The changes of this table from now on.
    Live(String),
    /// The existing rows of this table, which have no position of their own.
    Rows(String),
}

impl Wants {
    /// Parameters of the stream.
    fn parameters(&self) -> Vec<(&'static str, Value)> {
        let text = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        match self {
            Self::Log => vec![("Start", text("earliest"))],
            Self::Live(table) | Self::Rows(table) => {
                let tables = Kind::ListValue(ListValue {
                    values: vec![text(table)],
                });
                let tables = Value { kind: Some(tables) };
                vec![("Start", text("latest")), ("Tables", tables)]
            }
        }
    }
}

/// What a measuring consumer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub(super) enum ClientKind {
    /// The generated tonic client: every change is decoded, every acknowledgement is a message.
    Generated,
    /// Frames read by hand, only the checkpoint is looked at: the cost of the node alone.
    Raw,
}

impl ClientKind {
    /// Returns the word of the command line.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Raw => "raw",
        }
    }
}

/// The stream is open.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Opened {}

/// Everything is received and acknowledged.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    /// Seconds from the request to the last acknowledgement.
    pub(super) seconds: f64,
    /// Processor seconds of this process.
    pub(super) cpu_seconds: f64,
    /// Latencies in milliseconds: p50, p99 and the largest.
    pub(super) latency: Option<[f64; 3]>,
}

/// Opens a connection to a node.
pub(super) async fn connect(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let endpoint = endpoint
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .tcp_nodelay(true);
    endpoint.connect().await.context("connect to the node")
}

/// An open Capture stream.
#[derive(Debug)]
pub(super) struct Stream {
    requests: mpsc::Sender<Bytes>,
    body: Body,
    received: BytesMut,
}

impl Stream {
    /// Opens a stream.
    pub(super) async fn open(mut channel: Channel, init: Bytes) -> anyhow::Result<Self> {
        let (requests, outbound) = mpsc::channel(ACKS_QUEUE_MAX);
        requests.send(init).await?;
        let frames = ReceiverStream::new(outbound)
            .map(|bytes| Ok::<_, tonic::Status>(http_body::Frame::data(bytes)));
        let request = http::Request::post("/pgcapture.DBLogGateway/Capture")
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(Body::new(StreamBody::new(frames)))?;
        let response = channel.ready().await?.call(request).await?;
        if let Some(status) = tonic::Status::from_header_map(response.headers()) {
            bail!("the node refused: {status}");
        }
        Ok(Self {
            requests,
            body: response.into_body(),
            received: BytesMut::new(),
        })
    }

    /// Receives more; [`Self::next`] has messages then, perhaps.
    pub(super) async fn receive(&mut self) -> anyhow::Result<()> {
        let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await;
        let frame = frame.context("the stream is silent")?;
        let frame = frame.context("the stream ended")??;
        if let Some(trailers) = frame.trailers_ref() {
            let status = tonic::Status::from_header_map(trailers);
            bail!("the node ended the stream: {status:?}");
        }
        if let Some(data) = frame.data_ref() {
            self.received.extend_from_slice(data);
        }
        Ok(())
    }

    /// Takes the next message that was received.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        frames::next_message(&mut self.received)
    }

    /// Sends acknowledgements.
    pub(super) async fn send(&mut self, acks: Bytes) -> anyhow::Result<()> {
        self.requests.send(acks).await.context("the stream ended")
    }
}

/// Consumes as ordered.
pub(super) async fn run(order: &Order) -> anyhow::Result<()> {
    let began = Instant::now();
    let channel = connect(&order.address).await?;
    let batch = Value {
        kind: Some(Kind::NumberValue(f64::from(order.batch))),
    };
    let mut parameters = order.wants.parameters();
    parameters.push(("BatchSize", batch));
    let init = frames::init(&order.uri, parameters);
    let mut tally = Tally::new(order)?;
    let (mut by_hand, mut generated_parts) = (None, None);
    match order.client {
        ClientKind::Raw => by_hand = Some(raw(order, channel, init, &mut tally).await?),
        ClientKind::Generated => {
            generated_parts = Some(generated(order, channel, init, &mut tally).await?);
        }
    }
    child::answer(&Done {
        seconds: began.elapsed().as_secs_f64(),
        cpu_seconds: measure::own_cpu().as_secs_f64(),
        latency: tally.latency(),
    })?;
    // The last acknowledgements are still under way; a dump ends only when they have arrived.
    child::parent_ended().await?;
    drop((by_hand, generated_parts));
    Ok(())
}

async fn raw(
    order: &Order,
    channel: Channel,
    init: CaptureRequest,
    tally: &mut Tally,
) -> anyhow::Result<Stream> {
    let mut stream = Stream::open(channel, frames::request(&init)).await?;
    child::answer(&Opened {})?;
    while tally.changes < order.changes {
        stream.receive().await?;
        let mut acks = BytesMut::new();
        while let Some(message) = stream.next() {
            let delivered = frames::look(&message)?;
            tally.count(delivered.position()?, delivered.changes)?;
            delivered.acknowledge(&mut acks);
        }
        if !acks.is_empty() {
            stream.send(acks.freeze()).await?;
        }
    }
    Ok(stream)
}

async fn generated(
    order: &Order,
    channel: Channel,
    init: CaptureRequest,
    tally: &mut Tally,
) -> anyhow::Result<(mpsc::Sender<Vec<CaptureRequest>>, Streaming<CaptureMessage>)> {
    let mut client = DbLogGatewayClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let (requests, outbound) = mpsc::channel(ACKS_QUEUE_MAX);
    requests.send(vec![init]).await?;
    let outbound = ReceiverStream::new(outbound).flat_map(stream::iter);
    let mut stream = client.capture(outbound).await?.into_inner();
    child::answer(&Opened {})?;
    while tally.changes < order.changes {
        let message = tokio::time::timeout(SILENCE_MAX, stream.message()).await;
        let mut received = message.context("the stream is silent")??;
        // Each message has its own acknowledgement; those of messages that came together cross
        // the threads of this process together.
        let mut acks = Vec::new();
        loop {
            acks.push(take(received.context("the stream ended")?, tally)?);
            if acks.len() >= ACKS_TOGETHER_MAX || tally.changes >= order.changes {
                break;
            }
            match stream.message().now_or_never() {
                Some(next) => received = next?,
                None => break,
            }
        }
        requests.send(acks).await.context("the stream ended")?;
    }
    Ok((requests, stream))
}

/// Counts what a message brought and returns its acknowledgement.
fn take(mut message: CaptureMessage, tally: &mut Tally) -> anyhow::Result<CaptureRequest> {
    let batch = message.batch.take();
    let changes = batch.as_ref().map_or(1, |batch| batch.messages.len());
    let is_batch = batch.is_some();
    if let Some(last) = batch.and_then(|mut batch| batch.messages.pop()) {
        message = last;
    }
    let checkpoint = message.checkpoint.context("no checkpoint in the message")?;
    let position = (checkpoint.lsn, u64::from(checkpoint.seq));
    tally.count(position, u64::try_from(changes)?)?;
    tally.record(message.change.as_ref())?;
    let ack = CaptureAck {
        checkpoint: Some(checkpoint),
        cumulative: is_batch,
        ..CaptureAck::default()
    };
    Ok(CaptureRequest {
        r#type: Some(capture_request::Type::Ack(ack)),
    })
}

/// What was received so far.
#[derive(Debug)]
struct Tally {
    changes: u64,
    is_dump: bool,
    last: (u64, u64),
    latency_from: u64,
    latencies: Option<Histogram<u64>>,
}

impl Tally {
    fn new(order: &Order) -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_max(LATENCY_MAX, 3);
        Ok(Self {
            changes: 0,
            is_dump: matches!(order.wants, Wants::Rows(_)),
            last: (0, 0),
            latency_from: order.latency_from.unwrap_or_default(),
            latencies: order.latency_from.map(|_| histogram()).transpose()?,
        })
    }

    fn count(&mut self, position: (u64, u64), changes: u64) -> anyhow::Result<()> {
        if self.is_dump != (position.0 == 0) {
            bail!("something else than what was ordered came at {position:?}");
        }
        if position <= self.last && !self.is_dump {
            bail!("position {position:?} came after {:?}", self.last);
        }
        self.last = position;
        self.changes += changes;
        Ok(())
    }

    /// Records how old a change is, if that is asked for.
    fn record(&mut self, change: Option<&Change>) -> anyhow::Result<()> {
        if let Some(latencies) = &mut self.latencies {
            let age = age_of(change.context("no change in the message")?)?;
            if self.changes > self.latency_from {
                latencies.saturating_record(u64::try_from(age.as_micros())?);
            }
        }
        Ok(())
    }

    fn latency(&self) -> Option<[f64; 3]> {
        let latencies = self.latencies.as_ref()?;
        let of = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1e3;
        Some([
            of(latencies.value_at_quantile(0.5)),
            of(latencies.value_at_quantile(0.99)),
            of(latencies.max()),
        ])
    }
}

/// How long ago a row's `changed_at` was.
fn age_of(change: &Change) -> anyhow::Result<Duration> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let mut fields = change.new.iter();
    let written = fields.find(|field| field.name == "changed_at");
    let Some(field::Value::Binary(bytes)) = written.and_then(|field| field.value.as_ref()) else {
        bail!("a row without a time");
    };
    let micros = u64::from_be_bytes(bytes.as_ref().try_into().context("eight bytes")?);
    let written = POSTGRES_EPOCH + Duration::from_micros(micros);
    Ok(now.saturating_sub(written))
}
