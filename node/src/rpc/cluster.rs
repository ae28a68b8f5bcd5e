//! `pgcapture.admin.v1.Cluster`: who belongs to the cluster, who leads, who owns what.
//!
//! What only the leader knows is asked of the leader; when it does not answer, this node says what it
//! knows by itself, and that it may be old. Decides nothing: the group and the engine do.

mod answer;

use std::sync::Arc;

use futures_util::future::join_all;
use pgcapture_actors::consensus::{Consensus, ProposeError};
use pgcapture_engine::{
    cluster::{Answer, Command},
    codes::{self, Explanation},
};
use pgcapture_proto::{
    admin::v1::{
        ClusterStatus, GetClusterRequest, GetHashRequest, GetHashResponse, ListEventsRequest,
        ListEventsResponse, MoveSourceRequest, MoveSourceResponse, NodeHash, RebalanceRequest,
        RebalanceResponse, RemoveNodeRequest, RemoveNodeResponse, SourceMove,
        TransferLeadershipRequest, TransferLeadershipResponse, cluster_client::ClusterClient,
        cluster_server::Cluster,
    },
    status::status,
};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::{
    IntoStatus,
    admin::source_status,
    forward::{Forward, Target, is_marked, part},
    order,
};
use crate::{
    events::Events,
    group::{Group, GroupError, Life},
    sources::SourceError,
};

/// Name of the service in health and reflection.
pub const SERVICE_NAME: &str = "pgcapture.admin.v1.Cluster";

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterService {
    /// The group of nodes.
    pub group: Arc<dyn Group>,
    /// The agreed state.
    pub consensus: Arc<dyn Consensus>,
    /// The way to others.
    pub forward: Forward,
    /// What this node remembers.
    pub events: Events,
    /// Orders under way; awaited when the node stops.
    pub orders: TaskTracker,
}

/// Has the leader answer, if that is another node that is known; else this node.
macro_rules! lead {
    ($self:ident, $request:ident, $method:ident, $here:expr) => {
        match $self.leader(&$request) {
            Some(leader) => {
                let call = |mut cluster: ClusterClient<_>, request| async move {
                    cluster.$method(request).await
                };
                $self.forward.cluster(&leader, $request, call).await
            }
            None => $here,
        }
    };
}

impl ClusterService {
    /// Returns the leader, if that is another node and the request may go there.
    fn leader<T>(&self, request: &Request<T>) -> Option<Target> {
        if is_marked(request) {
            return None;
        }
        let leader = self.group.standing().leader?;
        self.forward.target_in(&self.forward.state(), &leader)
    }

    fn status(&self) -> ClusterStatus {
        let state = self.forward.state();
        let standing = self.group.standing();
        answer::status(
            &self.forward.node,
            &state,
            standing,
            self.group.lives().as_ref(),
        )
    }

    async fn own_hash(&self) -> NodeHash {
        let node = self.forward.node.clone();
        match self.group.hash().await {
            Ok(hash) => NodeHash {
                node,
                applied_index: hash.applied,
                hash: hash.hash,
                error: String::new(),
            },
            Err(error) => NodeHash {
                node,
                error: error.to_string(),
                ..NodeHash::default()
            },
        }
    }

    async fn move_here(&self, request: MoveSourceRequest) -> Result<MoveSourceResponse, Status> {
        let state = self.forward.state();
        let source = state.source(&request.source).map_err(SourceError::from);
        let source = source.map_err(|error| source_status(&error))?;
        let owner = state.owner(&source.name).unwrap_or_default();
        if !state.nodes.is_empty() && !state.nodes.contains_key(&request.node) {
            let known: Vec<&str> = state.nodes.keys().map(String::as_str).collect();
            let known = known.join(", ");
            let what = format!("unknown node \"{}\"; known nodes: {known}", request.node);
            return Err(refuse(&codes::node::NOT_FOUND, what));
        }
        let lives = self.group.lives().unwrap_or_default();
        if let Some(life) = lives
            .get(&request.node)
            .filter(|life| **life != Life::Alive)
        {
            let what = format!("node {} is {}", request.node, life.as_str());
            return Err(refuse(&codes::node::CONFLICT, what));
        }
        if owner == request.node {
            return Ok(MoveSourceResponse {
                from: owner.to_owned(),
                epoch: source.epoch.0,
                changed: false,
            });
        }
        let assign = Command::Assign {
            name: source.name.clone(),
            node: request.node,
            after: source.epoch,
        };
        Ok(MoveSourceResponse {
            from: owner.to_owned(),
            epoch: propose_assignment(self.consensus.as_ref(), assign).await?,
            changed: true,
        })
    }

    async fn rebalance_here(&self, is_dry: bool) -> Result<RebalanceResponse, Status> {
        let commands = self.group.balance().ok_or_else(|| {
            let what = "no node that leads is known".to_owned();
            refuse(&codes::node::OWNER_AWAY, what)
        })?;
        let state = self.forward.state();
        let mut moves = Vec::new();
        for command in commands {
            let Command::Assign { name, node, .. } = &command else {
                continue;
            };
            moves.push(SourceMove {
                source: name.clone(),
                from: state.owner(name).unwrap_or_default().to_owned(),
                to: node.clone(),
            });
            if !is_dry {
                propose_assignment(self.consensus.as_ref(), command).await?;
            }
        }
        Ok(RebalanceResponse { moves })
    }
}

