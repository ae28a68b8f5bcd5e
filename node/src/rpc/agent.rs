//! `pgcapture.Agent`: existing rows for existing gateways, read from our replicas.
//!
//! An old gateway asks one agent a database; it names a table and nothing else. A node has one
//! source in most houses: its replicas are read. With more than one source the call says which by
//! the metadata key [`SOURCE_KEY`]; without it such a node refuses, since a table of that name may
//! be in each of them.
//!
//! | status | meaning |
//! | --- | --- |
//! | `NOT_FOUND` | no such table, or no such source |
//! | `UNAVAILABLE` | the replica cannot be reached, or has no position yet |
//! | `FAILED_PRECONDITION` | the replica is behind `min_lsn`, or the table cannot be dumped |
//! | `ABORTED` | no dumper is ready: no replica, or all are busy |

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use pgcapture_actors::{
    consensus::Consensus,
    dump::{
        DumpControllerHandle, DumpError, OpenedRows, RangeOrder, ReadTarget, RowBatch, RowReader,
    },
};
use pgcapture_engine::{
    cluster::{Replica, Source, State},
    codes,
    dump::{DumpId, Extent, Heap, PageRange, ReplicaHealth, TableName},
    lsn::Lsn,
};
use pgcapture_proto::{
    pgcapture::{
        AgentConfigRequest, AgentConfigResponse, AgentDumpRequest, AgentDumpResponse, Change,
        Message, agent_server::Agent, message,
    },
    status::status,
};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use super::{IntoStatus as _, dumps::refuse};

/// Name of the service in health and reflection.
pub const SERVICE_NAME: &str = "pgcapture.Agent";

/// Metadata key by which a call names a source.
pub const SOURCE_KEY: &str = "pgcapture-source";

/// Calls served at once; each is a connection to a replica. The Go agent has one.
const CALLS_MAX: usize = 4;

/// The largest answer of `Dump`; larger ranges are for `StreamDump`, which holds nothing.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AgentService {
    consensus: Arc<dyn Consensus>,
    reader: Arc<dyn RowReader>,
    dumps: DumpControllerHandle,
    calls: Arc<Semaphore>,
}

/// A range that is read, and the right to read it.
struct Reading {
    opened: OpenedRows,
    _permit: OwnedSemaphorePermit,
}

impl AgentService {
    /// Serves rows of the replicas that the state knows.
    #[must_use]
    pub fn new(
        consensus: Arc<dyn Consensus>,
        reader: Arc<dyn RowReader>,
        dumps: DumpControllerHandle,
    ) -> Self {
        Self {
            consensus,
            reader,
            dumps,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
        }
    }

    async fn open(&self, request: Request<AgentDumpRequest>) -> Result<Reading, Status> {
        let (metadata, _, request) = request.into_parts();
        let permit = Arc::clone(&self.calls).try_acquire_owned();
        let permit = permit.map_err(|_| not_ready(format!("{CALLS_MAX} dumpers are at work")))?;
        let info = request.info.unwrap_or_default();
        let (first, last) = (info.page_begin, info.page_end);
        let table = TableName {
            schema: info.schema,
            table: info.table,
        };
        if first > last {
            let what = format!("pages {first}-{last} of {table} run backwards");
            return Err(refuse(&codes::dump::PAGES_BACKWARDS, what).into_status());
        }
        let target = self.target(&metadata).await?;
        let heap = self.heap(&target, &table).await;
        let heap = heap.map_err(DumpError::into_status)?;
        let order = RangeOrder {
            // A foreign gateway's dump has no number here.
            dump: DumpId::default(),
            heap,
            extent: Extent::Pages(PageRange { first, last }),
            at_least: Lsn(request.min_lsn),
            is_paced: false,
        };
        let opened = self.reader.open(&target, &order).await;
        Ok(Reading {
            opened: opened.map_err(DumpError::into_status)?,
            _permit: permit,
        })
    }

    /// The replica to read: a ready one of the source, the least busy first.
    async fn target(&self, metadata: &MetadataMap) -> Result<ReadTarget, Status> {
        let state = Arc::clone(&self.consensus.state().borrow());
        let source = wanted_source(&state, metadata)?;
        let statuses = self.dumps.replicas().await.unwrap_or_default();
        let rank = |replica: &&Replica| {
            let status = statuses.iter().find(|status| status.name == replica.name);
            let is_bad = |health: &ReplicaHealth| {
                matches!(
                    health,
                    ReplicaHealth::Unusable { .. } | ReplicaHealth::Behind { .. }
                )
            };
            status.map(|status| (is_bad(&status.health), status.running_count))
        };
        let replica = state.replicas_of(&source.name).min_by_key(rank);
        let replica = replica.ok_or_else(|| {
            let name = &source.name;
            not_ready(format!(
                "source {name} has no replica; pgcapture replica add NAME --source {name} --url URL"
            ))
        })?;
        Ok(ReadTarget {
            replica: replica.clone(),
            source: source.clone(),
        })
    }

