//! A source with a publication `p`, perhaps a standby, and what was read from them.

use std::time::Duration;

use pgcapture_actors::{
    dump::RowBatch,
    postgres::{
        Connection, LocalServer, LocalServerOptions, Replication, StandbyOptions, catalog,
        dump::{
            DumpTable, RangeReader, RangeRequest, ReadError, ReadLimits, Replica, ReplicaKind,
            ReplicaOptions, TablePlan,
        },
    },
};
use pgcapture_engine::{
    dump::{DumpId, Extent, PageRange},
    lsn::Lsn,
};
use pgcapture_proto::pgcapture::{Change, Message, message::Type};
use prost::Message as _;

/// From here on publications have column lists and row filters, and counters can be flushed.
pub(crate) const V15: u32 = 150_000;
/// From here on generated columns can be published, and must be where they belong to the identity.
pub(crate) const V18: u32 = 180_000;

pub(crate) struct World {
    pub(crate) sql: Connection,
    pub(crate) standby: Option<LocalServer>,
    pub(crate) source: LocalServer,
}

impl World {
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let options = LocalServerOptions {
            settings: settings.collect(),
            ..LocalServerOptions::default()
        };
        let source = LocalServer::start(options).await.unwrap();
        let sql = connect(&source).await;
        let standby = None;
        Self {
            sql,
            standby,
            source,
        }
    }

    pub(crate) async fn with_standby(settings: &[(&str, &str)]) -> Self {
        let mut world = Self::start(&[("wal_keep_size", "256MB")]).await;
        let options = StandbyOptions {
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..StandbyOptions::default()
        };
        world.standby = Some(world.source.start_standby(options).await.unwrap());
        world
    }

    /// Runs statements one after another on the source.
    pub(crate) async fn run(&mut self, statements: &[&str]) {
        for statement in statements {
            self.sql.query(statement).await.unwrap();
        }
    }

    pub(crate) async fn value(&mut self, sql: &str) -> String {
        let rows = self.sql.query(sql).await.unwrap();
        rows[0][0].clone().unwrap()
    }

    pub(crate) async fn insert_lsn(&mut self) -> Lsn {
        self.value("SELECT pg_current_wal_insert_lsn()")
            .await
            .parse()
            .unwrap()
    }

    pub(crate) fn standby(&self) -> &LocalServer {
        self.standby.as_ref().unwrap()
    }

    pub(crate) async fn catch_up(&self) {
        self.standby().catch_up_with(&self.source).await.unwrap();
    }

    pub(crate) async fn options(&mut self, kind: ReplicaKind) -> ReplicaOptions {
        let server = match kind {
            ReplicaKind::Standby => self.standby(),
            ReplicaKind::Source => &self.source,
        };
        let config = server.config("postgres");
        let info = catalog::server_info(&mut self.sql).await.unwrap();
        ReplicaOptions {
            config,
            kind,
            system_identifier: info.system_identifier,
            publication: "p".to_owned(),
            binary: true,
            connections_max: 2,
            limits: ReadLimits {
                behind_max: Duration::from_millis(300),
                snapshot_max: Duration::from_millis(700),
                lock_max: Duration::from_millis(300),
                row_bytes_max: 1 << 20,
                ..ReadLimits::default()
            },
        }
    }

    pub(crate) async fn replica(&mut self, kind: ReplicaKind) -> Replica {
        Replica::new(self.options(kind).await)
    }
}

pub(crate) async fn connect(server: &LocalServer) -> Connection {
    let config = server.config("postgres");
    Connection::connect(&config, Replication::Off)
        .await
        .unwrap()
}

pub(crate) async fn plan(replica: &Replica, name: &str) -> TablePlan {
    replica.plan(&[name.to_owned()]).await.unwrap()
}

/// The only heap that the name leads to.
pub(crate) async fn table(replica: &Replica, name: &str) -> DumpTable {
    let mut plan = plan(replica, name).await;
    assert!(plan.problems.is_empty(), "{:?}", plan.problems);
    assert_eq!(plan.tables.len(), 1);
    plan.tables.remove(0)
}

pub(crate) fn request(table: &DumpTable, extent: Extent) -> RangeRequest {
    RangeRequest {
        dump: DumpId(41),
        heap: table.heap.clone(),
        extent,
        at_least: Lsn::ZERO,
        is_paced: false,
    }
}

pub(crate) fn whole(table: &DumpTable) -> RangeRequest {
    request(table, Extent::Pages(PageRange::ALL))
}

pub(crate) fn pages(table: &DumpTable, first: u32, last: u32) -> RangeRequest {
    request(table, Extent::Pages(PageRange { first, last }))
}

pub(crate) fn changes_in(batch: &RowBatch) -> Vec<Change> {
    let change = |(start, length): &(u32, u32)| {
        let (start, length) = (*start as usize, *length as usize);
        let message = Message::decode(&batch.bytes[start..start + length]).unwrap();
        let Some(Type::Change(change)) = message.r#type else {
            panic!("{message:?} is no change");
        };
        change
    };
    batch.rows.iter().map(change).collect()
}

pub(crate) async fn rest(reader: &mut RangeReader) -> Result<Vec<Change>, ReadError> {
    let mut changes = Vec::new();
    while let Some(batch) = reader.next().await? {
        assert!(batch.rows.len() <= 1_024);
        changes.extend(changes_in(&batch));
    }
    assert!(reader.next().await?.is_none(), "the end stays the end");
    assert_eq!(reader.row_count(), changes.len() as u64);
    Ok(changes)
}

pub(crate) async fn read(
    replica: &Replica,
    request: RangeRequest,
) -> Result<Vec<Change>, ReadError> {
    let mut reader = replica.open(request).await?;
    rest(&mut reader).await
}

/// The values of a column of numbers (`int4`), sorted.
pub(crate) fn numbers(changes: &[Change], column: &str) -> Vec<i32> {
    let number = |change: &Change| {
        let field = change
            .new
            .iter()
            .find(|field| field.name == column)
            .unwrap();
        let Some(pgcapture_proto::pgcapture::field::Value::Binary(bytes)) = &field.value else {
            panic!("{field:?} is no number");
        };
        i32::from_be_bytes(bytes[..].try_into().unwrap())
    };
    let mut numbers: Vec<i32> = changes.iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}
