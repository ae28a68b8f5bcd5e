//! `bench dump`: the existing rows of a table from a standby to one consumer in another process,
//! beside `COPY (SELECT * …) TO STDOUT (FORMAT binary)` of the same rows to `/dev/null`.
//!
//! Owns a throw-away server, its standby and a whole node in this process, as `pgcapture start` runs
//! it. Our time is taken from the order until the consumer has acknowledged the last row: planning,
//! the snapshots and the splice are in it.

use std::{
    cell::Cell,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use pgcapture_actors::postgres::{
    Connection, LocalServer, LocalServerOptions, PgError, Replication, StandbyOptions,
};
use pgcapture_proto::admin::v1::{
    AddReplicaRequest, AddSourceRequest, Dump, ReplicaDefinition, SourceDefinition,
    StartDumpRequest, WatchDumpRequest, admin_client::AdminClient, dumps_client::DumpsClient,
    replicas_client::ReplicasClient,
};
use tokio::process::Command;

use super::{
    Global,
    child::{Child, Task},
    consumer::{self, ClientKind, Done, Opened},
    log::{BATCH_SIZE, Delivery},
    measure::{Spread, children_cpu, own_cpu, resident_mib},
    node_side::STREAM,
    progress::Progress,
    report::{Report, What},
    scratch,
    workload::{PUBLICATION, SCHEMA, Table},
};
use crate::{
    app::{self, Node},
    config::Config,
};

/// Name of the replica.
const REPLICA: &str = "bench";

/// Rows of a transaction while the table is filled.
const FILL_ROWS: u64 = 100_000;

/// How often memory is looked at.
const MEMORY_EVERY: Duration = Duration::from_millis(20);

/// Longest that a dump may take to end once its rows are acknowledged: the last sweep reads the table.
const END_WITHIN: Duration = Duration::from_secs(120);

/// Name of the peer in the results.
const PEER: &str = "COPY";

/// Where rows are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReadFrom {
    /// A physical standby.
    Standby,
    /// The source itself.
    Source,
}

impl ReadFrom {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Source => "source",
        }
    }
}

/// Arguments of `bench dump`.
#[derive(Args, Debug)]
pub(super) struct DumpArgs {
    /// How the consumer gets its rows.
    #[arg(long, value_enum, default_value_t = Delivery::Batch)]
    delivery: Delivery,
    /// What the consumer is made of.
    #[arg(long, value_enum, default_value_t = ClientKind::Raw)]
    client: ClientKind,
    /// The table.
    #[arg(long, value_enum, default_value_t = Table::Narrow)]
    table: Table,
    /// Rows of the table; near 600 MiB when not given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rows: Option<u64>,
    /// Ranges that are read at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// Where rows are read from.
    #[arg(long, value_enum, default_value_t = ReadFrom::Standby)]
    from: ReadFrom,
    /// Rounds; the result is their median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Directory of initdb, postgres and psql.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
}

/// What a round cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    seconds: f64,
    cpu_seconds: f64,
    rss_before_mib: f64,
    rss_mib: f64,
}

