//! `bench capture`: from the slot to the durable log, or to a consumer in another process.
//!
//! Every round reads the same WAL twice, first by `pg_recvlogical`, then by us, each from a fresh
//! copy of one slot. Our clock starts with the agent and stops when the row that marks the end is
//! durable in the log, or acknowledged by the consumer.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use pgcapture_actors::{
    agent::{self, AgentHandle, AgentLimits, AgentState},
    log::{ChangeLog, embedded::EmbeddedLog},
};
use pgcapture_engine::lsn::Lsn;

use super::{
    Global,
    child::{Child, Task},
    consumer::{self, ClientKind, Done, Opened},
    database::{Database, DatabaseArgs},
    measure::{Spread, own_cpu, resident_mib},
    node_side::{STREAM, Served, open_log, spec},
    peer::{self, Cost},
    progress::Progress,
    report::{Report, What},
    scratch,
    workload::Table,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// Slot to durable log, by walsender.
    Follow,
    /// Slot to durable log with 1 GiB of WAL behind, by COPY.
    CatchUp,
    /// Slot to a consumer in another process that acknowledges every message.
    EndToEnd,
}

impl Mode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Follow => "follow",
            Self::CatchUp => "catch-up",
            Self::EndToEnd => "end-to-end",
        }
    }

    fn limits(self) -> AgentLimits {
        let limits = AgentLimits::default();
        match self {
            Self::CatchUp => limits,
            Self::Follow | Self::EndToEnd => AgentLimits {
                catch_up_above: u64::MAX,
                ..limits
            },
        }
    }
}

/// Arguments of `bench capture`.
#[derive(Args, Debug)]
pub(super) struct CaptureArgs {
    /// What to measure.
    #[arg(long, value_enum, default_value_t = Mode::Follow)]
    mode: Mode,
    /// Which table.
    #[arg(long, value_enum, default_value_t = Table::Narrow)]
    table: Table,
    /// Rows of a transaction.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    tx_rows: u64,
    /// Changes of a run; half inserts, half updates.
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..))]
    rows: Option<u64>,
    /// Rounds; the result is their median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// What the consumer of end-to-end is made of.
    #[arg(long, value_enum, default_value_t = ClientKind::Generated)]
    client: ClientKind,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// What all rounds read.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// Changes, the one that marks the end included.
    changes: u64,
    /// A position between the last change and the mark.
    end: Lsn,
    /// WAL from the slot to the end.
    wal_bytes: u64,
}

pub(super) async fn run(global: &Global, args: &CaptureArgs, data: &Path) -> anyhow::Result<()> {
    let progress = Progress::new(global);
    progress.step("starting PostgreSQL");
    let database = Database::open(&args.database).await?;
    let measured = measure(args, &database, data, &progress).await;
    drop(progress);
    database.clean().await?;
    measured?.print(global)?;
    Ok(())
}

async fn measure(
    args: &CaptureArgs,
    database: &Database,
    data: &Path,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let load = fill(args, database, progress).await?;
    let has_peer = peer::is_there(database).await;
    if !has_peer {
        progress.result("pg_recvlogical was not found: no peer beside our figures (see --pg-bin)");
    }
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 1..=args.runs {
        if has_peer {
            progress.step(format!("round {round} of {}: pg_recvlogical", args.runs));
            let cost = peer::run(database, load.end).await?;
            progress.result(&line("pg_recvlogical", load, cost));
            peers.push(cost);
        }
        progress.step(format!("round {round} of {}: pgcapture", args.runs));
        let cost = self::round(args, database, data, load).await?;
        progress.result(&line("pgcapture", load, cost));
        ours.push(cost);
    }
    let rates = |costs: &[Cost]| costs.iter().map(|cost| load.rate(cost.wall)).collect();
    let (our_rates, peer_rates): (Vec<f64>, Vec<f64>) = (rates(&ours), rates(&peers));
    let report = Report {
        benchmark: "capture",
        what: What {
            mode: Some(args.mode.as_str()),
            client: (args.mode == Mode::EndToEnd).then_some(args.client.as_str()),
            table: Some(args.table.as_str()),
            rows: Some(load.changes),
            transaction_rows: Some(args.tx_rows),
            wal_bytes: Some(load.wal_bytes),
            socket: Some(database.socket),
            server_version: Some(database.version.clone()),
            ..What::of_runs(args.runs)
        },
        peer: has_peer.then_some(peer::NAME),
        cpu_seconds_per_million: load.cpu_per_million(&ours),
        peer_cpu_seconds_per_million: load.cpu_per_million(&peers),
        rss_mib: Some(resident_mib()),
        ..Report::default()
    };
    Ok(report.with_rates(&our_rates, &peer_rates))
}

impl Load {
    fn rate(&self, wall: Duration) -> f64 {
        self.changes as f64 / wall.as_secs_f64()
    }

    fn cpu_per_million(&self, costs: &[Cost]) -> Option<f64> {
        let millions = self.changes as f64 / 1e6;
        let spread = Spread::of(costs.iter().map(|cost| cost.cpu.as_secs_f64() / millions));
        spread.map(|spread| spread.median)
    }
}

