//! One `Capture` call of the mock gateway.

use std::{pin::Pin, sync::Arc};

use futures_util::{FutureExt as _, Stream, stream};
use pgcapture_proto::pgcapture::{
    CaptureBatch, CaptureInit, CaptureMessage, CaptureRequest, capture_request::Type,
    change::Operation, db_log_gateway_server::DbLogGateway,
};
use prost_types::value::Kind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Shared, log::put_place};

#[derive(Debug)]
pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
    pub(super) down: CancellationToken,
}

type Answers = Pin<Box<dyn Stream<Item = Result<CaptureMessage, Status>> + Send>>;

#[tonic::async_trait]
impl DbLogGateway for Service {
    type CaptureStream = Answers;

    async fn capture(
        &self,
        request: Request<Streaming<CaptureRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let authorization = request.metadata().get("authorization").cloned();
        let authorization = authorization.and_then(|value| value.to_str().map(str::to_owned).ok());
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|request| request.r#type);
        let Some(Type::Init(init)) = first else {
            return Err(Status::invalid_argument("the first message is no init"));
        };
        let session = {
            let mut log = self.shared.log();
            log.inits.push(init.clone());
            log.authorizations.push(authorization);
            log.sessions += 1;
            log.sessions
        };
        self.shared.touch();
        if let Some((code, message)) = self.shared.log().rejections.pop_front() {
            return Err(Status::new(code, message));
        }
        let session = Session {
            wants: Wants::read(&init),
            uri: init.uri,
            session,
            inbound,
            version: self.shared.version.subscribe(),
            disconnects: self.shared.disconnects.subscribe(),
            down: self.down.clone(),
            shared: Arc::clone(&self.shared),
            is_over: false,
        };
        Ok(Response::new(Box::pin(stream::unfold(
            session,
            |mut session| async move { session.next().await.map(|answer| (answer, session)) },
        ))))
    }
}

/// What the parameters ask for.
#[derive(Debug)]
struct Wants {
    tables: Vec<String>,
    operations: Vec<String>,
    boundaries: bool,
    truncates: bool,
    gaps: bool,
    commit_time: bool,
    batch: usize,
    max_unacked: usize,
}

impl Wants {
    fn read(init: &CaptureInit) -> Self {
        let value = |key: &str| init.parameters.as_ref()?.fields.get(key)?.kind.clone();
        let flag = |key: &str| matches!(value(key), Some(Kind::BoolValue(true)));
        let number = |key: &str| match value(key) {
            Some(Kind::NumberValue(number)) => Some(number as usize),
            _ => None,
        };
        let texts = |key: &str| match value(key) {
            Some(Kind::ListValue(list)) => {
                let text = |value: prost_types::Value| match value.kind {
                    Some(Kind::StringValue(text)) => Some(text),
                    _ => None,
                };
                list.values.into_iter().filter_map(text).collect()
            }
            _ => Vec::new(),
        };
        Self {
            tables: texts("Tables"),
            operations: texts("Operations"),
            boundaries: flag("Boundaries"),
            truncates: flag("Truncate"),
            gaps: flag("Gaps"),
            commit_time: flag("CommitTime"),
            batch: number("BatchSize").unwrap_or(0),
            max_unacked: number("MaxUnacked").unwrap_or(usize::MAX),
        }
    }

    fn wants(&self, message: &CaptureMessage) -> bool {
        if let Some(change) = &message.change {
            let name = format!("{}.{}", change.schema, change.table);
            let op = Operation::try_from(change.op)
                .map(|op| op.as_str_name())
                .unwrap_or("");
            return (self.tables.is_empty() || self.tables.contains(&name))
                && (self.operations.is_empty() || self.operations.iter().any(|own| own == op));
        }
        (message.truncate.is_some() && self.truncates)
            || (message.gap.is_some() && self.gaps)
            || ((message.begin.is_some() || message.commit.is_some()) && self.boundaries)
    }
}

struct Session {
    wants: Wants,
    uri: String,
    session: u64,
    inbound: Streaming<CaptureRequest>,
    version: watch::Receiver<u64>,
    disconnects: watch::Receiver<u64>,
    down: CancellationToken,
    shared: Arc<Shared>,
    is_over: bool,
}

impl Session {
    async fn next(&mut self) -> Option<Result<CaptureMessage, Status>> {
        loop {
            if self.is_over {
                return None;
            }
            if self.down.is_cancelled() || self.disconnects.has_changed().unwrap_or(true) {
                self.is_over = true;
                return Some(Err(Status::unavailable("disconnected")));
            }
            while !self.is_over
                && let Some(request) = self.inbound.message().now_or_never()
            {
                self.take(request);
            }
            self.version.borrow_and_update();
            if !self.is_over
                && let Some(message) = self.deliver()
            {
                return Some(Ok(message));
            }
            if !self.is_over {
                tokio::select! {
                    request = self.inbound.message() => self.take(request),
                    _ = self.version.changed() => {}
                    _ = self.disconnects.changed() => self.disconnects.mark_changed(),
                    () = self.down.cancelled() => {}
                }
            }
        }
    }

    fn deliver(&mut self) -> Option<CaptureMessage> {
        let mut log = self.shared.log();
        let wants = &self.wants;
        let mut next = || {
            let wanted = |message: &CaptureMessage| wants.wants(message);
            let next = log.next(&self.uri, self.session, wants.max_unacked, wanted);
            let (entry, mut message) = next?;
            if wants.batch > 0 {
                put_place(&mut message, entry);
            }
            if !wants.commit_time {
                message.commit_time = 0;
            }
            Some(message)
        };
        if wants.batch == 0 {
            return next();
        }
        let messages: Vec<_> = std::iter::from_fn(next).take(wants.batch).collect();
        let batch = Some(CaptureBatch { messages });
        let is_empty = batch.as_ref().is_none_or(|batch| batch.messages.is_empty());
        (!is_empty).then(|| CaptureMessage {
            batch,
            ..Default::default()
        })
    }

    fn take(&mut self, request: Result<Option<CaptureRequest>, Status>) {
        let Ok(Some(request)) = request else {
            self.is_over = true;
            return;
        };
        if let Some(Type::Ack(ack)) = request.r#type {
            self.shared.log().answer(&self.uri, self.session, ack);
            self.shared.touch();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.log().leave(&self.uri, self.session);
        self.shared.touch();
    }
}