pub(super) async fn run(global: &Global, args: &DumpArgs, data: &Path) -> anyhow::Result<()> {
    let progress = Progress::new(global);
    let directory = scratch(data)?;
    let rows = args.rows.unwrap_or_else(|| args.table.rows_of_a_gibibyte());
    progress.step(format!("writing {rows} rows"));
    let servers = Servers::start(args, rows).await?;
    let node = app::start(&config(directory.path())?).await?;
    let measured = measure(args, rows, &servers, &node, &progress).await;
    let is_clean = node.stop().await;
    let (ours, peer) = measured?;
    ensure!(is_clean, "the node did not stop cleanly");
    drop(progress);
    let per_million = |seconds: f64| seconds / (rows as f64 / 1e6);
    let of = |figure: fn(&Cost) -> f64| Spread::of(ours.iter().map(figure));
    let cpu = |costs: &[Cost]| {
        let each = costs.iter().map(|cost| per_million(cost.cpu_seconds));
        Spread::of(each).map(|spread| spread.median)
    };
    let report = Report {
        benchmark: "dump",
        what: What {
            delivery: Some(args.delivery.as_str()),
            client: Some(args.client.as_str()),
            table: Some(args.table.as_str()),
            rows: Some(rows),
            workers: Some(args.workers),
            from: Some(args.from.as_str()),
            socket: Some("tcp"),
            server_version: Some(servers.version().await?),
            ..What::of_runs(args.runs)
        },
        peer: Some(PEER),
        cpu_seconds_per_million: cpu(&ours),
        peer_cpu_seconds_per_million: cpu(&peer),
        rss_before_mib: of(|cost| cost.rss_before_mib).map(|spread| spread.min),
        rss_mib: of(|cost| cost.rss_mib).map(|spread| spread.max),
        ..Report::default()
    };
    let rates = |costs: &[Cost]| -> Vec<f64> {
        costs
            .iter()
            .map(|cost| rows as f64 / cost.seconds)
            .collect()
    };
    report
        .with_rates(&rates(&ours), &rates(&peer))
        .print(global)?;
    Ok(())
}

/// Both, in alternation.
async fn measure(
    args: &DumpArgs,
    rows: u64,
    servers: &Servers,
    node: &Node,
    progress: &Progress,
) -> anyhow::Result<(Vec<Cost>, Vec<Cost>)> {
    let address = node.listen.to_string();
    register(args, servers, &address).await?;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for round in 1..=args.runs {
        progress.step(format!("round {round} of {}: {PEER}", args.runs));
        let theirs = copy(servers).await?;
        progress.step(format!("round {round} of {}: ours", args.runs));
        let cost = dump(args, rows, &address, round).await?;
        let rate = rows as f64 / cost.seconds;
        progress.result(&format!(
            "{rate:.0} rows/s, {PEER} {:.0}, memory {:.0} to {:.0} MiB",
            rows as f64 / theirs.seconds,
            cost.rss_before_mib,
            cost.rss_mib
        ));
        ours.push(cost);
        peer.push(theirs);
    }
    Ok((ours, peer))
}

/// A server with the table, and its standby when rows are read from one.
#[derive(Debug)]
struct Servers {
    // Ends before the server that it follows.
    standby: Option<LocalServer>,
    source: LocalServer,
}

impl Servers {
    async fn start(args: &DumpArgs, rows: u64) -> anyhow::Result<Self> {
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
        let mut statements = args.table.setup();
        statements.push(format!("DROP PUBLICATION {PUBLICATION}"));
        statements.push(format!("CALL {SCHEMA}.load(0, {rows}, {FILL_ROWS}, false)"));
        // Otherwise the first reader pays for all others.
        statements.push(format!("VACUUM (ANALYZE) {SCHEMA}.t"));
        statements.push("CHECKPOINT".to_owned());
        let mut connection = connect(&source).await?;
        for statement in statements {
            connection.query(&statement).await?;
        }
        let standby = match args.from {
            ReadFrom::Source => None,
            ReadFrom::Standby => {
                let standby = source.start_standby(StandbyOptions::default()).await?;
                standby.catch_up_with(&source).await?;
                Some(standby)
            }
        };
        Ok(Self { standby, source })
    }

    /// The one that rows are read from.
    fn read(&self) -> &LocalServer {
        self.standby.as_ref().unwrap_or(&self.source)
    }

    async fn version(&self) -> anyhow::Result<String> {
        let mut connection = connect(&self.source).await?;
        let rows = connection.query("SHOW server_version").await?;
        let first = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next());
        first.flatten().context("PostgreSQL returned no value")
    }
}

async fn connect(server: &LocalServer) -> Result<Connection, PgError> {
    Connection::connect(&server.config("postgres"), Replication::Off).await
}

fn config(directory: &Path) -> anyhow::Result<Config> {
    let mut config = Config::from_text("bench", "")?;
    REPLICA.clone_into(&mut config.node.name);
    config.node.data_dir = directory.join("node");
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.node.listen = anywhere;
    config.node.metrics = anywhere;
    Ok(config)
}

