//! The consumer: one stream with transaction boundaries on a node that is never struck. It does not
//! leave by itself. Should the stream end it is opened again, so that the run can go on, and the judge
//! says so.

use std::sync::Arc;

use anyhow::{Result, bail};
use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureMessage, CaptureRequest, Checkpoint, capture_request,
};
use prost_types::{Struct, value::Kind};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::history::{
    event::{Event, Item, Reader},
    reader::{
        ACK_WITHIN, ACKS_MAX, Progress, RECONNECT_PAUSE, item_of, open, parameters, place_of,
    },
    recorder::Recorder,
    row::Table,
};

/// Messages of a transaction after which those so far are acknowledged: far below what a session may
/// have in flight.
const ACK_EVERY: u32 = 100;

/// The consumer. What it gets stands in the history as the log's.
#[derive(Debug)]
pub struct Stream {
    endpoint: String,
    uri: String,
    recorder: Arc<Recorder>,
    progress: watch::Sender<Progress>,
    sessions: u32,
    /// The marker in the transaction that has not ended yet.
    marker: i64,
}

impl Stream {
    /// Makes a consumer that has not connected yet.
    #[must_use]
    pub fn new(endpoint: String, uri: &str, recorder: Arc<Recorder>) -> Self {
        Self {
            endpoint,
            uri: uri.to_owned(),
            recorder,
            progress: watch::Sender::default(),
            sessions: 0,
            marker: 0,
        }
    }

    /// Returns a view of its progress.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Consumes until `stop` says true.
    ///
    /// # Errors
    ///
    /// When the history cannot be written, or a message breaks the contract.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        loop {
            let before = self.sessions;
            let cause = tokio::select! {
                ended = self.session() => ended?,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            };
            eprintln!("the stream: {cause}");
            if self.sessions > before {
                self.recorder.record(Event::Ended {
                    reader: Reader::Log,
                    session: self.sessions,
                    cause: cause.clone(),
                })?;
            }
            self.progress
                .send_modify(|progress| progress.last_error = cause);
            let is_over = stop.wait_for(|stop| *stop);
            if timeout(RECONNECT_PAUSE, is_over).await.is_ok() {
                return Ok(());
            }
        }
    }

    /// Runs one session and returns why it ended.
    async fn session(&mut self) -> Result<String> {
        let (acks, requests) = mpsc::channel(ACKS_MAX);
        let wishes: Struct = parameters([
            ("Boundaries", Kind::BoolValue(true)),
            ("Gaps", Kind::BoolValue(true)),
        ]);
        let opened = open(&self.endpoint, &self.uri, wishes, &acks, requests).await;
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(error) => return Ok(format!("{error:#}")),
        };
        self.sessions += 1;
        let (reader, session) = (Reader::Log, self.sessions);
        self.recorder.record(Event::Opened { reader, session })?;
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok("the node closed the stream".to_owned()),
                Err(status) => return Ok(format!("{status}")),
            };
            let Some(request) = self.take(message)? else {
                continue;
            };
            match timeout(ACK_WITHIN, acks.send(request)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok("the node closed the stream of acks".to_owned()),
                Err(_) => return Ok("the node takes no acks".to_owned()),
            }
        }
    }

    /// Records a message, then tells what it brought; returns the acknowledgement that is due.
    fn take(&mut self, message: CaptureMessage) -> Result<Option<CaptureRequest>> {
        let item = item_of(&message);
        let Some(checkpoint) = message.checkpoint else {
            bail!("a message without checkpoint breaks the contract");
        };
        let place = place_of(Reader::Log, self.sessions, &checkpoint);
        let is_end = !matches!(item, Item::Begin | Item::Change { .. });
        let is_due = is_end || place.seq % ACK_EVERY == ACK_EVERY - 1;
        if let Item::Change { row, .. } = &item
            && row.table == Table::Marker
        {
            self.marker = row.id.unwrap_or(0);
        }
        self.recorder.record(Event::Delivered { place, item })?;
        // Before the acknowledgement: the slot may not stand beyond this.
        self.progress.send_modify(|progress| {
            progress.rows += 1;
            progress.lsn = progress.lsn.max(place.lsn);
            if is_end {
                progress.marker = progress.marker.max(self.marker);
            }
        });
        Ok(is_due.then(|| acknowledge(checkpoint)))
    }
}

fn acknowledge(checkpoint: Checkpoint) -> CaptureRequest {
    let ack = CaptureAck {
        checkpoint: Some(checkpoint),
        cumulative: true,
        ..CaptureAck::default()
    };
    CaptureRequest {
        r#type: Some(capture_request::Type::Ack(ack)),
    }
}
