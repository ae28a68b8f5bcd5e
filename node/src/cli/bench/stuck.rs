//! `bench stuck`: what consumers cost that stopped reading while the log grows by many GiB. No
//! PostgreSQL is needed.
//!
//! The consumers are open before the first change and never take one off their streams, nor
//! acknowledge any. The log is written meanwhile; the node must not grow with it.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use clap::Args;
use pgcapture_actors::log::{ChangeLog, embedded::EmbeddedLog};

use super::{
    Global,
    child::{Child, Task},
    holder::{self, Opened},
    log::{TRANSACTION_CHANGES, fill},
    measure::{resident_mib, with_memory},
    node_side::{STREAM, Served, open_log},
    progress::Progress,
    report::{Report, What},
    scratch,
};

/// What one change of the written log takes, near enough to know how many to write.
const CHANGE_BYTES: u64 = 228;

/// Arguments of `bench stuck`.
#[derive(Args, Debug)]
pub(super) struct StuckArgs {
    /// GiB that the log grows by.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1024))]
    backlog_gib: u64,
    /// Consumers that read nothing.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
}

pub(super) async fn run(global: &Global, args: &StuckArgs, data: &Path) -> anyhow::Result<()> {
    let progress = Progress::new(global);
    let directory = scratch(data)?;
    let log = open_log(directory.path())?;
    let shared: Arc<dyn ChangeLog> = Arc::<EmbeddedLog>::clone(&log);
    let served = Served::start(shared, &directory.path().join("node")).await?;
    let mut child = Child::start(&Task::Hold(holder::Order {
        address: served.address.clone(),
        stream: STREAM.to_owned(),
        count: args.count,
        reads: false,
    }))
    .await?;
    let _: Opened = child.answer().await?;
    let before = resident_mib();
    let rows = (args.backlog_gib << 30) / CHANGE_BYTES;
    progress.step(format!("writing {rows} changes"));
    let ((), peak) = with_memory(resident_mib, fill(log.as_ref(), rows)).await?;
    let written = log.tail().borrow().offset;
    progress.result(&format!("{before:.1} MiB before, {peak:.1} MiB at most"));
    child.end().await.context("a session did not stay open")?;
    served.stop().await?;
    log.close().await;
    drop(progress);
    Report {
        benchmark: "stuck",
        what: What {
            sessions: Some(args.count),
            rows: Some(rows),
            transaction_rows: Some(TRANSACTION_CHANGES),
            log_bytes: Some(written),
            ..What::of_runs(1)
        },
        rss_before_mib: Some(before),
        rss_mib: Some(peak),
        ..Report::default()
    }
    .print(global)?;
    Ok(())
}
