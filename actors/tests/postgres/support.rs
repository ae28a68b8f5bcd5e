//! A server with a table `t`, a publication `p` and a slot `s`; a proxy that cuts connections.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::time::Duration;

use pgcapture_actors::{
    postgres::{
        Config, Connection, LocalServer, LocalServerOptions, PgError, Replication,
        ReplicationOptions, ReplicationStream, catalog,
    },
    supervise::{self, Task, TaskKind},
};
use pgcapture_engine::lsn::Lsn;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
};

pub(crate) struct Source {
    pub(crate) sql: Connection,
    pub(crate) server: LocalServer,
}

impl Source {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let server = LocalServer::start(LocalServerOptions {
            settings: settings.collect(),
            ..LocalServerOptions::default()
        })
        .await
        .unwrap();
        let config = server.config("postgres");
        let mut sql = Connection::connect(&config, Replication::Off)
            .await
            .unwrap();
        sql.query("CREATE TABLE t (id int, v text)").await.unwrap();
        sql.query("CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')")
            .await
            .unwrap();
        catalog::create_slot(&mut sql, "s").await.unwrap();
        Self { sql, server }
    }

    pub(crate) fn options(&self) -> ReplicationOptions {
        ReplicationOptions::new("s", "p")
    }

    pub(crate) async fn stream(&self, config: &Config) -> Result<ReplicationStream, PgError> {
        let connection = Connection::connect(config, Replication::Database).await?;
        connection.start_replication(&self.options()).await
    }

    pub(crate) async fn reconnect(&mut self) {
        let config = self.server.config("postgres");
        self.sql = Connection::connect(&config, Replication::Off)
            .await
            .unwrap();
    }

    pub(crate) async fn insert_sql(&mut self, sql: &str) {
        self.sql.query(sql).await.unwrap();
    }

    pub(crate) async fn insert(&mut self, text: &str) {
        self.sql
            .query(&format!("INSERT INTO t VALUES (0, '{text}')"))
            .await
            .unwrap();
    }

    pub(crate) async fn slot(&mut self) -> catalog::SlotState {
        catalog::slot(&mut self.sql, "s").await.unwrap().unwrap()
    }

    /// Waits until nobody reads the slot.
    pub(crate) async fn wait_free(&mut self) {
        while self.slot().await.active_pid.is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn flush_lsn(&mut self) -> Lsn {
        catalog::server_info(&mut self.sql).await.unwrap().flush_lsn
    }
}

/// Passes one connection on to `port` and cuts it after `bytes` from the server.
pub(crate) async fn cutting_proxy(port: u16, bytes: u64) -> (u16, Task<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = supervise::spawn(TaskKind::Tool, "cutting proxy", async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut from_server, mut to_server) = server.into_split();
        let (mut from_client, mut to_client) = client.split();
        let mut limited = (&mut from_server).take(bytes);
        tokio::select! {
            result = copy(&mut limited, &mut to_client) => drop(result),
            result = copy(&mut from_client, &mut to_server) => drop(result),
        }
        drop(client.shutdown().await);
    });
    (address.port(), task)
}
