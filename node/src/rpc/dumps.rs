//! `pgcapture.admin.v1.Dumps`: existing rows on demand.
//!
//! Unwraps a request, calls the controller of dumps, fills an answer.

mod answer;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use pgcapture_actors::{
    consensus::Consensus,
    dump::{DumpControllerHandle, DumpError, DumpRequest, RangeRemedy, TableRequest},
};
use pgcapture_engine::{
    cluster::{DumpAction, DumpOptions, State},
    codes,
    dump::{DumpId, DumpStatus, PageRange},
};
use pgcapture_proto::admin::v1::{
    CancelDumpRequest, Dump, GetDumpRequest, ListDumpsRequest, ListDumpsResponse, PauseDumpRequest,
    ResumeDumpRequest, RetryDumpRequest, StartDumpRequest, WatchDumpRequest,
    dumps_server::Dumps as DumpsRpc,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status};

use super::{IntoStatus as _, order};
use crate::resolver::{subscription_of, uri_of};

/// Name of the service in health and reflection.
pub const SERVICE_NAME: &str = "pgcapture.admin.v1.Dumps";

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DumpsService {
    /// The agreed state.
    pub consensus: Arc<dyn Consensus>,
    /// Who hands out the work.
    pub dumps: DumpControllerHandle,
    /// Orders under way; awaited when the node stops.
    pub orders: TaskTracker,
    /// Ends the watches when the node stops.
    pub stop: CancellationToken,
}

impl DumpsService {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.consensus.state().borrow())
    }

    fn answer(&self, status: &DumpStatus) -> Dump {
        answer::dump(status, &self.state())
    }

    async fn get(&self, id: DumpId) -> Result<Response<Dump>, Status> {
        let status = self.dumps.status(id).await;
        let status = status.map_err(DumpError::into_status)?;
        Ok(Response::new(self.answer(&status)))
    }

    async fn act(&self, id: &str, action: DumpAction) -> Result<Response<Dump>, Status> {
        let id = parse(id)?;
        let dumps = self.dumps.clone();
        order(&self.orders, async move { dumps.act(id, action).await }).await?;
        self.get(id).await
    }
}

fn parse(id: &str) -> Result<DumpId, Status> {
    id.parse()
        .map_err(|error: pgcapture_engine::dump::ParseDumpIdError| {
            refuse(&codes::dump::BAD_REQUEST, error.to_string()).into_status()
        })
}

/// A request that cannot be used.
pub(super) fn refuse(explanation: &'static codes::Explanation, what: String) -> DumpError {
    DumpError {
        explanation,
        what,
        remedy: RangeRemedy::Fail,
    }
}

/// What is asked for, with defaults filled in.
fn request(wanted: StartDumpRequest, state: &State) -> Result<DumpRequest, DumpError> {
    let subscription = subscription_of(&wanted.uri);
    if state.source_of_stream(&subscription.stream).is_none() {
        let (uri, known) = (&wanted.uri, state.known_streams());
        let what = format!("unknown uri \"{uri}\"; known streams: {known}");
        return Err(refuse(&codes::dump::UNKNOWN_URI, what));
    }
    if wanted.tables.is_empty() {
        let what = "a dump needs at least one table".to_owned();
        return Err(refuse(&codes::dump::BAD_REQUEST, what));
    }
    let pages = match wanted.pages {
        Some(_) if wanted.tables.len() > 1 => {
            let what = "pages belong to one table, and more are named".to_owned();
            return Err(refuse(&codes::dump::BAD_REQUEST, what));
        }
        Some(pages) => vec![PageRange {
            first: pages.first,
            last: pages.last.unwrap_or(PageRange::OPEN),
        }],
        None => Vec::new(),
    };
    let tables = wanted.tables.into_iter().map(|pattern| TableRequest {
        pattern,
        pages: pages.clone(),
    });
    let cool_down = u64::try_from(wanted.cool_down_micros).unwrap_or(0);
    Ok(DumpRequest {
        uri: uri_of(&subscription),
        subscription,
        tables: tables.collect(),
        options: DumpOptions {
            parallel: match wanted.parallel {
                0 => DumpOptions::DEFAULT_PARALLEL,
                parallel => parallel,
            },
            rate_bytes_per_second: (wanted.bytes_per_second > 0).then_some(wanted.bytes_per_second),
            priority: wanted.priority,
            cool_down: Duration::from_micros(cool_down),
            ..DumpOptions::default()
        },
    })
}

