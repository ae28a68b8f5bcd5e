//! `pgcapture-chaos`: runs an experiment on the built node, or judges an old one again.
//!
//! One line of JSON on stdout, talk on stderr. Exit code 0: every promise held; 1: one was broken;
//! 2: the harness failed, which says nothing about the product.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use pgcapture_chaos_tests::{
    cluster::{
        scenario::{self as cluster_scenario, ClusterPlan, Length},
        verdict::Verdict as ClusterVerdict,
    },
    dump::{self, scenario::DumpPlan, verdict::Verdict as DumpVerdict},
    nemesis::Menu,
    report::{Verdict, judge_files},
    scenario::{RunPlan, run},
};
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};

/// Breaks things around pgcapture and compares what readers got with what writers committed.
#[derive(Debug, Parser)]
#[command(name = "pgcapture-chaos", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a PostgreSQL and a node, write, break, read, judge.
    Run(RunArgs),
    /// Dump a table into a live stream while it is rewritten and everything is killed; compare.
    Dump(DumpArgs),
    /// Kill, restart and freeze two nodes of three in turn under load; compare the stream of the third.
    Cluster(ClusterArgs),
    /// Judge the files of an old run again.
    Check {
        /// What the readers were given.
        #[arg(long)]
        history: PathBuf,
        /// What the writers did.
        #[arg(long)]
        journal: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// What is broken.
    #[arg(long, value_enum, default_value = "kill-node")]
    scenario: Menu,
    /// How often.
    #[arg(long, default_value_t = 50)]
    kills: u32,
    /// Shortest and longest pause between two faults, in seconds.
    #[arg(long, default_value = "0.1-2.5", value_parser = parse_pause)]
    seconds_between: (u64, u64),
    /// Seed of all random choices; drawn and printed when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The built node; otherwise the `pgcapture` beside this program.
    #[arg(long, env = "PGCAPTURE_BIN")]
    binary: Option<PathBuf>,
    /// Directory of PostgreSQL's programs; otherwise what `PGCAPTURE_PG_BIN` names, or the newest
    /// installed.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Concurrent writers.
    #[arg(long, default_value_t = 4)]
    writers: u32,
    /// Rows a second that they aim at together.
    #[arg(long, default_value_t = 1500)]
    rate: u32,
    /// Rows of the large transaction that is written now and then; 0 for none.
    #[arg(long, default_value_t = 20_000)]
    large: u32,
    /// Rows a second below which the run is not a pass.
    #[arg(long, default_value_t = 500)]
    min_rate: u32,
    /// Keep the directory of the run; a run that fails keeps it anyway.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct DumpArgs {
    /// Rows of the table.
    #[arg(long, default_value_t = 20_000_000)]
    rows: u64,
    /// Dumps, one after the other, each to a fresh consumer.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// How often node, standby or consumer is killed during each.
    #[arg(long, default_value_t = 10)]
    kills: u32,
    /// Shortest and longest pause between two faults, in seconds.
    #[arg(long, default_value = "0.5-6", value_parser = parse_pause)]
    seconds_between: (u64, u64),
    /// Seed of the first run; drawn and printed when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The built node; otherwise the `pgcapture` beside this program.
    #[arg(long, env = "PGCAPTURE_BIN")]
    binary: Option<PathBuf>,
    /// Directory of PostgreSQL's programs; otherwise the newest installed.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Concurrent writers.
    #[arg(long, default_value_t = 4)]
    writers: u32,
    /// Rows a second that they aim at together.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Rows a second below which a run is not a pass.
    #[arg(long, default_value_t = 500)]
    min_rate: u32,
    /// Existing rows a second that the consumer takes at most; 0 for as many as come.
    #[arg(long, default_value_t = 0)]
    pace: u64,
    /// Seconds within which a dump must finish.
    #[arg(long, default_value_t = 1800)]
    within: u64,
    /// Keep the directory of the runs; those that fail keep it anyway.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct ClusterArgs {
    /// How long, in minutes.
    #[arg(long, default_value_t = 10.0, value_parser = parse_minutes)]
    minutes: f64,
    /// How often something is struck; instead of a time.
    #[arg(long, conflicts_with = "minutes")]
    kills: Option<u32>,
    /// Shortest and longest pause between two faults, in seconds.
    #[arg(long, default_value = "0.5-6", value_parser = parse_pause)]
    seconds_between: (u64, u64),
    /// Seed of all random choices; drawn and printed when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The built node; otherwise the `pgcapture` beside this program.
    #[arg(long, env = "PGCAPTURE_BIN")]
    binary: Option<PathBuf>,
    /// Directory of PostgreSQL's programs; otherwise the newest installed.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Concurrent writers.
    #[arg(long, default_value_t = 8)]
    writers: u32,
    /// Transactions a second that they aim at together, of four rows on average.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Transactions a second below which the run is not a pass.
    #[arg(long, default_value_t = 250)]
    min_rate: u32,
    /// Rows of the large transaction that is written now and then; 0 for none.
    #[arg(long, default_value_t = 3_000)]
    large: u32,
    /// Keep the directory of the run; a run that fails keeps it anyway.
    #[arg(long)]
    keep: bool,
}

