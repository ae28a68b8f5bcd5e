//! `pgcapture dev --nodes 3`: the same PostgreSQL, shop and load, with nodes that are processes of
//! their own and agree with each other.
//!
//! Everything is asked for over gRPC, as users do. Other commands reach this process over its
//! socket (`control`) and do to the nodes what machines and networks do to them.

use std::sync::Arc;

use async_trait::async_trait;
use pgcapture_proto::admin::v1::SourceDefinition;
use tokio::{sync::Mutex, time::Instant};

use super::{
    DevArgs, FOREIGN_NAME, Folder, STREAM,
    cluster::{Cluster, api},
    control::{Answer, NodeState, Obey, Request, Server},
    make_shop, node_folder, serve,
    servers::{Registrar, Servers},
    shop::Shop,
};
use crate::cli::{Failure, Global, output, start::terminate};

/// The nodes, for whoever gives orders; `None` once they are being stopped.
#[derive(Debug)]
struct Nodes(Mutex<Option<Cluster>>);

#[async_trait]
impl Obey for Nodes {
    async fn obey(&self, request: Request) -> Result<Answer, Failure> {
        let mut nodes = self.0.lock().await;
        let Some(cluster) = nodes.as_mut() else {
            return Err(Failure::usage("dev is stopping"));
        };
        let said = match request {
            Request::Status => String::new(),
            Request::Kill(node) => cluster.kill(node).await?,
            Request::Stop(node) => cluster.stop_node(node).await?,
            Request::Pause(node) => cluster.pause(node).await?,
            Request::Resume(node) => cluster.resume(node).await?,
            Request::Start(node) => cluster.start_node(node).await?,
            Request::Add => cluster.add().await?,
            Request::Partition(groups) => cluster.partition(groups)?,
            Request::Heal => cluster.heal(),
        };
        let nodes = cluster.view();
        Ok(Answer::Done { said, nodes })
    }
}

/// What runs.
#[derive(Debug)]
struct Several {
    nodes: Arc<Nodes>,
    /// `None` until everything else runs.
    control: Option<Server>,
    servers: Servers,
    shop: Shop,
    /// What is printed once everything runs.
    addresses: Vec<(String, String)>,
    // Held so that the folder is removed last.
    _folder: Folder,
}

pub(super) async fn run(global: &Global, args: &DevArgs) -> Result<(), Failure> {
    let began = Instant::now();
    let mut terminate = terminate()?;
    let several = tokio::select! {
        several = Box::pin(Several::start(global, args)) => several?,
        _ = terminate.recv() => return Err(Failure::interrupted()),
        _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
    };
    let block = several.block(began);
    serve(&block, args.load, &several.shop, &mut terminate).await;
    several.stop().await
}

