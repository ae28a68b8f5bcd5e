//! A stand-in for the node, to try the harness itself.
//!
//! Reads a slot with PostgreSQL's `test_decoding`, keeps lines in one file, serves them. Simple and
//! slow, right by default, and wrong in one way on demand (`STAND_IN_BUG`), so that one can see the
//! harness catch it: `early` confirms before it writes, `twice` forgets to drop what the log has after a
//! restart, `torn` keeps half a transaction, `drop` leaves some transactions out, `forget` does not keep
//! acknowledgements. It is no product code and shares none.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use pgcapture_proto::pgcapture::{
    Begin, CaptureMessage, CaptureRequest, Change, Checkpoint, Commit, Field, capture_request,
    change::Operation,
    db_log_gateway_server::{DbLogGateway, DbLogGatewayServer},
    field::Value,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_postgres::NoTls;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// One line of the log: position and what PostgreSQL said.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    lsn: u64,
    seq: u32,
    text: String,
}

/// Everything the stand-in holds.
struct Node {
    dir: PathBuf,
    bug: String,
    log: watch::Sender<Vec<Record>>,
    acked: Mutex<BTreeSet<(u64, u32)>>,
}

#[derive(Clone)]
struct Gateway(Arc<Node>);

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = env::args().collect();
    let after = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).cloned()
    };
    if let Some(url) = after("--url") {
        let endpoint = after("--endpoint").context("--endpoint")?;
        let port = endpoint.rsplit(':').next().context("port")?;
        return Ok(fs::write(url_file(port), url)?);
    }
    let config = fs::read_to_string(after("-c").context("-c")?)?;
    let key = |name: &str| {
        let line = config.lines().find(|line| line.starts_with(name))?;
        Some(line.split('"').nth(1)?.to_owned())
    };
    let dir = PathBuf::from(key("data_dir").context("data_dir")?);
    fs::create_dir_all(&dir)?;
    let node = Arc::new(Node {
        log: watch::Sender::new(read_log(&dir)?),
        acked: Mutex::new(read_acks(&dir)?),
        dir,
        bug: env::var("STAND_IN_BUG").unwrap_or_default(),
    });
    let listen = key("listen").context("listen")?;
    let mut tasks = JoinSet::new();
    tasks.spawn(capture(Arc::clone(&node), listen.clone()));
    tasks.spawn(http(Arc::clone(&node), key("metrics").context("metrics")?));
    let server = Server::builder().add_service(DbLogGatewayServer::new(Gateway(node)));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        ended = server.serve(listen.parse()?) => Ok(ended?),
        Some(ended) = tasks.join_next() => ended?,
        _ = terminate.recv() => Ok(()),
    }
}

fn url_file(port: &str) -> PathBuf {
    env::temp_dir().join(format!("stand-in-{port}.url"))
}

/// Reads the log; a line that a kill cut short is dropped, and a transaction without its end.
fn read_log(dir: &Path) -> Result<Vec<Record>> {
    let path = dir.join("log");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut records: Vec<Record> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let is_end = |record: &Record| record.text.starts_with("COMMIT");
    if env::var("STAND_IN_BUG").as_deref() != Ok("torn") {
        let end = records.iter().rposition(is_end).map_or(0, |at| at + 1);
        records.truncate(end);
    }
    let mut whole = String::new();
    for record in &records {
        whole += &serde_json::to_string(record)?;
        whole += "\n";
    }
    fs::write(dir.join("log.new"), whole)?;
    fs::rename(dir.join("log.new"), path)?;
    Ok(records)
}

fn read_acks(dir: &Path) -> Result<BTreeSet<(u64, u32)>> {
    let text = fs::read_to_string(dir.join("acks")).unwrap_or_default();
    let parsed = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    Ok(parsed.collect())
}

