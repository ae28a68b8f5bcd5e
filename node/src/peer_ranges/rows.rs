//! The rows of one range, from the node that reads it.
//!
//! Credit is given back when a batch has gone on, so that a consumer that does not read holds at most a
//! window here and stops the reading of the replica behind it. What breaks off is told as the fault of
//! that node: another one reads the range.

use pgcapture_actors::dump::{
    DumpError, OpenedRange, ROW_BATCHES_WAITING_MAX, ReadOrder, RowEvent,
};
use pgcapture_engine::lsn::Lsn;
use pgcapture_proto::peer::v1::{
    OpenRange, OpenRangeAnswer, OpenRangeRequest, open_range_answer, open_range_request,
    peer_ranges_client::PeerRangesClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::Streaming;

use super::wire;
use crate::{
    peer_log::credit::{Owed, READ_WINDOW_BYTES},
    peers::Peers,
};

/// Credits on their way out.
const REQUESTS_WAITING_MAX: usize = 8;

/// A batch of rows is as large as its largest row.
pub(super) const MESSAGE_BYTES_MAX: usize = u32::MAX as usize;

/// Opens a range on the node that its ticket names, which waits for a replica that is behind. `calls`
/// owns the task that takes the rows in; it ends with the range.
pub(super) async fn open(
    peers: &Peers,
    cluster: &str,
    order: ReadOrder,
    calls: &TaskTracker,
) -> Result<OpenedRange, DumpError> {
    let node = order.ticket.node.clone();
    let away = |why: &str| wire::reader_away(&node, why);
    let channel = peers.channel(&order.ticket.address);
    let channel = channel.map_err(|error| away(&error.to_string()))?;
    let mut client = PeerRangesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let (requests, outbound) = mpsc::channel(REQUESTS_WAITING_MAX);
    let open = OpenRangeRequest {
        kind: Some(open_range_request::Kind::Open(OpenRange {
            cluster: cluster.to_owned(),
            ticket: Some(wire::ticket(&order.ticket)),
            at_least: order.at_least.0,
            credit: READ_WINDOW_BYTES,
        })),
    };
    if requests.try_send(open).is_err() {
        return Err(wire::away("a new queue is full"));
    }
    let answers = client.open(ReceiverStream::new(outbound)).await;
    let answers = answers.map_err(|status| away(status.message()))?;
    let mut answers = Answers {
        node,
        stream: answers.into_inner(),
    };
    let at = match answers.next().await? {
        open_range_answer::Kind::OpenedAt(at) => Lsn(at),
        open_range_answer::Kind::Failure(failure) => return Err(wire::to_error(&failure)),
        open_range_answer::Kind::Rows(_) | open_range_answer::Kind::End(_) => {
            return Err(wire::away(wire::MALFORMED));
        }
    };
    let (events, rows) = mpsc::channel(ROW_BATCHES_WAITING_MAX);
    calls.spawn(take_in(answers, requests, events, order));
    Ok(OpenedRange { at, rows })
}

/// Takes rows in until they end, or whoever reads them does, or the ticket is worth nothing any more: then
/// the channel closes without an end.
async fn take_in(
    mut answers: Answers,
    requests: mpsc::Sender<OpenRangeRequest>,
    events: mpsc::Sender<RowEvent>,
    order: ReadOrder,
) {
    let ReadOrder { stop, on_read, .. } = order;
    let mut owed = Owed::default();
    loop {
        let answer = tokio::select! {
            answer = answers.next() => answer,
            () = events.closed() => return,
            () = stop.cancelled() => return,
        };
        let (event, length) = match answer {
            Ok(open_range_answer::Kind::Rows(rows)) => {
                let length = rows.bytes.len();
                let Some(batch) = wire::to_rows(rows) else {
                    tracing::error!("{}", wire::MALFORMED);
                    return;
                };
                (RowEvent::Rows(batch), length)
            }
            Ok(open_range_answer::Kind::OpenedAt(_)) => continue,
            Ok(open_range_answer::Kind::End(_)) => {
                // Neither waits for the other: the consumer may be slow, the leader away.
                let (told, ()) = tokio::join!(events.send(RowEvent::End), on_read);
                return drop(told);
            }
            Ok(open_range_answer::Kind::Failure(failure)) => {
                let failed = RowEvent::Failed(wire::to_error(&failure));
                return drop(events.send(failed).await);
            }
            Err(error) => return drop(events.send(RowEvent::Failed(error)).await),
        };
        let sent = tokio::select! {
            sent = events.send(event) => sent.is_ok(),
            () = stop.cancelled() => false,
        };
        if !sent {
            return;
        }
        owed.take(length);
        if let Some(portion) = owed.portion() {
            let credit = open_range_request::Kind::Credit(portion);
            let credit = OpenRangeRequest { kind: Some(credit) };
            if requests.try_send(credit).is_ok() {
                owed.granted(portion);
            }
        }
    }
}

/// What a node says of a range.
struct Answers {
    node: String,
    stream: Streaming<OpenRangeAnswer>,
}

impl Answers {
    async fn next(&mut self) -> Result<open_range_answer::Kind, DumpError> {
        let why = match self.stream.message().await {
            Ok(Some(OpenRangeAnswer { kind: Some(kind) })) => return Ok(kind),
            Ok(Some(OpenRangeAnswer { kind: None })) => return Err(wire::away(wire::MALFORMED)),
            Ok(None) => "it ended the rows".to_owned(),
            Err(status) => status.message().to_owned(),
        };
        Err(wire::reader_away(&self.node, &why))
    }
}
