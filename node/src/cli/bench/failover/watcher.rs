//! The consumer that lives through failures: connects to the node that it is told, again and again,
//! acknowledges everything, and tells when the first change after a signal arrived.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use pgcapture_actors::supervise::{Task, TaskKind, spawn};
use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureInit, CaptureMessage, CaptureRequest, capture_request,
    db_log_gateway_client::DbLogGatewayClient,
};
use prost_types::{Struct, Value, value::Kind};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;

use super::ledger::{Ledger, Row};
use crate::{cli::bench::consumer::connect, sources::unix_now_micros};

/// Pause before a connection is made anew; small against what is measured.
const RECONNECT_PAUSE: Duration = Duration::from_millis(5);

/// Changes in a message: latency counts here, not the rate.
const BATCH_CHANGES: f64 = 64.0;

/// Acknowledgements on their way.
const ACKS_MAX: usize = 256;

/// A node that says nothing for this long is asked again over a new connection: one that is frozen
/// or cut off closes nothing. The writer writes far more often.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The consumer.
#[derive(Debug)]
pub(super) struct Watcher {
    node: watch::Sender<SocketAddr>,
    shared: Arc<Shared>,
    count: watch::Receiver<usize>,
    task: Task<anyhow::Error>,
}

#[derive(Debug, Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    /// Who waits for the first change that was written after a moment.
    awaited: Mutex<Option<(i64, oneshot::Sender<Instant>)>>,
    pauses: Mutex<Pauses>,
}

/// Time between changes, since somebody asked.
#[derive(Debug, Default)]
struct Pauses {
    last: Option<Instant>,
    longest: Duration,
}

impl Shared {
    /// A panic under a lock fails the measurement anyway.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn awaited(&self) -> MutexGuard<'_, Option<(i64, oneshot::Sender<Instant>)>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pauses(&self) -> MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Begins to consume `uri` from a node.
    pub(super) fn start(uri: &'static str, node: SocketAddr) -> Self {
        let (node, at) = watch::channel(node);
        let shared = Arc::<Shared>::default();
        let (counted, count) = watch::channel(0);
        let consumer = Consumer {
            uri,
            shared: Arc::clone(&shared),
            counted,
        };
        let task = spawn(TaskKind::Tool, "watcher", consumer.run(at));
        Self {
            node,
            shared,
            count,
            task,
        }
    }

    /// Consumes from this node from now on.
    pub(super) fn move_to(&self, node: SocketAddr) {
        self.node.send_if_modified(|now| {
            let is_new = *now != node;
            *now = node;
            is_new
        });
    }

    /// Begins to wait for the first change that is written from now on.
    pub(super) fn next_change(&self) -> oneshot::Receiver<Instant> {
        let (told, next) = oneshot::channel();
        *self.shared.awaited() = Some((unix_now_micros(), told));
        next
    }

    /// Begins to look for the longest pause.
    pub(super) fn forget_pauses(&self) {
        *self.shared.pauses() = Pauses::default();
    }

    /// Returns the longest time between two changes since then.
    pub(super) fn longest_pause(&self) -> Duration {
        self.shared.pauses().longest
    }

    /// Waits until so many rows have come.
    ///
    /// # Errors
    ///
    /// What ended the consumer.
    pub(super) async fn wait_for(&mut self, rows: usize) -> anyhow::Result<()> {
        tokio::select! {
            counted = self.count.wait_for(|count| *count >= rows) => {
                counted.map(drop).context("the consumer ended")
            }
            ended = self.task.join() => Err(ended?),
        }
    }

    /// Waits until the consumer ends, which it does only because something is wrong.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        self.task.join().await.unwrap_or_else(anyhow::Error::from)
    }

    /// Checks what came against the table; returns how many changes came again.
    pub(super) fn check(&self, table: &[i64]) -> anyhow::Result<u64> {
        let ledger = self.shared.ledger();
        ledger.check(table)?;
        Ok(ledger.redelivered)
    }
}

#[derive(Debug)]
struct Consumer {
    uri: &'static str,
    shared: Arc<Shared>,
    counted: watch::Sender<usize>,
}

