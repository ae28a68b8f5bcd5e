//! `pgcapture.peer.v1.PeerLog`: the logs of this node, for the other nodes of the cluster.
//!
//! Serves the log of a source while the agreed state says that this node runs it under the asked
//! epoch; the first change of that ends every stream with *not the owner*. A caller that knows of an
//! assignment before this node does is let wait. Streams of batches keep to the reader's credit and
//! copy nothing.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use pgcapture_actors::log::{ChangeLog, LogError, LogHealth, LogReader, Start, Tail};
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    cluster::{Route, State},
    lsn::Lsn,
};
use pgcapture_proto::peer::v1::{
    AskProgressAnswer, AskProgressRequest, LogName, LogNews, LogOpened, LogRefusal, OpenLog,
    ReadLogAnswer, ReadLogRequest, WatchLogRequest, log_news, log_refusal,
    peer_log_server::PeerLog, read_log_answer, read_log_request,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    logs::Logs,
    peer_log::{
        credit::Allowance,
        readers::{ReaderPlace, RemoteReaders},
        wire,
    },
};

/// Name of the service in health and reflection.
pub const SERVICE_NAME: &str = "pgcapture.peer.v1.PeerLog";

/// How long a caller that knows more than this node waits for it to learn the same, and for the log to
/// be opened: an entry of the common log takes milliseconds.
const KNOWLEDGE_MAX: Duration = Duration::from_secs(1);

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PeerLogService {
    /// Name of this node.
    pub node: String,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The agreed state.
    pub state: watch::Receiver<Arc<State>>,
    /// Its logs.
    pub logs: Arc<Logs>,
    /// Who reads them elsewhere.
    pub readers: RemoteReaders,
    /// Ends the streams when the node stops.
    pub stop: CancellationToken,
}

/// A log that this node has, and the right to serve it.
struct Served {
    log: Arc<dyn ChangeLog>,
    name: LogName,
    watched: Watched,
}

/// Tells when the right to serve a log ends.
struct Watched {
    node: String,
    state: watch::Receiver<Arc<State>>,
    logs: watch::Receiver<u64>,
    stop: CancellationToken,
}

impl PeerLogService {
    /// Finds the log that is asked for; waits a moment for what the caller knows already.
    async fn find(&self, name: Option<LogName>) -> Result<Served, LogRefusal> {
        let name = name.ok_or_else(|| malformed("no log is named"))?;
        if name.cluster != self.cluster {
            return Err(LogRefusal {
                kind: Some(log_refusal::Kind::OtherCluster(self.cluster.clone())),
            });
        }
        let mut watched = Watched {
            node: self.node.clone(),
            state: self.state.clone(),
            logs: self.logs.changes(),
            stop: self.stop.clone(),
        };
        let found = tokio::time::timeout(KNOWLEDGE_MAX, self.look(&name, &mut watched)).await;
        match found {
            Ok(Ok(log)) => Ok(Served { log, name, watched }),
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => match watched.lost(&name) {
                Some(refusal) => Err(refusal),
                None => Err(closed("its log is not open yet")),
            },
        }
    }

    async fn look(
        &self,
        name: &LogName,
        watched: &mut Watched,
    ) -> Result<Arc<dyn ChangeLog>, LogRefusal> {
        loop {
            watched.logs.borrow_and_update();
            let known = Arc::clone(&watched.state.borrow_and_update());
            let known = known.route(&name.source, &self.node).epoch();
            let is_behind = known.unwrap_or_default() < Epoch(name.epoch);
            if !is_behind {
                if let Some(refusal) = watched.lost(name) {
                    return Err(refusal);
                }
                if let Some(log) = self.logs.get(&name.source) {
                    return Ok(log);
                }
            }
            let lives = tokio::select! {
                changed = watched.state.changed() => changed.is_ok(),
                changed = watched.logs.changed() => changed.is_ok(),
                () = self.stop.cancelled() => false,
            };
            if !lives {
                return Err(closed("the node stops"));
            }
        }
    }
}

impl Watched {
    /// Returns the refusal when this node does not run the source under that epoch.
    fn lost(&self, name: &LogName) -> Option<LogRefusal> {
        lost(&self.state.borrow(), &self.node, name)
    }

    /// Waits until it does not.
    async fn until_lost(&mut self, name: &LogName) -> LogRefusal {
        let node = &self.node;
        let changed = self
            .state
            .wait_for(|state| lost(state, node, name).is_some());
        let refusal = tokio::select! {
            changed = changed => changed.ok().and_then(|state| lost(&state, node, name)),
            () = self.stop.cancelled() => None,
        };
        refusal.unwrap_or_else(|| closed("the node stops"))
    }
}