    /// The heap that the name leads to.
    async fn heap(&self, target: &ReadTarget, table: &TableName) -> Result<Heap, DumpError> {
        let mut found = self.reader.look(target, &[table.to_string()]).await?;
        if let Some(problem) = found.problems.pop() {
            return Err(problem);
        }
        match (found.tables.pop(), found.tables.is_empty()) {
            (Some(found), true) => Ok(found.heap),
            (Some(_), false) => {
                let what = format!("{table} is partitioned: pages belong to one of its leaves");
                Err(refuse(&codes::dump::BAD_REQUEST, what))
            }
            (None, _) => {
                let what = format!("table {table} does not exist");
                Err(refuse(&codes::existing_rows::TABLE_MISSING, what))
            }
        }
    }
}

fn wanted_source<'a>(state: &'a State, metadata: &MetadataMap) -> Result<&'a Source, Status> {
    let named = metadata.get(SOURCE_KEY);
    if let Some(name) = named.and_then(|name| name.to_str().ok()) {
        let missing = &codes::node::NOT_FOUND;
        let source = state.source(name);
        return source.map_err(|refusal| status(missing.code, refusal, missing.next));
    }
    let mut sources = state.sources.values();
    match (sources.next(), sources.next()) {
        (Some(source), None) => Ok(source),
        (None, _) => Err(not_ready("the node has no source yet".to_owned())),
        (Some(_), Some(_)) => {
            let what = format!(
                "the node has more than one source ({}), and a table's name alone does not say \
                 which; send metadata {SOURCE_KEY}: NAME",
                state.known_sources()
            );
            Err(Status::new(Code::FailedPrecondition, what))
        }
    }
}

fn not_ready(what: String) -> Status {
    Status::new(Code::Aborted, format!("no dumper is ready: {what}"))
}

/// The changes of a batch, in order.
fn changes(batch: &RowBatch) -> impl Iterator<Item = Result<Change, Status>> + use<> {
    let bytes = batch.bytes.clone();
    batch.rows.clone().into_iter().map(move |(offset, length)| {
        let defect = || Status::new(Code::Internal, "a row that cannot be decoded");
        let begin = usize::try_from(offset).map_err(|_| defect())?;
        let end = begin.checked_add(usize::try_from(length).map_err(|_| defect())?);
        let range = begin..end.filter(|end| *end <= bytes.len()).ok_or_else(defect)?;
        let message = Message::decode(bytes.slice(range)).map_err(|_| defect())?;
        match message.r#type {
            Some(message::Type::Change(change)) => Ok(change),
            _ => Err(defect()),
        }
    })
}

#[tonic::async_trait]
impl Agent for AgentService {
    type StreamDumpStream = Pin<Box<dyn Stream<Item = Result<Change, Status>> + Send>>;

    /// Answers UNIMPLEMENTED, and says how a node is set up.
    ///
    /// Neither schedulers nor gateways send this, only the command `configure` of the Go pgcapture: it
    /// pushes the same parameters to an agent every few seconds, because that agent keeps nothing. A
    /// node keeps its sources and replicas, and what the parameters name (a topic of Pulsar to write, an
    /// applier to run) is not in this version. To take them and do something else would be
    /// worse than a refusal, which that command shows and repeats.
    async fn configure(
        &self,
        _: Request<AgentConfigRequest>,
    ) -> Result<Response<AgentConfigResponse>, Status> {
        let what = "a node is configured by `pgcapture source add` and `pgcapture replica add`, or \
                    by the services pgcapture.admin.v1";
        Err(Status::new(Code::Unimplemented, what))
    }

    /// All rows of a range in one answer.
    async fn dump(
        &self,
        request: Request<AgentDumpRequest>,
    ) -> Result<Response<AgentDumpResponse>, Status> {
        let mut reading = self.open(request).await?;
        let mut change = Vec::new();
        let mut length = 0_usize;
        while let Some(batch) = next(&mut reading).await? {
            length = length.saturating_add(batch.bytes.len());
            if length > ANSWER_BYTES_MAX {
                let what = format!(
                    "the range has more than {ANSWER_BYTES_MAX} bytes; ask for fewer pages, or \
                     use StreamDump"
                );
                return Err(refuse(&codes::dump::BAD_REQUEST, what).into_status());
            }
            for decoded in changes(&batch) {
                change.push(decoded?);
            }
        }
        Ok(Response::new(AgentDumpResponse { change }))
    }

    /// The rows of a range one by one, read as they are taken.
    async fn stream_dump(
        &self,
        request: Request<AgentDumpRequest>,
    ) -> Result<Response<Self::StreamDumpStream>, Status> {
        let reading = self.open(request).await?;
        let batches = stream::unfold(Some(reading), |reading| async move {
            let mut reading = reading?;
            match next(&mut reading).await {
                Ok(Some(batch)) => Some((Ok(batch), Some(reading))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        let rows = batches.flat_map(|batch| {
            let rows: Vec<_> = match batch {
                Ok(batch) => changes(&batch).collect(),
                Err(status) => vec![Err(status)],
            };
            stream::iter(rows)
        });
        Ok(Response::new(Box::pin(rows)))
    }
}

async fn next(reading: &mut Reading) -> Result<Option<RowBatch>, Status> {
    reading
        .opened
        .rows
        .next()
        .await
        .map_err(DumpError::into_status)
}
