//! `pgcapture.admin.v1.Admin`: what the CLI and the console ask.
//!
//! Unwraps a request, calls the sources or the gateway, fills an answer. No answer holds a password:
//! the state has none, and urls lose theirs before anything else happens.

pub(super) mod answer;
mod consumers;
mod wal;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use pgcapture_actors::{consensus::Consensus, gateway::GatewayHandle};
use pgcapture_engine::{
    cluster::{Origin, State},
    codes,
};
use pgcapture_proto::{
    admin::v1::{
        AddSourceRequest, Consumer, GetConsumerRequest, GetNodeRequest, GetSourceRequest,
        GetStreamRequest, ListConsumersRequest, ListConsumersResponse, ListSourcesRequest,
        ListSourcesResponse, ListStreamsRequest, ListStreamsResponse, Node, PauseSourceRequest,
        PlanSourceRequest, RemoveConsumerRequest, RemoveConsumerResponse, RemoveSourceRequest,
        RemoveSourceResponse, ResumeSourceRequest, SeekConsumerRequest, SeekConsumerResponse,
        Source, SourceDefinition, SourcePlan, Stream, admin_server::Admin,
    },
    status::status,
};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::order;
use crate::{
    config::SourceSection,
    logs::Logs,
    sources::{Definition, SourceError, Sources},
};

/// Name of the service in health and reflection.
pub const SERVICE_NAME: &str = "pgcapture.admin.v1.Admin";

/// What the node says of itself.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// When it started, microseconds since 1970.
    pub started_at: i64,
    /// Where its files lie.
    pub data_dir: PathBuf,
    /// Bound address of gRPC.
    pub listen: SocketAddr,
    /// Bound address of HTTP.
    pub metrics: SocketAddr,
}

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AdminService {
    /// What the node says of itself.
    pub info: Arc<NodeInfo>,
    /// Whether it takes sessions.
    pub ready: watch::Receiver<bool>,
    /// The agreed state.
    pub consensus: Arc<dyn Consensus>,
    /// Its sources.
    pub sources: Arc<Sources>,
    /// Its logs.
    pub logs: Arc<Logs>,
    /// Its consumers.
    pub gateway: GatewayHandle,
    /// Orders under way; awaited when the node stops.
    pub orders: TaskTracker,
}

impl AdminService {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.consensus.state().borrow())
    }

    fn source_answer(&self, name: &str) -> Result<Response<Source>, Status> {
        let state = self.state();
        let source = state.source(name).map_err(SourceError::from);
        let source = source.map_err(|error| source_status(&error))?;
        Ok(Response::new(answer::source(&self.sources, &state, source)))
    }
}

/// The status of a source's error.
pub(super) fn source_status(error: &SourceError) -> Status {
    status(error.explanation().code, error, error.next())
}

