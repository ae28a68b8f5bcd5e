//! Reads rows from PostgreSQL: the seam [`RowReader`] over [`crate::postgres::dump`].
//!
//! Keeps one pool of connections a replica, for as long as its definition stays the same.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use pgcapture_engine::{
    cluster::{self, TableLayout},
    codes,
    dump::ReplicaFacts,
};

use super::{
    DumpError, FoundTable, OpenedRows, RangeOrder, RangeRemedy, ReadTarget, RowBatch, RowReader,
    RowSource, TablesFound,
};
use crate::postgres::{
    Config,
    dump::{self as postgres, RangeReader, RangeRequest, ReadLimits, ReplicaOptions},
};

/// Finds out how to connect to a replica: reads the secret that its definition names.
pub trait ReplicaConfigs: Debug + Send + Sync {
    /// Returns the configuration with the password in it.
    ///
    /// # Errors
    ///
    /// What is wrong with the url or the secret; never the secret.
    fn config(&self, replica: &cluster::Replica) -> Result<Config, String>;
}

/// Reads rows from PostgreSQL.
#[derive(Debug)]
pub struct PostgresReader {
    configs: Arc<dyn ReplicaConfigs>,
    limits: ReadLimits,
    /// By name; at most as many as there are replicas, and those that were removed lately.
    known: Mutex<BTreeMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    target: ReadTarget,
    replica: postgres::Replica,
}

impl PostgresReader {
    /// Makes a reader that connects when it is asked.
    #[must_use]
    pub fn new(configs: Arc<dyn ReplicaConfigs>, limits: ReadLimits) -> Self {
        Self {
            configs,
            limits,
            known: Mutex::default(),
        }
    }

    fn replica(&self, target: &ReadTarget) -> Result<postgres::Replica, DumpError> {
        let name = &target.replica.name;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known
            .get(name)
            .filter(|known| is_same(&known.target, target))
        {
            return Ok(known.replica.clone());
        }
        let config = self.configs.config(&target.replica);
        let config = config.map_err(|what| DumpError {
            explanation: &codes::existing_rows::REPLICA_UNREACHABLE,
            what: format!("replica \"{name}\": {what}"),
            remedy: RangeRemedy::Retry,
        })?;
        let replica = postgres::Replica::new(ReplicaOptions {
            config,
            kind: target.replica.kind,
            system_identifier: target.replica.system_identifier,
            publication: target.source.publication.clone(),
            binary: true,
            connections_max: target.replica.ranges_max,
            limits: self.limits,
        });
        let target = target.clone();
        let entry = Known {
            target,
            replica: replica.clone(),
        };
        known.insert(name.clone(), entry);
        Ok(replica)
    }

    /// Forgets a replica that cannot be reached, so that a new secret is read the next time.
    fn forget(&self, target: &ReadTarget, error: &DumpError) {
        if error.explanation.code == codes::existing_rows::REPLICA_UNREACHABLE.code {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.remove(&target.replica.name);
        }
    }
}

/// Epoch, pauses and the like of a source do not matter here.
fn is_same(known: &ReadTarget, target: &ReadTarget) -> bool {
    known.replica == target.replica && known.source.publication == target.source.publication
}

#[async_trait]
impl RowReader for PostgresReader {
    async fn look(&self, target: &ReadTarget, tables: &[String]) -> Result<TablesFound, DumpError> {
        let replica = self.replica(target)?;
        let planned = replica.plan(tables).await.map_err(DumpError::from);
        let plan = planned.inspect_err(|error| self.forget(target, error))?;
        let position = plan.position;
        let table = |table: postgres::DumpTable| FoundTable {
            layout: TableLayout {
                filenode: table.heap.filenode,
                pages_end: table.page_count,
                bytes: table.byte_count,
                row_estimate: table.row_estimate.unwrap_or_default(),
                since_xid: position.since_xid,
                planned_at: position.at,
            },
            heap: table.heap,
            has_toast: table.has_toast,
        };
        let problems = plan.problems.into_iter();
        Ok(TablesFound {
            tables: plan.tables.into_iter().map(table).collect(),
            problems: problems.map(|problem| problem.error.into()).collect(),
        })
    }

    async fn open(&self, target: &ReadTarget, order: &RangeOrder) -> Result<OpenedRows, DumpError> {
        let replica = self.replica(target)?;
        let request = RangeRequest {
            dump: order.dump,
            heap: order.heap.clone(),
            extent: order.extent,
            at_least: order.at_least,
            is_paced: order.is_paced,
        };
        let opened = replica.open(request).await.map_err(DumpError::from);
        let reader = opened.inspect_err(|error| self.forget(target, error))?;
        Ok(OpenedRows {
            at: reader.at(),
            rows: Box::new(Rows(reader)),
        })
    }

    async fn health(&self, target: &ReadTarget) -> Result<ReplicaFacts, DumpError> {
        let replica = self.replica(target)?;
        let asked = replica.health().await.map_err(DumpError::from);
        let health = asked.inspect_err(|error| self.forget(target, error))?;
        Ok(ReplicaFacts {
            lag: health.replay_delay.unwrap_or_default(),
            is_replay_paused: health.is_replay_paused,
            waiting_count: health.waiting_count,
        })
    }
}

/// The rows of one range.
#[derive(Debug)]
struct Rows(RangeReader);

#[async_trait]
impl RowSource for Rows {
    async fn next(&mut self) -> Result<Option<RowBatch>, DumpError> {
        Ok(self.0.next().await?)
    }
}
