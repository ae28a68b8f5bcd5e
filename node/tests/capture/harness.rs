//! A gateway on a free port, a log in memory, and consumers that speak the generated client.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use pgcapture_actors::{
    cursors::{Cursor, CursorError, CursorStore, SubscriptionId},
    dump::{NoRanges, RangeSource},
    gateway::{
        GatewayHandle, GatewayLimits, ResolveError, Resolved, SourceResolver, SubscriptionStatus,
    },
    log::{
        ChangeLog, LogWriter,
        memory::{MemoryLog, MemoryLogOptions},
    },
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{
    batch::{Batch, BatchBuilder, EntryKind},
    checkpoint::{Checkpoint, Epoch},
    lsn::{Lsn, PgTime},
};
use pgcapture_node::rpc::capture::{CaptureService, configure};
use pgcapture_proto::pgcapture::{
    Begin, CaptureAck, CaptureInit, CaptureMessage, CaptureRequest, Change, Commit, Credit,
    Message, Truncate, capture_request, db_log_gateway_client::DbLogGatewayClient, message,
};
use prost::Message as _;
use prost_types::{ListValue, Struct, Value, value::Kind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Status, Streaming,
    transport::{Channel, Server},
};

/// Far beyond what anything here takes: reaching it is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test as the node runs: an actix system on a multi-thread runtime.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    };
    actix::System::with_tokio_rt(runtime).block_on(async {
        tokio::time::timeout(6 * PATIENCE, test)
            .await
            .expect("the test ends");
    });
}

