//! One reader of a log on another node.
//!
//! A task takes in what comes at once, so that nothing of a slow reader stays in the connection that
//! all share; the window that the reader grants bounds what waits here.

use std::time::Duration;

use pgcapture_actors::{
    log::{LogError, LogReader, Start},
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::batch::Batch;
use pgcapture_proto::peer::v1::{
    OpenLog, ReadLogAnswer, ReadLogRequest, read_log_answer, read_log_request,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    Peer,
    credit::{MESSAGES_WAITING_MAX, Owed, READ_WINDOW_BYTES},
    wire,
};

/// Credits and probes on their way out. A full queue only delays them.
const REQUESTS_WAITING_MAX: usize = 8;

/// A reader to which nothing comes for this long tells that it has taken everything. Under load the
/// portions of its credit tell that often enough.
const QUIET: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct RemoteReader {
    peer: Peer,
    requests: mpsc::Sender<ReadLogRequest>,
    arrived: mpsc::Receiver<Result<Arrived, LogError>>,
    owed: Owed,
    /// Number of the last probe that was sent.
    probe: u64,
    _task: Task<()>,
}

#[derive(Debug)]
enum Arrived {
    Batch(Batch),
    /// Everything that was durable at this probe has come.
    Reached(u64),
}

impl RemoteReader {
    /// Opens a reader; returns once the position was found.
    pub(super) async fn open(mut peer: Peer, start: Start) -> Result<Self, LogError> {
        let (requests, outbound) = mpsc::channel(REQUESTS_WAITING_MAX);
        let open = read_log_request::Kind::Open(OpenLog {
            log: Some(peer.name.clone()),
            credit: READ_WINDOW_BYTES,
            start: Some(wire::start(start)),
        });
        let open = ReadLogRequest { kind: Some(open) };
        if requests.try_send(open).is_err() {
            return Err(peer.silent("a new queue is full"));
        }
        let answer = peer.client.read_log(ReceiverStream::new(outbound)).await;
        let mut answers = answer.map_err(|status| peer.away(&status))?.into_inner();
        match next(&peer, &mut answers).await? {
            read_log_answer::Kind::Opened(_) => {}
            read_log_answer::Kind::Refusal(refusal) => {
                return Err(wire::to_error(&peer.node, refusal));
            }
            read_log_answer::Kind::Batch(_) | read_log_answer::Kind::Reached(_) => {
                return Err(peer.silent("it began without opening"));
            }
        }
        let (sender, arrived) = mpsc::channel(MESSAGES_WAITING_MAX);
        let intake = take_in(peer.clone(), answers, sender);
        let task = spawn(TaskKind::PeerReader, &peer.name.source, intake);
        Ok(Self {
            peer,
            requests,
            arrived,
            owed: Owed::default(),
            probe: 0,
            _task: task,
        })
    }

    fn accept(&mut self, batch: Batch) -> Batch {
        self.owed.take(batch.entries.len());
        if let Some(portion) = self.owed.portion() {
            self.grant(portion);
        }
        batch
    }

    fn grant(&mut self, bytes: u64) {
        let credit = ReadLogRequest {
            kind: Some(read_log_request::Kind::Credit(bytes)),
        };
        if self.requests.try_send(credit).is_ok() {
            self.owed.granted(bytes);
        }
    }

    /// Waits for what comes. When nothing does for a while, all credit is given back: the other
    /// node learns that everything was taken.
    async fn arrived(&mut self) -> Result<Arrived, LogError> {
        if let Some(owed) = self.owed.all() {
            match timeout(QUIET, self.arrived.recv()).await {
                Ok(arrived) => return self.or_ended(arrived),
                Err(_) => self.grant(owed),
            }
        }
        let arrived = self.arrived.recv().await;
        self.or_ended(arrived)
    }

    fn or_ended(&self, arrived: Option<Result<Arrived, LogError>>) -> Result<Arrived, LogError> {
        arrived.unwrap_or_else(|| Err(self.peer.silent("the stream ended")))
    }
}

#[async_trait::async_trait]
impl LogReader for RemoteReader {
    async fn next(&mut self) -> Result<Batch, LogError> {
        loop {
            if let Arrived::Batch(batch) = self.arrived().await? {
                return Ok(self.accept(batch));
            }
        }
    }

    /// Asks the node when nothing waits here: what is durable there when the call begins comes before
    /// `None`.
    async fn try_next(&mut self) -> Result<Option<Batch>, LogError> {
        while let Ok(arrived) = self.arrived.try_recv() {
            if let Arrived::Batch(batch) = arrived? {
                return Ok(Some(self.accept(batch)));
            }
        }
        let Ok(permit) = self.requests.reserve().await else {
            // It ended; the queue says why.
            return self.next().await.map(Some);
        };
        self.probe += 1;
        permit.send(ReadLogRequest {
            kind: Some(read_log_request::Kind::Probe(self.probe)),
        });
        loop {
            match self.arrived().await? {
                Arrived::Batch(batch) => return Ok(Some(self.accept(batch))),
                Arrived::Reached(probe) if probe >= self.probe => return Ok(None),
                Arrived::Reached(_) => {}
            }
        }
    }
}

/// Takes in what comes until the stream or the reader ends: the body of a task.
async fn take_in(
    peer: Peer,
    mut answers: Streaming<ReadLogAnswer>,
    sender: mpsc::Sender<Result<Arrived, LogError>>,
) {
    loop {
        let arrived = match next(&peer, &mut answers).await {
            Ok(read_log_answer::Kind::Opened(_)) => continue,
            Ok(read_log_answer::Kind::Batch(batch)) => Ok(Arrived::Batch(wire::to_batch(batch))),
            Ok(read_log_answer::Kind::Reached(probe)) => Ok(Arrived::Reached(probe)),
            Ok(read_log_answer::Kind::Refusal(refusal)) => Err(wire::to_error(&peer.node, refusal)),
            Err(error) => Err(error),
        };
        let is_end = arrived.is_err();
        if sender.send(arrived).await.is_err() || is_end {
            return;
        }
    }
}

async fn next(
    peer: &Peer,
    answers: &mut Streaming<ReadLogAnswer>,
) -> Result<read_log_answer::Kind, LogError> {
    let answer = answers.message().await;
    let answer = answer.map_err(|status| peer.away(&status))?;
    let answer = answer.ok_or_else(|| peer.silent("it ended the stream"))?;
    let kind = answer.kind;
    let kind =
        kind.ok_or_else(|| peer.silent("its answer says nothing that this version knows"))?;
    if !matches!(kind, read_log_answer::Kind::Refusal(_)) {
        peer.check(answer.log.as_ref())?;
    }
    Ok(kind)
}
