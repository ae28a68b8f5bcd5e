//! `pgcapture.DBLogController`: dumps for existing gateways and schedulers.
//!
//! A scheduler hands in ranges of pages; a foreign gateway pulls them one by one, reads them from an
//! agent of its own, and says for each whether it is done. Both meet our own sessions at the same
//! controller: a range is handed out once, to whoever asks first.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use pgcapture_actors::{
    consensus::Consensus,
    cursors::SubscriptionId,
    dump::{
        Delivered, DumpControllerHandle, DumpError, GivenUp, RangeSource, RangeTicket,
        ScheduledRange,
    },
};
use pgcapture_engine::{
    cluster::State,
    codes,
    dump::{Extent, PageRange, TableName, cut},
};
use pgcapture_proto::{
    pgcapture::{
        DumpInfoRequest, DumpInfoResponse, ScheduleRequest, ScheduleResponse,
        SetScheduleCoolDownRequest, SetScheduleCoolDownResponse, StopScheduleRequest,
        StopScheduleResponse, db_log_controller_server::DbLogController,
    },
    status::status,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::{IntoStatus as _, dumps::refuse, order};
use crate::resolver::{subscription_of, uri_of};

/// Name of the service in health and reflection.
pub const SERVICE_NAME: &str = "pgcapture.DBLogController";

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DumpControlService {
    /// The agreed state.
    pub consensus: Arc<dyn Consensus>,
    /// Who takes schedules.
    pub dumps: DumpControllerHandle,
    /// Who hands out ranges.
    pub ranges: Arc<dyn RangeSource>,
    /// Orders and pulls under way; awaited when the node stops.
    pub orders: TaskTracker,
    /// Ends the pulls when the node stops.
    pub stop: CancellationToken,
}

impl DumpControlService {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.consensus.state().borrow())
    }
}

/// The subscription of a uri whose stream exists.
fn known(uri: &str, state: &State) -> Result<SubscriptionId, DumpError> {
    let subscription = subscription_of(uri);
    if state.source_of_stream(&subscription.stream).is_some() {
        return Ok(subscription);
    }
    let known = state.known_streams();
    let what = format!("unknown uri \"{uri}\"; known streams: {known}");
    Err(refuse(&codes::dump::UNKNOWN_URI, what))
}

fn scheduled(info: DumpInfoResponse) -> Result<ScheduledRange, DumpError> {
    let pages = PageRange {
        first: info.page_begin,
        last: info.page_end,
    };
    let table = TableName {
        schema: info.schema,
        table: info.table,
    };
    if table.schema.is_empty() || table.table.is_empty() {
        let what = format!("\"{table}\" is no name of a table; give schema and table");
        return Err(refuse(&codes::dump::BAD_REQUEST, what));
    }
    if pages.first > pages.last {
        let what = format!(
            "pages {}-{} of {table} run backwards",
            pages.first, pages.last
        );
        return Err(refuse(&codes::dump::PAGES_BACKWARDS, what));
    }
    Ok(ScheduledRange { table, pages })
}

#[tonic::async_trait]
impl DbLogController for DumpControlService {
    type PullDumpInfoStream = Pin<Box<dyn Stream<Item = Result<DumpInfoResponse, Status>> + Send>>;

