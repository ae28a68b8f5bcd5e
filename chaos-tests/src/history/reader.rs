//! The readers: an old-style consumer that acknowledges, and a scan of the whole log.
//!
//! Both are plain gRPC clients of the contract. What they get is recorded before it is acknowledged.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureInit, CaptureMessage, CaptureRequest, Checkpoint, capture_request,
    db_log_gateway_client::DbLogGatewayClient,
};
use prost_types::{Struct, Value, value::Kind};
use tokio::{sync::mpsc, sync::watch, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

use super::{
    event::{Event, Item, Place, Reader},
    recorder::Recorder,
    row::{Row, Table, hash_text, read_change},
};

/// Acknowledgements under way; a consumer that cannot send one for this long leaves.
pub(crate) const ACKS_MAX: usize = 4_096;
pub(crate) const ACK_WITHIN: Duration = Duration::from_secs(10);

/// Pause before the consumer connects again: short beside a node's start.
pub(crate) const RECONNECT_PAUSE: Duration = Duration::from_millis(30);

/// Longest silence of the log while it is scanned to a marker that is known to be in it.
const SCAN_SILENCE_MAX: Duration = Duration::from_secs(30);

/// One of this many rows is sent back when it comes the first time.
const NACK_ONE_IN: u64 = 997;

/// How far the consumer is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Rows it got.
    pub rows: u64,
    /// Largest commit LSN it got.
    pub lsn: u64,
    /// Largest marker it got.
    pub marker: i64,
    /// Rows it sent back that have not come again.
    pub awaited: usize,
    /// Why the last session ended or could not be opened.
    pub last_error: String,
}

/// A consumer as old clients are.
#[derive(Debug)]
pub struct Consumer {
    endpoint: String,
    uri: String,
    recorder: Arc<Recorder>,
    progress: watch::Sender<Progress>,
    sessions: u32,
    is_open: bool,
    sent_back: HashSet<(u64, u32)>,
    awaited: HashSet<(u64, u32)>,
}

impl Consumer {
    /// Makes a consumer that has not connected yet.
    #[must_use]
    pub fn new(endpoint: String, uri: &str, recorder: Arc<Recorder>) -> Self {
        Self {
            endpoint,
            uri: uri.to_owned(),
            recorder,
            progress: watch::Sender::default(),
            sessions: 0,
            is_open: false,
            sent_back: HashSet::new(),
            awaited: HashSet::new(),
        }
    }

    /// Returns a view of its progress.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Consumes, over as many sessions as it takes, until `stop` says true.
    ///
    /// # Errors
    ///
    /// When the history cannot be written.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        loop {
            let error = tokio::select! {
                ended = self.session() => ended?,
                _ = stop.wait_for(|stop| *stop) => "the reader left".to_owned(),
            };
            if self.is_open {
                self.is_open = false;
                let (reader, session) = (Reader::Consumer, self.sessions);
                self.recorder.record(Event::Ended {
                    reader,
                    session,
                    cause: error.clone(),
                })?;
            }
            self.progress
                .send_modify(|progress| progress.last_error = error);
            let is_over = stop.wait_for(|stop| *stop);
            if timeout(RECONNECT_PAUSE, is_over).await.is_ok() {
                return Ok(());
            }
        }
    }

    /// Runs one session and returns why it ended.
    async fn session(&mut self) -> Result<String> {
        let (acks, requests) = mpsc::channel(ACKS_MAX);
        let mut stream = match open(
            &self.endpoint,
            &self.uri,
            Struct::default(),
            &acks,
            requests,
        )
        .await
        {
            Ok(stream) => stream,
            Err(error) => return Ok(format!("{error:#}")),
        };
        self.sessions += 1;
        self.is_open = true;
        let (reader, session) = (Reader::Consumer, self.sessions);
        self.recorder.record(Event::Opened { reader, session })?;
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok("the node closed the stream".to_owned()),
                Err(status) => return Ok(format!("{status}")),
            };
            let Some(checkpoint) = message.checkpoint.clone() else {
                bail!("a message without checkpoint breaks the contract");
            };
            let place = place_of(reader, session, &checkpoint);
            let item = item_of(&message);
            let row = match &item {
                Item::Change { row, .. } => Some(row.clone()),
                Item::Begin | Item::Commit { .. } | Item::Gap { .. } | Item::Other { .. } => None,
            };
            self.recorder.record(Event::Delivered { place, item })?;
            let request = self.answer(place, checkpoint)?;
            self.note(&place, row.as_ref());
            match timeout(ACK_WITHIN, acks.send(request)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok("the node closed the stream of acks".to_owned()),
                Err(_) => return Ok("the node takes no acks".to_owned()),
            }
        }
    }

    /// Decides between ack and nack, and records it.
    fn answer(&mut self, place: Place, checkpoint: Checkpoint) -> Result<CaptureRequest> {
        let at = place.checkpoint();
        self.awaited.remove(&at);
        let dice = hash_text(format!("{at:?}").as_bytes());
        let is_sent_back = dice.is_multiple_of(NACK_ONE_IN) && self.sent_back.insert(at);
        let (event, requeue_reason) = if is_sent_back {
            self.awaited.insert(at);
            (Event::Nacked(place), "chaos".to_owned())
        } else {
            (Event::Acked(place), String::new())
        };
        self.recorder.record(event)?;
        let ack = CaptureAck {
            checkpoint: Some(checkpoint),
            requeue_reason,
            ..CaptureAck::default()
        };
        Ok(CaptureRequest {
            r#type: Some(capture_request::Type::Ack(ack)),
        })
    }

    fn note(&self, place: &Place, row: Option<&Row>) {
        let marker = row.filter(|row| row.table == Table::Marker);
        let marker = marker.and_then(|row| row.id).unwrap_or(0);
        self.progress.send_modify(|progress| {
            progress.rows += 1;
            progress.lsn = progress.lsn.max(place.lsn);
            progress.marker = progress.marker.max(marker);
            progress.awaited = self.awaited.len();
        });
    }
}

