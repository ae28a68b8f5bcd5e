//! `pgcapture.admin.v1.Admin` on any node: a source's requests go to the node that owns it, lists are
//! put together from all owners.
//!
//! What an owner that does not answer would have said is shown as missing, never left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use pgcapture_proto::admin::v1::{
    AddSourceRequest, Consumer, Failover, GetConsumerRequest, GetNodeRequest, GetSourceRequest,
    GetStreamRequest, ListConsumersRequest, ListConsumersResponse, ListSourcesRequest,
    ListSourcesResponse, ListStreamsRequest, ListStreamsResponse, Node, PauseSourceRequest,
    PlanSourceRequest, RemoveConsumerRequest, RemoveConsumerResponse, RemoveSourceRequest,
    RemoveSourceResponse, ResumeSourceRequest, SeekConsumerRequest, SeekConsumerResponse, Source,
    SourcePlan, Stream, admin_client::AdminClient, admin_server::Admin,
};
use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

use super::{
    Forward, Target,
    at_home::AtHome,
    is_away, is_marked,
    merge::{self, Told, unreachable_source},
    part,
};
use crate::{
    events::Events,
    homes::Homes,
    resolver::{subscription_of, uri_of},
    rpc::admin::AdminService,
    sources::FIRST_STATUS_MAX,
};

/// How often the owner of a new source is asked how it does: an agent needs some tens of milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ForwardingAdmin {
    /// What this node answers by itself.
    pub local: AdminService,
    /// The way to others.
    pub forward: Forward,
    /// What this node remembers.
    pub events: Events,
    /// Who keeps the books of subscriptions.
    pub homes: Homes,
}

/// Sends a request to the target, if there is one, or answers it here.
macro_rules! answer {
    ($self:ident, $target:expr, $request:ident, $method:ident) => {
        match $target {
            Some(target) => {
                let call = |mut admin: AdminClient<_>, request| async move {
                    admin.$method(request).await
                };
                $self.forward.admin(&target, $request, call).await
            }
            None => $self.local.$method($request).await,
        }
    };
}

impl ForwardingAdmin {
    /// Adds what this node remembers of a source that it owns.
    fn remember(&self, source: &mut Source) {
        if source.owner != self.forward.node || source.last_failover.is_some() {
            return;
        }
        let name = source.definition.as_ref().map_or("", |it| it.name.as_str());
        source.last_failover = self.events.last_failover(name).map(|last| Failover {
            at: last.at,
            from: last.from,
            to: self.forward.node.clone(),
            took_micros: i64::try_from(last.took.as_micros()).unwrap_or(i64::MAX),
        });
    }

