//! `bench dump`: the existing rows of a table from a standby to one consumer in another process,
//! beside `COPY (SELECT * …) TO STDOUT (FORMAT binary)` of the same rows to `/dev/null`.
//!
//! Our time is taken from the order until the consumer has the last row and has sent its
//! answer: planning, the snapshots and the splice are in it. With `--instances` the workers are processes, the
//! servers several, and consumers and COPYs as many as workers. With `--latency` it measures instead how old the changes of
//! another consumer are when they arrive, without a dump and beside one.

mod beside;
mod copy;
mod fleet;
mod taker;
mod world;

use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::{Args, ValueEnum};

use super::{
    Global,
    consumer::ClientKind,
    log::Delivery,
    measure::Spread,
    progress::Progress,
    report::{Report, What},
    scratch,
    workload::Table,
};
use fleet::Fleet;
use world::{Cost, World};

/// Name of the peer in the results.
const PEER: &str = "COPY";

/// Where rows are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReadFrom {
    /// A physical standby.
    Standby,
    /// The source itself.
    Source,
}

impl ReadFrom {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Source => "source",
        }
    }
}

/// Arguments of `bench dump`.
#[derive(Args, Debug)]
pub(super) struct DumpArgs {
    /// How the consumer gets its rows.
    #[arg(long, value_enum, default_value_t = Delivery::Batch)]
    delivery: Delivery,
    /// What the consumer is made of.
    #[arg(long, value_enum, default_value_t = ClientKind::Raw)]
    client: ClientKind,
    /// The table.
    #[arg(long, value_enum, default_value_t = Table::Narrow)]
    table: Table,
    /// Rows of the table; near 600 MiB when not given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rows: Option<u64>,
    /// Ranges that are read at a time; with --instances, worker processes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// Measure worker processes: as many nodes of one cluster as --workers says read from so many standbys, and
    /// each has a consumer that gets the whole table. The peer is as many COPYs at once.
    #[arg(
        long,
        value_name = "N",
        conflicts_with_all = ["latency", "from"],
        value_parser = clap::value_parser!(u32).range(1..=16)
    )]
    instances: Option<u32>,
    /// Where rows are read from.
    #[arg(long, value_enum, default_value_t = ReadFrom::Standby)]
    from: ReadFrom,
    /// Rounds; the result is their median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Measure the latency of another consumer, without a dump and beside one.
    #[arg(long)]
    latency: bool,
    /// With --latency: one-row transactions a second.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// With --latency: seconds that are measured, after 2 seconds that are not.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Read no faster than so many MiB a second; 0 for as fast as it goes.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..1 << 20))]
    limit_mib: u64,
    /// Directory of initdb, postgres and psql.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
}

impl DumpArgs {
    fn rows(&self) -> u64 {
        self.rows.unwrap_or_else(|| self.table.rows_of_a_gibibyte())
    }

    /// What every report of this command tells.
    fn what(&self, server_version: String) -> What {
        What {
            table: Some(self.table.as_str()),
            rows: Some(self.rows()),
            workers: Some(self.workers),
            instances: self.instances,
            from: Some(self.from.as_str()),
            socket: Some("tcp"),
            server_version: Some(server_version),
            delivery: Some(self.delivery.as_str()),
            client: Some(self.client.as_str()),
            ..What::of_runs(self.runs)
        }
    }
}

pub(super) async fn run(global: &Global, args: &DumpArgs, data: &Path) -> anyhow::Result<()> {
    let progress = Progress::new(global);
    let directory = scratch(data)?;
    progress.step(format!("writing {} rows", args.rows()));
    if let Some(instances) = args.instances {
        let report = run_fleet(args, instances, directory.path(), &progress).await;
        drop(progress);
        report?.print(global)?;
        return Ok(());
    }
    let world = World::start(args, directory.path()).await?;
    let measured = if args.latency {
        beside::measure(args, &world, &progress).await
    } else {
        measure(args, args.rows(), &world, &progress).await
    };
    let is_clean = world.stop().await;
    drop(progress);
    let report = measured?;
    ensure!(is_clean, "the node did not stop cleanly");
    report.print(global)?;
    Ok(())
}

