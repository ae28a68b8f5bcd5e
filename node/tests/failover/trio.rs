//! Three nodes, one server, one source, and a writer.

#[path = "addresses.rs"]
mod addresses;

use std::path::PathBuf;

use pgcapture_actors::{
    postgres::{Config, Connection, LocalServer, LocalServerOptions, Replication},
    supervise::{Task, TaskKind, spawn},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

use self::addresses::free_addresses;
use crate::{
    consumer::Consumer,
    process::{Node, PATIENCE, Place, eventually, run},
};

pub(crate) struct Trio {
    pub(crate) server: LocalServer,
    nodes: Vec<Option<Node>>,
    addresses: Vec<String>,
    folders: Vec<TempDir>,
    /// More lines of each configuration.
    more: String,
}

impl Trio {
    /// A server and three nodes that have found each other.
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same with more lines of configuration.
    pub(crate) async fn start_with(more: &str) -> Self {
        Self::start_in(more, &Default::default()).await
    }

    /// The same with more in the environment of each node.
    pub(crate) async fn start_in(
        more: &str,
        environments: &[Vec<(&'static str, PathBuf)>; 3],
    ) -> Self {
        let server = LocalServer::start(LocalServerOptions::default());
        let addresses = free_addresses(3);
        let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let files: Vec<_> = (0..3)
            .map(|index| configure(&folders[index], &addresses, index, more))
            .collect();
        let starts = files.iter().zip(environments);
        let starts = starts.map(|(file, environment)| Node::start_with(file, environment));
        let starts = futures_util::future::join_all(starts);
        let (server, nodes) = tokio::join!(server, starts);
        Self {
            server: server.expect("PostgreSQL is installed"),
            nodes: nodes.into_iter().map(Some).collect(),
            addresses,
            folders,
            more: more.to_owned(),
        }
    }

    /// The same with table `t` captured as source `shop`, asked of the first node; the node that owns it
    /// and another one.
    pub(crate) async fn with_source(more: &[&str]) -> (Self, usize, usize) {
        let trio = Self::start().await;
        trio.add_source(more).await;
        let owner = trio.owner().await;
        let other = (0..3).find(|index| *index != owner).unwrap();
        (trio, owner, other)
    }

    /// Has table `t` captured as source `shop`, asked of the first node.
    pub(crate) async fn add_source(&self, more: &[&str]) {
        self.sql("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
            .await;
        let url = self.server.url("postgres");
        let args = ["source", "add", "shop", "--url", &url];
        let args = [&args, more].concat();
        run(self.listen(0), &args).await.expect(0);
    }

    /// A consumer of `shop` at a node, with its subscription.
    pub(crate) async fn consumer(&self, index: usize) -> Consumer {
        let consumer = Consumer::open(self.listen(index), "shop", &[]).await;
        self.joined(index, "shop").await;
        consumer
    }

    pub(crate) fn listen(&self, index: usize) -> &str {
        &self.addresses[index]
    }

    pub(crate) async fn sql(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let config = self.server.config("postgres");
        let connection = Connection::connect(&config, Replication::Off).await;
        let mut connection = connection.expect("the server takes sessions");
        connection.query(sql).await.expect("the statement runs")
    }

    /// The node that reads the slot, as the server sees it.
    pub(crate) async fn owner(&self) -> usize {
        self.owner_when(|_| true).await
    }

    /// The node that reads the slot after another did.
    pub(crate) async fn owner_after(&self, before: usize) -> usize {
        self.owner_when(|owner| owner != before).await
    }

    async fn owner_when(&self, is_wanted: impl Fn(usize) -> bool) -> usize {
        eventually("an owner", async || {
            let rows = self
                .sql(
                    "SELECT application_name FROM pg_stat_replication \
                     WHERE application_name LIKE 'pgcapture/%' AND state = 'streaming'",
                )
                .await;
            let name = |row: &Vec<Option<String>>| {
                let name = row[0].as_deref()?.split('/').nth(1)?;
                name.strip_prefix('n')?.parse::<usize>().ok()
            };
            let owner = rows.first().and_then(name).map(|number| number - 1);
            let owner = owner.filter(|owner| is_wanted(*owner));
            owner.ok_or_else(|| format!("{rows:?}"))
        })
        .await
    }

    /// Has the source moved to a node, asked of another one, until the server sees it there.
    pub(crate) async fn move_source(&self, asked: usize, to: usize) {
        let name = format!("n{}", to + 1);
        eventually("the source moves", async || {
            if self.owner().await == to {
                return Ok(());
            }
            let moved = run(self.listen(asked), &["slot", "move", "shop", &name]).await;
            Err(moved.talk)
        })
        .await;
    }

    /// Waits until a consumer has its subscription.
    pub(crate) async fn joined(&self, index: usize, uri: &str) {
        eventually("the subscription", async || {
            let args = ["consumer", "show", uri, "-o", "json"];
            let shown = run(self.listen(index), &args).await;
            let is_there = shown.data.contains("\"sessions\": 1");
            is_there.then_some(()).ok_or(shown.talk)
        })
        .await;
    }

    pub(crate) async fn kill(&mut self, index: usize) {
        self.nodes[index].take().unwrap().kill().await;
    }

    /// Ends a node as an init system does; returns what it has said.
    pub(crate) async fn stop(&mut self, index: usize) -> String {
        let (exit, log) = self.nodes[index].take().unwrap().stop().await;
        assert_eq!(exit, Some(0), "{log}");
        log
    }

    /// The configuration of a node.
    pub(crate) fn file(&self, index: usize) -> String {
        configure(&self.folders[index], &self.addresses, index, &self.more)
    }

    /// Takes the data of a dead node away.
    pub(crate) fn lose_disk(&self, index: usize) {
        let data = Place::at(self.folders[index].path()).data();
        std::fs::remove_dir_all(data).unwrap();
    }

    /// Starts a node again on its own data.
    pub(crate) async fn start_again(&mut self, index: usize) {
        let file = self.file(index);
        self.nodes[index] = Some(Node::start(&file).await);
    }

    /// The same with one more peer in its list.
    pub(crate) async fn start_again_with(&mut self, index: usize, peer: &str) {
        let mut addresses = self.addresses.clone();
        addresses.push(peer.to_owned());
        let file = configure(&self.folders[index], &addresses, index, &self.more);
        self.nodes[index] = Some(Node::start(&file).await);
    }

    /// Starts one more node, which joins by itself.
    pub(crate) async fn start_another(&mut self) {
        self.addresses.extend(free_addresses(1));
        self.folders.push(tempfile::tempdir().unwrap());
        self.nodes.push(None);
        self.start_again(self.nodes.len() - 1).await;
    }

    pub(crate) fn node(&self, index: usize) -> &Node {
        self.nodes[index].as_ref().unwrap()
    }

    /// The node that leads, as another one sees it.
    pub(crate) async fn leader(&self, seen_by: usize) -> usize {
        self.leader_and_term(seen_by).await.0
    }

    /// The same, and its term.
    pub(crate) async fn leader_and_term(&self, seen_by: usize) -> (usize, u64) {
        eventually("a leader", async || {
            let args = ["cluster", "health", "-o", "json"];
            let health = run(self.listen(seen_by), &args).await;
            let json: Value = serde_json::from_str(&health.data).unwrap_or_default();
            let name = json["leader"]
                .as_str()
                .and_then(|name| name.strip_prefix('n'));
            let number = name.and_then(|number| number.parse::<usize>().ok());
            let index = number.map(|number| number - 1);
            let alive = index.filter(|index| self.nodes[*index].is_some());
            let found = alive.zip(json["term"].as_u64());
            found.ok_or(health.data + &health.talk)
        })
        .await
    }
}

fn configure(folder: &TempDir, addresses: &[String], index: usize, more: &str) -> String {
    let place = Place::at(folder.path());
    let name = format!("n{}", index + 1);
    place.configure_as(
        &name,
        &addresses[index],
        &format!("peers = {addresses:?}\n{more}"),
    )
}

/// Writes rows 1, 2, 3 … until told to stop.
pub(crate) struct Writer {
    written: watch::Receiver<i64>,
    stop: watch::Sender<bool>,
    task: Task<()>,
}

impl Writer {
    pub(crate) fn start(server: &LocalServer) -> Self {
        let (written_tx, written) = watch::channel(0);
        let (stop, stopped) = watch::channel(false);
        let config = server.config("postgres");
        let task = spawn(TaskKind::Tool, "writer", write(config, written_tx, stopped));
        Self {
            written,
            stop,
            task,
        }
    }

    /// Waits until some more rows are written; returns the last one.
    pub(crate) async fn goes_on(&mut self) -> i64 {
        let wanted = *self.written.borrow() + 50;
        let reached = self.written.wait_for(|written| *written >= wanted);
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        *reached.expect("rows are written").unwrap()
    }

    /// Watches the last row that is written: a clock for tests.
    pub(crate) fn rows(&self) -> watch::Receiver<i64> {
        self.written.clone()
    }

    /// Stops and returns the last row.
    pub(crate) async fn stop(mut self) -> i64 {
        self.stop.send_replace(true);
        self.task.join().await.unwrap();
        *self.written.borrow()
    }
}

async fn write(config: Config, written: watch::Sender<i64>, stopped: watch::Receiver<bool>) {
    let connection = Connection::connect(&config, Replication::Off).await;
    let mut connection = connection.expect("the server takes sessions");
    let mut next = 1;
    while !*stopped.borrow() {
        let row = format!("INSERT INTO t VALUES ({next})");
        connection.query(&row).await.expect("the row is written");
        written.send_replace(next);
        next += 1;
    }
}