    /// Hands out the ranges of one uri, one at a time: the first request names the uri, each later
    /// one ends the range that was sent before it. An empty reason means done, any other one means
    /// again, after a pause. A stream that ends gives its range back.
    ///
    /// A range to the end of the table ends at a page well behind it: existing gateways count pages in
    /// signed numbers, and some ask for each of them. The final pass of a dump over rows that have
    /// moved has no form here and is handed out as the whole table. How many rows a range had is not
    /// told on this stream, so that they are not counted.
    async fn pull_dump_info(
        &self,
        request: Request<Streaming<DumpInfoRequest>>,
    ) -> Result<Response<Self::PullDumpInfoStream>, Status> {
        let (answers, stream) = mpsc::channel(1);
        let pull = Pull {
            service: self.clone(),
            requests: request.into_inner(),
            answers,
        };
        self.orders.spawn(pull.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    /// Starts a dump of ranges that are handed out exactly as they are given. Nothing is to be done
    /// for none of them.
    async fn schedule(
        &self,
        request: Request<ScheduleRequest>,
    ) -> Result<Response<ScheduleResponse>, Status> {
        let ScheduleRequest { uri, dumps: infos } = request.into_inner();
        let subscription = known(&uri, &self.state()).map_err(DumpError::into_status)?;
        let ranges = infos.into_iter().map(scheduled);
        let ranges: Vec<_> = ranges
            .collect::<Result<_, _>>()
            .map_err(DumpError::into_status)?;
        let (uri, count) = (uri_of(&subscription), ranges.len());
        if count > 0 {
            let (dumps, to) = (self.dumps.clone(), uri.clone());
            let scheduled = async move { dumps.schedule(&to, &subscription, &ranges).await };
            let id = order(&self.orders, scheduled).await?;
            tracing::info!(consumer = uri, dump = %id, ranges = count, "a schedule was taken");
        }
        Ok(Response::new(ScheduleResponse {}))
    }

    /// Hands out no more ranges of a uri; those that run end. Nothing is to be done for a uri
    /// without work.
    async fn stop_schedule(
        &self,
        request: Request<StopScheduleRequest>,
    ) -> Result<Response<StopScheduleResponse>, Status> {
        let uri = request.into_inner().uri;
        let subscription = known(&uri, &self.state()).map_err(DumpError::into_status)?;
        let (dumps, uri) = (self.dumps.clone(), uri_of(&subscription));
        let stopped = order(&self.orders, async move { dumps.stop(&subscription).await });
        let count = stopped.await?;
        tracing::info!(consumer = uri, dumps = count, "a schedule was stopped");
        Ok(Response::new(StopScheduleResponse {}))
    }

    /// Sets the pause after each range for all dumps of a uri, those to come included.
    async fn set_schedule_cool_down(
        &self,
        request: Request<SetScheduleCoolDownRequest>,
    ) -> Result<Response<SetScheduleCoolDownResponse>, Status> {
        let request = request.into_inner();
        let subscription = known(&request.uri, &self.state()).map_err(DumpError::into_status)?;
        let cool_down = Duration::try_from(request.duration.unwrap_or_default());
        let cool_down = cool_down.map_err(|_| {
            let what = "a cool-down cannot be negative".to_owned();
            refuse(&codes::dump::BAD_REQUEST, what).into_status()
        })?;
        let (dumps, uri) = (self.dumps.clone(), uri_of(&subscription));
        let set = async move { dumps.set_cool_down(&subscription, cool_down).await };
        order(&self.orders, set).await?;
        tracing::info!(consumer = uri, ?cool_down, "a cool-down was set");
        Ok(Response::new(SetScheduleCoolDownResponse {}))
    }
}

/// One foreign gateway that pulls.
struct Pull {
    service: DumpControlService,
    requests: Streaming<DumpInfoRequest>,
    answers: mpsc::Sender<Result<DumpInfoResponse, Status>>,
}

/// Why a pull ends.
enum PullEnd {
    /// The other side has gone.
    Gone,
    /// It is told why.
    Told(Status),
}

impl From<DumpError> for PullEnd {
    fn from(error: DumpError) -> Self {
        Self::Told(error.into_status())
    }
}

impl Pull {
    async fn run(mut self) {
        let answers = self.answers.clone();
        if let Err(PullEnd::Told(status)) = self.serve().await {
            // Whoever has gone needs no reason.
            drop(answers.send(Err(status)).await);
        }
    }

    /// Goes on until an end.
    async fn serve(&mut self) -> Result<(), PullEnd> {
        let first = self.request().await?;
        let id = known(&first.uri, &self.service.state())?;
        tracing::info!(consumer = first.uri, "a foreign gateway pulls ranges");
        loop {
            let ticket = self.ticket(&id).await?;
            self.serve_range(ticket).await?;
        }
    }

    /// Waits for the next request.
    async fn request(&mut self) -> Result<DumpInfoRequest, PullEnd> {
        tokio::select! {
            request = self.requests.message() => match request {
                Ok(Some(request)) => Ok(request),
                Ok(None) | Err(_) => Err(PullEnd::Gone),
            },
            () = self.service.stop.cancelled() => Err(stopping()),
        }
    }

    /// Waits for a range that is due.
    async fn ticket(&mut self, id: &SubscriptionId) -> Result<RangeTicket, PullEnd> {
        let ranges = Arc::clone(&self.service.ranges);
        let mut changes = ranges.changes();
        loop {
            changes.mark_unchanged();
            if let Some(ticket) = ranges.pull(id).await? {
                return Ok(ticket);
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Err(stopping()) },
                request = self.request() => {
                    let DumpInfoRequest { .. } = request?;
                    let what = "a request ends the range before it, and there is none".to_owned();
                    return Err(refuse(&codes::dump::BAD_REQUEST, what).into());
                }
            }
        }
    }

    /// Sends a range and waits for its end. The range is given back whatever happens.
    async fn serve_range(&mut self, ticket: RangeTicket) -> Result<(), PullEnd> {
        let ranges = Arc::clone(&self.service.ranges);
        let info = info(&ticket, &self.service.state());
        let sent = self.answers.send(Ok(info)).await;
        let answer = match sent {
            Ok(()) => self.request().await,
            Err(_) => Err(PullEnd::Gone),
        };
        match answer {
            Ok(DumpInfoRequest { requeue_reason, .. }) if requeue_reason.is_empty() => {
                // What could not be recorded is handed out again.
                ranges.finish(ticket, Delivered::default()).await?;
                Ok(())
            }
            Ok(DumpInfoRequest { requeue_reason, .. }) => {
                ranges
                    .give_up(ticket, GivenUp::Requeued(requeue_reason))
                    .await;
                Ok(())
            }
            Err(end) => {
                ranges.give_up(ticket, GivenUp::Disconnected).await;
                Err(end)
            }
        }
    }
}

fn stopping() -> PullEnd {
    let draining = &codes::gateway::DRAINING;
    PullEnd::Told(status(draining.code, draining.title, draining.next))
}

/// Writes a range as gateways know it.
fn info(ticket: &RangeTicket, state: &State) -> DumpInfoResponse {
    let pages = match ticket.extent {
        Extent::Pages(pages) => pages,
        Extent::Sweep { .. } => PageRange::ALL,
    };
    let dump = state.dumps.get(&ticket.dump);
    let table = dump.and_then(|dump| dump.tables.iter().find(|table| table.heap == ticket.heap));
    // A dump that was forgotten meanwhile needs no range.
    let pages = table.map_or(pages, |table| cut::with_end(table, pages));
    DumpInfoResponse {
        schema: ticket.heap.name.schema.clone(),
        table: ticket.heap.name.table.clone(),
        page_begin: pages.first,
        page_end: pages.last,
    }
}
