//! The readers against a scripted gateway: what they are given is what they record, they come back
//! after a failure, send some rows back, and the scan ends where the marker's transaction ends.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use pgcapture_chaos_tests::history::{
    event::{Event, Item, Reader},
    reader::{Consumer, scan},
    recorder::{Recorder, read_history},
};
use pgcapture_proto::pgcapture::{
    Begin, CaptureMessage, CaptureRequest, Change, Checkpoint, Commit, Field, capture_request,
    db_log_gateway_server::{DbLogGateway, DbLogGatewayServer},
    field::Value,
};
use tokio::{net::TcpListener, sync::mpsc, sync::watch, task::JoinSet};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Rows of the scripted log: one transaction each, the last one is the marker.
const ROWS: u64 = 3_000;
const MARKER: i64 = 5;

/// Sessions that the gateway cuts after some messages.
const CUT_SESSIONS: usize = 3;
const CUT_AFTER: usize = 400;

/// A gateway that delivers what is not acknowledged and cuts its first sessions short.
#[derive(Clone, Default)]
struct Scripted {
    acked: Arc<Mutex<BTreeSet<u64>>>,
    sessions: Arc<Mutex<usize>>,
}

fn integer(name: &str, value: i64) -> Field {
    let value = Some(Value::Binary(value.to_be_bytes().to_vec().into()));
    let name = name.to_owned();
    Field {
        name,
        oid: 20,
        value,
    }
}

fn row(number: u64) -> CaptureMessage {
    let is_marker = number == ROWS;
    let (table, id) = if is_marker {
        ("marker", MARKER)
    } else {
        ("ledger", number as i64)
    };
    let change = Change {
        schema: "public".to_owned(),
        table: table.to_owned(),
        new: vec![integer("id", id)],
        ..Change::default()
    };
    CaptureMessage {
        checkpoint: Some(at(number, 1)),
        change: Some(change),
        ..CaptureMessage::default()
    }
}

fn at(number: u64, seq: u32) -> Checkpoint {
    let lsn = number * 100;
    Checkpoint {
        lsn,
        seq,
        ..Checkpoint::default()
    }
}

fn transaction(number: u64) -> [CaptureMessage; 3] {
    let begin = CaptureMessage {
        checkpoint: Some(at(number, 0)),
        begin: Some(Begin::default()),
        ..CaptureMessage::default()
    };
    let commit = CaptureMessage {
        checkpoint: Some(at(number, 2)),
        commit: Some(Commit::default()),
        ..CaptureMessage::default()
    };
    [begin, row(number), commit]
}

#[tonic::async_trait]
impl DbLogGateway for Scripted {
    type CaptureStream = Pin<Box<dyn Stream<Item = Result<CaptureMessage, Status>> + Send>>;

    async fn capture(
        &self,
        request: Request<Streaming<CaptureRequest>>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.r#type);
        let Some(capture_request::Type::Init(init)) = first else {
            return Err(Status::invalid_argument("no init"));
        };
        let parameters = init.parameters.unwrap_or_default();
        if parameters.fields.contains_key("Peek") {
            let whole = (1..=ROWS + 5).flat_map(transaction).map(Ok);
            return Ok(Response::new(Box::pin(tokio_stream::iter(whole))));
        }
        let (messages, stream) = mpsc::channel(16);
        let session = {
            let mut sessions = self.sessions.lock().unwrap();
            *sessions += 1;
            *sessions
        };
        // The session's task ends with its stream; the test's runtime ends what is left.
        let mut task = JoinSet::new();
        task.spawn(self.clone().serve(session, requests, messages));
        task.detach_all();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

impl Scripted {
    async fn serve(
        self,
        session: usize,
        mut requests: Streaming<CaptureRequest>,
        messages: mpsc::Sender<Result<CaptureMessage, Status>>,
    ) {
        let mut todo: Vec<u64> = {
            let acked = self.acked.lock().unwrap();
            let is_open = |number: &u64| !acked.contains(number);
            (1..=ROWS).filter(is_open).rev().collect()
        };
        let mut sent = 0;
        while sent < CUT_AFTER || session > CUT_SESSIONS {
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => todo.extend(self.answered(request)),
                    _ => return,
                },
                permit = messages.reserve(), if !todo.is_empty() => {
                    let number = todo.pop().unwrap();
                    permit.unwrap().send(Ok(row(number)));
                    sent += 1;
                }
            }
        }
        let cut = Status::unavailable("cut");
        // The consumer may have gone by itself.
        messages.send(Err(cut)).await.ok();
    }

