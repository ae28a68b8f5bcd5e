//! `pgcapture dev`: a throw-away PostgreSQL, one node, a sample shop, a load.
//!
//! Everything lies in temporary folders and is gone on exit, however it is asked to end. With
//! `--pg URL` a running server is used: its slot, publication and sample schema are dropped again.

mod load;
mod shop;
mod status;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Instant,
};

use clap::{Args, Subcommand};
use pgcapture_actors::postgres::{self, Caretaker, LocalServer, LocalServerOptions, StopMode};
use pgcapture_engine::{cluster::Origin, codes};
use tokio_util::sync::CancellationToken;

use self::{load::Load, shop::Shop};
use super::{
    Failure, Global, output,
    start::{cannot_start, start_telemetry, terminate},
};
use crate::{
    app::{self, Node},
    config::{Config, SourceSection},
    sources::{Definition, SourceError},
};

/// Name of the source and of its stream.
const STREAM: &str = "orders";

/// Slot and publication in a server that is not ours: not the names that a real source would have.
const FOREIGN_NAME: &str = "pgcapture_dev";

/// The port of metrics is this far above the port of clients.
const METRICS_OFFSET: u16 = 90;

/// Arguments of `dev`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DevArgs {
    #[command(subcommand)]
    pub(super) command: Option<DevCommand>,
    /// Write to a table at a rate: orders:500/s
    #[arg(long, value_name = "TABLE:RATE")]
    load: Option<Load>,
    /// Use a running PostgreSQL; slot, publication and sample schema are dropped on exit.
    #[arg(long, value_name = "URL", conflicts_with = "pg_bin")]
    pg: Option<String>,
    /// Directory of initdb and postgres.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Keep the node's files here instead of in a temporary folder.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Port for clients; metrics are 90 above it. 0 takes free ones.
    #[arg(long, default_value_t = crate::config::DEFAULT_PORT)]
    port: u16,
    /// For scripts: accepted and without effect while there is no console.
    #[arg(long)]
    headless: bool,
}

/// Commands about a running `dev`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// Print addresses and state; `-o env` for a shell.
    Status,
}

pub(super) async fn run(global: &Global, args: DevArgs) -> Result<(), Failure> {
    if let Some(DevCommand::Status) = args.command {
        return status::run(global).await;
    }
    start_telemetry(global, "warn");
    let began = Instant::now();
    let mut terminate = terminate()?;
    let dev = tokio::select! {
        dev = Dev::start(&args) => dev?,
        _ = terminate.recv() => return Err(Failure::interrupted()),
        _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
    };
    // The block is what the command is asked for: to stdout, where scripts find it. A stdout that
    // is gone is no reason to end.
    if let Err(error) = output::data(&dev.block(began)) {
        output::talk(&format!("cannot print the addresses: {error}\n"));
    }
    let stop_load = CancellationToken::new();
    let mut load = args
        .load
        .map(|load| load::start(load, dev.shop.clone(), stop_load.clone()));
    tokio::select! {
        _ = terminate.recv() => (),
        _ = tokio::signal::ctrl_c() => (),
    }
    output::talk("stopping …\n");
    stop_load.cancel();
    if let Some(load) = &mut load
        && let Err(end) = load.join().await
    {
        tracing::warn!(%end, "the load did not end well");
    }
    dev.stop().await
}

/// The node's files. Removed when dropped, and when we are killed.
#[derive(Debug)]
struct Folder {
    directory: tempfile::TempDir,
    _caretaker: Caretaker,
}

/// What `dev` runs.
#[derive(Debug)]
struct Dev {
    node: Node,
    shop: Shop,
    server: Option<LocalServer>,
    // Held so that the folder is removed last.
    _folder: Folder,
}

impl Dev {
    async fn start(args: &DevArgs) -> Result<Self, Failure> {
        let (folder, config) = node_config(args)?;
        let (server, node) = tokio::join!(start_postgres(args), app::start(&config));
        let node = match node {
            Ok(node) => node,
            Err(error) => return Err(cannot_start(&error)),
        };
        let mut server = match server {
            Ok(server) => server,
            Err(failure) => {
                node.stop().await;
                return Err(failure);
            }
        };
        match prepare(args, server.as_ref(), &node).await {
            Ok(shop) => Ok(Self {
                node,
                shop,
                server,
                _folder: folder,
            }),
            Err(failure) => {
                node.stop().await;
                stop_postgres(&mut server).await;
                Err(failure)
            }
        }
    }

    /// Stops in order: what we made in a foreign server, the node, our own server.
    async fn stop(mut self) -> Result<(), Failure> {
        let cleaned = if self.server.is_none() {
            self.leave_foreign_server().await
        } else {
            Ok(())
        };
        let is_clean = self.node.stop().await;
        stop_postgres(&mut self.server).await;
        cleaned?;
        if is_clean {
            return Ok(());
        }
        let unclean = &codes::node::UNCLEAN_STOP;
        Err(Failure::new(1, unclean, unclean.title))
    }

    async fn leave_foreign_server(&self) -> Result<(), Failure> {
        let detached = self.node.sources.detach(STREAM, false).await;
        detached.map_err(|error| source_failure(&error))?;
        self.shop.drop().await.map_err(|error| {
            Failure::new(
                1,
                error.explanation(),
                format!("{error}: the sample schema is left"),
            )
        })
    }

