//! `pgcapture dev`: a throw-away PostgreSQL, a sample shop, a load, and one node in this process or
//! several that are processes of their own.
//!
//! Everything lies in temporary folders and is gone on exit, however it is asked to end. With
//! `--pg URL` a running server is used: its slot, publication and sample schema are dropped again.

pub(super) mod cluster;
mod control;
mod everyone;
mod faults;
mod links;
mod load;
mod servers;
mod several;
mod shop;
mod status;

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::{Args, Subcommand};
use pgcapture_actors::postgres::{self, Caretaker};
use pgcapture_engine::{cluster::Origin, codes};
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use self::{
    cluster::NODES_MAX,
    faults::{NodeArgs, PartitionArgs, Target},
    load::Load,
    servers::{Registrar, Servers},
    shop::Shop,
};
pub(super) use self::{control::NodeView, everyone::every_node};
use super::{
    Failure, Global, output,
    start::{cannot_start, start_telemetry, terminate},
};
use crate::{
    app::{self, Node},
    config::{Config, SourceSection, WalGuardSection},
    sources::{Definition, SourceError},
};

/// Name of the source and of its stream.
const STREAM: &str = "orders";

/// Slot and publication in a server that is not ours: not the names that a real source would have.
const FOREIGN_NAME: &str = "pgcapture_dev";

/// The port of metrics is this far above the port of clients.
const METRICS_OFFSET: u16 = 90;

/// Rights of the folder: its user's alone.
const FOLDER_MODE: u32 = 0o700;

/// At most this many standbys; each is a PostgreSQL of its own.
const REPLICAS_MAX: i64 = 4;

/// Arguments of `dev`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DevArgs {
    #[command(subcommand)]
    pub(super) command: Option<DevCommand>,
    /// Nodes; more than one are processes of their own and form a cluster.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    nodes: u8,
    /// Write to a table at a rate: orders:500/s
    #[arg(long, value_name = "TABLE:RATE")]
    load: Option<Load>,
    /// Use a running PostgreSQL; slot, publication and sample schema are dropped on exit.
    #[arg(long, value_name = "URL", conflicts_with = "pg_bin")]
    pg: Option<String>,
    /// Directory of initdb and postgres.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Standbys beside the PostgreSQL, from which existing rows are read; without any they are read
    /// from the PostgreSQL itself.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "pg",
          value_parser = clap::value_parser!(u8).range(0..=REPLICAS_MAX))]
    replicas: u8,
    /// Keep the node's files here instead of in a temporary folder.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Port for clients, and the following ones for more nodes; metrics are 90 above. 0 takes free
    /// ones.
    #[arg(long, default_value_t = crate::config::DEFAULT_PORT)]
    port: u16,
    /// For scripts: accepted and without effect while there is no console.
    #[arg(long)]
    headless: bool,
}

/// Commands about a running `dev`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// Print addresses and state; `-o env` for a shell.
    Status(Target),
    /// Kill a node, as `kill -9` does.
    Kill(NodeArgs),
    /// Stop a node in order, as an init system does.
    Stop(NodeArgs),
    /// Freeze a node: it lives and says nothing.
    Pause(NodeArgs),
    /// Let a frozen node go on.
    Resume(NodeArgs),
    /// Start a dead node again on its data.
    Start(NodeArgs),
    /// Start one node more, which joins the cluster.
    Add(Target),
    /// Cut the network between groups of nodes: `partition 1 2,3`.
    Partition(PartitionArgs),
    /// Make the network whole again.
    Heal(Target),
}

pub(super) async fn run(global: &Global, args: DevArgs) -> Result<(), Failure> {
    if let Some(command) = args.command {
        return faults::run(global, command).await;
    }
    start_telemetry(global, "warn");
    if args.nodes > 1 {
        return several::run(global, &args).await;
    }
    let began = Instant::now();
    let mut terminate = terminate()?;
    let dev = tokio::select! {
        dev = Dev::start(&args) => dev?,
        _ = terminate.recv() => return Err(Failure::interrupted()),
        _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
    };
    serve(&dev.block(began), args.load, &dev.shop, &mut terminate).await;
    dev.stop().await
}

/// Prints the addresses and writes the load until it is told to stop.
async fn serve(block: &str, load: Option<Load>, shop: &Shop, terminate: &mut Signal) {
    // The block is what the command is asked for: to stdout, where scripts find it. A stdout that
    // is gone is no reason to end.
    if let Err(error) = output::data(block) {
        output::talk(&format!("cannot print the addresses: {error}\n"));
    }
    let stop_load = CancellationToken::new();
    let mut load = load.map(|load| load::start(load, shop.clone(), stop_load.clone()));
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
}

/// The node's files. Removed when dropped, and when we are killed.
#[derive(Debug)]
struct Folder {
    directory: tempfile::TempDir,
    _caretaker: Caretaker,
}

impl Folder {
    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// What `dev` runs.
#[derive(Debug)]
struct Dev {
    node: Node,
    shop: Shop,
    servers: Servers,
    // Held so that the folder is removed last.
    _folder: Folder,
}

impl Dev {
    async fn start(args: &DevArgs) -> Result<Self, Failure> {
        let (folder, config) = node_config(args)?;
        let (servers, node) = tokio::join!(Servers::start(args), app::start(&config));
        let node = match node {
            Ok(node) => node,
            Err(error) => return Err(cannot_start(&error)),
        };
        let mut servers = match servers {
            Ok(servers) => servers,
            Err(failure) => {
                node.stop().await;
                return Err(failure);
            }
        };
        match prepare(args, &mut servers, &node).await {
            Ok(shop) => Ok(Self {
                node,
                shop,
                servers,
                _folder: folder,
            }),
            Err(failure) => {
                node.stop().await;
                servers.stop().await;
                Err(failure)
            }
        }
    }

