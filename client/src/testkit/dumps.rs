//! The mock gateway's dumps: rows that exist, delivered as one range when they are asked for.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use pgcapture_proto::admin::v1::{
    CancelDumpRequest, Dump, DumpProgress, GetDumpRequest, ListDumpsRequest, ListDumpsResponse,
    PauseDumpRequest, ResumeDumpRequest, RetryDumpRequest, StartDumpRequest, WatchDumpRequest,
    dumps_server::Dumps,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{Shared, rows::TestRow};

/// A dump of the mock.
#[derive(Clone, Debug)]
pub(super) struct MockDump {
    pub(super) request: StartDumpRequest,
    /// Its range.
    pub(super) range: u32,
    pub(super) row_count: u64,
    pub(super) is_paused: bool,
    pub(super) is_cancelled: bool,
}

#[derive(Debug)]
pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
}

type Answer = Result<Response<Dump>, Status>;

impl Service {
    fn dump(&self, id: &str) -> Result<Dump, Status> {
        look(&self.shared, id)
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut MockDump)) -> Answer {
        {
            let mut log = self.shared.log();
            let index = index_of(id)?;
            let dump = log.started.get_mut(index).ok_or_else(unknown)?;
            change(dump);
        }
        self.shared.touch();
        self.dump(id).map(Response::new)
    }
}

fn unknown() -> Status {
    Status::not_found("there is no such dump")
}

fn index_of(id: &str) -> Result<usize, Status> {
    let number = id.strip_prefix("d-").and_then(|number| number.parse().ok());
    number
        .and_then(|number: usize| number.checked_sub(1))
        .ok_or_else(unknown)
}

fn look(shared: &Shared, id: &str) -> Result<Dump, Status> {
    let log = shared.log();
    let dump = log.started.get(index_of(id)?).ok_or_else(unknown)?;
    let is_finished = log.is_finished(&dump.request.uri, dump.range);
    let state = match dump {
        MockDump {
            is_cancelled: true, ..
        } => "cancelled",
        _ if is_finished => "finished",
        MockDump {
            is_paused: true, ..
        } => "paused",
        _ => "active",
    };
    let progress = DumpProgress {
        row_count: if is_finished { dump.row_count } else { 0 },
        row_estimate: dump.row_count,
        ratio: f64::from(u8::from(is_finished)),
        ..DumpProgress::default()
    };
    Ok(Dump {
        id: id.to_owned(),
        uri: dump.request.uri.clone(),
        state: state.to_owned(),
        tables: dump.request.tables.clone(),
        progress: Some(progress),
        ..Dump::default()
    })
}

/// Tells each state of a dump once.
struct Watcher {
    shared: Arc<Shared>,
    id: String,
    version: watch::Receiver<u64>,
    disconnects: watch::Receiver<u64>,
    last: Option<Dump>,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<Dump, Status>> {
        let has_ended = |dump: &Dump| matches!(&*dump.state, "finished" | "cancelled");
        if self.last.as_ref().is_some_and(has_ended) {
            return None;
        }
        loop {
            self.version.borrow_and_update();
            let dump = match look(&self.shared, &self.id) {
                Ok(dump) => dump,
                Err(status) => return Some(Err(status)),
            };
            if self.last.as_ref() != Some(&dump) {
                self.last = Some(dump.clone());
                return Some(Ok(dump));
            }
            tokio::select! {
                _ = self.version.changed() => {}
                _ = self.disconnects.changed() => {
                    return Some(Err(Status::unavailable("disconnected")));
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Dumps for Service {
    type WatchDumpStream = Pin<Box<dyn Stream<Item = Result<Dump, Status>> + Send>>;

    async fn start_dump(&self, request: Request<StartDumpRequest>) -> Answer {
        let request = request.into_inner();
        let id = {
            let mut log = self.shared.log();
            let is_wanted = |row: &&TestRow| {
                let name = format!("{}.{}", row.schema, row.table);
                request.tables.contains(&name)
            };
            let rows: Vec<_> = log.existing.iter().filter(is_wanted).cloned().collect();
            if rows.is_empty() {
                return Err(Status::not_found("no such table has existing rows"));
            }
            let row_count = rows.len() as u64;
            let range = log.dump(rows, Some(request.uri.clone()));
            log.started.push(MockDump {
                request,
                range,
                row_count,
                is_paused: false,
                is_cancelled: false,
            });
            format!("d-{}", log.started.len())
        };
        self.shared.touch();
        self.dump(&id).map(Response::new)
    }

    async fn list_dumps(
        &self,
        _: Request<ListDumpsRequest>,
    ) -> Result<Response<ListDumpsResponse>, Status> {
        let count = self.shared.log().started.len();
        let all = (1..=count)
            .rev()
            .map(|number| self.dump(&format!("d-{number}")));
        let dumps = all.collect::<Result<_, _>>()?;
        Ok(Response::new(ListDumpsResponse { dumps }))
    }

    async fn get_dump(&self, request: Request<GetDumpRequest>) -> Answer {
        self.dump(&request.into_inner().id).map(Response::new)
    }

    async fn watch_dump(
        &self,
        request: Request<WatchDumpRequest>,
    ) -> Result<Response<Self::WatchDumpStream>, Status> {
        let watcher = Watcher {
            shared: Arc::clone(&self.shared),
            id: request.into_inner().id,
            version: self.shared.version.subscribe(),
            disconnects: self.shared.disconnects.subscribe(),
            last: None,
        };
        let next =
            |mut watcher: Watcher| async { watcher.next().await.map(|item| (item, watcher)) };
        Ok(Response::new(Box::pin(stream::unfold(watcher, next))))
    }

    async fn pause_dump(&self, request: Request<PauseDumpRequest>) -> Answer {
        self.change(&request.into_inner().id, |dump| dump.is_paused = true)
    }

    async fn resume_dump(&self, request: Request<ResumeDumpRequest>) -> Answer {
        self.change(&request.into_inner().id, |dump| dump.is_paused = false)
    }

    async fn cancel_dump(&self, request: Request<CancelDumpRequest>) -> Answer {
        self.change(&request.into_inner().id, |dump| dump.is_cancelled = true)
    }

    async fn retry_dump(&self, request: Request<RetryDumpRequest>) -> Answer {
        self.dump(&request.into_inner().id).map(Response::new)
    }
}
