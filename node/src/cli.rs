//! The command line: `pgcapture <noun> <verb>`.
//!
//! Data goes to stdout, talk to stderr. Commands that ask a node speak `pgcapture.admin.v1` and
//! `pgcapture`; only `start` and `dev` run one. Every failure ends with a next step and an exit code
//! of the table in [`failure`].

mod bench;
mod cert;
mod cluster;
mod completion;
mod config;
mod connect;
mod consumer;
mod dev;
mod dump;
mod explain;
pub mod failure;
mod output;
mod removal;
mod replica;
mod slot;
mod source;
mod start;
mod stream;
mod tail;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

pub use self::failure::Failure;
use self::output::Format;
use crate::units::Span;

/// Change data capture for PostgreSQL: committed rows, in order, over gRPC.
#[derive(Debug, Parser)]
#[command(name = "pgcapture", version, propagate_version = true)]
#[command(
    after_help = "Start here:  pgcapture dev --load orders:500/s   then   pgcapture tail orders"
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Node to ask: host:port, http://… or https://…; several separated by commas are tried in turn.
    #[arg(
        long,
        global = true,
        env = "PGCAPTURE_ENDPOINT",
        default_value = "127.0.0.1:7700"
    )]
    pub endpoint: String,
    /// File with the token of the API.
    #[arg(long, global = true, env = "PGCAPTURE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificate authority of the node, PEM; turns TLS on.
    #[arg(long, global = true, env = "PGCAPTURE_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Certificate to show to the node, PEM.
    #[arg(
        long,
        global = true,
        env = "PGCAPTURE_CERT",
        value_name = "FILE",
        requires = "key"
    )]
    pub cert: Option<PathBuf>,
    /// Key of that certificate, PEM.
    #[arg(
        long,
        global = true,
        env = "PGCAPTURE_KEY",
        value_name = "FILE",
        requires = "cert"
    )]
    pub key: Option<PathBuf>,
    /// Give up after this long.
    #[arg(
        long,
        global = true,
        env = "PGCAPTURE_TIMEOUT",
        default_value = "30s",
        value_name = "TIME"
    )]
    pub timeout: Span,
    /// Form of the output.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Say nothing but the data and errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log more; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No colours; NO_COLOR does the same.
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a throw-away PostgreSQL, a node and a sample shop; everything is gone on exit.
    Dev(dev::DevArgs),
    /// Run a node.
    Start(start::StartArgs),
    /// Captured databases.
    #[command(subcommand)]
    Source(source::SourceCommand),
    /// Replication slots: position, lag, kept WAL.
    #[command(subcommand)]
    Slot(slot::SlotCommand),
    /// Streams: what the logs hold.
    #[command(subcommand)]
    Stream(stream::StreamCommand),
    /// Show the changes of a stream; read only, disturbs no consumer.
    Tail(tail::TailArgs),
    /// Consumers and their positions.
    #[command(subcommand)]
    Consumer(consumer::ConsumerCommand),
    /// Existing rows on demand, delivered to a consumer between its changes.
    #[command(subcommand)]
    Dump(dump::DumpCommand),
    /// Where existing rows are read from.
    #[command(subcommand)]
    Replica(replica::ReplicaCommand),
    /// The nodes: who leads, who lives, who owns what.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Certificates for TLS between nodes and clients.
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Measure this machine beside PostgreSQL's own tools.
    Bench(bench::BenchArgs),
    /// Check and show the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the completion script of a shell.
    Completion(completion::CompletionArgs),
    /// Explain an error code.
    Explain(explain::ExplainArgs),
}

impl Command {
    /// Tells whether the command runs a node and so needs the runtime of one.
    #[must_use]
    pub const fn runs_node(&self) -> bool {
        match self {
            Self::Start(_) => true,
            Self::Dev(args) => args.command.is_none(),
            Self::Bench(args) => args.runs_node(),
            Self::Source(_)
            | Self::Slot(_)
            | Self::Stream(_)
            | Self::Tail(_)
            | Self::Consumer(_)
            | Self::Dump(_)
            | Self::Replica(_)
            | Self::Cluster(_)
            | Self::Cert(_)
            | Self::Config(_)
            | Self::Completion(_)
            | Self::Explain(_) => false,
        }
    }

    /// Tells whether the command asks a node that runs already, whichever of a cluster.
    const fn asks_a_node(&self) -> bool {
        match self {
            Self::Source(_)
            | Self::Slot(_)
            | Self::Stream(_)
            | Self::Tail(_)
            | Self::Consumer(_)
            | Self::Dump(_)
            | Self::Replica(_)
            | Self::Cluster(_) => true,
            Self::Dev(_)
            | Self::Start(_)
            | Self::Cert(_)
            | Self::Bench(_)
            | Self::Config(_)
            | Self::Completion(_)
            | Self::Explain(_) => false,
        }
    }
}

/// Runs a command and returns its exit code; errors are printed here.
pub async fn run(cli: Cli) -> ExitCode {
    let mut global = cli.global;
    if cli.command.asks_a_node()
        && let Some(all) = dev::every_node(&global.endpoint).await
    {
        global.endpoint = all;
    }
    let outcome = match cli.command {
        Command::Dev(args) => dev::run(&global, args).await,
        Command::Start(args) => start::run(&global, args).await,
        Command::Source(command) => source::run(&global, command).await,
        Command::Slot(command) => slot::run(&global, command).await,
        Command::Stream(command) => stream::run(&global, command).await,
        Command::Tail(args) => tail::run(&global, args).await,
        Command::Consumer(command) => consumer::run(&global, command).await,
        Command::Dump(command) => dump::run(&global, command).await,
        Command::Replica(command) => replica::run(&global, command).await,
        Command::Cluster(command) => cluster::run(&global, command).await,
        Command::Cert(command) => cert::run(&global, command),
        Command::Bench(args) => bench::run(&global, args).await,
        Command::Config(command) => config::run(&global, command),
        Command::Completion(args) => completion::run(&args),
        Command::Explain(args) => explain::run(&global, &args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(&global),
    }
}

/// Says which nodes did not answer, under a list that would be longer with them.
fn tell_unreachable(global: &Global, nodes: &[String], what: &str) {
    if !nodes.is_empty() && !global.quiet {
        let nodes = nodes.join(", ");
        output::talk(&format!(
            "! no answer from {nodes}: {what}\n  next: pgcapture cluster status\n"
        ));
    }
}