impl Consumer {
    /// Consumes until something came twice: the body of an owned task.
    async fn run(self, mut node: watch::Receiver<SocketAddr>) -> anyhow::Error {
        loop {
            let address = *node.borrow_and_update();
            tokio::select! {
                ended = self.consume(address) => {
                    // Only a broken promise ends the measurement; a broken stream is expected.
                    match ended {
                        Ok(()) => (),
                        Err(Ended::Wrong(error)) => return error,
                        Err(Ended::Lost(error)) => tracing::debug!(%error, "connecting again"),
                    }
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
                changed = node.changed() => if changed.is_err() {
                    return anyhow::anyhow!("the measurement is over");
                },
            }
        }
    }

    async fn consume(&self, address: SocketAddr) -> Result<(), Ended> {
        let connected = tokio::time::timeout(SILENCE_MAX, connect(&address.to_string())).await;
        let channel = connected.map_err(Ended::lost)?.map_err(Ended::Lost)?;
        let mut client = DbLogGatewayClient::new(channel);
        let (requests, outbound) = mpsc::channel(ACKS_MAX);
        let first = capture_request::Type::Init(init(self.uri));
        requests.send(request(first)).await.map_err(Ended::lost)?;
        let opened = client.capture(ReceiverStream::new(outbound));
        let opened = tokio::time::timeout(SILENCE_MAX, opened).await;
        let opened = opened.map_err(Ended::lost)?.map_err(Ended::lost)?;
        let mut stream = opened.into_inner();
        loop {
            let message = tokio::time::timeout(SILENCE_MAX, stream.message()).await;
            let message = message.map_err(Ended::lost)?.map_err(Ended::lost)?;
            let Some(message) = message else {
                return Ok(());
            };
            if let Some(ack) = self.take(message).map_err(Ended::Wrong)? {
                let ack = request(capture_request::Type::Ack(ack));
                requests.send(ack).await.map_err(Ended::lost)?;
            }
        }
    }

    /// Records a message and returns its acknowledgement.
    fn take(&self, message: CaptureMessage) -> anyhow::Result<Option<CaptureAck>> {
        let now = Instant::now();
        let mut pauses = self.shared.pauses();
        let pause = pauses.last.replace(now).map(|last| now - last);
        pauses.longest = pauses.longest.max(pause.unwrap_or_default());
        drop(pauses);
        let is_batch = message.batch.is_some();
        let messages = match message.batch {
            Some(batch) => batch.messages,
            None => vec![message],
        };
        let mut last = None;
        let mut ledger = self.shared.ledger();
        for message in messages {
            let checkpoint = message.checkpoint.context("a message without position")?;
            let change = message.change.context("a message without a change")?;
            let row = Row::of(&change)?;
            ledger.record(row.id, (checkpoint.lsn, checkpoint.seq))?;
            self.tell(row, now);
            last = Some(checkpoint);
        }
        let count = ledger.count();
        drop(ledger);
        self.counted.send_replace(count);
        Ok(last.map(|checkpoint| CaptureAck {
            checkpoint: Some(checkpoint),
            cumulative: is_batch,
            ..CaptureAck::default()
        }))
    }

    /// Tells whoever waits for a change as new as this one.
    fn tell(&self, row: Row, now: Instant) {
        let mut awaited = self.shared.awaited();
        if awaited
            .as_ref()
            .is_some_and(|(since, _)| row.written > *since)
            && let Some((_, told)) = awaited.take()
            && told.send(now).is_err()
        {
            tracing::debug!("nobody waits any more");
        }
    }
}

/// Why a stream ended.
#[derive(Debug)]
enum Ended {
    /// The node is gone: connect again.
    Lost(anyhow::Error),
    /// What came is wrong.
    Wrong(anyhow::Error),
}

impl Ended {
    fn lost(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Lost(error.into())
    }
}

fn init(uri: &str) -> CaptureInit {
    let kind = |kind| Value { kind: Some(kind) };
    let fields = [
        ("Start", kind(Kind::StringValue("earliest".to_owned()))),
        ("BatchSize", kind(Kind::NumberValue(BATCH_CHANGES))),
    ];
    CaptureInit {
        uri: uri.to_owned(),
        parameters: Some(Struct {
            fields: fields.map(|(name, value)| (name.to_owned(), value)).into(),
        }),
    }
}

const fn request(of: capture_request::Type) -> CaptureRequest {
    CaptureRequest { r#type: Some(of) }
}
