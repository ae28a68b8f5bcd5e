//! A consumer with the generated client, as old ones are written.

use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureInit, CaptureMessage, CaptureRequest, capture_request,
    db_log_gateway_client::DbLogGatewayClient, field,
};
use prost_types::{Struct, Value, value::Kind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::process::PATIENCE;

/// As old clients set it: a row may be large.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

pub(crate) struct Consumer {
    pub(crate) requests: mpsc::Sender<CaptureRequest>,
    stream: Streaming<CaptureMessage>,
}

impl Consumer {
    /// Opens a stream with its init.
    pub(crate) async fn open(node: &str, uri: &str, parameters: &[(&str, Kind)]) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{node}")).unwrap();
        Self::on(endpoint.connect().await.unwrap(), uri, parameters).await
    }

    /// The same on an open connection.
    pub(crate) async fn on(channel: Channel, uri: &str, parameters: &[(&str, Kind)]) -> Self {
        let mut consumer = Self::without_init(channel).await;
        consumer.init(uri, parameters).await;
        consumer
    }

    pub(crate) async fn without_init(channel: Channel) -> Self {
        let (requests, outbound) = mpsc::channel(16);
        let client = DbLogGatewayClient::new(channel);
        let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
        let stream = client.capture(ReceiverStream::new(outbound)).await;
        let stream = stream.unwrap().into_inner();
        Self { requests, stream }
    }

    pub(crate) async fn init(&mut self, uri: &str, parameters: &[(&str, Kind)]) {
        let fields = parameters.iter().map(|(name, kind)| {
            let kind = Some(kind.clone());
            ((*name).to_owned(), Value { kind })
        });
        let parameters = (!parameters.is_empty()).then(|| Struct {
            fields: fields.collect(),
        });
        let uri = uri.to_owned();
        let init = CaptureInit { uri, parameters };
        self.send(capture_request::Type::Init(init)).await;
    }

    pub(crate) async fn send(&self, request: capture_request::Type) {
        let request = CaptureRequest {
            r#type: Some(request),
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn try_next(&mut self) -> Result<CaptureMessage, Status> {
        let message = tokio::time::timeout(PATIENCE, self.stream.message());
        let message = message.await.expect("something comes")?;
        message.ok_or_else(|| Status::ok("the stream has ended"))
    }

    pub(crate) async fn next(&mut self) -> CaptureMessage {
        self.try_next().await.expect("the stream goes on")
    }

    pub(crate) async fn ack(&self, message: &CaptureMessage) {
        self.answer(message, "").await;
    }

    pub(crate) async fn answer(&self, message: &CaptureMessage, reason: &str) {
        self.send(capture_request::Type::Ack(CaptureAck {
            checkpoint: message.checkpoint.clone(),
            requeue_reason: reason.to_owned(),
            ..CaptureAck::default()
        }))
        .await;
    }

    /// Acknowledges everything up to a message.
    pub(crate) async fn ack_up_to(&self, message: &CaptureMessage) {
        self.send(capture_request::Type::Ack(CaptureAck {
            checkpoint: message.checkpoint.clone(),
            cumulative: true,
            ..CaptureAck::default()
        }))
        .await;
    }

    /// Takes and acknowledges rows up to one; returns the ids of all of them.
    pub(crate) async fn take_until(&mut self, last: i64) -> Vec<i64> {
        let mut ids = Vec::new();
        while ids.last() != Some(&last) {
            let message = self.next().await;
            ids.push(id(&message));
            self.ack(&message).await;
        }
        ids
    }

    /// Reads on until the stream ends and returns its status.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.try_next().await {
                return status;
            }
        }
    }

    /// Closes the requests, as a consumer that goes, and waits until the node has seen it.
    pub(crate) async fn close(mut self) {
        self.requests = mpsc::channel(1).0;
        assert_eq!(self.end().await.code(), tonic::Code::Ok);
    }
}

/// The id of a row of `t`.
pub(crate) fn id(message: &CaptureMessage) -> i64 {
    let change = message.change.as_ref().expect("a change");
    let fields = if change.new.is_empty() {
        &change.old
    } else {
        &change.new
    };
    let Some(field::Value::Binary(bytes)) = &fields[0].value else {
        panic!("a binary id: {change:?}")
    };
    i64::from_be_bytes(bytes.as_ref().try_into().expect("eight bytes"))
}

pub(crate) fn text(text: &str) -> Kind {
    Kind::StringValue(text.to_owned())
}

pub(crate) const YES: Kind = Kind::BoolValue(true);
