//! The rows of one range, from the leader.
//!
//! Credit is given back when a batch has gone on, so that a consumer that does not read holds at most a
//! window here and stops the reading of the replica behind it.

use pgcapture_actors::dump::{DumpError, OpenedRange, ROW_BATCHES_WAITING_MAX, RowEvent};
use pgcapture_engine::lsn::Lsn;
use pgcapture_proto::peer::v1::{
    OpenRange, OpenRangeAnswer, OpenRangeRequest, RangesMember, open_range_answer,
    open_range_request, peer_ranges_client::PeerRangesClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::Streaming;

use super::{link::not_reached, wire};
use crate::{
    peer_log::credit::{Owed, READ_WINDOW_BYTES},
    peers::PeerChannel,
};

/// Credits on their way out.
const REQUESTS_WAITING_MAX: usize = 8;

/// Opens a range; the leader waits for a replica that is behind. `calls` owns the task that takes the
/// rows in; it ends with the range.
pub(super) async fn open(
    mut client: PeerRangesClient<PeerChannel>,
    member: RangesMember,
    (number, at_least): (u64, Lsn),
    calls: &TaskTracker,
) -> Result<OpenedRange, DumpError> {
    let (requests, outbound) = mpsc::channel(REQUESTS_WAITING_MAX);
    let open = OpenRangeRequest {
        kind: Some(open_range_request::Kind::Open(OpenRange {
            member: Some(member),
            number,
            at_least: at_least.0,
            credit: READ_WINDOW_BYTES,
        })),
    };
    if requests.try_send(open).is_err() {
        return Err(wire::away("a new queue is full"));
    }
    let answers = client.open(ReceiverStream::new(outbound)).await;
    let mut answers = answers.map_err(|status| not_reached(&status))?.into_inner();
    let at = match next(&mut answers).await? {
        open_range_answer::Kind::OpenedAt(at) => Lsn(at),
        open_range_answer::Kind::Failure(failure) => return Err(wire::to_error(&failure)),
        open_range_answer::Kind::Rows(_) | open_range_answer::Kind::End(_) => {
            return Err(wire::away(wire::MALFORMED));
        }
    };
    let (events, rows) = mpsc::channel(ROW_BATCHES_WAITING_MAX);
    calls.spawn(take_in(answers, requests, events));
    Ok(OpenedRange { at, rows })
}

/// Takes rows in until they end, or whoever reads them does. What breaks off closes the channel without an
/// end, which means that the reader died.
async fn take_in(
    mut answers: Streaming<OpenRangeAnswer>,
    requests: mpsc::Sender<OpenRangeRequest>,
    events: mpsc::Sender<RowEvent>,
) {
    let mut owed = Owed::default();
    loop {
        let answer = tokio::select! {
            answer = next(&mut answers) => answer,
            () = events.closed() => return,
        };
        let (event, length, is_end) = match answer {
            Ok(open_range_answer::Kind::Rows(rows)) => {
                let length = rows.bytes.len();
                let Some(batch) = wire::to_rows(rows) else {
                    tracing::error!("{}", wire::MALFORMED);
                    return;
                };
                (RowEvent::Rows(batch), length, false)
            }
            Ok(open_range_answer::Kind::End(_)) => (RowEvent::End, 0, true),
            Ok(open_range_answer::Kind::Failure(failure)) => {
                (RowEvent::Failed(wire::to_error(&failure)), 0, true)
            }
            Ok(open_range_answer::Kind::OpenedAt(_)) => continue,
            Err(error) => {
                tracing::debug!(%error, "the rows of a range broke off");
                return;
            }
        };
        if events.send(event).await.is_err() || is_end {
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

async fn next(
    answers: &mut Streaming<OpenRangeAnswer>,
) -> Result<open_range_answer::Kind, DumpError> {
    let answer = answers.message().await;
    let answer = answer.map_err(|status| not_reached(&status))?;
    let kind = answer.and_then(|answer| answer.kind);
    kind.ok_or_else(|| wire::away("the leader ended the rows"))
}
