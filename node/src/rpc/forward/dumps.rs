//! `pgcapture.admin.v1.Dumps` on any node: the one that leads hands ranges out, so it knows who reads what.
//!
//! When it does not answer, this node tells what is agreed on; nobody knows more then. What is asked for
//! is agreed on as well, and idempotent, so that any node may take it; but a dump is created here, and not
//! again elsewhere.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use pgcapture_proto::admin::v1::{
    CancelDumpRequest, Dump, GetDumpRequest, ListDumpsRequest, ListDumpsResponse, PauseDumpRequest,
    ResumeDumpRequest, RetryDumpRequest, StartDumpRequest, WatchDumpRequest,
    dumps_client::DumpsClient, dumps_server::Dumps,
};
use tonic::{Request, Response, Status};

use super::{Forward, is_away};
use crate::rpc::dumps::DumpsService;

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ForwardingDumps {
    /// What this node answers by itself.
    pub local: DumpsService,
    /// The way to others.
    pub forward: Forward,
}

/// Sends a request to the node that leads, or answers it here.
macro_rules! answer {
    ($self:ident, $request:ident, $method:ident) => {{
        let Some(leader) = $self.forward.leader(&$request) else {
            return $self.local.$method($request).await;
        };
        let again = Request::new($request.get_ref().clone());
        let call = |mut dumps: DumpsClient<_>, request| async move { dumps.$method(request).await };
        match $self.forward.dumps(&leader, $request, call).await {
            Err(status) if is_away(&status) => $self.local.$method(again).await,
            answer => answer,
        }
    }};
}

#[tonic::async_trait]
impl Dumps for ForwardingDumps {
    type WatchDumpStream = Pin<Box<dyn Stream<Item = Result<Dump, Status>> + Send>>;

    async fn start_dump(
        &self,
        request: Request<StartDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        self.local.start_dump(request).await
    }

    async fn list_dumps(
        &self,
        request: Request<ListDumpsRequest>,
    ) -> Result<Response<ListDumpsResponse>, Status> {
        answer!(self, request, list_dumps)
    }

    async fn get_dump(&self, request: Request<GetDumpRequest>) -> Result<Response<Dump>, Status> {
        answer!(self, request, get_dump)
    }

    /// The stream ends with the node that leads; whoever watches asks again.
    async fn watch_dump(
        &self,
        request: Request<WatchDumpRequest>,
    ) -> Result<Response<Self::WatchDumpStream>, Status> {
        let Some(leader) = self.forward.leader(&request) else {
            return self.local.watch_dump(request).await;
        };
        let again = Request::new(request.get_ref().clone());
        let call =
            |mut dumps: DumpsClient<_>, request| async move { dumps.watch_dump(request).await };
        match self.forward.dumps(&leader, request, call).await {
            Ok(answer) => {
                let until = self.local.stop.clone().cancelled_owned();
                let dumps = answer.into_inner().take_until(until);
                Ok(Response::new(Box::pin(dumps)))
            }
            Err(status) if is_away(&status) => self.local.watch_dump(again).await,
            Err(status) => Err(status),
        }
    }

    async fn pause_dump(
        &self,
        request: Request<PauseDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        answer!(self, request, pause_dump)
    }

    async fn resume_dump(
        &self,
        request: Request<ResumeDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        answer!(self, request, resume_dump)
    }

    async fn cancel_dump(
        &self,
        request: Request<CancelDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        answer!(self, request, cancel_dump)
    }

    async fn retry_dump(
        &self,
        request: Request<RetryDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        answer!(self, request, retry_dump)
    }
}
