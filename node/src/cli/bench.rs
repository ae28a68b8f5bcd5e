//! `pgcapture bench`: how fast this machine is, measured beside what it is compared with.
//!
//! Needs no arguments: it starts its own PostgreSQL, works in a temporary folder and leaves
//! nothing. The parts of the node are the same as in `pgcapture start`. Consumers and writers are
//! processes of their own, so that the node's processor time is the node's. No figure is typed in
//! anywhere: everything printed was measured in this run.

mod capture;
mod child;
mod cluster;
mod consumer;
mod database;
mod dump;
mod failover;
mod frames;
mod histogram;
mod holder;
mod latency;
mod log;
mod measure;
mod node_side;
mod peer;
mod progress;
mod remote;
mod report;
mod sessions;
mod stuck;
mod workload;
mod writer;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use pgcapture_actors::postgres::{LocalServerError, PgError};

use super::{
    Failure, Global,
    output::{self, Format},
    start::{start_telemetry, terminate},
};

/// Magic number of tmpfs: a log there shows nothing of a disk.
const TMPFS: i64 = 0x0102_1994;

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
    /// Directory on the disk to measure; everything in it is removed again.
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// What to measure.
#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// From the slot to the durable log or to a consumer, beside pg_recvlogical.
    Capture(capture::CaptureArgs),
    /// From the commit to a consumer.
    Latency(latency::LatencyArgs),
    /// Many idle consumers.
    Sessions(sessions::SessionsArgs),
    /// Consumers that read nothing while the log grows.
    Stuck(stuck::StuckArgs),
    /// From the log to one consumer.
    Log(log::LogArgs),
    /// To one consumer on another node than the agent, beside one on the agent's node.
    Remote(log::LogArgs),
    /// Existing rows from a standby to one consumer, beside COPY.
    Dump(dump::DumpArgs),
    /// From the death of the node that reads a source to the next change at a consumer.
    Failover(failover::FailoverArgs),
    /// What three nodes cost, idle, with many sources and under load.
    Cluster(cluster::ClusterArgs),
    /// Work in a process of its own; for the other commands.
    #[command(hide = true)]
    Child,
}

impl BenchArgs {
    /// Tells whether the command runs parts of a node.
    pub(super) const fn runs_node(&self) -> bool {
        !matches!(self.command, BenchCommand::Child)
    }
}

pub(super) async fn run(global: &Global, args: BenchArgs) -> Result<(), Failure> {
    start_telemetry(global, "error");
    if matches!(args.command, BenchCommand::Child) {
        return child::run().await.map_err(|error| failure(&error));
    }
    if cfg!(debug_assertions) {
        output::talk(
            "WARNING: this is a debug build; its figures mean nothing. Use cargo build --release.\n",
        );
    }
    let data = args.data.unwrap_or_else(std::env::temp_dir);
    warn_of_memory(&data);
    let mut terminate = terminate()?;
    let measured = async {
        match &args.command {
            BenchCommand::Capture(args) => capture::run(global, args, &data).await,
            BenchCommand::Latency(args) => latency::run(global, args, &data).await,
            BenchCommand::Sessions(args) => sessions::run(global, args, &data).await,
            BenchCommand::Stuck(args) => stuck::run(global, args, &data).await,
            BenchCommand::Dump(args) => dump::run(global, args, &data).await,
            BenchCommand::Log(args) => log::run(global, args, &data).await,
            BenchCommand::Remote(args) => remote::run(global, args, &data).await,
            BenchCommand::Failover(args) => failover::run(global, args, &data).await,
            BenchCommand::Cluster(args) => cluster::run(global, args, &data).await,
            BenchCommand::Child => Ok(()),
        }
    };
    tokio::select! {
        measured = Box::pin(measured) => measured.map_err(|error| failure(&error)),
        _ = terminate.recv() => Err(Failure::interrupted()),
        _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
    }
}

/// A folder for one run, removed with the returned value.
fn scratch(data: &Path) -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    let directory = builder.prefix("pgcapture-bench-").tempdir_in(data);
    directory.with_context(|| format!("no folder in {}", data.display()))
}

fn warn_of_memory(data: &Path) {
    let found = rustix::fs::statfs(data);
    if found.is_ok_and(|found| found.f_type == TMPFS) {
        output::talk(&format!(
            "WARNING: {} lies in memory; the log is not written to a disk. Use --data.\n",
            data.display()
        ));
    }
}

/// A failure of a command as an error with everything that it says.
fn told(failure: Failure) -> anyhow::Error {
    let Failure {
        code, text, next, ..
    } = failure;
    anyhow::anyhow!("{code} {text}; next: {next}")
}

/// Processors that this process may use.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn failure(error: &anyhow::Error) -> Failure {
    let postgres = error.downcast_ref::<PgError>().map(PgError::explanation);
    let server = error.downcast_ref::<LocalServerError>();
    let explanation = postgres.or_else(|| server.map(LocalServerError::explanation));
    match explanation {
        Some(explanation) => Failure::new(1, explanation, format!("{error:#}")),
        None => Failure {
            text: format!("{error:#}"),
            next: "run it again with -v; nothing of it was kept".to_owned(),
            ..Failure::silent(1)
        },
    }
}
