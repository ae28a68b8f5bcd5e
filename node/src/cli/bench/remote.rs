//! `bench remote`: to one consumer on another node than the one that has the log, beside one on that node.
//!
//! Both nodes run in this process, with a real connection between them: what the peer API costs shows in
//! full, a network does not. No PostgreSQL is needed.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use pgcapture_actors::{
    log::ChangeLog,
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Command, Node, OnGap, Origin, Source, State},
    lsn::PgTime,
};
use pgcapture_proto::peer::v1::peer_log_server::PeerLogServer;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

use super::{
    Global,
    log::{LogArgs, TRANSACTION_CHANGES, fill, read},
    measure::{Spread, resident_mib},
    node_side::{STREAM, Served},
    progress::Progress,
    report::{Report, What},
    scratch,
};
use crate::{
    config::Config,
    logs::Logs,
    peer_log::readers::RemoteReaders,
    peers::Peers,
    routes::{Known, Routes},
    rpc::{capture::configure, peer_log::PeerLogService},
};

/// The node that has the log.
const OWNER: &str = "owner";

/// The node that the consumer is connected to.
const OTHER: &str = "other";

/// What the result is compared with.
const PEER: &str = "the same on the agent's node";

pub(super) async fn run(global: &Global, args: &LogArgs, data: &Path) -> anyhow::Result<()> {
    let progress = Progress::new(global);
    progress.step(format!("writing {} changes", args.rows));
    let directory = scratch(data)?;
    let pair = Pair::start(directory.path()).await?;
    fill(pair.logs.open(STREAM)?.as_ref(), args.rows).await?;
    let here = pair.served(OWNER, directory.path()).await?;
    let there = pair.served(OTHER, directory.path()).await?;
    let (mut ours, mut beside) = (Vec::new(), Vec::new());
    let (mut costs, mut costs_beside) = (Vec::new(), Vec::new());
    for round in 1..=args.runs {
        progress.step(format!("round {round} of {}", args.runs));
        for (served, rates, costs) in [
            (&here, &mut beside, &mut costs_beside),
            (&there, &mut ours, &mut costs),
        ] {
            let (done, cpu) = read(served, args, round).await?;
            rates.push(args.rows as f64 / done.seconds);
            costs.push(cpu / (args.rows as f64 / 1e6));
        }
        let last = |rates: &[f64]| rates.last().copied().unwrap_or_default();
        progress.result(&format!(
            "{:.0} changes/s, on the agent's node {:.0}",
            last(&ours),
            last(&beside)
        ));
    }
    there.stop().await?;
    here.stop().await?;
    pair.stop().await?;
    drop(progress);
    let median = |costs: Vec<f64>| Spread::of(costs).map(|spread| spread.median);
    let report = Report {
        benchmark: "remote",
        what: What {
            delivery: Some(args.delivery.as_str()),
            client: Some(args.client.as_str()),
            rows: Some(args.rows),
            transaction_rows: Some(TRANSACTION_CHANGES),
            ..What::of_runs(args.runs)
        },
        peer: Some(PEER),
        cpu_seconds_per_million: median(costs),
        peer_cpu_seconds_per_million: median(costs_beside),
        rss_mib: Some(resident_mib()),
        ..Report::default()
    };
    report.with_rates(&ours, &beside).print(global)?;
    Ok(())
}

/// Two nodes that agree on who has the log.
struct Pair {
    logs: Arc<Logs>,
    state: watch::Sender<Arc<State>>,
    peers: Peers,
    stop: CancellationToken,
    task: Task<()>,
}

impl Pair {
    /// Starts the owner's listener.
    async fn start(directory: &Path) -> anyhow::Result<Self> {
        let mut config = Config::from_text("bench", "").map_err(|error| {
            let what = error.to_string();
            anyhow::Error::msg(what)
        })?;
        config.node.data_dir = directory.to_owned();
        let logs = Arc::new(Logs::new(&config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let state = watch::Sender::new(Arc::new(state(&listener.local_addr()?.to_string())?));
        let stop = CancellationToken::new();
        let service = PeerLogService {
            node: OWNER.to_owned(),
            cluster: String::new(),
            state: state.subscribe(),
            logs: Arc::clone(&logs),
            readers: RemoteReaders::default(),
            stop: stop.clone(),
        };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let router = configure(Server::builder()).add_service(PeerLogServer::new(service));
        let stopped = stop.clone().cancelled_owned();
        let task = spawn(TaskKind::Server, "peer", async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, stopped).await {
                tracing::error!(%error, "the listener for peers failed");
            }
        });
        Ok(Self {
            logs,
            state,
            peers: Peers::new(&config)?,
            stop,
            task,
        })
    }

    /// A gateway on one of the nodes.
    async fn served(&self, node: &str, directory: &Path) -> anyhow::Result<Served> {
        let routes = Routes::new(Known {
            node: node.to_owned(),
            cluster: String::new(),
            state: self.state.subscribe(),
            logs: Arc::clone(&self.logs),
            peers: self.peers.clone(),
        });
        let log = routes.log(STREAM);
        let ready = log.ready(std::time::Duration::from_secs(10)).await;
        ready.map_err(anyhow::Error::msg)?;
        let log: Arc<dyn ChangeLog> = log;
        Served::start(log, &directory.join(node)).await
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task
            .join()
            .await
            .context("the listener for peers ended")?;
        self.logs.close().await;
        Ok(())
    }
}

fn state(address: &str) -> anyhow::Result<State> {
    let mut state = State::default();
    state.apply(Command::AddSource(Box::new(Source {
        name: STREAM.to_owned(),
        stream: STREAM.to_owned(),
        url: "postgres://bench@localhost/bench".to_owned(),
        password: None,
        slot: STREAM.to_owned(),
        publication: STREAM.to_owned(),
        tables: Vec::new(),
        exclude: Vec::new(),
        paused: false,
        epoch: Epoch(0),
        created_at: PgTime(0),
        on_gap: OnGap::Halt,
        origin: Origin::Command,
        owns_publication: false,
    })))?;
    for (id, name) in [(1, OWNER), (2, OTHER)] {
        state.apply(Command::AddNode(Node {
            name: name.to_owned(),
            id,
            address: address.to_owned(),
            joined_at: PgTime(0),
        }))?;
    }
    state.apply(Command::Assign {
        name: STREAM.to_owned(),
        node: OWNER.to_owned(),
        after: Epoch(0),
    })?;
    Ok(state)
}