/// Declares source and replica, as an operator would.
async fn register(args: &DumpArgs, servers: &Servers, address: &str) -> anyhow::Result<()> {
    let channel = consumer::connect(address).await?;
    let source = SourceDefinition {
        name: STREAM.to_owned(),
        url: servers.source.url("postgres"),
        tables: vec![format!("{SCHEMA}.t")],
        ..SourceDefinition::default()
    };
    let request = AddSourceRequest {
        definition: Some(source),
    };
    AdminClient::new(channel.clone())
        .add_source(request)
        .await?;
    let replica = ReplicaDefinition {
        name: REPLICA.to_owned(),
        source: STREAM.to_owned(),
        url: servers.read().url("postgres"),
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
    ensure!(
        added.replica.is_some(),
        "the replica was refused: {:?}",
        added.checks
    );
    Ok(())
}

/// The peer: one statement, through the same kind of socket.
async fn copy(servers: &Servers) -> anyhow::Result<Cost> {
    let server = servers.read();
    let mut command = Command::new(server.bin_dir().join("psql"));
    command.args(["-X", "-q", "-d", &server.url("postgres"), "-c"]);
    command.arg(format!(
        "COPY (SELECT * FROM {SCHEMA}.t) TO STDOUT (FORMAT binary)"
    ));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let (cpu, began) = (children_cpu(), Instant::now());
    let output = command.output().await.context("run psql")?;
    let seconds = began.elapsed().as_secs_f64();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("psql failed ({}): {text}", output.status);
    }
    Ok(Cost {
        seconds,
        cpu_seconds: children_cpu().saturating_sub(cpu).as_secs_f64(),
        rss_before_mib: 0.0,
        rss_mib: 0.0,
    })
}

/// One dump to a fresh consumer.
async fn dump(args: &DumpArgs, rows: u64, address: &str, round: u32) -> anyhow::Result<Cost> {
    let uri = format!("{STREAM}/{round}");
    let order = consumer::Order {
        address: address.to_owned(),
        uri: uri.clone(),
        changes: rows,
        batch: match args.delivery {
            Delivery::Single => 0,
            Delivery::Batch => BATCH_SIZE,
        },
        client: args.client,
        latency_from: None,
        is_dump: true,
    };
    let mut child = Child::start(&Task::Consume(order)).await?;
    let Opened {} = child.answer().await?;
    let mut dumps = DumpsClient::new(consumer::connect(address).await?);
    let request = StartDumpRequest {
        uri,
        tables: vec![format!("{SCHEMA}.t")],
        parallel: args.workers,
        ..StartDumpRequest::default()
    };
    let rss_before_mib = resident_mib();
    let peak = Cell::new(rss_before_mib);
    let (cpu, began) = (own_cpu(), Instant::now());
    let started = dumps.start_dump(request).await?.into_inner();
    let received = tokio::select! {
        received = child.answer::<Done>() => received,
        () = watch_memory(&peak) => bail!("memory is watched for ever"),
    };
    let seconds = began.elapsed().as_secs_f64();
    let cpu_seconds = own_cpu().saturating_sub(cpu).as_secs_f64();
    let ended = await_end(&mut dumps, &started.id).await?;
    received?;
    let counted = ended.progress.unwrap_or_default().row_count;
    ensure!(
        ended.state == "finished" && counted == rows,
        "the dump is {} with {counted} rows: {:?}",
        ended.state,
        ended.trouble
    );
    child.end().await?;
    Ok(Cost {
        seconds,
        cpu_seconds,
        rss_before_mib,
        rss_mib: peak.get(),
    })
}

async fn watch_memory(peak: &Cell<f64>) {
    loop {
        peak.set(peak.get().max(resident_mib()));
        tokio::time::sleep(MEMORY_EVERY).await;
    }
}

/// The next round must not meet the end of this one.
async fn await_end(
    dumps: &mut DumpsClient<tonic::transport::Channel>,
    id: &str,
) -> anyhow::Result<Dump> {
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