    /// Stops in order: what we made in a foreign server, the node, our own servers.
    async fn stop(self) -> Result<(), Failure> {
        let cleaned = if self.servers.primary.is_none() {
            self.leave_foreign_server().await
        } else {
            Ok(())
        };
        let is_clean = self.node.stop().await;
        self.servers.stop().await;
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
        let postgres = match &self.servers.primary {
            Some(server) => format!("postgres on :{} (started by pgcapture)", server.port()),
            None => "the PostgreSQL that you named".to_owned(),
        };
        format!(
            "  pgcapture {version} dev – data in a temporary folder (deleted on exit)    ready in {seconds:.1} s\n  \
             gRPC      {listen} (reflection on)    metrics  http://{}/metrics\n  \
             source    {postgres}    stream  {STREAM}\n  \
             database  {}\n  \
             replicas  {}\n  \
             try:  pgcapture tail {STREAM}{endpoint}    pgcapture source ls{endpoint}    pgcapture dev status -o env{endpoint}\n  \
             or:   pgcapture dump start {STREAM} --table {}.orders{endpoint}\n  \
             NOT FOR PRODUCTION: no TLS, data deleted on exit. Ctrl-C ends it.\n",
            self.node.metrics,
            self.shop.url(),
            self.servers.replicas_text(),
            self.shop.schema(),
        )
    }
}

/// Makes the folder of everything that the nodes keep.
fn node_folder(args: &DevArgs) -> Result<Folder, Failure> {
    let unwritable = |error: std::io::Error| {
        let text = format!("no temporary folder: {error}");
        Failure::new(1, &codes::node::DATA_DIR_UNWRITABLE, text)
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix("pgcapture-dev-");
    // Passwords and rows lie in it: nobody else may look.
    builder.permissions(std::fs::Permissions::from_mode(FOLDER_MODE));
    let directory = match &args.data {
        Some(parent) => std::fs::create_dir_all(parent).and_then(|()| builder.tempdir_in(parent)),
        None => builder.tempdir(),
    };
    let directory = directory.map_err(unwritable)?;
    let caretaker = Caretaker::of(directory.path()).map_err(unwritable)?;
    Ok(Folder {
        directory,
        _caretaker: caretaker,
    })
}

/// Makes the configuration of a node whose files are gone with the returned folder.
fn node_config(args: &DevArgs) -> Result<(Folder, Config), Failure> {
    let folder = node_folder(args)?;
    let mut config = Config::from_text("dev", "").map_err(|error| {
        output::talk(&format!("{error}\n"));
        Failure::silent(2)
    })?;
    "dev".clone_into(&mut config.node.name);
    config.node.data_dir = folder.path().to_owned();
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

/// Makes the sample shop; returns it and the url under which it is captured.
async fn make_shop(args: &DevArgs, servers: &Servers) -> Result<(Shop, String), Failure> {
    let url = match (&servers.primary, &args.pg) {
        (Some(server), _) => server.url("postgres"),
        (None, Some(url)) => url.clone(),
        (None, None) => return Err(Failure::usage("no PostgreSQL to use")),
    };
    let postgres_failure =
        |error: &postgres::PgError| Failure::new(1, error.explanation(), error.to_string());
    let shop = Shop::create(&url, servers.primary.is_none());
    let shop = shop.await.map_err(|error| match &error {
        shop::ShopError::Url(bad) => Failure::new(2, bad.explanation(), bad.to_string()),
        shop::ShopError::Postgres(error) => postgres_failure(error),
    })?;
    Ok((shop, url))
}

/// Makes the sample shop and captures it.
async fn prepare(args: &DevArgs, servers: &mut Servers, node: &Node) -> Result<Shop, Failure> {
    let (shop, url) = make_shop(args, servers).await?;
    let is_foreign = servers.primary.is_none();
    let name = if is_foreign { FOREIGN_NAME } else { "" };
    let section = SourceSection {
        url: url.clone(),
        password: None,
        stream: STREAM.to_owned(),
        slot: name.to_owned(),
        publication: name.to_owned(),
        tables: vec![format!("{}.*", shop.schema())],
        exclude: Vec::new(),
        wal_guard: WalGuardSection::default(),
    };
    let definition = Definition::new(STREAM, section, "", Origin::Command);
    let definition = definition.map_err(|error| source_failure(&error))?;
    let captured = match node.sources.add(definition).await {
        Ok(_) => {
            let at = Registrar::Node(node);
            servers.add_replicas(at, args.replicas, &url).await
        }
        Err(error) => Err(source_failure(&error)),
    };
    match captured {
        Ok(()) => Ok(shop),
        Err(failure) => {
            if is_foreign {
                // The failure that is shown is the first one.
                drop(node.sources.detach(STREAM, false).await);
                drop(shop.drop().await);
            }
            Err(failure)
        }
    }
}

fn source_failure(error: &SourceError) -> Failure {
    Failure::new(1, error.explanation(), error.to_string()).next(error.next())
}