/// Reads the whole log from outside, without a subscription, up to the end of the transaction that
/// holds the marker; returns how many messages there were.
///
/// # Errors
///
/// When the log cannot be read to there in one session, or the history cannot be written.
pub async fn scan(endpoint: &str, uri: &str, recorder: &Recorder, marker: i64) -> Result<u64> {
    let parameters = parameters([
        ("Peek", Kind::BoolValue(true)),
        ("Boundaries", Kind::BoolValue(true)),
        ("CommitTime", Kind::BoolValue(true)),
        ("Gaps", Kind::BoolValue(true)),
        ("Start", Kind::StringValue("earliest".to_owned())),
    ]);
    let (acks, requests) = mpsc::channel(1);
    let mut stream = open(endpoint, uri, parameters, &acks, requests).await?;
    let (reader, session) = (Reader::Log, 1);
    recorder.record(Event::Opened { reader, session })?;
    let mut count = 0;
    let mut has_marker = false;
    loop {
        let next = timeout(SCAN_SILENCE_MAX, stream.message()).await;
        let message = next.context("the log falls silent before its end")??;
        let message = message.context("the node ended the scan")?;
        let checkpoint = message.checkpoint.clone().unwrap_or_default();
        let place = place_of(reader, session, &checkpoint);
        let item = item_of(&message);
        count += 1;
        has_marker |= matches!(&item, Item::Change { row, .. }
            if row.table == Table::Marker && row.id == Some(marker));
        let is_end = has_marker && matches!(item, Item::Commit { .. });
        recorder.record(Event::Delivered { place, item })?;
        if is_end {
            return Ok(count);
        }
    }
}

pub(crate) async fn open(
    endpoint: &str,
    uri: &str,
    parameters: Struct,
    acks: &mpsc::Sender<CaptureRequest>,
    requests: mpsc::Receiver<CaptureRequest>,
) -> Result<Streaming<CaptureMessage>> {
    let init = CaptureInit {
        uri: uri.to_owned(),
        parameters: Some(parameters),
    };
    let first = CaptureRequest {
        r#type: Some(capture_request::Type::Init(init)),
    };
    acks.send(first).await.context("queue the first message")?;
    // Keepalives end a session on a node that is frozen or gone without a word.
    let channel = Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(Duration::from_secs(2))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .connect()
        .await
        .context("connect")?;
    let answer = DbLogGatewayClient::new(channel)
        .capture(ReceiverStream::new(requests))
        .await
        .context("open the stream")?;
    Ok(answer.into_inner())
}

pub(crate) fn parameters<const N: usize>(pairs: [(&str, Kind); N]) -> Struct {
    let to_field = |(name, kind): (&str, Kind)| (name.to_owned(), Value { kind: Some(kind) });
    Struct {
        fields: pairs.into_iter().map(to_field).collect::<BTreeMap<_, _>>(),
    }
}

pub(crate) const fn place_of(reader: Reader, session: u32, checkpoint: &Checkpoint) -> Place {
    Place {
        reader,
        session,
        lsn: checkpoint.lsn,
        seq: checkpoint.seq,
    }
}

pub(crate) fn item_of(message: &CaptureMessage) -> Item {
    if let Some(change) = &message.change {
        return match read_change(change) {
            Some((op, row)) => Item::Change { op, row },
            None => Item::Other {
                what: format!("a change of {}.{}", change.schema, change.table),
            },
        };
    }
    if message.begin.is_some() {
        return Item::Begin;
    }
    if let Some(commit) = &message.commit {
        let end_lsn = commit.end_lsn;
        return Item::Commit { end_lsn };
    }
    if let Some(gap) = &message.gap {
        return Item::Gap {
            from_lsn: gap.from_lsn,
            to_lsn: gap.to_lsn,
            reason: gap.reason.clone(),
        };
    }
    let what = "a message of an unexpected kind".to_owned();
    Item::Other { what }
}
