//! `pgcapture consumer ls|show|seek|rm`: subscriptions and their positions.

use std::time::Duration;

use clap::{Args, Subcommand};
use pgcapture_proto::admin::v1::{
    Consumer, GetConsumerRequest, ListConsumersRequest, RemoveConsumerRequest, SeekConsumerRequest,
};
use serde::Serialize;

use super::{
    Failure, Global, connect,
    output::{self, Column, View},
    stream::position_text,
    watch::{self, Awaited, Until, WatchArgs},
};
use crate::units::{human_bytes, human_duration};

/// A consumer counts as caught up below this lag.
const CAUGHT_UP_BYTES: u64 = 64 * 1024;

/// Commands about consumers.
#[derive(Debug, Subcommand)]
pub enum ConsumerCommand {
    /// List consumers.
    Ls(ListArgs),
    /// Show one consumer.
    Show(ShowArgs),
    /// Move a consumer; its sessions are ended and reconnect. Needs --yes.
    Seek(SeekArgs),
    /// Forget a consumer and its position; needs --yes.
    Rm(RemoveArgs),
}

/// Arguments of `consumer ls`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only those of this stream.
    #[arg(long)]
    stream: Option<String>,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `consumer show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The consumer: STREAM or STREAM/CONSUMER.
    uri: String,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `consumer seek`.
#[derive(Args, Debug)]
pub struct SeekArgs {
    /// The consumer: STREAM or STREAM/CONSUMER.
    uri: String,
    /// Where to: earliest, latest, an LSN, a time such as 2026-01-31T08:00:00Z, or -10m.
    #[arg(long, allow_hyphen_values = true)]
    to: String,
    /// Only check the position.
    #[arg(long)]
    dry_run: bool,
    /// Do it.
    #[arg(long)]
    yes: bool,
}

/// Arguments of `consumer rm`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The consumer: STREAM or STREAM/CONSUMER.
    uri: String,
    /// Do it.
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Debug, Serialize)]
struct ConsumerView {
    uri: String,
    stream: String,
    name: String,
    floor: Option<String>,
    sessions: u32,
    unacked: u64,
    lag_bytes: u64,
    lag_seconds: f64,
    mode: String,
    redelivered: u64,
    open_dumps: Vec<String>,
}

impl From<Consumer> for ConsumerView {
    fn from(consumer: Consumer) -> Self {
        Self {
            uri: consumer.uri,
            stream: consumer.stream,
            name: consumer.name,
            floor: consumer.floor.map(position_text),
            sessions: consumer.session_count,
            unacked: consumer.unacked_count,
            lag_bytes: consumer.lag_bytes,
            lag_seconds: Duration::from_micros(consumer.lag_micros.unsigned_abs()).as_secs_f64(),
            mode: consumer.mode,
            redelivered: consumer.redelivered_count,
            open_dumps: consumer.open_dumps,
        }
    }
}

impl View for ConsumerView {
    const COLUMNS: &'static [Column] = &[
        ("CONSUMER", false),
        ("STREAM", false),
        ("SESSIONS", false),
        ("UNACKED", false),
        ("LAG", false),
        ("BEHIND", false),
        ("ACKED TO", false),
        ("MODE", true),
        ("REDELIVERED", true),
        ("OPEN DUMPS", true),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.uri.clone(),
            self.stream.clone(),
            self.sessions.to_string(),
            self.unacked.to_string(),
            human_bytes(self.lag_bytes),
            human_duration(Duration::from_secs_f64(self.lag_seconds)),
            self.floor.clone().unwrap_or_else(|| "–".to_owned()),
            self.mode.clone(),
            self.redelivered.to_string(),
            output::joined(&self.open_dumps),
        ]
    }
}

impl Awaited for ConsumerView {
    fn reaches(&self, until: Until) -> bool {
        match until {
            Until::Healthy => self.sessions > 0,
            Until::CaughtUp | Until::Done => self.lag_bytes <= CAUGHT_UP_BYTES && self.unacked == 0,
        }
    }
}

pub(super) async fn run(global: &Global, command: ConsumerCommand) -> Result<(), Failure> {
    match command {
        ConsumerCommand::Ls(args) => list(global, args).await,
        ConsumerCommand::Show(args) => show(global, args).await,
        ConsumerCommand::Seek(args) => seek(global, args).await,
        ConsumerCommand::Rm(args) => remove(global, args).await,
    }
}

async fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let client = connect::admin(global).await?;
    watch::show(global, args.watch, false, async || {
        let stream = args.stream.clone().unwrap_or_default();
        let request = ListConsumersRequest { stream };
        let answer = client.clone().list_consumers(request).await?.into_inner();
        super::tell_unreachable(
            global,
            &answer.unreachable,
            "its consumers are missing or old",
        );
        let consumers = answer.consumers.into_iter();
        Ok(consumers.map(ConsumerView::from).collect())
    })
    .await
}

async fn show(global: &Global, args: ShowArgs) -> Result<(), Failure> {
    let client = connect::admin(global).await?;
    watch::show(global, args.watch, true, async || {
        let uri = args.uri.clone();
        let mut client = client.clone();
        let consumer = client.get_consumer(GetConsumerRequest { uri }).await?;
        Ok(vec![ConsumerView::from(consumer.into_inner())])
    })
    .await
}

async fn seek(global: &Global, args: SeekArgs) -> Result<(), Failure> {
    let mut client = connect::admin(global).await?;
    let request = SeekConsumerRequest {
        uri: args.uri.clone(),
        to: args.to.clone(),
        dry_run: args.dry_run || !args.yes,
    };
    let answer = client.seek_consumer(request).await?.into_inner();
    let before = answer
        .before
        .map_or_else(|| "the start".to_owned(), position_text);
    let plan = format!("{} would move from {before} to {}", args.uri, args.to);
    if args.dry_run {
        return Ok(output::data(&format!("{plan}\n"))?);
    }
    if !args.yes {
        return Err(Failure::needs_yes(&plan));
    }
    let after = answer.after.map_or_else(|| args.to.clone(), position_text);
    Ok(output::data(&format!(
        "{} moved from {before} to {after}\n",
        args.uri
    ))?)
}

async fn remove(global: &Global, args: RemoveArgs) -> Result<(), Failure> {
    let mut client = connect::admin(global).await?;
    let request = RemoveConsumerRequest {
        uri: args.uri.clone(),
        dry_run: !args.yes,
    };
    let answer = client.remove_consumer(request).await?.into_inner();
    let floor = answer
        .floor
        .map_or_else(|| "nothing".to_owned(), position_text);
    if !args.yes {
        return Err(Failure::needs_yes(&format!(
            "{} (acknowledged to {floor}) would be forgotten",
            args.uri
        )));
    }
    Ok(output::data(&format!(
        "{} forgotten (was at {floor})\n",
        args.uri
    ))?)
}
