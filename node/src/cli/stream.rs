//! `pgcapture stream ls|show`: what the logs hold.

use clap::{Args, Subcommand};
use pgcapture_engine::{checkpoint::Checkpoint, lsn::Lsn};
use pgcapture_proto::admin::v1::{GetStreamRequest, ListStreamsRequest, Position, Stream};
use serde::Serialize;

use super::{
    Failure, Global, connect,
    output::{Column, View},
    watch::{self, Awaited, Until, WatchArgs},
};
use crate::units::human_bytes;

/// Commands about streams.
#[derive(Debug, Subcommand)]
pub enum StreamCommand {
    /// List streams.
    Ls(ListArgs),
    /// Show one stream.
    Show(ShowArgs),
}

/// Arguments of `stream ls`.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `stream show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The stream.
    stream: String,
    #[command(flatten)]
    watch: WatchArgs,
}

#[derive(Clone, Debug, Serialize)]
struct StreamView {
    stream: String,
    source: String,
    health: String,
    health_reason: String,
    earliest: Option<String>,
    earliest_time: Option<String>,
    last: Option<String>,
    last_time: Option<String>,
    bytes: u64,
    segments: u64,
    epoch: u64,
    consumers: u32,
}

impl From<Stream> for StreamView {
    fn from(stream: Stream) -> Self {
        Self {
            stream: stream.name,
            source: stream.source,
            health: stream.health,
            health_reason: stream.health_reason,
            earliest: stream.earliest.map(position_text),
            earliest_time: time_text(stream.earliest_time),
            last: stream.last.map(position_text),
            last_time: time_text(stream.last_time),
            bytes: stream.bytes,
            segments: stream.segments,
            epoch: stream.epoch,
            consumers: stream.consumer_count,
        }
    }
}

/// Prints a position as everywhere: `16/B374D848|1f`.
pub(super) fn position_text(position: Position) -> String {
    Checkpoint::new(Lsn(position.lsn), position.seq).to_string()
}

/// Prints microseconds since 1970; nothing when unknown.
pub(super) fn time_text(micros: i64) -> Option<String> {
    let moment = jiff::Timestamp::from_microsecond(micros).ok()?;
    (micros != 0).then(|| moment.to_string())
}

impl View for StreamView {
    const COLUMNS: &'static [Column] = &[
        ("STREAM", false),
        ("SOURCE", false),
        ("HEALTH", false),
        ("SIZE", false),
        ("EARLIEST", false),
        ("LAST", false),
        ("CONSUMERS", false),
        ("EARLIEST TIME", true),
        ("LAST TIME", true),
        ("SEGMENTS", true),
        ("EPOCH", true),
    ];

    fn cells(&self) -> Vec<String> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "–".to_owned());
        vec![
            self.stream.clone(),
            self.source.clone(),
            self.health.clone(),
            human_bytes(self.bytes),
            or_dash(&self.earliest),
            or_dash(&self.last),
            self.consumers.to_string(),
            or_dash(&self.earliest_time),
            or_dash(&self.last_time),
            self.segments.to_string(),
            self.epoch.to_string(),
        ]
    }

    fn hint(&self) -> Option<String> {
        let is_well = self.health_reason.is_empty();
        (!is_well).then(|| format!("! {}: {}", self.stream, self.health_reason))
    }
}

impl Awaited for StreamView {
    fn reaches(&self, until: Until) -> bool {
        match until {
            Until::Healthy | Until::CaughtUp | Until::Done => self.health == "writable",
        }
    }
}

pub(super) async fn run(global: &Global, command: StreamCommand) -> Result<(), Failure> {
    let client = connect::admin(global).await?;
    match command {
        StreamCommand::Ls(args) => {
            watch::show(global, args.watch, false, async || {
                let answer = client.clone().list_streams(ListStreamsRequest {}).await?;
                let streams = answer.into_inner().streams.into_iter();
                Ok(streams.map(StreamView::from).collect())
            })
            .await
        }
        StreamCommand::Show(args) => {
            watch::show(global, args.watch, true, async || {
                let name = args.stream.clone();
                let answer = client.clone().get_stream(GetStreamRequest { name }).await?;
                Ok(vec![StreamView::from(answer.into_inner())])
            })
            .await
        }
    }
}
