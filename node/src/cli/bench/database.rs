//! The PostgreSQL that is measured: an own throw-away server, or one that the user named.
//!
//! Owns what a measurement makes in it: a schema, a publication, slots. The base slot is created
//! before the load and never read; every run reads a fresh copy, so that all runs read the same.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use pgcapture_actors::postgres::{
    Config, Connection, LocalServer, LocalServerOptions, PgError, Replication, Secret,
};
use pgcapture_engine::lsn::Lsn;

use super::workload::{PUBLICATION, SCHEMA, Table};

/// The slot that is created before the load.
const BASE_SLOT: &str = "pgcapture_bench_base";

/// The copy that one run reads.
pub(super) const RUN_SLOT: &str = "pgcapture_bench_run";

/// SQLSTATE of a slot that somebody still reads.
const OBJECT_IN_USE: &str = "55006";

/// SQLSTATE of a slot that is not there.
const UNDEFINED_OBJECT: &str = "42704";

/// Pause before a slot is tried again whose reader was just cut: there is nothing to await.
const RELEASE_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// How a client reaches the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Socket {
    /// Loopback TCP.
    Tcp,
    /// A unix socket.
    Unix,
}

impl Socket {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}

/// Which PostgreSQL.
#[derive(Args, Clone, Debug)]
pub(super) struct DatabaseArgs {
    /// Measure this server instead of an own one; a schema, a publication and slots named
    /// pgcapture_bench are made and dropped in it.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Directory of initdb, postgres and pg_recvlogical.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// How the own server is reached.
    #[arg(long, value_enum, default_value_t = Socket::Tcp, conflicts_with = "url")]
    socket: Socket,
}

impl DatabaseArgs {
    /// An own server, reached over TCP.
    pub(super) const fn own(pg_bin: Option<PathBuf>) -> Self {
        Self {
            url: None,
            pg_bin,
            socket: Socket::Tcp,
        }
    }
}

/// A server to measure.
#[derive(Debug)]
pub(super) struct Database {
    config: Config,
    /// `server_version` as it says it.
    pub(super) version: String,
    /// `tcp` or `unix`, or `url` for a server that the user named.
    pub(super) socket: &'static str,
    /// `pg_recvlogical`; by its name alone when it was not found.
    pub(super) peer_program: PathBuf,
    /// Connection string of the peer, without a password.
    pub(super) peer_url: String,
    password: Option<Secret>,
    // Ends with this value.
    server: Option<LocalServer>,
}

impl Database {
    /// Starts the own server or connects to the user's.
    pub(super) async fn open(args: &DatabaseArgs) -> anyhow::Result<Self> {
        Self::open_with(args, &[]).await
    }

    /// The same; an own server gets these settings as well.
    pub(super) async fn open_with(
        args: &DatabaseArgs,
        more: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let mut database = match &args.url {
            Some(url) => Self::named(url, args.pg_bin.as_ref())?,
            None => Self::own(args, more).await?,
        };
        let rows = database.connect().await?.query("SHOW server_version").await;
        database.version = text_of(rows?)?;
        Ok(database)
    }