#[tonic::async_trait]
impl DumpsRpc for DumpsService {
    type WatchDumpStream = Pin<Box<dyn Stream<Item = Result<Dump, Status>> + Send>>;

    async fn start_dump(
        &self,
        wanted: Request<StartDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        let request = request(wanted.into_inner(), &self.state());
        let request = request.map_err(DumpError::into_status)?;
        let dumps = self.dumps.clone();
        let created = order(&self.orders, async move { dumps.create(request).await });
        let id = created.await?;
        self.get(id).await
    }

    async fn list_dumps(
        &self,
        request: Request<ListDumpsRequest>,
    ) -> Result<Response<ListDumpsResponse>, Status> {
        let wanted = request.into_inner();
        let uri = (!wanted.uri.is_empty()).then(|| uri_of(&subscription_of(&wanted.uri)));
        let statuses = self.dumps.list().await.map_err(DumpError::into_status)?;
        let is_wanted = |status: &&DumpStatus| {
            let stream = subscription_of(&status.uri).stream;
            (wanted.stream.is_empty() || wanted.stream == stream)
                && uri.as_ref().is_none_or(|uri| *uri == status.uri)
                && !(wanted.only_open && answer::has_ended(status))
        };
        let state = self.state();
        let statuses = statuses.iter().filter(is_wanted);
        let mut dumps: Vec<_> = statuses.collect();
        dumps.sort_unstable_by_key(|status| std::cmp::Reverse(status.id));
        let dumps = dumps.into_iter().map(|status| answer::dump(status, &state));
        let dumps = dumps.collect();
        Ok(Response::new(ListDumpsResponse { dumps }))
    }

    async fn get_dump(&self, request: Request<GetDumpRequest>) -> Result<Response<Dump>, Status> {
        self.get(parse(&request.into_inner().id)?).await
    }

    async fn watch_dump(
        &self,
        request: Request<WatchDumpRequest>,
    ) -> Result<Response<Self::WatchDumpStream>, Status> {
        let id = parse(&request.into_inner().id)?;
        let watched = self.dumps.watch(id).await.map_err(DumpError::into_status)?;
        let watch = Watch {
            service: self.clone(),
            statuses: watched,
            is_begun: false,
        };
        let dumps = stream::unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            match watch.next().await {
                Ok(status) => {
                    let dump = watch.service.answer(&status);
                    let rest = (!answer::has_ended(&status)).then_some(watch);
                    Some((Ok(dump), rest))
                }
                Err(error) => Some((Err(error.into_status()), None)),
            }
        });
        Ok(Response::new(Box::pin(dumps)))
    }

    async fn pause_dump(
        &self,
        request: Request<PauseDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        self.act(&request.into_inner().id, DumpAction::Pause).await
    }

    async fn resume_dump(
        &self,
        request: Request<ResumeDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        self.act(&request.into_inner().id, DumpAction::Resume).await
    }

    async fn cancel_dump(
        &self,
        request: Request<CancelDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        self.act(&request.into_inner().id, DumpAction::Cancel).await
    }

    async fn retry_dump(
        &self,
        request: Request<RetryDumpRequest>,
    ) -> Result<Response<Dump>, Status> {
        self.act(&request.into_inner().id, DumpAction::Retry).await
    }
}

/// One watched dump.
#[derive(Debug)]
struct Watch {
    service: DumpsService,
    statuses: watch::Receiver<Arc<DumpStatus>>,
    is_begun: bool,
}

impl Watch {
    /// Returns the dump at once, then after each change.
    async fn next(&mut self) -> Result<Arc<DumpStatus>, DumpError> {
        let away = |what: &str| refuse(&codes::dump::CONTROLLER_AWAY, what.to_owned());
        if self.is_begun {
            let changed = tokio::select! {
                changed = self.statuses.changed() => changed,
                () = self.service.stop.cancelled() => return Err(away("the node is stopping")),
            };
            changed.map_err(|_| away("the dump was forgotten, or its controller built anew"))?;
        }
        self.is_begun = true;
        Ok(Arc::clone(&self.statuses.borrow_and_update()))
    }
}
