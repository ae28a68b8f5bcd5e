//! Many subscriptions of many streams: opens a session of each, has one change acknowledged, and keeps
//! some of the sessions.
//!
//! Runs in a process of its own. Sessions go to the nodes in turn, as consumers behind a load balancer
//! do, so that most streams are read on another node than their agent's.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::BytesMut;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use prost_types::{Value, value::Kind};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tonic::transport::Channel;

use super::server::source_name;
use crate::cli::bench::{
    child,
    consumer::{Stream, connect},
    frames,
};

/// Streams on one connection, as in `bench sessions`.
const STREAMS_OF_A_CONNECTION: usize = 200;

/// Sessions that are opened side by side: each waits until its home is agreed on.
const OPENS_MAX: usize = 256;

/// How often a session is opened before the measurement gives up: on a machine that is too busy nodes lose
/// their leader, and sessions end.
const OPEN_TRIES_MAX: u32 = 10;

/// Pause before a session is opened again.
const OPEN_PAUSE: Duration = Duration::from_millis(200);

/// What to subscribe to.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cli::bench) struct Order {
    /// The nodes.
    pub(super) nodes: Vec<SocketAddr>,
    /// Sources; each has as many subscriptions as any other, or one less.
    pub(super) sources: u32,
    /// Subscriptions altogether.
    pub(super) subscriptions: u32,
    /// Sessions that stay open.
    pub(super) kept: u32,
}

/// All sessions are open.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Opened {}

/// Every session has acknowledged a change, and all but the kept ones are closed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {}

/// Does as ordered; the kept sessions end with this process.
pub(in crate::cli::bench) async fn run(order: &Order) -> anyhow::Result<()> {
    let total = usize::try_from(order.subscriptions)?;
    let mut channels = Vec::new();
    for number in 0..total.div_ceil(STREAMS_OF_A_CONNECTION) {
        let node = order.nodes.get(number % order.nodes.len().max(1));
        let node = node.context("no node")?;
        channels.push(connect(&node.to_string()).await?);
    }
    let consumers = (0..order.subscriptions).map(|number| {
        let at = usize::try_from(number).map(|number| number / STREAMS_OF_A_CONNECTION);
        let channel = at.ok().and_then(|at| channels.get(at)).cloned();
        Ok(Consumer {
            channel: channel.context("a connection")?,
            uri: uri(number, order.sources),
        })
    });
    let consumers: Vec<Consumer> = consumers.collect::<anyhow::Result<_>>()?;
    let opens = consumers.iter().map(Consumer::open);
    let opened = stream::iter(opens).buffered(OPENS_MAX);
    let streams: Vec<Stream> = opened.try_collect().await?;
    child::answer(&Opened {})?;
    let reads = consumers.iter().zip(streams);
    let reads = reads.map(|(consumer, stream)| consumer.one_change(stream));
    let read = stream::iter(reads).buffered(total.max(1));
    let streams: Vec<Stream> = read.try_collect().await?;
    let numbered = (0..order.subscriptions).zip(streams);
    let held: Vec<_> = numbered
        .filter(|(number, _)| is_kept(*number, order.kept, order.subscriptions))
        .collect();
    child::answer(&Kept {})?;
    child::parent_ended().await?;
    drop(held);
    Ok(())
}

/// The uri of a subscription: sources take turns.
fn uri(number: u32, sources: u32) -> String {
    let source = source_name(number % sources.max(1) + 1);
    format!("{source}/c{number}")
}

/// Spreads those that are kept evenly, so that every node and every source has some.
fn is_kept(number: u32, kept: u32, all: u32) -> bool {
    let until = |number: u32| u64::from(number) * u64::from(kept) / u64::from(all.max(1));
    until(number + 1) > until(number)
}

/// A consumer of one subscription.
#[derive(Debug)]
struct Consumer {
    channel: Channel,
    uri: String,
}

impl Consumer {
    async fn open(&self) -> anyhow::Result<Stream> {
        let start = Value {
            kind: Some(Kind::StringValue("earliest".to_owned())),
        };
        let init = frames::init(&self.uri, [("Start", start)]);
        let opened = Stream::open(self.channel.clone(), frames::request(&init)).await;
        opened.with_context(|| format!("open {}", self.uri))
    }

    /// Receives and acknowledges a change. A session that the node ends is opened again, as every
    /// consumer does, but not for ever.
    async fn one_change(&self, mut stream: Stream) -> anyhow::Result<Stream> {
        let mut tries = 1;
        loop {
            match one_change(&mut stream).await {
                Ok(()) => return Ok(stream),
                Err(error) if tries >= OPEN_TRIES_MAX => return Err(error),
                Err(_) => sleep(OPEN_PAUSE).await,
            }
            tries += 1;
            stream = self.open().await?;
        }
    }
}

async fn one_change(stream: &mut Stream) -> anyhow::Result<()> {
    loop {
        stream.receive().await?;
        if let Some(message) = stream.next() {
            let mut ack = BytesMut::new();
            frames::look(&message)?.acknowledge(&mut ack);
            return stream.send(ack.freeze()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subscription_has_its_own_uri_and_sources_take_turns() {
        let uris: Vec<String> = (0..4).map(|number| uri(number, 3)).collect();
        assert_eq!(uris, ["s1/c0", "s2/c1", "s3/c2", "s1/c3"]);
    }

    #[test]
    fn as_many_sessions_stay_as_wanted() {
        for (kept, all) in [(0, 10), (3, 10), (5, 10), (10, 10), (0, 0)] {
            let count = (0..all)
                .filter(|number| is_kept(*number, kept, all))
                .count();
            assert_eq!(count, kept as usize, "{kept} of {all}");
        }
    }
}
