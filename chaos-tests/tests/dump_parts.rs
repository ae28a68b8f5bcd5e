//! The parts of the scenario without the product: the table and its writers against a real
//! PostgreSQL with a standby, and the consumer against a scripted gateway.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use pgcapture_chaos_tests::{
    dump::{
        consumer::{Consumer, Manners, Orders},
        copy::Copy,
        table::{self, COLUMNS, Row},
        writers::{Plan, Writers},
    },
    harness::{
        postgres::Postgres,
        sql::Sql,
        wait::{Look, until},
    },
};
use pgcapture_proto::pgcapture::{
    CaptureMessage, CaptureRequest, Change, Checkpoint, Field, capture_request,
    change::Operation,
    db_log_gateway_server::{DbLogGateway, DbLogGatewayServer},
    field::Value,
};
use tokio::{net::TcpListener, sync::mpsc, sync::watch, task::JoinSet};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

const PATIENCE: Duration = Duration::from_secs(60);

async fn all_rows(sql: &Sql) -> BTreeMap<i64, Row> {
    let mut rows = BTreeMap::new();
    let count = table::read(sql, |row| {
        rows.insert(row.id, row);
    });
    assert_eq!(count.await.unwrap(), rows.len() as u64);
    rows
}

#[tokio::test]
async fn writers_rewrite_the_table_and_a_standby_follows() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let postgres = Postgres::start(None, dir.path()).await.unwrap();
    let sql = Sql::connect(&postgres.dsn()).await.unwrap();
    sql.client.batch_execute(table::CREATE).await.unwrap();
    table::fill(&sql, 4_000).await.unwrap();
    let mut standby = postgres.start_standby(dir.path()).await.unwrap();
    let before = all_rows(&sql).await;
    assert_eq!(before.len(), 3_800);

    let mut writers = Writers::start(&Plan {
        dsn: postgres.dsn(),
        seed: 5,
        writers: 3,
        rows_per_second: 5_000,
        keys: 4_000,
    });
    let counted = "SELECT n_tup_upd - n_tup_hot_upd > 200 AND n_tup_hot_upd > 200
        AND n_tup_del > 50 AND n_tup_ins > 4050
        FROM pg_stat_user_tables WHERE relname = 'dumped'";
    let busy = until("all kinds of writes", PATIENCE, async || {
        let row = sql.client.query_one(counted, &[]).await.unwrap();
        if row.get(0) {
            Look::Ready(())
        } else {
            Look::NotYet(())
        }
    });
    tokio::select! {
        busy = busy => busy.unwrap(),
        error = writers.failed() => panic!("{error:#}"),
    }
    standby.kill().await.unwrap();
    standby.start_again().await.unwrap();
    let written = writers.stop().await.unwrap();
    assert!(written.rows > 500 && written.keys > 4_000, "{written:?}");

    let after = all_rows(&sql).await;
    assert_ne!(before, after);
    let follower = Sql::connect(&standby.dsn()).await.unwrap();
    let same = until("the standby to have it all", PATIENCE, async || {
        if all_rows(&follower).await == after {
            Look::Ready(())
        } else {
            Look::NotYet(())
        }
    });
    same.await.unwrap();
}

/// Number of the range, data of the checkpoint, reason to deliver again.
type Answer = (u32, Vec<u8>, String);

/// Delivers a range of two rows and a marker, until the last row was acknowledged; a row that is
/// sent back and a new session bring the range again.
#[derive(Clone, Default)]
struct Scripted {
    answers: Arc<Mutex<Vec<Answer>>>,
    sessions: Arc<Mutex<u32>>,
}

fn field(name: &str, oid: u32, value: i64) -> Field {
    let bytes = match oid {
        23 => (value as i32).to_be_bytes().to_vec(),
        _ => value.to_be_bytes().to_vec(),
    };
    Field {
        name: name.to_owned(),
        oid,
        value: Some(Value::Binary(bytes.into())),
    }
}

