//! The consumer that builds the copy, over as many sessions as it takes.
//!
//! Old-style it gets a message a row and acknowledges each; or it asks for batches and acknowledges
//! each as a whole. Messages are put into the copy first and acknowledged then. Now and then an acknowledgement is
//! held back for a while, so that later ones pass it, an existing row is sent back, and the connection is cut: what was not
//! acknowledged comes again. It never sends changes back, which would take them out of their order by
//! its own wish.

use std::{collections::VecDeque, time::Duration};

use anyhow::Result;
use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureMessage, CaptureRequest, Change, Checkpoint, capture_request,
};
use prost_types::{Struct, value::Kind};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

use super::{
    copy::Copy,
    table::{SCHEMA, integer},
};
use crate::history::reader::{ACK_WITHIN, ACKS_MAX, RECONNECT_PAUSE, open, parameters};

/// One acknowledgement of this many is held back.
const HELD_ONE_IN: u32 = 101;

/// Until so many more messages came, or the stream was quiet for so long.
const HELD_BEHIND: u64 = 60;
const QUIET: Duration = Duration::from_millis(50);

/// Progress is told once in so many messages, and when the stream is quiet.
const TELL_EVERY: u64 = 64;

/// Its pace is looked at once in so many existing rows.
const PACED_ROWS: u64 = 256;

/// How the consumer behaves.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Where the node is.
    pub endpoint: String,
    /// The uri.
    pub uri: String,
    /// Seed of its choices.
    pub seed: u64,
    /// Existing rows that it sends back at most.
    pub sent_back_max: u32,
    /// One existing row of this many is sent back.
    pub sent_back_one_in: u32,
    /// Messages in a batch; 0 for an old-style consumer.
    pub batch: u32,
    /// Existing rows that it takes a second at most; 0 for as many as come.
    pub rows_per_second: u64,
}

/// How far the consumer is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Largest marker it got.
    pub marker: i64,
    /// Existing rows it got.
    pub existing_rows: u64,
    /// Changes of the table it got.
    pub changes: u64,
    /// Existing rows it sent back.
    pub sent_back: u32,
    /// Sessions it opened.
    pub sessions: u32,
    /// Why the last session ended or could not be opened.
    pub last_error: String,
}

/// What the consumer is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Grows with every connection that is to be cut.
    pub cuts: u64,
    /// Leave.
    pub stop: bool,
}

/// The consumer.
#[derive(Debug)]
pub struct Consumer {
    manners: Manners,
    orders: watch::Receiver<Orders>,
    told: watch::Sender<Progress>,
    progress: Progress,
    copy: Copy,
    rng: StdRng,
    messages: u64,
    paced_since: Option<(Instant, u64)>,
    paced_at: u64,
}

impl Consumer {
    /// Makes a consumer that has not connected yet.
    #[must_use]
    pub fn new(manners: Manners, orders: watch::Receiver<Orders>, copy: Copy) -> Self {
        let rng = StdRng::seed_from_u64(manners.seed);
        Self {
            manners,
            orders,
            told: watch::Sender::default(),
            progress: Progress::default(),
            copy,
            rng,
            messages: 0,
            paced_since: None,
            paced_at: 0,
        }
    }

