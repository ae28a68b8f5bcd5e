//! `bench failover`: how long a consumer waits when the node that reads its source dies.
//!
//! Three real nodes and one PostgreSQL; a writer of one-row transactions; a consumer on another node
//! than the agent. Measured from just before the signal to the arrival of the first change that was
//! written after it. At the end every row of the table must have come, and none may stand twice in
//! the log.

mod ledger;
mod rounds;
mod watcher;

use std::path::Path;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use pgcapture_proto::admin::v1::SourceDefinition;

use self::{rounds::Rounds, watcher::Watcher};
use super::{
    Global,
    child::{Child, Task},
    database::{Database, DatabaseArgs},
    histogram::Bucket,
    progress::Progress,
    report::{Report, What},
    scratch, told,
    workload::{SCHEMA, Table},
    writer,
};
use crate::cli::dev::cluster::{Cluster, api};

/// Name of the source, of its stream, and of the consumer.
const STREAM: &str = "failover";

/// Nodes: one may die.
const NODES: u8 = 3;

/// Rows that must have come before the first failure: connections, caches, first segments.
const WARM_UP_SECONDS: u32 = 2;

/// The writer never ends by itself: a day's worth.
const WRITER_SECONDS: u64 = 86_400;

/// Longest wait that is told apart, in microseconds: a minute.
const WAIT_MAX_MICROS: u64 = 60_000_000;

/// Arguments of `bench failover`.
#[derive(Args, Debug)]
pub(super) struct FailoverArgs {
    /// Failures to measure.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// What happens to the node that reads the source.
    #[arg(long, value_enum, default_value_t = How::Kill)]
    how: How,
    /// The node leads the Raft group as well; without, it never does.
    #[arg(long)]
    with_raft_leader: bool,
    /// One-row transactions a second.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Directory of initdb and postgres.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<std::path::PathBuf>,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// `kill -9`.
    Kill,
    /// An ordered stop.
    Stop,
    /// Nothing: its source is given to another one.
    Move,
    /// The others do not reach it any more, nor it them.
    Partition,
}

impl How {
    /// Whether the old owner hands over, and goes on until it does.
    const fn is_orderly(self) -> bool {
        matches!(self, Self::Stop | Self::Move)
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Move => "move",
            Self::Partition => "partition",
        }
    }
}

pub(super) async fn run(global: &Global, args: &FailoverArgs, data: &Path) -> anyhow::Result<()> {
    let progress = Progress::new(global);
    progress.step("starting PostgreSQL");
    let database = Database::open(&DatabaseArgs::own(args.pg_bin.clone())).await?;
    database.make_table(Table::Narrow).await?;
    let directory = scratch(data)?;
    progress.step(format!("starting {NODES} nodes"));
    let cluster = Cluster::start(directory.path(), NODES, 0, Vec::new());
    let cluster = cluster.await.map_err(told)?;
    let measured = measure(args, &database, cluster, &progress).await;
    drop(progress);
    measured?.print(global)?;
    Ok(())
}

async fn measure(
    args: &FailoverArgs,
    database: &Database,
    cluster: Cluster,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let first = cluster.address(1).context("the first node")?;
    let definition = SourceDefinition {
        name: STREAM.to_owned(),
        url: database.peer_url.clone(),
        tables: vec![format!("{SCHEMA}.t")],
        ..SourceDefinition::default()
    };
    api::add_source(first, definition).await.map_err(told)?;
    let mut watcher = Watcher::start(STREAM, first);
    let task = Task::Write(writer::Order {
        url: database.peer_url.clone(),
        password: None,
        rate: args.rate,
        count: u64::from(args.rate) * WRITER_SECONDS,
    });
    let writer = Child::start(&task).await?;
    progress.step("warming up");
    let warm = usize::try_from(args.rate * WARM_UP_SECONDS)?;
    watcher.wait_for(warm).await?;

    let mut waits = Histogram::<u64>::new_with_max(WAIT_MAX_MICROS, 3)?;
    let mut rounds = Rounds {
        cluster,
        how: args.how,
        is_with_leader: args.with_raft_leader,
    };
    for number in 1..=args.kills {
        progress.step(format!("failure {number} of {}", args.kills));
        let round = rounds.run(&mut watcher).await;
        let (node, wait) = round.with_context(|| format!("failure {number}"))?;
        progress.result(&format!(
            "{number}: {node} {}: {} {:.0} ms",
            args.how.as_str(),
            if args.how.is_orderly() {
                "longest pause"
            } else {
                "next change after"
            },
            wait.as_secs_f64() * 1e3
        ));
        waits.saturating_record(u64::try_from(wait.as_micros())?);
    }
    progress.step("looking for holes and doubles");
    // Killed by its drop: a row that it is writing is committed, or not.
    drop(writer);
    let table = database.settled_ids().await?;
    watcher.wait_for(table.len()).await?;
    let redelivered = watcher.check(&table)?;
    rounds.cluster.stop().await;

    let of = |micros: u64| Some(std::time::Duration::from_micros(micros).as_secs_f64() * 1e3);
    Ok(Report {
        benchmark: "failover",
        what: What {
            mode: Some(args.how.as_str()),
            table: Some(Table::Narrow.as_str()),
            rows: Some(u64::try_from(table.len())?),
            transaction_rows: Some(1),
            written_rate: Some(f64::from(args.rate)),
            with_raft_leader: Some(args.with_raft_leader),
            socket: Some(database.socket),
            server_version: Some(database.version.clone()),
            ..What::of_runs(args.kills)
        },
        p50_ms: of(waits.value_at_quantile(0.5)),
        p99_ms: of(waits.value_at_quantile(0.99)),
        max_ms: of(waits.max()),
        histogram: Bucket::of(&waits),
        redelivered: Some(redelivered),
        ..Report::default()
    })
}
