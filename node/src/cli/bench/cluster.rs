//! `bench cluster`: what three nodes cost, and how they do with many sources.
//!
//! Three real nodes and one PostgreSQL, in three parts that can be run alone: idle without and with one
//! source; many sources with many subscriptions, until one node is killed; proposals of the Raft group
//! while more and more changes are written. The figures of a node are what the system says of its
//! process.

mod idle;
mod load;
mod many;
mod report;
mod server;
mod subscribers;
mod trio;

use std::path::Path;

use clap::{Args, ValueEnum};

use self::{report::ClusterReport, server::Server};
use super::{Global, database::DatabaseArgs, processors, progress::Progress, told};

pub(super) use self::subscribers::{Order, run as subscribe};

/// Nodes: one may die.
const NODES: u8 = 3;

/// Arguments of `bench cluster`.
#[derive(Args, Debug)]
pub(super) struct ClusterArgs {
    /// What to measure; without, all of it.
    #[arg(long = "part", value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Sources of the part `sources`: one table and one slot each.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(3..=1_000))]
    sources: u32,
    /// Subscriptions of all sources together, each with a cursor.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=50_000))]
    subscriptions: u32,
    /// Subscriptions that keep an idle session; half of them when not said.
    #[arg(long)]
    sessions: Option<u32>,
    /// The node that is killed leads the Raft group as well; without, it never does.
    #[arg(long)]
    with_raft_leader: bool,
    /// Seconds of every idle time and of every load.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Changes a second of the part `load`, one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000],
          value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    rates: Vec<u32>,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Memory and processor time of idle nodes, without a source and with one.
    Idle,
    /// Many sources and subscriptions, and the death of a node.
    Sources,
    /// Proposals a second while changes are written.
    Load,
}

impl ClusterArgs {
    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    /// Subscriptions that keep a session.
    fn sessions(&self) -> u32 {
        let wanted = self.sessions.unwrap_or(self.subscriptions / 2);
        wanted.min(self.subscriptions)
    }
}

pub(super) async fn run(global: &Global, args: &ClusterArgs, data: &Path) -> anyhow::Result<()> {
    let progress = Progress::new(global);
    progress.step("starting PostgreSQL");
    let slots = if args.has(Part::Sources) {
        args.sources
    } else {
        1
    };
    let server = Server::open(&args.database, slots).await?;
    let measured = measure(args, &server, data, &progress).await;
    // No node runs any more: what they made in a server of the user can go.
    let cleaned = server.clean().await;
    drop(progress);
    let report = match (measured, cleaned) {
        (Err(error), Err(left)) => {
            return Err(error.context(format!("and the server could not be cleaned: {left:#}")));
        }
        (measured, cleaned) => {
            cleaned?;
            measured?
        }
    };
    report.print(global)?;
    Ok(())
}

async fn measure(
    args: &ClusterArgs,
    server: &Server,
    data: &Path,
    progress: &Progress,
) -> anyhow::Result<ClusterReport> {
    let mut report = ClusterReport {
        benchmark: "cluster",
        nodes: NODES,
        processors: processors(),
        server_version: server.version().to_owned(),
        debug_build: cfg!(debug_assertions),
        ..ClusterReport::default()
    };
    if args.has(Part::Idle) {
        report.idle = idle::measure(args, server, data, progress).await?;
    }
    if args.has(Part::Sources) {
        report.sources = Some(many::measure(args, server, data, progress).await?);
    }
    if args.has(Part::Load) {
        report.load = load::measure(args, server, data, progress).await?;
    }
    Ok(report)
}
