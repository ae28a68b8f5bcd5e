//! The PostgreSQL of the part `sources`: a table, a publication and a slot for each source.
//!
//! One database holds them all: what is measured are the nodes. It also tells which node reads which
//! slot, since only the server knows when a slot is read again.

use std::collections::BTreeMap;

use anyhow::bail;
use pgcapture_actors::postgres::Connection;
use pgcapture_proto::admin::v1::SourceDefinition;

use crate::cli::bench::{
    database::{Database, DatabaseArgs, text_of},
    measure::server_cpu,
    workload::SCHEMA,
};

/// Begins the names of slots and publications.
const PREFIX: &str = "pgcapture_bench_s";

/// Connections beside the walsenders: agents look at their slots, 16 of each node start at once, and
/// a catch-up has its own.
const CONNECTIONS_MORE: u32 = 400;

/// Slots beside those of the sources: temporary copies of a catch-up.
const SLOTS_MORE: u32 = 16;

/// Tables that one statement makes.
const TABLES_TOGETHER: usize = 100;

/// The server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) database: Database,
}

/// Name of a source, of its stream and of its table.
pub(super) fn source_name(number: u32) -> String {
    format!("s{number}")
}

impl Server {
    /// Starts a server with room for so many slots, or looks whether the user's has it.
    pub(super) async fn open(args: &DatabaseArgs, slots: u32) -> anyhow::Result<Self> {
        let slots = slots + SLOTS_MORE;
        let settings = [
            ("max_replication_slots", slots),
            ("max_wal_senders", slots),
            ("max_connections", slots + CONNECTIONS_MORE),
        ];
        let own = settings.map(|(name, value)| (name, value.to_string()));
        let database = Database::open_with(args, &own).await?;
        let mut connection = database.connect().await?;
        for (name, wanted) in settings {
            let sql = format!("SELECT current_setting('{name}')");
            let found = text_of(connection.query(&sql).await?)?;
            if found.parse::<u32>()? < wanted {
                bail!("{name} of the server is {found}; this measurement needs {wanted}");
            }
        }
        Ok(Self { database })
    }

    /// Its version.
    pub(super) fn version(&self) -> &str {
        &self.database.version
    }

    /// Makes an empty table for each source.
    pub(super) async fn make_tables(&self, count: u32) -> anyhow::Result<()> {
        let mut connection = self.database.connect().await?;
        let statements = [
            format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"),
            format!("CREATE SCHEMA {SCHEMA}"),
        ];
        for statement in statements {
            connection.query(&statement).await?;
        }
        let make = |number| {
            let name = source_name(number);
            format!("CREATE TABLE {SCHEMA}.{name} (id bigint PRIMARY KEY)")
        };
        let tables: Vec<String> = (1..=count).map(make).collect();
        for tables in tables.chunks(TABLES_TOGETHER) {
            connection.query(&tables.join("; ")).await?;
        }
        Ok(())
    }

    /// Returns how a source is defined.
    pub(super) fn source(&self, number: u32) -> SourceDefinition {
        let name = source_name(number);
        SourceDefinition {
            url: self.database.peer_url.clone(),
            slot: format!("{PREFIX}{number}"),
            publication: format!("{PREFIX}{number}"),
            tables: vec![format!("{SCHEMA}.{name}")],
            name,
            ..SourceDefinition::default()
        }
    }

    /// Writes one row for every source.
    pub(super) async fn write_row_each(&self, count: u32) -> anyhow::Result<()> {
        let mut connection = self.database.connect().await?;
        for number in 1..=count {
            let name = source_name(number);
            let sql = format!("INSERT INTO {SCHEMA}.{name} VALUES (1)");
            connection.query(&sql).await?;
        }
        Ok(())
    }

    /// Returns a look at who reads what.
    pub(super) async fn readers(&self) -> anyhow::Result<Readers> {
        let connection = self.database.connect().await?;
        Ok(Readers { connection })
    }

    /// Processor time of an own server.
    pub(super) fn cpu(&self) -> Option<std::time::Duration> {
        self.database.server_pid().map(server_cpu)
    }

    /// Drops what was made in a server of the user; an own server is just ended.
    pub(super) async fn clean(self) -> anyhow::Result<()> {
        if self.database.is_own() {
            return Ok(());
        }
        // A walsender of a killed node may not have noticed yet.
        for name in self.named("slot_name", "pg_replication_slots").await? {
            self.database.drop_slot(&name).await?;
        }
        let publications = self.named("pubname", "pg_publication").await?;
        let mut connection = self.database.connect().await?;
        for name in publications {
            connection
                .query(&format!("DROP PUBLICATION IF EXISTS {name}"))
                .await?;
        }
        self.database.clean().await
    }

    /// What was made in the server: the names of ours in one of its catalogs.
    async fn named(&self, column: &str, catalog: &str) -> anyhow::Result<Vec<String>> {
        let sql = format!("SELECT {column} FROM {catalog} WHERE starts_with({column}, '{PREFIX}')");
        let rows = self.database.connect().await?.query(&sql).await?;
        Ok(rows.into_iter().flatten().flatten().collect())
    }
}

/// A connection that looks which node reads which slot.
#[derive(Debug)]
pub(super) struct Readers {
    connection: Connection,
}

impl Readers {
    /// Returns the node of every slot that is read now.
    pub(super) async fn now(&mut self) -> anyhow::Result<BTreeMap<String, String>> {
        let sql = format!(
            "SELECT s.slot_name, split_part(a.application_name, '/', 2) \
             FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid \
             WHERE starts_with(s.slot_name, '{PREFIX}')"
        );
        let rows = self.connection.query(&sql).await?;
        let pairs = rows.into_iter().filter_map(|row| {
            let mut cells = row.into_iter();
            Some((cells.next()??, cells.next()??))
        });
        Ok(pairs.collect())
    }
}
