//! What a dump is measured in: a throw-away server, its standby, and a whole node in this process, as
//! `pgcapture start` runs it. Consumers are processes of their own.

use std::{
    cell::Cell,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use pgcapture_actors::postgres::{
    Connection, LocalServer, LocalServerOptions, PgError, Replication, StandbyOptions,
};
use pgcapture_proto::admin::v1::{
    AddReplicaRequest, AddSourceRequest, Dump, ReplicaDefinition, SourceDefinition,
    StartDumpRequest, WatchDumpRequest, admin_client::AdminClient, dumps_client::DumpsClient,
    replicas_client::ReplicasClient,
};
use tonic::transport::Channel;

use super::{DumpArgs, ReadFrom};
use crate::{
    app::{self, Node},
    cli::bench::{
        child::{Child, Task},
        consumer::{self, Done, Opened, Wants},
        log::{BATCH_SIZE, Delivery},
        measure::{own_cpu, resident_mib, server_cpu},
        node_side::STREAM,
        workload::{PUBLICATION, SCHEMA},
    },
    config::Config,
};

/// Name of the node and of its replica.
const NAME: &str = "bench";

/// Rows of a transaction while the table is filled.
const FILL_ROWS: u64 = 100_000;

/// How often memory is looked at.
const MEMORY_EVERY: Duration = Duration::from_millis(20);

/// Longest that a dump may take to end once its rows are acknowledged: the last sweep reads the table.
const END_WITHIN: Duration = Duration::from_secs(120);

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
        // A measurement must not wait for a checkpoint or for a vacuum in the middle of a run.
        let settings = [
            ("max_wal_size", "16GB"),
            ("checkpoint_timeout", "1h"),
            ("autovacuum", "off"),
            ("shared_buffers", "256MB"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let source = LocalServer::start(LocalServerOptions {
            bin_dir: args.pg_bin.clone(),
            settings: settings.to_vec(),
            ..LocalServerOptions::default()
        })
        .await?;
        fill(args, &source).await?;
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
    pub(super) fn replica(&self) -> &LocalServer {
        self.standby.as_ref().unwrap_or(&self.source)
    }

    /// Processor time of the server that rows are read from.
    pub(super) fn replica_cpu(&self) -> Duration {
        self.replica().pid().map(server_cpu).unwrap_or_default()
    }

    /// Connection string of the source.
    pub(super) fn source_url(&self) -> String {
        self.source.url("postgres")
    }

    /// Address of the node.
    pub(super) fn address(&self) -> String {
        self.node.listen.to_string()
    }

    /// `server_version` as the source says it.
    pub(super) async fn server_version(&self) -> anyhow::Result<String> {
        let mut connection = connect(&self.source).await?;
        let rows = connection.query("SHOW server_version").await?;
        let first = rows.into_iter().next();
        let value = first.and_then(|row| row.into_iter().next()).flatten();
        value.context("PostgreSQL returned no value")
    }

    /// Runs statements on the source.
    pub(super) async fn execute(&self, statement: &str) -> anyhow::Result<()> {
        connect(&self.source).await?.query(statement).await?;
        Ok(())
    }

    /// One dump to a fresh consumer of this name.
    pub(super) async fn dump(&self, args: &DumpArgs, name: &str) -> anyhow::Result<Cost> {
        let (address, uri) = (self.address(), format!("{STREAM}/{name}"));
        let order = consumer::Order {
            address: address.clone(),
            uri: uri.clone(),
            changes: args.rows(),
            batch: match args.delivery {
                Delivery::Single => 0,
                Delivery::Batch => BATCH_SIZE,
            },
            client: args.client,
            latency_from: None,
            wants: Wants::Rows(dumped()),
        };
        let mut child = Child::start(&Task::Consume(order)).await?;
        let Opened {} = child.answer().await?;
        let mut dumps = DumpsClient::new(consumer::connect(&address).await?);
        let request = StartDumpRequest {
            uri,
            tables: vec![dumped()],
            parallel: args.workers,
            bytes_per_second: args.limit_mib << 20,
            ..StartDumpRequest::default()
        };
        let rss_before_mib = resident_mib();
        let peak = Cell::new(rss_before_mib);
        let server_cpu = self.replica_cpu();
        let (cpu, began) = (own_cpu(), Instant::now());
        let started = dumps.start_dump(request).await?.into_inner();
        let received = tokio::select! {
            received = child.answer::<Done>() => received,
            () = watch_memory(&peak) => bail!("memory is watched for ever"),
        };
        let seconds = began.elapsed().as_secs_f64();
        let cpu_seconds = own_cpu().saturating_sub(cpu).as_secs_f64();
        let server_cpu = self.replica_cpu().saturating_sub(server_cpu);
        let done = received?;
        let ended = await_end(&mut dumps, &started.id).await?;
        let counted = ended.progress.unwrap_or_default().row_count;
        ensure!(
            ended.state == "finished" && counted == args.rows(),
            "the dump is {} with {counted} rows: {:?}",
            ended.state,
            ended.trouble
        );
        child.end().await?;
        Ok(Cost {
            seconds,
            cpu_seconds,
            consumer_cpu_seconds: done.cpu_seconds,
            server_cpu_seconds: server_cpu.as_secs_f64(),
            rss_before_mib,
            rss_mib: peak.get(),
        })
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

async fn watch_memory(peak: &Cell<f64>) {
    loop {
        peak.set(peak.get().max(resident_mib()));
        tokio::time::sleep(MEMORY_EVERY).await;
    }
}

/// The next dump must not meet the end of this one.
async fn await_end(dumps: &mut DumpsClient<Channel>, id: &str) -> anyhow::Result<Dump> {
    let request = WatchDumpRequest { id: id.to_owned() };
    let mut states = dumps.watch_dump(request).await?.into_inner();
    let last = async {
        let mut last = Dump::default();
        while let Some(dump) = states.message().await? {
            last = dump;
        }
        Ok::<_, tonic::Status>(last)
    };
    let last = tokio::time::timeout(END_WITHIN, last).await;
    Ok(last.context("the dump does not end")??)
}