    /// Returns a source that another node was just given, once that node reads it or is in trouble with
    /// it, but waits no longer than it would for an own one. That node may not know of it yet.
    async fn first_status(
        &self,
        name: String,
        added: Response<Source>,
    ) -> Result<Response<Source>, Status> {
        let (began, mut known) = (Instant::now(), added);
        loop {
            let request = Request::new(GetSourceRequest { name: name.clone() });
            match self.get_source(request).await {
                Ok(answer) => known = answer,
                // It is added, whatever this look finds.
                Err(status) => tracing::debug!(name, %status, "no word of a new source yet"),
            }
            let status = known.get_ref().status.as_ref();
            let is_settled =
                status.is_some_and(|status| status.state != "starting" || status.trouble.is_some());
            if is_settled || began.elapsed() >= FIRST_STATUS_MAX {
                return Ok(known);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The owners of all sources but this node, each once.
    fn owners(&self) -> Vec<Target> {
        let state = self.forward.state();
        let names = state.sources.keys();
        let owners = names.filter_map(|source| self.forward.owner_in(&state, source));
        let owners: BTreeSet<Target> = owners.collect();
        owners.into_iter().collect()
    }

    /// Returns which subscriptions of a stream (of all for an empty name) are at home on other nodes,
    /// by uri, and those nodes.
    fn homes(&self, stream: &str) -> (BTreeMap<String, String>, Vec<Target>) {
        let state = self.forward.state();
        let wanted = state
            .homes
            .iter()
            .filter(|(id, _)| stream.is_empty() || id.stream == stream);
        let away = wanted.filter_map(|(id, home)| {
            let target = self.forward.target_in(&state, home)?;
            Some((uri_of(id), target))
        });
        let away: Vec<(String, Target)> = away.collect();
        let targets: BTreeSet<Target> = away.iter().map(|(_, target)| target.clone()).collect();
        let home_of = away.into_iter().map(|(uri, target)| (uri, target.name));
        (home_of.collect(), targets.into_iter().collect())
    }

    /// Returns which node owns each stream, other nodes only.
    fn owners_of_streams(&self) -> BTreeMap<String, String> {
        let state = self.forward.state();
        let sources = state.sources.values();
        let owned = sources.filter_map(|source| {
            let owner = self.forward.owner_in(&state, &source.name)?;
            Some((source.stream.clone(), owner.name))
        });
        owned.collect()
    }
}

#[tonic::async_trait]
impl Admin for ForwardingAdmin {
    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        self.local.get_node(request).await
    }

    async fn plan_source(
        &self,
        request: Request<PlanSourceRequest>,
    ) -> Result<Response<SourcePlan>, Status> {
        self.local.plan_source(request).await
    }

    async fn add_source(
        &self,
        request: Request<AddSourceRequest>,
    ) -> Result<Response<Source>, Status> {
        let added = self.local.add_source(request).await?;
        let definition = added.get_ref().definition.as_ref();
        let name = definition.map_or_else(String::new, |it| it.name.clone());
        if self
            .forward
            .owner_in(&self.forward.state(), &name)
            .is_none()
        {
            return Ok(added);
        }
        self.first_status(name, added).await
    }

    async fn list_sources(
        &self,
        request: Request<ListSourcesRequest>,
    ) -> Result<Response<ListSourcesResponse>, Status> {
        let is_part = is_marked(&request);
        let mut list = self.local.list_sources(request).await?.into_inner();
        list.sources
            .iter_mut()
            .for_each(|source| self.remember(source));
        if is_part {
            return Ok(Response::new(list));
        }
        let owners = self.owners();
        let asked = owners.iter().map(|owner| async {
            let call = |mut admin: AdminClient<_>, request| async move {
                admin.list_sources(request).await
            };
            let request = part(ListSourcesRequest {});
            let answer = self.forward.admin(owner, request, call).await;
            (owner.name.clone(), answer.map(|it| it.into_inner().sources))
        });
        let told = Told::new(join_all(asked).await);
        merge::sources(&mut list.sources, &told);
        list.unreachable = told.unreachable;
        Ok(Response::new(list))
    }

    async fn get_source(
        &self,
        request: Request<GetSourceRequest>,
    ) -> Result<Response<Source>, Status> {
        let name = request.get_ref().name.clone();
        let target = self.forward.owner(&request, &name);
        let is_elsewhere = target.is_some();
        let answer = answer!(self, target, request, get_source);
        match answer {
            // What is agreed on is known here as well.
            Err(status) if is_elsewhere && is_away(&status) => {
                let request = Request::new(GetSourceRequest { name });
                let mut source = self.local.get_source(request).await?.into_inner();
                unreachable_source(&mut source);
                Ok(Response::new(source))
            }
            Err(status) => Err(status),
            Ok(answer) => {
                let mut source = answer.into_inner();
                self.remember(&mut source);
                Ok(Response::new(source))
            }
        }
    }

    async fn pause_source(
        &self,
        request: Request<PauseSourceRequest>,
    ) -> Result<Response<Source>, Status> {
        let target = self.forward.owner(&request, &request.get_ref().name);
        let name = request.get_ref().name.clone();
        let is_elsewhere = target.is_some();
        match answer!(self, target, request, pause_source) {
            // To pause is agreed on, and idempotent: whoever owns the source next obeys as well.
            Err(status) if is_elsewhere && is_away(&status) => {
                let request = Request::new(PauseSourceRequest { name });
                self.local.pause_source(request).await
            }
            answer => answer,
        }
    }

    async fn resume_source(
        &self,
        request: Request<ResumeSourceRequest>,
    ) -> Result<Response<Source>, Status> {
        let target = self.forward.owner(&request, &request.get_ref().name);
        answer!(self, target, request, resume_source)
    }

    async fn remove_source(
        &self,
        request: Request<RemoveSourceRequest>,
    ) -> Result<Response<RemoveSourceResponse>, Status> {
        let target = self.forward.owner(&request, &request.get_ref().name);
        answer!(self, target, request, remove_source)
    }

    async fn list_streams(
        &self,
        request: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        let is_part = is_marked(&request);
        let mut list = self.local.list_streams(request).await?.into_inner();
        if is_part {
            return Ok(Response::new(list));
        }
        let owners = self.owners();
        let asked = owners.iter().map(|owner| async {
            let call = |mut admin: AdminClient<_>, request| async move {
                admin.list_streams(request).await
            };
            let request = part(ListStreamsRequest {});
            let answer = self.forward.admin(owner, request, call).await;
            (owner.name.clone(), answer.map(|it| it.into_inner().streams))
        });
        let told = Told::new(join_all(asked).await);
        merge::streams(&mut list.streams, &self.owners_of_streams(), &told);
        list.unreachable = told.unreachable;
        Ok(Response::new(list))
    }

    async fn get_stream(
        &self,
        request: Request<GetStreamRequest>,
    ) -> Result<Response<Stream>, Status> {
        let target = self
            .forward
            .owner_of_stream(&request, &request.get_ref().name);
        answer!(self, target, request, get_stream)
    }

    async fn list_consumers(
        &self,
        request: Request<ListConsumersRequest>,
    ) -> Result<Response<ListConsumersResponse>, Status> {
        let is_part = is_marked(&request);
        let stream = request.get_ref().stream.clone();
        let mut list = self.local.list_consumers(request).await?.into_inner();
        if is_part {
            return Ok(Response::new(list));
        }
        let (home_of, homes) = self.homes(&stream);
        let asked = homes.iter().map(|home| async {
            let call = |mut admin: AdminClient<_>, request| async move {
                admin.list_consumers(request).await
            };
            let stream = stream.clone();
            let request = part(ListConsumersRequest { stream });
            let answer = self.forward.admin(home, request, call).await;
            (
                home.name.clone(),
                answer.map(|it| it.into_inner().consumers),
            )
        });
        let told = Told::new(join_all(asked).await);
        let merged = merge::consumers(list.consumers, &home_of, told);
        (list.consumers, list.unreachable) = merged;
        Ok(Response::new(list))
    }

    async fn get_consumer(
        &self,
        request: Request<GetConsumerRequest>,
    ) -> Result<Response<Consumer>, Status> {
        let uri = request.get_ref().uri.clone();
        let target = self.forward.home(&request, &subscription_of(&uri));
        let is_elsewhere = target.is_some();
        match answer!(self, target, request, get_consumer) {
            // Where it stands is agreed on; how many sessions it has is not known then.
            Err(status) if is_elsewhere && is_away(&status) => {
                let request = Request::new(GetConsumerRequest { uri });
                self.local.get_consumer(request).await
            }
            answer => answer,
        }
    }

    async fn seek_consumer(
        &self,
        request: Request<SeekConsumerRequest>,
    ) -> Result<Response<SeekConsumerResponse>, Status> {
        let id = subscription_of(&request.get_ref().uri);
        let will_change = !request.get_ref().dry_run;
        let call =
            |mut admin: AdminClient<_>, request| async move { admin.seek_consumer(request).await };
        match self.at_home(request, (&id, will_change), call).await? {
            AtHome::Answered(answer) => Ok(answer),
            AtHome::Here(request, _held) => self.local.seek_consumer(request).await,
        }
    }

    async fn remove_consumer(
        &self,
        request: Request<RemoveConsumerRequest>,
    ) -> Result<Response<RemoveConsumerResponse>, Status> {
        let id = subscription_of(&request.get_ref().uri);
        let will_change = !request.get_ref().dry_run;
        let call = |mut admin: AdminClient<_>, request| async move {
            admin.remove_consumer(request).await
        };
        match self.at_home(request, (&id, will_change), call).await? {
            AtHome::Answered(answer) => Ok(answer),
            AtHome::Here(request, _held) => self.local.remove_consumer(request).await,
        }
    }
}