    fn block(&self, began: Instant) -> String {
        let seconds = began.elapsed().as_secs_f64();
        let version = env!("CARGO_PKG_VERSION");
        let listen = self.node.listen;
        let endpoint = if listen.port() == crate::config::DEFAULT_PORT {
            String::new()
        } else {
            format!(" --endpoint {listen}")
        };
        let postgres = match &self.server {
            Some(server) => format!("postgres on :{} (started by pgcapture)", server.port()),
            None => "the PostgreSQL that you named".to_owned(),
        };
        format!(
            "  pgcapture {version} dev – data in a temporary folder (deleted on exit)    ready in {seconds:.1} s\n  \
             gRPC      {listen} (reflection on)    metrics  http://{}/metrics\n  \
             source    {postgres}    stream  {STREAM}\n  \
             database  {}\n  \
             try:  pgcapture tail {STREAM}{endpoint}    pgcapture source ls{endpoint}    pgcapture dev status -o env{endpoint}\n  \
             NOT FOR PRODUCTION: no TLS, data deleted on exit. Ctrl-C ends it.\n",
            self.node.metrics,
            self.shop.url(),
        )
    }
}

/// Makes the configuration of a node whose files are gone with the returned folder.
fn node_config(args: &DevArgs) -> Result<(Folder, Config), Failure> {
    let unwritable = |error: std::io::Error| {
        let text = format!("no temporary folder: {error}");
        Failure::new(1, &codes::node::DATA_DIR_UNWRITABLE, text)
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix("pgcapture-dev-");
    let directory = match &args.data {
        Some(parent) => std::fs::create_dir_all(parent).and_then(|()| builder.tempdir_in(parent)),
        None => builder.tempdir(),
    };
    let directory = directory.map_err(unwritable)?;
    let caretaker = Caretaker::of(directory.path()).map_err(unwritable)?;
    let folder = Folder {
        directory,
        _caretaker: caretaker,
    };
    let mut config = Config::from_text("dev", "").map_err(|error| {
        output::talk(&format!("{error}\n"));
        Failure::silent(2)
    })?;
    "dev".clone_into(&mut config.node.name);
    config.node.data_dir = folder.directory.path().to_owned();
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let metrics_port = match args.port {
        0 => Some(0),
        port => port.checked_add(METRICS_OFFSET),
    };
    let metrics_port =
        metrics_port.ok_or_else(|| Failure::usage(format!("--port {} is too high", args.port)))?;
    config.node.listen = loopback(args.port);
    config.node.metrics = loopback(metrics_port);
    Ok((folder, config))
}

async fn start_postgres(args: &DevArgs) -> Result<Option<LocalServer>, Failure> {
    if args.pg.is_some() {
        return Ok(None);
    }
    let options = LocalServerOptions {
        bin_dir: args.pg_bin.clone(),
        ..LocalServerOptions::default()
    };
    let started = LocalServer::start(options).await;
    started.map(Some).map_err(|error| {
        let text = format!("{error} ({})", error.explanation().code);
        Failure::new(1, &codes::node::NO_POSTGRES, text)
    })
}

/// Makes the sample shop and captures it.
async fn prepare(
    args: &DevArgs,
    server: Option<&LocalServer>,
    node: &Node,
) -> Result<Shop, Failure> {
    let url = match (server, &args.pg) {
        (Some(server), _) => server.url("postgres"),
        (None, Some(url)) => url.clone(),
        (None, None) => return Err(Failure::usage("no PostgreSQL to use")),
    };
    let postgres_failure =
        |error: &postgres::PgError| Failure::new(1, error.explanation(), error.to_string());
    let shop = Shop::create(&url, server.is_none());
    let shop = shop.await.map_err(|error| match &error {
        shop::ShopError::Url(bad) => Failure::new(2, bad.explanation(), bad.to_string()),
        shop::ShopError::Postgres(error) => postgres_failure(error),
    })?;
    let name = if server.is_some() { "" } else { FOREIGN_NAME };
    let section = SourceSection {
        url,
        password: None,
        stream: STREAM.to_owned(),
        slot: name.to_owned(),
        publication: name.to_owned(),
        tables: vec![format!("{}.*", shop.schema())],
        exclude: Vec::new(),
    };
    let definition = Definition::new(STREAM, section, "", Origin::Command);
    let definition = definition.map_err(|error| source_failure(&error))?;
    match node.sources.add(definition).await {
        Ok(_) => Ok(shop),
        Err(error) => {
            if server.is_none() {
                drop(shop.drop().await.map_err(|error| postgres_failure(&error)));
            }
            Err(source_failure(&error))
        }
    }
}

fn source_failure(error: &SourceError) -> Failure {
    Failure::new(1, error.explanation(), error.to_string()).next(error.next())
}

async fn stop_postgres(server: &mut Option<LocalServer>) {
    let Some(server) = server else {
        return;
    };
    if let Err(error) = server.stop(StopMode::Fast).await {
        tracing::warn!(%error, "PostgreSQL did not stop by itself and is killed");
    }
}
