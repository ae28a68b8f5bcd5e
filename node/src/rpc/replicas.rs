//! `pgcapture.admin.v1.Replicas`: where existing rows are read from.
//!
//! Unwraps a request, calls the node's replicas, fills an answer. No answer holds a password.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pgcapture_actors::dump::DumpControllerHandle;
use pgcapture_engine::{
    cluster, codes,
    dump::{ReplicaHealth, ReplicaStatus},
};
use pgcapture_proto::admin::v1::{
    AddReplicaRequest, AddReplicaResponse, GetReplicaRequest, ListReplicasRequest,
    ListReplicasResponse, RemoveReplicaRequest, RemoveReplicaResponse, Replica,
    ReplicaDefinition as WireDefinition, Trouble, replicas_server::Replicas as ReplicasRpc,
};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::{
    admin::{answer, source_status},
    order,
};
use crate::{
    config::ReplicaSection,
    replicas::{ReplicaDefinition, Replicas},
    sources::SourceError,
    units::Span,
};

/// Name of the service in health and reflection.
pub const SERVICE_NAME: &str = "pgcapture.admin.v1.Replicas";

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReplicasService {
    /// The node's replicas.
    pub replicas: Arc<Replicas>,
    /// Who knows how they are.
    pub dumps: DumpControllerHandle,
    /// Orders under way; awaited when the node stops.
    pub orders: TaskTracker,
}

impl ReplicasService {
    /// How every replica is, by name; nothing while the controller is away: the definitions are
    /// there all the same.
    async fn statuses(&self) -> BTreeMap<String, ReplicaStatus> {
        let statuses = self.dumps.replicas().await.unwrap_or_default().into_iter();
        statuses
            .map(|status| (status.name.clone(), status))
            .collect()
    }
}

impl ReplicasService {
    fn fill(
        &self,
        replica: &cluster::Replica,
        statuses: &BTreeMap<String, ReplicaStatus>,
    ) -> Replica {
        fill(replica, self.replicas.rate(&replica.name), statuses)
    }
}

fn definition(wanted: Option<WireDefinition>) -> Result<ReplicaDefinition, SourceError> {
    let wanted = wanted.unwrap_or_default();
    let lag = u64::try_from(wanted.max_lag_micros).unwrap_or(0);
    let section = ReplicaSection {
        source: wanted.source,
        url: wanted.url,
        password: None,
        kind: match wanted.kind.as_str() {
            "" => cluster::ReplicaKind::Standby.as_str().to_owned(),
            _ => wanted.kind,
        },
        max_ranges: match wanted.max_ranges {
            0 => cluster::DEFAULT_RANGES_MAX,
            ranges => ranges,
        },
        max_lag: match lag {
            0 => Span(cluster::DEFAULT_LAG_MAX),
            micros => Span(Duration::from_micros(micros)),
        },
    };
    let mut definition = ReplicaDefinition::new(&wanted.name, section, &wanted.password)?;
    definition.rate = wanted.bytes_per_second;
    Ok(definition)
}

#[tonic::async_trait]
impl ReplicasRpc for ReplicasService {
    async fn add_replica(
        &self,
        request: Request<AddReplicaRequest>,
    ) -> Result<Response<AddReplicaResponse>, Status> {
        let request = request.into_inner();
        let wanted = definition(request.definition).map_err(|error| source_status(&error))?;
        let replicas = Arc::clone(&self.replicas);
        let added = order(&self.orders, async move {
            replicas.add(wanted, request.dry_run).await
        });
        let added = added.await?;
        let statuses = self.statuses().await;
        let replica = added.replica.as_ref();
        Ok(Response::new(AddReplicaResponse {
            checks: added.checks.into_iter().map(answer::check).collect(),
            replica: replica.map(|replica| self.fill(replica, &statuses)),
        }))
    }

    async fn list_replicas(
        &self,
        request: Request<ListReplicasRequest>,
    ) -> Result<Response<ListReplicasResponse>, Status> {
        let statuses = self.statuses().await;
        let replicas = self.replicas.list(&request.into_inner().source);
        let replicas = replicas.iter().map(|replica| self.fill(replica, &statuses));
        let replicas = replicas.collect();
        Ok(Response::new(ListReplicasResponse { replicas }))
    }

    async fn get_replica(
        &self,
        request: Request<GetReplicaRequest>,
    ) -> Result<Response<Replica>, Status> {
        let replica = self.replicas.get(&request.into_inner().name);
        let replica = replica.map_err(|error| source_status(&error))?;
        Ok(Response::new(self.fill(&replica, &self.statuses().await)))
    }

    async fn remove_replica(
        &self,
        request: Request<RemoveReplicaRequest>,
    ) -> Result<Response<RemoveReplicaResponse>, Status> {
        let request = request.into_inner();
        let plan = self.replicas.removal_plan(&request.name);
        let actions = plan.map_err(|error| source_status(&error))?;
        if !request.dry_run {
            let replicas = Arc::clone(&self.replicas);
            order(
                &self.orders,
                async move { replicas.remove(&request.name).await },
            )
            .await?;
        }
        Ok(Response::new(RemoveReplicaResponse { actions }))
    }
}

fn fill(
    replica: &cluster::Replica,
    rate: Option<u64>,
    statuses: &BTreeMap<String, ReplicaStatus>,
) -> Replica {
    let unknown = ReplicaHealth::Unknown;
    let status = statuses.get(&replica.name);
    let health = status.map_or(&unknown, |status| &status.health);
    let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    Replica {
        definition: Some(WireDefinition {
            name: replica.name.clone(),
            source: replica.source.clone(),
            url: replica.url.clone(),
            password: answer::reference(replica.password.as_ref()),
            kind: replica.kind.as_str().to_owned(),
            max_ranges: replica.ranges_max,
            max_lag_micros: micros(replica.lag_max),
            bytes_per_second: rate,
        }),
        created_at: answer::unix_micros(replica.created_at),
        state: health.as_str().to_owned(),
        lag_micros: health.lag().map_or(0, micros),
        running_ranges: status.map_or(0, |status| status.running_count),
        trouble: trouble(health),
    }
}

/// What keeps ranges from being read there.
fn trouble(health: &ReplicaHealth) -> Option<Trouble> {
    let (code, text) = match health {
        ReplicaHealth::Unknown | ReplicaHealth::Ready { .. } => return None,
        ReplicaHealth::Behind { lag } => (
            codes::existing_rows::REPLICA_BEHIND.code,
            format!("{:.1} s behind", lag.as_secs_f64()),
        ),
        ReplicaHealth::Busy { what, .. } => ("", format!("its own users come first: {what}")),
        ReplicaHealth::Unusable { code, what } => (code.as_str(), what.clone()),
    };
    let next = codes::find(code).map_or("nothing; dumps go on by themselves", |known| known.next);
    Some(Trouble {
        code: code.to_owned(),
        text,
        next: next.to_owned(),
    })
}
