//! One server, one node, one source: what most tests begin with.

use std::path::Path;

use pgcapture_actors::postgres::{Connection, LocalServer, LocalServerOptions, Replication};
use pgcapture_engine::lsn::Lsn;
use pgcapture_proto::admin::v1::{self as admin, admin_client::AdminClient};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::{
    consumer::Consumer,
    process::{Ended, Node, Place, eventually, run},
};

pub(crate) struct World {
    pub(crate) server: LocalServer,
    pub(crate) node: Node,
    pub(crate) place: Place,
    _folder: Option<TempDir>,
}

/// A server with these settings.
pub(crate) async fn server(settings: &[(&str, &str)]) -> LocalServer {
    let settings = settings.iter();
    let settings = settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let server = LocalServer::start(LocalServerOptions {
        settings: settings.collect(),
        ..LocalServerOptions::default()
    });
    server.await.expect("PostgreSQL is installed")
}

/// Runs SQL on a server in a session of its own.
pub(crate) async fn sql(server: &LocalServer, sql: &str) -> Vec<Vec<Option<String>>> {
    let config = server.config("postgres");
    let connection = Connection::connect(&config, Replication::Off).await;
    let mut connection = connection.expect("the server takes sessions");
    connection.query(sql).await.expect("the statement runs")
}

impl World {
    /// A server with table `t`, captured as source `shop`.
    pub(crate) async fn new() -> Self {
        Self::with(&[], "").await
    }

    /// The same with settings of the server and more lines of configuration.
    pub(crate) async fn with(settings: &[(&str, &str)], config: &str) -> Self {
        let world = Self::bare(settings, config).await;
        world
            .sql("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
            .await;
        world.add(&[]).await.expect(0);
        world.until("following").await;
        world
    }

    /// A server and a node that know nothing of each other.
    pub(crate) async fn bare(settings: &[(&str, &str)], config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(folder.path());
        let file = place.configure(config);
        let (server, node) = tokio::join!(server(settings), Node::start(&file));
        Self {
            server,
            node,
            place,
            _folder: Some(folder),
        }
    }

    /// Parts that were started elsewhere.
    pub(crate) const fn of(server: LocalServer, node: Node, place: Place) -> Self {
        Self {
            server,
            node,
            place,
            _folder: None,
        }
    }

    /// Ends the node by `kill -9` and starts it with another end of the configuration.
    pub(crate) async fn crash(self, config: &str) -> Self {
        let Self {
            server,
            node,
            place,
            _folder,
        } = self;
        node.kill().await;
        let node = Node::start(&place.configure(config)).await;
        Self {
            server,
            node,
            place,
            _folder,
        }
    }

    pub(crate) async fn sql(&self, statement: &str) -> Vec<Vec<Option<String>>> {
        sql(&self.server, statement).await
    }

    /// Runs a command of the CLI against the node.
    pub(crate) async fn ask(&self, args: &[&str]) -> Ended {
        run(&self.node.listen, args).await
    }

    /// Adds the server as source `shop`.
    pub(crate) async fn add(&self, more: &[&str]) -> Ended {
        self.add_at(&self.server.url("postgres"), more).await
    }

    /// Adds a URL as source `shop`.
    pub(crate) async fn add_at(&self, url: &str, more: &[&str]) -> Ended {
        let args = ["source", "add", "shop", "--url", url];
        self.ask(&[&args, more].concat()).await
    }

    pub(crate) fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.node.listen));
        endpoint.unwrap().connect_lazy()
    }

    /// What the source `shop` does.
    pub(crate) async fn status(&self) -> admin::SourceStatus {
        let name = "shop".to_owned();
        let request = admin::GetSourceRequest { name };
        let source = AdminClient::new(self.channel()).get_source(request).await;
        source.unwrap().into_inner().status.unwrap()
    }

    /// Waits until the status of the source is as wanted.
    pub(crate) async fn status_when(
        &self,
        is_wanted: impl Fn(&admin::SourceStatus) -> bool,
    ) -> admin::SourceStatus {
        eventually("the status", async || {
            let status = self.status().await;
            let found = is_wanted(&status).then(|| status.clone());
            found.ok_or_else(|| format!("{status:?}"))
        })
        .await
    }

    /// Waits until the source is in a state.
    pub(crate) async fn until(&self, state: &str) -> admin::SourceStatus {
        self.status_when(|status| status.state == state).await
    }

    /// Waits until the source is in trouble for this reason.
    pub(crate) async fn until_trouble(&self, code: &str) -> admin::Trouble {
        let status = self.status_when(|status| {
            let trouble = status.trouble.as_ref();
            trouble.is_some_and(|trouble| trouble.code == code)
        });
        let trouble = status.await.trouble.unwrap();
        assert!(!trouble.next.is_empty(), "{trouble:?}");
        trouble
    }

    /// Waits until everything that is committed now is durable in the log.
    pub(crate) async fn caught_up(&self) {
        self.sql("SELECT pg_logical_emit_message(true, 'mark', '')")
            .await;
        let rows = self.sql("SELECT pg_current_wal_flush_lsn()").await;
        let end: Lsn = rows[0][0].as_deref().unwrap().parse().unwrap();
        self.status_when(|status| status.durable_lsn >= end.0).await;
    }

    /// Everything in the log, as `tail` shows it.
    pub(crate) async fn tail(&self) -> Vec<Value> {
        let args = ["tail", "shop", "--from", "earliest", "--exit-at-end"];
        let tail = self.ask(&[&args[..], &["-o", "ndjson"]].concat()).await;
        let tail = tail.expect(0).data;
        let lines = tail.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The ids of all rows inserted into `t`, in log order.
    pub(crate) async fn logged_ids(&self) -> Vec<i64> {
        self.caught_up().await;
        let lines = self.tail().await;
        let inserts = lines
            .iter()
            .filter(|line| line["op"] == "INSERT" && line["table"] == "t");
        inserts
            .map(|line| line["new"]["id"].as_i64().unwrap())
            .collect()
    }

    /// An old consumer of `uri`.
    pub(crate) async fn consumer(&self, uri: &str) -> Consumer {
        Consumer::open(&self.node.listen, uri, &[]).await
    }

    /// A consumer of `shop` that has its subscription.
    pub(crate) async fn joined(&self, uri: &str) -> Consumer {
        let consumer = self.consumer(uri).await;
        eventually("the subscription", async || {
            let shown = self.ask(&["consumer", "show", uri, "-o", "json"]).await;
            let is_there = shown.data.contains("\"sessions\": 1");
            is_there.then_some(()).ok_or(shown.talk)
        })
        .await;
        consumer
    }

    /// A page of HTTP.
    pub(crate) async fn page(&self, path: &str) -> String {
        page(&self.node.metrics, path).await
    }
}

/// Fetches a page, head and body.
async fn page(address: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Every file under a folder that holds these bytes.
pub(crate) fn files_with(folder: &Path, needle: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let mut windows = bytes.windows(needle.len());
            if windows.any(|window| window == needle.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}