/// Proposes an assignment and returns the epoch that it began.
async fn propose_assignment(consensus: &dyn Consensus, assign: Command) -> Result<u64, Status> {
    match consensus.propose(assign).await {
        Ok(Answer::Assigned(epoch)) => Ok(epoch.0),
        Ok(Answer::Done | Answer::Unchanged | Answer::DumpCreated(_)) => {
            let what = "an assignment was answered with something else".to_owned();
            Err(refuse(&codes::node::STORE_FAILED, what))
        }
        Err(error) => Err(propose_status(error)),
    }
}

fn propose_status(error: ProposeError) -> Status {
    source_status(&SourceError::from(error))
}

fn refuse(explanation: &'static Explanation, what: String) -> Status {
    status(explanation.code, what, explanation.next)
}

impl IntoStatus for GroupError {
    fn into_status(self) -> Status {
        status(self.explanation.code, &self, self.explanation.next)
    }
}

impl IntoStatus for Status {
    fn into_status(self) -> Status {
        self
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn get_cluster(
        &self,
        request: Request<GetClusterRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        let Some(leader) = self.leader(&request) else {
            return Ok(Response::new(self.status()));
        };
        let call = |mut cluster: ClusterClient<_>, request| async move {
            cluster.get_cluster(request).await
        };
        let asked = self
            .forward
            .cluster(&leader, part(GetClusterRequest {}), call)
            .await;
        asked.or_else(|status| {
            tracing::warn!(leader = leader.name, %status, "the leader does not answer");
            Ok(Response::new(self.status()))
        })
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let RemoveNodeRequest { name, dry_run } = request.into_inner();
        let actions = answer::removal(&self.forward.state(), &self.group.standing(), &name);
        let actions = actions.map_err(GroupError::into_status)?;
        if !dry_run {
            let group = Arc::clone(&self.group);
            order(&self.orders, async move { group.remove(&name).await }).await?;
        }
        Ok(Response::new(RemoveNodeResponse { actions }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        let (group, name) = (Arc::clone(&self.group), request.into_inner().name);
        order(&self.orders, async move { group.transfer(&name).await }).await?;
        Ok(Response::new(TransferLeadershipResponse {}))
    }

    async fn get_hash(
        &self,
        request: Request<GetHashRequest>,
    ) -> Result<Response<GetHashResponse>, Status> {
        let mut nodes = vec![self.own_hash().await];
        if !is_marked(&request) {
            let others = self.forward.others();
            let asked = others.iter().map(|node| async {
                let call = |mut cluster: ClusterClient<_>, request| async move {
                    cluster.get_hash(request).await
                };
                let asked = self
                    .forward
                    .cluster(node, part(GetHashRequest {}), call)
                    .await;
                let own = asked.map(|answer| answer.into_inner().nodes.into_iter().next());
                let error = match own {
                    Ok(Some(hash)) => return hash,
                    Ok(None) => "it says nothing".to_owned(),
                    Err(status) => status.message().to_owned(),
                };
                let node = node.name.clone();
                NodeHash {
                    node,
                    error,
                    ..NodeHash::default()
                }
            });
            nodes.extend(join_all(asked).await);
            nodes.sort_by(|one, other| one.node.cmp(&other.node));
        }
        Ok(Response::new(GetHashResponse { nodes }))
    }

    async fn move_source(
        &self,
        request: Request<MoveSourceRequest>,
    ) -> Result<Response<MoveSourceResponse>, Status> {
        lead!(self, request, move_source, {
            let (service, request) = (self.clone(), request.into_inner());
            let moved = order(
                &self.orders,
                async move { service.move_here(request).await },
            );
            Ok(Response::new(moved.await?))
        })
    }

    async fn rebalance(
        &self,
        request: Request<RebalanceRequest>,
    ) -> Result<Response<RebalanceResponse>, Status> {
        lead!(self, request, rebalance, {
            let (service, is_dry) = (self.clone(), request.into_inner().dry_run);
            let moved = order(
                &self.orders,
                async move { service.rebalance_here(is_dry).await },
            );
            Ok(Response::new(moved.await?))
        })
    }

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let is_part = is_marked(&request);
        let ListEventsRequest { limit } = request.into_inner();
        let mut events = answer::events(&self.forward.node, self.events.list());
        let mut unreachable = Vec::new();
        if !is_part {
            let others = self.forward.others();
            let asked = others.iter().map(|node| async {
                let call = |mut cluster: ClusterClient<_>, request| async move {
                    cluster.list_events(request).await
                };
                let request = part(ListEventsRequest { limit });
                (
                    node.name.clone(),
                    self.forward.cluster(node, request, call).await,
                )
            });
            for (node, answer) in join_all(asked).await {
                match answer {
                    Ok(answer) => events.extend(answer.into_inner().events),
                    Err(_) => unreachable.push(node),
                }
            }
        }
        let events = answer::merged(events, limit);
        Ok(Response::new(ListEventsResponse {
            events,
            unreachable,
        }))
    }
}

#[cfg(test)]
mod tests;
