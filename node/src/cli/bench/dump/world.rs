//! What a dump is measured in: a throw-away server, its standby, and a whole node in this process, as
//! `pgcapture start` runs it. Consumers are processes of their own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use pgcapture_actors::postgres::{
    Connection, LocalServer, LocalServerOptions, PgError, Replication, StandbyOptions,
};
use pgcapture_proto::admin::v1::{
    AddReplicaRequest, AddSourceRequest, ReplicaDefinition, SourceDefinition,
    admin_client::AdminClient, replicas_client::ReplicasClient,
};

use super::{DumpArgs, Measured, ReadFrom, copy::copy, taker::Taker};
use crate::{
    app::{self, Node},
    cli::bench::{
        consumer,
        database::text_of,
        measure::{own_cpu, resident_mib, server_cpu, with_memory},
        node_side::STREAM,
        workload::{PUBLICATION, SCHEMA},
    },
    config::Config,
};

/// Name of the node and of its replica.
const NAME: &str = "bench";

/// Rows of a transaction while the table is filled.
const FILL_ROWS: u64 = 100_000;

/// What a dump or its peer cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// By the clock.
    pub(super) seconds: f64,
    /// Processor time of the node; of the peer's client.
    pub(super) cpu_seconds: f64,
    /// Processor time of the consumer.
    pub(super) consumer_cpu_seconds: f64,
    /// Processor time of the server that is read.
    pub(super) server_cpu_seconds: f64,
    /// Memory of the node before.
    pub(super) rss_before_mib: f64,
    /// The most that it had meanwhile.
    pub(super) rss_mib: f64,
}

/// The table that is dumped.
pub(super) fn dumped() -> String {
    format!("{SCHEMA}.rows")
}

/// The table that the paced writer writes to; empty in the beginning.
pub(super) fn live() -> String {
    format!("{SCHEMA}.t")
}

/// Servers and node. Stop it by [`World::stop`].
#[derive(Debug)]
pub(super) struct World {
    node: Node,
    // Ends before the server that it follows.
    standby: Option<LocalServer>,
    source: LocalServer,
}

impl Cost {
    /// How many processors were busy for it, on average.
    pub(super) fn processors_busy(&self) -> f64 {
        let sum = self.cpu_seconds + self.consumer_cpu_seconds + self.server_cpu_seconds;
        sum / self.seconds
    }
}

impl World {
    /// Starts everything and fills the table.
    pub(super) async fn start(args: &DumpArgs, directory: &Path) -> anyhow::Result<Self> {
        let source = start_source(args).await?;
        let standby = match args.from {
            ReadFrom::Source => None,
            ReadFrom::Standby => {
                let standby = source.start_standby(StandbyOptions::default()).await?;
                standby.catch_up_with(&source).await?;
                Some(standby)
            }
        };
        let node = app::start(&config(directory)?).await?;
        let world = Self {
            node,
            standby,
            source,
        };
        match world.register(args).await {
            Ok(()) => Ok(world),
            Err(error) => {
                world.stop().await;
                Err(error)
            }
        }
    }

    /// Stops the node, then the servers; tells whether the node stopped cleanly.
    pub(super) async fn stop(self) -> bool {
        self.node.stop().await
    }

    /// The server that rows are read from.
    fn replica(&self) -> &LocalServer {
        self.standby.as_ref().unwrap_or(&self.source)
    }

    /// Connection string of the source.
    pub(super) fn source_url(&self) -> String {
        self.source.url("postgres")
    }

    /// Address of the node.
    pub(super) fn address(&self) -> String {
        self.node.listen.to_string()
    }

    /// Runs statements on the source.
    pub(super) async fn execute(&self, statement: &str) -> anyhow::Result<()> {
        connect(&self.source).await?.query(statement).await?;
        Ok(())
    }