/// Transactions a second below which a run is not a pass.
const TRANSACTIONS_PER_SECOND_MIN: u32 = 5;

#[tokio::main]
async fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Dump(args) => {
            let verdict = run_dump(args).await;
            return finish(verdict.to_line(), verdict.exit_code());
        }
        Command::Cluster(args) => {
            let verdict = run_cluster(args).await;
            return finish(verdict.to_line(), verdict.exit_code());
        }
        Command::Check { history, journal } => judge_files(&history, &journal)
            .unwrap_or_else(|error| Verdict::error(0, "check", &error)),
        Command::Run(args) => run_and_keep(args).await,
    };
    finish(verdict.to_line(), verdict.exit_code())
}

/// Dumps in a directory of its own and decides whether it stays.
async fn run_dump(args: DumpArgs) -> DumpVerdict {
    let seed = args.seed.unwrap_or_else(rand::random);
    eprintln!("seed {seed}");
    let found = run_dir().and_then(|dir| Ok((dir, find_node(args.binary)?)));
    let (dir, binary) = match found {
        Ok(found) => found,
        Err(error) => return DumpVerdict::new(seed).failed(&error),
    };
    let plan = DumpPlan {
        rows: args.rows,
        runs: args.runs,
        kills: args.kills,
        pause_ms: args.seconds_between,
        seed,
        binary,
        pg_bin: args.pg_bin,
        writers: args.writers,
        rows_per_second: args.rate,
        rows_per_second_min: args.min_rate,
        pace: args.pace,
        dump_within: Duration::from_secs(args.within),
    };
    let verdict = tokio::select! {
        verdict = dump::scenario::run(&plan, dir.path()) => verdict,
        error = interrupted() => DumpVerdict::new(seed).failed(&error),
    };
    if args.keep || verdict.verdict != "pass" {
        eprintln!("files of the run: {}", dir.keep().display());
    }
    verdict
}

/// Runs a cluster in a directory of its own and decides whether it stays.
async fn run_cluster(args: ClusterArgs) -> ClusterVerdict {
    let seed = args.seed.unwrap_or_else(rand::random);
    eprintln!("seed {seed}");
    let found = run_dir().and_then(|dir| Ok((dir, find_node(args.binary)?)));
    let (dir, binary) = match found {
        Ok(found) => found,
        Err(error) => return ClusterVerdict::error(seed, &error),
    };
    let time = Length::Time(Duration::from_secs_f64(args.minutes * 60.0));
    let plan = ClusterPlan {
        length: args.kills.map_or(time, Length::Faults),
        pause_ms: args.seconds_between,
        seed,
        binary,
        pg_bin: args.pg_bin,
        writers: args.writers,
        transactions_per_second: args.rate,
        transactions_per_second_min: args.min_rate,
        large_transaction_rows: args.large,
    };
    let verdict = tokio::select! {
        verdict = Box::pin(cluster_scenario::run(&plan, dir.path())) => verdict,
        error = interrupted() => Err(error),
    };
    let verdict = verdict.unwrap_or_else(|error| ClusterVerdict::error(seed, &error));
    if args.keep || verdict.verdict != "pass" {
        eprintln!("files of the run: {}", dir.keep().display());
    }
    verdict
}

