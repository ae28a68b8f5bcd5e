//! `pgcapture slot ls|show|move|rebalance`: the slots of all sources, and who reads them.

mod place;

use clap::{Args, Subcommand};
use pgcapture_engine::{codes, lsn::Lsn};
use pgcapture_proto::admin::v1::{ListSourcesRequest, Source, SourceStatus};
use serde::Serialize;

use super::{
    Failure, Global, connect,
    output::{Column, View},
    source::{FailoverView, SourceView, failover_text, lag_text, owner_text, trouble_text},
    watch::{self, Awaited, Until, WatchArgs},
};
use crate::{sources::unix_now_micros, units::human_bytes};

/// Commands about slots.
#[derive(Debug, Subcommand)]
pub enum SlotCommand {
    /// List slots.
    Ls(ListArgs),
    /// Show one slot.
    Show(ShowArgs),
    /// Let another node read a slot.
    Move(place::MoveArgs),
    /// Spread the slots evenly over the nodes, with as few moves as that takes.
    Rebalance(place::RebalanceArgs),
}

/// Arguments of `slot ls`.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `slot show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The slot.
    slot: String,
    #[command(flatten)]
    watch: WatchArgs,
}

#[derive(Clone, Debug, Serialize)]
struct SlotView {
    slot: String,
    source: String,
    owner: String,
    epoch: u64,
    state: String,
    lag_bytes: u64,
    lag_seconds: f64,
    wal_retained_bytes: u64,
    confirmed_lsn: String,
    received_lsn: String,
    server_end_lsn: String,
    last_failover: Option<FailoverView>,
    #[serde(skip)]
    status: SourceStatus,
    #[serde(skip)]
    source_view: SourceView,
}

impl From<Source> for SlotView {
    fn from(source: Source) -> Self {
        let status = source.status.clone().unwrap_or_default();
        let lsn = |lsn| Lsn(lsn).to_string();
        let source_view = SourceView::from(source);
        Self {
            slot: source_view.slot.clone(),
            source: source_view.name.clone(),
            owner: source_view.owner.clone(),
            last_failover: source_view.last_failover.clone(),
            epoch: source_view.epoch,
            state: status.state.clone(),
            lag_bytes: status.lag_bytes,
            lag_seconds: status.lag_micros as f64 / 1e6,
            wal_retained_bytes: status.wal_retained_bytes,
            confirmed_lsn: lsn(status.confirmed_lsn),
            received_lsn: lsn(status.received_lsn),
            server_end_lsn: lsn(status.server_end_lsn),
            status,
            source_view,
        }
    }
}

impl View for SlotView {
    const COLUMNS: &'static [Column] = &[
        ("SLOT", false),
        ("SOURCE", false),
        ("OWNER", false),
        ("EPOCH", false),
        ("STATE", false),
        ("LAG", false),
        ("BEHIND", false),
        ("WAL KEPT", false),
        ("LAST FAILOVER", false),
        ("CONFIRMED", true),
        ("RECEIVED", true),
        ("SERVER END", true),
    ];

    fn cells(&self) -> Vec<String> {
        let (lag, behind) = lag_text(&self.status);
        vec![
            self.slot.clone(),
            self.source.clone(),
            owner_text(&self.owner),
            self.epoch.to_string(),
            super::source::mark(&self.state),
            lag,
            behind,
            human_bytes(self.wal_retained_bytes),
            failover_text(self.last_failover.as_ref(), unix_now_micros()),
            self.confirmed_lsn.clone(),
            self.received_lsn.clone(),
            self.server_end_lsn.clone(),
        ]
    }

    fn hint(&self) -> Option<String> {
        trouble_text(&self.slot, self.status.trouble.as_ref())
    }
}

impl Awaited for SlotView {
    fn reaches(&self, until: Until) -> bool {
        self.source_view.reaches(until)
    }
}

pub(super) async fn run(global: &Global, command: SlotCommand) -> Result<(), Failure> {
    let client = connect::admin(global).await?;
    let fetch = async || {
        let answer = client.clone().list_sources(ListSourcesRequest {}).await?;
        let sources = answer.into_inner().sources.into_iter();
        Ok::<Vec<SlotView>, Failure>(sources.map(SlotView::from).collect())
    };
    match command {
        SlotCommand::Move(args) => place::move_slot(global, args, &fetch().await?).await,
        SlotCommand::Rebalance(args) => place::rebalance(global, args).await,
        SlotCommand::Ls(args) => watch::show(global, args.watch, false, fetch).await,
        SlotCommand::Show(args) => {
            let fetch_one = async || {
                let slots = fetch().await?;
                let known: Vec<_> = slots.iter().map(|slot| slot.slot.clone()).collect();
                let found = slots.into_iter().find(|slot| slot.slot == args.slot);
                found.map(|slot| vec![slot]).ok_or_else(|| {
                    let text = format!(
                        "unknown slot \"{}\"; known slots: {}",
                        args.slot,
                        known.join(", ")
                    );
                    Failure::new(4, &codes::node::NOT_FOUND, text)
                })
            };
            watch::show(global, args.watch, true, fetch_one).await
        }
    }
}