fn lost(state: &State, node: &str, name: &LogName) -> Option<LogRefusal> {
    let route = state.route(&name.source, node);
    if let Route::Here { epoch } = &route
        && epoch.0 == name.epoch
    {
        return None;
    }
    let owner = state.owner(&name.source).unwrap_or_default();
    Some(wire::not_owner(route.epoch().unwrap_or_default(), owner))
}

fn malformed(what: &str) -> LogRefusal {
    LogRefusal {
        kind: Some(log_refusal::Kind::Malformed(what.to_owned())),
    }
}

fn closed(reason: &str) -> LogRefusal {
    wire::refusal(&LogError::Closed {
        reason: reason.to_owned(),
    })
}

/// News of one log.
struct Watching {
    served: Served,
    tail: watch::Receiver<Tail>,
    health: watch::Receiver<LogHealth>,
    is_told: bool,
}

impl Watching {
    /// Waits for something new, at the first call for nothing.
    async fn next(mut self) -> Option<(LogNews, Option<Self>)> {
        let Served { name, watched, .. } = &mut self.served;
        if self.is_told {
            let refusal = tokio::select! {
                biased;
                refusal = watched.until_lost(name) => Some(refusal),
                changed = self.tail.changed() => changed.is_err().then(|| closed("it was closed")),
                changed = self.health.changed() => changed.is_err().then(|| closed("it was closed")),
            };
            if let Some(refusal) = refusal {
                let name = name.clone();
                return Some((news(name, log_news::Kind::Refusal(refusal)), None));
            }
        }
        self.is_told = true;
        // What comes after these two is news again.
        let tail = *self.tail.borrow_and_update();
        let health = self.health.borrow_and_update().clone();
        let mut extent = self.served.log.extent();
        extent.tail = tail;
        let state = wire::state(&extent, &health);
        let told = news(self.served.name.clone(), log_news::Kind::State(state));
        Some((told, Some(self)))
    }
}

fn news(name: LogName, kind: log_news::Kind) -> LogNews {
    LogNews {
        log: Some(name),
        kind: Some(kind),
    }
}

/// One reader and what its caller allows.
struct Reading {
    served: Served,
    reader: Box<dyn LogReader>,
    requests: Streaming<ReadLogRequest>,
    allowance: Allowance,
    place: ReaderPlace,
    /// To be answered once everything durable is sent.
    probe: Option<u64>,
}

/// What a step of reading comes to.
enum Sent {
    Answer(read_log_answer::Kind),
    Refusal(LogRefusal),
    /// The caller went away.
    End,
}

impl Reading {
    async fn next(mut self) -> Option<(ReadLogAnswer, Option<Self>)> {
        let sent = self.step().await;
        let log = Some(self.served.name.clone());
        match sent {
            Sent::Answer(kind) => {
                let kind = Some(kind);
                Some((ReadLogAnswer { log, kind }, Some(self)))
            }
            Sent::Refusal(refusal) => {
                let kind = Some(read_log_answer::Kind::Refusal(refusal));
                Some((ReadLogAnswer { log, kind }, None))
            }
            Sent::End => None,
        }
    }

    async fn step(&mut self) -> Sent {
        loop {
            let Served { name, watched, .. } = &mut self.served;
            let is_open = self.allowance.is_open();
            let (reader, probe) = (&mut self.reader, &mut self.probe);
            let read = async {
                match *probe {
                    Some(_) => reader.try_next().await,
                    None => reader.next().await.map(Some),
                }
            };
            let read = tokio::select! {
                biased;
                request = self.requests.message() => {
                    let request = request.ok().flatten();
                    match request.and_then(|request| request.kind) {
                        Some(read_log_request::Kind::Credit(bytes)) => {
                            self.allowance.grant(bytes);
                            self.place.credited(bytes);
                        }
                        Some(read_log_request::Kind::Probe(number)) => self.probe = Some(number),
                        Some(read_log_request::Kind::Open(_)) => {
                            return Sent::Refusal(malformed("opened twice"));
                        }
                        None => return Sent::End,
                    }
                    continue;
                }
                refusal = watched.until_lost(name) => return Sent::Refusal(refusal),
                read = read, if is_open => read,
            };
            match (read, self.probe) {
                (Ok(Some(batch)), _) => {
                    self.allowance.spend(batch.entries.len());
                    let last = batch.span.map_or(self.place.at(), |(_, last)| last);
                    self.place.sent(last, batch.entries.len());
                    return Sent::Answer(read_log_answer::Kind::Batch(wire::batch(batch)));
                }
                (Ok(None), Some(number)) => {
                    self.probe = None;
                    return Sent::Answer(read_log_answer::Kind::Reached(number));
                }
                (Ok(None), None) => {}
                (Err(error), _) => return Sent::Refusal(wire::refusal(&error)),
            }
        }
    }
}