fn existing(id: i64, is_last: bool) -> CaptureMessage {
    let mut new: Vec<Field> = COLUMNS
        .iter()
        .map(|column| Field {
            name: column.name.to_owned(),
            oid: column.oid,
            value: None,
        })
        .collect();
    let known = [
        field("id", 20, id),
        field("version", 20, 0),
        field("n", 23, 1),
    ];
    new.splice(..known.len(), known);
    let change = Change {
        op: Operation::Update.into(),
        schema: "public".to_owned(),
        table: "dumped".to_owned(),
        new,
        old: Vec::new(),
    };
    let data = if is_last { vec![1] } else { vec![] };
    CaptureMessage {
        checkpoint: Some(Checkpoint {
            lsn: 0,
            seq: 9,
            data: data.into(),
        }),
        change: Some(change),
        ..CaptureMessage::default()
    }
}

fn marker(id: i64) -> CaptureMessage {
    let change = Change {
        schema: "public".to_owned(),
        table: "marker".to_owned(),
        new: vec![field("id", 20, id)],
        ..Change::default()
    };
    CaptureMessage {
        checkpoint: Some(Checkpoint {
            lsn: 100,
            seq: 1,
            ..Checkpoint::default()
        }),
        change: Some(change),
        ..CaptureMessage::default()
    }
}

#[tonic::async_trait]
impl DbLogGateway for Scripted {
    type CaptureStream = Pin<Box<dyn Stream<Item = Result<CaptureMessage, Status>> + Send>>;

    async fn capture(
        &self,
        request: Request<Streaming<CaptureRequest>>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let mut requests = request.into_inner();
        *self.sessions.lock().unwrap() += 1;
        let (messages, stream) = mpsc::channel(64);
        let answers = Arc::clone(&self.answers);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let range = || [existing(1, false), existing(2, true)];
            for message in range().into_iter().chain([marker(5)]) {
                messages.send(Ok(message)).await.ok();
            }
            while let Ok(Some(request)) = requests.message().await {
                let Some(capture_request::Type::Ack(ack)) = request.r#type else {
                    continue;
                };
                let checkpoint = ack.checkpoint.unwrap();
                let is_sent_back = !ack.requeue_reason.is_empty();
                let answer = (checkpoint.seq, checkpoint.data.to_vec(), ack.requeue_reason);
                answers.lock().unwrap().push(answer);
                for message in range().into_iter().filter(|_| is_sent_back) {
                    messages.send(Ok(message)).await.ok();
                }
            }
        });
        task.detach_all();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

#[tokio::test]
async fn the_consumer_echoes_sends_back_and_comes_back_with_its_copy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let gateway = Scripted::default();
    let server = Server::builder()
        .add_service(DbLogGatewayServer::new(gateway.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { server.await.unwrap() });
    let orders = watch::Sender::new(Orders::default());
    let manners = Manners {
        endpoint,
        uri: "shop/copy".to_owned(),
        seed: 1,
        sent_back_max: 1,
        sent_back_one_in: 1,
        batch: 0,
        rows_per_second: 0,
    };
    let consumer = Consumer::new(manners, orders.subscribe(), Copy::default());
    let mut progress = consumer.progress();
    let mut task = JoinSet::new();
    task.spawn(consumer.run());
    let wait = tokio::time::timeout(
        PATIENCE,
        progress.wait_for(|now| now.marker == 5 && now.existing_rows == 4),
    );
    assert_eq!(wait.await.unwrap().unwrap().sent_back, 1);
    orders.send_modify(|orders| orders.cuts += 1);
    let wait = progress.wait_for(|now| now.sessions == 2 && now.existing_rows == 6);
    tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
    let answered = until("all answers", PATIENCE, async || {
        match gateway.answers.lock().unwrap().len() {
            8.. => Look::Ready(()),
            count => Look::NotYet(count),
        }
    });
    answered.await.unwrap();
    orders.send_modify(|orders| orders.stop = true);
    let mut copy = task.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(*gateway.sessions.lock().unwrap(), 2);
    let answers = gateway.answers.lock().unwrap().clone();
    assert_eq!(answers[0], (9, vec![], "chaos".to_owned()));
    let last = |answer: &&Answer| answer.1 == [1] && answer.2.is_empty();
    assert_eq!(answers.iter().filter(last).count(), 3, "{answers:?}");
    copy.finish_comparison();
    assert_eq!(copy.findings.kinds(), ["copy/row_too_many"]);
    assert_eq!(copy.findings.count("copy/row_too_many"), 2);
}