    /// Returns a view of its progress.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.told.subscribe()
    }

    /// Consumes until it is told to leave; returns the copy.
    ///
    /// # Errors
    ///
    /// Never for what the node does: a session that ends is followed by the next.
    pub async fn run(mut self) -> Result<Copy> {
        loop {
            let before = *self.orders.borrow();
            let mut orders = self.orders.clone();
            let error = tokio::select! {
                ended = self.session() => ended,
                _ = orders.wait_for(|now| *now != before) => "the consumer left".to_owned(),
            };
            self.progress.last_error = error;
            self.tell();
            let mut orders = self.orders.clone();
            let is_over = orders.wait_for(|orders| orders.stop);
            if timeout(RECONNECT_PAUSE, is_over).await.is_ok() {
                return Ok(self.copy);
            }
        }
    }

    /// Runs one session and returns why it ended.
    async fn session(&mut self) -> String {
        let (acks, requests) = mpsc::channel(ACKS_MAX);
        let (endpoint, uri) = (&self.manners.endpoint, &self.manners.uri);
        let parameters = match self.manners.batch {
            0 => Struct::default(),
            size => parameters([("BatchSize", Kind::NumberValue(f64::from(size)))]),
        };
        let opened = open(endpoint, uri, parameters, &acks, requests).await;
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(error) => return format!("{error:#}"),
        };
        self.progress.sessions += 1;
        self.copy.begin_session();
        self.paced_since = None;
        let mut held = VecDeque::new();
        loop {
            let message = match timeout(QUIET, stream.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return "the node closed the stream".to_owned(),
                Ok(Err(status)) => return status.to_string(),
                Err(_) => {
                    self.tell();
                    while let Some((_, request)) = held.pop_front() {
                        if let Some(error) = send(&acks, request).await {
                            return error;
                        }
                    }
                    continue;
                }
            };
            let Some(answers) = self.take_all(message) else {
                return "a message without checkpoint or change".to_owned();
            };
            self.pace().await;
            let due = held.front().is_some_and(|(at, _)| *at <= self.messages);
            let late = due.then(|| held.pop_front()).flatten();
            for request in late.map(|(_, request)| request).into_iter().chain(answers) {
                if self.rng.random_ratio(1, HELD_ONE_IN) {
                    held.push_back((self.messages + HELD_BEHIND, request));
                } else if let Some(error) = send(&acks, request).await {
                    return error;
                }
            }
        }
    }

    /// Puts a message, or all of a batch, into the copy and returns the answers.
    fn take_all(&mut self, mut message: CaptureMessage) -> Option<Vec<CaptureRequest>> {
        let Some(batch) = message.batch.take() else {
            return Some(vec![self.take(message)?]);
        };
        let sent_back = self.progress.sent_back;
        let answers = batch.messages.into_iter().map(|one| self.take(one));
        let mut answers = answers.collect::<Option<Vec<_>>>()?;
        if self.progress.sent_back == sent_back {
            // All were taken: one answer for all.
            answers.drain(..answers.len().saturating_sub(1));
            for request in &mut answers {
                if let Some(capture_request::Type::Ack(ack)) = &mut request.r#type {
                    ack.cumulative = true;
                }
            }
        }
        Some(answers)
    }

    /// Puts a message into the copy and returns its answer.
    fn take(&mut self, message: CaptureMessage) -> Option<CaptureRequest> {
        let (checkpoint, change) = (message.checkpoint?, message.change?);
        let is_existing = checkpoint.lsn == 0;
        self.copy.take(&change, is_existing);
        self.progress.marker = self.progress.marker.max(marker(&change).unwrap_or(0));
        self.messages += 1;
        if self.messages.is_multiple_of(TELL_EVERY) {
            self.tell();
        }
        let manners = &self.manners;
        let sends_back = is_existing
            && self.progress.sent_back < manners.sent_back_max
            && self.rng.random_ratio(1, manners.sent_back_one_in.max(1));
        self.progress.sent_back += u32::from(sends_back);
        Some(answer(checkpoint, if sends_back { "chaos" } else { "" }))
    }

    /// Rests while existing rows come faster than they are wanted.
    async fn pace(&mut self) {
        let wanted = self.manners.rows_per_second;
        let rows = self.copy.existing_rows;
        if wanted == 0 || rows < self.paced_at + PACED_ROWS {
            return;
        }
        self.paced_at = rows;
        let (since, before) = *self.paced_since.get_or_insert((Instant::now(), rows));
        let seconds = (rows - before) as f64 / wanted as f64;
        tokio::time::sleep_until(since + Duration::from_secs_f64(seconds)).await;
    }

    fn tell(&mut self) {
        self.progress.existing_rows = self.copy.existing_rows;
        self.progress.changes = self.copy.changes;
        self.told.send_replace(self.progress.clone());
    }
}

async fn send(acks: &mpsc::Sender<CaptureRequest>, request: CaptureRequest) -> Option<String> {
    match timeout(ACK_WITHIN, acks.send(request)).await {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some("the node closed the stream of acks".to_owned()),
        Err(_) => Some("the node takes no acks".to_owned()),
    }
}

fn answer(checkpoint: Checkpoint, requeue_reason: &str) -> CaptureRequest {
    let ack = CaptureAck {
        checkpoint: Some(checkpoint),
        requeue_reason: requeue_reason.to_owned(),
        ..CaptureAck::default()
    };
    CaptureRequest {
        r#type: Some(capture_request::Type::Ack(ack)),
    }
}

/// The id of a row of the marker's table.
fn marker(change: &Change) -> Option<i64> {
    let is_marker = change.schema == SCHEMA && change.table == "marker";
    let field = change.new.first().filter(|_| is_marker)?;
    match field.value.as_ref()? {
        pgcapture_proto::pgcapture::field::Value::Binary(bytes) => integer(bytes),
        pgcapture_proto::pgcapture::field::Value::Text(text) => text.parse().ok(),
    }
}