/// Reads the opening request of a stream.
async fn opening(requests: &mut Streaming<ReadLogRequest>) -> Result<OpenLog, LogRefusal> {
    let first = requests.message().await;
    match first.ok().flatten().and_then(|request| request.kind) {
        Some(read_log_request::Kind::Open(open)) => Ok(open),
        Some(read_log_request::Kind::Credit(_) | read_log_request::Kind::Probe(_)) | None => {
            Err(malformed("the first request must open"))
        }
    }
}

impl PeerLogService {
    async fn open(&self, mut requests: Streaming<ReadLogRequest>) -> Result<Reading, LogRefusal> {
        let open = opening(&mut requests).await?;
        let start = open.start.as_ref();
        let start = start.ok_or_else(|| malformed("no position is named"))?;
        let start = wire::to_start(start);
        let served = self.find(open.log).await?;
        // Entered first: what it will read must not be let go meanwhile.
        let place = self
            .readers
            .enter(&served.name.source, has_all_to(&served, start));
        let reader = served.log.open_reader(start).await;
        let reader = reader.map_err(|error| wire::refusal(&error))?;
        Ok(Reading {
            served,
            reader,
            requests,
            allowance: Allowance::new(open.credit),
            place,
            probe: None,
        })
    }
}

/// Returns the entry up to which a reader that starts there wants nothing.
fn has_all_to(served: &Served, start: Start) -> Checkpoint {
    let before = |at: Checkpoint| Checkpoint::new(Lsn(at.lsn.0.saturating_sub(1)), 0);
    match start {
        Start::After(checkpoint) => checkpoint,
        Start::Latest => served.log.tail().borrow().last.unwrap_or_default(),
        Start::AtLsn(lsn) => before(Checkpoint::new(lsn, 0)),
        Start::Earliest | Start::AtTime(_) => {
            before(served.log.extent().earliest.unwrap_or_default())
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PeerLog for PeerLogService {
    type WatchLogStream = Answers<LogNews>;
    type ReadLogStream = Answers<ReadLogAnswer>;

    async fn watch_log(
        &self,
        request: Request<WatchLogRequest>,
    ) -> Result<Response<Self::WatchLogStream>, Status> {
        let name = request.into_inner().log;
        let watching = match self.find(name.clone()).await {
            Ok(served) => Watching {
                tail: served.log.tail(),
                health: served.log.health(),
                served,
                is_told: false,
            },
            Err(refusal) => {
                let refused = news(name.unwrap_or_default(), log_news::Kind::Refusal(refusal));
                return Ok(Response::new(Box::pin(stream::iter([Ok(refused)]))));
            }
        };
        let told = stream::unfold(Some(watching), |watching| async move {
            let (told, rest) = watching?.next().await?;
            Some((Ok(told), rest))
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn read_log(
        &self,
        request: Request<Streaming<ReadLogRequest>>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        let reading = match self.open(request.into_inner()).await {
            Ok(reading) => reading,
            Err(refusal) => {
                let refused = ReadLogAnswer {
                    log: None,
                    kind: Some(read_log_answer::Kind::Refusal(refusal)),
                };
                return Ok(Response::new(Box::pin(stream::iter([Ok(refused)]))));
            }
        };
        let opened = ReadLogAnswer {
            log: Some(reading.served.name.clone()),
            kind: Some(read_log_answer::Kind::Opened(LogOpened {})),
        };
        let batches = stream::unfold(Some(reading), |reading| async move {
            let (answer, rest) = reading?.next().await?;
            Some((Ok(answer), rest))
        });
        let answers = futures_util::StreamExt::chain(stream::iter([Ok(opened)]), batches);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn ask_progress(
        &self,
        request: Request<AskProgressRequest>,
    ) -> Result<Response<AskProgressAnswer>, Status> {
        let AskProgressRequest { log, lsn } = request.into_inner();
        let refusal = match self.find(log.clone()).await {
            Ok(served) => {
                served.log.ask_progress(Lsn(lsn));
                None
            }
            Err(refusal) => Some(refusal),
        };
        Ok(Response::new(AskProgressAnswer { log, refusal }))
    }
}