    async fn own(args: &DatabaseArgs, more: &[(&str, String)]) -> anyhow::Result<Self> {
        // A measurement must not wait for a checkpoint or for a vacuum in the middle of a run.
        let settings = [
            ("max_wal_size", "16GB"),
            ("checkpoint_timeout", "1h"),
            ("autovacuum", "off"),
            ("shared_buffers", "256MB"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let more = more.iter().cloned();
        let more = more.map(|(name, value)| (name.to_owned(), value));
        let server = LocalServer::start(LocalServerOptions {
            bin_dir: args.pg_bin.clone(),
            settings: settings.into_iter().chain(more).collect(),
            ..LocalServerOptions::default()
        })
        .await?;
        let (config, peer_url) = match args.socket {
            Socket::Tcp => (server.config("postgres"), server.url("postgres")),
            Socket::Unix => (server.unix_config("postgres"), server.unix_url("postgres")),
        };
        Ok(Self {
            config,
            version: String::new(),
            socket: args.socket.as_str(),
            peer_program: peer_program(Some(server.bin_dir())),
            peer_url,
            password: None,
            server: Some(server),
        })
    }

    fn named(url: &str, bin_dir: Option<&PathBuf>) -> anyhow::Result<Self> {
        let (peer_url, password) = crate::redact::split_password(url);
        Ok(Self {
            config: Config::parse(url).context("the url of --url cannot be read")?,
            version: String::new(),
            socket: "url",
            peer_program: peer_program(bin_dir.map(PathBuf::as_path)),
            peer_url,
            password: password.map(Secret::new),
            server: None,
        })
    }

    /// How to connect.
    pub(super) fn config(&self) -> Config {
        self.config.clone()
    }

    /// The password, for the peer's environment.
    pub(super) const fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// Tells whether the server is an own one.
    pub(super) const fn is_own(&self) -> bool {
        self.server.is_some()
    }

    /// Process of an own server.
    pub(super) fn server_pid(&self) -> Option<u32> {
        self.server.as_ref()?.pid()
    }

    /// Opens a session for SQL.
    pub(super) async fn connect(&self) -> Result<Connection, PgError> {
        Connection::connect(&self.config, Replication::Off).await
    }

    /// Makes the table and the publication.
    pub(super) async fn make_table(&self, table: Table) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        for statement in table.setup() {
            connection.query(&statement).await?;
        }
        Ok(())
    }

    /// Makes the table, the publication and the base slot.
    pub(super) async fn prepare(&self, table: Table) -> anyhow::Result<()> {
        self.drop_slot(RUN_SLOT).await?;
        self.drop_slot(BASE_SLOT).await?;
        self.make_table(table).await?;
        let mut connection = self.connect().await?;
        let sql = format!("SELECT pg_create_logical_replication_slot('{BASE_SLOT}', 'pgoutput')");
        connection.query(&sql).await?;
        Ok(())
    }

    /// The keys of all rows, once the writer's sessions are gone: what they commit last counts.
    pub(super) async fn settled_ids(&self) -> anyhow::Result<Vec<i64>> {
        let mut connection = self.connect().await?;
        // A lock that conflicts with every writer: it is given when the last one has ended.
        let sql = format!(
            "BEGIN; LOCK TABLE {SCHEMA}.t IN SHARE MODE; SELECT id FROM {SCHEMA}.t; COMMIT"
        );
        let rows = connection.query(&sql).await?;
        let ids = rows.into_iter().flatten().flatten();
        ids.map(|id| Ok(id.parse()?)).collect()
    }

    /// Position of the end of WAL.
    pub(super) async fn wal_end(&self) -> anyhow::Result<Lsn> {
        let mut connection = self.connect().await?;
        let rows = connection
            .query("SELECT pg_current_wal_insert_lsn()")
            .await?;
        Ok(text_of(rows)?.parse()?)
    }

    /// Makes the slot that one run reads.
    pub(super) async fn copy_slot(&self) -> anyhow::Result<()> {
        let sql = format!("SELECT pg_copy_logical_replication_slot('{BASE_SLOT}', '{RUN_SLOT}')");
        self.connect().await?.query(&sql).await?;
        Ok(())
    }

    /// Drops the slot of a run, or does nothing when there is none.
    pub(super) async fn drop_run_slot(&self) -> anyhow::Result<()> {
        self.drop_slot(RUN_SLOT).await
    }

    /// Drops a slot once nobody reads it, or does nothing when there is none.
    pub(super) async fn drop_slot(&self, name: &str) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        let sql = format!("SELECT pg_drop_replication_slot('{name}')");
        // The walsender of a stream that was just cut needs a moment to notice.
        while let Err(error) = connection.query(&sql).await {
            if error.has_sqlstate(UNDEFINED_OBJECT) {
                return Ok(());
            }
            if !error.has_sqlstate(OBJECT_IN_USE) {
                return Err(error.into());
            }
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
        Ok(())
    }

    /// Drops what was made in a server of the user; an own server is just ended.
    pub(super) async fn clean(self) -> anyhow::Result<()> {
        if self.server.is_some() {
            return Ok(());
        }
        self.drop_slot(RUN_SLOT).await?;
        self.drop_slot(BASE_SLOT).await?;
        let mut connection = self.connect().await?;
        for statement in [
            format!("DROP PUBLICATION IF EXISTS {PUBLICATION}"),
            format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"),
        ] {
            connection.query(&statement).await?;
        }
        Ok(())
    }
}

/// Looks beside `postgres`, behind a link to it as well, and leaves the rest to `PATH`.
fn peer_program(directory: Option<&Path>) -> PathBuf {
    let program = Path::new("pg_recvlogical");
    let linked = directory.and_then(|directory| directory.join("postgres").canonicalize().ok());
    let linked = linked.as_deref().and_then(Path::parent);
    let places = [directory, linked].into_iter().flatten();
    let mut found = places.map(|place| place.join(program));
    found
        .find(|file| file.is_file())
        .unwrap_or_else(|| program.to_owned())
}

/// The only value of an answer.
pub(super) fn text_of(rows: Vec<Vec<Option<String>>>) -> anyhow::Result<String> {
    let value = rows
        .into_iter()
        .next()
        .and_then(|row| row.into_iter().next());
    value.flatten().context("PostgreSQL returned no value")
}