    /// Declares source and replica, as an operator would.
    async fn register(&self, args: &DumpArgs) -> anyhow::Result<()> {
        let channel = consumer::connect(&self.address()).await?;
        let source = SourceDefinition {
            name: STREAM.to_owned(),
            url: self.source_url(),
            tables: vec![dumped(), live()],
            ..SourceDefinition::default()
        };
        let request = AddSourceRequest {
            definition: Some(source),
        };
        AdminClient::new(channel.clone())
            .add_source(request)
            .await?;
        let replica = ReplicaDefinition {
            name: NAME.to_owned(),
            source: STREAM.to_owned(),
            url: self.replica().url("postgres"),
            kind: args.from.as_str().to_owned(),
            max_ranges: args.workers,
            ..ReplicaDefinition::default()
        };
        let request = AddReplicaRequest {
            definition: Some(replica),
            dry_run: false,
        };
        let added = ReplicasClient::new(channel).add_replica(request).await?;
        let added = added.into_inner();
        let checks = added.checks;
        ensure!(
            added.replica.is_some(),
            "the replica was refused: {checks:?}"
        );
        Ok(())
    }
}

/// Starts the source and fills the table.
pub(super) async fn start_source(args: &DumpArgs) -> anyhow::Result<LocalServer> {
    // A measurement must not wait for a checkpoint or for a vacuum in the middle of a run.
    let settings = [
        ("max_wal_size", "16GB"),
        ("checkpoint_timeout", "1h"),
        ("autovacuum", "off"),
        ("shared_buffers", "256MB"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let server = LocalServer::start(LocalServerOptions {
        bin_dir: args.pg_bin.clone(),
        settings: settings.to_vec(),
        ..LocalServerOptions::default()
    })
    .await?;
    fill(args, &server).await?;
    Ok(server)
}

/// Processor time of servers.
pub(super) fn servers_cpu(servers: &[&LocalServer]) -> Duration {
    let pids = servers.iter().filter_map(|server| server.pid());
    pids.map(server_cpu).sum()
}

/// `server_version` as a server says it.
pub(super) async fn server_version(server: &LocalServer) -> anyhow::Result<String> {
    let mut connection = connect(server).await?;
    text_of(connection.query("SHOW server_version").await?)
}

async fn fill(args: &DumpArgs, server: &LocalServer) -> anyhow::Result<()> {
    let (rows, dumped, live) = (args.rows(), dumped(), live());
    let mut statements = args.table.setup();
    statements.extend([
        // The node makes one of its own.
        format!("DROP PUBLICATION {PUBLICATION}"),
        format!("CALL {SCHEMA}.load(0, {rows}, {FILL_ROWS}, false)"),
        format!("ALTER TABLE {live} RENAME TO rows"),
        format!("CREATE TABLE {live} (LIKE {dumped} INCLUDING ALL)"),
        // Otherwise the first reader pays for all others.
        format!("VACUUM (ANALYZE) {dumped}"),
        "CHECKPOINT".to_owned(),
    ]);
    let mut connection = connect(server).await?;
    for statement in statements {
        connection.query(&statement).await?;
    }
    Ok(())
}

impl Measured for World {
    async fn copy(&self, _: &DumpArgs) -> anyhow::Result<Cost> {
        copy(&[self.replica()], 1).await
    }

    async fn dump(&self, args: &DumpArgs, name: &str) -> anyhow::Result<Cost> {
        let mut taker = Taker::start(args, &self.address(), name, args.workers).await?;
        let rss_before_mib = resident_mib();
        let server = [self.replica()];
        let server_cpu = servers_cpu(&server);
        let (cpu, began) = (own_cpu(), Instant::now());
        let (done, rss_mib) = with_memory(resident_mib, taker.take()).await?;
        let seconds = began.elapsed().as_secs_f64();
        let cpu_seconds = own_cpu().saturating_sub(cpu).as_secs_f64();
        let server_cpu = servers_cpu(&server).saturating_sub(server_cpu);
        taker.end().await?;
        Ok(Cost {
            seconds,
            cpu_seconds,
            consumer_cpu_seconds: done.cpu_seconds,
            server_cpu_seconds: server_cpu.as_secs_f64(),
            rss_before_mib,
            rss_mib,
        })
    }

    async fn server_version(&self) -> anyhow::Result<String> {
        server_version(&self.source).await
    }
}

async fn connect(server: &LocalServer) -> Result<Connection, PgError> {
    Connection::connect(&server.config("postgres"), Replication::Off).await
}

fn config(directory: &Path) -> anyhow::Result<Config> {
    let mut config = Config::from_text("bench", "")?;
    NAME.clone_into(&mut config.node.name);
    config.node.data_dir = directory.join("node");
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.node.listen = anywhere;
    config.node.metrics = anywhere;
    Ok(config)
}