/// Waits until `look` finds what it looks for; fails with the last thing seen.
pub(crate) async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) => assert!(
                tokio::time::Instant::now() < deadline,
                "{what} did not happen; last seen: {seen}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Cursors in memory, as durable as the value itself.
#[derive(Debug, Default)]
pub(crate) struct MemoryCursors {
    pub(crate) cursors: Mutex<BTreeMap<SubscriptionId, Cursor>>,
    pub(crate) is_failing: AtomicBool,
    /// Kept by another node.
    pub(crate) refused: Mutex<BTreeSet<SubscriptionId>>,
}

#[async_trait]
impl CursorStore for MemoryCursors {
    async fn load(&self, id: &SubscriptionId) -> Result<Option<Cursor>, CursorError> {
        Ok(self.cursors.lock().unwrap().get(id).cloned())
    }

    async fn save(
        &self,
        cursors: Vec<(SubscriptionId, Cursor)>,
    ) -> Result<Vec<SubscriptionId>, CursorError> {
        if self.is_failing.load(Ordering::SeqCst) {
            let reason = "the disk is full".to_owned();
            return Err(CursorError::of_store(reason));
        }
        let refused = self.refused.lock().unwrap();
        let is_refused = |(id, _): &(SubscriptionId, Cursor)| refused.contains(id);
        let (others, mine): (Vec<_>, Vec<_>) = cursors.into_iter().partition(is_refused);
        self.cursors.lock().unwrap().extend(mine);
        Ok(others.into_iter().map(|(id, _)| id).collect())
    }

    async fn remove(&self, id: &SubscriptionId) -> Result<(), CursorError> {
        self.cursors.lock().unwrap().remove(id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(SubscriptionId, Cursor)>, CursorError> {
        let cursors = self.cursors.lock().unwrap();
        Ok(cursors.clone().into_iter().collect())
    }
}

/// Knows the stream `shop`.
#[derive(Debug)]
pub(crate) struct Shop(pub(crate) Arc<MemoryLog>);

#[async_trait]
impl SourceResolver for Shop {
    async fn resolve(&self, uri: &str) -> Result<Resolved, ResolveError> {
        let (stream, consumer) = uri.split_once('/').unwrap_or((uri, uri));
        if stream != "shop" {
            return Err(ResolveError::Unknown {
                uri: uri.to_owned(),
                known: "shop".to_owned(),
            });
        }
        let log: Arc<MemoryLog> = Arc::clone(&self.0);
        Ok(Resolved {
            subscription: id(stream, consumer),
            log,
        })
    }
}

pub(crate) fn id(stream: &str, consumer: &str) -> SubscriptionId {
    SubscriptionId {
        stream: stream.to_owned(),
        consumer: consumer.to_owned(),
    }
}

/// A node's gateway with a stream `shop`.
pub(crate) struct Node {
    pub(crate) gateway: GatewayHandle,
    pub(crate) cursors: Arc<MemoryCursors>,
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) channel: Channel,
    writer: Box<dyn LogWriter>,
    _server: Task<()>,
}

pub(crate) async fn node() -> Node {
    node_with(GatewayLimits::default()).await
}

pub(crate) async fn node_with(limits: GatewayLimits) -> Node {
    let log = MemoryLog::new(MemoryLogOptions::default());
    start(log, Arc::default(), limits).await
}

/// A node with a source of ranges.
pub(crate) async fn node_with_ranges(ranges: Arc<dyn RangeSource>, limits: GatewayLimits) -> Node {
    let log = MemoryLog::new(MemoryLogOptions::default());
    start_with(log, Arc::default(), ranges, limits).await
}

async fn start(log: Arc<MemoryLog>, cursors: Arc<MemoryCursors>, limits: GatewayLimits) -> Node {
    start_with(log, cursors, Arc::new(NoRanges), limits).await
}

async fn start_with(
    log: Arc<MemoryLog>,
    cursors: Arc<MemoryCursors>,
    ranges: Arc<dyn RangeSource>,
    limits: GatewayLimits,
) -> Node {
    let resolver = Arc::new(Shop(Arc::clone(&log)));
    let store: Arc<MemoryCursors> = Arc::clone(&cursors);
    let gateway = GatewayHandle::start(resolver, store, ranges, limits);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = CaptureService::new(gateway.clone());
    serve(listener, service, gateway, (log, cursors)).await
}

/// Serves a gateway on `listener`.
pub(crate) async fn serve(
    listener: tokio::net::TcpListener,
    service: CaptureService,
    gateway: GatewayHandle,
    (log, cursors): (Arc<MemoryLog>, Arc<MemoryCursors>),
) -> Node {
    let address = listener.local_addr().unwrap();
    let serving = configure(Server::builder())
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    let server = spawn(TaskKind::Server, "grpc", async move {
        serving.await.unwrap();
    });
    let channel = Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    Node {
        gateway,
        cursors,
        writer: log.open_writer(Epoch(1)).await.unwrap(),
        log,
        channel,
        _server: server,
    }
}

impl Node {
    /// Another life of the node on the same log and the same store. The old one is not drained.
    pub(crate) async fn restart(self, limits: GatewayLimits) -> Self {
        let (log, cursors) = (Arc::clone(&self.log), Arc::clone(&self.cursors));
        drop(self);
        start(log, cursors, limits).await
    }

    /// Appends one transaction with a change of each table, committed `lsn` seconds after 2000.
    pub(crate) async fn publish(&mut self, lsn: u64, tables: &[&str]) {
        let changes = tables.iter().map(|table| {
            let (schema, table) = table.split_once('.').unwrap_or(("public", table));
            message::Type::Change(Change {
                schema: schema.to_owned(),
                table: table.to_owned(),
                ..Change::default()
            })
        });
        let changes: Vec<_> = changes.collect();
        self.publish_messages(lsn, changes).await;
    }

    /// Appends that nothing is missing up to `lsn`, as an idle source does.
    pub(crate) async fn progress(&mut self, lsn: u64) {
        let batch = Batch::progress(Lsn(lsn), PgTime(0));
        self.writer.append(batch).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    /// Appends one transaction of `count` changes with names of `size` bytes.
    pub(crate) async fn publish_large(&mut self, lsn: u64, count: usize, size: usize) {
        let table = "t".repeat(size);
        self.publish(lsn, &vec![table.as_str(); count]).await;
    }

    pub(crate) async fn publish_messages(&mut self, lsn: u64, messages: Vec<message::Type>) {
        let time = PgTime(lsn.cast_signed() * 1_000_000);
        let commit_time = time.0.cast_unsigned();
        let begin = message::Type::Begin(Begin {
            final_lsn: lsn,
            commit_time,
            ..Begin::default()
        });
        let commit = message::Type::Commit(Commit {
            commit_lsn: lsn,
            end_lsn: lsn + 1,
            commit_time,
        });
        let mut builder = BatchBuilder::default();
        let all = std::iter::once(begin)
            .chain(messages)
            .chain(std::iter::once(commit));
        for (seq, message) in all.enumerate() {
            let payload = Message {
                r#type: Some(message),
            }
            .encode_to_vec();
            let checkpoint = Checkpoint::new(Lsn(lsn), u32::try_from(seq).unwrap());
            let kind = EntryKind::from_tag(payload[0]).unwrap();
            builder.push(checkpoint, kind, &payload);
            if builder.is_full() {
                let batch = builder.finish(Lsn(lsn), time);
                self.writer.append(batch).await.unwrap();
            }
        }
        let batch = builder.finish(Lsn(lsn + 1), time);
        self.writer.append(batch).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    /// Opens a stream.
    pub(crate) async fn open(&self, uri: &str, parameters: &[(&str, Kind)]) -> Consumer {
        let consumer = self.open_bare().await;
        let fields = parameters.iter().map(|(name, kind)| {
            let kind = Some(kind.clone());
            ((*name).to_owned(), Value { kind })
        });
        let parameters = Struct {
            fields: fields.collect(),
        };
        consumer
            .send(capture_request::Type::Init(CaptureInit {
                uri: uri.to_owned(),
                parameters: Some(parameters),
            }))
            .await;
        consumer
    }

    /// Opens a stream without init.
    pub(crate) async fn open_bare(&self) -> Consumer {
        let (requests, outbound) = mpsc::channel(16);
        let mut client =
            DbLogGatewayClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        let stream = client
            .capture(ReceiverStream::new(outbound))
            .await
            .unwrap()
            .into_inner();
        Consumer { requests, stream }
    }

    /// Opens a stream and waits until it is part of its subscription.
    pub(crate) async fn join(&self, uri: &str, parameters: &[(&str, Kind)]) -> Consumer {
        let before = self.status(uri).await.map_or(0, |s| s.session_count);
        let consumer = self.open(uri, parameters).await;
        self.status_when(uri, |status| status.session_count > before)
            .await;
        consumer
    }

    pub(crate) async fn status(&self, uri: &str) -> Option<SubscriptionStatus> {
        let (stream, consumer) = uri.split_once('/').unwrap_or((uri, uri));
        let wanted = id(stream, consumer);
        let all = self.gateway.subscriptions().await.unwrap();
        all.into_iter().find(|status| status.id == wanted)
    }

    /// Waits for a status.
    pub(crate) async fn status_when(
        &self,
        uri: &str,
        is_wanted: impl Fn(&SubscriptionStatus) -> bool,
    ) -> SubscriptionStatus {
        eventually("the status", async || {
            let status = self.status(uri).await;
            status
                .clone()
                .filter(|status| is_wanted(status))
                .ok_or_else(|| format!("{status:?}"))
        })
        .await
    }
}

/// A consumer as the generated client makes it.
pub(crate) struct Consumer {
    pub(crate) requests: mpsc::Sender<CaptureRequest>,
    pub(crate) stream: Streaming<CaptureMessage>,
}

impl Consumer {
    pub(crate) async fn send(&self, request: capture_request::Type) {
        let request = CaptureRequest {
            r#type: Some(request),
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> CaptureMessage {
        tokio::time::timeout(PATIENCE, self.stream.message())
            .await
            .expect("a message comes")
            .expect("the stream goes on")
            .expect("the stream has not ended")
    }

    /// Receives `count` messages and returns their positions.
    pub(crate) async fn positions(&mut self, count: usize) -> Vec<(u64, u32)> {
        let mut positions = Vec::new();
        for _ in 0..count {
            positions.push(position(&self.next().await));
        }
        positions
    }

    pub(crate) async fn ack(&self, message: &CaptureMessage) {
        self.answer(message, "", false).await;
    }

    pub(crate) async fn ack_at(&self, (lsn, seq): (u64, u32)) {
        let checkpoint = pgcapture_proto::pgcapture::Checkpoint {
            lsn,
            seq,
            ..Default::default()
        };
        let message = CaptureMessage {
            checkpoint: Some(checkpoint),
            ..CaptureMessage::default()
        };
        self.ack(&message).await;
    }

    pub(crate) async fn answer(&self, message: &CaptureMessage, reason: &str, cumulative: bool) {
        self.send(capture_request::Type::Ack(CaptureAck {
            checkpoint: message.checkpoint.clone(),
            requeue_reason: reason.to_owned(),
            cumulative,
        }))
        .await;
    }

    pub(crate) async fn grant(&self, messages: u32) {
        self.send(capture_request::Type::Credit(Credit { messages }))
            .await;
    }

    /// Reads on until the stream ends and returns its status.
    pub(crate) async fn end(&mut self) -> Status {
        tokio::time::timeout(PATIENCE, async {
            loop {
                match self.stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                }
            }
        })
        .await
        .expect("the stream ends")
    }

    /// Says that nothing more will come and returns what the node says to that.
    pub(crate) async fn close(&mut self) -> Status {
        self.requests = mpsc::channel(1).0;
        self.end().await
    }

    /// Tells whether nothing has come for a while that is long for this gateway.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(50), self.stream.message())
            .await
            .is_err()
    }
}

pub(crate) fn position(message: &CaptureMessage) -> (u64, u32) {
    let checkpoint = message.checkpoint.as_ref().unwrap();
    (checkpoint.lsn, checkpoint.seq)
}

pub(crate) fn text(text: &str) -> Kind {
    Kind::StringValue(text.to_owned())
}

pub(crate) fn list(texts: &[&str]) -> Kind {
    let values = texts.iter().map(|entry| Value {
        kind: Some(text(entry)),
    });
    Kind::ListValue(ListValue {
        values: values.collect(),
    })
}

/// `Start` at the oldest entry.
pub(crate) fn earliest() -> (&'static str, Kind) {
    ("Start", text("earliest"))
}

pub(crate) fn truncate(table: &str) -> message::Type {
    message::Type::Truncate(Truncate {
        relations: vec![pgcapture_proto::pgcapture::Relation {
            schema: "public".to_owned(),
            table: table.to_owned(),
        }],
        ..Truncate::default()
    })
}