/// Says the verdict's line.
fn finish(line: Result<String>, exit: ExitCode) -> ExitCode {
    match line.and_then(|line| say(&line)) {
        Ok(()) => exit,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs in a directory of its own and decides whether it stays.
async fn run_and_keep(args: RunArgs) -> Verdict {
    let seed = args.seed.unwrap_or_else(rand::random);
    let name = args.scenario.name();
    eprintln!("seed {seed}");
    let dir = match run_dir() {
        Ok(dir) => dir,
        Err(error) => return Verdict::error(seed, name, &error),
    };
    let keep = args.keep;
    let verdict = tokio::select! {
        verdict = run_args(args, seed, dir.path()) => verdict,
        error = interrupted() => Err(error),
    };
    let verdict = verdict.unwrap_or_else(|error| Verdict::error(seed, name, &error));
    if keep || verdict.verdict != "pass" {
        eprintln!("files of the run: {}", dir.keep().display());
    }
    verdict
}

/// Returns when the run should be given up: processes are then ended in order, not left behind.
async fn interrupted() -> anyhow::Error {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => terminate.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = ctrl_c() => anyhow::anyhow!("interrupted"),
        _ = terminated => anyhow::anyhow!("terminated"),
    }
}

async fn run_args(args: RunArgs, seed: u64, dir: &Path) -> Result<Verdict> {
    let plan = RunPlan {
        menu: args.scenario,
        faults: args.kills,
        pause_ms: args.seconds_between,
        seed,
        binary: find_node(args.binary)?,
        pg_bin: args.pg_bin,
        writers: args.writers,
        rows_per_second: args.rate,
        large_transaction_rows: args.large,
        rows_per_second_min: args.min_rate,
        transactions_per_second_min: TRANSACTIONS_PER_SECOND_MIN,
    };
    Box::pin(run(&plan, dir)).await
}

/// Makes a directory that PostgreSQL's user can traverse.
fn run_dir() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new()
        .prefix("pgcapture-chaos-")
        .tempdir()
        .context("create a directory for the run")?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).context("open it to others")?;
    Ok(dir)
}

fn find_node(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(given) = given {
        return given.canonicalize().context("the node's binary");
    }
    let own = std::env::current_exe().context("find this program")?;
    let beside = own.with_file_name("pgcapture");
    if !beside.exists() {
        bail!("there is no {}; use --binary", beside.display());
    }
    Ok(beside)
}

/// Parses minutes, more than none and at most a day.
fn parse_minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().ok();
    let minutes = minutes.filter(|minutes: &f64| *minutes > 0.0 && *minutes <= 1440.0);
    minutes.ok_or_else(|| format!("\"{text}\" is not a number of minutes, at most 1440"))
}

/// Parses `0.1-2.5` or `1` into milliseconds.
fn parse_pause(text: &str) -> Result<(u64, u64), String> {
    let (shortest, longest) = text.split_once('-').unwrap_or((text, text));
    let to_ms = |seconds: &str| {
        let seconds: f64 = seconds
            .parse()
            .map_err(|_| format!("\"{text}\" is not seconds such as 0.1-2.5"))?;
        let is_sensible = (0.0..=3600.0).contains(&seconds);
        is_sensible
            .then_some((seconds * 1000.0) as u64)
            .ok_or_else(|| format!("\"{text}\": from 0 to 3600 seconds"))
    };
    let (shortest, longest) = (to_ms(shortest)?, to_ms(longest)?);
    if shortest > longest {
        return Err(format!("\"{text}\": the shorter one comes first"));
    }
    Ok((shortest, longest))
}

#[expect(clippy::print_stdout, reason = "the verdict is this program's output")]
fn say(line: &str) -> Result<()> {
    println!("{line}");
    Ok(())
}
