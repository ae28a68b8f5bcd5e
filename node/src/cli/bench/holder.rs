//! Holds many sessions open, each a consumer of its own, and proves that they live.

use std::time::Instant;

use anyhow::Context as _;
use bytes::BytesMut;
use pgcapture_actors::supervise::{TaskKind, spawn};
use prost_types::{Value, value::Kind};
use serde::{Deserialize, Serialize};

use super::{
    child,
    consumer::{self, Stream},
    frames,
};

/// Streams on one connection; gRPC servers and proxies commonly allow 100 to 250.
const STREAMS_OF_A_CONNECTION: u64 = 200;

/// What to hold.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// Address of the node.
    pub(super) address: String,
    /// The stream of all consumers.
    pub(super) stream: String,
    /// Sessions.
    pub(super) count: u64,
    /// Whether they take what comes; otherwise they stay open and nothing is read.
    pub(super) reads: bool,
}

/// All sessions are open.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Opened {
    /// Seconds that it took.
    pub(super) seconds: f64,
}

/// Every session got one change.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reached {
    /// Sessions that got it.
    pub(super) count: u64,
}

/// Opens the sessions, then waits until each has received one change, or for the parent's end.
pub(super) async fn run(order: &Order) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut streams = Vec::new();
    let mut channel = consumer::connect(&order.address).await?;
    for number in 0..order.count {
        if number > 0 && number % STREAMS_OF_A_CONNECTION == 0 {
            channel = consumer::connect(&order.address).await?;
        }
        let start = Value {
            kind: Some(Kind::StringValue("earliest".to_owned())),
        };
        let uri = format!("{}/{number}", order.stream);
        let init = frames::init(&uri, [("Start", start)]);
        streams.push(Stream::open(channel.clone(), frames::request(&init)).await?);
    }
    child::answer(&Opened {
        seconds: began.elapsed().as_secs_f64(),
    })?;
    if !order.reads {
        return child::parent_ended().await;
    }
    let mut tasks = Vec::new();
    for stream in streams {
        tasks.push(spawn(TaskKind::Tool, "session", one_change(stream)));
    }
    // Kept: the sessions stay open while the parent looks at its memory.
    let mut held = Vec::new();
    for task in &mut tasks {
        held.push(task.join().await.context("a session ended")??);
    }
    child::answer(&Reached {
        count: u64::try_from(held.len())?,
    })
}

async fn one_change(mut stream: Stream) -> anyhow::Result<Stream> {
    loop {
        stream.receive().await?;
        if let Some(message) = stream.next() {
            let mut ack = BytesMut::new();
            frames::look(&message)?.acknowledge(&mut ack);
            stream.send(ack.freeze()).await?;
            return Ok(stream);
        }
    }
}