/// What is measured, and its peer.
trait Measured {
    /// The peer, as many at once as there are workers.
    async fn copy(&self, args: &DumpArgs) -> anyhow::Result<Cost>;

    /// Ours, to fresh consumers of this name.
    async fn dump(&self, args: &DumpArgs, name: &str) -> anyhow::Result<Cost>;

    /// `server_version` as the source says it.
    async fn server_version(&self) -> anyhow::Result<String>;
}

/// Worker processes, each with a consumer that gets the whole table.
async fn run_fleet(
    args: &DumpArgs,
    instances: u32,
    directory: &Path,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let fleet = Fleet::start(args, instances, directory).await?;
    // Every node has to know of every server, and the servers of the table.
    progress.step("warming up");
    let warm_up = fleet.dump(args, "rows-0").await;
    let measured = match warm_up {
        Ok(_) => {
            let rows = args.rows().saturating_mul(args.workers.into());
            measure(args, rows, &fleet, progress).await
        }
        Err(error) => Err(error),
    };
    let is_clean = fleet.stop().await;
    let report = measured?;
    ensure!(is_clean, "a node did not stop in time");
    Ok(report)
}

/// Both, in alternation, of so many rows each.
async fn measure(
    args: &DumpArgs,
    row_count: u64,
    measured: &impl Measured,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let rows = row_count as f64;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for round in 1..=args.runs {
        progress.step(format!("round {round} of {}: {PEER}", args.runs));
        let theirs = measured.copy(args).await?;
        progress.step(format!("round {round} of {}: ours", args.runs));
        let cost = measured.dump(args, &format!("rows-{round}")).await?;
        progress.result(&format!(
            "{:.0} rows/s, {PEER} {:.0}, memory {:.0} to {:.0} MiB",
            rows / cost.seconds,
            rows / theirs.seconds,
            cost.rss_before_mib,
            cost.rss_mib
        ));
        ours.push(cost);
        peer.push(theirs);
    }
    let what = What {
        rows: Some(row_count),
        ..args.what(measured.server_version().await?)
    };
    Ok(report(what, rows, &ours, &peer))
}

fn report(what: What, rows: f64, ours: &[Cost], peer: &[Cost]) -> Report {
    let rates = |costs: &[Cost]| -> Vec<f64> {
        let each = costs.iter().map(|cost| rows / cost.seconds);
        each.collect()
    };
    let median = |costs: &[Cost], each: fn(&Cost) -> f64| {
        Spread::of(costs.iter().map(each)).map(|spread| spread.median)
    };
    let cpu = |costs: &[Cost], each: fn(&Cost) -> f64| {
        median(costs, each).map(|seconds| seconds / (rows / 1e6))
    };
    let report = Report {
        benchmark: "dump",
        what,
        peer: Some(PEER),
        cpu_seconds_per_million: cpu(ours, |cost| cost.cpu_seconds),
        consumer_cpu_seconds_per_million: cpu(ours, |cost| cost.consumer_cpu_seconds),
        server_cpu_seconds_per_million: cpu(ours, |cost| cost.server_cpu_seconds),
        peer_cpu_seconds_per_million: cpu(peer, |cost| cost.cpu_seconds),
        peer_server_cpu_seconds_per_million: cpu(peer, |cost| cost.server_cpu_seconds),
        processors_busy: median(ours, Cost::processors_busy),
        peer_processors_busy: median(peer, Cost::processors_busy),
        rss_before_mib: Spread::of(ours.iter().map(|cost| cost.rss_before_mib)).map(|all| all.min),
        rss_mib: Spread::of(ours.iter().map(|cost| cost.rss_mib)).map(|all| all.max),
        ..Report::default()
    };
    report.with_rates(&rates(ours), &rates(peer))
}