fn definition(wanted: Option<SourceDefinition>) -> Result<Definition, SourceError> {
    let wanted = wanted.unwrap_or_default();
    let wal_guard = wal::section(wanted.wal_guard.unwrap_or_default())?;
    let section = SourceSection {
        url: wanted.url,
        password: None,
        stream: wanted.stream,
        slot: wanted.slot,
        publication: wanted.publication,
        tables: wanted.tables,
        exclude: wanted.exclude,
        wal_guard,
    };
    Definition::new(&wanted.name, section, &wanted.password, Origin::Command)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_node(&self, _: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        Ok(Response::new(Node {
            name: self.info.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.info.started_at,
            ready: *self.ready.borrow(),
            data_dir: self.info.data_dir.display().to_string(),
            listen: self.info.listen.to_string(),
            metrics: self.info.metrics.to_string(),
            reasons: self.sources.complaints(),
        }))
    }

    async fn plan_source(
        &self,
        request: Request<PlanSourceRequest>,
    ) -> Result<Response<SourcePlan>, Status> {
        let definition = definition(request.into_inner().definition);
        let definition = definition.map_err(|error| source_status(&error))?;
        let plan = self.sources.plan(&definition).await;
        let plan = plan.map_err(|error| source_status(&error))?;
        Ok(Response::new(answer::plan(&definition, plan)))
    }

    async fn add_source(
        &self,
        request: Request<AddSourceRequest>,
    ) -> Result<Response<Source>, Status> {
        let definition = definition(request.into_inner().definition);
        let definition = definition.map_err(|error| source_status(&error))?;
        let sources = Arc::clone(&self.sources);
        let added = order(&self.orders, async move { sources.add(definition).await });
        self.source_answer(&added.await?.name)
    }

    async fn list_sources(
        &self,
        _: Request<ListSourcesRequest>,
    ) -> Result<Response<ListSourcesResponse>, Status> {
        let state = self.state();
        let sources = state.sources.values();
        let sources = sources.map(|source| answer::source(&self.sources, &state, source));
        let sources = sources.collect();
        let unreachable = Vec::new();
        Ok(Response::new(ListSourcesResponse {
            sources,
            unreachable,
        }))
    }

    async fn get_source(
        &self,
        request: Request<GetSourceRequest>,
    ) -> Result<Response<Source>, Status> {
        self.source_answer(&request.into_inner().name)
    }

    async fn pause_source(
        &self,
        request: Request<PauseSourceRequest>,
    ) -> Result<Response<Source>, Status> {
        let (sources, name) = (Arc::clone(&self.sources), request.into_inner().name);
        let paused = order(&self.orders, async move {
            sources.set_paused(&name, true).await
        });
        self.source_answer(&paused.await?.name)
    }

    async fn resume_source(
        &self,
        request: Request<ResumeSourceRequest>,
    ) -> Result<Response<Source>, Status> {
        let (sources, request) = (Arc::clone(&self.sources), request.into_inner());
        let resumed = order(&self.orders, async move {
            let source = sources.set_paused(&request.name, false).await?;
            if request.accept_gap {
                sources.accept_gap(&request.name).await?;
            }
            Ok::<_, SourceError>(source)
        });
        self.source_answer(&resumed.await?.name)
    }

    async fn remove_source(
        &self,
        request: Request<RemoveSourceRequest>,
    ) -> Result<Response<RemoveSourceResponse>, Status> {
        let request = request.into_inner();
        let plan = self.sources.removal_plan(&request.name, request.keep_slot);
        let actions = plan.map_err(|error| source_status(&error))?;
        if !request.dry_run {
            let (sources, gateway) = (Arc::clone(&self.sources), self.gateway.clone());
            let consensus = Arc::clone(&self.consensus);
            order(&self.orders, async move {
                let source = sources.detach(&request.name, request.keep_slot).await?;
                consumers::remove_all(&gateway, consensus.as_ref(), &source.stream).await?;
                sources.forget(&source).await
            })
            .await?;
        }
        Ok(Response::new(RemoveSourceResponse { actions }))
    }

    async fn list_streams(
        &self,
        _: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        let counts = consumers::counts(&self.gateway).await?;
        let state = self.state();
        let streams = state.sources.values();
        let streams = streams.map(|source| answer::stream(&self.logs, source, &counts));
        let streams = streams.collect();
        let unreachable = Vec::new();
        Ok(Response::new(ListStreamsResponse {
            streams,
            unreachable,
        }))
    }

    async fn get_stream(
        &self,
        request: Request<GetStreamRequest>,
    ) -> Result<Response<Stream>, Status> {
        let name = request.into_inner().name;
        let counts = consumers::counts(&self.gateway).await?;
        let state = self.state();
        let source = state.source_of_stream(&name).ok_or_else(|| {
            let missing = &codes::node::NOT_FOUND;
            let known = state.known_streams();
            let what = format!("unknown stream \"{name}\"; known streams: {known}");
            status(missing.code, what, missing.next)
        })?;
        Ok(Response::new(answer::stream(&self.logs, source, &counts)))
    }

    async fn list_consumers(
        &self,
        request: Request<ListConsumersRequest>,
    ) -> Result<Response<ListConsumersResponse>, Status> {
        let stream = request.into_inner().stream;
        let consumers = consumers::list(&self.gateway, &self.state(), &stream).await?;
        let unreachable = Vec::new();
        Ok(Response::new(ListConsumersResponse {
            consumers,
            unreachable,
        }))
    }

    async fn get_consumer(
        &self,
        request: Request<GetConsumerRequest>,
    ) -> Result<Response<Consumer>, Status> {
        let uri = request.into_inner().uri;
        let consumer = consumers::get(&self.gateway, &self.state(), &uri).await?;
        Ok(Response::new(consumer))
    }

    async fn seek_consumer(
        &self,
        request: Request<SeekConsumerRequest>,
    ) -> Result<Response<SeekConsumerResponse>, Status> {
        let moved = consumers::seek(&self.gateway, &self.state(), request.into_inner()).await?;
        Ok(Response::new(moved))
    }

    async fn remove_consumer(
        &self,
        request: Request<RemoveConsumerRequest>,
    ) -> Result<Response<RemoveConsumerResponse>, Status> {
        let consensus = self.consensus.as_ref();
        let removed = consumers::remove(&self.gateway, consensus, request.into_inner()).await?;
        Ok(Response::new(removed))
    }
}