impl Several {
    async fn start(global: &Global, args: &DevArgs) -> Result<Self, Failure> {
        let folder = node_folder(args)?;
        let flags = match global.verbose {
            0 => Vec::new(),
            count => vec![format!("-{}", "v".repeat(usize::from(count)))],
        };
        let path = folder.path();
        let (servers, cluster) = tokio::join!(
            Servers::start(args),
            Cluster::start(path, args.nodes, args.port, flags)
        );
        let (mut servers, cluster) = (servers?, cluster?);
        let prepared = prepare(args, &mut servers, &cluster).await;
        let (shop, port) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => {
                cluster.stop().await;
                servers.stop().await;
                return Err(failure);
            }
        };
        let addresses = cluster.view().into_iter();
        let addresses = addresses.map(|node| (node.endpoint, node.metrics_url));
        let mut several = Self {
            addresses: addresses.collect(),
            nodes: Arc::new(Nodes(Mutex::new(Some(cluster)))),
            control: None,
            servers,
            shop,
            _folder: folder,
        };
        let obey: Arc<dyn Obey> = Arc::<Nodes>::clone(&several.nodes);
        match Server::start(port, obey).await {
            Ok(control) => several.control = Some(control),
            Err(failure) => {
                // The failure that is shown is the first one.
                drop(several.stop().await);
                return Err(failure);
            }
        }
        Ok(several)
    }

    /// Stops in order: orders, what we made in a foreign server, the nodes, our own servers.
    async fn stop(self) -> Result<(), Failure> {
        drop(self.control);
        let Some(cluster) = self.nodes.0.lock().await.take() else {
            return Ok(());
        };
        let cleaned = if self.servers.primary.is_none() {
            leave_foreign_server(&cluster, &self.shop).await
        } else {
            Ok(())
        };
        for name in cluster.stop().await {
            output::talk(&format!("{name} did not stop in time and was killed\n"));
        }
        self.servers.stop().await;
        cleaned
    }

    fn block(&self, began: Instant) -> String {
        let seconds = began.elapsed().as_secs_f64();
        let version = env!("CARGO_PKG_VERSION");
        let count = self.addresses.len();
        let postgres = match &self.servers.primary {
            Some(server) => format!("postgres on :{} (started by pgcapture)", server.port()),
            None => "the PostgreSQL that you named".to_owned(),
        };
        let listen: Vec<&str> = self.addresses.iter().map(|(at, _)| at.as_str()).collect();
        let metrics: Vec<&str> = self.addresses.iter().map(|(_, at)| at.as_str()).collect();
        let first = listen.first().copied().unwrap_or_default();
        let is_default = first.ends_with(&format!(":{}", crate::config::DEFAULT_PORT));
        let at = |address: &str| format!(" --endpoint {address}");
        let (endpoint, last) = if is_default {
            (
                String::new(),
                listen.last().map_or_else(String::new, |last| at(last)),
            )
        } else {
            (
                at(first),
                listen.last().map_or_else(String::new, |last| at(last)),
            )
        };
        format!(
            "  pgcapture {version} dev cluster, {count} nodes – data in a temporary folder (deleted on exit)    ready in {seconds:.1} s\n  \
             gRPC      {} (reflection on)\n  \
             metrics   {}\n  \
             source    {postgres}    stream  {STREAM}\n  \
             database  {}\n  \
             replicas  {}\n  \
             try:  pgcapture tail {STREAM}{last}    pgcapture slot ls{endpoint}    pgcapture cluster status{endpoint}\n  \
             then: pgcapture dev kill 2{endpoint}    pgcapture dev start 2{endpoint}    pgcapture dev partition 1 2,3{endpoint}    pgcapture dev heal{endpoint}\n  \
             or:   pgcapture dump start {STREAM} --table {}.orders{endpoint}    pgcapture dev status{endpoint}\n  \
             NOT FOR PRODUCTION: no TLS, data deleted on exit. Ctrl-C ends it.\n",
            listen.join(", "),
            metrics.join(", "),
            self.shop.url(),
            self.servers.replicas_text(),
            self.shop.schema(),
        )
    }
}

/// Makes the sample shop, captures it and registers the replicas, all through the first node. Returns
/// the shop and the port of that node.
async fn prepare(
    args: &DevArgs,
    servers: &mut Servers,
    cluster: &Cluster,
) -> Result<(Shop, u16), Failure> {
    let first = cluster
        .address(1)
        .ok_or_else(|| Failure::usage("no nodes"))?;
    let (shop, url) = make_shop(args, servers).await?;
    let is_foreign = servers.primary.is_none();
    let name = if is_foreign { FOREIGN_NAME } else { "" };
    let definition = SourceDefinition {
        name: STREAM.to_owned(),
        stream: STREAM.to_owned(),
        url: url.clone(),
        slot: name.to_owned(),
        publication: name.to_owned(),
        tables: vec![format!("{}.*", shop.schema())],
        ..SourceDefinition::default()
    };
    let captured = match api::add_source(first, definition).await {
        Ok(()) => {
            servers
                .add_replicas(Registrar::Address(first), args.replicas, &url)
                .await
        }
        Err(failure) => Err(failure),
    };
    match captured {
        Ok(()) => Ok((shop, first.port())),
        Err(failure) => {
            if is_foreign {
                // The failure that is shown is the first one.
                drop(leave_foreign_server(cluster, &shop).await);
            }
            Err(failure)
        }
    }
}

/// Drops what we made in a server that is not ours, through any node that lives.
async fn leave_foreign_server(cluster: &Cluster, shop: &Shop) -> Result<(), Failure> {
    let nodes = cluster.view();
    let living = nodes.iter().find(|node| node.state == NodeState::Running);
    let address = living.and_then(|node| cluster.address(node.node));
    let address = address.ok_or_else(|| {
        Failure::usage(format!(
            "no node lives: slot and publication {FOREIGN_NAME} are left"
        ))
        .next("drop them in PostgreSQL, and the schema of the same name")
    })?;
    api::remove_source(address, STREAM).await?;
    shop.drop().await.map_err(|error| {
        let text = format!("{error}: the sample schema is left");
        Failure::new(1, error.explanation(), text)
    })
}
