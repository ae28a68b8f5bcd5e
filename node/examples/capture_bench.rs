//! Measures one old consumer at full speed: server and client are two processes over loopback, the
//! log lies in memory, and the client acknowledges every message one by one.
//!
//! `cargo run --release -p pgcapture-node --example capture_bench [messages] [batch size]` prints
//! messages per second and the CPU seconds of both processes per million messages.

#![expect(clippy::print_stdout, reason = "a tool that prints its result")]

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, bail};
use async_trait::async_trait;
use pgcapture_actors::{
    cursors::{NoCursors, SubscriptionId},
    dump::NoRanges,
    gateway::{GatewayHandle, GatewayLimits, ResolveError, Resolved, SourceResolver},
    log::{
        ChangeLog,
        memory::{MemoryLog, MemoryLogOptions},
    },
};
use pgcapture_engine::{
    batch::{BatchBuilder, EntryKind},
    checkpoint::{Checkpoint, Epoch},
    lsn::{Lsn, PgTime},
};
use pgcapture_node::rpc::capture::{CaptureService, configure};
use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureInit, CaptureRequest, Change, Field, Message, capture_request,
    db_log_gateway_client::DbLogGatewayClient, field, message,
};
use prost::Message as _;
use prost_types::{Struct, Value, value::Kind};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Endpoint, Server};

/// Changes of one transaction.
const TRANSACTION_CHANGES: u64 = 1_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["server", count] => run_server(count.parse()?),
        ["client", address, count, batch] => run_client(address, count.parse()?, batch.parse()?),
        [] => run_both(2_000_000, 0),
        [count] => run_both(count.parse()?, 0),
        [count, batch] => run_both(count.parse()?, batch.parse()?),
        _ => bail!("expected [messages] [batch size]"),
    }
}

fn run_both(count: u64, batch: u32) -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let mut server = Command::new(&program)
        .args(["server", &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = server.stdout.take().context("the server's output")?;
    let mut address = String::new();
    BufReader::new(output).read_line(&mut address)?;
    let before = cpu_seconds(&server)?;
    let mut client = Command::new(&program)
        .args([
            "client",
            address.trim(),
            &count.to_string(),
            &batch.to_string(),
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let output = client.stdout.take().context("the client's output")?;
    BufReader::new(output).read_line(&mut line)?;
    let (server_cpu, client_cpu) = (cpu_seconds(&server)? - before, cpu_seconds(&client)?);
    client.wait()?;
    drop(server.stdin.take());
    server.wait()?;
    let millions = count as f64 / 1e6;
    println!(
        "{} messages/s, server {:.2} and client {:.2} CPU seconds per 1 M",
        line.trim(),
        server_cpu / millions,
        client_cpu / millions
    );
    Ok(())
}

/// CPU time of a running child, from `/proc`.
fn cpu_seconds(child: &Child) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let (_, fields) = stat.rsplit_once(')').context("a name in brackets")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / 100.0)
}

fn run_server(count: u64) -> anyhow::Result<()> {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("a runtime")
    };
    actix::System::with_tokio_rt(runtime).block_on(async move {
        let log = filled(count).await?;
        let resolver = Arc::new(OneStream(log));
        let gateway = GatewayHandle::start(
            resolver,
            Arc::new(NoCursors),
            Arc::new(NoRanges),
            GatewayLimits::default(),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let serving = configure(Server::builder())
            .add_service(CaptureService::new(gateway))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                let ended = tokio::task::spawn_blocking(|| {
                    std::io::stdin().lines().for_each(drop);
                });
                drop(ended.await);
            });
        // On a worker, as in the node; the main thread keeps the actors.
        let mut task = pgcapture_actors::supervise::spawn(
            pgcapture_actors::supervise::TaskKind::Server,
            "grpc",
            serving,
        );
        task.join().await??;
        Ok(())
    })
}

async fn filled(count: u64) -> anyhow::Result<Arc<MemoryLog>> {
    let log = MemoryLog::new(MemoryLogOptions::default());
    let mut writer = log.open_writer(Epoch(1)).await?;
    let field = |name: &str| Field {
        name: name.to_owned(),
        oid: 25,
        value: Some(field::Value::Binary(vec![b'x'; 20].into())),
    };
    let change = Change {
        schema: "public".to_owned(),
        table: "orders".to_owned(),
        new: ["id", "customer", "amount", "note"].map(field).to_vec(),
        ..Change::default()
    };
    let payload = Message {
        r#type: Some(message::Type::Change(change)),
    }
    .encode_to_vec();
    let mut builder = BatchBuilder::default();
    for index in 0..count {
        let lsn = Lsn(0x16_0000_0000 + (index / TRANSACTION_CHANGES) * 4_096);
        let seq = u32::try_from(index % TRANSACTION_CHANGES)? + 1;
        builder.push(Checkpoint::new(lsn, seq), EntryKind::Change, &payload);
        if builder.is_full() || index + 1 == count {
            writer.append(builder.finish(lsn, PgTime(1))).await?;
        }
    }
    writer.flush().await?;
    Ok(log)
}

fn run_client(address: &str, count: u64, batch: u32) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .connect()
            .await?;
        let mut client = DbLogGatewayClient::new(channel).max_decoding_message_size(64 << 20);
        let (requests, outbound) = tokio::sync::mpsc::channel(4_096);
        requests.send(init(batch)).await?;
        let started = Instant::now();
        let mut stream = client
            .capture(ReceiverStream::new(outbound))
            .await?
            .into_inner();
        let mut received = 0;
        while received < count {
            let message = stream.message().await?.context("the stream goes on")?;
            let (checkpoint, messages) = match message.batch {
                Some(mut batch) => {
                    let messages = batch.messages.len() as u64;
                    let last = batch.messages.pop().context("a batch is not empty")?;
                    (last.checkpoint, messages)
                }
                None => (message.checkpoint, 1),
            };
            received += messages;
            let ack = CaptureAck {
                checkpoint,
                cumulative: batch > 0,
                ..CaptureAck::default()
            };
            let request = CaptureRequest {
                r#type: Some(capture_request::Type::Ack(ack)),
            };
            requests.send(request).await?;
        }
        let rate = count as f64 / started.elapsed().as_secs_f64();
        println!("{rate:.0}");
        std::io::stdout().flush()?;
        // The parent reads our CPU time before we end.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        Ok(())
    })
}

fn init(batch: u32) -> CaptureRequest {
    let value = |kind| Value { kind: Some(kind) };
    let fields = [
        ("Start", value(Kind::StringValue("earliest".to_owned()))),
        ("BatchSize", value(Kind::NumberValue(f64::from(batch)))),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    CaptureRequest {
        r#type: Some(capture_request::Type::Init(CaptureInit {
            uri: "bench".to_owned(),
            parameters: Some(Struct {
                fields: fields.into(),
            }),
        })),
    }
}

#[derive(Debug)]
struct OneStream(Arc<MemoryLog>);

#[async_trait]
impl SourceResolver for OneStream {
    async fn resolve(&self, uri: &str) -> Result<Resolved, ResolveError> {
        let log: Arc<MemoryLog> = Arc::clone(&self.0);
        Ok(Resolved {
            subscription: SubscriptionId {
                stream: uri.to_owned(),
                consumer: uri.to_owned(),
            },
            log,
        })
    }
}
