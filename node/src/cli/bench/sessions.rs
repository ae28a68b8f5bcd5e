//! `bench sessions`: what many idle consumers cost one node. No PostgreSQL is needed.
//!
//! Every session is a consumer of its own on the same stream. One change at the end must reach
//! them all.

use std::{path::Path, sync::Arc};

use anyhow::bail;
use clap::Args;
use pgcapture_actors::log::{ChangeLog, LogWriter, embedded::EmbeddedLog};
use pgcapture_engine::{
    batch::{BatchBuilder, EntryKind},
    checkpoint::{Checkpoint, Epoch},
    lsn::{Lsn, PgTime},
};
use pgcapture_proto::pgcapture::{Change, Message, message};
use prost::Message as _;

use super::{
    Global,
    child::{Child, Task},
    holder::{self, Opened, Reached},
    measure::{own_cpu, resident_mib},
    node_side::{STREAM, Served, open_log},
    progress::Progress,
    report::{Report, What},
    scratch,
};

/// Time over which the cost of doing nothing is measured.
const IDLE: std::time::Duration = std::time::Duration::from_secs(5);

/// Arguments of `bench sessions`.
#[derive(Args, Debug)]
pub(super) struct SessionsArgs {
    /// Sessions.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
}

pub(super) async fn run(global: &Global, args: &SessionsArgs, data: &Path) -> anyhow::Result<()> {
    let progress = Progress::new(global);
    let directory = scratch(data)?;
    let log = open_log(directory.path())?;
    let mut writer = log.open_writer(Epoch(1)).await?;
    let shared: Arc<dyn ChangeLog> = Arc::<EmbeddedLog>::clone(&log);
    let served = Served::start(shared, &directory.path().join("node")).await?;
    let before = resident_mib();
    progress.step(format!("opening {} sessions", args.count));
    let mut child = Child::start(&Task::Hold(holder::Order {
        address: served.address.clone(),
        stream: STREAM.to_owned(),
        count: args.count,
        reads: true,
    }))
    .await?;
    let opened: Opened = child.answer().await?;
    progress.step("idle");
    let cpu = own_cpu();
    tokio::time::sleep(IDLE).await;
    let idle = own_cpu().saturating_sub(cpu).as_secs_f64() / IDLE.as_secs_f64();
    let after = resident_mib();
    progress.result(&format!(
        "{} sessions in {:.1} s; {:.1} KiB each; idle they take {:.1} % of a processor",
        args.count,
        opened.seconds,
        (after - before) * 1024.0 / args.count as f64,
        idle * 100.0
    ));
    progress.step("one change to all");
    append(writer.as_mut()).await?;
    let Reached { count } = child.answer().await?;
    if count != args.count {
        bail!("a change reached {count} of {} sessions", args.count);
    }
    child.end().await?;
    served.stop().await?;
    log.close().await;
    drop(progress);
    let report = Report {
        benchmark: "sessions",
        what: What {
            sessions: Some(args.count),
            ..What::of_runs(1)
        },
        rss_before_mib: Some(before),
        rss_mib: Some(after),
        ..Report::default()
    };
    let rate = args.count as f64 / opened.seconds;
    report.with_rates(&[rate], &[]).print(global)?;
    Ok(())
}

async fn append(writer: &mut dyn LogWriter) -> anyhow::Result<()> {
    let change = Change {
        schema: "public".to_owned(),
        table: "t".to_owned(),
        ..Change::default()
    };
    let payload = Message {
        r#type: Some(message::Type::Change(change)),
    };
    let mut builder = BatchBuilder::default();
    let lsn = Lsn(1 << 20);
    let payload = payload.encode_to_vec();
    builder.push(Checkpoint::new(lsn, 1), EntryKind::Change, &payload);
    writer.append(builder.finish(lsn, PgTime(1))).await?;
    writer.flush().await?;
    Ok(())
}