/// Moves what the slot has to the log, for ever.
async fn capture(node: Arc<Node>, listen: String) -> Result<()> {
    let port = listen.rsplit(':').next().unwrap_or_default().to_owned();
    let url = loop {
        match fs::read_to_string(url_file(&port)) {
            Ok(url) => break url,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    loop {
        if let Err(error) = follow(&node, &url).await {
            eprintln!("{error:#}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn follow(node: &Node, url: &str) -> Result<()> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let created = "SELECT pg_create_logical_replication_slot('stand_in', 'test_decoding')";
    if let Err(error) = client.execute(created, &[]).await
        && error.code() != Some(&tokio_postgres::error::SqlState::DUPLICATE_OBJECT)
    {
        return Err(error.into());
    }
    loop {
        let sql = "SELECT (lsn - '0/0')::bigint, data FROM
            pg_logical_slot_peek_changes('stand_in', NULL, 3000, 'skip-empty-xacts', '1')";
        let rows = client.query(sql, &[]).await?;
        let lines: Vec<(i64, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let Some((last, _)) = lines.last() else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let advance =
            format!("SELECT pg_replication_slot_advance('stand_in', '0/0'::pg_lsn + {last})");
        if node.bug == "early" {
            client.execute(&advance, &[]).await?;
            pause_for_a_kill().await;
        }
        append(node, &lines).await?;
        if node.bug != "early" {
            client.execute(&advance, &[]).await?;
        }
    }
}

/// Long enough to be hit now and then.
async fn pause_for_a_kill() {
    tokio::time::sleep(Duration::from_millis(150)).await;
}

/// Appends whole transactions that are not in the log yet.
async fn append(node: &Node, lines: &[(i64, String)]) -> Result<()> {
    let tail = node.log.borrow().last().map_or(0, |record| record.lsn);
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(node.dir.join("log"))?;
    let (mut records, mut open) = (Vec::new(), Vec::new());
    let mut dropped = 0;
    for (lsn, text) in lines {
        // The source's own tables that are not captured.
        if text.starts_with("table ") && !text.starts_with("table public.") {
            continue;
        }
        open.push(text.clone());
        if !text.starts_with("COMMIT") {
            continue;
        }
        let lsn = lsn.unsigned_abs();
        let is_new = lsn > tail || node.bug == "twice";
        dropped += 1;
        let is_dropped = node.bug == "drop" && dropped % 50 == 0;
        for (seq, text) in (0..).zip(std::mem::take(&mut open)) {
            if is_new && !is_dropped {
                records.push(Record { lsn, seq, text });
            }
        }
    }
    for (index, record) in records.iter().enumerate() {
        if node.bug == "torn" && index == records.len() / 2 {
            pause_for_a_kill().await;
        }
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        file.write_all(&line)?;
    }
    node.log.send_modify(|log| log.extend(records));
    Ok(())
}

async fn http(node: Arc<Node>, listen: String) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (mut socket, _) = listener.accept().await?;
        let mut request = [0; 512];
        let length = socket.read(&mut request).await?;
        let durable = node.log.borrow().last().map_or(0, |record| record.lsn);
        let is_metrics =
            String::from_utf8_lossy(request.get(..length).unwrap_or_default()).contains("/metrics");
        let body = if is_metrics {
            format!("pgcapture_log_durable_lsn_bytes{{source=\"shop\"}} {durable}\n")
        } else {
            "ok\n".to_owned()
        };
        let answer = format!("HTTP/1.0 200 OK\r\n\r\n{body}");
        // The other side may have gone.
        socket.write_all(answer.as_bytes()).await.ok();
    }
}

#[tonic::async_trait]
impl DbLogGateway for Gateway {
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
        let is_peek = init
            .parameters
            .is_some_and(|parameters| parameters.fields.contains_key("Peek"));
        let (messages, stream) = mpsc::channel(1024);
        let mut task = JoinSet::new();
        task.spawn(serve(Arc::clone(&self.0), is_peek, requests, messages));
        task.detach_all();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn serve(
    node: Arc<Node>,
    is_peek: bool,
    mut requests: Streaming<CaptureRequest>,
    messages: mpsc::Sender<Result<CaptureMessage, Status>>,
) {
    let mut log = node.log.subscribe();
    let mut next = 0;
    let mut again: Vec<(u64, u32)> = Vec::new();
    loop {
        let batch: Vec<Record> = log
            .borrow_and_update()
            .get(next..)
            .unwrap_or_default()
            .to_vec();
        next += batch.len();
        let wanted = batch.into_iter().filter(|record| {
            let acked = node.acked.lock().unwrap_or_else(PoisonError::into_inner);
            is_peek
                || record.text.starts_with("table") && !acked.contains(&(record.lsn, record.seq))
        });
        for record in wanted {
            if messages.send(Ok(message(&record))).await.is_err() {
                return;
            }
        }
        for at in std::mem::take(&mut again) {
            let found = log.borrow().iter().find(|r| (r.lsn, r.seq) == at).cloned();
            if let Some(record) = found
                && messages.send(Ok(message(&record))).await.is_err()
            {
                return;
            }
        }
        tokio::select! {
            _ = log.changed() => {}
            request = requests.message() => match request {
                Ok(Some(request)) => again.extend(acknowledge(&node, request)),
                Ok(None) | Err(_) => return,
            },
        }
    }
}

fn acknowledge(node: &Node, request: CaptureRequest) -> Option<(u64, u32)> {
    let Some(capture_request::Type::Ack(ack)) = request.r#type else {
        return None;
    };
    let checkpoint = ack.checkpoint?;
    let at = (checkpoint.lsn, checkpoint.seq);
    if !ack.requeue_reason.is_empty() {
        return Some(at);
    }
    if node.bug != "forget" {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(node.dir.join("acks"))
            .ok()?;
        writeln!(file, "[{},{}]", at.0, at.1).ok()?;
        let mut acked = node.acked.lock().unwrap_or_else(PoisonError::into_inner);
        acked.insert(at);
    }
    None
}

fn message(record: &Record) -> CaptureMessage {
    let mut message = CaptureMessage {
        checkpoint: Some(Checkpoint {
            lsn: record.lsn,
            seq: record.seq,
            ..Checkpoint::default()
        }),
        ..CaptureMessage::default()
    };
    if record.text.starts_with("BEGIN") {
        message.begin = Some(Begin::default());
    } else if record.text.starts_with("COMMIT") {
        message.commit = Some(Commit::default());
    } else {
        message.change = change(&record.text);
    }
    message
}

/// Reads `table public.ledger: INSERT: writer[integer]:1 pad[text]:'abc'`.
fn change(text: &str) -> Option<Change> {
    let mut parts = text.strip_prefix("table public.")?.splitn(3, ": ");
    let table = parts.next()?.to_owned();
    let op = match parts.next()? {
        "INSERT" => Operation::Insert,
        "UPDATE" => Operation::Update,
        _ => Operation::Delete,
    };
    let mut fields = BTreeMap::new();
    for column in parts.next()?.split(' ') {
        let (name, value) = column.split_once("]:")?;
        if value != "unchanged-toast-datum" {
            let name = name.split('[').next()?.to_owned();
            fields.insert(name, value.trim_matches('\'').to_owned());
        }
    }
    let fields = fields.into_iter().map(|(name, text)| Field {
        name,
        oid: 25,
        value: Some(Value::Text(text)),
    });
    let mut change = Change {
        schema: "public".to_owned(),
        table,
        ..Change::default()
    };
    change.set_op(op);
    if op == Operation::Delete {
        change.old = fields.collect();
    } else {
        change.new = fields.collect();
    }
    Some(change)
}
