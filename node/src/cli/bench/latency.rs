//! `bench latency`: from the insertion of a row to its arrival at a consumer.
//!
//! Writers and consumer are processes of their own. A row carries the server's clock as it is read
//! while the row is inserted, just before its commit; the consumer reads the same machine's clock.
//! So the commit itself is part of every figure.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use clap::Args;
use pgcapture_actors::{
    agent::{self, AgentLimits, AgentState},
    log::{ChangeLog, embedded::EmbeddedLog},
};

use super::{
    Global,
    capture::trouble,
    child::{Child, Task},
    consumer::{self, ClientKind, Done, Opened},
    database::{Database, DatabaseArgs},
    measure::{Spread, own_cpu, resident_mib},
    node_side::{STREAM, Served, open_log, spec},
    progress::Progress,
    report::{Report, What},
    scratch,
    workload::Table,
    writer::{self, Written},
};

/// Seconds at the begin that are not measured: connections, caches, first segments.
const WARM_UP_SECONDS: u64 = 2;

/// Arguments of `bench latency`.
#[derive(Args, Debug)]
pub(super) struct LatencyArgs {
    /// One-row transactions a second.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds that are measured, after 2 seconds that are not.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Rounds; the result is their median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// One round.
#[derive(Clone, Copy, Debug)]
struct Round {
    latency: [f64; 3],
    written_rate: f64,
    cpu_per_million: f64,
}

pub(super) async fn run(global: &Global, args: &LatencyArgs, data: &Path) -> anyhow::Result<()> {
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
    args: &LatencyArgs,
    database: &Database,
    data: &Path,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let mut rounds = Vec::new();
    for number in 1..=args.runs {
        progress.step(format!("round {number} of {}", args.runs));
        let round = round(args, database, data).await?;
        let [p50, p99, max] = round.latency;
        let rate = round.written_rate;
        progress.result(&format!(
            "{rate:.0} transactions/s: p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms"
        ));
        rounds.push(round);
    }
    let median = |of: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(of)).map(|s| s.median);
    Ok(Report {
        benchmark: "latency",
        what: What {
            table: Some(Table::Narrow.as_str()),
            transaction_rows: Some(1),
            written_rate: median(&|round| round.written_rate),
            seconds: Some(args.seconds),
            socket: Some(database.socket),
            server_version: Some(database.version.clone()),
            ..What::of_runs(args.runs)
        },
        cpu_seconds_per_million: median(&|round| round.cpu_per_million),
        p50_ms: median(&|round| round.latency[0]),
        p99_ms: median(&|round| round.latency[1]),
        max_ms: median(&|round| round.latency[2]),
        rss_mib: Some(resident_mib()),
        ..Report::default()
    })
}

async fn round(args: &LatencyArgs, database: &Database, data: &Path) -> anyhow::Result<Round> {
    let directory = scratch(data)?;
    database.prepare(Table::Narrow).await?;
    database.copy_slot().await?;
    let log = open_log(directory.path())?;
    let shared: Arc<dyn ChangeLog> = Arc::<EmbeddedLog>::clone(&log);
    let served = Served::start(Arc::clone(&shared), &directory.path().join("node")).await?;
    let agent = agent::start(
        spec(AgentLimits::default()),
        Arc::new(database.config()),
        shared,
    );
    let mut status = agent.status();
    let following = status.wait_for(|status| status.state == AgentState::Following);
    tokio::select! {
        following = following => following.map(drop).context("the agent ended")?,
        trouble = trouble(&agent) => return Err(trouble),
    }
    let count = u64::from(args.rate) * (args.seconds + WARM_UP_SECONDS);
    let mut consumer = Child::start(&Task::Consume(consumer::Order {
        address: served.address.clone(),
        uri: STREAM.to_owned(),
        changes: count,
        batch: 0,
        client: ClientKind::Generated,
        latency_from: Some(u64::from(args.rate) * WARM_UP_SECONDS),
        wants: consumer::Wants::Log,
    }))
    .await?;
    let Opened {} = consumer.answer().await?;
    let cpu = own_cpu();
    let mut writer = Child::start(&Task::Write(writer::Order {
        url: database.peer_url.clone(),
        password: database.password().map(|secret| secret.expose().to_owned()),
        rate: args.rate,
        count,
    }))
    .await?;
    let written: Written = writer.answer().await?;
    let done: Done = tokio::select! {
        done = consumer.answer() => done?,
        trouble = trouble(&agent) => return Err(trouble),
    };
    let cpu = own_cpu().saturating_sub(cpu).as_secs_f64();
    writer.end().await?;
    consumer.end().await?;
    agent.drain().await;
    served.stop().await?;
    log.close().await;
    database.drop_run_slot().await?;
    Ok(Round {
        latency: done.latency.context("the consumer measured nothing")?,
        written_rate: count as f64 / written.seconds,
        cpu_per_million: cpu / (count as f64 / 1e6),
    })
}