fn line(who: &str, load: Load, cost: Cost) -> String {
    let rate = load.rate(cost.wall);
    let (wall, cpu) = (cost.wall.as_secs_f64(), cost.cpu.as_secs_f64());
    format!("{who:15} {rate:9.0} changes/s in {wall:.2} s, {cpu:.2} s of CPU")
}

async fn fill(
    args: &CaptureArgs,
    database: &Database,
    progress: &Progress,
) -> anyhow::Result<Load> {
    let rows = args.rows.unwrap_or(match args.mode {
        Mode::CatchUp => args.table.rows_of_a_gibibyte(),
        Mode::Follow | Mode::EndToEnd => args.table.rows(),
    });
    database.prepare(args.table).await?;
    let begin = database.wal_end().await?;
    let mut connection = database.connect().await?;
    connection.query("SET synchronous_commit = off").await?;
    let statements = args.table.fill(rows, args.tx_rows);
    for (done, statement) in statements.iter().enumerate() {
        if done % 8 == 0 {
            let percent = done * 100 / statements.len();
            progress.step(format!("writing {rows} changes: {percent} %"));
        }
        connection.query(statement).await?;
    }
    let end = database.wal_end().await?;
    connection.query(&args.table.mark(rows)).await?;
    connection.query("CHECKPOINT").await?;
    Ok(Load {
        changes: rows + 1,
        end,
        wal_bytes: end.0 - begin.0,
    })
}

/// One run of ours, from an empty log.
async fn round(
    args: &CaptureArgs,
    database: &Database,
    data: &Path,
    load: Load,
) -> anyhow::Result<Cost> {
    let directory = scratch(data)?;
    database.copy_slot().await?;
    let log = open_log(directory.path())?;
    let cost = match args.mode {
        Mode::Follow | Mode::CatchUp => {
            let tail = async |agent: &AgentHandle| reached(&log, agent, load.end).await;
            to_log(args.mode, database, Arc::<EmbeddedLog>::clone(&log), tail).await?
        }
        Mode::EndToEnd => to_consumer(args, database, directory.path(), &log, load).await?,
    };
    log.close().await;
    database.drop_run_slot().await?;
    Ok(cost)
}

/// Runs an agent until `done` and drains it, which is not measured.
async fn to_log(
    mode: Mode,
    database: &Database,
    log: Arc<dyn ChangeLog>,
    done: impl AsyncFnOnce(&AgentHandle) -> anyhow::Result<()>,
) -> anyhow::Result<Cost> {
    let (cpu, began) = (own_cpu(), Instant::now());
    let agent = agent::start(spec(mode.limits()), Arc::new(database.config()), log);
    done(&agent).await?;
    let cost = Cost {
        wall: began.elapsed(),
        cpu: own_cpu().saturating_sub(cpu),
    };
    agent.drain().await;
    Ok(cost)
}

/// The same with a consumer at the other end.
async fn to_consumer(
    args: &CaptureArgs,
    database: &Database,
    directory: &Path,
    log: &Arc<EmbeddedLog>,
    load: Load,
) -> anyhow::Result<Cost> {
    let log: Arc<dyn ChangeLog> = Arc::<EmbeddedLog>::clone(log);
    let served = Served::start(Arc::clone(&log), &directory.join("node")).await?;
    let order = consumer::Order {
        address: served.address.clone(),
        uri: STREAM.to_owned(),
        changes: load.changes,
        batch: 0,
        client: args.client,
        latency_from: None,
        wants: consumer::Wants::Log,
    };
    let mut child = Child::start(&Task::Consume(order)).await?;
    let Opened {} = child.answer().await?;
    let received = async |agent: &AgentHandle| {
        tokio::select! {
            done = child.answer::<Done>() => done.map(drop),
            trouble = trouble(agent) => Err(trouble),
        }
    };
    let cost = to_log(args.mode, database, log, received).await?;
    child.end().await?;
    served.stop().await?;
    Ok(cost)
}

/// Waits until the log is durable beyond `end`.
async fn reached(log: &Arc<EmbeddedLog>, agent: &AgentHandle, end: Lsn) -> anyhow::Result<()> {
    let mut tail = log.tail();
    tokio::select! {
        reached = tail.wait_for(|tail| tail.last.is_some_and(|last| last.lsn >= end)) => {
            reached.context("the log was closed").map(drop)
        }
        trouble = trouble(agent) => Err(trouble),
    }
}

/// Waits until an agent has failed: a measurement does not go on after that.
pub(super) async fn trouble(agent: &AgentHandle) -> anyhow::Error {
    let mut status = agent.status();
    let failed = status.wait_for(|status| status.trouble.is_some()).await;
    let failed = failed.map(|status| status.trouble.clone());
    match failed {
        Ok(Some(trouble)) => anyhow::anyhow!("{}: {}", trouble.code, trouble.text),
        Ok(None) | Err(_) => anyhow::anyhow!("the agent ended ({})", AgentState::Stopped.as_str()),
    }
}
