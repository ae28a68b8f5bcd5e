//! How fast a consumer is that acknowledges every message, as old clients do. Run by hand:
//! `cargo test --release -p pgcapture --test throughput -- --ignored --nocapture`.
//! The sender shares the machine and encodes every message, so the figure is a lower bound.

use std::{pin::Pin, sync::Arc, time::Instant};

use futures_util::{Stream, stream};
use pgcapture::{Client, Row};
use pgcapture_proto::pgcapture::{
    CaptureMessage, CaptureRequest, Change, Checkpoint, Field,
    db_log_gateway_server::{DbLogGateway, DbLogGatewayServer},
    field::Value,
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const MESSAGES: u64 = 1_000_000;

#[derive(Debug, Row)]
#[pgcapture(table = "public.orders")]
struct Order {
    #[pgcapture(key)]
    id: i64,
    note: String,
}

struct Sender {
    acked: Arc<watch::Sender<u64>>,
    readers: tokio::sync::Mutex<JoinSet<()>>,
}

fn message(seq: u64) -> CaptureMessage {
    let field = |name: &str, oid, bytes: Vec<u8>| Field {
        name: name.to_owned(),
        oid,
        value: Some(Value::Binary(bytes.into())),
    };
    let change = Change {
        schema: "public".to_owned(),
        table: "orders".to_owned(),
        new: vec![
            field("id", 20, seq.to_be_bytes().to_vec()),
            field("customer", 25, vec![b'c'; 16]),
            field("note", 25, vec![b'n'; 80]),
        ],
        ..Change::default()
    };
    let checkpoint = Some(Checkpoint {
        lsn: seq + 1,
        seq: 1,
        ..Checkpoint::default()
    });
    CaptureMessage {
        checkpoint,
        change: Some(change),
        ..CaptureMessage::default()
    }
}

#[tonic::async_trait]
impl DbLogGateway for Sender {
    type CaptureStream = Pin<Box<dyn Stream<Item = Result<CaptureMessage, Status>> + Send>>;

    async fn capture(
        &self,
        request: Request<Streaming<CaptureRequest>>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let (mut inbound, acked) = (request.into_inner(), Arc::clone(&self.acked));
        inbound.message().await?;
        self.readers.lock().await.spawn(async move {
            while let Ok(Some(_)) = inbound.message().await {
                acked.send_modify(|acked| *acked += 1);
            }
        });
        let messages = stream::iter((0..MESSAGES).map(|seq| Ok(message(seq))));
        Ok(Response::new(Box::pin(messages.chain(stream::pending()))))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn consume_and_acknowledge_each() {
    let acked = Arc::new(watch::Sender::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let sender = Sender {
        acked: Arc::clone(&acked),
        readers: tokio::sync::Mutex::default(),
    };
    let mut servers = JoinSet::new();
    servers.spawn(
        tonic::transport::Server::builder()
            .add_service(DbLogGatewayServer::new(sender))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let client = Client::builder(address).build().unwrap();
    let mut events = client.stream("orders").subscribe::<Order>().await.unwrap();
    let begin = Instant::now();
    for seq in 0..MESSAGES {
        let event = events.try_next().await.unwrap().unwrap();
        let pgcapture::Change::Insert(order) = event.change() else {
            panic!("{event:?}")
        };
        assert!(order.id as u64 == seq && order.note.len() == 80);
        event.ack().await.unwrap();
    }
    acked
        .subscribe()
        .wait_for(|acked| *acked >= MESSAGES)
        .await
        .unwrap();
    let rate = MESSAGES as f64 / begin.elapsed().as_secs_f64();
    eprintln!("{rate:.0} messages/s");
}