    /// Takes an ack in; returns the row that is to be delivered again.
    fn answered(&self, request: CaptureRequest) -> Option<u64> {
        let Some(capture_request::Type::Ack(ack)) = request.r#type else {
            return None;
        };
        let number = ack.checkpoint.unwrap().lsn / 100;
        if ack.requeue_reason.is_empty() {
            self.acked.lock().unwrap().insert(number);
            return None;
        }
        Some(number)
    }
}

async fn start(gateway: Scripted, tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tasks.spawn(async move {
        let server = Server::builder().add_service(DbLogGatewayServer::new(gateway));
        let incoming = TcpListenerStream::new(listener);
        server.serve_with_incoming(incoming).await.unwrap();
    });
    endpoint
}

#[tokio::test]
async fn the_consumer_comes_back_until_it_has_everything() {
    let gateway = Scripted::default();
    let mut tasks = JoinSet::new();
    let endpoint = start(gateway.clone(), &mut tasks).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history");
    let recorder = Arc::new(Recorder::create(&path).unwrap());
    let consumer = Consumer::new(endpoint, "shop/checker", Arc::clone(&recorder));
    let mut progress = consumer.progress();
    let (stop, stopped) = watch::channel(false);
    let mut running = JoinSet::new();
    running.spawn(consumer.run(stopped));
    let has_all = progress.wait_for(|now| now.marker == MARKER && now.awaited == 0);
    let waited = tokio::time::timeout(Duration::from_secs(20), has_all).await;
    drop(waited.expect("it gets everything").unwrap());
    stop.send(true).unwrap();
    running.join_next().await.unwrap().unwrap().unwrap();
    recorder.finish().unwrap();

    let history = read_history(&path).unwrap();
    let mut got = BTreeSet::new();
    for entry in &history {
        if let Event::Delivered { place, .. } = &entry.event {
            got.insert(place.lsn);
        }
    }
    assert_eq!(got.len() as u64, ROWS);
    let count = |is: fn(&Event) -> bool| history.iter().filter(|e| is(&e.event)).count();
    assert_eq!(
        count(|e| matches!(e, Event::Opened { .. })),
        CUT_SESSIONS + 1
    );
    assert_eq!(
        count(|e| matches!(e, Event::Ended { .. })),
        CUT_SESSIONS + 1
    );
    assert!(count(|e| matches!(e, Event::Nacked(_))) > 0);
}

#[tokio::test]
async fn the_scan_ends_with_the_transaction_of_the_marker() {
    let mut tasks = JoinSet::new();
    let endpoint = start(Scripted::default(), &mut tasks).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history");
    let recorder = Recorder::create(&path).unwrap();
    let count = scan(&endpoint, "shop", &recorder, MARKER).await.unwrap();
    recorder.finish().unwrap();
    assert_eq!(count, ROWS * 3);
    let last = read_history(&path).unwrap().pop().unwrap().event;
    let Event::Delivered { place, item } = last else {
        panic!("{last:?}");
    };
    assert_eq!(
        (place.reader, place.checkpoint()),
        (Reader::Log, (ROWS * 100, 2))
    );
    assert!(matches!(item, Item::Commit { .. }), "{item:?}");
}

#[tokio::test]
async fn a_log_that_ends_before_the_marker_is_an_error() {
    let mut tasks = JoinSet::new();
    let endpoint = start(Scripted::default(), &mut tasks).await;
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::create(&dir.path().join("history")).unwrap();
    let error = scan(&endpoint, "shop", &recorder, 6).await.unwrap_err();
    assert!(format!("{error:#}").contains("ended the scan"), "{error:#}");
}
